//! The protocols that share the one UDP port. QUIC negotiates one of them for each connection, so that the router knows
//! what a peer wants, and whether it must be a member to want it, before it reads a byte of it.
//!
//! Invariant: only `Join` and `Renew` admit a peer without a certificate.

use std::fmt;

/// A protocol, named as in the TLS handshake (RFC 7301).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Alpn {
    /// What replicas of the store say to each other.
    Raft,
    /// Calls from one daemon to another.
    Rpc,
    /// Long streams: logs, exec, port-forward.
    Stream,
    /// Image layers.
    Blob,
    /// What of the store concerns a node that has no replica.
    Slice,
    /// Clients' requests that a node without a replica passes on.
    Api,
    /// Heartbeats and address records.
    Beat,
    /// Packets between members that only another member reaches.
    Relay,
    /// A machine that holds a token asks for a certificate.
    Join,
    /// A member asks for its next certificate.
    Renew,
}

impl Alpn {
    pub const ALL: [Alpn; 10] = [
        Alpn::Raft,
        Alpn::Rpc,
        Alpn::Stream,
        Alpn::Blob,
        Alpn::Slice,
        Alpn::Api,
        Alpn::Beat,
        Alpn::Relay,
        Alpn::Join,
        Alpn::Renew,
    ];

    /// The name as it stands in the handshake.
    pub const fn as_str(self) -> &'static str {
        match self {
            Alpn::Raft => "flotilla/raft/1",
            Alpn::Rpc => "flotilla/rpc/1",
            Alpn::Stream => "flotilla/stream/1",
            Alpn::Blob => "flotilla/blob/1",
            Alpn::Slice => "flotilla/slice/1",
            Alpn::Api => "flotilla/api/1",
            Alpn::Beat => "flotilla/beat/1",
            Alpn::Relay => "flotilla/relay/1",
            Alpn::Join => "flotilla/join/1",
            Alpn::Renew => "flotilla/renew/1",
        }
    }

    pub fn from_bytes(name: &[u8]) -> Option<Alpn> {
        Alpn::ALL.into_iter().find(|alpn| alpn.as_str().as_bytes() == name)
    }

    /// Whether a peer may speak this protocol without a certificate.
    pub const fn admits_strangers(self) -> bool {
        matches!(self, Alpn::Join | Alpn::Renew)
    }

    /// Whether the network itself answers, rather than a handler.
    pub const fn is_internal(self) -> bool {
        self.admits_strangers() || matches!(self, Alpn::Beat | Alpn::Relay)
    }

    pub(crate) fn to_vec(self) -> Vec<u8> {
        self.as_str().as_bytes().to_vec()
    }
}

impl fmt::Display for Alpn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_found_again_and_no_other() {
        for alpn in Alpn::ALL {
            assert_eq!(Alpn::from_bytes(alpn.as_str().as_bytes()), Some(alpn));
        }
        assert_eq!(Alpn::from_bytes(b"h3"), None);
    }

    #[test]
    fn strangers_may_only_join_and_renew() {
        let open: Vec<_> = Alpn::ALL.into_iter().filter(|alpn| alpn.admits_strangers()).collect();
        assert_eq!(open, [Alpn::Join, Alpn::Renew]);
    }
}
