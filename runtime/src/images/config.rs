//! What an operator says about registries, and the bounds on what they may send.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;

/// How registries are reached.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistryConfig {
    /// By the registry's host as it stands in image names: `docker.io`, `registry.lan:5000`.
    pub hosts: BTreeMap<String, HostConfig>,
    pub connect_timeout_ms: u64,
    /// A registry that sends nothing for this long has failed.
    pub stall_timeout_ms: u64,
    pub limits: Limits,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self { hosts: BTreeMap::new(), connect_timeout_ms: 10_000, stall_timeout_ms: 30_000, limits: Limits::default() }
    }
}

/// One registry or mirror.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HostConfig {
    /// Asked first, in this order: `https://mirror.lan`, `http://10.0.0.1:5000/prefix`. How a mirror is
    /// reached is said under its own host.
    pub mirrors: Vec<String>,
    /// Speak plain HTTP. Nothing else allows it, not even a loopback address.
    pub insecure_http: bool,
    pub credentials: Option<Credentials>,
    /// PEM certificates that are trusted beside the system's.
    pub ca_file: Option<PathBuf>,
}

/// Who we are to a registry.
#[derive(Clone, PartialEq, Eq, Hash, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum Credentials {
    Basic {
        username: String,
        password: String,
    },
    /// Sent as it is, as a bearer token.
    Token {
        token: String,
    },
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Credentials::Basic { username, .. } => write!(f, "Basic({username})"),
            Credentials::Token { .. } => f.write_str("Token"),
        }
    }
}

/// Bounds on what an image may cost; each is an error beyond it.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// One compressed layer.
    pub blob_bytes: u64,
    /// The contents of one unpacked layer.
    pub unpacked_bytes: u64,
    /// Files, directories and so on in one layer.
    pub entries: u64,
    /// Left free on the file system by unpacking.
    pub free_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { blob_bytes: 32 << 30, unpacked_bytes: 64 << 30, entries: 2_000_000, free_bytes: 64 << 20 }
    }
}
