//! Multicast DNS by libp2p, without a swarm: its behaviour is told where this node listens, and asked what it saw.
//!
//! An address is told as `/ip4/A/udp/P/quic-v1/certhash/MARK`, where the mark is a hash of the cluster's id: members and
//! those who hold a token recognize it, and others learn nothing from it.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::task::{Context, Poll};
use std::time::Duration;

use libp2p_core::Multiaddr;
use libp2p_core::multiaddr::Protocol;
use libp2p_core::multihash::Multihash;
use libp2p_core::transport::ListenerId;
use libp2p_identity::PeerId;
use libp2p_mdns as mdns;
use libp2p_swarm::behaviour::{ExpiredListenAddr, NewListenAddr};
use libp2p_swarm::{FromSwarm, NetworkBehaviour, ToSwarm};

use super::peer;
use crate::names::ClusterId;

/// What was seen is forgotten, and seen anew, when it is more than this.
pub const MAX_SIGHTINGS: usize = 1024;
/// How often the network is asked once somebody has answered; until then more often. Whoever hears an answer to another
/// waits anew, so that about one node asks in this time.
pub const QUERY_PERIOD: Duration = Duration::from_secs(15);
/// How long others may believe what they were told.
const TELL_LIFE: Duration = Duration::from_secs(180);
/// How long after a first answer others are waited for.
pub const GATHER: Duration = Duration::from_millis(300);

const MARK_DOMAIN: &[u8] = b"flotilla/cluster-mark/1";

/// A peer that was seen: its id as it says, and where it answered from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    pub peer: PeerId,
    pub address: SocketAddr,
}

pub struct Lan {
    own: PeerId,
    mark: Multihash<64>,
    listener: ListenerId,
    told: Vec<SocketAddr>,
    mdns: mdns::tokio::Behaviour,
}

impl Lan {
    /// Begins to look. Must be called within a tokio runtime.
    pub fn new(own: PeerId, cluster: ClusterId) -> io::Result<Self> {
        let mark = peer::sha256(&[MARK_DOMAIN, cluster.as_bytes()].concat());
        let mark = mark.ok_or_else(|| io::Error::other("the cluster has no mark"))?;
        Ok(Self { own, mark, listener: ListenerId::next(), told: Vec::new(), mdns: begin(own)? })
    }

    /// Tells these addresses from now on, and looks anew if they are others than before: who moved must be found, and has
    /// to find those that moved with it.
    pub fn tell(&mut self, addresses: Vec<SocketAddr>) -> io::Result<()> {
        if addresses == self.told {
            return Ok(());
        }
        self.begin_anew(addresses)
    }

    /// What was seen since the last call.
    pub async fn next(&mut self) -> Vec<Sighting> {
        loop {
            let event = poll_fn(|context| self.poll(context)).await;
            if self.mdns.discovered_nodes().len() > MAX_SIGHTINGS {
                tracing::warn!("too many answers on the network; all are forgotten");
                if let Err(error) = self.begin_anew(self.told.clone()) {
                    tracing::warn!(%error, "the network cannot be looked at anew");
                }
            }
            let mdns::Event::Discovered(seen) = event else { continue };
            let mut sightings: Vec<Sighting> = seen.iter().filter_map(|(id, at)| self.sighting(*id, at)).collect();
            if !sightings.is_empty() {
                sightings.truncate(MAX_SIGHTINGS);
                return sightings;
            }
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<mdns::Event> {
        loop {
            match self.mdns.poll(context) {
                Poll::Ready(ToSwarm::GenerateEvent(event)) => return Poll::Ready(event),
                // What else it says is for a swarm.
                Poll::Ready(_) => {}
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn sighting(&self, peer: PeerId, at: &Multiaddr) -> Option<Sighting> {
        let mut parts = at.iter();
        let ip = match parts.next()? {
            Protocol::Ip4(ip) => IpAddr::V4(ip),
            Protocol::Ip6(ip) => IpAddr::V6(ip),
            _ => return None,
        };
        let Protocol::Udp(port) = parts.next()? else { return None };
        let Protocol::QuicV1 = parts.next()? else { return None };
        let Protocol::Certhash(mark) = parts.next()? else { return None };
        (mark == self.mark && port != 0).then_some(Sighting { peer, address: SocketAddr::new(ip, port) })
    }

    /// Lets go of all that was seen and told, and asks again.
    fn begin_anew(&mut self, tell: Vec<SocketAddr>) -> io::Result<()> {
        // The old one goes on until it hears of somebody; it shall tell nothing meanwhile.
        for address in self.addresses() {
            let expired = ExpiredListenAddr { listener_id: self.listener, addr: &address };
            self.mdns.on_swarm_event(FromSwarm::ExpiredListenAddr(expired));
        }
        self.told = tell;
        self.mdns = begin(self.own)?;
        for address in self.addresses() {
            let new = NewListenAddr { listener_id: self.listener, addr: &address };
            self.mdns.on_swarm_event(FromSwarm::NewListenAddr(new));
        }
        Ok(())
    }

    fn addresses(&self) -> Vec<Multiaddr> {
        let address = |address: &SocketAddr| {
            Multiaddr::from(address.ip())
                .with(Protocol::Udp(address.port()))
                .with(Protocol::QuicV1)
                .with(Protocol::Certhash(self.mark))
        };
        self.told.iter().map(address).collect()
    }
}

fn begin(own: PeerId) -> io::Result<mdns::tokio::Behaviour> {
    let config = mdns::Config { ttl: TELL_LIFE, query_interval: QUERY_PERIOD, enable_ipv6: false };
    mdns::tokio::Behaviour::new(config, own)
}
