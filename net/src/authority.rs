//! The cluster's certificate authority. Every replica can open it, so that any of them may admit a node.
//!
//! Invariant: of a request it takes the public key and nothing else; every name in a certificate is the caller's.
//! Invariant: its key leaves this module sealed only.

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::PublicKeyData as _;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
    PKCS_ED25519, PKCS_RSA_SHA256, PKCS_RSA_SHA384, PKCS_RSA_SHA512, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};

use crate::certificate::{
    BACKDATE, CertificateError, Fingerprint, NODE_GROUP, NODE_USER_PREFIX, fingerprint, node_uri_text,
};
use crate::codec::{self, CodecError};
use crate::names::{ClusterId, NameError, NodeId, check_node_name};
use crate::seal::{SealError, SealKey};
use crate::subject::with_groups;

/// How long a new authority lives.
pub const AUTHORITY_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// How long a node's certificate lives where nothing else is configured.
pub const NODE_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);

/// The shortest life of a certificate.
pub const MIN_LIFETIME: Duration = Duration::from_secs(60);

/// The longest life of a certificate.
pub const MAX_LIFETIME: Duration = Duration::from_secs(20 * 365 * 24 * 3600);

/// The largest certificate request that is read.
pub const MAX_REQUEST_BYTES: usize = 8 * 1024;

/// An RSA key that is longer has 2048 bits at least.
const MIN_RSA_BYTES: usize = 256;
const MAX_SEALED_BYTES: usize = 64 * 1024;
const MAX_USER_BYTES: usize = 253;
const MAX_GROUPS: usize = 32;
const MAX_ADDRESSES: usize = 16;
const MAX_SERVING_NAMES: usize = 64;
const SEAL_CONTEXT: &[u8] = b"flotilla/authority";

#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("the certificate request is not valid: {0}")]
    Request(String),
    #[error(
        "the key in the request is neither ECDSA P-256 or P-384 nor Ed25519, nor a client's RSA of 2048 bits at least"
    )]
    Algorithm,
    #[error("a certificate lives {} s at least and {} s at most", MIN_LIFETIME.as_secs(), MAX_LIFETIME.as_secs())]
    Lifetime,
    #[error("this machine's clock is not set")]
    Clock,
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(
        "a user's name or group has 1 to {MAX_USER_BYTES} bytes without control characters, and there are at most {MAX_GROUPS} groups"
    )]
    User,
    #[error("the name {0} is kept for nodes")]
    Reserved(String),
    #[error("a certificate cannot be made")]
    Certificate(#[from] rcgen::Error),
    #[error("a certificate that was made cannot be read back")]
    Unreadable(#[from] CertificateError),
    #[error("the sealed authority cannot be opened")]
    Sealed(#[from] SealError),
    #[error("the sealed authority cannot be read")]
    Codec(#[from] CodecError),
}

/// What a sealed authority holds.
#[derive(Serialize, Deserialize)]
struct Contents {
    cluster: ClusterId,
    certificate: Vec<u8>,
    key_pkcs8: Vec<u8>,
}

/// The authority, able to sign.
pub struct Authority {
    cluster: ClusterId,
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authority({})", self.cluster)
    }
}

impl Authority {
    /// A new authority for `cluster`, valid from `now` for [`AUTHORITY_LIFETIME`].
    pub fn create(cluster: ClusterId, now: SystemTime) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let params = authority_params(cluster, 1, now)?;
        let certificate = params.self_signed(&key)?.der().clone();
        Ok(Authority { cluster, certificate, issuer: Issuer::new(params, key) })
    }

    /// A new authority for the same cluster, and the bridge to it: its certificate as this one signs it. Through the bridge,
    /// whoever trusts this authority believes the new one.
    pub fn succeed(&self, now: SystemTime) -> Result<(Self, CertificateDer<'static>), AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let params = authority_params(self.cluster, 1, now)?;
        let certificate = params.self_signed(&key)?.der().clone();
        let mut bridge = authority_params(self.cluster, 0, now)?;
        bridge.distinguished_name = params.distinguished_name.clone();
        let bridge = bridge.signed_by(&key, &self.issuer)?.der().clone();
        Ok((Authority { cluster: self.cluster, certificate, issuer: Issuer::new(params, key) }, bridge))
    }

    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The authority's own certificate, which everyone may see.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// What tokens pin.
    pub fn fingerprint(&self) -> Fingerprint {
        fingerprint(&self.certificate)
    }

    /// The authority in an envelope that may be replicated.
    pub fn seal(&self, key: &SealKey) -> Result<Vec<u8>, AuthorityError> {
        let contents = Contents {
            cluster: self.cluster,
            certificate: self.certificate.to_vec(),
            key_pkcs8: self.issuer.key().serialize_der(),
        };
        Ok(key.seal(&codec::encode(&contents)?, SEAL_CONTEXT))
    }

    /// The authority out of the envelope that [`Authority::seal`] made.
    pub fn unseal(key: &SealKey, envelope: &[u8]) -> Result<Self, AuthorityError> {
        let contents: Contents = codec::decode_within::<_, MAX_SEALED_BYTES>(&key.open(envelope, SEAL_CONTEXT)?)?;
        let certificate = CertificateDer::from(contents.certificate);
        let pair = KeyPair::try_from(&PrivatePkcs8KeyDer::from(contents.key_pkcs8))?;
        let issuer = Issuer::from_ca_cert_der(&certificate, pair)?;
        Ok(Authority { cluster: contents.cluster, certificate, issuer })
    }

    /// A certificate for the node `id`, which may serve under `addresses` and its name, and may call others.
    pub fn sign_node(
        &self,
        csr_der: &[u8],
        node: &NodeNames<'_>,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<CertificateDer<'static>, AuthorityError> {
        check_node_name(node.name)?;
        let mut request = read_request(csr_der, false, lifetime, now)?;
        let params = &mut request.params;
        params.distinguished_name = name(&format!("{NODE_USER_PREFIX}{}", node.name), Some(NODE_GROUP));
        params.subject_alt_names = self.node_alt_names(node)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        Ok(request.signed_by(&self.issuer)?.der().clone())
    }

    /// A certificate for a person or a program that calls the cluster.
    pub fn sign_client(
        &self,
        csr_der: &[u8],
        user: &str,
        groups: &[String],
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<CertificateDer<'static>, AuthorityError> {
        check_user(user, groups)?;
        let mut request = read_request(csr_der, true, lifetime, now)?;
        request.params.distinguished_name = name(user, groups.first().map(String::as_str));
        request.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = request.signed_by(&self.issuer)?.der().clone();
        if groups.len() < 2 {
            return Ok(certificate);
        }
        with_groups(&certificate, user, groups, self.issuer.key())
    }

    /// A certificate that a node's own servers show, and that nobody can call the cluster with.
    pub fn sign_serving(
        &self,
        csr_der: &[u8],
        node: &str,
        names: &ServingNames<'_>,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<CertificateDer<'static>, AuthorityError> {
        check_node_name(node)?;
        if names.dns.len() + names.addresses.len() > MAX_SERVING_NAMES {
            return Err(AuthorityError::Request(format!("more than {MAX_SERVING_NAMES} alternative names")));
        }
        if let Some(dns) = names.dns.iter().find(|dns| stands_for_api(dns)) {
            return Err(AuthorityError::Request(format!("{dns:?} is, or covers, a name of the API")));
        }
        if let Some(address) = names.addresses.iter().find(|address| address.is_loopback()) {
            return Err(AuthorityError::Request(format!("{address} is no address of one node")));
        }
        let mut request = read_request(csr_der, true, lifetime, now)?;
        let params = &mut request.params;
        params.distinguished_name = name(&format!("{NODE_USER_PREFIX}{node}"), Some(NODE_GROUP));
        for dns in names.dns {
            params.subject_alt_names.push(SanType::DnsName(Ia5String::try_from(dns.as_str())?));
        }
        params.subject_alt_names.extend(names.addresses.iter().map(|address| SanType::IpAddress(*address)));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        Ok(request.signed_by(&self.issuer)?.der().clone())
    }

    fn node_alt_names(&self, node: &NodeNames<'_>) -> Result<Vec<SanType>, AuthorityError> {
        let mut names = vec![
            SanType::URI(Ia5String::try_from(node_uri_text(self.cluster, node.id))?),
            SanType::DnsName(Ia5String::try_from(node.name)?),
        ];
        for address in ["127.0.0.1", "::1"] {
            names.extend(address.parse().map(SanType::IpAddress));
        }
        for api in API_NAMES {
            names.push(SanType::DnsName(Ia5String::try_from(api)?));
        }
        names.extend(node.addresses.iter().take(MAX_ADDRESSES).map(|address| SanType::IpAddress(*address)));
        Ok(names)
    }
}

/// What every node's API is called: by clients on the machine itself, and by pods.
const API_NAMES: [&str; 5] =
    ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"];

/// Whether who has a certificate for the name could pass for the API.
fn stands_for_api(name: &str) -> bool {
    let name = name.trim_end_matches('.');
    let under = name.strip_prefix("*.");
    API_NAMES.iter().any(|api| {
        let parent = api.split_once('.').map(|(_, parent)| parent);
        name.eq_ignore_ascii_case(api) || under.zip(parent).is_some_and(|(one, other)| one.eq_ignore_ascii_case(other))
    })
}

/// What a node is called in its certificate.
#[derive(Debug, Clone, Copy)]
pub struct NodeNames<'a> {
    pub id: NodeId,
    pub name: &'a str,
    /// Addresses under which clients that check them (`kubectl`) may reach the node; other nodes go by its id.
    pub addresses: &'a [IpAddr],
}

/// What a node's own servers are reached by.
#[derive(Debug, Clone, Copy)]
pub struct ServingNames<'a> {
    pub dns: &'a [String],
    pub addresses: &'a [IpAddr],
}

/// The clocks of machines that a certificate can be made on: from 1970 to 9000.
const LATEST_CLOCK: Duration = Duration::from_secs(7000 * 365 * 24 * 3600);

/// Each authority of a cluster has a name of its own, so that it is found by what it signed.
fn authority_params(cluster: ClusterId, path_length: u8, now: SystemTime) -> Result<CertificateParams, AuthorityError> {
    let mut suffix = [0; 4];
    crate::random::fill(&mut suffix);
    let mut params = blank_params(now, AUTHORITY_LIFETIME)?;
    params.distinguished_name = name(&format!("flotilla {cluster} {:08x}", u32::from_be_bytes(suffix)), None);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    Ok(params)
}

fn blank_params(now: SystemTime, lifetime: Duration) -> Result<CertificateParams, AuthorityError> {
    if !(MIN_LIFETIME..=MAX_LIFETIME).contains(&lifetime) {
        return Err(AuthorityError::Lifetime);
    }
    match now.duration_since(UNIX_EPOCH) {
        Ok(since) if (BACKDATE..LATEST_CLOCK).contains(&since) => {}
        _ => return Err(AuthorityError::Clock),
    }
    let mut serial = [0; 16];
    crate::random::fill(&mut serial);
    // Positive and of full length, whatever came out.
    serial[0] = serial[0] & 0x7f | 0x40;
    let mut params = CertificateParams::default();
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + lifetime).into();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// The key of a request, with blank parameters around it.
fn read_request(
    csr_der: &[u8],
    takes_rsa: bool,
    lifetime: Duration,
    now: SystemTime,
) -> Result<CertificateSigningRequestParams, AuthorityError> {
    if csr_der.len() > MAX_REQUEST_BYTES {
        return Err(AuthorityError::Request(format!("larger than {MAX_REQUEST_BYTES} bytes")));
    }
    let mut request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr_der))
        .map_err(|error| AuthorityError::Request(error.to_string()))?;
    let curves = [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519];
    let algorithm = request.public_key.algorithm();
    // Of an RSA key only the number is large: it has the length of the whole.
    let rsa = [&PKCS_RSA_SHA256, &PKCS_RSA_SHA384, &PKCS_RSA_SHA512].contains(&algorithm)
        && request.public_key.der_bytes().len() > MIN_RSA_BYTES;
    if !(curves.contains(&algorithm) || rsa && takes_rsa) {
        return Err(AuthorityError::Algorithm);
    }
    request.params = blank_params(now, lifetime)?;
    request.params.is_ca = IsCa::ExplicitNoCa;
    request.params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    if rsa {
        // What older clients still do with it.
        request.params.key_usages.push(KeyUsagePurpose::KeyEncipherment);
    }
    Ok(request)
}

fn check_user(user: &str, groups: &[String]) -> Result<(), AuthorityError> {
    let valid = |text: &str| !text.is_empty() && text.len() <= MAX_USER_BYTES && !text.chars().any(char::is_control);
    if !valid(user) || groups.len() > MAX_GROUPS || !groups.iter().all(|group| valid(group)) {
        return Err(AuthorityError::User);
    }
    let reserved = |text: &str| text.starts_with(NODE_USER_PREFIX) || text == NODE_GROUP;
    match std::iter::once(user).chain(groups.iter().map(String::as_str)).find(|text| reserved(text)) {
        Some(text) => Err(AuthorityError::Reserved(text.to_string())),
        None => Ok(()),
    }
}

fn name(common_name: &str, organization: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    if let Some(organization) = organization {
        name.push(DnType::OrganizationName, organization);
    }
    name.push(DnType::CommonName, common_name);
    name
}

#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(input: &[u8]) {
    _ = read_request(input, true, NODE_LIFETIME, SystemTime::UNIX_EPOCH + NODE_LIFETIME);
}
