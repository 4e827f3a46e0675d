//! How a job does, in a word and a sentence.
//!
//! Invariant: the summary is a function of the object and its pods as they were read.

use std::fmt;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus};
use k8s_openapi::api::batch::v1 as batch;
use k8s_openapi::api::core::v1 as core;
use serde::Deserialize;
use serde_json::Value;

use super::raise::{self, raise};
use super::{BATCH, Job};
use crate::kinds::pod;

/// What a job is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Has not run as asked yet.
    Pending,
    /// A service whose replicas are being replaced.
    Updating,
    /// All that should run does.
    Running,
    /// A service of which less runs than should, or whose update does not go on.
    Degraded,
    /// A batch job that succeeded.
    Complete,
    /// A batch job that was given up.
    Failed,
    /// Being taken down.
    Stopping,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A job with what has become of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    pub job: Job,
    pub phase: Phase,
    /// Why, in words; empty when there is nothing to say.
    pub message: String,
    /// Of a service: replicas wanted. Of a batch job: successes wanted.
    pub desired: i32,
    /// Pods that run and are ready.
    pub ready: i32,
    /// Of a service: pods of the newest version.
    pub updated: i32,
    /// Of a batch job: tasks that succeeded.
    pub succeeded: i32,
    /// Of a batch job: tasks that failed.
    pub failed: i32,
    pub pods: Vec<PodSummary>,
    pub created: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSummary {
    pub name: String,
    pub namespace: String,
    /// What `kubectl get pods` would say.
    pub status: String,
    /// `1/1`
    pub ready: String,
    pub restarts: i32,
    pub node: String,
    pub ip: String,
    pub created: Option<Timestamp>,
    /// Why it is not running, in words.
    pub message: String,
}

impl PodSummary {
    pub fn of(pod: &core::Pod, now: Timestamp) -> Self {
        let summary = pod::summarize(pod, now);
        Self {
            name: pod.metadata.name.clone().unwrap_or_default(),
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            ready: format!("{}/{}", summary.ready, summary.containers),
            restarts: summary.restarts,
            node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
            ip: pod.status.as_ref().and_then(|status| status.pod_ip.clone()).unwrap_or_default(),
            created: pod.metadata.creation_timestamp.as_ref().map(|time| time.0),
            status: summary.status,
            message: summary.message,
        }
    }
}

/// Sums up a job from its object and its pods; `None` if the object did not come from a job.
pub fn summarize(object: &Value, pods: &[core::Pod], now: Timestamp) -> Option<Summary> {
    let job = raise(object)?;
    let pods: Vec<PodSummary> = pods.iter().map(|pod| PodSummary::of(pod, now)).collect();
    if job.type_ == BATCH {
        batch::Job::deserialize(object).ok().map(|object| batch(&object, pods))
    } else {
        Deployment::deserialize(object).ok().map(|object| service(&object, pods))
    }
}

fn service(deployment: &Deployment, pods: Vec<PodSummary>) -> Summary {
    let status = deployment.status.clone().unwrap_or_default();
    let desired = deployment.spec.replicas.unwrap_or_default();
    let (phase, words) = service_phase(deployment, &status, desired);
    Summary {
        job: raise::service(deployment),
        phase,
        message: message(phase, words, &pods),
        desired,
        ready: status.ready_replicas.unwrap_or_default(),
        updated: status.updated_replicas.unwrap_or_default(),
        succeeded: 0,
        failed: 0,
        pods,
        created: deployment.metadata.creation_timestamp.as_ref().map(|time| time.0),
    }
}

fn service_phase(deployment: &Deployment, status: &DeploymentStatus, desired: i32) -> (Phase, String) {
    let total = status.replicas.unwrap_or_default();
    let updated = status.updated_replicas.unwrap_or_default();
    let available = status.available_replicas.unwrap_or_default();
    let progress = status.conditions.iter().flatten().find(|c| c.type_.as_deref() == Some("Progressing"));
    let reason = progress.and_then(|c| c.reason.as_deref()).unwrap_or_default();
    let seen = status.observed_generation >= deployment.metadata.generation;
    if deployment.metadata.deletion_timestamp.is_some() {
        return (Phase::Stopping, String::new());
    }
    if reason == "ProgressDeadlineExceeded" {
        return (Phase::Degraded, "the update has made no progress within its deadline".to_owned());
    }
    if seen && updated >= desired && total == updated && available >= desired {
        let words = if desired == 0 { "scaled to 0".to_owned() } else { String::new() };
        return (Phase::Running, words);
    }
    if total > updated {
        return (Phase::Updating, format!("{updated} of {desired} replicas are updated"));
    }
    let words = format!("{available} of {desired} replicas are available");
    if seen && reason == "NewReplicaSetAvailable" { (Phase::Degraded, words) } else { (Phase::Pending, words) }
}

fn batch(job: &batch::Job, pods: Vec<PodSummary>) -> Summary {
    let status = job.status.clone().unwrap_or_default();
    let desired = job.spec.as_ref().and_then(|spec| spec.completions).unwrap_or(1);
    let succeeded = status.succeeded.unwrap_or_default();
    let holds = |type_: &str| status.conditions.iter().flatten().find(|c| c.type_ == type_ && c.status == "True");
    let (phase, words) = if holds("Complete").is_some() {
        (Phase::Complete, String::new())
    } else if let Some(condition) = holds("Failed") {
        (Phase::Failed, condition.message.clone().unwrap_or_default())
    } else if job.metadata.deletion_timestamp.is_some() {
        (Phase::Stopping, String::new())
    } else if status.ready.unwrap_or_default() > 0 || succeeded > 0 {
        (Phase::Running, format!("{succeeded} of {desired} tasks have succeeded"))
    } else {
        (Phase::Pending, format!("{succeeded} of {desired} tasks have succeeded"))
    };
    Summary {
        job: raise::batch(job),
        phase,
        message: message(phase, words, &pods),
        desired,
        ready: status.ready.unwrap_or_default(),
        updated: 0,
        succeeded,
        failed: status.failed.unwrap_or_default(),
        pods,
        created: job.metadata.creation_timestamp.as_ref().map(|time| time.0),
    }
}

/// What there is to say of the phase, with the trouble of the first pod that has some.
fn message(phase: Phase, words: String, pods: &[PodSummary]) -> String {
    if matches!(phase, Phase::Complete | Phase::Stopping) {
        return words;
    }
    let fine = ["Running", "Completed", "Succeeded", "Terminating", "ContainerCreating", "PodInitializing"];
    let is_troubled = |pod: &&PodSummary| {
        !fine.contains(&pod.status.as_str()) && (pod.status != "Pending" || !pod.message.is_empty())
    };
    let Some(pod) = pods.iter().find(is_troubled) else { return words };
    let trouble = match pod.message.as_str() {
        "" => format!("{} is {}", pod.name, pod.status),
        why => format!("{} is {}: {why}", pod.name, pod.status),
    };
    if words.is_empty() { trouble } else { format!("{words}; {trouble}") }
}
