//! IngressClasses: who looks after which Ingresses.

use jiff::Timestamp;
use k8s_openapi::api::networking::v1::{self as networking, IngressClassParametersReference};

use super::{BuiltIn, Info, Scope};
use crate::columns::{self, Column, NONE};
use crate::defaults::set_text;
use crate::field::{Errors, Path};
use crate::{names, validate};

const MAX_CONTROLLER_CHARACTERS: usize = 250;

pub struct IngressClass;

impl BuiltIn for IngressClass {
    type Object = networking::IngressClass;
    const INFO: Info = Info {
        group: "networking.k8s.io",
        kind: "IngressClass",
        plural: "ingressclasses",
        singular: "ingressclass",
        scope: Scope::Cluster,
        generation: true,
        schema: "io.k8s.api.networking.v1.IngressClass",
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] =
        &[columns::NAME, Column::text("Controller"), Column::text("Parameters"), columns::AGE];

    fn default(class: &mut networking::IngressClass) {
        let parameters = class.spec.as_mut().and_then(|spec| spec.parameters.as_mut());
        if let Some(parameters) = parameters {
            set_text(&mut parameters.scope, "Cluster");
        }
    }

    fn validate(class: &networking::IngressClass, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = class.spec.clone().unwrap_or_default();
        let controller = spec.controller.as_deref().unwrap_or_default();
        if controller.len() > MAX_CONTROLLER_CHARACTERS {
            errors.too_long(&path.child("controller"), MAX_CONTROLLER_CHARACTERS);
        }
        if controller.is_empty() {
            errors.required(&path.child("controller"), "");
        } else if controller.split_once('/').is_none_or(|(domain, rest)| !names::dns_subdomain(domain).is_empty() || rest.is_empty()) {
            let detail = "must be a domain-prefixed path (such as \"acme.io/foo\")";
            errors.invalid(&path.child("controller"), controller, detail);
        }
        if let Some(parameters) = &spec.parameters {
            validate_parameters(parameters, &path.child("parameters"), errors);
        }
    }

    fn validate_update(old: &networking::IngressClass, new: &networking::IngressClass, errors: &mut Errors) {
        let controller = |class: &networking::IngressClass| class.spec.as_ref().and_then(|spec| spec.controller.clone());
        validate::immutable(&controller(old), &controller(new), &Path::new("spec").child("controller"), errors);
    }

    fn row(class: &networking::IngressClass, now: Timestamp) -> Vec<String> {
        let spec = class.spec.clone().unwrap_or_default();
        let parameters = spec.parameters.map_or_else(
            || NONE.to_owned(),
            |parameters| {
                let group = parameters.api_group.filter(|group| !group.is_empty());
                let group = group.map(|group| format!(".{group}")).unwrap_or_default();
                format!("{}{group}/{}", parameters.kind, parameters.name)
            },
        );
        vec![
            columns::name(&class.metadata),
            spec.controller.unwrap_or_default(),
            parameters,
            columns::age(&class.metadata, now),
        ]
    }
}

fn validate_parameters(parameters: &IngressClassParametersReference, path: &Path, errors: &mut Errors) {
    for (field, value) in [("kind", &parameters.kind), ("name", &parameters.name)] {
        match value.as_str() {
            "" => errors.required(&path.child(field), ""),
            value => validate::name(value, names::path_segment, &path.child(field), errors),
        }
    }
    match (parameters.scope.as_deref().unwrap_or_default(), parameters.namespace.as_deref()) {
        ("Namespace", None | Some("")) => {
            errors.required(&path.child("namespace"), "`parameters.scope` is set to 'Namespace'");
        }
        ("Cluster", Some(_)) => {
            errors.forbidden(&path.child("namespace"), "`parameters.scope` is set to 'Cluster'");
        }
        ("Namespace" | "Cluster", _) => {}
        (other, _) => errors.not_supported(&path.child("scope"), other, &["Cluster", "Namespace"]),
    }
}
