//! Packets passed on for members that cannot reach each other, as behind two NATs that no hole can be punched through. A node
//! hands the packet to a member that both reach, in a datagram on a connection of its own; that member hands it on. What is in
//! the packet is QUIC between the two, which the one between can drop but neither read nor forge.
//!
//! Nothing is agreed beforehand: being a member is the reservation. A packet goes by the member through which its receiver
//! was last heard; while there is none, by several at once, so that a relay that dies is replaced without a question.
//!
//! Invariant: packets go from members to members, over connections that are not relayed themselves: one hop, no loop.
//! Invariant: what one member has relayed is bounded by [`RATE_BYTES_EACH_SECOND`], and nothing is queued here.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use quinn::Connection;
use tokio::sync::mpsc;

use crate::alpn::Alpn;
use crate::links::Close;
use crate::names::NodeId;
use crate::ports::PeerInfo;
use crate::shared::Shared;
use crate::socket::Packet;

/// A member through which a node was heard within this time is the way to it.
const ROUTE_HOLDS: Duration = Duration::from_millis(750);
/// By how many members a packet goes while no way is known.
const MAX_CARRIERS: usize = 3;
/// A connection over which nothing was relayed for so long is closed.
const IDLE: Duration = Duration::from_secs(30);
/// What is passed on for one member.
const RATE_BYTES_EACH_SECOND: u64 = 8 * 1024 * 1024;
const BURST_BYTES: u64 = 1024 * 1024;

const HEADER_BYTES: usize = 9;
const FORWARD: u8 = 1;
const DELIVER: u8 = 2;

/// What a datagram says.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Message {
    /// To the member between.
    Forward { to: NodeId, packet: Bytes },
    /// From the member between.
    Deliver { from: NodeId, packet: Bytes },
}

impl Message {
    fn encode(&self) -> Bytes {
        let (kind, node, packet) = match self {
            Message::Forward { to, packet } => (FORWARD, *to, packet),
            Message::Deliver { from, packet } => (DELIVER, *from, packet),
        };
        let mut bytes = BytesMut::with_capacity(HEADER_BYTES + packet.len());
        bytes.put_u8(kind);
        bytes.put_u64(node);
        bytes.put_slice(packet);
        bytes.freeze()
    }

    fn decode(mut bytes: Bytes) -> Option<Message> {
        let (kind, rest) = bytes.split_first()?;
        let (node, packet) = rest.split_first_chunk()?;
        let (kind, node, is_empty) = (*kind, NodeId::from_be_bytes(*node), packet.is_empty());
        let packet = bytes.split_off(HEADER_BYTES);
        match kind {
            FORWARD if !is_empty => Some(Message::Forward { to: node, packet }),
            DELIVER if !is_empty => Some(Message::Deliver { from: node, packet }),
            _ => None,
        }
    }
}

/// What is known of the ways to others, and of what they had relayed.
pub(crate) struct Relay {
    inward: mpsc::Sender<Packet>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    routes: Routes,
    budgets: HashMap<NodeId, Budget>,
    dialling: HashSet<NodeId>,
}

impl Relay {
    /// What is relayed to this node goes to `inward`.
    pub(crate) fn new(inward: mpsc::Sender<Packet>) -> Self {
        Relay { inward, state: Mutex::default() }
    }

    pub(crate) fn forget(&self, node: NodeId) {
        let mut state = self.lock();
        state.routes.heard.remove(&node);
        state.budgets.remove(&node);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Through whom each node was heard.
#[derive(Default)]
struct Routes {
    heard: HashMap<NodeId, (NodeId, Instant)>,
    turn: usize,
}

impl Routes {
    /// Whoever was first stays the way for as long as it carries anything.
    fn heard(&mut self, from: NodeId, via: NodeId, now: Instant) {
        if self.via(from, now).is_none_or(|known| known == via) {
            self.heard.insert(from, (via, now));
        }
    }

    fn via(&self, to: NodeId, now: Instant) -> Option<NodeId> {
        let (via, at) = self.heard.get(&to)?;
        (now.saturating_duration_since(*at) < ROUTE_HOLDS).then_some(*via)
    }

    /// Some of those who might know the way, others each time.
    fn guess(&mut self, mut candidates: Vec<NodeId>) -> Vec<NodeId> {
        if candidates.len() > MAX_CARRIERS {
            self.turn = (self.turn + MAX_CARRIERS) % candidates.len();
            candidates.rotate_left(self.turn);
            candidates.truncate(MAX_CARRIERS);
        }
        candidates
    }
}

/// How much may still be relayed, as of a moment.
struct Budget {
    left_bytes: u64,
    at: Instant,
}

impl Budget {
    fn new(now: Instant) -> Self {
        Budget { left_bytes: BURST_BYTES, at: now }
    }

    fn take(&mut self, bytes: usize, now: Instant) -> bool {
        let micros = now.saturating_duration_since(self.at).min(Duration::from_secs(1)).as_micros() as u64;
        self.left_bytes = (self.left_bytes + micros * RATE_BYTES_EACH_SECOND / 1_000_000).min(BURST_BYTES);
        self.at = now;
        match self.left_bytes.checked_sub(bytes as u64) {
            Some(left) => self.left_bytes = left,
            None => return false,
        }
        true
    }
}

/// Hands what QUIC wants relayed to others, until the network stops.
pub(crate) async fn run(shared: Arc<Shared>, mut outward: mpsc::Receiver<Packet>) {
    loop {
        let packet = tokio::select! {
            () = shared.stop.cancelled() => return,
            packet = outward.recv() => packet,
        };
        let Some(Packet { node, bytes }) = packet else { return };
        let message = Message::Forward { to: node, packet: bytes }.encode();
        for via in carriers(&shared, node) {
            send(&shared, via, message.clone());
        }
    }
}

fn carriers(shared: &Shared, to: NodeId) -> Vec<NodeId> {
    let known = shared.relay.lock().routes.via(to, Instant::now());
    if let Some(via) = known.filter(|via| shared.pool.is_direct(*via)) {
        return vec![via];
    }
    let mut candidates = shared.pool.direct_nodes();
    candidates.retain(|node| *node != to && *node != shared.own_id());
    shared.relay.lock().routes.guess(candidates)
}

/// Sends a message to a neighbour. The first one dials, and what comes meanwhile is lost.
fn send(shared: &Arc<Shared>, to: NodeId, message: Bytes) {
    if let Some(connection) = shared.pool.open_connection((to, Alpn::Relay)) {
        return post(&connection, message);
    }
    if !shared.relay.lock().dialling.insert(to) {
        return;
    }
    let shared = shared.clone();
    shared.clone().tasks.spawn(async move {
        match shared.connect(to, Alpn::Relay).await {
            Ok(connection) => post(&connection, message),
            Err(error) => tracing::debug!(node = to, %error, "nothing can be relayed through a node"),
        }
        shared.relay.lock().dialling.remove(&to);
    });
}

fn post(connection: &Connection, message: Bytes) {
    // As on any network: QUIC finds out what a path carries, and sends again what was lost.
    if let Err(error) = connection.send_datagram(message) {
        tracing::trace!(%error, "a packet was not relayed");
    }
}

/// Takes what a peer wants passed on, and what it passes on, until its connection ends.
pub(crate) async fn receive(shared: &Arc<Shared>, peer: &PeerInfo, connection: &Connection) {
    loop {
        let datagram = tokio::select! {
            () = shared.stop.cancelled() => return,
            read = tokio::time::timeout(IDLE, connection.read_datagram()) => match read {
                Ok(Ok(datagram)) => datagram,
                Ok(Err(_)) => return,
                Err(_) => return Close::Done.close(connection),
            },
        };
        match Message::decode(datagram) {
            Some(Message::Forward { to, packet }) => forward(shared, peer.id, to, packet),
            Some(Message::Deliver { from, packet }) => deliver(shared, peer.id, from, packet),
            None => tracing::debug!(node = peer.id, "what came to be relayed cannot be read"),
        }
    }
}

fn forward(shared: &Arc<Shared>, from: NodeId, to: NodeId, packet: Bytes) {
    let is_possible = to != from && shared.members.is_listed(to) && shared.pool.is_direct(to);
    let now = Instant::now();
    let mut state = shared.relay.lock();
    let budget = state.budgets.entry(from).or_insert_with(|| Budget::new(now));
    if !budget.take(packet.len(), now) || !is_possible {
        return;
    }
    drop(state);
    send(shared, to, Message::Deliver { from, packet }.encode());
}

fn deliver(shared: &Shared, via: NodeId, from: NodeId, packet: Bytes) {
    if from == via || from == shared.own_id() || !shared.members.is_listed(from) {
        return;
    }
    shared.relay.lock().routes.heard(from, via, Instant::now());
    // What finds no room is lost.
    let _ = shared.relay.inward.try_send(Packet { node: from, bytes: packet });
}

#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(input: &[u8]) {
    if let Some(message) = Message::decode(Bytes::copy_from_slice(input)) {
        assert_eq!(message.encode(), input);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_back_and_nothing_else_does() {
        let packet = Bytes::from_static(b"packet");
        for message in [
            Message::Forward { to: 7, packet: packet.clone() },
            Message::Deliver { from: u64::MAX, packet: packet.clone() },
        ] {
            assert_eq!(Message::decode(message.encode()), Some(message.clone()));
            let headers = message.encode().slice(..HEADER_BYTES);
            assert_eq!(Message::decode(headers), None, "without a packet");
        }
        for bad in [&b""[..], &[FORWARD], &[3; 20]] {
            assert_eq!(Message::decode(Bytes::copy_from_slice(bad)), None);
        }
    }

    #[test]
    fn the_way_is_where_a_node_was_heard_until_it_falls_silent() {
        let start = Instant::now();
        let mut routes = Routes::default();
        assert_eq!(routes.via(9, start), None);
        routes.heard(9, 1, start);
        let soon = start + ROUTE_HOLDS / 2;
        routes.heard(9, 2, soon);
        assert_eq!(routes.via(9, soon), Some(1), "the first stays");
        let later = start + ROUTE_HOLDS;
        assert_eq!(routes.via(9, later), None);
        routes.heard(9, 2, later);
        assert_eq!(routes.via(9, later), Some(2), "another takes its place");
    }

    #[test]
    fn guesses_come_round_to_everybody() {
        let mut routes = Routes::default();
        assert_eq!(routes.guess(vec![1, 2]), [1, 2]);
        let guessed: HashSet<_> = (0..4).flat_map(|_| routes.guess((1..=10).collect())).collect();
        assert_eq!(guessed.len(), 10);
        assert_eq!(routes.guess((1..=10).collect()).len(), MAX_CARRIERS);
    }

    #[test]
    fn a_member_has_no_more_relayed_than_it_may() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let packet = 1024;
        let relayed = (0..10_000).filter(|_| budget.take(packet, start)).count() as u64;
        assert_eq!(relayed * packet as u64, BURST_BYTES);
        let mut at_once = 0;
        for step in 1..=1000 {
            let now = start + Duration::from_millis(step);
            while budget.take(packet, now) {
                at_once += packet as u64;
            }
        }
        assert!(at_once <= RATE_BYTES_EACH_SECOND && at_once > RATE_BYTES_EACH_SECOND * 9 / 10, "{at_once}");
    }
}
