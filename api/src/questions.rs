//! Kinds that are asked and not kept: an object of one is created, answered, and forgotten. So is a Binding, which is carried
//! out; and what the cluster consists of is only read.
//!
//! Discovery and the OpenAPI documents tell of them like of all kinds; the REST face answers them.

use std::sync::{Arc, LazyLock};

use jiff::Timestamp;
use serde_json::Value;

use crate::columns::{self, Column};
use crate::field::Errors;
use crate::kinds::{Behaviour, Deprecation, Kind, Scope};
use crate::names;

const COMPONENT: (&str, &str, &str, &str, Scope) = ("", "v1", "ComponentStatus", "componentstatuses", Scope::Cluster);

/// Group, version, kind, plural, whether it is asked within a namespace.
const QUESTIONS: &[(&str, &str, &str, &str, Scope)] = &[
    ("", "v1", "Binding", "bindings", Scope::Namespaced),
    ("authentication.k8s.io", "v1", "SelfSubjectReview", "selfsubjectreviews", Scope::Cluster),
    ("authentication.k8s.io", "v1", "TokenReview", "tokenreviews", Scope::Cluster),
    ("authorization.k8s.io", "v1", "LocalSubjectAccessReview", "localsubjectaccessreviews", Scope::Namespaced),
    ("authorization.k8s.io", "v1", "SelfSubjectAccessReview", "selfsubjectaccessreviews", Scope::Cluster),
    ("authorization.k8s.io", "v1", "SelfSubjectRulesReview", "selfsubjectrulesreviews", Scope::Cluster),
    ("authorization.k8s.io", "v1", "SubjectAccessReview", "subjectaccessreviews", Scope::Cluster),
];

static KINDS: LazyLock<Vec<Arc<Kind>>> =
    LazyLock::new(|| QUESTIONS.iter().map(|row| kind(*row)).chain([component()]).map(Arc::new).collect());

/// What is posted to the `token` subresource of a ServiceAccount.
static TOKEN_REQUEST: LazyLock<Kind> =
    LazyLock::new(|| kind(("authentication.k8s.io", "v1", "TokenRequest", "tokenrequests", Scope::Namespaced)));

pub fn token_request() -> &'static Kind {
    &TOKEN_REQUEST
}

/// What the `scale` subresource of every kind that has it shows and takes.
static SCALE: LazyLock<Kind> = LazyLock::new(|| kind(("autoscaling", "v1", "Scale", "scales", Scope::Namespaced)));

pub fn scale() -> &'static Kind {
    &SCALE
}

/// The kinds that are not kept.
pub fn all() -> &'static [Arc<Kind>] {
    &KINDS
}

/// The one that is called so in paths.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Arc<Kind>> {
    KINDS
        .iter()
        .find(|kind| (kind.group.as_str(), kind.version.as_str(), kind.plural.as_str()) == (group, version, plural))
}

/// Whether objects of the kind are only ever asked about.
pub fn is_one(kind: &Kind) -> bool {
    find(&kind.group, &kind.version, &kind.plural).is_some()
}

/// Whether the kind is the one that tells what the cluster consists of.
pub fn is_component(kind: &Kind) -> bool {
    (kind.group.as_str(), kind.plural.as_str()) == (COMPONENT.0, COMPONENT.3)
}

/// What can be done with objects of the kind, if they are not kept.
pub fn verbs(kind: &Kind) -> Option<&'static [&'static str]> {
    match is_component(kind) {
        true => Some(&["get", "list"]),
        false => is_one(kind).then_some(&["create"]),
    }
}

fn component() -> Kind {
    Kind {
        short_names: vec!["cs".into()],
        deprecation: Some(Deprecation {
            warning: "v1 ComponentStatus is deprecated in v1.19+".into(),
            removed_release: String::new(),
        }),
        behaviour: Arc::new(Unstored { columns: component_columns, row: component_row }),
        ..kind(COMPONENT)
    }
}

/// Whether the kind is the one that assigns a pod to a node.
pub fn is_binding(kind: &Kind) -> bool {
    (kind.group.as_str(), kind.kind.as_str()) == ("", "Binding")
}

fn kind((group, version, name, plural, scope): (&str, &str, &str, &str, Scope)) -> Kind {
    let package = if group.is_empty() { "core" } else { group.trim_end_matches(".k8s.io") };
    Kind {
        group: group.into(),
        version: version.into(),
        kind: name.into(),
        plural: plural.into(),
        singular: name.to_lowercase(),
        short_names: Vec::new(),
        scope,
        categories: Vec::new(),
        subresources: Vec::new(),
        selectable: Vec::new(),
        sealed: Vec::new(),
        generation: false,
        schema: Some(format!("io.k8s.api.{package}.{version}.{name}")),
        structure: None,
        shared: false,
        scale: None,
        deprecation: None,
        unconditional_update: false,
        create_on_update: false,
        shows_deleted: false,
        orphans: false,
        name_rule: names::path_segment,
        builtin: None,
        stored_as: None,
        behaviour: Arc::new(Unstored { columns: Vec::new, row: |_| Vec::new() }),
    }
}

/// Nothing is done to what is never stored; some of it is shown.
struct Unstored {
    columns: fn() -> Vec<Column>,
    row: fn(&Value) -> Vec<String>,
}

impl Behaviour for Unstored {
    fn create(&self, _: &mut Value, _: &mut Errors) {}

    fn update(&self, _: &Value, _: &mut Value, _: &mut Errors) {}

    fn update_status(&self, _: &Value, _: &mut Value, _: &mut Errors) {}

    fn changed(&self, _: &Value, _: &Value) -> bool {
        false
    }

    fn columns(&self) -> Vec<Column> {
        (self.columns)()
    }

    fn row(&self, object: &Value, _: Timestamp) -> Vec<String> {
        (self.row)(object)
    }
}

fn component_columns() -> Vec<Column> {
    vec![columns::NAME, Column::text("Status"), Column::text("Message"), Column::text("Error")]
}

/// As upstream shows it.
fn component_row(object: &Value) -> Vec<String> {
    let mut conditions = object["conditions"].as_array().into_iter().flatten();
    let healthy = conditions.rfind(|condition| condition["type"] == "Healthy");
    let text = |field: &str| healthy.and_then(|found| found[field].as_str()).unwrap_or_default().to_owned();
    let status = match text("status").as_str() {
        "" => "Unknown",
        "True" => "Healthy",
        _ => "Unhealthy",
    };
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    vec![name.to_owned(), status.to_owned(), text("message"), text("error")]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema;

    #[test]
    fn the_schema_knows_every_question() {
        for kind in all().iter().map(AsRef::as_ref).chain([token_request(), scale()]) {
            let facts = schema::get(kind.schema.as_deref().unwrap()).unwrap();
            let [gvk] = facts.group_version_kinds.as_slice() else { panic!("{kind:?}") };
            assert_eq!((&gvk.group, &gvk.version, &gvk.kind), (&kind.group, &kind.version, &kind.kind));
        }
        assert!(find("authorization.k8s.io", "v1", "subjectaccessreviews").is_some());
        assert!(find("authorization.k8s.io", "v2", "subjectaccessreviews").is_none());
    }
}
