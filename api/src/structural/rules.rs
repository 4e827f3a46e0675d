//! `x-kubernetes-validations`: rules in CEL over an object, wherever its schema has some.
//!
//! Invariant: all rules of an object share one budget; when it does not suffice, the object is refused.

use serde_json::Value;

use super::validate::Olds;
use super::{Constraints, Rule};
use crate::cel::{Budget, Scope, Val};
use crate::field::{Errors, Path};
use crate::schema::Schema;

/// The longest message that a rule may make up.
const MAX_MESSAGE_BYTES: usize = 5 * 1024;

/// Complaints of the rules about an object, as a change of `old` if there was one.
pub(super) fn run(schema: &Schema, object: &Value, old: Option<&Value>, errors: &mut Errors) {
    Run { budget: &mut Budget::default(), errors, ended: false }.visit(schema, object, old, &Path::root());
}

/// The same about a part of an object that stands for itself, within what others have left of the budget.
pub(super) fn run_at(schema: &Schema, value: &Value, path: &Path, budget: &mut Budget, errors: &mut Errors) {
    Run { budget, errors, ended: false }.visit(schema, value, None, path);
}

struct Run<'e> {
    budget: &'e mut Budget,
    errors: &'e mut Errors,
    /// The budget did not suffice for a rule, which was said: no other one is asked.
    ended: bool,
}

impl Run<'_> {
    fn visit(&mut self, schema: &Schema, value: &Value, old: Option<&Value>, path: &Path) {
        if value.is_null() || schema.reference.is_some() {
            return;
        }
        if let Some(constraints) = &schema.constraints {
            self.rules(constraints, schema, value, old, path);
        }
        match value {
            Value::Array(items) => {
                let Some(of_item) = &schema.items else { return };
                let olds = Olds::of(old, schema);
                for (index, item) in items.iter().enumerate() {
                    self.visit(of_item, item, olds.of_item(item), &path.index(index));
                }
            }
            Value::Object(map) => {
                for (name, value) in map {
                    let old = old.and_then(|old| old.get(name));
                    if let Some(field) = schema.properties.get(name) {
                        self.visit(field, value, old, &path.child(name));
                    } else if let Some(values) = &schema.values {
                        self.visit(values, value, old, &path.key(name));
                    }
                }
            }
            _ => {}
        }
    }

    fn rules(&mut self, of: &Constraints, schema: &Schema, value: &Value, old: Option<&Value>, path: &Path) {
        let type_ = schema.type_.as_deref().unwrap_or_default();
        for rule in &of.rules {
            if self.ended {
                return;
            }
            let is_unchanged = !rule.uses_old_self && old == Some(value);
            let has_nothing_to_compare = rule.uses_old_self && !rule.optional_old_self && old.is_none();
            if is_unchanged || has_nothing_to_compare {
                continue;
            }
            let program = match &rule.program {
                Ok(program) => program,
                Err(words) => {
                    self.errors.invalid(path, type_, format_args!("rule compile error: {words}"));
                    continue;
                }
            };
            self.budget.begin();
            let mut scope = scope(rule, schema, value, old);
            match program.run(&mut scope, self.budget) {
                Ok(Val::Bool(true)) => {}
                Ok(_) => self.failed(rule, schema, value, old, path),
                Err(words) if words.contains("actual cost limit exceeded") => {
                    self.ended = true;
                    let words = format!(
                        "'{words}': no further validation rules will be run due to call cost exceeds limit for rule: {}",
                        rule_words(rule)
                    );
                    self.errors.invalid(path, type_, words);
                }
                Err(words) if words.starts_with("no such overload") => {
                    let words = format!(
                        "'{words}': call arguments did not match a supported operator, function or macro signature for \
                         rule: {}",
                        rule_words(rule)
                    );
                    self.errors.invalid(path, type_, words);
                }
                Err(words) => {
                    self.errors.invalid(path, type_, format_args!("{words} evaluating rule: {}", rule_words(rule)))
                }
            }
        }
    }

    fn failed(&mut self, rule: &Rule, schema: &Schema, value: &Value, old: Option<&Value>, path: &Path) {
        let message = self.made_message(rule, schema, value, old).unwrap_or_else(|| match rule.message.is_empty() {
            true => format!("failed rule: {}", rule.text.trim()),
            false => rule.message.clone(),
        });
        let below = rule.field_path.as_deref().and_then(|below| field_path(below, schema).ok());
        let path = below.map_or_else(|| path.clone(), |below| path.join(&below));
        let type_ = schema.type_.as_deref().unwrap_or_default();
        match rule.reason.as_deref() {
            Some("FieldValueForbidden") => self.errors.forbidden(&path, message),
            Some("FieldValueRequired") => self.errors.required(&path, &message),
            Some("FieldValueDuplicate") => self.errors.duplicate(&path, type_),
            _ => self.errors.invalid(&path, type_, message),
        }
    }

    /// What the rule's own expression says went wrong; nothing if it fails or says nothing fit to be shown.
    fn made_message(&mut self, rule: &Rule, schema: &Schema, value: &Value, old: Option<&Value>) -> Option<String> {
        let program = rule.message_expression.as_ref()?;
        self.budget.begin();
        let mut scope = scope(rule, schema, value, old);
        let made = program.run(&mut scope, self.budget).ok()?;
        let text = made.as_text()?.trim();
        let fits = !text.is_empty() && text.len() <= MAX_MESSAGE_BYTES && !text.contains('\n');
        fits.then(|| text.to_owned())
    }
}

fn scope<'a>(rule: &Rule, schema: &'a Schema, value: &'a Value, old: Option<&'a Value>) -> Scope<'a> {
    let mut scope = Scope::new();
    scope.bind("self", Val::of(value, Some(schema)));
    if rule.uses_old_self {
        let old = old.map(|old| Val::of(old, Some(schema)));
        let old = match rule.optional_old_self {
            true => Val::Optional(old.map(std::rc::Rc::new)),
            false => old.unwrap_or(Val::Null),
        };
        scope.bind("oldSelf", old);
    }
    scope
}

fn rule_words(rule: &Rule) -> &str {
    if rule.message.is_empty() { rule.text.trim() } else { &rule.message }
}

/// `.spec.list`, `['a.b'].c`: fields and keys only, which the schema must have.
///
/// # Errors
/// Why it is no such path.
pub(super) fn field_path(text: &str, schema: &Schema) -> Result<Path, String> {
    let mut path = Path::root();
    let mut schema = schema;
    let mut rest = text;
    if rest.is_empty() {
        return Err("must not be empty".into());
    }
    while !rest.is_empty() {
        let name;
        if let Some(after) = rest.strip_prefix('.') {
            let end = after.find(['.', '[']).unwrap_or(after.len());
            name = after[..end].to_owned();
            rest = &after[end..];
        } else if let Some(after) = rest.strip_prefix("['") {
            let end = after.find("']").ok_or("unexpected end of JSON path")?;
            name = after[..end].replace("\\'", "'").replace("\\\\", "\\");
            rest = &after[end + 2..];
        } else {
            return Err(format!("expected [ or . but got: {rest}"));
        }
        if name.is_empty() {
            return Err("unexpected end of JSON path".into());
        }
        match (schema.properties.get(&name), &schema.values) {
            (Some(field), _) => (path, schema) = (path.child(&name), field),
            (None, Some(values)) if schema.properties.is_empty() => (path, schema) = (path.key(&name), values),
            _ => return Err("does not refer to a valid field".into()),
        }
    }
    Ok(path)
}
