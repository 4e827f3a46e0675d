//! Calls over gRPC: how many, of which method, how they ended and how long they took.
//!
//! Names and labels are those that gRPC servers have in common; a call that goes on counts when it ends.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use flotilla_api::Status;
use http::HeaderMap;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry};
use prost::Message as _;
use prost_types::{FileDescriptorSet, MethodDescriptorProto};
use tonic::Code;

use super::register;
use super::requests::SECONDS;

const METHOD: [&str; 3] = ["grpc_type", "grpc_service", "grpc_method"];
const HANDLED: [&str; 4] = ["grpc_type", "grpc_service", "grpc_method", "grpc_code"];

/// A method, by the values of its labels.
type Method = [String; 3];

/// What is counted of calls. Cheap to clone.
#[derive(Clone)]
pub struct Calls {
    /// By path; only methods that there are have names.
    methods: Arc<HashMap<String, Method>>,
    started: IntCounterVec,
    handled: IntCounterVec,
    seconds: HistogramVec,
}

impl Calls {
    pub(super) fn new(registry: &Registry, descriptors: &[&[u8]]) -> Result<Self, prometheus::Error> {
        let started = Opts::new("grpc_server_started_total", "Calls that have begun.");
        let handled = Opts::new("grpc_server_handled_total", "Calls that have ended, and how.");
        let seconds = HistogramOpts::new("grpc_server_handling_seconds", "How long calls took until they ended.");
        Ok(Self {
            methods: Arc::new(methods(descriptors).map_err(|error| prometheus::Error::Msg(error.to_string()))?),
            started: register(registry, IntCounterVec::new(started, &METHOD)?)?,
            handled: register(registry, IntCounterVec::new(handled, &HANDLED)?)?,
            seconds: register(registry, HistogramVec::new(seconds.buckets(SECONDS.to_vec()), &METHOD)?)?,
        })
    }

    /// Counts a call until what is returned is dropped.
    pub fn begin(&self, path: &str) -> Calling {
        let unknown = || ["unary", "unknown", "unknown"].map(str::to_owned);
        let method = self.methods.get(path).cloned().unwrap_or_else(unknown);
        self.started.with_label_values(&method).inc();
        Calling { calls: self.clone(), method, began: Instant::now(), code: Code::Cancelled }
    }
}

/// A call that is counted; dropped, it has ended.
pub struct Calling {
    calls: Calls,
    method: Method,
    began: Instant,
    /// Who hangs up before there is an answer has cancelled the call.
    code: Code,
}

impl Calling {
    /// How it ended, if that stands in these headers or trailers.
    pub fn ended(&mut self, headers: &HeaderMap) {
        if let Some(status) = tonic::Status::from_header_map(headers) {
            self.code = status.code();
        }
    }
}

impl Drop for Calling {
    fn drop(&mut self) {
        let [kind, service, method] = &self.method;
        self.calls.handled.with_label_values(&[kind, service, method, name(self.code)]).inc();
        self.calls.seconds.with_label_values(&self.method).observe(self.began.elapsed().as_secs_f64());
    }
}

fn methods(descriptors: &[&[u8]]) -> Result<HashMap<String, Method>, Status> {
    let mut methods = HashMap::new();
    for bytes in descriptors {
        for file in FileDescriptorSet::decode(*bytes).map_err(Status::internal)?.file {
            for service in &file.service {
                let service_name = format!("{}.{}", file.package(), service.name());
                for method in &service.method {
                    let labels = [kind(method).to_owned(), service_name.clone(), method.name().to_owned()];
                    methods.insert(format!("/{service_name}/{}", method.name()), labels);
                }
            }
        }
    }
    Ok(methods)
}

fn kind(method: &MethodDescriptorProto) -> &'static str {
    match (method.client_streaming(), method.server_streaming()) {
        (false, false) => "unary",
        (true, false) => "client_stream",
        (false, true) => "server_stream",
        (true, true) => "bidi_stream",
    }
}

fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

#[cfg(test)]
mod tests {
    use prometheus::{Encoder, TextEncoder};

    use super::*;
    use crate::proto;

    fn text(registry: &Registry) -> String {
        let mut text = Vec::new();
        TextEncoder::new().encode(&registry.gather(), &mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn calls_are_counted_by_method_and_how_they_end() {
        let registry = Registry::new();
        let calls = Calls::new(&registry, &[proto::DESCRIPTORS]).unwrap();
        let mut calling = calls.begin("/flotilla.v1.Jobs/Watch");
        calling.ended(&HeaderMap::new());
        let told = text(&registry);
        let watch = "grpc_method=\"Watch\",grpc_service=\"flotilla.v1.Jobs\",grpc_type=\"server_stream\"";
        assert!(told.contains(&format!("grpc_server_started_total{{{watch}}} 1")), "{told}");
        assert!(!told.contains("grpc_server_handled_total{"), "it goes on: {told}");
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from_static("5"));
        calling.ended(&trailers);
        drop(calling);
        drop(calls.begin("/flotilla.v1.Jobs/Get"));
        let told = text(&registry);
        assert!(told.contains(&format!("grpc_server_handled_total{{grpc_code=\"NotFound\",{watch}}} 1")), "{told}");
        assert!(told.contains(&format!("grpc_server_handling_seconds_count{{{watch}}} 1")), "{told}");
        let get = "grpc_code=\"Canceled\",grpc_method=\"Get\",grpc_service=\"flotilla.v1.Jobs\",grpc_type=\"unary\"";
        assert!(told.contains(&format!("grpc_server_handled_total{{{get}}} 1")), "{told}");
    }

    #[test]
    fn what_there_is_not_makes_one_series() {
        let registry = Registry::new();
        let calls = Calls::new(&registry, &[proto::DESCRIPTORS]).unwrap();
        for number in 0..50 {
            drop(calls.begin(&format!("/none.Service/{number}")));
        }
        let told = text(&registry);
        let series = told.lines().filter(|line| line.starts_with("grpc_server_handled_total{")).count();
        assert_eq!(series, 1, "{told}");
    }
}
