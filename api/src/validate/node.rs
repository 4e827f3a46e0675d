//! Nodes.

use k8s_openapi::api::core::v1::Node;
use serde_json::json;

use super::{net, resources, scheduling};
use crate::field::{Errors, Path};

/// What a node has, and where it is found.
pub(crate) fn status(node: &Node, errors: &mut Errors) {
    capacity(node, errors);
    let addresses = node.status.as_ref().and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    for (index, address) in addresses.iter().enumerate().filter(|(index, one)| addresses[..*index].contains(one)) {
        errors.duplicate(&Path::new("status").child("addresses").index(index), json!(address));
    }
}

fn capacity(node: &Node, errors: &mut Errors) {
    let Some(status) = &node.status else { return };
    for (field, amounts) in [("capacity", &status.capacity), ("allocatable", &status.allocatable)] {
        for (resource, quantity) in amounts.iter().flatten() {
            let path = Path::new("status").child(field).child(resource);
            resources::amount(resource, quantity, &path, errors);
        }
    }
}

pub(crate) fn node(node: &Node, errors: &mut Errors) {
    capacity(node, errors);
    let Some(spec) = &node.spec else { return };
    let path = Path::new("spec");
    scheduling::taints(spec.taints.as_deref().unwrap_or_default(), &path.child("taints"), errors);
    let first = spec.pod_cidr.as_ref().filter(|cidr| !cidr.is_empty());
    let cidrs = spec.pod_cidrs.as_deref().unwrap_or_else(|| first.map(std::slice::from_ref).unwrap_or_default());
    for (index, cidr) in cidrs.iter().enumerate() {
        net::cidr(cidr, &path.child("podCIDRs").index(index), errors);
    }
    let is_ipv4 = |cidr: &String| cidr.contains('.');
    if cidrs.len() > 2 || (cidrs.len() == 2 && is_ipv4(&cidrs[0]) == is_ipv4(&cidrs[1])) {
        let detail = "may specify no more than one CIDR for each IP family";
        errors.invalid(&path.child("podCIDRs"), cidrs.to_vec(), detail);
    }
    let first = spec.pod_cidrs.as_ref().and_then(|cidrs| cidrs.first());
    if spec.pod_cidr.is_some() && first.is_some() && spec.pod_cidr.as_ref() != first {
        errors.invalid(&path.child("podCIDRs").index(0), first.cloned(), "must be equal to `podCIDR`");
    }
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
