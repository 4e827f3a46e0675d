//! Which of the nodes that fit is best.
//!
//! Pods of one owner spread first, so that a node's death takes as few of them as possible; then full
//! nodes are filled further, so that large pods still find room elsewhere.

use std::cmp::Reverse;
use std::collections::HashMap;

use super::filter::Slot;
use crate::meta;
use crate::view::{PodEntry, View};

/// Smaller is better.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Score {
    suspect: bool,
    unliked: Reverse<i64>,
    siblings: u32,
    /// In thousandths, coarse: equals take turns.
    filled: Reverse<i64>,
    pods: i64,
}

pub(super) fn of(slot: &Slot<'_>, pod: &PodEntry, siblings: u32) -> Score {
    let offered = &slot.node.facts.allocatable;
    let asked = &pod.facts.requests;
    let cpu = share(slot.taken.cpu_millis, asked.cpu_millis, offered.cpu_millis);
    let memory = share(slot.taken.memory_bytes, asked.memory_bytes, offered.memory_bytes);
    Score {
        suspect: slot.suspect,
        unliked: Reverse(slot.liking(pod)),
        siblings,
        filled: Reverse(cpu + memory),
        pods: slot.taken.pods,
    }
}

/// How much of what is offered is taken, in thousandths.
fn share(taken: i64, asked: i64, offered: i64) -> i64 {
    let used = taken.saturating_add(asked);
    if offered <= 0 { 0 } else { i64::try_from(i128::from(used) * 1000 / i128::from(offered)).unwrap_or(1000) }
}

/// How many pods of an owner are on which node, looked up when first asked for and kept up to date
/// within the pass.
pub(super) struct Owners<'a> {
    view: &'a View,
    index: HashMap<&'a str, usize>,
    counts: HashMap<&'a str, HashMap<usize, u32>>,
}

impl<'a> Owners<'a> {
    pub fn new(view: &'a View, slots: &[Slot<'a>]) -> Self {
        let index = slots.iter().enumerate().map(|(index, slot)| (slot.name, index)).collect();
        Self { view, index, counts: HashMap::new() }
    }

    /// Pods per node of the pod's controller; `None` if it has none.
    pub fn of(&mut self, pod: &'a PodEntry) -> Option<&HashMap<usize, u32>> {
        let owner = meta::controller_of(&pod.metadata)?.uid.as_str();
        let (view, index) = (self.view, &self.index);
        Some(self.counts.entry(owner).or_insert_with(|| {
            let nodes = view.spread_of(owner).into_iter().flatten();
            nodes.filter_map(|(name, count)| Some((*index.get(name.as_str())?, *count))).collect()
        }))
    }

    pub fn add(&mut self, pod: &'a PodEntry, slot: usize) {
        let owner = meta::controller_of(&pod.metadata);
        if let Some(counts) = owner.and_then(|owner| self.counts.get_mut(owner.uid.as_str())) {
            *counts.entry(slot).or_default() += 1;
        }
    }
}
