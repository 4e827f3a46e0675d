//! What can go wrong with a cluster in a box, in words that say what to do.

use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum DevError {
    #[error("a cluster in a box needs Linux and root: run it with sudo")]
    NotRoot,
    #[error("{0:?} is no name for a cluster: use 1 to 24 lower-case letters, digits and '-'")]
    BadName(String),
    #[error("{0:?} is no /24 network: use for example 10.99.7.0/24")]
    BadSubnet(String),
    #[error("a cluster in a box has 1 to {max} nodes, not {asked}")]
    TooManyNodes { asked: usize, max: usize },
    #[error(
        "cluster {name} exists already: take it down with 'flotilla dev down --name {name}', or choose another --name"
    )]
    Exists { name: String },
    #[error("there is no cluster {name}: make it with 'flotilla dev --name {name}'")]
    Missing { name: String },
    #[error("cluster {cluster} has no node {node:?}: its nodes are {}", .known.join(", "))]
    NoNode { cluster: String, node: String, known: Vec<String> },
    #[error("node {0} is switched off: start it with 'flotilla dev restart {0}'")]
    NodeOff(String),
    #[error("the daemon of node {0} does not run: start it with 'flotilla dev restart {0}'")]
    NoDaemon(String),
    #[error("no free network is left in 10.99.0.0/16: name another with --subnet")]
    NoSubnet,
    #[error("{doing}")]
    Io { doing: String, source: io::Error },
    #[error("{doing}: {message}")]
    Tool { doing: String, message: String },
    #[error("{path} is damaged ({message}): remove it with its directory")]
    Record { path: PathBuf, message: String },
    #[error("the daemon of {node} ended: {}", last_line(.log_tail))]
    DaemonEnded { node: String, log_tail: String },
    #[error("{what} took more than {seconds} s; the last that {node} said: {}", last_line(.log_tail))]
    TooSlow { what: String, seconds: u64, node: String, log_tail: String },
    #[error("node {node} refuses: {message}")]
    Refused { node: String, message: String },
}

impl DevError {
    /// The end of the log of the daemon that is to blame, if one is.
    #[must_use]
    pub fn log_tail(&self) -> Option<&str> {
        match self {
            Self::DaemonEnded { log_tail, .. } | Self::TooSlow { log_tail, .. } => Some(log_tail),
            _ => None,
        }
    }
}

fn last_line(log: &str) -> &str {
    log.lines().next_back().unwrap_or("nothing")
}

/// Names what was being done when the system said no.
pub(crate) trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, DevError>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, DevError> {
        self.map_err(|source| DevError::Io { doing: what(), source })
    }
}

impl<T> Doing<T> for nix::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, DevError> {
        self.map_err(|errno| DevError::Io { doing: what(), source: errno.into() })
    }
}
