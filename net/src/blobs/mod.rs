//! Blobs from peers: who holds one, whose turn it is to fetch one from outside, and the bytes themselves.
//!
//! For each blob one member is the tracker, chosen by [`rendezvous`] hashing, so that all who look for a blob at the same
//! time meet there. A seeker sits down at the tracker and is told who holds the blob, or that it is its turn to fetch it
//! from the registry; the others wait, and are sent to it once it holds the blob. Nothing of this is on a disk: holders
//! announce what they hold, and whatever is lost costs a request to the registry.
//!
//! Invariant: whoever knows a digest may have the blob, and nobody learns a digest here: trackers are told a [`Mark`],
//! from which the digest cannot be found.
//! Invariant: what a peer sends is believed by nobody here; whoever stores it checks its digest.
//! Invariant: a seeker waits at most [`seek::MAX_SEEK`], and then helps itself.

mod desk;
mod ledger;
mod rendezvous;
mod seek;
mod serve;
mod wire;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::AsyncRead;

use crate::alpn::Alpn;
use crate::names::NodeId;
use crate::net::Net;
use crate::suspicion::Liveness;
use desk::Desk;
use ledger::{ANNOUNCE_DELAY, ANNOUNCE_PERIOD};
pub use rendezvous::Mark;
pub use seek::{Lead, PeerBlob, Search};
#[cfg(any(test, fuzzing))]
pub(crate) use wire::fuzz;

/// SHA-256 of a blob.
pub type BlobDigest = [u8; 32];

/// How long a peer may take to answer a question, and how long it may be silent while it sends a blob.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    #[error("node {0} does not hold the blob")]
    Missing(NodeId),
    #[error("node {0} sends too many blobs already")]
    Busy(NodeId),
    #[error("node {0} did not answer in {seconds} s", seconds = ANSWER_TIMEOUT.as_secs())]
    Silent(NodeId),
    #[error("node {node} sent something that is not an answer: {reason}")]
    Protocol { node: NodeId, reason: String },
    #[error(transparent)]
    Net(#[from] crate::error::NetError),
}

/// A blob that is held here, opened.
pub struct Opened {
    pub size_bytes: u64,
    /// From the offset that was asked for.
    pub content: Box<dyn AsyncRead + Send + Unpin>,
}

/// What this node holds, for others to have.
#[async_trait]
pub trait Shelf: Send + Sync {
    /// Opens a blob at an offset; `None` if it is not held, or is shorter than that.
    async fn open(&self, digest: &BlobDigest, offset_bytes: u64) -> Option<Opened>;

    /// Which of these are held, in the same order.
    async fn holds(&self, digests: &[BlobDigest]) -> Vec<bool>;

    /// All that is held and worth announcing.
    async fn all(&self) -> Vec<BlobDigest>;
}

/// Blobs from and for peers; cheap to clone.
#[derive(Clone)]
pub struct Blobs {
    net: Net,
    desk: Arc<Desk>,
    shelf: Arc<dyn Shelf>,
}

impl Blobs {
    /// Serves `shelf` to the other members from now on.
    pub fn serve(net: Net, shelf: Arc<dyn Shelf>) -> Self {
        let blobs = Self { net: net.clone(), desk: Arc::default(), shelf: shelf.clone() };
        net.register(Alpn::Blob, Arc::new(serve::Server::new(net.clone(), blobs.desk.clone(), shelf)));
        blobs
    }

    /// Which of `digests` a member holds.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn holds(&self, node: NodeId, digests: &[BlobDigest]) -> Result<Vec<bool>, BlobError> {
        if node == self.net.id() {
            return Ok(self.shelf.holds(digests).await);
        }
        let mut answers = Vec::with_capacity(digests.len());
        for some in digests.chunks(wire::MAX_DIGESTS) {
            answers.extend(seek::holds(&self.net, node, some).await?);
        }
        Ok(answers)
    }

    /// Announces what is held here to its trackers, now, whenever other members can be reached, and now and again, until
    /// the network stops.
    pub async fn announce(&self) {
        let mut changes = self.net.liveness();
        loop {
            changes.borrow_and_update();
            let members = self.reachable();
            self.announce_to(&members).await;
            let others = async {
                while self.reachable() == members {
                    changes.changed().await?;
                }
                Ok::<(), tokio::sync::watch::error::RecvError>(())
            };
            match tokio::time::timeout(ANNOUNCE_PERIOD, others).await {
                Err(_) => {}
                // Some come and go in groups.
                Ok(Ok(())) => tokio::time::sleep(ANNOUNCE_DELAY).await,
                Ok(Err(_)) => return,
            }
        }
    }

    async fn announce_to(&self, members: &[NodeId]) {
        let mut by_tracker: BTreeMap<NodeId, Vec<Mark>> = BTreeMap::new();
        for digest in self.shelf.all().await {
            let mark = Mark::of(&digest);
            if let Some(tracker) = rendezvous::order(mark, members).first() {
                by_tracker.entry(*tracker).or_default().push(mark);
            }
        }
        for (tracker, marks) in by_tracker {
            if let Err(error) = self.tell(tracker, &marks).await {
                tracing::debug!(tracker, %error, "blobs are not announced");
            }
        }
    }

    async fn tell(&self, tracker: NodeId, marks: &[Mark]) -> Result<(), BlobError> {
        for some in marks.chunks(wire::MAX_DIGESTS) {
            if tracker == self.net.id() {
                self.desk.announce(tracker, some);
            } else {
                seek::announce(&self.net, tracker, some).await?;
            }
        }
        Ok(())
    }

    /// This node and the members that it hears.
    fn reachable(&self) -> Vec<NodeId> {
        let own = self.net.id();
        let heard = self.net.liveness();
        let heard = heard.borrow();
        let alive = heard.values().filter(|peer| peer.state == Liveness::Alive && peer.id != own).map(|peer| peer.id);
        alive.chain([own]).collect()
    }
}
