//! Services.

use k8s_openapi::api::core::v1::{Service, ServiceSpec};

use super::{Warnings, cidr, ip};
use crate::field::Path;
use crate::kinds::service::is_headless;

const TOPOLOGY: &str = "service.kubernetes.io/topology-aware-hints";

pub(crate) fn service(service: &Service, warnings: &mut Warnings) {
    if service.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(TOPOLOGY)) {
        let instead = "please use service.kubernetes.io/topology-mode instead";
        warnings.say(format_args!("annotation {TOPOLOGY} is deprecated, {instead}"));
    }
    let Some(spec) = &service.spec else { return };
    let path = Path::new("spec");
    let each = |field: &str, addresses: &Option<Vec<String>>, warnings: &mut Warnings| {
        for (index, address) in addresses.iter().flatten().enumerate() {
            ip(address, &path.child(field).index(index), warnings);
        }
    };
    each("clusterIPs", &spec.cluster_ips, warnings);
    ignored_without_address(spec, warnings);
    each("externalIPs", &spec.external_ips, warnings);
    if has_external_ips(spec) && !is_headless(spec) && spec.type_.as_deref() != Some("ExternalName") {
        warnings.say("spec.externalIPs is deprecated and may no longer be implemented in some clusters");
    }
    ip(spec.load_balancer_ip.as_deref().unwrap_or_default(), &path.child("loadBalancerIP"), warnings);
    for (index, range) in spec.load_balancer_source_ranges.iter().flatten().enumerate() {
        cidr(range.trim(), &path.child("loadBalancerSourceRanges").index(index), warnings);
    }
    ignored_by_type(spec, warnings);
    if spec.traffic_distribution.as_deref() == Some("PreferClose") {
        warnings.at(&path.child("trafficDistribution"), "\"PreferClose\" is deprecated; use \"PreferSameZone\"");
    }
}

fn has_external_ips(spec: &ServiceSpec) -> bool {
    spec.external_ips.as_ref().is_some_and(|ips| !ips.is_empty())
}

fn ignored_without_address(spec: &ServiceSpec, warnings: &mut Warnings) {
    if spec.type_.as_deref() != Some("ClusterIP") || !is_headless(spec) {
        return;
    }
    let ignored = [
        ("spec.loadBalancerIP", spec.load_balancer_ip.as_deref().is_some_and(|ip| !ip.is_empty())),
        ("spec.externalIPs", has_external_ips(spec)),
        ("spec.SessionAffinity", spec.session_affinity.as_deref() != Some("None")),
    ];
    for (field, _) in ignored.into_iter().filter(|(_, used)| *used) {
        warnings.say(format_args!("{field} is ignored for headless services"));
    }
}

fn ignored_by_type(spec: &ServiceSpec, warnings: &mut Warnings) {
    let is_name_only = spec.type_.as_deref() == Some("ExternalName");
    if is_name_only && has_external_ips(spec) {
        warnings.say("spec.externalIPs is ignored when spec.type is \"ExternalName\"");
    }
    if !is_name_only && spec.external_name.as_deref().is_some_and(|name| !name.is_empty()) {
        warnings.say("spec.externalName is ignored when spec.type is not \"ExternalName\"");
    }
}
