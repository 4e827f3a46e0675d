//! Getting an image from a registry onto this node.
//!
//! Layers are downloaded up to three at a time and unpacked in their order as they arrive. What a failed
//! pull got stays, and the next one goes on from there.
//!
//! Invariant: nothing enters the store but what matches the digest in its descriptor.
//! Invariant: hashing, writing and unpacking run on blocking threads; at most [`QUEUED_CHUNKS`] chunks of
//! a layer wait in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::stream::{StreamExt, TryStreamExt};
use tokio::sync::{OwnedMutexGuard, mpsc, oneshot, watch};

use super::blobs::Ingest;
use super::catalog::{Contents, Image};
use super::digest::Digest;
use super::error::{ImageError, PullError};
use super::layers::Layer;
use super::locks::Pin;
use super::manifest::{CONFIG_BYTES_MAX, ConfigFile, Descriptor, Document, MANIFEST_BYTES_MAX, Manifest, Platform};
use super::reference::Reference;
use super::registry::{Fetched, Source};
use super::{Store, blocking};

const PARALLEL_DOWNLOADS: usize = 3;
const QUEUED_CHUNKS: usize = 64;
const ATTEMPTS_MAX: u32 = 4;
const RETRY_WAIT_MS: u64 = 500;

/// How far a pull is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PullProgress {
    pub phase: PullPhase,
    pub layers: usize,
    /// Unpacked, or there already.
    pub layers_done: usize,
    /// Of all compressed layers.
    pub total_bytes: u64,
    /// Downloaded, or there already.
    pub done_bytes: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PullPhase {
    /// Asking the registry what the name means.
    #[default]
    Resolving,
    Downloading,
    /// All is here; the last layers are being unpacked.
    Unpacking,
    Done,
}

/// One image on its way.
pub(super) struct Pull {
    pub store: Arc<Store>,
    pub reference: Reference,
    pub sources: Vec<Source>,
    pub progress: watch::Sender<PullProgress>,
}

/// Tells blocking threads to stop when the pull that started them is dropped.
struct Cancel(Arc<AtomicBool>);

impl Drop for Cancel {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What a name turned out to mean.
struct Resolved {
    /// Of the index or manifest that the name stands for.
    target: Digest,
    manifest_digest: Digest,
    manifest: Manifest,
    config: ConfigFile,
    layers: Vec<Layer>,
    size_bytes: u64,
    /// Keeps all of it from being collected.
    pin: Pin,
}

impl Pull {
    pub async fn run(self) -> Result<Image, PullError> {
        let resolved = self.resolve().await?;
        self.progress.send_modify(|progress| {
            progress.phase = PullPhase::Downloading;
            progress.layers = resolved.layers.len();
            progress.total_bytes = resolved.manifest.layers.iter().map(|layer| layer.size).sum();
        });
        self.fetch_layers(&resolved).await?;
        let image = self.record(resolved).await?;
        self.progress.send_modify(|progress| progress.phase = PullPhase::Done);
        Ok(image)
    }

    async fn resolve(&self) -> Result<Resolved, PullError> {
        let (fetched, target) = self.top_document().await?;
        let mut pin = self.store.pins.pin([target]);
        let document = Document::parse(&fetched.bytes, fetched.media_type.as_deref())?;
        self.put(fetched.bytes.clone()).await?;
        let (manifest, manifest_digest, manifest_bytes) = match document {
            Document::Manifest(manifest) => (manifest, target, fetched.bytes),
            Document::Index(index) => {
                let chosen = index.choose(&Platform::here())?;
                pin.extend([chosen.digest]);
                let bytes = self.small(chosen, true).await?;
                (Manifest::parse(&bytes)?, chosen.digest, bytes)
            }
        };
        pin.extend([manifest.config.digest]);
        let config_bytes = self.small(&manifest.config, false).await?;
        let config = ConfigFile::parse(&config_bytes)?;
        config.check_platform(&Platform::here())?;
        let layers = manifest.layers(&config)?;
        pin.extend(layers.iter().flat_map(|layer| [layer.blob, layer.chain_id]));
        self.check_sizes(&manifest)?;
        let layer_bytes: u64 = manifest.layers.iter().map(|layer| layer.size).sum();
        let size_bytes = layer_bytes + (config_bytes.len() + manifest_bytes.len()) as u64;
        Ok(Resolved { target, manifest_digest, manifest, config, layers, size_bytes, pin })
    }

    fn check_sizes(&self, manifest: &Manifest) -> Result<(), PullError> {
        let limit_bytes = self.store.config.limits.blob_bytes;
        match manifest.layers.iter().find(|layer| layer.size > limit_bytes) {
            Some(layer) => Err(PullError::TooLarge { what: format!("layer {}", layer.digest), limit_bytes }),
            None => Ok(()),
        }
    }

    /// What the name stands for, from the first source that has it.
    async fn top_document(&self) -> Result<(Fetched, Digest), PullError> {
        let mut last = PullError::Cancelled;
        for source in &self.sources {
            match source.manifest(&self.reference, &self.reference.version()).await {
                Ok(fetched) => match verify(source, "a manifest", self.reference.digest(), &fetched.bytes) {
                    Ok(digest) => return Ok((fetched, digest)),
                    Err(error) => last = error,
                },
                Err(error) => last = error,
            }
            tracing::debug!(image = %self.reference, host = source.host(), error = %last, "source has no manifest");
        }
        Err(last)
    }

    /// A manifest or configuration by its descriptor: from the store, or the first source that has it.
    async fn small(&self, descriptor: &Descriptor, is_manifest: bool) -> Result<Vec<u8>, PullError> {
        let limit_bytes = if is_manifest { MANIFEST_BYTES_MAX } else { CONFIG_BYTES_MAX };
        let (store, digest) = (self.store.clone(), descriptor.digest);
        if let Ok(bytes) = blocking(move || store.blobs.read(&digest, limit_bytes)).await {
            return Ok(bytes);
        }
        let mut last = PullError::Cancelled;
        for source in &self.sources {
            let fetched = match is_manifest {
                true => source.manifest(&self.reference, &digest.to_string()).await.map(|fetched| fetched.bytes),
                false => source.small_blob(&digest, limit_bytes).await,
            };
            match fetched {
                Ok(bytes) => match verify(source, "a blob", Some(digest), &bytes) {
                    Ok(_) => {
                        self.put(bytes.clone()).await?;
                        return Ok(bytes);
                    }
                    Err(error) => last = error,
                },
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn put(&self, bytes: Vec<u8>) -> Result<(), PullError> {
        let store = self.store.clone();
        blocking(move || store.blobs.put(&bytes)).await?;
        Ok(())
    }

    /// Downloads and unpacks all layers, each as soon as it and those below it are there.
    async fn fetch_layers(&self, resolved: &Resolved) -> Result<(), PullError> {
        let descriptors = &resolved.manifest.layers;
        let (arrived, arrivals): (Vec<_>, Vec<_>) = descriptors.iter().map(|_| oneshot::channel::<()>()).unzip();
        let downloads: Vec<_> = descriptors
            .iter()
            .zip(arrived)
            .map(|(layer, arrived)| {
                async move {
                    self.download(layer).await?;
                    // The unpacking side is gone only if it failed, and then its error counts.
                    let _ = arrived.send(());
                    Ok::<(), PullError>(())
                }
                .boxed()
            })
            .collect();
        let downloads = futures::stream::iter(downloads).buffer_unordered(PARALLEL_DOWNLOADS).try_collect::<()>();
        let downloads = async {
            downloads.await?;
            self.progress.send_modify(|progress| progress.phase = PullPhase::Unpacking);
            Ok(())
        };
        futures::try_join!(downloads, self.unpack(resolved, arrivals))?;
        Ok(())
    }

    async fn unpack(&self, resolved: &Resolved, arrivals: Vec<oneshot::Receiver<()>>) -> Result<(), PullError> {
        for (index, arrival) in arrivals.into_iter().enumerate() {
            if arrival.await.is_err() {
                // The download failed; its error ends the pull.
                return std::future::pending().await;
            }
            unpack_layer(&self.store, &resolved.layers, index).await?;
            self.progress.send_modify(|progress| progress.layers_done += 1);
        }
        Ok(())
    }

    /// Gets one layer's blob into the store, with retries and from whichever source has it.
    async fn download(&self, layer: &Descriptor) -> Result<(), PullError> {
        let mut last = PullError::Cancelled;
        for source in &self.sources {
            match self.download_from(source, layer).await {
                Err(error) => last = error,
                Ok(()) => return Ok(()),
            }
            tracing::debug!(layer = %layer.digest, host = source.host(), error = %last, "source failed");
        }
        Err(last)
    }

    async fn download_from(&self, source: &Source, layer: &Descriptor) -> Result<(), PullError> {
        let mut attempt = 1;
        loop {
            match self.download_once(source, layer).await {
                Err(error) if error.is_passing() && attempt < ATTEMPTS_MAX => {
                    tracing::info!(layer = %layer.digest, host = source.host(), %error, attempt, "download is retried");
                    tokio::time::sleep(Duration::from_millis(RETRY_WAIT_MS << attempt)).await;
                    attempt += 1;
                }
                done => return done,
            }
        }
    }

    async fn download_once(&self, source: &Source, layer: &Descriptor) -> Result<(), PullError> {
        let digest = layer.digest;
        let guard = self.store.locks.lock(digest).await;
        if self.store.blobs.has(&digest) {
            self.advance(layer.size);
            return Ok(());
        }
        let store = self.store.clone();
        let (mut ingest, guard) = blocking(move || Ok((store.blobs.ingest(digest)?, guard))).await?;
        if ingest.written_bytes() > layer.size {
            ingest.restart()?;
        }
        let resumed_bytes = ingest.written_bytes();
        self.advance(resumed_bytes);
        let mut counted_bytes = resumed_bytes;
        let result = self.receive(source, layer, ingest, guard, &mut counted_bytes).await;
        match result {
            Err(PullError::DigestMismatch { .. }) if resumed_bytes > 0 => {
                // Perhaps only what was resumed was bad: nothing of it is left, so once more from the start.
                self.retreat(counted_bytes);
                tracing::info!(layer = %digest, "a resumed download had the wrong digest and starts again");
                Box::pin(self.download_once(source, layer)).await
            }
            Err(error) => {
                self.retreat(counted_bytes);
                Err(error)
            }
            Ok(()) => Ok(()),
        }
    }

    /// Receives the rest of a blob and commits it. The lock goes with the blob into the writing thread,
    /// which may outlive a dropped pull by a moment.
    async fn receive(
        &self,
        source: &Source,
        layer: &Descriptor,
        mut ingest: Ingest,
        guard: OwnedMutexGuard<()>,
        counted_bytes: &mut u64,
    ) -> Result<(), PullError> {
        let (sender, receiver) = mpsc::channel(QUEUED_CHUNKS);
        let mut stream = None;
        if ingest.written_bytes() < layer.size || layer.size == 0 {
            let begun = source.blob(layer.digest, ingest.written_bytes(), layer.size).await?;
            if begun.offset_bytes < ingest.written_bytes() {
                ingest.restart()?;
                self.retreat(std::mem::take(counted_bytes));
            }
            stream = Some(begun);
        }
        let writer = tokio::task::spawn_blocking(move || write(ingest, receiver, guard));
        let mut received = Ok(());
        while let Some(stream) = &mut stream {
            match stream.chunk().await {
                Ok(Some(chunk)) => {
                    let length_bytes = chunk.len() as u64;
                    if sender.send(Write::Chunk(chunk)).await.is_err() {
                        break; // The writer failed, and says why below.
                    }
                    *counted_bytes += length_bytes;
                    self.advance(length_bytes);
                }
                Ok(None) => break,
                Err(error) => {
                    received = Err(error);
                    break;
                }
            }
        }
        if received.is_ok() {
            // A writer that failed takes no more, and says why below.
            let _ = sender.send(Write::Commit).await;
        }
        drop(sender);
        let written = writer.await.map_err(|error| PullError::Image(error.to_string()))?;
        match (received, written) {
            (Err(error), _) => Err(error),
            (Ok(()), Ok(())) => Ok(()),
            (Ok(()), Err(ImageError::DigestMismatch { expected, actual, .. })) => Err(PullError::DigestMismatch {
                host: source.host().to_owned(),
                what: "a layer".into(),
                expected,
                actual,
            }),
            (Ok(()), Err(error)) => Err(error.into()),
        }
    }

    async fn record(&self, resolved: Resolved) -> Result<Image, PullError> {
        let (store, reference) = (self.store.clone(), self.reference.clone());
        let image = blocking(move || {
            store.layers.settle(&resolved.layers)?;
            let contents = Contents {
                manifest: resolved.manifest_digest,
                config: resolved.manifest.config.digest,
                size_bytes: resolved.size_bytes,
                layers: resolved.layers,
                used_ms: jiff::Timestamp::now().as_millisecond(),
            };
            let image = store.catalog.put(&reference, resolved.target, contents, &resolved.config);
            drop(resolved.pin);
            image
        });
        Ok(image.await?)
    }

    fn advance(&self, bytes: u64) {
        self.progress.send_modify(|progress| progress.done_bytes += bytes);
    }

    fn retreat(&self, bytes: u64) {
        self.progress.send_modify(|progress| progress.done_bytes -= bytes);
    }
}

/// Unpacks the layer at `index`, whose blob and lower layers are in the store.
pub(super) async fn unpack_layer(store: &Arc<Store>, layers: &[Layer], index: usize) -> Result<(), ImageError> {
    let layer = layers[index].clone();
    let below = layers[..index].to_vec();
    let guard = store.locks.lock(format!("layer {}", layer.chain_id)).await;
    let cancelled = Arc::new(AtomicBool::new(false));
    let _cancel = Cancel(cancelled.clone());
    let store = store.clone();
    blocking(move || {
        let blob = store.blobs.path(&layer.blob);
        let result = store.layers.unpack(&blob, &layer, &below, &store.config.limits, &cancelled);
        drop(guard);
        result
    })
    .await
}

enum Write {
    Chunk(Bytes),
    Commit,
}

/// Writes what arrives; the blob is committed only when told so.
fn write(
    mut ingest: Ingest,
    mut receiver: mpsc::Receiver<Write>,
    guard: OwnedMutexGuard<()>,
) -> Result<(), ImageError> {
    while let Some(write) = receiver.blocking_recv() {
        match write {
            Write::Chunk(chunk) => ingest.write(&chunk)?,
            Write::Commit => {
                ingest.commit()?;
                break;
            }
        }
    }
    drop(guard);
    Ok(())
}

fn verify(source: &Source, what: &str, expected: Option<Digest>, bytes: &[u8]) -> Result<Digest, PullError> {
    let actual = Digest::of(bytes);
    match expected {
        Some(expected) if expected != actual => {
            Err(PullError::DigestMismatch { host: source.host().to_owned(), what: what.into(), expected, actual })
        }
        _ => Ok(actual),
    }
}
