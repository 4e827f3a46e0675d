//! The identity in use. Everything that makes or checks a handshake looks here at that moment, so that a renewed
//! certificate or a changed set of authorities needs no restart and breaks no open connection.
//!
//! Invariant: an exchange never changes cluster, id or name.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use tokio::sync::watch;

use crate::certificate::{CertificateError, root_store};
use crate::identity::Identity;
use crate::tls::provider;

#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    #[error("the new identity is another node's")]
    OtherNode,
    #[error("the identity's key cannot sign")]
    Key(#[source] rustls::Error),
    #[error(transparent)]
    Authorities(#[from] CertificateError),
    #[error("the authorities cannot be used")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// A cell that holds the identity in use.
#[derive(Debug)]
pub struct Credentials(watch::Sender<Arc<Current>>);

/// The identity, prepared for handshakes.
#[derive(Debug)]
pub(crate) struct Current {
    pub(crate) identity: Arc<Identity>,
    pub(crate) certified: Arc<CertifiedKey>,
    pub(crate) roots: Arc<RootCertStore>,
    pub(crate) clients: Arc<dyn ClientCertVerifier>,
}

impl Credentials {
    pub fn new(identity: Identity) -> Result<Arc<Self>, CredentialsError> {
        Ok(Arc::new(Credentials(watch::Sender::new(Arc::new(Current::new(identity)?)))))
    }

    /// The identity in use.
    pub fn identity(&self) -> Arc<Identity> {
        self.current().identity.clone()
    }

    /// Uses `identity` from the next handshake on.
    pub fn replace(&self, identity: Identity) -> Result<(), CredentialsError> {
        let held = self.identity();
        let same = held.cluster() == identity.cluster() && held.id() == identity.id() && held.name() == identity.name();
        if !same {
            return Err(CredentialsError::OtherNode);
        }
        self.0.send_replace(Arc::new(Current::new(identity)?));
        Ok(())
    }

    pub(crate) fn current(&self) -> Arc<Current> {
        self.0.borrow().clone()
    }

    /// Wakes with every exchange.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Current>> {
        self.0.subscribe()
    }

    /// Whether the authorities in use stand behind `chain` at this moment, which is of a caller, its own certificate first.
    pub(crate) fn vouch_for(&self, chain: &[CertificateDer<'_>]) -> Result<(), rustls::Error> {
        let (leaf, rest) = chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
        self.current().clients.verify_client_cert(leaf, rest, UnixTime::now()).map(|_| ())
    }
}

impl Current {
    fn new(identity: Identity) -> Result<Self, CredentialsError> {
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&identity.key().to_der())
            .map_err(CredentialsError::Key)?;
        // Authorities follow the certificate, so that a machine which joins finds the one that its token pins.
        let behind = identity.authorities().iter().chain(identity.bridges());
        let chain = std::iter::once(identity.certificate()).chain(behind).cloned().collect();
        let roots = Arc::new(root_store(identity.authorities())?);
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider()).build()?;
        Ok(Current { certified: Arc::new(CertifiedKey::new(chain, key)), identity: Arc::new(identity), roots, clients })
    }
}
