//! IPAddresses: which address of the Services is taken, and by whom. The name is the address.
//!
//! Invariant: what holds an address never changes.

use jiff::Timestamp;
use k8s_openapi::api::networking::v1 as networking;

use super::{BuiltIn, Info, Scope};
use crate::columns::{self, Column};
use crate::field::{Errors, Path};
use crate::validate;

pub struct IPAddress;

impl BuiltIn for IPAddress {
    type Object = networking::IPAddress;
    const INFO: Info = Info {
        group: "networking.k8s.io",
        kind: "IPAddress",
        plural: "ipaddresses",
        singular: "ipaddress",
        short_names: &["ip"],
        scope: Scope::Cluster,
        selectable: &["spec.parentRef.group", "spec.parentRef.name", "spec.parentRef.namespace", "spec.parentRef.resource"],
        generation: true,
        schema: "io.k8s.api.networking.v1.IPAddress",
        name_rule: canonical_ip,
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] = &[columns::NAME, Column::text("ParentRef"), columns::AGE];

    fn validate(address: &networking::IPAddress, errors: &mut Errors) {
        let path = Path::new("spec").child("parentRef");
        let parent = &address.spec.parent_ref;
        for (field, value) in [("resource", &parent.resource), ("name", &parent.name)] {
            if value.is_empty() {
                errors.required(&path.child(field), "");
            }
        }
    }

    fn validate_update(old: &networking::IPAddress, new: &networking::IPAddress, errors: &mut Errors) {
        let path = Path::new("spec").child("parentRef");
        validate::immutable(&old.spec.parent_ref, &new.spec.parent_ref, &path, errors);
    }

    fn row(address: &networking::IPAddress, now: Timestamp) -> Vec<String> {
        let parent = &address.spec.parent_ref;
        let group = parent.group.as_deref().unwrap_or_default();
        let resource = format!("{}.{group}", parent.resource).trim_end_matches('.').to_lowercase();
        let parts = [Some(resource.as_str()), parent.namespace.as_deref(), Some(parent.name.as_str())];
        let parent = parts.into_iter().flatten().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/");
        vec![columns::name(&address.metadata), parent, columns::age(&address.metadata, now)]
    }
}

fn canonical_ip(text: &str) -> Vec<String> {
    match text.parse::<std::net::IpAddr>() {
        Ok(ip) if ip.to_string() == text => Vec::new(),
        Ok(ip) => vec![format!("must be a valid IP address in canonical form ({ip})")],
        Err(_) => vec!["must be a valid IP address".to_owned()],
    }
}
