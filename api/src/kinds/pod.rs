//! Pods: containers that share a node, a network and a life.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    self as core, ContainerStatus, PodCondition, PodSpec, PodStatus, ResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::{BuiltIn, Info};
use crate::columns::{self, Column, NONE};
use crate::field::Errors;
use crate::quantity::Amount;
use crate::warn::{self, Warnings};
use crate::{defaults, validate};

pub struct Pod;

impl BuiltIn for Pod {
    type Object = core::Pod;
    const INFO: Info = Info {
        kind: "Pod",
        plural: "pods",
        singular: "pod",
        short_names: &["po"],
        categories: &["all"],
        subresources: &["status", "log", "exec", "attach", "portforward", "binding", "eviction", "ephemeralcontainers", "proxy", "resize"],
        selectable: &["spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName", "spec.hostNetwork", "status.phase", "status.podIP", "status.nominatedNodeName"],
        generation: true,
        schema: "io.k8s.api.core.v1.Pod",
        shows_deleted: true,
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] = &[
        columns::NAME,
        Column::text("Ready"),
        Column::text("Status"),
        Column::text("Restarts"),
        columns::AGE,
        Column::wide("IP"),
        Column::wide("Node"),
        Column::wide("Nominated Node"),
        Column::wide("Readiness Gates"),
    ];

    fn default(pod: &mut core::Pod) {
        let spec = pod.spec.get_or_insert_default();
        defaults::pod_spec(spec);
        defaults::pod_only(spec);
    }

    fn create(pod: &mut core::Pod) {
        pod.status = Some(first_status(pod.spec.as_ref()));
    }

    /// What its policies gave a pod stays with it, though a writer says nothing of it.
    fn update(old: &core::Pod, new: &mut core::Pod) {
        let (Some(before), Some(after)) = (&old.spec, &mut new.spec) else { return };
        if after.priority.is_none() {
            after.priority = before.priority;
        }
        let kept = [
            (&before.preemption_policy, &mut after.preemption_policy),
            (&before.priority_class_name, &mut after.priority_class_name),
        ];
        for (before, after) in kept {
            if after.as_deref().unwrap_or_default().is_empty() {
                after.clone_from(before);
            }
        }
    }

    fn validate(pod: &core::Pod, errors: &mut Errors) {
        validate::pod::pod(pod, errors);
    }

    fn validate_update(old: &core::Pod, new: &core::Pod, errors: &mut Errors) {
        validate::pod::update(old, new, errors);
    }

    fn validate_status(pod: &core::Pod, errors: &mut Errors) {
        if let Some(status) = &pod.status {
            validate::pod::status(status, errors);
        }
    }

    fn warn(old: Option<&core::Pod>, new: &core::Pod, warnings: &mut Warnings) {
        // People hardly write pods that are there, and others often do.
        if old.is_none() {
            warn::pod::pod(new, warnings);
        }
    }

    fn row(pod: &core::Pod, now: Timestamp) -> Vec<String> {
        let summary = summarize(pod, now);
        let status = pod.status.clone().unwrap_or_default();
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        vec![
            columns::name(&pod.metadata),
            format!("{}/{}", summary.ready, summary.containers),
            summary.status,
            summary.restarts_cell,
            columns::age(&pod.metadata, now),
            columns::or_none(status.pod_ip.as_deref()),
            columns::or_none(node),
            columns::or_none(status.nominated_node_name.as_deref()),
            readiness_gates(pod),
        ]
    }
}

/// A pod in the words of `kubectl get pods`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// `Running`, `CrashLoopBackOff`, `Init:0/1`, `Terminating`, …
    pub status: String,
    /// Why it is not running, in words; empty when there is nothing to say.
    pub message: String,
    pub ready: usize,
    pub containers: usize,
    pub restarts: i32,
    /// `3`, `3 (5m ago)`.
    pub restarts_cell: String,
}

/// Says how a pod does.
pub fn summarize(pod: &core::Pod, now: Timestamp) -> Summary {
    let spec = pod.spec.clone().unwrap_or_default();
    let status = pod.status.clone().unwrap_or_default();
    let sidecars = sidecar_names(&spec);
    let init = status.init_container_statuses.as_deref().unwrap_or_default();
    let running = status.container_statuses.as_deref().unwrap_or_default();
    let mut counted: Vec<&ContainerStatus> = running.iter().collect();
    counted.extend(init.iter().filter(|c| sidecars.contains(&c.name.as_str())));

    let (mut text, mut message) = phase(&status);
    let initializing = initializing(&spec, init, &sidecars);
    match &initializing {
        Some((reason, why, _)) => (text, message) = (reason.clone(), why.clone()),
        None => {
            if let Some(trouble) = running.iter().rev().find_map(container_trouble) {
                (text, message) = trouble;
            }
            if text == "Completed" && running.iter().any(is_up) {
                text = if is_true(&status, "Ready") { "Running" } else { "NotReady" }.to_owned();
            }
        }
    }
    let restarted = match &initializing {
        Some((_, _, begun)) => init[..*begun].iter().collect(),
        None => counted.clone(),
    };
    let restarts = restarted.iter().map(|c| c.restart_count).sum();
    let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    if pod.metadata.deletion_timestamp.is_some() {
        match status.reason.as_deref() {
            Some("NodeLost") => text = "Unknown".to_owned(),
            _ if ended => {}
            _ => text = "Terminating".to_owned(),
        }
    }
    Summary {
        status: text,
        message,
        ready: counted.iter().filter(|c| c.ready && is_up(c)).count(),
        containers: spec.containers.len() + sidecars.len(),
        restarts,
        restarts_cell: restarts_cell(restarts, &restarted, now),
    }
}

fn sidecar_names(spec: &PodSpec) -> Vec<&str> {
    let init = spec.init_containers.iter().flatten();
    init.filter(|c| c.restart_policy.as_deref() == Some("Always")).map(|c| c.name.as_str()).collect()
}

fn phase(status: &PodStatus) -> (String, String) {
    let phase = status.phase.clone().unwrap_or_else(|| "Unknown".to_owned());
    let reason = status.reason.clone().filter(|reason| !reason.is_empty());
    let mut message = status.message.clone().unwrap_or_default();
    let scheduled = status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled");
    if let Some(condition) = scheduled.filter(|c| c.status != "True") {
        message = condition.message.clone().unwrap_or(message);
        if condition.reason.as_deref() == Some("SchedulingGated") {
            return ("SchedulingGated".to_owned(), message);
        }
    }
    (reason.unwrap_or(phase), message)
}

fn is_true(status: &PodStatus, condition: &str) -> bool {
    status.conditions.iter().flatten().any(|c| c.type_ == condition && c.status == "True")
}

fn is_up(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|state| state.running.is_some())
}

/// Status and message while init containers are at work, and how many of them have begun; `None` once they are done.
fn initializing(spec: &PodSpec, init: &[ContainerStatus], sidecars: &[&str]) -> Option<(String, String, usize)> {
    let total = spec.init_containers.as_ref().map_or(0, Vec::len);
    for (index, container) in init.iter().enumerate() {
        let begun = index + 1;
        let state = container.state.clone().unwrap_or_default();
        let is_sidecar = sidecars.contains(&container.name.as_str());
        if let Some(ended) = &state.terminated {
            if ended.exit_code == 0 {
                continue;
            }
            let text = ended_words(ended.reason.as_deref(), ended.exit_code, ended.signal);
            return Some((format!("Init:{text}"), ended.message.clone().unwrap_or_default(), begun));
        }
        if is_sidecar && container.started == Some(true) {
            continue;
        }
        let waiting = state.waiting.filter(|w| w.reason.as_deref().is_some_and(|r| r != "PodInitializing"));
        return Some(match waiting {
            Some(w) => (format!("Init:{}", w.reason.unwrap_or_default()), w.message.unwrap_or_default(), begun),
            None => (format!("Init:{index}/{total}"), String::new(), begun),
        });
    }
    None
}

/// What a container that waits or has ended says of itself.
fn container_trouble(container: &ContainerStatus) -> Option<(String, String)> {
    let state = container.state.as_ref()?;
    if let Some(waiting) = &state.waiting {
        let reason = waiting.reason.clone().filter(|reason| !reason.is_empty())?;
        return Some((reason, waiting.message.clone().unwrap_or_default()));
    }
    let ended = state.terminated.as_ref()?;
    let text = ended_words(ended.reason.as_deref(), ended.exit_code, ended.signal);
    Some((text, ended.message.clone().unwrap_or_default()))
}

fn ended_words(reason: Option<&str>, exit_code: i32, signal: Option<i32>) -> String {
    match (reason.filter(|reason| !reason.is_empty()), signal.filter(|signal| *signal != 0)) {
        (Some(reason), _) => reason.to_owned(),
        (None, Some(signal)) => format!("Signal:{signal}"),
        (None, None) => format!("ExitCode:{exit_code}"),
    }
}

fn restarts_cell(restarts: i32, containers: &[&ContainerStatus], now: Timestamp) -> String {
    let ends = containers.iter().filter_map(|c| c.last_state.as_ref()?.terminated.as_ref()?.finished_at.as_ref());
    match ends.max_by_key(|time| time.0).filter(|_| restarts > 0) {
        Some(last) => format!("{restarts} ({} ago)", columns::since(Some(last), now)),
        None => restarts.to_string(),
    }
}

fn readiness_gates(pod: &core::Pod) -> String {
    let gates = pod.spec.as_ref().and_then(|spec| spec.readiness_gates.as_deref()).unwrap_or_default();
    let status = pod.status.clone().unwrap_or_default();
    let passed = gates.iter().filter(|gate| is_true(&status, &gate.condition_type)).count();
    if gates.is_empty() { NONE.to_owned() } else { format!("{passed}/{}", gates.len()) }
}

/// What a pod says of itself before anybody else does.
pub fn first_status(spec: Option<&PodSpec>) -> PodStatus {
    let gated = spec.is_some_and(|spec| spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty()));
    let condition = || PodCondition {
        type_: "PodScheduled".to_owned(),
        status: "False".to_owned(),
        reason: Some("SchedulingGated".to_owned()),
        message: Some("Scheduling is blocked due to non-empty scheduling gates".to_owned()),
        ..PodCondition::default()
    };
    PodStatus {
        phase: Some("Pending".to_owned()),
        qos_class: spec.map(qos_class).map(str::to_owned),
        conditions: gated.then(|| vec![condition()]),
        ..PodStatus::default()
    }
}

/// Whether the resource is one that a pod may name for all of its containers together.
pub fn is_of_whole_pods(resource: &str) -> bool {
    matches!(resource, "cpu" | "memory") || resource.starts_with("hugepages-")
}

/// What the pod as a whole asks for and may take; `None` if only its containers say so.
pub fn resources_of_whole(spec: &PodSpec) -> Option<&ResourceRequirements> {
    let named = |map: &Option<BTreeMap<String, Quantity>>| map.iter().flatten().any(|(name, _)| is_of_whole_pods(name));
    spec.resources.as_ref().filter(|whole| named(&whole.requests) || named(&whole.limits))
}

/// The quality-of-service class that requests and limits of cpu and memory give a pod: those of the pod as a whole, or
/// those of each container.
pub fn qos_class(spec: &PodSpec) -> &'static str {
    let (mut any, mut guaranteed) = (false, true);
    let containers = || spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let parts: Vec<Option<&ResourceRequirements>> = match resources_of_whole(spec) {
        Some(whole) => vec![Some(whole)],
        None => containers().map(|container| container.resources.as_ref()).collect(),
    };
    let amount = |map: Option<&BTreeMap<String, Quantity>>, name: &str| {
        let amount = map.and_then(|map| Amount::parse(&map.get(name)?.0).ok());
        amount.filter(|amount| !amount.is_zero())
    };
    for resources in parts {
        for name in ["cpu", "memory"] {
            let limit = amount(resources.and_then(|resources| resources.limits.as_ref()), name);
            let request = amount(resources.and_then(|resources| resources.requests.as_ref()), name);
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && request.is_none_or(|request| Some(request) == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}
