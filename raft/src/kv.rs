//! What readers and watchers get.

use bytes::Bytes;
use flotilla_api::Key;

/// One object as the store has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    pub key: Key,
    /// JSON without `metadata.resourceVersion`; see `flotilla_api::object`.
    pub value: Bytes,
    pub create_revision: u64,
    pub mod_revision: u64,
}

/// One key written, at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Put { kv: KeyValue, prev: Option<KeyValue> },
    Delete { key: Key, revision: u64, prev: KeyValue },
}

impl Event {
    pub fn key(&self) -> &Key {
        match self {
            Event::Put { kv, .. } => &kv.key,
            Event::Delete { key, .. } => key,
        }
    }

    pub fn revision(&self) -> u64 {
        match self {
            Event::Put { kv, .. } => kv.mod_revision,
            Event::Delete { revision, .. } => *revision,
        }
    }

    /// The object as it was before, if it existed.
    pub fn prev(&self) -> Option<&KeyValue> {
        match self {
            Event::Put { prev, .. } => prev.as_ref(),
            Event::Delete { prev, .. } => Some(prev),
        }
    }

    pub(crate) fn size_bytes(&self) -> usize {
        const HEADER_BYTES: usize = 128;
        let new_bytes = match self {
            Event::Put { kv, .. } => kv.value.len(),
            Event::Delete { .. } => 0,
        };
        HEADER_BYTES + self.key().as_str().len() + new_bytes + self.prev().map_or(0, |kv| kv.value.len())
    }
}

/// Which keys to list.
#[derive(Clone, Debug, Default)]
pub struct Range {
    /// Keys start with this; empty means all.
    pub prefix: String,
    /// Only keys after this one, to continue an earlier listing.
    pub after: Option<String>,
    /// At most this many; 0 means no limit but the store's own.
    pub limit: usize,
    /// No more once their values are this long together, in bytes; 0 means no limit but the store's own. What is held in
    /// memory anyway is not counted.
    pub max_bytes: usize,
    /// As of this revision; `None` means now.
    pub revision: Option<u64>,
}

impl Range {
    pub fn prefix(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into(), ..Self::default() }
    }
}

/// Keys in order, all as of one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    pub items: Vec<KeyValue>,
    pub revision: u64,
    /// There are keys after the last one: continue with `after` and this `revision`.
    pub more: bool,
}
