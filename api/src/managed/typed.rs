//! Objects seen as fields: which there are, how two objects differ, and how one is merged into another.
//!
//! Defined by the structured-merge-diff specification. What a list or map is, the schema says; what has no schema is taken
//! as the specification deduces it: maps field by field, lists as one.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::fields::{Fields, shown};
use crate::schema::Schema;

/// How a value is divided into fields.
enum Shape<'a> {
    /// One field, whatever it holds.
    Leaf,
    Map(Option<&'a Schema>),
    /// A list of values that are there once each.
    Set,
    /// A list of objects told apart by these keys.
    Keyed(Keys<'a>),
}

/// What tells the elements of a list apart.
struct Keys<'a> {
    names: Vec<&'a str>,
    /// What an element is.
    items: Option<&'a Schema>,
}

fn shape<'a>(value: &Value, schema: Option<&'a Schema>) -> Shape<'a> {
    let resolved = schema.and_then(Schema::resolve);
    match value {
        Value::Object(_) => {
            let atomic = [schema, resolved].into_iter().flatten().any(|s| s.map_type.as_deref() == Some("atomic"));
            if atomic { Shape::Leaf } else { Shape::Map(resolved) }
        }
        Value::Array(_) => match schema {
            Some(schema) => list_shape(schema, resolved.unwrap_or(schema)),
            None => Shape::Leaf,
        },
        _ => Shape::Leaf,
    }
}

fn list_shape<'a>(field: &'a Schema, resolved: &'a Schema) -> Shape<'a> {
    let items = resolved.items.as_deref();
    match field.list_type.as_deref().or(resolved.list_type.as_deref()) {
        Some("set") => Shape::Set,
        Some("map") => {
            let keys = if field.list_map_keys.is_empty() { &resolved.list_map_keys } else { &field.list_map_keys };
            Shape::Keyed(Keys { names: keys.iter().map(String::as_str).collect(), items })
        }
        Some(_) => Shape::Leaf,
        // Types from before list types say the same by their patch strategy.
        None => match (&field.patch_strategy, &field.patch_merge_key) {
            (Some(strategy), Some(key)) if strategy.split(',').any(|one| one == "merge") => {
                Shape::Keyed(Keys { names: vec![key], items })
            }
            (Some(strategy), None) if strategy.split(',').any(|one| one == "merge") => Shape::Set,
            _ => Shape::Leaf,
        },
    }
}

fn of_field<'a>(schema: Option<&'a Schema>, name: &str) -> Option<&'a Schema> {
    let schema = schema?;
    schema.properties.get(name).or(schema.values.as_deref())
}

impl Keys<'_> {
    /// The name of an element; `None` if it has none of the keys.
    fn name_of(&self, element: &Value) -> Option<String> {
        let mut named = Map::new();
        for key in &self.names {
            match element.get(*key) {
                Some(value) if !value.is_null() => _ = named.insert((*key).to_owned(), value.clone()),
                // Admission fills it in.
                _ => named.extend(self.default_of(key).map(|default| ((*key).to_owned(), default))),
            }
        }
        (!named.is_empty()).then(|| format!("k:{}", Value::Object(named)))
    }

    fn default_of(&self, key: &str) -> Option<Value> {
        let field = of_field(self.items.and_then(Schema::resolve), key);
        let declared = field.and_then(|field| field.constraints.as_ref()?.default.clone());
        // The one key of built-in kinds that has a default.
        declared.or_else(|| (key == "protocol").then(|| "TCP".into()))
    }
}

/// The elements of a list with their names.
///
/// # Errors
/// If one of them has no name, or two have the same.
fn named<'a>(list: &'a [Value], keys: Option<&Keys<'_>>) -> Result<Vec<(String, &'a Value)>, String> {
    let mut all: Vec<(String, &Value)> = Vec::with_capacity(list.len());
    let mut seen = HashSet::with_capacity(list.len());
    for element in list {
        let name = match keys {
            Some(keys) => keys.name_of(element).ok_or_else(|| {
                format!("associative list with keys has an element that omits key fields {:?}", keys.names)
            })?,
            None => format!("v:{element}"),
        };
        if !seen.insert(name.clone()) {
            return Err(format!("duplicate entries for key {}", shown(&name)));
        }
        all.push((name, element));
    }
    Ok(all)
}

/// Every field of a value.
///
/// # Errors
/// If the elements of an associative list cannot be told apart.
pub fn fields_of(value: &Value, schema: Option<&Schema>) -> Result<Fields, String> {
    match (shape(value, schema), value) {
        (Shape::Map(schema), Value::Object(map)) if !map.is_empty() => {
            let mut set = Fields::default();
            for (name, value) in map {
                let below = fields_of(value, of_field(schema, name)).map_err(|error| format!(".{name}{error}"))?;
                set.add(format!("f:{name}"), below);
            }
            Ok(set)
        }
        (Shape::Set, Value::Array(list)) if !list.is_empty() => {
            let mut set = Fields::default();
            for (name, _) in named(list, None).map_err(|error| format!(": {error}"))? {
                set.add(name, Fields::leaf());
            }
            Ok(set)
        }
        (Shape::Keyed(keys), Value::Array(list)) if !list.is_empty() => {
            let mut set = Fields::default();
            for (name, element) in named(list, Some(&keys)).map_err(|error| format!(": {error}"))? {
                let below = fields_of(element, keys.items).map_err(|error| format!("{}{error}", shown(&name)))?;
                set.add(name, Fields { own: true, children: below.children });
            }
            Ok(set)
        }
        _ => Ok(Fields::leaf()),
    }
}

/// How a value became another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Fields that are new or have another value.
    pub set: Fields,
    /// Fields that are no more.
    pub removed: Fields,
}

impl Changes {
    fn add(&mut self, name: &str, below: Changes) {
        self.set.add(name.to_owned(), below.set);
        self.removed.add(name.to_owned(), below.removed);
    }
}

/// How `old` became `new`.
pub fn compare(old: Option<&Value>, new: Option<&Value>, schema: Option<&Schema>) -> Changes {
    match (old, new) {
        (None, None) => Changes::default(),
        (None, Some(new)) => Changes { set: all_set(new, schema), removed: Fields::default() },
        (Some(old), None) => Changes { set: Fields::default(), removed: all_removed(old, schema) },
        (Some(old), Some(new)) if old == new => Changes::default(),
        (Some(old), Some(new)) => compare_both(old, new, schema),
    }
}

/// What somebody has who sets a value that was not there: its fields, and the maps and lists that hold them. What is an
/// object of its own type upstream is there from the start.
fn all_set(value: &Value, schema: Option<&Schema>) -> Fields {
    let Ok(mut set) = fields_of(value, schema) else { return Fields::leaf() };
    hold(&mut set, value, schema);
    set
}

fn hold(set: &mut Fields, value: &Value, schema: Option<&Schema>) {
    match (shape(value, schema), value) {
        (Shape::Map(schema), Value::Object(map)) => {
            set.own |= schema.is_none_or(|schema| schema.properties.is_empty());
            for (name, value) in map {
                if let Some(below) = set.children.get_mut(&format!("f:{name}")) {
                    hold(below, value, of_field(schema, name));
                }
            }
        }
        (Shape::Keyed(keys), Value::Array(list)) => {
            set.own = true;
            for element in list {
                if let Some(below) = keys.name_of(element).and_then(|name| set.children.get_mut(&name)) {
                    hold(below, element, keys.items);
                    below.own = true;
                }
            }
        }
        _ => set.own = true,
    }
}

/// Everything that goes with a value: whatever anybody may own in it.
fn all_removed(value: &Value, schema: Option<&Schema>) -> Fields {
    fn whole(set: &mut Fields) {
        set.own = true;
        set.children.values_mut().for_each(whole);
    }
    let Ok(mut set) = fields_of(value, schema) else { return Fields::leaf() };
    whole(&mut set);
    set
}

fn compare_both(old: &Value, new: &Value, schema: Option<&Schema>) -> Changes {
    let changed = || Changes { set: all_set(new, schema), removed: Fields::default() };
    match (shape(new, schema), old, new) {
        (Shape::Map(schema), Value::Object(old), Value::Object(new)) => {
            let mut changes = Changes::default();
            for name in old.keys().chain(new.keys().filter(|name| !old.contains_key(*name))) {
                let below = compare(old.get(name), new.get(name), of_field(schema, name));
                changes.add(&format!("f:{name}"), below);
            }
            changes
        }
        (Shape::Set, Value::Array(old), Value::Array(new)) => match (named(old, None), named(new, None)) {
            (Ok(old), Ok(new)) => compare_elements(&old, &new, |old, new| compare(old, new, None)),
            _ => changed(),
        },
        (Shape::Keyed(keys), Value::Array(old), Value::Array(new)) => {
            match (named(old, Some(&keys)), named(new, Some(&keys))) {
                (Ok(old), Ok(new)) => compare_elements(&old, &new, |old, new| compare(old, new, keys.items)),
                _ => changed(),
            }
        }
        _ => changed(),
    }
}

/// Where each element stands.
fn places<'a>(list: &'a [(String, &Value)]) -> HashMap<&'a str, usize> {
    list.iter().enumerate().map(|(at, (name, _))| (name.as_str(), at)).collect()
}

fn compare_elements(
    old: &[(String, &Value)],
    new: &[(String, &Value)],
    of: impl Fn(Option<&Value>, Option<&Value>) -> Changes,
) -> Changes {
    let (before, after) = (places(old), places(new));
    let mut changes = Changes::default();
    for (name, value) in new {
        let at = before.get(name.as_str());
        let mut below = of(at.map(|at| old[*at].1), Some(value));
        below.set.own |= at.is_none();
        changes.add(name, below);
    }
    for (name, value) in old.iter().filter(|(name, _)| !after.contains_key(name.as_str())) {
        changes.add(name, of(Some(value), None));
    }
    changes
}

/// `current` with what `wanted` says put into it.
///
/// # Errors
/// If the elements of an associative list cannot be told apart.
pub fn merge(current: &Value, wanted: &Value, schema: Option<&Schema>) -> Result<Value, String> {
    match (shape(wanted, schema), current, wanted) {
        (Shape::Map(schema), Value::Object(current), Value::Object(wanted)) => {
            let mut merged = current.clone();
            for (name, value) in wanted {
                let value = match current.get(name) {
                    Some(before) => {
                        merge(before, value, of_field(schema, name)).map_err(|error| format!(".{name}{error}"))?
                    }
                    None => value.clone(),
                };
                merged.insert(name.clone(), value);
            }
            Ok(Value::Object(merged))
        }
        (Shape::Set, Value::Array(current), Value::Array(wanted)) => merge_lists(current, wanted, None),
        (Shape::Keyed(keys), Value::Array(current), Value::Array(wanted)) => merge_lists(current, wanted, Some(&keys)),
        _ => Ok(wanted.clone()),
    }
}

/// The wanted elements in their order; those that only the current list has stay among them where they were.
fn merge_lists(current: &[Value], wanted: &[Value], keys: Option<&Keys<'_>>) -> Result<Value, String> {
    let told = |error: String| format!(": {error}");
    let wanted = named(wanted, keys).map_err(told)?;
    // What is stored may hold elements twice; it is nobody's to mend here.
    let Ok(current) = named(current, keys) else {
        return Ok(Value::Array(wanted.into_iter().map(|(_, value)| value.clone()).collect()));
    };
    let (before, after) = (places(&current), places(&wanted));
    let others = current.iter().enumerate().filter(|(_, (name, _))| !after.contains_key(name.as_str()));
    let mut rest = others.peekable();
    let mut merged = Vec::with_capacity(current.len() + wanted.len());
    for (name, value) in &wanted {
        let at = before.get(name.as_str()).copied();
        while let Some((_, (_, value))) = rest.next_if(|(place, _)| at.is_some_and(|at| *place < at)) {
            merged.push((*value).clone());
        }
        merged.push(match at {
            Some(at) => merge(current[at].1, value, keys.and_then(|keys| keys.items))?,
            None => (*value).clone(),
        });
    }
    merged.extend(rest.map(|(_, (_, value))| (*value).clone()));
    Ok(Value::Array(merged))
}

/// Takes the fields of `gone` out of a value, but for what stands above or below one that `kept` has.
pub fn prune(value: &mut Value, gone: &Fields, kept: &Fields, schema: Option<&Schema>) {
    match (shape(value, schema), value) {
        (Shape::Map(schema), Value::Object(map)) => {
            for (name, below) in &gone.children {
                let Some(field) = name.strip_prefix("f:") else { continue };
                let kept = kept.children.get(name);
                let Some(value) = map.get_mut(field) else { continue };
                if let Some(kept) = kept {
                    prune(value, below, kept, of_field(schema, field));
                    continue;
                }
                prune(value, below, &Fields::default(), of_field(schema, field));
                let emptied = match value {
                    Value::Object(map) => map.is_empty(),
                    Value::Array(list) => list.is_empty(),
                    _ => true,
                };
                if emptied || (below.own && below.children.is_empty()) {
                    map.remove(field);
                }
            }
        }
        (Shape::Set, Value::Array(list)) => {
            list.retain(|value| {
                let name = format!("v:{value}");
                !gone.children.contains_key(&name) || kept.children.contains_key(&name)
            });
        }
        (Shape::Keyed(keys), Value::Array(list)) => {
            list.retain_mut(|element| {
                let Some(name) = keys.name_of(element) else { return true };
                let Some(below) = gone.children.get(&name) else { return true };
                let nothing = Fields::default();
                let kept = kept.children.get(&name).unwrap_or(&nothing);
                // Who owns no more than fields in an element does not hold the element.
                if below.own && !kept.own {
                    return false;
                }
                let named: Vec<(&str, Value)> =
                    keys.names.iter().filter_map(|key| Some((*key, element.get(*key)?.clone()))).collect();
                prune(element, below, kept, keys.items);
                // An element keeps the keys that it goes by.
                if let Value::Object(map) = element {
                    map.extend(named.into_iter().map(|(key, value)| (key.to_owned(), value)));
                }
                true
            });
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema;
    use serde_json::json;

    fn pod() -> Option<&'static Schema> {
        schema::get("io.k8s.api.core.v1.Pod")
    }

    fn containers(names: &[&str]) -> Value {
        json!({"spec": {"containers": names.iter().map(|name| json!({"name": name})).collect::<Vec<_>>()}})
    }

    #[test]
    fn a_value_has_the_fields_that_the_specification_gives_it() {
        let value = json!({
            "metadata": {"labels": {"app": "web"}, "finalizers": ["x"]},
            "spec": {
                "containers": [{"name": "a", "command": ["sh", "-c"], "ports": [{"containerPort": 80}]}],
                "nodeSelector": {},
            },
        });
        let wanted = json!({
            "f:metadata": {"f:labels": {"f:app": {}}, "f:finalizers": {"v:\"x\"": {}}},
            "f:spec": {
                "f:containers": {"k:{\"name\":\"a\"}": {
                    ".": {}, "f:name": {}, "f:command": {},
                    "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}},
                }},
                "f:nodeSelector": {},
            },
        });
        assert_eq!(fields_of(&value, pod()).unwrap().to_value(), wanted);
        let twice = containers(&["a", "a"]);
        assert!(fields_of(&twice, pod()).unwrap_err().contains("duplicate entries"));
        let nameless = json!({"spec": {"containers": [{"image": "x"}]}});
        assert!(fields_of(&nameless, pod()).unwrap_err().contains("omits key fields"));
    }

    #[test]
    fn without_a_schema_lists_are_one_field() {
        let value = json!({"spec": {"list": [{"name": "a"}], "map": {"k": 1}}});
        let wanted = json!({"f:spec": {"f:list": {}, "f:map": {"f:k": {}}}});
        assert_eq!(fields_of(&value, None).unwrap().to_value(), wanted);
    }

    #[test]
    fn changes_are_what_was_set_and_what_was_removed() {
        let old = json!({"spec": {"nodeName": "n", "hostNetwork": true, "containers": [{"name": "a"}, {"name": "b"}]}});
        let new = json!({"spec": {"nodeName": "m", "hostPID": true, "containers": [{"name": "b"}, {"name": "c"}]}});
        let changes = compare(Some(&old), Some(&new), pod());
        assert_eq!(
            changes.set.paths(),
            [".spec.containers[name=\"c\"]", ".spec.containers[name=\"c\"].name", ".spec.hostPID", ".spec.nodeName"]
        );
        assert_eq!(
            changes.removed.paths(),
            [".spec.containers[name=\"a\"]", ".spec.containers[name=\"a\"].name", ".spec.hostNetwork"]
        );
        assert_eq!(compare(Some(&old), Some(&old), pod()), Changes::default());
    }

    #[test]
    fn elements_of_others_stay_in_their_places() {
        let merged = merge(&containers(&["x", "a", "y", "b", "z"]), &containers(&["b", "a", "c"]), pod()).unwrap();
        let names: Vec<&str> =
            merged["spec"]["containers"].as_array().unwrap().iter().filter_map(|c| c["name"].as_str()).collect();
        assert_eq!(names, ["x", "y", "b", "a", "c", "z"]);
    }
}
