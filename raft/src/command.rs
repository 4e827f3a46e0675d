//! What the leader's batcher puts into one log entry.
//!
//! Invariant: everything that apply needs beside the store itself stands in here: the time, and the
//! bounds of the events' keyspace, so that replicas with other settings still apply alike.

use flotilla_api::Change;
use serde::{Deserialize, Serialize};

use crate::codec::{self, CodecError};
use crate::types::Command;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Batch {
    /// Milliseconds since 1970, read by the leader before it proposed.
    pub now_ms: u64,
    pub events: EventBounds,
    /// History up to and including this revision is forgotten.
    pub compact: Option<u64>,
    pub changes: Vec<Change>,
}

/// How much of the Event kind is kept; the oldest leave first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventBounds {
    pub max_count: u64,
    pub max_age_ms: u64,
}

impl Batch {
    pub fn encode(&self) -> Result<Command, CodecError> {
        Ok(Command(codec::encode(self)?.into()))
    }

    pub fn decode(command: &Command) -> Result<Self, CodecError> {
        codec::decode(&command.0)
    }
}
