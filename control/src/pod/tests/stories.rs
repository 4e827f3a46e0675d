//! Stories of single pods.

use std::collections::BTreeMap;

use super::*;

#[test]
fn a_pod_comes_up_ready() {
    let mut node = one("Always");
    node.settle();
    assert_eq!((node.phase(), node.state("a").as_str()), ("Running", "running"));
    let status = node.pod.status.as_ref().unwrap();
    assert_eq!((status.pod_ip.as_deref(), status.host_ip.as_deref()), (Some("10.244.0.1"), Some("10.0.0.1")));
    assert_eq!(status.qos_class.as_deref(), Some("BestEffort"));
    for kind in ["PodScheduled", "PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready"] {
        assert_eq!(node.condition(kind).0, "True", "{kind}");
    }
    let container = node.container("a");
    assert!(container.ready && container.started == Some(true));
    assert_eq!(container.image_id, "sha256:app:1");
    assert_eq!(node.wake_at, None);
    assert!(!node.finished);
}

#[test]
fn first_steps_say_what_is_awaited() {
    let mut node = one("Always");
    let first = step(&node.pod, &node.observed, node.now);
    assert!(first.effects.contains(&Effect::CreateSandbox));
    assert!(first.effects.iter().any(|effect| matches!(effect, Effect::PullImage { .. })), "at the same time");
    node.pod.status = Some(first.status);
    assert_eq!((node.phase(), node.state("a").as_str()), ("Pending", "ContainerCreating"));
    assert_eq!(node.condition("Ready"), ("False".into(), "ContainersNotReady".into()));
}

#[test]
fn crashes_back_off_and_lasting_runs_reset() {
    let mut node = one("Always");
    node.settle();
    for (restart, wait) in [(1, 0), (2, 10), (3, 20), (4, 40), (5, 80), (6, 160), (7, 300), (8, 300)] {
        node.advance(1);
        node.exit("a", 1);
        node.settle();
        if wait > 0 {
            assert_eq!(node.state("a"), "CrashLoopBackOff");
            let last = node.container("a").last_state.clone().unwrap().terminated.unwrap();
            assert_eq!((last.exit_code, last.reason.as_deref()), (1, Some("Error")));
            assert_eq!(node.wake_at, Some(node.now + SignedDuration::from_secs(wait)));
            node.advance(wait - 1);
            node.settle();
            assert_eq!(node.state("a"), "CrashLoopBackOff");
            node.advance(1);
            node.settle();
        }
        assert_eq!((node.state("a").as_str(), node.container("a").restart_count), ("running", restart));
    }
    assert_eq!(node.observed.containers["a"].len(), 2, "old attempts are removed");
    node.advance(601);
    node.exit("a", 1);
    node.settle();
    assert_eq!((node.state("a").as_str(), node.container("a").restart_count), ("running", 9));
    node.advance(1);
    node.exit("a", 1);
    node.settle();
    assert_eq!(node.wake_at, Some(node.now + SignedDuration::from_secs(10)), "it starts afresh");
    assert!(node.container("a").last_state.is_some());
}

#[test]
fn back_off_words_are_kubelets() {
    let mut node = one("Always");
    node.settle();
    node.exit("a", 1);
    node.settle();
    node.exit("a", 1);
    node.settle();
    let waiting = node.container("a").state.clone().unwrap().waiting.unwrap();
    assert_eq!(waiting.message.as_deref(), Some("back-off 10s restarting failed container=a pod=p_default(u)"));
}

#[test]
fn restart_policies_end_pods() {
    let table = [
        ("Never", 0, "Succeeded"),
        ("Never", 3, "Failed"),
        ("OnFailure", 0, "Succeeded"),
        ("OnFailure", 3, "Running"),
        ("Always", 0, "Running"),
    ];
    for (policy, code, phase) in table {
        let mut node = one(policy);
        node.settle();
        node.exit("a", code);
        node.settle();
        assert_eq!(node.phase(), phase, "{policy} {code}");
        if phase != "Running" {
            assert_eq!(
                node.observed.sandbox.as_ref().unwrap().state,
                SandboxState::Stopped,
                "logs stay, the network goes"
            );
            assert_eq!(node.condition("Ready").0, "False");
            assert_eq!(node.starts().len(), 1);
        }
    }
}

#[test]
fn ends_have_their_reasons() {
    let table = [
        (137, ExitCause::OutOfMemory, "OOMKilled"),
        (0, ExitCause::Ended, "Completed"),
        (2, ExitCause::Ended, "Error"),
        (128, ExitCause::NotStarted, "StartError"),
    ];
    for (code, cause, reason) in table {
        let mut node = one("Never");
        node.settle();
        node.exit_because("a", code, cause);
        node.settle();
        assert_eq!(node.state("a"), reason);
    }
}

#[test]
fn a_missing_image_is_pulled_again_later_and_later() {
    let mut node = one("Always");
    node.registry.clear();
    node.settle();
    assert_eq!((node.phase(), node.state("a").as_str()), ("Pending", "ErrImagePull"));
    node.advance(2);
    node.settle();
    assert_eq!(node.state("a"), "ImagePullBackOff");
    let pulls = |node: &Node| node.done.iter().filter(|effect| matches!(effect, Effect::PullImage { .. })).count();
    assert_eq!(pulls(&node), 1);
    node.advance(8);
    node.settle();
    assert_eq!(pulls(&node), 2);
    node.advance(2);
    node.settle();
    assert_eq!(node.wake_at, Some(node.now + SignedDuration::from_secs(18)));
    node.registry.push("app:1");
    node.advance(18);
    node.settle();
    assert_eq!(node.state("a"), "running");
}

#[test]
fn init_containers_run_one_after_the_other() {
    let mut node = Node::new(json!({
        "initContainers": [{"name": "i1"}, {"name": "side", "restartPolicy": "Always"}, {"name": "i2"}],
        "containers": [{"name": "a"}, {"name": "b"}],
    }));
    node.settle();
    assert_eq!((node.state("i1").as_str(), node.state("i2").as_str()), ("running", "PodInitializing"));
    assert_eq!((node.phase(), node.state("a").as_str()), ("Pending", "PodInitializing"));
    assert_eq!(node.condition("Initialized"), ("False".into(), "ContainersNotInitialized".into()));
    node.exit("i1", 0);
    node.settle();
    assert_eq!((node.state("side").as_str(), node.state("i2").as_str()), ("running", "running"));
    node.exit("i2", 1);
    node.settle();
    assert_eq!((node.state("i2").as_str(), node.container("i2").restart_count), ("running", 1));
    node.exit("i2", 0);
    node.settle();
    assert_eq!((node.phase(), node.condition("Ready").0.as_str()), ("Running", "True"));
    assert_eq!(node.state("i2"), "Completed");
    node.exit("side", 1);
    node.settle();
    assert_eq!((node.state("side").as_str(), node.container("side").restart_count), ("running", 1));
}

#[test]
fn a_failed_init_container_fails_a_pod_that_never_restarts() {
    let mut node =
        Node::new(json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}], "containers": [{"name": "a"}]}));
    node.settle();
    node.exit("i", 1);
    node.settle();
    assert_eq!(node.phase(), "Failed");
    assert_eq!(node.starts(), [("i".to_owned(), 0)]);
}

#[test]
fn sidecars_stop_after_what_they_serve() {
    let mut node = Node::new(json!({"restartPolicy": "Never",
        "initContainers": [{"name": "s1", "restartPolicy": "Always"}, {"name": "s2", "restartPolicy": "Always"}],
        "containers": [{"name": "a"}]}));
    node.settle();
    node.exit("a", 0);
    node.settle();
    let stops: Vec<&str> = node
        .done
        .iter()
        .filter_map(|effect| match effect {
            Effect::StopContainer { name, .. } => Some(name.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(stops, ["s2", "s1"]);
    assert_eq!(node.phase(), "Succeeded");
}

#[test]
fn deletion_stops_everything_within_its_grace() {
    let mut node = one("Always");
    node.stubborn = true;
    node.settle();
    node.delete();
    node.advance(1);
    node.settle();
    let told = node.now + SignedDuration::from_secs(19);
    assert_eq!(node.current("a").stopping, Some(told));
    assert!(!node.finished);
    assert_eq!(node.phase(), "Running");
    node.advance(19);
    node.exit("a", 137);
    node.settle();
    assert!(node.finished);
    assert_eq!(node.phase(), "Failed");
    assert_eq!(node.observed.sandbox, None);
    assert!(deletion::confirm(&node.pod));
}

#[test]
fn a_pod_deleted_before_it_began_starts_nothing() {
    let mut node = one("Always");
    node.delete();
    node.settle();
    assert!(node.finished && node.starts().is_empty());
    assert_eq!(node.phase(), "Failed");
}

#[test]
fn a_pod_runs_no_longer_than_its_deadline() {
    let mut node = Node::new(json!({"activeDeadlineSeconds": 60, "containers": [{"name": "a"}]}));
    node.settle();
    assert_eq!(node.wake_at, Some(node.now + SignedDuration::from_secs(60)));
    node.advance(60);
    node.settle();
    let status = node.pod.status.clone().unwrap();
    assert_eq!((node.phase(), status.reason.as_deref()), ("Failed", Some("DeadlineExceeded")));
    assert_eq!(node.starts().len(), 1);
}

#[test]
fn after_a_reboot_services_start_again_and_what_was_done_is_not_repeated() {
    let mut service = one("Always");
    service.settle();
    service.reboot();
    service.settle();
    assert_eq!((service.state("a").as_str(), service.container("a").restart_count), ("running", 1));
    let last = service.container("a").last_state.clone().unwrap().terminated.unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (137, Some("ContainerStatusUnknown")));
    assert_eq!(service.pod.status.as_ref().unwrap().pod_ip.as_deref(), Some("10.244.0.2"));

    let mut task = one("Never");
    task.settle();
    task.exit("a", 0);
    task.settle();
    task.reboot();
    task.settle();
    assert_eq!((task.phase(), task.starts().len()), ("Succeeded", 1));

    let mut cut = one("Never");
    cut.settle();
    cut.reboot();
    cut.settle();
    assert_eq!((cut.phase(), cut.starts().len(), cut.state("a").as_str()), ("Failed", 1, "ContainerStatusUnknown"));
}

#[test]
fn a_dead_sandbox_is_made_anew() {
    let mut node = Node::new(json!({"initContainers": [{"name": "i"}], "containers": [{"name": "a"}]}));
    node.settle();
    node.exit("i", 0);
    node.settle();
    node.observed.sandbox.as_mut().unwrap().state = SandboxState::Stopped;
    node.settle();
    assert_eq!(node.sandboxes, 2);
    assert_eq!(node.state("i"), "running", "init containers prepare each sandbox");
    node.exit("i", 0);
    node.settle();
    assert_eq!((node.state("a").as_str(), node.container("a").restart_count), ("running", 1));
}

#[test]
fn who_takes_too_much_is_evicted() {
    let mut node = one("Always");
    node.settle();
    node.stubborn = true;
    node.observed.excess = Some("Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". ".into());
    node.settle();
    assert_eq!(node.phase(), "Running");
    let kill_at = node.now + SignedDuration::from_secs(1);
    let stop = |effect: &Effect| matches!(effect, Effect::StopContainer { kill_at: at, why: StopReason::Evicted, .. } if *at == kill_at);
    assert!(node.done.iter().any(stop), "{:?}", node.done);
    node.exit("a", 137);
    node.settle();
    let status = node.pod.status.clone().unwrap();
    assert_eq!((node.phase(), status.reason.as_deref()), ("Failed", Some("Evicted")));
    assert_eq!(status.message, node.observed.excess);
    node.observed.excess = None;
    node.settle();
    assert_eq!(node.pod.status.as_ref().unwrap().reason.as_deref(), Some("Evicted"), "it is final");
    assert_eq!(node.starts().len(), 1);
}

#[test]
fn probes_decide_about_readiness_and_life() {
    let probe = json!({"periodSeconds": 5, "failureThreshold": 2, "tcpSocket": {"port": 80}});
    let mut node = Node::new(json!({"containers": [{"name": "a", "readinessProbe": probe, "livenessProbe": probe}]}));
    node.settle();
    assert_eq!(node.condition("Ready").0, "True");
    assert_eq!(node.wake_at, Some(node.now + SignedDuration::from_secs(5)));
    node.advance(1);
    node.probed("a", ProbeKind::Readiness, false);
    node.probed("a", ProbeKind::Readiness, false);
    node.settle();
    assert_eq!(node.condition("Ready").0, "False");
    node.probed("a", ProbeKind::Liveness, false);
    node.settle();
    assert_eq!(node.container("a").restart_count, 0);
    node.probed("a", ProbeKind::Liveness, false);
    node.settle();
    assert_eq!(node.container("a").restart_count, 1);
    assert!(
        node.done.iter().any(|effect| matches!(effect, Effect::StopContainer { why: StopReason::Unhealthy(_), .. }))
    );
}

#[test]
fn what_cannot_be_made_is_said_and_tried_again() {
    let mut node = one("Always");
    node.observed.sandbox_failure =
        Some(Failure { at: node.now, tries: 3, reason: "FailedCreatePodSandBox".into(), message: "no bridge".into() });
    node.settle();
    assert_eq!(node.wake_at, Some(node.now + SignedDuration::from_secs(4)));
    node.advance(4);
    let failure = Failure {
        at: node.now,
        tries: 1,
        reason: "CreateContainerConfigError".into(),
        message: "secret \"s\" not found".into(),
    };
    node.observed.container_failures.insert("a".into(), failure);
    node.settle();
    assert_eq!(node.state("a"), "CreateContainerConfigError");
    node.observed.container_failures.clear();
    node.settle();
    assert_eq!(node.state("a"), "running");
}

#[test]
fn a_resize_is_told_of_until_it_is_done() {
    let limits = |memory: &str| json!({"limits": {"memory": memory}, "requests": {"memory": memory}});
    let given = |node: &Node| serde_json::to_value(node.container("a").resources.as_ref()).unwrap();
    let mut node = Node::new(json!({"containers": [{"name": "a", "resources": limits("64Mi")}]}));
    node.settle();
    let before = node.pod.status.clone();
    // Not known after a restart of the daemon, and what the Pod says all the same.
    node.observed.behind = [("a".to_owned(), None)].into();
    node.settle();
    assert_eq!(node.pod.status, before);
    node.pod.spec.as_mut().unwrap().containers[0].resources = serde_json::from_value(limits("32Mi")).unwrap();
    node.settle();
    assert_eq!(given(&node), limits("64Mi"), "what is in force");
    assert_eq!(node.condition("PodResizeInProgress"), ("True".into(), String::new()));
    node.observed.behind = [("a".to_owned(), Some("more is in use".to_owned()))].into();
    node.settle();
    assert_eq!(node.condition("PodResizeInProgress"), ("True".into(), "Error".into()));
    node.observed.behind.clear();
    node.settle();
    assert_eq!(given(&node), limits("32Mi"));
    let conditions = node.pod.status.as_ref().unwrap().conditions.clone().unwrap();
    assert!(conditions.iter().all(|condition| condition.type_ != "PodResizeInProgress"));
}

#[test]
fn foreign_conditions_and_gates_are_kept() {
    let mut node =
        Node::new(json!({"readinessGates": [{"conditionType": "example.com/gate"}], "containers": [{"name": "a"}]}));
    node.settle();
    assert_eq!(node.condition("Ready"), ("False".into(), "ReadinessGatesNotReady".into()));
    assert_eq!(node.condition("ContainersReady").0, "True");
    let conditions = &mut node.pod.status.as_mut().unwrap().conditions;
    crate::condition::set(conditions, "example.com/gate", "True", "", "", node.now);
    node.settle();
    assert_eq!(node.condition("Ready").0, "True");
}

#[test]
fn a_sandbox_without_an_object_is_torn_down() {
    let mut node = one("Always");
    node.stubborn = true;
    node.settle();
    let effects = teardown(&node.observed, 5, node.now);
    assert!(matches!(effects.as_slice(), [Effect::StopContainer { .. }]));
    for effect in &effects {
        node.carry_out(effect);
    }
    assert!(teardown(&node.observed, 5, node.now).is_empty(), "it was told");
    node.exit("a", 0);
    assert_eq!(teardown(&node.observed, 5, node.now), [Effect::RemoveSandbox]);
    assert!(teardown(&Observed::default(), 5, node.now).is_empty());
}

#[test]
fn nonsense_does_not_panic() {
    let _ = step(&Pod::default(), &Observed::default(), Timestamp::MIN);
    let images: BTreeMap<String, Image> = [(String::new(), Image::Pulling)].into();
    let strange: Pod = serde_json::from_value(json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"containers": [{"name": "a"}, {"name": "a"}], "activeDeadlineSeconds": i64::MAX},
        "status": {"containerStatuses": [{"name": "a", "image": "", "imageID": "", "ready": true, "restartCount": -5}]}}))
    .unwrap();
    let _ = step(&strange, &Observed { images, ..Observed::default() }, Timestamp::MAX);
}
