//! What can be set about a node's network, with what is usual.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::identity::Identity;
use crate::limit::Rate;
use crate::suspicion::Silence;
use crate::transport::Keeping;

/// How a node takes part in the network.
#[derive(Debug, Clone)]
pub struct Options {
    pub identity: Identity,
    /// The UDP address to listen on.
    pub listen: SocketAddr,
    /// The addresses that others are told. Empty: the one listened on, if it is a single one.
    pub advertise: Vec<SocketAddr>,
    /// Where identity, known addresses and removed nodes are kept.
    pub dir: PathBuf,
    /// How often each member is told that this node is alive.
    pub beat_period: Duration,
    pub silence: Silence,
    /// How long a connection may take to come about.
    pub dial_timeout: Duration,
    /// How long a connection lives without a packet from the peer.
    pub idle_timeout: Duration,
    /// How often an idle connection is kept alive.
    pub keep_alive: Duration,
    /// How long a peer may take for its handshake.
    pub handshake_timeout: Duration,
    /// How long a stranger may take to join or renew.
    pub stranger_timeout: Duration,
    /// The most connections that are open at once.
    pub max_connections: usize,
    /// The most handshakes under way, and for one address.
    pub max_handshakes: usize,
    pub max_handshakes_each: usize,
    /// The most joins and renewals under way.
    pub max_strangers: usize,
    /// How often an address may try to join or renew.
    pub stranger_rate: Rate,
    /// Whether to tell others on the same networks where this node is, and to look for them (multicast DNS).
    pub discovery: bool,
    /// How many threads of its own the network has; with none, it runs on those of the caller of `Net::start`.
    pub threads: usize,
    /// The longest time between two looks at the certificate's age.
    pub renew_check: Duration,
}

impl Options {
    pub fn new(identity: Identity, listen: SocketAddr, dir: impl Into<PathBuf>) -> Self {
        Options {
            identity,
            listen,
            advertise: Vec::new(),
            dir: dir.into(),
            beat_period: Duration::from_millis(250),
            silence: Silence::default(),
            dial_timeout: Duration::from_secs(2),
            idle_timeout: Duration::from_secs(4),
            keep_alive: Duration::from_secs(1),
            handshake_timeout: Duration::from_secs(5),
            stranger_timeout: Duration::from_secs(10),
            max_connections: 4096,
            max_handshakes: 256,
            max_handshakes_each: 64,
            max_strangers: 64,
            stranger_rate: Rate { burst: 30, refill: Duration::from_secs(1) },
            discovery: false,
            threads: 1,
            renew_check: Duration::from_secs(60),
        }
    }

    pub(crate) fn keeping(&self) -> Keeping {
        Keeping { idle_timeout: self.idle_timeout, keep_alive: self.keep_alive }
    }
}
