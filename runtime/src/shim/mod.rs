//! The process that supervises one pod, apart from the daemon so that the daemon may die and no container notices.
//!
//! It is the daemon's own binary, re-executed: it takes new network, IPC and UTS namespaces that the pod's containers
//! join (and makes one of processes, if they share theirs), becomes their subreaper, owns their output, records their exits and answers on a Unix socket.
//!
//! Invariant: one thread. Engines clone, which must not happen in a process with threads.
//! Invariant: the pod's namespaces live as long as the shim or a container does, and leave nothing behind.

mod attach;
mod calls;
mod container;
pub(crate) mod disk;
pub(crate) mod last_words;
pub(crate) mod link;
pub(crate) mod output;
mod pause;
mod peer;
pub(crate) mod protocol;
mod server;
pub(crate) mod socket;
mod worker;

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{ForkResult, fork, pipe2, setsid};

use protocol::Launch;
use server::Server;

pub(crate) use container::resize as resize_terminal;

pub(crate) const SOCKET: &str = "shim.sock";
pub(crate) const LAUNCH: &str = "launch.json";
const LOG: &str = "shim.log";
const MAX_LAUNCH_BYTES: u64 = 256 * 1024;
/// A shim's own log is started anew when it has grown beyond this.
const MAX_LOG_BYTES: u64 = 64 * 1024;

/// Runs a shim; `args` are what follows the shim command: the path of its launch file.
///
/// To be called first thing in `main`, before there is any thread. The calling process ends as soon as the shim, its
/// child, is ready: with success, or with the reason on stderr.
pub fn shim_main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut args = args.into_iter();
    let (Some(path), None) = (args.next(), args.next()) else {
        eprintln!("usage: shim LAUNCH-FILE");
        return ExitCode::from(2);
    };
    match launch(Path::new(&path)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn launch(path: &Path) -> io::Result<()> {
    // SAFETY: nothing in this process owns a descriptor beyond the standard streams yet.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    let mut text = String::new();
    fs::File::open(path)?.take(MAX_LAUNCH_BYTES).read_to_string(&mut text)?;
    let launch: Launch = serde_json::from_str(&text)?;
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    // SAFETY: there is one thread.
    match unsafe { fork() }? {
        ForkResult::Parent { .. } => {
            drop(writer);
            await_ready(reader)
        }
        ForkResult::Child => {
            drop(reader);
            let code = serve(launch, fs::File::from(writer));
            std::process::exit(code)
        }
    }
}

/// The child says nothing but `ok`, or why not.
fn await_ready(reader: OwnedFd) -> io::Result<()> {
    let mut said = String::new();
    fs::File::from(reader).take(4096).read_to_string(&mut said)?;
    match said.as_str() {
        "ok" => Ok(()),
        "" => Err(io::Error::other("the shim ended before it was ready")),
        reason => Err(io::Error::other(reason.to_owned())),
    }
}

fn serve(launch: Launch, mut ready: fs::File) -> i32 {
    let socket = launch.run_dir.join(SOCKET);
    let mut server = match set_up(launch, &socket) {
        Ok(server) => server,
        Err(error) => {
            let _ = write!(ready, "{error}");
            return 1;
        }
    };
    if ready.write_all(b"ok").is_err() {
        // Who started this shim has given it up.
        let _ = fs::remove_file(socket);
        return 1;
    }
    drop(ready);
    let ran = server.run();
    let _ = fs::remove_file(socket);
    match ran {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{error}");
            1
        }
    }
}

fn set_up(launch: Launch, socket: &Path) -> io::Result<Server> {
    let named = |what: &str, error: io::Error| io::Error::other(format!("{what}: {error}"));
    setsid()?;
    std::env::set_current_dir("/")?;
    own_streams(&launch.state_dir).map_err(|error| named("shim.log", error))?;
    let signals = catch_signals()?;
    nix::sys::prctl::set_child_subreaper(true)?;
    let _ = nix::sys::prctl::set_name(c"flotilla-shim");
    // The kernel should take anything else first; where it may not be lowered, it stays.
    let _ = fs::write("/proc/self/oom_score_adj", "-998");
    isolate(&launch).map_err(|error| named("namespaces", error))?;
    let pause = launch.share_pid.then(|| pause::start(&launch.state_dir)).transpose();
    let pause = pause.map_err(|error| named("the shared process namespace", error))?;
    umask(Mode::from_bits_truncate(0o177));
    let _ = fs::remove_file(socket);
    let listener = UnixListener::bind(socket).map_err(|error| named(&socket.display().to_string(), error))?;
    umask(Mode::from_bits_truncate(0o022));
    Server::new(launch, pause, listener, signals)
}

fn own_streams(state_dir: &Path) -> io::Result<()> {
    let path: PathBuf = state_dir.join(LOG);
    let fresh = fs::metadata(&path).is_ok_and(|log| log.len() > MAX_LOG_BYTES);
    let log = OpenOptions::new().create(true).append(!fresh).write(true).truncate(fresh).open(&path)?;
    let null = OpenOptions::new().read(true).open("/dev/null")?;
    nix::unistd::dup2(null.as_raw_fd(), 0)?;
    nix::unistd::dup2(log.as_raw_fd(), 1)?;
    nix::unistd::dup2(log.as_raw_fd(), 2)?;
    Ok(())
}

fn catch_signals() -> io::Result<SignalFd> {
    let mut caught = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        caught.add(signal);
    }
    caught.thread_block()?;
    Ok(SignalFd::with_flags(&caught, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

fn isolate(launch: &Launch) -> io::Result<()> {
    let mut namespaces = CloneFlags::CLONE_NEWUTS;
    if !launch.host_ipc {
        namespaces |= CloneFlags::CLONE_NEWIPC;
    }
    if !launch.host_network {
        namespaces |= CloneFlags::CLONE_NEWNET;
    }
    unshare(namespaces)?;
    nix::unistd::sethostname(&launch.hostname)?;
    if !launch.host_network {
        link::loopback()?;
    }
    for (name, value) in &launch.sysctls {
        link::sysctl(name, value).map_err(|error| io::Error::other(format!("sysctl {name}={value}: {error}")))?;
    }
    Ok(())
}
