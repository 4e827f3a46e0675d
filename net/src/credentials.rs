//! The identity in use. Everything that makes or checks a handshake looks here at that moment, so that a renewed
//! certificate or a changed set of authorities needs no restart and breaks no open connection.
//!
//! Invariant: an exchange never changes cluster, id or name.

use std::sync::{Arc, PoisonError, RwLock};

use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;

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
pub struct Credentials(RwLock<Arc<Current>>);

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
        Ok(Arc::new(Credentials(RwLock::new(Arc::new(Current::new(identity)?)))))
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
        let next = Arc::new(Current::new(identity)?);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }

    pub(crate) fn current(&self) -> Arc<Current> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Current {
    fn new(identity: Identity) -> Result<Self, CredentialsError> {
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&identity.key().to_der())
            .map_err(CredentialsError::Key)?;
        // Authorities follow the certificate, so that a machine which joins finds the one that its token pins.
        let chain = std::iter::once(identity.certificate()).chain(identity.authorities()).cloned().collect();
        let roots = Arc::new(root_store(identity.authorities())?);
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider()).build()?;
        Ok(Current { certified: Arc::new(CertifiedKey::new(chain, key)), identity: Arc::new(identity), roots, clients })
    }
}
