//! Root file systems of containers: an image's layers below, the container's own changes on top.
//!
//! A mount outlives the daemon. What it consists of is recorded beside the container's changes, so that
//! a restarted daemon knows which images are in use, and a rebooted machine can mount again.
//!
//! Invariant: a container id has at most one mount; mounting again gives the same one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs};
use serde::{Deserialize, Serialize};

use super::catalog::Image;
use super::digest::Digest;
use super::disk;
use super::error::ImageError;
use super::layers::{self, Layer, Layers};
use super::unpack;

const ID_BYTES_MAX: usize = 128;
const RECORD_BYTES_MAX: u64 = 1 << 20;

/// A mounted root file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rootfs {
    /// Where it is mounted.
    pub path: PathBuf,
    /// What the container changed; counts toward its ephemeral storage.
    pub upper: PathBuf,
    /// The image's manifest.
    pub image: Digest,
}

/// What a mount is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountRecord {
    pub path: PathBuf,
    pub image: Digest,
    pub layers: Vec<Layer>,
}

#[derive(Debug)]
pub struct Mounts {
    directory: PathBuf,
    scratch: PathBuf,
    records: Mutex<BTreeMap<String, MountRecord>>,
}

impl Mounts {
    /// Opens the records below `directory`, and removes what has none.
    pub fn open(directory: &Path, scratch: &Path) -> Result<Self, ImageError> {
        let mounts = directory.join("mounts");
        disk::create_directory(&mounts)?;
        let mut records = BTreeMap::new();
        for id in disk::names(&mounts)? {
            let bytes = disk::read_bounded(&mounts.join(&id).join("mount.json"), RECORD_BYTES_MAX)?;
            match bytes.and_then(|bytes| serde_json::from_slice::<MountRecord>(&bytes).ok()) {
                Some(record) => drop(records.insert(id, record)),
                None => disk::remove(&mounts.join(&id))?,
            }
        }
        Ok(Self { directory: mounts, scratch: scratch.to_owned(), records: Mutex::new(records) })
    }

    pub fn mount(&self, layers: &Layers, image: &Image, id: &str, path: &Path) -> Result<Rootfs, ImageError> {
        check_id(id)?;
        check_layers(layers, image)?;
        let mut records = self.lock();
        if let Some(known) = records.get(id)
            && (known.path != path || known.image != image.digest)
        {
            return Err(ImageError::MountedElsewhere { id: id.into(), path: known.path.display().to_string() });
        }
        let record = MountRecord { path: path.to_owned(), image: image.digest, layers: image.layers.clone() };
        if !records.contains_key(id) {
            self.prepare(layers, id, &record)?;
        }
        // In memory first: from here on the image is in use.
        records.insert(id.to_owned(), record);
        disk::create_directory(path)?;
        if !is_overlay(path) {
            let options = layers::overlay_options(
                &layers::lower_names(&image.layers),
                &format!("../mounts/{id}/upper"),
                &format!("../mounts/{id}/work"),
            );
            mount_in(layers.directory(), path, &options).map_err(ImageError::at("mount", path))?;
        }
        Ok(Rootfs { path: path.to_owned(), upper: self.directory.join(id).join("upper"), image: image.digest })
    }

    /// Makes the container's own directories, and the record last.
    fn prepare(&self, layers: &Layers, id: &str, record: &MountRecord) -> Result<(), ImageError> {
        let own = self.directory.join(id);
        disk::remove(&own)?;
        let upper = own.join("upper");
        disk::create_directory(&upper)?;
        disk::create_directory(&own.join("work"))?;
        if let Some(top) = record.layers.last() {
            let open = |path: &Path| File::open(path).map_err(ImageError::at("open", path));
            unpack::copy_root(open(&layers.path(&top.chain_id))?.as_fd(), open(&upper)?.as_fd())
                .map_err(ImageError::at("prepare", &upper))?;
        }
        let bytes = serde_json::to_vec(record)
            .map_err(|error| ImageError::Content { what: "mount record".into(), reason: error.to_string() })?;
        // A crash of the machine ends the mount too, so the record need not be synced.
        let unfinished = disk::temporary(&self.scratch);
        fs::write(&unfinished, bytes).map_err(ImageError::at("write", &unfinished))?;
        fs::rename(&unfinished, own.join("mount.json")).map_err(ImageError::at("rename", &unfinished))
    }

    /// Unmounts and deletes the container's changes. A container that has no mount is fine.
    pub fn unmount(&self, id: &str) -> Result<(), ImageError> {
        check_id(id)?;
        let mut records = self.lock();
        if let Some(record) = records.get(id) {
            detach(&record.path)?;
            // A mount point that holds something else stays.
            let _ = fs::remove_dir(&record.path);
        }
        disk::remove(&self.directory.join(id))?;
        records.remove(id);
        Ok(())
    }

    pub fn list(&self) -> BTreeMap<String, MountRecord> {
        self.lock().clone()
    }

    /// All mounts by container id.
    pub fn rootfs(&self) -> Vec<(String, Rootfs)> {
        let rootfs = |id: &String, record: &MountRecord| Rootfs {
            path: record.path.clone(),
            upper: self.directory.join(id).join("upper"),
            image: record.image,
        };
        self.lock().iter().map(|(id, record)| (id.clone(), rootfs(id, record))).collect()
    }

    /// A container that uses this image.
    pub fn user_of(&self, image: &Digest) -> Option<String> {
        self.lock().iter().find(|(_, record)| record.image == *image).map(|(id, _)| id.clone())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, MountRecord>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ids name directories and stand in mount options.
fn check_id(id: &str) -> Result<(), ImageError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let is_good = !id.is_empty() && id.len() <= ID_BYTES_MAX && id.bytes().all(plain) && !id.starts_with('.');
    if is_good { Ok(()) } else { Err(ImageError::BadContainerId(id.chars().take(ID_BYTES_MAX).collect())) }
}

fn check_layers(layers: &Layers, image: &Image) -> Result<(), ImageError> {
    match image.layers.iter().find(|layer| !layers.has(&layer.chain_id)) {
        Some(layer) => Err(ImageError::LayerMissing { image: image.digest.to_string(), layer: layer.diff_id }),
        None => Ok(()),
    }
}

/// Whether an overlay is mounted at `path`: unlike what `path` lies in.
fn is_overlay(path: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|status| status.dev()).ok();
    let above = path.parent().and_then(device);
    let is_overlay = statfs(path).is_ok_and(|status| status.filesystem_type() == OVERLAYFS_SUPER_MAGIC);
    is_overlay && device(path) != above
}

/// Mounts an overlay whose options name directories relative to `directory`. The working directory is
/// changed for a thread of its own, the mount is made for the whole process.
fn mount_in(directory: &Path, path: &Path, options: &str) -> io::Result<()> {
    let path = std::path::absolute(path)?;
    let job = || {
        unshare(CloneFlags::CLONE_FS)?;
        nix::unistd::chdir(directory)?;
        mount(Some("overlay"), &path, Some("overlay"), MsFlags::empty(), Some(options))
    };
    std::thread::scope(|scope| {
        let handle = std::thread::Builder::new().name("mount".into()).spawn_scoped(scope, job)?;
        handle.join().map_err(|_| io::Error::other("the mounting thread panicked"))?.map_err(io::Error::from)
    })
}

fn detach(path: &Path) -> Result<(), ImageError> {
    match umount2(path, MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(Errno::EBUSY) => umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
            .map_err(|errno| ImageError::at("unmount", path)(errno.into())),
        Err(errno) => Err(ImageError::at("unmount", path)(errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_could_name_something_else_are_refused() {
        for bad in ["", ".", "..", "a/b", "a,b", "a:b", ".x", "a b"] {
            assert!(check_id(bad).is_err(), "{bad:?}");
        }
        assert!(check_id("pod-1_web.2").is_ok());
        assert!(check_id(&"a".repeat(129)).is_err());
    }
}
