//! Objects that `kubectl apply` applied on the client's side, before its `--server-side` did.
//!
//! Such an object carries what was last applied in an annotation. What it says and what still is so belongs to kubectl,
//! whoever the managers say has it; as long as the annotation is there it is kept true, for clients that go back.
//!
//! Invariant: nobody but kubectl gets a field by an annotation.

use serde_json::Value;

use super::fields::Fields;
use super::typed::{compare, fields_of};
use super::{Writer, without_nulls};
use crate::schema::Schema;

const ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The manager that `kubectl apply --server-side` goes by.
const KUBECTL: &str = "kubectl";
/// Upstream's bound on all annotations of an object.
const MAX_ANNOTATION_BYTES: usize = 256 * 1024;

fn last_applied(object: &Value) -> Option<&str> {
    object.get("metadata")?.get("annotations")?.get(ANNOTATION)?.as_str()
}

/// The fields that were last applied and are still as they were applied; none for anybody but kubectl.
pub fn fields(live: &Value, schema: Option<&Schema>, writer: Writer<'_>) -> Fields {
    if writer.manager != KUBECTL || !writer.subresource.is_empty() {
        return Fields::default();
    }
    let Some(last) = last_applied(live).and_then(|text| serde_json::from_str::<Value>(text).ok()) else {
        return Fields::default();
    };
    if last.get("apiVersion").and_then(Value::as_str) != Some(writer.api_version) {
        return Fields::default();
    }
    let last = without_nulls(&last);
    let Ok(fields) = fields_of(&last, schema) else { return Fields::default() };
    let since = compare(Some(&last), Some(live), schema);
    fields.difference(&since.set).difference(&since.removed)
}

/// Says in the annotation, if there is one, what kubectl applies now.
pub fn renew(object: &mut Value, config: &Value, writer: Writer<'_>) {
    if writer.manager != KUBECTL || last_applied(object).is_none_or(str::is_empty) {
        return;
    }
    let mut config = config.clone();
    if let Some(annotations) = config.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.remove(ANNOTATION);
    }
    let text = config.to_string();
    if text.len() <= MAX_ANNOTATION_BYTES
        && let Some(annotations) = object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut)
    {
        annotations.insert(ANNOTATION.into(), text.into());
    }
}
