//! Disks of their own for nodes: small enough to be filled.
//!
//! Invariant: a disk is unmounted before its cluster's directory is removed, also by those who sweep up.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

const BALLAST: &str = "ballast";

/// Mounts a file system of this size in memory at a directory, which is made.
///
/// # Errors
/// If the system refuses.
pub fn mount_small(dir: &Path, size_bytes: u64) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let options = format!("size={size_bytes},mode=700");
    Ok(mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))?)
}

/// Unmounts whatever is mounted below a directory, innermost first.
///
/// # Errors
/// If the system refuses.
pub fn unmount_below(dir: &Path) -> io::Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let below = |line: &str| {
        let at = PathBuf::from(line.split(' ').nth(1)?);
        at.starts_with(dir).then_some(at)
    };
    let found: Vec<PathBuf> = mounts.lines().filter_map(below).collect();
    found.iter().rev().try_for_each(|at| umount2(at.as_path(), MntFlags::MNT_DETACH)).map_err(io::Error::from)
}

/// Fills the disk at `dir` but for so many bytes.
///
/// # Errors
/// If the system refuses.
pub fn fill(dir: &Path, left_bytes: u64) -> io::Result<()> {
    let stat = nix::sys::statvfs::statvfs(dir)?;
    let free_bytes = stat.blocks_available() * stat.fragment_size();
    let ballast = File::create(dir.join(BALLAST))?;
    let length = i64::try_from(free_bytes.saturating_sub(left_bytes)).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open for as long as `ballast` lives.
    match unsafe { libc::posix_fallocate(ballast.as_raw_fd(), 0, length) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Gives back what `fill` took.
///
/// # Errors
/// If the system refuses.
pub fn empty(dir: &Path) -> io::Result<()> {
    match fs::remove_file(dir.join(BALLAST)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
