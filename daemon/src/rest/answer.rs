//! Answers: bodies in the form that was asked for, and failures as `metav1.Status`.

use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use flotilla_api::{Reason, Status};
use http::header::{self, HeaderValue};
use http::{HeaderMap, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Body as _;
use serde_json::{Map, Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::indent::Indenter;
use super::route::Target;
use super::{Body, BoxError, body};

/// Answers larger than this are compressed for clients that accept it: upstream's threshold.
const COMPRESS_FROM_BYTES: usize = 128 * 1024;
/// A warning is cut after this.
const MAX_WARNING_BYTES: usize = 1024;
const MAX_WARNINGS: usize = 100;

/// For each answer anew: time counts more than the last percent.
pub(super) const COMPRESSION: Compression = Compression::fast();

pub const JSON: &str = "application/json";

/// A body that is there already.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| -> BoxError { match never {} }).boxed_unsync()
}

/// An answer of `bytes`.
pub fn bytes(code: StatusCode, content_type: &'static str, bytes: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(bytes));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// What `HEAD` gets: HTTP/2 breaks a stream off on which a body follows.
pub fn bodiless(response: Response<Body>) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    if let Some(length) = body.size_hint().exact() {
        parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    Response::from_parts(parts, full(Bytes::new()))
}

/// The same answer, and the object that it is; `None` if it is none, or larger than `max_bytes` as it is sent.
pub async fn shown(response: Response<Body>, max_bytes: usize) -> (Response<Body>, Option<Value>) {
    let (parts, body) = response.into_parts();
    let fits = body.size_hint().exact().is_some_and(|size| size <= max_bytes as u64);
    if !fits || parts.headers.contains_key(header::CONTENT_ENCODING) {
        return (Response::from_parts(parts, body), None);
    }
    // It is there already: its length is known.
    match body.collect().await {
        Ok(collected) => {
            let bytes = collected.to_bytes();
            let object = body::shown(&parts.headers, &bytes).filter(Value::is_object);
            (Response::from_parts(parts, full(bytes)), object)
        }
        Err(error) => (failure(&Status::internal(error), &Details::default()), None),
    }
}

pub fn text(code: StatusCode, text: impl Into<String>) -> Response<Body> {
    bytes(code, "text/plain; charset=utf-8", text.into().into_bytes())
}

/// JSON, compressed if it is long and the client takes that.
pub async fn json(code: StatusCode, headers: &HeaderMap, body: Vec<u8>) -> Response<Body> {
    compressible(code, headers, JSON, body).await
}

/// An answer of bytes that compress well, which is done if they are many and the client takes that.
pub async fn compressible(
    code: StatusCode,
    headers: &HeaderMap,
    content_type: &'static str,
    body: Vec<u8>,
) -> Response<Body> {
    let mut response = bytes(code, content_type, Vec::new());
    fill(&mut response, accepts_gzip(headers), body).await;
    response
}

/// The same answer, with its JSON laid out for people to read, and compressed if it is long and that is `zipped`.
pub async fn indented(response: Response<Body>, zipped: bool) -> Response<Body> {
    let (parts, body) = response.into_parts();
    let is_json =
        parts.headers.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(JSON.as_bytes()));
    // A stream has no length, and is not for people.
    if !is_json || body.size_hint().exact().is_none_or(|size| size == 0) {
        return Response::from_parts(parts, body);
    }
    let collected = match body.collect().await {
        Ok(collected) => collected.to_bytes(),
        Err(error) => return failure(&Status::internal(error), &Details::default()),
    };
    let laid_out = match collected.len() < COMPRESS_FROM_BYTES {
        true => Indenter::default().indent(&collected),
        false => {
            let compact = collected.clone();
            tokio::task::spawn_blocking(move || Indenter::default().indent(&compact)).await.unwrap_or_default()
        }
    };
    let mut response = Response::from_parts(parts, full(Bytes::new()));
    fill(&mut response, zipped, laid_out.unwrap_or_else(|| collected.to_vec())).await;
    response
}

/// Gives an answer its body, compressed if that is long and to be `zipped`.
async fn fill(response: &mut Response<Body>, zipped: bool, body: Vec<u8>) {
    if body.len() < COMPRESS_FROM_BYTES || !zipped {
        *response.body_mut() = full(body);
        return;
    }
    // Megabytes take longer than a worker may be kept from its other connections.
    let compressed = tokio::task::spawn_blocking(move || match gzip(&body) {
        Ok(compressed) => Ok(compressed),
        Err(_) => Err(body),
    });
    let (compressed, body) = match compressed.await {
        Ok(Ok(compressed)) => (true, compressed),
        Ok(Err(body)) => (false, body),
        Err(_) => {
            *response = failure(&Status::internal("the answer could not be compressed"), &Details::default());
            return;
        }
    };
    *response.body_mut() = full(body);
    if compressed {
        mark_compressed(response.headers_mut());
    }
}

/// Says that the body is compressed.
pub(super) fn mark_compressed(headers: &mut HeaderMap) {
    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
}

pub(super) fn gzip(body: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4), COMPRESSION);
    encoder.write_all(body)?;
    encoder.finish()
}

pub(super) fn accepts_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers.get(header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or_default();
    accepted.split(',').any(|one| {
        let (name, parameters) = one.split_once(';').unwrap_or((one, ""));
        name.trim() == "gzip" && !parameters.replace(' ', "").eq_ignore_ascii_case("q=0")
    })
}

/// What lasts as long as the session that an answer begins.
#[derive(Clone, Default)]
pub struct Kept(Arc<Mutex<Vec<Box<dyn Send>>>>);

/// Says of an answer that what it is to tell is yet to be read when it begins, and when that is over.
#[derive(Clone, Default)]
pub struct Reading(CancellationToken);

impl Reading {
    /// It is over when this is dropped.
    pub fn guard(&self) -> DropGuard {
        self.0.clone().drop_guard()
    }

    pub async fn over(&self) {
        self.0.cancelled().await;
    }
}

/// The same answer, which keeps something for as long as its body is sent, or the session lasts that it begins.
pub fn with(response: Response<Body>, kept: impl Send + 'static) -> Response<Body> {
    if let Some(Kept(session)) = response.extensions().get() {
        session.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(kept));
        return response;
    }
    response.map(|body| {
        let hold = move |frame| {
            let _kept = &kept;
            frame
        };
        body.map_frame(hold).boxed_unsync()
    })
}

/// Adds a `Warning` header for each sentence.
pub fn warn(response: &mut Response<Body>, warnings: &[impl AsRef<str>]) {
    for warning in warnings.iter().take(MAX_WARNINGS) {
        let mut text: String = warning.as_ref().chars().filter(|c| !c.is_control()).collect();
        if text.len() > MAX_WARNING_BYTES {
            text = text.chars().take(MAX_WARNING_BYTES / 4).collect();
        }
        let quoted = text.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{quoted}\"").as_bytes()) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}

/// What a failure is about.
#[derive(Clone, Debug, Default)]
pub struct Details {
    name: String,
    group: String,
    /// In the plural, as upstream has it here.
    kind: String,
}

impl Details {
    pub fn of(target: &Target) -> Self {
        Self {
            name: target.name.clone().unwrap_or_default(),
            group: target.group.clone(),
            kind: target.resource.clone(),
        }
    }
}

/// The `metav1.Status` of a failure.
pub fn failure(status: &Status, details: &Details) -> Response<Body> {
    let body = failure_json(status, details);
    let code = StatusCode::from_u16(status.reason.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = bytes(code, JSON, body.to_string());
    if let Some(seconds) = status.retry_after_seconds {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// The same as JSON, as watches carry it.
pub fn failure_json(status: &Status, about: &Details) -> Value {
    let mut details = Map::new();
    let mut add = |field: &str, value: &str| {
        if !value.is_empty() {
            details.insert(field.into(), value.into());
        }
    };
    let named = is_of_an_object(status);
    if let Some((kind, group, name)) = object_of(status) {
        add("name", name);
        add("group", group);
        add("kind", kind);
    } else if named {
        add("name", &about.name);
        add("group", &about.group);
        add("kind", &about.kind);
    }
    if !status.causes.is_empty() {
        details.insert("causes".into(), json!(status.causes));
    }
    if let Some(seconds) = status.retry_after_seconds {
        details.insert("retryAfterSeconds".into(), seconds.into());
    }
    let mut body = json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": status.message,
        "reason": status.reason,
        "code": status.reason.code(),
    });
    if let Some(token) = &status.continue_token {
        body["metadata"]["continue"] = token.as_str().into();
    }
    // Clients look for what was wrong with a request in details, which may be empty.
    if named || !details.is_empty() || matches!(status.reason, Reason::MethodNotAllowed | Reason::Invalid) {
        body["details"] = Value::Object(details);
    }
    body
}

/// Whether upstream says of a failure like this what it is about. A request may be invalid before there is an object.
fn is_of_an_object(status: &Status) -> bool {
    use Reason::{AlreadyExists, Conflict, Forbidden, Invalid, NotFound};
    let invalid = status.reason == Invalid && !status.causes.is_empty();
    invalid || matches!(status.reason, AlreadyExists | Conflict | Forbidden | NotFound)
}

/// Kind or resource, group and name of what a failure is about, as its message names it: what is wrong may be wrong with
/// another object than the path's, such as its namespace.
fn object_of(status: &Status) -> Option<(&str, &str, &str)> {
    let message = status.message.as_str();
    let (before, after) = match status.reason {
        Reason::Invalid => ("", "\" is invalid: "),
        Reason::NotFound => ("", "\" not found"),
        Reason::AlreadyExists => ("", "\" already exists"),
        Reason::Forbidden => ("", "\" is forbidden: "),
        Reason::Conflict => ("Operation cannot be fulfilled on ", "\": "),
        _ => return None,
    };
    let (qualified, rest) = message.strip_prefix(before)?.split_once(" \"")?;
    let (name, _) = rest.split_once(after).filter(|_| !qualified.contains(' '))?;
    let (kind, group) = qualified.split_once('.').unwrap_or((qualified, ""));
    Some((kind, group, name))
}

/// The `metav1.Status` of something that went well and left nothing to show.
pub fn success(details: Value) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_what_it_is_about() {
        let target = Target {
            group: "apps".into(),
            resource: "deployments".into(),
            name: Some("web".into()),
            ..Target::default()
        };
        let status = Status::not_found("deployments.apps", "web");
        let body = failure_json(&status, &Details::of(&target));
        assert_eq!(body["code"], 404);
        assert_eq!(body["reason"], "NotFound");
        assert_eq!(body["details"], json!({"name": "web", "group": "apps", "kind": "deployments"}));
    }

    #[test]
    fn what_is_invalid_is_an_object() {
        let target = Target { group: "apps".into(), resource: "deployments".into(), ..Target::default() };
        let cause = flotilla_api::Cause { reason: "R".into(), message: "m".into(), field: "f".into() };
        let status = Status::invalid("Deployment.apps", "web", vec![cause]);
        let details = &failure_json(&status, &Details::of(&target))["details"];
        assert_eq!(
            (&details["kind"], &details["group"], &details["name"]),
            (&json!("Deployment"), &json!("apps"), &json!("web"))
        );
    }

    #[test]
    fn a_failure_is_about_what_its_message_names() {
        let target = Target { resource: "configmaps".into(), name: Some("a".into()), ..Target::default() };
        let details = |status: &Status| failure_json(status, &Details::of(&target)).get("details").cloned();
        let of = |reason, message: &str| details(&Status::new(reason, message));
        let namespace = Some(json!({"name": "none", "kind": "namespaces"}));
        assert_eq!(of(Reason::NotFound, "namespaces \"none\" not found"), namespace);
        let lease = Some(json!({"name": "l", "group": "coordination.k8s.io", "kind": "leases"}));
        assert_eq!(of(Reason::AlreadyExists, "leases.coordination.k8s.io \"l\" already exists"), lease);
        let conflict =
            "Operation cannot be fulfilled on leases.coordination.k8s.io \"l\": the object has been modified";
        assert_eq!(of(Reason::Conflict, conflict), lease);
        let own = Some(json!({"name": "a", "kind": "configmaps"}));
        assert_eq!(of(Reason::Conflict, "Apply failed with 1 conflict: conflict with \"b\": .data.k"), own);
        assert_eq!(of(Reason::BadRequest, "name must be provided"), None);
        assert_eq!(of(Reason::Invalid, "the server rejected our request"), Some(json!({})));
        assert_eq!(of(Reason::MethodNotAllowed, "the server does not allow this"), Some(json!({})));
    }

    #[tokio::test]
    async fn people_get_json_that_they_can_read() {
        let value = json!({"a": {"b": [1, "x\\\"{,:"], "c": {}, "d": []}, "e": null});
        let response = bytes(StatusCode::CREATED, JSON, value.to_string());
        let response = indented(response, true).await;
        assert_eq!(response.status(), StatusCode::CREATED);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(String::from_utf8(body.to_vec()).unwrap(), serde_json::to_string_pretty(&value).unwrap());
        let plain = indented(text(StatusCode::OK, "{}"), true).await.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(plain, "{}");
        let long = bytes(StatusCode::OK, JSON, json!(vec![0; 100_000]).to_string());
        assert_eq!(indented(long, true).await.headers()[header::CONTENT_ENCODING], "gzip");
    }

    #[tokio::test]
    async fn a_head_has_the_length_and_not_the_body() {
        let response = bodiless(text(StatusCode::OK, "hello"));
        assert_eq!(response.headers()[header::CONTENT_LENGTH], "5");
        assert!(response.into_body().collect().await.unwrap().to_bytes().is_empty());
    }

    #[test]
    fn what_a_session_keeps_outlives_its_answer() {
        let (kept, counted) = (Kept::default(), Arc::new(()));
        let mut response = text(StatusCode::SWITCHING_PROTOCOLS, "");
        response.extensions_mut().insert(kept.clone());
        drop(with(response, counted.clone()));
        assert_eq!(Arc::strong_count(&counted), 2);
        drop(kept);
        assert_eq!(Arc::strong_count(&counted), 1);
    }

    #[test]
    fn warnings_stay_within_their_quotes() {
        let mut response = text(StatusCode::OK, "");
        warn(&mut response, &["unknown field \"spec.x\"\r\n"]);
        assert_eq!(response.headers()[header::WARNING], "299 - \"unknown field \\\"spec.x\\\"\"");
    }
}
