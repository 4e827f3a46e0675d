//! NetworkPolicies: who may talk to which pods.

use jiff::Timestamp;
use k8s_openapi::api::networking::v1::{self as networking, NetworkPolicyPeer};

use super::{BuiltIn, Info};
use crate::columns::{self, Column};
use crate::defaults::set_text;
use crate::field::{Errors, Path};
use crate::validate;
use crate::warn::{self, Warnings};

pub struct NetworkPolicy;

impl BuiltIn for NetworkPolicy {
    type Object = networking::NetworkPolicy;
    const INFO: Info = Info {
        group: "networking.k8s.io",
        kind: "NetworkPolicy",
        plural: "networkpolicies",
        singular: "networkpolicy",
        short_names: &["netpol"],
        generation: true,
        schema: "io.k8s.api.networking.v1.NetworkPolicy",
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] = &[columns::NAME, Column::text("Pod-Selector"), columns::AGE];

    fn default(policy: &mut networking::NetworkPolicy) {
        let spec = policy.spec.get_or_insert_default();
        if spec.policy_types.as_ref().is_none_or(Vec::is_empty) {
            let egress = spec.egress.as_ref().is_some_and(|rules| !rules.is_empty());
            let types = ["Ingress", "Egress"].into_iter().take(1 + usize::from(egress));
            spec.policy_types = Some(types.map(str::to_owned).collect());
        }
        let ingress = spec.ingress.iter_mut().flatten().flat_map(|rule| rule.ports.iter_mut().flatten());
        let egress = spec.egress.iter_mut().flatten().flat_map(|rule| rule.ports.iter_mut().flatten());
        ingress.chain(egress).for_each(|port| set_text(&mut port.protocol, "TCP"));
    }

    fn validate(policy: &networking::NetworkPolicy, errors: &mut Errors) {
        validate::ingress::network_policy(policy, errors);
    }

    fn warn(_old: Option<&networking::NetworkPolicy>, policy: &networking::NetworkPolicy, warnings: &mut Warnings) {
        let (spec, path) = (policy.spec.clone().unwrap_or_default(), Path::new("spec"));
        for (index, rule) in spec.ingress.iter().flatten().enumerate() {
            warn_peers(rule.from.as_deref(), &path.child("ingress").index(index).child("from"), warnings);
        }
        for (index, rule) in spec.egress.iter().flatten().enumerate() {
            warn_peers(rule.to.as_deref(), &path.child("egress").index(index).child("to"), warnings);
        }
    }

    fn row(policy: &networking::NetworkPolicy, now: Timestamp) -> Vec<String> {
        let selector = policy.spec.as_ref().and_then(|spec| spec.pod_selector.as_ref());
        vec![columns::name(&policy.metadata), columns::selector(selector), columns::age(&policy.metadata, now)]
    }
}

fn warn_peers(peers: Option<&[NetworkPolicyPeer]>, path: &Path, warnings: &mut Warnings) {
    for (index, peer) in peers.into_iter().flatten().enumerate() {
        let Some(block) = &peer.ip_block else { continue };
        let path = path.index(index).child("ipBlock");
        warn::cidr(&block.cidr, &path.child("cidr"), warnings);
        for (index, except) in block.except.iter().flatten().enumerate() {
            warn::cidr(except, &path.child("except").index(index), warnings);
        }
    }
}
