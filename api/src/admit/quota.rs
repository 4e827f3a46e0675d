//! What a namespace's ResourceQuotas allow, and how what is taken is written down.
//!
//! Invariant: what is charged is written together with the object that takes it, so that of two writers who decided from
//! the same quota only one gets through.
//! Invariant: a quota says nothing of a resource whose use it has not counted yet.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Pod, ResourceQuota, ScopedResourceSelectorRequirement};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::usage::{self, Amounts};
use crate::kinds::pod::qos_class;

/// Charges a quota with what an object takes more than before; says whether there was anything to charge.
///
/// # Errors
/// Why the quota does not allow it.
pub(super) fn charge(quota: &mut ResourceQuota, more: &Amounts, pod: Option<(&Pod, &Scopes)>) -> Result<bool, String> {
    let name = quota.metadata.name.clone().unwrap_or_default();
    if !covers(quota, pod.map(|(_, scopes)| scopes)) {
        return Ok(false);
    }
    let status = quota.status.clone().unwrap_or_default();
    let hard = usage::amounts(status.hard.as_ref());
    if let Some((pod, _)) = pod {
        let missing = unspecified(pod, &hard);
        if !missing.is_empty() {
            return Err(format!("failed quota: {name}: must specify {}", missing.join("; ")));
        }
    }
    let wanted: Amounts =
        more.iter().filter(|(resource, _)| hard.contains_key(*resource)).map(|(r, a)| (r.clone(), *a)).collect();
    if wanted.is_empty() {
        return Ok(false);
    }
    let used = usage::amounts(status.used.as_ref());
    let unknown: Vec<&str> =
        wanted.keys().filter(|resource| !used.contains_key(*resource)).map(String::as_str).collect();
    if !unknown.is_empty() {
        return Err(format!("status unknown for quota: {name}, resources: {}", unknown.join(",")));
    }
    let after = |resource: &String| used[resource].plus(wanted[resource]);
    let exceeded: BTreeSet<&String> = wanted.keys().filter(|resource| after(resource) > hard[*resource]).collect();
    if !exceeded.is_empty() {
        let of = |amounts: &Amounts| {
            let pairs = exceeded.iter().map(|resource| format!("{resource}={}", amounts[*resource]));
            pairs.collect::<Vec<_>>().join(",")
        };
        return Err(format!(
            "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
            of(&wanted),
            of(&used),
            of(&hard)
        ));
    }
    let written = quota.status.get_or_insert_default().used.get_or_insert_default();
    for resource in wanted.keys() {
        written.insert(resource.clone(), Quantity(after(resource).to_string()));
    }
    Ok(true)
}

/// What the scopes of quotas look at in a pod.
#[derive(Clone, Debug)]
pub struct Scopes {
    terminating: bool,
    best_effort: bool,
    priority_class: String,
    reaches_other_namespaces: bool,
}

impl Scopes {
    pub fn of(pod: &Pod) -> Self {
        let spec = pod.spec.as_ref();
        Self {
            terminating: spec.and_then(|spec| spec.active_deadline_seconds).is_some_and(|seconds| seconds >= 0),
            best_effort: spec.is_none_or(|spec| qos_class(spec) == "BestEffort"),
            priority_class: spec.and_then(|spec| spec.priority_class_name.clone()).unwrap_or_default(),
            reaches_other_namespaces: reaches_other_namespaces(pod),
        }
    }

    fn meet(&self, demand: &ScopedResourceSelectorRequirement) -> bool {
        match demand.scope_name.as_str() {
            "Terminating" => self.terminating,
            "NotTerminating" => !self.terminating,
            "BestEffort" => self.best_effort,
            "NotBestEffort" => !self.best_effort,
            "PriorityClass" => {
                let listed = demand.values.iter().flatten().any(|value| *value == self.priority_class);
                match demand.operator.as_str() {
                    "In" => listed,
                    "NotIn" => !listed,
                    "Exists" => !self.priority_class.is_empty(),
                    _ => self.priority_class.is_empty(),
                }
            }
            "CrossNamespacePodAffinity" => self.reaches_other_namespaces,
            _ => false,
        }
    }
}

/// Whether the quota is about such objects: one with scopes is about some pods only.
pub fn covers(quota: &ResourceQuota, pod: Option<&Scopes>) -> bool {
    let Some(spec) = &quota.spec else { return false };
    let scopes = spec.scopes.iter().flatten();
    let demands: Vec<ScopedResourceSelectorRequirement> = scopes
        .map(|scope| ScopedResourceSelectorRequirement {
            scope_name: scope.clone(),
            operator: "Exists".into(),
            values: None,
        })
        .chain(spec.scope_selector.iter().flat_map(|selector| selector.match_expressions.iter().flatten().cloned()))
        .collect();
    match pod {
        Some(scopes) => demands.iter().all(|demand| scopes.meet(demand)),
        None => demands.is_empty(),
    }
}

fn reaches_other_namespaces(pod: &Pod) -> bool {
    // Terms have the same shape wherever they stand.
    fn reaches(value: &serde_json::Value) -> bool {
        match value {
            serde_json::Value::Object(map) => {
                map.contains_key("namespaceSelector")
                    || map.get("namespaces").and_then(|list| list.as_array()).is_some_and(|list| !list.is_empty())
                    || map.values().any(reaches)
            }
            serde_json::Value::Array(items) => items.iter().any(reaches),
            _ => false,
        }
    }
    let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref());
    let pods = affinity.map(|affinity| (&affinity.pod_affinity, &affinity.pod_anti_affinity));
    pods.is_some_and(|pods| serde_json::to_value(pods).is_ok_and(|value| reaches(&value)))
}

/// `requests.cpu for: a,b`: what a quota limits must be said of each container.
fn unspecified(pod: &Pod, hard: &Amounts) -> Vec<String> {
    const DEMANDED: [&str; 6] = ["cpu", "limits.cpu", "limits.memory", "memory", "requests.cpu", "requests.memory"];
    let Some(spec) = &pod.spec else { return Vec::new() };
    let containers = || spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let demanded = DEMANDED.into_iter().filter(|resource| hard.contains_key(*resource));
    let missing = demanded.filter_map(|resource| {
        let lacks = |container: &&k8s_openapi::api::core::v1::Container| {
            let resources = container.resources.clone().unwrap_or_default();
            let (map, name) = match resource.split_once('.') {
                Some(("limits", name)) => (resources.limits, name),
                Some((_, name)) => (resources.requests, name),
                None => (resources.requests, resource),
            };
            !map.unwrap_or_default().contains_key(name)
        };
        let mut names: Vec<&str> = containers().filter(lacks).map(|container| container.name.as_str()).collect();
        names.sort_unstable();
        (!names.is_empty()).then(|| format!("{resource} for: {}", names.join(",")))
    });
    missing.collect()
}
