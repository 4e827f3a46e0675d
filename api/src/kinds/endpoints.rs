//! Endpoints: the addresses behind a Service, in the form of old.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{self as core, EndpointSubset};

use super::{BuiltIn, Info};
use crate::columns::{self, Column, NONE};
use crate::defaults::set_text;
use crate::field::Errors;
use crate::validate;

pub struct Endpoints;

impl BuiltIn for Endpoints {
    type Object = core::Endpoints;
    const INFO: Info = Info {
        kind: "Endpoints",
        plural: "endpoints",
        singular: "endpoints",
        short_names: &["ep"],
        schema: "io.k8s.api.core.v1.Endpoints",
        deprecation: Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"),
        create_on_update: true,
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] = &[columns::NAME, Column::text("Endpoints"), columns::AGE];

    fn default(endpoints: &mut core::Endpoints) {
        let subsets = endpoints.subsets.iter_mut().flatten();
        subsets.flat_map(|subset| subset.ports.iter_mut().flatten()).for_each(|port| set_text(&mut port.protocol, "TCP"));
    }

    fn validate(endpoints: &core::Endpoints, errors: &mut Errors) {
        validate::service::endpoints(endpoints, errors);
    }

    fn row(endpoints: &core::Endpoints, now: Timestamp) -> Vec<String> {
        let shown = columns::first_three(endpoints.subsets.iter().flatten().flat_map(addresses), NONE);
        vec![columns::name(&endpoints.metadata), shown, columns::age(&endpoints.metadata, now)]
    }
}

/// `10.0.0.1:80`; the address alone if the subset has no ports.
fn addresses(subset: &EndpointSubset) -> Vec<String> {
    let ips = || subset.addresses.iter().flatten().map(|address| address.ip.clone());
    match subset.ports.as_deref().unwrap_or_default() {
        [] => ips().collect(),
        ports => ports.iter().flat_map(|port| ips().map(move |ip| columns::host_port(&ip, port.port))).collect(),
    }
}
