//! What can go wrong for whoever uses the store.

use std::time::Duration;

use flotilla_api::Conflict;

use crate::disk::DiskError;
use crate::types::NodeId;
use crate::wire::Refusal;

/// The store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("a replica's id is never 0")]
    ZeroId,
    #[error("unusable settings: {0}")]
    Settings(String),
    #[error("Raft cannot start: {0}")]
    Raft(String),
}

/// A Change was not applied, or nobody knows.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ProposeError {
    #[error(transparent)]
    Conflict(Conflict),
    #[error("invalid change: {0}")]
    Invalid(String),
    /// The Change was made in an earlier term; its maker is no longer leader.
    #[error("made in term {wanted}, but the term is {current}")]
    StaleTerm { wanted: u64, current: u64 },
    #[error(
        "the disk of a voter is nearly full ('flotilla status' says whose): only changes that free space are taken"
    )]
    NoSpace,
    /// Not applied: no leader took it in this time.
    #[error("no leader took the change within {0:?}")]
    NoLeader(Duration),
    /// It may have been applied, or may still be.
    #[error("the outcome of the change is unknown: {0}")]
    Unknown(String),
    /// Not applied.
    #[error("the change was not taken: {0}")]
    Failed(String),
}

impl ProposeError {
    /// Whether the Change may have been applied all the same.
    pub fn outcome_unknown(&self) -> bool {
        matches!(self, Self::Unknown(_))
    }
}

/// A request about the cluster itself was not carried out.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("no leader took the request within {0:?}")]
    NoLeader(Duration),
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
    #[error("{0}")]
    Refused(String),
}

/// A peer's message was not answered.
#[derive(Debug, thiserror::Error)]
pub enum HandleError {
    #[error("malformed message from {from:016x}: {detail}")]
    Malformed { from: NodeId, detail: String },
    #[error("the stream from {from:016x} broke: {detail}")]
    Broken { from: NodeId, detail: String },
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Unknown(why) => Self::Unknown(why),
            Refusal::Failed(why) | Refusal::Invalid(why) => Self::Refused(why),
            Refusal::NoSpace => Self::Refused("the disk of a voter is nearly full".into()),
            Refusal::Epoch(epoch) => Self::Refused(format!("the leader is of another epoch, {epoch}")),
            Refusal::NotLeader(_) => Self::Refused("not the leader".into()),
        }
    }
}
