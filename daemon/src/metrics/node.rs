//! How a node stands: its replica of the store, and its pods. Looked up when somebody scrapes.

use std::path::Path;

use flotilla_raft::Status;
use flotilla_runtime::Pods;
use flotilla_runtime::state::Phase;
use prometheus::{IntGauge, IntGaugeVec, Opts, Registry};

use super::register;
use crate::node::Node;

/// A node at one moment.
pub struct Standing {
    status: Status,
    compacted: u64,
    store_bytes: u64,
    running_pods: u64,
    containers: [(&'static str, u64); 3],
}

impl Standing {
    pub async fn of(node: &Node) -> Self {
        let store = node.gate.store();
        let directory = node.config.data_dir.join("store");
        let status = store.status().borrow().clone();
        let sandboxes = node.local.pods().map(Pods::list).unwrap_or_default();
        let mut containers = [("created", 0), ("running", 0), ("exited", 0)];
        for container in sandboxes.iter().flat_map(|sandbox| &sandbox.containers) {
            let state = match container.phase {
                Phase::Creating | Phase::Created => 0,
                Phase::Running => 1,
                Phase::Exited(_) => 2,
            };
            containers[state].1 += 1;
        }
        Self {
            // The published status is only renewed when openraft has something to tell.
            status: Status { revision: store.revision(), leader: node.members.acting_leader(&status), ..status },
            compacted: store.compacted(),
            store_bytes: tokio::task::spawn_blocking(move || size(&directory)).await.unwrap_or_default(),
            running_pods: sandboxes.iter().filter(|sandbox| sandbox.ready).count() as u64,
            containers,
        }
    }
}

/// The bytes of all files below a directory; what goes away meanwhile counts nothing.
fn size(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => size(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

pub(super) struct Gauges {
    term: IntGauge,
    is_leader: IntGauge,
    has_leader: IntGauge,
    voters: IntGauge,
    learners: IntGauge,
    last_log_index: IntGauge,
    applied_index: IntGauge,
    log_bytes: IntGauge,
    low_space: IntGauge,
    epoch: IntGauge,
    revision: IntGauge,
    compacted: IntGauge,
    store_bytes: IntGauge,
    running_pods: IntGauge,
    containers: IntGaugeVec,
}

impl Gauges {
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauge = |name, help: &str| register(registry, IntGauge::new(name, help)?);
        let containers = Opts::new("kubelet_running_containers", "Containers on this node, by their state.");
        Ok(Self {
            term: gauge("flotilla_raft_term", "Raft's term, as this replica knows it.")?,
            is_leader: gauge("flotilla_raft_is_leader", "1 on the leader, 0 elsewhere.")?,
            has_leader: gauge("flotilla_raft_has_leader", "1 if this replica knows a leader that a majority answers.")?,
            voters: gauge("flotilla_raft_voters", "Replicas that vote.")?,
            learners: gauge("flotilla_raft_learners", "Replicas that follow without a vote.")?,
            last_log_index: gauge("flotilla_raft_last_log_index", "The index of this replica's last log entry.")?,
            applied_index: gauge("flotilla_raft_applied_index", "The index of the last entry applied here.")?,
            log_bytes: gauge("flotilla_raft_log_bytes", "Bytes of the log's entries that are still kept.")?,
            low_space: gauge("flotilla_raft_low_space", "1 if this replica's disk is nearly full.")?,
            epoch: gauge("flotilla_raft_epoch", "Which life of the cluster this is.")?,
            revision: gauge("flotilla_store_revision", "The last revision applied here.")?,
            compacted: gauge("flotilla_store_compacted_revision", "History up to this revision is forgotten.")?,
            store_bytes: gauge("flotilla_store_size_bytes", "Bytes of the store's files, log and state.")?,
            running_pods: gauge("kubelet_running_pods", "Pods that have a running sandbox on this node.")?,
            containers: register(registry, IntGaugeVec::new(containers, &["container_state"])?)?,
        })
    }

    pub fn set(&self, standing: &Standing) {
        let status = &standing.status;
        let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        self.term.set(number(status.term));
        self.is_leader.set(status.is_leader.into());
        self.has_leader.set(status.leader.is_some().into());
        self.voters.set(number(status.voters.len() as u64));
        self.learners.set(number(status.learners.len() as u64));
        self.last_log_index.set(number(status.last_log_index));
        self.applied_index.set(number(status.applied_index));
        self.log_bytes.set(number(status.log_bytes));
        self.low_space.set(status.low_space.into());
        self.epoch.set(number(status.epoch.into()));
        self.revision.set(number(status.revision));
        self.compacted.set(number(standing.compacted));
        self.store_bytes.set(number(standing.store_bytes));
        self.running_pods.set(number(standing.running_pods));
        for (state, count) in &standing.containers {
            self.containers.with_label_values(&[*state]).set(number(*count));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_as_large_as_its_files() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), [0; 10]).unwrap();
        std::fs::create_dir(dir.path().join("b")).unwrap();
        std::fs::write(dir.path().join("b/c"), [0; 5]).unwrap();
        assert_eq!(size(dir.path()), 15);
        assert_eq!(size(&dir.path().join("none")), 0);
    }
}
