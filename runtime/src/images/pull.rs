//! Getting an image from a registry onto this node.
//!
//! What a name means is asked of the registry, with the pull's credentials; configuration and layers may come
//! from peers. Layers are downloaded up to three at a time and unpacked in their order as they arrive. What a
//! failed pull got stays, and the next one goes on from there.
//!
//! Invariant: nothing enters the store but what matches the digest in its descriptor.
//! Invariant: unpacking runs on a blocking thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::FutureExt;
use futures::stream::{StreamExt, TryStreamExt};
use tokio::sync::{oneshot, watch};

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

    /// A manifest or configuration by its descriptor: from the store, or from elsewhere.
    async fn small(&self, descriptor: &Descriptor, is_manifest: bool) -> Result<Vec<u8>, PullError> {
        let limit_bytes = small_limit_bytes(is_manifest);
        let (store, digest) = (self.store.clone(), descriptor.digest);
        if let Ok(bytes) = blocking(move || store.blobs.read(&digest, limit_bytes)).await {
            return Ok(bytes);
        }
        if !is_manifest {
            return self.config(descriptor).await;
        }
        let bytes = self.small_from_registry(&digest, true).await?;
        self.put(bytes.clone()).await?;
        Ok(bytes)
    }

    /// From the first source that has it.
    pub(super) async fn small_from_registry(&self, digest: &Digest, is_manifest: bool) -> Result<Vec<u8>, PullError> {
        let mut last = PullError::Cancelled;
        for source in &self.sources {
            let fetched = match is_manifest {
                true => source.manifest(&self.reference, &digest.to_string()).await.map(|fetched| fetched.bytes),
                false => source.small_blob(digest, small_limit_bytes(false)).await,
            };
            match fetched.and_then(|bytes| verify(source, "a blob", Some(*digest), &bytes).map(|_| bytes)) {
                Ok(bytes) => return Ok(bytes),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    pub(super) async fn put(&self, bytes: Vec<u8>) -> Result<(), PullError> {
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

fn small_limit_bytes(is_manifest: bool) -> u64 {
    if is_manifest { MANIFEST_BYTES_MAX } else { CONFIG_BYTES_MAX }
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
