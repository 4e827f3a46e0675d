//! Every decoder of this crate that reads bytes from a peer or a client, as functions for fuzzers and for a test on stable
//! Rust.
//!
//! Invariant: no input panics.

use crate::gate::Continue;
use crate::rest::streams::{channel, remote, spdy};
use crate::streams::{FromPod, StreamRequest, ToPod, receive};
use crate::usage::Usage;

/// A target and its name.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: &[Target] = &[
    ("stream", stream),
    ("usage", usage),
    ("continue", continue_from),
    ("spdy", spdy_frames),
    ("channel", channels),
    ("jwt", crate::accounts::fuzz),
    ("slice", crate::slice::fuzz::messages),
];

/// Messages of a stream to or from a pod, in their frames.
fn stream(input: &[u8]) {
    futures::executor::block_on(async {
        _ = receive::<StreamRequest>(&mut { input }).await;
        let mut to_pod = input;
        while let Ok(Some(_)) = receive::<ToPod>(&mut to_pod).await {}
        let mut from_pod = input;
        while let Ok(Some(_)) = receive::<FromPod>(&mut from_pod).await {}
    });
}

/// What heartbeats carry.
fn usage(input: &[u8]) {
    if let Some(usage) = Usage::decode(input) {
        assert_eq!(Usage::decode(&usage.encode()), Some(usage));
    }
}

/// What a client of SPDY sends: frames, and the header blocks in them.
fn spdy_frames(mut input: &[u8]) {
    use spdy::frame::{self, Control, HEAD_BYTES, Head};
    let mut inflater = spdy::headers::Inflater::default();
    while let Some((head, rest)) = input.split_first_chunk::<HEAD_BYTES>() {
        let length = match frame::head(*head) {
            Ok(Head::Data { length, .. }) => length,
            Ok(Head::Control { kind, flags, length }) => {
                assert!(length <= frame::MAX_CONTROL_BYTES);
                let Some(body) = rest.get(..length) else { return };
                match frame::control(kind, flags, body) {
                    Ok(
                        Control::SynStream { block, .. }
                        | Control::SynReply { block, .. }
                        | Control::Headers { block, .. },
                    ) => {
                        let Ok(headers) = inflater.headers(&block) else { return };
                        _ = headers.get("streamtype");
                    }
                    Ok(_) => {}
                    Err(_) => return,
                }
                length
            }
            Err(_) => return,
        };
        input = rest.get(length..).unwrap_or_default();
    }
}

/// A message of a WebSocket in each version of the channel protocol.
fn channels(input: &[u8]) {
    let message = bytes::Bytes::copy_from_slice(input);
    for protocol in channel::REMOTE_COMMAND {
        if let Some(channel::Said::Data(channel, data)) = protocol.decode(&message)
            && channel < 10
        {
            let again = protocol.decode(&protocol.encode(channel, &data));
            assert_eq!(again, Some(channel::Said::Data(channel, data)));
        }
    }
    let mut sizes = remote::Sizes::default();
    for piece in input.chunks(7) {
        _ = sizes.push(piece);
    }
}

fn continue_from(input: &[u8]) {
    if let Ok(text) = std::str::from_utf8(input)
        && let Ok(token) = Continue::parse(text)
    {
        assert_eq!(Continue::parse(&token.to_string()).expect("what was printed parses"), token);
    }
}

#[cfg(test)]
#[path = "../../fuzz/stable.rs"]
mod stable;

#[cfg(test)]
mod tests {
    #[test]
    fn seeds_and_their_mutations_are_taken_or_refused() {
        super::stable::run("daemon", super::TARGETS);
    }
}
