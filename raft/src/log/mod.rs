//! The Raft log and the vote, on disk before they count.
//!
//! Entries are readable as soon as they are appended, from a tail that is kept in memory, and are
//! acknowledged when the writer thread has synced them. One sync takes everything that waited.
//!
//! Invariant: writes reach the disk in the order in which they were made.
//! Invariant: an entry leaves the tail only after it is on disk.

mod offline;
mod reader;
mod tail;
#[cfg(test)]
mod tests;
mod writer;

use std::io;
use std::ops::RangeBounds;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::{Stream, TryStreamExt, stream};
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, RaftLogReader};
use tokio::sync::oneshot;

use crate::codec::{LogIdForm, VoteForm};
use crate::disk::{Db, Disk, DiskError, Durability, StoreMeta};
use crate::epoch::EpochId;
use crate::types::{Entry, LogId, Types, Vote};

pub(crate) use offline::{Offline, begin};
use tail::Tail;
use writer::{Op, Writer};

/// A read for replication takes at most this much at once.
const MAX_READ_BYTES: usize = 2 << 20;

/// A cheap handle on the log.
#[derive(Clone)]
pub(crate) struct Log {
    inner: Arc<Inner>,
}

struct Inner {
    db: Arc<Db>,
    tail: Mutex<Tail>,
    writer: Writer,
}

impl Log {
    /// Opens the log, drops a torn record at its end, and checks that it has no hole.
    pub fn open(path: &Path, meta: &StoreMeta, disk: &Disk) -> Result<Self, DiskError> {
        let db = Arc::new(disk.database(path, Durability::Commit, meta)?);
        let tail = reader::load(&db, path)?;
        let writer = Writer::start(db.clone()).map_err(DiskError::io(path))?;
        Ok(Self { inner: Arc::new(Inner { db, tail: Mutex::new(tail), writer }) })
    }

    /// The cluster epoch it belongs to; none while there is nothing in it.
    pub fn epoch(&self) -> EpochId {
        self.inner.db.epoch()
    }

    pub fn set_epoch(&self, epoch: EpochId) -> Result<(), DiskError> {
        self.inner.db.set_epoch(epoch)
    }

    /// How long the write that is under way has taken; zero when the disk is idle.
    pub fn stalled_for(&self) -> Duration {
        self.inner.writer.stalled_for()
    }

    /// Bytes of the entries that have not been purged.
    pub fn retained_bytes(&self) -> u64 {
        self.tail().retained_bytes()
    }

    /// The greatest index such that purging up to it leaves at most `keep_bytes`.
    pub fn purge_point(&self, keep_bytes: u64) -> Option<u64> {
        self.tail().purge_point(keep_bytes)
    }

    /// Lets go of entries in whose place others were committed and `applied`, which a crash kept out of this log.
    ///
    /// openraft has entries applied before they are on the disk of the replica that applies them, if a quorum has them.
    pub async fn drop_overtaken(&self, applied: Option<LogId>) -> io::Result<()> {
        let purged = {
            let tail = self.tail();
            if !is_overtaken(tail.last(), applied) {
                return Ok(());
            }
            tail.purged()
        };
        tracing::warn!(?applied, "the log's end was replaced before a crash: it is dropped");
        self.clone().truncate_after(purged).await
    }

    /// Writes what is committed, if no entry has come since with which it would have been.
    pub async fn save_rest(&self) {
        let committed = self.tail().unsaved();
        if let Some(id) = committed {
            // A writer that has failed has told so.
            _ = self.submit(Op::Committed(LogIdForm::from(&id))).await;
        }
    }

    /// Waits until everything queued is on disk and ends the writer.
    pub async fn close(&self) {
        self.save_rest().await;
        self.inner.writer.close().await;
    }

    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.inner.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn submit(&self, op: Op) -> io::Result<()> {
        self.inner.writer.submit(op).await
    }
}

/// Whether a log that ends with `last` goes on otherwise than what was applied. If it only ends before, it does not.
pub(crate) fn is_overtaken(last: Option<LogId>, applied: Option<LogId>) -> bool {
    last < applied && last.map(|id| id.index()) >= applied.map(|id| id.index())
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + std::fmt::Debug + Send,
    {
        reader::read(&self.inner.db, &self.inner.tail, reader::bounds(&range), usize::MAX).await
    }

    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = io::Result<Entry>> + Send
    where
        RB: RangeBounds<u64> + Clone + std::fmt::Debug + Send,
    {
        let range = reader::bounds(&range);
        let pieces = stream::try_unfold((self.inner.clone(), range), |(inner, range)| async move {
            let entries = reader::read(&inner.db, &inner.tail, range.clone(), MAX_READ_BYTES).await?;
            let Some(last) = entries.last().map(RaftEntry::index) else { return Ok::<_, io::Error>(None) };
            let piece = stream::iter(entries.into_iter().map(Ok));
            Ok(Some((piece, (inner, last + 1..range.end))))
        });
        pieces.try_flatten()
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        reader::read(&self.inner.db, &self.inner.tail, start..end, MAX_READ_BYTES).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.tail().vote)
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let tail = self.tail();
        Ok(LogState { last_purged_log_id: tail.purged(), last_log_id: tail.last() })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let (done, saved) = oneshot::channel();
        self.tail().vote = Some(*vote);
        self.submit(Op::Vote(VoteForm::from(vote), done)).await?;
        saved.await.map_err(|_| io::Error::other("the log writer has ended"))?
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        // It is written with the entries that come next, or when none do: it only spares a start a part of the way.
        if let Some(id) = committed {
            self.tail().commit(id);
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.tail().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let (epoch, committed) = {
            let mut tail = self.tail();
            tail.append(&entries)?;
            (tail.epoch, tail.unsaved())
        };
        let inner = self.inner.clone();
        let last = entries.last().map(RaftEntry::index);
        let flushed = move |result: io::Result<()>| {
            if let (Ok(()), Some(last)) = (&result, last) {
                inner.tail.lock().unwrap_or_else(PoisonError::into_inner).flushed(epoch, last);
            }
            callback.io_completed(result);
        };
        self.submit(Op::Append(entries, committed.as_ref().map(LogIdForm::from), Box::new(flushed))).await
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let from = self.tail().truncate_after(last);
        self.submit(Op::Truncate { from }).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.tail().purge(upto);
        self.submit(Op::Purge(LogIdForm::from(&upto))).await
    }
}
