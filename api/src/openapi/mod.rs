//! What the API looks like, for clients that ask: OpenAPI 3 by group and version, and OpenAPI 2 as a whole.
//!
//! Made from the registry and from the facts of [`crate::schema`], for kinds of any origin. `kubectl` reads it to explain
//! types, to check manifests, and to learn how fields are merged.
//!
//! Invariant: a document depends on nothing but the registry and the program, so that every node serves the same.

mod gnostic;
mod parameters;
mod paths;
mod text;
mod types;
mod values;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, LazyLock};

use serde_json::{Value, json};

use crate::kinds::Kind;
use crate::questions;
use crate::registry::Registry;
use crate::schema;
use text::Texts;
use types::Types;

/// Which version of OpenAPI a document is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    V2,
    V3,
}

/// How the second version is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    Json,
    /// gnostic's messages.
    Protobuf,
}

/// The documents of the third version: their paths below `/openapi/v3/`, and a name for what each says now.
pub fn index(registry: &Registry) -> BTreeMap<String, String> {
    let mut hashes: BTreeMap<String, String> = BTreeMap::new();
    for kind in served(registry) {
        hashes.entry(path_of(&kind.group, &kind.version)).or_default();
    }
    for (path, hash) in &mut hashes {
        *hash = fingerprint(served(registry).filter(|kind| path_of(&kind.group, &kind.version) == *path));
    }
    hashes
}

/// A name for what the second version's document says now.
pub fn fingerprint_of_all(registry: &Registry) -> String {
    fingerprint(served(registry))
}

/// The kinds that are kept, and those that are not.
fn served(registry: &Registry) -> impl Iterator<Item = &Arc<Kind>> {
    registry.iter().chain(questions::all())
}

fn path_of(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// What the program itself adds to a document.
static DATA: LazyLock<u64> = LazyLock::new(|| {
    let mut hasher = DefaultHasher::new();
    env!("CARGO_PKG_VERSION").hash(&mut hasher);
    schema::names().for_each(|name| schema::json(name).hash(&mut hasher));
    values::all().hash(&mut hasher);
    hasher.finish()
});

/// The same on every node and in every run: all that a document is made from.
fn fingerprint<'a>(kinds: impl Iterator<Item = &'a Arc<Kind>>) -> String {
    let mut hashers = [DefaultHasher::new(), DefaultHasher::new()];
    1u8.hash(&mut hashers[1]);
    for hasher in &mut hashers {
        DATA.hash(hasher);
    }
    for kind in kinds {
        for hasher in &mut hashers {
            (&kind.group, &kind.version, &kind.kind, &kind.plural, &kind.singular).hash(hasher);
            (&kind.subresources, kind.is_namespaced(), &kind.schema, kind.shows_deleted).hash(hasher);
            kind.structure.as_ref().map(|structure| structure.fingerprint()).hash(hasher);
        }
    }
    hashers.iter().map(|hasher| format!("{:016X}", hasher.finish())).collect()
}

/// The third version's document at a path of [`index`]; `None` if no kind is served there.
pub fn v3(registry: &Registry, path: &str) -> Option<Vec<u8>> {
    let served = served(registry).filter(|kind| path_of(&kind.group, &kind.version) == path);
    let kinds: Vec<&Kind> = served.map(AsRef::as_ref).collect();
    if kinds.is_empty() {
        return None;
    }
    let types = Types { form: Form::V3, texts: Texts::load() };
    let mut json = Json::begin();
    json.member("openapi", &json!("3.0.0"));
    json.member("info", &info());
    json.object("paths", |paths| paths::each(&types, &kinds, |path, item| paths.member(path, &item)));
    json.object("components", |components| {
        components.object("schemas", |schemas| {
            types.each(&kinds, &paths::types(&kinds), |name, value| schemas.member(name, &value));
        });
        components.member("securitySchemes", &security());
    });
    Some(json.end())
}

/// The second version's document, of all kinds.
pub fn v2(registry: &Registry, encoding: Encoding) -> Vec<u8> {
    let kinds: Vec<&Kind> = served(registry).map(AsRef::as_ref).collect();
    let types = Types { form: Form::V2, texts: Texts::load() };
    match encoding {
        Encoding::Json => v2_json(&types, &kinds),
        Encoding::Protobuf => v2_protobuf(&types, &kinds),
    }
}

fn v2_json(types: &Types, kinds: &[&Kind]) -> Vec<u8> {
    let mut json = Json::begin();
    json.member("swagger", &json!("2.0"));
    json.member("info", &info());
    json.object("paths", |paths| paths::each(types, kinds, |path, item| paths.member(path, &item)));
    json.object("definitions", |definitions| {
        types.each(kinds, &paths::types(kinds), |name, value| definitions.member(name, &value));
    });
    json.member("securityDefinitions", &security());
    json.member("security", &json!([{"BearerToken": []}]));
    json.end()
}

fn v2_protobuf(types: &Types, kinds: &[&Kind]) -> Vec<u8> {
    let mut document = gnostic::Message::default();
    document.text(1, "2.0");
    document.message(2, |message| {
        let info = info();
        let text = |name: &str| info[name].as_str().unwrap_or_default().to_owned();
        message.text(1, &text("title"));
        message.text(2, &text("version"));
    });
    document.message(8, |message| {
        paths::each(types, kinds, |path, item| message.named(2, path, |inner| gnostic::path_item(inner, &item)));
    });
    document.message(9, |message| {
        types.each(kinds, &paths::types(kinds), |name, value| {
            message.named(1, name, |inner| gnostic::schema(inner, &value));
        });
    });
    document.into_bytes()
}

fn info() -> Value {
    json!({"title": "Kubernetes", "version": concat!("flotilla.", env!("CARGO_PKG_VERSION"))})
}

fn security() -> Value {
    json!({
        "BearerToken": {
            "type": "apiKey",
            "name": "authorization",
            "in": "header",
            "description": "Bearer Token authentication",
        },
    })
}

/// An object of JSON that is written member by member, so that a document never stands decoded in memory.
struct Json {
    bytes: Vec<u8>,
    is_first: bool,
}

impl Json {
    fn begin() -> Self {
        Self { bytes: vec![b'{'], is_first: true }
    }

    fn end(mut self) -> Vec<u8> {
        self.bytes.push(b'}');
        self.bytes
    }

    fn key(&mut self, key: &str) {
        if !self.is_first {
            self.bytes.push(b',');
        }
        self.is_first = false;
        self.bytes.extend_from_slice(Value::from(key).to_string().as_bytes());
        self.bytes.push(b':');
    }

    fn member(&mut self, key: &str, value: &Value) {
        self.key(key);
        self.bytes.extend_from_slice(value.to_string().as_bytes());
    }

    fn object(&mut self, key: &str, write: impl FnOnce(&mut Json)) {
        self.key(key);
        let mut inner = Json { bytes: std::mem::take(&mut self.bytes), is_first: true };
        inner.bytes.push(b'{');
        write(&mut inner);
        self.bytes = inner.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                found.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
                map.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }

    #[test]
    fn every_document_is_whole() {
        let registry = Registry::builtin();
        for path in index(&registry).keys() {
            let document: Value = serde_json::from_slice(&v3(&registry, path).unwrap()).unwrap();
            let mut found = Vec::new();
            references(&document, &mut found);
            assert!(!found.is_empty());
            for reference in found {
                assert!(document.pointer(&reference[1..]).is_some(), "{path}: {reference}");
            }
        }
        let document: Value = serde_json::from_slice(&v2(&registry, Encoding::Json)).unwrap();
        let mut found = Vec::new();
        references(&document, &mut found);
        for reference in found {
            assert!(document.pointer(&reference[1..]).is_some(), "{reference}");
        }
        assert!(v3(&registry, "apis/none/v1").is_none());
    }

    #[test]
    fn old_versions_are_described_as_they_were() {
        let registry = Registry::builtin();
        let document: Value = serde_json::from_slice(&v2(&registry, Encoding::Json)).unwrap();
        let of = |name: &str| &document["definitions"][format!("io.k8s.api.{name}")];
        for deployment in ["extensions.v1beta1.Deployment", "apps.v1beta1.Deployment"] {
            let spec = of(&format!("{deployment}Spec"));
            assert_eq!(
                of(deployment)["properties"]["spec"]["$ref"],
                format!("#/definitions/io.k8s.api.{deployment}Spec")
            );
            assert_eq!(spec["required"], json!(["template"]), "the selector may be left out");
            assert!(spec["properties"]["rollbackTo"].is_object());
        }
        let backend = of("networking.v1beta1.IngressBackend");
        assert!(backend["properties"]["serviceName"].is_object(), "{backend}");
        assert!(
            of("apps.v1beta2.Deployment")["properties"]["spec"]["$ref"]
                .as_str()
                .unwrap()
                .ends_with("apps.v1.DeploymentSpec")
        );
    }

    #[test]
    fn types_carry_what_clients_look_for() {
        let registry = Registry::builtin();
        let document: Value = serde_json::from_slice(&v3(&registry, "apis/apps/v1").unwrap()).unwrap();
        let types = &document["components"]["schemas"];
        let deployment = &types["io.k8s.api.apps.v1.Deployment"];
        assert_eq!(
            deployment["x-kubernetes-group-version-kind"],
            json!([{"group": "apps", "kind": "Deployment", "version": "v1"}])
        );
        assert_eq!(deployment["properties"]["kind"].get("enum"), None);
        let pull_policy = &types["io.k8s.api.core.v1.Container"]["properties"]["imagePullPolicy"];
        assert_eq!(pull_policy["enum"], json!(["Always", "IfNotPresent", "Never"]));
        assert_eq!(
            deployment["properties"]["spec"]["allOf"],
            json!([{"$ref": "#/components/schemas/io.k8s.api.apps.v1.DeploymentSpec"}])
        );
        let containers = &types["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(containers["x-kubernetes-patch-strategy"], "merge");
        assert_eq!(containers["x-kubernetes-list-type"], "map");
        assert!(containers["description"].as_str().unwrap().starts_with("List of containers belonging to the pod."));
        let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        assert_eq!(patch["x-kubernetes-action"], "patch");
        assert!(patch["requestBody"]["content"]["application/strategic-merge-patch+json"].is_object());
        let parameters = patch["parameters"].as_array().unwrap();
        for name in ["dryRun", "fieldManager", "fieldValidation", "force"] {
            assert!(parameters.iter().any(|p| p["name"] == name), "{name}");
        }
    }

    #[test]
    fn a_kind_that_comes_changes_its_documents_name_only() {
        let mut registry = Registry::builtin();
        let before = index(&registry);
        let mut kind = (*registry.by_name("configmaps").unwrap()).clone();
        kind.group = "example.com".into();
        kind.plural = "widgets".into();
        kind.kind = "Widget".into();
        registry.register(kind);
        let after = index(&registry);
        assert!(before.iter().all(|(path, hash)| after[path] == *hash));
        assert!(after.contains_key("apis/example.com/v1"));
        assert_eq!(index(&registry), after);
    }

    #[test]
    fn operations_have_names_of_their_own() {
        let registry = Registry::builtin();
        let document: Value = serde_json::from_slice(&v2(&registry, Encoding::Json)).unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap().iter().filter(|(name, _)| *name != "parameters") {
                let id = operation["operationId"].as_str().unwrap();
                assert!(seen.insert(id.to_owned()), "{method} {path}: {id}");
            }
        }
        for id in ["listCoreV1NamespacedPod", "readAppsV1NamespacedDeploymentScale", "createCoreV1Namespace"] {
            assert!(seen.contains(id), "{id}");
        }
    }
}
