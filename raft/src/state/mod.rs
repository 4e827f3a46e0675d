//! The objects and their history, as the log's entries made them.
//!
//! One RocksDB database, told apart by the first byte of a key: `c` current objects, `h` history by
//! revision, `e` objects of the Event kind by time, `m` what the store knows about itself.
//!
//! Invariant: an entry's effects, its revisions and the applied log id are written in one batch, so that
//! a crash leaves a state that some prefix of the log made.
//! Invariant: there is no write-ahead log, since the Raft log has every entry that is not yet flushed; the state is flushed
//! before the Raft log is purged.

mod apply;
mod dump;
mod history;
mod read;
pub(crate) mod record;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::codec;
use crate::command::COMMAND_VERSION;
#[cfg(test)]
use crate::disk;
use crate::disk::{Db, DbError, Disk, DiskError, Durability, StoreMeta};
use crate::epoch::EpochId;

#[cfg(test)]
use apply::AppliedEntry;
pub(crate) use dump::Record;
pub use history::HistoryBounds;
pub use read::ReadError;
pub(crate) use read::Undone;
use record::Header;
#[cfg(any(test, fuzzing))]
pub(crate) use record::fuzz;
#[cfg(test)]
pub(crate) use tests::pin;

const HEADER_KEY: &[u8] = b"mstate";

/// One state database. A snapshot replaces it by another.
pub(crate) struct State {
    db: Db,
    header: Mutex<Arc<Header>>,
    /// No object of the Event kind was written before; there need not be one from then.
    events_since_ms: AtomicU64,
    /// The newest commands that can be applied.
    understands: u32,
    /// Dropped after the database is closed.
    dir: Dir,
}

/// A state's directory, which goes with it once another state has taken its place.
struct Dir {
    disk: Disk,
    path: PathBuf,
    replaced: AtomicBool,
}

impl State {
    pub fn open(path: &Path, cluster: &str, disk: &Disk) -> Result<Self, DiskError> {
        let db = disk.database(path, Durability::Flush, &StoreMeta::new(cluster, None))?;
        let stored = db.get(HEADER_KEY).map_err(DiskError::db(path))?;
        let header = match stored {
            Some(bytes) => codec::decode(&bytes).map_err(|e| DiskError::damaged(path, e))?,
            None => Header::default(),
        };
        let (header, understands) = (Mutex::new(Arc::new(header)), COMMAND_VERSION);
        let dir = Dir { disk: disk.clone(), path: path.to_owned(), replaced: AtomicBool::new(false) };
        Ok(Self { db, header, events_since_ms: AtomicU64::new(0), understands, dir })
    }

    /// Refuses a state for which newer commands were agreed on than `version`, and later such commands.
    pub fn understanding(self, version: u32) -> Result<Self, DiskError> {
        let found = self.version();
        if found > version {
            let path = self.path().display().to_string();
            return Err(DiskError::Newer { path, found, understood: version });
        }
        Ok(Self { understands: version, ..self })
    }

    /// The newest commands that may be proposed.
    pub fn version(&self) -> u32 {
        self.header().version.max(1)
    }

    /// What has been applied so far.
    pub fn header(&self) -> Arc<Header> {
        self.header.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_header(&self, header: Header) {
        *self.header.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(header);
    }

    /// The cluster epoch it belongs to; none while there is nothing in it.
    pub fn epoch(&self) -> EpochId {
        self.db.epoch()
    }

    pub fn set_epoch(&self, epoch: EpochId) -> Result<(), DiskError> {
        self.db.set_epoch(epoch)
    }

    pub fn path(&self) -> &Path {
        &self.dir.path
    }

    /// Everything applied so far is on disk when this returns.
    pub fn flush(&self) -> Result<(), DbError> {
        self.db.flush()
    }

    /// Whether applying may have to wait for the disk just now.
    pub fn is_busy(&self) -> bool {
        self.db.is_busy()
    }

    /// Copies the state as of now into a new directory, by hard links where possible.
    pub fn checkpoint(&self, into: &Path) -> Result<(), DbError> {
        self.db.checkpoint(into)
    }

    #[cfg(test)]
    pub(crate) fn every_record(&self) -> Vec<disk::Record> {
        self.db.scan(b"", b"\xff").collect::<Result<_, _>>().expect("a state that can be read")
    }

    /// Another state has taken its place: its directory goes when its last reader is done.
    pub fn replace(&self) {
        self.dir.replaced.store(true, Ordering::Relaxed);
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        if self.replaced.load(Ordering::Relaxed)
            && let Err(error) = self.disk.remove_dir(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a replaced state");
        }
    }
}
