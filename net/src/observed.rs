//! Where others see this node. Behind a NAT that is not where it sees itself: each member says in its welcome where a
//! connection came from, and what it says often enough stands in this node's record, for others to dial.
//!
//! Invariant: at most [`MAX_OBSERVED`] addresses come from others.
//! Invariant: once more than [`FEW`] members have said where they see this node, the word of one of them changes nothing.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::codec::{self, CodecError};
use crate::members::Entries;
use crate::names::NodeId;
use crate::record::MAX_ADDRESSES;

/// The most addresses that a node tells of itself because others saw it there.
pub(crate) const MAX_OBSERVED: usize = 2;
/// So many members may have only one that is outside of this node's NAT. Where more speak, two must say the same.
const FEW: usize = 2;
/// The most bytes that follow a welcome.
pub(crate) const MAX_SEEN_BYTES: usize = 64;

/// What a node says of itself, and what others say of it.
#[derive(Default)]
pub(crate) struct Whereabouts {
    state: Mutex<State>,
    /// Held while others are told, so that what was told last is what holds.
    telling: Mutex<()>,
}

#[derive(Default)]
struct State {
    advertised: Vec<SocketAddr>,
    seen: BTreeMap<NodeId, SocketAddr>,
    /// How often this node has lost an address.
    moves: u64,
}

impl Whereabouts {
    /// What others saw is forgotten where it was an address that this node has lost; and all of it, if this node has none of
    /// its former addresses: then it is elsewhere. Connections that are dialled from then on bring it anew.
    pub(crate) fn advertise(&self, addresses: Vec<SocketAddr>) {
        let mut state = self.lock();
        let before = std::mem::replace(&mut state.advertised, addresses.clone());
        let stays = before.iter().any(|address| addresses.contains(address));
        state.moves += u64::from(before.iter().any(|address| !addresses.contains(address)));
        state.seen.retain(|_, at| stays && (addresses.contains(at) || !before.contains(at)));
    }

    /// What this node knows of itself.
    pub(crate) fn advertised(&self) -> Vec<SocketAddr> {
        self.lock().advertised.clone()
    }

    /// How often this node has moved, for [`Whereabouts::seen`].
    pub(crate) fn moves(&self) -> u64 {
        self.lock().moves
    }

    /// `by` saw this node at `at`, on a connection that was dialled after so many `moves`. False if that is no news, or of
    /// where this node was.
    pub(crate) fn seen(&self, by: NodeId, at: SocketAddr, moves: u64, members: &Arc<Entries>) -> bool {
        let mut state = self.lock();
        if moves != state.moves {
            return false;
        }
        state.seen.retain(|node, _| members.contains_key(node));
        state.seen.insert(by, at) != Some(at)
    }

    /// Hands `publish` what this node tells others: its own addresses, and then where it is seen. One at a time.
    pub(crate) fn tell<T>(&self, publish: impl FnOnce(&[SocketAddr]) -> T) -> T {
        let _telling = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        publish(&self.told())
    }

    fn told(&self) -> Vec<SocketAddr> {
        let state = self.lock();
        let observed = state.agreed();
        let own = state.advertised.iter().copied().take(MAX_ADDRESSES - observed.len());
        own.chain(observed.iter().copied()).collect()
    }

    /// Whether others see this node where it does not see itself.
    pub(crate) fn is_translated(&self) -> bool {
        let state = self.lock();
        state.elsewhere().count() >= state.needed()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// What each member says that sees this node where it does not see itself.
    fn elsewhere(&self) -> impl Iterator<Item = SocketAddr> {
        self.seen.values().copied().filter(|at| !self.advertised.contains(at))
    }

    /// How many members must say so for anything to follow from it.
    fn needed(&self) -> usize {
        if self.seen.len() > FEW { 2 } else { 1 }
    }

    /// The addresses that others agree on, beside this node's own. A NAT that shows each of them another port leaves nothing
    /// that anybody else could dial.
    fn agreed(&self) -> Vec<SocketAddr> {
        let mut votes = BTreeMap::new();
        for at in self.elsewhere() {
            *votes.entry(at).or_insert(0_usize) += 1;
        }
        // If each of them says something else, none is right.
        let needed = if votes.len() > 1 { 2 } else { self.needed() };
        let mut agreed: Vec<_> = votes.into_iter().filter(|(_, votes)| *votes >= needed).collect();
        agreed.sort_by_key(|(_, votes)| std::cmp::Reverse(*votes));
        agreed.into_iter().take(MAX_OBSERVED).map(|(at, _)| at).collect()
    }
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

    const OUTSIDE: &str = "203.0.113.1:6443";
    const OWN: &str = "192.168.1.2:6443";

    /// A node with one address, and where it is seen by members 1, 2 and so on.
    fn seen(by: &[&str]) -> Whereabouts {
        let whereabouts = Whereabouts::default();
        whereabouts.advertise(vec![at(OWN)]);
        see(&whereabouts, by);
        whereabouts
    }

    fn see(whereabouts: &Whereabouts, by: &[&str]) {
        let entry = || Entry { name: "n".into(), key: None };
        let members = Arc::new((1..=by.len() as NodeId).map(|id| (id, entry())).collect::<Entries>());
        for (id, text) in (1..).zip(by) {
            whereabouts.seen(id, at(text), whereabouts.moves(), &members);
        }
    }

    fn observed(by: &[&str]) -> Vec<SocketAddr> {
        seen(by).told()[1..].to_vec()
    }

    #[test]
    fn what_others_agree_on_is_told() {
        assert!(observed(&[]).is_empty());
        assert!(observed(&[OWN, OWN]).is_empty(), "no NAT");
        assert_eq!(observed(&[OUTSIDE]), [at(OUTSIDE)], "only one speaks");
        assert_eq!(observed(&[OUTSIDE, OWN]), [at(OUTSIDE)], "one beside it");
        assert_eq!(observed(&[OUTSIDE, OUTSIDE, "203.0.113.1:9"]), [at(OUTSIDE)]);
        assert!(observed(&["203.0.113.1:1", "203.0.113.1:2"]).is_empty(), "each sees another port");
    }

    #[test]
    fn one_that_says_otherwise_than_two_is_not_believed() {
        for others in [[OWN, OWN], [OUTSIDE, OUTSIDE]] {
            let honest = seen(&others);
            let one_lies = seen(&[others[0], others[1], "198.51.100.1:1"]);
            assert_eq!(one_lies.told(), honest.told());
            assert_eq!(one_lies.is_translated(), honest.is_translated());
        }
        assert!(seen(&[OUTSIDE]).is_translated() && seen(&[OUTSIDE, OWN]).is_translated(), "nobody else can say so");
        assert!(seen(&["203.0.113.1:1", "203.0.113.1:2", OWN]).is_translated(), "two do say so");
    }

    #[test]
    fn own_addresses_leave_room_for_those_observed() {
        let whereabouts = seen(&[]);
        whereabouts.advertise((1..=8).map(|host| at(&format!("192.168.1.{host}:6443"))).collect());
        see(&whereabouts, &[OUTSIDE]);
        let told = whereabouts.told();
        assert_eq!((told.len(), told[7]), (MAX_ADDRESSES, at(OUTSIDE)));
        assert_eq!(whereabouts.advertised().len(), 8);
    }

    #[test]
    fn an_address_that_is_lost_is_not_told_because_others_saw_it() {
        let moved = seen(&[OWN, OWN]);
        moved.advertise(vec![at("192.168.1.3:6443")]);
        assert_eq!(moved.told(), [at("192.168.1.3:6443")]);
        assert!(!moved.is_translated());

        let elsewhere = seen(&[OUTSIDE, OUTSIDE]);
        elsewhere.advertise(vec![at("10.0.0.7:6443")]);
        assert_eq!(elsewhere.told(), [at("10.0.0.7:6443")], "behind another NAT, or none");

        let gains = seen(&[OUTSIDE, OWN]);
        gains.advertise(vec![at(OWN), at("10.0.0.7:6443")]);
        assert_eq!(gains.told(), [at(OWN), at("10.0.0.7:6443"), at(OUTSIDE)]);
        gains.advertise(vec![at("10.0.0.7:6443")]);
        assert_eq!(gains.told(), [at("10.0.0.7:6443"), at(OUTSIDE)], "it lost one of two");
    }

    #[test]
    fn the_same_word_is_no_news() {
        let whereabouts = seen(&[]);
        let members = Arc::new(Entries::from([(1, Entry { name: "n1".into(), key: None })]));
        assert!(whereabouts.seen(1, at(OUTSIDE), 0, &members));
        assert!(!whereabouts.seen(1, at(OUTSIDE), 0, &members));
    }

    #[test]
    fn what_was_dialled_from_a_lost_address_says_nothing_of_the_next() {
        let whereabouts = seen(&[]);
        let members = Arc::new(Entries::from([(1, Entry { name: "n1".into(), key: None })]));
        let before = whereabouts.moves();
        whereabouts.advertise(vec![at("10.0.0.7:6443")]);
        assert!(!whereabouts.seen(1, at(OWN), before, &members));
        assert_eq!(whereabouts.told(), [at("10.0.0.7:6443")]);
        assert!(whereabouts.seen(1, at(OUTSIDE), whereabouts.moves(), &members));
        let now = whereabouts.moves();
        whereabouts.advertise(vec![at("10.0.0.7:6443"), at("10.0.0.8:6443")]);
        assert_eq!(whereabouts.moves(), now, "it has lost none");
    }

    #[test]
    fn others_are_told_one_at_a_time() {
        let whereabouts = seen(&[]);
        whereabouts.tell(|_| assert!(whereabouts.telling.try_lock().is_err()));
        assert!(whereabouts.telling.try_lock().is_ok());
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
