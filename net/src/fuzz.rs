//! Every decoder of this crate that reads bytes from a peer, a token or a file, as functions for fuzzers and for a test on
//! stable Rust.
//!
//! Invariant: no input panics, and what decodes encodes again.

use crate::certificate::Subject;
use crate::frame::read_frame_or_end;
use crate::record::AddressRecord;
use crate::seal::SealKey;
use crate::token::{Token, TokenId};
use crate::{authority, beat, blobs, join, observed, relay, renew};

/// A target and its name.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: &[Target] = &[
    ("token", token),
    ("messages", messages),
    ("blobs", blobs::fuzz),
    ("relay", relayed),
    ("frame", frame),
    ("certificate", certificate),
    ("seal", seal),
];

fn token(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(token) = text.parse::<Token>() {
        let again: Token = token.to_string().parse().expect("what was printed parses");
        assert_eq!(again.to_string(), token.to_string());
    }
    _ = text.parse::<TokenId>();
}

/// Heartbeats, addresses, and what machines ask that join or renew.
fn messages(input: &[u8]) {
    beat::fuzz(input);
    join::fuzz(input);
    renew::fuzz(input);
    if let Ok(record) = crate::codec::decode::<AddressRecord>(input) {
        _ = (record.addresses(), record.name());
        crate::codec::encode(&record).expect("what decoded encodes");
    }
}

/// What is relayed, and where a peer says that it sees this node.
fn relayed(input: &[u8]) {
    relay::fuzz(input);
    observed::fuzz(input);
}

/// Any number of frames on one stream.
fn frame(input: &[u8]) {
    const MAX_BYTES: usize = 1 << 16;
    let mut stream = input;
    let read = async {
        while let Ok(Some(frame)) = read_frame_or_end(&mut stream, MAX_BYTES).await {
            assert!(frame.len() <= MAX_BYTES);
        }
    };
    futures::executor::block_on(read);
}

fn certificate(input: &[u8]) {
    if let Ok(subject) = Subject::of(input) {
        _ = subject.renew_at();
    }
    _ = Subject::node_of(input);
    authority::fuzz(input);
}

fn seal(input: &[u8]) {
    let key = SealKey::decode(&[&[1][..], &[7; 8], &[9; 32]].concat()).expect("a key");
    _ = (SealKey::key_id(input), key.open(input, b""));
    if let Ok(decoded) = SealKey::decode(input) {
        assert_eq!(decoded.encode(), input);
    }
}

#[cfg(test)]
#[path = "../../fuzz/stable.rs"]
mod stable;

#[cfg(test)]
mod tests {
    #[test]
    fn seeds_and_their_mutations_are_taken_or_refused() {
        super::stable::run("net", super::TARGETS);
    }
}
