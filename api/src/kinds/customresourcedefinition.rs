//! CustomResourceDefinitions: kinds that users bring along.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    self as extensions, CustomResourceConversion, CustomResourceDefinitionNames, CustomResourceDefinitionSpec,
    CustomResourceDefinitionVersion,
};

use super::{BuiltIn, Info, Scope};
use crate::columns::{self, Column};
use crate::field::{Errors, Path};
use crate::jsonpath::JsonPath;
use crate::schema::Schema;
use crate::validate::{self, immutable};
use crate::{names, questions, structural};

/// What holds a definition until its objects are gone.
pub const CLEANUP_FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";
pub const ESTABLISHED: &str = "Established";
pub const NAMES_ACCEPTED: &str = "NamesAccepted";
pub const TERMINATING: &str = "Terminating";

const APPROVED: &str = "api-approved.kubernetes.io";
const COLUMN_TYPES: &[&str] = &["boolean", "date", "integer", "number", "string"];
const COLUMN_FORMATS: &[&str] = &[
    "binary", "bool", "byte", "date", "date-time", "double", "float", "int32", "int64", "password",
];
const MAX_SELECTABLE_FIELDS: usize = 8;

pub struct CustomResourceDefinition;

/// Whether a condition of a definition is true.
pub fn is_true(definition: &extensions::CustomResourceDefinition, condition: &str) -> bool {
    let conditions = definition.status.iter().filter_map(|status| status.conditions.as_ref()).flatten();
    conditions.into_iter().any(|found| found.type_ == condition && found.status == "True")
}

impl BuiltIn for CustomResourceDefinition {
    type Object = extensions::CustomResourceDefinition;
    const INFO: Info = Info {
        group: "apiextensions.k8s.io",
        kind: "CustomResourceDefinition",
        plural: "customresourcedefinitions",
        singular: "customresourcedefinition",
        short_names: &["crd", "crds"],
        scope: Scope::Cluster,
        categories: &["api-extensions"],
        subresources: &["status"],
        generation: true,
        schema: "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition",
        unconditional_update: false,
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] = &[columns::NAME, columns::CREATED_AT];

    fn default(definition: &mut extensions::CustomResourceDefinition) {
        let spec = &mut definition.spec;
        if !spec.names.kind.is_empty() {
            let kind = spec.names.kind.clone();
            let blank = |text: &Option<String>| text.as_deref().unwrap_or_default().is_empty();
            if blank(&spec.names.singular) {
                spec.names.singular = Some(kind.to_lowercase());
            }
            if blank(&spec.names.list_kind) {
                spec.names.list_kind = Some(format!("{kind}List"));
            }
        }
        let none = || CustomResourceConversion { strategy: "None".into(), webhook: None };
        spec.conversion.get_or_insert_with(none);
    }

    fn create(definition: &mut extensions::CustomResourceDefinition) {
        let stored = stored_versions(&definition.spec);
        definition.status = Some(extensions::CustomResourceDefinitionStatus {
            accepted_names: Some(CustomResourceDefinitionNames::default()),
            stored_versions: Some(stored),
            ..Default::default()
        });
    }

    fn update(_: &extensions::CustomResourceDefinition, new: &mut extensions::CustomResourceDefinition) {
        let storage = stored_versions(&new.spec);
        let stored = new.status.get_or_insert_default().stored_versions.get_or_insert_default();
        for version in storage {
            if !stored.contains(&version) {
                stored.push(version);
            }
        }
    }

    fn validate(definition: &extensions::CustomResourceDefinition, errors: &mut Errors) {
        let spec = &definition.spec;
        let name = definition.metadata.name.as_deref().unwrap_or_default();
        if name != format!("{}.{}", spec.names.plural, spec.group) {
            let path = Path::new("metadata").child("name");
            errors.invalid(&path, name, "must be spec.names.plural+\".\"+spec.group");
        }
        approval(definition, errors);
        self::spec(spec, &Path::new("spec"), errors);
    }

    fn validate_update(
        old: &extensions::CustomResourceDefinition,
        new: &extensions::CustomResourceDefinition,
        errors: &mut Errors,
    ) {
        let path = Path::new("spec");
        immutable(&old.spec.group, &new.spec.group, &path.child("group"), errors);
        let names = path.child("names");
        immutable(&old.spec.names.plural, &new.spec.names.plural, &names.child("plural"), errors);
        if is_true(old, ESTABLISHED) {
            immutable(&old.spec.scope, &new.spec.scope, &path.child("scope"), errors);
            immutable(&old.spec.names.kind, &new.spec.names.kind, &names.child("kind"), errors);
        }
        Self::validate_status(new, errors);
    }

    fn validate_status(definition: &extensions::CustomResourceDefinition, errors: &mut Errors) {
        let path = Path::new("status").child("storedVersions");
        let stored = definition.status.as_ref().and_then(|status| status.stored_versions.as_deref()).unwrap_or_default();
        if stored.is_empty() {
            errors.invalid(&path, serde_json::json!([]), "must have at least one stored version");
        }
        let versions = &definition.spec.versions;
        for (index, name) in stored.iter().enumerate() {
            if !versions.iter().any(|version| version.name == *name) {
                let words = "missing from spec.versions; v1 was previously a storage version, and must remain in \
                             spec.versions until a storage migration ensures no data remains persisted in v1 and removes \
                             v1 from status.storedVersions"
                    .replace("v1", name);
                errors.invalid(&path.index(index), name.as_str(), words);
            }
        }
        for version in versions.iter().filter(|version| version.storage && !stored.contains(&version.name)) {
            errors.invalid(&path, version.name.as_str(), format_args!("must have the storage version {}", version.name));
        }
    }

    fn row(definition: &extensions::CustomResourceDefinition, _: Timestamp) -> Vec<String> {
        vec![columns::name(&definition.metadata), columns::created_at(&definition.metadata)]
    }
}

fn stored_versions(spec: &CustomResourceDefinitionSpec) -> Vec<String> {
    spec.versions.iter().filter(|version| version.storage).map(|version| version.name.clone()).collect()
}

/// Groups of Kubernetes' own domain need its approval.
fn approval(definition: &extensions::CustomResourceDefinition, errors: &mut Errors) {
    let group = definition.spec.group.as_str();
    let is_protected = ["k8s.io", "kubernetes.io"]
        .iter()
        .any(|domain| group == *domain || group.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.')));
    if !is_protected {
        return;
    }
    let path = Path::new("metadata").child("annotations").key(APPROVED);
    let annotations = definition.metadata.annotations.as_ref();
    match annotations.and_then(|all| all.get(APPROVED)).map(String::as_str) {
        None | Some("") => {
            let words = format!(
                "protected groups must have approval annotation \"{APPROVED}\", see \
                 https://github.com/kubernetes/enhancements/pull/1111"
            );
            errors.required(&path, &words);
        }
        Some(value) if value.starts_with("https://") || value.starts_with("http://") || value.starts_with("unapproved") => {}
        Some(value) => {
            let words = "protected groups must have approval annotation \"api-approved.kubernetes.io\" with either a URL \
                         or a reason starting with \"unapproved\", see \
                         https://github.com/kubernetes/enhancements/pull/1111";
            errors.invalid(&path, value, words);
        }
    }
}

fn spec(spec: &CustomResourceDefinitionSpec, path: &Path, errors: &mut Errors) {
    let group = path.child("group");
    match spec.group.as_str() {
        "" => errors.required(&group, ""),
        text => {
            validate::name(text, names::dns_subdomain, &group, errors);
            if names::dns_subdomain(text).is_empty() && !text.contains('.') {
                errors.invalid(&group, text, "should be a domain with at least one dot");
            }
            // Whatever is served by a definition goes with it.
            let groups = super::Builtin::ALL.iter().map(|builtin| builtin.info().group);
            if groups.chain(questions::all().iter().map(|kind| kind.group.as_str())).any(|group| group == text) {
                errors.forbidden(&group, "is a group of the server's own kinds");
            }
        }
    }
    match spec.scope.as_str() {
        "" => errors.required(&path.child("scope"), ""),
        "Cluster" | "Namespaced" => {}
        other => errors.not_supported(&path.child("scope"), other, &["Cluster", "Namespaced"]),
    }
    if spec.preserve_unknown_fields == Some(true) {
        let words = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in \
                     spec.versions[*].schema instead";
        errors.invalid(&path.child("preserveUnknownFields"), true, words);
    }
    conversion(spec, &path.child("conversion"), errors);
    all_names(&spec.names, &path.child("names"), errors);
    let versions = path.child("versions");
    let mut seen = BTreeSet::new();
    for (index, version) in spec.versions.iter().enumerate() {
        let at = versions.index(index);
        validate::name(&version.name, names::dns_1035_label, &at.child("name"), errors);
        if !seen.insert(version.name.as_str()) {
            errors.invalid(&versions, version.name.as_str(), "must contain unique version names");
        }
        // In upstream's own form, what belongs to the only version stands at the top.
        let top = if spec.versions.len() == 1 { path } else { &at };
        self::version(version, &at, top, errors);
    }
    if spec.versions.iter().filter(|version| version.storage).count() != 1 {
        let found = spec.versions.iter().map(|version| version.name.as_str()).collect::<Vec<_>>();
        errors.invalid(&versions, serde_json::json!(found), "must have exactly one version marked as storage version");
    }
}

fn conversion(spec: &CustomResourceDefinitionSpec, path: &Path, errors: &mut Errors) {
    let Some(conversion) = &spec.conversion else { return };
    match conversion.strategy.as_str() {
        "None" => {
            if conversion.webhook.is_some() {
                let words = "should not be set when strategy is not set to Webhook";
                errors.forbidden(&path.child("webhook"), words);
            }
        }
        "Webhook" => errors.forbidden(&path.child("strategy"), "conversion webhooks are not supported by this server"),
        "" => errors.required(&path.child("strategy"), ""),
        other => errors.not_supported(&path.child("strategy"), other, &["None", "Webhook"]),
    }
}

fn all_names(names: &CustomResourceDefinitionNames, path: &Path, errors: &mut Errors) {
    let list_kind = names.list_kind.as_deref().unwrap_or_default();
    let singular = names.singular.as_deref().unwrap_or_default();
    for (field, text) in [("plural", names.plural.as_str()), ("singular", singular)] {
        match text {
            "" => errors.required(&path.child(field), ""),
            text => validate::name(text, names::dns_1035_label, &path.child(field), errors),
        }
    }
    for (field, text) in [("kind", names.kind.as_str()), ("listKind", list_kind)] {
        if text.is_empty() {
            errors.required(&path.child(field), "");
        }
        for words in names::dns_1035_label(&text.to_lowercase()).into_iter().filter(|_| !text.is_empty()) {
            let words = format!("may have mixed case, but should otherwise match: {words}");
            errors.invalid(&path.child(field), text, words);
        }
    }
    if !names.kind.is_empty() && names.kind == list_kind {
        errors.invalid(&path.child("listKind"), list_kind, "kind and listKind may not be the same");
    }
    for (field, list) in [("shortNames", &names.short_names), ("categories", &names.categories)] {
        for (index, text) in list.iter().flatten().enumerate() {
            validate::name(text, names::dns_1035_label, &path.child(field).index(index), errors);
        }
    }
}

fn version(version: &CustomResourceDefinitionVersion, path: &Path, top: &Path, errors: &mut Errors) {
    let schema = match version.schema.as_ref().and_then(|schema| schema.open_api_v3_schema.as_ref()) {
        None => {
            errors.required(&path.child("schema").child("openAPIV3Schema"), "schemas are required");
            None
        }
        Some(props) => {
            let at = top.child(if path == top { "schema" } else { "validation" }).child("openAPIV3Schema");
            let mut found = Errors::new();
            let schema = structural::build(props, &at, &mut found);
            errors.append(found);
            Some(schema)
        }
    };
    if version.deprecation_warning.is_some() && version.deprecated != Some(true) {
        let words = "can only be set for deprecated versions";
        let warning = version.deprecation_warning.as_deref().unwrap_or_default();
        errors.invalid(&path.child("deprecationWarning"), warning, words);
    }
    subresources(version, &top.child("subresources"), errors);
    let columns = version.additional_printer_columns.iter().flatten().enumerate();
    for (index, column) in columns {
        let path = top.child("additionalPrinterColumns").index(index);
        if column.name.is_empty() {
            errors.required(&path.child("name"), "");
        }
        let words = format!("must be one of {}", COLUMN_TYPES.join(","));
        match column.type_.as_str() {
            "" => errors.required(&path.child("type"), &words),
            known if COLUMN_TYPES.contains(&known) => {}
            other => errors.invalid(&path.child("type"), other, words),
        }
        if let Some(format) = column.format.as_deref().filter(|f| !f.is_empty() && !COLUMN_FORMATS.contains(f)) {
            let words = format!("must be one of {}", COLUMN_FORMATS.join(","));
            errors.invalid(&path.child("format"), format, words);
        }
        json_path(&column.json_path, &path.child("jsonPath"), errors);
    }
    let fields = version.selectable_fields.as_deref().unwrap_or_default();
    let at = top.child("selectableFields");
    if fields.len() > MAX_SELECTABLE_FIELDS {
        errors.too_many(&at, fields.len(), MAX_SELECTABLE_FIELDS);
    }
    let mut seen = BTreeSet::new();
    for (index, field) in fields.iter().enumerate() {
        let at = at.index(index).child("jsonPath");
        if !seen.insert(&field.json_path) {
            errors.duplicate(&at, field.json_path.as_str());
        }
        selectable(&field.json_path, schema.as_ref(), &at, errors);
    }
}

/// A field by which objects may be selected: a text, a number or a boolean that the schema has.
fn selectable(text: &str, schema: Option<&Schema>, path: &Path, errors: &mut Errors) {
    let invalid = "is an invalid path";
    let fields = match JsonPath::parse(text) {
        Ok(parsed) if text.starts_with('.') => parsed.fields().map(|all| all.into_iter().map(str::to_owned).collect()),
        _ => None,
    };
    let fields: Vec<String> = match fields {
        Some(fields) => fields,
        None => return errors.invalid(path, text, format_args!("{invalid}: must be a simple json path starting with .")),
    };
    if fields.first().is_some_and(|first| first == "metadata") {
        return errors.invalid(path, text, "must not point to fields in metadata");
    }
    let Some(mut schema) = schema else { return };
    for field in &fields {
        match schema.properties.get(field) {
            Some(below) => schema = below,
            None => return errors.invalid(path, text, format_args!("{invalid}: does not refer to a valid field")),
        }
    }
    if !matches!(schema.type_.as_deref(), Some("string" | "integer" | "boolean")) {
        errors.invalid(path, text, "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.");
    }
}

fn subresources(version: &CustomResourceDefinitionVersion, path: &Path, errors: &mut Errors) {
    let Some(scale) = version.subresources.as_ref().and_then(|all| all.scale.as_ref()) else { return };
    let mut below = |field: &str, text: &str, root: &str, required: bool| {
        let path = path.child(&format!("scale.{field}"));
        if text.is_empty() {
            if required {
                errors.required(&path, "");
            }
            return;
        }
        let is_simple = JsonPath::parse(text).is_ok_and(|path| path.fields().is_some());
        if !text.starts_with('.') || !is_simple {
            errors.invalid(&path, text, "must be a simple json path starting with .");
        } else if !text.starts_with(root) {
            let words = format!("should be a json path under {}", root.trim_end_matches('.'));
            errors.invalid(&path, text, words);
        }
    };
    below("specReplicasPath", &scale.spec_replicas_path, ".spec.", true);
    below("statusReplicasPath", &scale.status_replicas_path, ".status.", true);
    below("labelSelectorPath", scale.label_selector_path.as_deref().unwrap_or_default(), ".", false);
}

fn json_path(text: &str, path: &Path, errors: &mut Errors) {
    if text.is_empty() {
        return errors.required(path, "");
    }
    if !text.starts_with('.') {
        return errors.invalid(path, text, "must be a simple json path starting with .");
    }
    if let Err(words) = JsonPath::parse(text) {
        errors.invalid(path, text, format_args!("is an invalid path: {words}"));
    }
}
