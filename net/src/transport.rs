//! The QUIC settings of every connection, each a bound.
//!
//! Invariant: what a peer can make this node hold is bounded before it has proved who it is, and again after.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, ConnectionError, ConnectionId, ConnectionIdGenerator, EndpointConfig, IdleTimeout, ServerConfig,
    TransportConfig, TransportErrorCode, VarInt,
};
use rustls::AlertDescription;

use crate::alpn::Alpn;
use crate::identity::Identity;

/// The most calls that a peer may have open on one connection.
pub const MAX_CALLS: u32 = 256;

pub(crate) const MAX_UNI_STREAMS: u32 = 16;
/// What a connection may have in flight before its peer is known to be a member.
pub(crate) const STRANGER_WINDOW_BYTES: u32 = 128 * 1024;
/// The same for a member.
pub(crate) const MEMBER_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
/// How large packets of a connection over which others are relayed are at least, whatever is found out of its path: a relayed
/// handshake's, of 1,200 bytes, must fit.
pub(crate) const RELAY_MTU_BYTES: u16 = 1300;
const CONNECTION_ID_BYTES: usize = 8;
const STREAM_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
const SEND_WINDOW_BYTES: u64 = 8 * 1024 * 1024;
const DATAGRAM_BUFFER_BYTES: usize = 64 * 1024;
/// Retransmissions of a first packet begin after three times this.
const INITIAL_RTT: Duration = Duration::from_millis(100);
/// Packets of handshakes that wait to be accepted.
const MAX_WAITING_BYTES: u64 = 2 * 1024 * 1024;
const MAX_WAITING_EACH_BYTES: u64 = 16 * 1024;

/// How long connections live in silence.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keeping {
    pub(crate) idle_timeout: Duration,
    pub(crate) keep_alive: Duration,
}

fn transport(keeping: Keeping, receive_window_bytes: u32) -> Result<TransportConfig, String> {
    let idle = IdleTimeout::try_from(keeping.idle_timeout).map_err(|error| error.to_string())?;
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(MAX_CALLS))
        .max_concurrent_uni_streams(VarInt::from_u32(MAX_UNI_STREAMS))
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(keeping.keep_alive))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(receive_window_bytes))
        .send_window(SEND_WINDOW_BYTES)
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER_BYTES))
        .datagram_send_buffer_size(DATAGRAM_BUFFER_BYTES)
        .initial_rtt(INITIAL_RTT);
    Ok(config)
}

pub(crate) fn server(tls: rustls::ServerConfig, keeping: Keeping, max_waiting: usize) -> Result<ServerConfig, String> {
    let crypto = QuicServerConfig::try_from(tls).map_err(|error| error.to_string())?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config
        .transport_config(Arc::new(transport(keeping, STRANGER_WINDOW_BYTES)?))
        .max_incoming(max_waiting)
        .incoming_buffer_size(MAX_WAITING_EACH_BYTES)
        .incoming_buffer_size_total(MAX_WAITING_BYTES);
    Ok(config)
}

pub(crate) fn client(tls: rustls::ClientConfig, keeping: Keeping, alpn: Alpn) -> Result<ClientConfig, String> {
    let crypto = QuicClientConfig::try_from(tls).map_err(|error| error.to_string())?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(client_transport(keeping, alpn)?));
    Ok(config)
}

fn client_transport(keeping: Keeping, alpn: Alpn) -> Result<TransportConfig, String> {
    let mut transport = transport(keeping, MEMBER_WINDOW_BYTES)?;
    if alpn == Alpn::Relay {
        // Also after losses that look as if the path no longer carried as much.
        transport.initial_mtu(RELAY_MTU_BYTES).min_mtu(RELAY_MTU_BYTES);
    }
    Ok(transport)
}

/// The endpoint's settings. The key of stateless resets comes from the node's key, so that a restarted daemon can tell
/// peers at once that their old connections are gone.
pub(crate) fn endpoint(identity: &Identity) -> EndpointConfig {
    let private = hmac::Key::new(hmac::HMAC_SHA256, identity.key().to_der().secret_der());
    let derived = hmac::sign(&private, b"flotilla/quic-reset/1");
    let reset_key = hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref());
    let mut config = EndpointConfig::new(Arc::new(reset_key));
    config.cid_generator(|| Box::new(RandomIds));
    config
}

/// Connection ids of eight random bytes. Any id might once have been ours, so that all are answered with a reset.
struct RandomIds;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; CONNECTION_ID_BYTES];
        crate::random::fill(&mut id);
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// Whether a transport error is a TLS alert (RFC 9001, section 4.8): one side found something wrong with the other.
pub(crate) fn is_tls_alert(code: TransportErrorCode) -> bool {
    (0x100..0x200).contains(&u64::from(code))
}

/// Whether a transport error is the alert that a certificate was revoked.
pub(crate) fn is_revoked_alert(code: TransportErrorCode) -> bool {
    code == alert(AlertDescription::CertificateRevoked)
}

/// Whether the peer gave the connection up before it was made, as who dials several addresses does with all but the first
/// that lets it in. Whoever finds something wrong says so with an alert instead.
pub(crate) fn is_given_up(error: &ConnectionError) -> bool {
    matches!(error, ConnectionError::ConnectionClosed(close) if close.error_code == TransportErrorCode::APPLICATION_ERROR)
}

/// Whether a transport error says that one side does not believe the other. One that does not speak a protocol, since it is
/// older, says nothing of that kind.
pub(crate) fn is_estranging(code: TransportErrorCode) -> bool {
    is_tls_alert(code) && code != alert(AlertDescription::NoApplicationProtocol)
}

fn alert(description: AlertDescription) -> TransportErrorCode {
    TransportErrorCode::crypto(u8::from(description))
}

/// The socket of the one port.
pub(crate) fn bind(listen: SocketAddr) -> Result<UdpSocket, String> {
    UdpSocket::bind(listen).map_err(|error| format!("UDP {listen} cannot be bound: {error}"))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use quinn::ConnectionClose;

    use super::*;

    #[test]
    fn packets_of_a_relay_stay_large_enough_for_a_handshake() {
        let keeping = Keeping { idle_timeout: Duration::from_secs(4), keep_alive: Duration::from_secs(1) };
        let bounds = |alpn| format!("{:?}", client_transport(keeping, alpn).expect("a configuration"));
        for bound in ["initial_mtu", "min_mtu"] {
            assert!(bounds(Alpn::Relay).contains(&format!("{bound}: {RELAY_MTU_BYTES}")), "{bound}");
            assert!(bounds(Alpn::Beat).contains(&format!("{bound}: 1200")), "{bound}");
        }
    }

    #[test]
    fn who_gives_up_a_handshake_is_told_from_who_refuses_it() {
        let closed = |error_code| {
            let close = ConnectionClose { error_code, frame_type: None, reason: Bytes::new() };
            ConnectionError::ConnectionClosed(close)
        };
        assert!(is_given_up(&closed(TransportErrorCode::APPLICATION_ERROR)));
        assert!(!is_given_up(&closed(alert(AlertDescription::UnknownCA))));
        assert!(!is_given_up(&ConnectionError::TimedOut));
    }

    #[test]
    fn who_does_not_speak_a_protocol_is_no_stranger() {
        assert!(is_estranging(alert(AlertDescription::UnknownCA)));
        assert!(is_estranging(alert(AlertDescription::BadCertificate)));
        assert!(!is_estranging(alert(AlertDescription::NoApplicationProtocol)));
        assert!(!is_estranging(TransportErrorCode::CONNECTION_REFUSED));
    }
}
