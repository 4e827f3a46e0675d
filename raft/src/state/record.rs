//! How the state's records are laid out.
//!
//! Invariant: a current object's value is the record's end, so that it is read without decoding.

use bytes::Bytes;
use flotilla_api::Key;
use serde::{Deserialize, Serialize};

use crate::codec::{FORMAT_VERSION, LogIdForm, StoredMembershipForm};
use crate::kv::{Event, KeyValue};

/// What the state knows about itself; written with every entry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Header {
    pub applied: Option<LogIdForm>,
    pub membership: StoredMembershipForm,
    /// The last revision taken.
    pub revision: u64,
    /// History up to and including this revision is forgotten.
    pub compacted: u64,
    /// The greatest time of any entry.
    pub now_ms: u64,
    /// How many objects of the Event kind exist.
    pub events_count: u64,
    /// Bytes of all history ever written, to tell how much a range of revisions takes.
    pub history_bytes: u64,
    /// The newest commands that may be proposed; 0 counts as 1.
    pub version: u32,
}

/// A current object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Current {
    pub create_revision: u64,
    pub mod_revision: u64,
    /// The time of the entry that wrote it.
    pub time_ms: u64,
    pub value: Bytes,
}

const CURRENT_HEADER_BYTES: usize = 25;

impl Current {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(CURRENT_HEADER_BYTES + self.value.len());
        out.push(FORMAT_VERSION);
        out.extend_from_slice(&self.create_revision.to_be_bytes());
        out.extend_from_slice(&self.mod_revision.to_be_bytes());
        out.extend_from_slice(&self.time_ms.to_be_bytes());
        out.extend_from_slice(&self.value);
        out
    }

    /// The value shares the record's memory.
    pub fn decode(record: Bytes) -> Option<Self> {
        let head = record.get(..CURRENT_HEADER_BYTES)?;
        let number = |at: usize| Some(u64::from_be_bytes(head.get(at..at + 8)?.try_into().ok()?));
        let (version, current) = (
            *head.first()?,
            Self {
                create_revision: number(1)?,
                mod_revision: number(9)?,
                time_ms: number(17)?,
                value: record.slice(CURRENT_HEADER_BYTES..),
            },
        );
        (version == FORMAT_VERSION).then_some(current)
    }

    pub fn into_kv(self, key: Key) -> KeyValue {
        KeyValue { key, value: self.value, create_revision: self.create_revision, mod_revision: self.mod_revision }
    }
}

/// One event of history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Past {
    pub key: Key,
    /// The last revision of the Change that it belongs to.
    pub change_end: u64,
    pub time_ms: u64,
    /// `Header::history_bytes` after it.
    pub history_bytes: u64,
    /// The new value; `None` for a deletion.
    pub new: Option<PastValue>,
    pub old: Option<PastValue>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PastValue {
    pub create_revision: u64,
    pub mod_revision: u64,
    pub value: Bytes,
}

impl PastValue {
    fn from_kv(kv: &KeyValue) -> Self {
        Self { create_revision: kv.create_revision, mod_revision: kv.mod_revision, value: kv.value.clone() }
    }

    pub fn into_kv(self, key: Key) -> KeyValue {
        KeyValue { key, value: self.value, create_revision: self.create_revision, mod_revision: self.mod_revision }
    }
}

impl Past {
    pub fn new(event: &Event, change_end: u64, time_ms: u64, history_bytes: u64) -> Self {
        let (new, old) = match event {
            Event::Put { kv, prev } => (Some(PastValue::from_kv(kv)), prev.as_ref().map(PastValue::from_kv)),
            Event::Delete { prev, .. } => (None, Some(PastValue::from_kv(prev))),
        };
        Self { key: event.key().clone(), change_end, time_ms, history_bytes, new, old }
    }

    /// `None` if the record says that nothing was deleted, which is never written.
    pub fn into_event(self, revision: u64) -> Option<Event> {
        let Self { key, new, old, .. } = self;
        let prev = old.map(|old| old.into_kv(key.clone()));
        match (new, prev) {
            (Some(new), prev) => Some(Event::Put { kv: new.into_kv(key), prev }),
            (None, Some(prev)) => Some(Event::Delete { key, revision, prev }),
            (None, None) => None,
        }
    }
}

pub(crate) fn current_key(key: &str) -> Vec<u8> {
    [b"c", key.as_bytes()].concat()
}

pub(crate) fn past_key(revision: u64) -> [u8; 9] {
    let mut key = [b'h'; 9];
    key[1..].copy_from_slice(&revision.to_be_bytes());
    key
}

pub(crate) fn revision_of(past_key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(past_key.get(1..9)?.try_into().ok()?))
}

/// An object of the Event kind by the time it was last written.
pub(crate) fn aging_key(time_ms: u64, key: &str) -> Vec<u8> {
    [b"e".as_slice(), &time_ms.to_be_bytes(), key.as_bytes()].concat()
}

pub(crate) fn parse_aging_key(bytes: &[u8]) -> Option<(u64, Key)> {
    let time_ms = u64::from_be_bytes(bytes.get(1..9)?.try_into().ok()?);
    let key = Key::parse(std::str::from_utf8(bytes.get(9..)?).ok()?)?;
    Some((time_ms, key))
}

#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(input: &[u8]) {
    if let Some(current) = Current::decode(Bytes::copy_from_slice(input)) {
        assert_eq!(current.encode(), input);
    }
    _ = crate::codec::decode::<Header>(input);
    if let Ok(past) = crate::codec::decode::<Past>(input) {
        past.into_event(7);
    }
    _ = (revision_of(input), parse_aging_key(input));
}
