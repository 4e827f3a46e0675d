//! Owners, modes, extended attributes and times of unpacked files.
//!
//! Invariant: the order is owner, attributes, mode, times: a change of owner clears set-user-id bits and
//! file capabilities.
//! Invariant: only attributes that mean something to programs are taken from a layer, never overlayfs' own.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use nix::fcntl::AtFlags;
use nix::sys::stat::{FchmodatFlags, Mode, UtimensatFlags, fchmod, fchmodat, fstat, futimens, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, fchownat};

use crate::images::tarball::{Entry, Time};
use crate::images::tarheader::Kind;

const CAPABILITY: &[u8] = b"security.capability";

/// Gives an open file or directory what its entry says.
pub fn apply_to_descriptor(file: BorrowedFd<'_>, entry: &Entry) -> io::Result<()> {
    fchown(file.as_raw_fd(), Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))?;
    for (name, value) in entry.xattrs.iter().filter(|(name, _)| is_wanted(name)) {
        set_xattr(file, name, value)?;
    }
    fchmod(file.as_raw_fd(), Mode::from_bits_truncate(entry.mode))?;
    set_times(file, entry.mtime)
}

/// Gives a link, device or fifo, which cannot be opened, what its entry says.
pub fn apply_to_name(parent: BorrowedFd<'_>, name: &[u8], entry: &Entry) -> io::Result<()> {
    let directory = Some(parent.as_raw_fd());
    let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    fchownat(directory, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    if entry.kind != Kind::SymbolicLink {
        // The node was just made by us in a tree that nobody else sees: it is no link.
        let mode = Mode::from_bits_truncate(entry.mode);
        fchmodat(directory, OsStr::from_bytes(name), mode, FchmodatFlags::FollowSymlink)?;
    }
    let time = spec(entry.mtime);
    Ok(utimensat(directory, OsStr::from_bytes(name), &time, &time, UtimensatFlags::NoFollowSymlink)?)
}

pub fn set_times(file: BorrowedFd<'_>, time: Time) -> io::Result<()> {
    let time = spec(time);
    Ok(futimens(file.as_raw_fd(), &time, &time)?)
}

/// Sets the mode to what it is, which makes overlayfs copy the directory up.
pub fn touch_mode(directory: BorrowedFd<'_>) -> io::Result<()> {
    let status = fstat(directory.as_raw_fd())?;
    Ok(fchmod(directory.as_raw_fd(), Mode::from_bits_truncate(status.st_mode & 0o7777))?)
}

/// Makes `to` look like the root of another tree: owner, mode and times.
pub fn copy_root(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let status = fstat(from.as_raw_fd())?;
    fchown(to.as_raw_fd(), Some(Uid::from_raw(status.st_uid)), Some(Gid::from_raw(status.st_gid)))?;
    fchmod(to.as_raw_fd(), Mode::from_bits_truncate(status.st_mode & 0o7777))?;
    set_times(to, Time { seconds: status.st_mtime, nanoseconds: u32::try_from(status.st_mtime_nsec).unwrap_or(0) })
}

fn spec(time: Time) -> TimeSpec {
    TimeSpec::new(time.seconds, time.nanoseconds.min(999_999_999).into())
}

fn is_wanted(name: &[u8]) -> bool {
    name == CAPABILITY || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}

fn set_xattr(file: BorrowedFd<'_>, name: &[u8], value: &[u8]) -> io::Result<()> {
    let text = CString::new(name).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: the pointers are valid for the lengths given, and the kernel only reads them.
    let result = unsafe { libc::fsetxattr(file.as_raw_fd(), text.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    match (result, io::Error::last_os_error()) {
        (0, _) => Ok(()),
        // Some file systems keep no user attributes, and no program may rely on them.
        (_, error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) && name != CAPABILITY => Ok(()),
        (_, error) => Err(error),
    }
}
