//! The pods of one node: a cheap handle through which the daemon makes, watches, enters and removes them.
//!
//! Each pod belongs to its own shim process. This side keeps a connection to each and the records on disk; it can be
//! dropped at any time and opened again, and finds what runs.
//!
//! Invariant: a sandbox's record is on disk before anything of it exists, and goes last, so that whatever was left
//! half made or half removed is found again at the next `open`.
//! Invariant: nothing is ever removed that no record names.

mod devices;
mod dial;
mod exec;
mod files;
mod lifecycle;
pub mod logs;
mod sandbox;
mod spec;
mod stats;
mod streams;
mod wire;

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use exec::{
    AttachHold, AttachSession, AttachSpec, ExecExit, ExecOutput, ExecSession, MAX_SYNC_OUTPUT_BYTES, Terminal,
};
use sandbox::{Places, Sandbox, Tether};
pub use spec::{
    Config, ContainerSpec, ExecSpec, LastWords, LogOptions, LogRotation, LogStreams, Mount, MountKind, STOP_SLACK,
    SandboxSpec, Seccomp, User,
};
pub use stats::{ContainerUsage, NodeUsage, SandboxUsage};
pub use streams::FdStream;
use wire::Wire;

use crate::cgroup::{Cgroup, CgroupError, Limits};
use crate::engine::spec::SpecError;
use crate::network::{Network, NetworkError};
use crate::state::{ContainerState, SandboxState};

/// Signals that a subscriber may be behind before it is told that it missed some.
const MAX_CHANGES: usize = 1024;

#[derive(Debug, thiserror::Error)]
pub enum PodsError {
    #[error("{0}")]
    Invalid(String),
    #[error("no sandbox {0}")]
    NoSandbox(String),
    #[error("no container {0}")]
    NoContainer(String),
    /// A sandbox of this id, or of the same pod.
    #[error("sandbox {0} exists already")]
    Exists(String),
    /// The shim or its engine said no, in these words.
    #[error("{0}")]
    Refused(String),
    #[error("the shim of this pod is gone")]
    ShimGone,
    #[error("shim: {0}")]
    Shim(String),
    #[error("not done within {0:?}")]
    Timeout(Duration),
    #[error("stream")]
    Stream(#[source] io::Error),
    #[error("{path}")]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Spec(#[from] SpecError),
}

impl PodsError {
    fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }
}

/// The pods of this node. Cloning gives another handle on the same.
#[derive(Clone)]
pub struct Pods {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    network: Option<Network>,
    sandboxes: RwLock<BTreeMap<String, Arc<Sandbox>>>,
    /// Sandboxes that are being made or removed.
    busy: Mutex<HashSet<String>>,
    changes: broadcast::Sender<String>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Pods {
    /// Finds the shims that live and adopts them; kills and records what the dead ones left.
    pub async fn open(config: Config) -> Result<Self, PodsError> {
        lifecycle::open(config).await
    }

    /// Lets go of every shim, which all live on.
    pub async fn close(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// Every sandbox of this node, with its containers, by id.
    pub fn list(&self) -> Vec<SandboxState> {
        let sandboxes = self.inner.sandboxes.read().unwrap_or_else(PoisonError::into_inner);
        sandboxes.values().map(|sandbox| sandbox.state()).collect()
    }

    pub fn get(&self, id: &str) -> Option<SandboxState> {
        self.sandbox(id).ok().map(|sandbox| sandbox.state())
    }

    /// Ids of sandboxes in which something changed. Who lags is told so and should look at all of `list`.
    pub fn subscribe(&self) -> broadcast::Receiver<String> {
        self.inner.changes.subscribe()
    }

    fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>, PodsError> {
        let sandboxes = self.inner.sandboxes.read().unwrap_or_else(PoisonError::into_inner);
        sandboxes.get(id).cloned().ok_or_else(|| PodsError::NoSandbox(id.into()))
    }

    /// Runs another process in a running container.
    pub async fn exec(&self, sandbox: &str, container: &str, spec: &ExecSpec) -> Result<ExecSession, PodsError> {
        exec::exec(self.sandbox(sandbox)?.as_ref(), container, spec).await
    }

    /// Runs a process to its end, or kills it when `within` has passed. Output is cut at `MAX_SYNC_OUTPUT_BYTES` each.
    pub async fn exec_sync(
        &self,
        sandbox: &str,
        container: &str,
        spec: &ExecSpec,
        within: Duration,
    ) -> Result<ExecOutput, PodsError> {
        exec::exec_sync(self.sandbox(sandbox)?.as_ref(), container, spec, within).await
    }

    /// Joins a container's own streams.
    pub async fn attach(&self, sandbox: &str, container: &str, spec: AttachSpec) -> Result<AttachSession, PodsError> {
        exec::attach(self.sandbox(sandbox)?.as_ref(), container, spec).await
    }

    /// Connects to a TCP port from within the pod's network: at its loopback, unless an address is named.
    pub async fn connect(
        &self,
        sandbox: &str,
        ip: Option<IpAddr>,
        port: u16,
    ) -> Result<tokio::net::TcpStream, PodsError> {
        dial::connect(self.sandbox(sandbox)?.as_ref(), ip, port).await
    }

    /// Gives a running container other limits, and its pod other limits as a whole, without stopping either.
    pub async fn set_limits(
        &self,
        sandbox: &str,
        container: &str,
        limits: Limits,
        of_pod: Limits,
    ) -> Result<(), PodsError> {
        let sandbox = self.sandbox(sandbox)?;
        let group = sandbox.record.cgroup.clone();
        let key = container.to_owned();
        let set = tokio::task::spawn_blocking(move || {
            let pod = Cgroup::new(&group)?;
            let container = pod.child(&key)?;
            // Where the two differ, the smaller holds: the pod grows first and shrinks last.
            pod.lift(&of_pod)?;
            container.update(&limits)?;
            pod.update(&of_pod)
        });
        set.await.map_err(|error| PodsError::Shim(error.to_string()))?.map_err(PodsError::from)
    }

    /// Resizes the terminal of a container that has one.
    pub async fn resize(&self, sandbox: &str, container: &str, columns: u16, rows: u16) -> Result<(), PodsError> {
        let request = crate::shim::protocol::Request::Resize { key: container.into(), columns, rows };
        self.sandbox(sandbox)?.call(request, Vec::new()).await
    }

    /// A container's output. With `follow` it ends when the container does.
    pub fn logs(&self, sandbox: &str, container: &str, options: LogOptions) -> Result<logs::LogReader, PodsError> {
        let sandbox = self.sandbox(sandbox)?;
        let state = sandbox.container(container).ok_or_else(|| PodsError::NoContainer(container.into()))?;
        let key = container.to_owned();
        let ended = move || sandbox.container(&key).is_none_or(|now: ContainerState| now.phase.exit().is_some());
        Ok(logs::LogReader::new(&state.log_path, options, Box::new(ended)))
    }

    /// What a pod and its containers use.
    pub fn stats(&self, sandbox: &str) -> Result<SandboxUsage, PodsError> {
        stats::of(self.sandbox(sandbox)?.as_ref())
    }

    /// What all of the machine uses.
    pub fn node_stats(&self) -> NodeUsage {
        stats::node()
    }
}

/// Has one sandbox to itself until dropped.
struct Claim<'a> {
    inner: &'a Inner,
    id: String,
}

impl Inner {
    fn claim(&self, id: &str) -> Option<Claim<'_>> {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        busy.insert(id.to_owned()).then(|| Claim { inner: self, id: id.to_owned() })
    }

    fn places(&self, id: &str) -> Places {
        places(&self.config, id)
    }

    /// Lists the sandbox and lets its task talk to its shim.
    fn adopt(&self, sandbox: Sandbox, link: Option<(Tether, Wire)>) -> Arc<Sandbox> {
        let sandbox = Arc::new(sandbox);
        let id = sandbox.record.spec.id.clone();
        self.sandboxes.write().unwrap_or_else(PoisonError::into_inner).insert(id, sandbox.clone());
        if let Some((tether, wire)) = link {
            let (attended, changes, stop) = (sandbox.clone(), self.changes.clone(), self.stop.clone());
            self.tasks.spawn(async move { attended.attend(tether, wire, changes, stop).await });
        }
        sandbox
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.inner.busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

fn places(config: &Config, id: &str) -> Places {
    Places { state: config.root.join(id), run: config.run.join(id) }
}
