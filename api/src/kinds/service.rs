//! Services: one name and address for the pods of an application.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{self as core, ServicePort, ServiceSpec, ServiceStatus};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{BuiltIn, Info};
use crate::columns::{self, Column, UNKNOWN};
use crate::defaults::{set, set_text};
use crate::field::Errors;
use crate::warn::{self, Warnings};
use crate::{names, validate};

/// What Services may open on every node.
pub const NODE_PORTS: RangeInclusive<i32> = 30_000..=32_767;
const AFFINITY_SECONDS: i32 = 10_800;
/// What a narrow listing shows of a load balancer's addresses.
const SHOWN_INGRESS_BYTES: usize = 16;

pub struct Service;

impl BuiltIn for Service {
    type Object = core::Service;
    const INFO: Info = Info {
        kind: "Service",
        plural: "services",
        singular: "service",
        short_names: &["svc"],
        categories: &["all"],
        subresources: &["status", "proxy"],
        selectable: &["spec.clusterIP", "spec.type"],
        schema: "io.k8s.api.core.v1.Service",
        name_rule: names::dns_1035_label,
        create_on_update: true,
        shows_deleted: true,
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] = &[
        columns::NAME,
        Column::text("Type"),
        Column::text("Cluster-IP"),
        Column::text("External-IP"),
        Column::text("Port(s)"),
        columns::AGE,
        Column::wide("Selector"),
    ];

    fn default(service: &mut core::Service) {
        let spec = service.spec.get_or_insert_default();
        set_text(&mut spec.type_, "ClusterIP");
        set_text(&mut spec.session_affinity, "None");
        match spec.session_affinity.as_deref() {
            Some("ClientIP") => {
                let config = spec.session_affinity_config.get_or_insert_default();
                set(&mut config.client_ip.get_or_insert_default().timeout_seconds, || AFFINITY_SECONDS);
            }
            Some("None") => spec.session_affinity_config = None,
            _ => {}
        }
        spec.ports.iter_mut().flatten().for_each(default_port);
        spec.health_check_node_port = spec.health_check_node_port.filter(|port| *port != 0);
        if is_reachable_from_outside(spec) {
            set_text(&mut spec.external_traffic_policy, "Cluster");
        }
        if is_load_balancer(spec) {
            set(&mut spec.allocate_load_balancer_node_ports, || true);
        }
        if spec.type_.as_deref() != Some("ExternalName") {
            set_text(&mut spec.internal_traffic_policy, "Cluster");
            default_addresses(spec);
        }
    }

    fn create(service: &mut core::Service) {
        service.status = Some(ServiceStatus { load_balancer: Some(Default::default()), ..ServiceStatus::default() });
    }

    /// What was allocated stays for a writer who says nothing of it.
    fn update(old: &core::Service, new: &mut core::Service) {
        let (Some(before), Some(after)) = (&old.spec, &mut new.spec) else { return };
        if needs_cluster_ip(before) && !needs_cluster_ip(after) {
            forget_addresses(before, after);
        }
        forget_what_the_type_has_no_use_for(before, after);
        let address = after.cluster_ip.clone().filter(|address| !address.is_empty());
        if address != before.cluster_ip && after.cluster_ips == before.cluster_ips {
            after.cluster_ips = address.map(|address| vec![address]);
        }
        if !needs_cluster_ip(before) || !needs_cluster_ip(after) {
            return;
        }
        if after.cluster_ip.as_deref().unwrap_or_default().is_empty() && after.cluster_ips.is_none() {
            after.cluster_ip.clone_from(&before.cluster_ip);
            after.cluster_ips.clone_from(&before.cluster_ips);
        }
        default_addresses(after);
        if opens_node_ports(before) && opens_node_ports(after) {
            keep_node_ports(before.ports.as_deref().unwrap_or_default(), after.ports.as_deref_mut().unwrap_or_default());
        }
        if needs_health_check(before) && needs_health_check(after) && after.health_check_node_port.is_none() {
            after.health_check_node_port = before.health_check_node_port;
        }
    }

    fn validate(service: &core::Service, errors: &mut Errors) {
        validate::service::service(service, errors);
    }

    fn validate_update(old: &core::Service, new: &core::Service, errors: &mut Errors) {
        validate::service::update(old, new, errors);
    }

    fn validate_status(service: &core::Service, errors: &mut Errors) {
        if let Some(status) = &service.status {
            validate::service::status(status, errors);
        }
    }

    fn warn(_old: Option<&core::Service>, service: &core::Service, warnings: &mut Warnings) {
        warn::service::service(service, warnings);
    }

    fn row(service: &core::Service, now: Timestamp) -> Vec<String> {
        let spec = service.spec.clone().unwrap_or_default();
        let port = |port: &ServicePort| {
            let protocol = port.protocol.as_deref().unwrap_or_default();
            match port.node_port.filter(|port| *port > 0) {
                Some(node_port) => format!("{}:{node_port}/{protocol}", port.port),
                None => format!("{}/{protocol}", port.port),
            }
        };
        let ports: Vec<String> = spec.ports.iter().flatten().map(port).collect();
        vec![
            columns::name(&service.metadata),
            spec.type_.clone().unwrap_or_default(),
            columns::or_none(spec.cluster_ip.as_deref()),
            external_ip(&spec, service.status.as_ref()),
            columns::joined(ports.iter().map(String::as_str)),
            columns::age(&service.metadata, now),
            columns::labels(spec.selector.as_ref()),
        ]
    }
}

fn default_port(port: &mut ServicePort) {
    set_text(&mut port.protocol, "TCP");
    port.node_port = port.node_port.filter(|port| *port != 0);
    let unset = match &port.target_port {
        None => true,
        Some(IntOrString::Int(number)) => *number == 0,
        Some(IntOrString::String(name)) => name.is_empty(),
    };
    if unset {
        port.target_port = Some(IntOrString::Int(port.port));
    }
}

/// One family, IPv4 unless the writer or the address says otherwise, and the address in both of its fields.
fn default_addresses(spec: &mut ServiceSpec) {
    if let Some(address) = spec.cluster_ip.clone().filter(|address| !address.is_empty())
        && spec.cluster_ips.as_deref().unwrap_or_default().is_empty()
    {
        spec.cluster_ips = Some(vec![address]);
    }
    let is_for_others = is_for_others(spec);
    set_text(&mut spec.ip_family_policy, if is_for_others { "RequireDualStack" } else { "SingleStack" });
    let families = spec.ip_families.get_or_insert_default();
    if families.is_empty() {
        let family = |address: &String| if address.contains(':') { "IPv6" } else { "IPv4" }.to_owned();
        families.extend(spec.cluster_ips.iter().flatten().map(family));
    }
    if families.is_empty() {
        families.push("IPv4".to_owned());
    }
    if is_for_others && families.len() == 1 && spec.ip_family_policy.as_deref() == Some("RequireDualStack") {
        families.push(if families[0] == "IPv6" { "IPv4" } else { "IPv6" }.to_owned());
    }
}

/// A Service that is another name only has no address any more, unless the writer has changed it.
fn forget_addresses(before: &ServiceSpec, after: &mut ServiceSpec) {
    if (&before.cluster_ip, &before.cluster_ips) == (&after.cluster_ip, &after.cluster_ips) {
        after.cluster_ip = None;
        after.cluster_ips = None;
    }
    if before.ip_families == after.ip_families {
        after.ip_families = None;
    }
    if before.ip_family_policy == after.ip_family_policy {
        after.ip_family_policy = None;
    }
    if before.internal_traffic_policy == after.internal_traffic_policy {
        after.internal_traffic_policy = None;
    }
}

/// What the old type needed and the new one has no use for goes, unless the writer has changed it.
fn forget_what_the_type_has_no_use_for(before: &ServiceSpec, after: &mut ServiceSpec) {
    if opens_node_ports(before) && !opens_node_ports(after) {
        let ports = |spec: &ServiceSpec| -> BTreeSet<i32> { spec.ports.iter().flatten().filter_map(|p| p.node_port).collect() };
        if ports(after).is_subset(&ports(before)) {
            after.ports.iter_mut().flatten().for_each(|port| port.node_port = None);
        }
    }
    if needs_health_check(before)
        && !needs_health_check(after)
        && before.health_check_node_port == after.health_check_node_port
    {
        after.health_check_node_port = None;
    }
    if is_load_balancer(before) && !is_load_balancer(after) {
        if before.allocate_load_balancer_node_ports == after.allocate_load_balancer_node_ports {
            after.allocate_load_balancer_node_ports = None;
        }
        if before.load_balancer_class == after.load_balancer_class {
            after.load_balancer_class = None;
        }
    }
    if is_reachable_from_outside(before)
        && !is_reachable_from_outside(after)
        && before.external_traffic_policy == after.external_traffic_policy
    {
        after.external_traffic_policy = None;
    }
}

/// Whether the Service is to be found at ports of every node.
pub fn opens_node_ports(spec: &ServiceSpec) -> bool {
    matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer"))
}

fn is_load_balancer(spec: &ServiceSpec) -> bool {
    spec.type_.as_deref() == Some("LoadBalancer")
}

/// Whether nodes answer for the Service at a port of their own.
pub fn needs_health_check(spec: &ServiceSpec) -> bool {
    is_load_balancer(spec) && spec.external_traffic_policy.as_deref() == Some("Local")
}

/// A port that names no node port keeps that of the old port of its name, unless the writer has given it to another.
fn keep_node_ports(before: &[ServicePort], after: &mut [ServicePort]) {
    let given: BTreeSet<i32> = after.iter().filter_map(|port| port.node_port).collect();
    let had: BTreeMap<&str, i32> =
        before.iter().filter_map(|port| Some((port.name.as_deref().unwrap_or_default(), port.node_port?))).collect();
    for port in after.iter_mut().filter(|port| port.node_port.is_none()) {
        let kept = had.get(port.name.as_deref().unwrap_or_default());
        port.node_port = kept.filter(|kept| !given.contains(kept)).copied();
    }
}

/// Whether the Service has an address inside the cluster.
pub fn needs_cluster_ip(spec: &ServiceSpec) -> bool {
    spec.type_.as_deref() != Some("ExternalName")
}

pub(crate) fn is_reachable_from_outside(spec: &ServiceSpec) -> bool {
    match spec.type_.as_deref() {
        Some("LoadBalancer" | "NodePort") => true,
        Some("ClusterIP") => spec.external_ips.as_ref().is_some_and(|ips| !ips.is_empty()),
        _ => false,
    }
}

fn external_ip(spec: &ServiceSpec, status: Option<&ServiceStatus>) -> String {
    let external = spec.external_ips.clone().unwrap_or_default();
    match spec.type_.as_deref() {
        Some("ClusterIP" | "NodePort") => columns::joined(external.iter().map(String::as_str)),
        Some("LoadBalancer") => {
            let ingress = status.and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
            let address = |ip: Option<&String>, name: Option<&String>| ip.or(name).filter(|text| !text.is_empty()).cloned();
            let shown = columns::ingress_points(
                ingress.into_iter().flatten().filter_map(|one| address(one.ip.as_ref(), one.hostname.as_ref())),
                SHOWN_INGRESS_BYTES,
            );
            let all: Vec<String> = Some(shown).into_iter().filter(|text| !text.is_empty()).chain(external).collect();
            if all.is_empty() { "<pending>".to_owned() } else { all.join(",") }
        }
        Some("ExternalName") => spec.external_name.clone().unwrap_or_default(),
        _ => UNKNOWN.to_owned(),
    }
}

/// Whether the Service is a name for addresses that somebody else keeps, which may be of any family.
pub(crate) fn is_for_others(spec: &ServiceSpec) -> bool {
    is_headless(spec) && spec.selector.as_ref().is_none_or(BTreeMap::is_empty)
}

/// Whether the Service has no address of its own.
pub fn is_headless(spec: &ServiceSpec) -> bool {
    let none = |address: &str| address == "None";
    spec.cluster_ip.as_deref().is_some_and(none) || spec.cluster_ips.iter().flatten().any(|address| none(address))
}
