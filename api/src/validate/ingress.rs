//! Ingresses and NetworkPolicies.

use k8s_openapi::api::networking::v1::{
    HTTPIngressPath, Ingress, IngressBackend, IngressRule, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{name, net, one_of, port};
use crate::field::{Errors, Path};
use crate::{names, selector};

pub(crate) fn ingress(ingress: &Ingress, errors: &mut Errors) {
    let path = Path::new("spec");
    let spec = ingress.spec.clone().unwrap_or_default();
    let rules = spec.rules.as_deref().unwrap_or_default();
    if rules.is_empty() && spec.default_backend.is_none() {
        let value = serde_json::to_value(rules).unwrap_or_default();
        errors.invalid(&path, value, "either `defaultBackend` or `rules` must be specified");
    }
    if let Some(one) = &spec.default_backend {
        backend(one, &path.child("defaultBackend"), errors);
    }
    for (index, one) in rules.iter().enumerate() {
        rule(one, &path.child("rules").index(index), errors);
    }
    for (index, tls) in spec.tls.iter().flatten().enumerate() {
        let path = path.child("tls").index(index);
        for (index, one) in tls.hosts.iter().flatten().enumerate() {
            host(one, &path.child("hosts").index(index), errors);
        }
        if let Some(secret) = tls.secret_name.as_deref().filter(|secret| !secret.is_empty()) {
            name(secret, names::dns_subdomain, &path.child("secretName"), errors);
        }
    }
    if let Some(class) = spec.ingress_class_name.as_deref() {
        name(class, names::dns_subdomain, &path.child("ingressClassName"), errors);
    }
}

fn rule(rule: &IngressRule, path: &Path, errors: &mut Errors) {
    if let Some(named) = rule.host.as_deref().filter(|host| !host.is_empty()) {
        if named.parse::<std::net::IpAddr>().is_ok() {
            errors.invalid(&path.child("host"), named, "must be a DNS name, not an IP address");
        }
        host(named, &path.child("host"), errors);
    }
    let Some(http) = &rule.http else { return };
    let path = path.child("http").child("paths");
    if http.paths.is_empty() {
        errors.required(&path, "");
    }
    for (index, one) in http.paths.iter().enumerate() {
        http_path(one, &path.index(index), errors);
    }
}

/// A name of the DNS, of which the first label may be `*`.
fn host(text: &str, path: &Path, errors: &mut Errors) {
    name(text, if text.contains('*') { names::dns_wildcard } else { names::dns_subdomain }, path, errors);
}

fn http_path(one: &HTTPIngressPath, path: &Path, errors: &mut Errors) {
    let text = one.path.as_deref().unwrap_or_default();
    match one.path_type.as_str() {
        "" => errors.required(&path.child("pathType"), "pathType must be specified"),
        "Exact" | "Prefix" => {
            if !text.starts_with('/') {
                errors.invalid(&path.child("path"), text, "must be an absolute path");
            }
            for bad in ["//", "/./", "/../", "%2f", "%2F"].into_iter().filter(|bad| text.contains(bad)) {
                errors.invalid(&path.child("path"), text, format_args!("must not contain '{bad}'"));
            }
            for bad in ["/..", "/."].into_iter().filter(|bad| text.ends_with(bad)) {
                errors.invalid(&path.child("path"), text, format_args!("cannot end with '{bad}'"));
            }
        }
        "ImplementationSpecific" => {
            if !text.is_empty() && !text.starts_with('/') {
                errors.invalid(&path.child("path"), text, "must be an absolute path");
            }
        }
        other => {
            let known = ["Exact", "ImplementationSpecific", "Prefix"];
            errors.not_supported(&path.child("pathType"), other, &known);
        }
    }
    backend(&one.backend, &path.child("backend"), errors);
}

fn backend(backend: &IngressBackend, path: &Path, errors: &mut Errors) {
    match (&backend.resource, &backend.service) {
        (Some(_), Some(_)) => errors.invalid(path, "", "cannot set both resource and service backends"),
        (Some(resource), None) => {
            let path = path.child("resource");
            for (field, value) in [("kind", &resource.kind), ("name", &resource.name)] {
                if value.is_empty() {
                    errors.required(&path.child(field), "");
                }
            }
        }
        (None, Some(service)) => {
            let path = path.child("service");
            match service.name.as_str() {
                "" => errors.required(&path.child("name"), ""),
                text => name(text, names::dns_1035_label, &path.child("name"), errors),
            }
            let path = path.child("port");
            let target = service.port.clone().unwrap_or_default();
            match (target.name.as_deref().unwrap_or_default(), target.number.unwrap_or_default()) {
                ("", 0) => errors.required(&path, "port name or number is required"),
                ("", number) => port(number, &path.child("number"), errors),
                (text, 0) => name(text, names::port_name, &path.child("name"), errors),
                _ => errors.invalid(&path, "", "cannot set both port name & port number"),
            }
        }
        (None, None) => errors.invalid(path, "", "resource or service backend is required"),
    }
}

pub(crate) fn network_policy(policy: &NetworkPolicy, errors: &mut Errors) {
    let path = Path::new("spec");
    let Some(spec) = &policy.spec else { return };
    if let Some(labels) = &spec.pod_selector {
        selector::validate(labels, &path.child("podSelector"), errors);
    }
    for (index, rule) in spec.ingress.iter().flatten().enumerate() {
        let path = path.child("ingress").index(index);
        ports(rule.ports.as_deref(), &path.child("ports"), errors);
        peers(rule.from.as_deref(), &path.child("from"), errors);
    }
    for (index, rule) in spec.egress.iter().flatten().enumerate() {
        let path = path.child("egress").index(index);
        ports(rule.ports.as_deref(), &path.child("ports"), errors);
        peers(rule.to.as_deref(), &path.child("to"), errors);
    }
    let types = spec.policy_types.as_deref().unwrap_or_default();
    let path = path.child("policyTypes");
    if types.len() > 2 {
        errors.invalid(&path, types.to_vec(), "may not specify more than two policyTypes");
    }
    for (index, one) in types.iter().enumerate() {
        one_of(Some(one), &["Egress", "Ingress"], &path.index(index), errors);
    }
}

fn ports(ports: Option<&[NetworkPolicyPort]>, path: &Path, errors: &mut Errors) {
    for (index, one) in ports.unwrap_or_default().iter().enumerate() {
        let path = path.index(index);
        one_of(one.protocol.as_deref(), &["SCTP", "TCP", "UDP"], &path.child("protocol"), errors);
        match &one.port {
            Some(IntOrString::Int(number)) => {
                port(*number, &path.child("port"), errors);
                if let Some(end) = one.end_port {
                    if end < *number {
                        let detail = "must be greater than or equal to `port`";
                        errors.invalid(&path.child("endPort"), end, detail);
                    }
                    port(end, &path.child("endPort"), errors);
                }
            }
            Some(IntOrString::String(text)) => {
                if let Some(end) = one.end_port {
                    errors.invalid(&path.child("endPort"), end, "may not be specified when `port` is non-numeric");
                }
                name(text, names::port_name, &path.child("port"), errors);
            }
            None => {
                if let Some(end) = one.end_port {
                    errors.invalid(&path.child("endPort"), end, "may not be specified when `port` is not specified");
                }
            }
        }
    }
}

fn peers(peers: Option<&[NetworkPolicyPeer]>, path: &Path, errors: &mut Errors) {
    for (index, peer) in peers.unwrap_or_default().iter().enumerate() {
        let path = path.index(index);
        let selectors = [("podSelector", &peer.pod_selector), ("namespaceSelector", &peer.namespace_selector)];
        for (field, labels) in &selectors {
            if let Some(labels) = labels {
                selector::validate(labels, &path.child(field), errors);
            }
        }
        let selects = selectors.iter().any(|(_, labels)| labels.is_some());
        match &peer.ip_block {
            None if !selects => errors.required(&path, "must specify a peer"),
            None => {}
            Some(_) if selects => errors.forbidden(&path, "may not specify both ipBlock and another peer"),
            Some(block) => ip_block(&block.cidr, block.except.as_deref(), &path.child("ipBlock"), errors),
        }
    }
}

fn ip_block(cidr: &str, except: Option<&[String]>, path: &Path, errors: &mut Errors) {
    if cidr.is_empty() {
        return errors.required(&path.child("cidr"), "");
    }
    net::cidr(cidr, &path.child("cidr"), errors);
    let Some(whole) = net::parse_cidr(cidr) else { return };
    for (index, one) in except.unwrap_or_default().iter().enumerate() {
        let path = path.child("except").index(index);
        net::cidr(one, &path, errors);
        if net::parse_cidr(one).is_some_and(|part| part.1 <= whole.1 || !net::contains(whole, part.0)) {
            errors.invalid(&path, one.as_str(), "must be a strict subset of `cidr`");
        }
    }
}
