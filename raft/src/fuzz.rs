//! Every decoder of this crate that reads bytes from a peer or a disk, as functions for fuzzers and for a test on stable
//! Rust.
//!
//! Invariant: no input panics, and what decodes encodes to what decodes to the same.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::{self, EntryForm, MembershipForm, StoredMembershipForm, VoteForm};
use crate::command::Batch;
use crate::outcome::Outcome;
use crate::wire::{Opening, Reply, Request, SnapshotHeader, SnapshotReply};
use crate::{courier, frame, transport};

/// A target and its name.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: &[Target] = &[
    ("entry", entry),
    ("message", message),
    ("record", record),
    ("frame", frames),
    ("backup", backup),
    ("journal", journal),
    ("pointer", crate::snapshot::fuzz),
];

fn same<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(input: &[u8]) {
    if let Ok(value) = codec::decode::<T>(input) {
        let bytes = codec::encode(&value).expect("what decoded encodes");
        assert_eq!(codec::decode::<T>(&bytes).expect("what was encoded decodes"), value);
    }
}

/// What the log holds.
fn entry(input: &[u8]) {
    if let Ok(entry) = codec::decode_entry(input) {
        codec::encode_entry(&entry).expect("what decoded encodes");
    }
    same::<EntryForm>(input);
    same::<Batch>(input);
    same::<VoteForm>(input);
    same::<MembershipForm>(input);
    same::<StoredMembershipForm>(input);
}

/// What peers send.
fn message(input: &[u8]) {
    same::<Request>(input);
    same::<Reply>(input);
    same::<Outcome>(input);
    same::<Opening>(input);
    same::<SnapshotReply>(input);
    if let Ok(header) = codec::decode::<SnapshotHeader>(input) {
        _ = courier::check(&header, 1 << 30);
    }
}

/// What the state holds.
fn record(input: &[u8]) {
    crate::state::fuzz(input);
}

/// The files of a log's journal.
fn journal(input: &[u8]) {
    crate::disk::fuzz_journal(input);
}

/// A whole backup file.
fn backup(input: &[u8]) {
    crate::backup::fuzz(input);
}

/// Any number of frames on one stream.
fn frames(input: &[u8]) {
    const MAX_BYTES: usize = 1 << 16;
    let mut reader: transport::Reader = Box::new(std::io::Cursor::new(input.to_vec()));
    let read = async {
        while let Ok(Some(body)) = frame::read(&mut reader, MAX_BYTES).await {
            assert!(body.len() <= MAX_BYTES);
        }
    };
    futures::executor::block_on(read);
}

#[cfg(test)]
#[path = "../../fuzz/stable.rs"]
mod stable;

#[cfg(test)]
mod tests {
    #[test]
    fn seeds_and_their_mutations_are_taken_or_refused() {
        super::stable::run("raft", super::TARGETS);
    }
}
