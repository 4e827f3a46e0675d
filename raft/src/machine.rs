//! The state machine that openraft drives: applies entries, makes and installs snapshots.
//!
//! Invariant: an event is announced only after it is in the state.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use futures::{Stream, TryStreamExt};
use openraft::storage::{ApplyResponder, EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use tokio_util::sync::CancellationToken;

use crate::disk::{Disk, DiskError};
use crate::runtime;
use crate::snapshot::{self, SnapshotData, SnapshotDir};
use crate::state::State;
use crate::types::{Answer, Entry, LogId, SnapshotMeta, StoredMembership, Types};
use crate::watch::Hub;

type Snapshot = openraft::alias::SnapshotOf<Types, SnapshotData>;

/// Entries that are applied in one go, before anyone is answered.
const APPLIED_TOGETHER: usize = 64;
/// What is sure to find room in memory while the disk is not busy: the state takes a few times as much.
const SWIFT_BYTES: usize = 1 << 20;

/// The state with what hangs on it. Shared by openraft, readers and watchers.
pub(crate) struct Machine {
    root: PathBuf,
    cluster: String,
    understands: u32,
    disk: Disk,
    state: RwLock<Arc<State>>,
    hub: Hub,
    /// openraft has read what it needs for its start.
    started: AtomicBool,
    closing: CancellationToken,
}

impl Machine {
    pub fn open(root: &Path, state: &Path, cluster: &str, understands: u32, disk: Disk) -> Result<Self, DiskError> {
        let state = Arc::new(State::open(state, cluster, &disk)?.understanding(understands)?);
        let hub = Hub::new(state.header().revision);
        let (root, cluster) = (root.to_owned(), cluster.to_owned());
        Ok(Self {
            root,
            cluster,
            understands,
            disk,
            state: RwLock::new(state),
            hub,
            started: AtomicBool::new(false),
            closing: CancellationToken::new(),
        })
    }

    pub fn state(&self) -> Arc<State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The newest commands that can be applied.
    pub fn understands(&self) -> u32 {
        self.understands
    }

    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// From now on openraft asks for snapshots only to send them.
    pub fn started(&self) {
        self.started.store(true, Ordering::Relaxed);
    }

    /// Cancelled when the store shuts down.
    pub fn closing(&self) -> &CancellationToken {
        &self.closing
    }

    fn applied(&self) -> (Option<LogId>, StoredMembership) {
        let header = self.state().header();
        (header.applied.map(LogId::from), header.membership.clone().into())
    }

    /// A copy of the state as of now, in a directory of its own.
    fn checkpoint(&self) -> Result<Snapshot, DiskError> {
        let dir = SnapshotDir::checkpoint(&self.root, &self.state(), &self.disk)?;
        let meta = dir.meta().clone();
        Ok(Snapshot { meta, snapshot: SnapshotData::Copied(dir) })
    }

    /// Applies entries and announces what they did; who asked for them is to be answered.
    fn apply_all(&self, entries: Vec<EntryResponder<Types>>) -> io::Result<Vec<(ApplyResponder<Types>, Answer)>> {
        let state = self.state();
        let mut answers = Vec::new();
        for (entry, responder) in entries {
            let applied = state.apply(&entry)?;
            self.hub.publish(state.header().revision, applied.events);
            answers.extend(responder.map(|responder| (responder, Answer(applied.outcomes))));
        }
        Ok(answers)
    }

    fn install(&self, meta: &SnapshotMeta, snapshot: SnapshotData) -> Result<(), DiskError> {
        let SnapshotData::Copied(dir) = snapshot else { return Ok(()) };
        if dir.meta() != meta {
            return Err(DiskError::damaged(dir.path(), "the snapshot is not the announced one"));
        }
        let path = dir.promote(&self.root)?;
        let state = Arc::new(State::open(&path, &self.cluster, &self.disk)?.understanding(self.understands)?);
        let revision = state.header().revision;
        let old = std::mem::replace(&mut *self.state.write().unwrap_or_else(PoisonError::into_inner), state);
        old.replace();
        self.hub.jump(revision);
        Ok(())
    }
}

fn bytes_of(entry: &Entry) -> usize {
    match &entry.payload {
        EntryPayload::Normal(command) => command.0.len(),
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, DiskError> + Send + 'static) -> io::Result<T> {
    runtime::blocking(work).await?.map_err(io::Error::other)
}

impl RaftStateMachine<Types> for Arc<Machine> {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok(self.applied())
    }

    async fn apply<S>(&mut self, entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        let mut chunks = entries.try_ready_chunks(APPLIED_TOGETHER);
        while let Some(chunk) = chunks.try_next().await.map_err(|e| e.1)? {
            let is_swift = chunk.iter().map(|(entry, _)| bytes_of(entry)).sum::<usize>() <= SWIFT_BYTES;
            let answers = match is_swift && !self.state().is_busy() {
                true => self.apply_all(chunk)?,
                // A stalled disk must not hold up what others do.
                false => runtime::in_place(|| self.apply_all(chunk)).await?,
            };
            answers.into_iter().for_each(|(responder, answer)| responder.send(answer));
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let state = self.state();
        Builder { meta: snapshot::covered(&state), state }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotData) -> io::Result<()> {
        let (machine, meta) = (self.clone(), meta.clone());
        blocking(move || machine.install(&meta, snapshot)).await
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        if self.applied().0.is_none() || !self.started.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let machine = self.clone();
        blocking(move || machine.checkpoint()).await.map(Some)
    }
}

/// Makes what was applied when it was created durable, while more is applied.
pub(crate) struct Builder {
    meta: SnapshotMeta,
    state: Arc<State>,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = SnapshotData;

    /// Flushes the state, so that the log before it may be purged, and names what it covers.
    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let state = self.state.clone();
        blocking(move || state.flush().map_err(DiskError::db(state.path()))).await?;
        Ok(Snapshot { meta: self.meta.clone(), snapshot: SnapshotData::Flushed })
    }
}
