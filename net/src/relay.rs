//! Packets passed on for members that cannot reach each other, as behind two NATs that no hole can be punched through. A node
//! hands the packet to a member that both reach, in a datagram on a connection of its own; that member hands it on. What is in
//! the packet is QUIC between the two, which the one between can drop but neither read nor forge.
//!
//! Nothing is agreed beforehand: being a member is the reservation. A packet goes by the member that proves to be a way to its
//! receiver; while there is none, by several at once, so that a relay that dies is replaced without a question.
//!
//! Invariant: packets go from members to members, over connections that are not relayed themselves: one hop, no loop.
//! Invariant: what one member has relayed, and what one relays to this node, is bounded by [`RATE_BYTES_EACH_SECOND`] each, and
//! nothing is queued here.
//! Invariant: who says that a packet came from a node is no way to it until something that the node itself has sealed shows
//! that packets arrive there.

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

/// A way to a node is one for so long after it last proved to be one.
const ROUTE_HOLDS: Duration = Duration::from_millis(750);
/// One that ceased to be a way is not tried alone again for so long.
const ROUTE_PAUSE: Duration = Duration::from_secs(10);
/// A member that cannot be dialled for relaying is not dialled again for so long. It may be older than relaying.
const DIAL_PAUSE: Duration = Duration::from_secs(5);
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
    /// For whom this node passes packets on.
    passed_on: Budgets,
    /// Who passes packets on to this node.
    taken_in: Budgets,
    dials: Dials,
}

impl Relay {
    /// What is relayed to this node goes to `inward`.
    pub(crate) fn new(inward: mpsc::Sender<Packet>) -> Self {
        Relay { inward, state: Mutex::default() }
    }

    /// Something that `node` itself sealed says that packets arrive there.
    pub(crate) fn proved(&self, node: NodeId, now: Instant) {
        self.lock().routes.proved(node, now);
    }

    pub(crate) fn forget(&self, node: NodeId) {
        let mut state = self.lock();
        state.routes.0.remove(&node);
        state.passed_on.0.remove(&node);
        state.taken_in.0.remove(&node);
        state.dials.failed.remove(&node);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The ways to each node.
#[derive(Default)]
struct Routes(HashMap<NodeId, Route>);

#[derive(Default)]
struct Route {
    /// Who says that something came from the node, and last did so when. It may say what it likes.
    heard: Option<(NodeId, Instant)>,
    /// Who is tried alone, and when packets were last known to arrive.
    way: Option<(NodeId, Instant)>,
    /// Who was tried in vain, and until when.
    failed: HashMap<NodeId, Instant>,
}

impl Routes {
    /// `via` says that something came from `from`. Whoever says so first stays the next to be tried while it goes on.
    fn heard(&mut self, from: NodeId, via: NodeId, now: Instant) {
        let route = self.0.entry(from).or_default();
        route.failed.retain(|_, until| *until > now);
        let is_first = route.heard.is_none_or(|(known, at)| known == via || !holds(at, now));
        if is_first && !route.failed.contains_key(&via) {
            route.heard = Some((via, now));
        }
    }

    /// Packets arrive at `to`: by the way that is tried, or else by one of several, which is tried from now on.
    fn proved(&mut self, to: NodeId, now: Instant) {
        if let Some(route) = self.0.get_mut(&to) {
            route.give_up(now);
            let heard = route.heard.filter(|(_, at)| holds(*at, now));
            route.way = route.way.or(heard).map(|(via, _)| (via, now));
        }
    }

    fn via(&mut self, to: NodeId, now: Instant) -> Option<NodeId> {
        let route = self.0.get_mut(&to)?;
        route.give_up(now);
        route.way.map(|(via, _)| via)
    }
}

impl Route {
    /// Leaves a way by which nothing has arrived lately.
    fn give_up(&mut self, now: Instant) {
        if let Some((via, _)) = self.way.take_if(|(_, at)| !holds(*at, now)) {
            self.failed.insert(via, now + ROUTE_PAUSE);
            self.heard.take_if(|(heard, _)| *heard == via);
        }
    }
}

fn holds(at: Instant, now: Instant) -> bool {
    now.saturating_duration_since(at) < ROUTE_HOLDS
}

/// Some of those who might know the way, others each `turn`.
fn guess(mut candidates: Vec<NodeId>, turn: usize) -> Vec<NodeId> {
    if candidates.len() > MAX_CARRIERS {
        let first = turn.wrapping_mul(MAX_CARRIERS) % candidates.len();
        candidates.rotate_left(first);
        candidates.truncate(MAX_CARRIERS);
    }
    candidates
}

/// Which members are dialled so that they relay, or be relayed to.
#[derive(Default)]
struct Dials {
    under_way: HashSet<NodeId>,
    failed: HashMap<NodeId, Instant>,
}

impl Dials {
    /// Whether to dial `node` now. Then the dial is under way.
    fn begin(&mut self, node: NodeId, now: Instant) -> bool {
        let is_pausing = self.failed.get(&node).is_some_and(|at| now.saturating_duration_since(*at) < DIAL_PAUSE);
        !is_pausing && self.under_way.insert(node)
    }

    fn end(&mut self, node: NodeId, is_open: bool, now: Instant) {
        self.under_way.remove(&node);
        if is_open {
            self.failed.remove(&node);
        } else {
            self.failed.insert(node, now);
        }
    }
}

/// What each member may still have.
#[derive(Default)]
struct Budgets(HashMap<NodeId, Budget>);

impl Budgets {
    fn take(&mut self, node: NodeId, bytes: usize, now: Instant) -> bool {
        self.0.entry(node).or_insert_with(|| Budget::new(now)).take(bytes, now)
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
    let mut turn: usize = 0;
    loop {
        let packet = tokio::select! {
            () = shared.stop.cancelled() => return,
            packet = outward.recv() => packet,
        };
        let Some(Packet { node, bytes }) = packet else { return };
        turn = turn.wrapping_add(1);
        let carriers = carriers(&shared, node, &bytes, turn);
        let message = Message::Forward { to: node, packet: bytes }.encode();
        for via in carriers {
            send(&shared, via, message.clone());
        }
    }
}

/// By whom a packet goes. One of a handshake always goes by several: a way that carries the rest may hold it back.
fn carriers(shared: &Shared, to: NodeId, packet: &[u8], turn: usize) -> Vec<NodeId> {
    let known = shared.relay.lock().routes.via(to, Instant::now());
    if let Some(via) = known.filter(|via| !is_of_handshake(packet) && shared.pool.is_direct(*via)) {
        return vec![via];
    }
    let mut candidates = shared.pool.direct_nodes();
    candidates.retain(|node| *node != to && *node != shared.own_id());
    candidates.sort_unstable();
    guess(candidates, turn)
}

/// Whether QUIC's packet has a long header (RFC 9000, section 17.2).
fn is_of_handshake(packet: &[u8]) -> bool {
    packet.first().is_some_and(|first| first & 0x80 != 0)
}

/// Sends a message to a neighbour. The first one dials, and what comes meanwhile is lost.
fn send(shared: &Arc<Shared>, to: NodeId, message: Bytes) {
    if let Some(connection) = shared.pool.open_connection((to, Alpn::Relay)) {
        return post(&connection, message);
    }
    if !shared.relay.lock().dials.begin(to, Instant::now()) {
        return;
    }
    let shared = shared.clone();
    shared.clone().tasks.spawn(async move {
        let dialled = shared.connect(to, Alpn::Relay).await;
        shared.relay.lock().dials.end(to, dialled.is_ok(), Instant::now());
        match dialled {
            Ok(connection) => post(&connection, message),
            Err(error) => tracing::debug!(node = to, %error, "nothing can be relayed through a node"),
        }
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
    if to == from || !shared.members.is_listed(from) || !shared.members.is_listed(to) {
        return;
    }
    if !shared.relay.lock().passed_on.take(from, packet.len(), Instant::now()) {
        return;
    }
    if shared.pool.is_direct(to) {
        send(shared, to, Message::Deliver { from, packet }.encode());
    }
}

fn deliver(shared: &Shared, via: NodeId, from: NodeId, packet: Bytes) {
    if from == via || from == shared.own_id() || !shared.members.is_listed(via) || !shared.members.is_listed(from) {
        return;
    }
    let now = Instant::now();
    let mut state = shared.relay.lock();
    if !state.taken_in.take(via, packet.len(), now) {
        return;
    }
    state.routes.heard(from, via, now);
    drop(state);
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
    fn nobody_is_the_way_by_its_own_word() {
        let start = Instant::now();
        let mut routes = Routes::default();
        for _ in 0..10 {
            routes.heard(9, 1, start);
        }
        assert_eq!(routes.via(9, start), None);
        routes.proved(9, start);
        assert_eq!(routes.via(9, start), Some(1));
        let later = start + ROUTE_HOLDS;
        routes.heard(9, 1, later);
        assert_eq!(routes.via(9, later), None, "it is no longer, whatever it says, when nothing arrives");
        routes.heard(9, 1, later);
        routes.proved(9, later);
        assert_eq!(routes.via(9, later), None, "and is not tried again at once");
        routes.heard(9, 2, later);
        routes.proved(9, later);
        assert_eq!(routes.via(9, later), Some(2), "another is");
        let much_later = later + ROUTE_PAUSE;
        routes.heard(9, 1, much_later);
        routes.proved(9, much_later);
        assert_eq!(routes.via(9, much_later), Some(1));
    }

    #[test]
    fn a_way_stays_for_as_long_as_packets_arrive() {
        let start = Instant::now();
        let mut routes = Routes::default();
        routes.heard(9, 1, start);
        routes.heard(9, 2, start);
        for step in 0..100 {
            let now = start + ROUTE_HOLDS / 2 * step;
            routes.proved(9, now);
            routes.heard(9, 2, now);
            assert_eq!(routes.via(9, now), Some(1), "whoever was first");
        }
        routes.proved(8, start);
        assert_eq!(routes.via(8, start), None, "nobody says that it carries anything from there");
    }

    #[test]
    fn a_handshake_is_told_by_its_first_bit() {
        for long in [0xc0_u8, 0xe0, 0xf0, 0x80] {
            assert!(is_of_handshake(&[long, 0]));
        }
        assert!(!is_of_handshake(&[0x40, 0]) && !is_of_handshake(&[]));
    }

    #[test]
    fn guesses_come_round_to_everybody() {
        assert_eq!(guess(vec![1, 2], 7), [1, 2]);
        let guessed: HashSet<_> = (0..4).flat_map(|turn| guess((1..=10).collect(), turn)).collect();
        assert_eq!(guessed.len(), 10);
        assert_eq!(guess((1..=10).collect(), usize::MAX).len(), MAX_CARRIERS);
    }

    #[test]
    fn who_cannot_be_dialled_is_left_alone_for_a_while() {
        let start = Instant::now();
        let mut dials = Dials::default();
        assert!(dials.begin(1, start));
        assert!(!dials.begin(1, start), "one at a time");
        dials.end(1, false, start);
        assert!(!dials.begin(1, start + DIAL_PAUSE / 2));
        assert!(dials.begin(2, start), "that is nobody else's matter");
        assert!(dials.begin(1, start + DIAL_PAUSE));
        dials.end(1, true, start + DIAL_PAUSE);
        assert!(dials.begin(1, start + DIAL_PAUSE));
    }

    #[test]
    fn what_one_uses_up_is_not_anothers() {
        let start = Instant::now();
        let mut budgets = Budgets::default();
        assert!(budgets.take(1, BURST_BYTES as usize, start));
        assert!(!budgets.take(1, 1, start));
        assert!(budgets.take(2, 1, start));
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
