//! From the schema of a CustomResourceDefinition to [`Schema`], with complaints about what is not structural.
//!
//! The words are upstream's; complaints name the field of the definition.

use std::collections::HashMap;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool, ValidationRule,
};
use regex::{Regex, RegexBuilder};
use serde_json::Value;

use super::{Constraints, MAX_PATTERN_MEMORY_BYTES, MAX_SCHEMA_DEPTH, MAX_SCHEMA_NODES, Rule, add_object_fields};
use crate::cel::Program;
use crate::field::{Errors, Path};
use crate::schema::Schema;

/// Where in a schema one stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
    /// Below `allOf`, `anyOf`, `oneOf` or `not`, where only values may be spoken of.
    Nested,
}

pub(super) struct Builder<'e> {
    pub errors: &'e mut Errors,
    nodes: usize,
    rules: usize,
    patterns: HashMap<String, Regex>,
}

/// How many rules a schema may have.
const MAX_RULES: usize = 500;
/// How many different patterns a schema may have.
const MAX_PATTERNS: usize = 500;

/// Reads the schema of one version. What is complained about is left out of the result.
pub fn build(props: &JSONSchemaProps, path: &Path, errors: &mut Errors) -> Schema {
    let mut builder = Builder { errors, nodes: 0, rules: 0, patterns: HashMap::new() };
    let mut schema = builder.schema(props, Level::Root, path, 0);
    if builder.errors.is_empty() {
        builder.check_rules(&mut schema, props, true, path);
        builder.check_defaults(&schema, props, path);
    }
    schema
}

impl Builder<'_> {
    fn schema(&mut self, props: &JSONSchemaProps, level: Level, path: &Path, depth: usize) -> Schema {
        self.nodes += 1;
        if depth > MAX_SCHEMA_DEPTH || self.nodes > MAX_SCHEMA_NODES {
            if self.nodes <= MAX_SCHEMA_NODES + 1 {
                self.errors.forbidden(path, "the schema is nested too deep or has too many parts");
            }
            return Schema::default();
        }
        self.unsupported(props, path);
        let mut schema = Schema {
            type_: props.type_.clone(),
            format: props.format.clone(),
            required: props.required.clone().unwrap_or_default(),
            list_type: props.x_kubernetes_list_type.clone(),
            list_map_keys: props.x_kubernetes_list_map_keys.clone().unwrap_or_default(),
            map_type: props.x_kubernetes_map_type.clone(),
            ..Schema::default()
        };
        let mut constraints = self.constraints(props, path);
        let below = |level| if level == Level::Nested { Level::Nested } else { Level::Field };
        match &props.items {
            Some(JSONSchemaPropsOrArray::Schema(items)) => {
                let level = if level == Level::Nested { level } else { Level::Item };
                schema.items = Some(Box::new(self.schema(items, level, &path.child("items"), depth + 1)));
            }
            Some(JSONSchemaPropsOrArray::Schemas(_)) => {
                self.errors.forbidden(&path.child("items"), "items must be a schema object and not an array");
            }
            None if props.type_.as_deref() == Some("array") && level != Level::Nested => {
                self.errors.required(&path.child("items"), "must be specified");
            }
            None => {}
        }
        for (name, field) in props.properties.iter().flatten() {
            let path = path.child("properties").key(name);
            schema.properties.insert(name.clone(), self.schema(field, below(level), &path, depth + 1));
        }
        self.additional(props, level, path, depth, &mut schema, &mut constraints);
        self.junctors(props, path, depth, &mut constraints);
        match level {
            Level::Nested => self.nested(props, path),
            level => self.structural(props, level, path),
        }
        if constraints.embedded_resource {
            add_object_fields(&mut schema);
        }
        schema.constraints = Some(Box::new(constraints));
        schema
    }

    fn additional(
        &mut self,
        props: &JSONSchemaProps,
        level: Level,
        path: &Path,
        depth: usize,
        schema: &mut Schema,
        constraints: &mut Constraints,
    ) {
        let Some(additional) = &props.additional_properties else { return };
        let path = path.child("additionalProperties");
        let has_fields = props.properties.as_ref().is_some_and(|fields| !fields.is_empty());
        match additional {
            JSONSchemaPropsOrBool::Schema(values) => {
                schema.values = Some(Box::new(self.schema(values, Level::Field, &path, depth + 1)));
            }
            JSONSchemaPropsOrBool::Bool(allows) => constraints.any_values = *allows,
        }
        if has_fields && !matches!(additional, JSONSchemaPropsOrBool::Bool(true)) {
            self.errors.forbidden(&path, "additionalProperties and properties are mutual exclusive");
        }
        match level {
            Level::Root => self.errors.forbidden(&path, "must not be used at the root"),
            Level::Nested => self.errors.forbidden(&path, "must be undefined to be structural"),
            _ if props.x_kubernetes_embedded_resource == Some(true) => {
                self.errors.forbidden(&path, "must not be used if x-kubernetes-embedded-resource is set");
            }
            _ => {}
        }
    }

    fn junctors(&mut self, props: &JSONSchemaProps, path: &Path, depth: usize, into: &mut Constraints) {
        let either = props.x_kubernetes_int_or_string == Some(true);
        let mut list = |name: &str, all: &Option<Vec<JSONSchemaProps>>, skip_first: bool| -> Vec<Schema> {
            let all = all.iter().flatten().enumerate();
            all.filter(|(index, _)| !(skip_first && *index == 0))
                .map(|(index, one)| self.schema(one, Level::Nested, &path.child(name).index(index), depth + 1))
                .collect()
        };
        // What says no more than that a value is an integer or a string is known from the extension.
        let any_of_pattern = either && is_int_or_string(&props.any_of);
        let all_of_pattern = either
            && props.all_of.as_ref().and_then(|all| all.first()).is_some_and(|one| is_int_or_string(&one.any_of));
        if !any_of_pattern {
            into.any_of = list("anyOf", &props.any_of, false);
        }
        into.all_of = list("allOf", &props.all_of, all_of_pattern);
        into.one_of = list("oneOf", &props.one_of, false);
        if let Some(not) = &props.not {
            into.not = Some(Box::new(self.schema(not, Level::Nested, &path.child("not"), depth + 1)));
        }
    }

    /// What OpenAPI has and definitions may not use.
    fn unsupported(&mut self, props: &JSONSchemaProps, path: &Path) {
        let found = [
            ("id", props.id.is_some()),
            ("additionalItems", props.additional_items.is_some()),
            ("patternProperties", props.pattern_properties.as_ref().is_some_and(|all| !all.is_empty())),
            ("definitions", props.definitions.as_ref().is_some_and(|all| !all.is_empty())),
            ("dependencies", props.dependencies.is_some()),
            ("$ref", props.ref_path.is_some()),
        ];
        for (name, _) in found.iter().filter(|(_, found)| *found) {
            self.errors.forbidden(&path.child(name), format_args!("{name} is not supported"));
        }
        if props.unique_items == Some(true) {
            let words = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
            self.errors.forbidden(&path.child("uniqueItems"), words);
        }
        match props.type_.as_deref() {
            Some("null") => {
                self.errors.forbidden(&path.child("type"), "type cannot be set to null, use nullable as an alternative")
            }
            None | Some("" | "object" | "array" | "string" | "integer" | "number" | "boolean") => {}
            Some(other) => {
                let known = ["array", "boolean", "integer", "number", "object", "string"];
                self.errors.not_supported(&path.child("type"), other, &known);
            }
        }
    }

    fn constraints(&mut self, props: &JSONSchemaProps, path: &Path) -> Constraints {
        let pattern =
            props.pattern.as_deref().filter(|pattern| !pattern.is_empty()).and_then(|p| self.pattern(p, path));
        Constraints {
            nullable: props.nullable == Some(true),
            preserve_unknown_fields: props.x_kubernetes_preserve_unknown_fields == Some(true),
            embedded_resource: props.x_kubernetes_embedded_resource == Some(true),
            int_or_string: props.x_kubernetes_int_or_string == Some(true),
            any_values: false,
            default: props.default.as_ref().map(|default| default.0.clone()),
            allowed: props.enum_.iter().flatten().map(|value| value.0.clone()).collect(),
            pattern,
            minimum: props.minimum,
            exclusive_minimum: props.exclusive_minimum == Some(true),
            maximum: props.maximum,
            exclusive_maximum: props.exclusive_maximum == Some(true),
            multiple_of: props.multiple_of,
            min_length: props.min_length,
            max_length: props.max_length,
            min_items: props.min_items,
            max_items: props.max_items,
            min_properties: props.min_properties,
            max_properties: props.max_properties,
            rules: self.rules(props),
            ..Constraints::default()
        }
    }

    /// A pattern, compiled once however often the schema has it.
    fn pattern(&mut self, pattern: &str, path: &Path) -> Option<Regex> {
        if let Some(known) = self.patterns.get(pattern) {
            return Some(known.clone());
        }
        let path = path.child("pattern");
        if self.patterns.len() >= MAX_PATTERNS {
            self.errors.forbidden(&path, format_args!("a schema may not have more than {MAX_PATTERNS} patterns"));
            return None;
        }
        let built = RegexBuilder::new(pattern)
            .size_limit(MAX_PATTERN_MEMORY_BYTES)
            .dfa_size_limit(MAX_PATTERN_MEMORY_BYTES)
            .nest_limit(50)
            .build();
        match built {
            Ok(built) => {
                self.patterns.insert(pattern.to_owned(), built.clone());
                Some(built)
            }
            Err(error) => {
                let words = error.to_string();
                let words = words.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
                self.errors.invalid(
                    &path,
                    pattern,
                    format_args!("must be a valid regular expression, but isn't: {words}"),
                );
                None
            }
        }
    }

    fn rules(&mut self, props: &JSONSchemaProps) -> Vec<Rule> {
        let rules = props.x_kubernetes_validations.iter().flatten();
        rules.take(MAX_RULES.saturating_sub(self.rules)).inspect(|_| self.rules += 1).map(rule).collect()
    }

    /// What holds outside of `allOf`, `anyOf`, `oneOf` and `not`.
    fn structural(&mut self, props: &JSONSchemaProps, level: Level, path: &Path) {
        let errors = &mut *self.errors;
        let type_ = props.type_.as_deref().unwrap_or_default();
        let on = |flag: Option<bool>| flag == Some(true);
        let (preserves, either) =
            (on(props.x_kubernetes_preserve_unknown_fields), on(props.x_kubernetes_int_or_string));
        let embedded = on(props.x_kubernetes_embedded_resource);
        let fields = props.properties.as_ref();
        if embedded && type_ != "object" {
            let words = "must be object if x-kubernetes-embedded-resource is true";
            match type_ {
                "" => errors.required(&path.child("type"), words),
                other => errors.invalid(&path.child("type"), other, words),
            }
        } else if type_.is_empty() && !either && !preserves {
            let words = match level {
                Level::Root => "must not be empty at the root",
                Level::Item => "must not be empty for specified array items",
                _ => "must not be empty for specified object fields",
            };
            errors.required(&path.child("type"), words);
        }
        if level == Level::Root && !matches!(type_, "" | "object") {
            errors.invalid(&path.child("type"), type_, "must be object at the root");
        }
        if level == Level::Root && on(props.nullable) {
            errors.forbidden(&path.child("nullable"), "nullable cannot be true at the root");
        }
        if either && preserves {
            let words = "must be false if x-kubernetes-int-or-string is true";
            errors.invalid(&path.child("x-kubernetes-preserve-unknown-fields"), true, words);
        }
        if either && embedded {
            let words = "must be false if x-kubernetes-int-or-string is true";
            errors.invalid(&path.child("x-kubernetes-embedded-resource"), true, words);
        }
        if either && !type_.is_empty() {
            let words = "must be empty if x-kubernetes-int-or-string is true";
            errors.invalid(&path.child("type"), type_, words);
        }
        if embedded && !preserves && fields.is_none_or(|fields| fields.is_empty()) {
            let words = "must not be empty if x-kubernetes-embedded-resource is true without \
                         x-kubernetes-preserve-unknown-fields";
            errors.required(&path.child("properties"), words);
        }
        if level == Level::Root || embedded {
            for name in ["kind", "apiVersion"] {
                if let Some(field) = fields.and_then(|fields| fields.get(name))
                    && field.type_.as_deref() != Some("string")
                {
                    let path = path.child("properties").key(name).child("type");
                    errors.invalid(&path, field.type_.clone().unwrap_or_default(), "must be string");
                }
            }
        }
        if level == Level::Root
            && let Some(metadata) = fields.and_then(|fields| fields.get("metadata"))
        {
            let only_names =
                metadata.properties.iter().flatten().all(|(name, _)| name == "name" || name == "generateName");
            let path = path.child("properties").key("metadata");
            if metadata.type_.as_deref() != Some("object") {
                errors.invalid(&path.child("type"), metadata.type_.clone().unwrap_or_default(), "must be object");
            }
            if !only_names {
                let words =
                    "must not specify anything other than name and generateName, but metadata is implicitly specified";
                errors.forbidden(&path, words);
            }
        }
        self.lists(props, path);
    }

    /// List types and their keys.
    fn lists(&mut self, props: &JSONSchemaProps, path: &Path) {
        let errors = &mut *self.errors;
        let type_ = props.type_.as_deref().unwrap_or_default();
        let keys = props.x_kubernetes_list_map_keys.as_deref().unwrap_or_default();
        if let Some(list_type) = &props.x_kubernetes_list_type {
            let at = path.child("x-kubernetes-list-type");
            if type_ != "array" {
                let words = "must be array if x-kubernetes-list-type is specified";
                match type_ {
                    "" => errors.required(&path.child("type"), words),
                    other => errors.invalid(&path.child("type"), other, words),
                }
            }
            if !matches!(list_type.as_str(), "atomic" | "set" | "map") {
                errors.not_supported(&at, list_type.as_str(), &["atomic", "set", "map"]);
            }
        }
        if let (Some(list_type @ ("set" | "map")), Some(JSONSchemaPropsOrArray::Schema(items))) =
            (props.x_kubernetes_list_type.as_deref(), &props.items)
        {
            if list_type == "set" && type_ == "array" {
                whole_items(items, &path.child("items"), errors);
            }
            if items.nullable == Some(true) {
                let words = format!("cannot be nullable when x-kubernetes-list-type is {list_type}");
                errors.forbidden(&path.child("items").child("nullable"), words);
            }
        }
        let is_map = props.x_kubernetes_list_type.as_deref() == Some("map");
        let at = path.child("x-kubernetes-list-map-keys");
        if is_map && keys.is_empty() {
            errors.required(&at, "must not be empty if x-kubernetes-list-type is map");
        }
        if !is_map && !keys.is_empty() {
            let at = path.child("x-kubernetes-list-type");
            errors.required(&at, "must be map if x-kubernetes-list-map-keys is non-empty");
        }
        if is_map && let Some(JSONSchemaPropsOrArray::Schema(items)) = &props.items {
            if items.type_.as_deref() != Some("object") {
                let words = "must be object if parent array's x-kubernetes-list-type is map";
                errors.invalid(&path.child("items").child("type"), items.type_.clone().unwrap_or_default(), words);
            }
            for (index, key) in keys.iter().enumerate() {
                let field = items.properties.as_ref().and_then(|fields| fields.get(key));
                match field {
                    None => {
                        let words = "entries must all be names of item properties";
                        errors.invalid(&at.index(index), key.as_str(), words);
                    }
                    Some(field) => {
                        let of_key = path.child("items").child("properties").key(key);
                        if matches!(field.type_.as_deref(), Some("array" | "object")) {
                            let words = "must be a scalar type if parent array's x-kubernetes-list-type is map";
                            errors.invalid(&of_key.child("type"), field.type_.clone().unwrap_or_default(), words);
                        }
                        if field.nullable == Some(true) {
                            let words = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
                            errors.forbidden(&of_key.child("nullable"), words);
                        }
                        let required = items.required.as_ref().is_some_and(|names| names.contains(key));
                        if !required && field.default.is_none() {
                            let words = "this property is in x-kubernetes-list-map-keys, so it must have a default or \
                                         be a required property";
                            errors.required(&of_key.child("default"), words);
                        }
                    }
                }
            }
        }
        if let Some(map_type) = &props.x_kubernetes_map_type {
            if type_ != "object" {
                let words = "must be object if x-kubernetes-map-type is specified";
                errors.invalid(&path.child("type"), type_, words);
            }
            if !matches!(map_type.as_str(), "atomic" | "granular") {
                errors.not_supported(&path.child("x-kubernetes-map-type"), map_type.as_str(), &["atomic", "granular"]);
            }
        }
    }

    /// What may not stand below `allOf`, `anyOf`, `oneOf` and `not`.
    fn nested(&mut self, props: &JSONSchemaProps, path: &Path) {
        let on = |flag: Option<bool>| flag == Some(true);
        let filled = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        let found = [
            ("type", filled(&props.type_), "must be empty to be structural"),
            ("default", props.default.is_some(), "must be undefined to be structural"),
            ("title", filled(&props.title), "must be empty to be structural"),
            ("description", filled(&props.description), "must be empty to be structural"),
            ("nullable", on(props.nullable), "must be false to be structural"),
            (
                "x-kubernetes-preserve-unknown-fields",
                on(props.x_kubernetes_preserve_unknown_fields),
                "must be false to be structural",
            ),
            (
                "x-kubernetes-embedded-resource",
                on(props.x_kubernetes_embedded_resource),
                "must be false to be structural",
            ),
            ("x-kubernetes-int-or-string", on(props.x_kubernetes_int_or_string), "must be false to be structural"),
            ("x-kubernetes-list-type", props.x_kubernetes_list_type.is_some(), "must be undefined to be structural"),
            ("x-kubernetes-map-type", props.x_kubernetes_map_type.is_some(), "must be undefined to be structural"),
            (
                "x-kubernetes-validations",
                props.x_kubernetes_validations.as_ref().is_some_and(|rules| !rules.is_empty()),
                "must be empty to be structural",
            ),
        ];
        for (name, _, words) in found.iter().filter(|(_, found, _)| *found) {
            self.errors.forbidden(&path.child(name), words);
        }
        if props.properties.as_ref().is_some_and(|fields| fields.contains_key("metadata")) {
            let at = path.child("properties").key("metadata");
            self.errors.forbidden(&at, "must not be specified in a nested context");
        }
    }
}

/// Items of a set are the same or not, in no part of theirs.
fn whole_items(items: &JSONSchemaProps, path: &Path, errors: &mut Errors) {
    let words = "must be atomic as item of a list with x-kubernetes-list-type=set";
    let list_type = items.x_kubernetes_list_type.as_deref();
    match items.type_.as_deref() {
        Some("array") if list_type.is_some_and(|list_type| list_type != "atomic") => {
            errors.invalid(&path.child("x-kubernetes-list-type"), list_type, words);
        }
        Some("object") if items.x_kubernetes_map_type.as_deref() != Some("atomic") => {
            errors.invalid(&path.child("x-kubernetes-map-type"), items.x_kubernetes_map_type.as_deref(), words);
        }
        _ => {}
    }
}

/// `[{type: integer}, {type: string}]`
fn is_int_or_string(any_of: &Option<Vec<JSONSchemaProps>>) -> bool {
    let plain = |type_: &str| JSONSchemaProps { type_: Some(type_.into()), ..JSONSchemaProps::default() };
    matches!(any_of.as_deref(), Some([a, b]) if *a == plain("integer") && *b == plain("string"))
}

fn rule(rule: &ValidationRule) -> Rule {
    let program = Program::parse(&rule.rule);
    let uses_old_self = program.as_ref().is_ok_and(|program| program.uses("oldSelf"));
    Rule {
        text: rule.rule.clone(),
        program,
        message: rule.message.clone().unwrap_or_default().trim().to_owned(),
        message_expression: rule.message_expression.as_deref().and_then(|text| Program::parse(text).ok()),
        reason: rule.reason.clone(),
        field_path: rule.field_path.clone().filter(|path| !path.is_empty()),
        optional_old_self: rule.optional_old_self == Some(true),
        uses_old_self,
    }
}

/// The definition's own words, for OpenAPI.
pub(crate) fn published(props: &JSONSchemaProps) -> Value {
    serde_json::to_value(props).unwrap_or_default()
}
