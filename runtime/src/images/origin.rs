//! Where the bytes of a blob come from: a registry, a mirror of it, or a peer.
//!
//! Invariant: every wait for a peer ends after [`PEER_STALL`]; a registry has its own bound.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::digest::Digest;
use super::error::{PullError, one_line};
use super::peers::Peer;
use super::registry::{BlobStream, Source};

/// A peer that sends nothing for so long has failed.
const PEER_STALL: Duration = Duration::from_secs(10);
/// The most that is taken from a peer at once.
const PEER_CHUNK_BYTES: usize = 64 << 10;

#[derive(Clone, Copy)]
pub enum Origin<'a> {
    Registry(&'a Source),
    Peer(&'a dyn Peer),
}

/// The bytes of a blob on their way.
pub enum Stream<'a> {
    Registry(BlobStream<'a>),
    Peer(PeerBlob<'a>),
}

pub struct PeerBlob<'a> {
    peer: &'a dyn Peer,
    content: Box<dyn AsyncRead + Send + Unpin>,
    digest: Digest,
    offset_bytes: u64,
    done_bytes: u64,
    total_bytes: u64,
}

impl<'a> Origin<'a> {
    pub fn name(&self) -> &str {
        match self {
            Origin::Registry(source) => source.host(),
            Origin::Peer(peer) => peer.name(),
        }
    }

    /// Begins to fetch a blob of `total_bytes`, at `offset_bytes` if possible.
    pub async fn blob(self, digest: Digest, offset_bytes: u64, total_bytes: u64) -> Result<Stream<'a>, PullError> {
        let peer = match self {
            Origin::Registry(source) => {
                return source.blob(digest, offset_bytes, total_bytes).await.map(Stream::Registry);
            }
            Origin::Peer(peer) => peer,
        };
        let opened = peer.open(offset_bytes).await.map_err(|error| PullError::Unreachable {
            host: peer.name().to_owned(),
            detail: one_line(&error.to_string()),
        })?;
        if opened.size_bytes != total_bytes {
            let detail = format!("{} bytes of a blob that has {total_bytes}", opened.size_bytes);
            return Err(PullError::Protocol { host: peer.name().to_owned(), detail });
        }
        let content = opened.content;
        Ok(Stream::Peer(PeerBlob { peer, content, digest, offset_bytes, done_bytes: offset_bytes, total_bytes }))
    }
}

impl Stream<'_> {
    /// Where in the blob the stream begins.
    pub fn offset_bytes(&self) -> u64 {
        match self {
            Stream::Registry(stream) => stream.offset_bytes,
            Stream::Peer(stream) => stream.offset_bytes,
        }
    }

    /// The next bytes, or `None` at the end of the blob.
    ///
    /// # Errors
    /// If the other side falls silent, breaks off, or sends more than the blob's size.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, PullError> {
        match self {
            Stream::Registry(stream) => stream.chunk().await,
            Stream::Peer(stream) => stream.chunk().await,
        }
    }
}

impl PeerBlob<'_> {
    async fn chunk(&mut self) -> Result<Option<Bytes>, PullError> {
        let left_bytes = self.total_bytes - self.done_bytes;
        // Not a byte more is read than the blob has.
        let most = PEER_CHUNK_BYTES.min(usize::try_from(left_bytes).unwrap_or(PEER_CHUNK_BYTES));
        if most == 0 {
            return Ok(None);
        }
        let mut chunk = BytesMut::zeroed(most);
        let read = tokio::time::timeout(PEER_STALL, self.content.read(&mut chunk)).await;
        let stalled = || PullError::Stalled { host: self.peer.name().to_owned(), seconds: PEER_STALL.as_secs() };
        match read.map_err(|_| stalled())? {
            Ok(0) => Err(self.interrupted("end of stream".to_owned())),
            Ok(count) => {
                chunk.truncate(count);
                self.done_bytes += count as u64;
                Ok(Some(chunk.freeze()))
            }
            Err(error) => Err(self.interrupted(one_line(&error.to_string()))),
        }
    }

    fn interrupted(&self, detail: String) -> PullError {
        let (host, digest) = (self.peer.name().to_owned(), self.digest);
        PullError::Interrupted { host, digest, done_bytes: self.done_bytes, total_bytes: self.total_bytes, detail }
    }
}
