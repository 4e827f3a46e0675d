//! Somebody who is not of the cluster, and tries each door.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use flotilla_net::{Alpn, Authority, ClusterId, Identity, NODE_LIFETIME, provider};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, Endpoint};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PATIENCE: Duration = Duration::from_secs(5);
const MAX_ANSWER_BYTES: usize = 64 << 10;
/// A frame with a body that no protocol knows.
const GREETING: &[u8] = b"\0\0\0\x05hello";
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// What the outsider shows when it is asked who it is.
pub enum Papers {
    None,
    /// A node's key and certificate.
    Node(Box<Identity>),
}

impl Papers {
    /// A node's certificate that another cluster's authority signed.
    ///
    /// # Panics
    /// If keys cannot be made.
    #[must_use]
    pub fn foreign(name: &str) -> Self {
        let now = SystemTime::now();
        let authority = Authority::create(ClusterId::generate(), now).expect("an authority can be made");
        let identity = Identity::issue(&authority, 77, name, &[], NODE_LIFETIME, now);
        Self::Node(Box::new(identity.expect("an identity can be issued")))
    }

    fn tls(&self, protocol: &str) -> ClientConfig {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider knows TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(BelievesAll));
        let mut config = match self {
            Self::None => builder.with_no_client_auth(),
            Self::Node(identity) => {
                let key = PrivateKeyDer::from_pem_slice(identity.key().to_pem().as_bytes()).expect("keys are PEM");
                let chain = vec![identity.certificate().clone(), identity.authorities()[0].clone()];
                builder.with_client_auth_cert(chain, key).expect("key and certificate fit")
            }
        };
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        config
    }
}

/// Dials a node's UDP port for one protocol, says something, and returns what comes back.
///
/// # Errors
/// How it was turned away.
pub async fn knock_quic(at: SocketAddr, alpn: Alpn, papers: &Papers) -> Result<Vec<u8>, String> {
    let endpoint = endpoint(alpn, papers)?;
    let talk = async {
        let connecting = endpoint.connect(at, "flotilla").map_err(|error| error.to_string())?;
        let connection = connecting.await.map_err(|error| error.to_string())?;
        let exchange = async {
            let (mut send, mut receive) = connection.open_bi().await.map_err(|error| error.to_string())?;
            send.write_all(GREETING).await.map_err(|error| error.to_string())?;
            send.finish().map_err(|error| error.to_string())?;
            receive.read_to_end(MAX_ANSWER_BYTES).await.map_err(|error| error.to_string())
        };
        // The reason for closing says more than what it did to a stream.
        exchange.await.map_err(|error| connection.close_reason().map_or(error, |reason| reason.to_string()))
    };
    let answer = tokio::time::timeout(PATIENCE, talk).await.map_err(|_| "silence".to_owned())?;
    endpoint.close(0_u8.into(), b"");
    answer
}

/// Dials a node's UDP port for one protocol and says nothing. What comes back is to be held.
///
/// # Errors
/// How it was turned away.
pub async fn hold_quic(at: SocketAddr, alpn: Alpn, papers: &Papers) -> Result<(Endpoint, Connection), String> {
    let endpoint = endpoint(alpn, papers)?;
    let connecting = endpoint.connect(at, "flotilla").map_err(|error| error.to_string())?;
    let connection = tokio::time::timeout(PATIENCE, connecting).await.map_err(|_| "silence".to_owned())?;
    connection.map(|connection| (endpoint, connection)).map_err(|error| error.to_string())
}

/// What so many clients send first, caught on a socket that does not answer.
///
/// # Panics
/// If there are no sockets.
pub async fn first_packets(count: usize) -> Vec<Vec<u8>> {
    let deaf = tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket");
    let at = deaf.local_addr().expect("it is bound");
    let mut packets = BTreeMap::new();
    while packets.len() < count {
        let mut packet = vec![0; 2048];
        tokio::select! {
            held = hold_quic(at, Alpn::Rpc, &Papers::None) => drop(held),
            received = deaf.recv(&mut packet) => packet.truncate(received.expect("loopback works")),
        }
        // By connection id: what is sent again is not counted, nor what is said on giving up.
        packets.entry(packet[6..14].to_vec()).or_insert(packet);
    }
    packets.into_values().collect()
}

fn endpoint(alpn: Alpn, papers: &Papers) -> Result<Endpoint, String> {
    let crypto = QuicClientConfig::try_from(papers.tls(alpn.as_str())).map_err(|error| error.to_string())?;
    let mut endpoint = Endpoint::client((Ipv4Addr::UNSPECIFIED, 0).into()).map_err(|error| error.to_string())?;
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
    Ok(endpoint)
}

/// Dials a node's TCP port, speaks HTTP/2, and returns what comes back.
///
/// # Errors
/// How it was turned away.
pub async fn knock_tcp(at: SocketAddr, papers: &Papers) -> Result<Vec<u8>, String> {
    let connector = tokio_rustls::TlsConnector::from(Arc::new(papers.tls("h2")));
    let talk = async {
        let stream = tokio::net::TcpStream::connect(at).await?;
        let name = ServerName::try_from("flotilla").expect("this is a name");
        let mut stream = connector.connect(name, stream).await?;
        stream.write_all(HTTP2_PREFACE).await?;
        let mut answer = vec![0; MAX_ANSWER_BYTES];
        let length = stream.read(&mut answer).await?;
        answer.truncate(length);
        std::io::Result::Ok(answer)
    };
    let answer = tokio::time::timeout(PATIENCE, talk).await.map_err(|_| "silence".to_owned())?;
    answer.map_err(|error| error.to_string())
}

/// An outsider cannot know the cluster's authority, and wants to be let in whoever answers.
#[derive(Debug)]
struct BelievesAll;

impl ServerCertVerifier for BelievesAll {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
