//! ReplicaSets: numbers kept, orphans adopted, strangers left alone.

use std::collections::BTreeSet;

use flotilla_control::keys;
use serde_json::{Value, json};

use crate::sim::{Sim, condition, template};

fn set(replicas: i32) -> Value {
    json!({"metadata": {"name": "s"}, "spec": {"replicas": replicas,
        "selector": {"matchLabels": {"app": "s"}}, "template": template("s", "a")}})
}

#[test]
fn lost_and_failed_pods_are_replaced() {
    let mut sim = Sim::with_nodes(1, 2);
    sim.put_json("apps", "replicasets", set(4));
    sim.run();
    let names: Vec<String> = sim.pods().iter().map(|pod| pod.metadata.name.clone().unwrap()).collect();
    sim.delete(&keys::pod("default", &names[0]));
    sim.set_phase(&keys::pod("default", &names[1]), "Failed");
    sim.run();
    sim.assert_settled();
    assert_eq!(sim.active().len(), 4);
    assert_eq!(sim.pods().len(), 5, "the failed pod stays to be looked at");
    let status = sim.replica_sets()[0].status.clone().unwrap();
    assert_eq!((status.replicas, status.ready_replicas, status.available_replicas), (4, Some(4), Some(4)));
}

#[test]
fn orphans_are_adopted_and_strangers_released() {
    let mut sim = Sim::with_nodes(2, 2);
    let mut orphan = template("s", "a");
    orphan["metadata"]["name"] = "orphan".into();
    sim.put_json("", "pods", orphan);
    sim.put_json("apps", "replicasets", set(3));
    sim.run();
    assert_eq!(sim.active().len(), 3, "the orphan counts");
    let stray = sim.pods().into_iter().find(|pod| pod.metadata.name.as_deref() != Some("orphan")).unwrap();
    let key = keys::pod("default", stray.metadata.name.as_deref().unwrap());
    sim.edit(&key, |pod| pod["metadata"]["labels"]["app"] = "debug".into());
    sim.run();
    sim.assert_settled();
    assert_eq!(sim.active().len(), 4);
    let stray: Value = sim.get(&key);
    assert!(stray["metadata"]["ownerReferences"].is_null());
}

#[test]
fn those_go_first_that_are_missed_least() {
    let mut sim = Sim::with_nodes(3, 2);
    sim.put_json("apps", "replicasets", set(6));
    sim.settle();
    let keys: Vec<_> =
        sim.pods().iter().map(|pod| keys::pod("default", pod.metadata.name.as_deref().unwrap())).collect();
    for key in &keys[..4] {
        sim.set_phase(key, "Running");
    }
    sim.put_json("apps", "replicasets", set(4));
    sim.settle();
    let left: Vec<_> = sim.active().into_iter().map(|pod| keys::pod("default", &pod.metadata.name.unwrap())).collect();
    assert_eq!(left, keys[..4], "those that did not run yet went");
    sim.edit(&keys[2], |pod| {
        pod["metadata"]["annotations"] = json!({"controller.kubernetes.io/pod-deletion-cost": "-5"});
    });
    sim.put_json("apps", "replicasets", set(3));
    sim.settle();
    assert!(sim.active().iter().all(|pod| pod.metadata.name.as_deref() != Some(keys[2].name())));
}

#[test]
fn a_thousand_pods_come_and_go() {
    let mut sim = Sim::with_nodes(4, 10);
    sim.put_json("apps", "replicasets", set(400));
    sim.run();
    assert_eq!(sim.active().len(), 400);
    sim.put_json("apps", "replicasets", set(0));
    sim.run();
    sim.assert_settled();
    assert!(sim.pods().is_empty());
}

#[test]
fn nothing_is_created_in_a_namespace_that_is_not_there() {
    let mut sim = Sim::with_nodes(5, 1);
    let mut value = set(2);
    value["metadata"]["namespace"] = "nowhere".into();
    let key = sim.put_json("apps", "replicasets", value);
    sim.settle();
    let value: Value = sim.get(&key);
    let failure = condition(&value, "ReplicaFailure");
    assert_eq!(failure["reason"], "FailedCreate");
    assert_eq!(failure["message"], "namespaces \"nowhere\" not found");
    assert_eq!(sim.events("FailedCreate").len(), 1);
    assert!(sim.pods().is_empty());
}

#[test]
fn no_pod_is_made_before_its_account_is_there() {
    let mut sim = Sim::with_nodes(6, 1);
    let mut pods = template("s", "a");
    pods["spec"]["serviceAccountName"] = "nobody".into();
    let mut value = set(2);
    value["spec"]["template"] = pods.clone();
    let key = sim.put_json("apps", "replicasets", value.clone());
    value["spec"]["selector"] = json!({"app": "s"});
    sim.put_json("", "replicationcontrollers", value);
    pods["spec"]["restartPolicy"] = "Never".into();
    sim.put_json("batch", "jobs", json!({"metadata": {"name": "s"}, "spec": {"completions": 1, "template": pods}}));
    sim.settle();
    assert!(sim.pods().is_empty());
    let value: Value = sim.get(&key);
    let failure = condition(&value, "ReplicaFailure");
    let message = "pods \"s-\" is forbidden: error looking up service account default/nobody: \
                   serviceaccount \"nobody\" not found";
    assert_eq!((failure["reason"].as_str(), failure["message"].as_str()), (Some("FailedCreate"), Some(message)));
    let events = sim.events("FailedCreate");
    let kinds: BTreeSet<_> = events.iter().filter_map(|event| event.involved_object.kind.as_deref()).collect();
    assert_eq!(kinds.len(), 3);
    assert!(events.iter().all(|event| event.message.as_deref() == Some(&format!("Error creating: {message}"))));

    sim.put_json("", "serviceaccounts", json!({"metadata": {"name": "nobody"}}));
    sim.settle();
    assert_eq!(sim.pods().len(), 5, "at once");
    assert!(condition(&sim.get(&key), "ReplicaFailure").is_null());
}
