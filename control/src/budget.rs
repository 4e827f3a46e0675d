//! PodDisruptionBudgets: how many of the pods that they guard may be taken away now.
//!
//! Defined by the Kubernetes API reference, `PodDisruptionBudgetStatus`.
//!
//! Invariant: a pod whose eviction was allowed is not counted as healthy until it is gone or the eviction has failed.

use std::collections::BTreeMap;

use flotilla_api::Key;
use flotilla_api::k8s_openapi::api::core::v1::Pod;
use flotilla_api::k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use flotilla_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference, Time};
use flotilla_api::k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use jiff::Timestamp;

use crate::event::{self, Teller};
use crate::plan::{Context, Plan, change};
use crate::view::{PodEntry, Stored, View};
use crate::{keys, meta, pods, selector};

const MANAGER: &str = "disruption-controller";
/// Told once for each version of a budget.
const UNMANAGED: &str = "Pods selected by this PodDisruptionBudget were found to be unmanaged. As a result, the status of \
    the PDB cannot be calculated correctly, which may result in undefined behavior. To account for these pods please set \
    \".spec.minAvailable\" field of the PDB to an integer value.";
const ALLOWED: &str = "DisruptionAllowed";
/// How long an eviction that was allowed may take to show in the pod.
const EVICTION_SECONDS: i64 = 120;

/// Whether the budget is about the pod.
pub(crate) fn guards(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    budget.metadata.namespace == pod.metadata.namespace
        && selector.is_some_and(|selector| selector::matches(selector, pod.metadata.labels.as_ref()))
}

pub(crate) fn plan(key: &Key, cx: &mut Context<'_>) -> Plan {
    let mut plan = Plan::default();
    let Some(budget) = cx.view.budget(key).filter(|budget| !meta::is_deleting(&budget.metadata)) else { return plan };
    let spec = budget.spec.clone().unwrap_or_default();
    let guarded: Vec<&PodEntry> =
        cx.view.pods_in(key.namespace()).filter(|pod| guards(&budget.object, pod) && !pods::is_finished(pod)).collect();
    let mut next = budget.object.clone();
    let status = next.status.get_or_insert_default();
    status.observed_generation = budget.metadata.generation;
    let leaving = still_leaving(status.disrupted_pods.take().unwrap_or_default(), &guarded, cx, &mut plan);
    let count = match expected(&spec, &guarded, cx.view) {
        Ok((expected, desired)) => {
            let healthy = guarded.iter().filter(|pod| {
                pods::is_ready(pod) && !meta::is_deleting(&pod.metadata) && !leaving.contains_key(pod.key.name())
            });
            let healthy = count(healthy.count());
            let allowed = if expected > 0 { (healthy - desired).max(0) } else { 0 };
            (status.current_healthy, status.desired_healthy) = (Some(healthy), Some(desired));
            status.expected_pods = Some(expected);
            Ok(allowed)
        }
        Err(why) => Err(why),
    };
    status.disruptions_allowed = Some(*count.as_ref().unwrap_or(&0));
    status.disrupted_pods = (!leaving.is_empty()).then_some(leaving);
    set_condition(&mut status.conditions, &count, budget, cx.now);
    if next != budget.object {
        let mut change = change(MANAGER).update(key.clone(), budget.revision, meta::encode(&next));
        let known = budget.status.as_ref().and_then(|status| status.observed_generation);
        if known != budget.metadata.generation && counts_by_controllers(&spec) && guarded.iter().any(is_unmanaged) {
            let mut teller = Teller { component: MANAGER, now: cx.now, rng: cx.rng };
            change = teller.warning(change, &event::reference(&budget.object), "UnmanagedPods", UNMANAGED);
        }
        plan.add(change);
    }
    plan
}

/// The pods whose eviction was allowed and has not shown yet; looks again when the first of them has had its time.
fn still_leaving(
    disrupted: BTreeMap<String, Time>,
    guarded: &[&PodEntry],
    cx: &Context<'_>,
    plan: &mut Plan,
) -> BTreeMap<String, Time> {
    let waits = |name: &str| guarded.iter().any(|pod| pod.key.name() == name && !meta::is_deleting(&pod.metadata));
    let deadline = |since: &Time| meta::plus_seconds(since.0, EVICTION_SECONDS);
    let leaving: BTreeMap<String, Time> =
        disrupted.into_iter().filter(|(name, since)| waits(name) && deadline(since) > cx.now).collect();
    if let Some(first) = leaving.values().map(deadline).min() {
        plan.wake(first);
    }
    leaving
}

/// Whether the number of pods that there should be is their controllers' word.
fn counts_by_controllers(spec: &PodDisruptionBudgetSpec) -> bool {
    spec.max_unavailable.is_some() || matches!(spec.min_available, Some(IntOrString::String(_)))
}

fn is_unmanaged(pod: &&PodEntry) -> bool {
    meta::controller_of(&pod.metadata).is_none()
}

/// How many pods there should be, and how many of them must be healthy.
fn expected(spec: &PodDisruptionBudgetSpec, guarded: &[&PodEntry], view: &View) -> Result<(i32, i32), String> {
    match (&spec.max_unavailable, &spec.min_available) {
        (Some(max), _) => {
            let expected = scale(guarded, view)?;
            Ok((expected, (expected - share(max, expected)).max(0)))
        }
        (None, Some(IntOrString::Int(min))) => Ok((count(guarded.len()), *min)),
        (None, Some(min)) => {
            let expected = scale(guarded, view)?;
            Ok((expected, share(min, expected)))
        }
        (None, None) => Ok((count(guarded.len()), 0)),
    }
}

/// What the controllers of the pods want, all together; pods without one do not count.
fn scale(guarded: &[&PodEntry], view: &View) -> Result<i32, String> {
    let mut wanted: BTreeMap<String, i32> = BTreeMap::new();
    for pod in guarded {
        if let Some(owner) = meta::controller_of(&pod.metadata) {
            let (uid, replicas) = wish(pod.key.namespace(), owner, view)?;
            wanted.insert(uid, replicas);
        }
    }
    Ok(wanted.values().sum())
}

/// Who decides how many pods there are of this one's sort, and how many that is: the Deployment rather than its set, since
/// during a rollout there are two sets. A controller that is gone wants none.
fn wish(namespace: &str, owner: &OwnerReference, view: &View) -> Result<(String, i32), String> {
    let wants = |uid: &str, replicas: Option<i32>| (uid.to_owned(), replicas.unwrap_or(1));
    let found = match owner.kind.as_str() {
        "ReplicaSet" => view.replica_set(&keys::replica_set(namespace, &owner.name)).map(|set| {
            let above = meta::controller_of(&set.metadata).filter(|above| above.kind == "Deployment");
            match above.and_then(|above| view.deployment(&keys::deployment(namespace, &above.name))) {
                Some(deployment) => wants(meta::uid(&deployment.metadata), deployment.spec.replicas),
                None => wants(meta::uid(&set.metadata), set.spec.replicas),
            }
        }),
        "ReplicationController" => {
            let found = view.replication_controller(&keys::replication_controller(namespace, &owner.name));
            found.map(|found| wants(meta::uid(&found.metadata), found.spec.as_ref().and_then(|spec| spec.replicas)))
        }
        other => return Err(format!("{} does not implement the scale subresource", other.to_lowercase())),
    };
    Ok(found.unwrap_or_else(|| (owner.uid.clone(), 0)))
}

/// A number, or a percentage of `total`, rounded up.
fn share(value: &IntOrString, total: i32) -> i32 {
    match value {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            i32::try_from((percent * i64::from(total) + 99) / 100).unwrap_or(i32::MAX)
        }
    }
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn set_condition(
    conditions: &mut Option<Vec<Condition>>,
    count: &Result<i32, String>,
    budget: &Stored<PodDisruptionBudget>,
    now: Timestamp,
) {
    let (status, reason, message) = match count {
        Ok(0) => ("False", "InsufficientPods", ""),
        Ok(_) => ("True", "SufficientPods", ""),
        Err(why) => ("False", "SyncFailed", why.as_str()),
    };
    let list = conditions.get_or_insert_default();
    let before = list.iter().find(|condition| condition.type_ == ALLOWED);
    let since = before.filter(|before| before.status == status).map(|before| before.last_transition_time.clone());
    let condition = Condition {
        type_: ALLOWED.into(),
        status: status.into(),
        reason: reason.into(),
        message: message.into(),
        last_transition_time: since.unwrap_or_else(|| meta::seconds(now)),
        observed_generation: budget.metadata.generation,
    };
    match list.iter_mut().find(|other| other.type_ == ALLOWED) {
        Some(other) => *other = condition,
        None => list.push(condition),
    }
}
