//! The node's side: as long as it has no replica, it reads from the slice that one of the replicas feeds.
//!
//! Invariant: what is read never goes back: a slice begins no earlier than the one before ended, and the node's own replica
//! is read from once it has come as far.

use std::collections::VecDeque;
use std::time::Duration;

use flotilla_net::{Alpn, Liveness, Net, Peer, RecvStream, SendStream, codec, read_frame, write_frame};
use flotilla_raft::{KeyValue, SliceStart, SliceUpdate, Store};
use rand::seq::SliceRandom;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::{Ask, MAX_FRAME_BYTES, Tell};

/// Between two looks whether this node has a replica that is kept up to date.
const LOOK: Duration = Duration::from_millis(500);
/// Looks without news from a leader after which the node asks whether it still has a replica.
const LOOKS: u32 = 10;
/// Looks without a leader, longer than elections take, after which it asks at once.
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

/// Why a slice is fed no more.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("this node has a replica of its own")]
    Promoted,
    #[error("refused: {0}")]
    Refused(String),
    #[error("{0}")]
    Broken(String),
}

fn broken(error: impl std::fmt::Display) -> Ended {
    Ended::Broken(error.to_string())
}

/// Reads from a slice whenever this node has no replica, until `stop`.
pub async fn follow(store: Store, net: Net, stop: CancellationToken) {
    stop.run_until_cancelled(async {
        loop {
            wait_until_without_replica(&store).await;
            attach(&store, &net).await;
            tokio::time::sleep(LOOK).await;
        }
    })
    .await;
}

/// Waits while a leader keeps this node's replica up to date.
async fn wait_until_without_replica(store: &Store) {
    let mut looks = 0;
    loop {
        let status = store.status().borrow().clone();
        let has_replica = status.voters.contains(&status.id) || status.learners.contains(&status.id);
        if store.fed_by().is_some() || !has_replica {
            return;
        }
        looks += 1;
        if status.leader.is_none() && looks >= LEADERLESS_LOOKS {
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

/// Follows what one replica feeds, until that ends; asks one after the other who does.
async fn attach(store: &Store, net: &Net) {
    let peers = net.liveness().borrow().clone();
    let mut alive: Vec<&Peer> =
        peers.values().filter(|peer| peer.id != store.id() && peer.state != Liveness::Dead).collect();
    // Replicas share the work.
    alive.shuffle(&mut rand::rng());
    for peer in alive {
        let replica = &*peer.name;
        match session(store, net, peer).await {
            Ended::Promoted => {
                info!("this node reads from its own replica");
                return;
            }
            Ended::Refused(why) => debug!(replica, why, "a replica does not feed this node"),
            Ended::Broken(why) => debug!(replica, why, "a replica feeds this node no more"),
        }
    }
}

async fn session(store: &Store, net: &Net, replica: &Peer) -> Ended {
    match try_session(store, net, replica).await {
        Err(ended) => ended,
        Ok(never) => match never {},
    }
}

async fn try_session(store: &Store, net: &Net, replica: &Peer) -> Result<std::convert::Infallible, Ended> {
    let (mut send, mut recv) = net.open(replica.id, Alpn::Slice).await.map_err(broken)?;
    ask(&mut send, Ask::Follow { revision: store.revision() }).await?;
    let (epoch, revision, objects) = read_listing(&mut recv).await?;
    let (questions, asked) = mpsc::channel(MAX_QUESTIONS);
    let start = SliceStart { replica: replica.id, epoch, objects, revision, questions };
    info!(from = %replica.name, revision, objects = start.objects.len(), "reading from a slice of the store");
    let feed = store.read_slice(start);
    let (frames, read) = mpsc::channel(MAX_FRAMES);
    let reading = async {
        loop {
            frames.send(read_tell(&mut recv).await?).await.map_err(broken)?;
        }
    };
    tokio::select! {
        ended = reading => ended,
        ended = apply(store, &feed, &mut send, read, asked) => ended,
    }
}

async fn apply(
    store: &Store,
    feed: &flotilla_raft::SliceFeed,
    send: &mut SendStream,
    mut frames: mpsc::Receiver<Tell>,
    mut asked: mpsc::Receiver<oneshot::Sender<u64>>,
) -> Result<std::convert::Infallible, Ended> {
    let mut open: VecDeque<oneshot::Sender<u64>> = VecDeque::new();
    let mut looks = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            Some(tell) = frames.recv() => match tell {
                Tell::Update(update) => feed.apply(SliceUpdate::try_from(update).map_err(broken)?),
                Tell::Answer(revision) => {
                    feed.apply(SliceUpdate { upto: revision, ..SliceUpdate::default() });
                    let told = open.pop_front().ok_or_else(|| broken("an answer to no question"))?;
                    // Whoever asked may have given up.
                    _ = told.send(revision);
                }
                other => return Err(broken(format!("not expected now: {other:?}"))),
            },
            Some(told) = asked.recv() => {
                ask(send, Ask::Barrier).await?;
                open.push_back(told);
            }
            _ = looks.tick() => {
                let status = store.status().borrow().clone();
                let is_one = status.voters.contains(&status.id) || status.learners.contains(&status.id);
                if is_one && status.leader.is_some() && store.own_revision() >= feed.revision() {
                    store.leave_slice();
                    return Err(Ended::Promoted);
                }
            }
        }
    }
}

async fn ask(send: &mut SendStream, ask: Ask) -> Result<(), Ended> {
    let message = codec::encode(&ask).map_err(broken)?;
    timeout(SILENCE, write_frame(send, &message)).await.map_err(broken)?.map_err(broken)
}

async fn read_tell(recv: &mut RecvStream) -> Result<Tell, Ended> {
    let frame = timeout(SILENCE, read_frame(recv, MAX_FRAME_BYTES)).await;
    let frame = frame.map_err(|_| broken(format!("nothing came for {SILENCE:?}")))?.map_err(broken)?;
    match codec::decode(&frame).map_err(broken)? {
        Tell::Refused(why) => Err(Ended::Refused(why)),
        tell => Ok(tell),
    }
}

async fn read_listing(recv: &mut RecvStream) -> Result<(u64, u64, Vec<KeyValue>), Ended> {
    let Tell::Begin { epoch, revision } = read_tell(recv).await? else {
        return Err(broken("a slice does not begin with its revision"));
    };
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
            Tell::Begun => return Ok((epoch, revision, objects)),
            other => return Err(broken(format!("not expected in a listing: {other:?}"))),
        }
    }
}
