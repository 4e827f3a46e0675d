//! Pods and their specs.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Affinity, NodeSelectorTerm, Pod, PodSecurityContext, PodSpec, PodStatus, Toleration};
use serde_json::json;

use super::container::{self, PodContext, Stage};
use super::{metadata, name, one_of, resources, scheduling, volume};
use crate::field::{Errors, Path};
use crate::names;

const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
/// All search paths together, with the spaces between them.
const MAX_SEARCH_LIST_CHARACTERS: usize = 2048;
const RESTART: [&str; 3] = ["Always", "Never", "OnFailure"];
const DNS: [&str; 4] = ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
const UPDATE: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
    `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing \
    tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

pub(crate) fn pod(pod: &Pod, errors: &mut Errors) {
    let path = Path::new("spec");
    let Some(spec) = &pod.spec else { return errors.required(&path, "") };
    running_spec(spec, &path, errors);
    let gated = spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty());
    if gated && spec.node_name.as_deref().is_some_and(|node| !node.is_empty()) {
        errors.forbidden(&path.child("nodeName"), "cannot be set until all schedulingGates have been cleared");
    }
    // Adding them is a new generation, so that the first one never has any.
    if pod.metadata.generation == Some(1) {
        no_ephemeral_containers(spec, &path, errors);
    }
    if let Some(class) = spec.priority_class_name.as_deref().filter(|class| !class.is_empty()) {
        name(class, names::dns_subdomain, &path.child("priorityClassName"), errors);
    }
}

/// A pod's spec, in a pod or in a template.
pub(crate) fn spec(spec: &PodSpec, path: &Path, errors: &mut Errors) {
    running_spec(spec, path, errors);
    no_ephemeral_containers(spec, path, errors);
}

fn no_ephemeral_containers(spec: &PodSpec, path: &Path, errors: &mut Errors) {
    if spec.ephemeral_containers.as_ref().is_some_and(|containers| !containers.is_empty()) {
        errors.forbidden(&path.child("ephemeralContainers"), "cannot be set on create");
    }
}

/// As a pod may have it that runs.
fn running_spec(spec: &PodSpec, path: &Path, errors: &mut Errors) {
    let volumes = spec.volumes.as_deref().unwrap_or_default();
    let context = PodContext {
        volumes: volume::volumes(volumes, &path.child("volumes"), errors),
        host_network: spec.host_network == Some(true),
    };
    let mut taken = BTreeSet::new();
    if spec.containers.is_empty() {
        errors.required(&path.child("containers"), "");
    }
    container::containers(&spec.containers, Stage::Main, &context, &mut taken, &path.child("containers"), errors);
    let init = spec.init_containers.as_deref().unwrap_or_default();
    container::containers(init, Stage::Init, &context, &mut taken, &path.child("initContainers"), errors);
    one_of(spec.restart_policy.as_deref(), &RESTART, &path.child("restartPolicy"), errors);
    life(spec, path, errors);
    placement(spec, path, errors);
    identity(spec, path, errors);
    dns(spec, path, errors);
}

fn life(spec: &PodSpec, path: &Path, errors: &mut Errors) {
    let max = i64::from(i32::MAX);
    if let Some(seconds) = spec.active_deadline_seconds.filter(|seconds| !(1..=max).contains(seconds)) {
        let detail = format_args!("must be between 1 and {max}, inclusive");
        errors.invalid(&path.child("activeDeadlineSeconds"), seconds, detail);
    }
    if let Some(requirements) = &spec.resources {
        resources::of_pod(requirements, &path.child("resources"), errors);
    }
    for (resource, quantity) in spec.overhead.iter().flatten() {
        resources::amount(resource, quantity, &path.child("overhead").key(resource), errors);
    }
    for (index, gate) in spec.readiness_gates.iter().flatten().enumerate() {
        let path = path.child("readinessGates").index(index).child("conditionType");
        name(&gate.condition_type, names::qualified_name, &path, errors);
    }
}

fn placement(spec: &PodSpec, path: &Path, errors: &mut Errors) {
    metadata::labels(spec.node_selector.as_ref(), &path.child("nodeSelector"), errors);
    if let Some(node) = spec.node_name.as_deref().filter(|node| !node.is_empty()) {
        name(node, names::dns_subdomain, &path.child("nodeName"), errors);
    }
    if let Some(affinity) = &spec.affinity {
        scheduling::affinity(affinity, &path.child("affinity"), errors);
    }
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    scheduling::tolerations(tolerations, &path.child("tolerations"), errors);
    let constraints = spec.topology_spread_constraints.as_deref().unwrap_or_default();
    scheduling::spread(constraints, &path.child("topologySpreadConstraints"), errors);
    let mut gates = BTreeSet::new();
    for (index, gate) in spec.scheduling_gates.iter().flatten().enumerate() {
        let path = path.child("schedulingGates").index(index);
        name(&gate.name, names::qualified_name, &path, errors);
        if !gates.insert(&gate.name) {
            errors.duplicate(&path, gate.name.as_str());
        }
    }
    let policies = ["Never", "PreemptLowerPriority"];
    one_of(spec.preemption_policy.as_deref(), &policies, &path.child("preemptionPolicy"), errors);
}

fn identity(spec: &PodSpec, path: &Path, errors: &mut Errors) {
    let named = |value: &Option<String>, rule, field: &str, errors: &mut Errors| {
        if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
            name(value, rule, &path.child(field), errors);
        }
    };
    named(&spec.service_account_name, names::dns_subdomain, "serviceAccountName", errors);
    named(&spec.hostname, names::dns_label, "hostname", errors);
    named(&spec.subdomain, names::dns_label, "subdomain", errors);
    named(&spec.priority_class_name, names::dns_subdomain, "priorityClassName", errors);
    named(&spec.runtime_class_name, names::dns_subdomain, "runtimeClassName", errors);
    if let Some(security) = &spec.security_context {
        security_context(security, &path.child("securityContext"), errors);
    }
    if spec.share_process_namespace == Some(true) && spec.host_pid == Some(true) {
        let detail = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.invalid(&path.child("securityContext").child("shareProcessNamespace"), true, detail);
    }
}

fn security_context(security: &PodSecurityContext, path: &Path, errors: &mut Errors) {
    container::id(security.run_as_user, &path.child("runAsUser"), errors);
    container::id(security.run_as_group, &path.child("runAsGroup"), errors);
    container::id(security.fs_group, &path.child("fsGroup"), errors);
    for (index, group) in security.supplemental_groups.iter().flatten().enumerate() {
        container::id(Some(*group), &path.child("supplementalGroups").index(index), errors);
    }
    let policies = ["Always", "OnRootMismatch"];
    one_of(security.fs_group_change_policy.as_deref(), &policies, &path.child("fsGroupChangePolicy"), errors);
    if let Some(profile) = &security.seccomp_profile {
        let path = path.child("seccompProfile");
        container::seccomp(&profile.type_, profile.localhost_profile.as_deref(), &path, errors);
    }
    let mut taken = BTreeSet::new();
    for (index, sysctl) in security.sysctls.iter().flatten().enumerate() {
        let path = path.child("sysctls").index(index).child("name");
        if sysctl.name.is_empty() {
            errors.required(&path, "");
        } else if !is_sysctl(&sysctl.name) {
            let detail = "must have at most 253 characters and match regex \
                          ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
            errors.invalid(&path, sysctl.name.as_str(), detail);
        } else if !taken.insert(&sysctl.name) {
            errors.duplicate(&path, sysctl.name.as_str());
        }
    }
}

fn is_sysctl(text: &str) -> bool {
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let part = |part: &str| {
        let inner = part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b));
        inner && edge(part.bytes().next()) && edge(part.bytes().next_back())
    };
    text.len() <= names::SUBDOMAIN_MAX_BYTES && text.split(['.', '/']).all(part)
}

fn dns(spec: &PodSpec, path: &Path, errors: &mut Errors) {
    one_of(spec.dns_policy.as_deref(), &DNS, &path.child("dnsPolicy"), errors);
    let is_none = spec.dns_policy.as_deref() == Some("None");
    if is_none && spec.dns_config.is_none() {
        errors.required(&path.child("dnsConfig"), "must provide `dnsConfig` when `dnsPolicy` is None");
    }
    let config = spec.dns_config.clone().unwrap_or_default();
    let (servers, searches) = (config.nameservers.unwrap_or_default(), config.searches.unwrap_or_default());
    let path_of = |field: &str| path.child("dnsConfig").child(field);
    if is_none && spec.dns_config.is_some() && servers.is_empty() {
        let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        errors.required(&path_of("nameservers"), detail);
    }
    if servers.len() > MAX_NAMESERVERS {
        let detail = format_args!("must not have more than {MAX_NAMESERVERS} nameservers");
        errors.invalid(&path_of("nameservers"), servers.clone(), detail);
    }
    for (index, server) in servers.iter().enumerate() {
        container::ip_address(server, &path_of("nameservers").index(index), errors);
    }
    if searches.len() > MAX_SEARCHES {
        let detail = format_args!("must not have more than {MAX_SEARCHES} search paths");
        errors.invalid(&path_of("searches"), searches.clone(), detail);
    }
    if searches.join(" ").len() > MAX_SEARCH_LIST_CHARACTERS {
        let words = "characters (including spaces) in the search list";
        let detail = format_args!("must not have more than {MAX_SEARCH_LIST_CHARACTERS} {words}");
        errors.invalid(&path_of("searches"), searches.clone(), detail);
    }
    for (index, search) in searches.iter().enumerate().filter(|(_, search)| *search != ".") {
        let search = search.strip_suffix('.').unwrap_or(search);
        name(search, names::dns_subdomain_with_underscores, &path_of("searches").index(index), errors);
    }
    for (index, option) in config.options.iter().flatten().enumerate() {
        if option.name.as_deref().unwrap_or_default().is_empty() {
            errors.required(&path_of("options").index(index), "must not be empty");
        }
    }
    for (index, alias) in spec.host_aliases.iter().flatten().enumerate() {
        let path = path.child("hostAliases").index(index);
        container::ip_address(&alias.ip, &path.child("ip"), errors);
        for host in alias.hostnames.iter().flatten() {
            name(host, names::dns_subdomain, &path.child("hostnames"), errors);
        }
    }
}

/// What is said of a pod that runs.
pub(crate) fn status(status: &PodStatus, errors: &mut Errors) {
    for (index, condition) in status.conditions.iter().flatten().enumerate() {
        // Upstream says so of a condition, though it is of the status.
        let path = Path::new("metadata").child("conditions").index(index).child("Type");
        name(&condition.type_, names::qualified_name, &path, errors);
    }
    let path = Path::new("status");
    if let Some(node) = status.nominated_node_name.as_deref().filter(|node| !node.is_empty()) {
        name(node, names::dns_subdomain, &path.child("nominatedNodeName"), errors);
    }
    // The field of old is the first of the others.
    let mut addresses: Vec<&str> = status.pod_ips.iter().flatten().map(|address| address.ip.as_str()).collect();
    match status.pod_ip.as_deref().filter(|address| !address.is_empty()) {
        Some(first) if addresses.first() != Some(&first) => addresses = vec![first],
        _ => {}
    }
    for (index, address) in addresses.iter().enumerate() {
        container::ip_address(address, &path.child("podIPs").index(index), errors);
    }
}

/// Only a few fields of a pod may change once it exists.
pub(crate) fn update(old: &Pod, new: &Pod, errors: &mut Errors) {
    let (Some(before), Some(after)) = (&old.spec, &new.spec) else { return };
    let path = Path::new("spec");
    deadline(before, after, &path, errors);
    let mut allowed = after.clone();
    allowed.active_deadline_seconds = before.active_deadline_seconds;
    tolerations(before, after, &path, errors);
    allowed.tolerations.clone_from(&before.tolerations);
    gates(before, after, &path, errors);
    allowed.scheduling_gates.clone_from(&before.scheduling_gates);
    if before.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty()) {
        narrowed(before, after, &path, errors);
        allowed.node_selector.clone_from(&before.node_selector);
        keep_node_affinity(before, &mut allowed);
    }
    let grace = (before.termination_grace_period_seconds, after.termination_grace_period_seconds);
    if grace.0.is_some_and(|seconds| seconds < 0) && grace.1 == Some(1) {
        allowed.termination_grace_period_seconds = grace.0;
    }
    keep_images(&before.containers, &mut allowed.containers);
    keep_images(
        before.init_containers.as_deref().unwrap_or_default(),
        allowed.init_containers.as_deref_mut().unwrap_or_default(),
    );
    if &allowed != before {
        errors.forbidden(&path, UPDATE);
    }
}

/// Tolerations are added; one that is there changes in its seconds only.
fn tolerations(before: &PodSpec, after: &PodSpec, path: &Path, errors: &mut Errors) {
    let wanted = || after.tolerations.iter().flatten();
    let stays = |old: &Toleration| {
        wanted().any(|new| Toleration { toleration_seconds: new.toleration_seconds, ..old.clone() } == *new)
    };
    if !before.tolerations.iter().flatten().all(stays) {
        let detail = "existing toleration can not be modified except its tolerationSeconds";
        errors.forbidden(&path.child("tolerations"), detail);
    }
}

/// Gates are taken away, never added.
fn gates(before: &PodSpec, after: &PodSpec, path: &Path, errors: &mut Errors) {
    let known: BTreeSet<&str> = before.scheduling_gates.iter().flatten().map(|gate| gate.name.as_str()).collect();
    let gates = after.scheduling_gates.iter().flatten().enumerate();
    for (index, gate) in gates.filter(|(_, gate)| !known.contains(gate.name.as_str())) {
        let path = path.child("schedulingGates").index(index).child("name");
        let detail = format_args!("only deletion is allowed, but found new scheduling gate '{}'", gate.name);
        errors.forbidden(&path, detail);
    }
}

/// The nodes that a gated pod may go to become fewer, never others.
fn narrowed(before: &PodSpec, after: &PodSpec, path: &Path, errors: &mut Errors) {
    let selector = after.node_selector.clone().unwrap_or_default();
    if before.node_selector.iter().flatten().any(|(key, value)| selector.get(key) != Some(value)) {
        let detail = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
        errors.invalid(&path.child("nodeSelector"), json!(selector), detail);
    }
    let (old, new) = (required_terms(before), required_terms(after));
    if old.is_empty() {
        return;
    }
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    let path = path.child("affinity").child("nodeAffinity").child(required).child("nodeSelectorTerms");
    if old.len() != new.len() {
        let detail = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
        return errors.invalid(&path, json!(new), detail);
    }
    let terms = old.iter().zip(new).enumerate();
    for (index, (_, new)) in terms.filter(|(_, (old, new))| !only_adds(old, new)) {
        errors.invalid(&path.index(index), json!(new), "only additions are allowed (no mutations or deletions)");
    }
}

fn required_terms(spec: &PodSpec) -> &[NodeSelectorTerm] {
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity.and_then(|node| node.required_during_scheduling_ignored_during_execution.as_ref());
    required.map(|required| required.node_selector_terms.as_slice()).unwrap_or_default()
}

/// Whether a term only demands more. One without demands matches no node, and so stays.
fn only_adds(old: &NodeSelectorTerm, new: &NodeSelectorTerm) -> bool {
    let parts = [(&old.match_expressions, &new.match_expressions), (&old.match_fields, &new.match_fields)]
        .map(|(old, new)| (old.as_deref().unwrap_or_default(), new.as_deref().unwrap_or_default()));
    let was_empty = parts.iter().all(|(old, _)| old.is_empty());
    parts.iter().all(|(old, new)| if was_empty { new.is_empty() } else { new.starts_with(old) })
}

fn keep_node_affinity(before: &PodSpec, after: &mut PodSpec) {
    let old = before.affinity.as_ref().and_then(|affinity| affinity.node_affinity.clone());
    if after.affinity.is_some() || old.is_some() {
        after.affinity.get_or_insert_default().node_affinity = old;
    }
    if before.affinity.is_none() && after.affinity == Some(Affinity::default()) {
        after.affinity = None;
    }
}

fn keep_images(old: &[k8s_openapi::api::core::v1::Container], new: &mut [k8s_openapi::api::core::v1::Container]) {
    for (old, new) in old.iter().zip(new) {
        new.image.clone_from(&old.image);
    }
}

fn deadline(old: &PodSpec, new: &PodSpec, path: &Path, errors: &mut Errors) {
    let path = path.child("activeDeadlineSeconds");
    match (old.active_deadline_seconds, new.active_deadline_seconds) {
        (Some(old), Some(new)) if new > old => {
            errors.invalid(&path, new, format_args!("must be less than or equal to previous value"));
        }
        (Some(old), None) => errors.invalid(&path, old, "must not update from a positive integer to nil value"),
        _ => {}
    }
}
