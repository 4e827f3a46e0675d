//! Adaptors between the image store and the other nodes: what this node gives them, and what it gets from them.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use flotilla_net::{BlobDigest, Blobs, Opened, Shelf};
use flotilla_runtime::images::{Digest, Image, Images, Lead, Peer, PeerStream, Peers, Search};
use futures::future::join_all;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::members::Members;

/// The most blobs that this node looks for among peers at a time; more come from the registry.
const MAX_SEARCHES: usize = 64;
/// How long members may take to say what they hold.
const HOLDERS_TIMEOUT: Duration = Duration::from_secs(5);

/// The image store, as others may have of it.
pub struct ImageShelf(pub Images);

#[async_trait]
impl Shelf for ImageShelf {
    async fn open(&self, digest: &BlobDigest, offset_bytes: u64) -> Option<Opened> {
        let (images, digest) = (self.0.clone(), Digest::from_bytes(*digest));
        let opened = tokio::task::spawn_blocking(move || images.open_blob(&digest, offset_bytes)).await;
        let (size_bytes, file) = opened.ok()??;
        Some(Opened { size_bytes, content: Box::new(tokio::fs::File::from_std(file)) })
    }

    async fn holds(&self, digests: &[BlobDigest]) -> Vec<bool> {
        let (images, digests) = (self.0.clone(), digests.to_vec());
        let unknown = vec![false; digests.len()];
        let look = move || digests.iter().map(|digest| images.has_blob(&Digest::from_bytes(*digest))).collect();
        tokio::task::spawn_blocking(look).await.unwrap_or(unknown)
    }

    async fn all(&self) -> Vec<BlobDigest> {
        self.0.shared_blobs().iter().map(|digest| *digest.as_bytes()).collect()
    }
}

/// The other members, as the image store asks them. Cheap to clone.
#[derive(Clone)]
pub struct BlobPeers {
    blobs: Blobs,
    members: Members,
    searches: Arc<Semaphore>,
}

impl BlobPeers {
    pub fn new(blobs: Blobs, members: Members) -> Self {
        Self { blobs, members, searches: Arc::new(Semaphore::new(MAX_SEARCHES)) }
    }

    /// For each image the members that hold all of it, by name. Those that do not answer are left out.
    pub async fn holders(&self, images: &[Image]) -> Vec<Vec<String>> {
        let parts: Vec<Vec<BlobDigest>> = images.iter().map(parts).collect();
        let all = parts.concat();
        let ask = async |(name, node)| {
            let asked = tokio::time::timeout(HOLDERS_TIMEOUT, self.blobs.holds(node, &all)).await;
            (name, asked.ok().and_then(Result::ok).unwrap_or_default())
        };
        let mut holders = vec![Vec::new(); images.len()];
        for (name, held) in join_all(self.members.all().into_iter().map(ask)).await {
            let mut held = held.into_iter();
            for (parts, holders) in parts.iter().zip(&mut holders) {
                let held = held.by_ref().take(parts.len());
                if held.filter(|held| *held).count() == parts.len() {
                    holders.push(name.clone());
                }
            }
        }
        holders
    }
}

/// What a node must hold to hold an image.
fn parts(image: &Image) -> Vec<BlobDigest> {
    image.layers.iter().map(|layer| layer.blob).chain([image.id]).map(|digest| *digest.as_bytes()).collect()
}

#[async_trait]
impl Peers for BlobPeers {
    async fn seek(&self, digest: Digest) -> Option<Box<dyn Search>> {
        if self.members.all().len() < 2 {
            return None;
        }
        let place = self.searches.clone().try_acquire_owned().ok()?;
        let search = self.blobs.seek(*digest.as_bytes());
        Some(Box::new(BlobSearch { search, members: self.members.clone(), _place: place }))
    }
}

struct BlobSearch {
    search: flotilla_net::Search,
    members: Members,
    _place: OwnedSemaphorePermit,
}

#[async_trait]
impl Search for BlobSearch {
    async fn next(&mut self) -> Lead {
        match self.search.next().await {
            flotilla_net::Lead::Registry => Lead::Registry,
            flotilla_net::Lead::Peer(blob) => {
                let name = self.members.name_of(blob.node()).unwrap_or_else(|| blob.node().to_string());
                Lead::Peer(Arc::new(BlobPeer { name, blob }))
            }
        }
    }

    async fn held(self: Box<Self>) {
        self.search.held().await;
    }
}

struct BlobPeer {
    name: String,
    blob: flotilla_net::PeerBlob,
}

#[async_trait]
impl Peer for BlobPeer {
    fn name(&self) -> &str {
        &self.name
    }

    async fn open(&self, offset_bytes: u64) -> io::Result<PeerStream> {
        let (size_bytes, content) = self.blob.open(offset_bytes).await.map_err(io::Error::other)?;
        Ok(PeerStream { size_bytes, content: Box::new(content) })
    }
}
