//! Join tokens: made and listed. Only the hash of a secret is ever stored.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use flotilla_api::k8s_openapi::ByteString;
use flotilla_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use flotilla_api::kinds::jointoken::{JoinTokenObject, JoinTokenSpec};
use flotilla_api::{Builtin, Status, object};
use flotilla_net::Token;
use flotilla_raft::Range;
use jiff::{SignedDuration, Timestamp};

use super::{MANAGER, Trust};
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

impl Trust {
    /// Makes a token that admits `uses` machines (0: any number) for `ttl` (zero: one day).
    ///
    /// # Errors
    /// If the store does not take it.
    pub async fn create_token(&self, user: &User, ttl: Duration, uses: u32) -> Result<(Token, Timestamp), Status> {
        let ttl = if ttl.is_zero() { DEFAULT_TOKEN_LIFETIME } else { ttl };
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
            max_uses: (uses > 0).then_some(i32::try_from(uses).unwrap_or(i32::MAX)),
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
        let tokens = listing.items.iter().filter_map(|kv| object::decode(&kv.value, kv.mod_revision).ok());
        Ok(tokens.map(|token: JoinTokenObject| TokenInfo { refusal: token.refusal(now), token }).collect())
    }

    /// Where machines that join find this cluster: every member's first address, this node's first.
    fn addresses(&self) -> Vec<SocketAddr> {
        let own = self.net.own_record();
        let others = self.net.peers();
        let mut addresses: Vec<SocketAddr> = own.iter().flat_map(|record| record.addresses()).copied().collect();
        for address in others.iter().filter_map(|record| record.addresses().first()) {
            if !addresses.contains(address) {
                addresses.push(*address);
            }
        }
        addresses.truncate(flotilla_net::MAX_TOKEN_ADDRESSES);
        addresses
    }
}
