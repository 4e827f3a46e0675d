//! Which nodes have a replica: a plan from what the leader sees. How many of them vote is decided in
//! [`membership`](crate::membership).
//!
//! Invariant: a replica takes the place of another only while that is still there, so that there are never fewer.
//! Invariant: whoever is let go for the sake of order, and not because its node goes, leaves as many living replicas behind
//! as there were, or three.
//! Invariant: the leader is let go last, and only if another replica can lead in its place.

use std::collections::{BTreeMap, BTreeSet};

use crate::types::NodeId;

/// Fewer than so many living replicas are not left for the sake of order.
const ENOUGH: usize = 3;

/// A node, as far as it matters to whether it has a replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Candidate {
    pub alive: bool,
    /// It has asked to go.
    pub leaving: bool,
    /// It is to have none.
    pub without_replica: bool,
    /// It became a member in this cluster epoch: no replica of another one is of use.
    pub of_this_epoch: bool,
}

impl Candidate {
    /// Whether a leader gives it a replica when there is room.
    pub fn may_have_replica(&self) -> bool {
        !self.leaving && !self.without_replica && self.of_this_epoch
    }
}

/// What the leader knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replicas {
    pub leader: NodeId,
    pub voters: BTreeSet<NodeId>,
    /// Those that follow without a vote.
    pub learners: BTreeSet<NodeId>,
    /// Those that have been dead for so long that others may take their places.
    pub long_dead: BTreeSet<NodeId>,
    pub nodes: BTreeMap<NodeId, Candidate>,
    pub max_replicas: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Add(NodeId),
    Remove(NodeId),
    /// Makes this voter the leader: the one that leads is to have no replica.
    HandOver(NodeId),
}

/// The next steps, in order; an empty list if all is as it should be.
pub fn plan(now: &Replicas) -> Vec<Step> {
    let gone = now.gone();
    let held: BTreeSet<NodeId> = now.voters.union(&now.learners).filter(|id| !gone.contains(id)).copied().collect();
    let mut steps: Vec<Step> = gone.into_iter().map(Step::Remove).collect();
    let places = now.max_replicas.saturating_sub(held.len());
    let chosen = match places {
        // In place of another, and only if it is there to take it.
        0 => now
            .candidates(&held, true)
            .take(usize::from(held.len() == now.max_replicas && now.has_to_go(&held)))
            .collect(),
        _ => now.candidates(&held, true).chain(now.candidates(&held, false)).take(places).collect::<Vec<_>>(),
    };
    steps.extend(chosen.into_iter().map(Step::Add));
    steps.extend(now.let_go(&held));
    steps.extend(now.leader_goes(&held));
    steps
}

impl Replicas {
    fn node(&self, id: NodeId) -> Candidate {
        self.nodes.get(&id).copied().unwrap_or_default()
    }

    fn is_dead(&self, id: NodeId) -> bool {
        self.long_dead.contains(&id) && !self.node(id).alive
    }

    fn goes(&self, id: NodeId) -> bool {
        self.nodes.get(&id).is_none_or(|node| node.leaving)
    }

    /// Replicas of nodes that go or have gone.
    fn gone(&self) -> BTreeSet<NodeId> {
        let goes = |id: &&NodeId| **id != self.leader && self.goes(**id);
        self.voters.union(&self.learners).filter(goes).copied().collect()
    }

    /// Whoever leads then takes it out of the group.
    fn leader_goes(&self, held: &BTreeSet<NodeId>) -> Option<Step> {
        let can_lead = |id: &NodeId| *id != self.leader && self.node(*id).alive;
        (self.goes(self.leader) && held.iter().any(can_lead)).then_some(Step::Remove(self.leader))
    }

    fn candidates(&self, held: &BTreeSet<NodeId>, alive: bool) -> impl Iterator<Item = NodeId> {
        let fit = move |node: &Candidate| node.may_have_replica() && node.alive == alive;
        self.nodes.iter().filter(move |(id, node)| !held.contains(id) && fit(node)).map(|(id, _)| *id)
    }

    /// Whether another is to take the place of one of these.
    fn has_to_go(&self, held: &BTreeSet<NodeId>) -> bool {
        held.iter().any(|id| self.is_dead(*id) || self.node(*id).without_replica)
    }

    /// One replica at a time is let go for the sake of order.
    fn let_go(&self, held: &BTreeSet<NodeId>) -> Option<Step> {
        let too_many = held.len() > self.max_replicas;
        let learner = |id: &&NodeId| self.learners.contains(id);
        if too_many && let Some(dead) = held.iter().filter(learner).find(|id| self.is_dead(**id)) {
            return Some(Step::Remove(*dead));
        }
        // One that is not heard for a moment counts: it most likely comes back.
        let living = held.iter().filter(|id| !self.long_dead.contains(id)).count();
        let stays = |id: &&NodeId| self.node(**id).alive && !self.node(**id).without_replica;
        let enough = |ids: &BTreeSet<NodeId>, were: usize| ids.iter().filter(stays).count() >= were.min(ENOUGH);
        if enough(held, living) {
            let unwanted = |id: &&NodeId| self.node(**id).without_replica;
            // A voter goes once others can vote in its place, so that the votes are never few.
            if let Some(id) =
                held.iter().filter(unwanted).find(|id| learner(id) || enough(&self.voters, self.voters.len()))
            {
                let heir = self.voters.iter().find(|heir| stays(heir) && **heir != self.leader);
                return if *id == self.leader { heir.copied().map(Step::HandOver) } else { Some(Step::Remove(*id)) };
            }
        }
        // One that took the place of a dead one, which has come back; a dead voter first gives its vote away.
        let settled = too_many && !self.has_to_go(held);
        held.iter().filter(learner).rfind(|_| settled).copied().map(Step::Remove)
    }
}

#[cfg(test)]
mod tests {
    use super::Step::{Add, HandOver, Remove};
    use super::*;

    const GOOD: Candidate = Candidate { alive: true, leaving: false, without_replica: false, of_this_epoch: true };
    const DEAD: Candidate = Candidate { alive: false, ..GOOD };
    const LABELLED: Candidate = Candidate { without_replica: true, ..GOOD };

    /// The first leads; the first `voters` of `held` vote.
    fn replicas(voters: u64, held: u64, nodes: u64, max_replicas: usize) -> Replicas {
        Replicas {
            leader: 1,
            voters: (1..=voters).collect(),
            learners: (voters + 1..=held).collect(),
            nodes: (1..=nodes).map(|id| (id, GOOD)).collect(),
            max_replicas,
            ..Replicas::default()
        }
    }

    fn with(now: Replicas, changed: &[(NodeId, Candidate)]) -> Replicas {
        let mut nodes = now.nodes;
        nodes.extend(changed.iter().copied());
        Replicas { nodes, ..now }
    }

    #[test]
    fn nodes_get_replicas_until_there_are_enough() {
        assert_eq!(plan(&replicas(1, 1, 5, 3)), [Add(2), Add(3)]);
        assert_eq!(plan(&replicas(3, 3, 5, 3)), []);
        let old = Candidate { of_this_epoch: false, ..GOOD };
        let leaving = Candidate { leaving: true, ..GOOD };
        // The living come first.
        let some = with(replicas(1, 1, 6, 3), &[(2, old), (3, LABELLED), (4, leaving), (5, DEAD)]);
        assert_eq!(plan(&some), [Add(6), Add(5)]);
    }

    #[test]
    fn another_takes_the_place_of_one_that_is_dead_before_that_is_let_go() {
        let mut now = with(replicas(3, 3, 5, 3), &[(2, DEAD), (4, DEAD)]);
        assert_eq!(plan(&now), [], "it may come back");
        now.long_dead = [2].into();
        assert_eq!(plan(&now), [Add(5)]);
        now.learners = [5].into();
        assert_eq!(plan(&now), [], "it gives its vote away first");
        (now.voters, now.learners) = ([1, 3, 5].into(), [2].into());
        assert_eq!(plan(&now), [Remove(2)]);
    }

    #[test]
    fn a_replica_that_lives_is_not_let_go_as_dead() {
        let mut now = replicas(3, 3, 5, 3);
        now.long_dead = [2, 3].into();
        assert_eq!(plan(&now), []);
        // It came back when another had its place already: that one is not needed.
        now.learners = [5].into();
        assert_eq!(plan(&now), [Remove(5)]);
    }

    #[test]
    fn nodes_that_go_take_their_replicas_along() {
        let mut now = with(replicas(3, 4, 4, 15), &[(3, Candidate { leaving: true, ..GOOD })]);
        now.nodes.remove(&4);
        assert_eq!(plan(&now), [Remove(3), Remove(4)]);
        now.nodes.remove(&1);
        assert_eq!(plan(&now), [Remove(3), Remove(4), Remove(1)], "the leader goes last");
        let now = with(replicas(1, 1, 1, 15), &[(1, Candidate { leaving: true, ..GOOD })]);
        assert_eq!(plan(&now), [], "nobody else could lead");
        let last = Candidate { leaving: true, ..GOOD };
        assert_eq!(plan(&with(replicas(1, 2, 2, 15), &[(1, last)])), [Remove(1)]);
        assert_eq!(plan(&with(replicas(1, 2, 2, 15), &[(1, last), (2, DEAD)])), []);
    }

    #[test]
    fn a_label_takes_one_replica_at_a_time_and_leaves_enough() {
        let now = with(replicas(3, 3, 3, 15), &[(2, LABELLED)]);
        assert_eq!(plan(&now), [], "two are not as good as three");
        let now = with(replicas(3, 4, 4, 15), &[(4, LABELLED)]);
        assert_eq!(plan(&now), [Remove(4)]);
        let now = with(replicas(3, 4, 4, 15), &[(3, LABELLED)]);
        assert_eq!(plan(&now), [], "its vote goes to the fourth first");
        let now = with(replicas(5, 5, 5, 15), &[(2, LABELLED), (3, LABELLED), (4, LABELLED)]);
        assert_eq!(plan(&now), [], "all but two");
        let now = with(replicas(5, 5, 5, 15), &[(2, LABELLED), (3, LABELLED)]);
        assert_eq!(plan(&now), [Remove(2)], "one at a time");
        let now = with(replicas(5, 5, 5, 15), &[(1, LABELLED)]);
        assert_eq!(plan(&now), [HandOver(2)]);
        let mut now = with(replicas(2, 3, 3, 15), &[(3, Candidate { alive: false, ..LABELLED })]);
        assert_eq!(plan(&now), [], "it may come back, and two are not as good as three");
        now.long_dead = [3].into();
        assert_eq!(plan(&now), [Remove(3)]);
    }

    #[test]
    fn a_full_cluster_adds_a_replica_before_a_label_takes_one() {
        let mut now = with(replicas(3, 3, 4, 3), &[(2, LABELLED)]);
        assert_eq!(plan(&now), [Add(4)]);
        now.learners = [4].into();
        assert_eq!(plan(&now), [], "its vote goes to the new one first");
        (now.voters, now.learners) = ([1, 3, 4].into(), [2].into());
        assert_eq!(plan(&now), [Remove(2)]);
        // Nobody is there to take its place.
        assert_eq!(plan(&with(replicas(3, 3, 3, 3), &[(2, LABELLED)])), []);
    }

    #[test]
    fn fewer_replicas_than_before_are_reached_one_by_one() {
        assert_eq!(plan(&replicas(3, 5, 5, 3)), [Remove(5)]);
        assert_eq!(plan(&replicas(3, 4, 5, 3)), [Remove(4)]);
        assert_eq!(plan(&replicas(3, 3, 5, 3)), []);
    }
}
