//! How full the disk is. A disk that is really full would be fatal to Raft, so growth stops before, and some of it is held
//! in reserve for what goes on then: deletions, votes, the log.
//!
//! Invariant: the reserve is given up before it is needed, and taken again only when the disk is well above the floor.
//! Invariant: a replica that starts on a full disk gives up the reserve before it opens its databases.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::disk::Disk;

const RESERVE: &str = "reserve";

/// Below this much free space a voter's disk counts as nearly full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpaceFloor {
    pub min_bytes: u64,
    /// Of the file system's size.
    pub min_percent: u64,
    /// Held by a file that is removed when less than this is free; 0 for none.
    pub reserve_bytes: u64,
}

/// The last look at the disk, and the reserve on it.
pub(crate) struct Space {
    floor: SpaceFloor,
    reserve: PathBuf,
    held: AtomicBool,
    /// It was low at the last look.
    low: AtomicBool,
    free_bytes: AtomicU64,
    total_bytes: AtomicU64,
}

/// What to do about the reserve.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    GiveUp,
    Take,
    Leave,
}

impl Space {
    /// The space of the file system that `dir` is on.
    pub fn new(floor: SpaceFloor, dir: &Path, disk: &Disk) -> Self {
        let reserve = dir.join(RESERVE);
        let held = AtomicBool::new(disk.reader(&reserve).is_ok());
        let (free_bytes, total_bytes) = (AtomicU64::new(u64::MAX), AtomicU64::new(0));
        let low = AtomicBool::new(false);
        let space = Self { floor, reserve, held, low, free_bytes, total_bytes };
        space.look(disk);
        if space.step() == Step::GiveUp {
            space.give_up(disk);
        }
        space
    }

    /// Looks at the file system, and gives up or takes the reserve.
    pub fn tend(&self, disk: &Disk) {
        self.look(disk);
        match self.step() {
            Step::GiveUp => self.give_up(disk),
            Step::Take => self.take(disk),
            Step::Leave => {}
        }
        self.tell();
    }

    /// Says once when the disk becomes nearly full, and once when it has room again.
    fn tell(&self) {
        let (free_bytes, floor_bytes) = (self.free_bytes(), self.floor_bytes());
        match (self.low.swap(self.is_low(), Ordering::Relaxed), self.is_low()) {
            (false, true) => tracing::warn!(
                free_bytes,
                floor_bytes,
                "the disk is nearly full: while this replica votes, the cluster takes only changes that free space"
            ),
            (true, false) => tracing::info!(free_bytes, floor_bytes, "the disk has room again"),
            _ => {}
        }
    }

    fn look(&self, disk: &Disk) {
        let dir = self.reserve.parent().unwrap_or(&self.reserve);
        match disk.room(dir) {
            Ok(room) => {
                self.free_bytes.store(room.free_bytes, Ordering::Relaxed);
                self.total_bytes.store(room.total_bytes, Ordering::Relaxed);
            }
            Err(error) => tracing::warn!(path = %dir.display(), %error, "cannot tell the free space"),
        }
    }

    fn step(&self) -> Step {
        let reserve_bytes = self.floor.reserve_bytes;
        match self.held.load(Ordering::Relaxed) {
            true if self.free_bytes() < reserve_bytes => Step::GiveUp,
            // So that the disk does not count as nearly full because of it.
            false if reserve_bytes > 0 && self.free_bytes() > self.floor_bytes() + 2 * reserve_bytes => Step::Take,
            _ => Step::Leave,
        }
    }

    fn give_up(&self, disk: &Disk) {
        match disk.remove_file(&self.reserve) {
            Ok(()) => tracing::warn!(free_bytes = self.free_bytes(), "the disk is full: the reserve is given up"),
            Err(error) => tracing::error!(path = %self.reserve.display(), %error, "the reserve cannot be given up"),
        }
        self.held.store(false, Ordering::Relaxed);
        self.look(disk);
    }

    fn take(&self, disk: &Disk) {
        match disk.allocate(&self.reserve, self.floor.reserve_bytes) {
            Ok(()) => self.held.store(true, Ordering::Relaxed),
            Err(error) => {
                tracing::warn!(path = %self.reserve.display(), %error, "no space is held in reserve");
                _ = disk.remove_file(&self.reserve);
            }
        }
        self.look(disk);
    }

    pub fn free_bytes(&self) -> u64 {
        self.free_bytes.load(Ordering::Relaxed)
    }

    fn floor_bytes(&self) -> u64 {
        let share_bytes = self.total_bytes.load(Ordering::Relaxed) / 100 * self.floor.min_percent;
        self.floor.min_bytes.max(share_bytes)
    }

    pub fn is_low(&self) -> bool {
        self.free_bytes() < self.floor_bytes()
    }
}
