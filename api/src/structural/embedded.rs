//! Resources inside of resources: `x-kubernetes-embedded-resource`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::field::{Errors, Path};
use crate::{names, validate};

/// It must say what it is; how its metadata is formed was looked at when it was pruned.
pub(super) fn check(resource: &Map<String, Value>, path: &Path, errors: &mut Errors) {
    for (field, rule) in [("apiVersion", api_version as fn(&str) -> Vec<String>), ("kind", kind)] {
        let path = path.child(field);
        match resource.get(field) {
            None => errors.required(&path, "must not be empty"),
            Some(Value::String(text)) if text.is_empty() => errors.invalid(&path, "", "must not be empty"),
            Some(Value::String(text)) => validate::name(text, rule, &path, errors),
            // Its type is complained about already.
            Some(_) => {}
        }
    }
    if let Some(metadata) = resource.get("metadata").and_then(|metadata| ObjectMeta::deserialize(metadata).ok()) {
        validate::metadata::embedded(&metadata, &path.child("metadata"), errors);
    }
}

fn api_version(text: &str) -> Vec<String> {
    match text.matches('/').count() {
        0 | 1 => Vec::new(),
        _ => vec![format!("unexpected GroupVersion string: {text}")],
    }
}

fn kind(text: &str) -> Vec<String> {
    let complaints = names::dns_1035_label(&text.to_lowercase());
    complaints.iter().map(|words| format!("may have mixed case, but should otherwise match: {words}")).collect()
}
