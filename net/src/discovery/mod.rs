//! Nodes on the same network find each other by multicast DNS: a machine that joins, and members whose addresses all
//! changed at once.
//!
//! Each member tells where it listens, with a mark of its cluster and a peer id, which is a hash of its key. What is seen
//! is a hint: it is dialled like any other address, and mutual TLS decides who is there.
//!
//! Invariant: what is seen is forgotten before it is more than [`lan::MAX_SIGHTINGS`]; hints are kept only for nodes
//! that signed a record, at most [`MAX_HINTS`] for each. Whether such a node may be dialled is decided when it is.

mod lan;
mod peer;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use libp2p_identity::PeerId;

use crate::names::{ClusterId, NodeId};
use crate::shared::Shared;
use lan::{Lan, Sighting};

/// The most hints that are kept about where a node is; the newest stay.
pub const MAX_HINTS: usize = 4;

/// Where nodes may be, by what was seen.
#[derive(Default)]
pub(crate) struct Hints(Mutex<BTreeMap<NodeId, Hint>>);

/// Where one node was seen, newest first.
#[derive(Default)]
struct Hint {
    addresses: VecDeque<SocketAddr>,
    /// Nobody has asked for the newest one yet.
    is_news: bool,
}

impl Hints {
    /// False if it is known already.
    fn add(&self, node: NodeId, address: SocketAddr) -> bool {
        let mut hints = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let hint = hints.entry(node).or_default();
        let is_known = hint.addresses.contains(&address);
        hint.addresses.retain(|known| *known != address);
        hint.addresses.truncate(MAX_HINTS - 1);
        hint.addresses.push_front(address);
        hint.is_news = true;
        !is_known
    }

    /// Newest first.
    pub(crate) fn of(&self, node: NodeId) -> Vec<SocketAddr> {
        let hints = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        hints.get(&node).map(|hint| hint.addresses.iter().copied().collect()).unwrap_or_default()
    }

    /// Where `node` was last seen, if that was after the last call.
    pub(crate) fn take_news(&self, node: NodeId) -> Option<SocketAddr> {
        let mut hints = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let hint = hints.get_mut(&node).filter(|hint| hint.is_news)?;
        hint.is_news = false;
        hint.addresses.front().copied()
    }

    /// Forgets those that are not to be kept.
    fn retain(&self, is_kept: impl Fn(NodeId) -> bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|node, _| is_kept(*node));
    }
}

/// Tells where this node is and looks for the others, until the network stops.
pub(crate) async fn run(shared: Arc<Shared>) {
    let identity = shared.credentials.identity();
    let lan = peer::id_of(identity.certificate())
        .ok_or_else(|| std::io::Error::other("the node's key has no peer id"))
        .and_then(|own| Lan::new(own, identity.cluster()));
    let mut lan = match lan {
        Ok(lan) => lan,
        Err(error) => return tracing::warn!(%error, "this node neither tells others on its network nor looks for them"),
    };
    let mut changes = shared.book.watch();
    changes.mark_changed();
    let mut nodes = HashMap::new();
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => return,
            Ok(()) = changes.changed() => {
                changes.borrow_and_update();
                nodes = peer_ids(&shared);
                shared.hints.retain(|node| shared.book.get(node).is_some());
                if let Err(error) = lan.tell(shared.whereabouts.advertised()) {
                    tracing::warn!(%error, "where this node is cannot be told on its network");
                }
            }
            sightings = lan.next() => note(&shared, &nodes, sightings),
        }
    }
}

/// The nodes that are heard of, by the peer ids of their keys.
fn peer_ids(shared: &Shared) -> HashMap<PeerId, NodeId> {
    let records = shared.book.all();
    records.iter().filter_map(|record| Some((peer::id_of(record.certificate())?, record.id()))).collect()
}

fn note(shared: &Shared, nodes: &HashMap<PeerId, NodeId>, sightings: Vec<Sighting>) {
    for Sighting { peer, address } in sightings {
        let node = nodes.get(&peer).filter(|node| **node != shared.own_id());
        if let Some(node) = node
            && shared.hints.add(*node, address)
        {
            tracing::debug!(node, %address, "a node was seen on the network");
            shared.pool.forget_failures();
        }
    }
}

/// Looks on this machine's networks for members of a cluster, and returns where they may be as soon as some are seen, but
/// no more than `most`. Nothing proves that they are what they say.
///
/// # Errors
/// If this machine cannot look.
pub async fn look_for(cluster: ClusterId, limit: Duration, most: usize) -> std::io::Result<Vec<SocketAddr>> {
    // It tells nobody of itself, and needs a name only to be told apart from others that look.
    let mut lan = Lan::new(PeerId::random(), cluster)?;
    let first = tokio::time::timeout(limit, lan.next()).await.unwrap_or_default();
    let mut addresses: Vec<SocketAddr> = first.into_iter().map(|sighting| sighting.address).collect();
    // Others answer at the same time.
    while let Ok(more) = tokio::time::timeout(lan::GATHER, lan.next()).await
        && addresses.len() < most
    {
        addresses.extend(more.into_iter().map(|sighting| sighting.address));
    }
    addresses.sort_unstable();
    addresses.dedup();
    addresses.truncate(most);
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_are_few_and_the_newest() {
        let hints = Hints::default();
        let at = |port| SocketAddr::from(([10, 0, 0, 1], port));
        for port in 1..=9 {
            assert!(hints.add(1, at(port)));
            assert!(!hints.add(1, at(port)));
        }
        assert_eq!(hints.of(1), [at(9), at(8), at(7), at(6)]);
        assert!(!hints.add(1, at(7)));
        assert_eq!(hints.of(1), [at(7), at(9), at(8), at(6)], "it was seen there again");
        hints.retain(|node| node != 1);
        assert!(hints.of(1).is_empty());
    }

    #[test]
    fn a_sighting_is_news_once() {
        let hints = Hints::default();
        let at = |port| SocketAddr::from(([10, 0, 0, 1], port));
        assert_eq!(hints.take_news(1), None);
        for port in [1, 2, 1] {
            hints.add(1, at(port));
            assert_eq!(hints.take_news(1), Some(at(port)), "also where it was seen before");
            assert_eq!(hints.take_news(1), None);
        }
    }
}
