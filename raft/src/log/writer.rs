//! The thread that owns the log's disk.
//!
//! Everything that arrived while a sync was under way goes into the next one: the slower the disk,
//! the greater the groups.
//!
//! Invariant: after a failed write nothing more is written and everybody who waits is told.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use openraft::entry::RaftEntry;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::codec::{self, LogIdForm, VoteForm, encode_entry};
use crate::disk::{Db, WriteBatch};
use crate::runtime::Worker;
use crate::types::Entry;

pub(super) const VOTE_KEY: &[u8] = b"mvote";
pub(super) const COMMITTED_KEY: &[u8] = b"mcommitted";
pub(super) const PURGED_KEY: &[u8] = b"mpurged";

const QUEUED_OPS: usize = 1024;
const GROUP_BYTES: usize = 4 << 20;

/// Told once whether a write is on disk.
type Flushed = Box<dyn FnOnce(io::Result<()>) + Send>;

pub(super) enum Op {
    /// With what is committed, if more is than was written.
    Append(Vec<Entry>, Option<LogIdForm>, Flushed),
    Vote(VoteForm, oneshot::Sender<io::Result<()>>),
    Committed(LogIdForm),
    /// Everything from this index on is gone.
    Truncate {
        from: u64,
    },
    Purge(LogIdForm),
    /// Told when everything before it is on disk.
    Close(oneshot::Sender<()>),
}

pub(super) struct Writer {
    queue: mpsc::Sender<Op>,
    clock: Arc<Clock>,
    thread: Worker,
}

/// When the write that is under way began, in milliseconds since `origin`, plus one; 0 when idle.
struct Clock {
    origin: Instant,
    began_ms: AtomicU64,
}

impl Clock {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX - 1)
    }
}

pub(super) fn entry_key(index: u64) -> [u8; 9] {
    let mut key = [b'l'; 9];
    key[1..].copy_from_slice(&index.to_be_bytes());
    key
}

impl Writer {
    pub fn start(db: Arc<Db>) -> io::Result<Self> {
        let (queue, ops) = mpsc::channel(QUEUED_OPS);
        let clock = Arc::new(Clock { origin: Instant::now(), began_ms: AtomicU64::new(0) });
        let run = Run { db, ops, clock: clock.clone(), failed: None };
        Ok(Self { queue, clock, thread: Worker::start("raft-log", run.run())? })
    }

    pub async fn submit(&self, op: Op) -> io::Result<()> {
        self.queue.send(op).await.map_err(|_| io::Error::other("the log writer has ended"))
    }

    pub fn stalled_for(&self) -> Duration {
        match self.clock.began_ms.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            began => Duration::from_millis((self.clock.now_ms() + 1).saturating_sub(began)),
        }
    }

    pub async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.queue.send(Op::Close(done)).await.is_ok() {
            let _ = closed.await;
        }
        self.thread.ended().await;
    }
}

struct Run {
    db: Arc<Db>,
    ops: mpsc::Receiver<Op>,
    clock: Arc<Clock>,
    failed: Option<String>,
}

/// What is written with one sync, and who is told.
#[derive(Default)]
struct Group {
    batch: WriteBatch,
    flushed: Vec<Flushed>,
    closing: Option<oneshot::Sender<()>>,
}

impl Run {
    async fn run(mut self) {
        while let Some(op) = self.ops.recv().await {
            let mut group = Group::default();
            let mut added = group.add(op);
            while added.is_ok() && group.batch.size_bytes() < GROUP_BYTES && group.closing.is_none() {
                match self.ops.try_recv() {
                    Ok(op) => added = group.add(op),
                    Err(_) => break,
                }
            }
            let closing = group.closing.take();
            self.write(group, added).await;
            if let Some(done) = closing {
                let _ = done.send(());
                return;
            }
        }
    }

    async fn write(&mut self, group: Group, added: io::Result<()>) {
        let Group { batch, flushed, .. } = group;
        let result = match (&self.failed, added) {
            (Some(failed), _) => Err(io::Error::other(failed.clone())),
            (None, Err(error)) => Err(error),
            (None, Ok(())) => self.commit(batch).await,
        };
        if let Err(error) = &result
            && self.failed.is_none()
        {
            tracing::error!(%error, "the Raft log cannot be written");
            self.failed = Some(error.to_string());
        }
        for tell in flushed {
            tell(match &result {
                Ok(()) => Ok(()),
                Err(error) => Err(io::Error::other(error.to_string())),
            });
        }
    }

    async fn commit(&self, batch: WriteBatch) -> io::Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        self.clock.began_ms.store(self.clock.now_ms() + 1, Ordering::Relaxed);
        let result = self.db.commit(batch).await.map_err(io::Error::other);
        self.clock.began_ms.store(0, Ordering::Relaxed);
        result
    }
}

impl Group {
    fn add(&mut self, op: Op) -> io::Result<()> {
        match op {
            Op::Append(entries, committed, flushed) => {
                self.flushed.push(flushed);
                if let Some(id) = committed {
                    self.batch.put(COMMITTED_KEY, codec::encode(&id)?);
                }
                for entry in &entries {
                    self.batch.put(entry_key(entry.index()), encode_entry(entry)?);
                }
            }
            Op::Vote(vote, done) => {
                self.flushed.push(Box::new(move |result| drop(done.send(result))));
                self.batch.put(VOTE_KEY, codec::encode(&vote)?);
            }
            Op::Committed(id) => self.batch.put(COMMITTED_KEY, codec::encode(&id)?),
            Op::Truncate { from } => {
                self.batch.delete_range(entry_key(from), b"m");
            }
            Op::Purge(id) => {
                self.batch.delete_range(entry_key(0), entry_key(id.index.saturating_add(1)));
                self.batch.put(PURGED_KEY, codec::encode(&id)?);
            }
            Op::Close(done) => self.closing = Some(done),
        }
        Ok(())
    }
}
