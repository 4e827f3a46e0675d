//! Which pods have to leave a node, and when.
//!
//! Invariant: a pod that tolerates all of a node's NoExecute taints without a limit stays.
//! Invariant: a pod that leaves keeps its object until its node confirms, so that its name does not
//! run twice.

use flotilla_api::Change;
use flotilla_api::k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use jiff::Timestamp;

use super::{MANAGER, NOT_READY, UNREACHABLE, readiness_of};
use crate::deletion::{self, Deletion};
use crate::event::{self, Teller};
use crate::plan::{Context, Plan, change};
use crate::view::PodEntry;
use crate::{condition, meta, pods};

/// Whether the node's pods have to be looked at.
pub(crate) fn disturbs(node: &Node) -> bool {
    no_execute(node).next().is_some() || readiness_of(node) != Some("True")
}

fn no_execute(node: &Node) -> impl Iterator<Item = &Taint> {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    taints.filter(|taint| taint.effect == "NoExecute")
}

/// Whether a toleration covers a taint, as the API reference defines it.
pub(crate) fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let effect = text(&toleration.effect);
    let key = text(&toleration.key);
    if !effect.is_empty() && effect != taint.effect {
        return false;
    }
    if !key.is_empty() && key != taint.key {
        return false;
    }
    match toleration.operator.as_deref() {
        Some("Exists") => true,
        None | Some("" | "Equal") => !key.is_empty() && text(&toleration.value) == text(&taint.value),
        Some(operator) => compare(operator, &text(&toleration.value), &text(&taint.value)),
    }
}

/// Numeric tolerations: the taint's value against the toleration's.
fn compare(operator: &str, wanted: &str, found: &str) -> bool {
    let (Ok(wanted), Ok(found)) = (wanted.parse::<i64>(), found.parse::<i64>()) else { return false };
    match operator {
        "Gt" => found > wanted,
        "Lt" => found < wanted,
        _ => false,
    }
}

pub(crate) fn plan(name: &str, cx: &mut Context<'_>) -> Plan {
    let mut plan = Plan::default();
    let view = cx.view;
    let Some(node) = view.node(name).filter(|node| disturbs(node)) else { return plan };
    let readiness = readiness_of(node);
    let (silent, lost) = (readiness != Some("True"), readiness == Some("Unknown"));
    for pod in view.pods_on(name).filter(|pod| !pods::is_finished(pod)) {
        let leaves_at = leaves_at(pod, node, cx.settings.default_toleration_seconds);
        let leaves = leaves_at.is_some_and(|at| at <= cx.now) && !meta::is_deleting(&pod.metadata);
        match leaves_at {
            Some(at) if at > cx.now => plan.wake(at),
            _ => {}
        }
        plan.add(move_on(pod, leaves, silent, lost.then_some(name), cx));
    }
    plan
}

/// When the pod has to leave; `None` if it may stay.
fn leaves_at(pod: &Pod, node: &Node, default_seconds: u32) -> Option<Timestamp> {
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    let deadline = |taint: &Taint| {
        let covering: Vec<&Toleration> = tolerations.iter().filter(|toleration| tolerates(toleration, taint)).collect();
        let seconds = match covering.as_slice() {
            [] if matches!(taint.key.as_str(), NOT_READY | UNREACHABLE) => Some(i64::from(default_seconds)),
            [] => Some(0),
            covering => covering.iter().filter_map(|toleration| toleration.toleration_seconds).min(),
        };
        match (seconds?.max(0), &taint.time_added) {
            // Who comes to a node that has the taint already tolerates it from then on.
            (seconds, Some(since)) => Some(meta::plus_seconds(since.0.max(came_at(pod)), seconds)),
            (0, None) => Some(Timestamp::MIN),
            // It is given a time soon; see [`super::health`].
            (_, None) => None,
        }
    };
    no_execute(node).filter_map(deadline).min()
}

/// When the pod was bound to its node, as far as it says.
fn came_at(pod: &Pod) -> Timestamp {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let bound = condition::find(conditions, "PodScheduled").filter(|condition| condition.status == "True");
    bound.and_then(|condition| condition.last_transition_time.as_ref()).map_or(Timestamp::MIN, |time| time.0)
}

/// Marks the pod for deletion if it leaves; not ready, or lost if it was to end, if nobody can tell whether it is.
fn move_on(pod: &PodEntry, leaves: bool, silent: bool, lost: Option<&str>, cx: &mut Context<'_>) -> Change {
    let never_ends = lost.is_some() && meta::is_deleting(&pod.metadata);
    if !leaves && !(silent && (pods::is_ready(pod) || never_ends)) {
        return change(MANAGER);
    }
    let before = pod.whole();
    let mut next = before.clone();
    if leaves {
        let message = "The node is not available to the pod any more";
        let conditions = &mut next.status.get_or_insert_default().conditions;
        condition::set(conditions, "DisruptionTarget", "True", "DeletionByTaintManager", message, cx.now);
        match deletion::of_pod(&next, None) {
            Deletion::Remove => return tell(change(MANAGER).remove(pod.key.clone(), pod.revision), pod, cx),
            Deletion::Mark(grace) => deletion::mark_pod(&mut next, grace, cx.now),
            Deletion::Pending => {}
        }
    }
    if silent {
        forget_readiness(&mut next, cx.now);
        if let Some(node) = lost.filter(|_| meta::is_deleting(&next.metadata)) {
            let message = format!("Node {node} which was running pod {} is unresponsive", pod.key.name());
            pods::lose(&mut next, message);
        }
    }
    if next == before {
        return change(MANAGER);
    }
    let change = change(MANAGER).update(pod.key.clone(), pod.revision, meta::encode(&next));
    if leaves { tell(change, pod, cx) } else { change }
}

fn forget_readiness(pod: &mut Pod, now: Timestamp) {
    if pods::is_ready(pod) {
        let conditions = &mut pod.status.get_or_insert_default().conditions;
        condition::set(conditions, "Ready", "False", "NodeNotReady", "", now);
    }
}

fn tell(change: Change, pod: &PodEntry, cx: &mut Context<'_>) -> Change {
    let mut teller = Teller { component: "taint-eviction-controller", now: cx.now, rng: cx.rng };
    let message = format!("Marking for deletion Pod {}/{}", pod.key.namespace(), pod.key.name());
    teller.normal(change, &event::reference(&**pod), "TaintManagerEviction", &message)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn toleration(value: serde_json::Value) -> Toleration {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn tolerations_cover_taints() {
        let taint: Taint = serde_json::from_value(json!({"key": "a", "value": "1", "effect": "NoExecute"})).unwrap();
        let table = [
            (json!({"operator": "Exists"}), true),
            (json!({"key": "a", "operator": "Exists"}), true),
            (json!({"key": "a", "value": "1"}), true),
            (json!({"key": "a", "operator": "Equal", "value": "2"}), false),
            (json!({"key": "a", "operator": "Exists", "effect": "NoSchedule"}), false),
            (json!({"key": "b", "operator": "Exists"}), false),
            (json!({"key": "a", "operator": "Gt", "value": "0"}), true),
            (json!({"key": "a", "operator": "Lt", "value": "0"}), false),
        ];
        for (value, expected) in table {
            assert_eq!(tolerates(&toleration(value.clone()), &taint), expected, "{value}");
        }
    }

    #[test]
    fn the_shortest_toleration_counts_from_the_taint_or_from_when_the_pod_came() {
        let node: Node = serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": {"taints": [
            {"key": UNREACHABLE, "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"}]}}))
        .unwrap();
        let pod = |tolerations: serde_json::Value| -> Pod {
            serde_json::from_value(
                json!({"metadata": {"name": "p"}, "spec": {"containers": [], "tolerations": tolerations}}),
            )
            .unwrap()
        };
        let at = |text: &str| Some(text.parse::<Timestamp>().unwrap());
        assert_eq!(leaves_at(&pod(json!([])), &node, 0), at("2026-01-01T00:00:00Z"));
        assert_eq!(leaves_at(&pod(json!([])), &node, 5), at("2026-01-01T00:00:05Z"));
        let limited = json!([{"key": UNREACHABLE, "operator": "Exists", "tolerationSeconds": 300},
            {"operator": "Exists", "tolerationSeconds": 60}]);
        assert_eq!(leaves_at(&pod(limited), &node, 0), at("2026-01-01T00:01:00Z"));
        assert_eq!(leaves_at(&pod(json!([{"operator": "Exists"}])), &node, 0), None);
        let mut late = pod(json!([{"operator": "Exists", "tolerationSeconds": 60}]));
        late.status = serde_json::from_value(json!({"conditions": [
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T01:00:00Z"}]}))
        .unwrap();
        assert_eq!(leaves_at(&late, &node, 0), at("2026-01-01T01:01:00Z"));
        // As a person adds it.
        let undated = json!({"metadata": {"name": "n"}, "spec": {"taints": [{"key": "a", "effect": "NoExecute"}]}});
        let undated: Node = serde_json::from_value(undated).unwrap();
        let limited = json!([{"operator": "Exists", "tolerationSeconds": 60}]);
        assert_eq!(leaves_at(&pod(limited), &undated, 0), None);
        assert_eq!(leaves_at(&pod(json!([])), &undated, 0), Some(Timestamp::MIN));
    }
}
