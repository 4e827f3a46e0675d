//! Making a Job's pods.

use std::collections::BTreeSet;

use flotilla_api::Expect;
use flotilla_api::k8s_openapi::api::core::v1::{EnvVar, Pod};

use super::{MANAGER, Pass, TRACKING};
use crate::event::{self, Teller};
use crate::maker::Maker;
use crate::plan::{Context, Plan, change};
use crate::{meta, pods};

const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// How many pods of the same index have failed before this one.
const INDEX_FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
const INDEX_VARIABLE: &str = "JOB_COMPLETION_INDEX";
/// Pods created by one Change, each with its Event.
const CREATED_PER_CHANGE: usize = 50;
/// When pods that were refused are tried again, besides when the Job changes.
const REFUSED_RETRY_MS: u64 = 10_000;

/// The completion index of a pod, if its Job is indexed.
pub(super) fn index_of(pod: &Pod) -> Option<usize> {
    meta::annotation(&pod.metadata, INDEX)?.parse().ok()
}

/// How many pods of the pod's index had failed when it was made.
pub(super) fn failures_before(pod: &Pod) -> i32 {
    meta::annotation(&pod.metadata, INDEX_FAILURES).and_then(|count| count.parse().ok()).unwrap_or(0)
}

/// Which of an indexed Job's pods is to be made.
#[derive(Clone, Copy, Debug)]
struct Turn {
    index: usize,
    /// How many pods of this index have failed, where each index has a limit of its own.
    failures: Option<i32>,
}

impl Pass<'_> {
    pub(super) fn create_pods(&mut self, missing: usize, cx: &mut Context<'_>, plan: &mut Plan) {
        // A namespace that is going takes the Job with it.
        let Ok(mut maker) = Maker::new(cx.view, self.job.key.namespace()) else { return };
        let numbers: Vec<Option<Turn>> = match self.is_indexed() {
            true => self.turns(missing, cx, plan).into_iter().map(Some).collect(),
            false => vec![None; missing],
        };
        let about = event::reference(&self.job.object);
        for batch in numbers.chunks(CREATED_PER_CHANGE) {
            let mut change = change(MANAGER).require(self.job.key.clone(), Expect::Exists);
            for turn in batch {
                let mut pod = self.new_pod(*turn, cx);
                let admitted = maker.admit_pod(&mut pod, cx);
                let mut teller = Teller { component: MANAGER, now: cx.now, rng: cx.rng };
                if let Err(why) = admitted {
                    plan.add(maker.finish(change));
                    let message = format!("Error creating: {why}");
                    plan.add(teller.warning(crate::plan::change(MANAGER), &about, "FailedCreate", &message));
                    plan.wake(meta::plus_ms(cx.now, REFUSED_RETRY_MS));
                    return;
                }
                let message = format!("Created pod: {}", meta::name(&pod.metadata));
                change = teller.normal(maker.create_pod(change, &pod), &about, "SuccessfulCreate", &message);
            }
            plan.add(maker.finish(change));
        }
    }

    /// The lowest indexes that are neither done nor at work, and whose time has come.
    fn turns(&self, missing: usize, cx: &Context<'_>, plan: &mut Plan) -> Vec<Turn> {
        let mut taken: BTreeSet<usize> = self.completed_indexes();
        taken.extend(&self.failed_indexes);
        taken.extend(self.active.iter().copied().chain(self.awaited()).filter_map(|pod| index_of(pod)));
        let tries = self.spec.backoff_limit_per_index.map(|_| self.tries());
        let mut turns = Vec::new();
        for index in (0..self.completions().unwrap_or(0)).filter(|index| !taken.contains(index)) {
            let behind = tries.as_ref().map(|tries| tries.get(&index).copied().unwrap_or_default());
            match behind.and_then(|tries| tries.retry_at) {
                Some(at) if at > cx.now => plan.wake(at),
                _ => turns.push(Turn { index, failures: behind.map(|tries| tries.failures) }),
            }
            if turns.len() == missing {
                break;
            }
        }
        turns
    }

    fn new_pod(&self, turn: Option<Turn>, cx: &mut Context<'_>) -> Pod {
        let name = self.job.key.name();
        let prefix = match turn {
            Some(Turn { index, .. }) => format!("{name}-{index}-"),
            None => format!("{name}-"),
        };
        let owner = meta::controller_reference(&self.job.object);
        let namespace = self.job.key.namespace();
        let mut pod = pods::from_template(&self.spec.template, namespace, &prefix, owner, cx);
        let uid = meta::uid(&self.job.metadata);
        let labels = &mut pod.metadata.labels;
        for (key, value) in [("job-name", name), ("controller-uid", uid)] {
            meta::set(labels, key, value);
            meta::set(labels, &format!("batch.kubernetes.io/{key}"), value);
        }
        pod.metadata.finalizers.get_or_insert_default().push(TRACKING.to_owned());
        if let Some(Turn { index, failures }) = turn {
            number(&mut pod, name, index);
            if let Some(failures) = failures {
                meta::set(&mut pod.metadata.annotations, INDEX_FAILURES, failures.to_string());
            }
        }
        pod
    }
}

/// Tells a pod its completion index, in all the ways upstream does.
fn number(pod: &mut Pod, job: &str, index: usize) {
    meta::set(&mut pod.metadata.annotations, INDEX, index.to_string());
    meta::set(&mut pod.metadata.labels, INDEX, index.to_string());
    let Some(spec) = &mut pod.spec else { return };
    spec.hostname.get_or_insert_with(|| format!("{job}-{index}"));
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        let env = container.env.get_or_insert_default();
        if !env.iter().any(|variable| variable.name == INDEX_VARIABLE) {
            env.push(EnvVar { name: INDEX_VARIABLE.into(), value: Some(index.to_string()), value_from: None });
        }
    }
}
