//! Services and Endpoints.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{self as core, EndpointPort, Service, ServicePort, ServiceSpec, ServiceStatus};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::json;

use super::{metadata, name, net, one_of, port};
use crate::field::{Errors, Path};
use crate::kinds::service::{
    NODE_PORTS, is_for_others, is_headless, is_reachable_from_outside, needs_cluster_ip, needs_health_check,
    opens_node_ports,
};
use crate::names;

const TYPES: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
const POLICIES: [&str; 2] = ["Cluster", "Local"];
const MAX_AFFINITY_SECONDS: i32 = 86_400;

pub(crate) fn service(service: &Service, errors: &mut Errors) {
    let Some(spec) = &service.spec else { return };
    let path = Path::new("spec");
    let type_ = spec.type_.as_deref().unwrap_or_default();
    let headless = is_headless(spec);
    let ports = spec.ports.as_deref().unwrap_or_default();
    if ports.is_empty() && !headless && type_ != "ExternalName" {
        errors.required(&path.child("ports"), "");
    }
    by_type(spec, type_, headless, &path, errors);
    let mut names = BTreeSet::new();
    for (index, one) in ports.iter().enumerate() {
        service_port(one, ports.len() > 1, &mut names, &path.child("ports").index(index), errors);
    }
    unique_ports(ports, &path.child("ports"), errors);
    if opens_node_ports(spec) {
        node_ports(ports, &path.child("ports"), errors);
    }
    metadata::labels(spec.selector.as_ref(), &path.child("selector"), errors);
    affinity(spec, &path, errors);
    one_of(Some(type_), &TYPES, &path.child("type"), errors);
    if type_ == "ClusterIP" {
        for (index, _) in ports.iter().enumerate().filter(|(_, port)| port.node_port.unwrap_or_default() != 0) {
            let path = path.child("ports").index(index).child("nodePort");
            errors.forbidden(&path, "may not be used when `type` is 'ClusterIP'");
        }
    }
    for (index, address) in spec.external_ips.iter().flatten().enumerate() {
        net::non_special_ip(address, &path.child("externalIPs").index(index), errors);
    }
    addresses(spec, &path, errors);
    traffic(spec, type_, &path, errors);
}

fn by_type(spec: &ServiceSpec, type_: &str, headless: bool, path: &Path, errors: &mut Errors) {
    let no_address = |kind: &str, errors: &mut Errors| {
        let detail = format!("may not be set to 'None' for {kind} services");
        errors.invalid(&path.child("clusterIPs").index(0), "None", detail);
    };
    match type_ {
        "LoadBalancer" => {
            for (index, port) in spec.ports.iter().flatten().enumerate().filter(|(_, port)| port.port == 10_250) {
                let detail = "may not expose port 10250 externally since it is used by kubelet";
                errors.invalid(&path.child("ports").index(index), port.port, detail);
            }
            if headless {
                no_address("LoadBalancer", errors);
            }
        }
        "NodePort" if headless => no_address("NodePort", errors),
        "ExternalName" => {
            if spec.cluster_ips.as_ref().is_some_and(|ips| !ips.is_empty()) {
                errors.forbidden(&path.child("clusterIPs"), "may not be set for ExternalName services");
            }
            let path = path.child("externalName");
            match spec.external_name.as_deref().unwrap_or_default() {
                "" => errors.required(&path, ""),
                external => name(external.trim_end_matches('.'), names::dns_subdomain, &path, errors),
            }
        }
        _ => {}
    }
}

fn service_port(one: &ServicePort, named: bool, names: &mut BTreeSet<String>, path: &Path, errors: &mut Errors) {
    match one.name.as_deref().unwrap_or_default() {
        "" if named => errors.required(&path.child("name"), ""),
        "" => {}
        text => {
            name(text, names::dns_label, &path.child("name"), errors);
            if !names.insert(text.to_owned()) {
                errors.duplicate(&path.child("name"), text);
            }
        }
    }
    port(one.port, &path.child("port"), errors);
    one_of(one.protocol.as_deref(), &PROTOCOLS, &path.child("protocol"), errors);
    match &one.target_port {
        Some(IntOrString::Int(number)) => port(*number, &path.child("targetPort"), errors),
        Some(IntOrString::String(text)) => name(text, names::port_name, &path.child("targetPort"), errors),
        None => {}
    }
    if let Some(protocol) = one.app_protocol.as_deref() {
        name(protocol, names::qualified_name, &path.child("appProtocol"), errors);
    }
}

fn unique_ports(ports: &[ServicePort], path: &Path, errors: &mut Errors) {
    let (mut seen, mut node_ports) = (BTreeSet::new(), BTreeSet::new());
    for (index, one) in ports.iter().enumerate() {
        if !seen.insert((one.port, one.protocol.as_deref())) {
            errors.duplicate(&path.index(index), json!({"port": one.port, "protocol": one.protocol}));
        }
        let node_port = one.node_port.filter(|port| *port != 0);
        if let Some(number) = node_port
            && !node_ports.insert((number, one.protocol.as_deref()))
        {
            errors.duplicate(&path.index(index).child("nodePort"), number);
        }
    }
}

fn node_ports(ports: &[ServicePort], path: &Path, errors: &mut Errors) {
    let (first, last) = (NODE_PORTS.start(), NODE_PORTS.end());
    for (index, number) in ports.iter().enumerate().filter_map(|(index, port)| Some((index, port.node_port?))) {
        if number != 0 && !NODE_PORTS.contains(&number) {
            let detail = "provided port is not in the valid range. The range of valid ports is";
            errors.invalid(&path.index(index).child("nodePort"), number, format_args!("{detail} {first}-{last}"));
        }
    }
}

fn affinity(spec: &ServiceSpec, path: &Path, errors: &mut Errors) {
    one_of(spec.session_affinity.as_deref(), &["ClientIP", "None"], &path.child("sessionAffinity"), errors);
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    if let Some(seconds) = config.and_then(|config| config.timeout_seconds)
        && !(1..=MAX_AFFINITY_SECONDS).contains(&seconds)
    {
        let path = path.child("sessionAffinityConfig").child("clientIP").child("timeoutSeconds");
        let detail = format_args!("must be greater than 0 and less than {MAX_AFFINITY_SECONDS}");
        errors.invalid(&path, seconds, detail);
    }
}

/// The address in its two fields, and the families.
fn addresses(spec: &ServiceSpec, path: &Path, errors: &mut Errors) {
    if !needs_cluster_ip(spec) {
        for (field, used) in
            [("ipFamilies", spec.ip_families.is_some()), ("ipFamilyPolicy", spec.ip_family_policy.is_some())]
        {
            if used {
                errors.forbidden(&path.child(field), "may not be used when `type` is 'ExternalName'");
            }
        }
        return;
    }
    let all = spec.cluster_ips.as_deref().unwrap_or_default();
    let first = spec.cluster_ip.as_deref().unwrap_or_default();
    if all.first().is_some_and(|address| address != first) {
        let detail = match first {
            "" => "must be empty when `clusterIP` is not specified",
            _ => "first value must match `clusterIP`",
        };
        errors.invalid(&path.child("clusterIPs"), all.to_vec(), detail);
    }
    for (index, address) in all.iter().enumerate() {
        let path = path.child("clusterIPs").index(index);
        match address.as_str() {
            "None" if index == 0 => {}
            "None" => errors.invalid(&path, "None", "'None' must be the first and only value"),
            address => _ = net::ip(address, &path, errors),
        }
    }
    if all.len() > 2 {
        errors.invalid(&path.child("clusterIPs"), all.to_vec(), "may only hold up to 2 values");
    }
    let policies = ["SingleStack", "PreferDualStack", "RequireDualStack"];
    one_of(spec.ip_family_policy.as_deref(), &policies, &path.child("ipFamilyPolicy"), errors);
    let mut seen = BTreeSet::new();
    for (index, family) in spec.ip_families.iter().flatten().enumerate() {
        let path = path.child("ipFamilies").index(index);
        one_of(Some(family), &["IPv4", "IPv6"], &path, errors);
        if !seen.insert(family) {
            errors.duplicate(&path, family.as_str());
        }
    }
    if !is_for_others(spec) {
        one_family(spec, path, errors);
    }
}

/// The cluster's addresses are of one family.
fn one_family(spec: &ServiceSpec, path: &Path, errors: &mut Errors) {
    if spec.ip_family_policy.as_deref() == Some("RequireDualStack") {
        let detail = "this cluster is not configured for dual-stack services";
        errors.invalid(&path.child("ipFamilyPolicy"), "RequireDualStack", detail);
    }
    for (index, _) in spec.ip_families.iter().flatten().enumerate().filter(|(_, family)| *family == "IPv6") {
        errors.invalid(&path.child("ipFamilies").index(index), "IPv6", "not configured on this cluster");
    }
}

fn traffic(spec: &ServiceSpec, type_: &str, path: &Path, errors: &mut Errors) {
    for (index, range) in spec.load_balancer_source_ranges.iter().flatten().enumerate() {
        let path = path.child("loadBalancerSourceRanges");
        if type_ != "LoadBalancer" {
            errors.forbidden(&path, "may only be used when `type` is 'LoadBalancer'");
            break;
        }
        net::cidr(range.trim(), &path.index(index), errors);
    }
    if let Some(class) = spec.load_balancer_class.as_deref() {
        let path = path.child("loadBalancerClass");
        match type_ {
            "LoadBalancer" => name(class, names::qualified_name, &path, errors),
            _ => errors.forbidden(&path, "may only be used when `type` is 'LoadBalancer'"),
        }
    }
    if type_ != "LoadBalancer" && spec.allocate_load_balancer_node_ports.is_some() {
        let path = path.child("allocateLoadBalancerNodePorts");
        errors.forbidden(&path, "may only be used when `type` is 'LoadBalancer'");
    }
    let external = spec.external_traffic_policy.as_deref().filter(|policy| !policy.is_empty());
    match (is_reachable_from_outside(spec), external) {
        (false, Some(policy)) => {
            let detail = "may only be set for externally-accessible services";
            errors.invalid(&path.child("externalTrafficPolicy"), policy, detail);
        }
        (_, policy) => one_of(policy, &POLICIES, &path.child("externalTrafficPolicy"), errors),
    }
    health_check(spec, &path.child("healthCheckNodePort"), errors);
    if type_ != "ExternalName" {
        one_of(spec.internal_traffic_policy.as_deref(), &POLICIES, &path.child("internalTrafficPolicy"), errors);
    }
    let distributions = ["PreferClose", "PreferSameNode", "PreferSameZone"];
    one_of(spec.traffic_distribution.as_deref(), &distributions, &path.child("trafficDistribution"), errors);
}

fn health_check(spec: &ServiceSpec, path: &Path, errors: &mut Errors) {
    let Some(number) = spec.health_check_node_port.filter(|number| *number != 0) else { return };
    if needs_health_check(spec) {
        port(number, path, errors);
    } else {
        let detail = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.invalid(path, number, detail);
    }
}

/// An address that a Service has stays while the Service needs one, and so does its port for health checks.
pub(crate) fn update(old: &Service, new: &Service, errors: &mut Errors) {
    let (Some(before), Some(after)) = (&old.spec, &new.spec) else { return };
    if needs_health_check(before)
        && needs_health_check(after)
        && before.health_check_node_port != after.health_check_node_port
    {
        errors.forbidden(&Path::new("spec").child("healthCheckNodePort"), "field is immutable");
    }
    let address = |spec: &ServiceSpec| spec.cluster_ip.clone().unwrap_or_default();
    if needs_cluster_ip(before)
        && needs_cluster_ip(after)
        && !address(before).is_empty()
        && address(before) != address(after)
    {
        let path = Path::new("spec").child("clusterIPs").index(0);
        let value = after.cluster_ips.clone().unwrap_or_else(|| vec![address(after)]);
        errors.invalid(&path, value, "may not change once set");
    }
}

/// Where a load balancer lets people in.
pub(crate) fn status(status: &ServiceStatus, errors: &mut Errors) {
    let ingress = status.load_balancer.as_ref().and_then(|balancer| balancer.ingress.as_deref()).unwrap_or_default();
    for (index, one) in ingress.iter().enumerate() {
        let path = Path::new("status").child("loadBalancer").child("ingress").index(index);
        if let Some(address) = one.ip.as_deref().filter(|address| !address.is_empty()) {
            net::ip(address, &path.child("ip"), errors);
        }
        if let Some(host) = one.hostname.as_deref().filter(|host| !host.is_empty()) {
            name(host, names::dns_subdomain, &path.child("hostname"), errors);
            if host.parse::<std::net::IpAddr>().is_ok() {
                errors.invalid(&path.child("hostname"), host, "must be a DNS name, not an IP address");
            }
        }
    }
}

pub(crate) fn endpoints(endpoints: &core::Endpoints, errors: &mut Errors) {
    for (index, subset) in endpoints.subsets.iter().flatten().enumerate() {
        let path = Path::new("subsets").index(index);
        let groups = [("addresses", &subset.addresses), ("notReadyAddresses", &subset.not_ready_addresses)];
        if groups.iter().all(|(_, group)| group.as_ref().is_none_or(Vec::is_empty)) {
            errors.required(&path, "must specify `addresses` or `notReadyAddresses`");
        }
        for (field, group) in groups {
            for (index, address) in group.iter().flatten().enumerate() {
                let path = path.child(field).index(index);
                net::non_special_ip(&address.ip, &path.child("ip"), errors);
                if let Some(host) = address.hostname.as_deref().filter(|host| !host.is_empty()) {
                    name(host, names::dns_label, &path.child("hostname"), errors);
                }
                if let Some(node) = address.node_name.as_deref() {
                    name(node, names::dns_subdomain, &path.child("nodeName"), errors);
                }
            }
        }
        let ports = subset.ports.as_deref().unwrap_or_default();
        for (index, one) in ports.iter().enumerate() {
            endpoint_port(one, ports.len() > 1, &path.child("ports").index(index), errors);
        }
    }
}

fn endpoint_port(one: &EndpointPort, named: bool, path: &Path, errors: &mut Errors) {
    match one.name.as_deref().unwrap_or_default() {
        "" if named => errors.required(&path.child("name"), ""),
        "" => {}
        text => name(text, names::dns_label, &path.child("name"), errors),
    }
    port(one.port, &path.child("port"), errors);
    one_of(one.protocol.as_deref(), &PROTOCOLS, &path.child("protocol"), errors);
    if let Some(protocol) = one.app_protocol.as_deref() {
        name(protocol, names::qualified_name, &path.child("appProtocol"), errors);
    }
}
