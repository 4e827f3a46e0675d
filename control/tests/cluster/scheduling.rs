//! Where pods go, and what is said when they go nowhere.

use flotilla_control::{Liveness, keys};
use serde_json::{Value, json};

use crate::sim::{Sim, condition};

fn pod(name: &str, spec: Value) -> Value {
    let mut spec = spec;
    spec["containers"] = json!([{"name": "a", "image": "a", "resources": spec["r"], "ports": spec["p"]}]);
    spec.as_object_mut().unwrap().remove("r");
    spec.as_object_mut().unwrap().remove("p");
    json!({"metadata": {"name": name}, "spec": spec})
}

fn memory(amount: &str) -> Value {
    json!({"r": {"requests": {"memory": amount}}})
}

fn node_of(sim: &Sim, name: &str) -> Option<String> {
    let pod: Value = sim.get(&keys::pod("default", name));
    pod["spec"]["nodeName"].as_str().map(str::to_owned)
}

fn refusal(sim: &Sim, name: &str) -> String {
    let pod: Value = sim.get(&keys::pod("default", name));
    let scheduled = condition(&pod, "PodScheduled");
    assert_eq!((&scheduled["status"], &scheduled["reason"]), (&json!("False"), &json!("Unschedulable")));
    scheduled["message"].as_str().unwrap().to_owned()
}

#[test]
fn refusals_are_words_and_written_once() {
    let mut sim = Sim::with_nodes(1, 3);
    sim.edit(&keys::node("n3"), |node| node["spec"]["unschedulable"] = true.into());
    sim.put_json("", "pods", pod("big", memory("9Gi")));
    sim.settle();
    assert_eq!(refusal(&sim, "big"), "0/3 nodes are available: 1 node(s) were unschedulable, 2 Insufficient memory.");
    for _ in 0..3 {
        sim.view.mark_all();
        sim.settle();
    }
    assert_eq!(sim.events("FailedScheduling").len(), 1);
    sim.edit(&keys::node("n3"), |node| {
        node["spec"]["unschedulable"] = false.into();
        node["status"]["allocatable"]["memory"] = "16Gi".into();
    });
    sim.settle();
    assert_eq!(node_of(&sim, "big").as_deref(), Some("n3"));
    let pod: Value = sim.get(&keys::pod("default", "big"));
    assert_eq!(condition(&pod, "PodScheduled")["status"], "True");
    assert!(condition(&pod, "PodScheduled")["message"].is_null());
}

#[test]
fn nodes_are_filled_one_after_the_other() {
    let mut sim = Sim::with_nodes(2, 3);
    for index in 0..6 {
        sim.put_json("", "pods", pod(&format!("p{index}"), memory("2Gi")));
        sim.settle();
    }
    let mut spread: Vec<usize> = sim.spread().into_values().collect();
    spread.sort_unstable();
    assert_eq!(spread, [2, 4]);
    sim.put_json("", "pods", pod("large", memory("8Gi")));
    sim.settle();
    assert!(node_of(&sim, "large").is_some(), "room was kept for it");
}

#[test]
fn selectors_affinity_taints_and_ports() {
    let mut sim = Sim::with_nodes(3, 3);
    sim.edit(&keys::node("n1"), |node| node["metadata"]["labels"]["disk"] = "ssd".into());
    sim.edit(&keys::node("n2"), |node| {
        node["spec"]["taints"] = json!([{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]);
    });
    sim.put_json("", "pods", pod("fast", json!({"nodeSelector": {"disk": "ssd"}})));
    let affinity = |operator: &str| {
        json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "disk", "operator": operator}]}]}}}})
    };
    sim.put_json("", "pods", pod("slow", affinity("DoesNotExist")));
    let tolerant = json!({"tolerations": [{"key": "gpu", "operator": "Exists"}],
        "nodeSelector": {"kubernetes.io/hostname": "n2"}});
    sim.put_json("", "pods", pod("gpu", tolerant));
    let port = || json!({"p": [{"containerPort": 80, "hostPort": 80, "protocol": "TCP"}]});
    for index in 0..3 {
        sim.put_json("", "pods", pod(&format!("port{index}"), port()));
    }
    sim.put_json("", "pods", pod("nowhere", json!({"nodeSelector": {"disk": "tape"}})));
    sim.settle();
    assert_eq!(node_of(&sim, "fast").as_deref(), Some("n1"));
    assert_eq!(node_of(&sim, "slow").as_deref(), Some("n3"));
    assert_eq!(node_of(&sim, "gpu").as_deref(), Some("n2"));
    let bound = (0..3).filter(|index| node_of(&sim, &format!("port{index}")).is_some()).count();
    assert_eq!(bound, 2);
    assert_eq!(
        refusal(&sim, "port2"),
        "0/3 nodes are available: 1 node(s) had untolerated taint {gpu: yes}, 2 node(s) didn't have free ports for the \
         requested pod ports."
    );
    assert_eq!(
        refusal(&sim, "nowhere"),
        "0/3 nodes are available: 1 node(s) had untolerated taint {gpu: yes}, 2 node(s) didn't match Pod's node \
         affinity/selector."
    );
}

#[test]
fn priority_goes_before_age() {
    let mut sim = Sim::with_nodes(4, 1);
    sim.put_json("", "pods", pod("old", memory("8Gi")));
    sim.advance(1);
    let mut urgent = memory("8Gi");
    urgent["priority"] = 10.into();
    sim.put_json("", "pods", pod("urgent", urgent));
    sim.settle();
    assert_eq!(node_of(&sim, "urgent").as_deref(), Some("n1"));
    assert_eq!(refusal(&sim, "old"), "0/1 nodes are available: 1 Insufficient memory.");
    sim.delete(&keys::pod("default", "urgent"));
    sim.settle();
    assert_eq!(node_of(&sim, "old").as_deref(), Some("n1"));
}

#[test]
fn silent_nodes_are_avoided_before_they_are_tainted() {
    let mut sim = Sim::with_nodes(5, 2);
    sim.hear("n1", Liveness::Suspect);
    sim.put_json("", "pods", pod("a", json!({})));
    sim.settle();
    assert_eq!(node_of(&sim, "a").as_deref(), Some("n2"));
    sim.hear("n2", Liveness::Dead);
    sim.put_json("", "pods", pod("b", json!({})));
    sim.settle();
    assert_eq!(node_of(&sim, "b").as_deref(), Some("n1"), "a suspect is better than none");
    sim.hear("n1", Liveness::Dead);
    sim.put_json("", "pods", pod("c", json!({})));
    sim.settle();
    assert_eq!(
        refusal(&sim, "c"),
        "0/2 nodes are available: 2 node(s) had untolerated taint {node.kubernetes.io/unreachable: }."
    );
}

#[test]
fn without_nodes_there_is_a_reason_too() {
    let mut sim = Sim::new(6);
    sim.put_json("", "pods", pod("a", json!({})));
    sim.settle();
    assert_eq!(refusal(&sim, "a"), "no nodes available to schedule pods");
    sim.add_node("n1");
    sim.settle();
    assert_eq!(node_of(&sim, "a").as_deref(), Some("n1"));
}

#[test]
fn gates_and_other_schedulers_are_respected() {
    let mut sim = Sim::with_nodes(7, 1);
    sim.put_json("", "pods", pod("gated", json!({"schedulingGates": [{"name": "x"}]})));
    sim.put_json("", "pods", pod("foreign", json!({"schedulerName": "other"})));
    sim.settle();
    assert_eq!((node_of(&sim, "gated"), node_of(&sim, "foreign")), (None, None));
}

#[test]
fn a_node_holds_no_more_pods_than_it_says() {
    let mut sim = Sim::with_nodes(8, 1);
    sim.edit(&keys::node("n1"), |node| node["status"]["allocatable"]["pods"] = "2".into());
    for index in 0..3 {
        sim.put_json("", "pods", pod(&format!("p{index}"), json!({})));
    }
    sim.settle();
    assert_eq!(sim.active().iter().filter(|pod| pod.spec.as_ref().unwrap().node_name.is_some()).count(), 2);
    assert_eq!(refusal(&sim, "p2"), "0/1 nodes are available: 1 Too many pods.");
}
