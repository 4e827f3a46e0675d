//! Jobs: pods that run until so many of them have succeeded.
//!
//! Each pod carries a finalizer until it is counted. One Change adds it to the Job's status and takes
//! the finalizer away, so that a pod counts once whoever leads, and whatever becomes of its object.
//!
//! Invariant: a pod is counted if and only if its finalizer is taken away by the Change that counts it.
//! Invariant: a pod lost to its node is replaced and is no failure of the Job.
//! Invariant: a finished Job creates no pod, and has none that still ends, unless its node is lost for long.

mod count;
mod create;
mod finish;
mod indexes;
mod policy;

use std::collections::BTreeSet;

use flotilla_api::k8s_openapi::api::batch::v1::{Job, JobSpec};
use flotilla_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use flotilla_api::{Change, Key};
use jiff::Timestamp;

use crate::deletion::{self, Deletion};
use crate::event::{self, Teller};
use crate::plan::{Context, Plan, change};
use crate::view::{PodEntry, Stored};
use crate::{condition, meta, pods, preference};
use finish::Outcome;

const MANAGER: &str = "job-controller";
const TRACKING: &str = "batch.kubernetes.io/job-tracking";
/// Pods created or deleted for one Job by one plan.
const BURST_PODS: usize = 500;

/// Whether the pod is held to be counted.
pub(crate) fn is_tracked(meta: &ObjectMeta) -> bool {
    meta::has_finalizer(meta, TRACKING)
}

/// Adds that the pod is held no longer; if it was only waiting for that, it goes.
pub(crate) fn untrack(change: Change, pod: &PodEntry) -> Change {
    let mut next = pod.whole();
    meta::remove_finalizer(&mut next.metadata, TRACKING);
    let runs = pods::node_name(pod).is_some() && !pods::is_finished(pod);
    match deletion::confirm(&next) && !runs {
        true => change.remove(pod.key.clone(), pod.revision),
        false => change.update(pod.key.clone(), pod.revision, meta::encode(&next)),
    }
}

pub(crate) fn plan(key: &Key, cx: &mut Context<'_>) -> Plan {
    let mut plan = Plan::default();
    let Some(job) = cx.view.job(key) else { return plan };
    let Some(spec) = &job.spec else { return plan };
    let ours = spec.managed_by.as_deref().is_none_or(|name| name == "kubernetes.io/job-controller");
    if meta::is_deleting(&job.metadata) || !ours {
        return plan;
    }
    let uid = meta::uid(&job.metadata);
    let pods: Vec<&PodEntry> = cx.view.pods_of(uid).filter(|pod| meta::is_controlled_by(&pod.metadata, uid)).collect();
    if finish::is_finished(job) {
        finish::tidy_up(job, spec, &pods, cx, &mut plan);
        return plan;
    }
    Pass::new(job, spec, pods).decide(cx, &mut plan);
    plan
}

/// What the end of a pod that its Job ends is for the Job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counted {
    No,
    AsFailed,
}

/// One look at one Job.
struct Pass<'a> {
    job: &'a Stored<Job>,
    spec: &'a JobSpec,
    pods: Vec<&'a PodEntry>,
    /// Pods that run or will run.
    active: Vec<&'a PodEntry>,
    /// The Job as it shall be.
    next: Job,
    /// What has failed the Job in this look.
    failure: Option<Outcome>,
    /// Indexes that are not tried again.
    failed_indexes: BTreeSet<usize>,
    /// Events: whether each is a warning, its reason, its message.
    told: Vec<(bool, String, String)>,
}

impl<'a> Pass<'a> {
    fn new(job: &'a Stored<Job>, spec: &'a JobSpec, pods: Vec<&'a PodEntry>) -> Self {
        let active = pods.iter().copied().filter(|pod| pods::is_active(pod)).collect();
        let next = job.object.clone();
        let mut pass =
            Self { job, spec, pods, active, next, failure: None, failed_indexes: BTreeSet::new(), told: Vec::new() };
        let failed = job.status.as_ref().and_then(|status| status.failed_indexes.as_deref()).unwrap_or_default();
        pass.failed_indexes = indexes::parse(failed, pass.completions().unwrap_or(0));
        pass
    }

    /// Whether a pod is replaced only when it has ended, not when it is told to go.
    fn waits_for_ends(&self) -> bool {
        self.spec.pod_replacement_policy.as_deref() == Some("Failed")
    }

    /// Pods that were told to go and have not ended.
    fn terminating(&self) -> impl Iterator<Item = &'a PodEntry> {
        let pods = self.pods.iter().copied();
        pods.filter(|pod| meta::is_deleting(&pod.metadata) && !pods::is_finished(pod))
    }

    /// Of these, those whose end is waited for before they are replaced.
    fn awaited(&self) -> impl Iterator<Item = &'a PodEntry> {
        self.terminating().filter(|_| self.waits_for_ends())
    }

    fn parallelism(&self) -> usize {
        usize::try_from(self.spec.parallelism.unwrap_or(1)).unwrap_or(0)
    }

    fn completions(&self) -> Option<usize> {
        self.spec.completions.map(|completions| usize::try_from(completions).unwrap_or(0))
    }

    fn is_suspended(&self) -> bool {
        self.spec.suspend == Some(true)
    }

    fn is_indexed(&self) -> bool {
        self.spec.completion_mode.as_deref() == Some("Indexed")
    }

    fn status(&mut self) -> &mut flotilla_api::k8s_openapi::api::batch::v1::JobStatus {
        self.next.status.get_or_insert_default()
    }

    fn succeeded(&self) -> usize {
        let status = self.next.status.as_ref();
        usize::try_from(status.and_then(|status| status.succeeded).unwrap_or(0)).unwrap_or(0)
    }

    fn decide(mut self, cx: &mut Context<'_>, plan: &mut Plan) {
        let suspended = self.is_suspended();
        self.note_start(suspended, cx.now);
        let counting = self.count();
        let outcome = self.outcome(cx.now, plan);
        let remaining = match &outcome {
            Some(outcome) => {
                // Pods that a failed Job ends have failed with it: they keep their finalizer until they are counted.
                let counted = if outcome.is_success { Counted::No } else { Counted::AsFailed };
                self.delete_pods(self.active.clone(), counted, cx, plan);
                self.note_outcome(outcome, counting.is_complete, cx.now, plan);
                0
            }
            None if suspended => {
                self.delete_pods(self.active.clone(), Counted::No, cx, plan);
                0
            }
            None if counting.is_complete => self.manage(cx, plan),
            None => self.active.len(),
        };
        self.note_active(remaining);
        let change = self.write(counting.change, cx);
        plan.add(change);
    }

    /// Brings the number of running pods to what is wanted. Returns how many of today's stay.
    fn manage(&mut self, cx: &mut Context<'_>, plan: &mut Plan) -> usize {
        let wanted = match self.completions() {
            // Without a number, the first success ends the Job: the others may finish, none is added.
            None if self.succeeded() > 0 => self.active.len(),
            None => self.parallelism(),
            Some(completions) => {
                let over = self.succeeded() + self.failed_indexes.len();
                self.parallelism().min(completions.saturating_sub(over))
            }
        };
        let mut excess = preference::least_missed(&self.active);
        excess.sort_by_key(|pod| self.is_useful(pod));
        let useful = self.active.iter().filter(|pod| self.is_useful(pod)).count();
        let staying = useful.min(wanted);
        excess.truncate(self.active.len() - staying);
        if !excess.is_empty() {
            self.delete_pods(excess, Counted::No, cx, plan);
        }
        let missing = wanted.saturating_sub(staying + self.awaited().count()).min(BURST_PODS);
        // Where each index has a limit of its own, each waits by itself.
        let wait = self.retry_at().filter(|at| *at > cx.now && self.spec.backoff_limit_per_index.is_none());
        match wait {
            _ if missing == 0 => {}
            Some(at) => plan.wake(at),
            None => self.create_pods(missing, cx, plan),
        }
        staying
    }

    /// Whether a running pod works at an index that is still to be done, or the Job has no indexes.
    fn is_useful(&self, pod: &PodEntry) -> bool {
        !self.is_indexed() || create::index_of(pod).is_some_and(|index| Some(index) < self.completions())
    }

    /// Tells running pods to go.
    fn delete_pods(&self, pods: Vec<&PodEntry>, counted: Counted, cx: &mut Context<'_>, plan: &mut Plan) {
        let about = event::reference(&self.job.object);
        for pod in pods.into_iter().take(BURST_PODS) {
            let mut next = pod.whole();
            if counted == Counted::No {
                meta::remove_finalizer(&mut next.metadata, TRACKING);
            }
            let change = match deletion::of_pod(&next, None) {
                Deletion::Remove => change(MANAGER).remove(pod.key.clone(), pod.revision),
                Deletion::Mark(grace) => {
                    deletion::mark_pod(&mut next, grace, cx.now);
                    change(MANAGER).update(pod.key.clone(), pod.revision, meta::encode(&next))
                }
                Deletion::Pending => continue,
            };
            let mut teller = Teller { component: MANAGER, now: cx.now, rng: cx.rng };
            let message = format!("Deleted pod: {}", pod.key.name());
            plan.add(teller.normal(change, &about, "SuccessfulDelete", &message));
        }
    }

    fn note_start(&mut self, suspended: bool, now: Timestamp) {
        let known = self
            .job
            .status
            .as_ref()
            .and_then(|status| Some(condition::find(status.conditions.as_ref(), "Suspended")?.status == "True"));
        if suspended && known != Some(true) {
            condition::set(&mut self.status().conditions, "Suspended", "True", "JobSuspended", "Job suspended", now);
            self.status().start_time = None;
            self.told.push((false, "Suspended".into(), "Job suspended".into()));
        } else if !suspended && known == Some(true) {
            condition::set(&mut self.status().conditions, "Suspended", "False", "JobResumed", "Job resumed", now);
            self.told.push((false, "Resumed".into(), "Job resumed".into()));
        }
        if !suspended {
            self.status().start_time.get_or_insert_with(|| meta::seconds(now));
        }
    }

    /// The numbers of pods that run. Those that this plan deletes count no more, those that it creates
    /// count when they are there.
    fn note_active(&mut self, remaining: usize) {
        let ready = self.active.iter().filter(|pod| pods::is_ready(pod)).count().min(remaining);
        let terminating = self.terminating().count();
        let status = self.status();
        status.active = Some(count(remaining)).filter(|number| *number > 0);
        status.ready = Some(count(ready));
        status.terminating = Some(count(terminating));
    }

    fn write(&self, mut change: Change, cx: &mut Context<'_>) -> Change {
        if self.next == self.job.object {
            return change;
        }
        change = change.update(self.job.key.clone(), self.job.revision, meta::encode(&self.next));
        let about = event::reference(&self.job.object);
        for (warning, reason, message) in &self.told {
            let mut teller = Teller { component: MANAGER, now: cx.now, rng: cx.rng };
            change = match warning {
                true => teller.warning(change, &about, reason, message),
                false => teller.normal(change, &about, reason, message),
            };
        }
        change
    }
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}
