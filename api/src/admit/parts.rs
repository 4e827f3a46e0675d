//! Parts of a Pod that have a subresource of their own: containers added to look into a running pod, and resources
//! changed while it runs.
//!
//! Defined by the Kubernetes API reference, `pods/ephemeralcontainers` and `pods/resize`; the words are upstream's.
//!
//! Invariant: whatever else the new object says, only the part is taken over.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::Deserialize;
use serde_json::Value;

use crate::field::{Errors, Path};
use crate::kinds::pod::qos_class;
use crate::quantity::Amount;
use crate::{defaults, names, validate};

/// Resources that can change while a container runs.
const RESIZABLE: [&str; 2] = ["cpu", "memory"];

/// Takes over the ephemeral containers of `new`, of which those that are in `old` must stay as they are.
pub(super) fn ephemeral_containers(old: &Value, new: &mut Value, errors: &mut Errors) {
    let (Some(before), Some(mut after)) = (spec(old), spec(new)) else { return };
    let path = Path::new("spec").child("ephemeralContainers");
    after.ephemeral_containers.iter_mut().flatten().for_each(defaults::ephemeral_container);
    let added = after.ephemeral_containers.unwrap_or_default();
    let kept = before.ephemeral_containers.as_deref().unwrap_or_default();
    for container in kept {
        match added.iter().find(|other| other.name == container.name) {
            None => {
                errors.forbidden(
                    &path,
                    format_args!("existing ephemeral containers \"{}\" may not be removed", container.name),
                );
            }
            Some(other) if other != container => {
                errors.forbidden(
                    &path,
                    format_args!("existing ephemeral containers \"{}\" may not be changed", container.name),
                );
            }
            Some(_) => {}
        }
    }
    let mut taken: BTreeSet<&str> =
        before.containers.iter().chain(before.init_containers.iter().flatten()).map(|c| c.name.as_str()).collect();
    let targets = taken.clone();
    for (index, container) in added.iter().enumerate() {
        check(container, &mut taken, &targets, &path.index(index), errors);
    }
    let mut result = old.clone();
    if let Ok(list) = serde_json::to_value(&added) {
        result["spec"]["ephemeralContainers"] = list;
    }
    *new = result;
}

fn check<'a>(
    container: &'a EphemeralContainer,
    taken: &mut BTreeSet<&'a str>,
    targets: &BTreeSet<&str>,
    path: &Path,
    errors: &mut Errors,
) {
    validate::name(&container.name, names::dns_label, &path.child("name"), errors);
    if !taken.insert(&container.name) {
        errors.duplicate(&path.child("name"), container.name.as_str());
    }
    if container.image.as_deref().unwrap_or_default().is_empty() {
        errors.required(&path.child("image"), "");
    }
    let target = container.target_container_name.as_deref().filter(|target| !target.is_empty());
    if let Some(target) = target.filter(|target| !targets.contains(target)) {
        errors.not_found(&path.child("targetContainerName"), target);
    }
    let unusual = [
        ("ports", container.ports.as_ref().is_some_and(|ports| !ports.is_empty())),
        ("livenessProbe", container.liveness_probe.is_some()),
        ("readinessProbe", container.readiness_probe.is_some()),
        ("startupProbe", container.startup_probe.is_some()),
        ("lifecycle", container.lifecycle.is_some()),
        ("resources", container.resources.as_ref().is_some_and(|r| *r != ResourceRequirements::default())),
    ];
    for (field, _) in unusual.into_iter().filter(|(_, set)| *set) {
        errors.forbidden(&path.child(field), "cannot be set for an Ephemeral Container");
    }
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        if mount.sub_path.as_ref().or(mount.sub_path_expr.as_ref()).is_some_and(|path| !path.is_empty()) {
            let path = path.child("volumeMounts").index(index).child("subPath");
            errors.forbidden(&path, "cannot be set for an Ephemeral Container");
        }
    }
}

/// Takes over the resources of the containers of `new`.
pub(super) fn resources(old: &Value, new: &mut Value, errors: &mut Errors) {
    let (Some(before), Some(after)) = (spec(old), spec(new)) else { return };
    let path = Path::new("spec");
    let mut result = before.clone();
    if after.containers.len() != before.containers.len() {
        errors.forbidden(&path.child("containers"), "containers may not be added or removed on resize");
        return;
    }
    for (index, (container, wanted)) in result.containers.iter_mut().zip(&after.containers).enumerate() {
        let path = path.child("containers").index(index);
        if container.name != wanted.name {
            errors.forbidden(&path, "containers may not be renamed or reordered on resize");
            continue;
        }
        resize(container, wanted, &path.child("resources"), errors);
    }
    let mut rest = after.clone();
    for (container, resized) in rest.containers.iter_mut().zip(&result.containers) {
        container.resources.clone_from(&resized.resources);
    }
    if errors.is_empty() && rest != result {
        errors.forbidden(&path, "only cpu and memory resources are mutable");
    }
    if qos_class(&before) != qos_class(&result) {
        let value = qos_class(&result);
        let detail = format_args!("Pod QOS Class may not change as a result of resizing");
        errors.invalid(&path, value, detail);
    }
    let mut pod = old.clone();
    if let Ok(containers) = serde_json::to_value(&result.containers) {
        pod["spec"]["containers"] = containers;
    }
    *new = pod;
}

fn resize(container: &mut Container, wanted: &Container, path: &Path, errors: &mut Errors) {
    let (mut now, then) =
        (container.resources.clone().unwrap_or_default(), wanted.resources.clone().unwrap_or_default());
    take(&mut now.limits, then.limits, &path.child("limits"), "resource limits cannot be removed", errors);
    take(&mut now.requests, then.requests, &path.child("requests"), "resource requests cannot be removed", errors);
    // A limit alone is a request too, as it is on creation.
    for name in RESIZABLE {
        let limit = now.limits.as_ref().and_then(|limits| limits.get(name)).cloned();
        if let Some(limit) = limit {
            now.requests.get_or_insert_default().entry(name.to_owned()).or_insert(limit);
        }
    }
    validate::resources::requirements(&now, path, errors);
    container.resources = Some(now);
}

fn take(
    now: &mut Option<BTreeMap<String, Quantity>>,
    then: Option<BTreeMap<String, Quantity>>,
    path: &Path,
    removed: &str,
    errors: &mut Errors,
) {
    let then = then.unwrap_or_default();
    let before = now.clone().unwrap_or_default();
    for name in RESIZABLE {
        match then.get(name) {
            Some(quantity) => _ = now.get_or_insert_default().insert(name.to_owned(), quantity.clone()),
            None if before.contains_key(name) => errors.forbidden(&path.key(name), removed),
            None => {}
        }
    }
    let same = |a: Option<&Quantity>, b: Option<&Quantity>| match (a, b) {
        (Some(a), Some(b)) => a == b || Amount::parse(&a.0).ok() == Amount::parse(&b.0).ok(),
        (None, None) => true,
        _ => false,
    };
    let others = before.keys().chain(then.keys()).filter(|name| !RESIZABLE.contains(&name.as_str()));
    if others.into_iter().any(|name| !same(before.get(name), then.get(name))) {
        errors.forbidden(path, "only cpu and memory resources are mutable");
    }
}

fn spec(pod: &Value) -> Option<PodSpec> {
    Pod::deserialize(pod).ok()?.spec
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
            "spec": {"containers": [
                {"name": "main", "image": "i", "resources": {"limits": {"cpu": "1", "memory": "64Mi"}, "requests": {"cpu": "100m", "memory": "64Mi"}}},
            ]},
        })
    }

    fn refused(change: fn(&Value, &mut Value, &mut Errors), old: &Value, new: &Value) -> Vec<String> {
        let mut errors = Errors::new();
        change(old, &mut new.clone(), &mut errors);
        errors.into_causes().into_iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
    }

    #[test]
    fn ephemeral_containers_are_added_and_stay() {
        let old = pod();
        let mut new = old.clone();
        new["spec"]["ephemeralContainers"] =
            json!([{"name": "debug", "image": "busybox", "targetContainerName": "main"}]);
        new["spec"]["containers"][0]["image"] = json!("other");
        let mut errors = Errors::new();
        ephemeral_containers(&old, &mut new, &mut errors);
        assert!(errors.is_empty());
        assert_eq!(new["spec"]["containers"], old["spec"]["containers"], "nothing else is taken over");
        let debug = &new["spec"]["ephemeralContainers"][0];
        assert_eq!((&debug["imagePullPolicy"], &debug["terminationMessagePolicy"]), (&json!("Always"), &json!("File")));

        let said = refused(ephemeral_containers, &new, &old);
        assert!(said[0].contains("existing ephemeral containers \"debug\" may not be removed"), "{said:?}");
        let mut changed = new.clone();
        changed["spec"]["ephemeralContainers"][0]["image"] = json!("x");
        assert!(refused(ephemeral_containers, &new, &changed)[0].contains("may not be changed"));
        for (bad, what) in [
            (json!({"name": "main", "image": "x"}), "Duplicate value"),
            (json!({"name": "d"}), "Required value"),
            (json!({"name": "d", "image": "x", "targetContainerName": "none"}), "Not found"),
            (json!({"name": "d", "image": "x", "ports": [{"containerPort": 1}]}), "cannot be set for an Ephemeral"),
            (
                json!({"name": "d", "image": "x", "resources": {"limits": {"cpu": "1"}}}),
                "cannot be set for an Ephemeral",
            ),
        ] {
            let mut new = old.clone();
            new["spec"]["ephemeralContainers"] = json!([bad]);
            let said = refused(ephemeral_containers, &old, &new);
            assert!(said.iter().any(|line| line.contains(what)), "{bad}: {said:?}");
        }
    }

    #[test]
    fn resources_change_and_nothing_else() {
        let old = pod();
        let mut new = old.clone();
        new["spec"]["containers"][0]["resources"]["limits"]["memory"] = json!("128Mi");
        let mut errors = Errors::new();
        resources(&old, &mut new, &mut errors);
        assert!(errors.is_empty());
        assert_eq!(new["spec"]["containers"][0]["resources"]["limits"]["memory"], "128Mi");
        for (pointer, value, what) in [
            ("/spec/containers/0/image", json!("x"), "only cpu and memory resources are mutable"),
            ("/spec/containers/0/name", json!("x"), "may not be renamed"),
            ("/spec/containers/0/resources/limits", json!({"cpu": "1"}), "resource limits cannot be removed"),
            (
                "/spec/containers/0/resources/requests/memory",
                json!("65Mi"),
                "must be less than or equal to memory limit",
            ),
            (
                "/spec/containers/0/resources",
                json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}}),
                "QOS Class may not change",
            ),
        ] {
            let mut new = old.clone();
            *new.pointer_mut(pointer).unwrap() = value;
            let said = refused(resources, &old, &new);
            assert!(said.iter().any(|line| line.contains(what)), "{pointer}: {said:?}");
        }
    }
}
