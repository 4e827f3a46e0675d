//! The one door to every planner.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use flotilla_api::Change;
use jiff::Timestamp;
use rand::RngCore;

use crate::view::View;
use crate::work::Work;
use crate::{
    address, budget, definition, deployment, garbage, job, namespace, node, priority, quota, replica_set, scheduler,
};

/// Who the planners' Changes are made for.
pub(crate) const USER: &str = "system:flotilla";

/// What the heartbeats say about a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    Alive,
    /// Silent long enough to prefer other nodes.
    Suspect,
    /// Silent so long that its work moves.
    Dead,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeLiveness {
    pub state: Liveness,
    /// How long nothing was heard.
    pub silent_ms: u64,
}

/// What an operator may choose.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// How long pods without an own toleration stay on a node that is not ready or unreachable.
    pub default_toleration_seconds: u32,
    /// When more than half of three or more nodes are silent: the time between two nodes whose pods
    /// are told to move.
    pub mass_silence_interval_ms: u64,
    /// Where the nodes' pod address ranges are taken from: the network, and its prefix length.
    pub cluster_cidr: (Ipv4Addr, u8),
    /// Where the addresses of Services are taken from: the network, and its prefix length.
    pub service_cidr: (Ipv4Addr, u8),
    /// Prefix length of one node's range.
    pub node_cidr_prefix: u8,
    /// Finished pods beyond this number are removed, oldest first.
    pub finished_pods_kept: usize,
    /// Pods that one scheduling pass decides about; the rest wait for the next pass.
    pub schedule_pass_pods: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            default_toleration_seconds: 0,
            mass_silence_interval_ms: 30_000,
            cluster_cidr: (Ipv4Addr::new(10, 244, 0, 0), 16),
            service_cidr: (Ipv4Addr::new(10, 96, 0, 0), 16),
            node_cidr_prefix: 24,
            finished_pods_kept: 12_500,
            schedule_pass_pods: 5_000,
        }
    }
}

/// All that a planner may know.
pub struct Context<'a> {
    pub view: &'a View,
    pub now: Timestamp,
    /// By node name. A node that is not listed is not judged: its own word stands.
    pub liveness: &'a BTreeMap<String, NodeLiveness>,
    pub rng: &'a mut dyn RngCore,
    pub settings: &'a Settings,
}

impl Context<'_> {
    pub(crate) fn liveness(&self, node: &str) -> Option<NodeLiveness> {
        self.liveness.get(node).copied()
    }
}

/// What to do, and when to ask again though nothing changed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Independent of each other; Events are among the writes of the Change that they tell about.
    pub changes: Vec<Change>,
    /// The same Work should be planned again at this time.
    pub wake_at: Option<Timestamp>,
}

impl Plan {
    /// Asks to be planned again at `at`, or earlier if that was asked for already.
    pub(crate) fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |other| other.min(at)));
    }

    /// Adds a Change unless it writes nothing.
    pub(crate) fn add(&mut self, change: Change) {
        if !change.writes.is_empty() {
            self.changes.push(change);
        }
    }
}

/// A Change of the planner `manager`, still without writes.
pub(crate) fn change(manager: &str) -> Change {
    Change::new(USER, manager)
}

/// Decides about one piece of Work.
///
/// The shell proposes all Changes of the plan. One that is refused because of a precondition was made
/// from an outdated View: the watch event that brings the View up to date also brings the Work back.
pub fn plan(work: &Work, cx: &mut Context<'_>) -> Plan {
    match work {
        Work::Nodes => node::plan_nodes(cx),
        Work::Evict(name) => node::plan_eviction(name, cx),
        Work::Namespace(name) => namespace::plan(name, cx),
        Work::Definition(name) => definition::plan(name, cx),
        Work::Deployment(key) => deployment::plan(key, cx),
        Work::ReplicaSet(key) => replica_set::plan(key, cx),
        Work::Job(key) => job::plan(key, cx),
        Work::ReplicationController(key) => replica_set::plan_controller(key, cx),
        Work::Budget(key) => budget::plan(key, cx),
        Work::ServiceRange => address::plan_range(cx),
        Work::Address(key) => address::plan(key, cx),
        Work::PriorityClasses => priority::plan(cx),
        Work::Quota(key) => quota::plan(key, cx),
        Work::Garbage(key) => garbage::plan(key, cx),
        Work::FinishedPods => garbage::plan_finished_pods(cx),
        Work::Schedule => scheduler::plan(cx),
    }
}
