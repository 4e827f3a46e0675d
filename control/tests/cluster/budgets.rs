//! PodDisruptionBudgets and ReplicationControllers.

use flotilla_control::keys;
use serde_json::{Value, json};

use crate::sim::{Sim, condition, deployment, template};

fn budget(spec: Value) -> Value {
    let mut spec = spec;
    spec["selector"] = json!({"matchLabels": {"app": "web"}});
    json!({"metadata": {"name": "b"}, "spec": spec})
}

fn status(sim: &Sim) -> Value {
    sim.get::<Value>(&keys::budget("default", "b"))["status"].clone()
}

/// Expected, healthy, desired, allowed.
fn numbers(sim: &Sim) -> [i64; 4] {
    let status = status(sim);
    ["expectedPods", "currentHealthy", "desiredHealthy", "disruptionsAllowed"]
        .map(|field| status[field].as_i64().unwrap())
}

#[test]
fn a_budget_follows_the_pods() {
    let mut sim = Sim::with_nodes(1, 2);
    sim.put_json("apps", "deployments", deployment("web", 4, "a"));
    sim.put_json("policy", "poddisruptionbudgets", budget(json!({"minAvailable": 3})));
    sim.settle();
    assert_eq!(numbers(&sim), [4, 0, 3, 0], "nothing runs yet");
    sim.run();
    sim.assert_settled();
    assert_eq!(numbers(&sim), [4, 4, 3, 1]);
    let value: Value = sim.get(&keys::budget("default", "b"));
    assert_eq!(condition(&value, "DisruptionAllowed")["reason"], "SufficientPods");
    let pod = sim.pods()[0].metadata.name.clone().unwrap();
    sim.set_phase(&keys::pod("default", &pod), "Pending");
    sim.settle();
    assert_eq!(numbers(&sim), [4, 3, 3, 0]);
    for (spec, expected) in [
        (json!({"maxUnavailable": "50%"}), [4, 4, 2, 2]),
        (json!({"maxUnavailable": 1}), [4, 4, 3, 1]),
        (json!({"minAvailable": "30%"}), [4, 4, 2, 2]),
        (json!({"minAvailable": 9}), [4, 4, 9, 0]),
    ] {
        sim.put_json("policy", "poddisruptionbudgets", budget(spec.clone()));
        sim.run();
        assert_eq!(numbers(&sim), expected, "{spec}");
    }
}

#[test]
fn an_allowed_eviction_counts_until_it_shows() {
    let mut sim = Sim::with_nodes(2, 2);
    sim.put_json("apps", "deployments", deployment("web", 3, "a"));
    sim.put_json("policy", "poddisruptionbudgets", budget(json!({"minAvailable": 1})));
    sim.run();
    assert_eq!(numbers(&sim), [3, 3, 1, 2]);
    let pod = sim.pods()[0].metadata.name.clone().unwrap();
    let now = sim.now.to_string();
    sim.edit(&keys::budget("default", "b"), |budget| budget["status"]["disruptedPods"] = json!({&pod: now}));
    sim.settle();
    assert_eq!(numbers(&sim), [3, 2, 1, 1]);
    // It never showed.
    sim.advance(121);
    sim.settle();
    assert_eq!(numbers(&sim), [3, 3, 1, 2]);
    assert!(status(&sim)["disruptedPods"].is_null());
}

#[test]
fn a_pod_without_a_controller_does_not_switch_a_budget_off() {
    let mut sim = Sim::with_nodes(3, 1);
    sim.put_json("apps", "deployments", deployment("web", 3, "a"));
    let mut pod = template("web", "a");
    pod["metadata"]["name"] = "lone".into();
    sim.put_json("", "pods", pod);
    sim.put_json("policy", "poddisruptionbudgets", budget(json!({"maxUnavailable": 1})));
    sim.run();
    sim.assert_settled();
    assert_eq!(numbers(&sim), [3, 4, 2, 2]);
    assert_eq!(sim.events("UnmanagedPods").len(), 1);
}

#[test]
fn pods_of_a_controller_without_a_scale_cannot_be_counted_in_percent() {
    let mut sim = Sim::with_nodes(3, 1);
    let mut pod = template("web", "a");
    pod["metadata"]["name"] = "p".into();
    pod["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": "u", "controller": true}]);
    let job =
        json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"managedBy": "x/y", "template": template("web", "a")}});
    sim.put_json("batch", "jobs", job);
    sim.put_json("", "pods", pod);
    sim.put_json("policy", "poddisruptionbudgets", budget(json!({"maxUnavailable": 1})));
    sim.settle();
    let value: Value = sim.get(&keys::budget("default", "b"));
    let failed = condition(&value, "DisruptionAllowed");
    assert_eq!((&failed["status"], &failed["reason"]), (&json!("False"), &json!("SyncFailed")));
    assert_eq!(failed["message"], "job does not implement the scale subresource");
    assert_eq!(status(&sim)["disruptionsAllowed"], 0);
}

#[test]
fn a_replication_controller_keeps_its_number() {
    let mut sim = Sim::with_nodes(4, 2);
    let controller = |replicas: i32| json!({"metadata": {"name": "web"}, "spec": {"replicas": replicas, "selector": {"app": "web"}, "template": template("web", "a")}});
    let key = sim.put_json("", "replicationcontrollers", controller(3));
    sim.put_json("policy", "poddisruptionbudgets", budget(json!({"maxUnavailable": 1})));
    sim.run();
    sim.assert_settled();
    assert_eq!(sim.active().len(), 3);
    let value: Value = sim.get(&key);
    assert_eq!((&value["status"]["replicas"], &value["status"]["availableReplicas"]), (&json!(3), &json!(3)));
    assert!(value["spec"]["selector"]["matchLabels"].is_null(), "it keeps its own form");
    let owner = &sim.pods()[0].metadata.owner_references.clone().unwrap()[0];
    assert_eq!((owner.kind.as_str(), owner.api_version.as_str()), ("ReplicationController", "v1"));
    assert_eq!(numbers(&sim), [3, 3, 2, 1]);
    let lost = sim.pods()[0].metadata.name.clone().unwrap();
    sim.delete(&keys::pod("default", &lost));
    sim.run();
    assert_eq!(sim.active().len(), 3);
    sim.put_json("", "replicationcontrollers", controller(1));
    sim.run();
    assert_eq!(sim.active().len(), 1);
    sim.delete(&key);
    sim.run();
    assert!(sim.pods().is_empty());
}
