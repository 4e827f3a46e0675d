//! ServiceCIDRs: where the addresses of Services are taken from.

use jiff::Timestamp;
use k8s_openapi::api::networking::v1 as networking;

use super::{BuiltIn, Info, Scope};
use crate::columns::{self, Column};
use crate::field::{Errors, Path};
use crate::validate;

pub struct ServiceCIDR;

impl BuiltIn for ServiceCIDR {
    type Object = networking::ServiceCIDR;
    const INFO: Info = Info {
        group: "networking.k8s.io",
        kind: "ServiceCIDR",
        plural: "servicecidrs",
        singular: "servicecidr",
        scope: Scope::Cluster,
        subresources: &["status"],
        generation: true,
        schema: "io.k8s.api.networking.v1.ServiceCIDR",
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] = &[columns::NAME, Column::text("CIDRs"), columns::AGE];

    fn create(range: &mut networking::ServiceCIDR) {
        range.status = Some(networking::ServiceCIDRStatus::default());
    }

    fn validate(range: &networking::ServiceCIDR, errors: &mut Errors) {
        let path = Path::new("spec").child("cidrs");
        let cidrs = range.spec.as_ref().and_then(|spec| spec.cidrs.as_deref()).unwrap_or_default();
        match cidrs.len() {
            0 => return errors.required(&path, "at least one CIDR required"),
            1 | 2 => {}
            _ => return errors.invalid(&path, cidrs.to_vec(), "may only hold up to 2 values"),
        }
        for (index, cidr) in cidrs.iter().enumerate() {
            validate::net::cidr(cidr, &path.index(index), errors);
        }
        if let [one, other] = cidrs
            && one.contains(':') == other.contains(':')
        {
            let detail = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/96";
            errors.invalid(&path, cidrs.to_vec(), detail);
        }
    }

    fn validate_update(old: &networking::ServiceCIDR, new: &networking::ServiceCIDR, errors: &mut Errors) {
        let cidrs = |range: &networking::ServiceCIDR| range.spec.as_ref().and_then(|spec| spec.cidrs.clone());
        validate::immutable(&cidrs(old), &cidrs(new), &Path::new("spec").child("cidrs"), errors);
    }

    fn row(range: &networking::ServiceCIDR, now: Timestamp) -> Vec<String> {
        let cidrs = range.spec.as_ref().and_then(|spec| spec.cidrs.clone()).unwrap_or_default();
        vec![columns::name(&range.metadata), cidrs.join(","), columns::age(&range.metadata, now)]
    }
}
