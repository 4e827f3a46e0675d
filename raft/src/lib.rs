//! The replicated store: versioned, watchable objects that survive the loss of machines.
//!
//! Every write is a [`flotilla_api::Change`]. Raft orders Changes, each replica folds them into its
//! state, and watches replay what was applied. openraft and RocksDB stay behind this crate's border.
//!
//! Invariant: one global revision for each key written; a Change is applied whole or not at all.
//! Invariant: a write is acknowledged after it is on the disks of a quorum.
//! Invariant: membership holds ids only; where a peer is, is the [`Transport`]'s business.

mod ask;
mod backup;
mod batcher;
mod codec;
mod command;
mod courier;
mod disk;
mod epoch;
mod error;
mod frame;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
#[cfg(test)]
mod golden;
mod inner;
mod keeper;
mod kv;
mod limits;
mod log;
mod machine;
pub mod membership;
mod network;
mod options;
mod outcome;
mod pages;
mod reads;
mod recover;
mod refill;
pub mod replicas;
mod runtime;
mod serve;
#[cfg(test)]
mod sim;
mod slice;
mod snapshot;
mod space;
mod state;
mod status;
mod store;
mod transport;
mod types;
mod versions;
mod watch;
mod wire;

pub use backup::{Backup, BackupError, BackupInfo, restore, verify as verify_backup};
pub use command::EventBounds;
pub use disk::{DbError, DiskError};
pub use epoch::EpochId;
pub use error::{Error, HandleError, OpenError, ProposeError};
pub use kv::{Event, KeyValue, Listing, Range};
pub use limits::{MAX_CHANGE_BYTES, MAX_KEY_BYTES, MAX_PRECONDITIONS, MAX_VALUE_BYTES};
pub use options::Options;
pub use outcome::Applied;
pub use pages::Pages;
pub use recover::{RecoverError, Remains, inspect, recover};
pub use refill::{RefillError, is_gone, refill};
pub use slice::{Question, SliceFeed, SliceRefused, SliceStart, SliceUpdate, SliceWrite};
pub use space::SpaceFloor;
pub use state::{HistoryBounds, ReadError};
pub use status::Status;
pub use store::Store;
pub use transport::{MAX_MESSAGE_BYTES, Reader, Transport, TransportError, Writer};
pub use types::NodeId;
pub use watch::{Watch, WatchItem};
