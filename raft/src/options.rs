//! What a replica can be told, with defaults that fit a cluster of small machines.

use std::path::PathBuf;
use std::time::Duration;

use crate::command::{COMMAND_VERSION, EventBounds};
use crate::membership::MAX_REPLICAS;
use crate::space::SpaceFloor;
use crate::state::HistoryBounds;
use crate::types::NodeId;

#[derive(Clone, Debug)]
pub struct Options {
    /// Where this replica keeps its log and state; made if it is missing.
    pub dir: PathBuf,
    /// The directory's random id, never 0.
    pub id: NodeId,
    /// The cluster's id; a directory of another cluster is refused.
    pub cluster: String,
    pub heartbeat_ms: u64,
    /// A follower calls an election after `election_max_ms` of silence and a random
    /// `election_min_ms..election_max_ms` more.
    pub election_min_ms: u64,
    pub election_max_ms: u64,
    /// How long a proposal or a read waits for a leader and an answer.
    pub request_timeout: Duration,
    /// A leader whose disk has not finished a write for this long hands over.
    pub disk_stall: Duration,
    /// The newest commands that this replica understands: the build's, but for tests of upgrades.
    pub command_version: u32,
    pub history: HistoryBounds,
    pub events: EventBounds,
    pub space_floor: SpaceFloor,
    /// The state is flushed and the log before it purged after this many entries or bytes.
    pub snapshot_entries: u64,
    pub log_bytes: u64,
    /// Entries that stay in the log beyond what the state holds, for followers that are a little behind.
    pub log_keep_entries: u64,
    /// A voter that has been dead for this long gives its place to a learner.
    pub replace_dead_after: Duration,
    /// How many replicas there are to be at most; there is one more while it takes another's place.
    pub max_replicas: usize,
}

impl Options {
    pub fn new(dir: impl Into<PathBuf>, id: NodeId, cluster: impl Into<String>) -> Self {
        const MINUTE_MS: u64 = 60_000;
        const MIB: u64 = 1 << 20;
        Self {
            dir: dir.into(),
            id,
            cluster: cluster.into(),
            heartbeat_ms: 100,
            election_min_ms: 250,
            election_max_ms: 400,
            request_timeout: Duration::from_secs(5),
            disk_stall: Duration::from_secs(2),
            command_version: COMMAND_VERSION,
            history: HistoryBounds { max_revisions: 200_000, max_bytes: 256 * MIB, max_age_ms: 10 * MINUTE_MS },
            events: EventBounds { max_count: 10_000, max_age_ms: 60 * MINUTE_MS },
            space_floor: SpaceFloor { min_bytes: 256 * MIB, min_percent: 1, reserve_bytes: 64 * MIB },
            snapshot_entries: 10_000,
            log_bytes: 64 * MIB,
            log_keep_entries: 2_000,
            replace_dead_after: Duration::from_secs(300),
            max_replicas: MAX_REPLICAS,
        }
    }
}
