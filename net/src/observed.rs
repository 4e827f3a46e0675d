//! Where others see this node. Behind a NAT that is not where it sees itself: each member says in its welcome where a
//! connection came from, and what it says often enough stands in this node's record, for others to dial.
//!
//! Invariant: at most [`MAX_OBSERVED`] addresses come from others, and one member alone decides only if nobody else speaks.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::codec::{self, CodecError};
use crate::members::Entries;
use crate::names::NodeId;
use crate::record::MAX_ADDRESSES;

/// The most addresses that a node tells of itself because others saw it there.
pub(crate) const MAX_OBSERVED: usize = 2;
/// The most bytes that follow a welcome.
pub(crate) const MAX_SEEN_BYTES: usize = 64;

/// What a node says of itself, and what others say of it.
#[derive(Default)]
pub(crate) struct Whereabouts(Mutex<State>);

#[derive(Default)]
struct State {
    advertised: Vec<SocketAddr>,
    seen: BTreeMap<NodeId, SocketAddr>,
}

impl Whereabouts {
    pub(crate) fn advertise(&self, addresses: Vec<SocketAddr>) {
        self.lock().advertised = addresses;
    }

    /// What this node knows of itself.
    pub(crate) fn advertised(&self) -> Vec<SocketAddr> {
        self.lock().advertised.clone()
    }

    /// `by` saw this node at `at`. False if it said so before.
    pub(crate) fn seen(&self, by: NodeId, at: SocketAddr, members: &Arc<Entries>) -> bool {
        let mut state = self.lock();
        state.seen.retain(|node, _| members.contains_key(node));
        state.seen.insert(by, at) != Some(at)
    }

    /// What this node tells others: its own addresses, and then where it is seen.
    pub(crate) fn told(&self) -> Vec<SocketAddr> {
        let state = self.lock();
        let observed = agreed(&state.advertised, state.seen.values().copied());
        let own = state.advertised.iter().copied().take(MAX_ADDRESSES - observed.len());
        own.chain(observed.iter().copied()).collect()
    }

    /// Whether anybody sees this node where it does not see itself.
    pub(crate) fn is_translated(&self) -> bool {
        let state = self.lock();
        state.seen.values().any(|at| !state.advertised.contains(at))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The addresses that others agree on, beside this node's own. A NAT that shows each of them another port leaves nothing that
/// anybody else could dial.
fn agreed(own: &[SocketAddr], seen: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut votes = BTreeMap::new();
    for at in seen.filter(|at| !own.contains(at)) {
        *votes.entry(at).or_insert(0_usize) += 1;
    }
    let needed = if votes.len() > 1 { 2 } else { 1 };
    let mut agreed: Vec<_> = votes.into_iter().filter(|(_, votes)| *votes >= needed).collect();
    agreed.sort_by_key(|(_, votes)| std::cmp::Reverse(*votes));
    agreed.into_iter().take(MAX_OBSERVED).map(|(at, _)| at).collect()
}

/// What follows a welcome: where the peer was seen.
pub(crate) fn encode_seen(at: SocketAddr) -> Result<Vec<u8>, CodecError> {
    codec::encode(&at)
}

/// `None` if it is nowhere that could be dialled, or cannot be read: the welcome counts all the same.
pub(crate) fn decode_seen(bytes: &[u8]) -> Option<SocketAddr> {
    let at = codec::decode_within::<SocketAddr, MAX_SEEN_BYTES>(bytes).ok()?;
    let at = crate::pool::canonical(at);
    let nowhere = at.port() == 0 || at.ip().is_unspecified() || at.ip().is_multicast() || crate::socket::is_relayed(at);
    (!nowhere).then_some(at)
}

#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(input: &[u8]) {
    if let Some(at) = decode_seen(input) {
        let again = encode_seen(at).expect("what decoded encodes");
        assert_eq!(decode_seen(&again), Some(at));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::members::Entry;

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn told(own: &[&str], seen: &[&str]) -> Vec<SocketAddr> {
        let own: Vec<_> = own.iter().map(|text| at(text)).collect();
        agreed(&own, seen.iter().map(|text| at(text)))
    }

    #[test]
    fn what_others_agree_on_is_told() {
        let own = &["192.168.1.2:6443"];
        assert!(told(own, &[]).is_empty());
        assert!(told(own, &["192.168.1.2:6443", "192.168.1.2:6443"]).is_empty(), "no NAT");
        assert_eq!(told(own, &["203.0.113.1:6443"]), [at("203.0.113.1:6443")], "only one speaks");
        assert_eq!(told(own, &["203.0.113.1:6443", "192.168.1.2:6443"]), [at("203.0.113.1:6443")], "one beside it");
        let seen = &["203.0.113.1:6443", "203.0.113.1:6443", "203.0.113.1:9"];
        assert_eq!(told(own, seen), [at("203.0.113.1:6443")], "one alone is not believed against others");
        assert!(told(own, &["203.0.113.1:1", "203.0.113.1:2", "203.0.113.1:3"]).is_empty(), "each sees another port");
    }

    #[test]
    fn own_addresses_leave_room_for_those_observed() {
        let whereabouts = Whereabouts::default();
        let members = Arc::new(Entries::from([(2, Entry { name: "n2".into(), key: None })]));
        whereabouts.advertise((1..=8).map(|host| at(&format!("192.168.1.{host}:6443"))).collect());
        assert!(!whereabouts.is_translated());
        assert!(whereabouts.seen(2, at("203.0.113.1:6443"), &members));
        assert!(!whereabouts.seen(2, at("203.0.113.1:6443"), &members));
        assert!(whereabouts.is_translated());
        let told = whereabouts.told();
        assert_eq!((told.len(), told[7]), (MAX_ADDRESSES, at("203.0.113.1:6443")));
        assert_eq!(whereabouts.advertised().len(), 8);
    }

    #[test]
    fn what_cannot_be_dialled_is_not_taken() {
        for bad in ["0.0.0.0:1", "10.0.0.1:0", "224.0.0.1:1", "[100::1]:1"] {
            assert_eq!(decode_seen(&encode_seen(at(bad)).expect("encodes")), None, "{bad}");
        }
        assert_eq!(decode_seen(&encode_seen(at("[::ffff:10.0.0.1]:1")).expect("encodes")), Some(at("10.0.0.1:1")));
        assert_eq!(decode_seen(b""), None);
    }
}
