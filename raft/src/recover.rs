//! Going on alone: a replica whose peers are gone for good begins a new cluster epoch as its only voter.
//!
//! Invariant: the old life goes on unharmed until one rename has made the new one valid.
//! Invariant: everything in the replica's log is kept, committed or not: nobody is left who could say otherwise.

use std::collections::BTreeSet;
use std::path::Path;

use openraft::entry::RaftEntry;

use crate::codec::{LogIdForm, VoteForm};
use crate::disk::{Disk, DiskError, StoreMeta};
use crate::epoch::{EpochId, REVISION_JUMP};
use crate::log::{self, Offline};
use crate::refill;
use crate::snapshot::{Places, SnapshotDir};
use crate::state::State;
use crate::types::{LogId, Membership, NodeId, StoredMembership, term_of};

/// What a replica that does not run knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remains {
    pub epoch: EpochId,
    /// The last revision that the state or the log has.
    pub revision: u64,
    pub voters: BTreeSet<NodeId>,
    pub learners: BTreeSet<NodeId>,
    /// When the last entry that was applied here was proposed, in milliseconds since 1970.
    pub last_write_ms: u64,
    /// Entries of the log that the state did not have.
    pub unapplied: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    #[error("the replica cannot be read or written")]
    Disk(#[from] DiskError),
    #[error("this replica holds nothing: it has never heard from its cluster")]
    Empty,
    #[error("an entry of the log cannot be applied")]
    Apply(#[source] std::io::Error),
}

/// Looks at the replica in `dir`, which no process may have open.
///
/// # Errors
/// If it is damaged or empty.
pub fn inspect(dir: &Path, cluster: &str, id: NodeId) -> Result<Remains, RecoverError> {
    let stopped = Stopped::open(dir, cluster, id)?;
    let (_copy, state, unapplied) = stopped.copy()?;
    Ok(Remains { unapplied, ..remains(&state) })
}

/// Makes the replica in `dir`, which no process may have open, the sole voter of a new epoch, and tells what that epoch
/// begins with.
///
/// # Errors
/// If it is damaged or empty, or cannot be written; it is then as it was.
pub fn recover(dir: &Path, cluster: &str, id: NodeId) -> Result<Remains, RecoverError> {
    let stopped = Stopped::open(dir, cluster, id)?;
    stopped.begin_epoch()
}

struct Stopped<'a> {
    dir: &'a Path,
    cluster: &'a str,
    id: NodeId,
    disk: Disk,
    log: Offline,
    state: State,
}

impl<'a> Stopped<'a> {
    fn open(dir: &'a Path, cluster: &'a str, id: NodeId) -> Result<Self, RecoverError> {
        if !dir.is_dir() {
            return Err(RecoverError::Empty);
        }
        let disk = Disk::default();
        let places = Places::find(dir, &disk)?;
        let state = State::open(&places.state, cluster, &disk)?;
        let log = Offline::open(&places.log, &StoreMeta::new(cluster, Some(id)), &disk)?;
        // A state that was not flushed may have nothing of what the log has.
        if state.epoch().is_none() || (state.header().applied.is_none() && log.last().is_none()) {
            return Err(RecoverError::Empty);
        }
        Ok(Self { dir, cluster, id, disk, log, state })
    }

    /// A copy of the state with everything that the log holds beyond it; how many entries that was.
    fn copy(&self) -> Result<(SnapshotDir, State, u64), RecoverError> {
        let copy = SnapshotDir::checkpoint(self.dir, &self.state, &self.disk)?;
        let state = State::open(copy.path(), self.cluster, &self.disk)?;
        let applied = state.header().applied.map(LogId::from);
        if log::is_overtaken(self.log.last(), applied) {
            return Ok((copy, state, 0));
        }
        let begin = applied.map_or(0, |id| id.index() + 1);
        let mut next = begin;
        loop {
            let entries = self.log.entries(next).map_err(RecoverError::Apply)?;
            let Some(last) = entries.last() else { return Ok((copy, state, next - begin)) };
            next = last.index() + 1;
            for entry in &entries {
                state.apply(entry).map_err(|e| RecoverError::Apply(e.into()))?;
            }
        }
    }

    /// Prepares a state and a log of the next epoch beside the present ones and changes over.
    fn begin_epoch(self) -> Result<Remains, RecoverError> {
        let (copy, state, unapplied) = self.copy()?;
        let header = state.header();
        let last = || DiskError::damaged(self.dir, format!("its epoch, {}, cannot be", self.state.epoch()));
        let epoch = self.state.epoch().next().ok_or_else(last)?;
        let at: LogId = self.log.last().max(header.applied.map(LogId::from)).ok_or(RecoverError::Empty)?;
        let given = self.log.vote().map_or(0, |vote| vote.leader_id.term);
        let vote = VoteForm { term: given.max(term_of(&at)) + 1, node: self.id, committed: false };
        let at = LogIdForm::from(&at);

        let revision = header.revision.saturating_add(REVISION_JUMP);
        state.begin_epoch(epoch, at, self.id, revision, header.now_ms)?;
        drop(state);
        let log = Places::fresh_log(self.dir);
        let meta = StoreMeta { epoch, ..StoreMeta::new(self.cluster, Some(self.id)) };
        log::begin(&log, &meta, at, vote, &self.disk)?;
        copy.promote_with(self.dir, log)?;
        // It was short of what the epoch before had; of this one it is all there is.
        refill::forget(self.dir, &self.disk)?;
        Ok(Remains {
            epoch,
            revision,
            voters: [self.id].into(),
            learners: BTreeSet::new(),
            last_write_ms: header.now_ms,
            unapplied,
        })
    }
}

fn remains(state: &State) -> Remains {
    let header = state.header();
    let membership = StoredMembership::from(header.membership.clone());
    let membership: &Membership = membership.membership();
    Remains {
        epoch: state.epoch(),
        revision: header.revision,
        voters: membership.voter_ids().collect(),
        learners: membership.learner_ids().collect(),
        last_write_ms: header.now_ms,
        unapplied: 0,
    }
}

#[cfg(test)]
mod tests {
    use flotilla_api::{Change, GroupResource, Key};
    use openraft::EntryPayload;
    use openraft::storage::RaftLogStorageExt;
    use tempfile::TempDir;

    use super::*;
    use crate::command::{Batch, EventBounds};
    use crate::epoch::EpochId;
    use crate::log::Log;
    use crate::types::{Entry, log_id};

    const ID: NodeId = 1;

    fn key(index: u64) -> Key {
        Key::new(&GroupResource::new("", "pods"), "", &format!("k{index}"))
    }

    /// A replica of the first epoch that has applied nothing of the `count` entries in its log.
    async fn with_empty_state(count: u64) -> TempDir {
        let dir = TempDir::new().unwrap();
        let disk = Disk::default();
        let mut places = Places::find(dir.path(), &disk).unwrap();
        State::open(&places.state, "c", &disk).unwrap().set_epoch(EpochId::FIRST).unwrap();
        let mut log = Log::open(&places.log, &StoreMeta::new("c", Some(ID)), &disk).unwrap();
        log.set_epoch(EpochId::FIRST).unwrap();
        if count > 0 {
            log.blocking_append((0..count).map(|index| entry(1, index))).await.unwrap();
        }
        log.close().await;
        places.keep(dir.path(), &disk).unwrap();
        dir
    }

    /// Writes one key, another one for each index.
    fn entry(term: u64, index: u64) -> Entry {
        let changes = vec![Change::new("u", "m").put(key(index), "x".into())];
        let events = EventBounds { max_count: 1, max_age_ms: 1 };
        let batch = Batch { version: 1, now_ms: index, events, compact: None, raise: None, changes };
        Entry::new(log_id(term, index), EntryPayload::Normal(batch.encode().unwrap()))
    }

    /// A replica that was killed when the leader of the second term had replaced its third entry and the state was on disk,
    /// but not the log.
    async fn killed_before_its_log_was_written() -> TempDir {
        let dir = with_empty_state(5).await;
        let disk = Disk::default();
        let state = State::open(&Places::find(dir.path(), &disk).unwrap().state, "c", &disk).unwrap();
        for entry in [entry(1, 0), entry(1, 1), entry(2, 2)] {
            state.apply(&entry).unwrap();
        }
        state.flush().unwrap();
        dir
    }

    #[tokio::test]
    async fn what_was_replaced_before_a_crash_is_never_applied() {
        let dir = killed_before_its_log_was_written().await;
        let before = inspect(dir.path(), "c", ID).unwrap();
        assert_eq!((before.revision, before.unapplied), (3, 0));
        let begun = recover(dir.path(), "c", ID).unwrap();
        assert_eq!((begun.unapplied, begun.revision), (0, 3 + REVISION_JUMP));
    }

    #[tokio::test]
    async fn an_empty_state_takes_all_from_the_log() {
        let dir = with_empty_state(3).await;
        let before = inspect(dir.path(), "c", ID).unwrap();
        assert_eq!((before.epoch, before.revision), (EpochId::FIRST, 3));
        let begun = recover(dir.path(), "c", ID).unwrap();
        assert_eq!((begun.unapplied, begun.revision, begun.epoch.life()), (3, 3 + REVISION_JUMP, 2));
        let disk = Disk::default();
        let state = State::open(&Places::find(dir.path(), &disk).unwrap().state, "c", &disk).unwrap();
        assert!((0..3).all(|index| state.get(&key(index)).unwrap().is_some()));
    }

    #[tokio::test]
    async fn an_empty_state_beside_an_empty_log_cannot_recover() {
        let dir = with_empty_state(0).await;
        for _ in 0..2 {
            assert!(matches!(recover(dir.path(), "c", ID), Err(RecoverError::Empty)));
        }
        assert!(matches!(inspect(dir.path(), "c", ID), Err(RecoverError::Empty)));
    }
}
