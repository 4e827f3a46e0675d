//! Containers.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, EnvFromSource, EnvVar, EnvVarSource, ObjectFieldSelector, ResourceFieldSelector,
    SecurityContext,
};

use super::volume::{self, MountContext, Volumes};
use super::{name, one_of, port, probe, resources};
use crate::field::{Errors, Path};
use crate::names;
use crate::quantity::canonical;

const MAX_ID: i64 = i32::MAX as i64;
const RESOURCES: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
const UNITS: [&str; 13] = ["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];
const ENV_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
const FILE_FIELDS: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

/// What checking containers needs to know of their pod.
pub(crate) struct PodContext<'a> {
    pub volumes: Volumes<'a>,
    pub host_network: bool,
}

/// Init containers go before the others.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Init,
    Main,
}

/// Checks containers whose names must differ from `taken`, and adds theirs to it.
pub(crate) fn containers<'a>(
    containers: &'a [Container],
    stage: Stage,
    pod: &PodContext<'_>,
    taken: &mut BTreeSet<&'a str>,
    path: &Path,
    errors: &mut Errors,
) {
    let mut host_ports = BTreeSet::new();
    for (index, container) in containers.iter().enumerate() {
        let path = path.index(index);
        if container.name.is_empty() {
            errors.required(&path.child("name"), "");
        } else {
            name(&container.name, names::dns_label, &path.child("name"), errors);
            if !taken.insert(&container.name) {
                errors.duplicate(&path.child("name"), container.name.as_str());
            }
        }
        one(container, stage, pod, &path, errors);
        if stage == Stage::Main {
            unique_host_ports(container, &mut host_ports, &path.child("ports"), errors);
        }
    }
}

fn one(container: &Container, stage: Stage, pod: &PodContext<'_>, path: &Path, errors: &mut Errors) {
    let image = container.image.as_deref().unwrap_or_default();
    if image.is_empty() {
        errors.required(&path.child("image"), "");
    } else if image.trim() != image {
        errors.invalid(&path.child("image"), image, "must not have leading or trailing whitespace");
    }
    let policies = ["Always", "IfNotPresent", "Never"];
    one_of(container.image_pull_policy.as_deref(), &policies, &path.child("imagePullPolicy"), errors);
    let policies = ["FallbackToLogsOnError", "File"];
    let policy = container.termination_message_policy.as_deref();
    one_of(policy, &policies, &path.child("terminationMessagePolicy"), errors);
    let policies = ["Always", "Never", "OnFailure"];
    one_of(container.restart_policy.as_deref(), &policies, &path.child("restartPolicy"), errors);
    ports(container.ports.as_deref().unwrap_or_default(), pod.host_network, &path.child("ports"), errors);
    env(container.env.as_deref().unwrap_or_default(), &path.child("env"), errors);
    env_from(container.env_from.as_deref().unwrap_or_default(), &path.child("envFrom"), errors);
    if let Some(requirements) = &container.resources {
        resources::requirements(requirements, &path.child("resources"), errors);
    }
    let security = container.security_context.as_ref();
    let devices = container.volume_devices.as_deref().unwrap_or_default();
    let context = MountContext {
        volumes: &pod.volumes,
        devices,
        privileged: security.is_some_and(|security| security.privileged == Some(true)),
    };
    let mounts = container.volume_mounts.as_deref().unwrap_or_default();
    volume::mounts(mounts, &context, &path.child("volumeMounts"), errors);
    volume::devices(devices, mounts, &pod.volumes, &path.child("volumeDevices"), errors);
    if let Some(security) = security {
        security_context(security, &path.child("securityContext"), errors);
    }
    probes(container, stage, path, errors);
}

/// Plain init containers end before they could be probed; those that are restarted always may be.
fn probes(container: &Container, stage: Stage, path: &Path, errors: &mut Errors) {
    let runs_on = stage == Stage::Main || container.restart_policy.as_deref() == Some("Always");
    if let Some(lifecycle) = &container.lifecycle {
        if runs_on {
            probe::lifecycle(lifecycle, &path.child("lifecycle"), errors);
        } else {
            errors
                .forbidden(&path.child("lifecycle"), "may not be set for init containers without restartPolicy=Always");
        }
    }
    let all = [
        ("livenessProbe", &container.liveness_probe, probe::deadly as fn(&_, &Path, &mut Errors)),
        ("readinessProbe", &container.readiness_probe, probe::readiness),
        ("startupProbe", &container.startup_probe, probe::deadly),
    ];
    for (field, probe, check) in all {
        match probe {
            Some(probe) if runs_on => check(probe, &path.child(field), errors),
            Some(_) => {
                errors.forbidden(&path.child(field), "may not be set for init containers without restartPolicy=Always");
            }
            None => {}
        }
    }
}

fn ports(ports: &[ContainerPort], host_network: bool, path: &Path, errors: &mut Errors) {
    let mut taken = BTreeSet::new();
    for (index, item) in ports.iter().enumerate() {
        let path = path.index(index);
        if let Some(port_name) = item.name.as_deref().filter(|name| !name.is_empty()) {
            name(port_name, names::port_name, &path.child("name"), errors);
            if !taken.insert(port_name) {
                errors.duplicate(&path.child("name"), port_name);
            }
        }
        match item.container_port {
            0 => errors.required(&path.child("containerPort"), ""),
            number => port(number, &path.child("containerPort"), errors),
        }
        let host_port = item.host_port.filter(|port| *port != 0);
        if let Some(number) = host_port {
            port(number, &path.child("hostPort"), errors);
        }
        if host_network && host_port.unwrap_or_default() != item.container_port {
            let detail = "must match `containerPort` when `hostNetwork` is true";
            errors.invalid(&path.child("hostPort"), host_port.unwrap_or_default(), detail);
        }
        one_of(item.protocol.as_deref(), &["SCTP", "TCP", "UDP"], &path.child("protocol"), errors);
        if let Some(ip) = item.host_ip.as_deref().filter(|ip| !ip.is_empty()) {
            ip_address(ip, &path.child("hostIP"), errors);
        }
    }
}

pub(crate) fn ip_address(text: &str, path: &Path, errors: &mut Errors) {
    if text.parse::<std::net::IpAddr>().is_err() {
        errors.invalid(path, text, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
    }
}

fn unique_host_ports(container: &Container, taken: &mut BTreeSet<String>, path: &Path, errors: &mut Errors) {
    for (index, item) in container.ports.iter().flatten().enumerate() {
        let Some(number) = item.host_port.filter(|port| *port != 0) else { continue };
        let protocol = item.protocol.as_deref().unwrap_or_default();
        let claim = format!("{protocol}/{}/{number}", item.host_ip.as_deref().unwrap_or_default());
        if !taken.insert(claim.clone()) {
            errors.duplicate(&path.index(index).child("hostPort"), claim);
        }
    }
}

fn env(env: &[EnvVar], path: &Path, errors: &mut Errors) {
    for (index, variable) in env.iter().enumerate() {
        let path = path.index(index);
        if variable.name.is_empty() {
            errors.required(&path.child("name"), "");
        } else {
            name(&variable.name, names::env_name, &path.child("name"), errors);
        }
        if let Some(from) = &variable.value_from {
            let path = path.child("valueFrom");
            if variable.value.as_deref().is_some_and(|value| !value.is_empty()) {
                errors.invalid(&path, "", "may not be specified when `value` is not empty");
            }
            env_source(from, &path, errors);
        }
    }
}

fn env_source(from: &EnvVarSource, path: &Path, errors: &mut Errors) {
    let mut found = 0;
    if let Some(field) = &from.field_ref {
        found += 1;
        field_ref(field, false, &path.child("fieldRef"), errors);
    }
    if let Some(field) = &from.resource_field_ref {
        found += 1;
        resource_ref(field, &path.child("resourceFieldRef"), errors);
    }
    let keys = [
        ("configMapKeyRef", from.config_map_key_ref.as_ref().map(|r| (&r.name, &r.key))),
        ("secretKeyRef", from.secret_key_ref.as_ref().map(|r| (&r.name, &r.key))),
    ];
    for (field, reference) in keys {
        let Some((object, key)) = reference else { continue };
        found += 1;
        let path = path.child(field);
        name(object, names::dns_subdomain, &path.child("name"), errors);
        if key.is_empty() {
            errors.required(&path.child("key"), "");
        } else {
            name(key, names::config_key, &path.child("key"), errors);
        }
    }
    found += usize::from(from.file_key_ref.is_some());
    if found == 0 {
        let detail =
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
        errors.invalid(path, "", detail);
    } else if found > 1 {
        errors.invalid(path, "", "may not have more than one field specified at a time");
    }
}

/// A field of the pod, as a variable or, for `in_file`, as a file's content.
pub(crate) fn field_ref(selector: &ObjectFieldSelector, in_file: bool, path: &Path, errors: &mut Errors) {
    let path = path.child("fieldPath");
    let field = selector.field_path.as_str();
    if field.is_empty() {
        return errors.required(&path, "");
    }
    if let Some(version) = selector.api_version.as_deref().filter(|version| *version != "v1") {
        let detail = format_args!("error converting fieldPath: unsupported pod version: {version}");
        return errors.invalid(&path, field, detail);
    }
    if let Some((map, key)) = field.strip_suffix("']").and_then(|field| field.split_once("['")) {
        if !matches!(map, "metadata.labels" | "metadata.annotations") {
            errors.invalid(&path, field, "does not support subscript");
        } else if !names::qualified_name(&key.to_lowercase()).is_empty() {
            errors.invalid(&path, key, "must be a valid label or annotation key");
        }
        return;
    }
    let supported: &[&str] = if in_file { &FILE_FIELDS } else { &ENV_FIELDS };
    let known = FILE_FIELDS.contains(&field) || ENV_FIELDS.contains(&field);
    if !known {
        errors.invalid(&path, field, format_args!("error converting fieldPath: field label not supported: {field}"));
    } else if !supported.contains(&field) {
        errors.not_supported(&path, field, supported);
    }
}

pub(crate) fn resource_ref(selector: &ResourceFieldSelector, path: &Path, errors: &mut Errors) {
    divisor(selector, &path.child("divisor"), errors);
    let path = path.child("resource");
    let resource = selector.resource.as_str();
    let is_pages = ["limits.hugepages-", "requests.hugepages-"].iter().any(|prefix| resource.starts_with(prefix));
    if resource.is_empty() {
        errors.required(&path, "");
    } else if !is_pages {
        one_of(Some(resource), &RESOURCES, &path, errors);
    }
}

/// What a resource is counted in.
fn divisor(selector: &ResourceFieldSelector, path: &Path, errors: &mut Errors) {
    let Some(divisor) = &selector.divisor else { return };
    let resource = selector.resource.split_once('.').map_or("", |(_, resource)| resource);
    let (units, what): (&[&str], _) = match resource {
        "cpu" => (&["1m", "1"], "cpu"),
        "memory" => (&UNITS, "memory"),
        "ephemeral-storage" => (&UNITS, "local ephemeral storage"),
        resource if resource.starts_with("hugepages-") => (&UNITS, "hugepages"),
        _ => return,
    };
    let shown = canonical(&divisor.0).unwrap_or_default();
    if shown != "0" && !units.contains(&shown.as_str()) {
        let units = units.join(if resource == "cpu" { " and " } else { ", " });
        let detail = format_args!("only divisor's values {units} are supported with the {what} resource");
        errors.invalid(path, selector.resource.as_str(), detail);
    }
}

fn env_from(sources: &[EnvFromSource], path: &Path, errors: &mut Errors) {
    for (index, source) in sources.iter().enumerate() {
        let path = path.index(index);
        if let Some(prefix) = source.prefix.as_deref().filter(|prefix| !prefix.is_empty()) {
            name(prefix, names::env_name, &path.child("prefix"), errors);
        }
        if let Some(map) = &source.config_map_ref {
            volume::reference(&map.name, &path.child("configMapRef").child("name"), errors);
        }
        if let Some(secret) = &source.secret_ref {
            volume::reference(&secret.name, &path.child("secretRef").child("name"), errors);
        }
        match (&source.config_map_ref, &source.secret_ref) {
            (None, None) => errors.invalid(&path, "", "must specify one of: `configMapRef` or `secretRef`"),
            (Some(_), Some(_)) => {
                errors.invalid(&path, "", "may not have more than one field specified at a time");
            }
            _ => {}
        }
    }
}

pub(crate) fn id(value: Option<i64>, path: &Path, errors: &mut Errors) {
    if let Some(value) = value.filter(|value| !(0..=MAX_ID).contains(value)) {
        errors.invalid(path, value, format_args!("must be between 0 and {MAX_ID}, inclusive"));
    }
}

pub(crate) fn seccomp(type_: &str, localhost: Option<&str>, path: &Path, errors: &mut Errors) {
    match (type_, localhost.filter(|profile| !profile.is_empty())) {
        ("Localhost", None) => {
            errors.required(&path.child("localhostProfile"), "must be set when seccomp type is Localhost");
        }
        ("RuntimeDefault" | "Unconfined", Some(profile)) => {
            errors.invalid(&path.child("localhostProfile"), profile, "can only be set when seccomp type is Localhost");
        }
        ("", _) => errors.required(&path.child("type"), "type is required when seccompProfile is set"),
        (other, _) => {
            one_of(Some(other), &["Localhost", "RuntimeDefault", "Unconfined"], &path.child("type"), errors);
        }
    }
}

fn security_context(security: &SecurityContext, path: &Path, errors: &mut Errors) {
    id(security.run_as_user, &path.child("runAsUser"), errors);
    id(security.run_as_group, &path.child("runAsGroup"), errors);
    one_of(security.proc_mount.as_deref(), &["Default", "Unmasked"], &path.child("procMount"), errors);
    if let Some(profile) = &security.seccomp_profile {
        let path = path.child("seccompProfile");
        seccomp(&profile.type_, profile.localhost_profile.as_deref(), &path, errors);
    }
    if security.allow_privilege_escalation == Some(false) {
        let detail = |what: &str| format!("cannot set `allowPrivilegeEscalation` to false and {what}");
        if security.privileged == Some(true) {
            errors.invalid(path, "", detail("`privileged` to true"));
        }
        let added = security.capabilities.iter().flat_map(|capabilities| capabilities.add.iter().flatten());
        if added.into_iter().any(|capability| capability == "CAP_SYS_ADMIN") {
            errors.invalid(path, "", detail("`capabilities.Add` CAP_SYS_ADMIN"));
        }
    }
}
