//! Pruning and defaulting: an object gets the shape that its schema says.

use serde_json::{Map, Value};

use super::Constraints;
use crate::admit::strict::{self, Findings};
use crate::field::Path;
use crate::schema::Schema;

/// Takes out what the schema does not know; each such field is told, and what is wrong with the metadata of resources
/// inside of the object.
pub fn prune(object: &mut Value, schema: &Schema, findings: &mut Findings) {
    prune_value(object, schema, &Path::root(), findings);
}

pub(super) fn prune_value(value: &mut Value, schema: &Schema, path: &Path, findings: &mut Findings) {
    if schema.reference.is_some() {
        return prune_metadata(value, schema, path, findings);
    }
    match value {
        Value::Object(map) => prune_map(map, schema, path, findings),
        Value::Array(items) => {
            if let Some(schema) = &schema.items {
                for (index, item) in items.iter_mut().enumerate() {
                    prune_value(item, schema, &path.index(index), findings);
                }
            }
        }
        _ => {}
    }
}

fn prune_metadata(metadata: &mut Value, schema: &Schema, path: &Path, findings: &mut Findings) {
    // The object's own was decoded before.
    if path.as_str() == "metadata" {
        return;
    }
    if metadata.is_null() {
        *metadata = Value::Object(Map::new());
    }
    strict::visit(metadata, schema, path, findings);
}

fn prune_map(map: &mut Map<String, Value>, schema: &Schema, path: &Path, findings: &mut Findings) {
    let keeps_others = schema.preserves() || schema.constraints.as_ref().is_some_and(|c| c.any_values);
    map.retain(|name, value| {
        if let Some(field) = schema.properties.get(name) {
            prune_value(value, field, &path.child(name), findings);
            return true;
        }
        if let Some(values) = &schema.values {
            prune_value(value, values, &path.key(name), findings);
            return true;
        }
        if !keeps_others {
            findings.unknown.unknown(&path.child(name));
        }
        keeps_others
    });
}

/// Fills in what was left out and has a default. A null that may not be null and has a default was left out.
pub fn default(value: &mut Value, schema: &Schema) {
    if schema.reference.is_some() {
        return;
    }
    match value {
        Value::Object(map) => default_map(map, schema),
        Value::Array(items) => {
            if let Some(schema) = &schema.items {
                items.iter_mut().for_each(|item| default_item(item, schema));
            }
        }
        _ => {}
    }
}

fn default_item(item: &mut Value, schema: &Schema) {
    if item.is_null()
        && let Some(replacement) = instead_of_null(schema)
    {
        *item = replacement;
    }
    default(item, schema);
}

fn default_map(map: &mut Map<String, Value>, schema: &Schema) {
    for (name, field) in &schema.properties {
        if map.get(name).is_none_or(Value::is_null)
            && let Some(replacement) = match map.get(name) {
                None => field.constraints.as_ref().and_then(|c| c.default.clone()),
                Some(_) => instead_of_null(field),
            }
        {
            map.insert(name.clone(), replacement);
        }
        if let Some(value) = map.get_mut(name) {
            default(value, field);
        }
    }
    if let Some(values) = &schema.values {
        let others = map.iter_mut().filter(|(name, _)| !schema.properties.contains_key(*name));
        others.for_each(|(_, value)| default_item(value, values));
    }
}

fn instead_of_null(schema: &Schema) -> Option<Value> {
    let constraints: &Constraints = schema.constraints.as_deref()?;
    constraints.default.clone().filter(|_| !constraints.nullable)
}
