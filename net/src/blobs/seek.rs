//! The asking side: finding somebody who holds a blob, and getting it.
//!
//! Invariant: a search ends within [`MAX_SEEK`] and one answer; from then on it leads to the registry.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use quinn::{RecvStream, SendStream};

use super::desk::Seat;
use super::ledger::Word;
use super::rendezvous::{self, Mark};
use super::serve::WAIT_PERIOD;
use super::wire::{self, Answer, Reply, Request, Said};
use super::{ANSWER_TIMEOUT, BlobDigest, BlobError, Blobs};
use crate::alpn::Alpn;
use crate::names::NodeId;
use crate::net::Net;
use crate::suspicion::Liveness;

/// How long a search goes on before the seeker helps itself.
pub const MAX_SEEK: Duration = Duration::from_secs(600);
/// The most trackers that are tried.
const MAX_TRACKERS: usize = 2;
/// A holder that is busy is asked again after this time, so often.
const BUSY_PAUSE: Duration = Duration::from_millis(500);
const BUSY_TRIES: usize = 20;

/// Where a blob can be had.
#[derive(Clone)]
pub enum Lead {
    Peer(PeerBlob),
    Registry,
}

/// A blob that a peer is said to hold.
#[derive(Clone)]
pub struct PeerBlob {
    net: Net,
    node: NodeId,
    digest: BlobDigest,
    missing: Arc<AtomicBool>,
}

impl PeerBlob {
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Begins to fetch the blob from an offset on: its size as the peer has it, and the bytes, which nobody has checked.
    ///
    /// # Errors
    /// If the peer does not hold it, or sends too many blobs for some time.
    pub async fn open(&self, offset_bytes: u64) -> Result<(u64, RecvStream), BlobError> {
        for _ in 0..BUSY_TRIES {
            match self.try_open(offset_bytes).await {
                Err(BlobError::Busy(_)) => tokio::time::sleep(BUSY_PAUSE).await,
                done => return done,
            }
        }
        Err(BlobError::Busy(self.node))
    }

    async fn try_open(&self, offset_bytes: u64) -> Result<(u64, RecvStream), BlobError> {
        let request = Request::Get { digest: self.digest, offset_bytes };
        let (_, mut recv) = ask(&self.net, self.node, &request).await?;
        match answer(self.node, &mut recv).await? {
            Answer::Here { size_bytes } => Ok((size_bytes, recv)),
            Answer::Busy => Err(BlobError::Busy(self.node)),
            Answer::Missing => {
                self.missing.store(true, Ordering::Relaxed);
                Err(BlobError::Missing(self.node))
            }
        }
    }
}

/// A search for one blob. Dropping it gives up its turn, if it has one.
pub struct Search {
    blobs: Blobs,
    digest: BlobDigest,
    trackers: VecDeque<NodeId>,
    tracker: Option<Tracker>,
    leads: VecDeque<NodeId>,
    /// Where the last leads went.
    tried: Vec<PeerBlob>,
    begun: Instant,
}

/// The place at a tracker.
enum Tracker {
    /// At this node itself.
    Own(Seat),
    Remote {
        node: NodeId,
        send: SendStream,
        recv: RecvStream,
    },
}

impl Blobs {
    /// Begins to look for a blob.
    pub fn seek(&self, digest: BlobDigest) -> Search {
        let mut trackers: VecDeque<_> = rendezvous::order(Mark::of(&digest), &self.reachable()).into();
        trackers.truncate(MAX_TRACKERS);
        Search {
            blobs: self.clone(),
            digest,
            trackers,
            tracker: None,
            leads: VecDeque::new(),
            tried: Vec::new(),
            begun: Instant::now(),
        }
    }
}

impl Search {
    /// Where to try next. Asking again says that the last lead came to nothing.
    ///
    /// A lead to the registry is this node's turn: others wait until [`Search::held`] is called or this is dropped.
    pub async fn next(&mut self) -> Lead {
        loop {
            if let Some(node) = self.leads.pop_front() {
                let missing = Arc::default();
                let lead = PeerBlob { net: self.blobs.net.clone(), node, digest: self.digest, missing };
                self.tried.push(lead.clone());
                return Lead::Peer(lead);
            }
            let left = MAX_SEEK.saturating_sub(self.begun.elapsed());
            let word = match tokio::time::timeout(left, self.ask_tracker()).await {
                Ok(Some(word)) => word,
                _ => return Lead::Registry,
            };
            match word {
                Word::Turn => return Lead::Registry,
                Word::Holders(holders) => self.leads.extend(holders),
            }
        }
    }

    /// The blob is here now, and others may be sent to this node.
    pub async fn held(mut self) {
        match self.tracker.take() {
            Some(Tracker::Own(seat)) => seat.held(),
            Some(Tracker::Remote { node, mut send, .. }) => {
                // The tracker hears of it with the next announcement otherwise.
                if let Err(reason) = wire::send(&mut send, &Reply::Held).await {
                    tracing::debug!(tracker = node, reason, "a blob is not announced yet");
                }
                // It fails only if the tracker hung up.
                let _ = send.finish();
            }
            None => {}
        }
    }

    /// What a tracker says; `None` if none can be reached.
    async fn ask_tracker(&mut self) -> Option<Word> {
        let tried = std::mem::take(&mut self.tried);
        let was_missing = |lead: &&PeerBlob| lead.missing.load(Ordering::Relaxed);
        let (missing, failed): (Vec<_>, Vec<_>) = tried.iter().partition(was_missing);
        let nodes = |leads: Vec<&PeerBlob>| leads.into_iter().map(|lead| lead.node).collect::<Vec<_>>();
        let (missing, failed) = (nodes(missing), nodes(failed));
        let again = !tried.is_empty();
        loop {
            match self.tracker.take() {
                None => self.tracker = Some(self.sit().await?),
                Some(Tracker::Own(seat)) => {
                    if again {
                        seat.blame(&missing, &failed);
                    }
                    let word = seat.word(|node| is_alive(&self.blobs.net, node)).await;
                    self.tracker = Some(Tracker::Own(seat));
                    return Some(word);
                }
                Some(Tracker::Remote { node, mut send, mut recv }) => {
                    let reply = again.then(|| Reply::Again { missing: missing.clone(), failed: failed.clone() });
                    match converse(node, &mut send, &mut recv, reply).await {
                        Ok(word) => {
                            self.tracker = Some(Tracker::Remote { node, send, recv });
                            return word;
                        }
                        Err(error) => tracing::debug!(tracker = node, %error, "a tracker is lost"),
                    }
                }
            }
        }
    }

    /// Takes a seat at the first tracker that can be reached.
    async fn sit(&mut self) -> Option<Tracker> {
        let mark = Mark::of(&self.digest);
        while let Some(node) = self.trackers.pop_front() {
            if node == self.blobs.net.id() {
                match self.blobs.desk.sit(mark, node) {
                    Some(seat) => return Some(Tracker::Own(seat)),
                    None => continue,
                }
            }
            match ask(&self.blobs.net, node, &Request::Seek(mark)).await {
                Ok((send, recv)) => return Some(Tracker::Remote { node, send, recv }),
                Err(error) => tracing::debug!(tracker = node, %error, "a tracker is not reached"),
            }
        }
        None
    }
}

/// Says the reply, if there is one, and hears what the tracker has to say; `None` if it has no room.
async fn converse(
    node: NodeId,
    send: &mut SendStream,
    recv: &mut RecvStream,
    reply: Option<Reply>,
) -> Result<Option<Word>, BlobError> {
    if let Some(reply) = reply {
        wire::send(send, &reply).await.map_err(|reason| BlobError::Protocol { node, reason })?;
    }
    loop {
        match wire::receive_within(recv, WAIT_PERIOD + ANSWER_TIMEOUT).await {
            None => return Err(BlobError::Silent(node)),
            Some(Err(reason)) => return Err(BlobError::Protocol { node, reason }),
            Some(Ok(Said::Wait)) => {}
            Some(Ok(Said::Turn)) => return Ok(Some(Word::Turn)),
            Some(Ok(Said::Holders(holders))) => return Ok(Some(Word::Holders(wire::bounded(holders)))),
            Some(Ok(Said::Full)) => return Ok(None),
        }
    }
}

/// Which of `digests` a peer holds.
pub(super) async fn holds(net: &Net, node: NodeId, digests: &[BlobDigest]) -> Result<Vec<bool>, BlobError> {
    let (_send, mut recv) = ask(net, node, &Request::Holds(digests.to_vec())).await?;
    let truths: Vec<bool> = answer(node, &mut recv).await?;
    if truths.len() == digests.len() {
        return Ok(truths);
    }
    Err(BlobError::Protocol { node, reason: format!("{} answers to {} questions", truths.len(), digests.len()) })
}

/// Tells a tracker what is held here.
pub(super) async fn announce(net: &Net, node: NodeId, marks: &[Mark]) -> Result<(), BlobError> {
    let (_send, mut recv) = ask(net, node, &Request::Announce(marks.to_vec())).await?;
    answer::<Vec<bool>>(node, &mut recv).await.map(drop)
}

/// Whether a member is heard, so that one may be sent to it.
pub(super) fn is_alive(net: &Net, node: NodeId) -> bool {
    node == net.id() || net.liveness().borrow().get(&node).is_some_and(|peer| peer.state == Liveness::Alive)
}

async fn ask(net: &Net, node: NodeId, request: &Request) -> Result<(SendStream, RecvStream), BlobError> {
    let (mut send, recv) = net.open(node, Alpn::Blob).await?;
    let sent = tokio::time::timeout(ANSWER_TIMEOUT, wire::send(&mut send, request)).await;
    sent.map_err(|_| BlobError::Silent(node))?.map_err(|reason| BlobError::Protocol { node, reason })?;
    Ok((send, recv))
}

async fn answer<T: serde::de::DeserializeOwned>(node: NodeId, recv: &mut RecvStream) -> Result<T, BlobError> {
    let answered = wire::answer(recv).await.ok_or(BlobError::Silent(node))?;
    answered.map_err(|reason| BlobError::Protocol { node, reason })
}
