//! Every decoder of this crate that reads bytes from a peer or a client, as functions for fuzzers and for a test on stable
//! Rust.
//!
//! Invariant: no input panics.

use crate::gate::continue_token;
use crate::streams::{FromPod, StreamRequest, ToPod, receive};
use crate::usage::Usage;

/// A target and its name.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: &[Target] = &[("stream", stream), ("usage", usage), ("continue", continue_from)];

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

fn continue_from(input: &[u8]) {
    if let Ok(text) = std::str::from_utf8(input)
        && let Ok((revision, key)) = continue_token(text)
    {
        assert_eq!(continue_token(&format!("{revision}:{key}")).expect("what was printed parses"), (revision, key));
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
