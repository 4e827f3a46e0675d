//! The ways a pod stops: told to go, finished, out of time, or without an object.
//!
//! Sidecars stop after the containers they serve, last started first.

use jiff::Timestamp;

use super::effect::{Effect, StopReason};
use super::observed::{Observed, SandboxState};
use super::{End, Life, is_sidecar};
use crate::meta;

/// Even a pod whose time is over gets so long between the stop signal and the kill.
const MIN_GRACE_SECONDS: i64 = 1;

impl Life<'_> {
    /// The pod was told to go: containers, then the sandbox.
    pub(super) fn delete(&mut self) {
        let meta = &self.pod.metadata;
        let told = meta.deletion_timestamp.as_ref().map_or(self.now, |time| time.0);
        let kill_at = told.max(meta::plus_seconds(self.now, MIN_GRACE_SECONDS));
        self.stop_live(kill_at, StopReason::Deleted);
        if self.tracks.values().any(|track| track.live().is_some()) {
            return;
        }
        let end = self.last_words();
        self.end.get_or_insert(end);
        if self.observed.sandbox.is_some() {
            self.effects.push(Effect::RemoveSandbox);
        }
    }

    /// How a pod ends that did not end by itself.
    fn last_words(&self) -> End {
        let ended = |name: &str| self.track(name).ended().map(|ended| ended.exit.code);
        let all_well = self.spec.containers.iter().all(|container| ended(&container.name) == Some(0));
        End { phase: if all_well { "Succeeded" } else { "Failed" }, reason: None, message: None }
    }

    /// The pod is over but stays: its logs may still be asked for.
    pub(super) fn wind_down(&mut self, why: StopReason) {
        // As upstream: what fills the disk has no time of its own.
        let grace = if why == StopReason::Evicted { 0 } else { self.grace_seconds() };
        let kill_at = meta::plus_seconds(self.now, grace.max(MIN_GRACE_SECONDS));
        self.stop_live(kill_at, why);
        let ready = self.observed.sandbox.as_ref().is_some_and(|sandbox| sandbox.state == SandboxState::Ready);
        if ready && self.tracks.values().all(|track| track.live().is_none()) {
            self.effects.push(Effect::StopSandbox);
        }
    }

    pub(super) fn exceed(&mut self, end: End, why: StopReason) {
        self.wind_down(why);
        self.end_when_stopped(end);
    }

    /// The end counts when the last container has stopped.
    pub(super) fn end_when_stopped(&mut self, end: End) {
        if self.tracks.values().all(|track| track.live().is_none()) {
            self.end = Some(end);
        }
    }

    /// Stops what is live, unless it was told before to stop as soon. Sidecars follow when the others
    /// have ended, the last started first.
    pub(super) fn stop_live(&mut self, kill_at: Timestamp, why: StopReason) {
        let live = |name: &str| self.track(name).live();
        let sidecars: Vec<_> = self.init_containers().filter(|container| is_sidecar(container)).collect();
        let inits = self.init_containers().filter(|container| !is_sidecar(container));
        let mut stop: Vec<_> = inits
            .chain(&self.spec.containers)
            .chain(self.ephemeral)
            .filter_map(|c| Some((&c.name, live(&c.name)?)))
            .collect();
        if stop.is_empty() {
            stop.extend(sidecars.iter().rev().find_map(|c| Some((&c.name, live(&c.name)?))));
        }
        let stop = stop.into_iter().filter(|(_, attempt)| attempt.stopping.is_none_or(|at| at > kill_at));
        let effects: Vec<_> = stop
            .map(|(name, attempt)| Effect::StopContainer { name: name.clone(), attempt: attempt.attempt, kill_at, why })
            .collect();
        self.effects.extend(effects);
    }
}

/// What ends a sandbox whose pod has no object any more: it was removed by force, or while the node
/// was away.
pub fn teardown(observed: &Observed, grace_seconds: i64, now: Timestamp) -> Vec<Effect> {
    let kill_at = meta::plus_seconds(now, grace_seconds.max(MIN_GRACE_SECONDS));
    let attempts = observed.containers.iter().flat_map(|(name, attempts)| attempts.iter().map(move |a| (name, a)));
    let mut live = attempts.filter(|(_, attempt)| attempt.is_live()).peekable();
    if live.peek().is_none() {
        return observed.sandbox.iter().map(|_| Effect::RemoveSandbox).collect();
    }
    let untold = live.filter(|(_, attempt)| attempt.stopping.is_none_or(|at| at > kill_at));
    untold
        .map(|(name, attempt)| Effect::StopContainer {
            name: name.clone(),
            attempt: attempt.attempt,
            kill_at,
            why: StopReason::Deleted,
        })
        .collect()
}
