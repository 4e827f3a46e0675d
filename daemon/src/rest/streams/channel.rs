//! Kubernetes' channels: several streams in one WebSocket, the channel's number in front of each message.
//!
//! `channel.k8s.io` and its versions, each also in base64 for clients that can send text only. Version 5 adds a message
//! by which a client ends one channel, without which standard input could not end before the connection does.
//!
//! Invariant: total: any message is something that was said, or nothing.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};

pub const STDIN: u8 = 0;
pub const STDOUT: u8 = 1;
pub const STDERR: u8 = 2;
pub const ERROR: u8 = 3;
pub const RESIZE: u8 = 4;
/// In version 5: the channel that follows has ended.
const CLOSE: u8 = 255;

/// How a client and we put channels into messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol {
    /// As it is named in the handshake; empty for a client that names none.
    pub name: &'static str,
    /// The error channel has text up to version 3, and a `Status` from then on.
    pub version: u8,
    pub base64: bool,
}

const fn protocol(name: &'static str, version: u8, base64: bool) -> Protocol {
    Protocol { name, version, base64 }
}

/// What commands are run and attached to with.
pub const REMOTE_COMMAND: &[Protocol] = &[
    protocol("v5.channel.k8s.io", 5, false),
    protocol("v4.channel.k8s.io", 4, false),
    protocol("v4.base64.channel.k8s.io", 4, true),
    protocol("v3.channel.k8s.io", 3, false),
    protocol("v2.channel.k8s.io", 2, false),
    protocol("channel.k8s.io", 1, false),
    protocol("base64.channel.k8s.io", 1, true),
    protocol("", 1, false),
];

/// What ports are forwarded with, two channels a port.
pub const PORT_FORWARD: &[Protocol] = &[
    protocol("v4.channel.k8s.io", 4, false),
    protocol("v4.base64.channel.k8s.io", 4, true),
    protocol("channel.k8s.io", 1, false),
    protocol("base64.channel.k8s.io", 1, true),
    protocol("", 1, false),
];

/// The first protocol that the client offers and we know; a client that offers none gets the nameless one.
pub fn negotiate(offered: &[&str], known: &'static [Protocol]) -> Option<&'static Protocol> {
    let find = |name: &str| known.iter().find(|protocol| protocol.name == name);
    if offered.is_empty() { find("") } else { offered.iter().find_map(|name| find(name)) }
}

/// What a message says.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    Data(u8, Bytes),
    /// Nothing more comes on this channel.
    End(u8),
}

impl Protocol {
    /// `None` for what says nothing.
    pub fn decode(&self, message: &Bytes) -> Option<Said> {
        let (first, rest) = message.split_first()?;
        if self.base64 {
            let channel = first.checked_sub(b'0').filter(|channel| *channel < 10)?;
            return Some(Said::Data(channel, STANDARD.decode(rest).ok()?.into()));
        }
        match (*first, rest) {
            (CLOSE, [channel]) if self.version >= 5 => Some(Said::End(*channel)),
            (CLOSE, _) if self.version >= 5 => None,
            (channel, _) => Some(Said::Data(channel, message.slice(1..))),
        }
    }

    /// The message that carries `data` on a channel below 10.
    pub fn encode(&self, channel: u8, data: &[u8]) -> Bytes {
        let mut message = BytesMut::with_capacity(1 + if self.base64 { data.len() / 3 * 4 + 4 } else { data.len() });
        if self.base64 {
            message.put_u8(b'0' + channel);
            message.extend_from_slice(STANDARD.encode(data).as_bytes());
        } else {
            message.put_u8(channel);
            message.extend_from_slice(data);
        }
        message.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_order_decides() {
        let name = |offered: &[&str]| negotiate(offered, REMOTE_COMMAND).map(|protocol| protocol.name);
        assert_eq!(name(&["v5.channel.k8s.io", "channel.k8s.io"]), Some("v5.channel.k8s.io"));
        assert_eq!(name(&["v9.channel.k8s.io", "v4.channel.k8s.io"]), Some("v4.channel.k8s.io"));
        assert_eq!(name(&[]), Some(""));
        assert_eq!(name(&["graphql-ws"]), None);
    }

    #[test]
    fn messages_come_back() {
        for protocol in REMOTE_COMMAND {
            for data in [&b""[..], b"x", b"\xff\x00 any bytes"] {
                let message = protocol.encode(STDOUT, data);
                assert_eq!(
                    protocol.decode(&message),
                    Some(Said::Data(STDOUT, Bytes::copy_from_slice(data))),
                    "{protocol:?}"
                );
            }
        }
        let five = &REMOTE_COMMAND[0];
        assert_eq!(five.decode(&Bytes::from_static(&[255, 0])), Some(Said::End(STDIN)));
        assert_eq!(five.decode(&Bytes::from_static(&[255])), None);
        assert_eq!(five.decode(&Bytes::new()), None);
        let base64 = negotiate(&["base64.channel.k8s.io"], REMOTE_COMMAND).unwrap();
        assert_eq!(base64.decode(&Bytes::from_static(b"0not base64!")), None);
        assert_eq!(base64.decode(&Bytes::from_static(b"\x01AA==")), None);
    }
}
