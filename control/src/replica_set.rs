//! ReplicaSets: so many pods of a template, no more and no fewer.
//!
//! Invariant: pods that finished or were told to go do not count; they are replaced.
//! Invariant: only pods that no other controller owns are adopted.

use flotilla_api::k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetSpec};
use flotilla_api::{Change, Expect, Key};

use crate::event::{self, Teller};
use crate::plan::{Context, Plan, change};
use crate::view::{PodEntry, Stored};
use crate::{condition, deletion, meta, pods, preference, selector};

const MANAGER: &str = "replicaset-controller";
/// Pods created or deleted for one set by one plan.
const BURST_PODS: usize = 500;
/// Pods of one set that wait for a node at most.
const MAX_UNSCHEDULED: usize = 500;
/// Pods created by one Change, each with its Event.
const CREATED_PER_CHANGE: usize = 50;

pub(crate) fn plan(key: &Key, cx: &mut Context<'_>) -> Plan {
    let mut plan = Plan::default();
    let Some(set) = cx.view.replica_set(key) else { return plan };
    let spec = &set.spec;
    if selector::is_empty(&spec.selector) {
        return plan;
    }
    let owned = claim(set, spec, cx, &mut plan);
    let active: Vec<&PodEntry> = owned.iter().copied().filter(|pod| pods::is_active(pod)).collect();
    let mut failure = None;
    if !meta::is_deleting(&set.metadata) {
        let wanted = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0);
        if active.len() < wanted {
            failure = create_pods(set, spec, wanted - active.len(), cx, &mut plan).err();
        } else if active.len() > wanted {
            delete_pods(set, &active, active.len() - wanted, cx, &mut plan);
        }
    }
    update_status(set, spec, &owned, failure, cx, &mut plan);
    plan
}

/// The pods of the set. Orphans that match are adopted, own pods that do not match any more released.
fn claim<'a>(set: &Stored<ReplicaSet>, spec: &ReplicaSetSpec, cx: &Context<'a>, plan: &mut Plan) -> Vec<&'a PodEntry> {
    let uid = meta::uid(&set.metadata);
    let matches = |pod: &PodEntry| selector::matches(&spec.selector, pod.metadata.labels.as_ref());
    let owned = |pod: &PodEntry| meta::is_controlled_by(&pod.metadata, uid);
    let mut claimed = Vec::new();
    for pod in cx.view.pods_of(uid).filter(|pod| owned(pod)) {
        if matches(pod) {
            claimed.push(pod);
        } else if !meta::is_deleting(&set.metadata) && !meta::is_deleting(&pod.metadata) {
            plan.add(release(pod, uid));
        }
    }
    if meta::is_deleting(&set.metadata) {
        return claimed;
    }
    let orphans = cx.view.loose_pods_in(set.key.namespace()).filter(|pod| pods::is_active(pod));
    for pod in orphans.filter(|pod| matches(pod)) {
        plan.add(adopt(set, pod));
        claimed.push(pod);
    }
    claimed
}

fn adopt(set: &Stored<ReplicaSet>, pod: &PodEntry) -> Change {
    let mut next = pod.object.clone();
    next.metadata.owner_references.get_or_insert_default().push(meta::controller_reference(&set.object));
    change(MANAGER).require(set.key.clone(), Expect::Exists).update(pod.key.clone(), pod.revision, meta::encode(&next))
}

fn release(pod: &PodEntry, uid: &str) -> Change {
    let mut next = pod.object.clone();
    if let Some(owners) = &mut next.metadata.owner_references {
        owners.retain(|owner| owner.uid != uid);
    }
    next.metadata.owner_references.take_if(|owners| owners.is_empty());
    change(MANAGER).update(pod.key.clone(), pod.revision, meta::encode(&next))
}

fn create_pods(
    set: &Stored<ReplicaSet>,
    spec: &ReplicaSetSpec,
    missing: usize,
    cx: &mut Context<'_>,
    plan: &mut Plan,
) -> Result<(), String> {
    let namespace = set.key.namespace();
    let gate = cx.view.admits(namespace)?;
    let Some(template) = &spec.template else { return Err("the set has no pod template".into()) };
    let about = event::reference(&set.object);
    let prefix = format!("{}-", set.key.name());
    // Pods that no node has room for are no use; more of them come when these have found theirs.
    let uid = set.object.metadata.uid.as_deref().unwrap_or_default();
    let homeless = cx.view.pods_of(uid).filter(|pod| pods::node_name(&pod.object).is_none()).count();
    let mut left = missing.min(BURST_PODS).min(MAX_UNSCHEDULED.saturating_sub(homeless));
    while left > 0 {
        let batch = left.min(CREATED_PER_CHANGE);
        left -= batch;
        // Not its revision: the set's status may be written beside this. Too many are deleted again.
        let mut change = change(MANAGER).require(set.key.clone(), Expect::Exists);
        for _ in 0..batch {
            let owner = meta::controller_reference(&set.object);
            let pod = pods::from_template(template, namespace, &prefix, owner, cx.now, cx.rng);
            change = pods::create(change, &pod, gate);
            let mut teller = Teller { component: MANAGER, now: cx.now, rng: cx.rng };
            let message = format!("Created pod: {}", meta::name(&pod.metadata));
            change = teller.normal(change, &about, "SuccessfulCreate", &message);
        }
        plan.add(change);
    }
    Ok(())
}

fn delete_pods(set: &Stored<ReplicaSet>, active: &[&PodEntry], excess: usize, cx: &mut Context<'_>, plan: &mut Plan) {
    let about = event::reference(&set.object);
    for pod in preference::least_missed(active).into_iter().take(excess.min(BURST_PODS)) {
        let (change, _) = deletion::delete_pod(change(MANAGER), pod, cx.now);
        let mut teller = Teller { component: MANAGER, now: cx.now, rng: cx.rng };
        let message = format!("Deleted pod: {}", pod.key.name());
        plan.add(teller.normal(change, &about, "SuccessfulDelete", &message));
    }
}

fn update_status(
    set: &Stored<ReplicaSet>,
    spec: &ReplicaSetSpec,
    owned: &[&PodEntry],
    failure: Option<String>,
    cx: &mut Context<'_>,
    plan: &mut Plan,
) {
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let template = spec.template.as_ref().and_then(|template| template.metadata.as_ref()?.labels.as_ref());
    let active = || owned.iter().filter(|pod| pods::is_active(pod));
    let labeled = |pod: &PodEntry| {
        let labels = pod.metadata.labels.as_ref();
        template.into_iter().flatten().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
    };
    let available = active().filter_map(|pod| pods::available_at(pod, min_ready));
    let (past, future): (Vec<_>, Vec<_>) = available.partition(|at| *at <= cx.now);
    if let Some(at) = future.into_iter().min() {
        plan.wake(at);
    }
    let terminating = owned.iter().filter(|pod| meta::is_deleting(&pod.metadata) && !pods::is_finished(pod)).count();
    let mut next = set.object.clone();
    let status = next.status.get_or_insert_default();
    status.replicas = count(active().count());
    status.fully_labeled_replicas = Some(count(active().filter(|pod| labeled(pod)).count()));
    status.ready_replicas = Some(count(active().filter(|pod| pods::is_ready(pod)).count()));
    status.available_replicas = Some(count(past.len()));
    status.terminating_replicas = Some(count(terminating));
    status.observed_generation = set.metadata.generation;
    let mut told = None;
    match failure {
        Some(message) => {
            let conditions = &mut status.conditions;
            let news = condition::set(conditions, "ReplicaFailure", "True", "FailedCreate", &message, cx.now);
            told = news.then_some(message);
        }
        None => condition::remove(&mut status.conditions, "ReplicaFailure"),
    }
    if next == set.object {
        return;
    }
    let mut change = change(MANAGER).update(set.key.clone(), set.revision, meta::encode(&next));
    if let Some(message) = told {
        let mut teller = Teller { component: MANAGER, now: cx.now, rng: cx.rng };
        let message = format!("Error creating: {message}");
        change = teller.warning(change, &event::reference(&set.object), "FailedCreate", &message);
    }
    plan.add(change);
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}
