//! Where in an object something is wrong, and what: complaints gathered under field paths.
//!
//! The words are those of upstream's `field.Error`, so that tools and people who know them read ours.
//!
//! Invariant: at most [`Errors::MAX`] complaints are kept, and none shows more than
//! [`MAX_SHOWN_BYTES`] of a value.

use std::fmt;

use serde_json::Value;

use crate::error::Cause;

/// How much of a wrong value is repeated in its complaint.
pub const MAX_SHOWN_BYTES: usize = 256;

/// The place of a field: `spec.containers[0].image`. The empty path is the object itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path(String);

impl Path {
    /// The path of a top-level field.
    pub fn new(field: &str) -> Self {
        Self(field.to_owned())
    }

    /// The object itself.
    pub fn root() -> Self {
        Self::default()
    }

    pub fn child(&self, field: &str) -> Self {
        if self.0.is_empty() { Self(field.to_owned()) } else { Self(format!("{}.{field}", self.0)) }
    }

    pub fn index(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    /// An entry of a map.
    pub fn key(&self, key: &str) -> Self {
        Self(format!("{}[{}]", self.0, shorten(key)))
    }

    /// The path of `below`, seen from where this path leads.
    pub fn join(&self, below: &Path) -> Self {
        match (self.0.is_empty(), below.0.is_empty(), below.0.starts_with('[')) {
            (true, _, _) => below.clone(),
            (_, true, _) => self.clone(),
            (_, _, true) => Self(format!("{}{}", self.0, below.0)),
            _ => Self(format!("{}.{}", self.0, below.0)),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The complaints about one object, in the order in which they were found.
#[derive(Clone, Debug, Default)]
pub struct Errors {
    causes: Vec<Cause>,
}

impl Errors {
    /// Further complaints are dropped: whoever mends these will see the rest.
    pub const MAX: usize = 64;

    pub fn new() -> Self {
        Self::default()
    }

    pub fn is_empty(&self) -> bool {
        self.causes.is_empty()
    }

    /// Whether something is wrong with the field at `path` itself.
    pub fn has(&self, path: &Path) -> bool {
        self.causes.iter().any(|cause| cause.field == path.0)
    }

    pub fn into_causes(self) -> Vec<Cause> {
        self.causes
    }

    pub fn add(&mut self, reason: &str, path: &Path, message: String) {
        if self.causes.len() < Self::MAX {
            self.causes.push(Cause { reason: reason.to_owned(), message, field: path.0.clone() });
        }
    }

    pub fn append(&mut self, other: Errors) {
        let room = Self::MAX.saturating_sub(self.causes.len());
        self.causes.extend(other.causes.into_iter().take(room));
    }

    /// `Required value` or `Required value: detail`.
    pub fn required(&mut self, path: &Path, detail: &str) {
        let message = if detail.is_empty() { "Required value".to_owned() } else { format!("Required value: {detail}") };
        self.add("FieldValueRequired", path, message);
    }

    /// `Invalid value: "x": detail`.
    pub fn invalid(&mut self, path: &Path, value: impl Into<Value>, detail: impl fmt::Display) {
        self.add("FieldValueInvalid", path, format!("Invalid value: {}: {detail}", shown(&value.into())));
    }

    /// `Unsupported value: "x": supported values: "A", "B"`.
    pub fn not_supported(&mut self, path: &Path, value: impl Into<Value>, supported: &[&str]) {
        let supported: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        let message =
            format!("Unsupported value: {}: supported values: {}", shown(&value.into()), supported.join(", "));
        self.add("FieldValueNotSupported", path, message);
    }

    /// `Duplicate value: "x"`.
    pub fn duplicate(&mut self, path: &Path, value: impl Into<Value>) {
        self.add("FieldValueDuplicate", path, format!("Duplicate value: {}", shown(&value.into())));
    }

    /// `Forbidden: detail`.
    pub fn forbidden(&mut self, path: &Path, detail: impl fmt::Display) {
        self.add("FieldValueForbidden", path, format!("Forbidden: {detail}"));
    }

    /// `Too long: may not be more than 253 bytes`.
    pub fn too_long(&mut self, path: &Path, max_bytes: usize) {
        self.add("FieldValueTooLong", path, format!("Too long: may not be more than {max_bytes} bytes"));
    }

    /// `Too many: 5: must have at most 3 items`.
    pub fn too_many(&mut self, path: &Path, count: usize, max: usize) {
        let items = if max == 1 { "item" } else { "items" };
        self.add("FieldValueTooMany", path, format!("Too many: {count}: must have at most {max} {items}"));
    }

    /// `Not found: "x"`.
    pub fn not_found(&mut self, path: &Path, value: impl Into<Value>) {
        self.add("FieldValueNotFound", path, format!("Not found: {}", shown(&value.into())));
    }

    /// `unknown field`.
    pub fn unknown(&mut self, path: &Path) {
        self.add("FieldValueInvalid", path, "unknown field".to_owned());
    }

    /// `Invalid value: "string": must be of type integer`; names the type that was found, not the value, since that
    /// may be secret.
    pub fn wrong_type(&mut self, path: &Path, found: &Value, expected: &str) {
        let message = format!("Invalid value: {:?}: must be of type {expected}", type_name(found));
        self.add("FieldValueTypeInvalid", path, message);
    }
}

/// JSON's name for the type of a value.
pub fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => format!("\"{}\"", shorten(text).replace('\\', "\\\\").replace('"', "\\\"")),
        other => shorten(&other.to_string()),
    }
}

fn shorten(text: &str) -> String {
    if text.len() <= MAX_SHOWN_BYTES {
        return text.to_owned();
    }
    let end = (0..=MAX_SHOWN_BYTES).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_words() {
        let path = Path::new("spec").child("containers").index(0).child("image");
        let mut errors = Errors::new();
        errors.required(&path, "");
        errors.invalid(&path, "a b", "must not have spaces");
        errors.not_supported(&path, "x", &["A", "B"]);
        errors.duplicate(&Path::new("spec").key("a/b"), 80);
        let text: Vec<String> = errors.into_causes().iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
        assert_eq!(
            text,
            [
                "spec.containers[0].image: Required value",
                "spec.containers[0].image: Invalid value: \"a b\": must not have spaces",
                "spec.containers[0].image: Unsupported value: \"x\": supported values: \"A\", \"B\"",
                "spec[a/b]: Duplicate value: 80",
            ]
        );
    }

    #[test]
    fn complaints_and_the_values_in_them_are_bounded() {
        let mut errors = Errors::new();
        for _ in 0..1000 {
            errors.invalid(&Path::root(), "é".repeat(10_000), "is too much");
        }
        let causes = errors.into_causes();
        assert_eq!(causes.len(), Errors::MAX);
        assert!(causes.iter().all(|c| c.message.len() < 2 * MAX_SHOWN_BYTES));
    }
}
