//! What the tasks of one network share.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use quinn::{Connection, Endpoint};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::alpn::Alpn;
use crate::book::{Book, Learned};
use crate::certificate::Fingerprint;
use crate::credentials::Credentials;
use crate::discovery::Hints;
use crate::error::NetError;
use crate::limit::{Gate, Origin, RateLimit};
use crate::links::{Close, Links};
use crate::members::{Members, Standing};
use crate::names::NodeId;
use crate::observed::Whereabouts;
use crate::options::Options;
use crate::pool::{ADDRESS_STAGGER, Dial, Pool, canonical};
use crate::ports::{Admission, Handler, Renewal};
use crate::pulse::Pulse;
use crate::record::AddressRecord;
use crate::relay::Relay;
use crate::renew::Reasons;
use crate::socket::{is_relayed, relayed_address};
use crate::{tls, transport};

/// How long a node is looked for directly before it is looked for through others.
const RELAYED_AFTER: Duration = Duration::from_secs(1);

/// The most origins whose attempts are counted one by one.
const MAX_ORIGINS: usize = 4096;

pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) endpoint: Endpoint,
    pub(crate) members: Members,
    pub(crate) book: Book,
    pub(crate) hints: Hints,
    pub(crate) links: Arc<Links>,
    pub(crate) pool: Pool,
    pub(crate) pulse: Pulse,
    pub(crate) whereabouts: Whereabouts,
    pub(crate) relay: Relay,
    pub(crate) ports: Ports,
    pub(crate) handshakes: Arc<Gate<Origin>>,
    pub(crate) strangers: Arc<Gate<Origin>>,
    pub(crate) attempts: Mutex<RateLimit>,
    pub(crate) renewal: Reasons,
    /// Where handlers and ports run.
    pub(crate) callers: Handle,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
}

/// What has been registered.
#[derive(Default)]
pub(crate) struct Ports {
    handlers: RwLock<HashMap<Alpn, Arc<dyn Handler>>>,
    admission: RwLock<Option<Arc<dyn Admission>>>,
    renewal: RwLock<Option<Arc<dyn Renewal>>>,
}

impl Ports {
    pub(crate) fn set_handler(&self, alpn: Alpn, handler: Arc<dyn Handler>) {
        self.handlers.write().unwrap_or_else(PoisonError::into_inner).insert(alpn, handler);
    }

    pub(crate) fn handler(&self, alpn: Alpn) -> Option<Arc<dyn Handler>> {
        self.handlers.read().unwrap_or_else(PoisonError::into_inner).get(&alpn).cloned()
    }

    pub(crate) fn set_admission(&self, admission: Arc<dyn Admission>) {
        *self.admission.write().unwrap_or_else(PoisonError::into_inner) = Some(admission);
    }

    pub(crate) fn admission(&self) -> Option<Arc<dyn Admission>> {
        self.admission.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_renewal(&self, renewal: Arc<dyn Renewal>) {
        *self.renewal.write().unwrap_or_else(PoisonError::into_inner) = Some(renewal);
    }

    /// Lets go of all, and of whatever they hold.
    pub(crate) fn clear(&self) {
        self.handlers.write().unwrap_or_else(PoisonError::into_inner).clear();
        *self.admission.write().unwrap_or_else(PoisonError::into_inner) = None;
        *self.renewal.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(crate) fn renewal(&self) -> Option<Arc<dyn Renewal>> {
        self.renewal.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Shared {
    pub(crate) fn new(
        options: Options,
        credentials: Arc<Credentials>,
        endpoint: Endpoint,
        members: Members,
        relay: Relay,
        callers: Handle,
        now: Instant,
    ) -> Self {
        let handshakes = Gate::new(options.max_handshakes, options.max_handshakes_each);
        let strangers = Gate::new(options.max_strangers, options.max_strangers.div_ceil(4));
        Shared {
            book: Book::load(credentials.clone(), &options.dir),
            pulse: Pulse::new(&options, credentials.identity().id(), now),
            attempts: Mutex::new(RateLimit::new(options.stranger_rate, MAX_ORIGINS, now)),
            options,
            credentials,
            endpoint,
            members,
            whereabouts: Whereabouts::default(),
            relay,
            hints: Hints::default(),
            links: Arc::default(),
            pool: Pool::default(),
            ports: Ports::default(),
            handshakes,
            strangers,
            renewal: Reasons::default(),
            callers,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }
    }

    pub(crate) fn own_id(&self) -> NodeId {
        self.credentials.identity().id()
    }

    /// The addresses that this node tells others.
    pub(crate) fn own_addresses(&self, advertise: &[SocketAddr]) -> Vec<SocketAddr> {
        if !advertise.is_empty() {
            return advertise.to_vec();
        }
        let local = self.endpoint.local_addr().ok().map(canonical).filter(|address| !address.ip().is_unspecified());
        local.into_iter().collect()
    }

    /// The connection to a member, dialled if need be.
    pub(crate) async fn connect(&self, node: NodeId, alpn: Alpn) -> Result<Connection, NetError> {
        if self.stop.is_cancelled() {
            return Err(NetError::ShuttingDown);
        }
        if !self.members.is_listed(node) {
            return Err(NetError::NotAMember(node));
        }
        if let Some(connection) = self.pool.open_connection((node, alpn)) {
            if !is_relayed(connection.remote_address()) || !self.pool.is_direct(node) {
                return Ok(connection);
            }
            Close::Displaced.close(&connection);
        }
        let moves = self.whereabouts.moves();
        let seen = |at| self.seen(node, at, moves);
        let connection = self.pool.connection(self.dial(node, alpn, self.attempts(node, alpn), &seen)?).await?;
        self.connected(node, &connection)?;
        Ok(connection)
    }

    /// Whether `node` was just seen elsewhere than where `connection` leads: that one may be dead, which would only be noticed
    /// when it has been silent for long.
    pub(crate) fn is_seen_elsewhere(&self, node: NodeId, connection: &Connection) -> bool {
        let Some(at) = self.hints.take_news(node) else { return false };
        let record = self.book.get(node);
        let recorded = record.as_ref().map(|record| record.addresses()).unwrap_or_default();
        may_have_moved(canonical(connection.remote_address()), at, recorded)
    }

    /// Replaces the connection for heartbeats by another, direct one.
    pub(crate) async fn connect_directly(&self, node: NodeId) -> Result<(), NetError> {
        let moves = self.whereabouts.moves();
        let seen = |at| self.seen(node, at, moves);
        let attempts = staggered(self.addresses(node));
        let connection = self.dial(node, Alpn::Beat, attempts, &seen)?.within_its_time().await?;
        // Before it is judged again: a node that is removed at this moment is either found in the pool or refused here.
        self.pool.replace((node, Alpn::Beat), connection.clone()).await;
        self.connected(node, &connection)
    }

    /// A connection has come about.
    fn connected(&self, node: NodeId, connection: &Connection) -> Result<(), NetError> {
        self.pulse.met(node, Instant::now());
        // A node that was removed meanwhile had no connection yet that could have been closed.
        if !self.members.is_listed(node) {
            Close::NotAMember.close(connection);
            return Err(NetError::NotAMember(node));
        }
        Ok(())
    }

    /// `by` sees this node at `at`, on a connection that was dialled after so many `moves`.
    fn seen(&self, by: NodeId, at: SocketAddr, moves: u64) {
        if by == self.own_id() || !self.whereabouts.seen(by, at, moves, &self.members.watch().borrow()) {
            return;
        }
        if let Err(error) = self.publish_told() {
            tracing::warn!(%error, "where this node is seen cannot be told");
        }
    }

    fn dial<'a>(
        &'a self,
        node: NodeId,
        alpn: Alpn,
        attempts: Vec<(SocketAddr, Duration)>,
        seen: &'a (dyn Fn(SocketAddr) + Send + Sync),
    ) -> Result<Dial<'a>, NetError> {
        let start = |reason: String| NetError::Unreachable { node, alpn, reason };
        let tls = tls::quic_client(&self.credentials, alpn, self.members.key(node))
            .map_err(|error| start(error.to_string()))?;
        Ok(Dial {
            endpoint: &self.endpoint,
            config: transport::client(tls, self.options.keeping(), alpn).map_err(start)?,
            node,
            alpn,
            attempts,
            timeout: self.options.dial_timeout,
            estranged: &self.renewal.estranged,
            seen,
        })
    }

    /// Where `node` is tried, and when. Heartbeats find the way, and the others take it: first where heartbeats go, then
    /// all addresses. Only a node behind a NAT looks for others through third ones, and whoever is looked for in this way.
    fn attempts(&self, node: NodeId, alpn: Alpn) -> Vec<(SocketAddr, Duration)> {
        let beat =
            self.pool.open_connection((node, Alpn::Beat)).map(|connection| canonical(connection.remote_address()));
        let mut addresses = self.addresses(node);
        if let Some(direct) = beat.filter(|beat| !is_relayed(*beat)) {
            addresses.retain(|address| *address != direct);
            addresses.insert(0, direct);
        }
        let mut attempts = staggered(addresses);
        match beat {
            _ if alpn == Alpn::Relay => {}
            Some(beat) if is_relayed(beat) && alpn != Alpn::Beat => attempts.push((beat, Duration::ZERO)),
            None if self.is_relaying_of_use(node) && self.has_others(node) => {
                attempts.push((relayed_address(node), RELAYED_AFTER));
            }
            _ => {}
        }
        attempts
    }

    /// Whether a NAT may stand between: others see this node elsewhere, or `node` itself came through others.
    fn is_relaying_of_use(&self, node: NodeId) -> bool {
        self.whereabouts.is_translated() || self.links.is_relayed(node)
    }

    /// Whether there are nodes through which `node` may be reached.
    fn has_others(&self, node: NodeId) -> bool {
        self.pool.direct_nodes().iter().any(|other| *other != node && *other != self.own_id())
    }

    /// Where `node` may be found: its own word first, then where it was last heard, then where others saw it.
    fn addresses(&self, node: NodeId) -> Vec<SocketAddr> {
        let mut addresses = self.book.get(node).map(|record| record.addresses().to_vec()).unwrap_or_default();
        let seen = self.pulse.seen_at(node).filter(|seen| !addresses.contains(seen));
        addresses.extend(seen);
        let hints = self.hints.of(node).into_iter().filter(|hint| !addresses.contains(hint)).collect::<Vec<_>>();
        addresses.extend(hints);
        // Another node with an address of this one is in another network.
        let own = self.whereabouts.advertised();
        let is_ipv4 = self.endpoint.local_addr().is_ok_and(|local| canonical(local).is_ipv4());
        addresses.retain(|address| {
            let is_elsewhere = node == self.own_id() || !own.contains(address);
            is_elsewhere && !is_relayed(*address) && (address.is_ipv4() || !is_ipv4)
        });
        addresses
    }

    /// Takes a record that somebody brought.
    pub(crate) fn learn(&self, record: AddressRecord) -> Result<(), NetError> {
        let id = record.id();
        if id == self.own_id() || self.members.is_revoked(id) {
            return Ok(());
        }
        let addresses = record.addresses().to_vec();
        let learned = self.book.learn(record).map_err(|error| NetError::Record(error.to_string()))?;
        if learned == Learned::Moved {
            tracing::debug!(node = id, ?addresses, "learned where a node is");
            self.pool.close_elsewhere(id, &addresses);
        }
        Ok(())
    }

    /// Signs this node's own record anew, if anything in it changed.
    pub(crate) fn publish(&self, advertise: &[SocketAddr]) -> Result<(), NetError> {
        self.whereabouts.advertise(self.own_addresses(advertise));
        self.publish_told()
    }

    /// Signs this node's own record anew, if it is seen elsewhere than before.
    fn publish_told(&self) -> Result<(), NetError> {
        let told = self.whereabouts.tell(|told| self.book.publish(told, SystemTime::now()));
        told.map_err(|error| NetError::Record(error.to_string()))
    }

    /// Ends all that a node that may no longer speak has open.
    pub(crate) fn cut_off(&self, node: NodeId) {
        let why = if self.members.is_revoked(node) { Close::Revoked } else { Close::NotAMember };
        self.links.close(node, why);
        self.pool.close(node, why);
        self.relay.forget(node);
    }

    /// Whether a peer that proved to be `id` by `key` may speak, or how to refuse it.
    pub(crate) fn judge(&self, id: NodeId, name: &str, key: &Fingerprint) -> Result<(), Close> {
        match self.members.standing(id, name, key) {
            Standing::Member => Ok(()),
            Standing::Unlisted => Err(Close::NotAMember),
            Standing::Revoked => Err(Close::Revoked),
        }
    }
}

/// Whether a node that is connected at one address and was seen `at` another may have left the first: not if it says itself
/// that it has both.
fn may_have_moved(connected: SocketAddr, at: SocketAddr, recorded: &[SocketAddr]) -> bool {
    connected != at && !(recorded.contains(&connected) && recorded.contains(&at))
}

/// Each a little after the one before.
fn staggered(addresses: Vec<SocketAddr>) -> Vec<(SocketAddr, Duration)> {
    addresses.into_iter().zip(0..).map(|(address, turn)| (address, ADDRESS_STAGGER * turn)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_seen_elsewhere_may_have_moved_unless_it_says_that_it_is_at_both() {
        let [a, b, c] = [1, 2, 3].map(|host| SocketAddr::from(([10, 0, 0, host], 6443)));
        assert!(!may_have_moved(a, a, &[]));
        assert!(may_have_moved(a, b, &[a]));
        assert!(may_have_moved(a, b, &[b]), "its record is older, or newer, than the connection");
        assert!(may_have_moved(a, b, &[c]));
        assert!(!may_have_moved(a, b, &[a, b]));
    }
}
