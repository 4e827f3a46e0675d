//! Every byte that this crate stores or sends passes here, so that a format changes in one place.
//!
//! An envelope is one version byte and a bincode body; log entries and messages carry the already
//! encoded command as plain bytes, so that a Change is serialized once on its way to every replica.
//!
//! Invariant: decoding refuses what is longer than its bound, of another version, or followed by
//! bytes that do not belong to it, and never panics.
//! Invariant: the layouts are ours, not openraft's, so that an update of openraft moves no stored byte.

use std::collections::BTreeSet;

use bytes::Bytes;
use openraft::EntryPayload;
use openraft::entry::RaftEntry;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::types::{Command, Entry, LogId, Membership, StoredMembership, Vote, log_id, term_of};

/// The format version that this build writes and the only one that it reads.
pub(crate) const FORMAT_VERSION: u8 = 1;

/// No envelope is longer: a replication message of one greatest entry, and room for headers.
pub(crate) const MAX_ENVELOPE_BYTES: usize = 16 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub(crate) enum CodecError {
    #[error("empty envelope")]
    Empty,
    #[error("envelope of {0} bytes exceeds {MAX_ENVELOPE_BYTES}")]
    TooLong(usize),
    #[error("format version {0}, this build reads {FORMAT_VERSION}")]
    Version(u8),
    #[error("malformed envelope: {0}")]
    Malformed(String),
}

impl From<CodecError> for std::io::Error {
    fn from(error: CodecError) -> Self {
        std::io::Error::new(std::io::ErrorKind::InvalidData, error)
    }
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MAX_ENVELOPE_BYTES>()
}

/// Version byte, then bincode.
pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    let mut out = vec![FORMAT_VERSION];
    bincode::serde::encode_into_std_write(value, &mut out, config())
        .map_err(|e| CodecError::Malformed(e.to_string()))?;
    match out.len() {
        n if n > MAX_ENVELOPE_BYTES => Err(CodecError::TooLong(n)),
        _ => Ok(out),
    }
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > MAX_ENVELOPE_BYTES {
        return Err(CodecError::TooLong(bytes.len()));
    }
    let (version, body) = bytes.split_first().ok_or(CodecError::Empty)?;
    if *version != FORMAT_VERSION {
        return Err(CodecError::Version(*version));
    }
    let (value, read) =
        bincode::serde::decode_from_slice(body, config()).map_err(|e| CodecError::Malformed(e.to_string()))?;
    if read != body.len() {
        return Err(CodecError::Malformed(format!("{} bytes too many", body.len() - read)));
    }
    Ok(value)
}

/// What stands first in an envelope, whatever follows.
pub(crate) fn first<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let (version, body) = bytes.split_first().ok_or(CodecError::Empty)?;
    if *version != FORMAT_VERSION {
        return Err(CodecError::Version(*version));
    }
    let first = bincode::serde::decode_from_slice(body, config());
    first.map(|(value, _)| value).map_err(|e| CodecError::Malformed(e.to_string()))
}

/// A log id as it is stored and sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LogIdForm {
    pub term: u64,
    pub index: u64,
}

impl From<&LogId> for LogIdForm {
    fn from(id: &LogId) -> Self {
        Self { term: term_of(id), index: id.index() }
    }
}

impl From<LogIdForm> for LogId {
    fn from(form: LogIdForm) -> Self {
        log_id(form.term, form.index)
    }
}

/// A vote as it is stored and sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VoteForm {
    pub term: u64,
    pub node: u64,
    pub committed: bool,
}

impl From<&Vote> for VoteForm {
    fn from(vote: &Vote) -> Self {
        Self { term: vote.leader_id.term, node: vote.leader_id.voted_for, committed: vote.committed }
    }
}

impl From<VoteForm> for Vote {
    fn from(form: VoteForm) -> Self {
        match form.committed {
            true => Vote::new_committed(form.term, form.node),
            false => Vote::new(form.term, form.node),
        }
    }
}

/// A membership: one voter set, or two while it changes, and everyone who replicates.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MembershipForm {
    pub voters: Vec<BTreeSet<u64>>,
    pub members: BTreeSet<u64>,
}

impl From<&Membership> for MembershipForm {
    fn from(m: &Membership) -> Self {
        Self { voters: m.get_joint_config().clone(), members: m.nodes().map(|(id, ())| *id).collect() }
    }
}

impl From<MembershipForm> for Membership {
    fn from(form: MembershipForm) -> Self {
        Membership::new_with_defaults(form.voters, form.members)
    }
}

/// A membership with the log entry it came from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredMembershipForm {
    pub at: Option<LogIdForm>,
    pub membership: MembershipForm,
}

impl From<&StoredMembership> for StoredMembershipForm {
    fn from(m: &StoredMembership) -> Self {
        Self { at: m.log_id().as_ref().map(LogIdForm::from), membership: m.membership().into() }
    }
}

impl From<StoredMembershipForm> for StoredMembership {
    fn from(form: StoredMembershipForm) -> Self {
        StoredMembership::new(form.at.map(LogId::from), form.membership.into())
    }
}

/// A log entry as it is stored and sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EntryForm {
    pub id: LogIdForm,
    pub payload: PayloadForm,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum PayloadForm {
    Blank,
    Command(Bytes),
    Membership(MembershipForm),
}

impl From<&Entry> for EntryForm {
    fn from(entry: &Entry) -> Self {
        let payload = match &entry.payload {
            EntryPayload::Blank => PayloadForm::Blank,
            EntryPayload::Normal(Command(bytes)) => PayloadForm::Command(bytes.clone()),
            EntryPayload::Membership(m) => PayloadForm::Membership(m.into()),
        };
        Self { id: (&entry.log_id()).into(), payload }
    }
}

impl From<EntryForm> for Entry {
    fn from(form: EntryForm) -> Self {
        let payload = match form.payload {
            PayloadForm::Blank => EntryPayload::Blank,
            PayloadForm::Command(bytes) => EntryPayload::Normal(Command(bytes)),
            PayloadForm::Membership(m) => EntryPayload::Membership(m.into()),
        };
        Entry::new(form.id.into(), payload)
    }
}

/// How many bytes an entry takes, near enough for bounds.
pub(crate) fn entry_bytes(entry: &Entry) -> usize {
    const HEADER_BYTES: usize = 32;
    HEADER_BYTES
        + match &entry.payload {
            EntryPayload::Blank => 0,
            EntryPayload::Normal(Command(bytes)) => bytes.len(),
            EntryPayload::Membership(m) => 16 * m.nodes().count(),
        }
}

pub(crate) fn encode_entry(entry: &Entry) -> Result<Vec<u8>, CodecError> {
    encode(&EntryForm::from(entry))
}

pub(crate) fn decode_entry(bytes: &[u8]) -> Result<Entry, CodecError> {
    decode::<EntryForm>(bytes).map(Entry::from)
}
