//! Reading certificates: who a peer is, until when, and whether an authority of ours says so.
//!
//! A node is `CN=system:node:NAME, O=system:nodes` with `flotilla://CLUSTER/node/ID` among its alternative names. A user
//! is `CN=USER` with a group an `O`, as in Kubernetes.
//!
//! Invariant: a certificate is a node's only by its alternative name, which no request may choose.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest;
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::ParsedCertificate;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

use crate::names::{ClusterId, NodeId, check_node_name};

/// A certificate begins to be valid so much before it is made, for machines whose clocks are behind.
pub(crate) const BACKDATE: Duration = Duration::from_secs(300);

/// How the users begin that nodes are; the node's name follows.
pub const NODE_USER_PREFIX: &str = "system:node:";
/// The group that nodes are in.
pub const NODE_GROUP: &str = "system:nodes";

/// The largest certificate that is read.
pub(crate) const MAX_CERTIFICATE_BYTES: usize = 16 * 1024;

#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum CertificateError {
    #[error("the certificate cannot be read: {0}")]
    Malformed(&'static str),
    #[error("the certificate does not name a node")]
    NotANode,
    #[error("the certificate was not signed by this cluster's authority, or is expired: {0}")]
    Untrusted(String),
}

/// SHA-256 of a certificate's or a public key's bytes.
pub type Fingerprint = [u8; 32];

pub fn fingerprint(der: &[u8]) -> Fingerprint {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, der).as_ref());
    out
}

/// The node that a certificate names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSubject {
    pub cluster: ClusterId,
    pub id: NodeId,
    pub name: String,
}

/// What a certificate says. Reading it proves nothing; whoever trusts it has checked its chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// The user's name (`CN`).
    pub user: String,
    /// The user's groups (each an `O`).
    pub groups: Vec<String>,
    /// The node, where the certificate is a node's.
    pub node: Option<NodeSubject>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    /// SHA-256 of the public key's `SubjectPublicKeyInfo`.
    pub key_fingerprint: Fingerprint,
    /// The public key as the signature algorithm takes it.
    pub(crate) public_key: Vec<u8>,
}

impl Subject {
    pub fn of(der: &[u8]) -> Result<Self, CertificateError> {
        let certificate = parse(der)?;
        let user = one_common_name(&certificate)?;
        let groups = certificate
            .subject()
            .iter_organization()
            .map(|o| o.as_str().map(str::to_string))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| CertificateError::Malformed("an organization is not text"))?;
        let node = match node_uri(&certificate)? {
            Some((cluster, id)) => Some(NodeSubject { cluster, id, name: node_name(&user)? }),
            None => None,
        };
        Ok(Subject {
            user,
            groups,
            node,
            not_before: system_time(certificate.validity().not_before)?,
            not_after: system_time(certificate.validity().not_after)?,
            key_fingerprint: fingerprint(certificate.public_key().raw),
            public_key: certificate.public_key().subject_public_key.data.to_vec(),
        })
    }

    /// The node of a certificate that must be a node's.
    pub fn node_of(der: &[u8]) -> Result<(NodeSubject, Subject), CertificateError> {
        let subject = Subject::of(der)?;
        let node = subject.node.clone().ok_or(CertificateError::NotANode)?;
        Ok((node, subject))
    }

    /// Whether the user is called like a node, or is in the nodes' group.
    pub(crate) fn claims_a_node(&self) -> bool {
        self.user.starts_with(NODE_USER_PREFIX) || self.groups.iter().any(|group| group == NODE_GROUP)
    }

    /// When the certificate was made.
    pub fn issued(&self) -> SystemTime {
        self.not_before + BACKDATE
    }

    /// When the certificate is to be renewed: at two thirds of its life.
    pub fn renew_at(&self) -> SystemTime {
        self.issued() + self.lifetime() * 2 / 3
    }

    /// From when it was made to its end.
    pub fn lifetime(&self) -> Duration {
        self.not_after.duration_since(self.issued()).unwrap_or_default()
    }
}

/// The URI that makes a certificate a node's.
pub(crate) fn node_uri_text(cluster: ClusterId, id: NodeId) -> String {
    format!("flotilla://{cluster}/node/{id}")
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, CertificateError> {
    if der.len() > MAX_CERTIFICATE_BYTES {
        return Err(CertificateError::Malformed("it is too large"));
    }
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(CertificateError::Malformed("bytes follow it")),
        Err(_) => Err(CertificateError::Malformed("it is not X.509")),
    }
}

/// Who signed an authority's certificate, by its own account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Issuer {
    Itself,
    Another,
}

pub(crate) fn issuer_of(authority: &[u8]) -> Result<Issuer, CertificateError> {
    let certificate = parse(authority)?;
    let itself = certificate.issuer().as_raw() == certificate.subject().as_raw();
    Ok(if itself { Issuer::Itself } else { Issuer::Another })
}

fn one_common_name(certificate: &X509Certificate<'_>) -> Result<String, CertificateError> {
    let mut names = certificate.subject().iter_common_name();
    match (names.next().map(|name| name.as_str()), names.next()) {
        (Some(Ok(name)), None) => Ok(name.to_string()),
        _ => Err(CertificateError::Malformed("it has no single common name")),
    }
}

fn node_name(user: &str) -> Result<String, CertificateError> {
    let name = user.strip_prefix(NODE_USER_PREFIX).ok_or(CertificateError::NotANode)?;
    check_node_name(name).map_err(|_| CertificateError::NotANode)?;
    Ok(name.to_string())
}

fn node_uri(certificate: &X509Certificate<'_>) -> Result<Option<(ClusterId, NodeId)>, CertificateError> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| CertificateError::Malformed("its alternative names cannot be read"))?;
    let uris: Vec<&str> = names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
        .filter(|uri| uri.starts_with("flotilla://"))
        .collect();
    match uris.as_slice() {
        [] => Ok(None),
        [uri] => parse_node_uri(uri).map(Some).ok_or(CertificateError::NotANode),
        _ => Err(CertificateError::Malformed("it names more than one node")),
    }
}

fn parse_node_uri(uri: &str) -> Option<(ClusterId, NodeId)> {
    let (cluster, id) = uri.strip_prefix("flotilla://")?.split_once("/node/")?;
    let parsed = (cluster.parse().ok()?, id.parse().ok()?);
    // One spelling a node: "+7" and "007" are not 7.
    (node_uri_text(parsed.0, parsed.1) == uri).then_some(parsed)
}

fn system_time(time: ASN1Time) -> Result<SystemTime, CertificateError> {
    let seconds = u64::try_from(time.timestamp()).map_err(|_| CertificateError::Malformed("it is from before 1970"))?;
    Ok(UNIX_EPOCH + Duration::from_secs(seconds))
}

/// A set of authorities as the TLS library takes them.
pub(crate) fn root_store(authorities: &[CertificateDer<'static>]) -> Result<RootCertStore, CertificateError> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority.clone()).map_err(|_| CertificateError::Malformed("an authority cannot be read"))?;
    }
    Ok(roots)
}

/// Checks that `leaf` may serve and was signed by one of `roots`, at the time `now`.
pub(crate) fn verify_chain(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &RootCertStore,
    now: UnixTime,
) -> Result<(), rustls::Error> {
    let algorithms = crate::tls::provider().signature_verification_algorithms.all;
    let parsed = ParsedCertificate::try_from(leaf)?;
    rustls::client::verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, algorithms)
}

/// Checks that `leaf` is a node's and was signed by one of `roots`, whether or not it has expired since: for those whose
/// membership is asserted elsewhere.
pub(crate) fn verify_node_despite_age(
    leaf: &[u8],
    roots: &RootCertStore,
) -> Result<(NodeSubject, Subject), CertificateError> {
    let (node, subject) = Subject::node_of(leaf)?;
    let issued = subject.issued().duration_since(UNIX_EPOCH).unwrap_or_default();
    verify_chain(&CertificateDer::from(leaf), &[], roots, UnixTime::since_unix_epoch(issued))
        .map_err(|error| CertificateError::Untrusted(error.to_string()))?;
    Ok((node, subject))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_uri_has_one_spelling() {
        let cluster = ClusterId::generate();
        let uri = node_uri_text(cluster, 7);
        assert_eq!(parse_node_uri(&uri), Some((cluster, 7)));
        for id in ["07", "+7", "-1", "", "7/", "99999999999999999999999"] {
            assert_eq!(parse_node_uri(&format!("flotilla://{cluster}/node/{id}")), None, "{id}");
        }
        assert_eq!(parse_node_uri("flotilla://x/node/7"), None);
    }

    #[test]
    fn bytes_that_are_no_certificate_are_refused() {
        assert!(matches!(Subject::of(&[]), Err(CertificateError::Malformed(_))));
        assert!(matches!(Subject::of(&vec![0x30; MAX_CERTIFICATE_BYTES + 1]), Err(CertificateError::Malformed(_))));
    }
}
