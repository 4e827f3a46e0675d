//! Requests to the REST face: how many, of what kind, how they ended and how long they took.
//!
//! Defined by kube-apiserver's stable metrics, with their labels. As there, a watch counts when it ends.

use std::sync::Arc;
use std::time::Instant;

use flotilla_api::Kind;
use http::{Method, StatusCode};
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::register;

/// Upstream's buckets.
pub(super) const SECONDS: &[f64] = &[
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0,
    45.0, 60.0,
];
/// What a request is about, in upstream's order.
const ABOUT: [&str; 8] = ["component", "dry_run", "group", "resource", "scope", "subresource", "verb", "version"];
const COMPONENT: &str = "apiserver";
/// Paths that are counted under their names; below others there may be anything.
const PATHS: &[&str] =
    &["/api", "/apis", "/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/readyz", "/version"];

/// What a request asks for, as it is counted.
#[derive(Clone, Default)]
pub struct Asking {
    /// What is asked for, if it is served; only then are there names to count under.
    pub kind: Option<Arc<Kind>>,
    pub subresource: String,
    /// Empty unless it is no resource.
    pub path: String,
    pub verb: &'static str,
    pub scope: &'static str,
    pub dry_run: bool,
    pub is_long: bool,
    pub mutates: bool,
}

impl Asking {
    fn labels(&self) -> [&str; 8] {
        let kind = self.kind.as_deref();
        let text = |of: fn(&Kind) -> &str| kind.map_or("", of);
        let subresource = match kind {
            Some(kind) => kind.subresources.iter().find(|known| **known == self.subresource).map_or("", |known| known),
            None => PATHS.iter().find(|known| self.path == **known).copied().unwrap_or_default(),
        };
        [
            COMPONENT,
            if self.dry_run { "All" } else { "" },
            text(|kind| &kind.group),
            text(|kind| &kind.plural),
            self.scope,
            subresource,
            self.verb,
            text(|kind| &kind.version),
        ]
    }
}

/// Upstream's word for what is done, of those that are counted.
pub fn verb(method: &Method, verb: &str, connects: bool, applies: bool) -> &'static str {
    match (method, verb) {
        _ if connects => "CONNECT",
        (_, "list") => "LIST",
        (_, "watch") => "WATCH",
        (_, "deletecollection") => "DELETECOLLECTION",
        (&Method::GET | &Method::HEAD, _) => "GET",
        (&Method::POST, _) => "POST",
        (&Method::PUT, _) => "PUT",
        (&Method::PATCH, _) if applies => "APPLY",
        (&Method::PATCH, _) => "PATCH",
        (&Method::DELETE, _) => "DELETE",
        _ => "other",
    }
}

/// What is counted of requests. Cheap to clone.
#[derive(Clone)]
pub struct Requests {
    total: IntCounterVec,
    seconds: HistogramVec,
    reading: IntGauge,
    mutating: IntGauge,
    long: IntGaugeVec,
    terminated: IntCounterVec,
    deprecated: IntGaugeVec,
}

impl Requests {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let of = |name: &str, help: &str| Opts::new(format!("apiserver_{name}"), help);
        let with_code: Vec<&str> = std::iter::once("code").chain(ABOUT).collect();
        let seconds = of("request_duration_seconds", "How long requests took; those that go on, until they ended.");
        let under_way = of("current_inflight_requests", "Requests under way, but for those that go on for long.");
        let under_way = register(registry, IntGaugeVec::new(under_way, &["request_kind"])?)?;
        let counter = |opts: Opts| register(registry, IntCounterVec::new(opts, &with_code)?);
        Ok(Self {
            total: counter(of("request_total", "Requests that have ended, by what they asked for and were told."))?,
            seconds: register(
                registry,
                HistogramVec::new(HistogramOpts::from(seconds).buckets(SECONDS.to_vec()), &ABOUT)?,
            )?,
            reading: under_way.with_label_values(&["readOnly"]),
            mutating: under_way.with_label_values(&["mutating"]),
            long: register(
                registry,
                IntGaugeVec::new(of("longrunning_requests", "Watches, sessions and the like that go on."), &ABOUT)?,
            )?,
            terminated: counter(of("request_terminations_total", "Requests refused so that others can be answered."))?,
            deprecated: register(
                registry,
                IntGaugeVec::new(
                    of("requested_deprecated_apis", "Versions that were asked for and are to go; always 1."),
                    &["group", "removed_release", "resource", "subresource", "version"],
                )?,
            )?,
        })
    }

    /// Counts a request until what is returned is dropped.
    pub fn begin(&self, asking: Asking) -> Counted {
        let gauge = match (asking.is_long, asking.mutates) {
            (true, _) => self.long.with_label_values(&asking.labels()),
            (false, true) => self.mutating.clone(),
            (false, false) => self.reading.clone(),
        };
        gauge.inc();
        Counted { requests: self.clone(), asking, gauge, began: Instant::now(), code: None, terminated: false }
    }
}

/// A request that is counted as under way; dropped, it has ended.
pub struct Counted {
    requests: Requests,
    asking: Asking,
    gauge: IntGauge,
    began: Instant,
    code: Option<StatusCode>,
    terminated: bool,
}

impl Counted {
    /// What it was answered with.
    pub fn answered(&mut self, code: StatusCode) {
        self.code = Some(code);
    }

    /// It is refused so that others can be answered.
    pub fn terminated(&mut self) {
        self.terminated = true;
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.gauge.dec();
        let requests = &self.requests;
        let about = self.asking.labels();
        // Who hung up before there was an answer was told nothing.
        let code = self.code.as_ref().map_or("0", StatusCode::as_str);
        let mut with_code = [code; 9];
        with_code[1..].copy_from_slice(&about);
        requests.total.with_label_values(&with_code).inc();
        requests.seconds.with_label_values(&about).observe(self.began.elapsed().as_secs_f64());
        if self.terminated {
            requests.terminated.with_label_values(&with_code).inc();
        }
        if let Some(deprecation) = self.asking.kind.as_ref().and_then(|kind| kind.deprecation.as_ref()) {
            let [_, _, group, resource, _, subresource, _, version] = about;
            let labels = [group, &deprecation.removed_release, resource, subresource, version];
            requests.deprecated.with_label_values(&labels).set(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use flotilla_api::{Builtin, Registry as Kinds};
    use prometheus::{Encoder, TextEncoder};

    use super::*;

    fn text(registry: &Registry) -> String {
        let mut text = Vec::new();
        TextEncoder::new().encode(&registry.gather(), &mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn a_request_is_counted_with_what_it_asked_for() {
        let registry = Registry::new();
        let requests = Requests::new(&registry).unwrap();
        let asking = Asking {
            kind: Kinds::builtin().built_in(Builtin::Pod),
            subresource: "status".into(),
            verb: "GET",
            scope: "resource",
            ..Asking::default()
        };
        let mut counted = requests.begin(asking);
        assert!(text(&registry).contains("apiserver_current_inflight_requests{request_kind=\"readOnly\"} 1"));
        counted.answered(StatusCode::NOT_FOUND);
        drop(counted);
        let text = text(&registry);
        let labels = "component=\"apiserver\",dry_run=\"\",group=\"\",resource=\"pods\",scope=\"resource\",\
                      subresource=\"status\",verb=\"GET\",version=\"v1\"";
        assert!(text.contains(&format!("apiserver_request_total{{code=\"404\",{labels}}} 1")), "{text}");
        assert!(text.contains(&format!("apiserver_request_duration_seconds_count{{{labels}}} 1")), "{text}");
        assert!(text.contains("apiserver_current_inflight_requests{request_kind=\"readOnly\"} 0"));
    }

    #[test]
    fn what_is_not_known_makes_no_series() {
        let registry = Registry::new();
        let requests = Requests::new(&registry).unwrap();
        for number in 0..100 {
            let (path, subresource) = (format!("/nothing/{number}"), number.to_string());
            let verb = verb(&format!("M{number}").parse().unwrap(), "", false, false);
            drop(requests.begin(Asking { path, subresource, verb, ..Asking::default() }));
        }
        let text = text(&registry);
        let series = text.lines().filter(|line| line.starts_with("apiserver_request_total{")).count();
        assert_eq!(series, 1, "{text}");
    }

    #[test]
    fn a_long_request_is_one_until_it_ends() {
        let registry = Registry::new();
        let requests = Requests::new(&registry).unwrap();
        let counted = requests.begin(Asking { verb: "WATCH", is_long: true, ..Asking::default() });
        let is = |text: &str, count: u8| {
            let mut lines = text.lines().filter(|line| line.starts_with("apiserver_longrunning_requests{"));
            lines.any(|line| line.contains("verb=\"WATCH\"") && line.ends_with(&format!(" {count}")))
        };
        assert!(is(&text(&registry), 1) && !text(&registry).contains("apiserver_request_total{"));
        drop(counted);
        assert!(is(&text(&registry), 0) && text(&registry).contains("apiserver_request_total{"));
    }
}
