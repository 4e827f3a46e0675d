//! A directory tree that cannot be left.
//!
//! Names are resolved with `openat2(RESOLVE_IN_ROOT)`: the kernel treats the tree's root as `/` for
//! `..`, absolute symbolic links and all. Then one name in the directory found is made or removed,
//! without following a link.
//!
//! Invariant: descriptors of directories handed out lie in the tree, at most [`DEPTH_MAX`] deep.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{Mode, SFlag, dev_t, fstatat, mkdirat, mknodat};
use nix::unistd::{UnlinkatFlags, unlinkat};

pub const DEPTH_MAX: usize = 256;

/// A name in an archive, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub struct Split<'a> {
    pub parent: Vec<&'a [u8]>,
    /// `None` for the root itself.
    pub name: Option<&'a [u8]>,
}

impl<'a> Split<'a> {
    /// The components of parent and name together.
    pub fn whole(&self) -> Vec<&'a [u8]> {
        self.parent.iter().copied().chain(self.name).collect()
    }

    pub fn is_aufs_metadata(&self, prefix: &[u8], except: &[u8]) -> bool {
        self.parent.iter().any(|part| part.starts_with(prefix))
            || self.name.is_some_and(|name| name.starts_with(prefix) && name != except)
    }
}

/// Takes a name apart; an absolute one counts from the root.
pub fn split(path: &[u8]) -> Result<Split<'_>, &'static str> {
    let mut parts: Vec<&[u8]> =
        path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    if parts.contains(&b"..".as_slice()) {
        return Err("path leaves the layer");
    }
    if path.contains(&0) {
        return Err("path holds a NUL");
    }
    if parts.len() > DEPTH_MAX {
        return Err("path is too deep");
    }
    let name = parts.pop();
    Ok(Split { parent: parts, name })
}

pub struct Tree {
    root: OwnedFd,
    /// Where the root is for the kernel, to tell how deep a directory lies.
    root_path: PathBuf,
    /// The directory found last: most entries lie beside the one before.
    last: Option<(Vec<u8>, Rc<OwnedFd>)>,
}

impl Tree {
    /// `root` must be an open directory.
    pub fn new(root: OwnedFd) -> io::Result<Self> {
        let root_path = kernel_path(root.as_fd())?;
        Ok(Self { root, root_path, last: None })
    }

    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens the directory `parts`, which must exist.
    pub fn find_directory(&mut self, parts: &[&[u8]]) -> io::Result<Rc<OwnedFd>> {
        let path = parts.join(&b'/');
        if let Some((last, directory)) = &self.last
            && *last == path
        {
            return Ok(directory.clone());
        }
        let directory = Rc::new(self.open_directory(&path)?);
        self.path_of(directory.as_fd())?;
        self.last = Some((path, directory.clone()));
        Ok(directory)
    }

    /// Opens the directory `parts`; what is missing of it is made, owned by root.
    pub fn make_directory(&mut self, parts: &[&[u8]]) -> io::Result<Rc<OwnedFd>> {
        match self.find_directory(parts) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            found => return found,
        }
        for end in 1..=parts.len() {
            match self.find_directory(&parts[..end]) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let above = self.find_directory(&parts[..end - 1])?;
                    mkdirat(Some(above.as_raw_fd()), parts[end - 1], Mode::from_bits_truncate(0o755))?;
                }
                found => {
                    found?;
                }
            }
        }
        self.find_directory(parts)
    }

    /// Opens the directory `name`, made if need be; anything else of this name is removed first.
    pub fn enter_or_make(&mut self, parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
        match open_entry(parent, name) {
            Ok(directory) => return Ok(directory),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(_) => self.remove(parent, name)?,
        }
        mkdirat(Some(parent.as_raw_fd()), name, Mode::from_bits_truncate(0o755))?;
        open_entry(parent, name)
    }

    /// Removes `name` if it exists, so that another entry can take its place.
    pub fn make_room(&mut self, parent: impl AsFd, name: &[u8]) -> io::Result<()> {
        self.remove(parent, name)
    }

    /// Removes `name` and all below it. Nothing of this name is fine.
    pub fn remove(&mut self, parent: impl AsFd, name: &[u8]) -> io::Result<()> {
        let parent = parent.as_fd();
        let status = match fstatat(Some(parent.as_raw_fd()), name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(status) => status,
            Err(Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        // What was found by way of the removed name is no longer there.
        self.last = None;
        if SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR {
            // Removes without following links, and begins at a directory that we hold.
            return std::fs::remove_dir_all(entry_path(parent, name));
        }
        Ok(unlinkat(Some(parent.as_raw_fd()), name, UnlinkatFlags::NoRemoveDir)?)
    }

    /// The path of a directory from the root, links resolved.
    ///
    /// # Errors
    /// If the directory lies too deep.
    pub fn path_of(&self, directory: BorrowedFd<'_>) -> io::Result<PathBuf> {
        let path = kernel_path(directory)?;
        let below = path.strip_prefix(&self.root_path).map_err(|_| io::Error::other("directory left the tree"))?;
        if below.components().count() > DEPTH_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidFilename, "path is too deep"));
        }
        Ok(below.to_path_buf())
    }

    fn open_directory(&self, path: &[u8]) -> io::Result<OwnedFd> {
        let path = if path.is_empty() { b"." } else { path };
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS | ResolveFlag::RESOLVE_NO_XDEV);
        own(openat2(self.root.as_raw_fd(), path, how))
    }
}

/// Makes overlayfs hide what lower layers have in `path`, a directory below `upper`. One that is no longer
/// there is passed over.
pub fn mark_opaque(upper: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    const OPAQUE: &CStr = c"trusted.overlay.opaque";
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    let directory = match own(openat2(upper.as_raw_fd(), path, how)) {
        Ok(directory) => directory,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(()),
        Err(error) => return Err(error),
    };
    // SAFETY: the pointers are valid for the lengths given, and the kernel only reads them.
    match unsafe { libc::fsetxattr(directory.as_raw_fd(), OPAQUE.as_ptr(), b"y".as_ptr().cast(), 1, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Creates a file that must not exist.
pub fn create_file(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<File> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    own(openat(Some(parent.as_raw_fd()), name, flags, Mode::from_bits_truncate(0o600))).map(File::from)
}

/// Creates a device or a fifo.
pub fn make_node(parent: BorrowedFd<'_>, name: &[u8], kind: SFlag, device: dev_t) -> io::Result<()> {
    Ok(mknodat(Some(parent.as_raw_fd()), name, kind, Mode::from_bits_truncate(0o600), device)?)
}

/// A path to a name in an open directory, for calls that only take paths.
pub fn entry_path(parent: BorrowedFd<'_>, name: &[u8]) -> PathBuf {
    super::to_path([format!("/proc/self/fd/{}/", parent.as_raw_fd()).as_bytes(), name].concat())
}

fn open_entry(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    own(openat(Some(parent.as_raw_fd()), name, flags, Mode::empty()))
}

fn kernel_path(directory: BorrowedFd<'_>) -> io::Result<PathBuf> {
    let link = nix::fcntl::readlink(Path::new(&format!("/proc/self/fd/{}", directory.as_raw_fd())))?;
    Ok(super::to_path(link.into_vec()))
}

fn own(opened: nix::Result<RawFd>) -> io::Result<OwnedFd> {
    let descriptor = opened?;
    // SAFETY: the descriptor was just opened by the kernel for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        let split = split(b"./usr//lib/./x").unwrap();
        assert_eq!(split, Split { parent: vec![b"usr", b"lib"], name: Some(b"x") });
        assert_eq!(super::split(b"./").unwrap(), Split { parent: vec![], name: None });
        assert_eq!(super::split(b"/etc/passwd").unwrap().parent, vec![b"etc"]);
    }

    #[test]
    fn names_that_leave_are_refused() {
        assert!(split(b"../x").is_err());
        assert!(split(b"a/../../x").is_err());
        assert!(split(b"a/..").is_err());
        assert!(split(b"a\0b").is_err());
        assert!(split("a/".repeat(DEPTH_MAX + 1).as_bytes()).is_err());
    }
}
