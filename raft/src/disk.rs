//! What both databases share: small buffers, one cache, and who the directory belongs to.
//!
//! Invariant: a database that belongs to another cluster, another node or another format version is
//! refused before anything in it is read.

use std::ops::Deref;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rocksdb::{BlockBasedOptions, Cache, DB, DBCompressionType, DBRecoveryMode, Options, WriteBufferManager};
use serde::{Deserialize, Serialize};

use crate::codec;

const CACHE_BYTES: usize = 8 << 20;
const WRITE_BUFFER_BYTES: usize = 4 << 20;
const ALL_WRITE_BUFFERS_BYTES: usize = 16 << 20;
const MAX_WAL_BYTES: u64 = 32 << 20;
const MAX_OPEN_FILES: i32 = 128;
const STORE_FORMAT: u32 = 1;
const META_KEY: &[u8] = b"mmeta";

#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("cannot open the database {path}")]
    Open { path: String, source: rocksdb::Error },
    #[error("the database {path} belongs to {found}, not to {wanted}")]
    Foreign { path: String, found: String, wanted: String },
    #[error("the database {path} has format {found}, this build reads {STORE_FORMAT}")]
    Format { path: String, found: u32 },
    #[error("the database {path} is damaged: {detail}")]
    Damaged { path: String, detail: String },
    #[error("cannot read or write {path}")]
    Io { path: String, source: std::io::Error },
}

impl DiskError {
    pub(crate) fn damaged(path: &Path, detail: impl ToString) -> Self {
        Self::Damaged { path: path.display().to_string(), detail: detail.to_string() }
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
}

impl StoreMeta {
    pub fn new(cluster: &str, node: Option<u64>) -> Self {
        Self { format: STORE_FORMAT, cluster: cluster.into(), node }
    }
}

/// How a database treats the end of its write-ahead log when it was cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tail {
    /// An incomplete last record was never acknowledged and is dropped; any other damage is an error.
    DropTorn,
    /// Whatever is after the first damage is dropped, since the log still has it.
    DropDamaged,
}

/// An open database.
pub(crate) struct Db {
    db: DB,
    /// Dropped after the database is closed.
    _held: Held,
}

impl Deref for Db {
    type Target = DB;

    fn deref(&self) -> &DB {
        &self.db
    }
}

/// Tells when every database that was opened with it is closed, its lock released.
#[derive(Clone, Default)]
pub(crate) struct Held(Arc<()>);

impl Held {
    /// Waits until only this one is left; whether that happened in time.
    pub async fn released(self, bound: Duration) -> bool {
        const LOOK_AGAIN: Duration = Duration::from_millis(2);
        let alone = async {
            while Arc::strong_count(&self.0) > 1 {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        tokio::time::timeout(bound, alone).await.is_ok()
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
    table.set_cache_index_and_filter_blocks(true);
    table.set_bloom_filter(10.0, false);
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

/// Opens or makes the database at `path` and checks whose it is.
pub(crate) fn open(path: &Path, tail: Tail, meta: &StoreMeta, held: &Held) -> Result<Db, DiskError> {
    std::fs::create_dir_all(path).map_err(DiskError::io(path))?;
    let db = DB::open(&options(tail), path)
        .map_err(|source| DiskError::Open { path: path.display().to_string(), source })?;
    check_owner(&db, path, meta)?;
    Ok(Db { db, _held: held.clone() })
}

fn check_owner(db: &DB, path: &Path, wanted: &StoreMeta) -> Result<(), DiskError> {
    let stored = db.get(META_KEY).map_err(|e| DiskError::damaged(path, e))?;
    let Some(bytes) = stored else {
        let bytes = codec::encode(wanted).map_err(|e| DiskError::damaged(path, e))?;
        let mut sync = rocksdb::WriteOptions::default();
        sync.set_sync(true);
        return db.put_opt(META_KEY, bytes, &sync).map_err(|e| DiskError::damaged(path, e));
    };
    let found: StoreMeta = codec::decode(&bytes).map_err(|e| DiskError::damaged(path, e))?;
    if found.format != wanted.format {
        return Err(DiskError::Format { path: path.display().to_string(), found: found.format });
    }
    if &found != wanted {
        return Err(DiskError::Foreign {
            path: path.display().to_string(),
            found: owner(&found),
            wanted: owner(wanted),
        });
    }
    Ok(())
}

fn owner(meta: &StoreMeta) -> String {
    match meta.node {
        Some(node) => format!("node {node:016x} of cluster {}", meta.cluster),
        None => format!("cluster {}", meta.cluster),
    }
}
