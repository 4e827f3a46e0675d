//! Who is believed in a TLS handshake. TLS 1.3 only, one crypto provider, no session resumption: every connection proves
//! both sides anew, so that a removed node or a changed authority counts at once.
//!
//! Nodes are addressed by id, not by host name: the name asked for is `node-ID.flotilla`, and the certificate must carry
//! that id and this cluster.
//!
//! Invariant: a certificate of another cluster, of another authority or past its time never completes a handshake.

use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError as TlsCertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error,
    PeerIncompatible, RootCertStore, ServerConfig, SignatureScheme,
};

use crate::alpn::Alpn;
use crate::certificate::{Fingerprint, NodeSubject, Subject, fingerprint, root_store, verify_chain};
use crate::credentials::Credentials;
use crate::names::{ClusterId, NodeId};

const NODE_NAME_PREFIX: &str = "node-";
const NODE_NAME_SUFFIX: &str = ".flotilla";

/// The one crypto provider.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider())).clone()
}

/// The name under which a node is asked for.
pub(crate) fn server_name(id: NodeId) -> String {
    format!("{NODE_NAME_PREFIX}{id}{NODE_NAME_SUFFIX}")
}

fn asked_id(name: &ServerName<'_>) -> Option<NodeId> {
    let ServerName::DnsName(name) = name else { return None };
    name.as_ref().strip_prefix(NODE_NAME_PREFIX)?.strip_suffix(NODE_NAME_SUFFIX)?.parse().ok()
}

/// Whether a client of the TCP port must show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    Required,
    /// It may; without one, the caller is nobody until it proves otherwise in another way.
    Optional,
}

/// What gRPC over TCP serves with. `protocols` are the names to negotiate, as `h2`.
pub fn server_tls(
    credentials: &Arc<Credentials>,
    protocols: &[&str],
    auth: ClientAuth,
) -> Result<Arc<ServerConfig>, Error> {
    let mut config = server_config(credentials, auth)?;
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    Ok(Arc::new(config))
}

/// What another node's TCP port is called with, as this node.
pub fn client_tls(credentials: &Arc<Credentials>, protocols: &[&str]) -> Result<Arc<ClientConfig>, Error> {
    let verifier = Arc::new(Judged(Nodes::any(credentials)));
    let mut config = client_builder()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(Own(credentials.clone())));
    finish_client(&mut config, protocols.iter().map(|name| name.as_bytes().to_vec()).collect());
    Ok(Arc::new(config))
}

/// What a person's command line calls a node's TCP port with: any node of the cluster of `authorities` will do, under
/// whatever address it was reached.
pub fn user_tls(
    authorities: &[CertificateDer<'static>],
    certificate: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    protocols: &[&str],
) -> Result<Arc<ClientConfig>, Error> {
    let roots = root_store(authorities).map_err(|error| Error::General(error.to_string()))?;
    let mut config = client_builder()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Judged(AnyNode(roots))))
        .with_client_auth_cert(certificate, key)?;
    finish_client(&mut config, protocols.iter().map(|name| name.as_bytes().to_vec()).collect());
    Ok(Arc::new(config))
}

/// What the QUIC port serves with. A certificate is asked for, not demanded: the router demands it where the protocol does.
pub(crate) fn quic_server(credentials: &Arc<Credentials>) -> Result<ServerConfig, Error> {
    let mut config = server_config(credentials, ClientAuth::Optional)?;
    config.alpn_protocols = Alpn::ALL.into_iter().map(Alpn::to_vec).collect();
    Ok(config)
}

/// What `alpn` is dialled with at a node that is listed under `key`. To protocols that admit strangers, this node comes as
/// one; and since it may have slept through a change of authorities, it then goes by the key alone.
pub(crate) fn quic_client(
    credentials: &Arc<Credentials>,
    alpn: Alpn,
    key: Option<Fingerprint>,
) -> Result<ClientConfig, Error> {
    let nodes = Nodes { credentials: credentials.clone(), key, by_key_alone: alpn.admits_strangers() };
    let builder = client_builder()?.dangerous().with_custom_certificate_verifier(Arc::new(Judged(nodes)));
    let mut config = if alpn.admits_strangers() {
        builder.with_no_client_auth()
    } else {
        builder.with_client_cert_resolver(Arc::new(Own(credentials.clone())))
    };
    finish_client(&mut config, vec![alpn.to_vec()]);
    Ok(config)
}

/// What a machine that holds a token dials with: it knows the authority's fingerprint and the cluster, and nothing more.
pub(crate) fn quic_join(authority: Fingerprint, cluster: ClusterId) -> Result<ClientConfig, Error> {
    let mut config = client_builder()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Judged(Pinned { authority, cluster })))
        .with_no_client_auth();
    finish_client(&mut config, vec![Alpn::Join.to_vec()]);
    Ok(config)
}

fn server_config(credentials: &Arc<Credentials>, auth: ClientAuth) -> Result<ServerConfig, Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(Clients { credentials: credentials.clone(), auth }))
        .with_cert_resolver(Arc::new(Own(credentials.clone())));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn client_builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, Error> {
    ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&rustls::version::TLS13])
}

fn finish_client(config: &mut ClientConfig, protocols: Vec<Vec<u8>>) {
    config.alpn_protocols = protocols;
    config.resumption = Resumption::disabled();
    // A node's id is nobody's business on the way.
    config.enable_sni = false;
}

/// This node's certificate, on either side of a handshake.
#[derive(Debug)]
struct Own(Arc<Credentials>);

impl ResolvesServerCert for Own {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.current().certified.clone())
    }
}

impl ResolvesClientCert for Own {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.current().certified.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// How a verifier checks signatures in a handshake: as the crypto provider does, and those of TLS 1.3 only.
macro_rules! tls13_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _cert: &CertificateDer<'_>,
            _dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let algorithms = &provider().signature_verification_algorithms;
            rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            provider().signature_verification_algorithms.supported_schemes()
        }
    };
}

/// Callers: anyone whom our authorities have certified. What they may do is decided after the handshake.
#[derive(Debug)]
struct Clients {
    credentials: Arc<Credentials>,
    auth: ClientAuth,
}

impl ClientCertVerifier for Clients {
    fn client_auth_mandatory(&self) -> bool {
        self.auth == ClientAuth::Required
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.credentials.current().clients.verify_client_cert(end_entity, intermediates, now)
    }

    tls13_signatures!();
}

/// How a verifier of servers judges a chain.
trait Judge: std::fmt::Debug + Send + Sync {
    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error>;
}

/// Turns a judge into the library's verifier.
#[derive(Debug)]
struct Judged<J>(J);

impl<J: Judge> ServerCertVerifier for Judged<J> {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.0.judge(end_entity, intermediates, server_name, now).map(|()| ServerCertVerified::assertion())
    }

    tls13_signatures!();
}

/// Nodes of this node's cluster: exactly the one that was asked for by id, or any where an address was asked for.
#[derive(Debug)]
struct Nodes {
    credentials: Arc<Credentials>,
    /// The key under which the node is listed.
    key: Option<Fingerprint>,
    /// Whether holding that key is enough, whoever certified it, and however long ago.
    by_key_alone: bool,
}

impl Nodes {
    fn any(credentials: &Arc<Credentials>) -> Self {
        Nodes { credentials: credentials.clone(), key: None, by_key_alone: false }
    }
}

impl Judge for Nodes {
    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        let current = self.credentials.current();
        if self.key.is_none() || !self.by_key_alone {
            verify_chain(leaf, chain, &current.roots, now)?;
        }
        let (node, subject) = Subject::node_of(leaf).map_err(|_| wrong_name())?;
        let asked = asked_id(name).is_none_or(|id| id == node.id);
        let listed = self.key.is_none_or(|key| key == subject.key_fingerprint);
        if asked && listed && node.cluster == current.identity.cluster() { Ok(()) } else { Err(wrong_name()) }
    }
}

/// Any node under the given authorities.
#[derive(Debug)]
struct AnyNode(RootCertStore);

impl Judge for AnyNode {
    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        verify_chain(leaf, chain, &self.0, now)?;
        node_of(leaf).map(|_| ())
    }
}

/// A node of the token's cluster, certified by the very authority that the token pins. One that only says that it is of the
/// cluster fails with an alert of its own: the pinned authority may have been replaced.
#[derive(Debug)]
struct Pinned {
    authority: Fingerprint,
    cluster: ClusterId,
}

impl Judge for Pinned {
    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        let unknown = || Error::InvalidCertificate(TlsCertificateError::UnknownIssuer);
        let Some(pinned) = chain.iter().find(|certificate| fingerprint(certificate) == self.authority) else {
            let ours = node_of(leaf).is_ok_and(|node| node.cluster == self.cluster);
            return Err(if ours { Error::InvalidCertificate(TlsCertificateError::Revoked) } else { unknown() });
        };
        let authority = pinned.clone().into_owned();
        let roots = root_store(&[authority]).map_err(|_| unknown())?;
        verify_chain(leaf, chain, &roots, now)?;
        if node_of(leaf)?.cluster == self.cluster { Ok(()) } else { Err(wrong_name()) }
    }
}

fn node_of(leaf: &CertificateDer<'_>) -> Result<NodeSubject, Error> {
    Subject::node_of(leaf).map(|(node, _)| node).map_err(|_| wrong_name())
}

fn wrong_name() -> Error {
    Error::InvalidCertificate(TlsCertificateError::NotValidForName)
}
