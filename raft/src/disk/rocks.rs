//! RocksDB over the file system: small buffers and one cache for all databases of the process.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::OnceLock;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt, ready};
use nix::fcntl::posix_fallocate;
use nix::sys::statvfs::statvfs;
use rocksdb::checkpoint::Checkpoint;
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, DB, DBCompressionType, DBRecoveryMode, Direction, ErrorKind,
    IteratorMode, Options, ReadOptions, Snapshot, WriteBufferManager, WriteOptions,
};

use super::{Database, DbError, Item, Medium, Read, Record, Room, Scan, Tail, WriteBatch, WriteOp};

const CACHE_BYTES: usize = 8 << 20;
const BLOCK_BYTES: usize = 8 << 10;
/// A part of a table's index or filter. Whole ones would be larger than what the cache takes, and so be read from disk
/// and decompressed for every object that is looked for.
const INDEX_PART_BYTES: usize = 4 << 10;
const WRITE_BUFFER_BYTES: usize = 4 << 20;
const ALL_WRITE_BUFFERS_BYTES: usize = 16 << 20;
const MAX_WAL_BYTES: u64 = 32 << 20;
const MAX_OPEN_FILES: i32 = 128;

impl From<rocksdb::Error> for DbError {
    fn from(error: rocksdb::Error) -> Self {
        let corrupt = error.kind() == ErrorKind::Corruption;
        Self { detail: error.into_string(), corrupt }
    }
}

fn shared() -> &'static (Cache, WriteBufferManager) {
    static SHARED: OnceLock<(Cache, WriteBufferManager)> = OnceLock::new();
    SHARED.get_or_init(|| {
        let cache = Cache::new_lru_cache(CACHE_BYTES);
        (cache, WriteBufferManager::new_write_buffer_manager(ALL_WRITE_BUFFERS_BYTES, false))
    })
}

fn options(tail: Tail) -> Options {
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
    options.set_max_write_buffer_number(2);
    options.set_max_total_wal_size(MAX_WAL_BYTES);
    options.set_max_open_files(MAX_OPEN_FILES);
    options.set_max_background_jobs(2);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(1 << 20);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_wal_recovery_mode(match tail {
        Tail::DropTorn => DBRecoveryMode::TolerateCorruptedTailRecords,
        Tail::DropDamaged => DBRecoveryMode::PointInTime,
    });
    options
}

/// The medium of a real replica.
pub(super) struct Rocks;

impl Medium for Rocks {
    fn open(&self, path: &Path, tail: Tail) -> Result<Box<dyn Database>, DbError> {
        fs::create_dir_all(path).map_err(|e| DbError { detail: e.to_string(), corrupt: false })?;
        Ok(Box::new(RocksDb(DB::open(&options(tail), path)?)))
    }

    fn read_through(&self, path: &Path) -> Result<(), DbError> {
        let mut table = BlockBasedOptions::default();
        table.disable_cache();
        let mut options = options(Tail::DropTorn);
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

struct RocksDb(DB);

impl Drop for RocksDb {
    fn drop(&mut self) {
        self.0.cancel_all_background_work(true);
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
        Ok(self.0.get_pinned(key)?.map(|found| Bytes::copy_from_slice(&found)))
    }

    fn scan(&self, from: &[u8], to: &[u8]) -> Scan<'_> {
        let start = IteratorMode::From(from, Direction::Forward);
        Box::new(self.0.iterator_opt(start, bounded(from, to)).map(record))
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

impl RocksDb {
    fn write_with(&self, batch: WriteBatch, sync: bool) -> Result<(), DbError> {
        let mut native = rocksdb::WriteBatch::default();
        for op in batch.into_ops() {
            match op {
                WriteOp::Put(key, value) => native.put(key, value),
                WriteOp::Delete(key) => native.delete(key),
                WriteOp::DeleteRange(from, to) => native.delete_range(from, to),
            }
        }
        let mut options = WriteOptions::default();
        options.set_sync(sync);
        Ok(self.0.write_opt(native, &options)?)
    }
}

impl Database for RocksDb {
    fn view(&self) -> Box<dyn Read + '_> {
        Box::new(self.0.snapshot())
    }

    fn write(&self, batch: WriteBatch) -> Result<(), DbError> {
        self.write_with(batch, false)
    }

    fn commit(&self, batch: WriteBatch, sync: bool) -> BoxFuture<'_, Result<(), DbError>> {
        ready(self.write_with(batch, sync)).boxed()
    }

    fn flush(&self) -> Result<(), DbError> {
        Ok(self.0.flush()?)
    }

    fn checkpoint(&self, into: &Path) -> Result<(), DbError> {
        Ok(Checkpoint::new(&self.0)?.create_checkpoint(into)?)
    }
}
