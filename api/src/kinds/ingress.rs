//! Ingresses: which requests from outside go to which Service.

use jiff::Timestamp;
use k8s_openapi::api::networking::v1 as networking;

use super::{BuiltIn, Info};
use crate::columns::{self, Column};
use crate::field::Errors;
use crate::validate;
use crate::warn::Warnings;

/// What a narrow listing shows of the addresses.
const SHOWN_ADDRESS_BYTES: usize = 16;

/// Says which class an Ingress is of, for controllers of old.
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

pub struct Ingress;

impl BuiltIn for Ingress {
    type Object = networking::Ingress;
    const INFO: Info = Info {
        group: "networking.k8s.io",
        kind: "Ingress",
        plural: "ingresses",
        singular: "ingress",
        short_names: &["ing"],
        subresources: &["status"],
        generation: true,
        schema: "io.k8s.api.networking.v1.Ingress",
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] = &[
        columns::NAME,
        Column::text("Class"),
        Column::text("Hosts"),
        Column::text("Address"),
        Column::text("Ports"),
        columns::AGE,
    ];

    fn create(ingress: &mut networking::Ingress) {
        ingress.status =
            Some(networking::IngressStatus { load_balancer: Some(networking::IngressLoadBalancerStatus::default()) });
    }

    fn validate(ingress: &networking::Ingress, errors: &mut Errors) {
        validate::ingress::ingress(ingress, errors);
    }

    fn warn(old: Option<&networking::Ingress>, ingress: &networking::Ingress, warnings: &mut Warnings) {
        let annotations = ingress.metadata.annotations.as_ref();
        let names_class = ingress.spec.as_ref().is_some_and(|spec| spec.ingress_class_name.is_some());
        if old.is_none() && !names_class && annotations.is_some_and(|all| all.contains_key(CLASS_ANNOTATION)) {
            let instead = "please use 'spec.ingressClassName' instead";
            warnings.say(format_args!("annotation {CLASS_ANNOTATION:?} is deprecated, {instead}"));
        }
    }

    fn row(ingress: &networking::Ingress, now: Timestamp) -> Vec<String> {
        let spec = ingress.spec.clone().unwrap_or_default();
        let status = ingress.status.as_ref().and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
        let points = status.into_iter().flatten().filter_map(|point| point.ip.clone().or_else(|| point.hostname.clone()));
        let encrypted = spec.tls.as_ref().is_some_and(|tls| !tls.is_empty());
        vec![
            columns::name(&ingress.metadata),
            columns::or_none(spec.ingress_class_name.as_deref()),
            hosts(spec.rules.as_deref().unwrap_or_default()),
            columns::ingress_points(points, SHOWN_ADDRESS_BYTES),
            if encrypted { "80, 443" } else { "80" }.to_owned(),
            columns::age(&ingress.metadata, now),
        ]
    }
}

fn hosts(rules: &[networking::IngressRule]) -> String {
    let named = rules.iter().filter_map(|rule| rule.host.clone().filter(|host| !host.is_empty()));
    columns::first_three(named, "*")
}
