//! The whole store in one file, written while the cluster runs, and read to begin a new epoch.
//!
//! A backup is eight bytes that say what it is, frames of four bytes of length with an envelope each (a header, blocks of
//! objects in the order of their keys, an end), and the SHA-256 of everything before. History is not in it.
//!
//! Invariant: a backup is of one revision throughout.
//! Invariant: nothing of a file is believed before the digest over all of it was right.
//! Invariant: what was sealed in the store is sealed in the file.

mod read;
mod write;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::codec::LogIdForm;
use crate::disk::DiskError;
use crate::epoch::EpochId;
use crate::state::{ReadError, Record};

#[cfg(any(test, fuzzing))]
pub(crate) use read::fuzz;
pub use read::{restore, verify};
pub use write::Backup;
pub(crate) use write::start;

const MAGIC: &[u8; 8] = b"FLOTBKUP";
const DIGEST_BYTES: usize = 32;

/// What a frame holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Piece {
    Header(BackupHeader),
    Objects(Vec<Record>),
    /// How many objects there were.
    End(u64),
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct BackupHeader {
    pub cluster: String,
    pub epoch: EpochId,
    pub revision: u64,
    /// The last log entry that is in it.
    pub applied: LogIdForm,
    /// The greatest time of any entry.
    pub now_ms: u64,
    /// When the backup was taken, by the clock of the replica that took it.
    pub taken_ms: u64,
}

/// What a backup is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupInfo {
    pub cluster: String,
    pub epoch: EpochId,
    pub revision: u64,
    /// Milliseconds since 1970.
    pub taken_ms: u64,
    pub objects: u64,
    pub size_bytes: u64,
}

/// A backup cannot be taken or used.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("the store cannot be read")]
    Store(#[from] ReadError),
    #[error("there is nothing in the store yet")]
    Empty,
    #[error("the backup was broken off")]
    BrokenOff,
    #[error("cannot read {path}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{path} is not a backup of a Flotilla cluster")]
    Foreign { path: PathBuf },
    #[error("{path} is of a newer format ({detail}): use a newer flotilla")]
    Newer { path: PathBuf, detail: String },
    #[error("{path} is cut off after {read_bytes} bytes")]
    CutOff { path: PathBuf, read_bytes: u64 },
    #[error("{path} is damaged: {detail}")]
    Damaged { path: PathBuf, detail: String },
    #[error("the restored store cannot be written")]
    Disk(#[from] DiskError),
}
