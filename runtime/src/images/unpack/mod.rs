//! Turns layer tarballs into directory trees.
//!
//! A layer comes from a stranger and is unpacked by root, so this is where an image would break out.
//! Every name is resolved by the kernel, from a descriptor of the tree's root, so that neither `..` nor
//! a symbolic link planted by an earlier entry leads outside; see [`tree`].
//!
//! Defined by the OCI image specification, "Image Layer Filesystem Changeset".
//!
//! Invariant: nothing outside the root is created, changed, linked or removed.
//! Invariant: bytes, entries, name lengths and depth are bounded by [`Limits`] and constants here.

mod metadata;
pub(crate) mod stream;
mod tree;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::AtFlags;
use nix::sys::stat::{SFlag, makedev};

use super::config::Limits;
use super::tarball::{Entry, TarError, TarReader, Time};
use super::tarheader::Kind;
pub use metadata::copy_root;
pub use stream::{LayerStream, decompress};
pub use tree::mark_opaque;
use tree::{Split, Tree};

const WHITEOUT: &[u8] = b".wh.";
/// Also the prefix of files that aufs kept for itself, which mean nothing here.
const WHITEOUT_META: &[u8] = b".wh..wh.";
const WHITEOUT_OPAQUE: &[u8] = b".wh..wh..opq";

const COPY_BYTES: usize = 256 << 10;
/// The free space is looked at whenever this much was written.
const SPACE_CHECK_BYTES: u64 = 16 << 20;
/// Directories whose times are restored at the end; beyond it they keep the time of unpacking.
const REMEMBERED_PATH_BYTES_MAX: usize = 16 << 20;
const OPAQUE_DIRECTORIES_MAX: usize = 100_000;

#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error("{}: {cause}", show(.path))]
    Entry { path: Vec<u8>, cause: io::Error },
    #[error("{}: {reason}", show(.path))]
    Refused { path: Vec<u8>, reason: &'static str },
    #[error("{0}")]
    Tar(TarError),
    #[error("{0}")]
    Stream(String),
    #[error("more than {limit_bytes} bytes when decompressed")]
    TooLarge { limit_bytes: u64 },
    #[error("more than {limit} entries")]
    TooManyEntries { limit: u64 },
    #[error("contents have the digest {actual}")]
    DiffId { actual: super::digest::Digest },
    #[error("no space left on device, {reserve_bytes} bytes of which stay free")]
    DiskFull { reserve_bytes: u64 },
    #[error("{action}: {cause}")]
    Io { action: &'static str, cause: io::Error },
    #[error("cancelled")]
    Cancelled,
}

impl UnpackError {
    pub(super) fn io(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |cause| Self::Io { action, cause }
    }
}

/// A name from outside as text that is safe to print, and not too long.
fn show(path: &[u8]) -> String {
    const SHOWN_BYTES: usize = 120;
    path[..path.len().min(SHOWN_BYTES)].escape_ascii().to_string()
}

/// What unpacking left behind.
#[derive(Debug, Default)]
pub struct Unpacked {
    /// Of file contents.
    pub size_bytes: u64,
    /// Directories below the root that hide what lower layers have in them.
    pub opaque: Vec<PathBuf>,
}

/// Unpacks a tar stream into the directory `root`.
///
/// `root` shows the layers below, so that whiteouts have something to remove. Runs until the end of the
/// archive; what follows it in `stream` is left unread.
///
/// # Errors
/// If the stream is not a sound tar stream, an entry is refused, a limit is reached, the disk is full,
/// or `cancelled` becomes true.
pub fn unpack(
    stream: impl Read,
    root: OwnedFd,
    limits: &Limits,
    cancelled: &AtomicBool,
) -> Result<Unpacked, UnpackError> {
    let mut unpacker = Unpacker {
        tree: Tree::new(root).map_err(UnpackError::io("open the root"))?,
        limits,
        cancelled,
        result: Unpacked::default(),
        unchecked_bytes: 0,
        directory_times: Vec::new(),
        remembered_path_bytes: 0,
        buffer: vec![0; COPY_BYTES],
    };
    let mut tar = TarReader::new(stream);
    let mut entries = 0;
    while let Some(entry) = tar.next_entry().map_err(tar_error)? {
        entries += 1;
        if entries > limits.entries {
            return Err(UnpackError::TooManyEntries { limit: limits.entries });
        }
        unpacker.check_cancelled()?;
        unpacker.apply(&entry, &mut tar)?;
    }
    unpacker.restore_directory_times();
    Ok(unpacker.result)
}

/// Our own errors travel through the tar reader as I/O errors; this takes them out again.
fn tar_error(error: TarError) -> UnpackError {
    match error {
        TarError::Read(cause) => stream::recover(cause),
        other => UnpackError::Tar(other),
    }
}

struct Unpacker<'a> {
    tree: Tree,
    limits: &'a Limits,
    cancelled: &'a AtomicBool,
    result: Unpacked,
    /// Written since the free space was last looked at.
    unchecked_bytes: u64,
    directory_times: Vec<(Vec<u8>, Time)>,
    remembered_path_bytes: usize,
    buffer: Vec<u8>,
}

impl Unpacker<'_> {
    fn apply(&mut self, entry: &Entry, data: &mut impl Read) -> Result<(), UnpackError> {
        let split = tree::split(&entry.path).map_err(|reason| refused(entry, reason))?;
        if split.is_aufs_metadata(WHITEOUT_META, WHITEOUT_OPAQUE) || matches!(entry.kind, Kind::Other(_)) {
            return Ok(());
        }
        match split.name {
            Some(WHITEOUT_OPAQUE) => self.opaque(entry, &split),
            Some(name) if name.starts_with(WHITEOUT) => self.whiteout(entry, &split, &name[WHITEOUT.len()..]),
            Some(name) => self.create(entry, &split, name, data),
            None => self.root(entry),
        }
    }

    /// The entry of the root directory itself, usually `./`.
    fn root(&mut self, entry: &Entry) -> Result<(), UnpackError> {
        if entry.kind != Kind::Directory {
            return Err(refused(entry, "replaces the root"));
        }
        metadata::apply_to_descriptor(self.tree.root(), entry).map_err(|cause| failed(entry, cause))?;
        self.remember_directory(entry);
        Ok(())
    }

    /// Removes what a lower layer has.
    fn whiteout(&mut self, entry: &Entry, split: &Split<'_>, name: &[u8]) -> Result<(), UnpackError> {
        if matches!(name, b"" | b"." | b"..") {
            return Err(refused(entry, "whiteout of no file"));
        }
        match self.tree.find_directory(&split.parent) {
            Ok(parent) => self.tree.remove(&parent, name).map_err(|cause| failed(entry, cause)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(cause) => Err(failed(entry, cause)),
        }
    }

    /// Notes a directory whose lower contents are to be hidden.
    fn opaque(&mut self, entry: &Entry, split: &Split<'_>) -> Result<(), UnpackError> {
        if self.result.opaque.len() >= OPAQUE_DIRECTORIES_MAX {
            return Err(refused(entry, "too many opaque directories"));
        }
        let directory = self.tree.make_directory(&split.parent).map_err(|cause| failed(entry, cause))?;
        metadata::touch_mode(directory.as_fd()).map_err(|cause| failed(entry, cause))?;
        let path = self.tree.path_of(directory.as_fd()).map_err(|cause| failed(entry, cause))?;
        self.result.opaque.push(path);
        Ok(())
    }

    fn create(
        &mut self,
        entry: &Entry,
        split: &Split<'_>,
        name: &[u8],
        data: &mut impl Read,
    ) -> Result<(), UnpackError> {
        let parent = self.tree.make_directory(&split.parent).map_err(|cause| failed(entry, cause))?;
        if entry.kind == Kind::Directory {
            return self.directory(entry, parent.as_fd(), name);
        }
        self.tree.make_room(&parent, name).map_err(|cause| failed(entry, cause))?;
        match entry.kind {
            Kind::File => self.file(entry, parent.as_fd(), name, data),
            Kind::HardLink => self.hard_link(entry, parent.as_fd(), name),
            _ => self.special(entry, parent.as_fd(), name),
        }
    }

    fn directory(&mut self, entry: &Entry, parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), UnpackError> {
        let directory = self.tree.enter_or_make(parent, name).map_err(|cause| failed(entry, cause))?;
        metadata::apply_to_descriptor(directory.as_fd(), entry).map_err(|cause| failed(entry, cause))?;
        self.remember_directory(entry);
        Ok(())
    }

    fn file(
        &mut self,
        entry: &Entry,
        parent: BorrowedFd<'_>,
        name: &[u8],
        data: &mut impl Read,
    ) -> Result<(), UnpackError> {
        let mut file = tree::create_file(parent, name).map_err(|cause| failed(entry, cause))?;
        match &entry.sparse {
            None => self.copy(entry, data, &mut file, entry.size_bytes)?,
            Some(runs) => {
                file.set_len(entry.size_bytes).map_err(|cause| failed(entry, cause))?;
                for run in runs {
                    io::Seek::seek(&mut file, io::SeekFrom::Start(run.offset)).map_err(|cause| failed(entry, cause))?;
                    self.copy(entry, data, &mut file, run.length)?;
                }
            }
        }
        metadata::apply_to_descriptor(file.as_fd(), entry).map_err(|cause| failed(entry, cause))
    }

    fn copy(
        &mut self,
        entry: &Entry,
        data: &mut impl Read,
        file: &mut File,
        length_bytes: u64,
    ) -> Result<(), UnpackError> {
        let mut rest_bytes = length_bytes;
        while rest_bytes > 0 {
            let wanted = self.buffer.len().min(usize::try_from(rest_bytes).unwrap_or(usize::MAX));
            let count = data.read(&mut self.buffer[..wanted]).map_err(stream::recover)?;
            if count == 0 {
                return Err(UnpackError::Tar(TarError::Truncated));
            }
            file.write_all(&self.buffer[..count]).map_err(|cause| failed(entry, cause))?;
            rest_bytes -= count as u64;
            self.account(count as u64)?;
        }
        Ok(())
    }

    fn account(&mut self, written_bytes: u64) -> Result<(), UnpackError> {
        self.result.size_bytes += written_bytes;
        self.unchecked_bytes += written_bytes;
        if self.unchecked_bytes < SPACE_CHECK_BYTES {
            return Ok(());
        }
        self.unchecked_bytes = 0;
        self.check_cancelled()?;
        let space = nix::sys::statvfs::fstatvfs(self.tree.root())
            .map_err(|errno| UnpackError::Io { action: "look at the free space", cause: errno.into() })?;
        match space.blocks_available() * space.fragment_size() < self.limits.free_bytes {
            true => Err(UnpackError::DiskFull { reserve_bytes: self.limits.free_bytes }),
            false => Ok(()),
        }
    }

    /// The target is named from the root, and resolved inside it like any other name.
    fn hard_link(&mut self, entry: &Entry, parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), UnpackError> {
        let target = tree::split(&entry.link).map_err(|_| refused(entry, "hard link that leaves the layer"))?;
        let Some(target_name) = target.name else { return Err(refused(entry, "hard link to a directory")) };
        let source = self.tree.find_directory(&target.parent).map_err(|cause| failed(entry, cause))?;
        nix::unistd::linkat(Some(source.as_raw_fd()), target_name, Some(parent.as_raw_fd()), name, AtFlags::empty())
            .map_err(|errno| failed(entry, errno.into()))
    }

    fn special(&mut self, entry: &Entry, parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), UnpackError> {
        let kind = match entry.kind {
            Kind::SymbolicLink => return self.symbolic_link(entry, parent, name),
            Kind::CharacterDevice if entry.device == (0, 0) => {
                return Err(refused(entry, "character device 0:0, which would hide files"));
            }
            Kind::CharacterDevice => SFlag::S_IFCHR,
            Kind::BlockDevice => SFlag::S_IFBLK,
            _ => SFlag::S_IFIFO,
        };
        let device = makedev(entry.device.0.into(), entry.device.1.into());
        tree::make_node(parent, name, kind, device).map_err(|cause| failed(entry, cause))?;
        metadata::apply_to_name(parent, name, entry).map_err(|cause| failed(entry, cause))
    }

    /// The target is kept as it is: inside a container it is resolved from the container's root.
    fn symbolic_link(&mut self, entry: &Entry, parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), UnpackError> {
        if entry.link.contains(&0) {
            return Err(refused(entry, "link target holds a NUL"));
        }
        nix::unistd::symlinkat(entry.link.as_slice(), Some(parent.as_raw_fd()), name)
            .map_err(|errno| failed(entry, errno.into()))?;
        metadata::apply_to_name(parent, name, entry).map_err(|cause| failed(entry, cause))
    }

    fn remember_directory(&mut self, entry: &Entry) {
        if self.remembered_path_bytes < REMEMBERED_PATH_BYTES_MAX {
            self.remembered_path_bytes += entry.path.len() + size_of::<(Vec<u8>, Time)>();
            self.directory_times.push((entry.path.clone(), entry.mtime));
        }
    }

    /// Last, since each entry made in a directory changes its time. A directory that a later entry
    /// replaced is passed over.
    fn restore_directory_times(&mut self) {
        for (path, time) in std::mem::take(&mut self.directory_times) {
            let Ok(split) = tree::split(&path) else { continue };
            let found = self.tree.find_directory(&split.whole());
            if let Err(error) = found.and_then(|directory| metadata::set_times(directory.as_fd(), time)) {
                tracing::debug!(path = show(&path), %error, "directory time is not restored");
            }
        }
    }

    fn check_cancelled(&self) -> Result<(), UnpackError> {
        if self.cancelled.load(Ordering::Relaxed) { Err(UnpackError::Cancelled) } else { Ok(()) }
    }
}

fn refused(entry: &Entry, reason: &'static str) -> UnpackError {
    UnpackError::Refused { path: entry.path.clone(), reason }
}

fn failed(entry: &Entry, cause: io::Error) -> UnpackError {
    match cause.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => UnpackError::DiskFull { reserve_bytes: 0 },
        _ => UnpackError::Entry { path: entry.path.clone(), cause },
    }
}

fn to_path(bytes: Vec<u8>) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes))
}
