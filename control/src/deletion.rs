//! How objects are told to go, and when they are gone.
//!
//! Invariant: an object with finalizers is never removed, only marked.
//! Invariant: a pod that may have containers keeps its object until its node says that they are gone.

use flotilla_api::k8s_openapi::api::core::v1::Pod;
use flotilla_api::{Change, Key};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::view::{PodEntry, View};
use crate::{meta, pods};

/// What becomes of a pod that was told to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletion {
    /// It goes at once.
    Remove,
    /// It stays, marked (see [`mark_pod`]) with so many seconds of grace, until its finalizers are gone and its node confirms.
    Mark(i64),
    /// It was told before.
    Pending,
}

/// What becomes of a pod that is told to go within `grace_seconds`, or its own grace period.
pub fn of_pod(pod: &Pod, grace_seconds: Option<i64>) -> Deletion {
    let never_ran = pods::node_name(pod).is_none() || pods::is_finished(pod);
    let grace = if never_ran { 0 } else { grace_seconds.unwrap_or_else(|| pods::grace_seconds(pod)).max(0) };
    let finalizers = pod.metadata.finalizers.as_ref().is_some_and(|finalizers| !finalizers.is_empty());
    if grace == 0 && !finalizers {
        return Deletion::Remove;
    }
    let told = pod.metadata.deletion_grace_period_seconds;
    if meta::is_deleting(&pod.metadata) && told.is_none_or(|told| told <= grace) {
        return Deletion::Pending;
    }
    Deletion::Mark(grace)
}

/// Marks a pod as told to go within so many seconds.
pub fn mark_pod(pod: &mut Pod, grace: i64, now: Timestamp) {
    let told = pod.metadata.deletion_grace_period_seconds;
    if !meta::is_deleting(&pod.metadata) {
        pod.metadata.generation = pod.metadata.generation.map(|generation| generation + 1);
    }
    // A shorter grace period counts from when the pod was first told.
    let since = match (&pod.metadata.deletion_timestamp, told) {
        (Some(time), Some(told)) => time.0.saturating_sub(SignedDuration::from_secs(told)).unwrap_or(now),
        _ => now,
    };
    pod.metadata.deletion_timestamp = Some(meta::seconds(meta::plus_seconds(since, grace)));
    pod.metadata.deletion_grace_period_seconds = Some(grace);
}

/// Adds the deletion of a pod to a Change. Returns the Change and whether something was added.
pub(crate) fn delete_pod(change: Change, pod: &PodEntry, now: Timestamp) -> (Change, bool) {
    match of_pod(pod, None) {
        Deletion::Remove => (change.remove(pod.key.clone(), pod.revision), true),
        Deletion::Mark(grace) => {
            let mut marked = pod.whole();
            mark_pod(&mut marked, grace, now);
            (change.update(pod.key.clone(), pod.revision, meta::encode(&marked)), true)
        }
        Deletion::Pending => (change, false),
    }
}

/// Adds the deletion of an object of any kind: removal, or the mark if finalizers hold it.
pub(crate) fn delete(change: Change, view: &View, key: &Key, now: Timestamp) -> (Change, bool) {
    if let Some(pod) = view.pod(key) {
        return delete_pod(change, pod, now);
    }
    let Some((meta, revision)) = view.meta(key) else { return (change, false) };
    let held = meta.finalizers.as_ref().is_some_and(|finalizers| !finalizers.is_empty());
    if !held {
        return (change.remove(key.clone(), revision), true);
    }
    if meta::is_deleting(meta) {
        return (change, false);
    }
    match view.value(key) {
        Some(mut value) => {
            if let Some(metadata) = value.get_mut("metadata") {
                mark(metadata, None, now);
            }
            (change.update(key.clone(), revision, meta::encode(&value)), true)
        }
        None => (change, false),
    }
}

/// Marks an object's metadata as told to go, held by a finalizer if one is given.
pub(crate) fn mark(metadata: &mut Value, finalizer: Option<&str>, now: Timestamp) {
    let Some(metadata) = metadata.as_object_mut() else { return };
    metadata.insert("deletionTimestamp".into(), json!(meta::seconds(now)));
    metadata.insert("deletionGracePeriodSeconds".into(), json!(0));
    if let Some(generation) = metadata.get("generation").and_then(Value::as_i64) {
        metadata.insert("generation".into(), json!(generation + 1));
    }
    if let Some(finalizer) = finalizer {
        match metadata.get_mut("finalizers").and_then(Value::as_array_mut) {
            Some(list) => list.push(finalizer.into()),
            None => drop(metadata.insert("finalizers".into(), json!([finalizer]))),
        }
    }
}

/// What a node writes when the containers of a pod that was told to go are gone: the removal, or,
/// while finalizers hold the pod, nothing; whoever takes away the last finalizer removes it.
pub fn confirm(pod: &Pod) -> bool {
    meta::is_deleting(&pod.metadata) && pod.metadata.finalizers.as_ref().is_none_or(Vec::is_empty)
}

#[cfg(test)]
mod tests {
    use flotilla_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn pod(value: Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    fn now() -> Timestamp {
        Timestamp::from_second(1_000_000).unwrap()
    }

    #[test]
    fn a_pod_without_a_node_or_finished_goes_at_once() {
        let waiting = pod(json!({"metadata": {"name": "a"}, "spec": {"containers": []}}));
        assert_eq!(of_pod(&waiting, None), Deletion::Remove);
        let done = pod(json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n", "containers": []},
            "status": {"phase": "Failed"}}));
        assert_eq!(of_pod(&done, None), Deletion::Remove);
    }

    #[test]
    fn a_bound_pod_is_marked_once_and_may_be_hurried() {
        let bound = pod(json!({"metadata": {"name": "a"},
            "spec": {"nodeName": "n", "containers": [], "terminationGracePeriodSeconds": 20}}));
        let bound = Pod { metadata: ObjectMeta { generation: Some(1), ..bound.metadata }, ..bound };
        assert_eq!(of_pod(&bound, None), Deletion::Mark(20));
        let mut marked = bound;
        mark_pod(&mut marked, 20, now());
        assert_eq!(marked.metadata.deletion_timestamp.as_ref().unwrap().0.as_second(), 1_000_020);
        let later = now() + SignedDuration::from_secs(3);
        assert_eq!(of_pod(&marked, None), Deletion::Pending);
        assert_eq!(of_pod(&marked, Some(5)), Deletion::Mark(5));
        let mut hurried = marked.clone();
        mark_pod(&mut hurried, 5, later);
        assert_eq!(hurried.metadata.deletion_timestamp.as_ref().unwrap().0.as_second(), 1_000_005);
        assert_eq!([&marked, &hurried].map(|pod| pod.metadata.generation), [Some(2), Some(2)]);
        assert_eq!(of_pod(&marked, Some(0)), Deletion::Remove);
    }

    #[test]
    fn finalizers_hold_a_pod() {
        let mut held = pod(json!({"metadata": {"name": "a", "finalizers": ["x/y"]}, "spec": {"containers": []}}));
        assert_eq!(of_pod(&held, None), Deletion::Mark(0));
        mark_pod(&mut held, 0, now());
        assert!(!confirm(&held));
    }
}
