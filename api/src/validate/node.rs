//! Nodes.

use k8s_openapi::api::core::v1::Node;

use super::scheduling;
use crate::field::{Errors, Path};

pub(crate) fn node(node: &Node, errors: &mut Errors) {
    let Some(spec) = &node.spec else { return };
    let path = Path::new("spec");
    scheduling::taints(spec.taints.as_deref().unwrap_or_default(), &path.child("taints"), errors);
    for (index, cidr) in spec.pod_cidrs.iter().flatten().enumerate() {
        if !is_cidr(cidr) {
            let detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
            errors.invalid(&path.child("podCIDRs").index(index), cidr.as_str(), detail);
        }
    }
    let first = spec.pod_cidrs.as_ref().and_then(|cidrs| cidrs.first());
    if spec.pod_cidr.is_some() && first.is_some() && spec.pod_cidr.as_ref() != first {
        errors.invalid(&path.child("podCIDRs").index(0), first.cloned(), "must be equal to `podCIDR`");
    }
}

fn is_cidr(text: &str) -> bool {
    text.split_once('/').is_some_and(|(address, length)| match (address.parse(), length.parse::<u8>()) {
        (Ok(std::net::IpAddr::V4(_)), Ok(length)) => length <= 32,
        (Ok(std::net::IpAddr::V6(_)), Ok(length)) => length <= 128,
        _ => false,
    })
}

/// What a node was given once, it keeps.
pub(crate) fn update(old: &Node, new: &Node, errors: &mut Errors) {
    let (old, new) = (old.spec.clone().unwrap_or_default(), new.spec.clone().unwrap_or_default());
    let path = Path::new("spec");
    let changed =
        |old: &Option<String>, new: &Option<String>| old.as_ref().is_some_and(|o| !o.is_empty()) && old != new;
    if changed(&old.pod_cidr, &new.pod_cidr)
        || old.pod_cidrs.as_ref().is_some_and(|c| Some(c) != new.pod_cidrs.as_ref())
    {
        let detail = "node updates may not change podCIDR except from \"\" to valid";
        errors.forbidden(&path.child("podCIDRs"), detail);
    }
    if changed(&old.provider_id, &new.provider_id) {
        let detail = "node updates may not change providerID except from \"\" to valid";
        errors.forbidden(&path.child("providerID"), detail);
    }
}
