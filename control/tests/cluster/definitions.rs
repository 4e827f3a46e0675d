//! How definitions get their names, and how they end.

use flotilla_api::{GroupResource, Key};
use flotilla_control::keys;
use serde_json::{Value, json};

use crate::sim::Sim;

const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

fn define(sim: &mut Sim, plural: &str, kind: &str, short: &[&str]) -> Key {
    let version =
        json!({"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}});
    sim.put_json(
        "apiextensions.k8s.io",
        "customresourcedefinitions",
        json!({
            "metadata": {"name": format!("{plural}.example.com")},
            "spec": {
                "group": "example.com", "scope": "Namespaced", "versions": [version],
                "names": {"plural": plural, "singular": kind.to_lowercase(), "kind": kind, "listKind": format!("{kind}List"), "shortNames": short},
            },
            "status": {"storedVersions": ["v1"]},
        }),
    )
}

fn condition(sim: &Sim, key: &Key, kind: &str) -> String {
    let definition: Value = sim.get(key);
    let conditions = definition["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions.iter().find(|condition| condition["type"] == kind).cloned().unwrap_or_default();
    format!("{} {}", found["status"].as_str().unwrap_or("-"), found["reason"].as_str().unwrap_or("-"))
}

#[test]
fn a_definition_gets_its_names_if_they_are_free() {
    let mut sim = Sim::new(1);
    let shirts = define(&mut sim, "shirts", "Shirt", &["sh"]);
    sim.settle();
    assert_eq!(condition(&sim, &shirts, "Established"), "True InitialNamesAccepted");
    assert_eq!(condition(&sim, &shirts, "NamesAccepted"), "True NoConflicts");
    let stored: Value = sim.get(&shirts);
    assert_eq!(stored["status"]["acceptedNames"]["shortNames"], json!(["sh"]));
    // What planners do not look at is not lost on the way.
    assert_eq!(stored["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["type"], "object");

    let shoes = define(&mut sim, "shoes", "Shoe", &["sh"]);
    sim.settle();
    assert_eq!(condition(&sim, &shoes, "NamesAccepted"), "False ShortNamesConflict");
    assert_eq!(condition(&sim, &shoes, "Established"), "False NotAccepted");
    sim.delete(&shirts);
    sim.settle();
    assert_eq!(condition(&sim, &shoes, "Established"), "True InitialNamesAccepted");
}

#[test]
fn of_two_that_come_at_once_one_has_the_name() {
    let mut sim = Sim::new(2);
    let (a, b) = (define(&mut sim, "aas", "Thing", &[]), define(&mut sim, "bees", "Thing", &[]));
    sim.settle();
    assert_eq!(condition(&sim, &a, "Established"), "True InitialNamesAccepted");
    assert_eq!(condition(&sim, &b, "NamesAccepted"), "False ListKindConflict");
}

#[test]
fn a_definition_goes_after_its_objects() {
    let mut sim = Sim::new(3);
    let shirts = define(&mut sim, "shirts", "Shirt", &[]);
    let object = |name: &str, finalizers: Value| json!({"metadata": {"name": name, "finalizers": finalizers}});
    let held = sim.put_json("example.com", "shirts", object("held", json!(["example.com/wait"])));
    let free = sim.put_json("example.com", "shirts", object("free", Value::Null));
    let other = sim.put_json("example.com", "shirtsleeves", object("other", Value::Null));
    sim.settle();
    let now = sim.now.to_string();
    sim.edit(&shirts, |definition| {
        definition["metadata"]["deletionTimestamp"] = now.into();
        definition["metadata"]["finalizers"] = json!([CLEANUP]);
    });
    sim.settle();
    assert!(!sim.store.contains_key(&free));
    assert_eq!(condition(&sim, &shirts, "Terminating"), "True InstanceDeletionInProgress");
    let waiting: Value = sim.get(&held);
    assert!(waiting["metadata"]["deletionTimestamp"].is_string());
    sim.delete(&held);
    sim.settle();
    assert!(!sim.store.contains_key(&shirts));
    assert!(sim.store.contains_key(&other));
    assert_eq!(shirts, keys::definition("shirts.example.com"));
    assert_eq!(shirts.collection(), GroupResource::new("apiextensions.k8s.io", "customresourcedefinitions"));
}
