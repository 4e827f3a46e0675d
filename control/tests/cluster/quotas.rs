//! ResourceQuotas, LimitRanges and PriorityClasses, as planners keep to them.

use flotilla_control::keys;
use serde_json::{Value, json};

use crate::sim::{Sim, condition, deployment, template};

fn set(name: &str, replicas: i32) -> Value {
    json!({"metadata": {"name": name}, "spec": {"replicas": replicas,
        "selector": {"matchLabels": {"app": name}}, "template": template(name, "a")}})
}

fn quota(hard: Value) -> Value {
    json!({"metadata": {"name": "q"}, "spec": {"hard": hard}})
}

fn used(sim: &Sim) -> Value {
    sim.get::<Value>(&keys::quota("default", "q"))["status"]["used"].clone()
}

#[test]
fn a_quota_counts_what_is_there() {
    let mut sim = Sim::with_nodes(1, 2);
    for name in ["a", "kube-root-ca.crt"] {
        sim.put_json("", "configmaps", json!({"metadata": {"name": name}}));
    }
    sim.put_json(
        "",
        "services",
        json!({"metadata": {"name": "s"}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}}),
    );
    sim.put_json("apps", "replicasets", set("s", 3));
    sim.run();
    let hard = json!({"pods": "10", "requests.cpu": "2", "configmaps": "5", "services.nodeports": "2",
        "count/configmaps": "5", "count/replicasets.apps": "2", "count/deployments.apps": "2", "count/pods": "9"});
    sim.put_json("", "resourcequotas", quota(hard));
    sim.run();
    sim.assert_settled();
    let expected = json!({"pods": "3", "requests.cpu": "300m", "configmaps": "2", "services.nodeports": "1",
        "count/configmaps": "2", "count/replicasets.apps": "1", "count/deployments.apps": "0", "count/pods": "3"});
    assert_eq!(used(&sim), expected);
    let pod = sim.pods()[0].metadata.name.clone().unwrap();
    sim.put_json("apps", "replicasets", set("s", 2));
    sim.set_phase(&keys::pod("default", &pod), "Succeeded");
    sim.run();
    assert_eq!(used(&sim)["pods"], "2", "what has ended takes nothing");
}

#[test]
fn sets_share_what_a_quota_leaves_and_no_more() {
    for seed in 0..5 {
        let mut sim = Sim::with_nodes(seed, 2);
        sim.put_json("", "resourcequotas", quota(json!({"pods": "5"})));
        sim.settle();
        sim.check = |sim| assert!(sim.active().len() <= 5, "the quota is overdrawn");
        let one = sim.put_json("apps", "replicasets", set("a", 4));
        sim.put_json("apps", "replicasets", set("b", 4));
        sim.run();
        assert_eq!(sim.active().len(), 5);
        let refused = ["a", "b"].iter().filter(|name| {
            let value: Value = sim.get(&keys::replica_set("default", name));
            let failure = condition(&value, "ReplicaFailure");
            failure["message"].as_str().is_some_and(|words| {
                words.contains("exceeded quota: q, requested: pods=1, used: pods=5, limited: pods=5")
            })
        });
        assert!(refused.count() > 0);
        // Room that comes free is taken without anybody asking.
        sim.delete(&one);
        sim.run();
        sim.advance(3);
        sim.run();
        assert_eq!(sim.active().len(), 4, "seed {seed}");
    }
}

#[test]
fn a_deployment_says_that_a_quota_refuses_its_set() {
    let mut sim = Sim::with_nodes(8, 1);
    sim.put_json("", "resourcequotas", quota(json!({"count/replicasets.apps": "1"})));
    sim.settle();
    let one = sim.put_json("apps", "deployments", deployment("one", 1, "a"));
    sim.run();
    let key = sim.put_json("apps", "deployments", deployment("two", 1, "a"));
    sim.run();
    sim.assert_settled();
    assert_eq!(sim.replica_sets().len(), 1);
    let two: Value = sim.get(&key);
    let progress = condition(&two, "Progressing");
    assert_eq!(
        (progress["status"].as_str(), progress["reason"].as_str()),
        (Some("False"), Some("ReplicaSetCreateError"))
    );
    let words = progress["message"].as_str().unwrap();
    let name = words.split('"').nth(1).unwrap();
    let count = |word: &str| format!("{word}: count/replicasets.apps=1");
    let expected = format!(
        "Failed to create new replica set \"{name}\": replicasets.apps \"{name}\" is forbidden: exceeded quota: q, {}, {}, {}",
        count("requested"),
        count("used"),
        count("limited")
    );
    assert_eq!(words, expected);
    sim.advance(3);
    sim.run();
    let events = sim.events("ReplicaSetCreateError");
    assert_eq!((events.len(), events[0].type_.as_deref()), (1, Some("Warning")));

    let set = keys::replica_set("default", sim.replica_sets()[0].metadata.name.as_deref().unwrap());
    sim.delete(&one);
    sim.delete(&set);
    sim.run();
    sim.advance(3);
    sim.run();
    assert_eq!(sim.deployment("two").status.unwrap().available_replicas, Some(1));
    assert_eq!(used(&sim)["count/replicasets.apps"], "1");
}

#[test]
fn the_systems_own_classes_are_there_and_stay() {
    let mut sim = Sim::new(6);
    sim.view.mark_all();
    sim.settle();
    let key = keys::priority_class("system-node-critical");
    assert_eq!(sim.get::<Value>(&key)["value"], 2_000_001_000);
    sim.delete(&key);
    sim.settle();
    assert!(sim.store.contains_key(&key));
}

#[test]
fn new_pods_get_the_limits_and_the_priority_of_their_namespace() {
    let mut sim = Sim::with_nodes(3, 1);
    let limits =
        json!([{"type": "Container", "default": {"cpu": "1"}, "defaultRequest": {"ephemeral-storage": "1Gi"}}]);
    sim.put_json("", "limitranges", json!({"metadata": {"name": "l"}, "spec": {"limits": limits}}));
    let class = json!({"metadata": {"name": "usual"}, "value": 7, "globalDefault": true});
    sim.put_json("scheduling.k8s.io", "priorityclasses", class);
    sim.put_json("apps", "replicasets", set("s", 1));
    sim.run();
    let spec = sim.pods()[0].spec.clone().unwrap();
    assert_eq!((spec.priority, spec.priority_class_name.as_deref()), (Some(7), Some("usual")));
    let resources = spec.containers[0].resources.clone().unwrap();
    assert_eq!(resources.limits.unwrap()["cpu"].0, "1");
    assert_eq!(resources.requests.unwrap()["ephemeral-storage"].0, "1Gi");
}

#[test]
fn an_address_is_free_again_when_no_service_has_it() {
    let mut sim = Sim::new(7);
    sim.settle();
    assert!(sim.store.contains_key(&keys::service_cidr("kubernetes")));
    let service = json!({"metadata": {"name": "s"}, "spec": {"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"]}});
    let service = sim.put_json("", "services", service);
    for address in ["10.96.0.7", "10.96.0.8"] {
        let parent = json!({"resource": "services", "namespace": "default", "name": "s"});
        sim.put_json(
            "networking.k8s.io",
            "ipaddresses",
            json!({"metadata": {"name": address}, "spec": {"parentRef": parent}}),
        );
    }
    sim.settle();
    assert!(sim.store.contains_key(&keys::ip_address("10.96.0.7")));
    assert!(!sim.store.contains_key(&keys::ip_address("10.96.0.8")), "its service has another");
    sim.delete(&service);
    sim.settle();
    assert!(!sim.store.contains_key(&keys::ip_address("10.96.0.7")));
}
