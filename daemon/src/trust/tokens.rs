//! Join tokens: made and listed. Only the hash of a secret is ever stored.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use flotilla_api::k8s_openapi::ByteString;
use flotilla_api::k8s_openapi::api::core::v1::Taint;
use flotilla_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use flotilla_api::kinds::jointoken::{JoinTokenObject, JoinTokenSpec};
use flotilla_api::{Builtin, Status, object};
use flotilla_control::Liveness;
use flotilla_net::{Token, fingerprint};
use flotilla_raft::Range;
use jiff::{SignedDuration, Timestamp};

use super::{MANAGER, Trust, hex};
use crate::gate::{self, User, WriteOptions};

/// A token that names no other time.
const DEFAULT_TOKEN_LIFETIME: Duration = Duration::from_secs(24 * 3600);
const MAX_TOKEN_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);

/// A token as `flotilla token list` shows it.
pub struct TokenInfo {
    pub token: JoinTokenObject,
    /// Why it admits nobody any more.
    pub refusal: Option<&'static str>,
}

/// What a token shall be good for.
#[derive(Clone, Debug, Default)]
pub struct TokenWish {
    /// Zero: one day.
    pub ttl: Duration,
    /// How many machines it admits; 0: any number.
    pub uses: u32,
    /// What the nodes get that join with it.
    pub labels: BTreeMap<String, String>,
    /// `KEY[=VALUE]:EFFECT`.
    pub taints: Vec<String>,
}

/// A taint as upstream's command line writes it.
fn taint(text: &str) -> Result<Taint, Status> {
    let (key, effect) = text
        .rsplit_once(':')
        .ok_or_else(|| Status::bad_request(format!("taint {text:?}: must be KEY:EFFECT or KEY=VALUE:EFFECT")))?;
    let (key, value) = key.split_once('=').map_or((key, None), |(key, value)| (key, Some(value.to_owned())));
    Ok(Taint { key: key.to_owned(), value, effect: effect.to_owned(), time_added: None })
}

impl Trust {
    /// # Errors
    /// `Invalid` with what is wrong, or if the store does not take it.
    pub async fn create_token(&self, user: &User, wanted: &TokenWish) -> Result<(Token, Timestamp), Status> {
        let TokenWish { ttl, uses, labels, taints } = wanted;
        let ttl = if ttl.is_zero() { DEFAULT_TOKEN_LIFETIME } else { *ttl };
        if ttl > MAX_TOKEN_LIFETIME {
            return Err(Status::bad_request("ttl: a token lives a year at most"));
        }
        let lifetime = SignedDuration::try_from(ttl).map_err(Status::bad_request)?;
        let expires = Timestamp::now().saturating_add(lifetime).map_err(Status::bad_request)?;
        let authorities = self.authorities()?;
        let addresses = self.addresses();
        let pinned = authorities.lasting().fingerprint();
        let token = Token::generate(self.cluster, pinned, Some(SystemTime::now() + ttl), addresses)
            .map_err(Status::internal)?;
        let spec = JoinTokenSpec {
            secret_hash: ByteString(token.secret_hash().as_bytes().to_vec()),
            expires_at: Some(Time(expires)),
            max_uses: (*uses > 0).then_some(i32::try_from(*uses).unwrap_or(i32::MAX)),
            ca_fingerprint: Some(hex(&pinned)),
            labels: labels.clone(),
            taints: taints.iter().map(|text| taint(text)).collect::<Result<_, _>>()?,
        };
        let object = JoinTokenObject::new(&token.id().to_string(), spec);
        let kind = self.gate.built_in(Builtin::JoinToken)?;
        let object = serde_json::to_value(object).map_err(Status::internal)?;
        self.gate.create(user, &kind, object, &WriteOptions::by(MANAGER)).await?;
        Ok((token, expires))
    }

    /// # Errors
    /// If the store cannot be read.
    pub async fn tokens(&self) -> Result<Vec<TokenInfo>, Status> {
        self.gate.store().barrier().await.map_err(gate::read_status)?;
        let prefix = Builtin::JoinToken.collection().prefix();
        let listing = self.gate.store().range(Range::prefix(prefix)).map_err(gate::read_status)?;
        let now = Timestamp::now();
        let trusted: Vec<String> = self.authorities()?.trusted.iter().map(|one| hex(&fingerprint(one))).collect();
        let tokens = listing.items.iter().filter_map(|kv| object::decode(&kv.value, kv.mod_revision).ok());
        Ok(tokens
            .map(|token: JoinTokenObject| {
                let pinned = token.spec.ca_fingerprint.as_ref();
                let replaced = pinned.filter(|pinned| !trusted.contains(pinned)).map(|_| "its CA was replaced");
                TokenInfo { refusal: token.refusal(now).or(replaced), token }
            })
            .collect())
    }

    /// Where machines that join find this cluster: every member's first address, this node's first.
    fn addresses(&self) -> Vec<SocketAddr> {
        let own = self.net.own_record();
        let (members, liveness) = (self.members.all(), self.members.liveness().borrow().clone());
        // Addresses are known longer than their nodes are members.
        let mut others = self.net.peers();
        others.retain(|record| members.get(record.name()) == Some(&record.id()));
        others.sort_by_key(|record| liveness.get(record.name()).is_none_or(|one| one.state == Liveness::Dead));
        let own = own.iter().flat_map(|record| record.addresses()).copied();
        first_of_all(own, others.iter().filter_map(|record| record.addresses().first()).copied())
    }
}

fn first_of_all(own: impl Iterator<Item = SocketAddr>, others: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    for address in own.chain(others) {
        if addresses.len() < flotilla_net::MAX_TOKEN_ADDRESSES && !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_names_its_maker_first_and_nobody_twice() {
        let at = |last: u8| SocketAddr::from(([10, 0, 0, last], 6443));
        let addresses = first_of_all([at(1), at(2)].into_iter(), (1..=20).map(at));
        assert_eq!(addresses, (1..=8).map(at).collect::<Vec<_>>());
    }

    #[test]
    fn taints_are_written_as_upstream_writes_them() {
        let parsed = taint("dedicated=db:NoSchedule").unwrap();
        assert_eq!((&*parsed.key, parsed.value.as_deref(), &*parsed.effect), ("dedicated", Some("db"), "NoSchedule"));
        let parsed = taint("gpu:NoExecute").unwrap();
        assert_eq!((&*parsed.key, parsed.value.as_deref(), &*parsed.effect), ("gpu", None, "NoExecute"));
        assert!(taint("gpu").unwrap_err().message.contains("KEY:EFFECT"));
    }
}
