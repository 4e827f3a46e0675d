//! Nodes that fall silent, come back, are cordoned, are removed.

use flotilla_api::k8s_openapi::api::core::v1::Node;
use flotilla_control::{Liveness, keys, readiness_of};
use serde_json::{Value, json};

use crate::sim::{Sim, condition, deployment, template};

fn taints(sim: &Sim, name: &str) -> Vec<String> {
    let node: Node = sim.get(&keys::node(name));
    let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
    taints.into_iter().map(|taint| format!("{}:{}", taint.key, taint.effect)).collect()
}

#[test]
fn a_dead_nodes_work_moves_and_no_name_runs_twice() {
    let mut sim = Sim::with_nodes(1, 3);
    sim.put_json("apps", "deployments", deployment("web", 6, "a"));
    sim.run();
    sim.hear("n2", Liveness::Dead);
    sim.run();
    let spread = sim.spread();
    assert_eq!(spread.get("n2"), None);
    assert_eq!(spread.values().sum::<usize>(), 6);
    assert_eq!(spread.values().max(), Some(&3));
    let stuck: Vec<_> = sim.pods().into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_some()).collect();
    assert_eq!(stuck.len(), 2, "they stay until their node confirms");
    let node: Value = sim.get(&keys::node("n2"));
    assert_eq!(condition(&node, "Ready")["status"], "Unknown");
    assert_eq!(condition(&node, "Ready")["reason"], "NodeStatusUnknown");
    let unreachable = "node.kubernetes.io/unreachable";
    assert_eq!(taints(&sim, "n2"), [format!("{unreachable}:NoSchedule"), format!("{unreachable}:NoExecute")]);
    assert_eq!(sim.events("TaintManagerEviction").len(), 2);
    assert_eq!(sim.events("NodeNotReady").len(), 1);
    sim.hear("n2", Liveness::Alive);
    sim.run();
    sim.assert_settled();
    let node: Node = sim.get(&keys::node("n2"));
    assert_eq!(readiness_of(&node), Some("True"));
    assert!(taints(&sim, "n2").is_empty());
    assert_eq!(sim.pods().len(), 6, "the stale ones are gone");
}

#[test]
fn a_toleration_counts_from_when_a_person_added_the_taint() {
    let mut sim = Sim::with_nodes(2, 2);
    let mut spec = template("web", "a")["spec"].clone();
    spec["nodeName"] = json!("n1");
    spec["tolerations"] = json!([{"key": "out", "operator": "Exists", "tolerationSeconds": 60}]);
    sim.put_json("", "pods", json!({"metadata": {"name": "patient"}, "spec": spec}));
    sim.run();
    sim.edit(&keys::node("n1"), |node| node["spec"]["taints"] = json!([{"key": "out", "effect": "NoExecute"}]));
    sim.run();
    sim.assert_settled();
    sim.advance(59);
    sim.run();
    assert_eq!(sim.events("TaintManagerEviction").len(), 0);
    sim.advance(1);
    sim.run();
    assert_eq!(sim.events("TaintManagerEviction").len(), 1);
}

#[test]
fn explicit_tolerations_are_honoured() {
    let mut sim = Sim::with_nodes(2, 2);
    let mut value = deployment("web", 2, "a");
    value["spec"]["template"]["spec"]["tolerations"] =
        json!([{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "tolerationSeconds": 60}]);
    sim.put_json("apps", "deployments", value);
    sim.run();
    sim.hear("n1", Liveness::Dead);
    sim.run();
    assert_eq!(sim.spread().get("n1"), Some(&1), "it may stay a minute");
    let pods = sim.pods();
    let pod = pods.iter().find(|pod| pod.spec.as_ref().unwrap().node_name.as_deref() == Some("n1")).unwrap();
    let pod: Value = sim.get(&keys::pod("default", pod.metadata.name.as_deref().unwrap()));
    assert_eq!(condition(&pod, "Ready")["status"], "False", "nobody knows how it is");
    sim.advance(60);
    sim.run();
    assert_eq!(sim.spread().get("n1"), None);
}

#[test]
fn when_most_nodes_are_silent_pods_move_one_node_at_a_time() {
    let mut sim = Sim::with_nodes(3, 5);
    sim.put_json("apps", "deployments", deployment("web", 10, "a"));
    sim.run();
    for name in ["n1", "n2", "n3"] {
        sim.hear(name, Liveness::Dead);
    }
    sim.run();
    let told = |sim: &Sim| taints_of_effect(sim, "NoExecute");
    assert_eq!(told(&sim), 1);
    assert_eq!(taints_of_effect(&sim, "NoSchedule"), 3);
    sim.advance(29);
    sim.run();
    assert_eq!(told(&sim), 1);
    sim.advance(2);
    sim.run();
    assert_eq!(told(&sim), 2);
    for name in ["n1", "n2", "n3"] {
        sim.hear(name, Liveness::Alive);
    }
    sim.run();
    sim.assert_settled();
    assert_eq!((told(&sim), sim.active().len()), (0, 10));
}

fn taints_of_effect(sim: &Sim, effect: &str) -> usize {
    let nodes = sim.nodes().into_iter().filter_map(|node| node.spec?.taints);
    nodes.flatten().filter(|taint| taint.effect == effect).count()
}

#[test]
fn a_cordoned_node_keeps_its_pods_and_gets_no_more() {
    let mut sim = Sim::with_nodes(4, 2);
    sim.put_json("apps", "deployments", deployment("web", 4, "a"));
    sim.run();
    sim.edit(&keys::node("n1"), |node| node["spec"]["unschedulable"] = true.into());
    sim.put_json("apps", "deployments", deployment("web", 8, "a"));
    sim.run();
    sim.assert_settled();
    assert_eq!(sim.spread(), [("n1".to_owned(), 2), ("n2".to_owned(), 6)].into());
    assert_eq!(taints(&sim, "n1"), ["node.kubernetes.io/unschedulable:NoSchedule"]);
    sim.edit(&keys::node("n1"), |node| node["spec"]["unschedulable"] = false.into());
    sim.run();
    assert!(taints(&sim, "n1").is_empty());
}

#[test]
fn a_node_that_says_it_is_not_ready_loses_its_pods() {
    let mut sim = Sim::with_nodes(5, 2);
    sim.put_json("apps", "deployments", deployment("web", 4, "a"));
    sim.run();
    sim.edit(&keys::node("n1"), |node| {
        node["status"]["conditions"][0]["status"] = "False".into();
    });
    sim.run();
    sim.assert_settled();
    assert_eq!(sim.spread(), [("n2".to_owned(), 4)].into());
}

#[test]
fn every_node_gets_an_own_range() {
    let mut sim = Sim::with_nodes(6, 4);
    sim.delete(&keys::node("n2"));
    sim.add_node("n9");
    sim.run();
    let mut ranges: Vec<String> = sim.nodes().into_iter().map(|node| node.spec.unwrap().pod_cidr.unwrap()).collect();
    ranges.sort();
    assert_eq!(ranges, ["10.244.0.0/24", "10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24"]);
}

#[test]
fn pods_of_a_removed_node_are_garbage() {
    let mut sim = Sim::with_nodes(7, 2);
    sim.put_json("apps", "deployments", deployment("web", 4, "a"));
    sim.run();
    sim.hear("n1", Liveness::Dead);
    sim.run();
    sim.delete(&keys::node("n1"));
    sim.liveness.remove("n1");
    sim.run();
    sim.assert_settled();
    assert_eq!(sim.pods().len(), 4);
    assert_eq!(sim.spread(), [("n2".to_owned(), 4)].into());
}
