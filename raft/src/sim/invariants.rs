//! What must hold at every write of every machine, checked as it is written.
//!
//! Invariant: these predicates look at what reaches the disks alone, so that they hold whatever the code in between
//! believes.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;

use crate::codec::{self, EntryForm, LogIdForm, VoteForm};
use crate::disk::WriteOp;
use crate::state::record::{Header, Past};
use crate::types::NodeId;

use super::database::{Map, digest, encode};
use super::world::World;

/// An entry, told apart from every other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    term: u64,
    digest: u64,
}

/// What a machine has on its disk, as its writes made it.
#[derive(Default)]
struct Replica {
    log: BTreeMap<u64, Mark>,
    purged: u64,
    vote: Option<VoteForm>,
    applied: Option<LogIdForm>,
    revision: u64,
}

/// An entry that some machine has applied, and what it did there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Applied {
    term: u64,
    effects: u64,
}

/// One key written: which, and its new value.
pub(super) type Written = (String, Option<Bytes>);

#[derive(Default)]
pub(super) struct Invariants {
    replicas: BTreeMap<NodeId, Replica>,
    /// Who leads each term.
    leaders: BTreeMap<u64, NodeId>,
    /// Every entry by term and index: what it holds, and the term of the one before it.
    entries: BTreeMap<(u64, u64), (u64, Option<u64>)>,
    applied: BTreeMap<u64, Applied>,
    /// By the time an entry was applied anywhere, this term had begun.
    applied_in: BTreeMap<u64, u64>,
    /// What each revision wrote.
    pub truth: BTreeMap<u64, Written>,
}

fn number(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(key.get(1..9)?.try_into().ok()?))
}

fn kind(path: &Path) -> &str {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.split('-').next().unwrap_or_default()
}

impl Invariants {
    /// A database has been opened, and this is in it.
    pub fn opened(&mut self, world: &World, node: NodeId, path: &Path, map: &Map) {
        match kind(path) {
            "log" => self.log_opened(world, node, map),
            "state" => self.state_opened(world, node, map),
            _ => {}
        }
    }

    fn log_opened(&mut self, world: &World, node: NodeId, map: &Map) {
        let replica = self.replicas.entry(node).or_default();
        let vote = map.get(b"mvote".as_slice()).and_then(|bytes| codec::decode::<VoteForm>(bytes).ok());
        if vote.map(|v| v.term) < replica.vote.map(|v| v.term) {
            world.violation(format_args!("node {node} forgot its vote {:?}, it has {vote:?}", replica.vote));
        }
        let purged = map.get(b"mpurged".as_slice()).and_then(|bytes| codec::decode::<LogIdForm>(bytes).ok());
        let entries = map.range(b"l".to_vec()..b"m".to_vec());
        let log = entries.filter_map(|(key, value)| Some((number(key)?, mark(value)?))).collect();
        *replica = Replica { log, purged: purged.map_or(0, |id| id.index), vote, ..Replica::default() };
    }

    fn state_opened(&mut self, world: &World, node: NodeId, map: &Map) {
        let replica = self.replicas.entry(node).or_default();
        let stored = map.get(b"mstate".as_slice());
        let header = stored.and_then(|bytes| codec::decode::<Header>(bytes).ok()).unwrap_or_default();
        let index = header.applied.map_or(0, |id| id.index);
        if index < replica.purged {
            world
                .violation(format_args!("node {node} has a state at {index}, its log begins after {}", replica.purged));
        }
        (replica.applied, replica.revision) = (header.applied, header.revision);
    }

    /// A batch has been written.
    pub fn written(&mut self, world: &World, node: NodeId, path: &Path, ops: &[WriteOp]) {
        match kind(path) {
            "log" => ops.iter().for_each(|op| self.log_written(world, node, op)),
            "state" => self.state_written(world, node, ops),
            _ => {}
        }
    }

    fn log_written(&mut self, world: &World, node: NodeId, op: &WriteOp) {
        match op {
            WriteOp::Put(key, value) if key.starts_with(b"l") => {
                if let (Some(index), Some(mark)) = (number(key), mark(value)) {
                    self.entry(world, node, index, mark);
                }
            }
            WriteOp::Put(key, value) if key == b"mvote" => {
                if let Ok(vote) = codec::decode(value) {
                    self.vote(world, node, vote);
                }
            }
            WriteOp::Put(key, value) if key == b"mpurged" => {
                if let Ok(id) = codec::decode::<LogIdForm>(value) {
                    let replica = self.replicas.entry(node).or_default();
                    replica.purged = replica.purged.max(id.index);
                    replica.log = replica.log.split_off(&(id.index + 1));
                }
            }
            WriteOp::DeleteRange(from, to) if to == b"m" => {
                let from = number(from).unwrap_or_default();
                let gone = self.replicas.entry(node).or_default().log.split_off(&from);
                for (index, mark) in gone {
                    if self.applied.get(&index).is_some_and(|applied| applied.term == mark.term) {
                        world.violation(format_args!("node {node} truncates entry {index}, which has been applied"));
                    }
                }
            }
            _ => {}
        }
    }

    /// Log matching: the same term and index means the same entry, after the same entry.
    fn entry(&mut self, world: &World, node: NodeId, index: u64, mark: Mark) {
        let replica = self.replicas.entry(node).or_default();
        let before = index.checked_sub(1).and_then(|at| replica.log.get(&at)).map(|mark| mark.term);
        if let Some(last) = replica.log.last_key_value().map(|(index, _)| *index)
            && last + 1 != index
        {
            world.violation(format_args!("node {node} appends entry {index} after {last}"));
        }
        replica.log.insert(index, mark);
        let known = self.entries.entry((mark.term, index)).or_insert((mark.digest, before));
        known.1 = known.1.or(before);
        if known.0 != mark.digest || before.is_some_and(|before| known.1 != Some(before)) {
            world.violation(format_args!("node {node} has another entry {index} of term {}", mark.term));
        }
    }

    /// Election safety, leader completeness, and votes that only grow.
    fn vote(&mut self, world: &World, node: NodeId, vote: VoteForm) {
        let replica = self.replicas.entry(node).or_default();
        if let Some(before) = replica.vote {
            let again = before.term == vote.term;
            // Whoever stood for election itself follows the one that a quorum elected in that term.
            let changed = match (before.committed, vote.committed) {
                (false, true) => false,
                (true, false) => true,
                _ => before.node != vote.node,
            };
            if vote.term < before.term || (again && changed) {
                world.violation(format_args!("node {node} voted {before:?} and then {vote:?}"));
            }
        }
        replica.vote = Some(vote);
        if !vote.committed {
            return;
        }
        let leader = *self.leaders.entry(vote.term).or_insert(vote.node);
        if leader != vote.node {
            world.violation(format_args!("term {} has two leaders, {leader} and {}", vote.term, vote.node));
        }
        if vote.node == node {
            self.complete(world, node, vote.term);
        }
    }

    fn complete(&self, world: &World, leader: NodeId, term: u64) {
        let replica = &self.replicas[&leader];
        let begins = replica.purged.max(replica.applied.map_or(0, |id| id.index));
        for (index, applied) in self.applied.range(begins + 1..) {
            let earlier = self.applied_in[index] < term;
            if earlier && replica.log.get(index).map(|mark| mark.term) != Some(applied.term) {
                world.violation(format_args!("the leader {leader} of term {term} lacks the applied entry {index}"));
            }
        }
    }

    /// State-machine safety: one entry after the other, with the same effects everywhere.
    fn state_written(&mut self, world: &World, node: NodeId, ops: &[WriteOp]) {
        let header = ops.iter().find_map(|op| match op {
            WriteOp::Put(key, value) if key == b"mstate" => codec::decode::<Header>(value).ok(),
            _ => None,
        });
        let Some((header, Some(id))) = header.map(|header| (header.clone(), header.applied)) else { return };
        let replica = self.replicas.entry(node).or_default();
        if let Some(before) = replica.applied
            && (before.index + 1 != id.index || before.term > id.term)
        {
            world.violation(format_args!("node {node} applies {id:?} after {before:?}"));
        }
        let (revision, term) = (replica.revision, replica.vote.map_or(0, |vote| vote.term));
        (replica.applied, replica.revision) = (Some(id), header.revision);
        let now = Applied { term: id.term, effects: digest(&encode(ops)) };
        match self.applied.get(&id.index) {
            Some(known) if *known != now => {
                world.violation(format_args!("node {node} applies {now:?} at {}, where it was {known:?}", id.index));
            }
            Some(_) => {}
            None => {
                self.applied.insert(id.index, now);
                self.applied_in.insert(id.index, term);
                self.learn(world, node, revision, header.revision, ops);
            }
        }
    }

    /// One revision for each key written.
    fn learn(&mut self, world: &World, node: NodeId, before: u64, after: u64, ops: &[WriteOp]) {
        for op in ops {
            let WriteOp::Put(key, value) = op else { continue };
            let (b'h', Some(revision)) = (key[0], number(key)) else { continue };
            let Ok(past) = codec::decode::<Past>(value) else { continue };
            let written = (past.key.as_str().to_owned(), past.new.map(|new| new.value));
            let fresh = self.truth.insert(revision, written).is_none();
            if !fresh || revision <= before || revision > after {
                world.violation(format_args!("node {node} takes revision {revision} between {before} and {after}"));
            }
        }
    }

    /// The last index that any machine has applied.
    pub fn last_applied(&self) -> u64 {
        self.applied.last_key_value().map_or(0, |(index, _)| *index)
    }

    /// How many terms had a leader.
    pub fn terms(&self) -> usize {
        self.leaders.len()
    }
}

fn mark(value: &[u8]) -> Option<Mark> {
    let entry: EntryForm = codec::decode(value).ok()?;
    Some(Mark { term: entry.id.term, digest: digest(value) })
}
