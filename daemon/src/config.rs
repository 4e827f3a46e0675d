//! The daemon's configuration: a TOML file, then `FLOTILLA_*` variables, then flags, each stronger than the one before.
//!
//! Invariant: a key that nobody knows is an error that names it and its source.

use std::collections::BTreeMap;
use std::io::{BufRead, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use anyhow::Context;
use flotilla_api::names;
use flotilla_net::{MAX_LIFETIME, MAX_TOKEN_BYTES, MIN_LIFETIME, NODE_LIFETIME, Token};
use flotilla_raft::membership::MAX_REPLICAS;
use serde::{Deserialize, Serialize};

use crate::members::NO_REPLICA_LABEL;

/// Where the configuration file is looked for when none is named.
pub const DEFAULT_FILE: &str = "/etc/flotilla/flotilla.toml";

/// TCP for clients, UDP for nodes.
pub const DEFAULT_PORT: u16 = 6443;

/// Size of one file of the audit log.
const AUDIT_LOG_BYTES: u64 = 100 << 20;
/// Older files of the audit log that are kept.
const AUDIT_LOG_FILES: usize = 10;

/// History younger than this is kept for watches that resume.
const HISTORY_SECONDS: u64 = 300;
/// A client whose watch ended has at least this long to begin the next one.
const LEAST_HISTORY_SECONDS: u64 = 10;

/// A replica that has been dead for this long gives its place to another node.
const REPLACE_DEAD_SECONDS: u64 = 300;

/// `FLOTILLA_*` variables that belong to the command line rather than to the daemon.
const CLIENT_VARIABLES: [&str; 5] =
    ["FLOTILLA_SERVER", "FLOTILLA_SOCKET", "FLOTILLA_CREDENTIALS", "FLOTILLA_NAMESPACE", "FLOTILLA_CONFIG"];

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration file {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{origin}: {message}")]
    Invalid { origin: String, message: String },
}

/// One layer of configuration; what is absent is left to weaker layers.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
pub struct Layer {
    /// Where the node keeps its identity, store, images and pods [default: /var/lib/flotilla]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where sockets and network namespaces live until the next boot [default: /run/flotilla]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// The node's name in the cluster [default: the host name]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Address and port to listen on: UDP for nodes, TCP for clients [default: 0.0.0.0:6443]
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,
    /// Addresses at which other nodes reach this one [default: this machine's global addresses]
    #[arg(long, value_name = "ADDR:PORT", value_delimiter = ',')]
    pub advertise: Option<Vec<SocketAddr>>,
    /// Join the cluster of this token, which other users of this machine may see here: prefer --join-file
    #[arg(long, value_name = "TOKEN")]
    pub join: Option<String>,
    /// Join the cluster of the token in this file; `-`: standard input
    #[arg(long, value_name = "FILE")]
    pub join_file: Option<PathBuf>,
    /// What runs containers: `libcontainer`, or the path of an OCI runtime such as runc [default: libcontainer]
    #[arg(long, value_name = "ENGINE")]
    pub engine: Option<String>,
    /// Addresses for pods, a part of them for each node: of a /16, a /22 [default: 10.244.0.0/16]
    #[arg(long, value_name = "CIDR")]
    pub cluster_cidr: Option<String>,
    /// The bridge that pods are attached to [default: flotilla0]
    #[arg(long, value_name = "NAME")]
    pub bridge: Option<String>,
    /// The cgroup under which pods get theirs [default: /flotilla]
    #[arg(long, value_name = "PATH")]
    pub cgroup_parent: Option<String>,
    /// What to log: `info`, `debug`, `flotilla=debug,warn` [default: info]
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
    /// How to log: `human` or `json` [default: human]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// File for the audit log: who asked for what, a JSON line each [default: none, nothing is recorded]
    #[arg(long, value_name = "FILE")]
    pub audit_log: Option<PathBuf>,
    /// Which requests are recorded: a file of the form `audit.k8s.io/v1 Policy` [default: none, all are]
    #[arg(long, value_name = "FILE")]
    pub audit_policy: Option<PathBuf>,
    /// Size at which a new file of the audit log is begun, in bytes [default: 100 MiB]
    #[arg(long, value_name = "BYTES")]
    pub audit_log_max_bytes: Option<u64>,
    /// Older files of the audit log that are kept [default: 10]
    #[arg(long, value_name = "COUNT")]
    pub audit_log_max_files: Option<usize>,
    /// Heartbeat between nodes, in milliseconds [default: 250]
    #[arg(long, value_name = "MS")]
    pub beat_ms: Option<u64>,
    /// Silence after which a node is suspected, in milliseconds [default: 1000]
    #[arg(long, value_name = "MS")]
    pub suspect_ms: Option<u64>,
    /// Silence after which a node counts as dead, in milliseconds [default: 3000]
    #[arg(long, value_name = "MS")]
    pub dead_ms: Option<u64>,
    /// Life of the certificates that this node signs for nodes, in seconds [default: 30 days]
    #[arg(long, value_name = "SECONDS")]
    pub node_certificate_seconds: Option<u64>,
    /// How long the past is kept for watches and lists that resume, in seconds [default: 300]
    #[arg(long, value_name = "SECONDS")]
    pub history_seconds: Option<u64>,
    /// Nodes that hold a replica of the store, at most; the same on every node [default: 15]
    #[arg(long, value_name = "COUNT")]
    pub max_replicas: Option<usize>,
    /// How long a replica is dead before another node gets one in its place, in seconds [default: 300]
    #[arg(long, value_name = "SECONDS")]
    pub replace_dead_seconds: Option<u64>,
    /// Never hold a replica of the store here: the Node is labelled `flotilla.dev/no-replica` [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub no_replica: Option<bool>,
    /// Labels of the Node; put on it whenever the daemon starts
    #[arg(skip)]
    pub labels: Option<BTreeMap<String, String>>,
    /// Tell others on the same networks where this node is, and look for them (multicast DNS) [default: true]
    #[arg(long, value_name = "BOOL")]
    pub discovery: Option<bool>,
    /// Get image layers from other nodes before the registry, and give them [default: true]
    #[arg(long, value_name = "BOOL")]
    pub layers_from_peers: Option<bool>,
    /// Registries by host, with mirrors, credentials, CA file, or plain HTTP
    #[arg(skip)]
    pub registries: Option<BTreeMap<String, Registry>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Human,
    Json,
}

/// How to reach one registry.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Registry {
    /// Asked before the registry itself, in this order: `https://mirror.example:5000`.
    pub mirrors: Vec<String>,
    /// Speak plain HTTP with it. Never the default, not even on loopback.
    pub insecure_http: bool,
    pub username: Option<String>,
    pub password: Option<String>,
    /// PEM file of the CA that signed its certificate.
    pub ca_file: Option<PathBuf>,
}

/// The configuration in force.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub data_dir: PathBuf,
    pub run_dir: PathBuf,
    /// `None`: as the node is called already, or else the host name.
    pub name: Option<String>,
    pub listen: SocketAddr,
    /// Empty: this machine's global addresses.
    pub advertise: Vec<SocketAddr>,
    pub join: Option<String>,
    /// Where the token is read instead.
    pub join_file: Option<PathBuf>,
    /// `None`: libcontainer, inside the shim.
    pub engine: Option<PathBuf>,
    pub cluster_cidr: String,
    pub bridge: String,
    pub cgroup_parent: String,
    pub log: String,
    pub log_format: LogFormat,
    /// `None`: requests are not recorded.
    pub audit_log: Option<PathBuf>,
    pub audit_policy: Option<PathBuf>,
    pub audit_log_max_bytes: u64,
    pub audit_log_max_files: usize,
    pub beat_ms: u64,
    pub suspect_ms: u64,
    pub dead_ms: u64,
    pub node_certificate_seconds: u64,
    pub history_seconds: u64,
    pub max_replicas: usize,
    pub replace_dead_seconds: u64,
    pub no_replica: bool,
    pub labels: BTreeMap<String, String>,
    pub discovery: bool,
    pub layers_from_peers: bool,
    pub registries: BTreeMap<String, Registry>,
}

impl Config {
    /// The socket that the local command line speaks to; only root may open it.
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("flotilla.sock")
    }

    /// What a new node is called: as configured, or like the host.
    ///
    /// # Errors
    /// If the host name cannot be a node's.
    pub fn name(&self) -> Result<String, ConfigError> {
        self.name.clone().map_or_else(host_name, Ok)
    }

    /// How long the certificates live that this node signs for nodes.
    pub fn certificate_lifetime(&self) -> Duration {
        Duration::from_secs(self.node_certificate_seconds)
    }

    /// How long the past is kept for watches and lists that resume.
    pub fn history(&self) -> Duration {
        Duration::from_secs(self.history_seconds)
    }

    /// The token to join with, from wherever it is.
    ///
    /// # Errors
    /// If it cannot be read, or is none.
    pub fn token(&self) -> anyhow::Result<Option<Token>> {
        let text = match (&self.join, &self.join_file) {
            (Some(text), _) => text.clone(),
            (None, Some(path)) if path == Path::new("-") => {
                first_line(io::stdin()).context("cannot read a token from standard input")?
            }
            (None, Some(path)) => fs::File::open(path)
                .and_then(first_line)
                .with_context(|| format!("cannot read a token from {}", path.display()))?,
            (None, None) => return Ok(None),
        };
        text.trim().parse().context("the token to join with cannot be used").map(Some)
    }

    /// Puts the layers together.
    ///
    /// # Errors
    /// If the file cannot be read, a source has an unknown key or a bad value, or values contradict each other.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        flags: Layer,
    ) -> Result<Self, ConfigError> {
        let file = Layer::from_file(file)?;
        let environment = Layer::from_environment(environment)?;
        file.overridden_by(environment).overridden_by(flags).resolve()
    }
}

/// Takes each field from the stronger layer if it has it.
macro_rules! override_fields {
    ($weak:ident, $strong:ident, $($field:ident),* $(,)?) => {
        Layer { $($field: $strong.$field.or($weak.$field)),* }
    };
}

impl Layer {
    fn from_file(path: Option<&Path>) -> Result<Self, ConfigError> {
        let (path, required) = match path {
            Some(path) => (path, true),
            None => (Path::new(DEFAULT_FILE), false),
        };
        match fs::read_to_string(path) {
            Ok(text) => toml::from_str(&text).map_err(|error| ConfigError::Invalid {
                origin: format!("{}{}", path.display(), place(&text, error.span())),
                message: without_value(error.message()),
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !required => Ok(Self::default()),
            Err(source) => Err(ConfigError::Read { path: path.into(), source }),
        }
    }

    fn from_environment(variables: impl IntoIterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        let mut layer = Self::default();
        for (name, value) in variables {
            let Some(key) = name.strip_prefix("FLOTILLA_") else { continue };
            if value.is_empty() || CLIENT_VARIABLES.contains(&name.as_str()) {
                continue;
            }
            let one = Self::from_variable(&key.to_lowercase(), &value)
                .map_err(|message| ConfigError::Invalid { origin: format!("environment variable {name}"), message })?;
            layer = layer.overridden_by(one);
        }
        Ok(layer)
    }

    /// A variable holds what would stand behind `key =` in the file; text needs no quotes, and neither does a list of it
    /// with commas, as a flag takes it.
    fn from_variable(key: &str, value: &str) -> Result<Self, String> {
        let text = |text: &str| toml::Value::String(text.to_owned());
        let table = |value| toml::Table::from_iter([(key.to_owned(), value)]);
        let parsed = toml::from_str::<toml::Table>(&format!("{key} = {value}")).ok();
        let list = toml::Value::Array(value.split(',').map(text).collect());
        let mut first = None;
        for candidate in parsed.into_iter().chain([table(text(value)), table(list)]) {
            match candidate.try_into::<Self>() {
                Ok(layer) => return Ok(layer),
                // What was written is to blame, not what else it might have been.
                Err(error) => first = first.or_else(|| Some(without_value(error.message()))),
            }
        }
        Err(first.unwrap_or_default())
    }

    fn overridden_by(self, strong: Self) -> Self {
        let weak = self;
        override_fields!(
            weak,
            strong,
            data_dir,
            run_dir,
            name,
            listen,
            advertise,
            join,
            join_file,
            engine,
            cluster_cidr,
            bridge,
            cgroup_parent,
            log,
            log_format,
            audit_log,
            audit_policy,
            audit_log_max_bytes,
            audit_log_max_files,
            beat_ms,
            suspect_ms,
            dead_ms,
            node_certificate_seconds,
            history_seconds,
            max_replicas,
            replace_dead_seconds,
            no_replica,
            labels,
            discovery,
            layers_from_peers,
            registries,
        )
    }

    fn resolve(self) -> Result<Config, ConfigError> {
        let mut labels = self.labels.unwrap_or_default();
        if self.no_replica == Some(true) {
            labels.insert(NO_REPLICA_LABEL.to_owned(), "true".to_owned());
        }
        let config = Config {
            data_dir: self.data_dir.unwrap_or_else(|| "/var/lib/flotilla".into()),
            run_dir: self.run_dir.unwrap_or_else(|| "/run/flotilla".into()),
            name: self.name,
            listen: self.listen.unwrap_or(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), DEFAULT_PORT)),
            advertise: self.advertise.unwrap_or_default(),
            join: self.join,
            join_file: self.join_file,
            engine: self.engine.filter(|engine| engine != "libcontainer").map(PathBuf::from),
            cluster_cidr: self.cluster_cidr.unwrap_or_else(|| "10.244.0.0/16".into()),
            bridge: self.bridge.unwrap_or_else(|| "flotilla0".into()),
            cgroup_parent: self.cgroup_parent.unwrap_or_else(|| "/flotilla".into()),
            log: self.log.unwrap_or_else(|| "info".into()),
            log_format: self.log_format.unwrap_or(LogFormat::Human),
            audit_log: self.audit_log,
            audit_policy: self.audit_policy,
            audit_log_max_bytes: self.audit_log_max_bytes.unwrap_or(AUDIT_LOG_BYTES),
            audit_log_max_files: self.audit_log_max_files.unwrap_or(AUDIT_LOG_FILES),
            beat_ms: self.beat_ms.unwrap_or(250),
            suspect_ms: self.suspect_ms.unwrap_or(1_000),
            dead_ms: self.dead_ms.unwrap_or(3_000),
            node_certificate_seconds: self.node_certificate_seconds.unwrap_or(NODE_LIFETIME.as_secs()),
            history_seconds: self.history_seconds.unwrap_or(HISTORY_SECONDS),
            max_replicas: self.max_replicas.unwrap_or(MAX_REPLICAS),
            replace_dead_seconds: self.replace_dead_seconds.unwrap_or(REPLACE_DEAD_SECONDS),
            no_replica: self.no_replica.unwrap_or_default(),
            labels,
            discovery: self.discovery.unwrap_or(true),
            layers_from_peers: self.layers_from_peers.unwrap_or(true),
            registries: self.registries.unwrap_or_default(),
        };
        config.check()?;
        Ok(config)
    }
}

impl Config {
    fn check(&self) -> Result<(), ConfigError> {
        let bad = |key: &str, message: String| Err(ConfigError::Invalid { origin: key.into(), message });
        if !(1..=MAX_REPLICAS).contains(&self.max_replicas) {
            return bad("max_replicas", format!("{} is not between 1 and {MAX_REPLICAS}", self.max_replicas));
        }
        if self.join.is_some() && self.join_file.is_some() {
            return bad("join, join_file", "both are set: a token comes from one of them".into());
        }
        if let Some(name) = self.name.as_deref().filter(|name| !is_node_name(name)) {
            return bad("name", name_rule(name));
        }
        if !(self.beat_ms > 0 && self.beat_ms <= self.suspect_ms / 2 && self.suspect_ms < self.dead_ms) {
            return bad(
                "beat_ms, suspect_ms, dead_ms",
                format!(
                    "{}, {}, {}: a node must miss at least two beats before it is suspected, and be suspected before it is dead",
                    self.beat_ms, self.suspect_ms, self.dead_ms
                ),
            );
        }
        self.check_addresses()?;
        self.check_paths()?;
        self.check_log()?;
        self.check_labels()?;
        if self.replace_dead_seconds == 0 {
            return bad(
                "replace_dead_seconds",
                "0: must be at least 1, or every dead replica is replaced at once".into(),
            );
        }
        const LEAST_AUDIT_BYTES: u64 = 1 << 20;
        if self.audit_log_max_bytes < LEAST_AUDIT_BYTES || self.audit_log_max_files > 1_000 {
            return bad(
                "audit_log_max_bytes, audit_log_max_files",
                format!(
                    "{}, {}: a file must hold at least {LEAST_AUDIT_BYTES} bytes, and there may be at most 1000 older ones",
                    self.audit_log_max_bytes, self.audit_log_max_files
                ),
            );
        }
        if self.audit_policy.is_some() && self.audit_log.is_none() {
            return bad("audit_policy", "nothing is recorded without audit_log".into());
        }
        if !(MIN_LIFETIME..=MAX_LIFETIME).contains(&self.certificate_lifetime()) {
            return bad(
                "node_certificate_seconds",
                format!(
                    "{}: must be from {} to {}",
                    self.node_certificate_seconds,
                    MIN_LIFETIME.as_secs(),
                    MAX_LIFETIME.as_secs()
                ),
            );
        }
        if self.history_seconds < LEAST_HISTORY_SECONDS {
            let least = format!("{}: must be at least {LEAST_HISTORY_SECONDS}", self.history_seconds);
            return bad("history_seconds", least);
        }
        if self.bridge.is_empty() || self.bridge.len() > 15 || self.bridge.contains(['/', ' ']) {
            return bad("bridge", format!("{:?} must be a link name of 1 to 15 characters", self.bridge));
        }
        let link = Path::new("/sys/class/net").join(&self.bridge);
        if link.exists() && !link.join("bridge").exists() {
            return bad(
                "bridge",
                format!("{:?} is a link of another kind: must be a bridge, or a new name", self.bridge),
            );
        }
        if let Some(engine) = self.engine.as_ref().filter(|path| !path.is_file()) {
            return bad(
                "engine",
                format!("{} is not a file; use `libcontainer` or an OCI runtime's path", engine.display()),
            );
        }
        Ok(())
    }

    /// Others must be able to reach what is advertised.
    fn check_addresses(&self) -> Result<(), ConfigError> {
        let is_nobody = |address: &SocketAddr| {
            let ip = address.ip();
            ip.is_unspecified() || ip.is_multicast() || ip == Ipv4Addr::BROADCAST || address.port() == 0
        };
        match self.advertise.iter().find(|address| is_nobody(address)) {
            Some(address) => Err(ConfigError::Invalid {
                origin: "advertise".into(),
                message: format!(
                    "{address}: must be one machine's address and a port, at which other nodes reach this one"
                ),
            }),
            None => Ok(()),
        }
    }

    /// A filter takes any word for the name of a part of the program, and then logs nothing.
    fn check_log(&self) -> Result<(), ConfigError> {
        const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
        let is_known = |part: &str| part.contains('=') || LEVELS.contains(&part.to_lowercase().as_str());
        let mut parts = self.log.split(',').map(str::trim).filter(|part| !part.is_empty());
        match parts.find(|part| !self.log.contains('[') && !is_known(part)) {
            Some(part) => Err(ConfigError::Invalid {
                origin: "log".into(),
                message: format!("{part:?} must be one of {}, or a part with one: flotilla=debug", LEVELS.join(", ")),
            }),
            None => Ok(()),
        }
    }

    fn check_labels(&self) -> Result<(), ConfigError> {
        for (key, value) in &self.labels {
            let wrong = names::qualified_name(key).into_iter().chain(names::label_value(value)).next();
            if let Some(wrong) = wrong {
                return Err(ConfigError::Invalid {
                    origin: "labels".into(),
                    message: format!("{key}={value}: {wrong}"),
                });
            }
        }
        Ok(())
    }

    fn check_paths(&self) -> Result<(), ConfigError> {
        let bad = |key: &str, message: String| Err(ConfigError::Invalid { origin: key.into(), message });
        for (key, path) in [("data_dir", &self.data_dir), ("run_dir", &self.run_dir)] {
            if path.as_os_str().is_empty() {
                return bad(key, "is empty: must be the path of a directory".into());
            }
        }
        let parent = &self.cgroup_parent;
        if !parent.starts_with('/') || parent.split('/').any(|part| part == "..") {
            return bad("cgroup_parent", format!("{parent:?} must begin with '/' and have no '..', such as /flotilla"));
        }
        Ok(())
    }
}

/// Where in a file: its line may hold a password, and is not shown.
fn place(text: &str, span: Option<std::ops::Range<usize>>) -> String {
    let Some(before) = span.and_then(|span| text.get(..span.start)) else { return String::new() };
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    format!(", line {line}, column {column}")
}

/// What is wrong, in one line, without the value that is: it may be a secret.
fn without_value(message: &str) -> String {
    let message = message.lines().map(str::trim).collect::<Vec<_>>().join(", ");
    for kind in ["invalid type: ", "invalid value: "] {
        let Some(found) = message.strip_prefix(kind) else { continue };
        let Some((found, expected)) = found.rsplit_once(", expected ") else { break };
        let found = found.split(['"', '`']).next().unwrap_or_default().trim_end();
        return format!("{kind}{found}, expected {expected}");
    }
    message
}

/// As much of it as can be a token and tell that it is none.
fn first_line(source: impl Read) -> io::Result<String> {
    let mut line = String::new();
    io::BufReader::new(source.take(2 * MAX_TOKEN_BYTES as u64)).read_line(&mut line)?;
    Ok(line)
}

/// A DNS-1123 subdomain that also fits a certificate's common name behind `system:node:`.
fn is_node_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 63
        && name.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        })
}

fn name_rule(name: &str) -> String {
    format!("{name:?} must be lower-case letters, digits, '-' and '.', at most 63; give --name")
}

fn host_name() -> Result<String, ConfigError> {
    let invalid = |message: String| ConfigError::Invalid { origin: "the host name".into(), message };
    let name =
        nix::unistd::gethostname().map_err(|error| invalid(format!("it cannot be read ({error}); give --name")))?;
    let name = name.to_string_lossy().to_lowercase();
    if is_node_name(&name) { Ok(name) } else { Err(invalid(name_rule(&name))) }
}

#[cfg(test)]
mod tests;
