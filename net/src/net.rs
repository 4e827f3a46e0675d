//! The handle of this node's network.
//!
//! Invariant: every task of the network is tracked and has ended when `shutdown` returns.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use quinn::{Endpoint, RecvStream, Runtime, SendStream};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::alpn::Alpn;
use crate::caller::Caller;
use crate::credentials::Credentials;
use crate::error::NetError;
use crate::home::{Home, QuicRuntime};
use crate::identity::Identity;
use crate::members::{Listed, Members};
use crate::names::NodeId;
use crate::options::Options;
use crate::pool::canonical;
use crate::ports::{Admission, Handler, Renewal};
use crate::pulse::{MAX_PAYLOAD_BYTES, Peers};
use crate::record::AddressRecord;
use crate::relay::Relay;
use crate::shared::Shared;
use crate::socket::{Ends, Socket};
use crate::{beat, discovery, relay, renew, router, tls, transport};

/// How long tasks and connections may take to end.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(6);

/// How long the last packets may take to go out.
const DRAIN_GRACE: Duration = Duration::from_millis(500);

/// This node's network. Clones are the same network; when the last one is dropped, it ends without farewell.
#[derive(Clone)]
pub struct Net {
    core: Arc<Core>,
}

struct Core {
    shared: Arc<Shared>,
    /// The network's threads, which end with this.
    _home: Home,
}

impl Drop for Core {
    fn drop(&mut self) {
        self.shared.stop.cancel();
        self.shared.endpoint.close(0_u32.into(), b"");
    }
}

impl Net {
    /// Binds the port and begins to listen, beat and renew. Must be called within a tokio runtime, on which handlers and
    /// ports will run.
    ///
    /// Until [`Net::set_members`] is called nobody but strangers is answered; those who join or renew get what the ports
    /// decide.
    pub async fn start(options: Options) -> Result<Self, NetError> {
        let start = |error: String| NetError::Start(error);
        let home = Home::new(options.threads).map_err(|error| start(error.to_string()))?;
        let credentials = Credentials::new(options.identity.clone()).map_err(|error| start(error.to_string()))?;
        let (endpoint, ends) = endpoint(&options, &credentials, home.handle()).map_err(start)?;
        let members = Members::load(&options.dir).map_err(|error| start(error.to_string()))?;
        let relay = Relay::new(ends.inward);
        let shared = Shared::new(options, credentials, endpoint, members, relay, Handle::current(), Instant::now());
        let shared = Arc::new(shared);
        shared.publish(&shared.options.advertise)?;
        let spawn = |task: Pin<Box<dyn Future<Output = ()> + Send>>| shared.tasks.spawn_on(task, home.handle());
        spawn(Box::pin(router::run(shared.clone())));
        spawn(Box::pin(beat::run(shared.clone())));
        spawn(Box::pin(relay::run(shared.clone(), ends.outward)));
        spawn(Box::pin(renew::run(shared.clone())));
        spawn(Box::pin(keep_book(shared.clone())));
        if shared.options.discovery {
            spawn(Box::pin(discovery::run(shared.clone())));
        }
        Ok(Net { core: Arc::new(Core { shared, _home: home }) })
    }

    /// The identity in use, and what TLS configurations follow it.
    pub fn credentials(&self) -> &Arc<Credentials> {
        &self.shared().credentials
    }

    pub fn id(&self) -> NodeId {
        self.shared().own_id()
    }

    /// The address that was bound.
    pub fn local_addr(&self) -> Result<SocketAddr, NetError> {
        self.shared().endpoint.local_addr().map(canonical).map_err(|error| NetError::Start(error.to_string()))
    }

    /// Lets `handler` answer the calls of `alpn`. Connections that are already open keep the handler they began with.
    ///
    /// `Beat`, `Relay`, `Join` and `Renew` are answered by the network itself; a handler for them is never asked.
    pub fn register(&self, alpn: Alpn, handler: Arc<dyn Handler>) {
        if alpn.is_internal() {
            return tracing::error!(%alpn, "this protocol is the network's own and takes no handler");
        }
        self.shared().ports.set_handler(alpn, handler);
    }

    /// Lets `admission` decide on joins.
    pub fn admit_with(&self, admission: Arc<dyn Admission>) {
        self.shared().ports.set_admission(admission);
    }

    /// Lets `renewal` sign renewals, this node's own among them.
    pub fn renew_with(&self, renewal: Arc<dyn Renewal>) {
        self.shared().ports.set_renewal(renewal);
    }

    /// Begins a call: a stream on the connection to `to`, which is dialled if there is none. The peer hears of the call
    /// with its first byte. Dropping both streams ends it.
    ///
    /// Takes at most twice the dial timeout.
    pub async fn open(&self, to: NodeId, alpn: Alpn) -> Result<(SendStream, RecvStream), NetError> {
        let connection = self.shared().connect(to, alpn).await?;
        let timeout = self.shared().options.dial_timeout;
        match tokio::time::timeout(timeout, connection.open_bi()).await {
            Ok(Ok(streams)) => Ok(streams),
            Ok(Err(error)) => Err(NetError::Unreachable { node: to, alpn, reason: error.to_string() }),
            Err(_) => {
                let waited_ms = timeout.as_millis().try_into().unwrap_or(u64::MAX);
                Err(NetError::Timeout { node: to, alpn, waited_ms })
            }
        }
    }

    /// All addresses that are known, this node's own among them.
    pub fn peers(&self) -> Vec<Arc<AddressRecord>> {
        self.shared().book.all()
    }

    /// Takes a record that came by another way than heartbeats, as in the answer to a join.
    pub fn learn(&self, record: AddressRecord) -> Result<(), NetError> {
        self.shared().learn(record)
    }

    /// This node's own record.
    pub fn own_record(&self) -> Option<Arc<AddressRecord>> {
        self.shared().book.get(self.id())
    }

    /// Where this node knows itself to be found. Its record also says where others see it, as behind a NAT.
    pub fn advertised(&self) -> Vec<SocketAddr> {
        self.shared().whereabouts.advertised()
    }

    /// Tells others that this node is now found at `addresses`.
    pub fn set_advertise(&self, addresses: Vec<SocketAddr>) -> Result<(), NetError> {
        self.shared().publish(&addresses)
    }

    /// Only these are spoken to and answered from now on; this node itself need not be among them, but is listed in
    /// [`Net::liveness`] only if it is. Connections of those no longer listed, or listed otherwise, are closed at once, and
    /// the addresses of those no longer listed are forgotten. Of who never was listed, they are not: a node that starts has
    /// no list yet, and finds the others by them.
    pub fn set_members(&self, members: impl IntoIterator<Item = impl Into<Listed>>) {
        for removed in self.shared().members.set(members) {
            if removed != self.id() && !self.shared().members.is_listed(removed) {
                self.shared().book.remove(removed);
            }
            self.shared().cut_off(removed);
        }
    }

    /// Certificates of these users, made before the given time or at it, are worth nothing from now on; connections that came
    /// with them end.
    pub fn set_revoked_users(&self, users: BTreeMap<String, SystemTime>) {
        self.shared().members.set_revoked_users(users);
    }

    /// Whether `caller`, which proved to hold the key of its certificate on another port, may speak now, or why not.
    pub fn admits(&self, caller: &Caller) -> Result<(), &'static str> {
        caller.judge(&self.shared().members, &self.shared().credentials)
    }

    /// Waits until `caller` may no longer speak, and says why: it was removed, or its certificate has ended or lost its
    /// authority.
    pub async fn until_refused(&self, caller: &Caller) -> &'static str {
        caller.until_refused(&self.shared().members, &self.shared().credentials).await
    }

    /// Forgets a node: it is no longer listed, its address is no longer known. It may be listed again.
    pub fn forget(&self, id: NodeId) {
        self.shared().members.remove(id);
        self.shared().book.remove(id);
        self.shared().cut_off(id);
    }

    /// Removes a node for ever, whatever is listed later. The refusal stands at once; an error says that it could not be
    /// kept for the next start. Blocks on the disk.
    pub fn revoke(&self, id: NodeId) -> Result<(), NetError> {
        let kept = self.shared().members.revoke(id);
        self.shared().book.remove(id);
        self.shared().cut_off(id);
        kept.map_err(|error| NetError::Members(error.to_string()))
    }

    /// What this node sends with each heartbeat, at most [`MAX_PAYLOAD_BYTES`].
    pub fn set_beat_payload(&self, payload: Bytes) -> Result<(), NetError> {
        if payload.len() > MAX_PAYLOAD_BYTES {
            return Err(NetError::PayloadTooLarge { max_bytes: MAX_PAYLOAD_BYTES });
        }
        self.shared().pulse.set_own_payload(payload);
        Ok(())
    }

    /// The members as this node sees them. Changes when a state, a payload or an address does.
    pub fn liveness(&self) -> watch::Receiver<Arc<Peers>> {
        self.shared().pulse.watch()
    }

    /// Uses `identity`, this node's own with a new certificate or new authorities, from the next handshake on, and keeps
    /// it on disk. Open connections stay.
    pub async fn replace_identity(&self, identity: Identity) -> Result<(), NetError> {
        replace_identity(self.shared(), identity).await
    }

    /// Asks for the next certificate now, though the present one is young: its addresses or its authority changed.
    pub fn renew_now(&self) {
        self.shared().renewal.asked.notify_one();
    }

    /// Ends all connections, calls and tasks, within some seconds. The port is free once the last clone is dropped.
    pub async fn shutdown(&self) {
        self.shared().stop.cancel();
        self.shared().endpoint.close(0_u32.into(), b"shutting down");
        self.shared().ports.clear();
        self.shared().tasks.close();
        if tokio::time::timeout(SHUTDOWN_GRACE, self.shared().tasks.wait()).await.is_err() {
            tracing::warn!(tasks = self.shared().tasks.len(), "tasks of the network did not end in time");
        }
        // Whether or not peers heard of it, the port is given up.
        let _ = tokio::time::timeout(DRAIN_GRACE, self.shared().endpoint.wait_idle()).await;
        if let Err(reason) = self.shared().book.store() {
            tracing::warn!(reason, "the known addresses could not be kept");
        }
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.core.shared
    }
}

pub(crate) fn endpoint(
    options: &Options,
    credentials: &Arc<Credentials>,
    handle: &Handle,
) -> Result<(Endpoint, Ends), String> {
    let tls = tls::quic_server(credentials).map_err(|error| error.to_string())?;
    let server = transport::server(tls, options.keeping(), options.max_handshakes)?;
    let socket = transport::bind(options.listen)?;
    let config = transport::endpoint(&options.identity);
    let runtime = Arc::new(QuicRuntime(handle.clone()));
    let socket = runtime.wrap_udp_socket(socket).and_then(Socket::new);
    let (socket, ends) = socket.map_err(|error| error.to_string())?;
    let endpoint = Endpoint::new_with_abstract_socket(config, Some(server), Arc::new(socket), runtime);
    endpoint.map(|endpoint| (endpoint, ends)).map_err(|error| error.to_string())
}

/// Keeps `identity` and uses it. On disk first: what is used must be found again.
pub(crate) async fn replace_identity(shared: &Arc<Shared>, identity: Identity) -> Result<(), NetError> {
    let failed = |error: String| NetError::Identity(error);
    let (dir, copy) = (shared.options.dir.clone(), identity.clone());
    let stored = tokio::task::spawn_blocking(move || copy.store(&dir)).await;
    stored.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))?;
    shared.credentials.replace(identity).map_err(|error| failed(error.to_string()))?;
    shared.pool.forget_failures();
    shared.publish(&shared.whereabouts.advertised())
}

/// Writes the address book after each change, until the network stops.
async fn keep_book(shared: Arc<Shared>) {
    let mut changes = shared.book.watch();
    changes.mark_changed();
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => return,
            Ok(()) = changes.changed() => {}
        }
        changes.borrow_and_update();
        let book = shared.clone();
        match tokio::task::spawn_blocking(move || book.book.store()).await {
            Ok(Ok(())) => {}
            Ok(Err(reason)) => tracing::warn!(reason, "the known addresses could not be kept"),
            Err(error) => tracing::error!(%error, "the task that keeps addresses failed"),
        }
    }
}
