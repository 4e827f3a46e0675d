//! The part of the log that is kept in memory, and where the log begins and ends.
//!
//! Invariant: the kept entries are the log's last ones, without a hole.
//! Invariant: beyond `KEPT_BYTES` only entries that are not yet on disk are kept.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;

use openraft::entry::RaftEntry;

use crate::codec::entry_bytes;
use crate::types::{Entry, LogId, Vote};

const KEPT_BYTES: u64 = 4 << 20;

#[derive(Debug, Default)]
pub(super) struct Tail {
    pub vote: Option<Vote>,
    pub committed: Option<LogId>,
    /// What is committed was not handed to the writer yet.
    is_unsaved: bool,
    purged: Option<LogId>,
    last: Option<LogId>,
    entries: VecDeque<Entry>,
    entries_bytes: u64,
    /// Of every entry after the purged one, so that the log can be bounded by bytes.
    sizes_bytes: VecDeque<u32>,
    retained_bytes: u64,
    flushed: u64,
    /// Counts truncations, so that a late report of a flush is not taken for the entries that came after.
    pub epoch: u64,
}

impl Tail {
    /// A log as it was found on disk: `sizes_bytes` of the entries after `purged` up to `last`.
    pub fn found(purged: Option<LogId>, last: Option<LogId>, sizes_bytes: VecDeque<u32>) -> Self {
        let retained_bytes = sizes_bytes.iter().map(|s| u64::from(*s)).sum();
        let flushed = last.map_or(0, |id| id.index());
        Self { purged, last: last.max(purged), sizes_bytes, retained_bytes, flushed, ..Self::default() }
    }

    pub fn commit(&mut self, id: LogId) {
        self.committed = Some(id);
        self.is_unsaved = true;
    }

    /// What is committed, once, if the writer has not been told.
    pub fn unsaved(&mut self) -> Option<LogId> {
        std::mem::take(&mut self.is_unsaved).then_some(self.committed).flatten()
    }

    pub fn purged(&self) -> Option<LogId> {
        self.purged
    }

    pub fn last(&self) -> Option<LogId> {
        self.last
    }

    pub fn retained_bytes(&self) -> u64 {
        self.retained_bytes
    }

    fn next_index(&self) -> u64 {
        self.last.map_or(0, |id| id.index() + 1)
    }

    fn first_index(&self) -> u64 {
        self.purged.map_or(0, |id| id.index() + 1)
    }

    /// Where the kept entries begin; the next index if there are none.
    fn kept_from(&self) -> u64 {
        self.entries.front().map_or(self.next_index(), RaftEntry::index)
    }

    pub fn append(&mut self, entries: &[Entry]) -> io::Result<()> {
        for entry in entries {
            if entry.index() != self.next_index() {
                let message = format!("entry {} does not follow {:?}", entry.index(), self.last);
                return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
            }
            let size_bytes = entry_bytes(entry);
            self.last = Some(entry.log_id());
            self.entries.push_back(entry.clone());
            self.entries_bytes += size_bytes as u64;
            self.sizes_bytes.push_back(u32::try_from(size_bytes).unwrap_or(u32::MAX));
            self.retained_bytes += size_bytes as u64;
        }
        Ok(())
    }

    /// Entries up to `index` that were appended in `epoch` are on disk.
    pub fn flushed(&mut self, epoch: u64, index: u64) {
        if epoch != self.epoch {
            return;
        }
        self.flushed = self.flushed.max(index);
        while self.entries_bytes > KEPT_BYTES && self.entries.front().is_some_and(|e| e.index() <= self.flushed) {
            self.drop_front();
        }
    }

    fn drop_front(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.entries_bytes -= entry_bytes(&entry) as u64;
        }
    }

    /// Returns the first index that is gone.
    pub fn truncate_after(&mut self, last: Option<LogId>) -> u64 {
        let from = last.map_or(0, |id| id.index() + 1);
        while self.entries.back().is_some_and(|e| e.index() >= from) {
            if let Some(entry) = self.entries.pop_back() {
                self.entries_bytes -= entry_bytes(&entry) as u64;
            }
        }
        while self.first_index() + self.sizes_bytes.len() as u64 > from {
            let Some(size) = self.sizes_bytes.pop_back() else { break };
            self.retained_bytes -= u64::from(size);
        }
        self.last = last.max(self.purged);
        self.flushed = self.flushed.min(from.saturating_sub(1));
        self.epoch += 1;
        from
    }

    pub fn purge(&mut self, upto: LogId) {
        if self.purged >= Some(upto) {
            return;
        }
        let first = self.first_index();
        for _ in first..=upto.index() {
            let Some(size) = self.sizes_bytes.pop_front() else { break };
            self.retained_bytes -= u64::from(size);
        }
        while self.entries.front().is_some_and(|e| e.index() <= upto.index()) {
            self.drop_front();
        }
        self.purged = Some(upto);
        self.last = self.last.max(self.purged);
    }

    /// The kept entries of `range`, and the part of it that must be read from disk first.
    pub fn split(&self, range: Range<u64>) -> (Range<u64>, Vec<Entry>) {
        let start = range.start.max(self.first_index());
        let end = range.end.min(self.next_index());
        let kept_from = self.kept_from();
        let on_disk = start..end.min(kept_from).max(start);
        let skip = start.max(kept_from) - kept_from;
        let take = end.saturating_sub(start.max(kept_from));
        let kept = self.entries.iter().skip(skip as usize).take(take as usize).cloned().collect();
        (on_disk, kept)
    }

    /// The greatest index such that purging up to it leaves at most `keep_bytes`.
    pub fn purge_point(&self, keep_bytes: u64) -> Option<u64> {
        let mut excess_bytes = self.retained_bytes.checked_sub(keep_bytes).filter(|b| *b > 0)?;
        let first = self.first_index();
        for (offset, size) in self.sizes_bytes.iter().enumerate() {
            excess_bytes = excess_bytes.saturating_sub(u64::from(*size));
            if excess_bytes == 0 {
                return Some(first + offset as u64);
            }
        }
        None
    }
}
