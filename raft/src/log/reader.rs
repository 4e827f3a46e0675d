//! Reading the log: at start from disk whole, afterwards from the tail in memory or from disk.

use std::collections::VecDeque;
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use openraft::entry::RaftEntry;

use crate::codec::{self, LogIdForm, VoteForm, decode_entry, entry_bytes};
use crate::disk::{Db, DiskError, Scan};
use crate::runtime;
use crate::types::{Entry, LogId, Vote};

use super::tail::Tail;
use super::writer::{COMMITTED_KEY, PURGED_KEY, VOTE_KEY, entry_key};

/// Reads what a previous run left. Every entry is decoded, so that damage is found here and now.
pub(super) fn load(db: &Db, path: &Path) -> Result<Tail, DiskError> {
    let damaged = |detail: String| DiskError::damaged(path, detail);
    let meta = |key: &[u8]| db.get(key).map_err(DiskError::db(path));
    let decode_id =
        |bytes: Bytes| codec::decode::<LogIdForm>(&bytes).map(LogId::from).map_err(|e| damaged(e.to_string()));
    let purged = meta(PURGED_KEY)?.map(decode_id).transpose()?;
    let committed = meta(COMMITTED_KEY)?.map(decode_id).transpose()?;
    let vote = meta(VOTE_KEY)?
        .map(|bytes| codec::decode::<VoteForm>(&bytes).map(Vote::from).map_err(|e| damaged(e.to_string())))
        .transpose()?;

    let first = purged.map_or(0, |id| id.index() + 1);
    let mut last = None;
    let mut sizes_bytes = VecDeque::new();
    for item in entries_from(db, first) {
        let (_, value) = item.map_err(DiskError::db(path))?;
        let entry = decode_entry(&value).map_err(|e| damaged(e.to_string()))?;
        let expected = first + sizes_bytes.len() as u64;
        if entry.index() != expected {
            return Err(damaged(format!("the log has entry {} where {expected} is due", entry.index())));
        }
        sizes_bytes.push_back(u32::try_from(entry_bytes(&entry)).unwrap_or(u32::MAX));
        last = Some(entry.log_id());
    }
    let mut tail = Tail::found(purged, last, sizes_bytes);
    tail.vote = vote;
    // A committed id beyond the log was saved before the entries that it names reached the disk.
    tail.committed = committed.filter(|id| Some(*id) <= tail.last());
    Ok(tail)
}

fn entries_from(db: &Db, first: u64) -> Scan<'_> {
    db.scan(&entry_key(first), b"m")
}

pub(super) fn bounds(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(n) => *n,
        Bound::Excluded(n) => n.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(n) => n.saturating_add(1),
        Bound::Excluded(n) => *n,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

/// The entries of `range` that the log has; from the second on only while they fit `max_bytes`.
pub(super) async fn read(
    db: &Arc<Db>,
    tail: &Mutex<Tail>,
    range: Range<u64>,
    max_bytes: usize,
) -> io::Result<Vec<Entry>> {
    let (on_disk, kept) = tail.lock().unwrap_or_else(PoisonError::into_inner).split(range);
    if on_disk.is_empty() {
        return Ok(limited(kept, max_bytes));
    }
    let db = db.clone();
    let wanted = on_disk.clone();
    let mut entries = runtime::blocking(move || read_disk(&db, wanted, max_bytes)).await??;
    let reached = entries.last().map_or(on_disk.start, |e: &Entry| e.index() + 1);
    if reached == on_disk.end {
        entries.extend(kept);
    } else if max_bytes == usize::MAX && !entries.is_empty() {
        let message = format!("the log ends at {reached}, before {}", on_disk.end);
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(limited(entries, max_bytes))
}

fn limited(mut entries: Vec<Entry>, max_bytes: usize) -> Vec<Entry> {
    let mut sum_bytes = 0_usize;
    let fitting = entries.iter().take_while(|entry| {
        sum_bytes = sum_bytes.saturating_add(entry_bytes(entry));
        sum_bytes <= max_bytes
    });
    let count = fitting.count().max(1);
    entries.truncate(count);
    entries
}

pub(super) fn read_disk(db: &Db, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<Entry>> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut sum_bytes = 0_usize;
    for item in entries_from(db, range.start) {
        let (_, value) = item.map_err(io::Error::other)?;
        let entry = decode_entry(&value)?;
        if entry.index() >= range.end || sum_bytes >= max_bytes {
            break;
        }
        if let Some(last) = entries.last()
            && entry.index() != last.index() + 1
        {
            let message = format!("the log has entry {} after {}", entry.index(), last.index());
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        sum_bytes = sum_bytes.saturating_add(value.len());
        entries.push(entry);
    }
    Ok(entries)
}
