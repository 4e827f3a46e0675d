//! What a pod takes from its RuntimeClass: overhead, and where it may run.
//!
//! Defined by the Kubernetes API reference, `RuntimeClass`, and upstream's admission plugin of that name.

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use k8s_openapi::api::node::v1::{RuntimeClass, Scheduling};

/// Writes into a pod what its class says.
///
/// # Errors
/// If there is no such class, or the pod contradicts it.
pub(super) fn apply(pod: &mut Pod, classes: &[RuntimeClass]) -> Result<(), String> {
    let Some(spec) = &mut pod.spec else { return Ok(()) };
    let named = spec.runtime_class_name.as_deref().filter(|name| !name.is_empty());
    let class = match named {
        Some(name) => {
            let found = classes.iter().find(|class| class.metadata.name.as_deref() == Some(name));
            Some(found.ok_or_else(|| format!("pod rejected: RuntimeClass \"{name}\" not found"))?)
        }
        None => None,
    };
    let overhead = class.and_then(|class| class.overhead.as_ref()?.pod_fixed.as_ref());
    match (&spec.overhead, overhead) {
        (None, overhead) => spec.overhead = overhead.cloned(),
        (Some(own), Some(overhead)) if own == overhead => {}
        (Some(_), Some(_)) => {
            return Err("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead".into());
        }
        (Some(_), None) => {
            return Err("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead".into());
        }
    }
    class.and_then(|class| class.scheduling.as_ref()).map_or(Ok(()), |scheduling| narrow(spec, scheduling))
}

/// Only the nodes that support the class are left.
fn narrow(spec: &mut PodSpec, scheduling: &Scheduling) -> Result<(), String> {
    for (label, value) in scheduling.node_selector.iter().flatten() {
        let own = spec.node_selector.get_or_insert_default().entry(label.clone()).or_insert_with(|| value.clone());
        if own != value {
            return Err(format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{label}] = {value}; pod.spec.nodeSelector[{label}] = {own}"
            ));
        }
    }
    for toleration in scheduling.tolerations.iter().flatten() {
        let own = spec.tolerations.get_or_insert_default();
        if !own.contains(toleration) {
            own.push(toleration.clone());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn applied(spec: Value) -> Result<Value, String> {
        let classes: Vec<RuntimeClass> = serde_json::from_value(json!([
            {"metadata": {"name": "plain"}, "handler": "h"},
            {"metadata": {"name": "vm"}, "handler": "h", "overhead": {"podFixed": {"memory": "64Mi"}}, "scheduling": {
                "nodeSelector": {"vm": "yes"}, "tolerations": [{"key": "vm", "operator": "Exists"}]}},
        ]))
        .unwrap();
        let mut pod: Pod = serde_json::from_value(json!({"metadata": {"name": "a"}, "spec": spec})).unwrap();
        apply(&mut pod, &classes)?;
        Ok(serde_json::to_value(pod.spec.unwrap()).unwrap())
    }

    #[test]
    fn a_pod_takes_what_its_class_says() {
        let spec = applied(json!({"containers": [], "runtimeClassName": "vm", "nodeSelector": {"a": "b"}})).unwrap();
        assert_eq!(spec["overhead"], json!({"memory": "64Mi"}));
        assert_eq!(spec["nodeSelector"], json!({"a": "b", "vm": "yes"}));
        assert_eq!(spec["tolerations"], json!([{"key": "vm", "operator": "Exists"}]));
        assert!(applied(spec).is_ok(), "again");
        assert!(
            applied(json!({"containers": []})).is_ok()
                && applied(json!({"containers": [], "runtimeClassName": "plain"})).is_ok()
        );
    }

    #[test]
    fn a_pod_that_contradicts_its_class_is_refused() {
        let overhead = json!({"memory": "1Mi"});
        for (spec, words) in [
            (json!({"containers": [], "runtimeClassName": "x"}), "pod rejected: RuntimeClass \"x\" not found"),
            (json!({"containers": [], "overhead": overhead}), "pod rejected: Pod Overhead set without"),
            (json!({"containers": [], "runtimeClassName": "vm", "overhead": overhead}), "pod rejected: Pod's Overhead"),
            (
                json!({"containers": [], "runtimeClassName": "vm", "nodeSelector": {"vm": "no"}}),
                "conflict: runtimeClass.scheduling.nodeSelector[vm] = yes; pod.spec.nodeSelector[vm] = no",
            ),
        ] {
            let refused = applied(spec.clone()).unwrap_err();
            assert!(refused.starts_with(words), "{spec}: {refused}");
        }
    }
}
