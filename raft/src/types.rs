//! The one place that tells openraft which types to use, so that the rest of the crate names ours.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use openraft::impls::{BoxedErrorSource, InlineBatch, leader_id_std};
use openraft::raft::responder::Responder;
use openraft::vote::RaftLeaderId;
use openraft::{OptionalSend, RaftTypeConfig};
use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::outcome::Outcome;
use crate::runtime::Runtime;

/// A data directory's random id, never 0. A wiped directory is a new member.
pub type NodeId = u64;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Types;

impl RaftTypeConfig for Types {
    type D = Command;
    type R = Answer;
    type NodeId = NodeId;
    type Node = ();
    type Term = u64;
    /// At most one leader a term, so that a term names its leader and can fence a deposed one.
    type LeaderId = leader_id_std::LeaderId<u64, NodeId>;
    type Vote = openraft::impls::Vote<Self::LeaderId>;
    type Payload = openraft::EntryPayload<Command, NodeId, ()>;
    type Entry = openraft::Entry<<Self::LeaderId as RaftLeaderId>::Committed, Self::Payload>;
    type Responder<T>
        = Fate<T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type AsyncRuntime = Runtime;
    type ErrorSource = BoxedErrorSource;
}

/// What is done with the answer to a request, right where that becomes known: no task has to wake for it. Dropped if there
/// is none.
pub(crate) struct Fate<T>(Box<dyn FnOnce(T) + Send>);

impl<T> Fate<T> {
    pub fn new(told: impl FnOnce(T) + Send + 'static) -> Self {
        Self(Box::new(told))
    }
}

impl<T: OptionalSend + 'static> Responder<Types, T> for Fate<T> {
    fn on_complete(self, answer: T) {
        (self.0)(answer);
    }
}

/// What a log entry carries: a batch of Changes, encoded once by the leader's batcher.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Command(pub Bytes);

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Command({} bytes)", self.0.len())
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The outcome of each Change of a command, in order.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Answer(pub Vec<Outcome>);

pub(crate) type Raft = openraft::Raft<Types, Arc<Machine>>;
pub(crate) type Entry = openraft::alias::EntryOf<Types>;
pub(crate) type LogId = openraft::alias::LogIdOf<Types>;
pub(crate) type Vote = openraft::alias::VoteOf<Types>;
pub(crate) type Membership = openraft::Membership<NodeId, ()>;
pub(crate) type StoredMembership = openraft::alias::StoredMembershipOf<Types>;
pub(crate) type SnapshotMeta = openraft::alias::SnapshotMetaOf<Types>;

/// A log id from its two numbers.
pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    LogId::new_term_index(term, index)
}

/// The term that a log id was written in.
pub(crate) fn term_of(id: &LogId) -> u64 {
    **id.committed_leader_id()
}
