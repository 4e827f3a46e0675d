//! Replacing the cluster's authority: begun by a person, carried on by whoever leads, visible all the while.
//!
//! Invariant: what has been done so far stands in the store, so that the next leader goes on where one died.

use std::time::{Duration, SystemTime};

use flotilla_api::admit::Subresource;
use flotilla_api::k8s_openapi::ByteString;
use flotilla_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use flotilla_api::kinds::cluster::{CaPhase, CaRotation, ClusterObject, ClusterSpec};
use flotilla_api::{Builtin, Change, Reason, Status, object};
use flotilla_control::Liveness;
use flotilla_control::authority::{Holder, Step, step};
use flotilla_net::{Subject, certificate_pem, fingerprint};
use flotilla_raft::{Range, Store};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tracing::{debug, info};

use super::ca::certificate;
use super::{MANAGER, Trust, chain, hex};
use crate::gate::{self, User, WriteOptions};
use crate::members::{CA_ANNOTATION, Members, TRUSTED_CAS_ANNOTATION};

/// How long the old authority stays trusted where nobody says otherwise.
const DEFAULT_OVERLAP: Duration = Duration::from_secs(24 * 3600);
const MAX_OVERLAP: Duration = Duration::from_secs(365 * 24 * 3600);
/// How often the leader looks whether a phase is over.
const LOOK: Duration = Duration::from_millis(500);
/// Revocations of certificates that the dropped authority signed are forgotten with it; by how much clocks may differ.
const CLOCK_SLACK: SignedDuration = SignedDuration::from_secs(600);
/// Users that are revoked at once. Replacing the authority revokes all and forgets them.
const MAX_REVOKED_USERS: usize = 1_024;

/// How the authorities stand.
pub struct CaStatus {
    /// `None`: one authority, and nothing under way.
    pub rotation: Option<CaRotation>,
    /// SHA-256 of the authority that signs, in hexadecimal.
    pub signer: String,
    pub expires: SystemTime,
    /// That of the other one, which comes or goes.
    pub other: Option<String>,
    /// When the phase is over at the latest.
    pub until: Option<Timestamp>,
    pub nodes: Vec<CaNode>,
}

/// A node, as far as authorities go.
pub struct CaNode {
    pub name: String,
    pub certified_by: String,
    /// The phase is not over before this one is done.
    pub waited_for: bool,
}

impl Trust {
    /// Begins to replace the authority. The old one stays trusted for `overlap` after the new one begins to sign. Where
    /// one is being replaced already, a shorter overlap shortens its: a stolen key does not wait for a planned day.
    ///
    /// # Errors
    /// `Conflict` if one is being replaced already with no longer an overlap, or why the store does not take it.
    pub async fn rotate_ca(&self, user: &User, wanted: Option<Duration>) -> Result<(), Status> {
        let overlap = wanted.unwrap_or(DEFAULT_OVERLAP);
        if overlap > MAX_OVERLAP {
            return Err(Status::bad_request("overlap: a year at most"));
        }
        self.gate.store().barrier().await.map_err(gate::read_status)?;
        let authorities = self.authorities()?;
        let failed = |error: flotilla_net::AuthorityError| Status::internal(chain(&error));
        let (heir, bridge) = authorities.signer.succeed(SystemTime::now()).map_err(failed)?;
        let now = Time(Timestamp::now());
        let rotation = CaRotation {
            phase: CaPhase::Spread,
            started_at: now.clone(),
            phase_since: now,
            overlap_seconds: overlap.as_secs() as i64,
            ca_certificate: certificate_pem(heir.certificate()),
            sealed_ca: Some(ByteString(heir.seal(&self.seal_key).map_err(failed)?)),
            bridge: certificate_pem(&bridge),
        };
        let replaced = certificate_pem(authorities.signer.certificate());
        self.edit_cluster(user, |spec| {
            if let Some(running) = &mut spec.rotation {
                return shorten(running, wanted);
            }
            // Somebody else was quicker and is done by now.
            if spec.ca_certificate != replaced {
                let message = "the CA has just been replaced; see 'flotilla ca status'";
                return Err(Status::new(Reason::Conflict, message));
            }
            spec.rotation = Some(rotation.clone());
            Ok(())
        })
        .await?;
        info!(user = user.name, "the authority is being replaced");
        Ok(())
    }

    /// Makes all certificates that `name` has so far worth nothing.
    ///
    /// # Errors
    /// `BadRequest` for what is no user, or why the store does not take it.
    pub async fn revoke_user(&self, user: &User, name: &str) -> Result<(), Status> {
        if name.is_empty() || name.len() > 253 || name.starts_with("system:node:") {
            return Err(Status::bad_request(format!(
                "user: {name:?} is not the name of a user; a node is removed with 'flotilla delete node'"
            )));
        }
        let now = Time(Timestamp::now());
        self.edit_cluster(user, |spec| {
            if spec.revoked_users.len() >= MAX_REVOKED_USERS && !spec.revoked_users.contains_key(name) {
                return Err(Status::bad_request(format!(
                    "{MAX_REVOKED_USERS} users are revoked already; 'flotilla ca rotate --overlap 0s' ends all certificates"
                )));
            }
            spec.revoked_users.insert(name.to_owned(), now.clone());
            Ok(())
        })
        .await
    }

    async fn edit_cluster(
        &self,
        user: &User,
        mut edit: impl FnMut(&mut ClusterSpec) -> Result<(), Status>,
    ) -> Result<(), Status> {
        let kind = self.gate.built_in(Builtin::Cluster)?;
        let target = ("", flotilla_api::kinds::cluster::NAME);
        let options = WriteOptions::by(MANAGER);
        let edit = |object: &mut Value| {
            let mut spec: ClusterSpec = serde_json::from_value(object["spec"].clone()).map_err(Status::internal)?;
            edit(&mut spec)?;
            object["spec"] = json!(spec);
            Ok(())
        };
        self.gate.update(user, &kind, target, Subresource::None, &options, edit).await.map(|_| ())
    }

    /// # Errors
    /// If the store cannot be read.
    pub async fn ca_status(&self) -> Result<CaStatus, Status> {
        self.gate.store().barrier().await.map_err(gate::read_status)?;
        let spec = self.cluster_object()?.spec;
        let signer = certificate(&spec.ca_certificate)?;
        let holders = holders(self.gate.store(), &self.members).map_err(gate::read_status)?;
        let (mut until, mut waited_for, mut other) = (None, Vec::new(), None);
        if let Some(rotation) = &spec.rotation {
            other = Some(hex(&fingerprint(&certificate(&rotation.ca_certificate)?)));
            if let Step::Wait { until: at, nodes } = step(rotation, &next(&spec, rotation)?, &holders, Timestamp::now())
            {
                (until, waited_for) = (Some(at), nodes);
            }
        }
        let nodes = holders.into_iter().map(|holder| CaNode {
            waited_for: waited_for.contains(&holder.name),
            certified_by: holder.certified_by.unwrap_or_default(),
            name: holder.name,
        });
        Ok(CaStatus {
            signer: hex(&fingerprint(&signer)),
            expires: Subject::of(&signer).map_err(Status::internal)?.not_after,
            other,
            until,
            nodes: nodes.collect(),
            rotation: spec.rotation,
        })
    }
}

/// Gives a rotation that runs the overlap that was asked for, if that is shorter.
fn shorten(running: &mut CaRotation, wanted: Option<Duration>) -> Result<(), Status> {
    let has = running.overlap_seconds;
    match wanted.map(|overlap| overlap.as_secs() as i64).filter(|wanted| *wanted < has) {
        Some(shorter) => {
            running.overlap_seconds = shorter;
            Ok(())
        }
        None => {
            let message = format!(
                "the CA is being replaced already, with an overlap of {has} s: wait until 'flotilla ca status' shows that it \
                 is over, or give a shorter --overlap to shorten it"
            );
            Err(Status::new(Reason::Conflict, message))
        }
    }
}

/// The fingerprint of the authority that a rotation leads to.
fn next(spec: &ClusterSpec, rotation: &CaRotation) -> Result<String, Status> {
    let pem = if rotation.phase == CaPhase::Spread { &rotation.ca_certificate } else { &spec.ca_certificate };
    Ok(hex(&fingerprint(&certificate(pem)?)))
}

/// What the nodes say of themselves, as this replica has it.
fn holders(store: &Store, members: &Members) -> Result<Vec<Holder>, flotilla_raft::ReadError> {
    let liveness = members.liveness().borrow().clone();
    let listing = store.range(Range::prefix(Builtin::Node.collection().prefix()))?;
    let nodes = listing.items.iter().filter_map(|kv| serde_json::from_slice::<Value>(&kv.value).ok());
    let holders = nodes.map(|node| {
        let annotation = |name: &str| node["metadata"]["annotations"][name].as_str().map(str::to_owned);
        let name = node["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        Holder {
            dead: liveness.get(&name).is_some_and(|one| one.state == Liveness::Dead),
            trusts: annotation(TRUSTED_CAS_ANNOTATION)
                .iter()
                .flat_map(|all| all.split(','))
                .map(str::to_owned)
                .collect(),
            certified_by: annotation(CA_ANNOTATION),
            name,
        }
    });
    Ok(holders.collect())
}

/// Carries on a rotation for as long as this node leads.
pub async fn lead(store: &Store, members: &Members, term: u64) {
    loop {
        if let Err(status) = advance(store, members, term).await {
            debug!(error = status.message, "the replacement of the authority does not go on now");
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn advance(store: &Store, members: &Members, term: u64) -> Result<(), Status> {
    let Some(stored) = store.get(&Trust::cluster_key()).map_err(gate::read_status)? else { return Ok(()) };
    let mut cluster: ClusterObject = object::decode(&stored.value, stored.mod_revision).map_err(Status::internal)?;
    let Some(rotation) = cluster.spec.rotation.take() else { return Ok(()) };
    let next = next(&cluster.spec, &rotation)?;
    let now = Timestamp::now();
    match step(&rotation, &next, &holders(store, members).map_err(gate::read_status)?, now) {
        Step::Wait { .. } => return Ok(()),
        Step::Sign => sign_from_now_on(&mut cluster.spec, rotation, now)?,
        Step::Drop => drop_the_old(&mut cluster.spec, &rotation),
    }
    let encoded = object::encode(&cluster).map_err(Status::internal)?;
    let change = Change::new("system:flotilla", MANAGER).update(stored.key, stored.mod_revision, encoded);
    store.propose(Change { term: Some(term), ..change }).await.map_err(gate::propose_status)?;
    info!(
        authority = next,
        over = cluster.spec.rotation.is_none(),
        "the replacement of the authority has gone a step on"
    );
    Ok(())
}

/// The new authority takes the old one's place, which stays trusted.
fn sign_from_now_on(spec: &mut ClusterSpec, rotation: CaRotation, now: Timestamp) -> Result<(), Status> {
    let sealed = rotation.sealed_ca.clone().ok_or_else(|| Status::internal("the new authority has no key"))?;
    let old = std::mem::replace(&mut spec.ca_certificate, rotation.ca_certificate.clone());
    spec.sealed_ca = sealed;
    let phase_since = Time(now);
    spec.rotation =
        Some(CaRotation { phase: CaPhase::Renew, phase_since, ca_certificate: old, sealed_ca: None, ..rotation });
    Ok(())
}

fn drop_the_old(spec: &mut ClusterSpec, rotation: &CaRotation) {
    spec.rotation = None;
    let since = rotation.phase_since.0.saturating_sub(CLOCK_SLACK).unwrap_or(Timestamp::MIN);
    spec.revoked_users.retain(|_, revoked| revoked.0 > since);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlap_that_runs_is_only_ever_shortened() {
        let mut running = CaRotation {
            phase: CaPhase::Renew,
            started_at: Time(Timestamp::UNIX_EPOCH),
            phase_since: Time(Timestamp::UNIX_EPOCH),
            overlap_seconds: 60,
            ca_certificate: String::new(),
            sealed_ca: None,
            bridge: String::new(),
        };
        for refused in [None, Some(60), Some(61)] {
            let status = shorten(&mut running, refused.map(Duration::from_secs)).unwrap_err();
            assert!(status.message.contains("overlap of 60 s") && status.message.contains("shorter"), "{status:?}");
        }
        shorten(&mut running, Some(Duration::ZERO)).unwrap();
        assert_eq!(running.overlap_seconds, 0);
    }
}
