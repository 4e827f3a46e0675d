//! Connections that peers have opened to this node, so that those of a removed node can be closed at once.
//!
//! Invariant: a peer has at most [`MAX_LINKS_EACH`] connections of a protocol; a newer one displaces the oldest, since a
//! peer that dials again has usually lost the old one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quinn::{Connection, VarInt};

use crate::alpn::Alpn;
use crate::names::NodeId;
use crate::socket::is_relayed;

const MAX_LINKS_EACH: usize = 4;

/// Why this node closed a connection, as the peer is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Close {
    NoCertificate,
    NotAMember,
    Revoked,
    NotServed,
    Busy,
    Displaced,
    Done,
    TooSlow,
}

impl Close {
    fn code(self) -> u32 {
        self as u32 + 1
    }

    pub(crate) fn reason(self) -> &'static str {
        match self {
            Close::NoCertificate => "a node certificate is required",
            Close::NotAMember => "not a member of this cluster",
            Close::Revoked => "removed from this cluster",
            Close::NotServed => "not served here",
            Close::Busy => "too many attempts, try again later",
            Close::Displaced => "displaced by a newer connection",
            Close::Done => "done",
            Close::TooSlow => "too slow",
        }
    }

    pub(crate) fn close(self, connection: &Connection) {
        connection.close(VarInt::from_u32(self.code()), self.reason().as_bytes());
    }
}

#[derive(Default)]
pub(crate) struct Links(Mutex<Open>);

#[derive(Default)]
struct Open {
    next: u64,
    links: BTreeMap<(NodeId, Alpn, u64), Connection>,
}

impl Links {
    /// Lists an accepted connection until the returned link is dropped.
    pub(crate) fn add(self: &Arc<Self>, peer: NodeId, alpn: Alpn, connection: &Connection) -> Link {
        let mut open = self.lock();
        open.next += 1;
        let key = (peer, alpn, open.next);
        open.links.insert(key, connection.clone());
        let same: Vec<_> = open.links.range((peer, alpn, 0)..=(peer, alpn, u64::MAX)).map(|(key, _)| *key).collect();
        for old in same.iter().take(same.len().saturating_sub(MAX_LINKS_EACH)) {
            if let Some(connection) = open.links.remove(old) {
                Close::Displaced.close(&connection);
            }
        }
        Link { links: self.clone(), key }
    }

    /// Whether heartbeats of `peer` come through others.
    pub(crate) fn is_relayed(&self, peer: NodeId) -> bool {
        let open = self.lock();
        let mut beats = open.links.range((peer, Alpn::Beat, 0)..=(peer, Alpn::Beat, u64::MAX));
        beats.any(|(_, connection)| connection.close_reason().is_none() && is_relayed(connection.remote_address()))
    }

    /// Closes all connections of `peer`.
    pub(crate) fn close(&self, peer: NodeId, why: Close) {
        for (_, connection) in self.lock().links.iter().filter(|(key, _)| key.0 == peer) {
            why.close(connection);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) struct Link {
    links: Arc<Links>,
    key: (NodeId, Alpn, u64),
}

impl Drop for Link {
    fn drop(&mut self) {
        self.links.lock().links.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pair::Pair;

    #[tokio::test]
    async fn whose_heartbeats_come_through_others_is_known_for_as_long_as_they_do() {
        let (pair, links) = (Pair::start(), Arc::new(Links::default()));
        let (_direct, seen) = pair.connect(pair.direct_address()).await;
        let _link = links.add(1, Alpn::Beat, &seen);
        assert!(!links.is_relayed(1));
        let (_call, seen) = pair.connect(pair.relayed_address()).await;
        let _link = links.add(1, Alpn::Rpc, &seen);
        assert!(!links.is_relayed(1), "that is no heartbeat");
        let (_relayed, seen) = pair.connect(pair.relayed_address()).await;
        let link = links.add(1, Alpn::Beat, &seen);
        assert!(links.is_relayed(1) && !links.is_relayed(2));
        drop(link);
        assert!(!links.is_relayed(1));
    }
}
