//! RocksDB over the file system: small buffers and one cache for all databases of the process, and a journal of ours
//! before those that are durable with each commit.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt, ready};
use nix::fcntl::posix_fallocate;
use nix::sys::statvfs::statvfs;
use rocksdb::checkpoint::Checkpoint;
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, DB, DBCompressionType, DBRecoveryMode, Direction, ErrorKind,
    FlushOptions, IteratorMode, Options, ReadOptions, ReadTier, Snapshot, WriteBufferManager, WriteOptions, properties,
};

use super::journal::{self, Journal, Mark};
use super::{Database, DbError, Durability, Item, Medium, Read, Record, Room, Scan, WriteBatch, WriteOp};

/// Where a database notes what of its journal it has.
const MARK_KEY: &[u8] = b"mjournal";
const JOURNAL_DIR: &str = "journal";

const CACHE_BYTES: usize = 8 << 20;
const BLOCK_BYTES: usize = 8 << 10;
/// A part of a table's index or filter. Whole ones would be larger than what the cache takes, and so be read from disk
/// and decompressed for every object that is looked for.
const INDEX_PART_BYTES: usize = 4 << 10;
const WRITE_BUFFER_BYTES: usize = 4 << 20;
const ALL_WRITE_BUFFERS_BYTES: usize = 16 << 20;
const MAX_OPEN_FILES: i32 = 128;

impl From<rocksdb::Error> for DbError {
    fn from(error: rocksdb::Error) -> Self {
        let corrupt = error.kind() == ErrorKind::Corruption;
        Self { detail: error.into_string(), corrupt }
    }
}

impl From<io::Error> for DbError {
    fn from(error: io::Error) -> Self {
        Self { detail: error.to_string(), corrupt: false }
    }
}

fn shared() -> &'static (Cache, WriteBufferManager) {
    static SHARED: OnceLock<(Cache, WriteBufferManager)> = OnceLock::new();
    SHARED.get_or_init(|| {
        let cache = Cache::new_lru_cache(CACHE_BYTES);
        (cache, WriteBufferManager::new_write_buffer_manager(ALL_WRITE_BUFFERS_BYTES, false))
    })
}

fn options(durability: Durability) -> Options {
    let (cache, buffers) = shared();
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_block_size(BLOCK_BYTES);
    table.set_bloom_filter(10.0, false);
    table.set_cache_index_and_filter_blocks(true);
    table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    table.set_partition_filters(true);
    table.set_metadata_block_size(INDEX_PART_BYTES);
    table.set_pin_top_level_index_and_filter(true);
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&table);
    options.set_write_buffer_manager(buffers);
    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
    // So that a flush that goes on beside the log's writes is not waited for.
    options.set_max_write_buffer_number(if durability == Durability::Commit { 4 } else { 2 });
    options.set_max_open_files(MAX_OPEN_FILES);
    options.set_max_background_jobs(2);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(1 << 20);
    options.set_compression_type(DBCompressionType::Lz4);
    // Of RocksDB's own write-ahead log, which stores of earlier builds have.
    options.set_wal_recovery_mode(match durability {
        Durability::Commit => DBRecoveryMode::TolerateCorruptedTailRecords,
        Durability::Flush => DBRecoveryMode::PointInTime,
    });
    options
}

/// The medium of a real replica.
pub(super) struct Rocks;

impl Medium for Rocks {
    fn open(&self, path: &Path, durability: Durability) -> Result<Box<dyn Database>, DbError> {
        fs::create_dir_all(path)?;
        let db = DB::open(&options(durability), path)?;
        let journal = match durability {
            Durability::Commit => Some(Mutex::new(begin_life(&db, &path.join(JOURNAL_DIR))?)),
            Durability::Flush => None,
        };
        Ok(Box::new(RocksDb { db, journal }))
    }

    fn holds_database(&self, path: &Path) -> io::Result<bool> {
        path.join("CURRENT").try_exists()
    }

    fn read_through(&self, path: &Path) -> Result<(), DbError> {
        let mut table = BlockBasedOptions::default();
        table.disable_cache();
        let mut options = options(Durability::Flush);
        options.set_block_based_table_factory(&table);
        options.create_if_missing(false);
        let db = DB::open_for_read_only(&options, path, false)?;
        Ok(db.iterator(IteratorMode::Start).try_for_each(|item| item.map(drop))?)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Item>> {
        let item = |found: fs::DirEntry| {
            let metadata = found.metadata()?;
            let name = found.file_name().to_string_lossy().into_owned();
            Ok(Item { name, is_dir: metadata.is_dir(), length_bytes: metadata.len() })
        };
        fs::read_dir(dir)?.map(|found| found.and_then(item)).collect()
    }

    fn reader(&self, file: &Path) -> io::Result<Box<dyn io::Read + Send>> {
        Ok(Box::new(File::open(file)?))
    }

    fn writer(&self, file: &Path) -> io::Result<Box<dyn io::Write + Send>> {
        Ok(Box::new(File::create(file)?))
    }

    fn allocate(&self, file: &Path, length_bytes: u64) -> io::Result<()> {
        let length_bytes = i64::try_from(length_bytes).map_err(io::Error::other)?;
        Ok(posix_fallocate(File::create(file)?.as_raw_fd(), 0, length_bytes)?)
    }

    fn remove_file(&self, file: &Path) -> io::Result<()> {
        fs::remove_file(file)
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        fs::remove_dir_all(dir)
    }

    fn room(&self, path: &Path) -> io::Result<Room> {
        let found = statvfs(path)?;
        let unit_bytes = found.fragment_size();
        Ok(Room {
            free_bytes: found.blocks_available().saturating_mul(unit_bytes),
            total_bytes: found.blocks().saturating_mul(unit_bytes),
        })
    }
}

struct RocksDb {
    db: DB,
    /// Of a database that is durable with each commit.
    journal: Option<Mutex<Journal>>,
}

impl Drop for RocksDb {
    fn drop(&mut self) {
        self.db.cancel_all_background_work(true);
    }
}

fn bounded(from: &[u8], to: &[u8]) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound(from);
    options.set_iterate_upper_bound(to);
    options
}

type Native = (Box<[u8]>, Box<[u8]>);

fn record(item: Result<Native, rocksdb::Error>) -> Result<Record, DbError> {
    let (key, value) = item?;
    Ok((key, value.into()))
}

impl Read for RocksDb {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, DbError> {
        Ok(self.db.get_pinned(key)?.map(|found| Bytes::copy_from_slice(&found)))
    }

    fn scan(&self, from: &[u8], to: &[u8]) -> Scan<'_> {
        let start = IteratorMode::From(from, Direction::Forward);
        Box::new(self.db.iterator_opt(start, bounded(from, to)).map(record))
    }
}

impl Read for Snapshot<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, DbError> {
        Ok(self.get_pinned(key)?.map(|found| Bytes::copy_from_slice(&found)))
    }

    fn scan(&self, from: &[u8], to: &[u8]) -> Scan<'_> {
        let start = IteratorMode::From(from, Direction::Forward);
        Box::new(self.iterator_opt(start, bounded(from, to)).map(record))
    }
}

fn native(batch: WriteBatch) -> rocksdb::WriteBatch {
    let mut native = rocksdb::WriteBatch::default();
    for op in batch.into_ops() {
        match op {
            WriteOp::Put(key, value) => native.put(key, value),
            WriteOp::Delete(key) => native.delete(key),
            WriteOp::DeleteRange(from, to) => native.delete_range(from, to),
        }
    }
    native
}

/// To memory only: RocksDB's own write-ahead log is not used.
fn unlogged() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.disable_wal(true);
    options
}

/// Has a database take over what only its journal has, and begins the journal's next life.
fn begin_life(db: &DB, dir: &Path) -> Result<Journal, DbError> {
    let mark = mark(db, ReadTier::All)?;
    if let Some(mark) = mark {
        let found = journal::read(dir, mark)?.map_err(|detail| DbError { detail, corrupt: true })?;
        for batch in found {
            db.write_opt(rocksdb::WriteBatch::from_data(&batch), &unlogged())?;
        }
    }
    let journal = Journal::begin(dir, mark.map_or(1, |mark| mark.life + 1))?;
    db.put_opt(MARK_KEY, journal.mark().encode(), &unlogged())?;
    db.flush()?;
    Ok(journal)
}

fn mark(db: &DB, tier: ReadTier) -> Result<Option<Mark>, DbError> {
    let mut options = ReadOptions::default();
    options.set_read_tier(tier);
    let Some(bytes) = db.get_pinned_opt(MARK_KEY, &options)? else { return Ok(None) };
    let damaged = || DbError { detail: "the note on the journal is damaged".into(), corrupt: true };
    Mark::decode(&bytes).map(Some).ok_or_else(damaged)
}

impl RocksDb {
    /// Puts a batch on disk, then into the database.
    fn append(&self, journal: &Mutex<Journal>, batch: rocksdb::WriteBatch) -> Result<(), DbError> {
        let mut journal = journal.lock().unwrap_or_else(PoisonError::into_inner);
        if !journal.has_room(batch.data()) {
            self.turn(&mut journal)?;
        }
        journal.append(batch.data())?;
        Ok(self.db.write_opt(batch, &unlogged())?)
    }

    /// Goes on in another file of the journal. The flush that frees those before it goes on beside the writes; it is
    /// waited for if no file is free, or if the database has too much to flush already.
    ///
    /// That a flush which was waited for is seen at once rests on there being one thread for flushes.
    fn turn(&self, journal: &mut Journal) -> Result<(), DbError> {
        self.db.put_opt(MARK_KEY, journal.mark().encode(), &unlogged())?;
        let mut beside = FlushOptions::default();
        beside.set_wait(false);
        match self.db.flush_opt(&beside) {
            // It cannot begin just now.
            Err(error) if error.kind() == ErrorKind::TryAgain => {}
            begun => begun?,
        }
        let persisted = || mark(&self.db, ReadTier::Persisted).map(Option::unwrap_or_default);
        if journal.turn(persisted()?)? {
            return Ok(());
        }
        self.db.flush()?;
        match journal.turn(persisted()?)? {
            true => Ok(()),
            false => Err(DbError { detail: "no file of the journal is free".into(), corrupt: false }),
        }
    }
}

impl Database for RocksDb {
    fn view(&self) -> Box<dyn Read + '_> {
        Box::new(self.db.snapshot())
    }

    fn write(&self, batch: WriteBatch) -> Result<(), DbError> {
        match &self.journal {
            Some(journal) => self.append(journal, native(batch)),
            None => Ok(self.db.write_opt(native(batch), &unlogged())?),
        }
    }

    /// With nothing left to flush there is a whole buffer for what is written next.
    fn is_busy(&self) -> bool {
        let is_zero = |property| matches!(self.db.property_int_value(property), Ok(Some(0)));
        ![properties::NUM_IMMUTABLE_MEM_TABLE, properties::IS_WRITE_STOPPED, properties::ACTUAL_DELAYED_WRITE_RATE]
            .into_iter()
            .all(is_zero)
    }

    fn commit(&self, batch: WriteBatch) -> BoxFuture<'_, Result<(), DbError>> {
        let flushed = || if self.journal.is_some() { Ok(()) } else { self.flush() };
        ready(self.write(batch).and_then(|()| flushed())).boxed()
    }

    fn flush(&self) -> Result<(), DbError> {
        Ok(self.db.flush()?)
    }

    fn checkpoint(&self, into: &Path) -> Result<(), DbError> {
        Ok(Checkpoint::new(&self.db)?.create_checkpoint(into)?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::killed;
    use super::*;

    fn put(key: &str, value: &[u8]) -> WriteBatch {
        let mut batch = WriteBatch::default();
        batch.put(key.as_bytes(), value);
        batch
    }

    fn open(dir: &Path) -> Result<Box<dyn Database>, DbError> {
        Rocks.open(dir, Durability::Commit)
    }

    #[tokio::test]
    async fn what_was_committed_is_there_after_each_of_many_deaths() {
        let mut dir = tempfile::tempdir().unwrap();
        for life in 0..4_u8 {
            let db = open(dir.path()).unwrap();
            for earlier in 0..life {
                assert_eq!(db.get(&[b'k', earlier]).unwrap().unwrap(), vec![earlier; 100]);
                assert_eq!(db.get(b"same").unwrap().unwrap(), vec![life - 1]);
            }
            db.commit(put("same", &[life])).await.unwrap();
            let mut batch = WriteBatch::default();
            batch.put(vec![b'k', life], vec![life; 100]);
            db.commit(batch).await.unwrap();
            dir = killed(dir.path());
        }
    }

    #[tokio::test]
    async fn many_times_what_the_journal_holds_goes_through_it() {
        let dir = tempfile::tempdir().unwrap();
        let db = open(dir.path()).unwrap();
        let large: Vec<u8> = (0..300_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for number in 0..150 {
            db.commit(put(&number.to_string(), &large)).await.unwrap();
        }
        db.commit(put("last", b"x")).await.unwrap();
        let copy = killed(dir.path());
        let db = open(copy.path()).unwrap();
        assert!((0..150).all(|number| db.get(number.to_string().as_bytes()).unwrap().unwrap() == large));
        assert!(db.get(b"last").unwrap().is_some());
    }

    #[tokio::test]
    async fn a_flipped_bit_is_damage_and_so_is_a_journal_that_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let db = open(dir.path()).unwrap();
        db.commit(put("a", b"first")).await.unwrap();
        db.commit(put("b", b"second")).await.unwrap();
        for value in [b"first".as_slice(), b"second"] {
            let copy = killed(dir.path());
            let file = copy.path().join(JOURNAL_DIR).join("0");
            let mut bytes = fs::read(&file).unwrap();
            let at = bytes.windows(value.len()).position(|window| window == value).unwrap();
            bytes[at] ^= 1;
            fs::write(&file, bytes).unwrap();
            assert!(open(copy.path()).err().unwrap().corrupt);
        }
        let copy = killed(dir.path());
        fs::remove_dir_all(copy.path().join(JOURNAL_DIR)).unwrap();
        assert!(open(copy.path()).err().unwrap().corrupt);
    }

    #[tokio::test]
    async fn a_log_without_a_journal_gets_one() {
        let dir = tempfile::tempdir().unwrap();
        let db = DB::open(&options(Durability::Commit), dir.path()).unwrap();
        let mut synced = WriteOptions::default();
        synced.set_sync(true);
        db.put_opt(b"old", b"x", &synced).unwrap();
        let copy = killed(dir.path());
        let db = open(copy.path()).unwrap();
        assert_eq!(db.get(b"old").unwrap().unwrap(), b"x".as_slice());
        db.commit(put("new", b"y")).await.unwrap();
        let copy = killed(copy.path());
        let db = open(copy.path()).unwrap();
        assert!(db.get(b"old").unwrap().is_some() && db.get(b"new").unwrap().is_some());
    }
}
