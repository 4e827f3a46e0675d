//! The addresses of Services: taken from the cluster's ServiceCIDR when a Service is stored.
//!
//! An address is taken by the IPAddress of its name, which is created in the Change that stores the Service: two Services
//! cannot get the same one. The leader removes IPAddresses whose Service is gone.
//!
//! Invariant: an address that the gate gave out is held by an IPAddress that names its Service.

use std::net::Ipv4Addr;

use flotilla_api::k8s_openapi::api::networking::v1::{IPAddress, IPAddressSpec, ParentReference};
use flotilla_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use flotilla_api::kinds::servicecidr;
use flotilla_api::{Builtin, Cause, Change, Expect, Key, Kind, Status, names};
use flotilla_raft::Range;
use jiff::Timestamp;
use rand::Rng;
use serde_json::{Value, json};

use super::write::text;
use super::{Gate, read_status};

/// Addresses that are tried before the range counts as full.
const MAX_TRIES: usize = 64;

impl Gate {
    /// Gives a Service that needs one an address, or takes the one that it asks for.
    ///
    /// # Errors
    /// `Invalid` if the address cannot be had.
    pub(super) fn take_address(
        &self,
        kind: &Kind,
        key: &Key,
        (old, new): (Option<&Value>, &mut Value),
        change: Change,
    ) -> Result<Change, Status> {
        if kind.collection() != Builtin::Service.collection() || text(new, "/spec/type") == "ExternalName" {
            return Ok(change);
        }
        let wanted = text(new, "/spec/clusterIP").to_owned();
        let held = old.is_some_and(|old| !wanted.is_empty() && text(old, "/spec/clusterIP") == wanted);
        if wanted == "None" || held {
            return Ok(change);
        }
        // Before the leader has written the range there is nothing to take an address from.
        let Some(range) = self.service_range()? else { return Ok(change) };
        let (address, left) = match wanted.as_str() {
            "" => (self.free_address(range, key)?, None),
            wanted => self.asked_address(range, wanted)?.map_err(|why| invalid(key, wanted, &why))?,
        };
        new["spec"]["clusterIP"] = json!(address.to_string());
        new["spec"]["clusterIPs"] = json!([address.to_string()]);
        let holder = holder(address, key);
        let bytes = flotilla_api::object::encode(&holder).map_err(Status::internal)?;
        Ok(match left {
            None => change.create(address_key(address), bytes),
            Some(left) => {
                change.require(left.service, Expect::Absent).update(address_key(address), left.revision, bytes)
            }
        })
    }

    fn service_range(&self) -> Result<Option<(Ipv4Addr, u8)>, Status> {
        let prefix = Builtin::ServiceCIDR.collection().prefix();
        let page = self.store.range(Range { limit: 1, ..Range::prefix(prefix) }).map_err(read_status)?;
        let ranges = page.items.iter().filter_map(|kv| serde_json::from_slice::<Value>(&kv.value).ok());
        Ok(ranges.filter_map(|value| servicecidr::ipv4_range(value["spec"]["cidrs"][0].as_str()?)).next())
    }

    fn free_address(&self, range: (Ipv4Addr, u8), key: &Key) -> Result<Ipv4Addr, Status> {
        let (first, last) = servicecidr::usable(range);
        for _ in 0..MAX_TRIES {
            let address = Ipv4Addr::from_bits(rand::rng().random_range(first..=last));
            if self.load(&address_key(address))?.is_none() {
                return Ok(address);
            }
        }
        let why = format!("failed to allocate a serviceIP for {key}: range is full");
        Err(Status::internal(format!("Internal error occurred: {why}")))
    }

    /// An address that is free, or one of a Service that is gone, which the leader has not given back yet; or why it
    /// cannot be had.
    fn asked_address(&self, range: (Ipv4Addr, u8), wanted: &str) -> Result<Result<Asked, String>, Status> {
        let (first, last) = servicecidr::usable(range);
        let Ok(address) = wanted.parse::<Ipv4Addr>() else {
            return Ok(Err("only IPv4 addresses are given out".to_owned()));
        };
        if !(first..=last).contains(&address.to_bits()) {
            let range = format!("{}/{}", range.0, range.1);
            return Ok(Err(format!(
                "the provided IP ({wanted}) is not in the valid range. The range of valid IPs is {range}"
            )));
        }
        let Some(held) = self.load(&address_key(address))? else { return Ok(Ok((address, None))) };
        let holder: IPAddress = serde_json::from_slice(&held.value).map_err(Status::internal)?;
        let parent = holder.spec.parent_ref;
        let namespace = parent.namespace.unwrap_or_default();
        let service = Key::new(&Builtin::Service.collection(), &namespace, &parent.name);
        Ok(match parent.resource == "services" && self.load(&service)?.is_none() {
            true => Ok((address, Some(Left { service, revision: held.mod_revision }))),
            false => Err("provided IP is already allocated".to_owned()),
        })
    }
}

type Asked = (Ipv4Addr, Option<Left>);

/// What still holds an address for a Service that is gone.
struct Left {
    service: Key,
    revision: u64,
}

fn address_key(address: Ipv4Addr) -> Key {
    Key::new(&Builtin::IPAddress.collection(), "", &address.to_string())
}

fn holder(address: Ipv4Addr, service: &Key) -> IPAddress {
    let labels =
        [("ipaddress.kubernetes.io/ip-family", "IPv4"), ("ipaddress.kubernetes.io/managed-by", "ipallocator.k8s.io")];
    IPAddress {
        metadata: ObjectMeta {
            name: Some(address.to_string()),
            uid: Some(names::uid(&mut rand::rng())),
            creation_timestamp: Some(Time(Timestamp::now())),
            generation: Some(1),
            labels: Some(labels.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()),
            ..ObjectMeta::default()
        },
        spec: IPAddressSpec {
            parent_ref: ParentReference {
                group: None,
                resource: "services".into(),
                namespace: Some(service.namespace().into()),
                name: service.name().into(),
            },
        },
    }
}

fn invalid(key: &Key, wanted: &str, why: &str) -> Status {
    let message = format!("Invalid value: [\"{wanted}\"]: failed to allocate IP {wanted}: {why}");
    let cause = Cause { reason: "FieldValueInvalid".into(), message, field: "spec.clusterIPs".into() };
    Status::invalid("Service", key.name(), vec![cause])
}
