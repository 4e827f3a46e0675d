//! What a request carries: bounded, and decoded as its content type says.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use flotilla_api::admit::repeated::{self, Loose};
use flotilla_api::admit::{self, UnknownFields};
use flotilla_api::field::{Errors, Path};
use flotilla_api::patch::PatchType;
use flotilla_api::{Kind, Reason, Status, protobuf};
use http::{HeaderMap, Method, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use super::patch::patch_type;
use super::query::Query;
use super::route::Target;
use super::{Call, MAX_BODY_BYTES};
use crate::gate::{Ownership, WriteOptions};

/// The longest name of a manager: upstream's bound.
const MAX_MANAGER_BYTES: usize = 128;
/// For sending a body: whoever is slower holds a seat that others wait for.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// Where a body is kept once it is read.
pub type Copy = Arc<OnceLock<Bytes>>;

/// A body that was not read yet.
pub struct Sent {
    body: Incoming,
    copy: Option<Copy>,
}

impl Sent {
    pub fn new(body: Incoming, copy: Option<Copy>) -> Self {
        Self { body, copy }
    }

    /// The body, for somebody else to read.
    pub fn into_inner(self) -> Incoming {
        self.body
    }
}

/// Reads a body whole.
///
/// # Errors
/// `RequestEntityTooLarge`, `Timeout`, or `BadRequest` if the client hung up.
pub async fn read(sent: Sent) -> Result<Bytes, Status> {
    let collected = timeout(BODY_TIMEOUT, Limited::new(sent.body, MAX_BODY_BYTES).collect()).await;
    let collected = collected.map_err(|_| {
        let words = format!("the request's body did not come within {} s", BODY_TIMEOUT.as_secs());
        Status::new(Reason::Timeout, words)
    })?;
    match collected {
        Ok(collected) => {
            let bytes = collected.to_bytes();
            if let Some(copy) = sent.copy {
                _ = copy.set(bytes.clone());
            }
            Ok(bytes)
        }
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
    value.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/vnd.kubernetes.protobuf")
}

/// What bytes of any form say, if they can be read at all.
pub fn shown(headers: &HeaderMap, bytes: &[u8]) -> Option<Value> {
    if is_protobuf(headers) {
        return protobuf::decode(bytes).ok();
    }
    serde_json::from_slice(bytes).ok().or_else(|| repeated::yaml(bytes).ok().map(|read| read.value))
}

/// What a content type says of the bytes.
fn is_yaml(headers: &HeaderMap) -> Result<bool, Status> {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("application/json");
    match value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
        "application/json" | "" => Ok(false),
        "application/yaml" | "application/x-yaml" | "text/yaml" => Ok(true),
        _ => Err(Status::new(
            Reason::UnsupportedMediaType,
            "the body of the request was in an unknown format - accepted media types include: application/json, \
             application/yaml, application/vnd.kubernetes.protobuf",
        )),
    }
}

/// One object or options. Of a field that stands there twice, the last counts.
///
/// # Errors
/// `BadRequest` with the place of what cannot be read, or `UnsupportedMediaType`.
pub fn value(headers: &HeaderMap, bytes: &[u8]) -> Result<Loose, Status> {
    if is_protobuf(headers) {
        return Ok(Loose { value: protobuf::decode(bytes)?, repeated: Vec::new() });
    }
    if is_yaml(headers)? {
        return repeated::yaml(bytes);
    }
    repeated::json(bytes)
        .map_err(|error| Status::bad_request(format!("the body of the request is not valid JSON: {error}")))
}

/// An object of `kind` that was sent, and what the client is to be warned of: fields that stand there twice.
///
/// # Errors
/// `BadRequest` for such fields if they are to be refused.
pub fn taken(kind: &Kind, sent: Loose, unknown_fields: UnknownFields) -> Result<(Value, Vec<String>), Status> {
    let mut complaints: Vec<String> = sent.complaints().collect();
    match unknown_fields {
        UnknownFields::Drop => complaints.clear(),
        UnknownFields::Refuse if !complaints.is_empty() => {
            complaints.extend(admit::unknown_fields(kind, sent.value));
            return Err(admit::refuse_strictly(kind, &complaints));
        }
        UnknownFields::Refuse | UnknownFields::Warn => {}
    }
    Ok((sent.value, complaints))
}

/// An object of `kind` as it is to be written at `target`: what the path says need not be repeated in it, but for the type of
/// a custom one.
///
/// # Errors
/// `BadRequest` if it cannot be read or contradicts the path.
pub fn object(kind: &Kind, target: &Target, mut object: Value) -> Result<Value, Status> {
    if object.is_null() {
        // As upstream's decoder has it, it says nothing.
        object = Value::Object(Map::new());
    }
    let Value::Object(map) = &mut object else {
        return Err(Status::bad_request(format!("the body of the request is not an object of kind {}", kind.kind)));
    };
    if kind.structure.is_some() {
        says_its_type(map)?;
    }
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

/// An intent of `kind` at `target`, which says itself what it is of.
///
/// # Errors
/// As [`object`].
pub fn intent(kind: &Kind, target: &Target, intent: Value) -> Result<Value, Status> {
    if let Value::Object(map) = &intent {
        let (found, wanted) = (map.get("apiVersion").and_then(Value::as_str).unwrap_or_default(), kind.api_version());
        if found != wanted {
            return Err(Status::bad_request(format!(
                "Incorrect version specified in apply patch. Specified patch version: {found}, expected: {wanted}"
            )));
        }
        says_its_type(map)?;
    }
    object(kind, target, intent)
}

fn says_its_type(map: &Map<String, Value>) -> Result<(), Status> {
    let is_missing = |field: &str| map.get(field).and_then(Value::as_str).unwrap_or_default().is_empty();
    match [("kind", "Kind"), ("apiVersion", "apiVersion")].into_iter().find(|(field, _)| is_missing(field)) {
        Some((_, word)) => Err(Status::bad_request(format!("Object '{word}' is missing in the body of the request"))),
        None => Ok(()),
    }
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

/// Whether an object is the one that the path means.
///
/// # Errors
/// `BadRequest`.
pub fn check_name(target: &Target, object: &Value) -> Result<(), Status> {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    let (name, namespace) = (text("name"), text("namespace"));
    match (&target.name, &target.namespace) {
        (Some(wanted), _) if name.is_empty() => Err(Status::bad_request(format!(
            "the name of the object ({wanted} based on URL) was undeterminable: name must be provided"
        ))),
        (Some(wanted), _) if name != wanted => Err(Status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({wanted})"
        ))),
        (_, Some(wanted)) if !namespace.is_empty() && namespace != wanted => Err(Status::bad_request(format!(
            "the namespace of the object ({namespace}) does not match the namespace on the request ({wanted})"
        ))),
        _ => Ok(()),
    }
}

/// How a write is to be done, by its query. Defined by upstream's validation of `CreateOptions`, `UpdateOptions` and
/// `PatchOptions`.
///
/// # Errors
/// `Invalid` for values that mean nothing.
pub fn write_options(call: &Call) -> Result<WriteOptions, Status> {
    let query = &call.query;
    let applies = patch_type(call) == Ok(PatchType::Apply);
    let (kind, mut errors) = match call.head.method {
        Method::POST => ("CreateOptions", Errors::new()),
        Method::PATCH => ("PatchOptions", patch_errors(query, applies)),
        _ => ("UpdateOptions", Errors::new()),
    };
    errors.append(manager_errors(query.get("fieldManager")));
    let dry_run = dry_run(&query.all("dryRun"), &mut errors);
    let unknown_fields = match query.get("fieldValidation") {
        "" | "Warn" => UnknownFields::Warn,
        "Ignore" => UnknownFields::Drop,
        "Strict" => UnknownFields::Refuse,
        other => {
            errors.not_supported(&Path::new("fieldValidation"), other, &["", "Ignore", "Strict", "Warn"]);
            UnknownFields::Refuse
        }
    };
    refuse(kind, errors)?;
    let manager = manager(query, &call.head.headers);
    Ok(WriteOptions { dry_run, manager, unknown_fields, ownership: Ownership::Changed })
}

fn patch_errors(query: &Query, applies: bool) -> Errors {
    let mut errors = Errors::new();
    if !applies && query.has("force") {
        errors.forbidden(&Path::new("force"), "may not be specified for non-apply patch");
    }
    if applies && query.get("fieldManager").is_empty() {
        errors.required(&Path::new("fieldManager"), "is required for apply patch");
    }
    errors
}

fn manager_errors(manager: &str) -> Errors {
    let (mut errors, field) = (Errors::new(), Path::new("fieldManager"));
    if manager.len() > MAX_MANAGER_BYTES {
        errors.too_long(&field, MAX_MANAGER_BYTES);
    }
    for (at, character) in manager.char_indices().filter(|(_, character)| character.is_control()) {
        let number = u32::from(character);
        errors.invalid(&field, manager, format_args!("invalid character U+{number:04X} (at position {at})"));
    }
    errors
}

/// Whether only to try, by what was asked for.
pub fn dry_run(asked: &[&str], errors: &mut Errors) -> bool {
    if asked.iter().any(|one| *one != "All") {
        errors.not_supported(&Path::new("dryRun"), json!(asked), &["All"]);
    }
    !asked.is_empty()
}

/// # Errors
/// `Invalid`, naming what is wrong with options of this kind, if anything is.
pub fn refuse(kind: &str, errors: Errors) -> Result<(), Status> {
    match errors.is_empty() {
        true => Ok(()),
        false => Err(Status::invalid(format_args!("{kind}.meta.k8s.io"), "", errors.into_causes())),
    }
}

/// Who manages the fields that are written: as asked, or the first word of the client's name.
pub fn manager(query: &Query, headers: &HeaderMap) -> String {
    let asked = query.get("fieldManager");
    if !asked.is_empty() {
        return asked.to_owned();
    }
    let agent = headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let name: String = agent.split('/').next().unwrap_or_default().chars().take(MAX_MANAGER_BYTES).collect();
    if name.is_empty() { "unknown".into() } else { name }
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
        let nothing = object(&kind, &target, Value::Null).unwrap();
        assert_eq!(nothing["metadata"], json!({"namespace": "a", "name": "n"}));
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
    fn a_content_type_may_be_written_in_any_case() {
        let of = |value: &str| {
            let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, value.parse().unwrap())]);
            is_yaml(&headers).map_err(|status| status.reason)
        };
        assert_eq!(of("Application/JSON; charset=utf-8"), Ok(false));
        assert_eq!(of("application/YAML"), Ok(true));
        assert_eq!(of("text/plain"), Err(Reason::UnsupportedMediaType));
    }

    #[test]
    fn an_object_is_the_one_of_its_path() {
        let target = Target { namespace: Some("a".into()), name: Some("n".into()), ..Target::default() };
        let said = |metadata: Value| check_name(&target, &json!({"metadata": metadata})).unwrap_err().message;
        assert!(check_name(&target, &json!({"metadata": {"name": "n"}})).is_ok());
        assert!(check_name(&target, &json!({"metadata": {"name": "n", "namespace": "a"}})).is_ok());
        assert_eq!(
            said(json!({})),
            "the name of the object (n based on URL) was undeterminable: name must be provided"
        );
        assert_eq!(said(json!({"name": "x"})), "the name of the object (x) does not match the name on the URL (n)");
        assert_eq!(
            said(json!({"name": "n", "namespace": "b"})),
            "the namespace of the object (b) does not match the namespace on the request (a)"
        );
    }

    #[test]
    fn a_manager_is_named_or_taken_from_the_client() {
        let mut headers = HeaderMap::new();
        headers.insert(header::USER_AGENT, "kubectl/v1.32 (linux)".parse().unwrap());
        assert_eq!(manager(&Query::parse(""), &headers), "kubectl");
        assert_eq!(manager(&Query::parse("fieldManager=me"), &headers), "me");
        let wrong = |manager: &str| manager_errors(manager).into_causes().remove(0).message;
        assert_eq!(wrong(&"x".repeat(129)), "Too long: may not be more than 128 bytes");
        assert!(wrong("a\u{7}").ends_with(": invalid character U+0007 (at position 1)"));
    }

    #[test]
    fn options_that_mean_nothing_are_named() {
        let mut errors = Errors::new();
        assert!(dry_run(&["All"], &mut errors) && !dry_run(&[], &mut errors) && errors.is_empty());
        dry_run(&["x"], &mut errors);
        let status = refuse("CreateOptions", errors).unwrap_err();
        assert_eq!(
            status.message,
            "CreateOptions.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: [\"x\"]: supported values: \"All\""
        );
        assert_eq!(patch_errors(&Query::parse("force=1"), false).into_causes()[0].field, "force");
        assert_eq!(patch_errors(&Query::parse("force=1"), true).into_causes()[0].field, "fieldManager");
    }
}
