//! A client that keeps no rules: any protocol name, any certificate or none, and no check of the server.

#![allow(dead_code)] // Each test file uses its own part.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use flotilla_net::*;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{PrivatePkcs8KeyDer, ServerName, UnixTime, pem::PemObject};

use super::PATIENCE;

/// A key with a certificate for it.
pub type Shown = (NodeKey, CertificateDer<'static>);

pub struct Raw {
    endpoint: Endpoint,
}

impl Raw {
    pub fn new() -> Raw {
        Raw { endpoint: Endpoint::client("127.0.0.1:0".parse().expect("an address")).expect("a socket") }
    }

    pub async fn connect(
        &self,
        to: SocketAddr,
        alpn: &str,
        shown: Option<&Shown>,
    ) -> Result<Connection, ConnectionError> {
        let builder = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Credulous));
        let mut tls = match shown {
            Some((key, certificate)) => {
                let key = PrivatePkcs8KeyDer::from_pem_slice(key.to_pem().as_bytes()).expect("a key");
                builder.with_client_auth_cert(vec![certificate.clone()], key.into()).expect("fits")
            }
            None => builder.with_no_client_auth(),
        };
        // An empty name offers no protocol at all.
        tls.alpn_protocols =
            [alpn].iter().filter(|alpn| !alpn.is_empty()).map(|alpn| alpn.as_bytes().to_vec()).collect();
        let config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).expect("a suite")));
        self.endpoint.connect_with(config, to, "anyone").expect("a configuration").await
    }

    /// Connects, opens a stream, writes, and returns why the server ended it and all that it sent.
    pub async fn refused(&self, to: SocketAddr, alpn: &str, shown: Option<&Shown>) -> String {
        let connection = match self.connect(to, alpn, shown).await {
            Ok(connection) => connection,
            Err(error) => return error.to_string(),
        };
        // The server may close before any of this comes about.
        if let Ok((mut send, mut recv)) = connection.open_bi().await {
            let _ = write_frame(&mut send, &[0; 64]).await;
            let got = tokio::time::timeout(PATIENCE, recv.read_to_end(1024)).await.expect("is ended");
            assert!(!matches!(&got, Ok(bytes) if !bytes.is_empty()), "{alpn} answered a stranger: {got:?}");
        }
        assert!(connection.accept_uni().await.is_err(), "{alpn} sent a stranger something");
        tokio::time::timeout(PATIENCE, connection.closed()).await.expect("is closed").to_string()
    }

    pub async fn stop(self) {
        self.endpoint.close(0_u32.into(), b"");
        let _ = tokio::time::timeout(Duration::from_secs(1), self.endpoint.wait_idle()).await;
    }
}

#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
