//! What replicas say to each other: one request and its reply a call, frames on a stream.
//!
//! Invariant: nothing here names an address; a peer is an id that the transport has authenticated.

use std::collections::BTreeSet;

use flotilla_api::Change;
use serde::{Deserialize, Serialize};

use crate::codec::{EntryForm, LogIdForm, StoredMembershipForm, VoteForm};
use crate::epoch::EpochId;
use crate::outcome::Outcome;

/// A request, or the opening of a stream, and the epoch of the cluster that its sender belongs to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Addressed<T> {
    pub epoch: EpochId,
    pub body: T,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Heartbeats, and entries when no stream is used.
    Append(Append),
    Vote(VoteAsk),
    PreVote(VoteAsk),
    Transfer(Transfer),
    /// A follower's client proposed this.
    Propose(Change),
    /// Which log index a linearizable read must wait for.
    ReadIndex,
    AddReplica(u64),
    RemoveReplica(u64),
    TransferLeader(Option<u64>),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Reply {
    Append { result: AppendResult, low_space: bool, understands: u32 },
    Vote(VoteAnswer),
    Transfer { accepted: bool },
    Propose(Outcome),
    ReadIndex(u64),
    Done,
    Refused(Refusal),
}

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Refusal {
    /// Nothing happened; ask this node instead, if any.
    NotLeader(Option<u64>),
    /// Nothing happened: the disk of a voter is nearly full.
    NoSpace,
    /// Nothing happened: the request can never succeed as it stands.
    Invalid(String),
    /// It may or may not have happened.
    Unknown(String),
    /// Nothing happened, for this reason.
    Failed(String),
    /// Nothing happened: the sender belongs to another epoch than this one.
    Epoch(EpochId),
}

impl Request {
    /// Whether only a leader sends it.
    pub fn is_leaders(&self) -> bool {
        matches!(self, Request::Append(append) if append.vote.committed)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Append {
    pub vote: VoteForm,
    pub previous: Option<LogIdForm>,
    pub entries: Vec<EntryForm>,
    pub committed: Option<LogIdForm>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum AppendResult {
    /// Everything up to here is on the follower's disk.
    Flushed(Option<LogIdForm>),
    Conflict(LogIdForm),
    HigherVote(VoteForm),
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct VoteAsk {
    pub vote: VoteForm,
    pub last: Option<LogIdForm>,
    /// The leader itself asked for this election.
    pub transfer: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct VoteAnswer {
    pub vote: VoteForm,
    pub granted: bool,
    pub last: Option<LogIdForm>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Transfer {
    pub from: VoteForm,
    pub to: u64,
    pub last: Option<LogIdForm>,
}

/// The first frame of a stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Opening {
    /// Frames of [`Append`] follow, each answered in order by a frame of [`Reply::Append`].
    Log,
    /// The files follow in order, each as chunks and its digest; answered by one [`SnapshotReply`].
    Snapshot(SnapshotHeader),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SnapshotHeader {
    pub vote: VoteForm,
    pub last: Option<LogIdForm>,
    pub membership: StoredMembershipForm,
    pub files: Vec<SnapshotFile>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SnapshotFile {
    pub name: String,
    pub length_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum SnapshotReply {
    /// The receiver's vote; a higher one than the sender's means that it refused.
    Vote(VoteForm),
    Failed(String),
}

/// The ids of a set, for messages to people.
pub(crate) fn listed(ids: &BTreeSet<u64>) -> String {
    ids.iter().map(|id| format!("{id:016x}")).collect::<Vec<_>>().join(", ")
}
