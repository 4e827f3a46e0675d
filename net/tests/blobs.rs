//! Blobs between nodes: one fetches from outside, the others from it, and whoever fails is passed by.

mod support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use flotilla_net::*;
use support::*;
use tokio::task::JoinSet;

const BLOB_BYTES: usize = 3_000_000;

/// Blobs in memory.
#[derive(Default)]
struct Memory(Mutex<BTreeMap<BlobDigest, Vec<u8>>>);

impl Memory {
    fn put(&self, digest: BlobDigest, bytes: Vec<u8>) {
        self.0.lock().expect("no panic").insert(digest, bytes);
    }
}

#[async_trait]
impl Shelf for Memory {
    async fn open(&self, digest: &BlobDigest, offset_bytes: u64) -> Option<Opened> {
        let bytes = self.0.lock().expect("no panic").get(digest)?.clone();
        let rest = bytes.get(offset_bytes as usize..)?.to_vec();
        Some(Opened { size_bytes: bytes.len() as u64, content: Box::new(std::io::Cursor::new(rest)) })
    }

    async fn holds(&self, digests: &[BlobDigest]) -> Vec<bool> {
        let blobs = self.0.lock().expect("no panic");
        digests.iter().map(|digest| blobs.contains_key(digest)).collect()
    }

    async fn all(&self) -> Vec<BlobDigest> {
        self.0.lock().expect("no panic").keys().copied().collect()
    }
}

struct Holder {
    node: Node,
    shelf: Arc<Memory>,
    blobs: Blobs,
}

async fn holders(count: u64) -> Vec<Holder> {
    let nodes = cluster(&authority(), count).await;
    let serve = |node: Node| {
        let shelf = Arc::new(Memory::default());
        let blobs = Blobs::serve(node.net.clone(), shelf.clone());
        Holder { node, shelf, blobs }
    };
    let holders: Vec<_> = nodes.into_iter().map(serve).collect();
    for one in &holders {
        for other in holders.iter().filter(|other| other.node.id != one.node.id) {
            await_state(&one.node, other.node.id, Liveness::Alive).await;
        }
    }
    holders
}

async fn stop(holders: Vec<Holder>) {
    for holder in holders {
        holder.node.net.shutdown().await;
    }
}

/// Waits until the seeker is led to a holder.
async fn find(seeker: &Holder, digest: BlobDigest) -> PeerBlob {
    let found = Mutex::new(None);
    let look = || async {
        if let Lead::Peer(peer) = seeker.blobs.seek(digest).next().await {
            *found.lock().expect("no panic") = Some(peer);
        }
        found.lock().expect("no panic").is_some()
    };
    until("a holder is known", look).await;
    found.into_inner().expect("no panic").expect("was found")
}

fn blob(seed: u8) -> (BlobDigest, Vec<u8>) {
    ([seed; 32], (0..BLOB_BYTES).map(|at| (at as u8).wrapping_mul(31) ^ seed).collect())
}

/// Gets the blob as a pull does; tells the node that gave it, or `None` for the registry, which is asked once `outside`
/// lets it be.
async fn fetch(
    blobs: &Blobs,
    shelf: &Memory,
    (digest, bytes): (BlobDigest, Vec<u8>),
    outside: &tokio::sync::Semaphore,
) -> Option<NodeId> {
    let mut search = blobs.seek(digest);
    let giver = loop {
        match search.next().await {
            Lead::Registry => {
                outside.acquire().await.expect("is open").forget();
                break None;
            }
            Lead::Peer(peer) => {
                let Ok((size_bytes, mut content)) = peer.open(0).await else { continue };
                assert_eq!(size_bytes as usize, bytes.len());
                if content.read_to_end(BLOB_BYTES).await.is_ok_and(|got| got == bytes) {
                    break Some(peer.node());
                }
            }
        }
    };
    shelf.put(digest, bytes);
    search.held().await;
    giver
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_those_who_begin_together_one_goes_outside() {
    let holders = holders(5).await;
    let outside = Arc::new(tokio::sync::Semaphore::new(0));
    let mut fetches = JoinSet::new();
    for holder in &holders {
        let (blobs, shelf, outside) = (holder.blobs.clone(), holder.shelf.clone(), outside.clone());
        fetches.spawn(async move { fetch(&blobs, &shelf, blob(1), &outside).await });
    }
    // Nobody gets anything before the registry gives it.
    outside.add_permits(1);
    let givers = tokio::time::timeout(PATIENCE, fetches.join_all()).await.expect("all get it");
    assert_eq!(givers.iter().filter(|giver| giver.is_none()).count(), 1, "{givers:?}");
    stop(holders).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_one_outside_fails_or_dies_another_goes() {
    let mut holders = holders(4).await;
    let digest = blob(2).0;
    let mut turns = Vec::new();
    let mut waiting = JoinSet::new();
    for holder in &holders {
        let (blobs, id) = (holder.blobs.clone(), holder.node.id);
        let mut search = blobs.seek(digest);
        waiting.spawn(async move {
            let lead = search.next().await;
            (id, search, matches!(lead, Lead::Registry))
        });
    }
    for turn in 0..3 {
        let next = tokio::time::timeout(PATIENCE, waiting.join_next()).await.expect("somebody has the turn");
        let (id, search, registry) = next.expect("some wait").expect("no panic");
        assert!(registry, "nobody holds it");
        turns.push(id);
        match turn {
            0 => drop(search),
            _ => {
                let at = holders.iter().position(|holder| holder.node.id == id).expect("is there");
                let dead = holders.remove(at);
                dead.node.net.shutdown().await;
                drop(search);
            }
        }
    }
    turns.sort_unstable();
    turns.dedup();
    assert_eq!(turns.len(), 3, "{turns:?}");
    waiting.shutdown().await;
    stop(holders).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_announced_is_found_and_what_is_gone_is_passed_by() {
    let holders = holders(3).await;
    let (digest, bytes) = blob(3);
    holders[0].shelf.put(digest, bytes.clone());
    let announcer = holders[0].blobs.clone();
    let announcing = tokio::spawn(async move { announcer.announce().await });
    assert_eq!(find(&holders[1], digest).await.node(), 1);
    let never = tokio::sync::Semaphore::new(0);
    assert_eq!(fetch(&holders[1].blobs, &holders[1].shelf, (digest, bytes.clone()), &never).await, Some(1));
    let held = holders[2].blobs.holds(1, &[digest, [9; 32]]).await.expect("answers");
    assert_eq!(held, [true, false]);
    // Both lose it; whoever looks goes to both, then outside.
    let asked = AtomicUsize::new(0);
    holders[..2].iter().for_each(|holder| holder.shelf.0.lock().expect("no panic").clear());
    let mut search = holders[2].blobs.seek(digest);
    loop {
        match search.next().await {
            Lead::Registry => break,
            Lead::Peer(peer) => {
                asked.fetch_add(1, Ordering::Relaxed);
                assert!(matches!(peer.open(0).await, Err(BlobError::Missing(_))));
            }
        }
    }
    assert!((1..=2).contains(&asked.into_inner()));
    announcing.abort();
    stop(holders).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_is_gone_on_with_where_it_broke_off() {
    let holders = holders(2).await;
    let (digest, bytes) = blob(4);
    holders[1].shelf.put(digest, bytes.clone());
    let announcer = holders[1].blobs.clone();
    let announcing = tokio::spawn(async move { announcer.announce().await });
    let peer = find(&holders[0], digest).await;
    let (size_bytes, mut content) = peer.open(2_999_990).await.expect("opens");
    let rest = content.read_to_end(BLOB_BYTES).await.expect("reads");
    assert_eq!((size_bytes as usize, rest.as_slice()), (bytes.len(), &bytes[2_999_990..]));
    assert!(matches!(peer.open(3_000_001).await, Err(BlobError::Missing(_))));
    announcing.abort();
    stop(holders).await;
}
