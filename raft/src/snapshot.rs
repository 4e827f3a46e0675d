//! Copies of the state on disk: where they live, and how one takes the state's place.
//!
//! The file `state.current` names the directory `state-N` of the state, and on a second line that of the
//! log. A received snapshot is staged beside them and takes over by replacing that file.
//!
//! Invariant: `state.current` is replaced by a rename, after everything it names is on disk.
//! Invariant: a copy's directory is removed with its handle, and leftovers are removed at start.

use std::path::{Path, PathBuf};

use crate::disk::{Disk, DiskError};
use crate::epoch::EpochId;
use crate::runtime;
use crate::state::State;
use crate::types::{LogId, SnapshotMeta};

const POINTER: &str = "state.current";
const LOG: &str = "log";
const LOG_PREFIX: &str = "log-";
const STATE_PREFIX: &str = "state-";
const COPY_PREFIX: &str = "copy-";
const MAX_POINTER_BYTES: u64 = 256;

/// What a snapshot is made of.
#[derive(Debug)]
pub(crate) enum SnapshotData {
    /// The state itself, flushed: it lets the log be purged, and is copied when somebody needs a copy.
    Flushed,
    Copied(SnapshotDir),
}

/// A copy of the state in a directory of its own, removed when dropped.
pub(crate) struct SnapshotDir {
    disk: Disk,
    path: PathBuf,
    meta: SnapshotMeta,
}

impl std::fmt::Debug for SnapshotDir {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SnapshotDir").field(&self.path).finish()
    }
}

impl SnapshotDir {
    /// Copies a state that nothing is being applied to, by hard links where possible, and reads the copy, so that what a
    /// disk has damaged goes to nobody.
    pub fn checkpoint(root: &Path, state: &State, disk: &Disk) -> Result<Self, DiskError> {
        let staging = Staging { disk: disk.clone(), path: fresh(root, COPY_PREFIX), kept: false };
        state.checkpoint(&staging.path).map_err(DiskError::db(&staging.path))?;
        disk.check(&staging.path).map_err(DiskError::db(&staging.path))?;
        Ok(Self::keep(staging, covered(state)))
    }

    /// Opens what was staged, to see that it is a state of this cluster and epoch that this build understands, and what it
    /// covers.
    pub fn verify(staging: Staging, cluster: &str, epoch: EpochId, understands: u32) -> Result<Self, DiskError> {
        let state = State::open(&staging.path, cluster, &staging.disk.apart())?.understanding(understands)?;
        if state.epoch() != epoch {
            return Err(DiskError::damaged(&staging.path, format!("of epoch {}, not {epoch}", state.epoch())));
        }
        let meta = covered(&state);
        drop(state);
        Ok(Self::keep(staging, meta))
    }

    fn keep(mut staging: Staging, meta: SnapshotMeta) -> Self {
        staging.kept = true;
        Self { disk: staging.disk.clone(), path: staging.path.clone(), meta }
    }

    pub fn meta(&self) -> &SnapshotMeta {
        &self.meta
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Makes this copy the state that the next start opens, and returns where it is now.
    pub fn promote(self, root: &Path) -> Result<PathBuf, DiskError> {
        let log = Places::find(root, &self.disk)?.log;
        self.promote_with(root, log)
    }

    /// The same, together with another log.
    pub fn promote_with(self, root: &Path, log: PathBuf) -> Result<PathBuf, DiskError> {
        let state = fresh(root, STATE_PREFIX);
        sync_all(&self.disk, &self.path)?;
        self.disk.rename(&self.path, &state).map_err(DiskError::io(&self.path))?;
        // The new name is durable before anything refers to it.
        self.disk.sync(root).map_err(DiskError::io(root))?;
        let places = Places { state, log };
        places.point(root, &self.disk)?;
        Ok(places.state)
    }
}

impl Drop for SnapshotDir {
    fn drop(&mut self) {
        remove(&self.disk, &self.path);
    }
}

/// What a state covers.
pub(crate) fn covered(state: &State) -> SnapshotMeta {
    let header = state.header();
    SnapshotMeta { last_log_id: header.applied.map(LogId::from), last_membership: header.membership.clone().into() }
}

/// A directory that a snapshot is being received into, removed when dropped.
pub(crate) struct Staging {
    disk: Disk,
    path: PathBuf,
    kept: bool,
}

impl Staging {
    pub fn new(root: &Path, disk: &Disk) -> Result<Self, DiskError> {
        let path = fresh(root, COPY_PREFIX);
        disk.create_dir(&path).map_err(DiskError::io(&path))?;
        Ok(Self { disk: disk.clone(), path, kept: false })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn disk(&self) -> &Disk {
        &self.disk
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.kept {
            remove(&self.disk, &self.path);
        }
    }
}

fn remove(disk: &Disk, path: &Path) {
    match disk.remove_dir(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "cannot remove a copy of the state");
        }
        _ => {}
    }
}

fn fresh(root: &Path, prefix: &str) -> PathBuf {
    root.join(format!("{prefix}{:016x}", runtime::random()))
}

/// Where a replica's databases are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Places {
    pub state: PathBuf,
    pub log: PathBuf,
}

impl Places {
    /// The directories in use, made known if there are none.
    pub fn find(root: &Path, disk: &Disk) -> Result<Self, DiskError> {
        let pointer = root.join(POINTER);
        let Some(bytes) = disk.read(&pointer, MAX_POINTER_BYTES).map_err(DiskError::io(&pointer))? else {
            let places = Self { state: fresh(root, STATE_PREFIX), log: root.join(LOG) };
            places.point(root, disk)?;
            return Ok(places);
        };
        let places = std::str::from_utf8(&bytes).ok().and_then(|text| Self::parse(root, text));
        places.ok_or_else(|| DiskError::damaged(&pointer, format!("names {:?}", bytes.escape_ascii().to_string())))
    }

    fn parse(root: &Path, text: &str) -> Option<Self> {
        let (state, log) = text.split_once('\n').unwrap_or((text, LOG));
        let known = |name: &str, prefix: &str| name.starts_with(prefix) && !name.contains(['/', '\n']);
        (known(state, STATE_PREFIX) && (log == LOG || known(log, LOG_PREFIX)))
            .then(|| Self { state: root.join(state), log: root.join(log) })
    }

    /// A directory for another log.
    pub fn fresh_log(root: &Path) -> PathBuf {
        fresh(root, LOG_PREFIX)
    }

    /// Removes everything that looks like a state or a log and is not in use.
    pub fn tidy(&self, root: &Path, disk: &Disk) -> Result<(), DiskError> {
        for item in disk.list(root).map_err(DiskError::io(root))? {
            let path = root.join(&item.name);
            let ours = [STATE_PREFIX, COPY_PREFIX, LOG_PREFIX].iter().any(|prefix| item.name.starts_with(prefix));
            if item.is_dir && (ours || item.name == LOG) && path != self.state && path != self.log {
                remove(disk, &path);
            }
        }
        Ok(())
    }

    fn point(&self, root: &Path, disk: &Disk) -> Result<(), DiskError> {
        let name = |path: &Path| path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
        let text = format!("{}\n{}", name(&self.state), name(&self.log));
        let (pointer, next) = (root.join(POINTER), root.join("state.next"));
        let mut file = disk.writer(&next).map_err(DiskError::io(&next))?;
        file.write_all(text.as_bytes()).and_then(|()| file.flush()).map_err(DiskError::io(&next))?;
        disk.sync(&next).map_err(DiskError::io(&next))?;
        disk.rename(&next, &pointer).map_err(DiskError::io(&pointer))?;
        disk.sync(root).map_err(DiskError::io(root))
    }
}

fn sync_all(disk: &Disk, dir: &Path) -> Result<(), DiskError> {
    for item in disk.list(dir).map_err(DiskError::io(dir))? {
        let path = dir.join(&item.name);
        if !item.is_dir {
            disk.sync(&path).map_err(DiskError::io(&path))?;
        }
    }
    disk.sync(dir).map_err(DiskError::io(dir))
}
