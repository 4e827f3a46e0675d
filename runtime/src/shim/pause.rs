//! The first process of the process namespace that a pod's containers share, if they do: it takes in their orphans, keeps the
//! namespace while no container runs, and ends with the shim.
//!
//! Invariant: containers see it, and one that may trace any process may do as it likes with this one. So it has nothing of the
//! node: its program is a sealed copy in memory, its root an empty file system, its user nobody.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal, sigprocmask};
use nix::unistd::{Gid, Uid, chdir, pipe2, pivot_root, setgid, setgroups, setuid};

use crate::images::builtin;

/// As upstream's has it.
const NOBODY: u32 = 65535;
const MAX_REASON_BYTES: u64 = 1024;

/// Starts it; an empty file system is mounted at `dir`, where it alone sees it.
pub fn start(dir: &Path) -> io::Result<i32> {
    let program = program()?;
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    let flags = libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::SIGCHLD;
    // SAFETY: without a stack of its own it is a fork, and this process has one thread.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match i32::try_from(pid) {
        Ok(0) => {
            drop(reader);
            let mut writer = File::from(writer);
            let error = become_pause(dir, &program, &writer).err();
            let _ = write!(writer, "{}", error.unwrap_or_else(|| io::Error::other("nothing")));
            // SAFETY: ends the child at once, without running the parent's exit handlers.
            unsafe { libc::_exit(1) }
        }
        Ok(pid @ 1..) => {
            drop(writer);
            let mut reason = String::new();
            File::from(reader).take(MAX_REASON_BYTES).read_to_string(&mut reason)?;
            // The program's start has closed the pipe.
            if reason.is_empty() { Ok(pid) } else { Err(io::Error::other(reason)) }
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// The program, in memory that nobody can change.
fn program() -> io::Result<OwnedFd> {
    let create = |flags: libc::c_uint| {
        // SAFETY: a terminated string.
        let fd = unsafe { libc::memfd_create(c"pause".as_ptr(), flags) };
        // SAFETY: checked to be a descriptor, which nobody else owns.
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(unsafe { OwnedFd::from_raw_fd(fd) }) }
    };
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // Kernels before 6.3 do not know that a program may be meant.
    let fd = create(flags | libc::MFD_EXEC).or_else(|_| create(flags))?;
    let mut file = File::from(fd);
    file.write_all(builtin::PROGRAM)?;
    let seals = SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
    fcntl(file.as_raw_fd(), FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file.into())
}

/// Returns only if it fails.
fn become_pause(dir: &Path, program: &OwnedFd, shim: &File) -> io::Result<()> {
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    // The kernel buries the children of a process that ignores their end, also when this is passed on by exec.
    // SAFETY: no handler of ours is run.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }?;
    leave_files(dir)?;
    // SAFETY: the standard streams, which this process does not use any more.
    unsafe { libc::syscall(libc::SYS_close_range, 0, 2, 0) };
    setgroups(&[])?;
    setgid(Gid::from_raw(NOBODY))?;
    setuid(Uid::from_raw(NOBODY))?;
    nix::sys::prctl::set_no_new_privs()?;
    // Forgotten whenever the user changes, so not before.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    let mut other_end = [PollFd::new(shim.as_fd(), PollFlags::empty())];
    if poll(&mut other_end, PollTimeout::ZERO)? > 0 {
        return Err(io::Error::other("the shim has ended"));
    }
    let arguments = [CString::from(c"/pause"), CString::from(c"pause")];
    let pointers = [arguments[0].as_ptr(), arguments[1].as_ptr(), std::ptr::null()];
    // SAFETY: terminated strings in a terminated array, which live for the call.
    unsafe {
        let environment = [std::ptr::null::<libc::c_char>()];
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            pointers.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    Err(io::Error::last_os_error())
}

/// Puts an empty file system in the place of all files; this process has its own mounts already.
fn leave_files(dir: &Path) -> io::Result<()> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("pause"), dir, Some("tmpfs"), flags, Some("mode=555,size=4k"))?;
    chdir(dir)?;
    // What was the root lies on top of the new one afterwards, and is let go of.
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    Ok(chdir("/")?)
}
