//! What a Job's policies say: of a pod that failed, and of how much success is enough.
//!
//! Defined by the Kubernetes API reference, `PodFailurePolicy` and `SuccessPolicy`.

use std::collections::BTreeSet;

use flotilla_api::k8s_openapi::api::batch::v1::{
    PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyRule, SuccessPolicy,
};

use super::indexes;
use crate::pods;
use crate::view::PodEntry;

/// What follows from a pod's failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Another pod is made, and that is all.
    Ignore,
    /// It counts towards the limits of failures.
    Count,
    /// Its index has failed for good.
    FailIndex,
    /// The Job has failed, for this reason in words.
    FailJob(String),
}

/// What the first rule that is about a failed pod says; `None` if there is none.
pub(super) fn of_failure(policy: Option<&PodFailurePolicy>, pod: &PodEntry) -> Option<Action> {
    let mut rules = policy?.rules.iter().enumerate();
    rules.find_map(|(index, rule)| {
        let why = concerns(rule, pod)?;
        match rule.action.as_str() {
            "Ignore" => Some(Action::Ignore),
            "Count" => Some(Action::Count),
            "FailIndex" => Some(Action::FailIndex),
            "FailJob" => Some(Action::FailJob(format!("{why} matching FailJob rule at index {index}"))),
            _ => None,
        }
    })
}

/// Why a rule is about a pod, in upstream's words.
fn concerns(rule: &PodFailurePolicyRule, pod: &PodEntry) -> Option<String> {
    let name = format!("{}/{}", pod.key.namespace(), pod.key.name());
    if let Some(codes) = &rule.on_exit_codes {
        let (container, code) = exit(pod, codes)?;
        return Some(format!("Container {container} for pod {name} failed with exit code {code}"));
    }
    let mut patterns = rule.on_pod_conditions.iter().flatten();
    let holds = |type_: &str, status: &str| pods::condition(pod, type_).is_some_and(|found| found.status == status);
    let found = patterns.find(|pattern| holds(&pattern.type_, pattern.status.as_deref().unwrap_or("True")))?;
    Some(format!("Pod {name} has condition {}", found.type_))
}

/// The first container that ended with an exit code that is meant, and the code.
fn exit<'a>(pod: &'a PodEntry, codes: &PodFailurePolicyOnExitCodesRequirement) -> Option<(&'a str, i32)> {
    let status = pod.status.as_ref()?;
    let statuses = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    let mut ended = statuses
        .filter(|status| codes.container_name.as_ref().is_none_or(|name| *name == status.name))
        .filter_map(|status| Some((status.name.as_str(), status.state.as_ref()?.terminated.as_ref()?.exit_code)));
    ended.find(|(_, code)| *code != 0 && codes.values.contains(code) == (codes.operator == "In"))
}

/// The first rule by which the indexes that are done are enough.
pub(super) fn of_success(policy: Option<&SuccessPolicy>, done: &BTreeSet<usize>, completions: usize) -> Option<usize> {
    policy?.rules.iter().position(|rule| {
        let asked = rule.succeeded_indexes.as_deref().map(|text| indexes::parse(text, completions));
        let met = asked.as_ref().map_or(done.len(), |asked| asked.intersection(done).count());
        let enough = rule.succeeded_count.and_then(|count| usize::try_from(count).ok());
        enough.or_else(|| asked.map(|asked| asked.len())).is_some_and(|enough| met >= enough)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn enough_success() {
        let met = |rules: serde_json::Value, done: &[usize]| {
            let policy: SuccessPolicy = serde_json::from_value(json!({"rules": rules})).unwrap();
            of_success(Some(&policy), &done.iter().copied().collect(), 10)
        };
        assert_eq!(met(json!([{"succeededIndexes": "0,2-3"}]), &[0, 2]), None);
        assert_eq!(met(json!([{"succeededIndexes": "0,2-3"}]), &[0, 2, 3]), Some(0));
        assert_eq!(
            met(json!([{"succeededCount": 3}, {"succeededIndexes": "1-5", "succeededCount": 2}]), &[1, 5]),
            Some(1)
        );
        assert_eq!(met(json!([{"succeededIndexes": "1-5", "succeededCount": 2}]), &[1, 6]), None);
    }
}
