//! How full the disk is. A disk that is really full would be fatal to Raft, so growth stops before.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::disk::Disk;

/// Below this much free space a voter's disk counts as nearly full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpaceFloor {
    pub min_bytes: u64,
    /// Of the file system's size.
    pub min_percent: u64,
}

/// The last look at the disk.
pub(crate) struct Space {
    floor: SpaceFloor,
    free_bytes: AtomicU64,
    total_bytes: AtomicU64,
}

impl Space {
    pub fn new(floor: SpaceFloor) -> Self {
        Self { floor, free_bytes: AtomicU64::new(u64::MAX), total_bytes: AtomicU64::new(0) }
    }

    /// Looks at the file system that `path` is on.
    pub fn look(&self, disk: &Disk, path: &Path) {
        match disk.room(path) {
            Ok(room) => {
                self.free_bytes.store(room.free_bytes, Ordering::Relaxed);
                self.total_bytes.store(room.total_bytes, Ordering::Relaxed);
            }
            Err(error) => tracing::warn!(path = %path.display(), %error, "cannot tell the free space"),
        }
    }

    pub fn free_bytes(&self) -> u64 {
        self.free_bytes.load(Ordering::Relaxed)
    }

    pub fn is_low(&self) -> bool {
        let share_bytes = self.total_bytes.load(Ordering::Relaxed) / 100 * self.floor.min_percent;
        self.free_bytes() < self.floor.min_bytes.max(share_bytes)
    }
}
