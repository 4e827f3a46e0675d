//! A pod that shall run: sandbox, init containers in order, then the others side by side.

use flotilla_api::k8s_openapi::api::core::v1::Container;
use jiff::Timestamp;

use super::effect::{Effect, StopReason};
use super::images::{self, Need};
use super::observed::{Failure, SandboxState};
use super::track::{Ended, State};
use super::{End, Life, backoff, is_sidecar, probes};
use crate::meta;

/// Failures to make a sandbox or a container are retried sooner than crashes: 1 s doubling to 30 s.
const SETUP_LAST_SECONDS: i64 = 30;

impl<'a> Life<'a> {
    pub(super) fn run(&mut self) {
        if let Some(end) = self.outcome() {
            self.finish(end);
            return;
        }
        if !self.has_sandbox() {
            self.note_waiting();
            return;
        }
        // They look into a pod whatever it waits for itself.
        for container in self.ephemeral {
            self.advance(container);
        }
        for container in self.init_containers() {
            let done = self.is_done(container);
            if !self.initialized || is_sidecar(container) {
                self.advance(container);
            }
            if !self.initialized && !done {
                break;
            }
        }
        if self.initialized {
            for container in &self.spec.containers {
                self.advance(container);
            }
        }
        self.note_waiting();
    }

    /// How the pod ends, if all that could still run has ended for good.
    fn outcome(&self) -> Option<End> {
        let end = |phase| Some(End { phase, reason: None, message: None });
        if !self.initialized {
            let failed = self.init_containers().filter(|container| !is_sidecar(container)).any(|container| {
                let ended = self.track(&container.name).ended();
                ended.is_some_and(|ended| ended.exit.code != 0 && !self.restarts(container, ended))
            });
            // Nothing was observed of this sandbox's containers: the status alone may tell of the end.
            let all = || self.spec.containers.iter().all(|container| self.is_over(container));
            return if failed || (all() && self.any_failed()) {
                end("Failed")
            } else if all() {
                end("Succeeded")
            } else {
                None
            };
        }
        if !self.spec.containers.iter().all(|container| self.is_over(container)) {
            return None;
        }
        if self.any_failed() { end("Failed") } else { end("Succeeded") }
    }

    fn any_failed(&self) -> bool {
        self.spec
            .containers
            .iter()
            .any(|container| self.track(&container.name).ended().is_some_and(|ended| ended.exit.code != 0))
    }

    /// Whether the container ended and will not be started again.
    fn is_over(&self, container: &Container) -> bool {
        self.track(&container.name).ended().is_some_and(|ended| !self.restarts(container, ended))
    }

    fn restarts(&self, container: &Container, ended: &Ended) -> bool {
        let policy = container.restart_policy.as_deref().or(self.spec.restart_policy.as_deref());
        match policy {
            Some("Never") => false,
            Some("OnFailure") => ended.exit.code != 0,
            _ => true,
        }
    }

    fn finish(&mut self, end: End) {
        self.wind_down(StopReason::PodFinished);
        self.end_when_stopped(end);
    }

    /// Whether containers can be started; if not, does what is needed for it.
    fn has_sandbox(&mut self) -> bool {
        match self.observed.sandbox.as_ref().map(|sandbox| sandbox.state) {
            Some(SandboxState::Ready) => true,
            Some(SandboxState::Stopped) => {
                self.replace_sandbox();
                false
            }
            None => {
                self.create_sandbox();
                false
            }
        }
    }

    fn create_sandbox(&mut self) {
        match self.observed.sandbox_failure.as_ref().map(setup_retry_at) {
            Some(at) if at > self.now => self.wake(at),
            _ => self.effects.push(Effect::CreateSandbox),
        }
        // Images do not need the sandbox: they are fetched meanwhile.
        let next = self.init_containers().chain(&self.spec.containers);
        for container in next {
            if let Need::Wait { effect: Some(effect), .. } = self.image(container) {
                self.push(effect);
            }
        }
    }

    /// Containers cannot move into another sandbox: they end with the old one.
    fn replace_sandbox(&mut self) {
        let kill_at = meta::plus_seconds(self.now, self.grace_seconds());
        self.stop_live(kill_at, StopReason::SandboxChanged);
        if self.tracks.values().all(|track| track.live().is_none()) {
            self.effects.push(Effect::RemoveSandbox);
        }
    }

    fn image(&self, container: &Container) -> Need {
        let created = self.observed.sandbox.as_ref().map(|sandbox| sandbox.created_at);
        let since = match (self.track(&container.name).ended().filter(|ended| ended.here), created) {
            (Some(ended), _) => ended.exit.finished_at,
            // Pulled while the sandbox was made counts as well; both times are of the node's own clock.
            (None, Some(created)) => created.min(self.start_time()),
            (None, None) => Timestamp::MIN,
        };
        images::need(container, self.observed, since, self.now)
    }

    fn push(&mut self, effect: Effect) {
        if !self.effects.iter().any(|other| other.same_as(&effect)) {
            self.effects.push(effect);
        }
    }

    /// Takes one container a step further.
    fn advance(&mut self, container: &'a Container) {
        match self.track(&container.name).now.clone() {
            State::Fresh => self.start(container, 0, 0),
            State::Created(attempt) => self.start(container, attempt.attempt, attempt.crashes),
            State::Running(attempt, started_at) => {
                let verdict = probes::judge(container, &attempt.probes, started_at, self.now);
                if let (Some((kind, grace)), None) = (verdict.unhealthy, attempt.stopping) {
                    let grace = grace.unwrap_or_else(|| self.grace_seconds());
                    self.effects.push(Effect::StopContainer {
                        name: container.name.clone(),
                        attempt: attempt.attempt,
                        kill_at: meta::plus_seconds(self.now, grace),
                        why: StopReason::Unhealthy(kind),
                    });
                }
                if attempt.stopping.is_none() {
                    let (name, attempt) = (&container.name, attempt.attempt);
                    let due = verdict.due.into_iter();
                    self.effects.extend(due.map(|kind| Effect::Probe { name: name.clone(), attempt, kind }));
                    if let Some(at) = verdict.next_at {
                        self.wake(at);
                    }
                }
            }
            State::Ended(ended) if self.is_restartable(container, &ended) => self.restart(container, &ended),
            State::Ended(_) => {}
        }
    }

    /// Whether an ended container is started again. An init container that is done is not, unless it
    /// was done in a sandbox that is no more.
    fn is_restartable(&self, container: &Container, ended: &Ended) -> bool {
        let is_init = self.init_containers().any(|init| init.name == container.name);
        match is_init && !is_sidecar(container) {
            true => (ended.exit.code != 0 && self.restarts(container, ended)) || !ended.here,
            false => self.restarts(container, ended),
        }
    }

    fn restart(&mut self, container: &'a Container, ended: &Ended) {
        let delay = if ended.here { backoff::delay_seconds(ended.crashes) } else { 0 };
        let at = meta::plus_seconds(ended.exit.finished_at, delay);
        if at > self.now {
            self.wake(at);
            self.wait(&container.name, "CrashLoopBackOff", Some(self.crash_words(container, delay)));
        } else {
            let crashes = if ended.here { ended.crashes.saturating_add(1) } else { 0 };
            self.start(container, ended.attempt.saturating_add(1), crashes);
        }
    }

    fn crash_words(&self, container: &Container, seconds: i64) -> String {
        let delay = match (seconds / 60, seconds % 60) {
            (0, seconds) => format!("{seconds}s"),
            (minutes, seconds) => format!("{minutes}m{seconds}s"),
        };
        let meta = &self.pod.metadata;
        let (name, namespace, uid) = (meta::name(meta), meta::namespace(meta), meta::uid(meta));
        format!("back-off {delay} restarting failed container={} pod={name}_{namespace}({uid})", container.name)
    }

    fn start(&mut self, container: &'a Container, attempt: u32, crashes: u32) {
        let image_id = match self.image(container) {
            Need::Ready(id) => id,
            Need::Wait { reason, message, effect, wake_at } => {
                self.wait_for_image(container, reason, message);
                if let Some(effect) = effect {
                    self.push(effect);
                }
                if let Some(at) = wake_at {
                    self.wake(at);
                }
                return;
            }
        };
        if let Some(failure) = self.observed.container_failures.get(&container.name) {
            let message = Some(&failure.message).filter(|message| !message.is_empty());
            self.wait(&container.name, &failure.reason, message.cloned());
            let at = setup_retry_at(failure);
            if at > self.now {
                self.wake(at);
                return;
            }
        }
        self.effects.push(Effect::StartContainer { name: container.name.clone(), attempt, crashes, image_id });
    }

    /// A pull that is tried again still waits because the last one failed.
    fn wait_for_image(&mut self, container: &'a Container, reason: &str, message: Option<String>) {
        let known = self.track(&container.name).known.and_then(|known| known.state.as_ref()?.waiting.as_ref());
        let failing = known.filter(|known| {
            reason == "ContainerCreating"
                && matches!(known.reason.as_deref(), Some("ErrImagePull" | "ImagePullBackOff"))
        });
        match failing {
            Some(known) => self.wait(&container.name, "ImagePullBackOff", known.message.clone()),
            None => self.wait(&container.name, reason, message),
        }
    }

    /// Says of every container that is not there yet what it waits for.
    fn note_waiting(&mut self) {
        let initialized = self.initialized;
        let mains = self.spec.containers.iter().map(|container| (container, !initialized));
        let containers: Vec<_> =
            self.init_containers().map(|container| (container, !initialized)).chain(mains).collect();
        let containers: Vec<_> =
            containers.into_iter().chain(self.ephemeral.iter().map(|container| (container, false))).collect();
        let alone = self.spec.init_containers.as_ref().is_none_or(Vec::is_empty);
        for (container, behind) in containers {
            let name = container.name.as_str();
            if self.track(name).live().is_none() && !self.waiting.contains_key(name) {
                let reason = if behind && !alone { "PodInitializing" } else { "ContainerCreating" };
                self.wait(name, reason, None);
            }
        }
    }
}

fn setup_retry_at(failure: &Failure) -> Timestamp {
    let seconds = 1i64 << failure.tries.clamp(1, 6).saturating_sub(1);
    meta::plus_seconds(failure.at, seconds.min(SETUP_LAST_SECONDS))
}
