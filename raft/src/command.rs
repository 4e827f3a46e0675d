//! What the leader's batcher puts into one log entry.
//!
//! Invariant: everything that apply needs beside the store itself stands in here: the time, and the
//! bounds of the events' keyspace, so that replicas with other settings still apply alike.
//! Invariant: the version stands first, so that a build which does not understand the rest says so.

use flotilla_api::Change;
use serde::{Deserialize, Serialize};

use crate::codec::{self, CodecError};
use crate::types::Command;

/// The newest set of commands that this build understands.
pub(crate) const COMMAND_VERSION: u32 = 1;

#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    #[error("a log entry takes commands of version {found}, this build understands {understood}: use a newer flotilla")]
    Newer { found: u32, understood: u32 },
    #[error("a log entry is damaged")]
    Codec(#[from] CodecError),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Batch {
    /// Which set of commands it takes to understand it.
    pub version: u32,
    /// Milliseconds since 1970, read by the leader before it proposed.
    pub now_ms: u64,
    pub events: EventBounds,
    /// History up to and including this revision is forgotten.
    pub compact: Option<u64>,
    /// From now on commands of this version may be proposed.
    pub raise: Option<u32>,
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

    pub fn decode(command: &Command, understood: u32) -> Result<Self, CommandError> {
        match codec::first(&command.0)? {
            found if found > understood => Err(CommandError::Newer { found, understood }),
            _ => Ok(codec::decode(&command.0)?),
        }
    }
}
