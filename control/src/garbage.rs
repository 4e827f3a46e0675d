//! Objects that nothing keeps any more: their owners are gone, or their node is.
//!
//! Invariant: an object goes only if every owner it names is known to be gone; an owner whose object
//! cannot be read counts as there.

use flotilla_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use flotilla_api::{Builtin, Change, Expect, Key, Scope};
use serde_json::Value;

use crate::plan::{Context, Plan, change};
use crate::view::{PodEntry, View};
use crate::{deletion, job, keys, meta, pods};

const MANAGER: &str = "garbage-collector";
const POD_MANAGER: &str = "pod-garbage-collector";
const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";
/// Objects that one plan deletes or edits; more wait for the next.
const MAX_OBJECTS: usize = 500;

/// Whether the object waits for its dependents to go or to be let go.
pub(crate) fn has_finalizer(meta: &ObjectMeta) -> bool {
    meta::has_finalizer(meta, FOREGROUND) || meta::has_finalizer(meta, ORPHAN)
}

pub(crate) fn plan(key: &Key, cx: &mut Context<'_>) -> Plan {
    let mut plan = Plan::default();
    let Some((meta, revision)) = cx.view.meta(key) else { return plan };
    if let Some(change) = cx.view.pod(key).and_then(|pod| stranded_pod(pod, cx)) {
        plan.add(change);
        return plan;
    }
    if let Some(change) = cx.view.pod(key).and_then(|pod| untracked_pod(pod, cx)) {
        plan.add(change);
        return plan;
    }
    if meta::is_deleting(meta) {
        if meta::has_finalizer(meta, ORPHAN) {
            orphan_dependents(key, meta, cx, &mut plan);
        } else if meta::has_finalizer(meta, FOREGROUND) {
            delete_dependents(key, meta, cx, &mut plan);
        } else if meta.finalizers.as_ref().is_none_or(Vec::is_empty) && !ends_by_itself(key, cx.view) {
            // Its last finalizer was taken away.
            plan.add(change(MANAGER).remove(key.clone(), revision));
        }
        return plan;
    }
    let owners = meta.owner_references.as_deref().unwrap_or_default();
    let (there, gone): (Vec<_>, Vec<_>) = owners.iter().partition(|owner| exists(owner, key, cx.view));
    if !gone.is_empty() && there.is_empty() {
        let (change, _) = deletion::delete(owners_absent(change(MANAGER), meta, cx.view), cx.view, key, cx.now);
        plan.add(change);
    } else if !gone.is_empty() {
        // Those that are there keep it; it forgets the others.
        plan.add(edit(key, cx, |metadata| gone.iter().for_each(|owner| drop_owner(metadata, &owner.uid))));
    }
    plan
}

/// A pod goes when its node says so, a Namespace when its content has gone.
fn ends_by_itself(key: &Key, view: &View) -> bool {
    view.pod(key).is_some() || view.namespace(key.name()).is_some_and(|found| found.key == *key)
}

/// Whether the object names owners and none of them exists.
fn is_abandoned(key: &Key, meta: &ObjectMeta, view: &View) -> bool {
    let owners = meta.owner_references.as_deref().unwrap_or_default();
    !owners.is_empty() && owners.iter().all(|owner| !exists(owner, key, view))
}

fn exists(owner: &OwnerReference, dependent: &Key, view: &View) -> bool {
    if dependent.namespace().is_empty() && names_a_namespaced_kind(owner) {
        // Which one is meant cannot be told, so that it cannot be told to be gone either.
        return true;
    }
    // An owner in another namespace is none.
    let same_scope = |key: &Key| key.namespace().is_empty() || key.namespace() == dependent.namespace();
    let unreadable = || view.unreadable().keys().any(|key| key.name() == owner.name && same_scope(key));
    view.key_of(&owner.uid).is_some_and(same_scope) || unreadable()
}

fn names_a_namespaced_kind(owner: &OwnerReference) -> bool {
    let group = owner.api_version.rsplit_once('/').map_or("", |(group, _)| group);
    let infos = Builtin::ALL.iter().map(|kind| kind.info());
    let mut found = infos.filter(|info| (info.group, info.kind) == (group, owner.kind.as_str()));
    found.any(|info| info.scope == Scope::Namespaced)
}

/// Requires that owners of kinds that behave are gone, where their key is known.
fn owners_absent(change: Change, meta: &ObjectMeta, view: &View) -> Change {
    let namespace = meta::namespace(meta);
    let owners = meta.owner_references.iter().flatten().filter_map(|owner| {
        let key = match owner.kind.as_str() {
            "ReplicaSet" => keys::replica_set(namespace, &owner.name),
            "Deployment" => keys::deployment(namespace, &owner.name),
            "Job" => keys::job(namespace, &owner.name),
            _ => return None,
        };
        // Another object of the name may exist by now; it is not the owner.
        view.meta(&key).is_none().then_some(key)
    });
    owners.fold(change, |change, key| change.require(key, Expect::Absent))
}

/// A pod whose node is gone, or that was told to go before it had one.
fn stranded_pod(pod: &PodEntry, cx: &Context<'_>) -> Option<Change> {
    let view = cx.view;
    let held = pod.metadata.finalizers.as_ref().is_some_and(|finalizers| !finalizers.is_empty());
    let change = change(POD_MANAGER);
    let Some(node) = pods::node_name(pod) else {
        return (meta::is_deleting(&pod.metadata) && !held).then(|| change.remove(pod.key.clone(), pod.revision));
    };
    if view.node(node).is_some() || view.unreadable().contains_key(&keys::node(node)) {
        return (meta::is_deleting(&pod.metadata) && pods::is_finished(pod) && !held)
            .then(|| change.remove(pod.key.clone(), pod.revision));
    }
    let change = change.require(keys::node(node), Expect::Absent);
    if !held {
        return Some(change.remove(pod.key.clone(), pod.revision));
    }
    // Whoever holds it shall see that it will not end any more.
    if pods::is_finished(pod) && meta::is_deleting(&pod.metadata) {
        return None;
    }
    let mut lost = pod.whole();
    if !pods::is_finished(&lost) {
        lost.status.get_or_insert_default().phase = Some("Failed".into());
        pods::lose(&mut lost, format!("Node {node} no longer exists."));
    }
    lost.metadata.deletion_timestamp.get_or_insert_with(|| meta::seconds(cx.now));
    lost.metadata.deletion_grace_period_seconds = Some(0);
    Some(change.update(pod.key.clone(), pod.revision, meta::encode(&lost)))
}

/// A pod that is held to be counted by a Job that is gone or going: nobody will count it.
fn untracked_pod(pod: &PodEntry, cx: &Context<'_>) -> Option<Change> {
    if !job::is_tracked(&pod.metadata) {
        return None;
    }
    let owner = meta::controller_of(&pod.metadata).filter(|owner| owner.kind == "Job");
    let counts = owner.is_some_and(|owner| {
        let job = cx.view.key_of(&owner.uid).and_then(|key| cx.view.meta(key));
        job.is_some_and(|(meta, _)| !meta::is_deleting(meta))
            || !is_abandoned(&pod.key, &pod.metadata, cx.view) && job.is_none()
    });
    (!counts).then(|| job::untrack(change(POD_MANAGER), pod))
}

/// Foreground deletion: dependents that block their owner go first.
fn delete_dependents(key: &Key, owner: &ObjectMeta, cx: &mut Context<'_>, plan: &mut Plan) {
    let uid = meta::uid(owner);
    let mut blocked = false;
    for dependent in cx.view.dependents(uid).take(MAX_OBJECTS) {
        let Some((meta, _)) = cx.view.meta(dependent) else { continue };
        let references = || meta.owner_references.iter().flatten();
        blocked |= references().any(|other| other.uid == uid && other.block_owner_deletion == Some(true));
        if references().any(|other| other.uid != uid && exists(other, dependent, cx.view)) {
            // Another owner keeps it; it only lets go of this one.
            plan.add(edit(dependent, cx, |metadata| drop_owner(metadata, uid)));
        } else if !meta::is_deleting(meta) && blocks_others(meta, cx.view) {
            // Its own dependents go before it, so that the whole tree ends from its leaves.
            plan.add(edit(dependent, cx, |metadata| deletion::mark(metadata, Some(FOREGROUND), cx.now)));
        } else {
            let (change, _) = deletion::delete(change(MANAGER), cx.view, dependent, cx.now);
            plan.add(change);
        }
    }
    if !blocked {
        plan.add(without_finalizer(key, owner, FOREGROUND, cx));
    }
}

/// Whether some dependent of the object wants to go before it.
fn blocks_others(meta: &ObjectMeta, view: &View) -> bool {
    let uid = meta::uid(meta);
    let blocks = |owner: &OwnerReference| owner.uid == uid && owner.block_owner_deletion == Some(true);
    let metas = view.dependents(uid).filter_map(|key| view.meta(key));
    metas.into_iter().any(|(meta, _)| meta.owner_references.iter().flatten().any(blocks))
}

/// Orphaning deletion: dependents let go of their owner before it goes.
fn orphan_dependents(key: &Key, owner: &ObjectMeta, cx: &mut Context<'_>, plan: &mut Plan) {
    let uid = meta::uid(owner);
    for dependent in cx.view.dependents(uid).take(MAX_OBJECTS) {
        plan.add(edit(dependent, cx, |metadata| drop_owner(metadata, uid)));
    }
    if cx.view.dependents(uid).next().is_none() {
        plan.add(without_finalizer(key, owner, ORPHAN, cx));
    }
}

/// Takes away a finalizer; if it was the last, the object goes with it.
fn without_finalizer(key: &Key, meta: &ObjectMeta, finalizer: &str, cx: &Context<'_>) -> Change {
    let last = meta.finalizers.iter().flatten().all(|other| other == finalizer);
    match cx.view.meta(key) {
        Some((_, revision)) if last && cx.view.pod(key).is_none() => change(MANAGER).remove(key.clone(), revision),
        _ => edit(key, cx, |metadata| {
            if let Some(finalizers) = metadata.get_mut("finalizers").and_then(Value::as_array_mut) {
                finalizers.retain(|other| other != finalizer);
            }
        }),
    }
}

fn drop_owner(metadata: &mut Value, uid: &str) {
    if let Some(owners) = metadata.get_mut("ownerReferences").and_then(Value::as_array_mut) {
        owners.retain(|owner| owner.get("uid").and_then(Value::as_str) != Some(uid));
    }
}

/// An update of an object's metadata.
fn edit(key: &Key, cx: &Context<'_>, with: impl FnOnce(&mut Value)) -> Change {
    let change = change(MANAGER);
    let (Some((_, revision)), Some(mut value)) = (cx.view.meta(key), cx.view.value(key)) else { return change };
    match value.get_mut("metadata") {
        Some(metadata) => with(metadata),
        None => return change,
    }
    change.update(key.clone(), revision, meta::encode(&value))
}

/// Removes finished pods beyond what is kept, oldest first.
pub(crate) fn plan_finished_pods(cx: &mut Context<'_>) -> Plan {
    let mut plan = Plan::default();
    let mut finished: Vec<&PodEntry> = cx.view.pods().filter(|pod| pods::is_finished(pod)).collect();
    let excess = finished.len().saturating_sub(cx.settings.finished_pods_kept);
    if excess == 0 {
        return plan;
    }
    finished.sort_by_key(|pod| meta::created(&pod.metadata));
    for pod in finished.into_iter().take(excess.min(MAX_OBJECTS)) {
        let (change, _) = deletion::delete_pod(change(POD_MANAGER), pod, cx.now);
        plan.add(change);
    }
    plan
}
