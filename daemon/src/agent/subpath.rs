//! A part of a volume that a container mounts (`subPath`).
//!
//! A volume holds whatever containers put there, links too, and they change it while it is looked at. So the path is
//! walked by the kernel beneath the volume's open root, and what was opened is bound to a place of the container's own
//! that only the node can change: the engine mounts that place, and no name is looked up in the volume twice.
//!
//! Invariant: nothing outside the volume is opened, made or mounted.
//! Invariant: what is bound is unmounted, never deleted through.

use std::ffi::CString;
use std::fs::{self, OpenOptions, Permissions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, mkdirat};

/// Binds `inside` of `volume`, made if it is missing, to `at`.
///
/// # Errors
/// If it leaves the volume, or cannot be made or mounted.
pub fn bind(volume: &Path, inside: &str, at: &Path) -> io::Result<()> {
    let source = open(volume, inside)?;
    // What a daemon that ended half-way left there.
    release_one(at)?;
    if let Some(parent) = at.parent() {
        fs::create_dir_all(parent)?;
    }
    let source = PathBuf::from(format!("/proc/self/fd/{}", source.as_raw_fd()));
    if fs::metadata(&source)?.is_dir() {
        fs::create_dir(at)?;
    } else {
        fs::File::create_new(at)?;
    }
    Ok(mount(Some(&source), at, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
}

/// Unmounts and removes all that was bound in `dir`. What is not there is released already.
///
/// # Errors
/// If something stays mounted.
pub fn release(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        release_one(&entry?.path())?;
    }
    fs::remove_dir(dir)
}

fn release_one(at: &Path) -> io::Result<()> {
    // Else what is mounted further down would be unmounted in the volume too.
    _ = mount(None::<&str>, at, None::<&str>, MsFlags::MS_PRIVATE | MsFlags::MS_REC, None::<&str>);
    match umount2(at, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Err(Errno::ENOENT) => return Ok(()),
        // It is not a mount.
        Err(Errno::EINVAL) | Ok(()) => {}
        Err(error) => return Err(error.into()),
    }
    // One place, empty now: what is in a volume is never removed by this, even if it is mounted still.
    match fs::symlink_metadata(at)?.is_dir() {
        true => fs::remove_dir(at),
        false => fs::remove_file(at),
    }
}

/// Opens a path beneath the volume. Links that stay inside are followed; missing directories are made, with the mode of
/// the volume's root, so that who may write there may write in them.
fn open(volume: &Path, inside: &str) -> io::Result<OwnedFd> {
    let root = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(volume)?;
    let mode = root.metadata()?.mode() & 0o7777;
    let root = OwnedFd::from(root);
    let mut path = PathBuf::new();
    let mut found = beneath(&root, Path::new("."))?;
    for component in Path::new(inside).components() {
        let name = match component {
            Component::Normal(name) => name,
            Component::CurDir => continue,
            _ => return Err(outside()),
        };
        path.push(name);
        found = match beneath(&root, &path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make(&found, &CString::new(name.as_bytes())?, mode)?;
                beneath(&root, &path)?
            }
            found => found?,
        };
    }
    Ok(found)
}

fn beneath(root: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    match openat2(root.as_raw_fd(), path, how) {
        Err(Errno::EXDEV | Errno::ELOOP) => Err(outside()),
        opened => Ok(own(opened?)),
    }
}

/// Makes a directory in an open one. Its mode is set afterwards, whatever the daemon's umask is.
fn make(parent: &OwnedFd, name: &CString, mode: u32) -> io::Result<()> {
    match mkdirat(Some(parent.as_raw_fd()), name.as_c_str(), Mode::from_bits_truncate(mode)) {
        Err(Errno::EEXIST) => return Ok(()),
        made => made?,
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let made = fs::File::from(own(openat(Some(parent.as_raw_fd()), name.as_c_str(), flags, Mode::empty())?));
    made.set_permissions(Permissions::from_mode(mode))
}

fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: it was opened just now, and nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn outside() -> io::Error {
    io::Error::other("it leaves the volume")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_sub_path_stays_in_its_volume() {
        let (volume, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        symlink(elsewhere.path(), volume.path().join("out")).unwrap();
        symlink("../..", volume.path().join("up")).unwrap();
        for path in ["out", "out/made", "up/made", "../made", "/made", "a/../../made"] {
            assert!(open(volume.path(), path).is_err(), "{path}");
        }
        assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
        fs::create_dir(volume.path().join("real")).unwrap();
        symlink("real", volume.path().join("link")).unwrap();
        open(volume.path(), "link/a/b").unwrap();
        assert!(volume.path().join("real/a/b").is_dir());
    }

    #[test]
    fn who_may_write_in_the_volume_may_write_in_what_is_made() {
        let volume = tempfile::tempdir().unwrap();
        fs::set_permissions(volume.path(), Permissions::from_mode(0o2777)).unwrap();
        open(volume.path(), "a/b").unwrap();
        for made in ["a", "a/b"] {
            assert_eq!(fs::metadata(volume.path().join(made)).unwrap().mode() & 0o7777, 0o2777);
        }
    }

    #[test]
    fn what_is_bound_stays_what_it_was_and_outlives_its_release() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let (volume, places) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (dir, at) = (places.path().join("c-0"), places.path().join("c-0/0"));
        fs::create_dir(volume.path().join("data")).unwrap();
        fs::write(volume.path().join("data/kept"), "x").unwrap();
        bind(volume.path(), "data", &at).unwrap();
        fs::rename(volume.path().join("data"), volume.path().join("moved")).unwrap();
        symlink("/", volume.path().join("data")).unwrap();
        assert_eq!(fs::read_dir(&at).unwrap().count(), 1);
        // Again, over what is there already.
        bind(volume.path(), "moved/kept", &at).unwrap();
        assert_eq!(fs::read_to_string(&at).unwrap(), "x");
        release(&dir).unwrap();
        release(&dir).unwrap();
        assert!(!dir.exists());
        assert_eq!(fs::read_to_string(volume.path().join("moved/kept")).unwrap(), "x");
    }
}
