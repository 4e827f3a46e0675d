//! What planners ask about pods, and how they look when they are made.

use flotilla_api::k8s_openapi::api::core::v1::{Pod, PodCondition, PodTemplateSpec};
use flotilla_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use flotilla_api::kinds::pod::first_status;
use jiff::Timestamp;

use crate::plan::Context;
use crate::{condition, meta, names};

pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

pub(crate) fn is_succeeded(pod: &Pod) -> bool {
    phase(pod) == "Succeeded"
}

pub(crate) fn is_failed(pod: &Pod) -> bool {
    phase(pod) == "Failed"
}

/// Whether its containers have ended for good.
pub(crate) fn is_finished(pod: &Pod) -> bool {
    is_succeeded(pod) || is_failed(pod)
}

/// Whether it runs or will run: neither finished nor told to go.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && !meta::is_deleting(&pod.metadata)
}

/// Whether its node is lost, so that nobody can say how it does. See [`lose`].
pub(crate) fn is_lost(pod: &Pod) -> bool {
    pod.status.as_ref().and_then(|status| status.reason.as_deref()) == Some("NodeLost")
}

/// Notes that nobody can say how it does. A node that comes back says it anew.
pub(crate) fn lose(pod: &mut Pod, message: String) {
    let status = pod.status.get_or_insert_default();
    status.reason = Some("NodeLost".into());
    status.message = Some(message);
}

/// Whether it takes room on its node. A pod that was told to go takes room until it is gone.
pub(crate) fn takes_room(pod: &Pod) -> bool {
    !is_finished(pod)
}

pub(crate) fn node_name(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

pub(crate) fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    condition::find(pod.status.as_ref()?.conditions.as_ref(), kind)
}

fn ready_condition(pod: &Pod) -> Option<&PodCondition> {
    condition(pod, "Ready").filter(|condition| condition.status == "True")
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    ready_condition(pod).is_some()
}

/// Since when the pod has been ready.
pub(crate) fn ready_since(pod: &Pod) -> Option<Timestamp> {
    Some(ready_condition(pod)?.last_transition_time.as_ref()?.0)
}

/// When a ready pod counts as available; `None` if it is not ready.
pub(crate) fn available_at(pod: &Pod, min_ready_seconds: i32) -> Option<Timestamp> {
    if !is_ready(pod) {
        return None;
    }
    match min_ready_seconds {
        ..=0 => Some(Timestamp::MIN),
        seconds => Some(meta::plus_seconds(ready_since(pod)?, i64::from(seconds))),
    }
}

pub(crate) fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    statuses.map(|status| status.restart_count).max().unwrap_or(0)
}

/// How long a pod may take to stop.
pub(crate) fn grace_seconds(pod: &Pod) -> i64 {
    match pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds) {
        None => 30,
        // As upstream takes what is no time.
        Some(..=-1) => 1,
        Some(seconds) => seconds,
    }
}

/// A new pod after a template, controlled by `owner`.
pub(crate) fn from_template(
    template: &PodTemplateSpec,
    namespace: &str,
    prefix: &str,
    owner: OwnerReference,
    cx: &mut Context<'_>,
) -> Pod {
    let (now, rng) = (cx.now, &mut *cx.rng);
    let model = template.metadata.as_ref();
    let name = names::generate(prefix, rng);
    let metadata = ObjectMeta {
        generate_name: Some(prefix.to_owned()),
        labels: model.and_then(|model| model.labels.clone()),
        annotations: model.and_then(|model| model.annotations.clone()),
        finalizers: model.and_then(|model| model.finalizers.clone()),
        owner_references: Some(vec![owner]),
        ..meta::mint(namespace, name, now, rng)
    };
    let status = first_status(template.spec.as_ref());
    Pod { metadata, spec: template.spec.clone(), status: Some(status) }
}
