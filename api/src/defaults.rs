//! What upstream fills in where a pod's writer said nothing.
//!
//! Defined by the Kubernetes API reference, field by field ("Defaults to …").
//!
//! Invariant: defaulting twice gives what defaulting once gave.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    AzureDiskVolumeSource, Container, EnvVar, EphemeralContainer, ObjectFieldSelector, PersistentVolumeClaimSpec,
    PodSpec, PodTemplateSpec, Probe, ResourceFieldSelector, ResourceRequirements, Volume,
};
use k8s_openapi::api::rbac::v1::{RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::admit::usage::requests_of_containers;
use crate::kinds::pod::is_of_whole_pods;
use crate::quantity::Amount;

const DEFAULT_MODE: i32 = 0o644;
const GRACE_SECONDS: i64 = 30;
const TOKEN_EXPIRATION_SECONDS: i64 = 3600;

/// Sets the value of an optional field that has none.
pub(crate) fn set<T>(field: &mut Option<T>, value: impl FnOnce() -> T) {
    if field.is_none() {
        *field = Some(value());
    }
}

/// Sets an optional text that is absent or empty.
pub(crate) fn set_text(field: &mut Option<String>, value: &str) {
    if field.as_deref().unwrap_or_default().is_empty() {
        *field = Some(value.to_owned());
    }
}

/// What is finer than a thousandth is rounded up to one.
pub(crate) fn amounts(amounts: Option<&mut BTreeMap<String, Quantity>>) {
    for quantity in amounts.into_iter().flat_map(BTreeMap::values_mut) {
        let Ok(amount) = Amount::parse(&quantity.0) else { continue };
        if amount != amount.in_millis() {
            quantity.0 = amount.in_millis().to_string();
        }
    }
}

/// The defaults of a claim, wherever it stands.
pub(crate) fn claim(spec: &mut PersistentVolumeClaimSpec) {
    set_text(&mut spec.volume_mode, "Filesystem");
    if let Some(resources) = &mut spec.resources {
        amounts(resources.requests.as_mut());
        amounts(resources.limits.as_mut());
    }
}

/// What is bound is of the group of roles, as are users and groups.
pub(crate) fn binding(role: &mut RoleRef, subjects: Option<&mut [Subject]>) {
    const GROUP: &str = "rbac.authorization.k8s.io";
    set_text(&mut role.api_group, GROUP);
    let people = subjects.into_iter().flatten().filter(|subject| matches!(subject.kind.as_str(), "User" | "Group"));
    people.for_each(|subject| set_text(&mut subject.api_group, GROUP));
}

/// The defaults of a pod template: those of a pod's spec.
pub(crate) fn template(template: &mut PodTemplateSpec) {
    pod_spec(template.spec.get_or_insert_default());
}

/// The defaults of a pod's spec that templates get too.
pub(crate) fn pod_spec(spec: &mut PodSpec) {
    set_text(&mut spec.dns_policy, "ClusterFirst");
    set_text(&mut spec.restart_policy, "Always");
    set(&mut spec.security_context, Default::default);
    set(&mut spec.termination_grace_period_seconds, || GRACE_SECONDS);
    set_text(&mut spec.scheduler_name, "default-scheduler");
    if let Some(account) = spec.service_account_name.clone().or_else(|| spec.service_account.clone()) {
        spec.service_account = Some(account.clone());
        spec.service_account_name = Some(account);
    }
    let host_network = spec.host_network == Some(true);
    spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()).for_each(|c| {
        container(c);
        if host_network {
            host_ports(c);
        }
    });
    spec.ephemeral_containers.iter_mut().flatten().for_each(ephemeral_container);
    spec.resources.iter_mut().for_each(resources);
    amounts(spec.overhead.as_mut());
    spec.volumes.iter_mut().flatten().for_each(volume);
    for constraint in spec.topology_spread_constraints.iter_mut().flatten() {
        set_text(&mut constraint.node_affinity_policy, "Honor");
        set_text(&mut constraint.node_taints_policy, "Ignore");
    }
}

/// The defaults that only a pod itself gets.
pub(crate) fn pod_only(spec: &mut PodSpec) {
    set(&mut spec.enable_service_links, || true);
    let containers = spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten());
    containers.filter_map(|c| c.resources.as_mut()).for_each(requests_from_limits);
    requests_of_whole(spec);
    spec.resources.iter_mut().for_each(requests_from_limits);
}

/// A pod that is limited as a whole asks for what its containers ask for together.
fn requests_of_whole(spec: &mut PodSpec) {
    let together = requests_of_containers(spec);
    let is_limited = |whole: &&mut ResourceRequirements| whole.limits.as_ref().is_some_and(|limits| !limits.is_empty());
    let Some(whole) = spec.resources.as_mut().filter(is_limited) else { return };
    let requests = whole.requests.get_or_insert_default();
    for (name, amount) in together.into_iter().filter(|(name, _)| is_of_whole_pods(name)) {
        requests.entry(name).or_insert_with(|| Quantity(amount.to_string()));
    }
    whole.requests.take_if(|requests| requests.is_empty());
}

/// What is limited but not requested is requested up to its limit.
fn requests_from_limits(resources: &mut ResourceRequirements) {
    let Some(limits) = resources.limits.clone().filter(|limits| !limits.is_empty()) else { return };
    let requests = resources.requests.get_or_insert_default();
    for (name, limit) in limits {
        requests.entry(name).or_insert(limit);
    }
}

/// On the host's network a port of the container is that port of the host.
fn host_ports(container: &mut Container) {
    for port in container.ports.iter_mut().flatten() {
        set(&mut port.host_port, || port.container_port);
    }
}

fn container(container: &mut Container) {
    pull_policy(&mut container.image_pull_policy, container.image.as_deref());
    set_text(&mut container.termination_message_path, "/dev/termination-log");
    set_text(&mut container.termination_message_policy, "File");
    resources(container.resources.get_or_insert_default());
    for port in container.ports.iter_mut().flatten() {
        set_text(&mut port.protocol, "TCP");
    }
    container.env.iter_mut().flatten().for_each(env);
    let probes = [&mut container.liveness_probe, &mut container.readiness_probe, &mut container.startup_probe];
    probes.into_iter().flatten().for_each(probe);
    if let Some(lifecycle) = &mut container.lifecycle {
        let hooks = [&mut lifecycle.post_start, &mut lifecycle.pre_stop];
        hooks.into_iter().flatten().filter_map(|h| h.http_get.as_mut()).for_each(|get| {
            set_text(&mut get.path, "/");
            set_text(&mut get.scheme, "HTTP");
        });
    }
}

fn resources(resources: &mut ResourceRequirements) {
    amounts(resources.requests.as_mut());
    amounts(resources.limits.as_mut());
}

/// The defaults of a container that is added to look into a pod.
pub(crate) fn ephemeral_container(container: &mut EphemeralContainer) {
    pull_policy(&mut container.image_pull_policy, container.image.as_deref());
    set_text(&mut container.termination_message_path, "/dev/termination-log");
    set_text(&mut container.termination_message_policy, "File");
    set(&mut container.resources, Default::default);
    container.env.iter_mut().flatten().for_each(env);
}

/// `Always` for a tag that moves, `IfNotPresent` for all others.
fn pull_policy(policy: &mut Option<String>, image: Option<&str>) {
    let image = image.unwrap_or_default();
    let last = image.rsplit('/').next().unwrap_or_default();
    let moves = !image.contains('@') && last.split_once(':').is_none_or(|(_, tag)| tag == "latest");
    set_text(policy, if moves { "Always" } else { "IfNotPresent" });
}

fn env(env: &mut EnvVar) {
    if let Some(from) = &mut env.value_from {
        references(from.field_ref.as_mut(), from.resource_field_ref.as_mut());
    }
}

/// References to fields of the pod and to resources of its containers.
fn references(field: Option<&mut ObjectFieldSelector>, resource: Option<&mut ResourceFieldSelector>) {
    if let Some(field) = field {
        set_text(&mut field.api_version, "v1");
    }
    if let Some(resource) = resource {
        set(&mut resource.divisor, || Quantity("0".to_owned()));
    }
}

fn probe(probe: &mut Probe) {
    let positive = |field: &mut Option<i32>, value| {
        if field.unwrap_or_default() == 0 {
            *field = Some(value);
        }
    };
    positive(&mut probe.timeout_seconds, 1);
    positive(&mut probe.period_seconds, 10);
    positive(&mut probe.success_threshold, 1);
    positive(&mut probe.failure_threshold, 3);
    if let Some(get) = &mut probe.http_get {
        set_text(&mut get.path, "/");
        set_text(&mut get.scheme, "HTTP");
    }
    if let Some(grpc) = &mut probe.grpc {
        set(&mut grpc.service, String::new);
    }
}

fn volume(volume: &mut Volume) {
    if *volume == (Volume { name: volume.name.clone(), ..Volume::default() }) {
        volume.empty_dir = Some(Default::default());
    }
    if let Some(source) = &mut volume.config_map {
        set(&mut source.default_mode, || DEFAULT_MODE);
    }
    if let Some(source) = &mut volume.secret {
        set(&mut source.default_mode, || DEFAULT_MODE);
    }
    if let Some(source) = &mut volume.downward_api {
        set(&mut source.default_mode, || DEFAULT_MODE);
        let items = source.items.iter_mut().flatten();
        items.for_each(|item| references(item.field_ref.as_mut(), item.resource_field_ref.as_mut()));
    }
    if let Some(source) = &mut volume.projected {
        set(&mut source.default_mode, || DEFAULT_MODE);
        for source in source.sources.iter_mut().flatten() {
            let items = source.downward_api.iter_mut().flat_map(|d| d.items.iter_mut().flatten());
            items.for_each(|item| references(item.field_ref.as_mut(), item.resource_field_ref.as_mut()));
            if let Some(token) = &mut source.service_account_token {
                set(&mut token.expiration_seconds, || TOKEN_EXPIRATION_SECONDS);
            }
        }
    }
    if let Some(source) = &mut volume.host_path {
        set(&mut source.type_, String::new);
    }
    if let Some(source) = &mut volume.iscsi {
        set_text(&mut source.iscsi_interface, "default");
    }
    if let Some(source) = &mut volume.rbd {
        rbd(&mut source.pool, &mut source.user, &mut source.keyring);
    }
    volume.azure_disk.iter_mut().for_each(azure_disk);
    if let Some(source) = &mut volume.scale_io {
        scale_io(&mut source.storage_mode, &mut source.fs_type);
    }
    if let Some(template) = volume.ephemeral.as_mut().and_then(|source| source.volume_claim_template.as_mut()) {
        claim(&mut template.spec);
    }
}

pub(crate) fn azure_disk(source: &mut AzureDiskVolumeSource) {
    set(&mut source.caching_mode, || "ReadWrite".to_owned());
    set(&mut source.kind, || "Shared".to_owned());
    set(&mut source.fs_type, || "ext4".to_owned());
    set(&mut source.read_only, || false);
}

pub(crate) fn rbd(pool: &mut Option<String>, user: &mut Option<String>, keyring: &mut Option<String>) {
    set_text(pool, "rbd");
    set_text(user, "admin");
    set_text(keyring, "/etc/ceph/keyring");
}

pub(crate) fn scale_io(storage_mode: &mut Option<String>, fs_type: &mut Option<String>) {
    set_text(storage_mode, "ThinProvisioned");
    set_text(fs_type, "xfs");
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_that_is_limited_asks_for_what_its_containers_do_or_for_its_limit() {
        let mut spec: PodSpec = serde_json::from_value(json!({
            "resources": {"limits": {"cpu": "2", "memory": "1Gi"}},
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "250m"}}}, {"name": "b", "resources": {"limits": {"cpu": "500m"}}}],
        }))
        .unwrap();
        pod_only(&mut spec);
        let whole = serde_json::to_value(&spec.resources).unwrap();
        assert_eq!(whole["requests"], json!({"cpu": "750m", "memory": "1Gi"}));
    }

    #[test]
    fn what_is_finer_than_a_thousandth_is_one() {
        let table =
            [("0.0001", "1m"), ("100u", "1m"), ("1.0001", "1001m"), ("0.5", "0.5"), ("1Gi", "1Gi"), ("-1u", "-1m")];
        for (given, expected) in table {
            let mut list = BTreeMap::from([("cpu".to_owned(), Quantity(given.to_owned()))]);
            amounts(Some(&mut list));
            assert_eq!(list["cpu"].0, expected);
        }
    }

    #[test]
    fn volumes_and_what_refers_to_resources() {
        let mut spec: PodSpec = serde_json::from_value(json!({
            "containers": [{"name": "a", "env": [{"name": "A", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}}]}],
            "volumes": [
                {"name": "d", "azureDisk": {"diskName": "d", "diskURI": "u"}},
                {"name": "s", "scaleIO": {"gateway": "g", "system": "s", "volumeName": "v", "secretRef": {}}},
                {"name": "e", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}},
            ],
        }))
        .unwrap();
        pod_spec(&mut spec);
        let spec = serde_json::to_value(&spec).unwrap();
        let at = |path: &str| spec.pointer(path).unwrap_or(&serde_json::Value::Null);
        assert_eq!(at("/containers/0/env/0/valueFrom/resourceFieldRef/divisor"), "0");
        let disk = json!({"diskName": "d", "diskURI": "u", "cachingMode": "ReadWrite", "kind": "Shared", "fsType": "ext4",
            "readOnly": false});
        assert_eq!(at("/volumes/0/azureDisk"), &disk);
        assert_eq!(
            (at("/volumes/1/scaleIO/storageMode"), at("/volumes/1/scaleIO/fsType")),
            (&json!("ThinProvisioned"), &json!("xfs"))
        );
        assert_eq!(at("/volumes/2/ephemeral/volumeClaimTemplate/spec/volumeMode"), "Filesystem");
    }

    #[test]
    fn only_a_tag_that_moves_is_always_pulled() {
        let table = [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.27", "IfNotPresent"),
            ("localhost:5000/nginx", "Always"),
            ("localhost:5000/nginx:1", "IfNotPresent"),
            ("nginx@sha256:00", "IfNotPresent"),
            ("nginx:latest@sha256:00", "IfNotPresent"),
        ];
        for (image, expected) in table {
            let mut policy = None;
            pull_policy(&mut policy, Some(image));
            assert_eq!(policy.as_deref(), Some(expected), "{image}");
        }
    }
}
