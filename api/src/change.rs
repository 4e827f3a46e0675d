//! The one write path's unit: what to write, under which conditions, for whom.
//!
//! Invariant: applying a Change is deterministic. Times, names and uids inside it were minted before
//! it was proposed.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::key::Key;

/// A set of writes that take effect together or not at all.
///
/// A Change of n writes takes n consecutive revisions, in the order of `writes`, and is seen by lists
/// and snapshots only whole.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// Distinct keys; at most [`Change::MAX_WRITES`].
    pub writes: Vec<Write>,
    /// All must hold when the Change is applied; they may name keys that are not written.
    pub preconditions: Vec<Precondition>,
    /// Who asked, for the audit trail: `system:node:n1`, `root`.
    pub user: String,
    /// The field manager: `flotilla-cli`, `deployment-controller`.
    pub manager: String,
    /// Set by planners: the Change is refused unless the leader's term is still this one, so that a
    /// deposed leader's decisions do not land.
    pub term: Option<u64>,
}

impl Change {
    pub const MAX_WRITES: usize = 512;

    /// A Change by `user` through `manager`, still without writes.
    pub fn new(user: impl Into<String>, manager: impl Into<String>) -> Self {
        Self { user: user.into(), manager: manager.into(), ..Self::default() }
    }

    /// Writes a key that must not exist yet.
    pub fn create(self, key: Key, value: Bytes) -> Self {
        self.require(key.clone(), Expect::Absent).put(key, value)
    }

    /// Overwrites a key that must still be at `revision`.
    pub fn update(self, key: Key, revision: u64, value: Bytes) -> Self {
        self.require(key.clone(), Expect::ModRevision(revision)).put(key, value)
    }

    /// Deletes a key that must still be at `revision`.
    pub fn remove(self, key: Key, revision: u64) -> Self {
        self.require(key.clone(), Expect::ModRevision(revision)).delete(key)
    }

    pub fn put(mut self, key: Key, value: Bytes) -> Self {
        self.writes.push(Write::Put { key, value });
        self
    }

    pub fn delete(mut self, key: Key) -> Self {
        self.writes.push(Write::Delete { key });
        self
    }

    pub fn require(mut self, key: Key, expect: Expect) -> Self {
        self.preconditions.push(Precondition { key, expect });
        self
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Write {
    /// JSON bytes without `metadata.resourceVersion`.
    Put { key: Key, value: Bytes },
    /// Deleting a key that does not exist takes a revision all the same and tells watchers nothing.
    Delete { key: Key },
}

impl Write {
    pub fn key(&self) -> &Key {
        match self {
            Write::Put { key, .. } | Write::Delete { key } => key,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Precondition {
    pub key: Key,
    pub expect: Expect,
}

/// What a key must be like when a Change is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expect {
    Absent,
    Exists,
    /// Last written at this revision.
    ModRevision(u64),
    /// Created at this revision: the same object, however often changed since.
    CreateRevision(u64),
}

/// Why a Change was not applied: the first precondition that did not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{key}: expected {expect:?}, found {}", match .found { Some(r) => format!("revision {r}"), None => "nothing".into() })]
pub struct Conflict {
    pub key: Key,
    pub expect: Expect,
    /// The key's mod revision; `None` if it does not exist.
    pub found: Option<u64>,
}
