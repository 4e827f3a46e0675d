//! Versions of kinds other than the one that is stored.
//!
//! Each is a [`Kind`] of its own, so that discovery, verbs and watches know nothing of versions; it shares the collection
//! and the rules of the stored kind, and a [`Conversion`] stands between them. Old versions of Kubernetes' own kinds are
//! served because manifests live long.
//!
//! Invariant: what was stored, read in any version and written back in it, is stored as it was.
//! Invariant: a conversion leaves alone what it does not understand; strict decoding of the stored form names it.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::field::Errors;
use crate::kinds::{Builtin, Deprecation, Kind};
use crate::schema;

mod autoscaler;
mod budget;
mod event;
mod ingress;
mod workload;

/// Between an object of some version and the same object as it is stored. Objects may be anything that anyone sent.
#[derive(Clone, Copy)]
pub struct Conversion {
    pub to_stored: fn(&mut Value),
    pub from_stored: fn(&mut Value),
    /// What only this version demands of a new object, as it is stored.
    pub check: fn(&Value, &mut Errors),
    /// Fields to select by, and what the stored kind calls them.
    pub fields: &'static [(&'static str, &'static str)],
}

impl Conversion {
    /// Versions that differ in nothing but their name.
    pub const NONE: Conversion = Conversion { to_stored: |_| {}, from_stored: |_| {}, check: |_, _| {}, fields: &[] };
}

/// How objects of a kind are stored, if not as they are.
#[derive(Clone)]
pub struct StoredAs {
    pub kind: Arc<Kind>,
    pub conversion: Conversion,
}

impl StoredAs {
    pub(crate) fn to_stored(&self, object: &mut Value) {
        (self.conversion.to_stored)(object);
        name(object, &self.kind);
    }

    pub(crate) fn check(&self, object: &Value, errors: &mut Errors) {
        (self.conversion.check)(object, errors);
    }

    pub(crate) fn present(&self, object: &mut Value, kind: &Kind) {
        (self.conversion.from_stored)(object);
        name(object, kind);
    }
}

/// Makes an object call itself what the kind is called.
fn name(object: &mut Value, kind: &Kind) {
    if let Some(map) = object.as_object_mut() {
        map.insert("apiVersion".into(), kind.api_version().into());
        map.insert("kind".into(), kind.kind.as_str().into());
    }
}

/// Another version of a kind, with the fields to select by that are its own.
pub fn version_of(stored: &Arc<Kind>, group: &str, version: &str, conversion: Conversion) -> Kind {
    let fields = stored.selectable.iter().cloned().chain(conversion.fields.iter().map(|(own, _)| (*own).to_owned()));
    Kind {
        group: group.to_owned(),
        version: version.to_owned(),
        // Whoever types a short name or asks for all means the stored kind.
        short_names: Vec::new(),
        categories: Vec::new(),
        selectable: fields.collect(),
        stored_as: Some(Arc::new(StoredAs { kind: stored.clone(), conversion })),
        ..(**stored).clone()
    }
}

/// The versions of built-in kinds that are served beside the stored one; those that the data knows no type of have the
/// stored one's.
pub(crate) fn versions(stored: impl Fn(Builtin) -> Option<Arc<Kind>>) -> Vec<Kind> {
    let made = VERSIONS.iter().filter_map(|(group, version, builtin, conversion, lifecycle)| {
        let stored = stored(*builtin)?;
        let kind = version_of(&stored, group, version, *conversion);
        let deprecation = lifecycle.map(|lifecycle| deprecation(&kind, lifecycle));
        let own = schema::name_of(group, version, &kind.kind);
        let orphans = kind.orphans || ORPHANING.contains(&(*builtin, *version));
        Some(Kind { schema: schema::get(&own).map(|_| own).or(kind.schema.clone()), deprecation, orphans, ..kind })
    });
    made.collect()
}

/// Upstream's warning to who uses a version of old.
fn deprecation(kind: &Kind, (deprecated, removed): (u8, u8)) -> Deprecation {
    let warning = format!(
        "{} {} is deprecated in v1.{deprecated}+, unavailable in v1.{removed}+; use {} {}",
        kind.api_version(),
        kind.kind,
        kind.stored().api_version(),
        kind.stored().kind
    );
    Deprecation { warning, removed_release: format!("1.{removed}") }
}

const RBAC: &str = "rbac.authorization.k8s.io";

/// In which minor releases of Kubernetes a version was deprecated, and removed.
type Lifecycle = Option<(u8, u8)>;

const VERSIONS: &[(&str, &str, Builtin, Conversion, Lifecycle)] = &[
    ("events.k8s.io", "v1", Builtin::Event, event::V1, None),
    ("autoscaling", "v1", Builtin::HorizontalPodAutoscaler, autoscaler::V1, None),
    ("apps", "v1beta2", Builtin::Deployment, Conversion::NONE, Some((9, 16))),
    ("apps", "v1beta2", Builtin::DaemonSet, Conversion::NONE, Some((9, 16))),
    ("apps", "v1beta2", Builtin::ReplicaSet, Conversion::NONE, Some((9, 16))),
    ("apps", "v1beta2", Builtin::StatefulSet, Conversion::NONE, Some((9, 16))),
    ("apps", "v1beta2", Builtin::ControllerRevision, Conversion::NONE, Some((9, 16))),
    ("apps", "v1beta1", Builtin::Deployment, workload::APPS_V1BETA1_DEPLOYMENT, Some((8, 16))),
    ("apps", "v1beta1", Builtin::StatefulSet, workload::APPS_V1BETA1_STATEFUL_SET, Some((8, 16))),
    ("apps", "v1beta1", Builtin::ControllerRevision, Conversion::NONE, Some((8, 16))),
    ("batch", "v1beta1", Builtin::CronJob, Conversion::NONE, Some((21, 25))),
    ("policy", "v1beta1", Builtin::PodDisruptionBudget, budget::V1BETA1, Some((21, 25))),
    ("networking.k8s.io", "v1beta1", Builtin::Ingress, ingress::V1BETA1, Some((19, 22))),
    ("networking.k8s.io", "v1beta1", Builtin::IngressClass, Conversion::NONE, Some((19, 22))),
    (RBAC, "v1beta1", Builtin::Role, Conversion::NONE, Some((17, 22))),
    (RBAC, "v1beta1", Builtin::RoleBinding, Conversion::NONE, Some((17, 22))),
    (RBAC, "v1beta1", Builtin::ClusterRole, Conversion::NONE, Some((17, 22))),
    (RBAC, "v1beta1", Builtin::ClusterRoleBinding, Conversion::NONE, Some((17, 22))),
    ("extensions", "v1beta1", Builtin::Deployment, workload::EXTENSIONS_DEPLOYMENT, Some((8, 16))),
    ("extensions", "v1beta1", Builtin::DaemonSet, workload::EXTENSIONS_DAEMON_SET, Some((8, 16))),
    ("extensions", "v1beta1", Builtin::ReplicaSet, workload::EXTENSIONS_REPLICA_SET, Some((8, 16))),
    ("extensions", "v1beta1", Builtin::Ingress, ingress::V1BETA1, Some((14, 22))),
    ("extensions", "v1beta1", Builtin::NetworkPolicy, Conversion::NONE, Some((9, 16))),
];

/// What left alone what its objects owned, unless a delete said otherwise.
const ORPHANING: &[(Builtin, &str)] = &[
    (Builtin::Deployment, "v1beta1"),
    (Builtin::Deployment, "v1beta2"),
    (Builtin::StatefulSet, "v1beta1"),
    (Builtin::StatefulSet, "v1beta2"),
    (Builtin::DaemonSet, "v1beta1"),
    (Builtin::DaemonSet, "v1beta2"),
    (Builtin::ReplicaSet, "v1beta1"),
    (Builtin::ReplicaSet, "v1beta2"),
    (Builtin::CronJob, "v1beta1"),
];

/// A field that is an object, made if there is none; `None` if it is something else.
fn child<'a>(object: &'a mut Value, field: &str) -> Option<&'a mut Map<String, Value>> {
    let value = object.as_object_mut()?.entry(field).or_insert_with(|| Value::Object(Map::new()));
    if value.is_null() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut()
}

/// Sets a field that is absent or null.
fn default(map: &mut Map<String, Value>, field: &str, value: impl Into<Value>) {
    if map.get(field).is_none_or(Value::is_null) {
        map.insert(field.to_owned(), value.into());
    }
}

/// Gives a field another name.
fn rename(map: &mut Map<String, Value>, from: &str, to: &str) {
    if let Some(value) = map.remove(from) {
        map.insert(to.to_owned(), value);
    }
}

/// Whether a field says nothing: absent, null, or an object without fields.
fn is_empty(map: &Map<String, Value>, field: &str) -> bool {
    map.get(field).is_none_or(|value| value.is_null() || value.as_object().is_some_and(Map::is_empty))
}

#[cfg(test)]
mod tests {
    use crate::Registry;

    #[test]
    fn a_version_of_old_says_what_is_used_instead() {
        let registry = Registry::builtin();
        let table = [
            (
                ("extensions", "v1beta1", "deployments"),
                "extensions/v1beta1 Deployment is deprecated in v1.8+, unavailable in v1.16+; use apps/v1 Deployment",
                "1.16",
            ),
            (
                ("extensions", "v1beta1", "ingresses"),
                "extensions/v1beta1 Ingress is deprecated in v1.14+, unavailable in v1.22+; use networking.k8s.io/v1 \
                 Ingress",
                "1.22",
            ),
            (
                ("policy", "v1beta1", "poddisruptionbudgets"),
                "policy/v1beta1 PodDisruptionBudget is deprecated in v1.21+, unavailable in v1.25+; use policy/v1 \
                 PodDisruptionBudget",
                "1.25",
            ),
            (
                ("", "v1", "endpoints"),
                "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice",
                "",
            ),
        ];
        for ((group, version, resource), warning, removed) in table {
            let deprecation = registry.served(group, version, resource).unwrap().deprecation.clone().unwrap();
            assert_eq!((deprecation.warning.as_str(), deprecation.removed_release.as_str()), (warning, removed));
        }
        for (group, version, resource) in
            [("apps", "v1", "deployments"), ("autoscaling", "v1", "horizontalpodautoscalers")]
        {
            assert_eq!(registry.served(group, version, resource).unwrap().deprecation, None);
        }
    }
}
