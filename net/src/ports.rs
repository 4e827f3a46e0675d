//! What the network asks of the rest of the daemon: who handles a protocol, who may join, who may renew.

use std::net::SocketAddr;

use async_trait::async_trait;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::certificate::Fingerprint;
use crate::identity::{Identity, IdentityError, NodeKey};
use crate::names::{ClusterId, NodeId};
use crate::record::AddressRecord;
use crate::seal::SealKey;
use crate::token::{TokenId, TokenSecret};

/// Who called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInfo {
    pub id: NodeId,
    pub name: String,
    pub address: SocketAddr,
}

/// Answers calls of one protocol. Each call is a stream of its own, and is dropped when its connection has ended for some
/// seconds or this node shuts down.
#[async_trait]
pub trait Handler: Send + Sync {
    async fn handle(&self, peer: PeerInfo, send: quinn::SendStream, recv: quinn::RecvStream);
}

/// A request that is not granted, and why: one line, which the requester's user reads.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub String);

/// A machine that wants to become a node. Nothing in it has been checked but its bounds.
#[derive(Debug, Clone)]
pub struct JoinRequest {
    pub token_id: TokenId,
    pub secret: TokenSecret,
    pub name: String,
    pub id: NodeId,
    /// PKCS #10, DER. The same machine that asks again, because an answer was lost, sends the same.
    pub csr: Vec<u8>,
    /// Where the machine says it will listen.
    pub addresses: Vec<SocketAddr>,
    pub version: String,
    /// Whether it is willing to hold a replica.
    pub replica: bool,
    /// Where the request came from.
    pub remote: SocketAddr,
}

/// A member, as a machine that joins is told of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub id: NodeId,
    pub name: String,
    /// SHA-256 of its public key.
    pub key: Option<Fingerprint>,
    pub record: Option<AddressRecord>,
}

/// What a machine that joins is given.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JoinGrant {
    pub cluster: ClusterId,
    /// The node's certificate, DER.
    pub certificate: Vec<u8>,
    /// The cluster's authorities, DER.
    pub authorities: Vec<Vec<u8>>,
    /// What leads to the authority that signs from the one that it replaces, DER.
    pub bridges: Vec<Vec<u8>>,
    /// For replicas.
    pub seal_key: Option<SealKey>,
    pub members: Vec<Member>,
}

/// Decides on joins. Asked on the node that the machine happened to reach.
#[async_trait]
pub trait Admission: Send + Sync {
    async fn admit(&self, request: JoinRequest) -> Result<JoinGrant, Refusal>;
}

/// A member that wants its next certificate. It has proved that it holds the key of `key_fingerprint`, that this key was
/// certified for this node before, and it is listed and not revoked.
#[derive(Debug, Clone)]
pub struct RenewRequest {
    pub id: NodeId,
    pub name: String,
    /// PKCS #10, DER, of the same key.
    pub csr: Vec<u8>,
    pub key_fingerprint: Fingerprint,
    /// The addresses of the node's own record.
    pub addresses: Vec<SocketAddr>,
}

/// A member's next certificate.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RenewGrant {
    /// DER.
    pub certificate: Vec<u8>,
    /// The cluster's authorities, DER.
    pub authorities: Vec<Vec<u8>>,
    /// What leads to the authority that signs from the one that it replaces, DER.
    pub bridges: Vec<Vec<u8>>,
    /// As of when the signer knows the authorities: higher is later.
    pub revision: u64,
}

impl RenewGrant {
    /// The identity of `key` with what was granted, if that fits together.
    pub fn into_identity(self, key: NodeKey) -> Result<Identity, IdentityError> {
        let certificates = |all: Vec<Vec<u8>>| all.into_iter().map(CertificateDer::from).collect();
        let identity = Identity::new(key, CertificateDer::from(self.certificate), certificates(self.authorities))?;
        identity.with_bridges(certificates(self.bridges))
    }
}

/// Signs renewals. A node asks its own first, then those of others.
#[async_trait]
pub trait Renewal: Send + Sync {
    async fn renew(&self, request: RenewRequest) -> Result<RenewGrant, Refusal>;
}
