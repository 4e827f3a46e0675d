//! Where a node is found. Addresses change, ids do not; so each node signs a record of its own addresses, and whoever
//! hears of it can pass it on without being believed.
//!
//! Invariant: of two records of a node the one with the higher sequence counts.
//! Invariant: a record is believed only if the node itself signed it, with a key that the cluster's authority certified.

use std::net::SocketAddr;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rustls::RootCertStore;
use serde::{Deserialize, Serialize};

use crate::certificate::{CertificateError, MAX_CERTIFICATE_BYTES, verify_node_despite_age};
use crate::codec::{self, CodecError};
use crate::identity::{Identity, IdentityError};
use crate::names::{ClusterId, NodeId};

/// The most addresses in a record.
pub const MAX_ADDRESSES: usize = 8;

const MAX_SIGNATURE_BYTES: usize = 128;
const DOMAIN: &[u8] = b"flotilla/address/1";

#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("a record holds at most {MAX_ADDRESSES} addresses")]
    Addresses,
    #[error("the record is too large")]
    TooLarge,
    #[error("the record's certificate is another node's or another cluster's")]
    OtherNode,
    #[error("the record was not signed by the node that it names")]
    Signature,
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error("the record cannot be signed")]
    Sign(#[from] IdentityError),
    #[error("the record cannot be encoded")]
    Codec(#[from] CodecError),
}

/// A node's addresses, signed by the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressRecord {
    body: Body,
    certificate: Vec<u8>,
    signature: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Body {
    cluster: ClusterId,
    id: NodeId,
    name: String,
    addresses: Vec<SocketAddr>,
    sequence: u64,
}

impl AddressRecord {
    /// The record of this node itself.
    pub fn sign(identity: &Identity, addresses: &[SocketAddr], sequence: u64) -> Result<Self, RecordError> {
        if addresses.len() > MAX_ADDRESSES {
            return Err(RecordError::Addresses);
        }
        let body = Body {
            cluster: identity.cluster(),
            id: identity.id(),
            name: identity.name().to_string(),
            addresses: addresses.to_vec(),
            sequence,
        };
        let signature = identity.key().sign(&signed_bytes(&body)?)?;
        Ok(AddressRecord { body, certificate: identity.certificate().to_vec(), signature })
    }

    pub fn id(&self) -> NodeId {
        self.body.id
    }

    pub fn name(&self) -> &str {
        &self.body.name
    }

    /// The UDP addresses of the node's port, best first.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.body.addresses
    }

    /// The node's certificate, DER, as of when the record was signed.
    pub(crate) fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    pub fn sequence(&self) -> u64 {
        self.body.sequence
    }

    /// Checks everything that the record claims. The age of its certificate does not matter: whether the node is a member
    /// is decided elsewhere.
    pub(crate) fn verify(&self, cluster: ClusterId, roots: &RootCertStore) -> Result<(), RecordError> {
        if self.body.addresses.len() > MAX_ADDRESSES {
            return Err(RecordError::Addresses);
        }
        if self.certificate.len() > MAX_CERTIFICATE_BYTES || self.signature.len() > MAX_SIGNATURE_BYTES {
            return Err(RecordError::TooLarge);
        }
        let (node, subject) = verify_node_despite_age(&self.certificate, roots)?;
        let same = node.cluster == cluster && self.body.cluster == cluster && node.id == self.body.id;
        if !same || node.name != self.body.name {
            return Err(RecordError::OtherNode);
        }
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &subject.public_key)
            .verify(&signed_bytes(&self.body)?, &self.signature)
            .map_err(|_| RecordError::Signature)
    }

    /// Whether the node signed these addresses with the certificate of `identity`.
    pub(crate) fn is_current(&self, identity: &Identity, addresses: &[SocketAddr]) -> bool {
        self.certificate == identity.certificate().as_ref() && self.body.addresses == addresses
    }
}

fn signed_bytes(body: &Body) -> Result<Vec<u8>, CodecError> {
    Ok([DOMAIN, &codec::encode(body)?].concat())
}
