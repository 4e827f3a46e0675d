//! Which values a field of a built-in kind may have.
//!
//! Nobody keeps a list of them: each field that holds text is given a value that nothing can be, and the kind's own
//! validation says what it would have taken. So what `kubectl explain` shows is what holds.
//!
//! Invariant: a type's values are asked for at its first few places only, and kinds are asked in the order of the registry:
//! what a Pod's spec may say, not what the template of a Deployment may.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use crate::field::Errors;
use crate::kinds::Kind;
use crate::registry::Registry;
use crate::schema::{self, Schema};

/// What no field takes.
const NOTHING: &str = "\u{1}";
/// What only fields take in which anybody may have a value of their own.
const SOMEBODYS: &str = "example.com/own";
/// A type is looked at in so many places.
const MAX_PLACES: usize = 3;
/// Types within types.
const MAX_DEPTH: usize = 12;

/// By type and field.
static VALUES: LazyLock<BTreeMap<String, BTreeMap<String, Vec<String>>>> = LazyLock::new(|| {
    let mut asking = Asking::default();
    for kind in Registry::builtin().iter().filter(|kind| kind.stored_as.is_none()) {
        if let Some(name) = &kind.schema {
            asking.look(kind, name, &mut Vec::new());
        }
    }
    asking.found
});

/// All that is known, by type and field.
pub(super) fn all() -> &'static BTreeMap<String, BTreeMap<String, Vec<String>>> {
    &VALUES
}

/// The values that a field of a type may have, sorted; `None` if it may be any.
pub(super) fn of(type_name: &str, field: &str) -> Option<&'static [String]> {
    VALUES.get(type_name)?.get(field).map(Vec::as_slice)
}

#[derive(Default)]
struct Asking {
    found: BTreeMap<String, BTreeMap<String, Vec<String>>>,
    places: BTreeMap<String, usize>,
}

/// The way to a field.
#[derive(Clone, Debug)]
enum Step {
    Field(String),
    /// The first of a list.
    First,
}

impl Asking {
    /// Asks for all fields of a type where it stands in a kind.
    fn look(&mut self, kind: &Kind, type_name: &str, way: &mut Vec<Step>) {
        let Some(facts) = schema::get(type_name).filter(|_| way.len() < MAX_DEPTH) else { return };
        let places = self.places.entry(type_name.to_owned()).or_default();
        if *places >= MAX_PLACES {
            return;
        }
        *places += 1;
        for (field, of) in &facts.properties {
            way.push(Step::Field(field.clone()));
            let one = match &of.items {
                Some(items) => {
                    way.push(Step::First);
                    items
                }
                None => of,
            };
            match &one.reference {
                Some(reference) => self.look(kind, reference, way),
                None if is_text(one) => self.ask(kind, type_name, field, way),
                None => {}
            }
            way.truncate(way.len() - if of.items.is_some() { 2 } else { 1 });
        }
    }

    fn ask(&mut self, kind: &Kind, type_name: &str, field: &str, way: &[Step]) {
        let known = self.found.get(type_name).is_some_and(|fields| fields.contains_key(field));
        let is_head = way.len() == 1 && matches!(field, "apiVersion" | "kind");
        if known || is_head {
            return;
        }
        let taken = values(kind, way, NOTHING).filter(|_| values(kind, way, SOMEBODYS).is_some());
        // What has dots names a field or a resource: others may be named elsewhere.
        if let Some(mut values) = taken.filter(|values| values.iter().all(|value| !value.contains('.'))) {
            values.sort_unstable();
            self.found.entry(type_name.to_owned()).or_default().insert(field.to_owned(), values);
        }
    }
}

/// What the kind would have taken in place of a value that it does not take.
fn values(kind: &Kind, way: &[Step], value: &str) -> Option<Vec<String>> {
    let (mut object, mut errors) = (object(kind, way, value), Errors::new());
    kind.behaviour.create(&mut object, &mut errors);
    let path = path(way);
    let causes = errors.into_causes();
    let (_, values) = causes.iter().find(|cause| cause.field == path)?.message.split_once("supported values: ")?;
    serde_json::from_str(&format!("[{values}]")).ok()
}

fn is_text(schema: &Schema) -> bool {
    schema.type_.as_deref() == Some("string") && schema.format.is_none() && schema.allowed.is_empty()
}

/// An object that says nothing but a value, at the end of a way.
fn object(kind: &Kind, way: &[Step], value: &str) -> Value {
    let inner = way.iter().rev().fold(json!(value), |inner, step| match step {
        Step::Field(field) => Value::Object(Map::from_iter([(field.clone(), inner)])),
        Step::First => json!([inner]),
    });
    let mut object = json!({"apiVersion": kind.api_version(), "kind": kind.kind, "metadata": {"name": "a"}});
    if let (Some(object), Value::Object(inner)) = (object.as_object_mut(), inner) {
        object.extend(inner);
    }
    object
}

fn path(way: &[Step]) -> String {
    let mut path = String::new();
    for step in way {
        match step {
            Step::First => path.push_str("[0]"),
            Step::Field(field) if path.is_empty() => path.push_str(field),
            Step::Field(field) => {
                path.push('.');
                path.push_str(field);
            }
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_may_have_the_values_that_validation_takes() {
        let table = [
            ("io.k8s.api.core.v1.Container", "imagePullPolicy", &["Always", "IfNotPresent", "Never"][..]),
            ("io.k8s.api.core.v1.PodSpec", "restartPolicy", &["Always", "Never", "OnFailure"]),
            ("io.k8s.api.core.v1.ContainerPort", "protocol", &["SCTP", "TCP", "UDP"]),
            ("io.k8s.api.core.v1.ServiceSpec", "type", &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]),
            ("io.k8s.api.apps.v1.DeploymentStrategy", "type", &["Recreate", "RollingUpdate"]),
            ("io.k8s.api.batch.v1.CronJobSpec", "concurrencyPolicy", &["Allow", "Forbid", "Replace"]),
            ("io.k8s.api.storage.v1.StorageClass", "volumeBindingMode", &["Immediate", "WaitForFirstConsumer"]),
            ("io.k8s.api.batch.v1.JobSpec", "podReplacementPolicy", &["Failed", "TerminatingOrFailed"]),
            ("io.k8s.api.core.v1.VolumeMount", "mountPropagation", &["Bidirectional", "HostToContainer", "None"]),
        ];
        let all: Vec<String> = VALUES
            .iter()
            .flat_map(|(name, fields)| fields.keys().map(move |field| format!("{name}.{field}")))
            .collect();
        for (name, field, values) in table {
            let found = of(name, field).unwrap_or_else(|| panic!("{name}.{field} is not among {all:#?}"));
            assert_eq!(found, values, "{name}.{field}");
        }
        for (name, field) in [
            ("core.v1.Container", "image"),
            ("core.v1.NodeSelectorRequirement", "key"),
            ("core.v1.ResourceFieldSelector", "resource"),
            ("coordination.v1.LeaseSpec", "strategy"),
        ] {
            assert_eq!(of(&format!("io.k8s.api.{name}"), field), None, "{name}.{field}");
        }
    }
}
