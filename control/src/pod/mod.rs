//! The life of a pod on its node: what is wanted, what is observed and the time give the next step.
//!
//! The agent calls [`step`] whenever the pod, what it observes, or the time asked for changes; it
//! publishes the status, carries out the effects, and when the step says `finished` and the pod was
//! told to go, removes the object (see [`crate::deletion::confirm`]). [`teardown`] ends what belongs
//! to no pod any more.
//!
//! Invariant: at most one attempt of a container is live, and none is started while another lives.
//! Invariant: the phases Succeeded and Failed are final; no container is started after them.
//! Invariant: a pod that is deleted is `finished` only when no sandbox and no live container is left.

mod backoff;
mod effect;
mod images;
mod observed;
mod probes;
mod run;
mod status;
mod stop;
mod track;

use std::collections::BTreeMap;

use flotilla_api::k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodSpec, PodStatus};
use jiff::Timestamp;

pub use effect::{Effect, StopReason};
pub use observed::{Attempt, AttemptState, Exit, ExitCause, Failure, Image, Observed, Sandbox, SandboxState};
pub use probes::{ProbeKind, ProbeRecord, Probes};
pub use status::over;
pub use stop::teardown;

use crate::{meta, pods};
use track::{State, Track};

/// What to do now, what to say, and when to look again.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Independent of each other.
    pub effects: Vec<Effect>,
    /// To be published if it differs from the pod's.
    pub status: PodStatus,
    /// Nothing of the pod is left on the node, and nothing will be started.
    pub finished: bool,
    pub wake_at: Option<Timestamp>,
}

/// The next step of a pod.
pub fn step(pod: &Pod, observed: &Observed, now: Timestamp) -> Step {
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let ephemeral = ephemeral_containers(spec);
    let mut life = Life::new(pod, spec, &ephemeral, observed, now);
    life.decide();
    let status = status::of(&life);
    let gone = observed.sandbox.is_none() && life.tracks.values().all(|track| track.live().is_none());
    let ended = meta::is_deleting(&pod.metadata) || life.end.is_some();
    Step { effects: life.effects, status, finished: gone && ended, wake_at: life.wake_at }
}

/// How a pod ended.
#[derive(Clone, Debug, PartialEq)]
struct End {
    phase: &'static str,
    reason: Option<String>,
    message: Option<String>,
}

/// Why a container that should run does not.
#[derive(Clone, Debug, PartialEq)]
struct Waiting {
    reason: String,
    message: Option<String>,
}

/// One step in the making.
struct Life<'a> {
    pod: &'a Pod,
    spec: &'a PodSpec,
    /// Containers that were added to look into the pod; see [`ephemeral_containers`].
    ephemeral: &'a [Container],
    observed: &'a Observed,
    now: Timestamp,
    tracks: BTreeMap<&'a str, Track<'a>>,
    waiting: BTreeMap<&'a str, Waiting>,
    /// Whether the init containers have done their part.
    initialized: bool,
    end: Option<End>,
    effects: Vec<Effect>,
    wake_at: Option<Timestamp>,
}

impl<'a> Life<'a> {
    fn new(
        pod: &'a Pod,
        spec: &'a PodSpec,
        ephemeral: &'a [Container],
        observed: &'a Observed,
        now: Timestamp,
    ) -> Self {
        let known = |name: &str| known_status(pod.status.as_ref(), name);
        let containers = spec.init_containers.iter().flatten().chain(&spec.containers).chain(ephemeral);
        let tracks = containers
            .map(|container| {
                let name = container.name.as_str();
                (name, Track::new(name, known(name), observed, now))
            })
            .collect();
        Self {
            pod,
            spec,
            ephemeral,
            observed,
            now,
            tracks,
            waiting: BTreeMap::new(),
            initialized: false,
            end: None,
            effects: Vec::new(),
            wake_at: None,
        }
    }

    fn decide(&mut self) {
        self.initialized = self.has_initialized();
        if meta::is_deleting(&self.pod.metadata) {
            self.end = self.known_end();
            self.delete();
        } else if let Some(end) = self.known_end() {
            self.end = Some(end);
            self.wind_down(StopReason::PodFinished);
        } else if let Some(end) = self.eviction() {
            self.exceed(end, StopReason::Evicted);
        } else if let Some(end) = self.deadline() {
            self.exceed(end, StopReason::DeadlineExceeded);
        } else {
            self.run();
        }
        self.remove_old_attempts();
    }

    /// The end that the pod's status already tells of.
    fn known_end(&self) -> Option<End> {
        let status = self.pod.status.as_ref()?;
        let phase = match status.phase.as_deref() {
            Some("Succeeded") => "Succeeded",
            Some("Failed") => "Failed",
            _ => return None,
        };
        Some(End { phase, reason: status.reason.clone(), message: status.message.clone() })
    }

    fn start_time(&self) -> Timestamp {
        let time = self.pod.status.as_ref().and_then(|status| status.start_time.as_ref());
        time.map_or(self.now, |time| time.0)
    }

    /// The end of a pod that took more than it may. Defined by Kubernetes' documentation, "Node-pressure Eviction".
    fn eviction(&self) -> Option<End> {
        let message = self.observed.excess.clone()?;
        Some(End { phase: "Failed", reason: Some("Evicted".into()), message: Some(message) })
    }

    /// The end of a pod that ran longer than it may. Until then, asks to be woken.
    fn deadline(&mut self) -> Option<End> {
        let seconds = self.spec.active_deadline_seconds?;
        let at = meta::plus_seconds(self.start_time(), seconds);
        if at > self.now {
            self.wake(at);
            return None;
        }
        let message = "Pod was active on the node longer than the specified deadline";
        Some(End { phase: "Failed", reason: Some("DeadlineExceeded".into()), message: Some(message.into()) })
    }

    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |other| other.min(at)));
    }

    fn wait(&mut self, name: &'a str, reason: &str, message: Option<String>) {
        self.waiting.insert(name, Waiting { reason: reason.to_owned(), message });
    }

    fn init_containers(&self) -> impl Iterator<Item = &'a Container> + use<'a> {
        self.spec.init_containers.iter().flatten()
    }

    fn track(&self, name: &str) -> &Track<'a> {
        &self.tracks[name]
    }

    /// Whether every init container has done its part in this sandbox, or must have: a container that
    /// waits for them was started.
    fn has_initialized(&self) -> bool {
        let waits = |container: &Container| self.track(&container.name).is_here();
        self.spec.containers.iter().any(waits) || self.init_containers().all(|container| self.is_done(container))
    }

    /// Whether the next container need not wait for this init container.
    fn is_done(&self, container: &Container) -> bool {
        match &self.track(&container.name).now {
            State::Ended(ended) => !is_sidecar(container) && ended.exit.code == 0 && ended.here,
            State::Running(attempt, started_at) => {
                is_sidecar(container) && probes::judge(container, &attempt.probes, *started_at, self.now).started
            }
            State::Fresh | State::Created(_) => false,
        }
    }

    /// Keeps the last two attempts of each container: the one before may be asked for its output.
    fn remove_old_attempts(&mut self) {
        for (name, attempts) in &self.observed.containers {
            let old = attempts.iter().rev().skip(2).filter(|attempt| !attempt.is_live());
            self.effects
                .extend(old.map(|attempt| Effect::RemoveContainer { name: name.clone(), attempt: attempt.attempt }));
        }
    }

    fn grace_seconds(&self) -> i64 {
        pods::grace_seconds(self.pod)
    }
}

fn known_status<'a>(status: Option<&'a PodStatus>, name: &str) -> Option<&'a ContainerStatus> {
    let status = status?;
    let all = status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten());
    let all = all.chain(status.ephemeral_container_statuses.iter().flatten());
    all.into_iter().find(|status| status.name == name)
}

/// The containers that were added to a pod to look into it, as containers that run once.
pub fn ephemeral_containers(spec: &PodSpec) -> Vec<Container> {
    let added = spec.ephemeral_containers.iter().flatten();
    added
        .map(|container| Container {
            name: container.name.clone(),
            image: container.image.clone(),
            image_pull_policy: container.image_pull_policy.clone(),
            command: container.command.clone(),
            args: container.args.clone(),
            working_dir: container.working_dir.clone(),
            env: container.env.clone(),
            env_from: container.env_from.clone(),
            security_context: container.security_context.clone(),
            stdin: container.stdin,
            stdin_once: container.stdin_once,
            tty: container.tty,
            volume_mounts: container.volume_mounts.clone(),
            restart_policy: Some("Never".to_owned()),
            ..Container::default()
        })
        .collect()
}

/// An init container that goes on beside the others.
fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

#[cfg(test)]
mod tests;
