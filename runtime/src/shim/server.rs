//! The shim's loop: one thread, one `poll`, every container of one pod.
//!
//! Invariant: nothing here blocks but the disk. Engine calls run in workers.
//! Invariant: an exit is on disk before any peer hears of it.
//! Invariant: peers, containers and workers are bounded in number.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::attach::{Attachment, read};
use super::container::{Container, code_of, signal_of};
use super::disk;
use super::peer::Peer;
use super::protocol::{Launch, Message, State};
use super::worker::{Streams, Task, Worker};
use crate::engine::Engine;
use crate::state::{Phase, wall_ms};

pub const MAX_PEERS: usize = 64;
pub const MAX_CONTAINERS: usize = 256;
pub const MAX_JOBS: usize = 64;
/// Exits of processes that no worker has named yet.
const MAX_ORPHANS: usize = 64;
/// How often a durable write that failed is tried again.
const SAVE_RETRY: Duration = Duration::from_millis(200);

/// A worker and who waits for it: the peer and its call.
pub struct Job {
    pub worker: Worker,
    pub reply: Option<(u64, u64)>,
}

/// A process that a peer runs in a container.
pub struct Exec {
    pub pid: i32,
    pub peer: u64,
    pub id: u64,
}

pub struct Server {
    pub launch: Launch,
    pub engine: Box<dyn Engine>,
    pub engine_root: std::path::PathBuf,
    pub state: State,
    pub containers: BTreeMap<String, Container>,
    pub peers: BTreeMap<u64, Peer>,
    pub jobs: Vec<Job>,
    pub execs: Vec<Exec>,
    pub next_exec: u64,
    pub next_attachment: u64,
    pub quitting: bool,
    listener: UnixListener,
    signals: SignalFd,
    next_peer: u64,
    orphans: VecDeque<(i32, WaitStatus)>,
    /// A write that failed is due again then.
    unsaved: Option<Instant>,
}

/// What a descriptor in the poll set is.
enum Token {
    Signals,
    Listener,
    Peer(u64),
    Output(String, usize),
    Stdin(String),
    /// By the attachment's id, and which of its outputs.
    AttachOutput(String, u64, usize),
    AttachInput(String, u64),
}

impl Server {
    pub fn new(launch: Launch, pause: Option<i32>, listener: UnixListener, signals: SignalFd) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let pid = std::process::id() as i32;
        let started_ticks = disk::started_ticks(pid).unwrap_or(0);
        let state = State { pid, started_ticks, containers: Vec::new(), linked: false, pause };
        let server = Self {
            engine: launch.engine.engine(),
            engine_root: launch.run_dir.join("engine"),
            launch,
            state,
            containers: BTreeMap::new(),
            peers: BTreeMap::new(),
            jobs: Vec::new(),
            execs: Vec::new(),
            next_exec: 0,
            next_attachment: 0,
            quitting: false,
            listener,
            signals,
            next_peer: 0,
            orphans: VecDeque::new(),
            unsaved: None,
        };
        std::fs::create_dir_all(&server.engine_root)?;
        disk::save(&server.launch.state_dir, &server.state, false)?;
        Ok(server)
    }

    pub fn run(&mut self) -> io::Result<()> {
        while !(self.quitting && self.is_idle()) {
            let timeout = self.next_timeout(Instant::now());
            for (token, ready) in self.wait(timeout)? {
                self.handle(token, ready);
            }
            self.reap();
            self.tick(Instant::now());
        }
        if let Some(pause) = self.state.pause {
            let _ = kill(Pid::from_raw(pause), Signal::SIGKILL);
            // Those that were let into its namespace from here go before it.
            while waitpid(None::<Pid>, Some(WaitPidFlag::__WALL))
                .is_ok_and(|status| status.pid() != Some(Pid::from_raw(pause)))
            {}
        }
        Ok(())
    }

    fn is_idle(&self) -> bool {
        self.jobs.is_empty() && self.containers.values().all(|c| c.state.phase.exit().is_some())
    }

    fn next_timeout(&self, now: Instant) -> PollTimeout {
        let kills = self.containers.values().filter(|c| c.state.pid.is_some()).filter_map(|c| c.kill_at);
        let stalls = self.containers.values().flat_map(|c| c.attachments.iter().filter_map(Attachment::let_go_at));
        let next = kills.chain(stalls).chain(self.jobs.iter().map(|job| job.worker.deadline)).chain(self.unsaved).min();
        match next {
            None => PollTimeout::NONE,
            Some(at) => {
                let wait_ms = at.saturating_duration_since(now).as_millis() + 1;
                PollTimeout::try_from(wait_ms.min(60_000)).unwrap_or(PollTimeout::MAX)
            }
        }
    }

    fn wait(&self, timeout: PollTimeout) -> io::Result<Vec<(Token, PollFlags)>> {
        let mut tokens = Vec::new();
        let mut fds = Vec::new();
        let mut add = |token: Token, fd: BorrowedFd<'_>, flags: PollFlags| {
            tokens.push(token);
            // SAFETY: nothing of `self` is dropped before `poll` returns.
            fds.push(PollFd::new(unsafe { BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(&fd)) }, flags));
        };
        let (readable, writable) = (PollFlags::POLLIN, PollFlags::POLLOUT);
        add(Token::Signals, self.signals.as_fd(), readable);
        if self.peers.len() < MAX_PEERS {
            add(Token::Listener, self.listener.as_fd(), readable);
        }
        for (id, peer) in &self.peers {
            let flags = if peer.wants_to_write() { readable | writable } else { readable };
            add(Token::Peer(*id), peer.stream.as_fd(), flags);
        }
        for (key, container) in &self.containers {
            if container.has_room() {
                for (index, fd) in container.output_fds().enumerate() {
                    add(Token::Output(key.clone(), index), fd.as_fd(), readable);
                }
            }
            if let (Some(fd), true) = (&container.stdin.fd, container.stdin.wants_to_write()) {
                add(Token::Stdin(key.clone()), fd.as_fd(), writable);
            }
            for attachment in &container.attachments {
                for (number, output) in attachment.outputs.iter().enumerate() {
                    // Without flags, only the other end's hang-up is reported.
                    let flags = if output.wants_to_write() { writable } else { PollFlags::empty() };
                    add(Token::AttachOutput(key.clone(), attachment.id, number), output.fd.as_fd(), flags);
                }
                if let (Some(input), true) = (&attachment.input, container.stdin.has_room()) {
                    add(Token::AttachInput(key.clone(), attachment.id), input.as_fd(), readable);
                }
            }
        }
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<PollFlags> = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty())).collect();
        drop(fds);
        // Higher indexes first: handling one may remove it and shift those behind it.
        Ok(tokens.into_iter().zip(ready).filter(|(_, ready)| !ready.is_empty()).rev().collect())
    }

    fn handle(&mut self, token: Token, ready: PollFlags) {
        match token {
            Token::Signals => self.signalled(),
            Token::Listener => self.accept(),
            Token::Peer(id) => self.serve(id, ready),
            Token::Output(key, index) => {
                if let Some(container) = self.containers.get_mut(&key) {
                    container.pump(index);
                }
            }
            Token::Stdin(key) => {
                if let Some(container) = self.containers.get_mut(&key) {
                    container.stdin.flush();
                }
            }
            Token::AttachOutput(key, id, number) => self.attached_output(&key, (id, number), ready),
            Token::AttachInput(key, id) => self.attached_input(&key, id),
        }
    }

    fn attached_output(&mut self, key: &str, (id, number): (u64, usize), ready: PollFlags) {
        let Some(container) = self.containers.get_mut(key) else { return };
        let over = container.state.phase.exit().is_some();
        let Some(attachment) = container.attachments.iter_mut().find(|attachment| attachment.id == id) else { return };
        let Some(output) = attachment.outputs.get_mut(number) else { return };
        let gone = ready.intersects(PollFlags::POLLERR | PollFlags::POLLHUP) || !output.flush();
        if gone || (over && !attachment.wants_to_write()) {
            container.detach(|attachment| attachment.id == id);
        }
    }

    fn attached_input(&mut self, key: &str, id: u64) {
        let Some(container) = self.containers.get_mut(key) else { return };
        let Some(attachment) = container.attachments.iter_mut().find(|attachment| attachment.id == id) else { return };
        let Some(input) = &attachment.input else { return };
        let mut buffer = [0; 4096];
        match read(input, &mut buffer) {
            Some(bytes) => container.stdin.feed(bytes),
            None => {
                attachment.input = None;
                container.input_ended();
            }
        }
    }

    fn signalled(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            if info.ssi_signo == Signal::SIGTERM as u32 {
                // Someone takes the machine down: containers get their signal, and the one who sent it decides when to kill.
                let keys: Vec<String> = self.containers.keys().cloned().collect();
                for key in keys {
                    self.signal(&key, None);
                }
            }
        }
    }

    fn accept(&mut self) {
        while self.peers.len() < MAX_PEERS {
            let Ok((stream, _)) = self.listener.accept() else { return };
            if let Ok(peer) = Peer::new(stream) {
                self.next_peer += 1;
                self.peers.insert(self.next_peer, peer);
            }
        }
    }

    fn serve(&mut self, id: u64, ready: PollFlags) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if ready.contains(PollFlags::POLLOUT) && peer.flush().is_err() {
            return self.part(id);
        }
        if !ready.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
            return;
        }
        match peer.read() {
            Ok(calls) => calls.into_iter().for_each(|(call, fds)| self.call(id, call, fds)),
            Err(_) => self.part(id),
        }
    }

    /// A peer is gone: so is what it ran and watched.
    fn part(&mut self, id: u64) {
        self.peers.remove(&id);
        for exec in self.execs.iter().filter(|exec| exec.peer == id) {
            let _ = kill(Pid::from_raw(exec.pid), Signal::SIGKILL);
        }
        for container in self.containers.values_mut() {
            container.detach(|attachment| attachment.peer == id);
        }
    }

    pub fn send(&mut self, id: u64, message: &Message, fds: Vec<OwnedFd>) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if peer.send(message, fds).is_err() {
            self.part(id);
        }
    }

    pub fn answer(&mut self, reply: Option<(u64, u64)>, result: Result<Option<i32>, String>) {
        let Some((peer, id)) = reply else { return };
        let message = match result {
            Ok(pid) => Message::Done { id, pid, fds: 0 },
            Err(reason) => Message::Failed { id, reason },
        };
        self.send(peer, &message, Vec::new());
    }

    /// Something changed: first the disk, then the peers.
    pub fn changed(&mut self, durable: bool) {
        self.state.containers = self.containers.values().map(|c| c.state.clone()).collect();
        if let Err(error) = disk::save(&self.launch.state_dir, &self.state, durable) {
            eprintln!("state: {error}");
            self.unsaved = Some(Instant::now() + SAVE_RETRY);
            return;
        }
        self.unsaved = None;
        let message = Message::Changed { state: self.state.clone() };
        let subscribed: Vec<u64> = self.peers.iter().filter(|(_, peer)| peer.subscribed).map(|(id, _)| *id).collect();
        for id in subscribed {
            self.send(id, &message, Vec::new());
        }
    }

    pub fn work(&mut self, key: &str, task: Task, streams: Streams, reply: Option<(u64, u64)>) -> Result<(), String> {
        if self.jobs.len() >= MAX_JOBS {
            return Err(format!("{MAX_JOBS} engine calls are under way already"));
        }
        let worker = Worker::spawn(self.engine.as_ref(), &self.engine_root, key, task, streams)
            .map_err(|error| format!("cannot fork: {error}"))?;
        self.jobs.push(Job { worker, reply });
        Ok(())
    }

    /// Signals init; with a deadline, SIGKILL follows then. One that waits to be started can only be killed.
    pub fn signal(&mut self, key: &str, stop: Option<(i32, Instant)>) {
        let Some(container) = self.containers.get_mut(key) else { return };
        if container.state.phase.exit().is_some() {
            return;
        }
        let (number, kill_at) = stop.map_or((container.create.stop_signal, None), |(n, at)| (n, Some(at)));
        if let Some(at) = kill_at {
            container.kill_at = Some(container.kill_at.map_or(at, |known| known.min(at)));
        }
        let running = container.state.phase == Phase::Running;
        let signal = if running { signal_of(number) } else { Signal::SIGKILL };
        match container.state.pid {
            Some(pid) => drop(kill(Pid::from_raw(pid), signal)),
            // Not made yet: it is killed as soon as it is.
            None => container.kill_at = Some(Instant::now()),
        }
    }

    fn reap(&mut self) {
        let mut ended = Vec::new();
        loop {
            match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => break,
                Ok(status @ (WaitStatus::Exited(..) | WaitStatus::Signaled(..))) => ended.push(status),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => {
                    eprintln!("waitpid: {error}");
                    break;
                }
            }
        }
        // Workers first: they name the processes they made, of which some may have ended too.
        let (workers, others): (Vec<_>, Vec<_>) =
            ended.into_iter().partition(|s| self.jobs.iter().any(|job| Some(job.worker.pid) == s.pid()));
        for status in others {
            self.orphaned(status);
        }
        for status in workers {
            if let Some(index) = self.jobs.iter().position(|job| Some(job.worker.pid) == status.pid()) {
                let job = self.jobs.swap_remove(index);
                self.finished(job);
            }
        }
        self.settle();
    }

    fn orphaned(&mut self, status: WaitStatus) {
        if let Some(pid) = status.pid() {
            if self.orphans.len() >= MAX_ORPHANS {
                self.orphans.pop_front();
            }
            self.orphans.push_back((pid.as_raw(), status));
        }
    }

    /// Matches processes that ended with what is known to have run.
    fn settle(&mut self) {
        let mut changed = Vec::new();
        for (pid, status) in std::mem::take(&mut self.orphans) {
            if let Some(index) = self.execs.iter().position(|exec| exec.pid == pid) {
                let exec = self.execs.swap_remove(index);
                self.send(exec.peer, &Message::ExecEnded { id: exec.id, code: code_of(status).0 }, Vec::new());
            } else if self.state.pause == Some(pid) {
                // Its namespace is gone, and every container with it. Another sandbox takes this one's place.
                eprintln!("pause: {status:?}");
                self.state.pause = None;
                self.quitting = true;
            } else if let Some((key, container)) =
                self.containers.iter_mut().find(|(_, c)| c.state.pid == Some(pid) && c.state.phase.exit().is_none())
            {
                container.ended(status);
                changed.push(key.clone());
            } else if !self.jobs.is_empty() {
                self.orphans.push_back((pid, status));
            }
        }
        if !changed.is_empty() {
            self.changed(true);
            changed.iter().for_each(|key| self.forget(key));
        }
    }

    /// Lets the engine forget a container that has ended.
    pub fn forget(&mut self, key: &str) {
        let Some(container) = self.containers.get(key) else { return };
        let task = Task::Delete { cgroup: container.cgroup.clone() };
        if let Err(reason) = self.work(key, task, Streams::default(), None) {
            eprintln!("delete {key}: {reason}");
            self.forgotten(key);
        }
    }

    pub fn forgotten(&mut self, key: &str) {
        let Some(container) = self.containers.get_mut(key) else { return };
        container.deleted = true;
        if let Some(reply) = container.remover.take() {
            self.containers.remove(key);
            self.changed(false);
            self.answer(Some(reply), Ok(None));
        }
    }

    fn tick(&mut self, now: Instant) {
        for container in self.containers.values_mut() {
            if let (Some(at), Some(pid)) = (container.kill_at, container.state.pid)
                && at <= now
            {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                container.kill_at = None;
            }
        }
        for container in self.containers.values_mut() {
            container.detach(|attachment| attachment.let_go_at().is_some_and(|at| at <= now));
        }
        self.jobs.iter_mut().filter(|job| job.worker.deadline <= now).for_each(|job| job.worker.kill());
        if self.unsaved.is_some_and(|at| at <= now) {
            self.changed(true);
        }
    }

    /// Init has been let go: it runs, unless it has ended already.
    pub fn started(&mut self, key: &str) {
        if let Some(container) = self.containers.get_mut(key)
            && container.state.phase == Phase::Created
        {
            container.state.phase = Phase::Running;
            container.state.started_ms = Some(wall_ms());
        }
    }
}
