//! Patches: how a client says what to change instead of what should be.
//!
//! Defined by RFC 6902 (JSON Patch), RFC 7386 (JSON Merge Patch) and upstream's strategic merge patch, whose merge keys and
//! strategies come from [`crate::schema`].
//!
//! Invariant: a patch is a function of the object that it is applied to; what it cannot be applied to stays as it is.
//! Invariant: what comes out is nested no deeper than [`MAX_DEPTH`].

mod json;
mod merge;
mod strategic;

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use crate::admit::repeated;
use crate::error::{Reason, Status};
use crate::field::{Errors, Path};
use crate::schema::Schema;

/// How deep a patched object may be nested.
pub const MAX_DEPTH: usize = 128;

/// What a patch is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    Json,
    Merge,
    Strategic,
    /// Not a change but an intent: the fields that its manager wants.
    Apply,
}

impl PatchType {
    /// As a request's content type says.
    ///
    /// # Errors
    /// `UnsupportedMediaType`, with what is taken instead.
    pub fn of(content_type: &str) -> Result<Self, Status> {
        match content_type.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => Ok(Self::Json),
            "application/merge-patch+json" => Ok(Self::Merge),
            "application/strategic-merge-patch+json" => Ok(Self::Strategic),
            "application/apply-patch+yaml" => Ok(Self::Apply),
            _ => Err(Status::new(
                Reason::UnsupportedMediaType,
                "the body of the request was in an unknown format - accepted media types include: \
                 application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, \
                 application/apply-patch+yaml",
            )),
        }
    }
}

/// A patch that was read.
#[derive(Clone, Debug)]
pub enum Patch {
    Json(json_patch::Patch),
    Merge(Value),
    Strategic(Value),
}

impl Patch {
    /// Reads the body of a patch of one of the first three types, with what strict decoding has to say of it.
    ///
    /// # Errors
    /// `BadRequest` for what is no such patch, `RequestEntityTooLarge` for one with too many operations.
    pub fn parse(type_: PatchType, body: &[u8]) -> Result<(Self, Vec<String>), Status> {
        let wrong = |why: &dyn fmt::Display| Status::bad_request(format!("error decoding patch: {why}"));
        let read = repeated::json(body).map_err(|error| wrong(&error))?;
        let mut complaints: Vec<String> = read.complaints().collect();
        let is_object = read.value.is_object();
        let patch = match type_ {
            PatchType::Json => {
                complaints.extend(json::unknown_fields(&read.value));
                complaints.iter_mut().for_each(|complaint| complaint.insert_str(0, "json patch "));
                json::parse(read.value)?
            }
            PatchType::Merge if is_object => Patch::Merge(read.value),
            PatchType::Strategic if is_object => Patch::Strategic(read.value),
            PatchType::Merge | PatchType::Strategic => return Err(wrong(&"it is not a JSON object")),
            PatchType::Apply => {
                return Err(Status::new(Reason::UnsupportedMediaType, "an apply configuration is not a patch"));
            }
        };
        Ok((patch, complaints))
    }

    /// Upstream's answer to a patch of which strict decoding has to complain, when it has made `patched`.
    pub fn refuse_strictly(&self, patched: &Value, complaints: &[String]) -> Status {
        let shown = match self {
            Patch::Strategic(patch) => in_go(patch),
            Patch::Json(_) | Patch::Merge(_) => patched.to_string(),
        };
        let mut errors = Errors::new();
        let detail = format!("strict decoding error: {}", complaints.join(", "));
        errors.invalid(&Path::new("patch"), shown, detail);
        Status::invalid("", "", errors.into_causes())
    }

    /// What `current` becomes.
    ///
    /// # Errors
    /// `Invalid` if the patch cannot be applied, `UnsupportedMediaType` for a strategic one without a schema to say how.
    pub fn apply(&self, schema: Option<&Schema>, current: &Value) -> Result<Value, Status> {
        let new = match self {
            Patch::Json(patch) => json::apply(patch, current)?,
            Patch::Merge(patch) => {
                let mut new = current.clone();
                merge::merge(&mut new, patch);
                new
            }
            Patch::Strategic(patch) => {
                let schema = schema.ok_or_else(|| {
                    Status::new(
                        Reason::UnsupportedMediaType,
                        "the body of the request was in an unknown format - accepted media types include: \
                         application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml",
                    )
                })?;
                strategic::apply(schema, current, patch).map_err(rejected)?
            }
        };
        if is_shallow(&new, MAX_DEPTH) { Ok(new) } else { Err(too_deep()) }
    }
}

/// A value as Go prints it: `map[spec:map[ports:[80 81]]]`.
fn in_go(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(in_go).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let fields: BTreeMap<&String, String> = map.iter().map(|(key, value)| (key, in_go(value))).collect();
            let fields: Vec<String> = fields.into_iter().map(|(key, value)| format!("{key}:{value}")).collect();
            format!("map[{}]", fields.join(" "))
        }
        other => other.to_string(),
    }
}

/// Upstream's answer to a patch that is well-formed and cannot be applied, with why.
fn rejected(why: String) -> Status {
    Status::new(Reason::Invalid, format!("the server rejected our request due to an error in our request: {why}"))
}

fn too_deep() -> Status {
    Status::new(Reason::Invalid, format!("the patch makes an object that is nested more than {MAX_DEPTH} levels deep"))
}

/// Whether nothing is nested deeper than `levels`.
fn is_shallow(value: &Value, levels: usize) -> bool {
    match (value, levels.checked_sub(1)) {
        (Value::Array(items), Some(below)) => items.iter().all(|item| is_shallow(item, below)),
        (Value::Object(map), Some(below)) => map.values().all(|value| is_shallow(value, below)),
        (Value::Array(_) | Value::Object(_), None) => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_type_names_a_patch() {
        assert_eq!(PatchType::of("application/merge-patch+json; charset=utf-8").unwrap(), PatchType::Merge);
        assert_eq!(PatchType::of("application/json").unwrap_err().reason, Reason::UnsupportedMediaType);
        assert_eq!(PatchType::of("application/apply-patch+cbor").unwrap_err().reason, Reason::UnsupportedMediaType);
    }

    #[test]
    fn what_is_no_patch_is_refused() {
        for (type_, body) in [
            (PatchType::Json, "{}"),
            (PatchType::Json, "[\"jump\"]"),
            (PatchType::Merge, "[]"),
            (PatchType::Strategic, "\"x\""),
            (PatchType::Merge, "{"),
        ] {
            assert_eq!(Patch::parse(type_, body.as_bytes()).unwrap_err().reason, Reason::BadRequest, "{body}");
        }
    }

    #[test]
    fn what_stands_there_twice_is_told_and_the_last_counts() {
        let parse = |type_, body: &str| Patch::parse(type_, body.as_bytes()).unwrap();
        let (patch, complaints) = parse(PatchType::Strategic, r#"{"spec": {"a": 1, "a": ["x", null], "b": true}}"#);
        assert_eq!(complaints, ["duplicate field \"spec.a\""]);
        let refused = patch.refuse_strictly(&Value::Null, &complaints);
        assert_eq!((refused.reason, refused.causes[0].field.as_str()), (Reason::Invalid, "patch"));
        assert_eq!(
            refused.message,
            " \"\" is invalid: patch: Invalid value: \"map[spec:map[a:[x <nil>] b:true]]\": strict decoding error: \
             duplicate field \"spec.a\""
        );
        let operations = r#"[{"op": "add", "op": "remove", "path": "/a", "why": 1}]"#;
        let (patch, complaints) = parse(PatchType::Json, operations);
        assert_eq!(complaints, ["json patch duplicate field \"[0].op\"", "json patch unknown field \"[0].why\""]);
        let patched = patch.apply(None, &serde_json::json!({"a": 1, "b": 2})).unwrap();
        assert_eq!(patched, serde_json::json!({"b": 2}));
        assert!(patch.refuse_strictly(&patched, &complaints).message.contains(r#"Invalid value: "{\"b\":2}": strict"#));
    }
}
