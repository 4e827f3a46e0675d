//! ServiceCIDRs: where the addresses of Services are taken from.

use std::net::{IpAddr, Ipv4Addr};

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

/// A range of IPv4 addresses: `10.96.0.0/16`.
pub fn ipv4_range(text: &str) -> Option<(Ipv4Addr, u8)> {
    match validate::net::parse_cidr(text)? {
        (IpAddr::V4(network), length) => Some((network, length)),
        (IpAddr::V6(_), _) => None,
    }
}

/// The first and last address of a range that a Service may have: neither the network's nor that for all.
pub fn usable((network, length): (Ipv4Addr, u8)) -> (u32, u32) {
    let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
    let first = network.to_bits() & mask;
    let last = first | !mask;
    if length >= 31 { (first, last) } else { (first + 1, last - 1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_of_a_range_are_nobodys() {
        for (range, first, last) in [
            ("10.96.0.0/16", "10.96.0.1", "10.96.255.254"),
            ("10.96.7.9/30", "10.96.7.9", "10.96.7.10"),
            ("10.0.0.4/32", "10.0.0.4", "10.0.0.4"),
            ("0.0.0.0/0", "0.0.0.1", "255.255.255.254"),
        ] {
            let (from, to) = usable(ipv4_range(range).unwrap());
            assert_eq!((Ipv4Addr::from_bits(from).to_string().as_str(), Ipv4Addr::from_bits(to).to_string().as_str()), (first, last), "{range}");
        }
    }
}
