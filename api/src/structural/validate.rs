//! Whether values are what a schema says, in upstream's words.

use std::collections::{BTreeSet, HashMap};

use serde_json::{Map, Value};

use super::{Constraints, embedded, format};
use crate::field::{Errors, Path, type_name};
use crate::schema::Schema;

/// What is wrong with an object.
#[derive(Default)]
pub(super) struct Findings {
    pub errors: Errors,
    /// Whether something is so wrong that rules would make no sense of the object.
    pub blocking: bool,
    /// How often a value was looked at with a schema.
    steps: usize,
}

impl Findings {
    fn refuse_size(&mut self, path: &Path) {
        self.errors.forbidden(path, "the object is too large for its schema");
        self.blocking = true;
    }
}

/// How often values are looked at: large schemas times large objects would never end.
const MAX_STEPS: usize = 2_000_000;

/// Complains about a value. What `old` had at the same place already is let be.
pub(super) fn visit(value: &Value, old: Option<&Value>, schema: &Schema, path: &Path, found: &mut Findings) {
    if old == Some(value) || found.steps > MAX_STEPS {
        return;
    }
    found.steps += 1;
    if found.steps > MAX_STEPS {
        return found.refuse_size(path);
    }
    if schema.reference.is_some() {
        // Of metadata, a definition may restrict the names only.
        for (name, field) in &schema.properties {
            if let Some(value) = value.get(name) {
                visit(value, old.and_then(|old| old.get(name)), field, &path.child(name), found);
            }
        }
        return;
    }
    let nothing = Constraints::default();
    let constraints = schema.constraints.as_deref().unwrap_or(&nothing);
    if value.is_null() && constraints.nullable {
        return;
    }
    if !check_type(value, schema, constraints, path, found) {
        return;
    }
    check_allowed(value, constraints, path, found);
    match value {
        Value::String(text) => check_text(text, schema, constraints, path, found),
        Value::Number(number) => check_number(number.as_f64().unwrap_or_default(), value, constraints, path, found),
        Value::Array(items) => check_items(items, old, schema, constraints, path, found),
        Value::Object(map) => check_fields(map, old, schema, constraints, path, found),
        _ => {}
    }
    check_junctors(value, constraints, path, found);
}

fn body(path: &Path) -> String {
    format!("{path} in body")
}

fn check_type(value: &Value, schema: &Schema, constraints: &Constraints, path: &Path, found: &mut Findings) -> bool {
    let is_whole = |value: &Value| match value {
        Value::Number(number) => {
            number.is_i64() || number.is_u64() || number.as_f64().is_some_and(|n| n.fract() == 0.0)
        }
        _ => false,
    };
    let (holds, wanted) = match schema.type_.as_deref() {
        _ if constraints.int_or_string => (value.is_string() || is_whole(value), "integer,string"),
        Some("object") => (value.is_object(), "object"),
        Some("array") => (value.is_array(), "array"),
        Some("string") => (value.is_string(), "string"),
        Some("boolean") => (value.is_boolean(), "boolean"),
        Some("number") => (value.is_number(), "number"),
        Some("integer") => (is_whole(value), "integer"),
        _ => (true, ""),
    };
    if !holds {
        let name = type_name(value);
        let message = format!("Invalid value: {name:?}: {} must be of type {wanted}: {name:?}", body(path));
        found.errors.add("FieldValueTypeInvalid", path, message);
        found.blocking = true;
    }
    holds
}

fn check_allowed(value: &Value, constraints: &Constraints, path: &Path, found: &mut Findings) {
    if constraints.allowed.is_empty() || constraints.allowed.iter().any(|allowed| same(allowed, value)) {
        return;
    }
    let shown = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let allowed: Vec<String> = constraints.allowed.iter().map(shown).collect();
    let allowed: Vec<&str> = allowed.iter().map(String::as_str).collect();
    found.errors.not_supported(path, value.clone(), &allowed);
}

/// Numbers are the same however they are written.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => a == b || x.as_f64() == y.as_f64(),
        _ => a == b,
    }
}

fn check_text(text: &str, schema: &Schema, constraints: &Constraints, path: &Path, found: &mut Findings) {
    let characters = || i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
    if let Some(max) = constraints.max_length.filter(|max| characters() > *max) {
        found.errors.too_long(path, usize::try_from(max).unwrap_or_default());
        found.blocking = true;
    }
    if let Some(min) = constraints.min_length.filter(|min| characters() < *min) {
        found.errors.invalid(path, text, format_args!("{} should be at least {min} chars long", body(path)));
    }
    if let Some(pattern) = constraints.pattern.as_ref().filter(|pattern| !pattern.is_match(text)) {
        found.errors.invalid(path, text, format_args!("{} should match '{pattern}'", body(path)));
    }
    if let Some(name) = schema.format.as_deref().filter(|name| !format::holds(name, text)) {
        found.errors.invalid(path, text, format_args!("{} must be of type {name}: {text:?}", body(path)));
    }
}

fn check_number(number: f64, value: &Value, constraints: &Constraints, path: &Path, found: &mut Findings) {
    let mut wrong = |words: String| found.errors.invalid(path, value.clone(), format_args!("{} {words}", body(path)));
    match (constraints.minimum, constraints.exclusive_minimum) {
        (Some(minimum), true) if number <= minimum => wrong(format!("should be greater than {minimum}")),
        (Some(minimum), false) if number < minimum => wrong(format!("should be greater than or equal to {minimum}")),
        _ => {}
    }
    match (constraints.maximum, constraints.exclusive_maximum) {
        (Some(maximum), true) if number >= maximum => wrong(format!("should be less than {maximum}")),
        (Some(maximum), false) if number > maximum => wrong(format!("should be less than or equal to {maximum}")),
        _ => {}
    }
    if let Some(factor) = constraints.multiple_of.filter(|factor| *factor > 0.0)
        && (number / factor).fract() != 0.0
    {
        wrong(format!("should be a multiple of {factor}"));
    }
}

fn check_items(
    items: &[Value],
    old: Option<&Value>,
    schema: &Schema,
    constraints: &Constraints,
    path: &Path,
    found: &mut Findings,
) {
    let count = i64::try_from(items.len()).unwrap_or(i64::MAX);
    if let Some(max) = constraints.max_items.filter(|max| count > *max) {
        found.errors.too_many(path, items.len(), usize::try_from(max).unwrap_or_default());
        found.blocking = true;
    }
    if let Some(min) = constraints.min_items.filter(|min| count < *min) {
        let words = format!("{} should have at least {min} items", body(path));
        found.errors.invalid(path, Value::Array(items.to_vec()), words);
    }
    if let Some(of_item) = &schema.items {
        let olds = Olds::of(old, schema);
        for (index, item) in items.iter().enumerate() {
            visit(item, olds.of_item(item), of_item, &path.index(index), found);
        }
    }
    check_unique(items, schema, path, found);
}

/// The items of a list before, where they can be told apart by their keys.
pub(super) struct Olds<'a> {
    by_keys: HashMap<String, &'a Value>,
    keys: &'a [String],
}

impl<'a> Olds<'a> {
    pub fn of(old: Option<&'a Value>, schema: &'a Schema) -> Self {
        let is_map = schema.list_type.as_deref() == Some("map");
        let items = old.and_then(Value::as_array).filter(|_| is_map).map_or(&[][..], Vec::as_slice);
        let keys = &schema.list_map_keys;
        let by_keys = items.iter().map(|item| (Self::key(keys, item), item)).collect();
        Self { by_keys, keys }
    }

    pub fn of_item(&self, item: &Value) -> Option<&'a Value> {
        if self.by_keys.is_empty() { None } else { self.by_keys.get(&Self::key(self.keys, item)).copied() }
    }

    fn key(keys: &[String], item: &Value) -> String {
        keys.iter().map(|key| item.get(key).map_or_else(String::new, Value::to_string) + "\0").collect()
    }
}

/// Sets hold no item twice, maps no key.
fn check_unique(items: &[Value], schema: &Schema, path: &Path, found: &mut Findings) {
    let mut seen = BTreeSet::new();
    let list_type = schema.list_type.as_deref().unwrap_or_default();
    for (index, item) in items.iter().enumerate() {
        let shown = match list_type {
            "set" => item.clone(),
            "map" => {
                let keys = schema.list_map_keys.iter();
                let keys = keys.filter_map(|key| item.get(key).map(|value| (key.clone(), value.clone())));
                Value::Object(keys.collect())
            }
            _ => return,
        };
        if !seen.insert(shown.to_string()) {
            found.errors.duplicate(&path.index(index), shown);
        }
    }
}

fn check_fields(
    map: &Map<String, Value>,
    old: Option<&Value>,
    schema: &Schema,
    constraints: &Constraints,
    path: &Path,
    found: &mut Findings,
) {
    let count = i64::try_from(map.len()).unwrap_or(i64::MAX);
    if let Some(max) = constraints.max_properties.filter(|max| count > *max) {
        found.errors.too_many(path, map.len(), usize::try_from(max).unwrap_or_default());
        found.blocking = true;
    }
    if let Some(min) = constraints.min_properties.filter(|min| count < *min) {
        let words = format!("{} should have at least {min} properties", body(path));
        found.errors.invalid(path, Value::Object(map.clone()), words);
    }
    for name in schema.required.iter().filter(|name| !map.contains_key(*name)) {
        found.errors.required(&path.child(name), "");
        found.blocking = true;
    }
    if constraints.embedded_resource {
        embedded::check(map, path, &mut found.errors);
    }
    for (name, value) in map {
        let old = old.and_then(|old| old.get(name));
        if let Some(field) = schema.properties.get(name) {
            visit(value, old, field, &path.child(name), found);
        } else if let Some(values) = &schema.values {
            visit(value, old, values, &path.key(name), found);
        }
    }
}

fn check_junctors(value: &Value, constraints: &Constraints, path: &Path, found: &mut Findings) {
    for schema in &constraints.all_of {
        visit(value, None, schema, path, found);
    }
    if !constraints.any_of.is_empty() && !constraints.any_of.iter().any(|schema| holds(value, schema, path, found)) {
        let words = format!("\"{path}\" must validate at least one schema (anyOf)");
        found.errors.invalid(path, value.clone(), words);
    }
    if !constraints.one_of.is_empty() {
        let count = constraints.one_of.iter().filter(|schema| holds(value, schema, path, found)).count();
        let words = format!("\"{path}\" must validate one and only one schema (oneOf). Found");
        match count {
            1 => {}
            0 => found.errors.invalid(path, value.clone(), format_args!("{words} none valid")),
            many => found.errors.invalid(path, value.clone(), format_args!("{words} {many} valid alternatives")),
        }
    }
    if constraints.not.as_ref().is_some_and(|schema| holds(value, schema, path, found)) {
        found.errors.invalid(path, value.clone(), format_args!("\"{path}\" must not validate the schema (not)"));
    }
}

/// Whether a value has nothing to complain about, without complaining.
fn holds(value: &Value, schema: &Schema, path: &Path, found: &mut Findings) -> bool {
    let mut inner = Findings { steps: found.steps, ..Findings::default() };
    visit(value, None, schema, path, &mut inner);
    found.steps = inner.steps;
    if inner.steps > MAX_STEPS && !found.blocking {
        found.refuse_size(path);
    }
    inner.errors.is_empty()
}
