//! Connections that this node opens: one for each peer and protocol, dialled when first needed and again when lost.
//!
//! Invariant: at most one dial for each peer and protocol is under way, and each ends within the dial timeout.
//! Invariant: a connection is handed out only after the peer has welcomed this node, so that a refusal is an error of
//! `open` and not of the first write.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint};
use tokio::sync::Notify;

use crate::alpn::Alpn;
use crate::error::NetError;
use crate::links::Close;
use crate::names::NodeId;
use crate::observed::{MAX_SEEN_BYTES, decode_seen};
use crate::socket::is_relayed;
use crate::tls::server_name;
use crate::transport::is_estranging;

/// A failed dial answers for others within this time.
const FAILURE_HOLDS: Duration = Duration::from_millis(100);

/// Between the first tries of a node's addresses.
pub(crate) const ADDRESS_STAGGER: Duration = Duration::from_millis(100);

/// What a server sends on a stream of its own once it has admitted a connection. Where it sees the peer follows.
pub(crate) const WELCOME: [u8; 1] = [1];

type Key = (NodeId, Alpn);

#[derive(Default)]
pub(crate) struct Pool {
    slots: Mutex<HashMap<Key, Arc<Slot>>>,
}

#[derive(Default)]
struct Slot {
    dialling: tokio::sync::Mutex<()>,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    /// With the time at which it came here, after it was made.
    connection: Option<(Connection, Instant)>,
    failed: Option<(Instant, NetError)>,
}

/// All that a dial needs.
pub(crate) struct Dial<'a> {
    pub(crate) endpoint: &'a Endpoint,
    pub(crate) config: ClientConfig,
    pub(crate) node: NodeId,
    pub(crate) alpn: Alpn,
    /// Where to try, and after how long.
    pub(crate) attempts: Vec<(SocketAddr, Duration)>,
    pub(crate) timeout: Duration,
    /// Told when one side does not believe the other's certificate.
    pub(crate) estranged: &'a Notify,
    /// Told where the peer sees this node.
    pub(crate) seen: &'a (dyn Fn(SocketAddr) + Send + Sync),
}

impl Pool {
    /// The open connection to `key`, if there is one.
    pub(crate) fn open_connection(&self, key: Key) -> Option<Connection> {
        let slot = self.lock().get(&key).cloned()?;
        slot.live()
    }

    /// The connection to the node and protocol of `dial`, which is dialled if there is none.
    pub(crate) async fn connection(&self, dial: Dial<'_>) -> Result<Connection, NetError> {
        let slot = self.lock().entry((dial.node, dial.alpn)).or_default().clone();
        if let Some(connection) = slot.live() {
            return Ok(connection);
        }
        let _dialling = slot.dialling.lock().await;
        if let Some(connection) = slot.live() {
            return Ok(connection);
        }
        if let Some(error) = slot.recent_failure(Instant::now()) {
            return Err(error);
        }
        let result = dial.within_its_time().await;
        slot.keep(&result, Instant::now());
        result
    }

    /// Whether heartbeats reach `node`, and not through another.
    pub(crate) fn is_direct(&self, node: NodeId) -> bool {
        self.open_connection((node, Alpn::Beat)).is_some_and(|connection| !is_relayed(connection.remote_address()))
    }

    /// The nodes that heartbeats reach directly.
    pub(crate) fn direct_nodes(&self) -> Vec<NodeId> {
        let slots: Vec<_> = {
            let slots = self.lock();
            slots.iter().filter(|(key, _)| key.1 == Alpn::Beat).map(|(key, slot)| (key.0, slot.clone())).collect()
        };
        let is_direct = |slot: &Slot| slot.live().is_some_and(|connection| !is_relayed(connection.remote_address()));
        slots.into_iter().filter(|(_, slot)| is_direct(slot)).map(|(node, _)| node).collect()
    }

    /// Hands out `connection` for `key` from now on, and closes the one before. If that one led elsewhere, all others to the
    /// node that lead there are closed as well: it has moved. A dial that is under way ends first: it would put its own in
    /// place of this one.
    pub(crate) async fn replace(&self, key: Key, connection: Connection) {
        let slot = self.lock().entry(key).or_default().clone();
        let _dialling = slot.dialling.lock().await;
        let (before, at) = (slot.live(), canonical(connection.remote_address()));
        slot.keep(&Ok(connection), Instant::now());
        let Some(before) = before else { return };
        Close::Displaced.close(&before);
        let left = canonical(before.remote_address());
        if left != at && !is_relayed(left) {
            self.close_where(key.0, |_, at| at == left);
        }
    }

    /// Closes the connections to `node` and forgets that dials failed.
    pub(crate) fn close(&self, node: NodeId, why: Close) {
        let slots: Vec<_> = {
            let mut slots = self.lock();
            slots.extract_if(|key, _| key.0 == node).map(|(_, slot)| slot).collect()
        };
        for connection in slots.iter().filter_map(|slot| slot.live()) {
            why.close(&connection);
        }
    }

    /// Closes the connections to `node` that go to none of `addresses`: it has moved.
    pub(crate) fn close_elsewhere(&self, node: NodeId, addresses: &[SocketAddr]) {
        self.close_where(node, |_, at| !addresses.contains(&at) && !is_relayed(at));
    }

    /// Closes the connections to `node` that came about until `alive`, when it last answered as the process that it is no
    /// longer: what would be sent over them is lost.
    pub(crate) fn close_those_of_before(&self, node: NodeId, alive: Instant) {
        self.close_where(node, |since, _| since <= alive);
    }

    fn close_where(&self, node: NodeId, is_left: impl Fn(Instant, SocketAddr) -> bool) {
        let slots: Vec<_> = self.lock().iter().filter(|(key, _)| key.0 == node).map(|(_, slot)| slot.clone()).collect();
        for (connection, since) in slots.iter().filter_map(|slot| slot.live_since()) {
            if is_left(since, canonical(connection.remote_address())) {
                Close::Displaced.close(&connection);
            }
        }
    }

    /// Lets the next dials be tried at once: why the last ones failed no longer holds.
    pub(crate) fn forget_failures(&self) {
        let slots: Vec<_> = self.lock().values().cloned().collect();
        slots.iter().for_each(|slot| slot.lock().failed = None);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    fn live(&self) -> Option<Connection> {
        self.live_since().map(|(connection, _)| connection)
    }

    fn live_since(&self) -> Option<(Connection, Instant)> {
        self.lock().connection.clone().filter(|(connection, _)| connection.close_reason().is_none())
    }

    fn recent_failure(&self, now: Instant) -> Option<NetError> {
        let held = self.lock();
        let (at, error) = held.failed.as_ref()?;
        (now.saturating_duration_since(*at) < FAILURE_HOLDS).then(|| error.clone())
    }

    fn keep(&self, result: &Result<Connection, NetError>, now: Instant) {
        *self.lock() = match result {
            Ok(connection) => Held { connection: Some((connection.clone(), now)), failed: None },
            // Nothing was tried, and the address may come at any moment.
            Err(NetError::NoAddress(_)) => Held::default(),
            Err(error) => Held { connection: None, failed: Some((now, error.clone())) },
        };
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Dial<'_> {
    /// The first address that welcomes this node, within the dial timeout.
    pub(crate) async fn within_its_time(&self) -> Result<Connection, NetError> {
        let late = NetError::Timeout {
            node: self.node,
            alpn: self.alpn,
            waited_ms: self.timeout.as_millis().try_into().unwrap_or(u64::MAX),
        };
        tokio::time::timeout(self.timeout, self.any_address()).await.unwrap_or(Err(late))
    }

    /// Tries all addresses, each after its time, and takes the first that welcomes this node.
    async fn any_address(&self) -> Result<Connection, NetError> {
        let mut tries: FuturesUnordered<_> = self
            .attempts
            .iter()
            .map(|(address, after)| async move {
                tokio::time::sleep(*after).await;
                (*address, self.address(*address).await)
            })
            .collect();
        let mut direct = self.attempts.iter().filter(|(address, _)| !is_relayed(*address)).count();
        let mut last = NetError::NoAddress(self.node);
        while let Some((address, result)) = tries.next().await {
            match result {
                Ok(connection) => return Ok(connection),
                Err(error) => last = error,
            }
            direct -= usize::from(!is_relayed(address));
            // One that refuses this node does so whichever way it is asked.
            if direct == 0 && matches!(last, NetError::Refused { .. }) {
                break;
            }
        }
        Err(last)
    }

    async fn address(&self, address: SocketAddr) -> Result<Connection, NetError> {
        let unreachable = |reason: String| NetError::Unreachable {
            node: self.node,
            alpn: self.alpn,
            reason: format!("{address}: {reason}"),
        };
        let connecting = self
            .endpoint
            .connect_with(self.config.clone(), address, &server_name(self.node))
            .map_err(|error| unreachable(error.to_string()))?;
        let connection = connecting.await.map_err(|error| self.explain(address, error))?;
        if !self.alpn.admits_strangers() {
            let seen = await_welcome(&connection).await.map_err(|error| self.explain(address, error))?;
            seen.into_iter().filter(|_| !is_relayed(address)).for_each(self.seen);
        }
        Ok(connection)
    }

    fn explain(&self, address: SocketAddr, error: ConnectionError) -> NetError {
        let (node, alpn) = (self.node, self.alpn);
        let code = match &error {
            ConnectionError::TransportError(error) => Some(error.code),
            ConnectionError::ConnectionClosed(close) => Some(close.error_code),
            _ => None,
        };
        if code.is_some_and(is_estranging) && !alpn.admits_strangers() {
            self.estranged.notify_one();
        }
        match error {
            ConnectionError::ApplicationClosed(close) => {
                NetError::Refused { node, alpn, reason: String::from_utf8_lossy(&close.reason).into_owned() }
            }
            ConnectionError::ConnectionClosed(close) => NetError::Refused { node, alpn, reason: close.to_string() },
            ConnectionError::TransportError(error) => {
                NetError::Unreachable { node, alpn, reason: format!("{address}: {error}") }
            }
            other => NetError::Unreachable { node, alpn, reason: format!("{address}: {other}") },
        }
    }
}

/// Waits until the peer lets this node in, and returns where the peer sees it, if it says so.
async fn await_welcome(connection: &Connection) -> Result<Option<SocketAddr>, ConnectionError> {
    let mut stream = connection.accept_uni().await?;
    let mut welcome = WELCOME;
    match stream.read_exact(&mut welcome).await {
        Ok(()) => Ok(stream.read_to_end(MAX_SEEN_BYTES).await.ok().and_then(|seen| decode_seen(&seen))),
        Err(_) => Err(connection.close_reason().unwrap_or(ConnectionError::Reset)),
    }
}

/// An address as records write it.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pair::Pair;

    const KEY: Key = (2, Alpn::Beat);

    /// A relayed connection that a dial finds while a direct one takes its place would stay instead.
    #[tokio::test]
    async fn what_replaces_a_connection_is_not_replaced_by_a_dial_under_way() {
        let (pair, pool) = (Pair::start(), Pool::default());
        let (relayed, _there) = pair.connect(pair.relayed_address()).await;
        let (direct, _there) = pair.connect(pair.direct_address()).await;
        let slot = pool.lock().entry(KEY).or_default().clone();
        let dialling = slot.dialling.lock().await;
        let mut replacing = Box::pin(pool.replace(KEY, direct.clone()));
        assert!(futures::poll!(&mut replacing).is_pending());
        slot.keep(&Ok(relayed.clone()), Instant::now());
        assert!(!pool.is_direct(2));
        drop(dialling);
        replacing.await;
        assert!(pool.is_direct(2));
        assert!(relayed.close_reason().is_some() && direct.close_reason().is_none());
    }

    #[tokio::test]
    async fn what_leads_where_heartbeats_no_longer_go_is_closed_with_them() {
        let (pair, pool) = (Pair::start(), Pool::default());
        let (beat, _there) = pair.connect(pair.direct_address()).await;
        let (call, _there) = pair.connect(pair.direct_address()).await;
        let (relayed, _there) = pair.connect(pair.relayed_address()).await;
        let call_of = |alpn, connection: &Connection| {
            pool.lock().entry((2, alpn)).or_default().keep(&Ok(connection.clone()), Instant::now());
        };
        call_of(Alpn::Rpc, &call);
        call_of(Alpn::Raft, &relayed);
        pool.replace(KEY, beat.clone()).await;
        let (again, _there) = pair.connect(pair.direct_address()).await;
        pool.replace(KEY, again.clone()).await;
        assert!(beat.close_reason().is_some() && call.close_reason().is_none(), "it goes the same way");
        let (elsewhere, _there) = pair.connect(pair.relayed_address()).await;
        pool.replace(KEY, elsewhere.clone()).await;
        assert!(again.close_reason().is_some() && call.close_reason().is_some());
        assert!(relayed.close_reason().is_none() && elsewhere.close_reason().is_none());
    }

    #[tokio::test]
    async fn of_a_process_that_is_gone_only_what_certainly_led_to_it_is_closed() {
        let (pair, pool) = (Pair::start(), Pool::default());
        let (before, _there) = pair.connect(pair.direct_address()).await;
        let (since, _there) = pair.connect(pair.direct_address()).await;
        let (others, _there) = pair.connect(pair.direct_address()).await;
        let alive = Instant::now();
        for (key, connection, at) in [
            ((2, Alpn::Rpc), &before, alive),
            ((2, Alpn::Raft), &since, alive + Duration::from_millis(1)),
            ((3, Alpn::Rpc), &others, alive),
        ] {
            pool.lock().entry(key).or_default().keep(&Ok(connection.clone()), at);
        }
        pool.close_those_of_before(2, alive);
        assert!(before.close_reason().is_some());
        assert!(since.close_reason().is_none() && others.close_reason().is_none());
    }
}
