//! Jobs of `batch/v1`.

use std::collections::BTreeSet;

use k8s_openapi::api::batch::v1::{
    Job, JobSpec, PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyRule, SuccessPolicy,
};
use serde_json::json;

use super::{immutable, name, non_negative, one_of, workload};
use crate::field::{Errors, Path};
use crate::{names, selector};

const MAX_INDEXED_PARALLELISM: i32 = 100_000;
/// Rules of a policy, and conditions of a rule.
const MAX_RULES: usize = 20;
const MAX_EXIT_CODES: usize = 255;
const ACTIONS: [&str; 4] = ["Count", "FailIndex", "FailJob", "Ignore"];

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
    // Whether a pod has failed is known when it has ended.
    let policies: &[&str] =
        if spec.pod_failure_policy.is_some() { &["Failed"] } else { &["Failed", "TerminatingOrFailed"] };
    one_of(spec.pod_replacement_policy.as_deref(), policies, &path.child("podReplacementPolicy"), errors);
    indexed(spec, path, errors);
    if let Some(policy) = &spec.pod_failure_policy {
        failure_policy(policy, spec, path, errors);
    }
    if let Some(policy) = &spec.success_policy {
        success_policy(policy, spec, &path.child("successPolicy"), errors);
    }
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

fn failure_policy(policy: &PodFailurePolicy, spec: &JobSpec, path: &Path, errors: &mut Errors) {
    let pod = spec.template.spec.clone().unwrap_or_default();
    if pod.restart_policy.as_deref().is_some_and(|policy| policy != "Never") {
        let path = path.child("template").child("spec").child("restartPolicy");
        errors.invalid(&path, pod.restart_policy, "only \"Never\" is supported when podFailurePolicy is specified");
    }
    let path = path.child("podFailurePolicy").child("rules");
    at_most(policy.rules.len(), MAX_RULES, &path, errors);
    let containers = pod.containers.iter().chain(pod.init_containers.iter().flatten());
    let containers: BTreeSet<&str> = containers.map(|container| container.name.as_str()).collect();
    for (index, rule) in policy.rules.iter().enumerate() {
        failure_rule(rule, spec.backoff_limit_per_index.is_some(), &containers, &path.index(index), errors);
    }
}

fn failure_rule(
    rule: &PodFailurePolicyRule,
    by_index: bool,
    containers: &BTreeSet<&str>,
    path: &Path,
    errors: &mut Errors,
) {
    match rule.action.as_str() {
        "" => errors.required(&path.child("action"), "valid values: [\"Count\" \"FailIndex\" \"FailJob\" \"Ignore\"]"),
        "FailIndex" if !by_index => {
            errors.invalid(&path.child("action"), "FailIndex", "requires the backoffLimitPerIndex to be set");
        }
        action => one_of(Some(action), &ACTIONS, &path.child("action"), errors),
    }
    let patterns = rule.on_pod_conditions.as_deref().unwrap_or_default();
    let either = match (&rule.on_exit_codes, patterns.is_empty()) {
        (Some(_), false) => Some("specifying both OnExitCodes and OnPodConditions is not supported"),
        (None, true) => Some("specifying one of OnExitCodes and OnPodConditions is required"),
        _ => None,
    };
    if let Some(detail) = either {
        errors.add("FieldValueInvalid", path, format!("Invalid value: {detail}"));
    }
    if let Some(codes) = &rule.on_exit_codes {
        exit_codes(codes, containers, &path.child("onExitCodes"), errors);
    }
    at_most(patterns.len(), MAX_RULES, &path.child("onPodConditions"), errors);
    for (index, pattern) in patterns.iter().enumerate() {
        let path = path.child("onPodConditions").index(index);
        name(&pattern.type_, names::qualified_name, &path.child("type"), errors);
        one_of(pattern.status.as_deref(), &["False", "True", "Unknown"], &path.child("status"), errors);
    }
}

fn exit_codes(
    codes: &PodFailurePolicyOnExitCodesRequirement,
    containers: &BTreeSet<&str>,
    path: &Path,
    errors: &mut Errors,
) {
    one_of(Some(codes.operator.as_str()), &["In", "NotIn"], &path.child("operator"), errors);
    if let Some(container) = codes.container_name.as_deref().filter(|name| !containers.contains(name)) {
        let detail = "must be one of the container or initContainer names in the pod template";
        errors.invalid(&path.child("containerName"), container, detail);
    }
    let path = path.child("values");
    if codes.values.is_empty() {
        errors.invalid(&path, json!([]), "at least one value is required");
    }
    at_most(codes.values.len(), MAX_EXIT_CODES, &path, errors);
    let mut seen = BTreeSet::new();
    for (index, code) in codes.values.iter().enumerate() {
        if codes.operator == "In" && *code == 0 {
            errors.invalid(&path.index(index), 0, "must not be 0 for the In operator");
        }
        if !seen.insert(code) {
            errors.duplicate(&path.index(index), *code);
        }
    }
    if !codes.values.is_sorted() {
        errors.invalid(&path, codes.values.clone(), "must be ordered");
    }
}

fn success_policy(policy: &SuccessPolicy, spec: &JobSpec, path: &Path, errors: &mut Errors) {
    if spec.completion_mode.as_deref() != Some("Indexed") {
        return errors.invalid(path, json!(policy), "requires indexed completion mode");
    }
    let path = path.child("rules");
    if policy.rules.is_empty() {
        errors.required(&path, "at least one rules must be specified when the successPolicy is specified");
    }
    at_most(policy.rules.len(), MAX_RULES, &path, errors);
    let completions = spec.completions.unwrap_or(0);
    for (index, rule) in policy.rules.iter().enumerate() {
        let path = path.index(index);
        if rule.succeeded_count.is_none() && rule.succeeded_indexes.is_none() {
            errors.required(&path, "at least one of succeededCount or succeededIndexes must be specified");
        }
        let listed = rule.succeeded_indexes.as_deref().map(|text| count_indexes(text, completions));
        if let Some(Err(why)) = &listed {
            let detail = format_args!("error parsing succeededIndexes: {why}");
            errors.invalid(&path.child("succeededIndexes"), rule.succeeded_indexes.as_deref(), detail);
        }
        let path = path.child("succeededCount");
        non_negative(rule.succeeded_count, &path, errors);
        let Some(count) = rule.succeeded_count else { continue };
        if count > completions {
            let detail =
                format_args!("must be less than or equal to {completions} (the number of specified completions)");
            errors.invalid(&path, count, detail);
        }
        if let Some(Ok(listed)) = listed.filter(|listed| listed.as_ref().is_ok_and(|listed| count > *listed)) {
            let field = "the number of indexes in the specified succeededIndexes field";
            errors.invalid(&path, count, format_args!("must be less than or equal to {listed} ({field})"));
        }
    }
}

/// How many indexes a text like `1,3-5` lists.
///
/// # Errors
/// Why it does not, in upstream's words.
fn count_indexes(text: &str, completions: i32) -> Result<i32, String> {
    let number = |text: &str| {
        let number = text.parse::<i32>().ok().filter(|number| *number >= 0);
        let number = number.ok_or_else(|| format!("cannot convert string to integer for index: \"{text}\""))?;
        if number >= completions { Err(format!("too large index: \"{text}\"")) } else { Ok(number) }
    };
    let (mut total, mut before) = (0, -1);
    for part in text.split(',').filter(|_| !text.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first <= before {
            return Err(format!("non-increasing order, previous: {before}, current: {first}"));
        }
        if last < first || (part.contains('-') && last == first) {
            return Err(format!("non-increasing order, previous: {first}, current: {last}"));
        }
        total += last - first + 1;
        before = last;
    }
    Ok(total)
}

fn at_most(count: usize, max: usize, path: &Path, errors: &mut Errors) {
    if count > max {
        errors.too_many(path, count, max);
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
    // What a suspended job's pods ask of nodes may still change, and what they are marked with.
    let mut template = new.template.clone();
    if old.suspend == Some(true) {
        if let (Some(before), Some(after)) = (&old.template.spec, &mut template.spec) {
            after.node_selector.clone_from(&before.node_selector);
            after.affinity.clone_from(&before.affinity);
            after.tolerations.clone_from(&before.tolerations);
            after.scheduling_gates.clone_from(&before.scheduling_gates);
        }
        if let Some(before) = &old.template.metadata {
            let after = template.metadata.get_or_insert_default();
            after.labels.clone_from(&before.labels);
            after.annotations.clone_from(&before.annotations);
        }
    }
    if old.template != template {
        let value = serde_json::to_value(&new.template).unwrap_or_default();
        errors.invalid(&path.child("template"), value, "field is immutable");
    }
    immutable(&old.completion_mode, &new.completion_mode, &path.child("completionMode"), errors);
    immutable(&old.success_policy, &new.success_policy, &path.child("successPolicy"), errors);
    immutable(&old.pod_failure_policy, &new.pod_failure_policy, &path.child("podFailurePolicy"), errors);
    let per_index = (&old.backoff_limit_per_index, &new.backoff_limit_per_index);
    immutable(per_index.0, per_index.1, &path.child("backoffLimitPerIndex"), errors);
}
