//! What the store's handles share, and what only the leader's can do.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flotilla_api::{Change, Write};
use openraft::ChangeMembers;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::batcher::Batcher;
use crate::epoch::Epoch;
use crate::limits;
use crate::log::Log;
use crate::machine::Machine;
use crate::membership::{self, Absences, MAX_REPLICAS, MAX_REPLICAS_FOR_NOW, View};
use crate::network::LowSpace;
use crate::options::Options;
use crate::outcome::Outcome;
use crate::reads::Reads;
use crate::runtime::watch;
use crate::slice;
use crate::space::Space;
use crate::status::Status;
use crate::transport::Transport;
use crate::types::{NodeId, Raft, Types};
use crate::versions::Versions;
use crate::wire::{Refusal, listed};

/// A replica that lacks at most this many entries is caught up.
const CAUGHT_UP_ENTRIES: u64 = 1000;
/// By so much an object may grow on a disk that is nearly full: many objects are marked before they are deleted.
const DELETION_MARK_BYTES: usize = 512;
/// What the cluster writes by itself while a disk is nearly full may be this part of the reserve: on disk it is several
/// times as much.
const RESERVE_PER_OWN_GROWTH: u64 = 16;
/// A change of membership is given up waiting for after this time; it may still happen.
const MEMBERSHIP_TIMEOUT: Duration = Duration::from_secs(10);
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(3);

pub(crate) struct Inner {
    pub options: Options,
    pub raft: Raft,
    pub log: Log,
    pub machine: Arc<Machine>,
    pub batcher: Batcher,
    pub reads: Reads,
    pub transport: Arc<dyn Transport>,
    pub space: Arc<Space>,
    pub low_space: Arc<LowSpace>,
    /// What the cluster has written by itself since a voter's disk is nearly full.
    pub grown_bytes: AtomicU64,
    pub epoch: Arc<Epoch>,
    pub versions: Arc<Versions>,
    pub status: watch::Receiver<Status>,
    pub is_behind: watch::Receiver<bool>,
    pub tasks: TaskTracker,
    /// What is read from while this node has no replica.
    pub slice: slice::Current,
    /// Held while a snapshot is received.
    pub receiving: Mutex<()>,
    /// Held while the membership changes.
    pub absences: Mutex<Absences>,
}

/// Whether planners or nodes want a Change, and it is no mere Event.
fn is_own(change: &Change) -> bool {
    let wanted = change.term.is_some() || change.user.starts_with("system:node:") || change.user == "system:flotilla";
    wanted && !change.writes.iter().any(|write| limits::is_event_kind(write.key()))
}

type WriteFailure = RaftError<Types, ClientWriteError<Types>>;

fn refusal(error: WriteFailure) -> Refusal {
    match error.forward_to_leader() {
        Some(forward) => Refusal::NotLeader(forward.leader_id),
        None => Refusal::Failed(error.to_string()),
    }
}

impl Inner {
    pub fn id(&self) -> NodeId {
        self.options.id
    }

    pub fn leader(&self) -> Option<NodeId> {
        self.raft.server_metrics().borrow_watched().current_leader
    }

    pub fn term(&self) -> u64 {
        self.raft.metrics().borrow_watched().current_term
    }

    fn leads(&self) -> Result<(), Refusal> {
        match self.leader() {
            Some(leader) if leader == self.id() => Ok(()),
            other => Err(Refusal::NotLeader(other)),
        }
    }

    /// Proposes a Change if this replica leads.
    pub async fn propose_here(&self, change: Change) -> Result<Outcome, Refusal> {
        self.leads()?;
        limits::check(&change).map_err(Refusal::Invalid)?;
        self.admit_growth(&change)?;
        self.batcher.propose(change).await
    }

    /// While a voter's disk is nearly full, what the cluster does by itself may grow a little: a dead node is found and its
    /// pods run elsewhere. Everybody else has to wait.
    fn admit_growth(&self, change: &Change) -> Result<(), Refusal> {
        if !self.raft.voter_ids().any(|voter| self.is_low(voter)) {
            self.grown_bytes.store(0, Ordering::Relaxed);
            return Ok(());
        }
        if !self.grows(change) {
            return Ok(());
        }
        let room_bytes = self.options.space_floor.reserve_bytes / RESERVE_PER_OWN_GROWTH;
        let change_bytes = limits::change_bytes(change) as u64;
        match is_own(change) && self.grown_bytes.fetch_add(change_bytes, Ordering::Relaxed) < room_bytes {
            true => Ok(()),
            false => Err(Refusal::NoSpace),
        }
    }

    /// Whether a replica's disk is nearly full, as far as this one knows.
    fn is_low(&self, replica: NodeId) -> bool {
        match replica == self.id() {
            true => self.space.is_low(),
            false => self.low_space.contains(replica),
        }
    }

    /// Whether a Change leaves more bytes than it found, and than it takes to mark what is there as being deleted.
    fn grows(&self, change: &Change) -> bool {
        let state = self.machine.state();
        let found = |key| state.get(key).ok().flatten().map_or(0, |kv| kv.value.len() + DELETION_MARK_BYTES);
        let (mut before_bytes, mut after_bytes) = (0, 0);
        for write in &change.writes {
            before_bytes += found(write.key());
            if let Write::Put { value, .. } = write {
                after_bytes += value.len();
            }
        }
        after_bytes > before_bytes
    }

    pub async fn add_replica_here(&self, id: NodeId) -> Result<(), Refusal> {
        self.leads()?;
        if id == 0 {
            return Err(Refusal::Invalid("a replica's id is never 0".into()));
        }
        let _alone = self.absences.lock().await;
        let view = self.view();
        if view.voters.contains(&id) || view.learners.contains(&id) {
            return Ok(());
        }
        if view.voters.len() + view.learners.len() >= MAX_REPLICAS_FOR_NOW {
            return Err(Refusal::Invalid(format!("there are {MAX_REPLICAS} replicas already")));
        }
        self.change_membership(ChangeMembers::AddNodes([(id, ())].into()), true).await
    }

    /// Takes a replica out of the group. Once this is done, a membership without it is committed, and was when it was asked
    /// for or later.
    pub async fn remove_replica_here(&self, id: NodeId) -> Result<(), Refusal> {
        self.leads()?;
        let _alone = self.absences.lock().await;
        // Only a leader that still leads knows the last membership, and what it knows may not be committed yet.
        self.read_index().await?;
        let view = self.view();
        if !view.voters.contains(&id) && !view.learners.contains(&id) {
            return self.membership_committed().await;
        }
        if id == self.id() {
            return self.leave(&view).await;
        }
        let voters = membership::without(&view, id);
        if voters != view.voters {
            self.change_membership(ChangeMembers::ReplaceAllVoters(voters), true).await?;
        }
        self.change_membership(ChangeMembers::RemoveNodes([id].into()), false).await
    }

    /// Waits until the membership that this leader goes by is committed.
    async fn membership_committed(&self) -> Result<(), Refusal> {
        let at = self.raft.metrics().borrow_watched().membership_config.log_id().as_ref().map(|id| id.index());
        let applied = self.raft.wait(Some(MEMBERSHIP_TIMEOUT));
        let applied = applied.applied_index_at_least(at, "the membership").await;
        applied.map(|_| ()).map_err(|_| Refusal::Unknown("the membership is not committed yet".into()))
    }

    /// A leader that is to go makes somebody else leader, who then removes it.
    async fn leave(&self, view: &View) -> Result<(), Refusal> {
        let others: BTreeSet<NodeId> = view.voters.iter().copied().filter(|id| *id != self.id()).collect();
        let heir = match others.iter().find(|id| view.caught_up.contains(id)) {
            Some(heir) => *heir,
            None if others.is_empty() => {
                let heir = view.learners.iter().find(|id| view.caught_up.contains(id));
                let heir = *heir.ok_or_else(|| Refusal::Invalid("no other replica could lead".into()))?;
                self.change_membership(ChangeMembers::ReplaceAllVoters([heir].into()), true).await?;
                heir
            }
            None => return Err(Refusal::Failed("no other voter is caught up".into())),
        };
        self.hand_over(heir).await?;
        Err(Refusal::NotLeader(Some(heir)))
    }

    async fn change_membership(&self, change: ChangeMembers<NodeId, ()>, retain: bool) -> Result<(), Refusal> {
        let changing = self.raft.change_membership(change, retain);
        match tokio::time::timeout(MEMBERSHIP_TIMEOUT, changing).await {
            Ok(changed) => changed.map(|_| ()).map_err(refusal),
            Err(_) => Err(Refusal::Unknown(format!("the membership has not changed within {MEMBERSHIP_TIMEOUT:?}"))),
        }
    }

    /// The replicas as this leader sees them; `dead` is left empty.
    fn view(&self) -> View {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let membership = metrics.membership_config.membership();
        let last = metrics.last_log_index.unwrap_or_default();
        let mut caught_up: BTreeSet<NodeId> = [self.id()].into();
        for (id, matched) in metrics.replication.iter().flatten() {
            let has = matched.as_ref().map_or(0, |id| id.index());
            if matched.is_some() && has + CAUGHT_UP_ENTRIES >= last {
                caught_up.insert(*id);
            }
        }
        let replicas = membership.voter_ids().chain(membership.learner_ids());
        View {
            leader: self.id(),
            low_space: replicas.filter(|id| self.is_low(*id)).collect(),
            voters: membership.voter_ids().collect(),
            learners: membership.learner_ids().collect(),
            caught_up,
            dead: Default::default(),
            max_replicas: self.options.max_replicas,
        }
    }

    /// Takes the next step towards the wanted voters; returns the new ones if they changed.
    pub async fn reconcile_here(
        &self,
        alive: &BTreeSet<NodeId>,
        now: Instant,
    ) -> Result<Option<BTreeSet<NodeId>>, Refusal> {
        let mut absences = self.absences.lock().await;
        if self.leads().is_err() {
            absences.forget();
            return Ok(None);
        }
        let mut view = self.view();
        let replicas = view.voters.union(&view.learners).copied().collect();
        view.dead = absences.note(self.term(), &replicas, &alive.union(&[self.id()].into()).copied().collect(), now);
        if self.raft.metrics().borrow_watched().membership_config.get_joint_config().len() > 1 {
            // A leader died between the two steps of a change: take the second one.
            self.change_membership(ChangeMembers::AddVoterIds(BTreeSet::new()), true).await?;
            return Ok(None);
        }
        let Some(voters) = membership::plan(&view, self.options.replace_dead_after) else { return Ok(None) };
        tracing::info!(from = listed(&view.voters), to = listed(&voters), "changing the voters");
        self.change_membership(ChangeMembers::ReplaceAllVoters(voters.clone()), true).await?;
        Ok(Some(voters))
    }

    pub async fn transfer_leader_here(&self, to: Option<NodeId>) -> Result<(), Refusal> {
        self.leads()?;
        let heir = match to {
            Some(to) if to == self.id() => return Ok(()),
            Some(to) if self.raft.voter_ids().any(|id| id == to) => to,
            Some(to) => return Err(Refusal::Invalid(format!("{to:016x} is not a voter"))),
            None => self.best_heir().ok_or_else(|| Refusal::Invalid("there is no other voter".into()))?,
        };
        self.hand_over(heir).await
    }

    /// The voter that has most of the log, beside this one.
    pub fn best_heir(&self) -> Option<NodeId> {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let replication = metrics.replication.unwrap_or_default();
        let others = metrics.membership_config.membership().voter_ids().filter(|id| *id != self.id());
        others.max_by_key(|id| (replication.get(id).copied().flatten(), *id))
    }

    async fn hand_over(&self, to: NodeId) -> Result<(), Refusal> {
        self.raft.trigger().transfer_leader(to).await.map_err(|e| Refusal::Failed(e.to_string()))?;
        let id = self.id();
        let moved = self.raft.wait(Some(TRANSFER_TIMEOUT));
        let moved = moved.metrics(|m| m.current_leader.is_some_and(|l| l != id), "another leader");
        moved.await.map(|_| ()).map_err(|_| Refusal::Failed(format!("{to:016x} has not taken the leadership")))
    }
}
