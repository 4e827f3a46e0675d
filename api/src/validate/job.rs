//! Jobs of `batch/v1`.

use k8s_openapi::api::batch::v1::{Job, JobSpec};

use super::{immutable, non_negative, one_of, workload};
use crate::field::{Errors, Path};
use crate::selector;

const MAX_INDEXED_PARALLELISM: i32 = 100_000;

pub(crate) fn job(job: &Job, errors: &mut Errors) {
    let path = Path::new("spec");
    let Some(spec) = &job.spec else { return errors.required(&path, "") };
    match &spec.selector {
        None => errors.required(&path.child("selector"), ""),
        Some(labels) => {
            selector::validate(labels, &path.child("selector"), errors);
            workload::must_match(labels, &spec.template, &path, errors);
        }
    }
    template(spec, &path, errors);
}

/// What a job is to be like, whether it is made yet or not.
pub(crate) fn template(spec: &JobSpec, path: &Path, errors: &mut Errors) {
    non_negative(spec.parallelism, &path.child("parallelism"), errors);
    non_negative(spec.completions, &path.child("completions"), errors);
    non_negative(spec.active_deadline_seconds, &path.child("activeDeadlineSeconds"), errors);
    non_negative(spec.backoff_limit, &path.child("backoffLimit"), errors);
    non_negative(spec.ttl_seconds_after_finished, &path.child("ttlSecondsAfterFinished"), errors);
    non_negative(spec.backoff_limit_per_index, &path.child("backoffLimitPerIndex"), errors);
    non_negative(spec.max_failed_indexes, &path.child("maxFailedIndexes"), errors);
    let modes = ["Indexed", "NonIndexed"];
    one_of(spec.completion_mode.as_deref(), &modes, &path.child("completionMode"), errors);
    let policies = ["Failed", "TerminatingOrFailed"];
    one_of(spec.pod_replacement_policy.as_deref(), &policies, &path.child("podReplacementPolicy"), errors);
    indexed(spec, path, errors);
    workload::template(&spec.template, &["OnFailure", "Never"], &path.child("template"), errors);
}

fn indexed(spec: &JobSpec, path: &Path, errors: &mut Errors) {
    let is_indexed = spec.completion_mode.as_deref() == Some("Indexed");
    if is_indexed && spec.completions.is_none() {
        errors.required(&path.child("completions"), "when completion mode is Indexed");
    }
    if is_indexed && spec.parallelism.is_some_and(|parallelism| parallelism > MAX_INDEXED_PARALLELISM) {
        let detail = format!("must be less than or equal to {MAX_INDEXED_PARALLELISM} when completion mode is Indexed");
        errors.invalid(&path.child("parallelism"), spec.parallelism, detail);
    }
    if !is_indexed && spec.backoff_limit_per_index.is_some() {
        let detail = "requires indexed completion mode";
        errors.invalid(&path.child("backoffLimitPerIndex"), spec.backoff_limit_per_index, detail);
    }
    if spec.max_failed_indexes.is_some() && spec.backoff_limit_per_index.is_none() {
        let detail = "when maxFailedIndexes is specified";
        errors.required(&path.child("backoffLimitPerIndex"), detail);
    }
}

pub(crate) fn update(old: &Job, new: &Job, errors: &mut Errors) {
    let (Some(old), Some(new)) = (&old.spec, &new.spec) else { return };
    let path = Path::new("spec");
    let elastic = new.completion_mode.as_deref() == Some("Indexed") && new.completions == new.parallelism;
    if !elastic {
        immutable(&old.completions, &new.completions, &path.child("completions"), errors);
    }
    immutable(&old.selector, &new.selector, &path.child("selector"), errors);
    // What a suspended job's pods ask of nodes may still change.
    let mut template = new.template.clone();
    if old.suspend == Some(true)
        && let (Some(before), Some(after)) = (&old.template.spec, &mut template.spec)
    {
        after.node_selector.clone_from(&before.node_selector);
        after.affinity.clone_from(&before.affinity);
        after.tolerations.clone_from(&before.tolerations);
        after.scheduling_gates.clone_from(&before.scheduling_gates);
    }
    if old.template != template {
        let value = serde_json::to_value(&new.template).unwrap_or_default();
        errors.invalid(&path.child("template"), value, "field is immutable");
    }
    immutable(&old.completion_mode, &new.completion_mode, &path.child("completionMode"), errors);
    immutable(&old.pod_failure_policy, &new.pod_failure_policy, &path.child("podFailurePolicy"), errors);
    let per_index = (&old.backoff_limit_per_index, &new.backoff_limit_per_index);
    immutable(per_index.0, per_index.1, &path.child("backoffLimitPerIndex"), errors);
}
