//! What must hold for a pod whatever happens to it.

use proptest::prelude::*;

use super::*;

/// What happens next on the node.
#[derive(Clone, Debug)]
enum Trouble {
    Exit(usize, i32),
    Wait(i64),
    Reboot,
    SandboxDies,
    ImageGoes,
    Unhealthy(usize),
    Delete,
    Stubborn,
}

fn trouble() -> impl Strategy<Value = Trouble> {
    prop_oneof![
        4 => (0usize..4, 0i32..3).prop_map(|(index, code)| Trouble::Exit(index, code)),
        3 => (1i64..400).prop_map(Trouble::Wait),
        1 => Just(Trouble::Reboot),
        1 => Just(Trouble::SandboxDies),
        1 => Just(Trouble::ImageGoes),
        1 => (0usize..4).prop_map(Trouble::Unhealthy),
        1 => Just(Trouble::Delete),
        1 => Just(Trouble::Stubborn),
    ]
}

fn spec(policy: &str, inits: usize, sidecar: bool, containers: usize) -> Value {
    let probe = json!({"periodSeconds": 5, "tcpSocket": {"port": 80}});
    let mut init: Vec<Value> = (0..inits).map(|index| json!({"name": format!("i{index}")})).collect();
    if sidecar {
        init.push(json!({"name": "side", "restartPolicy": "Always"}));
    }
    let main: Vec<Value> =
        (0..containers).map(|index| json!({"name": format!("c{index}"), "livenessProbe": probe})).collect();
    json!({"restartPolicy": policy, "initContainers": init, "containers": main})
}

fn happen(node: &mut Node, trouble: &Trouble) {
    let live: Vec<String> = node
        .observed
        .containers
        .iter()
        .filter(|(_, attempts)| attempts.last().is_some_and(Attempt::is_live))
        .map(|(name, _)| name.clone())
        .collect();
    let pick = |index: usize| (!live.is_empty()).then(|| live[index % live.len()].clone());
    match trouble {
        Trouble::Exit(index, code) => {
            if let Some(name) = pick(*index) {
                node.exit(&name, *code);
            }
        }
        Trouble::Wait(seconds) => node.advance(*seconds),
        Trouble::Reboot => node.reboot(),
        Trouble::SandboxDies => {
            if let Some(sandbox) = &mut node.observed.sandbox {
                sandbox.state = SandboxState::Stopped;
            }
        }
        Trouble::ImageGoes => node.observed.images.clear(),
        Trouble::Unhealthy(index) => {
            if let Some(name) = pick(*index).filter(|name| name.starts_with('c')) {
                for _ in 0..3 {
                    node.probed(&name, ProbeKind::Liveness, false);
                }
            }
        }
        Trouble::Delete
            if node.pod.metadata.deletion_timestamp.is_none() && !matches!(node.phase(), "Succeeded" | "Failed") =>
        {
            node.delete();
        }
        Trouble::Delete => {}
        Trouble::Stubborn => node.stubborn = true,
    }
}

fn restarts(node: &Node) -> BTreeMap<String, i32> {
    let status = node.pod.status.clone().unwrap_or_default();
    let all =
        status.container_statuses.into_iter().flatten().chain(status.init_container_statuses.into_iter().flatten());
    all.map(|status| (status.name, status.restart_count)).collect()
}

proptest! {
    #[test]
    fn a_pod_lives_by_the_rules(
        policy in prop_oneof![Just("Always"), Just("OnFailure"), Just("Never")],
        inits in 0usize..3,
        sidecar: bool,
        containers in 1usize..3,
        troubles in proptest::collection::vec(trouble(), 0..30),
    ) {
        let mut node = Node::new(spec(policy, inits, sidecar, containers));
        node.settle();
        for trouble in &troubles {
            let (phase, before, done) = (node.phase().to_owned(), restarts(&node), node.done.len());
            let was_deleted = node.pod.metadata.deletion_timestamp.is_some();
            happen(&mut node, trouble);
            node.settle();
            let started = node.done[done..].iter().any(|effect| matches!(effect, Effect::StartContainer { .. }));
            if matches!(phase.as_str(), "Succeeded" | "Failed") {
                prop_assert_eq!(node.phase(), phase, "the end is final");
                prop_assert!(!started, "nothing starts after the end");
            }
            if was_deleted {
                prop_assert!(!started, "nothing starts after deletion");
            }
            for (name, count) in restarts(&node) {
                prop_assert!(count >= before.get(&name).copied().unwrap_or(0), "restarts of {name} fell");
            }
            let live = |name: &str| node.observed.containers.get(name).is_some_and(|a| a.last().is_some_and(Attempt::is_live));
            let mains = (0..containers).any(|index| live(&format!("c{index}")));
            let waiting = (0..inits).any(|index| live(&format!("i{index}")));
            prop_assert!(!(mains && waiting), "init containers go first");
            if node.finished {
                prop_assert!(node.observed.sandbox.is_none());
            }
            let ready = node.condition("Ready").0 == "True";
            prop_assert!(!ready || (0..containers).all(|index| live(&format!("c{index}"))), "ready without running");
        }
        // Told to go, it goes.
        if !matches!(node.phase(), "Succeeded" | "Failed") {
            if node.pod.metadata.deletion_timestamp.is_none() {
                node.delete();
            }
            for _ in 0..6 {
                node.settle();
                happen(&mut node, &Trouble::Exit(0, 137));
            }
            node.settle();
            prop_assert!(node.finished);
        }
    }
}
