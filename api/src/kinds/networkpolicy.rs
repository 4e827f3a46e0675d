//! NetworkPolicies: who may talk to which pods.

use jiff::Timestamp;
use k8s_openapi::api::networking::v1 as networking;

use super::{BuiltIn, Info};
use crate::columns::{self, Column};
use crate::defaults::set_text;
use crate::field::Errors;
use crate::validate;

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

    fn row(policy: &networking::NetworkPolicy, now: Timestamp) -> Vec<String> {
        let selector = policy.spec.as_ref().and_then(|spec| spec.pod_selector.as_ref());
        vec![columns::name(&policy.metadata), columns::selector(selector), columns::age(&policy.metadata, now)]
    }
}
