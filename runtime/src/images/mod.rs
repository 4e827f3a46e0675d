//! Images of one node: names, content, unpacked layers, and the root file systems of containers.
//!
//! ```text
//! peers ─────┐
//! registry ── pull ──┐                   ┌── mount ── root file systems
//! archive ── import ─┴─ blobs ── layers ─┤
//!                        │               └── garbage collection
//!                        └── export
//! ```
//!
//! [`Images`] is the handle to all of it. Below its directory lie `blobs/` (compressed, by digest),
//! `ingest/` (blobs on their way), `layers/` (unpacked), `mounts/` (what containers changed),
//! `catalog.json` (names) and `tmp/`.
//!
//! Invariant: one process at a time has a store open.
//! Invariant: what a crash interrupts is either not there when the store opens again, or whole.

mod blobs;
mod bridge;
pub(crate) mod builtin;
mod catalog;
mod config;
mod digest;
mod disk;
mod download;
mod error;
mod export;
mod gc;
mod import;
mod layers;
mod locks;
pub mod manifest;
mod mounts;
mod origin;
mod peers;
mod pull;
mod reference;
pub(crate) mod registry;
pub mod tarball;
pub mod tarheader;
pub mod unpack;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use nix::fcntl::{Flock, FlockArg};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

pub use builtin::NAME as BUILTIN_IMAGE;
pub use catalog::Image;
pub use config::{Credentials, HostConfig, Limits, RegistryConfig};
pub use digest::{Digest, DigestError};
pub use error::{ImageError, PullError};
pub use gc::GarbagePolicy;
pub use layers::Layer;
pub use manifest::ImageConfig;
pub use mounts::Rootfs;
pub use peers::{Lead, Peer, PeerStream, Peers, Search};
pub use pull::{PullPhase, PullProgress};
pub use reference::{Reference, ReferenceError};

use blobs::Blobs;
use catalog::Catalog;
use layers::Layers;
use locks::{KeyedLocks, Pins};
use mounts::Mounts;
use pull::Pull;
use registry::Registries;

/// The images of this node; cheap to clone.
#[derive(Clone)]
pub struct Images {
    store: Arc<Store>,
    registries: Arc<Registries>,
    /// Pulls under way, by name and credentials.
    pulls: Arc<Mutex<HashMap<PullKey, RunningPull>>>,
}

type PullKey = (Reference, Option<Credentials>);
type PullJob = BoxFuture<'static, Result<Image, PullError>>;

struct RunningPull {
    job: WeakShared<PullJob>,
    progress: watch::Receiver<PullProgress>,
}

/// What is on the disk.
struct Store {
    blobs: Blobs,
    layers: Layers,
    catalog: Catalog,
    mounts: Mounts,
    locks: KeyedLocks,
    pins: Pins,
    config: RegistryConfig,
    /// Asked for blobs before the registry.
    peers: OnceLock<Arc<dyn Peers>>,
    /// Held as long as the store is open.
    _lock: Flock<File>,
}

impl Images {
    /// Opens or makes the store in `directory`, and removes what a crash left half done. Blocks.
    ///
    /// # Errors
    /// If another process has it open, or the directory cannot be used.
    pub fn open(directory: &Path, config: RegistryConfig) -> Result<Self, ImageError> {
        disk::create_directory(directory)?;
        let directory = &std::path::absolute(directory).map_err(ImageError::at("find", directory))?;
        let lock = lock(directory)?;
        let scratch = directory.join("tmp");
        disk::remove(&scratch)?;
        disk::create_directory(&scratch)?;
        let blobs = Blobs::open(directory)?;
        blobs.remove_scratch()?;
        let store = Store {
            layers: Layers::open(directory, &scratch)?,
            catalog: Catalog::open(directory, &scratch, &blobs)?,
            mounts: Mounts::open(directory, &scratch)?,
            blobs,
            locks: KeyedLocks::default(),
            pins: Pins::default(),
            config: config.clone(),
            peers: OnceLock::new(),
            _lock: lock,
        };
        Ok(Self { store: Arc::new(store), registries: Arc::new(Registries::new(config)), pulls: Arc::default() })
    }

    /// Asks `peers` for blobs before the registry from now on. Only the first call counts.
    pub fn ask_peers(&self, peers: Arc<dyn Peers>) {
        if self.store.peers.set(peers).is_err() {
            tracing::error!("peers are set already");
        }
    }

    /// Opens a blob for a peer, at an offset, with its size; `None` if it is not here whole. Blocks.
    pub fn open_blob(&self, digest: &Digest, offset_bytes: u64) -> Option<(u64, File)> {
        self.store.blobs.open_at(digest, offset_bytes)
    }

    pub fn has_blob(&self, digest: &Digest) -> bool {
        self.store.blobs.has(digest)
    }

    /// The configurations and layers of all images: what a peer may want.
    pub fn shared_blobs(&self) -> Vec<Digest> {
        let images = self.store.catalog.list();
        let mut blobs: Vec<Digest> =
            images.iter().flat_map(|image| image.layers.iter().map(|layer| layer.blob).chain([image.id])).collect();
        blobs.sort_unstable();
        blobs.dedup();
        blobs
    }

    /// Gets an image from its registry, or from a mirror of it, even if the name is known here already.
    ///
    /// Calls for the same image at the same time share one pull, which ends when the last of them is
    /// dropped. What a failed pull received is kept for the next.
    ///
    /// # Errors
    /// In one line that fits into a Pod's status; [`PullError::reason`] is its short form.
    pub async fn pull(
        &self,
        reference: &str,
        credentials: Option<&Credentials>,
        progress: watch::Sender<PullProgress>,
    ) -> Result<Image, PullError> {
        let reference: Reference = reference.parse()?;
        if reference.to_string() == BUILTIN_IMAGE {
            return Ok(self.provide_builtin().await?);
        }
        let (job, mut updates) = self.join_pull(reference, credentials)?;
        tokio::pin!(job);
        loop {
            tokio::select! {
                biased;
                result = &mut job => {
                    progress.send_replace(updates.borrow().clone());
                    return result;
                }
                Ok(()) = updates.changed() => {
                    let update = updates.borrow_and_update().clone();
                    progress.send_replace(update);
                }
            }
        }
    }

    fn join_pull(
        &self,
        reference: Reference,
        credentials: Option<&Credentials>,
    ) -> Result<(Shared<PullJob>, watch::Receiver<PullProgress>), PullError> {
        let key = (reference.clone(), credentials.cloned());
        let mut pulls = self.pulls.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = pulls.get(&key)
            && let Some(job) = running.job.upgrade()
            && job.peek().is_none()
        {
            return Ok((job, running.progress.clone()));
        }
        let sources = self.registries.sources(&reference, credentials)?;
        let (sender, progress) = watch::channel(PullProgress::default());
        let pull = Pull { store: self.store.clone(), reference, sources, progress: sender };
        let job = pull.run().boxed().shared();
        pulls.retain(|_, running| running.job.upgrade().is_some());
        if let Some(weak) = job.downgrade() {
            pulls.insert(key, RunningPull { job: weak, progress: progress.clone() });
        }
        Ok((job, progress))
    }

    /// Makes sure that the image inside this program, [`BUILTIN_IMAGE`], is in the store.
    pub async fn provide_builtin(&self) -> Result<Image, ImageError> {
        let builtin = blocking(builtin::compose).await?;
        match self.find(BUILTIN_IMAGE).filter(|image| image.digest == builtin.manifest) {
            Some(image) => Ok(image),
            None => {
                let mut images = import::import(&self.store, io::Cursor::new(builtin.archive), None).await?;
                images.pop().ok_or_else(|| ImageError::NotFound(BUILTIN_IMAGE.into()))
            }
        }
    }

    /// Takes in the images of an archive: an OCI layout or what `docker save` wrote, gzipped or not.
    ///
    /// `name` is for an archive of one image, and needed if that has no name of its own.
    pub async fn import(
        &self,
        archive: impl AsyncRead + Unpin + Send,
        name: Option<&str>,
    ) -> Result<Vec<Image>, ImageError> {
        let name = name.map(str::parse).transpose()?;
        let (input, feed) = bridge::reader(archive);
        let import = import::import(&self.store, input, name);
        tokio::pin!(import, feed);
        // An import that failed does not wait for the rest of the archive.
        tokio::select! {
            biased;
            images = &mut import => images,
            () = &mut feed => import.await,
        }
    }

    /// Writes an image as an archive that this and other tools can import.
    pub async fn export(&self, reference: &str, archive: impl AsyncWrite + Unpin + Send) -> Result<(), ImageError> {
        let image = self.find(reference).ok_or_else(|| ImageError::NotFound(reference.to_owned()))?;
        let known = reference.parse::<Reference>().map(|reference| reference.to_string());
        let name = known.ok().or(image.references.first().cloned()).unwrap_or_default();
        let pin = self.store.pins.pin(image.layers.iter().map(|layer| layer.blob).chain([image.digest, image.id]));
        let (output, drain) = bridge::writer(archive);
        let store = self.store.clone();
        let write = blocking(move || {
            let written = export::write(&store.blobs, &image, &name, output);
            drop(pin);
            written
        });
        let (written, drained) = futures::join!(write, drain);
        drained.map_err(|cause| ImageError::io("write the archive", cause))?;
        written
    }

    /// Forgets a name, and deletes what only it needed; says how many bytes that freed. Blocks.
    ///
    /// # Errors
    /// If it is the last name of an image that a container uses.
    pub fn remove(&self, reference: &str) -> Result<u64, ImageError> {
        gc::remove(&self.store, reference)
    }

    /// Deletes unused images, and everything that no image needs; says how many bytes that freed. Blocks.
    pub fn collect_garbage(&self, policy: &GarbagePolicy) -> Result<u64, ImageError> {
        gc::collect(&self.store, policy)
    }

    /// The image that `name` means here: a reference, or the digest of a manifest or configuration.
    pub fn find(&self, name: &str) -> Option<Image> {
        self.store.catalog.find(name)
    }

    pub fn list(&self) -> Vec<Image> {
        self.store.catalog.list()
    }

    /// Mounts a root file system of `image` for the container `id`. Blocks for about a millisecond.
    ///
    /// Again for the same container gives the same mount, also after the daemon or the machine restarted.
    pub fn mount(&self, image: &Image, id: &str, mount_dir: &Path) -> Result<Rootfs, ImageError> {
        let _pin = self.store.pins.pin(image.layers.iter().map(|layer| layer.chain_id));
        let rootfs = self.store.mounts.mount(&self.store.layers, image, id, mount_dir)?;
        self.store.catalog.touch(&image.digest, jiff::Timestamp::now());
        Ok(rootfs)
    }

    /// Unmounts the container's root file system and deletes what it wrote. Blocks. A container that has
    /// none is fine.
    pub fn unmount(&self, id: &str) -> Result<(), ImageError> {
        self.store.mounts.unmount(id)
    }

    /// The containers that have a root file system here, and where.
    pub fn mounts(&self) -> Vec<(String, Rootfs)> {
        self.store.mounts.rootfs()
    }
}

fn lock(directory: &Path) -> Result<Flock<File>, ImageError> {
    let path = directory.join("lock");
    let file = File::create(&path).map_err(ImageError::at("open", &path))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| ImageError::Locked(directory.display().to_string()))
}

/// Runs `work` where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(ImageError::Io { action: "work on the image store".into(), cause: error.into() }))
}
