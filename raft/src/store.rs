//! The store's handle: what a daemon does with its replica.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use flotilla_api::{Change, GroupResource, Key};
use openraft::errors::{InitializeError, RaftError};
use openraft::{Config, SnapshotPolicy};
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::backup::{self, Backup};
use crate::batcher::Batcher;
use crate::disk::{Disk, DiskError, StoreMeta};
use crate::epoch::{self, Epoch, EpochId};
use crate::error::{Error, HandleError, OpenError, ProposeError};
use crate::inner::Inner;
use crate::keeper::{self, Sources};
use crate::kv::{KeyValue, Listing, Range};
use crate::limits;
use crate::log::Log;
use crate::machine::Machine;
use crate::membership::Absences;
use crate::network::{LowSpace, Network};
use crate::options::Options;
use crate::outcome::{Applied, Outcome};
use crate::pages::Pages;
use crate::reads::Reads;
use crate::refill::{self, Mark};
use crate::runtime::{self, watch};
use crate::slice::{self, SliceFeed, SliceRefused, SliceStart, Source};
use crate::snapshot::Places;
use crate::space::Space;
use crate::state::ReadError;
use crate::status::Status;
use crate::transport::{Reader, Transport, Writer};
use crate::types::{LogId, NodeId, Raft};
use crate::versions::Versions;
use crate::watch::Watch;
use crate::wire::{Refusal, Reply, Request};

/// How long a reader waits for a revision that this replica does not have yet.
const FUTURE_REVISION_WAIT: Duration = Duration::from_secs(3);
/// Between two looks whether a node that reads from a slice has a replica that can be read from.
const OWN_REPLICA_LOOK: Duration = Duration::from_millis(500);
/// How long `shutdown` waits for others to let go of the databases.
const RELEASE_WAIT: Duration = Duration::from_secs(5);
/// A member of another epoch that does not answer within this time is greeted again at the next look.
const GREETING_TIMEOUT: Duration = Duration::from_secs(1);

/// A replica of the store. Clones are handles on the same one.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

impl Store {
    /// Opens the replica in `options.dir`, or makes it. It takes part at once, but is nobody until
    /// [`bootstrap`](Self::bootstrap) or a leader's [`add_replica`](Self::add_replica).
    pub async fn open(options: Options, transport: Arc<dyn Transport>) -> Result<Self, OpenError> {
        Self::open_on(Disk::default(), options, transport).await
    }

    pub(crate) async fn open_on(
        disk: Disk,
        options: Options,
        transport: Arc<dyn Transport>,
    ) -> Result<Self, OpenError> {
        if options.id == 0 {
            return Err(OpenError::ZeroId);
        }
        let (dir, held) = (options.dir.clone(), disk.clone());
        let opened = Self::assemble(disk, options, transport).await;
        let Err(error) = opened else { return opened };
        // Raft hides what its storage said.
        let damage = held.trouble().found().damaged.map(|detail| DiskError::damaged(&dir, detail));
        let error = damage.map_or(error, OpenError::Disk);
        // What is refused can be opened again, or be removed, as soon as its owner hears of it.
        if !held.released(RELEASE_WAIT).await {
            tracing::warn!("the databases of a replica that was refused are still held");
        }
        Err(error)
    }

    async fn assemble(disk: Disk, options: Options, transport: Arc<dyn Transport>) -> Result<Self, OpenError> {
        let Opened { log, machine, space, epoch, behind } = open_disk(&options, disk).await?;
        let applied = machine.state().header().applied.map(LogId::from);
        log.drop_overtaken(applied).await.map_err(|e| OpenError::Raft(e.to_string()))?;
        let config = Arc::new(Config { enable_elect: behind.is_none(), ..raft_config(&options)? });
        let (low_space, versions) = (Arc::new(LowSpace::default()), Arc::new(Versions::new(options.command_version)));
        let network = Network {
            id: options.id,
            transport: transport.clone(),
            low_space: low_space.clone(),
            epoch: epoch.clone(),
            versions: versions.clone(),
        };
        let raft = Raft::new(options.id, config, network, log.clone(), machine.clone()).await;
        let raft = raft.map_err(|e| OpenError::Raft(e.to_string()))?;
        machine.started();

        let tasks = TaskTracker::new();
        let (catching_up, is_behind) = watch::channel(behind.is_some());
        if let Some(index) = behind {
            runtime::spawn(&tasks, refill::catch_up(index, raft.clone(), machine.clone(), catching_up));
        }
        let (publish, status) = watch::channel(Status { id: options.id, epoch: epoch.own(), ..Status::default() });
        let sources = Sources {
            raft: raft.clone(),
            log: log.clone(),
            machine: machine.clone(),
            space: space.clone(),
            epoch: epoch.clone(),
        };
        runtime::spawn(&tasks, keeper::publish_status(sources, publish));
        let (reads, asker) = Reads::new();
        let batcher = Batcher::start(raft.clone(), machine.clone(), options.events, &tasks);
        let inner = Inner {
            options,
            raft,
            log,
            machine,
            batcher,
            reads,
            transport,
            space,
            low_space,
            grown_bytes: AtomicU64::default(),
            epoch,
            versions,
            status,
            is_behind,
            tasks,
            slice: slice::Current::default(),
            receiving: Mutex::new(()),
            absences: Mutex::new(Absences::default()),
        };
        let inner = Arc::new(inner);
        runtime::spawn(&inner.tasks, keeper::keep(inner.clone(), asker));
        Ok(Self { inner })
    }

    /// Whether this replica was emptied and has yet to catch up: what it has is what was there long ago.
    pub fn is_behind(&self) -> bool {
        *self.inner.is_behind.borrow()
    }

    /// Waits until this replica is no longer behind.
    pub async fn caught_up(&self) {
        // Who is told no more is at its end, and so is whoever waits.
        if self.inner.is_behind.clone().wait_for(|behind| !behind).await.is_err() {
            self.inner.machine.closing().cancelled().await;
        }
    }

    /// Makes this replica the sole voter of a new cluster. Does nothing if it is in a cluster.
    pub async fn bootstrap(&self) -> Result<(), Error> {
        let inner = &self.inner;
        let adopted = epoch::adopt(&inner.epoch, EpochId::FIRST, &inner.log, &inner.machine).await;
        adopted.map_err(|e| Error::Refused(e.to_string()))?;
        match self.inner.raft.initialize(BTreeSet::from([self.inner.id()])).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(Error::Refused(error.to_string())),
        }
    }

    /// Applies a Change, through whoever leads, and waits until it is applied there.
    ///
    /// # Errors
    /// See [`ProposeError`]; only after `Unknown` may the Change have been applied.
    pub async fn propose(&self, change: Change) -> Result<Applied, ProposeError> {
        limits::check(&change).map_err(ProposeError::Invalid)?;
        let reply = self.inner.ask_leader(Request::Propose(change)).await.map_err(|refusal| match refusal {
            Refusal::NotLeader(_) => ProposeError::NoLeader(self.inner.options.request_timeout),
            Refusal::NoSpace => ProposeError::NoSpace,
            Refusal::Invalid(why) => ProposeError::Invalid(why),
            Refusal::Unknown(why) => ProposeError::Unknown(why),
            Refusal::Failed(why) => ProposeError::Failed(why),
            Refusal::Epoch(epoch) => ProposeError::Failed(format!("the leader is of another epoch, {epoch}")),
        })?;
        match reply {
            Reply::Propose(Outcome::Applied(applied)) => Ok(applied),
            Reply::Propose(Outcome::Conflict(conflict)) => Err(ProposeError::Conflict(conflict)),
            Reply::Propose(Outcome::Invalid(why)) => Err(ProposeError::Invalid(why)),
            Reply::Propose(Outcome::StaleTerm { wanted, current }) => Err(ProposeError::StaleTerm { wanted, current }),
            _ => Err(ProposeError::Unknown("the leader's reply does not fit the request".into())),
        }
    }

    /// After this, local reads see everything that was acknowledged before it was called.
    /// Returns the revision applied here.
    pub async fn barrier(&self) -> Result<u64, ReadError> {
        let timeout = self.inner.options.request_timeout;
        let closing = self.inner.machine.closing();
        let asked = async {
            loop {
                let (source, over) = self.inner.slice.source(&self.inner.machine);
                let reached = async {
                    match source {
                        Source::Replica(_) => Some(self.own_barrier().await),
                        Source::Slice(slice) => slice.barrier().await.map(Ok),
                    }
                };
                // What one source cannot answer any more, the next one does.
                match over.run_until_cancelled(reached).await {
                    Some(Some(answer)) => return answer,
                    Some(None) => over.cancelled().await,
                    None => {}
                }
            }
        };
        tokio::select! {
            biased;
            answered = tokio::time::timeout(timeout, asked) => answered.unwrap_or(Err(ReadError::NoLeader(timeout))),
            () = closing.cancelled() => Err(ReadError::Closed),
        }
    }

    /// As [`barrier`](Self::barrier), for this node's own replica, wherever reads come from. One that was let go, or that
    /// nobody keeps up to date, never gets there.
    async fn own_barrier(&self) -> Result<u64, ReadError> {
        let timeout = self.inner.options.request_timeout;
        let index = match tokio::time::timeout(timeout, self.inner.reads.index()).await {
            Ok(Ok(index)) => index,
            _ if self.inner.machine.closing().is_cancelled() => return Err(ReadError::Closed),
            _ => return Err(ReadError::NoLeader(timeout)),
        };
        let applied = self.inner.machine.state().header().applied.map_or(0, |id| id.index);
        if applied < index {
            let wait = self.inner.raft.wait(Some(timeout));
            wait.applied_index_at_least(Some(index), "barrier").await.map_err(|_| ReadError::NoLeader(timeout))?;
        }
        // What is in the state is announced a moment later; what is said of a revision goes by what was announced.
        let revision = self.inner.machine.state().header().revision;
        let mut announced = self.inner.machine.hub().subscribe();
        let until = announced.wait_for(|announced| *announced >= revision);
        let seen = tokio::time::timeout(timeout, until).await.map_err(|_| ReadError::NoLeader(timeout))?.map(drop);
        seen.map_err(|_| ReadError::Closed)?;
        Ok(self.own_revision())
    }

    /// An object as this replica has it, which may be stale unless after a [`barrier`](Self::barrier).
    pub fn get(&self, key: &Key) -> Result<Option<KeyValue>, ReadError> {
        match self.source() {
            Source::Slice(slice) => Ok(slice.get(key)),
            Source::Replica(machine) => machine.state().get(key),
        }
    }

    /// An object as it was at a revision.
    pub fn get_at(&self, key: &Key, revision: u64) -> Result<Option<KeyValue>, ReadError> {
        match self.source() {
            Source::Slice(slice) => match slice.hub().revision() {
                now if now == revision => Ok(slice.get(key)),
                now => Err(ReadError::Compacted { wanted: revision, oldest: now }),
            },
            Source::Replica(machine) => machine.state().get_at(key, revision),
        }
    }

    /// Objects in order of their keys, as this replica has them now or had them at a revision.
    pub fn range(&self, range: Range) -> Result<Listing, ReadError> {
        self.source().page(&range, &mut None)
    }

    /// The same, a page of about 256 KiB at a time, all as of one revision. A limit bounds each page.
    pub fn pages(&self, range: Range) -> Pages {
        Pages::new(self.inner.slice.source(&self.inner.machine), range)
    }

    /// How many keys a range has, whatever its limit; `None` if they are more than `most`.
    pub fn count(&self, range: &Range, most: usize) -> Result<Option<usize>, ReadError> {
        match self.source() {
            Source::Slice(slice) => slice.count(range, most),
            Source::Replica(machine) => machine.state().count(range, most),
        }
    }

    /// Follows the keys that start with `prefix` from revision `from` on; 0 means from now on.
    ///
    /// Waits up to 3 s for a revision that this replica has yet to reach.
    pub async fn watch(&self, prefix: &str, from: u64) -> Result<Watch, ReadError> {
        if from > 1 {
            self.reach(from - 1).await?;
        }
        let source = self.inner.slice.source(&self.inner.machine);
        let oldest = match &source.0 {
            Source::Replica(machine) => machine.state().header().compacted + 1,
            Source::Slice(slice) => slice.first() + 1,
        };
        match from {
            0 => {
                let next = source.0.hub().revision() + 1;
                Ok(Watch::new(source, prefix, next))
            }
            from if from < oldest => Err(ReadError::Compacted { wanted: from, oldest }),
            from => Ok(Watch::new(source, prefix, from)),
        }
    }

    /// Waits, up to 3 s, until this replica has applied a revision; returns the one it is at.
    pub async fn reach(&self, revision: u64) -> Result<u64, ReadError> {
        let reached = async {
            loop {
                let (source, over) = self.inner.slice.source(&self.inner.machine);
                let mut applied = source.hub().subscribe();
                // Who reads from elsewhere by now waits there.
                if let Some(applied) = over.run_until_cancelled(applied.wait_for(|r| *r >= revision)).await {
                    return applied.map(|applied| *applied);
                }
            }
        };
        match tokio::time::timeout(FUTURE_REVISION_WAIT, reached).await {
            Ok(Ok(applied)) => Ok(applied),
            Ok(Err(_)) => Err(ReadError::Closed),
            Err(_) => Err(ReadError::Future { wanted: revision, current: self.revision() }),
        }
    }

    /// Forgets history up to and including a revision, on every replica. Leader only.
    pub async fn compact(&self, revision: u64) -> Result<(), Error> {
        Ok(self.inner.batcher.compact(revision).await?)
    }

    /// History up to and including this revision is forgotten here.
    pub fn compacted(&self) -> u64 {
        self.inner.machine.state().header().compacted
    }

    /// Begins a backup of everything that was acknowledged before it was called; with `stale`, of what this replica has,
    /// which also works without a leader.
    pub async fn backup(&self, stale: bool) -> Result<Backup, ReadError> {
        if !stale {
            self.barrier().await?;
        }
        Ok(backup::start(&self.inner))
    }

    /// The last revision applied here.
    pub fn revision(&self) -> u64 {
        self.source().hub().revision()
    }

    /// A revision after which nothing of the collection has changed, as far as this replica has applied: what was read
    /// at this revision or later still holds.
    pub fn changed_at(&self, collection: &GroupResource) -> u64 {
        self.changed_under(&collection.prefix())
    }

    /// As [`changed_at`](Self::changed_at), for the keys that begin with `GROUP/` or `GROUP/RESOURCE/`.
    pub fn changed_under(&self, prefix: &str) -> u64 {
        self.source().hub().changed_at(prefix)
    }

    pub fn status(&self) -> watch::Receiver<Status> {
        self.inner.status.clone()
    }

    pub fn id(&self) -> NodeId {
        self.inner.id()
    }

    /// Adds a replica that follows without a vote. Idempotent.
    pub async fn add_replica(&self, id: NodeId) -> Result<(), Error> {
        self.done_by_leader(Request::AddReplica(id)).await
    }

    /// Removes a replica; a voter's place is given to another, or the number of voters shrinks. Idempotent.
    pub async fn remove_replica(&self, id: NodeId) -> Result<(), Error> {
        self.done_by_leader(Request::RemoveReplica(id)).await
    }

    /// Takes one step towards the wanted voters, if this replica leads; `alive` are the replicas that
    /// respond. Returns the new voters if they changed. To be called about once a second.
    pub async fn reconcile_membership(&self, alive: &BTreeSet<NodeId>) -> Result<Option<BTreeSet<NodeId>>, Error> {
        Ok(self.inner.reconcile_here(alive, Instant::now()).await?)
    }

    /// The replicas that have been dead for so long that others may take their places, as the leader has seen it in its
    /// present term. Nobody else knows of any.
    pub async fn long_dead(&self) -> BTreeSet<NodeId> {
        let absences = self.inner.absences.lock().await;
        absences.longer_than(self.inner.term(), self.inner.options.replace_dead_after, Instant::now())
    }

    /// Makes another voter leader: this one, or whichever has most of the log.
    pub async fn transfer_leader(&self, to: Option<NodeId>) -> Result<(), Error> {
        self.done_by_leader(Request::TransferLeader(to)).await
    }

    /// Answers what a peer's [`Transport::call`] delivers; `from` is the authenticated sender.
    pub async fn handle(&self, from: NodeId, message: Bytes) -> Result<Bytes, HandleError> {
        self.inner.handle(from, &message).await
    }

    /// Serves what a peer's [`Transport::open_stream`] opened, until it ends.
    pub async fn handle_stream(&self, from: NodeId, reader: Reader, writer: Writer) -> Result<(), HandleError> {
        self.inner.handle_stream(from, reader, writer).await
    }

    /// Stops taking part and lets go of the databases, if no other handle or watch holds them.
    pub async fn shutdown(self) {
        self.inner.machine.closing().cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
        if let Err(error) = self.inner.raft.shutdown().await {
            tracing::warn!(%error, "Raft did not stop in order");
        }
        self.inner.log.close().await;
        // Raft's own tasks end soon after; other handles may live on for as long as they like.
        let disk = self.inner.machine.disk().clone();
        let Some(inner) = Arc::into_inner(self.inner) else { return };
        drop(inner);
        if !disk.released(RELEASE_WAIT).await {
            tracing::warn!("the databases are still held");
        }
    }

    /// The log index that this replica has applied, and every record of its state.
    #[cfg(test)]
    pub(crate) fn dump(&self) -> (u64, Vec<crate::disk::Record>) {
        let state = self.inner.machine.state();
        (state.header().applied.map_or(0, |id| id.index), state.every_record())
    }

    /// From now on reads come from a slice that a replica feeds; writes go to the leader by way of that replica.
    ///
    /// # Errors
    /// If reads would go back by it, or this node leads.
    pub fn read_slice(&self, start: SliceStart) -> Result<SliceFeed, SliceRefused> {
        self.inner.read_slice(start)
    }

    /// Waits until this node's own replica can be read from: it is in the group, kept up to date, and has come as far as
    /// what is read from. Follow it by [`leave_slice`](Self::leave_slice) before the slice is fed any further.
    pub async fn until_own_replica_serves(&self) {
        loop {
            let status = self.inner.status.borrow().clone();
            let is_member = status.voters.contains(&status.id) || status.learners.contains(&status.id);
            // A replica that was let go without hearing of it takes itself for a member, but never gets past a barrier.
            if is_member && self.own_barrier().await.is_ok() && self.own_revision() >= self.revision() {
                return;
            }
            tokio::time::sleep(OWN_REPLICA_LOOK).await;
        }
    }

    /// From now on reads come from this node's own replica.
    pub fn leave_slice(&self) {
        self.inner.leave_slice();
    }

    /// The replica that feeds the slice that is read from, if one is.
    pub fn fed_by(&self) -> Option<NodeId> {
        self.inner.slice.slice().map(|slice| slice.replica)
    }

    /// The cluster epoch in which this node speaks: its replica's or its slice's, and none until it has one.
    pub fn spoken_epoch(&self) -> EpochId {
        self.inner.spoken_epoch()
    }

    /// Takes note of the cluster epoch that a member says it is of: one that is later than this replica's has begun without
    /// it.
    pub fn heard_epoch(&self, from: NodeId, epoch: EpochId) {
        self.inner.epoch.heard(from, epoch);
    }

    /// Tells a member of another cluster epoch which one this replica is of, and hears of its.
    pub async fn greet(&self, member: NodeId) {
        // Whatever else it answers is of no use here.
        let _ = self.inner.ask_peer(member, &Request::ReadIndex, GREETING_TIMEOUT).await;
    }

    /// How often this node has begun to read from elsewhere. What was read belongs together if this is the same before the
    /// first look and after the last.
    pub fn turns(&self) -> u64 {
        self.inner.slice.turns()
    }

    /// Waits until reads come from a slice, or else from this node's own replica.
    pub async fn until_fed(&self, fed: bool) {
        self.inner.slice.until_fed(fed).await;
    }

    /// The last revision applied to this node's own replica, wherever reads come from.
    pub fn own_revision(&self) -> u64 {
        self.inner.machine.hub().revision()
    }

    fn source(&self) -> Source {
        self.inner.slice.source(&self.inner.machine).0
    }

    async fn done_by_leader(&self, request: Request) -> Result<(), Error> {
        match self.inner.ask_leader(request).await {
            Ok(_) => Ok(()),
            Err(Refusal::NotLeader(_)) => Err(Error::NoLeader(self.inner.options.request_timeout)),
            Err(refusal) => Err(refusal.into()),
        }
    }
}

/// What a replica has on its disk.
struct Opened {
    log: Log,
    machine: Arc<Machine>,
    space: Arc<Space>,
    epoch: Arc<Epoch>,
    /// See [`refill::behind`].
    behind: Option<u64>,
}

async fn open_disk(options: &Options, disk: Disk) -> Result<Opened, OpenError> {
    let options = options.clone();
    let opened = runtime::blocking(move || {
        let dir = &options.dir;
        refill::tidy(dir, &disk)?;
        disk.create_dir(dir).map_err(DiskError::io(dir))?;
        if let Some(mark) = refill::read(dir, &disk)? {
            return Err(DiskError::damaged(dir, mark.detail));
        }
        let mut epoch = EpochId::NONE;
        let opened = open_databases(&options, &disk, &mut epoch);
        if let Err(error) = &opened
            && error.is_damage()
        {
            refill::mark(dir, &Mark { detail: error.to_string(), epoch }, &disk)?;
        }
        opened
    });
    Ok(opened.await.map_err(|e| OpenError::Raft(e.to_string()))??)
}

/// Opens both databases; `found` is the epoch that could be read of them, whatever else could not.
fn open_databases(options: &Options, disk: &Disk, found: &mut EpochId) -> Result<Opened, DiskError> {
    let dir = &options.dir;
    let space = Arc::new(Space::new(options.space_floor, dir, disk));
    let mut places = Places::find(dir, disk)?;
    places.begin(disk)?;
    let log = Log::open(&places.log, &StoreMeta::new(&options.cluster, Some(options.id)), disk);
    *found = log.as_ref().map_or(EpochId::NONE, Log::epoch);
    let machine = Machine::open(dir, &places.state, &options.cluster, options.command_version, disk.clone());
    if let Ok(machine) = &machine
        && !machine.state().epoch().is_none()
    {
        *found = machine.state().epoch();
    }
    let (log, machine) = (log?, Arc::new(machine?));
    places.keep(dir, disk)?;
    places.tidy(dir, disk)?;
    let epoch = Arc::new(Epoch::open(&log, &machine)?);
    Ok(Opened { log, machine, space, epoch, behind: refill::behind(dir, options.id, disk)? })
}

fn raft_config(options: &Options) -> Result<Config, OpenError> {
    let config = Config {
        cluster_name: options.cluster.clone(),
        heartbeat_interval: options.heartbeat_ms,
        election_timeout_min: options.election_min_ms,
        election_timeout_max: options.election_max_ms,
        enable_pre_vote: Some(true),
        // Entries go to followers before they are on the leader's own disk. A leader that lost some of them in a crash
        // and went on in its term would write others in their place.
        enable_leader_restore: Some(false),
        install_snapshot_timeout: 600_000,
        max_payload_entries: 256,
        max_append_entries: Some(256),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(options.snapshot_entries),
        max_in_snapshot_log_to_keep: options.log_keep_entries,
        purge_batch_size: 256,
        api_channel_size: Some(1024),
        notification_channel_size: Some(4096),
        state_machine_channel_size: Some(256),
        log_stage_capacity: Some(16),
        backoff: "50ms 100ms 200ms ...500ms".into(),
        ..Config::default()
    };
    config.validate().map_err(|e| OpenError::Settings(e.to_string()))
}
