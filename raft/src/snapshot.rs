//! Copies of the state on disk: where they live, and how one takes the state's place.
//!
//! The file `state.current` names the directory `state-N` of the state, on a second line that of the log, on a third one
//! whether both have been made, and on a fourth the sum of all that. A received snapshot is staged beside them and takes
//! over by replacing that file.
//!
//! Invariant: `state.current` is replaced by a rename, after everything it names is on disk.
//! Invariant: a database that was made once is never made again: one that is missing is damage. Until `state.current` says
//! that they were made, nothing is in them.
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
/// What the third line of the pointer says.
const MADE: &str = "made";
const NEW: &str = "new";
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
        let places = Places { state, log, is_new: false };
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
    /// They have still to be made.
    is_new: bool,
}

impl Places {
    /// The directories in use, made known if there are none. Whoever makes the databases says so with [`Self::keep`].
    ///
    /// # Errors
    /// `Damaged` if it cannot be told which they are, or if one of them is gone.
    pub fn find(root: &Path, disk: &Disk) -> Result<Self, DiskError> {
        let pointer = root.join(POINTER);
        let bytes = disk.read(&pointer, MAX_POINTER_BYTES).map_err(DiskError::io(&pointer))?;
        let named = bytes.as_ref().and_then(|bytes| Self::parse(root, std::str::from_utf8(bytes).ok()?));
        if let Some(places) = named {
            return places.there(disk);
        }
        let found = Self::list(root, disk)?;
        if found.is_empty() && bytes.is_none() {
            let places = Self { state: fresh(root, STATE_PREFIX), log: root.join(LOG), is_new: true };
            places.point(root, disk)?;
            return Ok(places);
        }
        let what = match bytes {
            Some(bytes) => format!("names {:?}", bytes.escape_ascii().to_string()),
            None => "is missing".to_owned(),
        };
        // Both are there once, but for a moment while others take their places: then it cannot be told.
        let (states, logs): (Vec<_>, Vec<_>) = found.iter().partition(|name| name.starts_with(STATE_PREFIX));
        let ([state], [log]) = (states.as_slice(), logs.as_slice()) else {
            let beside = if found.is_empty() { "nothing".to_owned() } else { found.join(", ") };
            return Err(DiskError::damaged(&pointer, format!("{what}, beside {beside}")));
        };
        tracing::warn!(path = %pointer.display(), what, state, log, "which databases are in use is told by what there is");
        let places = Self { state: root.join(state), log: root.join(log), is_new: false }.there(disk)?;
        places.point(root, disk)?;
        Ok(places)
    }

    fn there(self, disk: &Disk) -> Result<Self, DiskError> {
        for path in [&self.state, &self.log] {
            if !self.is_new && !disk.holds_database(path).map_err(DiskError::io(path))? {
                return Err(DiskError::damaged(path, "it is gone"));
            }
        }
        Ok(self)
    }

    /// The names of everything that looks like a state or a log.
    fn list(root: &Path, disk: &Disk) -> Result<Vec<String>, DiskError> {
        let items = disk.list(root).map_err(DiskError::io(root))?;
        let is_ours = |name: &str| [STATE_PREFIX, LOG_PREFIX].iter().any(|prefix| name.starts_with(prefix));
        Ok(items
            .into_iter()
            .filter(|item| item.is_dir && (item.name == LOG || is_ours(&item.name)))
            .map(|item| item.name)
            .collect())
    }

    fn parse(root: &Path, text: &str) -> Option<Self> {
        let lines: Vec<&str> = text.split('\n').collect();
        let (state, log, is_new) = match *lines.as_slice() {
            [state, log, made @ (MADE | NEW), sum] => {
                let (named, _) = text.rsplit_once('\n')?;
                (sum == checksum(named)).then_some((state, log, made == NEW))?
            }
            // As earlier builds wrote it.
            [state, log] => (state, log, false),
            [state] => (state, LOG, false),
            _ => return None,
        };
        let is_number =
            |digits: &str| digits.len() == 16 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let known = |name: &str, prefix: &str| name.strip_prefix(prefix).is_some_and(is_number);
        (known(state, STATE_PREFIX) && (log == LOG || known(log, LOG_PREFIX))).then(|| Self {
            state: root.join(state),
            log: root.join(log),
            is_new,
        })
    }

    /// Removes what a start that was broken off has made of databases that nothing was in.
    pub fn begin(&self, disk: &Disk) -> Result<(), DiskError> {
        let mut made = [&self.state, &self.log].into_iter().filter(|_| self.is_new);
        made.try_for_each(|path| match disk.remove_dir(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(DiskError::io(path)(error)),
            _ => Ok(()),
        })
    }

    /// Notes durably that the databases have been made.
    pub fn keep(&mut self, root: &Path, disk: &Disk) -> Result<(), DiskError> {
        if std::mem::take(&mut self.is_new) { self.point(root, disk) } else { Ok(()) }
    }

    /// A directory for another log.
    pub fn fresh_log(root: &Path) -> PathBuf {
        fresh(root, LOG_PREFIX)
    }

    /// Removes every copy, and everything that looks like a state or a log and is not in use.
    pub fn tidy(&self, root: &Path, disk: &Disk) -> Result<(), DiskError> {
        let items = disk.list(root).map_err(DiskError::io(root))?;
        let copies = items.into_iter().filter(|item| item.is_dir && item.name.starts_with(COPY_PREFIX));
        for name in copies.map(|item| item.name).chain(Self::list(root, disk)?) {
            let path = root.join(name);
            if path != self.state && path != self.log {
                remove(disk, &path);
            }
        }
        Ok(())
    }

    fn point(&self, root: &Path, disk: &Disk) -> Result<(), DiskError> {
        let name = |path: &Path| path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
        let made = if self.is_new { NEW } else { MADE };
        let named = format!("{}\n{}\n{made}", name(&self.state), name(&self.log));
        let text = format!("{named}\n{}", checksum(&named));
        let (pointer, next) = (root.join(POINTER), root.join("state.next"));
        let mut file = disk.writer(&next).map_err(DiskError::io(&next))?;
        file.write_all(text.as_bytes()).and_then(|()| file.flush()).map_err(DiskError::io(&next))?;
        disk.sync(&next).map_err(DiskError::io(&next))?;
        disk.rename(&next, &pointer).map_err(DiskError::io(&pointer))?;
        disk.sync(root).map_err(DiskError::io(root))
    }
}

fn checksum(text: &str) -> String {
    format!("{:08x}", crc32fast::hash(text.as_bytes()))
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

/// What a damaged pointer says is inside of the replica's directory, whatever it is.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(input: &[u8]) {
    let root = Path::new("replica");
    let Some(places) = std::str::from_utf8(input).ok().and_then(|text| Places::parse(root, text)) else { return };
    for path in [&places.state, &places.log] {
        assert_eq!(path.parent(), Some(root));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;
    use crate::disk::StoreMeta;
    use crate::log::Log;

    /// A directory with a state and a log that have been made, and where they are.
    async fn made() -> (TempDir, Places) {
        let (dir, disk) = (TempDir::new().unwrap(), Disk::default());
        let mut places = Places::find(dir.path(), &disk).unwrap();
        places.begin(&disk).unwrap();
        drop(State::open(&places.state, "c", &disk).unwrap());
        Log::open(&places.log, &StoreMeta::new("c", Some(1)), &disk).unwrap().close().await;
        places.keep(dir.path(), &disk).unwrap();
        (dir, places)
    }

    fn found(dir: &TempDir) -> Result<Places, String> {
        Places::find(dir.path(), &Disk::default()).map_err(|error| {
            assert!(error.is_damage(), "{error}");
            error.to_string()
        })
    }

    #[tokio::test]
    async fn a_pointer_with_any_bit_flipped_leads_nowhere_else() {
        let (dir, places) = made().await;
        let pointer = dir.path().join(POINTER);
        let bytes = fs::read(&pointer).unwrap();
        // While two states are there, what is in use cannot be told without it.
        let other = dir.path().join("state-0000000000000000");
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(&pointer, &flipped).unwrap();
            fs::create_dir(&other).unwrap();
            let error = found(&dir).unwrap_err();
            assert!(error.contains(POINTER), "{error}");
            fs::remove_dir(&other).unwrap();
            assert_eq!(found(&dir).unwrap(), places, "bit {bit}");
            assert_eq!(fs::read(&pointer).unwrap(), bytes, "mended");
        }
        fs::remove_file(&pointer).unwrap();
        assert_eq!(found(&dir).unwrap(), places);
    }

    #[tokio::test]
    async fn a_database_that_is_gone_is_not_made_again() {
        for gone in [|places: &Places| places.state.clone(), |places: &Places| places.log.clone()] {
            let (dir, places) = made().await;
            fs::remove_file(gone(&places).join("CURRENT")).unwrap();
            assert!(found(&dir).unwrap_err().contains("it is gone"));
            fs::remove_dir_all(gone(&places)).unwrap();
            assert!(found(&dir).unwrap_err().contains("it is gone"));
            fs::remove_file(dir.path().join(POINTER)).unwrap();
            assert!(found(&dir).unwrap_err().contains("is missing, beside"));
        }
    }

    #[tokio::test]
    async fn what_earlier_builds_wrote_is_read() {
        let (dir, places) = made().await;
        let state = places.state.file_name().unwrap().to_str().unwrap();
        for old in [state.to_owned(), format!("{state}\nlog")] {
            fs::write(dir.path().join(POINTER), old).unwrap();
            assert_eq!(found(&dir).unwrap(), places);
        }
    }

    #[tokio::test]
    async fn a_first_start_that_was_broken_off_begins_again() {
        let (dir, disk) = (TempDir::new().unwrap(), Disk::default());
        let first = Places::find(dir.path(), &disk).unwrap();
        fs::create_dir_all(&first.state).unwrap();
        fs::write(first.state.join("LOCK"), "").unwrap();
        let again = found(&dir).unwrap();
        assert_eq!(again, first);
        again.begin(&disk).unwrap();
        assert!(!again.state.exists());
    }
}
