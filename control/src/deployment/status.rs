//! What a Deployment says about itself: numbers, and whether it is available and getting on.

use flotilla_api::k8s_openapi::api::apps::v1::{DeploymentCondition, DeploymentStatus, ReplicaSet};
use jiff::Timestamp;

use super::{Pass, replicas, rollout, sets};
use crate::condition::{self, Condition};
use crate::meta;
use crate::plan::{Context, Plan};
use crate::view::Stored;

const PROGRESSING: &str = "Progressing";
const AVAILABLE: &str = "Available";
const FAILURE: &str = "ReplicaFailure";
const COMPLETE: &str = "NewReplicaSetAvailable";
pub(super) const FOUND: &str = "FoundNewReplicaSet";
/// The set of the current template may not be made.
pub(super) const REFUSED: &str = "ReplicaSetCreateError";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
/// Upstream's default of `spec.progressDeadlineSeconds`.
const DEFAULT_DEADLINE_SECONDS: i32 = 600;

impl Pass<'_> {
    fn status(&mut self) -> &mut DeploymentStatus {
        self.next.status.get_or_insert_default()
    }

    pub(super) fn progress(&self) -> Option<&DeploymentCondition> {
        condition::find(self.next.status.as_ref()?.conditions.as_ref(), PROGRESSING)
    }

    fn deadline_seconds(&self) -> Option<i64> {
        let seconds = self.spec.progress_deadline_seconds.unwrap_or(DEFAULT_DEADLINE_SECONDS);
        (seconds != i32::MAX).then_some(i64::from(seconds))
    }

    /// Sets the Progressing condition and the time of the last progress.
    pub(super) fn note_progress(&mut self, status: &str, reason: &str, message: &str, now: Timestamp) {
        let conditions = &mut self.status().conditions;
        condition::set(conditions, PROGRESSING, status, reason, message, now);
        touch(conditions, PROGRESSING, now);
    }

    /// Whether the rollout took longer than it may.
    pub(super) fn has_timed_out(&self) -> bool {
        self.progress().is_some_and(|progress| progress.reason.as_deref() == Some(TIMED_OUT))
    }

    pub(super) fn note_pause(&mut self, paused: bool, now: Timestamp) {
        let reason = self.progress().and_then(|progress| progress.reason.clone()).unwrap_or_default();
        if self.deadline_seconds().is_none() || reason == TIMED_OUT {
            return;
        }
        if paused && reason != "DeploymentPaused" {
            self.note_progress("Unknown", "DeploymentPaused", "Deployment is paused", now);
        } else if !paused && reason == "DeploymentPaused" {
            self.note_progress("Unknown", "DeploymentResumed", "Deployment is resumed", now);
        }
    }

    /// A rollout to a set that is there already begins like one to a new set.
    pub(super) fn note_new_set(&mut self, now: Timestamp) {
        self.note_revision();
        let Some(new) = self.sets.new else { return };
        if self.progress().is_none() && self.deadline_seconds().is_some() {
            let message = format!("Found new replica set \"{}\"", new.key.name());
            self.note_progress("True", FOUND, &message, now);
        }
    }

    /// Whether all pods are of the current version and available.
    pub(super) fn is_complete(&self) -> bool {
        let wanted = replicas(self.spec);
        let Some(new) = self.sets.new else { return false };
        let status = new.status.clone().unwrap_or_default();
        let current = status.observed_generation >= new.metadata.generation;
        let old: i32 = self.sets.old.iter().filter_map(|set| Some(set.status.as_ref()?.replicas)).sum();
        current && status.replicas == wanted && status.available_replicas.unwrap_or(0) == wanted && old == 0
    }

    /// Numbers and conditions from what the sets say.
    pub(super) fn report(&mut self, cx: &Context<'_>, plan: &mut Plan) {
        let before = self.deployment.status.clone().unwrap_or_default();
        self.count();
        self.judge_availability(cx.now);
        self.note_failure(cx.now);
        let paused = self.spec.paused == Some(true);
        let judged = !paused && self.created.is_none() && !meta::is_deleting(&self.deployment.metadata);
        if self.deadline_seconds().is_none() {
            condition::remove(&mut self.status().conditions, PROGRESSING);
        } else if judged {
            self.judge_progress(&before, cx, plan);
        }
    }

    fn count(&mut self) {
        let statuses: Vec<_> = self.sets.all().filter_map(|set| set.status.as_ref()).collect();
        let replicas: i32 = statuses.iter().map(|status| status.replicas).sum();
        let ready = statuses.iter().map(|status| status.ready_replicas.unwrap_or(0)).sum();
        let available: i32 = statuses.iter().map(|status| status.available_replicas.unwrap_or(0)).sum();
        let terminating = statuses.iter().map(|status| status.terminating_replicas.unwrap_or(0)).sum();
        let updated = self.sets.new.and_then(|set| set.status.as_ref()).map_or(0, |status| status.replicas);
        let wanted: i32 = self.sets.all().map(|set| sets::size(set)).fold(0, i32::saturating_add);
        let generation = self.deployment.metadata.generation;
        let status = self.status();
        status.observed_generation = generation;
        status.replicas = meta::unless_zero(replicas);
        status.updated_replicas = meta::unless_zero(updated);
        status.ready_replicas = meta::unless_zero(ready);
        status.available_replicas = meta::unless_zero(available);
        status.terminating_replicas = Some(terminating);
        status.unavailable_replicas = meta::unless_zero(wanted.saturating_sub(available).max(0));
    }

    fn judge_availability(&mut self, now: Timestamp) {
        let least = replicas(self.spec).saturating_sub(rollout::bounds(self.spec).unavailable);
        let status = self.status();
        let enough = status.available_replicas.unwrap_or(0) >= least;
        let (word, reason, message) = match enough {
            true => ("True", "MinimumReplicasAvailable", "Deployment has minimum availability."),
            false => ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability."),
        };
        if condition::set(&mut status.conditions, AVAILABLE, word, reason, message, now) {
            touch(&mut status.conditions, AVAILABLE, now);
        }
    }

    /// What keeps a set from making its pods keeps the Deployment; the current set's word goes before the others'.
    fn note_failure(&mut self, now: Timestamp) {
        let failure =
            |set: &Stored<ReplicaSet>| condition::find(set.status.as_ref()?.conditions.as_ref(), FAILURE).cloned();
        let mut sets = self.sets.new.into_iter().chain(self.sets.old.iter().copied());
        let found = sets.find_map(failure);
        let conditions = &mut self.status().conditions;
        match found {
            Some(found) => {
                let (reason, message) = (found.reason.unwrap_or_default(), found.message.unwrap_or_default());
                if condition::set(conditions, FAILURE, "True", &reason, &message, now) {
                    touch(conditions, FAILURE, now);
                }
            }
            None => condition::remove(conditions, FAILURE),
        }
    }

    fn judge_progress(&mut self, before: &DeploymentStatus, cx: &Context<'_>, plan: &mut Plan) {
        let name = match self.sets.new {
            Some(new) => format!("ReplicaSet \"{}\"", new.key.name()),
            None => format!("Deployment \"{}\"", self.deployment.key.name()),
        };
        let reason = self.progress().and_then(|progress| progress.reason.clone()).unwrap_or_default();
        if self.sets.new.is_none() && reason == REFUSED {
            return;
        }
        // A complete Deployment that loses a pod is no rollout; one with pods of two versions is.
        let moves = if reason == COMPLETE { self.is_rolling() } else { self.has_progressed(before) };
        if self.is_complete() {
            if reason != COMPLETE {
                self.note_progress("True", COMPLETE, &format!("{name} has successfully progressed."), cx.now);
            }
        } else if moves {
            self.note_progress("True", "ReplicaSetUpdated", &format!("{name} is progressing."), cx.now);
        } else if !matches!(reason.as_str(), COMPLETE | TIMED_OUT) {
            self.judge_deadline(&name, cx, plan);
        }
    }

    /// Whether a version other than the current one still has pods: a rollout, not a lost pod.
    fn is_rolling(&self) -> bool {
        self.sets.new.is_none() || self.sets.old.iter().any(|set| sets::size(set) > 0)
    }

    fn has_progressed(&self, before: &DeploymentStatus) -> bool {
        let Some(after) = &self.next.status else { return false };
        let number = |value: Option<i32>| value.unwrap_or(0);
        let old = |status: &DeploymentStatus| number(status.replicas) - number(status.updated_replicas);
        number(after.updated_replicas) > number(before.updated_replicas)
            || old(after) < old(before)
            || number(after.ready_replicas) > number(before.ready_replicas)
            || number(after.available_replicas) > number(before.available_replicas)
    }

    fn judge_deadline(&mut self, name: &str, cx: &Context<'_>, plan: &mut Plan) {
        let Some(seconds) = self.deadline_seconds() else { return };
        let Some(last) = self.progress().and_then(|progress| progress.last_update_time.as_ref()) else { return };
        // The deadline has passed one second later: times have whole seconds.
        let deadline = meta::plus_seconds(last.0, seconds.saturating_add(1));
        if deadline > cx.now {
            plan.wake(deadline);
        } else {
            self.note_progress("False", TIMED_OUT, &format!("{name} has timed out progressing."), cx.now);
        }
    }
}

/// Notes that a condition was written now.
fn touch(conditions: &mut Option<Vec<DeploymentCondition>>, kind: &str, now: Timestamp) {
    let written = conditions.iter_mut().flatten().filter(|condition| condition.kind() == kind);
    written.for_each(|condition| condition.last_update_time = Some(meta::seconds(now)));
}
