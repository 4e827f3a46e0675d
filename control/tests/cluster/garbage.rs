//! What goes with its owner, what is let go, and how a namespace ends.

use flotilla_api::{GroupResource, Key};
use flotilla_control::{Work, keys};
use serde_json::{Value, json};

use crate::sim::{Sim, deployment};

fn config_map(name: &str, owner: Option<(&str, &str)>) -> Value {
    let mut value = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "b"}});
    if let Some((name, uid)) = owner {
        value["metadata"]["ownerReferences"] =
            json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": uid, "blockOwnerDeletion": true}]);
    }
    value
}

fn map_key(name: &str) -> Key {
    Key::new(&GroupResource::new("", "configmaps"), "default", name)
}

fn uid(sim: &Sim, key: &Key) -> String {
    sim.get::<Value>(key)["metadata"]["uid"].as_str().unwrap().to_owned()
}

#[test]
fn dependents_follow_their_owner_through_generations() {
    let mut sim = Sim::with_nodes(1, 2);
    let key = sim.put_json("apps", "deployments", deployment("web", 3, "a"));
    sim.run();
    sim.delete(&key);
    sim.run();
    sim.assert_settled();
    assert!(sim.replica_sets().is_empty());
    assert!(sim.pods().is_empty());
}

#[test]
fn any_kind_is_collected_and_strangers_stay() {
    let mut sim = Sim::new(2);
    let owner = sim.put_json("", "configmaps", config_map("owner", None));
    let uid = uid(&sim, &owner);
    sim.put_json("", "configmaps", config_map("child", Some(("owner", &uid))));
    sim.put_json("", "configmaps", config_map("stranger", None));
    sim.put_json("", "configmaps", config_map("orphan", Some(("owner", "never-was"))));
    sim.settle();
    assert!(!sim.store.contains_key(&map_key("orphan")));
    assert!(sim.store.contains_key(&map_key("child")));
    sim.delete(&owner);
    sim.settle();
    assert!(!sim.store.contains_key(&map_key("child")));
    assert!(sim.store.contains_key(&map_key("stranger")));
}

fn mark_deleted(sim: &mut Sim, key: &Key, finalizer: &str) {
    sim.edit(key, |value| {
        value["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        value["metadata"]["finalizers"] = json!([finalizer]);
    });
}

#[test]
fn foreground_deletion_waits_for_dependents() {
    let mut sim = Sim::with_nodes(3, 2);
    let key = sim.put_json("apps", "deployments", deployment("web", 3, "a"));
    sim.run();
    mark_deleted(&mut sim, &key, "foregroundDeletion");
    sim.settle();
    assert!(sim.store.contains_key(&key), "its ReplicaSet blocks it");
    sim.run();
    sim.assert_settled();
    assert!(!sim.store.contains_key(&key));
    assert!(sim.replica_sets().is_empty());
}

#[test]
fn orphaned_dependents_stay_without_owner() {
    let mut sim = Sim::with_nodes(4, 2);
    let key = sim.put_json("apps", "deployments", deployment("web", 3, "a"));
    sim.run();
    mark_deleted(&mut sim, &key, "orphan");
    sim.run();
    sim.assert_settled();
    assert!(!sim.store.contains_key(&key));
    let sets = sim.replica_sets();
    assert_eq!(sets.len(), 1);
    assert!(sets[0].metadata.owner_references.as_ref().is_none_or(Vec::is_empty));
    assert_eq!(sim.active().len(), 3);
}

#[test]
fn a_namespace_goes_with_all_that_is_in_it() {
    let mut sim = Sim::with_nodes(5, 2);
    sim.put_json("apps", "deployments", deployment("web", 3, "a"));
    sim.put_json("", "configmaps", config_map("settings", None));
    sim.run();
    let key = keys::namespace("default");
    sim.edit(&key, |value| {
        value["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        value["spec"]["finalizers"] = json!(["kubernetes"]);
    });
    sim.settle();
    let namespace: Value = sim.get(&key);
    assert_eq!(namespace["status"]["phase"], "Terminating");
    sim.run();
    sim.assert_settled();
    assert!(!sim.store.contains_key(&key));
    assert!(sim.store.keys().all(|key| key.namespace() != "default"), "{:?}", sim.store.keys());
}

#[test]
fn finished_pods_are_kept_up_to_a_number() {
    let mut sim = Sim::with_nodes(6, 1);
    sim.settings.finished_pods_kept = 3;
    for index in 0..6 {
        let key = sim.put_json(
            "",
            "pods",
            json!({"metadata": {"name": format!("p{index}")},
            "spec": {"containers": [{"name": "a", "image": "a"}]}}),
        );
        sim.settle();
        sim.set_phase(&key, "Succeeded");
        sim.advance(1);
    }
    sim.settle();
    let names: Vec<String> = sim.pods().into_iter().map(|pod| pod.metadata.name.unwrap()).collect();
    assert_eq!(names, ["p3", "p4", "p5"]);
}

#[test]
fn bytes_that_do_not_decode_are_remembered_and_keep_what_they_own() {
    let mut sim = Sim::with_nodes(7, 1);
    let key = sim.put_json("apps", "deployments", deployment("web", 2, "a"));
    sim.run();
    let uid = uid(&sim, &key);
    let broken = json!({"metadata": {"name": "web", "namespace": "default", "uid": uid}, "spec": {"replicas": "many"}});
    sim.revision += 1;
    sim.view.observe(&key, Some((&serde_json::to_vec(&broken).unwrap(), sim.revision)));
    assert!(sim.view.unreadable().contains_key(&key));
    sim.view.mark_all();
    sim.settle();
    assert_eq!(sim.active().len(), 2, "its pods are not taken for garbage");
    for bytes in [&b"\xff\xfe"[..], b"[]", b"{", b"null", b"{\"metadata\":[]}"] {
        sim.revision += 1;
        sim.view.observe(&key, Some((bytes, sim.revision)));
        sim.view.mark(Work::Deployment(key.clone()));
        sim.view.mark_all();
        sim.settle();
        assert!(sim.view.unreadable().contains_key(&key));
    }
    assert_eq!(sim.replica_sets().len(), 1);
    let (bytes, revision) = sim.store[&key].clone();
    sim.view.observe(&key, Some((&bytes, revision)));
    assert!(sim.view.unreadable().is_empty());
    sim.run();
    assert_eq!(sim.active().len(), 2);
}
