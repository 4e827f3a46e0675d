//! Types as OpenAPI has them: the facts of [`crate::schema`], or a custom kind's own schema, with texts.
//!
//! Invariant: every reference leads to a type that [`Types::closure`] names.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::Form;
use super::text::Texts;
use super::values;
use crate::kinds::Kind;
use crate::questions;
use crate::schema;

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";
const API_VERSION: &str = "APIVersion defines the versioned schema of this representation of an object. Servers should \
     convert recognized schemas to the latest internal value, and may reject unrecognized values. More info: \
     https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources";
const KIND: &str = "Kind is a string value representing the REST resource this object represents. Servers may infer \
     this from the endpoint the client submits requests to. Cannot be updated. In CamelCase. More info: \
     https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";
const METADATA: &str = "Standard object's metadata. More info: \
     https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";
const LIST_METADATA: &str = "Standard list metadata. More info: \
     https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";

/// Makes types for documents of one form.
pub(super) struct Types {
    pub form: Form,
    pub texts: Texts,
}

/// A type of the data in another type of the same package: `io.k8s…meta.v1.Status`.
pub(super) fn meta(name: &str) -> String {
    format!("{META}.{name}")
}

/// The name that a kind's type goes by.
pub(super) fn name_of(kind: &Kind) -> String {
    if let Some(name) = kind.schema.as_deref().filter(|name| describes(name, kind)) {
        return name.to_owned();
    }
    if kind.group.is_empty() || kind.builtin.is_some() {
        return schema::name_of(&kind.group, &kind.version, &kind.kind);
    }
    let group: Vec<&str> = kind.group.split('.').rev().collect();
    format!("{}.{}.{}", group.join("."), kind.version, kind.kind)
}

/// The name of a kind's list.
pub(super) fn list_name_of(kind: &Kind) -> String {
    format!("{}List", name_of(kind))
}

/// Whether the type says itself that it is this kind; it may also be that of another version.
fn describes(name: &str, kind: &Kind) -> bool {
    schema::get(name).is_some_and(|facts| {
        facts
            .group_version_kinds
            .iter()
            .any(|gvk| (&gvk.group, &gvk.version, &gvk.kind) == (&kind.group, &kind.version, &kind.kind))
    })
}

impl Types {
    /// The types of these kinds and their lists, and all that those refer to; each with its name, sorted.
    pub fn each(&self, kinds: &[&Kind], extra: &[String], mut emit: impl FnMut(&str, Value)) {
        let mut made: Vec<(String, Value)> = Vec::new();
        for kind in kinds {
            let (own, list) = (name_of(kind), list_name_of(kind));
            if schema::json(&own).is_none() {
                made.push((own.clone(), self.own_type(kind)));
            }
            if schema::json(&list).is_none() && !questions::is_one(kind) {
                made.push((list, self.list_type(kind, &own)));
            }
        }
        let mut wanted: BTreeSet<String> = extra.iter().cloned().collect();
        wanted.extend(kinds.iter().flat_map(|kind| [name_of(kind), list_name_of(kind)]));
        for (_, value) in &made {
            references(value, &mut wanted);
        }
        let mut names = Self::closure(wanted);
        names.extend(made.iter().map(|(name, _)| name.clone()));
        made.sort_by(|a, b| a.0.cmp(&b.0));
        made.dedup_by(|a, b| a.0 == b.0);
        for name in names {
            match made.binary_search_by(|(made, _)| made.cmp(&name)) {
                Ok(at) => emit(&name, std::mem::take(&mut made[at].1)),
                Err(_) => {
                    if let Some(value) = self.of_data(&name) {
                        emit(&name, value);
                    }
                }
            }
        }
    }

    /// All types of the data that these lead to, themselves included.
    fn closure(wanted: BTreeSet<String>) -> BTreeSet<String> {
        let mut open: Vec<String> = wanted.into_iter().filter(|name| schema::json(name).is_some()).collect();
        let mut names = BTreeSet::new();
        while let Some(name) = open.pop() {
            let Some(json) = schema::json(&name) else { continue };
            if !names.insert(name) {
                continue;
            }
            // `"ref":"NAME"` stands nowhere else in the data.
            for rest in json.split("\"ref\":\"").skip(1) {
                if let Some((reference, _)) = rest.split_once('"')
                    && !names.contains(reference)
                {
                    open.push(reference.to_owned());
                }
            }
        }
        names
    }

    /// A type of the data.
    fn of_data(&self, name: &str) -> Option<Value> {
        let raw: Value = serde_json::from_str(schema::json(name)?).ok()?;
        let mut texts = self.texts.of(name);
        if texts.is_empty() && name.ends_with("List") {
            texts = of_list(name);
        }
        let mut converted = match (name, self.form) {
            (schema::QUANTITY, Form::V2) => json!({"type": "string"}),
            (schema::QUANTITY, Form::V3) => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
            (schema::INT_OR_STRING, Form::V2) => json!({"type": "string", "format": "int-or-string"}),
            (schema::INT_OR_STRING, Form::V3) => {
                json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
            }
            _ => with_values(name, self.convert(raw, &texts)),
        };
        if let Some(text) = texts.get("") {
            converted["description"] = text.clone();
        }
        Some(converted)
    }

    /// The type of a kind that the data has no type for: one of another version, a custom one, or any object.
    fn own_type(&self, kind: &Kind) -> Value {
        let of_data = kind.schema.as_deref().and_then(|name| self.of_data(name));
        let mut value = match (of_data, &kind.structure) {
            (Some(value), _) => value,
            (None, Some(structure)) => custom(&structure.published(), self.form),
            (None, None) => json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
        };
        if !value.get("properties").is_some_and(Value::is_object) {
            value["properties"] = json!({});
        }
        value["properties"]["apiVersion"] = json!({"type": "string", "description": API_VERSION});
        value["properties"]["kind"] = json!({"type": "string", "description": KIND});
        let mut metadata = self.reference(schema::OBJECT_META);
        metadata["description"] = METADATA.into();
        value["properties"]["metadata"] = metadata;
        value["x-kubernetes-group-version-kind"] = gvk(kind, &kind.kind);
        value
    }

    fn list_type(&self, kind: &Kind, own: &str) -> Value {
        let mut metadata = self.reference(LIST_META);
        metadata["description"] = LIST_METADATA.into();
        let link = "https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md";
        json!({
            "description": format!("{}List is a list of {}", kind.kind, kind.kind),
            "type": "object",
            "required": ["items"],
            "properties": {
                "apiVersion": {"type": "string", "description": API_VERSION},
                "items": {
                    "type": "array",
                    "items": self.reference(own),
                    "description": format!("List of {}. More info: {link}", kind.plural),
                },
                "kind": {"type": "string", "description": KIND},
                "metadata": metadata,
            },
            "x-kubernetes-group-version-kind": gvk(kind, &format!("{}List", kind.kind)),
        })
    }

    /// A plain reference, as schemas have it.
    pub fn reference(&self, name: &str) -> Value {
        match self.form {
            Form::V2 => json!({"$ref": format!("#/definitions/{name}")}),
            Form::V3 => json!({"allOf": [{"$ref": format!("#/components/schemas/{name}")}]}),
        }
    }

    /// The data's short form, unfolded.
    fn convert(&self, raw: Value, texts: &Map<String, Value>) -> Value {
        let Value::Object(raw) = raw else { return raw };
        let is_object_kind = raw.contains_key("x-kubernetes-group-version-kind");
        let mut out = Map::new();
        for (key, value) in raw {
            match (key.as_str(), value) {
                ("ref", Value::String(name)) => {
                    if let Value::Object(reference) = self.reference(&name) {
                        out.extend(reference);
                    }
                }
                ("values", value) => _ = out.insert("additionalProperties".into(), self.convert(value, &Map::new())),
                ("items", value) => _ = out.insert(key, self.convert(value, &Map::new())),
                ("properties", Value::Object(fields)) => {
                    let fields = fields.into_iter().map(|(name, field)| {
                        let mut field = self.convert(field, &Map::new());
                        if is_object_kind
                            && (name == "apiVersion" || name == "kind")
                            && let Some(field) = field.as_object_mut()
                        {
                            field.remove("enum");
                        }
                        if let Some(text) = texts.get(&name) {
                            field["description"] = text.clone();
                        }
                        (name, field)
                    });
                    out.insert(key, Value::Object(fields.collect()));
                }
                (_, value) => _ = out.insert(key, value),
            }
        }
        Value::Object(out)
    }
}

/// A type that says what its fields may be.
fn with_values(name: &str, mut converted: Value) -> Value {
    for (field, schema) in converted.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten() {
        let Some(values) = values::of(name, field) else { continue };
        match schema.get_mut("items") {
            Some(items) => items["enum"] = json!(values),
            None => schema["enum"] = json!(values),
        }
    }
    converted
}

/// What there is to say of any list.
fn of_list(name: &str) -> Map<String, Value> {
    let list = name.rsplit('.').next().unwrap_or_default();
    let kind = list.strip_suffix("List").unwrap_or(list);
    let texts = [
        ("", format!("{list} is a collection of {kind}.")),
        ("apiVersion", API_VERSION.to_owned()),
        ("items", format!("items is the list of {kind}.")),
        ("kind", KIND.to_owned()),
        ("metadata", LIST_METADATA.to_owned()),
    ];
    texts.into_iter().map(|(field, text)| (field.to_owned(), text.into())).collect()
}

fn gvk(kind: &Kind, name: &str) -> Value {
    json!([{"group": kind.group, "kind": name, "version": kind.version}])
}

/// The types of the data that a finished type refers to.
fn references(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            if let Some(name) = map.get("$ref").and_then(Value::as_str).and_then(|path| path.rsplit('/').next()) {
                found.insert(name.to_owned());
            }
            map.values().for_each(|value| references(value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

/// A custom kind's schema as it is published. OpenAPI 2 lacks what the third version has: upstream leaves that out, and
/// does not describe what lies below it.
fn custom(schema: &Value, form: Form) -> Value {
    match form {
        Form::V3 => schema.clone(),
        Form::V2 => second(schema),
    }
}

fn second(schema: &Value) -> Value {
    let Value::Object(map) = schema else { return json!({}) };
    let flag = |name: &str| map.get(name).and_then(Value::as_bool).unwrap_or_default();
    let mut out = Map::new();
    for (key, value) in map {
        match (key.as_str(), value) {
            ("anyOf" | "oneOf" | "not" | "allOf" | "nullable" | "default", _) => {}
            ("properties", Value::Object(fields)) => {
                let fields = fields.iter().map(|(name, field)| (name.clone(), second(field)));
                out.insert(key.clone(), Value::Object(fields.collect()));
            }
            ("items", Value::Object(_)) | ("additionalProperties", Value::Object(_)) => {
                out.insert(key.clone(), second(value));
            }
            _ => _ = out.insert(key.clone(), value.clone()),
        }
    }
    if flag("x-kubernetes-preserve-unknown-fields") || flag("nullable") {
        for key in ["items", "properties", "additionalProperties", "type"] {
            out.remove(key);
        }
    }
    if flag("x-kubernetes-int-or-string") {
        out.remove("type");
    }
    Value::Object(out)
}
