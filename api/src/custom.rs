//! Custom kinds: what a CustomResourceDefinition makes of the registry, and how its objects behave.
//!
//! Invariant: what a custom kind lets in is pruned, defaulted and valid by its schema.

use std::borrow::Cow;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceDefinitionVersion, CustomResourceSubresourceScale,
};
use serde_json::{Map, Value};

use crate::columns::{self, Column};
use crate::field::{Errors, Path};
use crate::jsonpath::JsonPath;
use crate::kinds::customresourcedefinition::{ESTABLISHED, is_true};
use crate::kinds::{Behaviour, Kind, ScalePaths, Scope};
use crate::names;
use crate::structural::{self, Structure};

/// The kinds that a definition brings, one a served version, the one that is preferred first. None unless its names were
/// accepted.
pub fn kinds(definition: &CustomResourceDefinition) -> Vec<Kind> {
    if !is_true(definition, ESTABLISHED) {
        return Vec::new();
    }
    let mut served: Vec<&CustomResourceDefinitionVersion> =
        definition.spec.versions.iter().filter(|version| version.served).collect();
    served.sort_by(|a, b| names::compare_versions(&a.name, &b.name));
    served.into_iter().map(|version| kind(definition, version)).collect()
}

fn kind(definition: &CustomResourceDefinition, version: &CustomResourceDefinitionVersion) -> Kind {
    let spec = &definition.spec;
    // What was accepted counts, not what is wished for.
    let accepted = definition.status.as_ref().and_then(|status| status.accepted_names.as_ref()).unwrap_or(&spec.names);
    let subresources = version.subresources.as_ref();
    let has_status = subresources.is_some_and(|all| all.status.is_some());
    let scale = subresources.and_then(|all| all.scale.as_ref()).map(scale_paths);
    let structure = structure(version).map(Arc::new);
    let behaviour = Custom { structure: structure.clone(), has_status, columns: self::columns(version) };
    let mut named = Vec::new();
    named.extend(has_status.then(|| "status".to_owned()));
    named.extend(scale.as_ref().map(|_| "scale".to_owned()));
    Kind {
        group: spec.group.clone(),
        version: version.name.clone(),
        kind: accepted.kind.clone(),
        plural: accepted.plural.clone(),
        singular: accepted.singular.clone().unwrap_or_default(),
        short_names: accepted.short_names.clone().unwrap_or_default(),
        scope: if spec.scope == "Namespaced" { Scope::Namespaced } else { Scope::Cluster },
        categories: accepted.categories.clone().unwrap_or_default(),
        subresources: named,
        selectable: selectable(version),
        sealed: Vec::new(),
        generation: true,
        schema: None,
        structure,
        shared: spec.versions.len() > 1,
        scale,
        name_rule: names::dns_subdomain,
        builtin: None,
        behaviour: Arc::new(behaviour),
    }
}

fn structure(version: &CustomResourceDefinitionVersion) -> Option<Structure> {
    let props = version.schema.as_ref()?.open_api_v3_schema.as_ref()?;
    // It was checked when it was stored.
    let root = structural::build(props, &Path::root(), &mut Errors::new());
    Some(Structure::new(root, structural::published(props)))
}

fn scale_paths(scale: &CustomResourceSubresourceScale) -> ScalePaths {
    let fields = |path: &str| path.split('.').filter(|part| !part.is_empty()).map(str::to_owned).collect();
    ScalePaths {
        spec_replicas: fields(&scale.spec_replicas_path),
        status_replicas: fields(&scale.status_replicas_path),
        selector: scale.label_selector_path.as_deref().filter(|path| !path.is_empty()).map(fields),
    }
}

/// `.spec.color` is selected by as `spec.color`.
fn selectable(version: &CustomResourceDefinitionVersion) -> Vec<String> {
    let fields = version.selectable_fields.iter().flatten();
    fields.map(|field| field.json_path.trim_start_matches('.').to_owned()).collect()
}

/// A column and where its cells come from.
struct PathColumn {
    column: Column,
    path: Option<JsonPath>,
}

/// Those of the definition after the name; the age if it names none.
fn columns(version: &CustomResourceDefinitionVersion) -> Vec<PathColumn> {
    let known = |type_: &str| ["integer", "number", "boolean", "date"].into_iter().find(|known| *known == type_);
    let mut all: Vec<PathColumn> = version
        .additional_printer_columns
        .iter()
        .flatten()
        .map(|column| PathColumn {
            column: Column {
                name: Cow::Owned(column.name.clone()),
                type_: known(&column.type_).unwrap_or("string"),
                wide: column.priority.unwrap_or_default() > 0,
                description: Cow::Owned(column.description.clone().unwrap_or_default()),
            },
            path: JsonPath::parse(&column.json_path).ok(),
        })
        .collect();
    if all.is_empty() {
        let column = Column { type_: "date", ..columns::AGE };
        all.push(PathColumn { column, path: JsonPath::parse(".metadata.creationTimestamp").ok() });
    }
    all
}

/// What a custom kind does to its objects.
struct Custom {
    structure: Option<Arc<Structure>>,
    has_status: bool,
    columns: Vec<PathColumn>,
}

impl Custom {
    fn finish(&self, old: Option<&Value>, new: &mut Value, errors: &mut Errors) {
        if let Some(structure) = &self.structure {
            structural::default(new, &structure.root);
            structure.validate(new, old, errors);
        }
    }
}

impl Behaviour for Custom {
    fn create(&self, object: &mut Value, errors: &mut Errors) {
        if self.has_status
            && let Some(map) = object.as_object_mut()
        {
            map.remove("status");
        }
        self.finish(None, object, errors);
    }

    fn update(&self, old: &Value, new: &mut Value, errors: &mut Errors) {
        self.finish(Some(old), new, errors);
    }

    fn update_status(&self, old: &Value, new: &mut Value, errors: &mut Errors) {
        self.finish(Some(old), new, errors);
    }

    /// Everything but metadata and status counts; the status too, where it is no subresource.
    fn changed(&self, old: &Value, new: &Value) -> bool {
        let counted = |object: &Value| -> Map<String, Value> {
            let mut map = object.as_object().cloned().unwrap_or_default();
            for field in ["metadata", "apiVersion", "kind"] {
                map.remove(field);
            }
            if self.has_status {
                map.remove("status");
            }
            map
        };
        counted(old) != counted(new)
    }

    fn columns(&self) -> Vec<Column> {
        std::iter::once(columns::NAME).chain(self.columns.iter().map(|column| column.column.clone())).collect()
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<String> {
        let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
        let cells = self.columns.iter().map(|column| cell(column, object, now));
        std::iter::once(name).chain(cells).collect()
    }
}

fn cell(column: &PathColumn, object: &Value, now: Timestamp) -> String {
    let found = column.path.as_ref().map(|path| path.find(object)).unwrap_or_default();
    let Some(value) = found.first() else { return String::new() };
    match (column.column.type_, value) {
        (_, Value::Null) => String::new(),
        ("date", Value::String(text)) => match text.parse::<Timestamp>() {
            Ok(time) => columns::duration(now.as_second() - time.as_second()),
            Err(_) => columns::UNKNOWN.to_owned(),
        },
        (_, Value::String(text)) => text.clone(),
        (_, other) => other.to_string(),
    }
}
