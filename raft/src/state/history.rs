//! Reading history: for watchers that are behind, and to decide what to forget.

use crate::codec;
use crate::kv::Event;

use super::State;
use super::read::ReadError;
use super::record::{Past, past_key, revision_of};

/// A stretch of history.
#[derive(Debug, Default)]
pub(crate) struct Stretch {
    pub events: Vec<Event>,
    /// Everything up to this revision has been looked at.
    pub upto: u64,
}

/// How much history to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryBounds {
    pub max_revisions: u64,
    pub max_bytes: u64,
    pub max_age_ms: u64,
}

impl State {
    /// Events of keys with `prefix` from revision `from` on: whole Changes, until `max_events` are found,
    /// or `max_bytes` of any events are looked at.
    pub fn history(&self, prefix: &str, from: u64, max_events: usize, max_bytes: usize) -> Result<Stretch, ReadError> {
        let header = self.header();
        if from <= header.compacted {
            return Err(ReadError::Compacted { wanted: from, oldest: header.compacted + 1 });
        }
        let mut stretch = Stretch { events: Vec::new(), upto: from.saturating_sub(1) };
        let mut seen_bytes = 0_usize;
        for item in self.past(from) {
            let (revision, past, size_bytes) = item?;
            let change_begins = revision > stretch.upto;
            if change_begins && (stretch.events.len() >= max_events || seen_bytes >= max_bytes) {
                return self.intact(from, stretch);
            }
            seen_bytes += size_bytes;
            stretch.upto = stretch.upto.max(past.change_end);
            if past.key.as_str().starts_with(prefix) {
                stretch.events.extend(past.into_event(revision));
            }
        }
        stretch.upto = stretch.upto.max(header.revision);
        self.intact(from, stretch)
    }

    /// Refuses what a compaction may have eaten while it was read.
    fn intact(&self, from: u64, stretch: Stretch) -> Result<Stretch, ReadError> {
        match self.header().compacted {
            compacted if from <= compacted => Err(ReadError::Compacted { wanted: from, oldest: compacted + 1 }),
            _ => Ok(stretch),
        }
    }

    fn past(&self, from: u64) -> impl Iterator<Item = Result<(u64, Past, usize), ReadError>> {
        self.db.scan(&past_key(from), b"i").map(|item| {
            let (at, bytes) = item?;
            let revision = revision_of(&at).ok_or_else(|| ReadError::Damaged("a history key".into()))?;
            Ok((revision, codec::decode(&bytes)?, bytes.len()))
        })
    }

    /// The revision up to which history should be forgotten, if it exceeds its bounds.
    pub fn excess_history(&self, bounds: HistoryBounds, now_ms: u64) -> Result<Option<u64>, ReadError> {
        let header = self.header();
        let by_count = header.revision.saturating_sub(bounds.max_revisions);
        let keep_from_bytes = header.history_bytes.saturating_sub(bounds.max_bytes);
        let keep_from_ms = now_ms.saturating_sub(bounds.max_age_ms);
        let beyond = |past: &Past| past.history_bytes <= keep_from_bytes || past.time_ms < keep_from_ms;
        let (mut low, mut high) = (header.compacted.max(by_count), header.revision);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            match self.past(middle).next().transpose()? {
                Some((_, past, _)) if !beyond(&past) => high = middle - 1,
                Some((revision, past, _)) => low = past.change_end.max(revision).min(high).max(middle),
                None => high = middle - 1,
            }
        }
        Ok((low > header.compacted).then_some(low))
    }
}
