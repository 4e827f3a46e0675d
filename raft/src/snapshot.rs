//! Copies of the state on disk: where they live, and how one takes the state's place.
//!
//! The directory `state-N` that the file `state.current` names is the state. A received snapshot is
//! staged beside it and takes over by replacing that file.
//!
//! Invariant: `state.current` is replaced by a rename, after everything it names is on disk.
//! Invariant: a copy's directory is removed with its handle, and leftovers are removed at start.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use rand::Rng;

use crate::disk::{DiskError, Held};
use crate::state::State;
use crate::types::{LogId, SnapshotMeta};

const POINTER: &str = "state.current";
const STATE_PREFIX: &str = "state-";
const COPY_PREFIX: &str = "copy-";

/// What a snapshot is made of.
#[derive(Debug)]
pub(crate) enum SnapshotData {
    /// The state itself, flushed: it lets the log be purged, and is copied when somebody needs a copy.
    Flushed,
    Copied(SnapshotDir),
}

/// A copy of the state in a directory of its own, removed when dropped.
pub(crate) struct SnapshotDir {
    path: PathBuf,
    meta: SnapshotMeta,
}

impl std::fmt::Debug for SnapshotDir {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SnapshotDir").field(&self.path).finish()
    }
}

impl SnapshotDir {
    /// Copies a state that nothing is being applied to, by hard links where possible.
    pub fn checkpoint(root: &Path, state: &State) -> Result<Self, DiskError> {
        let staging = Staging { path: fresh(root, COPY_PREFIX), kept: false };
        state.checkpoint(&staging.path).map_err(|e| DiskError::damaged(&staging.path, e))?;
        Ok(Self::keep(staging, covered(state)))
    }

    /// Opens what was staged, to see that it is a state of this cluster and what it covers.
    pub fn verify(staging: Staging, cluster: &str, held: &Held) -> Result<Self, DiskError> {
        let meta = covered(&State::open(&staging.path, cluster, held)?);
        Ok(Self::keep(staging, meta))
    }

    fn keep(mut staging: Staging, meta: SnapshotMeta) -> Self {
        staging.kept = true;
        Self { path: staging.path.clone(), meta }
    }

    pub fn meta(&self) -> &SnapshotMeta {
        &self.meta
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes this copy the state that the next start opens, and returns where it is now.
    pub fn promote(self, root: &Path) -> Result<PathBuf, DiskError> {
        let path = fresh(root, STATE_PREFIX);
        sync_all(&self.path)?;
        fs::rename(&self.path, &path).map_err(DiskError::io(&self.path))?;
        point(root, &path)?;
        Ok(path)
    }
}

impl Drop for SnapshotDir {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// What a state covers.
pub(crate) fn covered(state: &State) -> SnapshotMeta {
    let header = state.header();
    SnapshotMeta { last_log_id: header.applied.map(LogId::from), last_membership: header.membership.clone().into() }
}

/// A directory that a snapshot is being received into, removed when dropped.
pub(crate) struct Staging {
    path: PathBuf,
    kept: bool,
}

impl Staging {
    pub fn new(root: &Path) -> Result<Self, DiskError> {
        let path = fresh(root, COPY_PREFIX);
        fs::create_dir(&path).map_err(DiskError::io(&path))?;
        Ok(Self { path, kept: false })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.kept {
            remove(&self.path);
        }
    }
}

fn remove(path: &Path) {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "cannot remove a copy of the state");
        }
        _ => {}
    }
}

fn fresh(root: &Path, prefix: &str) -> PathBuf {
    root.join(format!("{prefix}{:016x}", rand::rng().random::<u64>()))
}

/// The directory of the state, made known if there is none, with everything else like it removed.
pub(crate) fn current_state(root: &Path) -> Result<PathBuf, DiskError> {
    let pointer = root.join(POINTER);
    let current = match fs::read_to_string(&pointer) {
        Ok(name) if name.starts_with(STATE_PREFIX) && !name.contains('/') => root.join(name),
        Ok(name) => return Err(DiskError::damaged(&pointer, format!("names {name:?}"))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let path = fresh(root, STATE_PREFIX);
            point(root, &path)?;
            path
        }
        Err(error) => return Err(DiskError::io(&pointer)(error)),
    };
    for item in fs::read_dir(root).map_err(DiskError::io(root))? {
        let path = item.map_err(DiskError::io(root))?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if path != current && path.is_dir() && (name.starts_with(STATE_PREFIX) || name.starts_with(COPY_PREFIX)) {
            remove(&path);
        }
    }
    Ok(current)
}

fn point(root: &Path, state: &Path) -> Result<(), DiskError> {
    let name = state.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let (pointer, next) = (root.join(POINTER), root.join("state.next"));
    let mut file = File::create(&next).map_err(DiskError::io(&next))?;
    file.write_all(name.as_bytes()).and_then(|()| file.sync_all()).map_err(DiskError::io(&next))?;
    fs::rename(&next, &pointer).map_err(DiskError::io(&pointer))?;
    sync(root)
}

fn sync_all(dir: &Path) -> Result<(), DiskError> {
    for item in fs::read_dir(dir).map_err(DiskError::io(dir))? {
        let path = item.map_err(DiskError::io(dir))?.path();
        if path.is_file() {
            sync(&path)?;
        }
    }
    sync(dir)
}

fn sync(path: &Path) -> Result<(), DiskError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(DiskError::io(path))
}
