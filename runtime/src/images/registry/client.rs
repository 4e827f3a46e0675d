//! HTTP clients for registries, one a host.
//!
//! Invariant: a client for a host that is not marked insecure follows no redirect to plain HTTP.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use reqwest::Url;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::super::config::{Credentials, HostConfig, RegistryConfig};
use super::super::error::{PullError, chain};
use super::super::reference::Reference;
use super::Source;

/// Where the registry called `docker.io` really is.
const DOCKER_HUB: &str = "registry-1.docker.io";
const REDIRECTS_MAX: usize = 5;
const CLIENTS_MAX: usize = 256;
const IDLE_CONNECTION_MS: u64 = 30_000;

/// Finds the places that an image can be pulled from, and how to speak with each.
pub struct Registries {
    config: RegistryConfig,
    clients: Mutex<HashMap<String, reqwest::Client>>,
}

impl Registries {
    pub fn new(config: RegistryConfig) -> Self {
        Self { config, clients: Mutex::new(HashMap::new()) }
    }

    /// Mirrors first, in their order, then the registry itself. `credentials` are the caller's own for
    /// the registry and are not shown to mirrors.
    pub fn sources(&self, reference: &Reference, credentials: Option<&Credentials>) -> Result<Vec<Source>, PullError> {
        let registry = reference.registry();
        let host = self.host(registry);
        let mut sources = Vec::new();
        for mirror in &host.mirrors {
            sources.push(self.mirror(registry, mirror, reference.repository())?);
        }
        let address = if registry == "docker.io" { DOCKER_HUB } else { registry };
        let scheme = if host.insecure_http { "http" } else { "https" };
        let base = format!("{scheme}://{address}");
        let credentials = credentials.or(host.credentials.as_ref()).cloned();
        sources.push(self.source(registry, base, reference.repository(), credentials)?);
        Ok(sources)
    }

    fn mirror(&self, registry: &str, mirror: &str, repository: &str) -> Result<Source, PullError> {
        let bad = |detail: &str| PullError::Configuration {
            host: registry.to_owned(),
            detail: format!("mirror {mirror:?} {detail}"),
        };
        let url: Url = mirror.parse().map_err(|_| bad("is not a URL"))?;
        let name = match (url.host_str(), url.port()) {
            (Some(host), Some(port)) => format!("{host}:{port}"),
            (Some(host), None) => host.to_owned(),
            (None, _) => return Err(bad("has no host")),
        };
        match url.scheme() {
            "https" => {}
            "http" if self.host(&name).insecure_http => {}
            "http" => return Err(bad("is plain HTTP, which its host is not configured for (insecure_http)")),
            _ => return Err(bad("is neither https:// nor http://")),
        }
        let credentials = self.host(&name).credentials;
        self.source(&name, mirror.trim_end_matches('/').to_owned(), repository, credentials)
    }

    fn source(
        &self,
        host: &str,
        base: String,
        repository: &str,
        credentials: Option<Credentials>,
    ) -> Result<Source, PullError> {
        Ok(Source {
            host: host.to_owned(),
            base,
            repository: repository.to_owned(),
            client: self.client(host)?,
            insecure_http: self.host(host).insecure_http,
            stall_timeout: Duration::from_millis(self.config.stall_timeout_ms),
            credentials,
            authorization: Default::default(),
        })
    }

    fn host(&self, name: &str) -> HostConfig {
        self.config.hosts.get(name).cloned().unwrap_or_default()
    }

    fn client(&self, host: &str) -> Result<reqwest::Client, PullError> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(host) {
            return Ok(client.clone());
        }
        let client = self.build(host).map_err(|detail| PullError::Configuration { host: host.to_owned(), detail })?;
        if clients.len() >= CLIENTS_MAX {
            clients.clear();
        }
        clients.insert(host.to_owned(), client.clone());
        Ok(client)
    }

    fn build(&self, host: &str) -> Result<reqwest::Client, String> {
        let config = self.host(host);
        let insecure_http = config.insecure_http;
        let redirects = reqwest::redirect::Policy::custom(move |attempt| {
            if attempt.previous().len() > REDIRECTS_MAX {
                return attempt.error("too many redirects");
            }
            match attempt.url().scheme() {
                "https" => attempt.follow(),
                "http" if insecure_http => attempt.follow(),
                _ => attempt.error("redirect to plain HTTP"),
            }
        });
        reqwest::Client::builder()
            .tls_backend_preconfigured(tls(config.ca_file.as_deref())?)
            .https_only(!insecure_http)
            .redirect(redirects)
            .connect_timeout(Duration::from_millis(self.config.connect_timeout_ms))
            .pool_idle_timeout(Duration::from_millis(IDLE_CONNECTION_MS))
            .user_agent(concat!("flotilla/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| chain(&error))
    }
}

fn tls(ca_file: Option<&Path>) -> Result<rustls::ClientConfig, String> {
    let mut roots = system_roots().clone();
    if let Some(path) = ca_file {
        let bad = |error: rustls::pki_types::pem::Error| format!("ca_file {}: {error}", path.display());
        let mut count = 0;
        for certificate in CertificateDer::pem_file_iter(path).map_err(bad)? {
            roots.add(certificate.map_err(bad)?).map_err(|error| format!("ca_file {}: {error}", path.display()))?;
            count += 1;
        }
        if count == 0 {
            return Err(format!("ca_file {} holds no certificate", path.display()));
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// The certificates that this machine trusts, read once.
fn system_roots() -> &'static RootCertStore {
    static ROOTS: OnceLock<RootCertStore> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(%error, "a certificate of this machine cannot be read");
        }
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(found.certs);
        roots
    })
}
