//! When a Job is over, and what is left to do then.

use flotilla_api::k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec};
use jiff::Timestamp;

use super::{MANAGER, Pass, is_tracked, policy, untrack};
use crate::plan::{Context, Plan, change};
use crate::view::{PodEntry, Stored};
use crate::{condition, deletion, meta, pods};

/// Upstream's default of `spec.backoffLimit`.
const DEFAULT_BACKOFF_LIMIT: i32 = 6;
/// How long the end waits for a pod that was told to go and is on a lost node: most nodes that come back do so within
/// seconds, and end it then.
const LOST_FOR_SECONDS: i64 = 15;

/// How a Job ends, as its conditions say it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub is_success: bool,
    reason: String,
    message: String,
}

impl Outcome {
    fn success(reason: &str, message: impl Into<String>) -> Self {
        Self { is_success: true, reason: reason.to_owned(), message: message.into() }
    }

    pub(super) fn failure(reason: &str, message: impl Into<String>) -> Self {
        Self { is_success: false, reason: reason.to_owned(), message: message.into() }
    }
}

fn finished_condition(job: &Job) -> Option<&JobCondition> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    conditions
        .iter()
        .find(|condition| matches!(condition.type_.as_str(), "Complete" | "Failed") && condition.status == "True")
}

pub(super) fn is_finished(job: &Job) -> bool {
    finished_condition(job).is_some()
}

/// A finished Job keeps no pod from going, and goes itself when its time has come.
pub(super) fn tidy_up(job: &Stored<Job>, spec: &JobSpec, pods: &[&PodEntry], cx: &Context<'_>, plan: &mut Plan) {
    for pod in pods.iter().filter(|pod| is_tracked(&pod.metadata)) {
        plan.add(untrack(change(MANAGER), pod));
    }
    let finished = finished_condition(job).and_then(|condition| condition.last_transition_time.as_ref());
    if let (Some(seconds), Some(finished)) = (spec.ttl_seconds_after_finished, finished) {
        let at = meta::plus_seconds(finished.0, i64::from(seconds));
        if at > cx.now {
            plan.wake(at);
        } else {
            let (change, _) = deletion::delete(change("ttl-after-finished-controller"), cx.view, &job.key, cx.now);
            plan.add(change);
        }
    }
}

impl Pass<'_> {
    /// How the Job ended, if it did. An end that was begun is brought to its end.
    pub(super) fn outcome(&self, now: Timestamp, plan: &mut Plan) -> Option<Outcome> {
        if let Some(begun) = self.begun() {
            return Some(begun);
        }
        if let Some(failure) = &self.failure {
            return Some(failure.clone());
        }
        if self.exceeds_backoff_limit() {
            return Some(Outcome::failure("BackoffLimitExceeded", "Job has reached the specified backoff limit"));
        }
        if let Some(ended) = self.outcome_of_indexes() {
            return Some(ended);
        }
        if self.is_complete() {
            return Some(Outcome::success("CompletionsReached", "Reached expected number of succeeded pods"));
        }
        let late = || Outcome::failure("DeadlineExceeded", "Job was active longer than specified deadline");
        self.exceeds_deadline(now, plan).then(late)
    }

    fn begun(&self) -> Option<Outcome> {
        let conditions = self.job.status.as_ref()?.conditions.as_ref()?;
        let set = |kind: &str| condition::find(Some(conditions), kind).filter(|condition| condition.status == "True");
        let (is_success, intent) = match set("SuccessCriteriaMet") {
            Some(intent) => (true, intent),
            None => (false, set("FailureTarget")?),
        };
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        Some(Outcome { is_success, reason: text(&intent.reason), message: text(&intent.message) })
    }

    /// How the Job ends by what became of its indexes.
    fn outcome_of_indexes(&self) -> Option<Outcome> {
        let completions = self.completions().filter(|_| self.is_indexed())?;
        let failed = self.failed_indexes.len();
        if self.spec.max_failed_indexes.is_some_and(|max| usize::try_from(max).is_ok_and(|max| failed > max)) {
            let message = "Job has exceeded the specified maximal number of failed indexes";
            return Some(Outcome::failure("MaxFailedIndexesExceeded", message));
        }
        let policy = self.spec.success_policy.as_ref();
        if let Some(rule) = policy::of_success(policy, &self.completed_indexes(), completions) {
            return Some(Outcome::success("SuccessPolicy", format!("Matched rules at index {rule}")));
        }
        let over = failed > 0 && failed + self.succeeded() >= completions;
        over.then(|| Outcome::failure("FailedIndexes", "Job has failed indexes"))
    }

    fn is_complete(&self) -> bool {
        match self.completions() {
            Some(completions) => self.succeeded() >= completions,
            None => self.succeeded() > 0 && self.active.is_empty(),
        }
    }

    /// Failed pods count, and so do restarts of containers where pods restart them themselves.
    fn exceeds_backoff_limit(&self) -> bool {
        let limit = self.spec.backoff_limit.unwrap_or(DEFAULT_BACKOFF_LIMIT);
        let failed = self.next.status.as_ref().and_then(|status| status.failed).unwrap_or(0);
        let policy = self.spec.template.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
        let restarts = match policy {
            Some("OnFailure") => self.active.iter().map(|pod| total_restarts(pod)).fold(0, i32::saturating_add),
            _ => 0,
        };
        failed > limit || (restarts > 0 && restarts >= limit.max(1))
    }

    fn exceeds_deadline(&self, now: Timestamp, plan: &mut Plan) -> bool {
        let Some(seconds) = self.spec.active_deadline_seconds else { return false };
        let start = self.next.status.as_ref().and_then(|status| status.start_time.as_ref());
        let Some(start) = start.filter(|_| !self.is_suspended()) else { return false };
        let at = meta::plus_seconds(start.0, seconds);
        if at > now {
            plan.wake(at);
        }
        at <= now
    }

    /// First the intent, while pods still have to go; then the end.
    pub(super) fn note_outcome(&mut self, outcome: &Outcome, is_counted: bool, now: Timestamp, plan: &mut Plan) {
        let Outcome { is_success, reason, message } = outcome;
        let (intent, end) = if *is_success { ("SuccessCriteriaMet", "Complete") } else { ("FailureTarget", "Failed") };
        let over = is_counted && self.active.is_empty() && !self.still_ends(now, plan);
        let conditions = &mut self.status().conditions;
        condition::set(conditions, intent, "True", reason, message, now);
        if !over {
            return;
        }
        condition::set(conditions, end, "True", reason, message, now);
        if *is_success {
            self.status().completion_time = Some(meta::seconds(now));
            self.told.push((false, "Completed".into(), "Job completed".into()));
        } else {
            self.told.push((true, reason.clone(), message.clone()));
        }
    }

    /// Whether a pod that was told to go may still run.
    fn still_ends(&self, now: Timestamp, plan: &mut Plan) -> bool {
        let until: Vec<Option<Timestamp>> =
            self.terminating().map(given_up).filter(|at| at.is_none_or(|at| at > now)).collect();
        until.iter().flatten().for_each(|at| plan.wake(*at));
        !until.is_empty()
    }
}

/// When its end is no longer waited for, if it is on a lost node: nobody can say whether it has ended.
fn given_up(pod: &PodEntry) -> Option<Timestamp> {
    let ends = pod.metadata.deletion_timestamp.as_ref().filter(|_| pods::is_lost(pod))?;
    let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
    Some(meta::plus_seconds(ends.0, LOST_FOR_SECONDS.saturating_sub(grace)))
}

fn total_restarts(pod: &PodEntry) -> i32 {
    let Some(status) = &pod.status else { return 0 };
    let running = pods::phase(pod) == "Running" || pods::phase(pod) == "Pending";
    let statuses = status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten());
    if running { statuses.map(|status| status.restart_count).fold(0, i32::saturating_add) } else { 0 }
}
