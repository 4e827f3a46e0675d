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

#[test]
fn an_owner_that_is_gone_is_forgotten_while_another_is_there() {
    let mut sim = Sim::new(11);
    let owner = sim.put_json("", "configmaps", config_map("owner", None));
    let uid = uid(&sim, &owner);
    let mut child = config_map("child", Some(("owner", &uid)));
    let gone = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "gone", "uid": "never-was"});
    child["metadata"]["ownerReferences"].as_array_mut().unwrap().push(gone);
    let child = sim.put_json("", "configmaps", child);
    sim.settle();
    let owners = sim.get::<Value>(&child)["metadata"]["ownerReferences"].clone();
    assert_eq!((owners.as_array().unwrap().len(), &owners[0]["name"]), (1, &json!("owner")));
}

#[test]
fn owners_across_namespaces() {
    let mut sim = Sim::new(12);
    let owner = sim.put_json("", "configmaps", config_map("owner", None));
    let uid = uid(&sim, &owner);
    // A namespaced object cannot belong to one of another namespace.
    let mut stray = config_map("stray", Some(("owner", &uid)));
    stray["metadata"]["namespace"] = "other".into();
    sim.put_json("", "namespaces", json!({"metadata": {"name": "other"}}));
    let stray = sim.put_json("", "configmaps", stray);
    // One of the cluster cannot belong to one of a namespace, but it cannot be told that this is gone.
    let mut role = config_map("role", Some(("nobody", "never-was")));
    role["kind"] = "ClusterRole".into();
    let role = sim.put_json("rbac.authorization.k8s.io", "clusterroles", role);
    sim.settle();
    assert!(!sim.store.contains_key(&stray));
    assert!(sim.store.contains_key(&role));
}

#[test]
fn a_namespace_says_what_keeps_it() {
    let mut sim = Sim::new(13);
    sim.put_json("", "namespaces", json!({"metadata": {"name": "n"}, "spec": {"finalizers": ["kubernetes"]}}));
    for name in ["a", "b"] {
        let mut held = config_map(name, None);
        held["metadata"]["namespace"] = "n".into();
        held["metadata"]["finalizers"] = json!(["example.com/x"]);
        sim.put_json("", "configmaps", held);
    }
    let key = keys::namespace("n");
    sim.edit(&key, |value| value["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into());
    sim.settle();
    sim.assert_settled();
    let value: Value = sim.get(&key);
    let told = |kind: &str| crate::sim::condition(&value, kind)["message"].as_str().unwrap().to_owned();
    assert_eq!(told("NamespaceContentRemaining"), "Some resources are remaining: configmaps. has 2 resource instances");
    let words = "Some content in the namespace has finalizers remaining: example.com/x in 2 resource instances";
    assert_eq!(told("NamespaceFinalizersRemaining"), words);
    assert_eq!(told("NamespaceDeletionDiscoveryFailure"), "All resources successfully discovered");
    for name in ["a", "b"] {
        let key = Key::new(&GroupResource::new("", "configmaps"), "n", name);
        sim.edit(&key, |value| value["metadata"]["finalizers"] = json!([]));
    }
    sim.settle();
    for name in ["a", "b"] {
        // The gate takes away what waited for its last finalizer.
        sim.delete(&Key::new(&GroupResource::new("", "configmaps"), "n", name));
    }
    sim.settle();
    assert!(!sim.store.contains_key(&key));
}
