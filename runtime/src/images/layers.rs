//! Unpacked layers, shared by all images that are built on the same layers.
//!
//! A layer is unpacked on top of those below it, since its tarball may name a directory only by way of a
//! link, or not at all, in a lower one. So a layer's name is its chain's id (OCI image specification,
//! "Layer ChainID"): the same tarball on another base is another layer.
//!
//! Unpacking goes through overlayfs, mounted in a mount namespace of the unpacking thread. The namespace,
//! and with it the mount, ends with the thread, however that ends.
//!
//! Invariant: a layer that has a record was unpacked whole, matched its diff id, and is on the disk.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde::{Deserialize, Serialize};

use super::config::Limits;
use super::digest::Digest;
use super::disk;
use super::error::ImageError;
use super::unpack::{self, LayerStream, UnpackError};

/// How much of a chain's digest names its directory: 96 bits, so that the names of all layers of an image
/// fit into the one page that mount options may take.
const NAME_DIGITS: usize = 24;
const RECORD_BYTES_MAX: u64 = 4096;
const UNPACK_STACK_BYTES: usize = 8 << 20;

/// One layer of an image: where it comes from and what it is once unpacked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// The compressed tarball.
    pub blob: Digest,
    /// The uncompressed tarball.
    pub diff_id: Digest,
    /// This layer on top of all below it.
    pub chain_id: Digest,
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    chain_id: Digest,
    diff_id: Digest,
    size_bytes: u64,
}

#[derive(Debug)]
pub struct Layers {
    directory: PathBuf,
    scratch: PathBuf,
    /// Unpacked whole; those whose record is still to be written among them.
    complete: Mutex<BTreeSet<Digest>>,
}

impl Layers {
    /// Opens or makes the store below `directory`, and removes half layers.
    pub fn open(directory: &Path, scratch: &Path) -> Result<Self, ImageError> {
        let layers = directory.join("layers");
        disk::create_directory(&layers)?;
        let mut complete = BTreeSet::new();
        let mut known = BTreeSet::from([EMPTY.to_owned()]);
        for name in disk::names(&layers)?.iter().filter_map(|name| name.strip_suffix(".json")) {
            let record = read_record(&layers.join(format!("{name}.json")))?;
            if let Some(record) = record.filter(|record| short(&record.chain_id) == name && layers.join(name).is_dir())
            {
                complete.insert(record.chain_id);
                known.extend([name.to_owned(), format!("{name}.json")]);
            }
        }
        for name in disk::names(&layers)?.iter().filter(|name| !known.contains(*name)) {
            disk::remove(&layers.join(name))?;
        }
        disk::create_directory(&layers.join(EMPTY))?;
        Ok(Self { directory: layers, scratch: scratch.to_owned(), complete: Mutex::new(complete) })
    }

    /// The directory that relative layer names count from.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn has(&self, chain_id: &Digest) -> bool {
        self.complete().contains(chain_id)
    }

    /// Where a layer's files are.
    pub fn path(&self, chain_id: &Digest) -> PathBuf {
        self.directory.join(short(chain_id))
    }

    /// Unpacks `blob` as `layer` on top of `below` (lowest first). Blocks.
    ///
    /// The layer is usable at once, and survives a crash after [`Layers::settle`].
    pub fn unpack(
        &self,
        blob: &Path,
        layer: &Layer,
        below: &[Layer],
        limits: &Limits,
        cancelled: &AtomicBool,
    ) -> Result<(), ImageError> {
        if self.has(&layer.chain_id) {
            return Ok(());
        }
        let target = self.path(&layer.chain_id);
        let work = disk::temporary(&self.scratch);
        let unpacked = self.unpack_in(&work, blob, layer, below, limits, cancelled);
        let result = match unpacked {
            Ok(size_bytes) => self.publish(&work, &target, layer, size_bytes),
            Err(UnpackError::Cancelled) => Err(ImageError::Cancelled),
            Err(error) => Err(ImageError::Unpack { diff_id: layer.diff_id, error }),
        };
        if let Err(error) = disk::remove(&work) {
            tracing::warn!(path = %work.display(), %error, "scratch directory is left behind");
        }
        result
    }

    fn unpack_in(
        &self,
        work: &Path,
        blob: &Path,
        layer: &Layer,
        below: &[Layer],
        limits: &Limits,
        cancelled: &AtomicBool,
    ) -> Result<u64, UnpackError> {
        for part in ["fs", "work", "merged"] {
            fs::create_dir_all(work.join(part)).map_err(UnpackError::io("create the layer's directory"))?;
        }
        let lower: Vec<String> = below.iter().map(|layer| short(&layer.chain_id)).collect();
        let job = || {
            let root = self.open_root(work, &lower)?;
            let blob = File::open(blob).map_err(UnpackError::io("open the blob"))?;
            let mut stream = LayerStream::new(blob, limits.unpacked_bytes)?;
            let unpacked = unpack::unpack(&mut stream, root, limits, cancelled)?;
            let actual = stream.finish()?;
            if actual != layer.diff_id {
                return Err(UnpackError::DiffId { actual });
            }
            Ok(unpacked)
        };
        // The thread's namespace and working directory are its own, so they end with it.
        let unpacked = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("unpack".into()).stack_size(UNPACK_STACK_BYTES);
            let handle = thread.spawn_scoped(scope, job).map_err(UnpackError::io("start a thread"))?;
            handle.join().unwrap_or_else(|_| Err(UnpackError::Stream("unpacking panicked".into())))
        })?;
        mark_opaque(&work.join("fs"), &unpacked.opaque)?;
        Ok(unpacked.size_bytes)
    }

    /// The directory to unpack into: plain for a base layer, else an overlay over the layers below.
    fn open_root(&self, work: &Path, lower: &[String]) -> Result<OwnedFd, UnpackError> {
        let upper = work.join("fs");
        let open = |path: &Path| File::open(path).map(OwnedFd::from).map_err(UnpackError::io("open the root"));
        let Some(top) = lower.last() else { return open(&upper) };
        let top = open(&self.directory.join(top))?;
        unpack::copy_root(top.as_fd(), open(&upper)?.as_fd()).map_err(UnpackError::io("prepare the root"))?;
        let io = |action| move |errno: nix::Error| UnpackError::Io { action, cause: errno.into() };
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).map_err(io("make a mount namespace"))?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
            .map_err(io("make mounts private"))?;
        let name = work.file_name().unwrap_or_default().to_string_lossy();
        // Nothing of an unfinished layer is kept, so the overlay need not sync.
        let options = format!(
            "{},volatile",
            overlay_options(lower, &format!("../tmp/{name}/fs"), &format!("../tmp/{name}/work"))
        );
        nix::unistd::chdir(&self.directory).map_err(io("change to the layers' directory"))?;
        let merged = work.join("merged");
        mount(Some("overlay"), &merged, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
            .map_err(io("mount the layers below"))?;
        open(&merged)
    }

    fn publish(&self, work: &Path, target: &Path, layer: &Layer, size_bytes: u64) -> Result<(), ImageError> {
        let record = Record { chain_id: layer.chain_id, diff_id: layer.diff_id, size_bytes };
        let mut complete = self.complete();
        if complete.iter().any(|other| *other != layer.chain_id && short(other) == short(&layer.chain_id)) {
            let reason = "its name collides with that of another layer".to_owned();
            return Err(ImageError::Content { what: format!("layer {}", layer.diff_id), reason });
        }
        if complete.contains(&layer.chain_id) {
            return Ok(());
        }
        fs::rename(work.join("fs"), target).map_err(ImageError::at("rename", target))?;
        let unsettled = serde_json::to_vec(&record).map_err(|error| ImageError::Archive(error.to_string()))?;
        let path = self.pending_path(&layer.chain_id);
        fs::write(&path, unsettled).map_err(ImageError::at("write", &path))?;
        complete.insert(layer.chain_id);
        Ok(())
    }

    /// Makes `layers` survive a crash: first their contents, then the records that vouch for them. Blocks.
    pub fn settle(&self, layers: &[Layer]) -> Result<(), ImageError> {
        let pending: Vec<_> = layers.iter().filter(|layer| self.pending_path(&layer.chain_id).exists()).collect();
        if pending.is_empty() {
            return Ok(());
        }
        let directory = File::open(&self.directory).map_err(ImageError::at("open", &self.directory))?;
        sync_file_system(&directory).map_err(ImageError::at("sync", &self.directory))?;
        for layer in pending {
            let (from, to) = (self.pending_path(&layer.chain_id), self.record_path(&layer.chain_id));
            match fs::rename(&from, &to) {
                // Another image with the same layer settled it meanwhile.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                renamed => renamed.map_err(ImageError::at("rename", &from))?,
            }
        }
        directory.sync_all().map_err(ImageError::at("sync", &self.directory))
    }

    /// The contents of a layer; 0 if it is not here.
    pub fn size_bytes(&self, chain_id: &Digest) -> u64 {
        let paths = [self.record_path(chain_id), self.pending_path(chain_id)];
        paths.iter().find_map(|path| read_record(path).ok().flatten()).map_or(0, |record| record.size_bytes)
    }

    pub fn list(&self) -> Vec<Digest> {
        self.complete().iter().copied().collect()
    }

    /// Takes a layer out of the store; gives its size and where its files are now, to be deleted.
    pub fn set_aside(&self, chain_id: &Digest) -> Result<(u64, PathBuf), ImageError> {
        let size_bytes = self.size_bytes(chain_id);
        let (from, aside) = (self.path(chain_id), disk::temporary(&self.scratch));
        self.complete().remove(chain_id);
        // Without a record first, so that a crash in between leaves no record of nothing.
        disk::remove(&self.record_path(chain_id))?;
        disk::remove(&self.pending_path(chain_id))?;
        fs::rename(&from, &aside).map_err(ImageError::at("rename", &from))?;
        Ok((size_bytes, aside))
    }

    fn record_path(&self, chain_id: &Digest) -> PathBuf {
        self.directory.join(format!("{}.json", short(chain_id)))
    }

    fn pending_path(&self, chain_id: &Digest) -> PathBuf {
        self.directory.join(format!("{}.pending", short(chain_id)))
    }

    fn complete(&self) -> std::sync::MutexGuard<'_, BTreeSet<Digest>> {
        self.complete.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// A directory that stands in for the layers of an image that has none.
const EMPTY: &str = "empty";

/// The names of `layers` (lowest first) as overlayfs wants them, relative to the layers' directory.
pub fn lower_names(layers: &[Layer]) -> Vec<String> {
    if layers.is_empty() {
        return vec![EMPTY.to_owned()];
    }
    layers.iter().map(|layer| short(&layer.chain_id)).collect()
}

/// Mount options for an overlay over `lower` (lowest first). Features that tie an upper directory to one
/// set of lower ones are off, since uppers become lowers here.
pub fn overlay_options(lower: &[String], upper: &str, work: &str) -> String {
    let top_first: Vec<&str> = lower.iter().rev().map(String::as_str).collect();
    let lower = top_first.join(":");
    format!("lowerdir={lower},upperdir={upper},workdir={work},redirect_dir=off,index=off,metacopy=off,xino=off")
}

/// Hides, in each of these directories of a new layer, what lower layers have there.
fn mark_opaque(upper: &Path, directories: &[PathBuf]) -> Result<(), UnpackError> {
    let root = File::open(upper).map_err(UnpackError::io("open the layer"))?;
    for directory in directories {
        unpack::mark_opaque(root.as_fd(), directory).map_err(UnpackError::io("mark a directory opaque"))?;
    }
    Ok(())
}

fn short(chain_id: &Digest) -> String {
    let mut name = chain_id.hex();
    name.truncate(NAME_DIGITS);
    name
}

fn read_record(path: &Path) -> Result<Option<Record>, ImageError> {
    let bytes = disk::read_bounded(path, RECORD_BYTES_MAX)?;
    Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

fn sync_file_system(file: &File) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: the descriptor is open for the length of the call.
    match unsafe { libc::syncfs(file.as_raw_fd()) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
