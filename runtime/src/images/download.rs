//! Getting one blob of an image into the store: from peers first, then from the registry and its mirrors.
//!
//! Invariant: nothing enters the store but what matches its digest, whoever sent it.
//! Invariant: hashing and writing run on a blocking thread; at most [`QUEUED_CHUNKS`] chunks wait in memory.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedMutexGuard, mpsc};

use super::blobs::Ingest;
use super::blocking;
use super::digest::Digest;
use super::error::{ImageError, PullError};
use super::manifest::{CONFIG_BYTES_MAX, Descriptor};
use super::origin::Origin;
use super::peers::{Lead, Peer, Search};
use super::pull::Pull;

const QUEUED_CHUNKS: usize = 64;
const ATTEMPTS_MAX: u32 = 4;
const RETRY_WAIT_MS: u64 = 500;
/// The most peers that are tried for one blob.
const PEERS_TRIED_MAX: usize = 16;

impl Pull {
    /// Gets one layer's blob into the store.
    pub(super) async fn download(&self, layer: &Descriptor) -> Result<(), PullError> {
        let mut search = self.search(layer.digest).await;
        let found = match &mut search {
            Some(search) => self.download_from_peers(search.as_mut(), layer).await?,
            None => false,
        };
        if !found {
            self.download_from_registry(layer).await?;
        }
        if let Some(search) = search {
            search.held().await;
        }
        Ok(())
    }

    /// A configuration from a peer, or from the first source that has it.
    pub(super) async fn config(&self, config: &Descriptor) -> Result<Vec<u8>, PullError> {
        let mut search = self.search(config.digest).await;
        let found = match &mut search {
            Some(search) => small_from_peers(search.as_mut(), config).await,
            None => None,
        };
        let bytes = match found {
            Some(bytes) => bytes,
            None => self.small_from_registry(&config.digest, false).await?,
        };
        self.put(bytes.clone()).await?;
        if let Some(search) = search {
            search.held().await;
        }
        Ok(bytes)
    }

    async fn search(&self, digest: Digest) -> Option<Box<dyn Search>> {
        let peers = self.store.peers.get().filter(|_| !self.store.blobs.has(&digest))?;
        peers.seek(digest).await
    }

    /// False if no peer gave it: then it is to be had from the registry.
    async fn download_from_peers(&self, search: &mut dyn Search, layer: &Descriptor) -> Result<bool, PullError> {
        for _ in 0..PEERS_TRIED_MAX {
            let Lead::Peer(peer) = search.next().await else { return Ok(false) };
            match self.download_once(Origin::Peer(peer.as_ref()), layer).await {
                Ok(()) => return Ok(true),
                Err(error) if error.is_others() => {
                    tracing::info!(layer = %layer.digest, peer = peer.name(), %error, "a peer did not give a layer");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// From whichever source has it, with retries.
    async fn download_from_registry(&self, layer: &Descriptor) -> Result<(), PullError> {
        let mut last = PullError::Cancelled;
        for source in &self.sources {
            match self.download_from(Origin::Registry(source), layer).await {
                Err(error) => last = error,
                Ok(()) => return Ok(()),
            }
            tracing::debug!(layer = %layer.digest, host = source.host(), error = %last, "source failed");
        }
        Err(last)
    }

    async fn download_from(&self, origin: Origin<'_>, layer: &Descriptor) -> Result<(), PullError> {
        let mut attempt = 1;
        loop {
            match self.download_once(origin, layer).await {
                Err(error) if error.is_passing() && attempt < ATTEMPTS_MAX => {
                    tracing::info!(layer = %layer.digest, host = origin.name(), %error, attempt, "download is retried");
                    tokio::time::sleep(Duration::from_millis(RETRY_WAIT_MS << attempt)).await;
                    attempt += 1;
                }
                done => return done,
            }
        }
    }

    async fn download_once(&self, origin: Origin<'_>, layer: &Descriptor) -> Result<(), PullError> {
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
        let result = self.receive(origin, layer, ingest, guard, &mut counted_bytes).await;
        match result {
            Err(PullError::DigestMismatch { .. }) if resumed_bytes > 0 => {
                // Perhaps only what was resumed was bad: nothing of it is left, so once more from the start.
                self.retreat(counted_bytes);
                tracing::info!(layer = %digest, "a resumed download had the wrong digest and starts again");
                Box::pin(self.download_once(origin, layer)).await
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
        origin: Origin<'_>,
        layer: &Descriptor,
        mut ingest: Ingest,
        guard: OwnedMutexGuard<()>,
        counted_bytes: &mut u64,
    ) -> Result<(), PullError> {
        let (sender, receiver) = mpsc::channel(QUEUED_CHUNKS);
        let mut stream = None;
        if ingest.written_bytes() < layer.size || layer.size == 0 {
            let begun = origin.blob(layer.digest, ingest.written_bytes(), layer.size).await?;
            if begun.offset_bytes() < ingest.written_bytes() {
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
                host: origin.name().to_owned(),
                what: "a layer".into(),
                expected,
                actual,
            }),
            (Ok(()), Err(error)) => Err(error.into()),
        }
    }

    fn advance(&self, bytes: u64) {
        self.progress.send_modify(|progress| progress.done_bytes += bytes);
    }

    fn retreat(&self, bytes: u64) {
        self.progress.send_modify(|progress| progress.done_bytes -= bytes);
    }
}

/// A small blob from the first peer that gives it whole and true.
async fn small_from_peers(search: &mut dyn Search, blob: &Descriptor) -> Option<Vec<u8>> {
    if blob.size > CONFIG_BYTES_MAX {
        return None;
    }
    for _ in 0..PEERS_TRIED_MAX {
        let Lead::Peer(peer) = search.next().await else { return None };
        match read_small(peer.as_ref(), blob).await {
            Ok(bytes) if Digest::of(&bytes) == blob.digest => return Some(bytes),
            Ok(_) => tracing::info!(blob = %blob.digest, peer = peer.name(), "a peer sent something else"),
            Err(error) => tracing::info!(blob = %blob.digest, peer = peer.name(), %error, "a peer did not give a blob"),
        }
    }
    None
}

async fn read_small(peer: &dyn Peer, blob: &Descriptor) -> Result<Vec<u8>, PullError> {
    let mut stream = Origin::Peer(peer).blob(blob.digest, 0, blob.size).await?;
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.chunk().await? {
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
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
