//! The state of the members as this node sees it, published for others to watch.
//!
//! Invariant: watchers are woken when a state, a payload or an address changes, and not by each heartbeat.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::watch;

use crate::members::Entries;
use crate::names::NodeId;
use crate::options::Options;
use crate::suspicion::{Liveness, Suspicion};

/// The most bytes that a heartbeat carries for its sender.
pub const MAX_PAYLOAD_BYTES: usize = 1024;

/// A member, as this node sees it. This node itself is always alive.
#[derive(Debug, Clone)]
pub struct Peer {
    pub id: NodeId,
    pub name: Arc<str>,
    pub state: Liveness,
    /// When its last heartbeat came, on this node's monotonic clock.
    pub last_heard: Option<Instant>,
    /// What it sent with its heartbeats.
    pub payload: Bytes,
    /// Where its heartbeats come from.
    pub address: Option<SocketAddr>,
    /// The round trip to it.
    pub rtt: Option<Duration>,
}

/// All members by id.
pub type Peers = BTreeMap<NodeId, Peer>;

/// What came along with heartbeats.
#[derive(Debug, Clone, Default)]
struct Signs {
    payload: Bytes,
    seen_at: Option<SocketAddr>,
    rtt: Option<Duration>,
}

struct State {
    suspicion: Suspicion,
    names: BTreeMap<NodeId, Arc<str>>,
    signs: BTreeMap<NodeId, Signs>,
}

pub(crate) struct Pulse {
    own: NodeId,
    tick: Duration,
    state: Mutex<State>,
    peers: watch::Sender<Arc<Peers>>,
}

impl Pulse {
    pub(crate) fn new(options: &Options, own: NodeId, now: Instant) -> Self {
        let tick = (options.beat_period / 2).max(Duration::from_millis(5));
        let suspicion = Suspicion::new(options.silence, tick, now);
        let state = State { suspicion, names: BTreeMap::new(), signs: BTreeMap::new() };
        Pulse { own, tick, state: Mutex::new(state), peers: watch::Sender::new(Arc::default()) }
    }

    /// How often [`Pulse::tick`] is to be called.
    pub(crate) fn tick_period(&self) -> Duration {
        self.tick
    }

    pub(crate) fn set_members(&self, members: &Entries, now: Instant) {
        let mut state = self.lock();
        state.suspicion.set_members(members.keys().copied(), now);
        state.signs.retain(|id, _| *id == self.own || members.contains_key(id));
        state.names = members.iter().map(|(id, entry)| (*id, entry.name.clone())).collect();
        self.publish(&state, now);
    }

    /// A heartbeat of `id` came, from `address` unless it was relayed.
    pub(crate) fn heard(&self, id: NodeId, address: Option<SocketAddr>, payload: Bytes, now: Instant) {
        let mut state = self.lock();
        if !state.names.contains_key(&id) {
            return;
        }
        let changed = state.suspicion.heard(id, now);
        let signs = state.signs.entry(id).or_default();
        signs.payload = payload;
        signs.seen_at = address.or(signs.seen_at);
        if changed {
            self.publish(&state, now);
        }
    }

    /// `id` has proved to be there by other means than a heartbeat: it came with a connection, or welcomed one. Whoever is
    /// lost between its first word and its first heartbeat was still there, and is missed as soon as any other.
    pub(crate) fn met(&self, id: NodeId, now: Instant) {
        let mut state = self.lock();
        if state.names.contains_key(&id) && state.suspicion.heard(id, now) {
            self.publish(&state, now);
        }
    }

    /// What this node itself sends.
    pub(crate) fn set_own_payload(&self, payload: Bytes) {
        self.lock().signs.entry(self.own).or_default().payload = payload;
    }

    pub(crate) fn own_payload(&self) -> Bytes {
        self.lock().signs.get(&self.own).map(|signs| signs.payload.clone()).unwrap_or_default()
    }

    pub(crate) fn set_rtt(&self, id: NodeId, rtt: Duration) {
        if let Some(signs) = self.lock().signs.get_mut(&id) {
            signs.rtt = Some(rtt);
        }
    }

    /// Where `id` was last heard from.
    pub(crate) fn seen_at(&self, id: NodeId) -> Option<SocketAddr> {
        self.lock().signs.get(&id)?.seen_at
    }

    pub(crate) fn tick(&self, now: Instant) {
        let mut state = self.lock();
        state.suspicion.heard(self.own, now);
        if state.suspicion.tick(now).paused {
            tracing::warn!("this node was paused: the silence of others counts anew");
        }
        self.publish(&state, now);
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Peers>> {
        self.peers.subscribe()
    }

    fn publish(&self, state: &State, now: Instant) {
        let next: Peers = state.names.iter().map(|(id, name)| (*id, state.peer(*id, name, self.own, now))).collect();
        self.peers.send_if_modified(|peers| {
            for peer in next.values() {
                log_transition(peers.get(&peer.id), peer);
            }
            let changed = !peers.values().map(watched).eq(next.values().map(watched));
            *peers = Arc::new(next);
            changed
        });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn peer(&self, id: NodeId, name: &Arc<str>, own: NodeId, now: Instant) -> Peer {
        let clock = self.suspicion.clocks().get(&id);
        let signs = self.signs.get(&id).cloned().unwrap_or_default();
        let own = id == own;
        Peer {
            id,
            name: name.clone(),
            state: if own { Liveness::Alive } else { clock.map_or(Liveness::Unknown, |clock| clock.state) },
            last_heard: if own { Some(now) } else { clock.and_then(|clock| clock.last_heard) },
            payload: signs.payload,
            address: signs.seen_at,
            rtt: signs.rtt,
        }
    }
}

/// What of a peer wakes watchers.
fn watched(peer: &Peer) -> (NodeId, &str, Liveness, &Bytes, Option<SocketAddr>) {
    (peer.id, &peer.name, peer.state, &peer.payload, peer.address)
}

fn log_transition(before: Option<&Peer>, after: &Peer) {
    let before = before.map_or(Liveness::Unknown, |peer| peer.state);
    if before != after.state {
        tracing::info!(node = after.id, name = &*after.name, ?before, now = ?after.state, "a node's liveness changed");
    }
}
