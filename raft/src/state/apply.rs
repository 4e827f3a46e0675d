//! Folding log entries into the state.
//!
//! Invariant: the result depends on the state and the entry alone; no clock, no randomness, no settings.
//! Invariant: a Change takes effect whole or not at all, and takes one revision for each write.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use flotilla_api::{Change, Conflict, Expect, Key, Write};
use openraft::EntryPayload;
use openraft::entry::RaftEntry;

use crate::codec;
use crate::command::{Batch, CommandError, EventBounds};
use crate::disk::{DbError, WriteBatch};
use crate::kv::Event;
use crate::limits;
use crate::outcome::{Applied, Outcome};
use crate::types::{Command, Entry, LogId, Membership, StoredMembership, term_of};

use super::record::{Current, Header, Past, aging_key, current_key, parse_aging_key, past_key};
use super::{HEADER_KEY, State};

/// At most this many old objects of the Event kind leave with one entry.
const MAX_AGED_OUT: usize = 1024;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    #[error("cannot read or write the state")]
    Disk(#[from] DbError),
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error("a record is damaged")]
    Codec(#[from] crate::codec::CodecError),
    #[error("the record of {0} is damaged")]
    Record(String),
}

impl From<ApplyError> for std::io::Error {
    fn from(error: ApplyError) -> Self {
        std::io::Error::other(error)
    }
}

/// What an entry did.
#[derive(Debug, Default)]
pub(crate) struct AppliedEntry {
    pub outcomes: Vec<Outcome>,
    /// In the order of their revisions.
    pub events: Vec<Event>,
}

impl State {
    /// Applies one entry: all of its effects are in the database when this returns, or none.
    pub fn apply(&self, entry: &Entry) -> Result<AppliedEntry, ApplyError> {
        let mut fold = Fold::new(self);
        fold.header.applied = Some((&entry.log_id()).into());
        match &entry.payload {
            EntryPayload::Blank => {}
            EntryPayload::Membership(membership) => fold.membership(entry.log_id(), membership),
            EntryPayload::Normal(command) => fold.command(term_of(&entry.log_id()), command)?,
        }
        fold.finish()
    }
}

struct Fold<'a> {
    state: &'a State,
    header: Header,
    batch: WriteBatch,
    /// What this entry has read or written; `None` is not there.
    seen: HashMap<Key, Option<Current>>,
    done: AppliedEntry,
}

impl<'a> Fold<'a> {
    fn new(state: &'a State) -> Self {
        Self {
            state,
            header: state.header().as_ref().clone(),
            batch: WriteBatch::default(),
            seen: HashMap::new(),
            done: AppliedEntry::default(),
        }
    }

    fn membership(&mut self, id: LogId, membership: &Membership) {
        self.header.membership = (&StoredMembership::new(Some(id), membership.clone())).into();
    }

    fn command(&mut self, term: u64, command: &Command) -> Result<(), ApplyError> {
        let batch = Batch::decode(command, self.state.understands)?;
        self.header.version = self.header.version.max(batch.raise.unwrap_or_default());
        self.header.now_ms = self.header.now_ms.max(batch.now_ms);
        self.age_out(batch.events)?;
        for change in batch.changes {
            let outcome = self.change(term, change)?;
            self.done.outcomes.push(outcome);
        }
        if let Some(revision) = batch.compact {
            self.compact(revision);
        }
        Ok(())
    }

    fn change(&mut self, term: u64, change: Change) -> Result<Outcome, ApplyError> {
        if let Some(wanted) = change.term
            && wanted != term
        {
            return Ok(Outcome::StaleTerm { wanted, current: term });
        }
        if let Err(complaint) = limits::check(&change) {
            return Ok(Outcome::Invalid(complaint));
        }
        for precondition in change.preconditions {
            let found = self.current(&precondition.key)?;
            if !holds(precondition.expect, found.as_ref()) {
                let found = found.map(|c| c.mod_revision);
                return Ok(Outcome::Conflict(Conflict { key: precondition.key, expect: precondition.expect, found }));
            }
        }
        let before = self.header.revision;
        let end = before + change.writes.len() as u64;
        for write in change.writes {
            self.write(write, end)?;
        }
        Ok(Outcome::Applied(Applied { first_revision: end.min(before + 1), revision: end }))
    }

    /// Makes one write, which takes the next revision; `end` is the last one of its Change.
    fn write(&mut self, write: Write, end: u64) -> Result<(), ApplyError> {
        self.header.revision += 1;
        let revision = self.header.revision;
        let old = self.current(write.key())?;
        let event = match write {
            Write::Put { key, value } => {
                let create_revision = old.as_ref().map_or(revision, |c| c.create_revision);
                let new = Current { create_revision, mod_revision: revision, time_ms: self.header.now_ms, value };
                self.keep_age(&key, old.as_ref(), Some(&new));
                self.batch.put(current_key(key.as_str()), new.encode());
                self.seen.insert(key.clone(), Some(new.clone()));
                Event::Put { prev: old.map(|c| c.into_kv(key.clone())), kv: new.into_kv(key) }
            }
            Write::Delete { key } => {
                let Some(old) = old else { return Ok(()) };
                self.keep_age(&key, Some(&old), None);
                self.batch.delete(current_key(key.as_str()));
                self.seen.insert(key.clone(), None);
                Event::Delete { key: key.clone(), revision, prev: old.into_kv(key) }
            }
        };
        self.header.history_bytes += event.size_bytes() as u64;
        let past = Past::new(&event, end, self.header.now_ms, self.header.history_bytes);
        self.batch.put(past_key(revision), codec::encode(&past)?);
        self.done.events.push(event);
        Ok(())
    }

    /// Keeps the count and the order by time of the Event kind's objects.
    fn keep_age(&mut self, key: &Key, old: Option<&Current>, new: Option<&Current>) {
        if !limits::is_event_kind(key) {
            return;
        }
        if let Some(old) = old {
            self.batch.delete(aging_key(old.time_ms, key.as_str()));
        }
        if let Some(new) = new {
            self.batch.put(aging_key(new.time_ms, key.as_str()), b"");
        }
        self.header.events_count += u64::from(new.is_some());
        self.header.events_count = self.header.events_count.saturating_sub(u64::from(old.is_some()));
    }

    /// Deletes the oldest objects of the Event kind that are beyond the bounds, before anything else of
    /// the entry, so that what the database holds is what there is.
    fn age_out(&mut self, bounds: EventBounds) -> Result<(), ApplyError> {
        let too_many = self.header.events_count.saturating_sub(bounds.max_count);
        let oldest_ms = self.header.now_ms.saturating_sub(bounds.max_age_ms);
        if too_many == 0 && self.state.events_since_ms.load(Ordering::Relaxed) >= oldest_ms {
            return Ok(());
        }
        let mut leaving = Vec::new();
        // Those that come from now on are written later than all that there are.
        let mut since_ms = self.header.now_ms;
        for item in self.state.db.scan(b"e", b"f").take(MAX_AGED_OUT) {
            let (bytes, _) = item?;
            let Some((time_ms, key)) = parse_aging_key(&bytes) else { break };
            if leaving.len() as u64 >= too_many && time_ms >= oldest_ms {
                since_ms = time_ms.min(since_ms);
                break;
            }
            since_ms = time_ms.min(since_ms);
            leaving.push(key);
        }
        self.state.events_since_ms.store(since_ms, Ordering::Relaxed);
        let end = self.header.revision + leaving.len() as u64;
        leaving.into_iter().try_for_each(|key| self.write(Write::Delete { key }, end))
    }

    fn compact(&mut self, revision: u64) {
        let revision = revision.min(self.header.revision);
        if revision > self.header.compacted {
            self.batch.delete_range(past_key(0), past_key(revision + 1));
            self.header.compacted = revision;
        }
    }

    fn current(&mut self, key: &Key) -> Result<Option<Current>, ApplyError> {
        if let Some(seen) = self.seen.get(key) {
            return Ok(seen.clone());
        }
        let current = self.state.current(key)?;
        self.seen.insert(key.clone(), current.clone());
        Ok(current)
    }

    fn finish(mut self) -> Result<AppliedEntry, ApplyError> {
        self.batch.put(HEADER_KEY, codec::encode(&self.header)?);
        self.state.db.write(self.batch)?;
        self.state.set_header(self.header);
        Ok(self.done)
    }
}

fn holds(expect: Expect, found: Option<&Current>) -> bool {
    match expect {
        Expect::Absent => found.is_none(),
        Expect::Exists => found.is_some(),
        Expect::ModRevision(revision) => found.is_some_and(|c| c.mod_revision == revision),
        Expect::CreateRevision(revision) => found.is_some_and(|c| c.create_revision == revision),
    }
}

impl State {
    pub(super) fn current(&self, key: &Key) -> Result<Option<Current>, ApplyError> {
        let Some(bytes) = self.db.get(&current_key(key.as_str()))? else { return Ok(None) };
        Current::decode(bytes).map(Some).ok_or_else(|| ApplyError::Record(key.to_string()))
    }
}
