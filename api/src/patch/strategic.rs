//! Strategic merge patch: a merge that knows which lists are sets and which are maps.
//!
//! Defined by upstream's `strategicpatch` and "Strategic Merge Patch" in its API conventions. A list whose strategy is
//! `merge` is merged element by element, those of a list of objects told apart by the merge key; every other list is
//! replaced. Directives stand among the fields: `$patch`, `$retainKeys`, `$setElementOrder/FIELD`,
//! `$deleteFromPrimitiveList/FIELD`.
//!
//! Invariant: no directive is left in what comes out.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use crate::schema::Schema;

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ORDER: &str = "$setElementOrder/";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";

type Result<T> = std::result::Result<T, String>;
type Fields = Map<String, Value>;

/// What `current` becomes under a patch of objects of this schema.
pub fn apply(schema: &Schema, current: &Value, patch: &Value) -> Result<Value> {
    let (Value::Object(current), Value::Object(patch)) = (current, patch) else {
        return Err("a strategic merge patch is an object and changes an object".into());
    };
    Ok(Value::Object(merge_fields(current.clone(), patch, Some(schema))?))
}

/// The schema of a field, with how it is merged.
fn field_schema<'a>(schema: Option<&'a Schema>, field: &str) -> Option<&'a Schema> {
    let schema = schema?.resolve()?;
    schema.properties.get(field).or(schema.values.as_deref())
}

fn has_strategy(schema: Option<&Schema>, strategy: &str) -> bool {
    let strategies = schema.and_then(|schema| schema.patch_strategy.as_deref()).unwrap_or_default();
    strategies.split(',').any(|one| one == strategy)
}

fn merge_fields(mut current: Fields, patch: &Fields, schema: Option<&Schema>) -> Result<Fields> {
    match patch.get(PATCH) {
        None => {}
        Some(Value::String(how)) => match how.as_str() {
            "merge" => {}
            "replace" => return Ok(plain(patch)),
            "delete" => return Ok(Fields::new()),
            other => return Err(format!("unrecognized value for {PATCH}: {other:?}")),
        },
        Some(other) => return Err(format!("unrecognized value for {PATCH}: {other}")),
    }
    retain(&mut current, patch)?;
    delete_from_lists(&mut current, patch)?;
    for (field, value) in patch.iter().filter(|(field, _)| !field.starts_with('$')) {
        if value.is_null() {
            current.remove(field);
            continue;
        }
        let of_field = field_schema(schema, field);
        let order = order_of(patch, field)?;
        let before = current.remove(field);
        let after = merge_value(before, value, of_field, order).map_err(|error| format!("{field}: {error}"))?;
        current.insert(field.clone(), after);
    }
    // An order may be given for a list of which nothing else changes.
    for (directive, _) in patch.iter().filter(|(field, _)| field.starts_with(SET_ORDER)) {
        let field = &directive[SET_ORDER.len()..];
        if patch.contains_key(field) {
            continue;
        }
        if let (Some(Value::Array(list)), Some(order)) = (current.get_mut(field), order_of(patch, field)?) {
            let key = merge_key(field_schema(schema, field));
            let server: Vec<Value> = list.clone();
            *list = ordered(std::mem::take(list), order, &server, key);
        }
    }
    Ok(current)
}

fn merge_value(
    before: Option<Value>,
    patch: &Value,
    schema: Option<&Schema>,
    order: Option<&Vec<Value>>,
) -> Result<Value> {
    match patch {
        Value::Object(patch) => match before {
            Some(Value::Object(before)) if !has_strategy(schema, "replace") => {
                merge_fields(before, patch, schema).map(Value::Object)
            }
            _ => merge_fields(Fields::new(), patch, schema).map(Value::Object),
        },
        Value::Array(patch) if has_strategy(schema, "merge") => {
            let before = match before {
                Some(Value::Array(before)) => before,
                _ => Vec::new(),
            };
            merge_lists(before, patch, schema, order).map(Value::Array)
        }
        Value::Array(patch) => Ok(Value::Array(patch.iter().map(bare).collect())),
        other => Ok(other.clone()),
    }
}

fn merge_key(schema: Option<&Schema>) -> Option<&str> {
    schema.and_then(|schema| schema.patch_merge_key.as_deref())
}

fn merge_lists(
    before: Vec<Value>,
    patch: &[Value],
    schema: Option<&Schema>,
    order: Option<&Vec<Value>>,
) -> Result<Vec<Value>> {
    let key = merge_key(schema);
    let server = before.clone();
    let merged = match key {
        Some(key) if patch.iter().chain(&before).any(Value::is_object) => {
            merge_objects(before, patch, key, schema.and_then(|schema| schema.items.as_deref()))?
        }
        _ => merge_scalars(before, patch),
    };
    // Who gives no order means that of what they send.
    Ok(ordered(merged, order.map_or(patch, Vec::as_slice), &server, key))
}

fn merge_scalars(mut merged: Vec<Value>, patch: &[Value]) -> Vec<Value> {
    let mut seen: HashSet<String> = merged.iter().map(Value::to_string).collect();
    merged.extend(patch.iter().filter(|value| seen.insert(value.to_string())).cloned());
    merged
}

fn merge_objects(before: Vec<Value>, patch: &[Value], key: &str, items: Option<&Schema>) -> Result<Vec<Value>> {
    let directive = |element: &Value| element.get(PATCH).and_then(Value::as_str).map(str::to_owned);
    let replaced = patch.iter().any(|element| directive(element).as_deref() == Some("replace"));
    let mut merged = if replaced { Vec::new() } else { before };
    let id = |element: &Value| element.get(key).map(Value::to_string);
    let gone = |element: &&Value| directive(element).as_deref() == Some("delete");
    let gone: HashSet<String> = patch.iter().filter(gone).filter_map(id).collect();
    merged.retain(|one| id(one).is_none_or(|id| !gone.contains(&id)));
    let mut places: HashMap<String, usize> = HashMap::new();
    for (at, one) in merged.iter().enumerate() {
        if let Some(id) = id(one) {
            places.entry(id).or_insert(at);
        }
    }
    for element in patch {
        let Value::Object(fields) = element else {
            return Err(format!("an element of a list that is merged by {key:?} is no object: {element}"));
        };
        let name = fields.get(key);
        let at = id(element).and_then(|id| places.get(&id).copied());
        match directive(element).as_deref() {
            Some("replace") => {
                // Alone, it empties the list; with a key, it is also an element of the new one.
                if name.is_some() {
                    merged.push(Value::Object(plain(fields)));
                }
            }
            Some("delete") => {
                if name.is_none() {
                    return Err(format!("map: {element} does not contain declared merge key: {key}"));
                }
            }
            _ => {
                if name.is_none() {
                    return Err(format!("map: {element} does not contain declared merge key: {key}"));
                }
                let before = match at.map(|at| merged[at].take()) {
                    Some(Value::Object(before)) => before,
                    _ => Fields::new(),
                };
                let after = Value::Object(merge_fields(before, fields, items)?);
                match at {
                    Some(at) => merged[at] = after,
                    None => {
                        places.extend(id(element).map(|id| (id, merged.len())));
                        merged.push(after);
                    }
                }
            }
        }
    }
    Ok(merged)
}

/// Keeps only the fields that a union's writer names.
fn retain(current: &mut Fields, patch: &Fields) -> Result<()> {
    let Some(keys) = patch.get(RETAIN_KEYS) else { return Ok(()) };
    let keys = keys.as_array().ok_or_else(|| format!("{RETAIN_KEYS} is no list"))?;
    let kept = |field: &str| keys.iter().any(|key| key.as_str() == Some(field));
    if let Some(other) = patch.iter().find(|(field, value)| !field.starts_with('$') && !value.is_null() && !kept(field))
    {
        return Err(format!("{RETAIN_KEYS} does not name {:?}, which the patch sets", other.0));
    }
    current.retain(|field, _| kept(field));
    Ok(())
}

fn delete_from_lists(current: &mut Fields, patch: &Fields) -> Result<()> {
    for (directive, values) in patch.iter().filter(|(field, _)| field.starts_with(DELETE_FROM)) {
        let values = values.as_array().ok_or_else(|| format!("{directive} is no list"))?;
        if let Some(Value::Array(list)) = current.get_mut(&directive[DELETE_FROM.len()..]) {
            let gone: HashSet<String> = values.iter().map(Value::to_string).collect();
            list.retain(|value| !gone.contains(&value.to_string()));
        }
    }
    Ok(())
}

fn order_of<'a>(patch: &'a Fields, field: &str) -> Result<Option<&'a Vec<Value>>> {
    match patch.get(&format!("{SET_ORDER}{field}")) {
        None => Ok(None),
        Some(Value::Array(order)) => Ok(Some(order)),
        Some(_) => Err(format!("{SET_ORDER}{field} is no list")),
    }
}

/// Puts the elements that the order names into it; the others, which only the server has, stay among them where they were.
fn ordered(merged: Vec<Value>, order: &[Value], server: &[Value], key: Option<&str>) -> Vec<Value> {
    let name = |value: &Value| key.and_then(|key| value.get(key)).unwrap_or(value).to_string();
    let places = |list: &[Value]| -> HashMap<String, usize> {
        list.iter().enumerate().rev().map(|(at, value)| (name(value), at)).collect()
    };
    let (order, server) = (places(order), places(server));
    let place = |places: &HashMap<String, usize>, value: &Value| places.get(&name(value)).copied();
    let (mut named, rest): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|value| place(&order, value).is_some());
    named.sort_by_cached_key(|value| place(&order, value));
    let mut result = Vec::with_capacity(named.len() + rest.len());
    let (mut named, mut rest) = (named.into_iter().peekable(), rest.into_iter().peekable());
    loop {
        match (rest.peek(), named.peek()) {
            (None, None) => return result,
            (Some(_), None) => result.extend(rest.next()),
            (None, Some(_)) => result.extend(named.next()),
            (Some(left), Some(right)) => match (place(&server, left), place(&server, right)) {
                (Some(left), Some(right)) if left < right => result.extend(rest.next()),
                _ => result.extend(named.next()),
            },
        }
    }
}

/// The fields without directives, at any depth.
fn plain(fields: &Fields) -> Fields {
    let real = fields.iter().filter(|(field, _)| !field.starts_with('$') || !is_directive(field));
    real.map(|(field, value)| (field.clone(), bare(value))).collect()
}

fn bare(value: &Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(plain(fields)),
        Value::Array(list) => Value::Array(list.iter().map(bare).collect()),
        other => other.clone(),
    }
}

fn is_directive(field: &str) -> bool {
    field == PATCH || field == RETAIN_KEYS || field.starts_with(SET_ORDER) || field.starts_with(DELETE_FROM)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema;
    use serde_json::json;

    fn pod(current: Value, patch: Value) -> Result<Value> {
        apply(schema::get("io.k8s.api.core.v1.Pod").unwrap(), &current, &patch)
    }

    fn spec(current: Value, patch: Value) -> Value {
        pod(json!({"spec": current}), json!({"spec": patch})).unwrap()["spec"].clone()
    }

    #[test]
    fn lists_of_objects_are_merged_by_their_key() {
        let current = json!({"containers": [{"name": "a", "image": "1", "tty": true}, {"name": "b", "image": "1"}]});
        let patch = json!({"containers": [{"name": "b", "image": "2"}, {"name": "c", "image": "3"}]});
        let wanted = json!({"containers": [
            {"name": "a", "image": "1", "tty": true}, {"name": "b", "image": "2"}, {"name": "c", "image": "3"},
        ]});
        assert_eq!(spec(current, patch), wanted);
    }

    #[test]
    fn what_is_new_stands_before_what_only_the_server_has() {
        let current = json!({"containers": [{"name": "c", "env": [{"name": "A"}]}]});
        let patch = json!({"containers": [{"name": "e"}, {"name": "c", "env": [{"name": "Z"}]}]});
        let wanted = json!({"containers": [{"name": "e"}, {"name": "c", "env": [{"name": "Z"}, {"name": "A"}]}]});
        assert_eq!(spec(current, patch), wanted);
        let object = json!({"metadata": {"finalizers": ["a"]}});
        let added = pod(object, json!({"metadata": {"finalizers": ["c", "b"]}})).unwrap();
        assert_eq!(added, json!({"metadata": {"finalizers": ["c", "b", "a"]}}));
    }

    #[test]
    fn elements_are_deleted_and_lists_replaced() {
        let current = json!({"containers": [{"name": "a"}, {"name": "b"}]});
        let deleted = spec(current.clone(), json!({"containers": [{"name": "a", "$patch": "delete"}]}));
        assert_eq!(deleted, json!({"containers": [{"name": "b"}]}));
        let replaced = spec(current, json!({"containers": [{"name": "c"}, {"$patch": "replace"}]}));
        assert_eq!(replaced, json!({"containers": [{"name": "c"}]}));
    }

    #[test]
    fn maps_are_replaced_and_deleted_when_told() {
        let current = json!({"nodeSelector": {"a": "1"}, "securityContext": {"runAsUser": 1}});
        let patch = json!({"nodeSelector": {"$patch": "replace", "b": "2"}, "securityContext": {"$patch": "delete"}});
        assert_eq!(spec(current, patch), json!({"nodeSelector": {"b": "2"}, "securityContext": {}}));
    }

    #[test]
    fn unions_keep_only_what_is_retained() {
        let schema = schema::get("io.k8s.api.apps.v1.Deployment").unwrap();
        let current = json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
        let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
        let wanted = json!({"spec": {"strategy": {"type": "Recreate"}}});
        assert_eq!(apply(schema, &current, &patch).unwrap(), wanted);
        let wrong = json!({"spec": {"strategy": {"$retainKeys": ["type"], "rollingUpdate": {}}}});
        assert!(apply(schema, &current, &wrong).is_err());
    }

    #[test]
    fn scalars_are_a_set() {
        let object = json!({"metadata": {"finalizers": ["a", "b"]}});
        let added = pod(object.clone(), json!({"metadata": {"finalizers": ["b", "c"]}})).unwrap();
        assert_eq!(added, json!({"metadata": {"finalizers": ["a", "b", "c"]}}));
        let patch = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}});
        assert_eq!(pod(object, patch).unwrap(), json!({"metadata": {"finalizers": ["b"]}}));
    }

    #[test]
    fn an_order_is_kept_and_what_only_the_server_has_stays_in_place() {
        let current = json!({"containers": [{"name": "a"}, {"name": "x"}, {"name": "b"}]});
        let patch = json!({
            "$setElementOrder/containers": [{"name": "b"}, {"name": "a"}, {"name": "c"}],
            "containers": [{"name": "c"}],
        });
        let spec = spec(current, patch);
        let names: Vec<&str> =
            spec["containers"].as_array().unwrap().iter().filter_map(|c| c["name"].as_str()).collect();
        assert_eq!(names, ["x", "b", "a", "c"]);
    }

    #[test]
    fn lists_without_a_strategy_are_replaced_and_nulls_remove() {
        let current = json!({"containers": [{"name": "a", "command": ["x", "y"], "tty": true}]});
        let patch = json!({"containers": [{"name": "a", "command": ["z"], "tty": null}]});
        assert_eq!(spec(current, patch), json!({"containers": [{"name": "a", "command": ["z"]}]}));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let current = || json!({"spec": {"containers": [{"name": "a"}]}});
        for patch in [
            json!({"spec": {"containers": [{"image": "x"}]}}),
            json!({"spec": {"containers": ["x"]}}),
            json!({"spec": {"$patch": "explode"}}),
            json!({"spec": {"$setElementOrder/containers": "a", "containers": []}}),
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": {}}}),
        ] {
            assert!(pod(current(), patch.clone()).is_err(), "{patch}");
        }
    }
}
