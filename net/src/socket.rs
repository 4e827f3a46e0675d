//! The socket under QUIC: the node's one UDP port, and packets that other members relay. QUIC sees a relayed peer at an
//! address of its own, so that a relayed connection is one like any other, with TLS from end to end.
//!
//! Such an address is the peer's id within `100::/64`, which no packet on a network may have as its source (RFC 6666).
//!
//! Invariant: nothing that comes from the network passes for relayed.
//! Invariant: at most [`MAX_WAITING_PACKETS`] wait in each direction; what finds no room is lost, as on any network.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::sync::mpsc;

use crate::names::NodeId;

/// The most packets that wait to be relayed, and that wait to be taken in.
pub(crate) const MAX_WAITING_PACKETS: usize = 256;

const PREFIX: u128 = 0x0100 << 112;
/// Any but 0 will do.
const PORT: u16 = 1;

/// Where QUIC sees a node that is reached through another.
pub(crate) fn relayed_address(node: NodeId) -> SocketAddr {
    SocketAddr::new(Ipv6Addr::from_bits(PREFIX | u128::from(node)).into(), PORT)
}

/// The node whose relayed address this is.
pub(crate) fn relayed_node(address: SocketAddr) -> Option<NodeId> {
    let SocketAddr::V6(address) = address else { return None };
    let bits = address.ip().to_bits();
    let node = bits as NodeId;
    (bits == PREFIX | u128::from(node)).then_some(node)
}

pub(crate) fn is_relayed(address: SocketAddr) -> bool {
    relayed_node(address).is_some()
}

/// A packet of a relayed connection.
pub(crate) struct Packet {
    /// To whom it goes, or from whom it comes.
    pub(crate) node: NodeId,
    pub(crate) bytes: Bytes,
}

/// The other ends of a socket: what QUIC wants relayed, and what was relayed to it.
pub(crate) struct Ends {
    pub(crate) outward: mpsc::Receiver<Packet>,
    pub(crate) inward: mpsc::Sender<Packet>,
}

pub(crate) struct Socket {
    real: Arc<dyn AsyncUdpSocket>,
    /// QUIC is told that it has an IPv6 socket, since relayed addresses are such.
    is_ipv4: bool,
    outward: mpsc::Sender<Packet>,
    inward: Mutex<mpsc::Receiver<Packet>>,
}

impl Socket {
    pub(crate) fn new(real: Arc<dyn AsyncUdpSocket>) -> io::Result<(Self, Ends)> {
        let is_ipv4 = real.local_addr()?.is_ipv4();
        let (outward, to_relay) = mpsc::channel(MAX_WAITING_PACKETS);
        let (from_relay, inward) = mpsc::channel(MAX_WAITING_PACKETS);
        let socket = Socket { real, is_ipv4, outward, inward: Mutex::new(inward) };
        Ok((socket, Ends { outward: to_relay, inward: from_relay }))
    }

    /// The relayed packets that wait, as many as there is room for.
    fn poll_relayed(&self, cx: &mut Context<'_>, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> usize {
        let mut inward = self.inward.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = 0;
        while taken < bufs.len().min(meta.len()) {
            let Poll::Ready(Some(Packet { node, bytes })) = inward.poll_recv(cx) else { break };
            let Some(room) = bufs[taken].get_mut(..bytes.len()) else { continue };
            room.copy_from_slice(&bytes);
            let (addr, len) = (relayed_address(node), bytes.len());
            meta[taken] = RecvMeta { addr, len, stride: len, ..RecvMeta::default() };
            taken += 1;
        }
        taken
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.real.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let Some(node) = relayed_node(transmit.destination) else {
            let destination = if self.is_ipv4 { unmapped(transmit.destination) } else { Some(transmit.destination) };
            // What an IPv4 socket cannot send is lost.
            let Some(destination) = destination else { return Ok(()) };
            return self.real.try_send(&Transmit { destination, ..transmit.clone() });
        };
        for packet in transmit.contents.chunks(transmit.segment_size.unwrap_or(transmit.contents.len()).max(1)) {
            // What finds no room is lost.
            let _ = self.outward.try_send(Packet { node, bytes: Bytes::copy_from_slice(packet) });
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        // They came through the port themselves, so that they cannot hold it up.
        let relayed = self.poll_relayed(cx, bufs, meta);
        if relayed > 0 {
            return Poll::Ready(Ok(relayed));
        }
        let received = std::task::ready!(self.real.poll_recv(cx, bufs, meta))?;
        for meta in meta.iter_mut().take(received) {
            if is_relayed(meta.addr) {
                meta.len = 0;
            }
            if self.is_ipv4 {
                meta.addr = mapped(meta.addr);
            }
        }
        Poll::Ready(Ok(received))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        let address = self.real.local_addr()?;
        Ok(if self.is_ipv4 { mapped(address) } else { address })
    }

    fn max_transmit_segments(&self) -> usize {
        self.real.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.real.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.real.may_fragment()
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").field("real", &self.real).finish_non_exhaustive()
    }
}

fn mapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
        v6 => v6,
    }
}

fn unmapped(address: SocketAddr) -> Option<SocketAddr> {
    let ip = address.ip().to_canonical();
    ip.is_ipv4().then(|| SocketAddr::new(ip, address.port()))
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::net::UdpSocket;

    use quinn::{Runtime, TokioRuntime};

    use super::*;

    #[test]
    fn a_relayed_address_is_a_node_and_no_other_address_is() {
        for node in [0, 1, u64::MAX] {
            assert_eq!(relayed_node(relayed_address(node)), Some(node));
        }
        for other in ["10.0.0.1:1", "[::ffff:10.0.0.1]:1", "[100:0:0:1::1]:1", "[200::1]:1", "[::1]:1"] {
            assert_eq!(relayed_node(other.parse().expect("an address")), None, "{other}");
        }
    }

    async fn receive(socket: &Socket) -> (SocketAddr, Vec<u8>) {
        let (mut buffer, mut meta) = ([0; 2048], [RecvMeta::default()]);
        let received = poll_fn(|cx| socket.poll_recv(cx, &mut [IoSliceMut::new(&mut buffer)], &mut meta)).await;
        assert_eq!(received.expect("receives"), 1);
        (meta[0].addr, buffer[..meta[0].len].to_vec())
    }

    #[tokio::test]
    async fn packets_go_by_the_port_or_to_the_relay_as_their_address_says() {
        let bind = || UdpSocket::bind("127.0.0.1:0").expect("binds");
        let (other, own) = (bind(), TokioRuntime.wrap_udp_socket(bind()).expect("wraps"));
        let (socket, mut ends) = Socket::new(own).expect("a socket");
        let socket = Arc::new(socket);
        let mut poller = socket.clone().create_io_poller();
        poll_fn(|cx| poller.as_mut().poll_writable(cx)).await.expect("writable");
        let send = |destination, contents: &[u8], segment_size| {
            let transmit = Transmit { destination, ecn: None, contents, segment_size, src_ip: None };
            socket.try_send(&transmit).expect("sends");
        };
        send(mapped(other.local_addr().expect("bound")), b"direct", None);
        let mut buffer = [0; 64];
        let (length, from) = other.recv_from(&mut buffer).expect("receives");
        assert_eq!(&buffer[..length], b"direct");

        send("[2001:db8::1]:1".parse().expect("an address"), b"nowhere for IPv4", None);
        send(relayed_address(7), b"onetwo", Some(3));
        for expected in [b"one", b"two"] {
            let packet = ends.outward.recv().await.expect("a packet");
            assert_eq!((packet.node, &packet.bytes[..]), (7, &expected[..]));
        }

        other.send_to(b"answer", from).expect("sends");
        assert_eq!(receive(&socket).await, (mapped(other.local_addr().expect("bound")), b"answer".to_vec()));
        let bytes = Bytes::from_static(b"relayed");
        ends.inward.try_send(Packet { node: 7, bytes }).expect("there is room");
        assert_eq!(receive(&socket).await, (relayed_address(7), b"relayed".to_vec()));
    }

    #[tokio::test]
    async fn no_more_wait_than_may() {
        let own = UdpSocket::bind("127.0.0.1:0").expect("binds");
        let (socket, ends) = Socket::new(TokioRuntime.wrap_udp_socket(own).expect("wraps")).expect("a socket");
        let contents = vec![0; MAX_WAITING_PACKETS + 10];
        let destination = relayed_address(1);
        let transmit = Transmit { destination, ecn: None, contents: &contents, segment_size: Some(1), src_ip: None };
        socket.try_send(&transmit).expect("what finds no room is lost in silence");
        assert_eq!(ends.outward.len(), MAX_WAITING_PACKETS);
    }
}
