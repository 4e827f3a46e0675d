//! Which pods are missed least, when there are too many: upstream's order of deletion.

use std::cmp::Reverse;
use std::collections::HashMap;

use jiff::Timestamp;

use crate::view::PodEntry;
use crate::{meta, pods};

const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// The pods, those first that are missed least.
pub(crate) fn least_missed<'a>(active: &[&'a PodEntry]) -> Vec<&'a PodEntry> {
    let mut per_node: HashMap<&str, usize> = HashMap::new();
    for pod in active {
        *per_node.entry(pods::node_name(pod).unwrap_or_default()).or_default() += 1;
    }
    let mut sorted: Vec<&PodEntry> = active.to_vec();
    sorted.sort_by_cached_key(|pod| Rank::of(pod, &per_node));
    sorted
}

/// Compared field by field; the smaller goes first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    bound: bool,
    phase: u8,
    ready: bool,
    cost: i32,
    neighbours: Reverse<usize>,
    ready_since: Reverse<Option<Timestamp>>,
    restarts: Reverse<i32>,
    created: Reverse<Timestamp>,
    name: String,
}

impl Rank {
    fn of(pod: &PodEntry, per_node: &HashMap<&str, usize>) -> Self {
        let node = pods::node_name(pod).unwrap_or_default();
        Self {
            bound: !node.is_empty(),
            phase: match pods::phase(pod) {
                "Pending" => 0,
                "Unknown" => 1,
                _ => 2,
            },
            ready: pods::is_ready(pod),
            cost: meta::annotation(&pod.metadata, DELETION_COST).and_then(|cost| cost.parse().ok()).unwrap_or(0),
            neighbours: Reverse(per_node.get(node).copied().unwrap_or(0)),
            ready_since: Reverse(pods::ready_since(pod)),
            restarts: Reverse(pods::restarts(pod)),
            created: Reverse(meta::created(&pod.metadata)),
            name: pod.key.name().to_owned(),
        }
    }
}
