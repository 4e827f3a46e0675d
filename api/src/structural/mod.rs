//! The schemas of custom kinds: read from a CustomResourceDefinition, and applied to objects.
//!
//! `build` reads and checks a schema, `shape` prunes and defaults objects, `validate` checks values and `embedded` resources
//! among them, `rules` runs CEL.
//! Defined by Kubernetes' "Extend the Kubernetes API with CustomResourceDefinitions", structural schemas.
//!
//! Invariant: an object that was pruned and defaulted by a schema stays as it is when that is done again.
//! Invariant: no schema and no object makes this panic, or take more than its bounds.

mod build;
mod check;
mod embedded;
mod format;
mod rules;
mod shape;
#[cfg(test)]
mod tests;
mod validate;

use std::hash::{DefaultHasher, Hash, Hasher};

use regex::Regex;
use serde_json::Value;

use crate::cel::Program;
use crate::field::{Errors, Path};
use crate::schema::{OBJECT_META, Schema};

pub use build::build;
pub(crate) use build::published;
pub use shape::{default, prune};

/// How deep a schema may be nested.
pub const MAX_SCHEMA_DEPTH: usize = 64;
/// How many parts a schema may have.
pub const MAX_SCHEMA_NODES: usize = 20_000;
/// What the compiled patterns of a schema may take, each.
pub const MAX_PATTERN_MEMORY_BYTES: usize = 256 * 1024;

/// What a custom kind's schema says of a value beside its structure.
#[derive(Debug, Default)]
pub struct Constraints {
    pub nullable: bool,
    pub preserve_unknown_fields: bool,
    /// An object of its own, with `apiVersion`, `kind` and metadata.
    pub embedded_resource: bool,
    pub int_or_string: bool,
    /// `additionalProperties: true`: any other key, with any value.
    pub any_values: bool,
    pub default: Option<Value>,
    /// `enum`; empty if any value will do.
    pub allowed: Vec<Value>,
    pub pattern: Option<Regex>,
    pub minimum: Option<f64>,
    pub exclusive_minimum: bool,
    pub maximum: Option<f64>,
    pub exclusive_maximum: bool,
    pub multiple_of: Option<f64>,
    pub min_length: Option<i64>,
    pub max_length: Option<i64>,
    pub min_items: Option<i64>,
    pub max_items: Option<i64>,
    pub min_properties: Option<i64>,
    pub max_properties: Option<i64>,
    pub all_of: Vec<Schema>,
    pub any_of: Vec<Schema>,
    pub one_of: Vec<Schema>,
    pub not: Option<Box<Schema>>,
    /// `x-kubernetes-validations`
    pub rules: Vec<Rule>,
}

/// A rule over a value.
#[derive(Debug)]
pub struct Rule {
    /// As it was written.
    pub text: String,
    /// The rule, or why it does not compile.
    pub program: Result<Program, String>,
    pub message: String,
    pub message_expression: Option<Program>,
    /// `FieldValueInvalid`, …
    pub reason: Option<String>,
    /// Below the value that the rule is about: where it is at fault.
    pub field_path: Option<String>,
    pub optional_old_self: bool,
    /// Whether the rule is about a change.
    pub uses_old_self: bool,
}

/// The schema of a custom kind, as one version of it has it.
#[derive(Debug)]
pub struct Structure {
    /// With what every object has: `apiVersion`, `kind` and metadata.
    pub root: Schema,
    /// As it was written: JSON, since hardly anybody asks for it and it takes ten times as much decoded.
    published: Box<str>,
    /// Names it among others.
    fingerprint: u64,
}

impl Structure {
    pub fn new(mut root: Schema, published: &Value) -> Self {
        add_object_fields(&mut root);
        let published = published.to_string().into_boxed_str();
        let mut hasher = DefaultHasher::new();
        published.hash(&mut hasher);
        Self { root, published, fingerprint: hasher.finish() }
    }

    /// As clients read it in OpenAPI.
    pub fn published(&self) -> Value {
        serde_json::from_str(&self.published).unwrap_or_default()
    }

    /// The same for what was written alike, and different for anything else.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// Complaints about an object, as a change of `old` if there was one. Unchanged parts are taken as they are.
    pub fn validate(&self, object: &Value, old: Option<&Value>, errors: &mut Errors) {
        let mut found = validate::Findings::default();
        validate::visit(object, old, &self.root, &Path::root(), &mut found);
        errors.append(found.errors);
        if found.blocking {
            let words = "some validation rules were not checked because the object was invalid; correct the existing \
                         errors to complete validation";
            errors.invalid(&Path::new("<nil>"), Value::Null, words);
            return;
        }
        rules::run(&self.root, object, old, errors);
    }
}

/// What an object of its own has, whatever its schema says.
fn add_object_fields(schema: &mut Schema) {
    for field in ["apiVersion", "kind"] {
        let known = schema.properties.entry(field.into()).or_default();
        known.type_.get_or_insert_with(|| "string".into());
    }
    // What the definition says of names stands beside the reference.
    let metadata = schema.properties.entry("metadata".into()).or_default();
    metadata.reference = Some(OBJECT_META.into());
    metadata.type_ = None;
}

impl Schema {
    /// What the schema says beside the structure, if it is one of a custom kind.
    fn preserves(&self) -> bool {
        self.constraints.as_ref().is_some_and(|c| c.preserve_unknown_fields)
    }
}
