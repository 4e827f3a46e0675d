//! One engine call in a forked child, so that the shim goes on meanwhile and keeps nothing of what an engine leaves in
//! its process: memory, descriptors, working directory, OOM score.
//!
//! Forking without exec is sound because the shim has one thread. The container's init, made by the child, becomes the
//! shim's own child when the worker ends, since the shim is the subreaper.
//!
//! Invariant: a worker holds no descriptor but the container's streams and its result socket: the init that it makes
//! keeps what it holds until it is started.
//! Invariant: a worker ends within `TIMEOUT` or is killed.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, kill, signal, sigprocmask};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::{ForkResult, Pid, fork};
use serde::{Deserialize, Serialize};

use super::socket;
use crate::cgroup::Cgroup;
use crate::engine::{At, Engine};

pub const TIMEOUT: Duration = Duration::from_secs(120);
/// For killing what is left in a group, and for removing it.
const CLEANUP: Duration = Duration::from_secs(5);
const MAX_RESULT_BYTES: usize = 64 * 1024;
const MAX_REASON_BYTES: usize = 4 * 1024;
/// Where the result socket is in the worker, right after the standard streams.
const RESULT_FD: RawFd = 3;

/// What to ask the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    Create {
        bundle: PathBuf,
        tty: bool,
    },
    Start,
    Exec {
        bundle: PathBuf,
        process: PathBuf,
        tty: bool,
    },
    /// Kills what is left in the group first.
    Delete {
        cgroup: Cgroup,
    },
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    pub pid: Option<i32>,
    /// In the engine's words, when it failed.
    pub error: Option<String>,
}

/// A call under way.
pub struct Worker {
    pub pid: Pid,
    pub key: String,
    pub task: Task,
    pub deadline: Instant,
    late: bool,
    result: OwnedFd,
}

/// The container's standard streams; `/dev/null` where there is none.
#[derive(Debug, Default)]
pub struct Streams {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

impl Worker {
    pub fn spawn(engine: &dyn Engine, root: &Path, key: &str, task: Task, streams: Streams) -> io::Result<Self> {
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        )?;
        // SAFETY: this process has one thread, so the child may do anything a process may.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => Ok(Self {
                pid: child,
                key: key.into(),
                task,
                deadline: Instant::now() + TIMEOUT,
                late: false,
                result: ours,
            }),
            ForkResult::Child => {
                let code = match child(engine, At { root, id: key }, &task, streams, theirs) {
                    Ok(()) => 0,
                    Err(_) => 1,
                };
                // SAFETY: ends the child at once, without running the parent's exit handlers.
                unsafe { libc::_exit(code) }
            }
        }
    }

    /// The outcome, with the terminal's master where there is one. To be called once the worker has ended.
    pub fn outcome(&self) -> (Outcome, Option<OwnedFd>) {
        let mut buffer = vec![0; MAX_RESULT_BYTES];
        let read = socket::receive(&self.result, &mut buffer);
        let (bytes, mut fds) = match read {
            Ok((length, fds)) => (&buffer[..length], fds),
            Err(_) => (&buffer[..0], Vec::new()),
        };
        let outcome =
            serde_json::from_slice(bytes).unwrap_or_else(|_| Outcome { pid: None, error: Some(self.silence()) });
        (outcome, fds.pop())
    }

    fn silence(&self) -> String {
        if self.late {
            format!("the engine was not done in {TIMEOUT:?}")
        } else {
            "the engine ended without an answer".into()
        }
    }

    pub fn kill(&mut self) {
        self.late = true;
        let _ = kill(self.pid, Signal::SIGKILL);
    }
}

fn child(engine: &dyn Engine, at: At<'_>, task: &Task, streams: Streams, result: OwnedFd) -> io::Result<()> {
    prepare(streams, result)?;
    // SAFETY: `prepare` has put the result socket there, and nothing else owns that number.
    let result = unsafe { OwnedFd::from_raw_fd(RESULT_FD) };
    std::panic::set_hook(Box::new(|_| ()));
    let called = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| call(engine, at, task)));
    let (outcome, fds) = match called {
        Ok(Ok((pid, console))) => (Outcome { pid, error: None }, console),
        Ok(Err(reason)) => (Outcome { pid: None, error: Some(reason) }, None),
        Err(_) => (Outcome { pid: None, error: Some("the engine panicked".into()) }, None),
    };
    let fds: Vec<OwnedFd> = fds.into_iter().collect();
    socket::send(&result, &serde_json::to_vec(&outcome)?, &fds)?;
    Ok(())
}

/// Leaves the shim behind: its descriptors, and its signal mask and dispositions, which an exec would pass on.
fn prepare(streams: Streams, result: OwnedFd) -> io::Result<()> {
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    let or_null = |fd: &Option<OwnedFd>| fd.as_ref().map_or(null.as_raw_fd(), AsRawFd::as_raw_fd);
    let wanted = [or_null(&streams.stdin), or_null(&streams.stdout), or_null(&streams.stderr), result.as_raw_fd()];
    // First out of the way of 0 to 3, then into place.
    let mut moved = [0; 4];
    for (to, from) in moved.iter_mut().zip(wanted) {
        // SAFETY: duplicates a descriptor that is open.
        *to = check(unsafe { libc::fcntl(from, libc::F_DUPFD_CLOEXEC, 10) })?;
    }
    for (to, from) in (0..).zip(moved) {
        // SAFETY: this process is ours alone; what was at 0 to 3 belongs to the shim's copy that we leave behind.
        check(unsafe { libc::dup2(from, to) })?;
    }
    // SAFETY: closes what is beyond; the owners of those numbers are never dropped, since this process ends in `_exit`.
    check(unsafe { libc::syscall(libc::SYS_close_range, 4, libc::c_uint::MAX, 0) } as i32)?;
    std::mem::forget((null, streams, result));
    // SAFETY: sets a flag on an open descriptor.
    check(unsafe { libc::fcntl(RESULT_FD, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    // SAFETY: the default disposition runs no handler of ours.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }?;
    Ok(())
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn call(engine: &dyn Engine, at: At<'_>, task: &Task) -> Result<(Option<i32>, Option<OwnedFd>), String> {
    let bounded = |error: &dyn std::error::Error| {
        let mut reason = crate::engine::chain(error);
        let end = (0..=MAX_REASON_BYTES.min(reason.len())).rev().find(|end| reason.is_char_boundary(*end));
        reason.truncate(end.unwrap_or(0));
        reason
    };
    let with_console = |tty: bool, run: &dyn Fn(Option<&Path>) -> Result<i32, crate::engine::EngineError>| {
        if !tty {
            return run(None).map(|pid| (Some(pid), None)).map_err(|error| bounded(&error));
        }
        let console = Console::listen(at).map_err(|error| bounded(&error))?;
        let pid = run(Some(&console.path)).map_err(|error| bounded(&error))?;
        let master = console.master().map_err(|error| bounded(&error))?;
        Ok((Some(pid), Some(master)))
    };
    match task {
        Task::Create { bundle, tty } => with_console(*tty, &|console| engine.create(at, bundle, console)),
        Task::Exec { bundle, process, tty } => {
            let done = with_console(*tty, &|console| engine.exec(at, bundle, process, console));
            let _ = std::fs::remove_file(process);
            done
        }
        Task::Start => engine.start(at).map(|()| (None, None)).map_err(|error| bounded(&error)),
        Task::Delete { cgroup } => {
            cgroup.kill_all(CLEANUP);
            let deleted = engine.delete(at).map(|()| (None, None)).map_err(|error| bounded(&error));
            // Whatever the engine left: a container that is gone must not keep a group or a name.
            let removed = cgroup.remove(CLEANUP).map_err(|error| bounded(&error));
            let _ = std::fs::remove_dir_all(at.root.join(at.id));
            deleted.and_then(|done| removed.map(|()| done))
        }
    }
}

/// The socket on which the engine hands over a terminal.
struct Console {
    path: PathBuf,
    listener: UnixListener,
}

impl Console {
    fn listen(at: At<'_>) -> io::Result<Self> {
        std::fs::create_dir_all(at.root)?;
        let path = at.root.join(format!(".tty.{}", std::process::id()));
        let listener = UnixListener::bind(&path)?;
        Ok(Self { path, listener })
    }

    fn master(&self) -> io::Result<OwnedFd> {
        let (stream, _) = self.listener.accept()?;
        let (_, mut fds) = socket::receive(&stream, &mut [0; 4096])?;
        fds.pop().ok_or_else(|| io::Error::other("the engine handed over no terminal"))
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
