//! What a pod says about itself, in kubelet's words.
//!
//! Invariant: conditions that others set (disruption, readiness gates) are kept, also those set since the node looked.
//! Invariant: nothing observed has changed ⇒ the status has not.

use flotilla_api::k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateWaiting, ContainerStatus, HostIP, PodCondition,
    PodIP, PodStatus, ResourceRequirements, VolumeMount, VolumeMountStatus,
};
use flotilla_api::kinds::pod::qos_class;

use super::observed::SandboxState;
use super::track::{State, Track, terminated};
use super::{Life, is_sidecar, known_status, probes};
use crate::{condition, meta, pods};

const RESIZING: &str = "PodResizeInProgress";

pub(super) fn of(life: &Life<'_>) -> PodStatus {
    let mut status = life.pod.status.clone().unwrap_or_default();
    let inits = life.init_containers().map(|container| container_status(life, container));
    let inits: Vec<ContainerStatus> = inits.collect();
    status.init_container_statuses = (!inits.is_empty()).then_some(inits);
    status.container_statuses = Some(life.spec.containers.iter().map(|c| container_status(life, c)).collect());
    let ephemeral = life.ephemeral.iter().map(|container| ContainerStatus {
        ready: false,
        started: None,
        ..container_status(life, container)
    });
    let ephemeral: Vec<ContainerStatus> = ephemeral.collect();
    status.ephemeral_container_statuses = (!ephemeral.is_empty()).then_some(ephemeral);
    status.phase = Some(phase(life).to_owned());
    match &life.end {
        Some(end) => {
            status.reason = end.reason.clone();
            status.message = end.message.clone();
        }
        None => (status.reason, status.message) = (None, None),
    }
    status.start_time.get_or_insert_with(|| meta::seconds(life.now));
    status.qos_class.get_or_insert_with(|| qos_class(life.spec).to_owned());
    status.observed_generation = life.pod.metadata.generation;
    addresses(life, &mut status);
    conditions(life, &mut status);
    resize(life, &mut status);
    status
}

/// The conditions that a pod's node decides; all others are somebody else's.
const OWN_CONDITIONS: [&str; 6] =
    ["PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready", "PodScheduled", RESIZING];

/// A node's own word over a status that others may have written to since the node looked.
pub fn over(newest: PodStatus, own: PodStatus) -> PodStatus {
    let is_own = |condition: &PodCondition| OWN_CONDITIONS.contains(&condition.type_.as_str());
    let others = newest.conditions.into_iter().flatten().filter(|condition| !is_own(condition));
    let conditions: Vec<_> = others.chain(own.conditions.into_iter().flatten().filter(is_own)).collect();
    PodStatus {
        conditions: Some(conditions),
        nominated_node_name: newest.nominated_node_name,
        resource_claim_statuses: newest.resource_claim_statuses,
        extended_resource_claim_status: newest.extended_resource_claim_status,
        ..own
    }
}

fn addresses(life: &Life<'_>, status: &mut PodStatus) {
    if let Some(ip) = &life.observed.host_ip {
        status.host_ip = Some(ip.clone());
        status.host_ips = Some(vec![HostIP { ip: ip.clone() }]);
    }
    // What has ended keeps the address that it had; one that is being made keeps none of an older sandbox.
    if life.end.is_some() {
        return;
    }
    let own = life.observed.sandbox.as_ref().filter(|sandbox| sandbox.state == SandboxState::Ready);
    let own = own.and_then(|sandbox| match life.spec.host_network {
        Some(true) => life.observed.host_ip.clone(),
        _ => sandbox.ip.clone(),
    });
    status.pod_ips = own.clone().map(|ip| vec![PodIP { ip }]);
    status.pod_ip = own;
}

fn phase(life: &Life<'_>) -> &'static str {
    if let Some(end) = &life.end {
        return end.phase;
    }
    let known = life.pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if meta::is_deleting(&life.pod.metadata) {
        return if known == Some("Running") { "Running" } else { "Pending" };
    }
    let begun = |container: &Container| matches!(life.track(&container.name).now, State::Running(..) | State::Ended(_));
    match life.initialized && life.spec.containers.iter().all(begun) {
        true => "Running",
        false => "Pending",
    }
}

fn container_status(life: &Life<'_>, container: &Container) -> ContainerStatus {
    let name = container.name.as_str();
    let track = life.track(name);
    let (ready, started) = readiness(life, container, track);
    let (state, last) = states(life, name, track);
    let (attempt, id, image_id) = match &track.now {
        State::Fresh => (0, None, String::new()),
        State::Created(attempt) | State::Running(attempt, _) => {
            (attempt.attempt, Some(attempt.id.clone()), attempt.image_id.clone())
        }
        State::Ended(ended) => (ended.attempt, ended.id.clone(), ended.image_id.clone()),
    };
    ContainerStatus {
        name: name.to_owned(),
        image: container.image.clone().unwrap_or_default(),
        image_id,
        container_id: id.filter(|id| !id.is_empty()),
        restart_count: i32::try_from(attempt).unwrap_or(i32::MAX),
        ready,
        started: Some(started),
        state: Some(state),
        last_state: Some(last),
        resources: resources_in_force(life, container).or(resources(container, track)),
        allocated_resources: resources(container, track).and_then(|resources| resources.requests),
        volume_mounts: volume_mounts(container),
        ..ContainerStatus::default()
    }
}

/// A container's mounts. A volume is mounted by itself: what may be mounted below its root does not become read-only.
fn volume_mounts(container: &Container) -> Option<Vec<VolumeMountStatus>> {
    let status = |mount: &VolumeMount| {
        let read_only = mount.read_only.filter(|read_only| *read_only);
        VolumeMountStatus {
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only,
            recursive_read_only: read_only.map(|_| "Disabled".to_owned()),
            ..VolumeMountStatus::default()
        }
    };
    let mounts: Vec<_> = container.volume_mounts.iter().flatten().map(status).collect();
    (!mounts.is_empty()).then_some(mounts)
}

/// What a container still has that was resized and is not there yet.
fn resources_in_force(life: &Life<'_>, container: &Container) -> Option<ResourceRequirements> {
    life.observed.behind.get(&container.name)?;
    known_status(life.pod.status.as_ref(), &container.name)?.resources.clone()
}

/// Whether a resize is under way, and why it comes to nothing if it does. Defined by the Kubernetes API reference, pod
/// conditions.
fn resize(life: &Life<'_>, status: &mut PodStatus) {
    let behind = life.spec.containers.iter().filter(|container| {
        resources_in_force(life, container).is_some_and(|known| Some(&known) != container.resources.as_ref())
    });
    let errors: Vec<Option<&str>> = behind.map(|c| life.observed.behind[&c.name].as_deref()).collect();
    if errors.is_empty() {
        condition::remove(&mut status.conditions, RESIZING);
        return;
    }
    let errors: Vec<&str> = errors.into_iter().flatten().collect();
    let reason = if errors.is_empty() { "" } else { "Error" };
    condition::set(&mut status.conditions, RESIZING, "True", reason, &errors.join("; "), life.now);
}

/// What the pod gives a container that runs.
fn resources(container: &Container, track: &Track<'_>) -> Option<ResourceRequirements> {
    let given = container.resources.clone().filter(|resources| *resources != ResourceRequirements::default());
    given.filter(|_| matches!(track.now, State::Running(..)))
}

fn readiness(life: &Life<'_>, container: &Container, track: &Track<'_>) -> (bool, bool) {
    match &track.now {
        State::Running(attempt, started_at) => {
            let verdict = probes::judge(container, &attempt.probes, *started_at, life.now);
            (verdict.ready && attempt.stopping.is_none(), verdict.started)
        }
        State::Ended(ended) => {
            let is_init = life.init_containers().any(|init| init.name == container.name);
            (is_init && !is_sidecar(container) && ended.exit.code == 0, false)
        }
        State::Fresh | State::Created(_) => (false, false),
    }
}

fn states(life: &Life<'_>, name: &str, track: &Track<'_>) -> (ContainerState, ContainerState) {
    let waiting = |reason: &str, message: Option<String>| ContainerState {
        waiting: Some(ContainerStateWaiting { reason: Some(reason.to_owned()), message }),
        ..ContainerState::default()
    };
    let ended = |exit| ContainerState { terminated: exit, ..ContainerState::default() };
    let last = ended(track.last.clone());
    match &track.now {
        State::Running(_, started_at) => {
            let running = ContainerStateRunning { started_at: Some(meta::seconds(*started_at)) };
            (ContainerState { running: Some(running), ..ContainerState::default() }, last)
        }
        State::Ended(at) => {
            let exit = terminated(&at.exit, at.id.as_deref());
            // Only a container that waits for something shows it; else its end is the news.
            match life.waiting.get(name).filter(|why| !is_setup(&why.reason)) {
                Some(why) => (waiting(&why.reason, why.message.clone()), ended(Some(exit))),
                None => (ended(Some(exit)), last),
            }
        }
        State::Fresh | State::Created(_) => match life.waiting.get(name) {
            Some(why) => (waiting(&why.reason, why.message.clone()), last),
            // Also for ever, after one of the first containers failed for good.
            None if life.init_containers().next().is_some() => (waiting("PodInitializing", None), last),
            None => (waiting("ContainerCreating", None), last),
        },
    }
}

fn is_setup(reason: &str) -> bool {
    matches!(reason, "ContainerCreating" | "PodInitializing")
}

fn conditions(life: &Life<'_>, status: &mut PodStatus) {
    let names = |list: Vec<&str>| list.join(" ");
    let statuses = status.container_statuses.clone().unwrap_or_default();
    let inits = status.init_container_statuses.clone().unwrap_or_default();
    let incomplete = life.init_containers().filter(|container| !life.is_done(container));
    let incomplete: Vec<&str> = incomplete.map(|container| container.name.as_str()).collect();
    let sidecars = life.init_containers().filter(|container| is_sidecar(container));
    let sidecars: Vec<&str> = sidecars.map(|container| container.name.as_str()).collect();
    let served = inits.iter().filter(|status| sidecars.contains(&status.name.as_str()));
    let unready: Vec<&str> =
        served.chain(&statuses).filter(|status| !status.ready).map(|status| status.name.as_str()).collect();
    let sandbox = life.observed.sandbox.as_ref().is_some_and(|sandbox| sandbox.state == SandboxState::Ready);
    let end = life.end.as_ref().map(|end| end.phase);

    let mut set = |kind: &str, good: bool, reason: &str, message: &str| {
        let status_word = if good { "True" } else { "False" };
        condition::set(&mut status.conditions, kind, status_word, reason, message, life.now);
    };
    set("PodReadyToStartContainers", sandbox && end.is_none(), "", "");
    match (end, life.initialized || incomplete.is_empty()) {
        (Some("Succeeded"), _) => set("Initialized", true, "PodCompleted", ""),
        (_, true) => set("Initialized", true, "", ""),
        (_, false) => {
            let message = format!("containers with incomplete status: [{}]", names(incomplete));
            set("Initialized", false, "ContainersNotInitialized", &message);
        }
    }
    let message = format!("containers with unready status: [{}]", names(unready.clone()));
    let (good, reason, message) = match (end, unready.is_empty()) {
        (Some("Succeeded"), _) => (false, "PodCompleted", ""),
        (Some(_), _) => (false, "PodFailed", ""),
        (None, true) => (true, "", ""),
        (None, false) => (false, "ContainersNotReady", message.as_str()),
    };
    set("ContainersReady", good, reason, message);
    match closed_gate(life).filter(|_| good) {
        Some(gate) => {
            let message =
                format!("corresponding condition of pod readiness gate \"{gate}\" does not exist or is not True");
            set("Ready", false, "ReadinessGatesNotReady", &message);
        }
        None => set("Ready", good, reason, message),
    }
    set("PodScheduled", true, "", "");
}

/// A readiness gate of the pod that is not open.
fn closed_gate<'a>(life: &Life<'a>) -> Option<&'a str> {
    let open = |kind: &str| pods::condition(life.pod, kind).is_some_and(|PodCondition { status, .. }| status == "True");
    let gates = life.spec.readiness_gates.iter().flatten().map(|gate| gate.condition_type.as_str());
    gates.into_iter().find(|gate| !open(gate))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn mounts_are_told_of_as_upstream_tells_of_them() {
        let container = |value| serde_json::from_value::<Container>(value).unwrap();
        let mounts = json!([{"name": "v", "mountPath": "/v", "readOnly": true}, {"name": "w", "mountPath": "/w"}]);
        let told = volume_mounts(&container(json!({"name": "a", "volumeMounts": mounts})));
        let wanted = json!([{"name": "v", "mountPath": "/v", "readOnly": true, "recursiveReadOnly": "Disabled"},
            {"name": "w", "mountPath": "/w"}]);
        assert_eq!(serde_json::to_value(told).unwrap(), wanted);
        assert_eq!(volume_mounts(&container(json!({"name": "a"}))), None);
    }

    #[test]
    fn what_others_said_meanwhile_stays() {
        let status = |value: serde_json::Value| serde_json::from_value::<PodStatus>(value).unwrap();
        let newest = status(json!({"phase": "Pending", "nominatedNodeName": "n2", "conditions": [
            {"type": "Ready", "status": "False"}, {"type": "lb/open", "status": "True"}]}));
        let own = status(json!({"phase": "Running", "conditions": [
            {"type": "Ready", "status": "True"}, {"type": "gone", "status": "True"}]}));
        let wanted = status(json!({"phase": "Running", "nominatedNodeName": "n2", "conditions": [
            {"type": "lb/open", "status": "True"}, {"type": "Ready", "status": "True"}]}));
        assert_eq!(over(newest, own), wanted);
    }
}
