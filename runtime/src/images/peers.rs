//! Other nodes as a place to get blobs from, as this crate needs them. The daemon holds the adaptor.
//!
//! Only a blob that a manifest names is looked for, and the manifest comes from the registry under the pull's own
//! credentials: what the registry would refuse is not had from a peer either.

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::io::AsyncRead;

use super::digest::Digest;

/// The other nodes.
#[async_trait]
pub trait Peers: Send + Sync {
    /// Begins to look for a blob. `None` where there is nobody to ask.
    async fn seek(&self, digest: Digest) -> Option<Box<dyn Search>>;
}

/// A search for one blob. Dropping it says that this node did not get it.
#[async_trait]
pub trait Search: Send {
    /// Where to try next; asking again says that the last lead came to nothing. Waits while another node fetches the blob
    /// from the registry, but not for ever.
    async fn next(&mut self) -> Lead;

    /// The blob is here now.
    async fn held(self: Box<Self>);
}

pub enum Lead {
    Peer(Arc<dyn Peer>),
    /// No peer has it, and it is this node's turn to fetch it.
    Registry,
}

/// A peer that is said to hold a blob.
#[async_trait]
pub trait Peer: Send + Sync {
    /// Its name, for the log.
    fn name(&self) -> &str;

    /// Begins to fetch the blob at an offset.
    ///
    /// # Errors
    /// If the peer does not have it, or cannot be reached.
    async fn open(&self, offset_bytes: u64) -> io::Result<PeerStream>;
}

/// The bytes of a blob, from the offset that was asked for. They are not believed: whoever stores them checks them.
pub struct PeerStream {
    /// Of the whole blob, as the peer has it.
    pub size_bytes: u64,
    pub content: Box<dyn AsyncRead + Send + Unpin>,
}
