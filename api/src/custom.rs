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

use crate::admit::strict::Findings;
use crate::columns::{self, Column};
use crate::field::{Errors, Path};
use crate::jsonpath::JsonPath;
use crate::kinds::customresourcedefinition::{ESTABLISHED, is_true};
use crate::kinds::{Behaviour, Deprecation, Kind, ScalePaths, Scope};
use crate::names;
use crate::structural::{self, Structure};

/// Makes a stored object look as the kind's schema has it now, which may have changed since it was stored.
pub fn present(kind: &Kind, object: &mut Value) {
    if kind.shared {
        object["apiVersion"] = kind.api_version().into();
    }
    if let Some(structure) = &kind.structure {
        structural::prune(object, &structure.root, &mut Findings::default());
        structural::default(object, &structure.root);
    }
}

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
        deprecation: deprecation(definition, version),
        unconditional_update: false,
        create_on_update: false,
        shows_deleted: false,
        orphans: false,
        name_rule: names::dns_subdomain,
        builtin: None,
        stored_as: None,
        behaviour: Arc::new(behaviour),
    }
}

/// In the definition's words, or in upstream's.
fn deprecation(
    definition: &CustomResourceDefinition,
    version: &CustomResourceDefinitionVersion,
) -> Option<Deprecation> {
    let spec = &definition.spec;
    let words = || format!("{}/{} {} is deprecated", spec.group, version.name, spec.names.kind);
    let warning = || version.deprecation_warning.clone().unwrap_or_else(words);
    (version.deprecated == Some(true)).then(|| Deprecation { warning: warning(), removed_release: String::new() })
}

fn structure(version: &CustomResourceDefinitionVersion) -> Option<Structure> {
    let props = version.schema.as_ref()?.open_api_v3_schema.as_ref()?;
    // It was checked when it was stored.
    let root = structural::build(props, &Path::root(), &mut Errors::new());
    Some(Structure::new(root, &structural::published(props)))
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
                is_count: false,
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

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::json;

    use super::*;
    use crate::admit::{self, Create, Subresource, UnknownFields};
    use crate::openapi;
    use crate::registry::Registry;

    fn definition() -> CustomResourceDefinition {
        let version = |name: &str, storage: bool| {
            json!({
                "name": name, "served": true, "storage": storage, "deprecated": !storage,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "properties": {
                        "color": {"type": "string"},
                        "replicas": {"type": "integer", "default": 1},
                    }},
                    "status": {"type": "object", "properties": {"replicas": {"type": "integer"}}},
                }}},
                "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}},
                "selectableFields": [{"jsonPath": ".spec.color"}],
                "additionalPrinterColumns": [
                    {"name": "Color", "type": "string", "jsonPath": ".spec.color"},
                    {"name": "Wanted", "type": "integer", "jsonPath": ".spec.replicas", "priority": 1},
                ],
            })
        };
        serde_json::from_value(json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": "shirts.stable.example.com"},
            "spec": {
                "group": "stable.example.com", "scope": "Namespaced",
                "names": {"plural": "shirts", "kind": "Shirt", "shortNames": ["sh"]},
                "versions": [version("v1beta1", false), version("v1", true)],
            },
        }))
        .unwrap()
    }

    fn create<'a>(rng: &'a mut rand::rngs::ThreadRng) -> Create<'a> {
        Create { namespace: "", now: Timestamp::UNIX_EPOCH, rng, unknown_fields: UnknownFields::Refuse }
    }

    /// The definition as the gate takes it in and its planner accepts it.
    fn established() -> CustomResourceDefinition {
        let registry = Registry::builtin();
        let kind = registry.by_name("crd").unwrap();
        let mut rng = rand::rng();
        let prepared =
            admit::prepare_create(&kind, serde_json::to_value(definition()).unwrap(), create(&mut rng)).unwrap();
        let mut definition: CustomResourceDefinition = serde_json::from_value(prepared.object).unwrap();
        assert_eq!(definition.spec.names.singular.as_deref(), Some("shirt"));
        assert_eq!(definition.status.as_ref().unwrap().stored_versions, Some(vec!["v1".to_owned()]));
        assert!(kinds(&definition).is_empty());
        let status = definition.status.as_mut().unwrap();
        status.accepted_names = Some(definition.spec.names.clone());
        status.conditions = serde_json::from_value(json!([{"type": ESTABLISHED, "status": "True"}])).unwrap();
        definition
    }

    #[test]
    fn a_definition_brings_a_kind_for_each_version() {
        let mut registry = Registry::builtin();
        registry.register_all(kinds(&established()));
        let kind = registry.by_name("sh").unwrap();
        assert_eq!((kind.api_version().as_str(), kind.kind.as_str()), ("stable.example.com/v1", "Shirt"));
        assert!(kind.shared && kind.has_status() && kind.scale.is_some() && kind.deprecation.is_none());
        let beta = registry.served("stable.example.com", "v1beta1", "shirts").unwrap();
        assert_eq!(beta.deprecation.as_ref().unwrap().warning, "stable.example.com/v1beta1 Shirt is deprecated");
        assert_eq!(registry.by_name("shirts.v1beta1.stable.example.com").unwrap().version, "v1beta1");
        let mut rng = rand::rng();
        let object = json!({
            "apiVersion": "stable.example.com/v1", "kind": "Shirt", "metadata": {"name": "a"},
            "spec": {"color": "blue"}, "status": {"replicas": 7},
        });
        let prepared = admit::prepare_create(&kind, object.clone(), create(&mut rng)).unwrap();
        assert_eq!(prepared.object["spec"], json!({"color": "blue", "replicas": 1}));
        assert!(prepared.object.get("status").is_none());
        assert_eq!(kind.row(&prepared.object, Timestamp::UNIX_EPOCH), ["a", "blue", "1"]);
        let names: Vec<String> = kind.columns().iter().map(|column| column.name.to_string()).collect();
        assert_eq!(names, ["Name", "Color", "Wanted"]);
        let mut wrong = object;
        wrong["spec"]["size"] = json!(5);
        let refused = admit::prepare_create(&kind, wrong.clone(), create(&mut rng)).unwrap_err();
        assert!(refused.message.contains("spec.size"), "{refused:?}");
        wrong["spec"] = json!({"color": 5});
        let refused = admit::prepare_create(&kind, wrong, create(&mut rng)).unwrap_err();
        assert_eq!(refused.reason.code(), 422);
        // A new status is no new generation, another spec is.
        let stored = prepared.object;
        let mut changed = stored.clone();
        changed["status"] = json!({"replicas": 3});
        let updated =
            admit::prepare_update(&kind, &stored, changed.clone(), Subresource::Status, UnknownFields::Refuse).unwrap();
        assert_eq!(
            (&updated.object["status"]["replicas"], &updated.object["metadata"]["generation"]),
            (&json!(3), &json!(1))
        );
        changed["spec"]["color"] = json!("red");
        let updated = admit::prepare_update(&kind, &stored, changed, Subresource::None, UnknownFields::Refuse).unwrap();
        assert_eq!(updated.object["metadata"]["generation"], json!(2));
    }

    /// That its definition is ending is for the gate to refuse, which knows it at every moment.
    #[test]
    fn a_kind_of_an_ending_definition_judges_objects_alike() {
        let mut ending = established();
        ending.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        let object = json!({"apiVersion": "stable.example.com/v1", "kind": "Shirt", "metadata": {"name": "a"}});
        assert!(admit::prepare_create(&kinds(&ending)[0], object, create(&mut rand::rng())).is_ok());
    }

    #[test]
    fn custom_kinds_are_published() {
        let mut registry = Registry::builtin();
        registry.register_all(kinds(&established()));
        let document: Value =
            serde_json::from_slice(&openapi::v3(&registry, "apis/stable.example.com/v1").unwrap()).unwrap();
        let shirt = &document["components"]["schemas"]["com.example.stable.v1.Shirt"];
        assert_eq!(shirt["properties"]["spec"]["properties"]["replicas"]["default"], 1);
        assert!(shirt["properties"]["metadata"]["allOf"][0]["$ref"].as_str().unwrap().ends_with("ObjectMeta"));
        assert!(document["components"]["schemas"]["com.example.stable.v1.ShirtList"].is_object());
        let document: Value = serde_json::from_slice(&openapi::v2(&registry, openapi::Encoding::Json)).unwrap();
        let shirt = &document["definitions"]["com.example.stable.v1.Shirt"];
        assert_eq!(shirt["x-kubernetes-group-version-kind"][0]["kind"], "Shirt");
    }

    #[test]
    fn definitions_that_make_no_sense_are_refused() {
        let kind = Registry::builtin().by_name("crd").unwrap();
        let refused = |change: &dyn Fn(&mut Value)| {
            let mut object = serde_json::to_value(definition()).unwrap();
            change(&mut object);
            admit::prepare_create(&kind, object, create(&mut rand::rng())).unwrap_err().message
        };
        type Case<'a> = (&'a dyn Fn(&mut Value), &'a str);
        let table: [Case; 9] = [
            (&|o| o["metadata"]["name"] = json!("x"), "must be spec.names.plural+\".\"+spec.group"),
            (&|o| o["spec"]["scope"] = json!("Odd"), "supported values: \"Cluster\", \"Namespaced\""),
            (
                &|o| o["spec"]["versions"][0]["storage"] = json!(true),
                "must have exactly one version marked as storage version",
            ),
            (&|o| o["spec"]["versions"][0]["name"] = json!("v1"), "must contain unique version names"),
            (&|o| o["spec"]["versions"][0]["schema"] = json!({}), "schemas are required"),
            (&|o| o["spec"]["preserveUnknownFields"] = json!(true), "cannot set to true"),
            (&|o| o["spec"]["conversion"] = json!({"strategy": "Webhook"}), "conversion webhooks are not supported"),
            (
                &|o| o["spec"]["versions"][0]["additionalPrinterColumns"][0]["jsonPath"] = json!("x"),
                "must be a simple json path starting with .",
            ),
            (
                &|o| o["spec"]["versions"][0]["selectableFields"][0]["jsonPath"] = json!(".spec.none"),
                "does not refer to a valid field",
            ),
        ];
        for (change, expected) in table {
            let message = refused(change);
            assert!(message.contains(expected), "{expected}: {message}");
        }
        let message = refused(&|o| {
            let versions = o["spec"]["versions"].as_array_mut().unwrap();
            versions.remove(0);
            versions[0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["type"] = json!("odd");
            versions[0]["additionalPrinterColumns"][0]["jsonPath"] = json!("x");
        });
        assert!(message.contains("spec.validation.openAPIV3Schema.properties[spec].type: Unsupported"), "{message}");
        assert!(message.contains("spec.additionalPrinterColumns[0].jsonPath: Invalid"), "{message}");
        let message = refused(&|o| {
            o["metadata"]["name"] = json!("shirts.networking.k8s.io");
            o["spec"]["group"] = json!("networking.k8s.io");
        });
        assert!(message.contains("is a group of the server's own kinds"), "{message}");
        assert!(message.contains("protected groups must have approval annotation"), "{message}");
    }
}
