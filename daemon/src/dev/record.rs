//! What is written down about a cluster in a box, so that later commands find it.
//!
//! Invariant: a record is replaced whole. What it does not mention yet is found by its mark (see `space`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::{DevError, Doing};
use super::fabric::{Fabric, Nat};
use super::process::Process;
use super::space::Space;

/// Where clusters of the command line are kept.
pub const DEFAULT_ROOT: &str = "/var/lib/flotilla-dev";
/// Sockets have short paths: the system allows 107 bytes.
const RUN_ROOT: &str = "/run/flotilla-dev";
const CGROUP_ROOT: &str = "/flotilla-dev";
const MAX_NAME_BYTES: usize = 24;

#[derive(Debug, Serialize, Deserialize)]
pub struct Record {
    pub binary: PathBuf,
    pub fabric: Fabric,
    pub nodes: Vec<NodeRecord>,
    /// The link at the default socket's place that leads to the first node.
    pub socket_link: Option<PathBuf>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Counted from 1.
    pub number: u8,
    /// The last part of its address.
    pub host: u8,
    pub name: String,
    /// `None` before it was first switched on.
    pub space: Option<Space>,
    pub daemon: Option<Process>,
    /// Its daemon finds out the machine's addresses by itself, instead of being told.
    #[serde(default)]
    pub roaming: bool,
    /// What it is behind, if it is not on the cluster's network itself.
    #[serde(default)]
    pub nat: Option<Nat>,
}

/// The directories of one cluster.
#[derive(Clone, Debug)]
pub struct Places {
    root: PathBuf,
    name: String,
}

impl Places {
    /// # Errors
    /// If the name cannot be part of a path.
    pub fn new(root: &Path, name: &str) -> Result<Self, DevError> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if name.is_empty() || name.len() > MAX_NAME_BYTES || name.starts_with('-') || !name.bytes().all(allowed) {
            return Err(DevError::BadName(name.to_owned()));
        }
        Ok(Self { root: root.to_owned(), name: name.to_owned() })
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.root.join(&self.name)
    }

    /// Emptied when a node is switched on, as a machine's `/run` is.
    #[must_use]
    pub fn run(&self) -> PathBuf {
        Path::new(RUN_ROOT).join(&self.name)
    }

    #[must_use]
    pub fn node_run(&self, node: &str) -> PathBuf {
        self.run().join(node)
    }

    #[must_use]
    pub fn socket(&self, node: &str) -> PathBuf {
        self.node_run(node).join("flotilla.sock")
    }

    #[must_use]
    pub fn data(&self, node: &str) -> PathBuf {
        self.dir().join(node)
    }

    #[must_use]
    pub fn log(&self, node: &str) -> PathBuf {
        self.dir().join(format!("{node}.log"))
    }

    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.dir().join("flotilla.toml")
    }

    #[must_use]
    pub fn cgroup(&self) -> String {
        format!("{CGROUP_ROOT}/{}", self.name)
    }

    #[must_use]
    pub fn node_cgroup(&self, node: &str) -> String {
        format!("{}/{node}", self.cgroup())
    }

    /// The last cluster to go takes with it what all of them shared.
    pub(crate) fn remove_empty_parents(&self) {
        super::cgroups::remove_if_empty(CGROUP_ROOT);
        // Not empty: another cluster lives.
        let _ = fs::remove_dir(RUN_ROOT);
    }

    fn record(&self) -> PathBuf {
        self.dir().join("cluster.json")
    }

    pub(crate) fn load(&self) -> Result<Record, DevError> {
        let path = self.record();
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(DevError::Missing { name: self.name.clone() });
            }
            other => other.doing(|| format!("cannot read {}", path.display()))?,
        };
        serde_json::from_slice(&text).map_err(|error| DevError::Record { path, message: error.to_string() })
    }

    pub(crate) fn save(&self, record: &Record) -> Result<(), DevError> {
        let path = self.record();
        let draft = path.with_extension("json.new");
        let text = serde_json::to_vec_pretty(record)
            .map_err(|error| DevError::Record { path: path.clone(), message: error.to_string() })?;
        fs::write(&draft, text)
            .and_then(|()| fs::rename(&draft, &path))
            .doing(|| format!("cannot write {}", path.display()))
    }

    /// The names of the clusters under a root, whether or not they are whole.
    pub(crate) fn list(root: &Path) -> Vec<String> {
        let entries = fs::read_dir(root).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.retain(|name| Self::new(root, name).is_ok());
        names.sort();
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_part_of_a_path_and_not_more() {
        for bad in ["", "..", "a/b", "A", "-x", &"a".repeat(25)] {
            assert!(Places::new(Path::new("/x"), bad).is_err(), "{bad}");
        }
        assert!(Places::new(Path::new("/x"), "t123-4").is_ok());
    }

    #[test]
    fn a_socket_leaves_room_for_those_of_pods() {
        let places = Places::new(Path::new(DEFAULT_ROOT), &"a".repeat(MAX_NAME_BYTES)).unwrap();
        let pod_socket = places.node_run("node-100").join("shims").join("a".repeat(36)).join("s");
        assert!(pod_socket.as_os_str().len() <= 107, "{}", pod_socket.display());
    }
}
