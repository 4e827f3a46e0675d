//! Counting pods that have ended, each once.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_api::Change;
use flotilla_api::k8s_openapi::api::core::v1::Pod;
use jiff::Timestamp;

use super::finish::Outcome;
use super::policy::{self, Action};
use super::{MANAGER, Pass, count, create, indexes, is_tracked, untrack};
use crate::plan::change;
use crate::view::PodEntry;
use crate::{meta, pods};

/// Pods counted by one Change.
const COUNTED_PER_CHANGE: usize = 100;
/// After a failure, new pods wait 10 s doubling to 10 min, as upstream's.
const RETRY_FIRST_SECONDS: i64 = 10;
const RETRY_LAST_SECONDS: i64 = 600;

/// What a pod's end means for its Job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Succeeded,
    Failed,
    /// Its node was lost or taken away from it.
    Disrupted,
}

/// The writes that count pods, to which the Job's status is added.
pub(super) struct Counting {
    pub change: Change,
    /// Whether every pod that ended is counted now.
    pub is_complete: bool,
}

impl Pass<'_> {
    pub(super) fn count(&mut self) -> Counting {
        let waits = self.waits_for_ends();
        let tracked = self.pods.iter().copied().filter(|pod| is_tracked(&pod.metadata));
        let ended: Vec<(&PodEntry, Verdict)> = tracked.filter_map(|pod| Some((pod, verdict(pod, waits)?))).collect();
        let batch = &ended[..ended.len().min(COUNTED_PER_CHANGE)];
        let failed = batch.iter().filter(|(pod, verdict)| self.take_failure(pod, *verdict)).count();
        let succeeded = batch.iter().filter(|(_, verdict)| *verdict == Verdict::Succeeded).map(|(pod, _)| *pod);
        let succeeded: Vec<&PodEntry> = succeeded.collect();
        if self.is_indexed() {
            self.count_indexes(&succeeded);
        } else {
            let status = self.status();
            let before = status.succeeded.unwrap_or(0);
            status.succeeded = Some(before.saturating_add(count(succeeded.len()))).filter(|number| *number > 0);
        }
        let status = self.status();
        let before = status.failed.unwrap_or(0);
        status.failed = Some(before.saturating_add(count(failed))).filter(|number| *number > 0);
        // The Job's revision holds the count and the pods' finalizers together even if the status is
        // the same: a disrupted pod changes no number.
        let mut counting = change(MANAGER);
        if self.next == self.job.object && !batch.is_empty() {
            counting = counting.require(self.job.key.clone(), flotilla_api::Expect::ModRevision(self.job.revision));
        }
        let counting = batch.iter().fold(counting, |change, (pod, _)| untrack(change, pod));
        Counting { change: counting, is_complete: batch.len() == ended.len() }
    }

    /// Whether a pod that ended counts as a failure; notes what else follows from it.
    fn take_failure(&mut self, pod: &PodEntry, verdict: Verdict) -> bool {
        let Some(action) = self.judge(pod, verdict) else { return false };
        let is_last_try = self.spec.backoff_limit_per_index.is_some_and(|limit| create::failures_before(pod) >= limit);
        match action {
            Action::FailJob(why) => _ = self.failure.get_or_insert(Outcome::failure("PodFailurePolicy", why)),
            Action::Count if !is_last_try => {}
            _ => self.failed_indexes.extend(create::index_of(pod)),
        }
        true
    }

    /// What follows from the end of a pod: the policy's word if it has one; `None` if the end is no failure of the Job.
    fn judge(&self, pod: &PodEntry, verdict: Verdict) -> Option<Action> {
        let policy = self.spec.pod_failure_policy.as_ref().filter(|_| pods::is_failed(pod));
        match (verdict, policy::of_failure(policy, pod)) {
            (Verdict::Succeeded, _) | (_, Some(Action::Ignore)) | (Verdict::Disrupted, None) => None,
            (_, Some(action)) => Some(action),
            (Verdict::Failed, None) => Some(Action::Count),
        }
    }

    fn count_indexes(&mut self, succeeded: &[&PodEntry]) {
        let completions = self.completions().unwrap_or(0);
        let mut done = self.completed_indexes();
        done.extend(succeeded.iter().filter_map(|pod| create::index_of(pod)).filter(|index| *index < completions));
        self.failed_indexes.retain(|index| *index < completions && !done.contains(index));
        let failed = self.spec.backoff_limit_per_index.map(|_| indexes::format(&self.failed_indexes));
        let status = self.status();
        status.succeeded = Some(count(done.len())).filter(|number| *number > 0);
        status.completed_indexes = Some(indexes::format(&done)).filter(|text| !text.is_empty());
        status.failed_indexes = failed;
    }

    pub(super) fn completed_indexes(&self) -> BTreeSet<usize> {
        let text = self.next.status.as_ref().and_then(|status| status.completed_indexes.as_deref());
        indexes::parse(text.unwrap_or_default(), self.completions().unwrap_or(0))
    }

    /// When pods may be created again: after failures in a row, later and later.
    pub(super) fn retry_at(&self) -> Option<Timestamp> {
        let times = |wanted| {
            let ended = self.pods.iter().filter(move |pod| verdict(pod, true) == Some(wanted));
            ended.map(|pod| finished_at(pod))
        };
        let success = times(Verdict::Succeeded).max();
        retry_after(times(Verdict::Failed).filter(|at| success.is_none_or(|time| *at > time)))
    }

    /// What became of the tries at each index that has failed.
    pub(super) fn tries(&self) -> BTreeMap<usize, Tries> {
        let mut ends: BTreeMap<usize, Vec<Timestamp>> = BTreeMap::new();
        let mut tries: BTreeMap<usize, Tries> = BTreeMap::new();
        for pod in &self.pods {
            let (Some(index), Some(verdict)) = (create::index_of(pod), verdict(pod, self.waits_for_ends())) else {
                continue;
            };
            let failures = create::failures_before(pod) + i32::from(self.judge(pod, verdict).is_some());
            let known = tries.entry(index).or_default();
            known.failures = known.failures.max(failures);
            if verdict == Verdict::Failed {
                ends.entry(index).or_default().push(finished_at(pod));
            }
        }
        for (index, ends) in ends {
            tries.entry(index).or_default().retry_at = retry_after(ends.into_iter());
        }
        tries
    }
}

/// What became of the pods of one index.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tries {
    pub failures: i32,
    pub retry_at: Option<Timestamp>,
}

/// When to try again after failures at these times.
fn retry_after(failures: impl Iterator<Item = Timestamp>) -> Option<Timestamp> {
    let (number, last) = failures.fold((0_usize, None), |(number, last), at| (number + 1, last.max(Some(at))));
    let doublings = number.saturating_sub(1).min(10);
    let delay = (RETRY_FIRST_SECONDS << doublings).min(RETRY_LAST_SECONDS);
    Some(meta::plus_seconds(last?, delay))
}

/// What the pod's end means; `None` while it may still run. A pod that was told to go counts at once,
/// unless its Job `waits` for the end.
fn verdict(pod: &PodEntry, waits: bool) -> Option<Verdict> {
    let disrupted = || pods::condition(pod, "DisruptionTarget").is_some_and(|condition| condition.status == "True");
    if pods::is_succeeded(pod) {
        return Some(Verdict::Succeeded);
    }
    let over = pods::is_failed(pod) || (meta::is_deleting(&pod.metadata) && !waits);
    over.then(|| if disrupted() || pods::is_lost(pod) { Verdict::Disrupted } else { Verdict::Failed })
}

/// When the last container ended; when the pod was made if none did.
fn finished_at(pod: &Pod) -> Timestamp {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let ends = statuses.filter_map(|status| Some(status.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()?.0));
    ends.max().unwrap_or_else(|| meta::created(&pod.metadata))
}
