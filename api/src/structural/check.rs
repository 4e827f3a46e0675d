//! What can be said of a schema only when it was read as a whole: whether its rules compile, and its defaults are valid.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool, ValidationRule,
};

use super::build::Builder;
use super::{Rule, add_object_fields};
use crate::admit::strict::Findings;
use crate::cel::{Budget, Program, Type, check};
use crate::field::Path;
use crate::schema::Schema;

impl Builder<'_> {
    /// Whether every rule compiles against the type that it is about.
    pub fn check_rules(&mut self, schema: &mut Schema, props: &JSONSchemaProps, is_root: bool, path: &Path) {
        if is_root {
            add_object_fields(schema);
        }
        let schema: &Schema = schema;
        self.check_rules_below(schema, props, path, None);
    }

    /// Items of the list at `mixed` cannot be told apart: no rule knows what was before.
    fn check_rules_below(&mut self, schema: &Schema, props: &JSONSchemaProps, path: &Path, mixed: Option<&Path>) {
        let rules = schema.constraints.as_ref().map_or(&[][..], |c| &c.rules);
        for (index, (rule, written)) in rules.iter().zip(props.x_kubernetes_validations.iter().flatten()).enumerate() {
            let at = path.child("x-kubernetes-validations").index(index);
            self.check_rule(rule, written, schema, &at);
            if let Some(mixed) = mixed.filter(|_| rule.uses_old_self) {
                let words =
                    format!("oldSelf cannot be used on the uncorrelatable portion of the schema within {mixed}");
                self.errors.invalid(&at.child("rule"), rule.text.as_str(), words);
            }
        }
        if let (Some(items), Some(JSONSchemaPropsOrArray::Schema(below))) = (&schema.items, &props.items) {
            let is_map = schema.list_type.as_deref() == Some("map");
            let mixed = mixed.or((!is_map).then_some(path));
            self.check_rules_below(items, below, &path.child("items"), mixed);
        }
        if let (Some(values), Some(JSONSchemaPropsOrBool::Schema(below))) =
            (&schema.values, &props.additional_properties)
        {
            self.check_rules_below(values, below, &path.child("additionalProperties"), mixed);
        }
        for (name, below) in props.properties.iter().flatten() {
            if let Some(field) = schema.properties.get(name) {
                self.check_rules_below(field, below, &path.child("properties").key(name), mixed);
            }
        }
    }

    fn check_rule(&mut self, rule: &Rule, written: &ValidationRule, schema: &Schema, path: &Path) {
        let errors = &mut *self.errors;
        if rule.text.trim().is_empty() {
            return errors.required(&path.child("rule"), "rule is not specified");
        }
        if rule.message.is_empty() && written.message.as_ref().is_some_and(|message| !message.is_empty()) {
            let message = written.message.as_deref().unwrap_or_default();
            errors.invalid(&path.child("message"), message, "message must be non-empty if specified");
        } else if rule.message.contains('\n') {
            errors.invalid(&path.child("message"), rule.message.as_str(), "message must not contain line breaks");
        }
        if written.message.is_none() && rule.text.trim().contains('\n') && written.message_expression.is_none() {
            errors.required(&path.child("message"), "message must be specified if rule contains line breaks");
        }
        if let Some(reason) = &rule.reason {
            let known = ["FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired", "FieldValueDuplicate"];
            if !known.contains(&reason.as_str()) {
                errors.not_supported(&path.child("reason"), reason.as_str(), &known);
            }
        }
        if let Some(field_path) = &rule.field_path
            && let Err(words) = super::rules::field_path(field_path, schema)
        {
            let words = format!("fieldPath must be a valid path: {words}");
            errors.invalid(&path.child("fieldPath"), field_path.as_str(), words);
        }
        let this = Type::of(schema);
        let old = match rule.optional_old_self {
            true => Type::Optional(Box::new(this.clone())),
            false => this.clone(),
        };
        let variables = [("self", this), ("oldSelf", old)];
        let fits = |program: Result<&Program, &String>, wanted: &str| -> Result<bool, String> {
            let type_ = check(program.map_err(String::clone)?, &variables)?;
            Ok(matches!(type_, Type::Dyn) || matches!(type_, Type::Plain(name) if name == wanted))
        };
        let outcome = match fits(rule.program.as_ref(), "bool") {
            Ok(true) => Ok(()),
            Ok(false) => Err("cel expression must evaluate to a bool".to_owned()),
            Err(words) => Err(format!("compilation failed: {words}")),
        };
        if let Err(words) = outcome {
            errors.invalid(&path.child("rule"), rule.text.as_str(), words);
        }
        if rule.optional_old_self && !rule.uses_old_self {
            errors.invalid(&path.child("optionalOldSelf"), true, "may not be set if oldSelf is not used in rule");
        }
        let expression = written.message_expression.as_ref().filter(|text| !text.is_empty());
        if expression.is_some_and(|text| text.trim().is_empty()) {
            errors.required(&path.child("messageExpression"), "messageExpression must be non-empty if specified");
        } else if let Some(text) = expression {
            let outcome = match fits(Program::parse(text).as_ref(), "string") {
                Ok(true) => Ok(()),
                Ok(false) => Err("messageExpression must evaluate to a string".to_owned()),
                Err(words) => Err(format!("messageExpression compilation failed: {words}")),
            };
            if let Err(words) = outcome {
                errors.invalid(&path.child("messageExpression"), text.as_str(), words);
            }
        }
    }

    /// Defaults must be what they would be left as: pruned, and valid by themselves. Their rules share one budget.
    pub fn check_defaults(&mut self, schema: &Schema, props: &JSONSchemaProps, path: &Path) {
        self.check_defaults_below(schema, props, path, &mut Budget::default());
    }

    fn check_defaults_below(&mut self, schema: &Schema, props: &JSONSchemaProps, path: &Path, budget: &mut Budget) {
        if let Some(default) = schema.constraints.as_ref().and_then(|c| c.default.as_ref()) {
            let at = path.child("default");
            let mut pruned = default.clone();
            let mut findings = Findings::default();
            super::shape::prune_value(&mut pruned, schema, &at, &mut findings);
            self.errors.append(findings.wrong);
            if pruned != *default {
                self.errors.invalid(&at, default.clone(), "must not have unknown fields");
            }
            super::default(&mut pruned, schema);
            let mut found = super::validate::Findings::default();
            super::validate::visit(&pruned, None, schema, &at, &mut found);
            self.errors.append(found.errors);
            if !found.blocking {
                super::rules::run_at(schema, &pruned, &at, budget, self.errors);
            }
        }
        if let (Some(items), Some(JSONSchemaPropsOrArray::Schema(below))) = (&schema.items, &props.items) {
            self.check_defaults_below(items, below, &path.child("items"), budget);
        }
        if let (Some(values), Some(JSONSchemaPropsOrBool::Schema(below))) =
            (&schema.values, &props.additional_properties)
        {
            self.check_defaults_below(values, below, &path.child("additionalProperties"), budget);
        }
        for (name, below) in props.properties.iter().flatten() {
            if let Some(field) = schema.properties.get(name) {
                self.check_defaults_below(field, below, &path.child("properties").key(name), budget);
            }
        }
    }
}
