//! What is known of containers and sandboxes: the nouns that shim, disk and daemon share.
//!
//! Invariant: an exit, once recorded, never changes.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// The init process failed to start at all.
pub const REASON_START_ERROR: &str = "StartError";
pub const REASON_OOM_KILLED: &str = "OOMKilled";
pub const REASON_COMPLETED: &str = "Completed";
pub const REASON_ERROR: &str = "Error";
/// The shim was killed, and the container with it: its own exit code is not known.
pub const REASON_SHIM_DIED: &str = "ShimDied";

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit code, or 128 and the signal.
    pub code: i32,
    pub signal: Option<i32>,
    pub oom_killed: bool,
    /// One word in the manner of Kubernetes' `reason`.
    pub reason: String,
    /// Words for a person: why it could not be started, or what it left itself. Empty where the code says it all.
    pub message: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Asked for; the engine has not made it yet.
    Creating,
    /// Made, and waiting to be started.
    Created,
    Running,
    Exited(Exit),
}

impl Phase {
    pub fn exit(&self) -> Option<&Exit> {
        match self {
            Self::Exited(exit) => Some(exit),
            _ => None,
        }
    }
}

/// One attempt at running one container of a pod. Times are wall-clock milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerState {
    pub name: String,
    pub attempt: u32,
    pub phase: Phase,
    /// Process id of the container's init, as this node sees it.
    pub pid: Option<i32>,
    pub created_ms: u64,
    pub started_ms: Option<u64>,
    pub finished_ms: Option<u64>,
    pub log_path: PathBuf,
}

impl ContainerState {
    pub fn key(&self) -> String {
        container_key(&self.name, self.attempt)
    }

    pub fn is_running(&self) -> bool {
        self.phase == Phase::Running
    }
}

/// Names one attempt within its sandbox.
pub fn container_key(name: &str, attempt: u32) -> String {
    format!("{name}-{attempt}")
}

/// One pod's sandbox and what runs in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxState {
    pub id: String,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// The pod's address on the bridge; `None` on the host's network.
    pub ip: Option<Ipv4Addr>,
    pub host_network: bool,
    pub labels: std::collections::BTreeMap<String, String>,
    /// Whether its shim lives. A sandbox that is not ready never becomes so again; remove it and make another.
    pub ready: bool,
    pub shim_pid: Option<i32>,
    pub created_ms: u64,
    pub containers: Vec<ContainerState>,
}

impl SandboxState {
    pub fn container(&self, name: &str, attempt: u32) -> Option<&ContainerState> {
        self.containers.iter().find(|c| c.name == name && c.attempt == attempt)
    }
}

/// The wall clock, for records and log lines.
pub(crate) fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
