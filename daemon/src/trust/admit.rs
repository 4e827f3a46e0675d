//! Admitting a machine that shows a token.
//!
//! Invariant: a machine is admitted in one Change that spends the token and creates its Node; if that Change is
//! refused, nothing is left behind.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use flotilla_api::admit::UnknownFields;
use flotilla_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use flotilla_api::kinds::jointoken::JoinTokenObject;
use flotilla_api::{Builtin, Change, Key, object};
use flotilla_net::{Admission, JoinGrant, JoinRequest, Member, Refusal, RenewGrant, SecretHash, Subject, TokenId};
use flotilla_raft::{ProposeError, ReadError};
use jiff::Timestamp;
use serde_json::json;
use tokio::time::Instant;
use tracing::{debug, info};

use super::{MANAGER, Trust, hex, node_object};
use crate::gate::{self, User, Written};
use crate::members::{NO_REPLICA_LABEL, TOKEN_LABELS_ANNOTATION};

/// How often an admission that somebody else overtook is begun anew.
const MAX_ATTEMPTS: usize = 16;
/// How long an admission waits for the cluster to have a leader. The machine that asks waits longer.
const LEADER_WAIT: Duration = Duration::from_secs(8);
const LEADER_RETRY: Duration = Duration::from_millis(100);

enum Admitted {
    Yes,
    /// Another machine spent the token at the same time.
    Overtaken,
}

enum Denial {
    Never(Refusal),
    /// Nobody leads at the moment: asking again may help.
    Later(String),
}

#[async_trait]
impl Admission for Trust {
    async fn admit(&self, request: JoinRequest) -> Result<JoinGrant, Refusal> {
        // Whatever could be wrong with the request is found before the token is spent.
        let grant = self.grant(&request)?;
        let key = certified_key(&grant.certificate)?;
        let until = Instant::now() + LEADER_WAIT;
        let mut overtaken = 0;
        loop {
            match self.admit_once(&request, &key).await {
                Ok(Admitted::Yes) => {
                    info!(node = request.name, remote = %request.remote, version = request.version, "a node joined");
                    return Ok(grant);
                }
                Ok(Admitted::Overtaken) if overtaken < MAX_ATTEMPTS => overtaken += 1,
                Ok(Admitted::Overtaken) => {
                    return Err(Refusal("too many machines join at the same time; try again".into()));
                }
                Err(Denial::Later(reason)) if Instant::now() < until => {
                    debug!(node = request.name, reason, "an admission waits for a leader");
                    tokio::time::sleep(LEADER_RETRY).await;
                }
                Err(Denial::Later(reason)) => return Err(Refusal(reason)),
                Err(Denial::Never(refusal)) => return Err(refusal),
            }
        }
    }
}

impl Trust {
    async fn admit_once(&self, request: &JoinRequest, key: &str) -> Result<Admitted, Denial> {
        let store = self.gate.store();
        let unavailable = |error: ReadError| Denial::Later(format!("the cluster cannot answer now: {error}"));
        let never = |reason: String| Denial::Never(Refusal(reason));
        if store.fed_by().is_some() {
            return Err(Denial::Later("this node has no replica of the store; ask another".into()));
        }
        store.barrier().await.map_err(unavailable)?;
        let token_key = Key::new(&Builtin::JoinToken.collection(), "", &request.token_id.to_string());
        let stored = store.get(&token_key).map_err(unavailable)?;
        let stored =
            stored.ok_or_else(|| never("the cluster has no such token: it was revoked, or never made".into()))?;
        let mut token: JoinTokenObject =
            object::decode(&stored.value, stored.mod_revision).map_err(|error| never(error.to_string()))?;
        let now = Timestamp::now();
        if !secret_matches(&token, request.token_id, request) {
            return Err(never("the token's secret is wrong".into()));
        }
        // The same machine with the same key asks again because it did not hear the answer.
        if self.is_listed(&request.name, request.id, key) {
            return Ok(Admitted::Yes);
        }
        if let Some(why) = token.refusal(now) {
            return Err(never(format!("{why}; make a new one with 'flotilla token create'")));
        }
        // Whoever may join is not let in as somebody who has: the members would take the one for the other.
        let node_key = Key::new(&Builtin::Node.collection(), "", &request.name);
        let other = self.gate.other_node(&node_key, &json!(request.id.to_string()));
        if let Some(other) = other.map_err(|status| Denial::Later(status.message))? {
            return Err(never(format!(
                "node {other:?} is this machine already; wipe its data directory to join anew, under another identity"
            )));
        }
        let status = token.status.get_or_insert_default();
        status.uses += 1;
        status.last_node = Some(request.name.clone());
        status.last_used_at = Some(Time(now));

        let (given, taints) = (&token.spec.labels, &token.spec.taints);
        let labels = labels_of(given, request.replica);
        let epoch = store.status().borrow().epoch;
        let mut node = node_object(&request.name, request.id, key, epoch, &request.addresses, &labels, taints);
        if !given.is_empty() {
            let given: Vec<&str> = given.keys().map(String::as_str).collect();
            node["metadata"]["annotations"][TOKEN_LABELS_ANNOTATION] = json!(given.join(","));
        }
        let kind = self.gate.built_in(Builtin::Node).map_err(|status| never(status.message))?;
        let (_, Written { object: node, .. }) =
            gate::prepare(&kind, node, UnknownFields::Refuse).map_err(|status| never(status.message))?;
        let encode = |error: serde_json::Error| never(error.to_string());
        let change = Change::new(User::node(&request.name).name, MANAGER)
            .create(node_key.clone(), object::encode(&node).map_err(encode)?)
            .update(token_key, stored.mod_revision, object::encode(&token).map_err(encode)?);
        match store.propose(change).await {
            Ok(_) => Ok(Admitted::Yes),
            Err(ProposeError::Conflict(conflict)) if conflict.key == node_key => Err(never(format!(
                "a node named {:?} is a member already; choose another --name, or remove it with 'flotilla delete node {}'",
                request.name, request.name
            ))),
            Err(ProposeError::Conflict(_)) => Ok(Admitted::Overtaken),
            Err(error @ (ProposeError::Invalid(_) | ProposeError::NoSpace)) => {
                Err(never(format!("the cluster cannot admit anybody: {error}")))
            }
            // Whether it was taken or not, asking again finds out.
            Err(error) => Err(Denial::Later(format!("the cluster cannot admit anybody now: {error}"))),
        }
    }

    fn grant(&self, request: &JoinRequest) -> Result<JoinGrant, Refusal> {
        let RenewGrant { certificate, authorities, bridges, .. } =
            self.sign(request.id, &request.name, &request.csr, &request.addresses)?;
        let records = self.net.peers();
        let member = |(name, id): (&String, &u64)| Member {
            id: *id,
            name: name.clone(),
            key: self.members.key_of(*id),
            record: records.iter().find(|record| record.id() == *id).map(|record| (**record).clone()),
        };
        let members = self.members.all().iter().map(member).collect();
        Ok(JoinGrant {
            cluster: self.cluster,
            certificate,
            authorities,
            bridges,
            seal_key: Some(self.seal_key.clone()),
            members,
        })
    }
}

/// What its token gives a node, and what it asks for itself: no replica, from the first moment on.
fn labels_of(given: &BTreeMap<String, String>, wants_replica: bool) -> BTreeMap<String, String> {
    let mut labels = given.clone();
    if !wants_replica {
        labels.entry(NO_REPLICA_LABEL.to_owned()).or_insert_with(|| "true".to_owned());
    }
    labels
}

/// SHA-256 of the public key in a certificate that was just made, in hexadecimal.
fn certified_key(certificate: &[u8]) -> Result<String, Refusal> {
    let subject =
        Subject::of(certificate).map_err(|error| Refusal(format!("the certificate cannot be read back: {error}")))?;
    Ok(hex(&subject.key_fingerprint))
}

fn secret_matches(token: &JoinTokenObject, id: TokenId, request: &JoinRequest) -> bool {
    <[u8; 32]>::try_from(token.spec.secret_hash.0.as_slice())
        .is_ok_and(|hash| SecretHash::from_bytes(hash).matches(id, &request.secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_wants_no_replica_is_labelled_before_anybody_could_give_it_one() {
        let given = BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
        assert_eq!(labels_of(&given, true), given);
        let labels = labels_of(&given, false);
        assert_eq!(labels.keys().collect::<Vec<_>>(), [NO_REPLICA_LABEL, "zone"]);
        // What the token says of it stands.
        let given = BTreeMap::from([(NO_REPLICA_LABEL.to_owned(), "store-less".to_owned())]);
        assert_eq!(labels_of(&given, false), given);
    }
}
