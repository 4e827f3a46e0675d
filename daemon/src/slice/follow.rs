//! The node's side: as long as it has no replica, it reads from the slice that one of the replicas feeds.
//!
//! Invariant: what is read never goes back: a slice begins no earlier than the one before ended, and the node's own replica
//! is read from once it has come as far.

use std::collections::{BTreeSet, VecDeque};
use std::convert::Infallible;
use std::time::Duration;

use flotilla_net::{Alpn, Liveness, Net, RecvStream, SendStream, codec, read_frame, write_frame};
use flotilla_raft::{EpochId, KeyValue, NodeId, Question, SliceFeed, SliceStart, SliceUpdate, Store};
use rand::seq::SliceRandom;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::{Ask, MAX_FRAME_BYTES, Tell, may_feed};

/// Between two looks whether this node has a replica that is kept up to date.
const LOOK: Duration = Duration::from_millis(500);
/// Looks without news from a leader after which the node asks whether it still has a replica.
const LOOKS: u32 = 10;
/// Looks in a row without a leader, longer than elections take, after which it asks at once.
const LEADERLESS_LOOKS: u32 = 4;
/// A replica that says nothing for so long, not even how far it has come, is left for another.
const SILENCE: Duration = Duration::from_secs(5);
/// Objects of one slice: far more than what the pods of one machine refer to, and the members.
const MAX_OBJECTS: usize = 1_000_000;
/// Bytes of one slice.
const MAX_SLICE_BYTES: usize = 1 << 30;
/// Readers that wait for the replica's answer.
const MAX_QUESTIONS: usize = 1024;
const MAX_FRAMES: usize = 4;
/// How often a replica is asked how far the cluster has come when nobody else asks.
const CONFIRM: Duration = Duration::from_secs(2);
/// How long a slice may take to begin.
const LISTING_WAIT: Duration = Duration::from_secs(15);
/// How long a whole slice may take to come.
const LISTING_TIMEOUT: Duration = Duration::from_secs(120);
/// The largest revision that clients can be told.
const MAX_REVISION: u64 = i64::MAX as u64;
/// Replicas that somebody may name.
const MAX_REPLICAS_TOLD: usize = 32;

/// Why a slice is fed no more.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("refused: {why}")]
    Refused { epoch: EpochId, why: String, replicas: Vec<NodeId> },
    #[error("{0}")]
    Broken(String),
}

fn broken(error: impl std::fmt::Display) -> Ended {
    Ended::Broken(error.to_string())
}

/// Reads from a slice whenever this node has no replica that can be read from, until `stop`. What is older than `floor` is
/// believed of nobody.
pub async fn follow(store: Store, net: Net, floor: u64, stop: CancellationToken) {
    let follower = Follower { store, net, floor };
    stop.run_until_cancelled(async {
        let mut known = Replicas::default();
        loop {
            wait_until_without_replica(&follower.store).await;
            let fed = async {
                loop {
                    let begun = Instant::now();
                    // When one has fed this node until now, another is there most likely.
                    if !follower.attach(&mut known).await || begun.elapsed() < LOOK {
                        tokio::time::sleep(LOOK).await;
                    }
                }
            };
            // Whether a feed is up or broken: a replica that can be read from is read from. Nothing feeds the slice between
            // the last look and the leaving of it.
            tokio::select! {
                () = fed => {}
                () = follower.store.until_own_replica_serves() => {
                    if follower.store.fed_by().is_some() {
                        follower.store.leave_slice();
                        info!("this node reads from its own replica");
                    }
                }
            }
        }
    })
    .await;
}

struct Follower {
    store: Store,
    net: Net,
    floor: u64,
}

/// Waits while a leader keeps this node's replica up to date.
async fn wait_until_without_replica(store: &Store) {
    let (mut looks, mut leaderless) = (0, 0);
    loop {
        let status = store.status().borrow().clone();
        let has_replica = status.voters.contains(&status.id) || status.learners.contains(&status.id);
        if store.fed_by().is_some() || !has_replica {
            return;
        }
        looks += 1;
        leaderless = if status.leader.is_none() { leaderless + 1 } else { 0 };
        if leaderless >= LEADERLESS_LOOKS {
            return;
        }
        if looks >= LOOKS {
            looks = 0;
            // One that was let go while nobody could tell it still believes in its leader.
            if !status.is_leader && store.barrier().await.is_err() {
                return;
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Who has a replica, as far as was heard.
#[derive(Default)]
struct Replicas {
    all: Vec<NodeId>,
    /// The one that fed this node last, and does so no more.
    last: Option<NodeId>,
}

impl Follower {
    /// Follows what one replica feeds, until that ends; asks one after the other, those first that were heard to have one.
    /// False if nobody fed this node.
    async fn attach(&self, known: &mut Replicas) -> bool {
        let peers = self.net.liveness().borrow().clone();
        let alive = |id: &NodeId| *id != self.store.id() && peers.get(id).is_some_and(|p| p.state != Liveness::Dead);
        let mut rest: Vec<NodeId> = peers.keys().copied().filter(alive).collect();
        // Replicas share the work.
        rest.shuffle(&mut rand::rng());
        known.all.shuffle(&mut rand::rng());
        let mut next: VecDeque<NodeId> = known.all.iter().copied().chain(rest).collect();
        next.retain(|id| Some(*id) != known.last);
        next.extend(known.last.take());
        let mut asked = BTreeSet::new();
        while let Some(peer) = next.pop_front() {
            if !alive(&peer) || !asked.insert(peer) {
                continue;
            }
            let name = &*peers[&peer].name;
            match self.session(peer, name, known).await {
                Err(Ended::Refused { epoch, why, replicas }) => {
                    self.store.heard_epoch(peer, epoch);
                    debug!(replica = name, why, "a replica does not feed this node");
                    for id in replicas.into_iter().take(MAX_REPLICAS_TOLD) {
                        next.push_front(id);
                    }
                }
                Err(Ended::Broken(why)) => debug!(replica = name, why, "a replica feeds this node no more"),
                Ok(never) => match never {},
            }
            if known.last.is_some() {
                return true;
            }
        }
        false
    }

    async fn session(&self, peer: NodeId, name: &str, known: &mut Replicas) -> Result<Infallible, Ended> {
        let (mut send, mut recv) = self.net.open(peer, Alpn::Slice).await.map_err(broken)?;
        let shown = self.store.revision().max(self.floor);
        ask(&mut send, Ask::Follow { revision: shown, epoch: self.store.spoken_epoch() }).await?;
        let listed = timeout(LISTING_TIMEOUT, read_listing(&mut recv)).await;
        let listed = listed.map_err(|_| broken(format!("its slice is not here after {LISTING_TIMEOUT:?}")))??;
        let Listed { epoch, revision, objects, replicas } = listed;
        let own_epoch = self.store.spoken_epoch();
        if !may_feed(epoch, own_epoch) {
            return Err(broken(format!("it is of the cluster's epoch {epoch}, and this node of {own_epoch}")));
        }
        if revision < self.floor {
            return Err(broken(format!("it begins with revision {revision}, and {} was known here", self.floor)));
        }
        known.all = replicas.into_iter().take(MAX_REPLICAS_TOLD).collect();
        let (questions, asked) = mpsc::channel(MAX_QUESTIONS);
        let start = SliceStart { replica: peer, epoch, objects, revision, questions };
        let count = start.objects.len();
        let feed = self.store.read_slice(start).map_err(broken)?;
        known.last = Some(peer);
        info!(from = %name, revision, objects = count, "reading from a slice of the store");
        let (frames, read) = mpsc::channel(MAX_FRAMES);
        let reading = async {
            loop {
                frames.send(read_tell(&mut recv).await?).await.map_err(broken)?;
            }
        };
        tokio::select! {
            ended = reading => ended,
            ended = apply(&feed, &mut send, read, asked) => ended,
        }
    }
}

/// Questions to the replica: one at a time, for all who wait.
struct Questions {
    /// Who waits for the question that is open.
    open: Vec<Question>,
    /// Who waits for the next one.
    waiting: Vec<Question>,
    since: Option<Instant>,
    last: Instant,
}

impl Questions {
    fn new(now: Instant) -> Self {
        Self { open: Vec::new(), waiting: Vec::new(), since: None, last: now }
    }

    /// Whether to ask now: somebody waits, or nobody has for a while. A replica that is cut off from the leader goes on
    /// telling how far it has come, but it cannot answer.
    fn is_due(&self, now: Instant) -> bool {
        self.since.is_none() && (!self.waiting.is_empty() || now.duration_since(self.last) >= CONFIRM)
    }

    fn ask(&mut self, now: Instant) {
        self.open = std::mem::take(&mut self.waiting);
        self.since = Some(now);
    }

    fn is_overdue(&self, now: Instant) -> bool {
        self.since.is_some_and(|since| now.duration_since(since) >= SILENCE)
    }

    /// False if nothing was asked.
    fn answer(&mut self, revision: u64, now: Instant) -> bool {
        for told in self.open.drain(..) {
            // Whoever asked may have given up.
            _ = told.send(revision);
        }
        self.last = now;
        self.since.take().is_some()
    }
}

async fn apply(
    feed: &SliceFeed,
    send: &mut SendStream,
    mut frames: mpsc::Receiver<Tell>,
    mut asked: mpsc::Receiver<Question>,
) -> Result<Infallible, Ended> {
    let mut questions = Questions::new(Instant::now());
    let mut looks = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            Some(tell) = frames.recv() => match tell {
                Tell::Update(update) => {
                    believable(update.upto)?;
                    feed.apply(SliceUpdate::try_from(update).map_err(broken)?);
                }
                Tell::Answer(revision) => {
                    believable(revision)?;
                    feed.apply(SliceUpdate { upto: revision, ..SliceUpdate::default() });
                    if !questions.answer(revision, Instant::now()) {
                        return Err(broken("an answer to no question"));
                    }
                }
                other => return Err(broken(format!("not expected now: {other:?}"))),
            },
            Some(told) = asked.recv(), if questions.waiting.len() < MAX_QUESTIONS => questions.waiting.push(told),
            _ = looks.tick() => {}
        }
        let now = Instant::now();
        if questions.is_overdue(now) {
            return Err(broken(format!("it has not confirmed for {SILENCE:?} how far the cluster has come")));
        }
        if questions.is_due(now) {
            ask(send, Ask::Barrier).await?;
            questions.ask(now);
        }
    }
}

async fn ask(send: &mut SendStream, ask: Ask) -> Result<(), Ended> {
    let message = codec::encode(&ask).map_err(broken)?;
    timeout(SILENCE, write_frame(send, &message)).await.map_err(broken)?.map_err(broken)
}

fn believable(revision: u64) -> Result<(), Ended> {
    match revision {
        0..=MAX_REVISION => Ok(()),
        _ => Err(broken(format!("{revision} is no revision"))),
    }
}

async fn read_tell(recv: &mut RecvStream) -> Result<Tell, Ended> {
    let frame = timeout(SILENCE, read_frame(recv, MAX_FRAME_BYTES)).await;
    let frame = frame.map_err(|_| broken(format!("nothing came for {SILENCE:?}")))?.map_err(broken)?;
    match codec::decode(&frame).map_err(broken)? {
        Tell::Refused { epoch, why, replicas } => Err(Ended::Refused { epoch, why, replicas }),
        tell => Ok(tell),
    }
}

/// How a slice begins.
struct Listed {
    epoch: EpochId,
    revision: u64,
    replicas: Vec<NodeId>,
    objects: Vec<KeyValue>,
}

async fn read_listing(recv: &mut RecvStream) -> Result<Listed, Ended> {
    // The replica may first have to reach what was acknowledged, and others may be listed theirs before.
    let begun = timeout(LISTING_WAIT, read_frame(recv, MAX_FRAME_BYTES)).await;
    let begun = begun.map_err(|_| broken("no slice came"))?.map_err(broken)?;
    let (epoch, revision, replicas) = match codec::decode(&begun).map_err(broken)? {
        Tell::Begin { epoch, revision, replicas } => (epoch, revision, replicas),
        Tell::Refused { epoch, why, replicas } => return Err(Ended::Refused { epoch, why, replicas }),
        _ => return Err(broken("a slice does not begin with its revision")),
    };
    believable(revision)?;
    let (mut objects, mut size_bytes) = (Vec::new(), 0_usize);
    loop {
        match read_tell(recv).await? {
            Tell::Objects(more) => {
                for object in more {
                    let kv = KeyValue::try_from(object).map_err(broken)?;
                    size_bytes = size_bytes.saturating_add(kv.value.len());
                    objects.push(kv);
                }
                if objects.len() > MAX_OBJECTS || size_bytes > MAX_SLICE_BYTES {
                    return Err(broken("the slice is larger than a slice may be"));
                }
            }
            Tell::Begun => return Ok(Listed { epoch, revision, replicas, objects }),
            other => return Err(broken(format!("not expected in a listing: {other:?}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    #[test]
    fn no_revision_is_larger_than_clients_can_be_told() {
        assert!(believable(MAX_REVISION).is_ok() && believable(MAX_REVISION + 1).is_err());
    }

    #[test]
    fn one_question_is_asked_for_all_who_wait_and_one_now_and_then() {
        let start = Instant::now();
        let mut questions = Questions::new(start);
        assert!(!questions.is_due(start));
        assert!(questions.is_due(start + CONFIRM), "a replica that is cut off is found out");
        let (told, mut heard): (Vec<_>, Vec<_>) = (0..3).map(|_| oneshot::channel()).unzip();
        questions.waiting = told;
        assert!(questions.is_due(start));
        questions.ask(start);
        // Who comes later is not answered by what was asked before.
        let (late, mut unheard) = oneshot::channel();
        questions.waiting.push(late);
        assert!(!questions.is_due(start + CONFIRM) && !questions.is_overdue(start));
        assert!(questions.is_overdue(start + SILENCE));
        assert!(questions.answer(7, start));
        assert!(heard.iter_mut().all(|answer| answer.try_recv() == Ok(7)));
        assert!(unheard.try_recv().is_err() && questions.is_due(start));
        assert!(!questions.answer(8, start), "nothing was asked");
    }
}
