//! How a replica stands, for its user to watch.

use std::collections::BTreeSet;
use std::time::Duration;

use openraft::Instant as _;
use tokio::time::Instant;

use crate::epoch::{EpochId, Standing};
use crate::types::{NodeId, Types};

/// A leader that no majority has answered for so long leads nobody: by then the others have elected another, if they can.
const LEADS_UNHEARD: Duration = Duration::from_secs(3);

/// A watcher of it is woken when something changes but how far the replica has come, and then sees that too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    pub id: NodeId,
    pub leader: Option<NodeId>,
    pub term: u64,
    /// The life of the cluster that this replica belongs to; none until it belongs to one.
    pub epoch: EpochId,
    /// The cluster has begun this epoch without this replica, which therefore has to join anew.
    pub superseded_by: Option<EpochId>,
    /// A member is of this epoch, which was begun apart from this replica's: there are two clusters with one name.
    pub beside: Option<EpochId>,
    pub is_leader: bool,
    /// When more than half of the voters last answered this replica as their leader.
    pub heard_at: Option<Instant>,
    pub voters: BTreeSet<NodeId>,
    /// They are being changed: until that is done, it takes more than half of the old ones and of the new ones.
    pub voters_change: bool,
    pub learners: BTreeSet<NodeId>,
    /// The index of the last log entry applied here.
    pub applied_index: u64,
    /// The last revision applied here.
    pub revision: u64,
    /// The newest commands that the members have agreed on.
    pub version: u32,
    pub last_log_index: u64,
    /// Bytes of the log's entries that are still kept.
    pub log_bytes: u64,
    /// This replica's disk is nearly full.
    pub low_space: bool,
    /// Why this replica no longer takes part; its process should end.
    pub fatal: Option<String>,
}

impl Status {
    /// Whether more is different than how far the replica has come, which nobody waits for.
    pub(crate) fn differs(&self, next: &Self) -> bool {
        let Self { applied_index, revision, last_log_index, log_bytes, heard_at, .. } = *next;
        Self { applied_index, revision, last_log_index, log_bytes, heard_at, ..self.clone() } != *next
    }

    /// Who leads in deed. A leader that was cut off from the others goes on taking itself for theirs.
    pub fn acting_leader(&self) -> Option<NodeId> {
        let is_heard = self.voters.len() < 2 || self.heard_at.is_some_and(|at| at.elapsed() < LEADS_UNHEARD);
        self.leader.filter(|_| !self.is_leader || is_heard)
    }

    pub(crate) fn from_metrics(
        metrics: &openraft::RaftMetrics<Types>,
        standing: Standing,
        revision: u64,
        log_bytes: u64,
        low_space: bool,
    ) -> Self {
        let membership = metrics.membership_config.membership();
        Self {
            id: metrics.id,
            leader: metrics.current_leader,
            term: metrics.current_term,
            epoch: standing.own,
            superseded_by: standing.superseded_by,
            beside: standing.beside,
            heard_at: metrics.last_quorum_acked.and_then(|at| Instant::now().checked_sub(at.elapsed())),
            is_leader: metrics.state.is_leader() && metrics.current_leader == Some(metrics.id),
            voters: membership.voter_ids().collect(),
            voters_change: membership.get_joint_config().len() > 1,
            learners: membership.learner_ids().collect(),
            applied_index: metrics.last_applied.as_ref().map_or(0, |id| id.index()),
            revision,
            version: 0,
            last_log_index: metrics.last_log_index.unwrap_or_default(),
            log_bytes,
            low_space,
            fatal: metrics.running_state.as_ref().err().map(ToString::to_string),
        }
    }
}
