//! The daemon's handle on one sandbox: a task that talks to its shim, and what the shim last said.
//!
//! Invariant: the view is replaced only by what the shim says or, once the shim is dead, by what its record on disk
//! says.
//! Invariant: a dead shim's containers are killed before they are reported as ended.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::wire::Wire;
use super::{PodsError, SandboxSpec};
use crate::cgroup::Cgroup;
use crate::shim::disk;
use crate::shim::protocol::{Message, Request, State};
use crate::state::{ContainerState, Exit, Phase, REASON_SHIM_DIED, SandboxState, wall_ms};

/// Calls waiting for one shim.
pub const MAX_CALLS: usize = 64;
/// Longer than an engine call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(130);
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// What the daemon keeps of a sandbox on disk, written before anything of it exists.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    pub spec: SandboxSpec,
    pub ip: Option<Ipv4Addr>,
    pub created_ms: u64,
    /// The pod's control group.
    pub cgroup: String,
}

/// Where a sandbox's files are.
#[derive(Debug, Clone)]
pub struct Places {
    pub state: PathBuf,
    pub run: PathBuf,
}

impl Places {
    pub fn record(&self) -> PathBuf {
        self.state.join("sandbox.json")
    }

    pub fn socket(&self) -> PathBuf {
        self.run.join(crate::shim::SOCKET)
    }

    pub fn shm(&self) -> PathBuf {
        self.run.join("shm")
    }

    /// Holds the container's environment, which may be secret: it goes with the machine, as the container does.
    pub fn bundle(&self, key: &str) -> PathBuf {
        self.run.join("containers").join(key)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// Whether the shim lives.
    pub ready: bool,
    pub state: State,
}

struct Waiting {
    request: Request,
    fds: Vec<OwnedFd>,
    answer: oneshot::Sender<Result<(), PodsError>>,
}

pub struct Sandbox {
    pub record: Record,
    pub places: Places,
    pub view: watch::Sender<View>,
    calls: mpsc::Sender<Waiting>,
}

/// The other end of a `Sandbox`: what its task needs.
pub struct Tether {
    calls: mpsc::Receiver<Waiting>,
}

impl Sandbox {
    pub fn new(record: Record, places: Places, view: View) -> (Self, Tether) {
        let (sender, receiver) = mpsc::channel(MAX_CALLS);
        (Self { record, places, view: watch::Sender::new(view), calls: sender }, Tether { calls: receiver })
    }

    pub fn state(&self) -> SandboxState {
        let view = self.view.borrow();
        let spec = &self.record.spec;
        SandboxState {
            id: spec.id.clone(),
            namespace: spec.namespace.clone(),
            name: spec.name.clone(),
            uid: spec.uid.clone(),
            ip: self.record.ip,
            host_network: spec.host_network,
            labels: spec.labels.clone(),
            ready: view.ready,
            shim_pid: view.ready.then_some(view.state.pid),
            created_ms: self.record.created_ms,
            containers: view.state.containers.clone(),
        }
    }

    pub fn container(&self, key: &str) -> Option<ContainerState> {
        self.view.borrow().state.containers.iter().find(|c| c.key() == key).cloned()
    }

    pub async fn call(&self, request: Request, fds: Vec<OwnedFd>) -> Result<(), PodsError> {
        let (answer, answered) = oneshot::channel();
        self.calls.send(Waiting { request, fds, answer }).await.map_err(|_| PodsError::ShimGone)?;
        match tokio::time::timeout(CALL_TIMEOUT, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(PodsError::ShimGone),
            Err(_) => Err(PodsError::Shim(format!("no answer in {CALL_TIMEOUT:?}"))),
        }
    }

    /// Waits until the view is as wanted; `false` when it is not `within` the time.
    pub async fn wait_for(&self, within: Duration, wanted: impl FnMut(&View) -> bool) -> bool {
        let mut view = self.view.subscribe();
        let waited = tokio::time::timeout(within, view.wait_for(wanted)).await;
        matches!(waited, Ok(Ok(_)))
    }

    /// Kills what a dead shim left and records it as ended.
    pub async fn bury(&self) {
        let cgroup = self.record.cgroup.clone();
        let dir = self.places.state.clone();
        let last = self.view.borrow().state.clone();
        let buried = tokio::task::spawn_blocking(move || {
            let state = disk::load(&dir).unwrap_or(last);
            kill_shim(&state);
            if let Ok(cgroup) = Cgroup::new(&cgroup)
                && !cgroup.kill_all(KILL_TIMEOUT)
            {
                tracing::warn!(cgroup = %cgroup.path().display(), "processes do not die");
            }
            let state = ended(state);
            if let Err(error) = disk::save(&dir, &state, true) {
                tracing::warn!(%error, dir = %dir.display(), "cannot record what a dead shim left");
            }
            state
        });
        match buried.await {
            Ok(state) => drop(self.view.send_replace(View { ready: false, state })),
            Err(error) => tracing::error!(%error, "burying a shim failed"),
        }
    }

    /// Talks to the shim until it dies or `stop`.
    pub async fn attend(
        &self,
        mut tether: Tether,
        mut wire: Wire,
        changes: broadcast::Sender<String>,
        stop: CancellationToken,
    ) {
        let mut pending: HashMap<u64, oneshot::Sender<Result<(), PodsError>>> = HashMap::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                waiting = tether.calls.recv(), if pending.len() < MAX_CALLS => {
                    let Some(Waiting { request, fds, answer }) = waiting else { return };
                    match wire.send(request, fds).await {
                        Ok(id) => drop(pending.insert(id, answer)),
                        Err(error) => drop(answer.send(Err(error))),
                    }
                }
                message = wire.receive() => match message {
                    Ok(Some((message, _))) => {
                        if self.heard(message, &mut pending) {
                            let _ = changes.send(self.record.spec.id.clone());
                        }
                    }
                    Ok(None) => break,
                    Err(error) => {
                        tracing::warn!(sandbox = self.record.spec.id, %error, "lost the shim");
                        break;
                    }
                },
            }
        }
        self.bury().await;
        let _ = changes.send(self.record.spec.id.clone());
    }

    /// `true` when the view changed.
    fn heard(&self, message: Message, pending: &mut HashMap<u64, oneshot::Sender<Result<(), PodsError>>>) -> bool {
        let (id, result) = match message {
            Message::Changed { state } => {
                return self.view.send_if_modified(|view| std::mem::replace(&mut view.state, state) != view.state);
            }
            Message::Done { id, .. } => (id, Ok(())),
            Message::Failed { id, reason } => (id, Err(PodsError::Refused(reason))),
            Message::Welcome { .. } | Message::ExecEnded { .. } => return false,
        };
        if let Some(answer) = pending.remove(&id) {
            let _ = answer.send(result);
        }
        false
    }
}

/// A shim that does not answer is as good as dead; its pid may be another's by now.
pub fn kill_shim(state: &State) {
    if state.pid > 1 && disk::started_ticks(state.pid) == Some(state.started_ticks) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(state.pid), nix::sys::signal::Signal::SIGKILL);
    }
}

fn ended(mut state: State) -> State {
    for container in state.containers.iter_mut().filter(|c| c.phase.exit().is_none()) {
        container.phase = Phase::Exited(Exit {
            code: 137,
            signal: Some(libc::SIGKILL),
            oom_killed: false,
            reason: REASON_SHIM_DIED.into(),
            message: "the shim of this pod died, and its containers were killed".into(),
        });
        container.finished_ms = Some(wall_ms());
    }
    state
}
