//! Counting pods that have ended, each once.

use flotilla_api::Change;
use flotilla_api::k8s_openapi::api::core::v1::Pod;
use jiff::Timestamp;

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
        let waits = self.spec.pod_replacement_policy.as_deref() == Some("Failed");
        let tracked = self.pods.iter().copied().filter(|pod| is_tracked(&pod.metadata));
        let ended: Vec<(&PodEntry, Verdict)> = tracked.filter_map(|pod| Some((pod, verdict(pod, waits)?))).collect();
        let batch = &ended[..ended.len().min(COUNTED_PER_CHANGE)];
        let failed = batch.iter().filter(|(_, verdict)| *verdict == Verdict::Failed).count();
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

    fn count_indexes(&mut self, succeeded: &[&PodEntry]) {
        let completions = self.completions().unwrap_or(0);
        let mut done = self.completed_indexes();
        done.extend(succeeded.iter().filter_map(|pod| create::index_of(pod)).filter(|index| *index < completions));
        let status = self.status();
        status.succeeded = Some(count(done.len())).filter(|number| *number > 0);
        status.completed_indexes = Some(indexes::format(&done)).filter(|text| !text.is_empty());
    }

    pub(super) fn completed_indexes(&self) -> std::collections::BTreeSet<usize> {
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
        let failures: Vec<Timestamp> =
            times(Verdict::Failed).filter(|at| success.is_none_or(|time| *at > time)).collect();
        let last = failures.iter().max()?;
        let doublings = (failures.len() - 1).min(10);
        let delay = (RETRY_FIRST_SECONDS << doublings).min(RETRY_LAST_SECONDS);
        Some(meta::plus_seconds(*last, delay))
    }
}

/// What the pod's end means; `None` while it may still run. A pod that was told to go counts at once,
/// unless its Job `waits` for the end.
fn verdict(pod: &Pod, waits: bool) -> Option<Verdict> {
    let disrupted = || pods::condition(pod, "DisruptionTarget").is_some_and(|condition| condition.status == "True");
    let lost = || pod.status.as_ref().and_then(|status| status.reason.as_deref()) == Some("NodeLost");
    if pods::is_succeeded(pod) {
        return Some(Verdict::Succeeded);
    }
    let over = pods::is_failed(pod) || (meta::is_deleting(&pod.metadata) && !waits);
    over.then(|| if disrupted() || lost() { Verdict::Disrupted } else { Verdict::Failed })
}

/// When the last container ended; when the pod was made if none did.
fn finished_at(pod: &Pod) -> Timestamp {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let ends = statuses.filter_map(|status| Some(status.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()?.0));
    ends.max().unwrap_or_else(|| meta::created(&pod.metadata))
}
