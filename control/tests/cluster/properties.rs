//! What must hold whatever happens: generated clusters, generated troubles.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_api::k8s_openapi::api::core::v1::Pod;
use flotilla_control::resources::{Resources, requests};
use flotilla_control::{Liveness, keys};
use proptest::prelude::*;
use serde_json::json;

use crate::sim::{Sim, deployment, is_ready, template};

/// What happens next to a cluster.
#[derive(Clone, Debug)]
enum Trouble {
    Silence(usize),
    Return(usize),
    Scale(i32),
    Image(u8),
    LosePod(usize),
    FailPod(usize),
    Wait(i64),
    Agents,
    Round,
}

fn trouble() -> impl Strategy<Value = Trouble> {
    prop_oneof![
        (0usize..4).prop_map(Trouble::Silence),
        (0usize..4).prop_map(Trouble::Return),
        (0i32..9).prop_map(Trouble::Scale),
        (0u8..3).prop_map(Trouble::Image),
        (0usize..20).prop_map(Trouble::LosePod),
        (0usize..20).prop_map(Trouble::FailPod),
        (1i64..40).prop_map(Trouble::Wait),
        Just(Trouble::Agents),
        Just(Trouble::Round),
        Just(Trouble::Round),
    ]
}

/// No node holds more than it offers; terminating pods count.
fn within_capacity(sim: &Sim) {
    let mut taken: BTreeMap<String, Resources> = BTreeMap::new();
    for pod in sim.view.pods() {
        let spec = pod.spec.as_ref().unwrap();
        let over = matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"));
        if let Some(node) = spec.node_name.as_ref().filter(|_| !over) {
            taken.entry(node.clone()).or_default().add(&requests(spec));
        }
    }
    for (name, taken) in taken {
        let node = &sim.view.node(&name).unwrap().stored.object;
        let offered = Resources::from_quantities(node.status.as_ref().unwrap().allocatable.as_ref());
        assert!(taken.cpu_millis <= offered.cpu_millis, "{name}: {taken:?}");
        assert!(taken.memory_bytes <= offered.memory_bytes, "{name}: {taken:?}");
        assert!(taken.pods <= offered.pods, "{name}: {taken:?}");
    }
}

/// A pod that is bound stays where it is, and its uid keeps its name.
fn nothing_moves(sim: &Sim, seen: &mut BTreeMap<String, (String, Option<String>)>) {
    for pod in sim.pods() {
        let name = pod.metadata.name.clone().unwrap();
        let uid = pod.metadata.uid.clone().unwrap();
        let node = pod.spec.as_ref().unwrap().node_name.clone();
        let known = seen.entry(name.clone()).or_insert_with(|| (uid.clone(), node.clone()));
        assert_eq!(known.0, uid, "another pod of the name {name}");
        assert!(known.1.is_none() || known.1 == node, "{name} moved");
        known.1 = node;
    }
}

fn act(sim: &mut Sim, trouble: &Trouble, web: &mut (i32, u8), fate: impl Fn(&Pod) -> Option<&'static str>) {
    let node = |index: usize| format!("n{}", index % 4 + 1);
    let pick = |sim: &Sim, index: usize| {
        let pods = sim.pods();
        (!pods.is_empty()).then(|| keys::pod("default", pods[index % pods.len()].metadata.name.as_deref().unwrap()))
    };
    match trouble {
        Trouble::Silence(index) => sim.hear(&node(*index), Liveness::Dead),
        Trouble::Return(index) => sim.hear(&node(*index), Liveness::Alive),
        Trouble::Scale(replicas) => web.0 = *replicas,
        Trouble::Image(image) => web.1 = *image,
        Trouble::LosePod(index) => {
            if let Some(key) = pick(sim, *index) {
                sim.delete(&key);
            }
        }
        Trouble::FailPod(index) => {
            if let Some(key) = pick(sim, *index) {
                let bound = sim.get::<Pod>(&key).spec.unwrap().node_name.is_some();
                let phase = sim.get::<Pod>(&key).status.and_then(|status| status.phase);
                if bound && !matches!(phase.as_deref(), Some("Succeeded" | "Failed")) {
                    sim.set_phase(&key, "Failed");
                }
            }
        }
        Trouble::Wait(seconds) => sim.advance(*seconds),
        Trouble::Agents => drop(sim.agents(fate)),
        Trouble::Round => drop(sim.round()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_troubled_service_heals(seed: u64, troubles in proptest::collection::vec(trouble(), 1..40)) {
        let mut sim = Sim::with_nodes(seed, 4);
        sim.check = within_capacity;
        let mut web = (4, 0u8);
        let mut seen = BTreeMap::new();
        let put = |sim: &mut Sim, web: &(i32, u8)| {
            let mut value = deployment("web", web.0, &format!("v{}", web.1));
            // Large enough that capacity matters: four a node.
            value["spec"]["template"]["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "1"}});
            sim.put_json("apps", "deployments", value);
        };
        put(&mut sim, &web);
        for trouble in &troubles {
            let before = web;
            act(&mut sim, trouble, &mut web, |_| None);
            if web != before {
                put(&mut sim, &web);
            }
            nothing_moves(&sim, &mut seen);
        }
        for index in 1..=4 {
            sim.hear(&format!("n{index}"), Liveness::Alive);
        }
        sim.run();
        nothing_moves(&sim, &mut seen);
        sim.assert_settled();
        let active = sim.active();
        prop_assert_eq!(active.len(), usize::try_from(web.0).unwrap());
        let image = format!("v{}", web.1);
        for pod in &active {
            prop_assert_eq!(pod.spec.as_ref().unwrap().containers[0].image.as_deref(), Some(image.as_str()));
        }
        let status = sim.deployment("web").status.unwrap();
        prop_assert_eq!(status.available_replicas.unwrap_or_default(), web.0);
    }

    #[test]
    fn a_rollout_keeps_enough_pods_available(
        seed: u64,
        replicas in 1i32..12,
        surge in 0i32..4,
        unavailable in 0i32..4,
        steps in proptest::collection::vec(any::<bool>(), 0..60),
    ) {
        let mut sim = Sim::with_nodes(seed, 4);
        let put = |sim: &mut Sim, image: &str| {
            let mut value = deployment("web", replicas, image);
            value["spec"]["strategy"] = json!({"type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}});
            sim.put_json("apps", "deployments", value);
        };
        put(&mut sim, "v1");
        sim.run();
        put(&mut sim, "v2");
        let unavailable = if surge == 0 { unavailable.max(1) } else { unavailable };
        let least = usize::try_from((replicas - unavailable).max(0)).unwrap();
        let most = usize::try_from(replicas + surge).unwrap();
        let check = |sim: &Sim| {
            let active = sim.active();
            let ready = active.iter().filter(|pod| is_ready(pod));
            let (ready, all) = (ready.count(), active.len());
            prop_assert!(ready >= least, "{ready} ready of at least {least}");
            prop_assert!(all <= most, "{all} pods of at most {most}");
            Ok(())
        };
        for agents in steps {
            if agents { sim.agents(|_| None); } else { sim.round(); }
            check(&sim)?;
        }
        sim.run();
        check(&sim)?;
        prop_assert_eq!(sim.active().len(), usize::try_from(replicas).unwrap());
    }

    #[test]
    fn a_job_never_counts_twice(
        seed: u64,
        completions in 1i32..25,
        parallelism in 1i32..10,
        indexed: bool,
        troubles in proptest::collection::vec(trouble(), 1..50),
    ) {
        let mut sim = Sim::with_nodes(seed, 4);
        sim.check = within_capacity;
        let mut value = json!({"metadata": {"name": "j"}, "spec": {"completions": completions, "parallelism": parallelism,
            "backoffLimit": 1000, "template": template("j", "task")}});
        value["spec"]["template"]["spec"]["restartPolicy"] = "Never".into();
        if indexed {
            value["spec"]["completionMode"] = "Indexed".into();
        }
        sim.put_json("batch", "jobs", value);
        // Every pod that was ever seen to have succeeded.
        let mut winners: BTreeSet<String> = BTreeSet::new();
        let fate = |pod: &Pod| match pod.metadata.uid.as_deref().unwrap_or_default().as_bytes()[0] % 3 {
            0 => Some("Succeeded"),
            1 => Some("Failed"),
            _ => None,
        };
        let note = |sim: &Sim, winners: &mut BTreeSet<String>| {
            for pod in sim.pods() {
                if pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Succeeded") {
                    winners.insert(pod.metadata.uid.clone().unwrap());
                }
            }
            let counted = sim.job("j").status.and_then(|status| status.succeeded).unwrap_or(0);
            prop_assert!(usize::try_from(counted).unwrap() <= winners.len(), "{counted} counted, {} succeeded", winners.len());
            Ok(())
        };
        for trouble in &troubles {
            act(&mut sim, trouble, &mut (0, 0), fate);
            note(&sim, &mut winners)?;
        }
        for index in 1..=4 {
            sim.hear(&format!("n{index}"), Liveness::Alive);
        }
        // From now on everything succeeds; waits are waited for.
        sim.run_with(|_| Some("Succeeded"));
        note(&sim, &mut winners)?;
        sim.advance(700);
        sim.run_with(|_| Some("Succeeded"));
        note(&sim, &mut winners)?;
        sim.assert_settled();
        let status = sim.job("j").status.unwrap();
        prop_assert_eq!(status.succeeded, Some(completions));
        let complete = status.conditions.unwrap_or_default().iter().any(|c| c.type_ == "Complete" && c.status == "True");
        prop_assert!(complete);
    }
}
