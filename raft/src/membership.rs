//! How many replicas vote, and which: a plan from what the leader sees, carried out one step at a time.
//!
//! Invariant: never two voters, since two fail more often than one.
//! Invariant: only a replica that is alive and caught up becomes a voter.
//! Invariant: the leader keeps its vote; whoever wants it gone transfers the leadership first.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::types::NodeId;

pub const MAX_VOTERS: usize = 7;
pub const MAX_REPLICAS: usize = 15;
/// Seven voters only from this many replicas on; below, five are enough.
const SEVEN_FROM: usize = 9;

/// What the leader knows about the replicas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    pub leader: NodeId,
    pub voters: BTreeSet<NodeId>,
    /// Replicas that follow without a vote.
    pub learners: BTreeSet<NodeId>,
    /// Replicas that have nearly all of the log.
    pub caught_up: BTreeSet<NodeId>,
    /// Dead replicas, and how long they have been.
    pub dead: BTreeMap<NodeId, Duration>,
}

/// How many should vote among this many replicas.
pub fn wanted_voters(replicas: usize) -> usize {
    match replicas {
        0..=2 => 1,
        3..=4 => 3,
        n if n < SEVEN_FROM => 5,
        _ => MAX_VOTERS,
    }
}

/// The next set of voters, if it should change.
pub fn plan(view: &View, replace_dead_after: Duration) -> Option<BTreeSet<NodeId>> {
    let wanted = wanted_voters(view.voters.len() + view.learners.len());
    let long_dead = |id: &NodeId| view.dead.get(id).is_some_and(|dead| *dead >= replace_dead_after);
    let candidates: Vec<NodeId> =
        view.learners.iter().filter(|id| view.caught_up.contains(id) && !view.dead.contains_key(id)).copied().collect();
    if view.voters.len() > wanted {
        return Some(shrink(view, wanted));
    }
    if view.voters.len() < wanted {
        return grow(view, wanted, &candidates);
    }
    let gone = view.voters.iter().find(|id| **id != view.leader && long_dead(id))?;
    let heir = candidates.first()?;
    let mut voters = view.voters.clone();
    voters.remove(gone);
    voters.insert(*heir);
    Some(voters)
}

/// Adds voters two at a time, so that their number stays odd.
fn grow(view: &View, wanted: usize, candidates: &[NodeId]) -> Option<BTreeSet<NodeId>> {
    // An even number can be left by a removal that a crash cut short; one more makes it odd.
    let step = match view.voters.len() % 2 {
        1 => 2.min(wanted - view.voters.len()),
        _ => 1,
    };
    (candidates.len() >= step).then(|| view.voters.iter().chain(&candidates[..step]).copied().collect())
}

/// Keeps the leader, then the living, then the caught up.
fn shrink(view: &View, wanted: usize) -> BTreeSet<NodeId> {
    let mut ranked: Vec<NodeId> = view.voters.iter().copied().collect();
    ranked.sort_by_key(|id| (*id != view.leader, view.dead.contains_key(id), !view.caught_up.contains(id), *id));
    ranked.into_iter().take(wanted).collect()
}

/// The voters after `gone` has left; learners that are alive and caught up take its place.
pub fn without(view: &View, gone: NodeId) -> BTreeSet<NodeId> {
    let mut rest = view.clone();
    let voted = rest.voters.remove(&gone);
    rest.learners.remove(&gone);
    if !voted {
        return rest.voters;
    }
    let wanted = wanted_voters(rest.voters.len() + rest.learners.len());
    let heirs = rest.learners.iter().filter(|id| rest.caught_up.contains(id) && !rest.dead.contains_key(id));
    let missing = wanted.saturating_sub(rest.voters.len());
    let mut voters: BTreeSet<NodeId> = rest.voters.iter().chain(heirs.take(missing)).copied().collect();
    if voters.len() % 2 == 0 {
        rest.voters = voters;
        voters = shrink(&rest, wanted.min(rest.voters.len().saturating_sub(1)).max(1));
    }
    voters
}

/// Since when each replica has been silent, as one leader has seen it.
#[derive(Debug, Default)]
pub(crate) struct Absences(BTreeMap<NodeId, Instant>);

impl Absences {
    /// Notes who is alive and returns how long each of the others has not been.
    pub fn note(
        &mut self,
        replicas: &BTreeSet<NodeId>,
        alive: &BTreeSet<NodeId>,
        now: Instant,
    ) -> BTreeMap<NodeId, Duration> {
        self.0.retain(|id, _| replicas.contains(id) && !alive.contains(id));
        for id in replicas.difference(alive) {
            self.0.entry(*id).or_insert(now);
        }
        self.0.iter().map(|(id, since)| (*id, now.saturating_duration_since(*since))).collect()
    }

    /// Another leader's observations do not count.
    pub fn forget(&mut self) {
        self.0.clear();
    }
}
