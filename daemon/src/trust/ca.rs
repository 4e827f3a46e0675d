//! The cluster's authorities as the store has them, and this node's obedience to them: it trusts those that are to be
//! trusted, holds a certificate of the one that signs, and says so on its Node.
//!
//! Invariant: this node changes what it trusts only after a quorum has confirmed what it read. One that was off during a
//! rotation would otherwise go back to what it knew.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use flotilla_api::admit::Subresource;
use flotilla_api::kinds::cluster::{self, CaPhase, ClusterObject};
use flotilla_api::{Builtin, Key, Reason, Status, object};
use flotilla_net::{Authority, CertificateDer, Fingerprint, Identity, fingerprint};
use flotilla_raft::{Range, WatchItem};
use rustls::pki_types::pem::PemObject;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::{MANAGER, Trust, chain, hex};
use crate::gate::{self, User, WriteOptions};
use crate::members::{CA_ANNOTATION, TRUSTED_CAS_ANNOTATION};

/// How long to wait before something that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How often the authorities are looked at besides when they change.
const LOOK: Duration = Duration::from_secs(30);

/// Who signs and who is trusted.
pub(super) struct Authorities {
    pub signer: Authority,
    /// The signer first.
    pub trusted: Vec<CertificateDer<'static>>,
    /// What leads to the signer from the authority that it replaces.
    pub bridges: Vec<CertificateDer<'static>>,
    /// As of which change of the store.
    pub revision: u64,
    /// The authority that will sign.
    heir: Option<Authority>,
}

impl Authorities {
    /// The authority that stays when a rotation is over: for what is to live longer.
    pub fn lasting(&self) -> &Authority {
        self.heir.as_ref().unwrap_or(&self.signer)
    }
}

impl Trust {
    pub(super) fn cluster_key() -> Key {
        Key::new(&Builtin::Cluster.collection(), "", cluster::NAME)
    }

    /// The cluster, from this replica's state.
    pub(super) fn cluster_object(&self) -> Result<ClusterObject, Status> {
        self.cluster_as_of().map(|(cluster, _)| cluster)
    }

    /// The same, with the revision of its last change.
    fn cluster_as_of(&self) -> Result<(ClusterObject, u64), Status> {
        let stored = self.gate.store().get(&Self::cluster_key()).map_err(gate::read_status)?;
        let stored = stored.ok_or_else(|| {
            Status::new(Reason::ServiceUnavailable, "this node has not caught up with its cluster yet; try again")
        })?;
        let cluster = object::decode(&stored.value, stored.mod_revision).map_err(Status::internal)?;
        Ok((cluster, stored.mod_revision))
    }

    /// The authorities, from this replica's state.
    pub(super) fn authorities(&self) -> Result<Authorities, Status> {
        let unseal = |sealed: &[u8]| Authority::unseal(&self.seal_key, sealed).map_err(Status::internal);
        let (ClusterObject { spec, .. }, revision) = self.cluster_as_of()?;
        let signer = unseal(&spec.sealed_ca.0)?;
        let trusted = vec![signer.certificate().clone()];
        let mut all = Authorities { signer, trusted, bridges: Vec::new(), revision, heir: None };
        if let Some(rotation) = &spec.rotation {
            all.trusted.push(certificate(&rotation.ca_certificate)?);
            match rotation.phase {
                CaPhase::Spread => {
                    all.heir = rotation.sealed_ca.as_ref().map(|sealed| unseal(&sealed.0)).transpose()?
                }
                CaPhase::Renew => all.bridges.push(certificate(&rotation.bridge)?),
            }
        }
        Ok(all)
    }

    /// Lets the network know whose certificates were revoked, as far as this replica knows.
    pub fn tell_revoked_users(&self) {
        let users: BTreeMap<String, SystemTime> = match self.cluster_object() {
            Ok(cluster) => {
                cluster.spec.revoked_users.into_iter().map(|(user, at)| (user, SystemTime::from(at.0))).collect()
            }
            Err(status) => return debug!(error = status.message, "the revoked users are not known yet"),
        };
        self.net.set_revoked_users(users);
    }

    /// Follows the authorities until `stop`.
    pub async fn follow(&self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.keep_up() => {}
        }
    }

    async fn keep_up(&self) {
        let store = self.gate.store();
        let prefix = Builtin::Cluster.collection().prefix();
        loop {
            let revision = match self.catch_up(&prefix).await {
                Ok(revision) => revision,
                Err(status) => {
                    debug!(error = status.message, "the authorities cannot be followed now");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            };
            let Ok(mut watch) = store.watch(&prefix, revision + 1).await else {
                tokio::time::sleep(RETRY).await;
                continue;
            };
            _ = tokio::time::timeout(LOOK, async {
                while matches!(watch.next().await, Some(WatchItem::Progress(_))) {}
            })
            .await;
        }
    }

    /// Does what the store says about authorities and revoked users, and returns as of which revision.
    async fn catch_up(&self, prefix: &str) -> Result<u64, Status> {
        self.tell_revoked_users();
        self.gate.store().barrier().await.map_err(gate::read_status)?;
        let revision = self.gate.store().range(Range::prefix(prefix)).map_err(gate::read_status)?.revision;
        self.tell_revoked_users();
        let wanted = self.authorities()?;
        let identity = self.net.credentials().identity();
        if let Some(next) = self.obedient(&identity, &wanted)? {
            info!(
                signer = short(&wanted.signer.fingerprint()),
                trusted = wanted.trusted.len(),
                "following the authorities"
            );
            self.net.replace_identity(next).await.map_err(Status::internal)?;
        }
        self.report(&wanted).await?;
        Ok(revision)
    }

    /// The identity that this node should have instead of `identity`, if another.
    fn obedient(&self, identity: &Identity, wanted: &Authorities) -> Result<Option<Identity>, Status> {
        let failed = |error: flotilla_net::IdentityError| Status::internal(chain(&error));
        let certified = identity.issuer() == Some(wanted.signer.certificate());
        if certified && identity.authorities() == wanted.trusted && identity.bridges() == wanted.bridges {
            return Ok(None);
        }
        let key = identity.key().clone();
        if certified {
            let next = Identity::new(key, identity.certificate().clone(), wanted.trusted.clone()).map_err(failed)?;
            return next.with_bridges(wanted.bridges.clone()).map_err(failed).map(Some);
        }
        let addresses = self.net.own_record().map(|record| record.addresses().to_vec()).unwrap_or_default();
        let request = key.request().map_err(failed)?;
        let granted = self.sign(identity.id(), identity.name(), &request, &addresses);
        let granted = granted.map_err(|refusal| Status::internal(refusal.0))?;
        granted.into_identity(key).map_err(failed).map(Some)
    }

    /// Says on this node's Node whom it trusts and who certified it: the leader waits for that.
    async fn report(&self, wanted: &Authorities) -> Result<(), Status> {
        let own = self.members.own_name();
        let trusted: Vec<String> = wanted.trusted.iter().map(|one| hex(&fingerprint(one))).collect();
        let (signer, trusted) = (hex(&wanted.signer.fingerprint()), trusted.join(","));
        let kind = self.gate.built_in(Builtin::Node)?;
        let options = WriteOptions::by(MANAGER);
        let edit = |node: &mut serde_json::Value| {
            if !node["metadata"]["annotations"].is_object() {
                node["metadata"]["annotations"] = json!({});
            }
            node["metadata"]["annotations"][CA_ANNOTATION] = json!(signer);
            node["metadata"]["annotations"][TRUSTED_CAS_ANNOTATION] = json!(trusted);
            Ok(())
        };
        self.gate.update(&User::node(own), &kind, ("", own), Subresource::None, &options, edit).await.map(|_| ())
    }
}

/// The certificate in a PEM text of the store.
pub(super) fn certificate(pem: &str) -> Result<CertificateDer<'static>, Status> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| Status::internal(format!("a stored certificate cannot be read: {error}")))
}

/// Enough of a fingerprint to tell authorities apart in a log.
fn short(fingerprint: &Fingerprint) -> String {
    hex(&fingerprint[..8])
}
