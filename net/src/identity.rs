//! Who this node is: its key, its certificate and the authorities it trusts, kept in one file.
//!
//! The file holds PEM in this order: private key, the node's certificate, then authorities, each signed by itself, and
//! bridges, signed by another. Cluster, id and name are read out of the certificate and stand nowhere else.
//!
//! A bridge is an authority's certificate signed by the authority before it. Whoever still trusts only that one believes
//! this node through the bridge, while an authority is being replaced.
//!
//! Invariant: key, certificate and authorities change together or not at all.
//! Invariant: an `Identity` is consistent: the certificate is a node's, of this key, signed by one of the authorities.

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::authority::{Authority, AuthorityError, NodeNames};
use crate::certificate::{
    CertificateError, Fingerprint, Issuer, NodeSubject, Subject, fingerprint, issuer_of, root_store,
    verify_node_despite_age,
};
use crate::files;
use crate::names::{ClusterId, NodeId};

const FILE: &str = "identity.pem";
const MAX_FILE_BYTES: u64 = 256 * 1024;
const MAX_AUTHORITIES: usize = 8;

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("the identity file cannot be used")]
    Io(#[from] io::Error),
    #[error("the identity file is damaged: {0}")]
    File(&'static str),
    #[error("a key cannot be made or read")]
    Key(#[from] rcgen::Error),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error("the certificate belongs to another key")]
    OtherKey,
    #[error("there are no authorities, or more than {MAX_AUTHORITIES}")]
    Authorities,
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

/// A key pair (ECDSA P-256). It is never shown and leaves memory only into the identity file.
#[derive(Clone)]
pub struct NodeKey(Arc<KeyPair>);

impl std::fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NodeKey")
    }
}

impl NodeKey {
    pub fn generate() -> Result<Self, IdentityError> {
        Ok(NodeKey(Arc::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)))
    }

    /// A request to certify this key (PKCS #10, DER). It names nobody: the authority decides on names.
    pub fn request(&self) -> Result<Vec<u8>, IdentityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        Ok(params.serialize_request(&*self.0)?.der().to_vec())
    }

    /// SHA-256 of the public key, as [`Subject::key_fingerprint`].
    pub fn fingerprint(&self) -> Fingerprint {
        fingerprint(&self.0.subject_public_key_info())
    }

    /// The private key as PEM, for a person's client certificate.
    pub fn to_pem(&self) -> String {
        self.0.serialize_pem()
    }

    /// The key that [`NodeKey::to_pem`] wrote.
    pub fn from_pem(text: &str) -> Result<Self, IdentityError> {
        let key =
            PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes()).map_err(|_| IdentityError::File("no private key"))?;
        Ok(NodeKey(Arc::new(KeyPair::try_from(&key)?)))
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, IdentityError> {
        Ok(rcgen::SigningKey::sign(&*self.0, message)?)
    }

    pub(crate) fn to_der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.0.serialize_der()))
    }
}

/// This node, as it proves itself to others.
#[derive(Debug, Clone)]
pub struct Identity {
    key: NodeKey,
    certificate: CertificateDer<'static>,
    authorities: Vec<CertificateDer<'static>>,
    bridges: Vec<CertificateDer<'static>>,
    node: NodeSubject,
    subject: Subject,
}

impl Identity {
    /// Puts together what was issued, and refuses what does not fit together. An expired certificate fits: it renews.
    pub fn new(
        key: NodeKey,
        certificate: CertificateDer<'static>,
        authorities: Vec<CertificateDer<'static>>,
    ) -> Result<Self, IdentityError> {
        if authorities.is_empty() || authorities.len() > MAX_AUTHORITIES {
            return Err(IdentityError::Authorities);
        }
        let (node, subject) = verify_node_despite_age(&certificate, &root_store(&authorities)?)?;
        if subject.key_fingerprint != key.fingerprint() {
            return Err(IdentityError::OtherKey);
        }
        Ok(Identity { key, certificate, authorities, bridges: Vec::new(), node, subject })
    }

    /// The same, and shows `bridges` to others.
    pub fn with_bridges(self, bridges: Vec<CertificateDer<'static>>) -> Result<Self, IdentityError> {
        if bridges.len() > MAX_AUTHORITIES {
            return Err(IdentityError::Authorities);
        }
        for bridge in &bridges {
            issuer_of(bridge)?;
        }
        Ok(Identity { bridges, ..self })
    }

    /// A new key with a certificate by `authority`: how the first node of a cluster gets its identity.
    pub fn issue(
        authority: &Authority,
        id: NodeId,
        name: &str,
        addresses: &[IpAddr],
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Self, IdentityError> {
        let key = NodeKey::generate()?;
        let names = NodeNames { id, name, addresses };
        let certificate = authority.sign_node(&key.request()?, &names, lifetime, now)?;
        Identity::new(key, certificate, vec![authority.certificate().clone()])
    }

    pub fn cluster(&self) -> ClusterId {
        self.node.cluster
    }

    pub fn id(&self) -> NodeId {
        self.node.id
    }

    pub fn name(&self) -> &str {
        &self.node.name
    }

    pub fn key(&self) -> &NodeKey {
        &self.key
    }

    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The authorities that this node trusts.
    pub fn authorities(&self) -> &[CertificateDer<'static>] {
        &self.authorities
    }

    /// Certificates that lead from an authority that is being replaced to the one that signs.
    pub fn bridges(&self) -> &[CertificateDer<'static>] {
        &self.bridges
    }

    /// The authority that signed the certificate.
    pub fn issuer(&self) -> Option<&CertificateDer<'static>> {
        self.authorities.iter().find(|authority| {
            let alone = root_store(std::slice::from_ref(*authority));
            alone.is_ok_and(|alone| verify_node_despite_age(&self.certificate, &alone).is_ok())
        })
    }

    /// What the certificate says: validity, renewal, key.
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// The authorities as PEM, for clients.
    pub fn authorities_pem(&self) -> String {
        self.authorities.iter().map(|authority| certificate_pem(authority)).collect()
    }

    /// Keeps the identity in `dir` (made if missing, for the owner alone).
    pub fn store(&self, dir: &Path) -> Result<(), IdentityError> {
        let bridges: String = self.bridges.iter().map(|bridge| certificate_pem(bridge)).collect();
        let text = [self.key.to_pem(), certificate_pem(&self.certificate), self.authorities_pem(), bridges].concat();
        Ok(files::write_private(dir, FILE, text.as_bytes())?)
    }

    /// The identity that [`Identity::store`] kept in `dir`, if there is one.
    pub fn load(dir: &Path) -> Result<Option<Self>, IdentityError> {
        let Some(bytes) = files::read_bounded(&dir.join(FILE), MAX_FILE_BYTES)? else { return Ok(None) };
        let key = PrivatePkcs8KeyDer::from_pem_slice(&bytes).map_err(|_| IdentityError::File("no private key"))?;
        let key = NodeKey(Arc::new(KeyPair::try_from(&key)?));
        let mut certificates = CertificateDer::pem_slice_iter(&bytes)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| IdentityError::File("a certificate cannot be read"))?;
        if certificates.is_empty() {
            return Err(IdentityError::File("no certificate"));
        }
        let certificate = certificates.remove(0);
        let (mut authorities, mut bridges) = (Vec::new(), Vec::new());
        for one in certificates {
            if issuer_of(&one)? == Issuer::Itself { authorities.push(one) } else { bridges.push(one) }
        }
        Identity::new(key, certificate, authorities)?.with_bridges(bridges).map(Some)
    }
}

/// A certificate as PEM (RFC 7468).
pub fn certificate_pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = more;
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}
