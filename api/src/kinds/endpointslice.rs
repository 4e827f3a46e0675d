//! EndpointSlices: a share of the addresses behind a Service.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::discovery::v1::{self as discovery, EndpointPort};

use super::{BuiltIn, Info};
use crate::columns::{self, Column, UNSET};
use crate::defaults::{set, set_text};
use crate::field::{Errors, Path};
use crate::{names, validate};

const MAX_ENDPOINTS: usize = 1_000;
const MAX_ADDRESSES: usize = 100;
const MAX_PORTS: usize = 20_000;

pub struct EndpointSlice;

impl BuiltIn for EndpointSlice {
    type Object = discovery::EndpointSlice;
    const INFO: Info = Info {
        group: "discovery.k8s.io",
        kind: "EndpointSlice",
        plural: "endpointslices",
        singular: "endpointslice",
        generation: true,
        schema: "io.k8s.api.discovery.v1.EndpointSlice",
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] =
        &[columns::NAME, Column::text("AddressType"), Column::text("Ports"), Column::text("Endpoints"), columns::AGE];

    fn default(slice: &mut discovery::EndpointSlice) {
        for port in slice.ports.iter_mut().flatten() {
            set(&mut port.name, String::new);
            set_text(&mut port.protocol, "TCP");
        }
    }

    fn validate(slice: &discovery::EndpointSlice, errors: &mut Errors) {
        let type_ = slice.address_type.as_str();
        match type_ {
            "" => errors.required(&Path::new("addressType"), ""),
            "FQDN" | "IPv4" | "IPv6" => {}
            other => errors.not_supported(&Path::new("addressType"), other, &["FQDN", "IPv4", "IPv6"]),
        }
        let path = Path::new("endpoints");
        let endpoints = slice.endpoints.as_deref().unwrap_or_default();
        if endpoints.len() > MAX_ENDPOINTS {
            return errors.too_many(&path, endpoints.len(), MAX_ENDPOINTS);
        }
        for (index, endpoint) in endpoints.iter().enumerate() {
            addresses(&endpoint.addresses, type_, &path.index(index).child("addresses"), errors);
            if let Some(name) = endpoint.hostname.as_deref() {
                validate::name(name, names::dns_label, &path.index(index).child("hostname"), errors);
            }
        }
        ports(slice.ports.as_deref().unwrap_or_default(), &Path::new("ports"), errors);
    }

    fn validate_update(old: &discovery::EndpointSlice, new: &discovery::EndpointSlice, errors: &mut Errors) {
        validate::immutable(&old.address_type, &new.address_type, &Path::new("addressType"), errors);
    }

    fn changed(old: &serde_json::Value, new: &serde_json::Value) -> bool {
        ["endpoints", "ports", "addressType"].iter().any(|field| old.get(field) != new.get(field))
            || old.pointer("/metadata/labels") != new.pointer("/metadata/labels")
    }

    fn row(slice: &discovery::EndpointSlice, now: Timestamp) -> Vec<String> {
        let port = |port: &EndpointPort| match (port.port, port.name.as_deref()) {
            (Some(number), _) => number.to_string(),
            (None, Some(name)) => name.to_owned(),
            (None, None) => "*".to_owned(),
        };
        let addresses = slice.endpoints.iter().flatten().flat_map(|endpoint| endpoint.addresses.iter().cloned());
        vec![
            columns::name(&slice.metadata),
            slice.address_type.clone(),
            columns::first_three(slice.ports.iter().flatten().map(port), UNSET),
            columns::first_three(addresses, UNSET),
            columns::age(&slice.metadata, now),
        ]
    }
}

fn addresses(addresses: &[String], type_: &str, path: &Path, errors: &mut Errors) {
    if addresses.is_empty() {
        errors.required(path, "must contain at least 1 address");
    } else if addresses.len() > MAX_ADDRESSES {
        errors.too_many(path, addresses.len(), MAX_ADDRESSES);
    }
    for (index, address) in addresses.iter().enumerate() {
        let path = path.index(index);
        match type_ {
            "IPv4" if address.parse::<std::net::Ipv4Addr>().is_err() => {
                errors.invalid(&path, address.as_str(), "must be an IPv4 address");
            }
            "IPv6" if address.parse::<std::net::Ipv6Addr>().is_err() => {
                errors.invalid(&path, address.as_str(), "must be an IPv6 address");
            }
            "IPv4" | "IPv6" => validate::net::non_special_ip(address, &path, errors),
            "FQDN" => validate::name(address, names::dns_subdomain, &path, errors),
            _ => {}
        }
    }
}

fn ports(ports: &[EndpointPort], path: &Path, errors: &mut Errors) {
    if ports.len() > MAX_PORTS {
        return errors.too_many(path, ports.len(), MAX_PORTS);
    }
    let mut seen = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = path.index(index);
        let name = port.name.as_deref().unwrap_or_default();
        if !name.is_empty() {
            validate::name(name, names::dns_label, &path.child("name"), errors);
        }
        if !seen.insert(name) {
            errors.duplicate(&path.child("name"), name);
        }
        validate::one_of(port.protocol.as_deref(), &["SCTP", "TCP", "UDP"], &path.child("protocol"), errors);
        if let Some(protocol) = port.app_protocol.as_deref() {
            validate::name(protocol, names::qualified_name, &path.child("appProtocol"), errors);
        }
    }
}
