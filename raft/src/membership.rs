//! How many replicas vote, and which: a plan from what the leader sees, carried out one step at a time.
//!
//! Invariant: never two voters, since two fail more often than one.
//! Invariant: only a replica that is alive and caught up becomes a voter.
//! Invariant: the leader keeps its vote; whoever wants it gone transfers the leadership first.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::types::NodeId;

pub const MAX_VOTERS: usize = 7;
pub const MAX_REPLICAS: usize = 15;
/// One more for as long as it takes the place of one that is dead.
pub(crate) const MAX_REPLICAS_FOR_NOW: usize = MAX_REPLICAS + 1;
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
    /// Replicas whose disk is nearly full: while one of them votes, all others have to wait for it to get room.
    pub low_space: BTreeSet<NodeId>,
    /// How many replicas there are to be. One beyond them only takes another's place.
    pub max_replicas: usize,
}

impl View {
    /// Whether a replica without a vote may be given one.
    fn may_vote(&self, id: NodeId) -> bool {
        self.caught_up.contains(&id) && !self.dead.contains_key(&id) && !self.low_space.contains(&id)
    }

    fn wanted_voters(&self) -> usize {
        wanted_voters((self.voters.len() + self.learners.len()).min(self.max_replicas))
    }
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
    let wanted = view.wanted_voters();
    let long_dead = |id: &NodeId| view.dead.get(id).is_some_and(|dead| *dead >= replace_dead_after);
    let candidates: Vec<NodeId> = view.learners.iter().copied().filter(|id| view.may_vote(*id)).collect();
    if view.voters.len() > wanted {
        return Some(shrink(view, wanted));
    }
    if view.voters.len() < wanted {
        return grow(view, wanted, &candidates);
    }
    let others = || view.voters.iter().filter(|id| **id != view.leader);
    let gone = others().find(|id| long_dead(id)).or_else(|| others().find(|id| view.low_space.contains(id)))?;
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

/// Keeps the leader, then the living, then those with room on their disk, then the caught up.
fn shrink(view: &View, wanted: usize) -> BTreeSet<NodeId> {
    let mut ranked: Vec<NodeId> = view.voters.iter().copied().collect();
    ranked.sort_by_key(|id| {
        let is_dead = view.dead.contains_key(id);
        (*id != view.leader, is_dead, view.low_space.contains(id), !view.caught_up.contains(id), *id)
    });
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
    let wanted = rest.wanted_voters();
    let heirs = rest.learners.iter().filter(|id| rest.may_vote(**id));
    let missing = wanted.saturating_sub(rest.voters.len());
    let mut voters: BTreeSet<NodeId> = rest.voters.iter().chain(heirs.take(missing)).copied().collect();
    if voters.len().is_multiple_of(2) {
        rest.voters = voters;
        voters = shrink(&rest, wanted.min(rest.voters.len().saturating_sub(1)).max(1));
    }
    voters
}

/// Since when each replica has been silent, as the leader of one term has seen it. What was seen in another term does not
/// count: others led in between, and nobody here looked.
#[derive(Debug, Default)]
pub(crate) struct Absences {
    term: u64,
    since: BTreeMap<NodeId, Instant>,
}

impl Absences {
    /// Notes who is alive and returns how long each of the others has not been.
    pub fn note(
        &mut self,
        term: u64,
        replicas: &BTreeSet<NodeId>,
        alive: &BTreeSet<NodeId>,
        now: Instant,
    ) -> BTreeMap<NodeId, Duration> {
        if term != self.term {
            *self = Self { term, since: BTreeMap::new() };
        }
        self.since.retain(|id, _| replicas.contains(id) && !alive.contains(id));
        for id in replicas.difference(alive) {
            self.since.entry(*id).or_insert(now);
        }
        self.since.iter().map(|(id, since)| (*id, now.saturating_duration_since(*since))).collect()
    }

    /// Who has been absent for at least so long in this term.
    pub fn longer_than(&self, term: u64, bound: Duration, now: Instant) -> BTreeSet<NodeId> {
        let long = |since: &Instant| term == self.term && now.saturating_duration_since(*since) >= bound;
        self.since.iter().filter(|(_, since)| long(since)).map(|(id, _)| *id).collect()
    }

    /// Another leader's observations do not count.
    pub fn forget(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LONG: Duration = Duration::from_secs(300);

    fn ids(range: std::ops::RangeInclusive<u64>) -> BTreeSet<NodeId> {
        range.collect()
    }

    fn view(voters: BTreeSet<NodeId>, learners: BTreeSet<NodeId>) -> View {
        let caught_up = voters.union(&learners).copied().collect();
        View { leader: 1, voters, learners, caught_up, max_replicas: MAX_REPLICAS, ..View::default() }
    }

    #[test]
    fn one_until_three_then_three_five_and_at_most_seven() {
        let wanted: Vec<usize> = [1, 2, 3, 4, 5, 8, 9, 15].into_iter().map(wanted_voters).collect();
        assert_eq!(wanted, [1, 1, 3, 3, 5, 5, 7, 7]);
        assert_eq!(plan(&view(ids(1..=1), ids(2..=2)), LONG), None);
        assert_eq!(plan(&view(ids(1..=1), ids(2..=3)), LONG), Some(ids(1..=3)));
        assert_eq!(plan(&view(ids(1..=3), ids(4..=5)), LONG), Some(ids(1..=5)));
    }

    #[test]
    fn only_the_living_and_caught_up_vote() {
        let mut behind = view(ids(1..=1), ids(2..=3));
        behind.caught_up.remove(&3);
        assert_eq!(plan(&behind, LONG), None);
        let mut dead = view(ids(1..=1), ids(2..=3));
        dead.dead.insert(3, Duration::ZERO);
        assert_eq!(plan(&dead, LONG), None);
    }

    #[test]
    fn whose_disk_is_nearly_full_gets_no_vote_and_gives_its_own_to_an_heir() {
        let mut low = view(ids(1..=1), ids(2..=4));
        low.low_space = [2].into();
        assert_eq!(plan(&low, LONG), Some([1, 3, 4].into()));
        low.low_space = ids(2..=3);
        assert_eq!(plan(&low, LONG), None);
        let mut voting = view(ids(1..=3), ids(4..=4));
        voting.low_space = ids(1..=2);
        assert_eq!(plan(&voting, LONG), Some([1, 3, 4].into()), "the leader cannot be replaced by itself");
        voting.low_space.insert(4);
        assert_eq!(plan(&voting, LONG), None);
        assert_eq!(without(&voting, 3), [1].into());
        voting.dead.insert(3, LONG);
        voting.low_space = ids(2..=2);
        assert_eq!(plan(&voting, LONG), Some([1, 2, 4].into()), "the dead go first");
    }

    #[test]
    fn a_dead_voter_keeps_its_place_for_a_time_and_while_there_is_no_heir() {
        let mut now = view(ids(1..=3), ids(4..=4));
        now.dead.insert(2, LONG - Duration::from_secs(1));
        assert_eq!(plan(&now, LONG), None);
        now.dead.insert(2, LONG);
        assert_eq!(plan(&now, LONG), Some([1, 3, 4].into()));
        now.caught_up.remove(&4);
        assert_eq!(plan(&now, LONG), None);
    }

    #[test]
    fn a_leaver_is_replaced_or_the_voters_shrink() {
        assert_eq!(without(&view(ids(1..=3), ids(4..=4)), 3), [1, 2, 4].into());
        assert_eq!(without(&view(ids(1..=3), BTreeSet::new()), 3), [1].into());
        assert_eq!(without(&view(ids(1..=5), BTreeSet::new()), 5), [1, 2, 3].into());
        assert_eq!(without(&view(ids(1..=3), ids(4..=4)), 4), ids(1..=3));
    }

    #[test]
    fn absences_last_from_the_first_silence_to_the_first_word() {
        let (mut absences, start) = (Absences::default(), Instant::now());
        let later = |seconds| start + Duration::from_secs(seconds);
        assert!(absences.note(1, &ids(1..=2), &ids(1..=2), start).is_empty());
        absences.note(1, &ids(1..=2), &ids(1..=1), later(1));
        assert_eq!(absences.note(1, &ids(1..=2), &ids(1..=1), later(4))[&2], Duration::from_secs(3));
        absences.note(1, &ids(1..=2), &ids(1..=2), later(5));
        assert_eq!(absences.note(1, &ids(1..=2), &ids(1..=1), later(6))[&2], Duration::ZERO);
    }

    #[test]
    fn what_a_leader_saw_in_a_former_term_does_not_count() {
        let (mut absences, start) = (Absences::default(), Instant::now());
        let later = start + 2 * LONG;
        absences.note(1, &ids(1..=2), &ids(1..=1), start);
        assert_eq!(absences.longer_than(1, LONG, later), ids(2..=2));
        // Others led meanwhile, and the replica may have lived for all this one knows.
        assert_eq!(absences.longer_than(3, LONG, later), BTreeSet::new());
        assert_eq!(absences.note(3, &ids(1..=2), &ids(1..=1), later)[&2], Duration::ZERO);
    }

    #[test]
    fn a_replica_that_takes_anothers_place_makes_no_more_voters() {
        let mut four = view(ids(1..=3), ids(4..=5));
        four.max_replicas = 4;
        assert_eq!(plan(&four, LONG), None, "five replicas, of which one is to go");
        four.dead.insert(2, LONG);
        assert_eq!(plan(&four, LONG), Some([1, 3, 4].into()));
    }

    proptest! {
        /// Whatever the replicas are, steps lead to the wanted number and never over two.
        #[test]
        fn steps_converge_and_never_pass_two_voters(replicas in 1_u64..=15, voters in 0_usize..4, dead in prop::collection::btree_set(2_u64..=15, 0..4)) {
            let voters = [1, 3, 5, 7][voters].min(replicas as usize | 1).min(replicas as usize);
            let voters = if voters % 2 == 0 { voters - 1 } else { voters };
            let all: Vec<u64> = (1..=replicas).collect();
            let (voting, following) = all.split_at(voters);
            let mut now = view(voting.iter().copied().collect(), following.iter().copied().collect());
            now.dead = dead.into_iter().filter(|id| *id <= replicas).map(|id| (id, LONG)).collect();
            for _ in 0..20 {
                let Some(next) = plan(&now, LONG) else { break };
                prop_assert!(next.len() % 2 == 1 && next.len() <= MAX_VOTERS && next.contains(&1));
                prop_assert!(next.difference(&now.voters).all(|id| !now.dead.contains_key(id)));
                now.voters = next;
                now.learners = all.iter().copied().filter(|id| !now.voters.contains(id)).collect();
            }
            prop_assert_eq!(plan(&now, LONG), None, "steps do not end");
        }
    }
}
