//! Kinds that are asked and not kept: an object of one is created, answered, and forgotten.
//!
//! Discovery and the OpenAPI documents tell of them like of all kinds; the REST face answers them.

use std::sync::{Arc, LazyLock};

use jiff::Timestamp;
use serde_json::Value;

use crate::columns::Column;
use crate::field::Errors;
use crate::kinds::{Behaviour, Kind, Scope};
use crate::names;

/// Group, version, kind, plural, whether it is asked within a namespace.
const QUESTIONS: &[(&str, &str, &str, &str, Scope)] = &[
    ("authentication.k8s.io", "v1", "SelfSubjectReview", "selfsubjectreviews", Scope::Cluster),
    ("authentication.k8s.io", "v1", "TokenReview", "tokenreviews", Scope::Cluster),
    ("authorization.k8s.io", "v1", "LocalSubjectAccessReview", "localsubjectaccessreviews", Scope::Namespaced),
    ("authorization.k8s.io", "v1", "SelfSubjectAccessReview", "selfsubjectaccessreviews", Scope::Cluster),
    ("authorization.k8s.io", "v1", "SelfSubjectRulesReview", "selfsubjectrulesreviews", Scope::Cluster),
    ("authorization.k8s.io", "v1", "SubjectAccessReview", "subjectaccessreviews", Scope::Cluster),
];

static KINDS: LazyLock<Vec<Arc<Kind>>> = LazyLock::new(|| QUESTIONS.iter().map(|row| Arc::new(kind(*row))).collect());

/// What is posted to the `token` subresource of a ServiceAccount.
static TOKEN_REQUEST: LazyLock<Kind> =
    LazyLock::new(|| kind(("authentication.k8s.io", "v1", "TokenRequest", "tokenrequests", Scope::Namespaced)));

pub fn token_request() -> &'static Kind {
    &TOKEN_REQUEST
}

/// The kinds that can only be created.
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

fn kind((group, version, name, plural, scope): (&str, &str, &str, &str, Scope)) -> Kind {
    let package = group.trim_end_matches(".k8s.io");
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
        behaviour: Arc::new(Unstored),
    }
}

/// Nothing is done to what is never stored.
struct Unstored;

impl Behaviour for Unstored {
    fn create(&self, _: &mut Value, _: &mut Errors) {}

    fn update(&self, _: &Value, _: &mut Value, _: &mut Errors) {}

    fn update_status(&self, _: &Value, _: &mut Value, _: &mut Errors) {}

    fn changed(&self, _: &Value, _: &Value) -> bool {
        false
    }

    fn columns(&self) -> Vec<Column> {
        Vec::new()
    }

    fn row(&self, _: &Value, _: Timestamp) -> Vec<String> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema;

    #[test]
    fn the_schema_knows_every_question() {
        for kind in all() {
            let facts = schema::get(kind.schema.as_deref().unwrap()).unwrap();
            let [gvk] = facts.group_version_kinds.as_slice() else { panic!("{kind:?}") };
            assert_eq!((&gvk.group, &gvk.version, &gvk.kind), (&kind.group, &kind.version, &kind.kind));
        }
        assert!(find("authorization.k8s.io", "v1", "subjectaccessreviews").is_some());
        assert!(find("authorization.k8s.io", "v2", "subjectaccessreviews").is_none());
    }
}
