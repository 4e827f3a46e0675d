//! Deployments from their birth through rollouts, mistakes and scaling to their end.

use flotilla_api::k8s_openapi::api::apps::v1::Deployment;
use flotilla_control::keys;
use serde_json::{Value, json};

use crate::sim::{Sim, condition, deployment, is_ready};

fn put(sim: &mut Sim, value: Value) {
    sim.put_json("apps", "deployments", value);
}

fn raw(sim: &Sim, name: &str) -> Value {
    sim.get(&keys::deployment("default", name))
}

fn sizes(sim: &Sim) -> Vec<i32> {
    let mut sizes: Vec<i32> = sim.replica_sets().iter().map(|set| set.spec.replicas.unwrap()).collect();
    sizes.sort_unstable();
    sizes
}

#[test]
fn a_deployment_comes_up_and_says_so() {
    let mut sim = Sim::with_nodes(1, 3);
    put(&mut sim, deployment("web", 6, "nginx:1"));
    sim.settle();
    let early = raw(&sim, "web");
    assert_eq!(condition(&early, "Available")["status"], "False");
    assert_eq!(condition(&early, "Progressing")["reason"], "ReplicaSetUpdated");
    sim.run();
    sim.assert_settled();
    assert_eq!(sim.spread().into_values().collect::<Vec<_>>(), [2, 2, 2]);
    let status = sim.deployment("web").status.unwrap();
    assert_eq!(
        (status.replicas, status.updated_replicas, status.ready_replicas, status.available_replicas),
        (Some(6), Some(6), Some(6), Some(6))
    );
    assert_eq!((status.unavailable_replicas, status.observed_generation), (None, Some(1)));
    let web = raw(&sim, "web");
    assert_eq!(condition(&web, "Progressing")["reason"], "NewReplicaSetAvailable");
    assert_eq!(condition(&web, "Available")["reason"], "MinimumReplicasAvailable");
    assert_eq!(web["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "1");
    let set = &sim.replica_sets()[0];
    let hash = &set.metadata.labels.as_ref().unwrap()["pod-template-hash"];
    assert_eq!(set.metadata.name.as_deref(), Some(format!("web-{hash}").as_str()));
    assert!(sim.pods().iter().all(|pod| &pod.metadata.labels.as_ref().unwrap()["pod-template-hash"] == hash));
    assert_eq!(sim.events("ScalingReplicaSet").len(), 1);
    assert_eq!(sim.events("SuccessfulCreate").len(), 6);
    assert_eq!(sim.events("Scheduled").len(), 6);
}

/// While a rollout runs, never more than replicas + surge pods, never fewer available than allowed.
fn within_bounds(sim: &Sim) {
    let Some((bytes, _)) = sim.store.get(&keys::deployment("default", "web")) else { return };
    let web: Deployment = serde_json::from_slice(bytes).unwrap();
    if web.metadata.annotations.as_ref().is_none_or(|map| !map.contains_key("test/bounds")) {
        return;
    }
    let active = sim.active();
    let ready = active.iter().filter(|pod| is_ready(pod)).count();
    assert!(ready >= 5, "only {ready} ready");
    assert!(active.len() <= 8, "{} pods", active.len());
}

#[test]
fn a_rolling_update_keeps_its_bounds() {
    for seed in 0..10 {
        let mut sim = Sim::with_nodes(seed, 3);
        put(&mut sim, deployment("web", 6, "nginx:1"));
        sim.run();
        sim.check = within_bounds;
        let mut next = deployment("web", 6, "nginx:2");
        next["metadata"]["annotations"] = json!({"test/bounds": "1", "deployment.kubernetes.io/revision": "1"});
        put(&mut sim, next);
        sim.run();
        sim.assert_settled();
        assert_eq!(sizes(&sim), [0, 6]);
        assert!(
            sim.active().iter().all(|pod| pod.spec.as_ref().unwrap().containers[0].image.as_deref() == Some("nginx:2"))
        );
        assert_eq!(raw(&sim, "web")["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "2");
    }
}

#[test]
fn a_broken_update_stops_and_is_rolled_back() {
    let mut sim = Sim::with_nodes(3, 3);
    put(&mut sim, deployment("web", 6, "nginx:1"));
    sim.run();
    let mut broken = deployment("web", 6, "broken");
    broken["spec"]["progressDeadlineSeconds"] = 60.into();
    put(&mut sim, broken);
    let fate = |pod: &flotilla_api::k8s_openapi::api::core::v1::Pod| {
        (pod.spec.as_ref()?.containers[0].image.as_deref() == Some("broken")).then_some("Pending")
    };
    sim.run_with(fate);
    assert_eq!(sizes(&sim), [3, 5], "25% surge of 6 is 2, 25% unavailable is 1");
    sim.advance(62);
    sim.run_with(fate);
    assert_eq!(condition(&raw(&sim, "web"), "Progressing")["reason"], "ProgressDeadlineExceeded");
    put(&mut sim, deployment("web", 6, "nginx:1"));
    sim.run();
    sim.assert_settled();
    assert_eq!(sizes(&sim), [0, 6]);
    let web = raw(&sim, "web");
    assert_eq!(web["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "3");
    assert_eq!(condition(&web, "Progressing")["reason"], "NewReplicaSetAvailable");
}

#[test]
fn a_broken_update_goes_back_by_itself_if_asked_to() {
    let mut sim = Sim::with_nodes(9, 3);
    let version = |image: &str| {
        let mut value = deployment("web", 4, image);
        value["spec"]["progressDeadlineSeconds"] = 60.into();
        value["metadata"]["annotations"] = json!({"flotilla.dev/auto-rollback": "true"});
        value
    };
    put(&mut sim, version("good"));
    sim.run();
    let fate = |pod: &flotilla_api::k8s_openapi::api::core::v1::Pod| {
        let image = pod.spec.as_ref()?.containers[0].image.as_deref()?;
        image.starts_with("broken").then_some("Pending")
    };
    for image in ["broken1", "broken2"] {
        put(&mut sim, version(image));
        sim.run_with(fate);
        sim.advance(62);
        sim.run_with(fate);
        sim.advance(62);
        sim.run_with(fate);
        sim.assert_settled();
        let web = sim.deployment("web");
        assert_eq!(web.spec.template.spec.unwrap().containers[0].image.as_deref(), Some("good"));
        assert_eq!(web.status.unwrap().available_replicas, Some(4));
    }
    assert_eq!(sizes(&sim), [0, 0, 4]);
    assert_eq!(sim.events("DeploymentRollback").len(), 2);
}

#[test]
fn recreate_waits_for_the_old_to_be_gone() {
    let mut sim = Sim::with_nodes(4, 2);
    let recreate = |image: &str| {
        let mut value = deployment("web", 3, image);
        value["spec"]["strategy"] = json!({"type": "Recreate"});
        value
    };
    put(&mut sim, recreate("a"));
    sim.run();
    put(&mut sim, recreate("b"));
    sim.check = |sim| {
        let images: std::collections::BTreeSet<_> =
            sim.pods().into_iter().map(|pod| pod.spec.unwrap().containers[0].image.clone()).collect();
        assert!(images.len() <= 1, "two versions at once");
    };
    sim.run();
    sim.assert_settled();
    assert_eq!(sizes(&sim), [0, 3]);
}

#[test]
fn scaling_in_the_middle_of_a_rollout_shares_out() {
    let mut sim = Sim::with_nodes(5, 3);
    put(&mut sim, deployment("web", 10, "a"));
    sim.run();
    put(&mut sim, deployment("web", 10, "stuck"));
    let fate = |pod: &flotilla_api::k8s_openapi::api::core::v1::Pod| {
        (pod.spec.as_ref()?.containers[0].image.as_deref() == Some("stuck")).then_some("Pending")
    };
    sim.run_with(fate);
    let before = sizes(&sim);
    assert_eq!(before.iter().sum::<i32>(), 13);
    put(&mut sim, deployment("web", 20, "stuck"));
    sim.run_with(fate);
    let after = sizes(&sim);
    assert_eq!(after.iter().sum::<i32>(), 25, "20 and 25% surge");
    assert!(after[0] > before[0] && after[1] > before[1], "{before:?} {after:?}");
    put(&mut sim, deployment("web", 0, "stuck"));
    sim.run_with(fate);
    assert_eq!(sizes(&sim), [0, 0]);
    assert!(sim.pods().is_empty());
}

#[test]
fn a_paused_deployment_keeps_its_version_but_scales() {
    let mut sim = Sim::with_nodes(6, 3);
    put(&mut sim, deployment("web", 2, "a"));
    sim.run();
    let mut paused = deployment("web", 4, "b");
    paused["spec"]["paused"] = true.into();
    put(&mut sim, paused);
    sim.run();
    assert_eq!(sizes(&sim), [4]);
    assert_eq!(condition(&raw(&sim, "web"), "Progressing")["reason"], "DeploymentPaused");
    put(&mut sim, deployment("web", 4, "b"));
    sim.run();
    sim.assert_settled();
    assert_eq!(sizes(&sim), [0, 4]);
}

#[test]
fn history_is_trimmed_to_its_limit() {
    let mut sim = Sim::with_nodes(7, 3);
    for version in 0..6 {
        let mut value = deployment("web", 2, &format!("v{version}"));
        value["spec"]["revisionHistoryLimit"] = 2.into();
        put(&mut sim, value);
        sim.run();
        sim.advance(1);
    }
    sim.assert_settled();
    assert_eq!(sizes(&sim), [0, 0, 2]);
    let mut revisions: Vec<String> = sim
        .replica_sets()
        .iter()
        .map(|set| set.metadata.annotations.as_ref().unwrap()["deployment.kubernetes.io/revision"].clone())
        .collect();
    revisions.sort();
    assert_eq!(revisions, ["4", "5", "6"]);
}

#[test]
fn availability_waits_for_min_ready_seconds() {
    let mut sim = Sim::with_nodes(8, 1);
    let mut value = deployment("web", 2, "a");
    value["spec"]["minReadySeconds"] = 30.into();
    put(&mut sim, value);
    sim.run();
    assert_eq!(sim.deployment("web").status.unwrap().available_replicas, None);
    sim.advance(31);
    sim.run();
    assert_eq!(sim.deployment("web").status.unwrap().available_replicas, Some(2));
}

#[test]
fn orphaned_sets_and_pods_are_adopted_and_no_collision() {
    let mut sim = Sim::with_nodes(10, 2);
    put(&mut sim, deployment("web", 3, "a"));
    sim.run();
    let set = keys::replica_set("default", sim.replica_sets()[0].metadata.name.as_deref().unwrap());
    let pods = sim.pods();
    let orphan = |value: &mut Value| value["metadata"]["ownerReferences"] = Value::Null;

    sim.edit(&set, orphan);
    sim.delete(&keys::deployment("default", "web"));
    put(&mut sim, deployment("web", 3, "a"));
    sim.run();
    sim.assert_settled();
    assert_eq!(sim.get::<Value>(&set)["metadata"]["ownerReferences"][0]["name"], "web");

    for pod in &pods {
        sim.edit(&keys::pod("default", pod.metadata.name.as_deref().unwrap()), orphan);
    }
    sim.delete(&set);
    sim.run();
    sim.assert_settled();
    assert!(sim.store.contains_key(&set), "the template hashes as before");
    assert_eq!(sim.pods().len(), pods.len());
    assert_eq!(sim.deployment("web").status.unwrap().collision_count, None);
}

#[test]
fn a_set_of_somebody_else_is_a_collision() {
    let mut sim = Sim::with_nodes(11, 1);
    put(&mut sim, deployment("web", 1, "a"));
    sim.run();
    let set = keys::replica_set("default", sim.replica_sets()[0].metadata.name.as_deref().unwrap());
    sim.edit(&set, |set| set["metadata"]["labels"]["app"] = "debug".into());
    sim.run();
    sim.assert_settled();
    assert_eq!(sim.replica_sets().len(), 2);
    assert_eq!(sim.deployment("web").status.unwrap().collision_count, Some(1));
}
