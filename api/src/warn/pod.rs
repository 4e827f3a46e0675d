//! Pods and templates for them.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    Affinity, Container, ContainerPort, EnvVar, EphemeralContainer, Pod, PodAffinityTerm, PodSpec, PodTemplateSpec,
    ResourceRequirements, SecurityContext, WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

use super::{Warnings, deprecated_label, host_name, key_of_nodes, node_term, volume};
use crate::field::Path;
use crate::quantity::{Amount, canonical};

const IN_BYTES: [&str; 2] = ["memory", "ephemeral-storage"];
const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
const SECCOMP_OF_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_OF_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";
/// Annotations that nothing reads any more, and what to use.
const ANNOTATIONS: [(&str, &str); 3] = [
    (
        "scheduler.alpha.kubernetes.io/critical-pod",
        "non-functional in v1.16+; use the \"priorityClassName\" field instead",
    ),
    ("security.alpha.kubernetes.io/sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
    ("security.alpha.kubernetes.io/unsafe-sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
];

pub(crate) fn pod(pod: &Pod, warnings: &mut Warnings) {
    host_name(&pod.metadata, "this is used in the Pod's hostname", warnings);
    if let Some(spec) = &pod.spec {
        parts(&pod.metadata, spec, &Path::root(), warnings);
    }
}

pub(crate) fn template(template: &PodTemplateSpec, path: &Path, warnings: &mut Warnings) {
    if let Some(spec) = &template.spec {
        parts(&template.metadata.clone().unwrap_or_default(), spec, path, warnings);
    }
}

fn parts(metadata: &ObjectMeta, spec: &PodSpec, path: &Path, warnings: &mut Warnings) {
    let (of_annotations, path) = (path.child("metadata").child("annotations"), path.child("spec"));
    placement(spec, &path, warnings);
    let annotations = metadata.annotations.clone().unwrap_or_default();
    for (key, words) in ANNOTATIONS.iter().filter(|(key, _)| annotations.contains_key(*key)) {
        warnings.at(&of_annotations.key(key), words);
    }
    volume::volumes(spec.volumes.as_deref().unwrap_or_default(), &path.child("volumes"), warnings);
    lists(spec, &path, warnings);
    if let Some(overhead) = &spec.overhead {
        IN_BYTES.iter().for_each(|resource| whole_bytes(overhead, resource, &path.child("overhead"), warnings));
    }
    profiles(spec, &annotations, &of_annotations, warnings);
    let containers = containers(spec, &path);
    for (container, path) in &containers {
        if let Some(resources) = container.resources {
            requirements(resources, &path.child("resources"), warnings);
        }
        env(container.env, &path.child("env"), warnings);
    }
    ports(&containers, warnings);
    if spec.termination_grace_period_seconds.is_some_and(|seconds| seconds < 0) {
        let words = "must be >= 0; negative values are invalid and will be treated as 1";
        warnings.at(&path.child("terminationGracePeriodSeconds"), words);
    }
    if let Some(affinity) = &spec.affinity {
        pod_affinity(affinity, &path.child("affinity"), warnings);
    }
}

fn placement(spec: &PodSpec, path: &Path, warnings: &mut Warnings) {
    for key in spec.node_selector.iter().flatten().map(|(key, _)| key) {
        if let Some(words) = deprecated_label(key) {
            warnings.at(&path.child("nodeSelector").key(key), words);
        }
    }
    if let Some(node) = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref()) {
        let path = path.child("affinity").child("nodeAffinity");
        let required = node.required_during_scheduling_ignored_during_execution.as_ref();
        for (index, term) in required.iter().flat_map(|required| &required.node_selector_terms).enumerate() {
            node_term(term, &path.child(REQUIRED).child("nodeSelectorTerms").index(index), warnings);
        }
        let preferred = node.preferred_during_scheduling_ignored_during_execution.iter().flatten();
        for (index, term) in preferred.enumerate() {
            node_term(&term.preference, &path.child(PREFERRED).index(index).child("preference"), warnings);
        }
    }
    for (index, constraint) in spec.topology_spread_constraints.iter().flatten().enumerate() {
        let path = path.child("topologySpreadConstraints").index(index);
        key_of_nodes(&constraint.topology_key, &path.child("topologyKey"), warnings);
        chooses(constraint.label_selector.as_ref(), &path, warnings);
    }
}

fn chooses(selector: Option<&LabelSelector>, path: &Path, warnings: &mut Warnings) {
    if selector.is_none() {
        warnings.at(&path.child("labelSelector"), "a null labelSelector results in matching no pod");
    }
}

fn pod_affinity(affinity: &Affinity, path: &Path, warnings: &mut Warnings) {
    if let Some(with) = &affinity.pod_affinity {
        let required = with.required_during_scheduling_ignored_during_execution.as_deref();
        let preferred = with.preferred_during_scheduling_ignored_during_execution.as_deref();
        affinity_terms(required, preferred, &path.child("podAffinity"), warnings);
    }
    if let Some(apart) = &affinity.pod_anti_affinity {
        let required = apart.required_during_scheduling_ignored_during_execution.as_deref();
        let preferred = apart.preferred_during_scheduling_ignored_during_execution.as_deref();
        affinity_terms(required, preferred, &path.child("podAntiAffinity"), warnings);
    }
}

fn affinity_terms(
    required: Option<&[PodAffinityTerm]>,
    preferred: Option<&[WeightedPodAffinityTerm]>,
    path: &Path,
    warnings: &mut Warnings,
) {
    for (index, term) in required.into_iter().flatten().enumerate() {
        chooses(term.label_selector.as_ref(), &path.child(REQUIRED).index(index), warnings);
    }
    for (index, term) in preferred.into_iter().flatten().enumerate() {
        let path = path.child(PREFERRED).index(index).child("podAffinityTerm");
        chooses(term.pod_affinity_term.label_selector.as_ref(), &path, warnings);
    }
}

/// Lists of which clients that merge keep one entry each.
fn lists(spec: &PodSpec, path: &Path, warnings: &mut Warnings) {
    let mut seen = BTreeSet::new();
    for (index, alias) in spec.host_aliases.iter().flatten().enumerate() {
        if !seen.insert(&alias.ip) {
            let path = path.child("hostAliases").index(index).child("ip");
            warnings.at(&path, format_args!("duplicate ip {:?}", alias.ip));
        }
    }
    let mut seen = BTreeSet::new();
    for (index, secret) in spec.image_pull_secrets.iter().flatten().enumerate() {
        let path = path.child("imagePullSecrets").index(index).child("name");
        if !seen.insert(&secret.name) {
            warnings.at(&path, format_args!("duplicate name {:?}", secret.name));
        }
        if secret.name.is_empty() {
            warnings.at(&path, "invalid empty name \"\"");
        }
    }
}

/// Profiles that annotations name, where fields do not.
fn profiles(spec: &PodSpec, annotations: &BTreeMap<String, String>, path: &Path, warnings: &mut Warnings) {
    const SECCOMP: &str = "non-functional in v1.27+; use the \"seccompProfile\" field instead";
    const ARMOR: &str = "deprecated since v1.30; use the \"appArmorProfile\" field instead";
    let of_pod = spec.security_context.clone().unwrap_or_default();
    let mut tell = |key: &str, has_field: bool, words: &str| {
        if !has_field && annotations.contains_key(key) {
            warnings.at(&path.key(key), words);
        }
    };
    tell(SECCOMP_OF_POD, of_pod.seccomp_profile.is_some(), SECCOMP);
    for (container, _) in containers(spec, &Path::root()) {
        let has = |field: fn(&SecurityContext) -> bool| container.security.is_some_and(field);
        let seccomp = has(|security| security.seccomp_profile.is_some());
        tell(&format!("{SECCOMP_OF_CONTAINER}{}", container.name), seccomp, SECCOMP);
        let armor = of_pod.app_armor_profile.is_some() || has(|security| security.app_armor_profile.is_some());
        tell(&format!("{APP_ARMOR}{}", container.name), armor, ARMOR);
    }
}

/// What containers of all sorts have in common.
struct Common<'a> {
    name: &'a str,
    env: &'a [EnvVar],
    ports: &'a [ContainerPort],
    resources: Option<&'a ResourceRequirements>,
    security: Option<&'a SecurityContext>,
}

impl<'a> From<&'a Container> for Common<'a> {
    fn from(container: &'a Container) -> Self {
        Self {
            name: &container.name,
            env: container.env.as_deref().unwrap_or_default(),
            ports: container.ports.as_deref().unwrap_or_default(),
            resources: container.resources.as_ref(),
            security: container.security_context.as_ref(),
        }
    }
}

impl<'a> From<&'a EphemeralContainer> for Common<'a> {
    fn from(container: &'a EphemeralContainer) -> Self {
        Self {
            name: &container.name,
            env: container.env.as_deref().unwrap_or_default(),
            ports: container.ports.as_deref().unwrap_or_default(),
            resources: container.resources.as_ref(),
            security: container.security_context.as_ref(),
        }
    }
}

/// All containers of a pod and where they are.
fn containers<'a>(spec: &'a PodSpec, path: &Path) -> Vec<(Common<'a>, Path)> {
    let at = |field: &str, index| path.child(field).index(index);
    let init = spec.init_containers.iter().flatten().enumerate();
    let main = spec.containers.iter().enumerate();
    let ephemeral = spec.ephemeral_containers.iter().flatten().enumerate();
    init.map(|(index, one)| (one.into(), at("initContainers", index)))
        .chain(main.map(|(index, one)| (one.into(), at("containers", index))))
        .chain(ephemeral.map(|(index, one)| (one.into(), at("ephemeralContainers", index))))
        .collect()
}

fn requirements(resources: &ResourceRequirements, path: &Path, warnings: &mut Warnings) {
    for resource in IN_BYTES {
        for (field, amounts) in [("limits", &resources.limits), ("requests", &resources.requests)] {
            if let Some(amounts) = amounts {
                whole_bytes(amounts, resource, &path.child(field), warnings);
            }
        }
    }
}

/// There are no parts of a byte.
pub(super) fn whole_bytes(amounts: &BTreeMap<String, Quantity>, resource: &str, path: &Path, warnings: &mut Warnings) {
    let Some(quantity) = amounts.get(resource) else { return };
    if Amount::parse(&quantity.0).is_ok_and(|amount| !amount.is_whole()) {
        let shown = canonical(&quantity.0).unwrap_or_else(|_| quantity.0.clone());
        warnings
            .at(&path.key(resource), format_args!("fractional byte value {shown:?} is invalid, must be an integer"));
    }
}

/// A variable may be defined again from what it was, and not otherwise.
fn env(env: &[EnvVar], path: &Path, warnings: &mut Warnings) {
    let mut seen = BTreeSet::new();
    for (index, variable) in env.iter().enumerate() {
        if seen.insert(&variable.name) {
            continue;
        }
        let before = format!("$({})", variable.name);
        let value = variable.value.as_deref().unwrap_or_default();
        if variable.value_from.is_some() || value == before || !value.contains(&before) {
            let rest = "which may be dropped when using apply";
            let words = format_args!("hides previous definition of {:?}, {rest}", variable.name);
            warnings.at(&path.index(index), words);
        }
    }
}

/// Ports that several containers say to have, or one several times.
fn ports(containers: &[(Common<'_>, Path)], warnings: &mut Warnings) {
    let mut seen: BTreeMap<(i32, &str), Vec<(&ContainerPort, Path)>> = BTreeMap::new();
    for (container, path) in containers {
        for (index, port) in container.ports.iter().enumerate() {
            let path = path.child("ports").index(index);
            if !host_ip(port).is_empty() && host_port(port) == 0 {
                warnings.at(&path, format_args!("hostIP set without hostPort: {}", shown(port)));
            }
            let others = seen.entry((port.container_port, port.protocol.as_deref().unwrap_or_default())).or_default();
            for (other, at) in others.iter() {
                if let Some(relation) = relation(port, other) {
                    warnings.at(&path, format_args!("{relation} port definition with {at}"));
                }
            }
            others.push((port, path));
        }
    }
}

fn host_ip(port: &ContainerPort) -> &str {
    port.host_ip.as_deref().unwrap_or_default()
}

fn host_port(port: &ContainerPort) -> i32 {
    port.host_port.unwrap_or_default()
}

/// In which way one port stands against another of the same number and protocol.
fn relation(port: &ContainerPort, other: &ContainerPort) -> Option<&'static str> {
    if (host_ip(port), host_port(port)) == (host_ip(other), host_port(other)) {
        Some("duplicate")
    } else if host_port(port) == 0 || host_port(other) == 0 {
        Some("overlapping")
    } else if host_port(port) == host_port(other) && host_ip(port).is_empty() != host_ip(other).is_empty() {
        Some("dangerously ambiguous")
    } else {
        None
    }
}

fn shown(port: &ContainerPort) -> String {
    format!(
        "{{Name:{} HostPort:{} ContainerPort:{} Protocol:{} HostIP:{}}}",
        port.name.as_deref().unwrap_or_default(),
        host_port(port),
        port.container_port,
        port.protocol.as_deref().unwrap_or_default(),
        host_ip(port)
    )
}
