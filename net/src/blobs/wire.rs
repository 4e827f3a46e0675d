//! What is said about blobs between nodes. A stream begins with one [`Request`].
//!
//! Invariant: each message is bounded before it is decoded.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::ledger::{self, MAX_TOLD};
use super::rendezvous::Mark;
use super::{ANSWER_TIMEOUT, BlobDigest};
use crate::codec;
use crate::frame::{read_frame_or_end, write_frame};
use crate::names::NodeId;

/// The most digests or marks in a message.
pub const MAX_DIGESTS: usize = 1024;
/// The largest message.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Sits down at the tracker; [`Said`] and [`Reply`] follow in turns.
    Seek(Mark),
    /// Asks for a blob from an offset on; [`Answer`] follows, then the bytes to the end of the stream.
    Get { digest: BlobDigest, offset_bytes: u64 },
    /// Asks which of these are held; a list of as many truth values follows.
    Holds(Vec<BlobDigest>),
    /// Tells the tracker what is held here; an empty list of truth values follows.
    Announce(Vec<Mark>),
}

/// What a tracker says.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Said {
    /// Nothing yet, but the tracker lives.
    Wait,
    Turn,
    Holders(Vec<NodeId>),
    /// The tracker has no room.
    Full,
}

/// What a seeker says when it was given its turn or holders.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    Held,
    Again { missing: Vec<NodeId>, failed: Vec<NodeId> },
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    Here { size_bytes: u64 },
    Missing,
    Busy,
}

impl From<ledger::Word> for Said {
    fn from(word: ledger::Word) -> Self {
        match word {
            ledger::Word::Turn => Said::Turn,
            ledger::Word::Holders(holders) => Said::Holders(holders),
        }
    }
}

/// Whether a request keeps to the bounds of its lists.
pub fn is_bounded(request: &Request) -> bool {
    match request {
        Request::Seek(_) | Request::Get { .. } => true,
        Request::Holds(digests) => digests.len() <= MAX_DIGESTS,
        Request::Announce(marks) => marks.len() <= MAX_DIGESTS,
    }
}

/// The nodes of a message, no more than are ever told at once.
pub fn bounded(mut nodes: Vec<NodeId>) -> Vec<NodeId> {
    nodes.truncate(MAX_TOLD);
    nodes
}

pub async fn send<T: Serialize>(write: &mut (impl AsyncWrite + Unpin), message: &T) -> Result<(), String> {
    let bytes = codec::encode(message).map_err(|error| error.to_string())?;
    write_frame(write, &bytes).await.map_err(|error| error.to_string())?;
    write.flush().await.map_err(|error| error.to_string())
}

/// The next message; `None` at the stream's end.
pub async fn receive<T: DeserializeOwned>(read: &mut (impl AsyncRead + Unpin)) -> Result<Option<T>, String> {
    let frame = read_frame_or_end(read, MAX_MESSAGE_BYTES).await.map_err(|error| error.to_string())?;
    frame
        .map(|bytes| codec::decode_within::<T, MAX_MESSAGE_BYTES>(&bytes).map_err(|error| error.to_string()))
        .transpose()
}

/// The next message, within `limit`; `None` if it does not come.
pub async fn receive_within<T: DeserializeOwned>(
    read: &mut (impl AsyncRead + Unpin),
    limit: Duration,
) -> Option<Result<T, String>> {
    let received = tokio::time::timeout(limit, receive(read)).await.ok()?;
    Some(received.and_then(|message| message.ok_or_else(|| "the stream ended".to_owned())))
}

/// As [`receive_within`] the time that an answer may take.
pub async fn answer<T: DeserializeOwned>(read: &mut (impl AsyncRead + Unpin)) -> Option<Result<T, String>> {
    receive_within(read, ANSWER_TIMEOUT).await
}

#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(input: &[u8]) {
    futures::executor::block_on(async {
        let mut stream = input;
        while let Ok(Some(request)) = receive::<Request>(&mut stream).await {
            _ = is_bounded(&request);
        }
        if let Ok(Some(Reply::Again { missing, failed })) = receive(&mut { input }).await {
            assert!(bounded(missing).len() <= MAX_TOLD && bounded(failed).len() <= MAX_TOLD);
        }
        _ = receive::<Said>(&mut { input }).await;
        _ = receive::<Answer>(&mut { input }).await;
        _ = receive::<Vec<bool>>(&mut { input }).await;
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Nodes of different builds talk to each other: what changes here needs a new version of the protocol.
    #[test]
    fn the_messages_are_these_bytes() {
        let golden = |value: &dyn Fn() -> Vec<u8>, expected: &str| assert_eq!(hex(&value()), expected);
        let (digest, nines) = ([9; 32], "09".repeat(32));
        let get = Request::Get { digest, offset_bytes: 300 };
        golden(&|| codec::encode(&get).expect("encodes"), &format!("0101{nines}fb2c01"));
        golden(&|| codec::encode(&Request::Holds(vec![digest])).expect("encodes"), &format!("010201{nines}"));
        golden(&|| codec::encode(&Said::Holders(vec![1, 2])).expect("encodes"), "0102020102");
        golden(&|| codec::encode(&Said::Full).expect("encodes"), "0103");
        let again = Reply::Again { missing: vec![5], failed: vec![] };
        golden(&|| codec::encode(&again).expect("encodes"), "0101010500");
        golden(&|| codec::encode(&Answer::Here { size_bytes: 7 }).expect("encodes"), "010007");
        golden(&|| codec::encode(&Answer::Busy).expect("encodes"), "0102");
    }

    #[test]
    fn the_largest_lists_fit_into_a_message() {
        let largest = codec::encode(&Request::Holds(vec![[255; 32]; MAX_DIGESTS])).expect("encodes");
        assert!(largest.len() <= MAX_MESSAGE_BYTES);
        let truths = codec::encode(&vec![true; MAX_DIGESTS]).expect("encodes");
        assert!(truths.len() <= MAX_MESSAGE_BYTES);
        assert!(!is_bounded(&Request::Holds(vec![[0; 32]; MAX_DIGESTS + 1])));
    }

    #[tokio::test]
    async fn a_message_over_the_bound_is_refused() {
        let mut stream: &[u8] = &(MAX_MESSAGE_BYTES as u32 + 1).to_be_bytes();
        assert!(receive::<Request>(&mut stream).await.is_err());
    }
}
