//! A log while no replica runs on it: what it holds, and how a new one begins.

use std::io;
use std::path::Path;

use crate::codec::{self, LogIdForm, VoteForm};
use crate::disk::{Db, Disk, DiskError, Durability, StoreMeta, WriteBatch};
use crate::types::{Entry, LogId, Vote};

use super::MAX_READ_BYTES;
use super::reader;
use super::tail::Tail;
use super::writer::{COMMITTED_KEY, PURGED_KEY, VOTE_KEY};

/// A log that is only read.
pub(crate) struct Offline {
    db: Db,
    tail: Tail,
}

impl Offline {
    pub fn open(path: &Path, meta: &StoreMeta, disk: &Disk) -> Result<Self, DiskError> {
        let db = disk.database(path, Durability::Commit, meta)?;
        let tail = reader::load(&db, path)?;
        Ok(Self { db, tail })
    }

    pub fn last(&self) -> Option<LogId> {
        self.tail.last()
    }

    pub fn vote(&self) -> Option<Vote> {
        self.tail.vote
    }

    /// Some of the entries from `from` on; none if there are no more.
    pub fn entries(&self, from: u64) -> io::Result<Vec<Entry>> {
        reader::read_disk(&self.db, from..u64::MAX, MAX_READ_BYTES)
    }
}

/// Makes an empty log that goes on after `last`, with `vote` given.
pub(crate) fn begin(
    path: &Path,
    meta: &StoreMeta,
    last: LogIdForm,
    vote: VoteForm,
    disk: &Disk,
) -> Result<(), DiskError> {
    let damaged = |e: codec::CodecError| DiskError::damaged(path, e);
    let db = disk.database(path, Durability::Commit, meta)?;
    let mut batch = WriteBatch::default();
    batch.put(PURGED_KEY, codec::encode(&last).map_err(damaged)?);
    batch.put(COMMITTED_KEY, codec::encode(&last).map_err(damaged)?);
    batch.put(VOTE_KEY, codec::encode(&vote).map_err(damaged)?);
    db.write(batch).and_then(|()| db.flush()).map_err(DiskError::db(path))
}
