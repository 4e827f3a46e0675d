//! What the daemon may ask of a shim, and what follows when an engine call ends.
//!
//! Invariant: every call gets exactly one answer, unless its connection ends first.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::attach::Attachment;
use super::container::Container;
use super::link;
use super::output::LogFile;
use super::protocol::{Call, Create, Link, Message, OLDEST, Request, VERSION};
use super::server::{Exec, Job, MAX_CONTAINERS, Server};
use super::worker::{Outcome, Streams, Task};
use crate::cgroup::Cgroup;
use crate::state::{Phase, container_key};

/// The longest grace that a stop may ask for.
const MAX_GRACE: Duration = Duration::from_secs(24 * 3600);
const MAX_KEY_BYTES: usize = 128;
/// Those who may be attached to one container.
const MAX_ATTACHMENTS: usize = 32;

impl Server {
    pub fn call(&mut self, peer: u64, call: Call, fds: Vec<OwnedFd>) {
        let reply = Some((peer, call.id));
        let welcomed = self.peers.get(&peer).is_some_and(|peer| peer.welcomed);
        let done = match call.request {
            Request::Hello { version, subscribe } => return self.welcome(peer, call.id, version, subscribe),
            _ if !welcomed => Err("the first call is hello".into()),
            Request::Link(link) => self.link(&link),
            Request::Create(create) => match self.create(create, reply) {
                Ok(()) => return,
                Err(reason) => Err(reason),
            },
            Request::Start { key } => match self.start(&key, reply) {
                Ok(()) => return,
                Err(reason) => Err(reason),
            },
            Request::Stop { key, grace_ms } => self.stop(&key, grace_ms),
            Request::Remove { key } => match self.remove(&key, reply) {
                Ok(true) => Ok(()),
                Ok(false) => return,
                Err(reason) => Err(reason),
            },
            Request::Exec { key, process, tty } => match self.exec(&key, &process, tty, fds, reply) {
                Ok(()) => return,
                Err(reason) => Err(reason),
            },
            Request::Attach { key, no_input, split } => self.attach(peer, &key, (!no_input, split), fds),
            Request::Resize { key, columns, rows } => {
                self.container(&key).and_then(|c| c.resize(columns, rows).map_err(|error| error.to_string()))
            }
            Request::Shutdown => {
                self.shutdown();
                Ok(())
            }
        };
        self.answer(reply, done.map(|()| None));
    }

    fn welcome(&mut self, id: u64, call: u64, version: u32, subscribe: bool) {
        if version < OLDEST {
            return self
                .answer(Some((id, call)), Err(format!("this shim speaks {OLDEST} to {VERSION}, not {version}")));
        }
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.welcomed = true;
            peer.subscribed = subscribe;
        }
        let state = self.state.clone();
        self.send(id, &Message::Welcome { version: version.min(VERSION), pid: state.pid, state }, Vec::new());
    }

    fn container(&mut self, key: &str) -> Result<&mut Container, String> {
        self.containers.get_mut(key).ok_or_else(|| format!("no container {key}"))
    }

    fn link(&mut self, link: &Link) -> Result<(), String> {
        if self.launch.host_network {
            return Err("the pod is on the host's network".into());
        }
        link::configure(link).map_err(|error| format!("{}: {error}", link.interface))?;
        self.state.linked = true;
        self.changed(false);
        Ok(())
    }

    fn create(&mut self, create: Create, reply: Option<(u64, u64)>) -> Result<(), String> {
        let key = container_key(&create.name, create.attempt);
        if self.quitting {
            return Err("the sandbox is stopping".into());
        }
        if key.len() > MAX_KEY_BYTES || key.contains('/') || key.starts_with('.') {
            return Err(format!("{key:?} is no name for a container"));
        }
        if self.containers.contains_key(&key) {
            return Err(format!("{key} exists already"));
        }
        if self.containers.len() >= MAX_CONTAINERS {
            return Err(format!("a sandbox holds at most {MAX_CONTAINERS} containers"));
        }
        let cgroup = Cgroup::new(&create.cgroup).map_err(|error| error.to_string())?;
        let log = LogFile::open(&create.log_path, self.launch.log_max_bytes, self.launch.log_max_files)
            .map_err(|error| format!("{}: {error}", create.log_path.display()))?;
        let task = Task::Create { bundle: create.bundle.clone(), tty: create.tty };
        let (container, streams) = Container::new(create, cgroup, log).map_err(|error| error.to_string())?;
        self.work(&key, task, streams, reply)?;
        self.containers.insert(key, container);
        Ok(())
    }

    fn start(&mut self, key: &str, reply: Option<(u64, u64)>) -> Result<(), String> {
        match self.container(key)?.state.phase {
            Phase::Created => self.work(key, Task::Start, Streams::default(), reply),
            ref other => Err(format!("{key} cannot start: it is {other:?}")),
        }
    }

    fn stop(&mut self, key: &str, grace_ms: u64) -> Result<(), String> {
        let signal = self.container(key)?.create.stop_signal;
        let grace = Duration::from_millis(grace_ms).min(MAX_GRACE);
        self.signal(key, Some((signal, Instant::now() + grace)));
        Ok(())
    }

    /// `true` when it is gone at once, `false` when the answer follows.
    fn remove(&mut self, key: &str, reply: Option<(u64, u64)>) -> Result<bool, String> {
        let Ok(container) = self.container(key) else { return Ok(true) };
        if container.state.phase.exit().is_none() {
            return Err(format!("{key} has not ended"));
        }
        if !container.deleted {
            container.remover = reply;
            return Ok(false);
        }
        self.containers.remove(key);
        self.changed(false);
        Ok(true)
    }

    fn exec(
        &mut self,
        key: &str,
        process: &serde_json::Value,
        tty: bool,
        fds: Vec<OwnedFd>,
        reply: Option<(u64, u64)>,
    ) -> Result<(), String> {
        let container = self.container(key)?;
        if !container.state.is_running() {
            return Err(format!("{key} is not running"));
        }
        let bundle = container.create.bundle.clone();
        let streams = match (tty, fds.len()) {
            (true, 0) => Streams::default(),
            (false, 3) => {
                let mut fds = fds.into_iter();
                Streams { stdin: fds.next(), stdout: fds.next(), stderr: fds.next() }
            }
            (_, count) => return Err(format!("exec came with {count} file descriptors")),
        };
        self.next_exec += 1;
        let file = self.engine_root.join(format!(".exec.{}.json", self.next_exec));
        let bytes = serde_json::to_vec(process).map_err(|error| error.to_string())?;
        std::fs::write(&file, bytes).map_err(|error| format!("{}: {error}", file.display()))?;
        self.work(key, Task::Exec { bundle, process: file, tty }, streams, reply)
    }

    fn attach(&mut self, peer: u64, key: &str, (input, split): (bool, bool), fds: Vec<OwnedFd>) -> Result<(), String> {
        self.next_attachment += 1;
        let id = self.next_attachment;
        let container = self.container(key)?;
        if container.state.phase.exit().is_some() {
            return Err(format!("{key} has ended"));
        }
        let wanted = 1 + usize::from(input) + usize::from(split);
        if fds.len() != wanted {
            return Err(format!("this attach takes {wanted} file descriptors"));
        }
        if container.attachments.len() >= MAX_ATTACHMENTS {
            return Err(format!("{MAX_ATTACHMENTS} are attached to {key} already"));
        }
        let mut fds = fds.into_iter();
        let output = fds.next();
        let input = if input { fds.next() } else { None };
        let outputs = output.into_iter().chain(fds).collect();
        let attachment = Attachment::new(id, peer, outputs, input).map_err(|error| error.to_string())?;
        container.attachments.push(attachment);
        Ok(())
    }

    fn shutdown(&mut self) {
        self.quitting = true;
        let keys: Vec<String> = self.containers.keys().cloned().collect();
        for key in keys {
            self.signal(&key, Some((Signal::SIGKILL as i32, Instant::now())));
        }
    }

    /// A worker has ended.
    pub fn finished(&mut self, job: Job) {
        let (outcome, terminal) = job.worker.outcome();
        let key = job.worker.key.clone();
        match &job.worker.task {
            Task::Create { .. } => self.finished_create(&key, outcome, terminal, job.reply),
            Task::Start => self.finished_start(&key, outcome, job.reply),
            Task::Exec { .. } => self.finished_exec(outcome, terminal, job.reply),
            Task::Delete { .. } => {
                if let Some(reason) = outcome.error {
                    eprintln!("delete {key}: {reason}");
                }
                self.forgotten(&key);
            }
        }
    }

    fn finished_create(&mut self, key: &str, outcome: Outcome, terminal: Option<OwnedFd>, reply: Option<(u64, u64)>) {
        let Some(container) = self.containers.get_mut(key) else { return };
        let made = match (outcome.pid, outcome.error) {
            (Some(pid), None) => container.created(pid, terminal).map(|()| pid).map_err(|error| error.to_string()),
            (_, error) => Err(error.unwrap_or_else(|| "the engine made no process".into())),
        };
        match made {
            Ok(pid) => {
                self.changed(false);
                self.answer(reply, Ok(Some(pid)));
            }
            Err(reason) => self.never_ran(key, reason, reply),
        }
    }

    fn finished_start(&mut self, key: &str, outcome: Outcome, reply: Option<(u64, u64)>) {
        match outcome.error {
            Some(reason) => self.never_ran(key, reason, reply),
            None => {
                self.started(key);
                self.changed(false);
                self.answer(reply, Ok(None));
            }
        }
    }

    fn never_ran(&mut self, key: &str, reason: String, reply: Option<(u64, u64)>) {
        if let Some(container) = self.containers.get_mut(key) {
            if let Some(pid) = container.state.pid {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            container.failed(&reason);
            self.changed(true);
            self.forget(key);
        }
        self.answer(reply, Err(reason));
    }

    fn finished_exec(&mut self, outcome: Outcome, terminal: Option<OwnedFd>, reply: Option<(u64, u64)>) {
        let Some((peer, id)) = reply else { return };
        match (outcome.pid, outcome.error) {
            (Some(pid), None) if self.peers.contains_key(&peer) => {
                self.execs.push(Exec { pid, peer, id });
                let fds: Vec<OwnedFd> = terminal.into_iter().collect();
                self.send(peer, &Message::Done { id, pid: Some(pid), fds: fds.len() }, fds);
            }
            // Who asked is gone meanwhile.
            (Some(pid), None) => drop(kill(Pid::from_raw(pid), Signal::SIGKILL)),
            (_, error) => self.answer(reply, Err(error.unwrap_or_else(|| "the engine made no process".into()))),
        }
    }
}
