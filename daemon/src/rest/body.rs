//! What a request carries: bounded, and decoded as its content type says.

use bytes::Bytes;
use flotilla_api::admit::{self, UnknownFields};
use flotilla_api::{Kind, Reason, Status, protobuf};
use http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde_json::{Map, Value};

use super::query::Query;
use super::route::Target;
use super::{Call, MAX_BODY_BYTES};
use crate::gate::{Ownership, WriteOptions};

/// Reads a body whole.
///
/// # Errors
/// `RequestEntityTooLarge`, or `BadRequest` if the client hung up.
pub async fn read(body: Incoming) -> Result<Bytes, Status> {
    match Limited::new(body, MAX_BODY_BYTES).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Status::new(
            Reason::RequestEntityTooLarge,
            format!("Request entity too large: limit is {MAX_BODY_BYTES}"),
        )),
        Err(error) => Err(Status::bad_request(format!("the request's body broke off: {error}"))),
    }
}

/// Clients of built-in kinds send this form without asking.
fn is_protobuf(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim() == "application/vnd.kubernetes.protobuf"
}

/// What a content type says of the bytes.
fn is_yaml(headers: &HeaderMap) -> Result<bool, Status> {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("application/json");
    match value.split(';').next().unwrap_or_default().trim() {
        "application/json" | "" => Ok(false),
        "application/yaml" | "application/x-yaml" | "text/yaml" => Ok(true),
        other => Err(Status::new(
            Reason::UnsupportedMediaType,
            format!(
                "the body of the request was in an unknown format ({other}) - accepted media types include: \
                 application/json, application/yaml, application/vnd.kubernetes.protobuf"
            ),
        )),
    }
}

/// One object or options, as JSON. Of a key that stands twice in JSON, the last counts unless `strict`.
///
/// # Errors
/// `BadRequest` with the place of what cannot be read, or `UnsupportedMediaType`.
pub fn value(headers: &HeaderMap, bytes: &[u8], strict: bool) -> Result<Value, Status> {
    if is_protobuf(headers) {
        return protobuf::decode(bytes);
    }
    if !is_yaml(headers)? && !strict {
        return serde_json::from_slice(bytes)
            .map_err(|error| Status::bad_request(format!("the body of the request is not valid JSON: {error}")));
    }
    yaml(bytes)
}

/// One value, in YAML or JSON.
///
/// # Errors
/// `BadRequest` with the place of what cannot be read.
pub fn yaml(bytes: &[u8]) -> Result<Value, Status> {
    let mut documents = admit::documents(bytes)?;
    match documents.len() {
        1 => Ok(documents.remove(0)),
        0 => Err(Status::bad_request("the body of the request is empty")),
        many => Err(Status::bad_request(format!("the body of the request holds {many} documents instead of one"))),
    }
}

/// An object of `kind` as it is to be written at `target`: what the path says need not be repeated in it.
///
/// # Errors
/// `BadRequest` if it cannot be read or contradicts the path.
pub fn object(kind: &Kind, target: &Target, mut object: Value) -> Result<Value, Status> {
    let Value::Object(map) = &mut object else {
        return Err(Status::bad_request(format!("the body of the request is not an object of kind {}", kind.kind)));
    };
    fill(map, "apiVersion", &kind.api_version(), |found, wanted| {
        format!("the API version in the data ({found}) does not match the expected API version ({wanted})")
    })?;
    fill(map, "kind", &kind.kind, |found, wanted| {
        format!("the kind in the data ({found}) does not match the expected kind ({wanted})")
    })?;
    let metadata = map.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
    if metadata.is_null() {
        *metadata = Value::Object(Map::new());
    }
    let Value::Object(metadata) = metadata else { return Ok(object) };
    if let Some(namespace) = target.namespace.as_deref().filter(|_| kind.is_namespaced()) {
        fill(metadata, "namespace", namespace, |_, _| {
            "the namespace of the provided object does not match the namespace sent on the request".into()
        })?;
    }
    if let Some(name) = target.name.as_deref() {
        fill(metadata, "name", name, |found, wanted| {
            format!("the name of the object ({found}) does not match the name on the URL ({wanted})")
        })?;
    }
    Ok(object)
}

/// Puts a text where there is none.
fn fill(
    map: &mut Map<String, Value>,
    field: &str,
    wanted: &str,
    mismatch: impl Fn(&str, &str) -> String,
) -> Result<(), Status> {
    match map.get(field) {
        None | Some(Value::Null) => _ = map.insert(field.into(), wanted.into()),
        Some(Value::String(found)) if found.is_empty() => _ = map.insert(field.into(), wanted.into()),
        Some(Value::String(found)) if found != wanted => return Err(Status::bad_request(mismatch(found, wanted))),
        // What is no text is told with all else that is wrong.
        Some(_) => {}
    }
    Ok(())
}

/// How a write is to be done, by its query.
///
/// # Errors
/// `Invalid` for values that mean nothing.
pub fn write_options(call: &Call) -> Result<WriteOptions, Status> {
    Ok(WriteOptions {
        dry_run: dry_run(&call.query)?,
        manager: manager(&call.query, &call.head.headers)?,
        unknown_fields: unknown_fields(&call.query)?,
        ownership: Ownership::Changed,
    })
}

/// # Errors
/// `Invalid` if it is anything but `All`.
pub fn dry_run(query: &Query) -> Result<bool, Status> {
    match query.all("dryRun").as_slice() {
        [] | [""] => Ok(false),
        ["All"] => Ok(true),
        other => Err(unsupported("dryRun", &other.join(","), &["All"])),
    }
}

fn unknown_fields(query: &Query) -> Result<UnknownFields, Status> {
    match query.get("fieldValidation") {
        "Ignore" => Ok(UnknownFields::Drop),
        "" | "Warn" => Ok(UnknownFields::Warn),
        "Strict" => Ok(UnknownFields::Refuse),
        other => Err(unsupported("fieldValidation", other, &["Ignore", "Strict", "Warn"])),
    }
}

fn unsupported(field: &str, found: &str, known: &[&str]) -> Status {
    let known: Vec<String> = known.iter().map(|one| format!("\"{one}\"")).collect();
    Status::new(
        Reason::Invalid,
        format!("{field}: Unsupported value: \"{found}\": supported values: {}", known.join(", ")),
    )
}

/// Who manages the fields that are written: as asked, or the first word of the client's name.
///
/// # Errors
/// `Invalid` if it is too long or cannot be printed.
pub fn manager(query: &Query, headers: &HeaderMap) -> Result<String, Status> {
    const MAX_MANAGER_CHARACTERS: usize = 128;
    let asked = query.get("fieldManager");
    if asked.chars().count() > MAX_MANAGER_CHARACTERS || asked.chars().any(char::is_control) {
        return Err(Status::new(
            Reason::Invalid,
            format!("fieldManager: Invalid value: must have at most {MAX_MANAGER_CHARACTERS} printable characters"),
        ));
    }
    if !asked.is_empty() {
        return Ok(asked.to_owned());
    }
    let agent = headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let name: String = agent.split('/').next().unwrap_or_default().chars().take(MAX_MANAGER_CHARACTERS).collect();
    Ok(if name.is_empty() { "unknown".into() } else { name })
}

#[cfg(test)]
mod tests {
    use flotilla_api::{Builtin, Registry};
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_path_says_need_not_be_repeated_and_must_not_be_contradicted() {
        let kind = Registry::builtin().built_in(Builtin::ConfigMap).unwrap();
        let target = Target { namespace: Some("a".into()), name: Some("n".into()), ..Target::default() };
        let filled = object(&kind, &target, json!({"data": {"k": "v"}})).unwrap();
        assert_eq!(filled["metadata"], json!({"namespace": "a", "name": "n"}));
        assert_eq!((&filled["kind"], &filled["apiVersion"]), (&json!("ConfigMap"), &json!("v1")));
        for wrong in [
            json!({"metadata": {"name": "other"}}),
            json!({"metadata": {"namespace": "other"}}),
            json!({"kind": "Secret"}),
            json!({"apiVersion": "v2"}),
            json!([]),
        ] {
            assert_eq!(object(&kind, &target, wrong).unwrap_err().reason, Reason::BadRequest);
        }
    }

    #[test]
    fn a_manager_is_named_or_taken_from_the_client() {
        let mut headers = HeaderMap::new();
        headers.insert(header::USER_AGENT, "kubectl/v1.32 (linux)".parse().unwrap());
        assert_eq!(manager(&Query::parse(""), &headers).unwrap(), "kubectl");
        assert_eq!(manager(&Query::parse("fieldManager=me"), &headers).unwrap(), "me");
        assert!(manager(&Query::parse(&format!("fieldManager={}", "x".repeat(129))), &headers).is_err());
    }
}
