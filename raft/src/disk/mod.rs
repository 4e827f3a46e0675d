//! What a replica needs of its disk, as a port, and whom a database on it belongs to.
//!
//! RocksDB over the file system is one medium (`rocks`); the simulation brings another, which forgets,
//! tears, stalls and fails.
//!
//! Invariant: a database that belongs to another cluster, another node or another format version is
//! refused before anything in it is used.
//! Invariant: after a write to a database has failed, nothing more is written to it until it is opened again.

mod batch;
mod journal;
mod rocks;
mod trouble;

use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::codec;
use crate::epoch::EpochId;

pub(crate) use batch::{WriteBatch, WriteOp};
#[cfg(any(test, fuzzing))]
pub(crate) use journal::fuzz as fuzz_journal;
use trouble::{Noting, Trouble};

/// Of the state, which also travels to other nodes.
const STATE_FORMAT: u32 = 1;
/// Of the log. In format 1 it had no journal; one of that format becomes this one when it is opened.
const LOG_FORMAT: u32 = 2;
const META_KEY: &[u8] = b"mmeta";

/// A database cannot be read or written.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{detail}")]
pub struct DbError {
    pub detail: String,
    /// What is stored contradicts its checksums or itself; otherwise the disk did not do what it was told.
    pub corrupt: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("cannot open the database {path}")]
    Open { path: String, source: DbError },
    #[error("the database {path} belongs to {found}, not to {wanted}")]
    Foreign { path: String, found: String, wanted: String },
    #[error("the database {path} has format {found}, this build reads {wanted}")]
    Format { path: String, found: u32, wanted: u32 },
    #[error(
        "the state {path} takes commands of version {found}, this build understands {understood}: use a newer flotilla"
    )]
    Newer { path: String, found: u32, understood: u32 },
    #[error("the database {path} is damaged: {detail}")]
    Damaged { path: String, detail: String },
    #[error("cannot read or write {path}")]
    Io { path: String, source: std::io::Error },
}

impl DiskError {
    /// Whether what is stored is not what was written: another attempt finds it so again.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Open { source, .. } => source.corrupt,
            Self::Damaged { .. } => true,
            Self::Foreign { .. } | Self::Format { .. } | Self::Newer { .. } | Self::Io { .. } => false,
        }
    }

    pub(crate) fn damaged(path: &Path, detail: impl ToString) -> Self {
        Self::Damaged { path: path.display().to_string(), detail: detail.to_string() }
    }

    /// Damage if the database says so; otherwise the disk did not do what it was told.
    pub(crate) fn db(path: &Path) -> impl FnOnce(DbError) -> Self {
        move |error| match error.corrupt {
            true => Self::damaged(path, error),
            false => Self::io(path)(io::Error::other(error)),
        }
    }

    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.display().to_string();
        move |source| Self::Io { path, source }
    }
}

/// Who a database belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoreMeta {
    pub format: u32,
    pub cluster: String,
    /// `None` in the state, which moves between nodes.
    pub node: Option<u64>,
    /// The cluster epoch that what is stored belongs to; none while there is nothing.
    pub epoch: EpochId,
}

impl StoreMeta {
    pub fn new(cluster: &str, node: Option<u64>) -> Self {
        let format = if node.is_some() { LOG_FORMAT } else { STATE_FORMAT };
        Self { format, cluster: cluster.into(), node, epoch: EpochId::NONE }
    }
}

/// When what is written to a database is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durability {
    /// With each commit. The last one was never acknowledged if it is not whole; any other damage is an error.
    Commit,
    /// When it is flushed. What a crash takes from it is somewhere else.
    Flush,
}

/// A key and its value.
pub(crate) type Record = (Box<[u8]>, Bytes);

/// Records in the order of their keys.
pub(crate) type Scan<'a> = Box<dyn Iterator<Item = Result<Record, DbError>> + 'a>;

/// What can be read of a database, now or as it was when a view was made.
pub(crate) trait Read {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, DbError>;

    /// The records from the key `from` on, before the key `to`.
    fn scan(&self, from: &[u8], to: &[u8]) -> Scan<'_>;
}

/// An ordered map on a medium. A batch takes effect whole or not at all, and after a crash a prefix of
/// the batches is there, which ends with or after the last one that was committed or flushed.
pub(crate) trait Database: Read + Send + Sync {
    /// The database as it is now, whatever is written after.
    fn view(&self) -> Box<dyn Read + '_>;

    /// Writes to memory, unless the database is durable with each commit; it counts when it is flushed.
    fn write(&self, batch: WriteBatch) -> Result<(), DbError>;

    /// Whether a write to memory may have to wait for the disk just now.
    fn is_busy(&self) -> bool;

    /// Writes, and waits until it is on disk. May hold up its thread: only for a thread of its own.
    fn commit(&self, batch: WriteBatch) -> BoxFuture<'_, Result<(), DbError>>;

    /// Everything written so far is on disk when this returns.
    fn flush(&self) -> Result<(), DbError>;

    /// Copies the database as of now into a new directory, by hard links where possible.
    fn checkpoint(&self, into: &Path) -> Result<(), DbError>;
}

/// What stands in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub name: String,
    pub is_dir: bool,
    pub length_bytes: u64,
}

/// How full a medium is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    pub free_bytes: u64,
    pub total_bytes: u64,
}

/// Directories, files, and databases in directories. What is created, written or renamed is durable after a `sync`
/// of the file, and of the directory that names it.
pub(crate) trait Medium: Send + Sync {
    /// Opens or makes the database in a directory, which is made if it is missing.
    fn open(&self, path: &Path, durability: Durability) -> Result<Box<dyn Database>, DbError>;

    /// Whether there is a database in a directory.
    fn holds_database(&self, path: &Path) -> io::Result<bool>;

    /// Reads all of the database in a directory, which nobody has open, from the disk and not from memory.
    fn read_through(&self, path: &Path) -> Result<(), DbError>;

    /// Makes a directory and those above it; one that is there already is fine.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    fn list(&self, dir: &Path) -> io::Result<Vec<Item>>;
    fn reader(&self, file: &Path) -> io::Result<Box<dyn io::Read + Send>>;
    /// Makes a file, or empties it.
    fn writer(&self, file: &Path) -> io::Result<Box<dyn io::Write + Send>>;
    /// Makes a file of this length whose space is taken.
    fn allocate(&self, file: &Path, length_bytes: u64) -> io::Result<()>;
    fn remove_file(&self, file: &Path) -> io::Result<()>;
    fn sync(&self, path: &Path) -> io::Result<()>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a directory with everything in it.
    fn remove_dir(&self, dir: &Path) -> io::Result<()>;
    fn room(&self, path: &Path) -> io::Result<Room>;
}

/// An open database, whose damage is noted. Its methods are those of [`Database`].
pub(crate) struct Db {
    db: Box<dyn Database>,
    path: PathBuf,
    meta: Mutex<StoreMeta>,
    /// A write failed. What is written after that may stand behind half a record, where no start would find it.
    failed: AtomicBool,
    /// Dropped after the database is closed.
    disk: Disk,
}

impl Db {
    pub fn get(&self, key: &[u8]) -> Result<Option<Bytes>, DbError> {
        self.noted(self.db.get(key))
    }

    pub fn scan(&self, from: &[u8], to: &[u8]) -> Scan<'_> {
        Box::new(self.db.scan(from, to).map(|item| self.noted(item)))
    }

    pub fn view(&self) -> Box<dyn Read + '_> {
        Box::new(Noting { view: self.db.view(), path: &self.path, trouble: &self.disk.trouble })
    }

    pub fn write(&self, batch: WriteBatch) -> Result<(), DbError> {
        self.may_write()?;
        self.written(self.db.write(batch))
    }

    /// See [`Database::is_busy`].
    pub fn is_busy(&self) -> bool {
        self.db.is_busy()
    }

    pub async fn commit(&self, batch: WriteBatch) -> Result<(), DbError> {
        self.may_write()?;
        self.written(self.db.commit(batch).await)
    }

    pub fn flush(&self) -> Result<(), DbError> {
        self.may_write()?;
        self.written(self.db.flush())
    }

    pub fn checkpoint(&self, into: &Path) -> Result<(), DbError> {
        self.noted(self.db.checkpoint(into))
    }

    fn may_write(&self) -> Result<(), DbError> {
        match self.failed.load(Ordering::Relaxed) {
            true => Err(DbError { detail: "an earlier write failed".into(), corrupt: false }),
            false => Ok(()),
        }
    }

    fn written(&self, result: Result<(), DbError>) -> Result<(), DbError> {
        self.noted(result).inspect_err(|error| {
            self.failed.store(true, Ordering::Relaxed);
            self.disk.trouble.failed(&self.path, error);
        })
    }

    fn noted<T>(&self, result: Result<T, DbError>) -> Result<T, DbError> {
        self.disk.trouble.noted(&self.path, result)
    }

    pub fn epoch(&self) -> EpochId {
        self.meta.lock().unwrap_or_else(PoisonError::into_inner).epoch
    }

    /// From now on, and durably, what is stored belongs to this epoch.
    pub fn set_epoch(&self, epoch: EpochId) -> Result<(), DiskError> {
        let mut meta = self.meta.lock().unwrap_or_else(PoisonError::into_inner);
        let next = StoreMeta { epoch, ..meta.clone() };
        self.may_write().map_err(DiskError::db(&self.path))?;
        self.written(write_meta(self.db.as_ref(), &next)).map_err(DiskError::db(&self.path))?;
        *meta = next;
        Ok(())
    }
}

/// A medium in use. Tells when every database that was opened with it is closed, its lock released, and whether one of
/// them was found damaged.
#[derive(Clone)]
pub(crate) struct Disk {
    medium: Arc<dyn Medium>,
    held: Arc<()>,
    trouble: Arc<Trouble>,
}

impl Default for Disk {
    fn default() -> Self {
        Self::new(Arc::new(rocks::Rocks))
    }
}

impl Deref for Disk {
    type Target = dyn Medium;

    fn deref(&self) -> &Self::Target {
        self.medium.as_ref()
    }
}

impl Disk {
    pub fn new(medium: Arc<dyn Medium>) -> Self {
        Self { medium, held: Arc::default(), trouble: Arc::default() }
    }

    /// The same, for what somebody else sent: that it is damaged says nothing of this replica.
    pub fn apart(&self) -> Self {
        Self { trouble: Arc::default(), ..self.clone() }
    }

    pub fn trouble(&self) -> &Trouble {
        &self.trouble
    }

    /// Opens or makes the database at `path` and checks whose it is.
    pub fn database(&self, path: &Path, durability: Durability, meta: &StoreMeta) -> Result<Db, DiskError> {
        let open_error = |source| DiskError::Open { path: path.display().to_string(), source };
        let db = self.medium.open(path, durability).map_err(open_error)?;
        let meta = Mutex::new(check_owner(db.as_ref(), path, meta)?);
        Ok(Db { db, path: path.to_owned(), meta, failed: AtomicBool::new(false), disk: self.clone() })
    }

    /// Reads all of a copy of this replica's database, which nobody has open, and notes damage.
    pub fn check(&self, path: &Path) -> Result<(), DbError> {
        self.trouble.noted(path, self.medium.read_through(path))
    }

    /// A small file, whole; `None` if there is none.
    pub fn read(&self, file: &Path, max_bytes: u64) -> io::Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        match self.medium.reader(file) {
            Ok(reader) => {
                io::Read::read_to_end(&mut io::Read::take(reader, max_bytes), &mut bytes).map(|_| Some(bytes))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits until only this one is left; whether that happened in time.
    pub async fn released(self, bound: Duration) -> bool {
        const LOOK_AGAIN: Duration = Duration::from_millis(2);
        let alone = async {
            while Arc::strong_count(&self.held) > 1 {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        tokio::time::timeout(bound, alone).await.is_ok()
    }
}

/// Returns what the database says about itself, in whichever epoch.
fn check_owner(db: &dyn Database, path: &Path, wanted: &StoreMeta) -> Result<StoreMeta, DiskError> {
    let stored = db.get(META_KEY).map_err(DiskError::db(path))?;
    let Some(bytes) = stored else {
        write_meta(db, wanted).map_err(DiskError::db(path))?;
        return Ok(wanted.clone());
    };
    let found: StoreMeta = codec::decode(&bytes).map_err(|e| DiskError::damaged(path, e))?;
    if found.format > wanted.format {
        let (path, found, wanted) = (path.display().to_string(), found.format, wanted.format);
        return Err(DiskError::Format { path, found, wanted });
    }
    if (&found.cluster, found.node) != (&wanted.cluster, wanted.node) {
        return Err(DiskError::Foreign {
            path: path.display().to_string(),
            found: owner(&found),
            wanted: owner(wanted),
        });
    }
    if found.format < wanted.format {
        let found = StoreMeta { format: wanted.format, ..found };
        write_meta(db, &found).map_err(DiskError::db(path))?;
        return Ok(found);
    }
    Ok(found)
}

fn write_meta(db: &dyn Database, meta: &StoreMeta) -> Result<(), DbError> {
    let bytes = codec::encode(meta).map_err(|e| DbError { detail: e.to_string(), corrupt: false })?;
    let mut batch = WriteBatch::default();
    batch.put(META_KEY, bytes);
    db.write(batch).and_then(|()| db.flush())
}

fn owner(meta: &StoreMeta) -> String {
    match meta.node {
        Some(node) => format!("node {node:016x} of cluster {}", meta.cluster),
        None => format!("cluster {}", meta.cluster),
    }
}

/// A copy of a directory in use, as it would be found if its process was killed now.
#[cfg(test)]
pub(crate) fn killed(dir: &Path) -> tempfile::TempDir {
    fn copy(from: &Path, to: &Path) {
        for found in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
            let to = to.join(found.file_name());
            match found.file_type().unwrap().is_dir() {
                true => {
                    std::fs::create_dir(&to).unwrap();
                    copy(&found.path(), &to);
                }
                // A file that goes meanwhile is one that nothing needs any more.
                false => match std::fs::copy(found.path(), to) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    copied => _ = copied.unwrap(),
                },
            }
        }
    }
    let copied = tempfile::tempdir().unwrap();
    copy(dir, copied.path());
    copied
}
