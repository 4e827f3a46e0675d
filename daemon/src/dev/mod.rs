//! A cluster in a box: several nodes on one machine, each with an address, processes and mounts of its own.
//!
//! For trying Flotilla out without three machines, and for tests that pull plugs. A node is a set of namespaces held
//! by a sleeping process; in it runs the same daemon that runs on real machines. Only disks, kernel and control groups
//! are shared, and each daemon is told to use its own part of them.
//!
//! Invariant: taking a cluster down leaves nothing behind, however it or the command that made it came to its end.

mod args;
mod cgroups;
mod error;
mod fabric;
mod power;
mod process;
mod ready;
mod record;
mod space;

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

pub use args::{DevArgs, run};
pub use cgroups::processes as cgroup_processes;
pub use error::DevError;
pub use fabric::{MAX_NODES, Nat, Subnet};
pub use process::Process;
pub use ready::channel;
pub use record::{DEFAULT_ROOT, Places};
pub use space::Space;

use error::Doing;
use fabric::Fabric;
use record::{NodeRecord, Record};

/// Where a registry on the machine is expected if no configuration says otherwise.
const REGISTRY_PORT: u16 = 5000;

/// How a cluster is to be made.
#[derive(Clone, Debug)]
pub struct Options {
    pub root: PathBuf,
    pub name: String,
    /// The program that is run as daemon.
    pub binary: PathBuf,
    /// `None`: the first that is free.
    pub subnet: Option<Subnet>,
}

/// A cluster in a box. Dropping it changes nothing: it lives until it is taken down.
#[derive(Debug)]
pub struct Cluster {
    places: Places,
    record: Record,
}

/// What a node of a cluster is doing.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct NodeState {
    pub name: String,
    pub address: Ipv4Addr,
    /// `running`, `paused`, `stopped` (no daemon) or `off` (no machine).
    pub state: &'static str,
    pub linked: bool,
    pub daemon_pid: Option<i32>,
    pub socket: PathBuf,
    pub log: PathBuf,
}

impl Cluster {
    /// Makes the network of a cluster, without a node.
    ///
    /// # Errors
    /// If we are not root, the name is taken, or the system refuses.
    pub fn create(options: &Options) -> Result<Self, DevError> {
        if !nix::unistd::geteuid().is_root() {
            return Err(DevError::NotRoot);
        }
        let places = Places::new(&options.root, &options.name)?;
        fs::create_dir_all(&options.root).doing(|| format!("cannot make {}", options.root.display()))?;
        match fs::create_dir(places.dir()) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(DevError::Exists { name: options.name.clone() });
            }
            made => made.doing(|| format!("cannot make {}", places.dir().display()))?,
        }
        Self::furnish(options, &places).inspect_err(|_| {
            let _ = remove(&places);
        })
    }

    fn furnish(options: &Options, places: &Places) -> Result<Self, DevError> {
        let fabric = Fabric::create(&places.dir(), options.subnet)?;
        let record = Record { binary: options.binary.clone(), fabric, nodes: Vec::new(), socket_link: None };
        places.save(&record)?;
        let cluster = Self { places: places.clone(), record };
        cluster.configure(&format!(
            "# A registry on this machine, without TLS.\n[registries.\"{}:{REGISTRY_PORT}\"]\ninsecure_http = true\n",
            cluster.gateway()
        ))?;
        Ok(cluster)
    }

    /// Finds a cluster that was made before.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn open(root: &Path, name: &str) -> Result<Self, DevError> {
        let places = Places::new(root, name)?;
        let record = places.load()?;
        Ok(Self { places, record })
    }

    /// The clusters under a root by name, also those that are not whole.
    #[must_use]
    pub fn list(root: &Path) -> Vec<String> {
        Places::list(root)
    }

    /// Takes a cluster down and removes all that it left. False if there was nothing.
    ///
    /// # Errors
    /// If something cannot be stopped or removed.
    pub fn down(root: &Path, name: &str) -> Result<bool, DevError> {
        let places = Places::new(root, name)?;
        let existed = places.dir().exists() || !space::marked(&places.dir()).is_empty();
        remove(&places)?;
        Ok(existed)
    }

    #[must_use]
    pub fn places(&self) -> &Places {
        &self.places
    }

    #[must_use]
    pub fn subnet(&self) -> Subnet {
        self.record.fabric.subnet
    }

    /// The machine's address as the nodes see it.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        self.subnet().gateway()
    }

    /// The configuration file for daemons that start from now on.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn configure(&self, toml: &str) -> Result<(), DevError> {
        let path = self.places.config();
        fs::write(&path, toml).doing(|| format!("cannot write {}", path.display()))
    }

    #[must_use]
    pub fn node_names(&self) -> Vec<String> {
        self.record.nodes.iter().map(|node| node.name.clone()).collect()
    }

    #[must_use]
    pub fn states(&self) -> Vec<NodeState> {
        self.record.nodes.iter().map(|node| self.state(node)).collect()
    }

    fn state(&self, node: &NodeRecord) -> NodeState {
        let on = node.space.is_some_and(|space| space.holder.is_alive());
        let daemon = node.daemon.filter(Process::is_alive);
        let state = match daemon {
            _ if !on => "off",
            None => "stopped",
            Some(daemon) if daemon.is_paused() => "paused",
            Some(_) => "running",
        };
        NodeState {
            name: node.name.clone(),
            address: self.subnet().node(node.host),
            state,
            linked: on && self.record.fabric.is_linked(node.number),
            daemon_pid: daemon.map(|daemon| daemon.pid),
            socket: self.places.socket(&node.name),
            log: self.places.log(&node.name),
        }
    }

    /// # Errors
    /// If the cluster has no such node.
    pub fn address(&self, node: &str) -> Result<Ipv4Addr, DevError> {
        Ok(self.subnet().node(self.node(node)?.host))
    }

    /// The namespaces of a node that is switched on.
    ///
    /// # Errors
    /// If there is no such node, or it is off.
    pub fn space(&self, node: &str) -> Result<Space, DevError> {
        let space = self.node(node)?.space.filter(|space| space.holder.is_alive());
        space.ok_or_else(|| DevError::NodeOff(node.to_owned()))
    }

    /// The daemon of a node.
    ///
    /// # Errors
    /// If there is no such node, or its daemon does not run.
    pub fn daemon(&self, node: &str) -> Result<Process, DevError> {
        let daemon = self.node(node)?.daemon.filter(Process::is_alive);
        daemon.ok_or_else(|| DevError::NoDaemon(node.to_owned()))
    }

    fn node(&self, name: &str) -> Result<&NodeRecord, DevError> {
        let found = self.record.nodes.iter().find(|node| node.name == name);
        found.ok_or_else(|| self.no_node(name))
    }

    fn no_node(&self, name: &str) -> DevError {
        DevError::NoNode { cluster: self.places.name().into(), node: name.into(), known: self.node_names() }
    }

    /// Lets plain `flotilla` commands on this machine reach the first node, if they reach no daemon yet.
    ///
    /// # Errors
    /// If the link cannot be made.
    pub fn link_socket(&mut self, at: &Path) -> Result<bool, DevError> {
        let first = self.node_names().into_iter().next().ok_or_else(|| self.no_node("node-1"))?;
        let target = self.places.socket(&first);
        match fs::symlink_metadata(at) {
            Ok(meta) if meta.is_symlink() && !at.exists() => {
                fs::remove_file(at).doing(|| format!("cannot remove {}", at.display()))?;
            }
            Ok(_) => return Ok(false),
            Err(_) => {}
        }
        let dir = at.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(dir)
            .and_then(|()| std::os::unix::fs::symlink(&target, at))
            .doing(|| format!("cannot link {}", at.display()))?;
        self.record.socket_link = Some(at.to_owned());
        self.places.save(&self.record)?;
        Ok(true)
    }
}

/// Ends every process of a cluster, then removes what is on disk; works on half a cluster too.
fn remove(places: &Places) -> Result<(), DevError> {
    let spaces = space::marked(&places.dir());
    for space in &spaces {
        space.holder.signal(Signal::SIGKILL)?;
    }
    for space in &spaces {
        space.kill()?;
    }
    let record = places.load().ok();
    if let Some(record) = &record {
        record.fabric.remove()?;
        unlink_socket(record, places);
    }
    cgroups::remove(&places.cgroup())?;
    remove_dir(&places.run())?;
    places.remove_empty_parents();
    remove_dir(&places.dir())
}

/// Only if it still leads to us.
fn unlink_socket(record: &Record, places: &Places) {
    let Some(link) = &record.socket_link else { return };
    if fs::read_link(link).is_ok_and(|target| target.starts_with(places.run())) {
        // A link that cannot be removed leads nowhere and is replaced by the next daemon.
        let _ = fs::remove_file(link);
    }
}

fn remove_dir(dir: &Path) -> Result<(), DevError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.doing(|| format!("cannot remove {}", dir.display())),
    }
}
