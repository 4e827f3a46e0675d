//! A set of namespaces that a sleeping process holds, and ways to run programs inside.
//!
//! A node in a box is such a set: its own network, mounts, process ids, host name and IPC. The holder is process 1 of
//! the node, so that killing it is pulling the plug: the kernel takes every process, mount and link of the node with it.
//!
//! Invariant: between fork and exec only system calls happen; nothing allocates.
//! Invariant: what runs inside is a child of the holder, which collects it, or of the caller, who does.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pipe2, setsid};
use serde::{Deserialize, Serialize};

use super::error::{DevError, Doing};
use super::process::{self, Process};

/// The namespaces of a node. The order is that of entering them: mounts last, since `/proc` changes with them.
const NODE_NAMESPACES: [&str; 5] = ["net", "uts", "ipc", "pid", "mnt"];

/// Namespaces and the process that holds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Space {
    pub holder: Process,
}

impl Space {
    /// A network namespace and nothing else.
    pub(crate) fn network(mark: &Path) -> Result<Self, DevError> {
        hold(mark, CloneFlags::CLONE_NEWNET, || Ok(()))
    }

    /// A machine of its own, but for its disks and its kernel.
    pub(crate) fn machine(mark: &Path, host_name: &str) -> Result<Self, DevError> {
        let host_name = host_name.to_owned();
        let flags = CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC;
        hold(mark, flags, move || {
            nix::unistd::sethostname(&host_name)?;
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
            mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), None::<&str>)?;
            Ok(())
        })
    }

    /// A program in the network namespace only, as a child of the caller.
    pub(crate) fn network_command(&self, program: &str) -> Result<Command, DevError> {
        let namespace = self.open("net")?;
        let mut command = Command::new(program);
        // SAFETY: setns is a system call and touches no memory of ours.
        unsafe {
            command.pre_exec(move || Ok(setns(&namespace, CloneFlags::CLONE_NEWNET)?));
        }
        Ok(command)
    }

    /// Runs `work` on a thread that stands in the network namespace; sockets it makes stay there.
    ///
    /// # Errors
    /// If the namespace is gone; otherwise what `work` returns.
    pub fn in_network<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, DevError> {
        let namespace = self.open("net")?;
        let entered = thread::scope(|scope| {
            let inside = scope.spawn(move || setns(&namespace, CloneFlags::CLONE_NEWNET).map(|()| work()));
            match inside.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        });
        entered.doing(|| "cannot enter the network namespace".into())
    }

    /// A program in all namespaces. What the caller spawns stands for it: it waits for the program and ends with its
    /// exit code (128 and the signal if it was killed), and the program does not outlive it.
    ///
    /// # Errors
    /// If the namespaces are gone.
    pub fn command(&self, program: impl AsRef<Path>) -> Result<Command, DevError> {
        let namespaces = self.open_all()?;
        let mut command = Command::new(program.as_ref());
        // SAFETY: `enter` and `stand_for` make system calls only.
        unsafe {
            command.pre_exec(move || {
                enter(&namespaces)?;
                match fork()? {
                    ForkResult::Child => {
                        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
                        Ok(())
                    }
                    ForkResult::Parent { child } => stand_for(child),
                }
            });
        }
        Ok(command)
    }

    /// Starts a program in all namespaces as a child of the holder, in a session of its own.
    ///
    /// # Errors
    /// If the namespaces are gone or the program cannot be started.
    pub(crate) fn spawn_detached(&self, mut command: Command) -> Result<Process, DevError> {
        let namespaces = self.open_all()?;
        let (mut reader, writer) = pid_pipe()?;
        let out = writer.as_raw_fd();
        // SAFETY: system calls only, in a child that has one thread.
        unsafe {
            command.pre_exec(move || {
                enter(&namespaces)?;
                match fork()? {
                    // The second fork leaves the program to the holder, process 1 of its namespace.
                    ForkResult::Child => match fork()? {
                        ForkResult::Child => {
                            setsid()?;
                            Ok(())
                        }
                        ForkResult::Parent { child } => tell_pid_and_exit(out, child),
                    },
                    ForkResult::Parent { child } => stand_for(child),
                }
            });
        }
        let program = command.get_program().to_owned();
        let status = command.status().doing(|| format!("cannot start {}", program.display()))?;
        drop(writer);
        if !status.success() {
            return Err(DevError::Tool {
                doing: format!("cannot start {}", program.display()),
                message: status.to_string(),
            });
        }
        let inner = read_pid(&mut reader).doing(|| format!("cannot start {}", program.display()))?;
        self.outer(inner)
    }

    /// The process of this pid namespace that has the id `inner` there.
    fn outer(&self, inner: i32) -> Result<Process, DevError> {
        let members = process::in_pid_namespace(&self.holder).doing(|| "cannot list processes".into())?;
        let pid = members.into_iter().find(|pid| process::innermost_pid(*pid) == Some(inner));
        let ended = || io::Error::new(io::ErrorKind::NotFound, "it ended at once");
        pid.ok_or_else(ended).and_then(Process::of).doing(|| format!("cannot find process {inner} of the node"))
    }

    /// Kills the holder and with it everything inside, and waits until it is gone.
    pub(crate) fn kill(&self) -> Result<(), DevError> {
        self.holder.signal(Signal::SIGKILL)?;
        if self.holder.wait_gone(KILL_WAIT) {
            return Ok(());
        }
        Err(DevError::Tool {
            doing: format!("cannot kill process {}", self.holder.pid),
            message: format!("it still runs after {} s", KILL_WAIT.as_secs()),
        })
    }

    fn open(&self, kind: &str) -> Result<File, DevError> {
        let gone = || io::Error::new(io::ErrorKind::NotFound, "its holder is gone");
        let file = if self.holder.is_alive() { File::open(self.holder.namespace(kind)) } else { Err(gone()) };
        file.doing(|| format!("cannot enter the {kind} namespace"))
    }

    fn open_all(&self) -> Result<[File; 5], DevError> {
        let [net, uts, ipc, pid, mnt] = NODE_NAMESPACES;
        Ok([self.open(net)?, self.open(uts)?, self.open(ipc)?, self.open(pid)?, self.open(mnt)?])
    }
}

/// The kernel needs a moment for the mounts and links of a busy node.
const KILL_WAIT: std::time::Duration = std::time::Duration::from_secs(20);

/// Every space that was made with this mark and lives, recorded or not.
pub(crate) fn marked(mark: &Path) -> Vec<Space> {
    let wanted = [MARK.as_bytes(), b"=", mark.as_os_str().as_encoded_bytes()].concat();
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable == wanted)
        })
        .filter_map(|pid| Process::of(pid).ok())
        .filter(Process::is_alive)
        .map(|holder| Space { holder })
        .collect()
}

/// The variable by which a holder is known even if the command that made it died before it could write that down.
const MARK: &str = "FLOTILLA_DEV_HOLDER";

/// Makes namespaces with a process that sleeps in them. `prepare` runs inside, before the sleep.
fn hold(
    mark: &Path,
    flags: CloneFlags,
    prepare: impl Fn() -> io::Result<()> + Send + Sync + 'static,
) -> Result<Space, DevError> {
    let (mut reader, writer) = pid_pipe()?;
    let out = writer.as_raw_fd();
    let mut command = Command::new("sleep");
    command.arg("infinity").current_dir("/").env_clear();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // `env_clear` also clears the path by which `sleep` is found.
    command.env("PATH", "/usr/bin:/bin").env(MARK, mark);
    // SAFETY: system calls only, in a child that has one thread.
    unsafe {
        command.pre_exec(move || {
            unshare(flags)?;
            match fork()? {
                ForkResult::Child => {
                    setsid()?;
                    // As process 1 it inherits orphans; ignored, they are collected by the kernel.
                    signal(Signal::SIGCHLD, SigHandler::SigIgn)?;
                    prepare()
                }
                ForkResult::Parent { child } => tell_pid_and_exit(out, child),
            }
        });
    }
    let status = command.status().doing(|| "cannot make namespaces".into())?;
    drop(writer);
    if !status.success() {
        return Err(DevError::Tool { doing: "cannot make namespaces".into(), message: status.to_string() });
    }
    let holder = read_pid(&mut reader).and_then(Process::of).doing(|| "cannot make namespaces".into())?;
    Ok(Space { holder })
}

/// A pipe through which a child that is about to vanish says who remains.
fn pid_pipe() -> Result<(File, OwnedFd), DevError> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).doing(|| "cannot make a pipe".into())?;
    Ok((File::from(reader), writer))
}

fn read_pid(reader: &mut File) -> io::Result<i32> {
    let mut bytes = [0; 4];
    reader.read_exact(&mut bytes)?;
    Ok(i32::from_ne_bytes(bytes))
}

fn tell_pid_and_exit(out: RawFd, child: Pid) -> ! {
    let bytes = child.as_raw().to_ne_bytes();
    // SAFETY: `bytes` lives across the call; `_exit` runs no handlers of the process that was forked.
    unsafe {
        let written = libc::write(out, bytes.as_ptr().cast(), bytes.len());
        libc::_exit(i32::from(written != bytes.len().cast_signed()))
    }
}

fn enter(namespaces: &[File; 5]) -> io::Result<()> {
    for namespace in namespaces {
        setns(namespace, CloneFlags::empty())?;
    }
    Ok(())
}

/// Waits for a child and ends as it did. All other descriptors are closed first: one of them tells the spawning side
/// that exec succeeded, and must not be held open by this process.
fn stand_for(child: Pid) -> ! {
    // SAFETY: plain system calls; nothing in this process uses the descriptors again.
    unsafe {
        libc::signal(libc::SIGINT, libc::SIG_IGN);
        libc::signal(libc::SIGQUIT, libc::SIG_IGN);
        libc::close_range(3, libc::c_uint::MAX, 0);
    }
    let code = loop {
        match waitpid(child, Some(WaitPidFlag::empty())) {
            Ok(WaitStatus::Exited(_, code)) => break code,
            Ok(WaitStatus::Signaled(_, signal, _)) => break 128 + signal as i32,
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(_) => break 127,
        }
    };
    // SAFETY: runs no handlers of the process that was forked.
    unsafe { libc::_exit(code) }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    /// Kills the space when a test ends, however it ends.
    struct Held(Space);

    impl Drop for Held {
        fn drop(&mut self) {
            self.0.kill().unwrap();
        }
    }

    fn mark() -> std::path::PathBuf {
        format!("/test/{}", std::process::id()).into()
    }

    #[test]
    fn a_space_that_nobody_recorded_is_found_by_its_mark() {
        let mark = mark().join("lost");
        assert_eq!(marked(&mark), []);
        let space = Space::network(&mark).unwrap();
        assert_eq!(marked(&mark), [space]);
        space.kill().unwrap();
        assert_eq!(marked(&mark), []);
    }

    fn output(command: &mut Command) -> String {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    #[test]
    fn a_machine_has_a_name_processes_and_a_network_of_its_own() {
        let held = Held(Space::machine(&mark(), "alone").unwrap());
        assert_eq!(output(held.0.command("hostname").unwrap().stdin(Stdio::null())), "alone");
        let processes = output(held.0.command("sh").unwrap().args(["-c", "ls -d /proc/[0-9]* | wc -l"]));
        assert!(processes.parse::<u32>().unwrap() < 6, "{processes}");
        let links = output(held.0.network_command("ip").unwrap().args(["-o", "link"]));
        assert_eq!(links.lines().count(), 1, "{links}");
    }

    #[test]
    fn a_command_ends_with_the_code_of_the_program() {
        let held = Held(Space::machine(&mark(), "codes").unwrap());
        let status = |script: &str| held.0.command("sh").unwrap().args(["-c", script]).status().unwrap();
        assert_eq!(status("exit 7").code(), Some(7));
        assert_eq!(status("kill -9 $$").code(), Some(137));
        assert!(held.0.command("/no/such/program").unwrap().status().is_err());
    }

    #[test]
    fn a_detached_program_is_collected_when_it_ends_and_killed_with_its_space() {
        let held = Held(Space::machine(&mark(), "detached").unwrap());
        let mut short = Command::new("true");
        short.stdin(Stdio::null());
        // A program may end before it is found; either way nothing of it stays.
        if let Ok(short) = held.0.spawn_detached(short) {
            assert!(short.wait_gone(std::time::Duration::from_secs(5)));
        }
        let mut long = Command::new("sleep");
        long.arg("600");
        let long = held.0.spawn_detached(long).unwrap();
        assert!(long.is_alive());
        held.0.kill().unwrap();
        assert!(!long.is_alive());
        assert!(held.0.command("true").is_err());
    }

    #[test]
    fn mounts_inside_are_not_seen_outside() {
        let held = Held(Space::machine(&mark(), "mounts").unwrap());
        let dir = tempfile::tempdir().unwrap();
        let mount = format!("mount -t tmpfs none {0} && touch {0}/inside", dir.path().display());
        assert!(held.0.command("sh").unwrap().args(["-c", &mount]).status().unwrap().success());
        assert!(held.0.command("test").unwrap().arg("-e").arg(dir.path().join("inside")).status().unwrap().success());
        assert!(!dir.path().join("inside").exists());
    }

    #[test]
    fn a_socket_made_inside_stays_inside() {
        let space = Held(Space::network(&mark()).unwrap());
        let up = space.0.network_command("ip").unwrap().args(["link", "set", "lo", "up"]).status().unwrap();
        assert!(up.success());
        let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 6443)).unwrap();
        let inside = space.0.in_network(bind).unwrap();
        let port_outside = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        assert_eq!(inside.local_addr().unwrap().port(), 6443);
        drop((inside, port_outside));
    }
}
