//! Strict decoding: every field is known and of its type, before anything else looks at an object.
//!
//! Invariants:
//! - Afterwards the object decodes into its type: no nulls where a value is due, integers in range, times and quantities
//!   well formed, quantities in canonical form, unknown fields removed.
//! - A field that says as much as nothing is not there: an empty list or map, and a zero where it means nothing. A client
//!   that decodes an object into Kubernetes' own types and writes it back writes the same object.

use base64::Engine as _;
use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::field::{Errors, Path};
use crate::quantity;
use crate::schema::{self, Schema};

/// What strict decoding found wrong. Unknown fields stand apart, since a caller may choose to go on without them.
#[derive(Debug, Default)]
pub struct Findings {
    pub unknown: Errors,
    pub wrong: Errors,
}

/// Checks and tidies `value` as the type called `type_name`; of `None` only the metadata is known.
pub fn check(value: &mut Value, type_name: Option<&str>) -> Findings {
    let mut findings = Findings::default();
    match type_name.and_then(schema::get) {
        Some(schema) => visit(value, schema, &Path::root(), &mut findings),
        None => {
            if let (Some(metadata), Some(schema)) = (value.get_mut("metadata"), schema::get(schema::OBJECT_META)) {
                visit(metadata, schema, &Path::new("metadata"), &mut findings);
            }
        }
    }
    findings
}

/// The same for a value at `path`.
pub fn visit(value: &mut Value, schema: &Schema, path: &Path, findings: &mut Findings) {
    match schema.reference.as_deref() {
        Some(schema::QUANTITY) => visit_quantity(value, path, findings),
        Some(schema::INT_OR_STRING) => visit_int_or_string(value, path, findings),
        Some(schema::RAW_EXTENSION | schema::FIELDS_V1) => expect(value.is_object(), value, "object", path, findings),
        Some(name) => {
            if let Some(target) = schema::get(name) {
                visit(value, target, path, findings);
            }
        }
        None => visit_plain(value, schema, path, findings),
    }
}

fn visit_plain(value: &mut Value, schema: &Schema, path: &Path, findings: &mut Findings) {
    match schema.type_.as_deref() {
        Some("object") => visit_object(value, schema, path, findings),
        Some("array") => visit_array(value, schema, path, findings),
        Some("string") => visit_string(value, schema, path, findings),
        Some("integer") => visit_integer(value, schema, path, findings),
        Some("number") => expect(value.is_number(), value, "number", path, findings),
        Some("boolean") => expect(value.is_boolean(), value, "boolean", path, findings),
        _ => {}
    }
}

fn expect(holds: bool, value: &Value, expected: &str, path: &Path, findings: &mut Findings) {
    if !holds {
        findings.wrong.wrong_type(path, value, expected);
    }
}

fn visit_object(value: &mut Value, schema: &Schema, path: &Path, findings: &mut Findings) {
    let Value::Object(map) = value else {
        return findings.wrong.wrong_type(path, value, "object");
    };
    match &schema.values {
        Some(values) => visit_map(map, values, path, findings),
        None => visit_struct(map, schema, path, findings),
    }
}

/// A null in a map of strings is an empty string, as upstream's decoder has it; in other maps it is no entry.
fn visit_map(map: &mut Map<String, Value>, values: &Schema, path: &Path, findings: &mut Findings) {
    if values.type_.as_deref() == Some("string") {
        map.values_mut().filter(|v| v.is_null()).for_each(|v| *v = Value::String(String::new()));
    } else {
        map.retain(|_, v| !v.is_null());
    }
    for (key, value) in map {
        visit(value, values, &path.key(key), findings);
    }
}

fn visit_struct(map: &mut Map<String, Value>, schema: &Schema, path: &Path, findings: &mut Findings) {
    map.retain(|field, value| {
        let Some(kind) = schema.properties.get(field) else {
            findings.unknown.unknown(&path.child(field));
            return false;
        };
        if value.is_null() {
            return false;
        }
        visit(value, kind, &path.child(field), findings);
        !says_nothing(value, kind, || schema.zero_is_unset.contains(&field.as_str())) || schema.required.contains(field)
    });
}

/// Whether a field might as well not be there: an empty list or map, or a zero of the right type where that is unset.
fn says_nothing(value: &Value, kind: &Schema, zero_is_unset: impl Fn() -> bool) -> bool {
    match (value, kind.type_.as_deref()) {
        (Value::Array(items), Some("array")) => items.is_empty(),
        (Value::Object(map), Some("object")) => map.is_empty() && kind.values.is_some(),
        (Value::Bool(false), Some("boolean")) => zero_is_unset(),
        (Value::String(text), Some("string")) => text.is_empty() && zero_is_unset(),
        (Value::Number(number), Some("integer" | "number")) => number.as_f64() == Some(0.0) && zero_is_unset(),
        _ => false,
    }
}

fn visit_array(value: &mut Value, schema: &Schema, path: &Path, findings: &mut Findings) {
    let Value::Array(items) = value else {
        return findings.wrong.wrong_type(path, value, "array");
    };
    let Some(schema) = &schema.items else { return };
    for (index, item) in items.iter_mut().enumerate() {
        if item.is_null() {
            *item = nothing(schema);
        }
        visit(item, schema, &path.index(index), findings);
    }
}

/// What upstream's decoder makes of a null among the elements of a list: one that says nothing.
fn nothing(schema: &Schema) -> Value {
    match schema.resolve().and_then(|schema| schema.type_.as_deref()) {
        Some("object") => Value::Object(Map::new()),
        Some("array") => Value::Array(Vec::new()),
        Some("string") => Value::String(String::new()),
        Some("integer" | "number") => Value::from(0),
        Some("boolean") => Value::Bool(false),
        _ => Value::Null,
    }
}

fn visit_string(value: &Value, schema: &Schema, path: &Path, findings: &mut Findings) {
    let Value::String(text) = value else {
        return findings.wrong.wrong_type(path, value, "string");
    };
    match schema.format.as_deref() {
        Some("byte") if base64::engine::general_purpose::STANDARD.decode(text).is_err() => {
            findings.wrong.add("FieldValueInvalid", path, "Invalid value: must be base64".to_owned());
        }
        Some("date-time") if text.parse::<Timestamp>().is_err() => {
            findings.wrong.invalid(path, text.as_str(), "must be an RFC 3339 time (e.g. '2006-01-02T15:04:05Z')");
        }
        _ => {}
    }
}

fn visit_integer(value: &Value, schema: &Schema, path: &Path, findings: &mut Findings) {
    let Some(number) = value.as_i64() else {
        return findings.wrong.wrong_type(path, value, "integer");
    };
    if schema.format.as_deref() == Some("int32") && i32::try_from(number).is_err() {
        findings.wrong.invalid(path, number, "must be between -2147483648 and 2147483647, inclusive");
    }
}

fn visit_int_or_string(value: &Value, path: &Path, findings: &mut Findings) {
    match value {
        Value::String(_) => {}
        Value::Number(n) if n.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => {}
        other => findings.wrong.wrong_type(path, other, "integer or string"),
    }
}

fn visit_quantity(value: &mut Value, path: &Path, findings: &mut Findings) {
    let text = match &*value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        other => return findings.wrong.wrong_type(path, other, "quantity"),
    };
    match quantity::canonical(&text) {
        Ok(canonical) => *value = Value::String(canonical),
        Err(error) => findings.wrong.invalid(path, text, error),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn words(errors: Errors) -> Vec<String> {
        errors.into_causes().iter().map(|c| format!("{}: {}", c.field, c.message)).collect()
    }

    #[test]
    fn unknown_fields_and_wrong_types_are_found_by_path() {
        let mut value = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "replicas": 3,
            "spec": {"replicas": "three", "template": {"spec": {
                "containers": [{"name": "a", "imagee": "x", "ports": [{"containerPort": 5_000_000_000u64}], "tty": 1}],
                "nodeSelector": {"disk": 5},
            }}},
        });
        let findings = check(&mut value, Some("io.k8s.api.apps.v1.Deployment"));
        assert_eq!(
            words(findings.unknown),
            ["replicas: unknown field", "spec.template.spec.containers[0].imagee: unknown field"]
        );
        assert_eq!(
            words(findings.wrong),
            [
                "spec.replicas: Invalid value: \"string\": must be of type integer",
                "spec.template.spec.containers[0].ports[0].containerPort: Invalid value: 5000000000: must be between \
                 -2147483648 and 2147483647, inclusive",
                "spec.template.spec.containers[0].tty: Invalid value: \"integer\": must be of type boolean",
                "spec.template.spec.nodeSelector[disk]: Invalid value: \"integer\": must be of type string",
            ]
        );
        assert!(value.pointer("/spec/template/spec/containers/0/imagee").is_none());
    }

    #[test]
    fn nulls_quantities_and_times_are_tidied() {
        let mut value = json!({
            "metadata": {"creationTimestamp": null, "labels": {"a": null}},
            "spec": {"containers": [{"resources": {"limits": {"cpu": 0.5, "memory": "1024Mi"}}}]},
        });
        let findings = check(&mut value, Some("io.k8s.api.core.v1.Pod"));
        assert!(findings.wrong.is_empty() && findings.unknown.is_empty());
        assert_eq!(
            value,
            json!({
                "metadata": {"labels": {"a": ""}},
                "spec": {"containers": [{"resources": {"limits": {"cpu": "500m", "memory": "1Gi"}}}]},
            })
        );
    }

    #[test]
    fn what_says_nothing_is_not_kept() {
        let mut value = json!({
            "metadata": {"name": "a", "namespace": "", "labels": {}, "finalizers": []},
            "spec": {
                "hostNetwork": false, "hostname": "", "nodeSelector": {}, "volumes": [],
                "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 0, "securityContext": {},
                "containers": [{
                    "name": "a", "tty": false, "args": [], "resources": {"limits": {"cpu": null}},
                    "ports": [{"containerPort": 0, "hostPort": 0}], "livenessProbe": {"initialDelaySeconds": 0},
                }],
            },
        });
        let findings = check(&mut value, Some("io.k8s.api.core.v1.Pod"));
        assert!(findings.wrong.is_empty() && findings.unknown.is_empty());
        let containers = json!([
            {"name": "a", "resources": {}, "ports": [{"containerPort": 0}], "livenessProbe": {}}
        ]);
        let spec = json!({
            "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 0, "securityContext": {},
            "containers": containers,
        });
        assert_eq!(value, json!({"metadata": {"name": "a"}, "spec": spec}));
    }

    #[test]
    fn a_zero_of_the_wrong_type_is_wrong() {
        let mut value = json!({"spec": {"nodeSelector": [], "containers": [{"name": "a", "tty": 0, "args": {}}]}});
        let findings = check(&mut value, Some("io.k8s.api.core.v1.Pod"));
        assert_eq!(
            words(findings.wrong),
            [
                "spec.containers[0].args: Invalid value: \"object\": must be of type array",
                "spec.containers[0].tty: Invalid value: \"integer\": must be of type boolean",
                "spec.nodeSelector: Invalid value: \"array\": must be of type object",
            ]
        );
    }

    #[test]
    fn a_null_in_a_list_is_an_element_that_says_nothing() {
        let mut value =
            json!({"metadata": {"finalizers": [null]}, "spec": {"containers": [null, {"args": ["a", null]}]}});
        let findings = check(&mut value, Some("io.k8s.api.core.v1.Pod"));
        assert!(findings.wrong.is_empty() && findings.unknown.is_empty());
        let wanted = json!({"metadata": {"finalizers": [""]}, "spec": {"containers": [{}, {"args": ["a", ""]}]}});
        assert_eq!(value, wanted);
    }

    #[test]
    fn a_secrets_bytes_are_not_repeated() {
        let mut value = json!({"data": {"password": "hunter2!"}});
        let findings = check(&mut value, Some("io.k8s.api.core.v1.Secret"));
        assert_eq!(words(findings.wrong), ["data[password]: Invalid value: must be base64"]);
    }
}
