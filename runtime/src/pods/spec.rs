//! What a node is asked to run, in plain terms: no Kubernetes object is known here.
//!
//! Invariant: identifiers that become file names are checked before they do.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cgroup::Limits;
use crate::engine::EngineChoice;
use crate::network::{NetworkConfig, PortMapping};

/// How the pods of one node are kept.
#[derive(Debug, Clone)]
pub struct Config {
    /// What must survive a restart of the machine: records and generated files.
    pub root: PathBuf,
    /// What lives as long as the machine is up: sockets, the engines' state. Short, since socket paths are at most 107
    /// bytes long.
    pub run: PathBuf,
    pub engine: EngineChoice,
    /// Absolute path of the control group above all pods; no other daemon on the machine may have the same.
    pub cgroup_parent: String,
    /// The command that becomes a shim (see `shim_main`); the launch file is appended.
    pub shim: Vec<String>,
    /// `None`: only pods on the host's network can run.
    pub network: Option<NetworkConfig>,
    pub log: LogRotation,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root: "/var/lib/flotilla/pods".into(),
            run: "/run/flotilla/pods".into(),
            engine: EngineChoice::default(),
            cgroup_parent: "/flotilla".into(),
            shim: vec!["/proc/self/exe".into(), "shim".into()],
            network: None,
            log: LogRotation::default(),
        }
    }
}

/// A container's log is at most `max_bytes` × `max_files` on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogRotation {
    pub max_bytes: u64,
    pub max_files: u32,
}

impl Default for LogRotation {
    /// The kubelet's defaults.
    fn default() -> Self {
        Self { max_bytes: 10 * 1024 * 1024, max_files: 5 }
    }
}

/// One pod's sandbox: what its containers share.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SandboxSpec {
    /// Names the sandbox on this node: letters, digits, `.`, `_` and `-`.
    pub id: String,
    pub namespace: String,
    pub name: String,
    /// The pod's; at most one sandbox of a pod exists at a time.
    pub uid: String,
    pub hostname: String,
    /// Its name in the whole cluster; empty if it has none.
    pub full_name: String,
    pub host_network: bool,
    /// Its containers share System V and POSIX IPC, and `/dev/shm`, with the host.
    pub host_ipc: bool,
    /// Its containers see each other's processes.
    pub share_pid: bool,
    /// Lines of `/etc/resolv.conf`; empty: those of the host.
    pub dns: Vec<String>,
    /// Further lines of `/etc/hosts`.
    pub host_aliases: Vec<String>,
    pub sysctls: BTreeMap<String, String>,
    pub ports: Vec<PortMapping>,
    pub labels: BTreeMap<String, String>,
    /// Limits of the pod as a whole.
    pub limits: Limits,
}

/// One attempt at one container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerSpec {
    pub name: String,
    pub attempt: u32,
    /// The root file system, mounted and writable.
    pub rootfs: PathBuf,
    /// Command and arguments; never empty.
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    /// Empty: `/`. Made when it is missing.
    pub cwd: String,
    pub user: User,
    pub tty: bool,
    pub stdin: bool,
    /// Stdin ends with the input of the first who attaches.
    pub stdin_once: bool,
    pub mounts: Vec<Mount>,
    pub capabilities_add: Vec<String>,
    pub capabilities_drop: Vec<String>,
    pub privileged: bool,
    pub read_only_rootfs: bool,
    pub no_new_privileges: bool,
    pub host_pid: bool,
    /// The container of this pod, by its key, whose processes this one sees as its own.
    pub pid_of: Option<String>,
    pub seccomp: Seccomp,
    pub limits: Limits,
    pub oom_score_adj: Option<i32>,
    pub log_path: PathBuf,
    /// `TERM`, `SIGQUIT` or a number; empty: TERM.
    pub stop_signal: String,
    /// What the container leaves to say how it ended is not looked for without it.
    pub last_words: Option<LastWords>,
}

/// Where a container says how it ended, for [`Exit::message`](crate::state::Exit::message).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LastWords {
    /// A file inside the container, made empty for it; none if this is empty.
    pub path: PathBuf,
    pub max_bytes: u64,
    /// The end of its log is taken if it failed and wrote nothing there.
    pub or_log: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub additional_gids: Vec<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub destination: PathBuf,
    pub kind: MountKind,
    pub read_only: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountKind {
    Bind { source: PathBuf },
    Tmpfs { size_bytes: Option<u64> },
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    #[default]
    Default,
    Unconfined,
    /// A file with an OCI `seccomp` object.
    Path(PathBuf),
}

/// Another process in a running container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecSpec {
    pub args: Vec<String>,
    pub tty: bool,
    pub env: Vec<(String, String)>,
    pub cwd: Option<String>,
    /// User and group; `None`: the container's.
    pub user: Option<(u32, u32)>,
}

/// Which of a container's streams to read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogStreams {
    #[default]
    Both,
    Stdout,
    Stderr,
}

/// What to read of a log.
#[derive(Debug, Clone, Default)]
pub struct LogOptions {
    pub follow: bool,
    pub tail_lines: Option<u64>,
    /// Only lines since then, in wall-clock milliseconds.
    pub since_ms: Option<u64>,
    /// Stop after so many bytes of output.
    pub limit_bytes: Option<u64>,
    /// Keep each line's time in front of it.
    pub timestamps: bool,
    pub streams: LogStreams,
}

/// How long a stop may take beyond its grace before it counts as failed.
pub const STOP_SLACK: Duration = Duration::from_secs(15);

/// Whether `text` may name a file: not empty, short, and of harmless characters.
pub(crate) fn is_name(text: &str, max_bytes: usize) -> bool {
    let harmless = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !text.is_empty() && text.len() <= max_bytes && !text.starts_with('.') && text.chars().all(harmless)
}

/// `TERM`, `SIGTERM`, `15`: the signal's number.
pub(crate) fn signal_number(name: &str) -> Option<i32> {
    if name.is_empty() {
        return Some(libc::SIGTERM);
    }
    if let Ok(number) = name.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    full.parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_by_any_name() {
        for name in ["", "TERM", "sigterm", "15"] {
            assert_eq!(signal_number(name), Some(15), "{name:?}");
        }
        assert_eq!(signal_number("SIGQUIT"), Some(3));
        assert_eq!(signal_number("NOPE"), None);
        assert_eq!(signal_number("0"), None);
    }

    #[test]
    fn names_cannot_leave_their_directory() {
        for bad in ["", "..", ".x", "a/b", "a\0", &"x".repeat(65)] {
            assert!(!is_name(bad, 64), "{bad:?}");
        }
        assert!(is_name("web-7d4.1_x", 64));
    }
}
