//! Where the addresses of Services come from, and when one is free again.
//!
//! Invariant: an IPAddress goes only if its Service is gone or has another address.

use flotilla_api::Key;
use flotilla_api::k8s_openapi::api::networking::v1::{ServiceCIDR, ServiceCIDRSpec};
use serde_json::Value;

use crate::plan::{Context, Plan, change};
use crate::{keys, meta};

const MANAGER: &str = "service-ip-controller";
/// Upstream's name for the range that a cluster begins with.
const DEFAULT: &str = "kubernetes";

/// The range that a cluster begins with.
pub(crate) fn plan_range(cx: &mut Context<'_>) -> Plan {
    let mut plan = Plan::default();
    if cx.view.has_service_range() {
        return plan;
    }
    let (network, length) = cx.settings.service_cidr;
    let range = ServiceCIDR {
        metadata: meta::mint("", DEFAULT.to_owned(), cx.now, cx.rng),
        spec: Some(ServiceCIDRSpec { cidrs: Some(vec![format!("{network}/{length}")]) }),
        status: None,
    };
    plan.add(change(MANAGER).create(keys::service_cidr(DEFAULT), meta::encode(&range)));
    plan
}

/// Frees an address that no Service has.
pub(crate) fn plan(key: &Key, cx: &mut Context<'_>) -> Plan {
    let mut plan = Plan::default();
    let Some(found) = cx.view.ip_address(key) else { return plan };
    let parent = &found.spec.parent_ref;
    if parent.resource != "services" || parent.group.as_deref().is_some_and(|group| !group.is_empty()) {
        return plan;
    }
    let service = keys::service(parent.namespace.as_deref().unwrap_or_default(), &parent.name);
    if cx.view.unreadable().contains_key(&service) {
        return plan;
    }
    let service = cx.view.value(&service);
    let has = |service: &Value| addresses(service).any(|address| address == key.name());
    if !service.is_some_and(|service| has(&service)) {
        plan.add(change(MANAGER).remove(key.clone(), found.revision));
    }
    plan
}

/// The addresses of a Service.
pub(crate) fn addresses(service: &Value) -> impl Iterator<Item = &str> {
    let all = service.pointer("/spec/clusterIPs").and_then(Value::as_array);
    all.into_iter().flatten().filter_map(Value::as_str)
}
