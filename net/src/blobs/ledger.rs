//! What a tracker knows, and what it says, as a function of what happened and of time.
//!
//! Invariant: nobody is sent to a holder that failed it, nor to itself.
//! Invariant: of those who look for a blob that nobody holds, one has the turn to fetch it from outside; when that takes
//! longer than [`TURN_PATIENCE`], one more has.
//! Invariant: marks, holders and seats are bounded; what does not fit is not remembered, which costs a request outside.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use super::rendezvous::Mark;
use crate::names::NodeId;

/// The most blobs that a tracker remembers.
pub const MAX_MARKS: usize = 16_384;
/// The most holders of a blob that a tracker remembers; the newest stay.
pub const MAX_HOLDERS: usize = 16;
/// The most seekers that wait at a tracker.
pub const MAX_SEATS: usize = 4096;
/// The most holders that a seeker is told at once.
pub const MAX_TOLD: usize = 8;
/// How long one node may take to fetch a blob before another is let go too.
pub const TURN_PATIENCE: Duration = Duration::from_secs(30);
/// How often holders announce what they hold.
pub const ANNOUNCE_PERIOD: Duration = Duration::from_secs(300);
/// After members came or went, before what is held is announced anew.
pub const ANNOUNCE_DELAY: Duration = Duration::from_secs(2);
/// A holder that is not heard of for so long is forgotten.
const HOLDER_LIFE: Duration = Duration::from_secs(900);

/// What a seeker is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// Fetch it from outside; the others wait.
    Turn,
    /// These hold it.
    Holders(Vec<NodeId>),
}

/// A seeker's place at the tracker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SeatId(u64);

#[derive(Default)]
pub struct Ledger {
    entries: HashMap<Mark, Entry>,
    seats: usize,
    last_seat: u64,
}

#[derive(Default)]
struct Entry {
    /// With the time of their last announcement.
    holders: BTreeMap<NodeId, Instant>,
    seats: BTreeMap<SeatId, Seat>,
}

struct Seat {
    node: NodeId,
    failed: BTreeSet<NodeId>,
    turn_since: Option<Instant>,
}

impl Ledger {
    /// A seeker sits down; `None` if there is no room.
    pub fn sit(&mut self, mark: Mark, node: NodeId, now: Instant) -> Option<SeatId> {
        if self.seats >= MAX_SEATS || !self.has_room(mark, now) {
            return None;
        }
        self.seats += 1;
        self.last_seat += 1;
        let (id, seat) = (SeatId(self.last_seat), Seat { node, failed: BTreeSet::new(), turn_since: None });
        self.entries.entry(mark).or_default().seats.insert(id, seat);
        Some(id)
    }

    /// What there is to say to a seeker now; `None` as long as it has to wait.
    pub fn word(&mut self, mark: Mark, seat: SeatId, now: Instant, may: impl Fn(NodeId) -> bool) -> Option<Word> {
        let entry = self.entries.get_mut(&mark)?;
        entry.holders.retain(|_, heard| now.saturating_duration_since(*heard) < HOLDER_LIFE);
        let newest_turn = entry.seats.values().filter_map(|seat| seat.turn_since).max();
        let own = entry.seats.get_mut(&seat)?;
        let mut holders: Vec<NodeId> = entry.holders.keys().copied().collect();
        holders.retain(|node| *node != own.node && !own.failed.contains(node) && may(*node));
        if !holders.is_empty() {
            // So that not all are sent to the same one first.
            let first = seat.0 as usize % holders.len();
            holders.rotate_left(first);
            holders.truncate(MAX_TOLD);
            return Some(Word::Holders(holders));
        }
        let patient = newest_turn.is_some_and(|since| now.saturating_duration_since(since) < TURN_PATIENCE);
        if own.turn_since.is_none() && patient {
            return None;
        }
        own.turn_since = Some(now);
        Some(Word::Turn)
    }

    /// What a seeker says of those it was sent to: `missing` do not hold the blob, `failed` did not give it.
    pub fn blame(&mut self, mark: Mark, seat: SeatId, missing: &[NodeId], failed: &[NodeId]) {
        let Some(entry) = self.entries.get_mut(&mark) else { return };
        let Some(own) = entry.seats.get_mut(&seat) else { return };
        for node in missing.iter().chain(failed) {
            // Only who was named can have failed, so that no more is kept than there are holders.
            if entry.holders.contains_key(node) {
                own.failed.insert(*node);
            }
        }
        entry.holders.retain(|node, _| !missing.contains(node));
    }

    /// A seeker gets up. If it `holds` the blob now, others are sent to it.
    pub fn rise(&mut self, mark: Mark, seat: SeatId, holds: bool, now: Instant) {
        let Some(entry) = self.entries.get_mut(&mark) else { return };
        if let Some(seat) = entry.seats.remove(&seat) {
            self.seats -= 1;
            if holds {
                entry.hold(seat.node, now);
            }
        }
        if entry.is_empty() {
            self.entries.remove(&mark);
        }
    }

    /// `node` says that it holds a blob.
    pub fn announce(&mut self, mark: Mark, node: NodeId, now: Instant) {
        if self.has_room(mark, now) {
            self.entries.entry(mark).or_default().hold(node, now);
        }
    }

    /// Whether a mark is known or can be; forgets what is out of date when it is short of room.
    fn has_room(&mut self, mark: Mark, now: Instant) -> bool {
        if self.entries.len() < MAX_MARKS || self.entries.contains_key(&mark) {
            return true;
        }
        self.entries.retain(|_, entry| {
            entry.holders.retain(|_, heard| now.saturating_duration_since(*heard) < HOLDER_LIFE);
            !entry.is_empty()
        });
        self.entries.len() < MAX_MARKS
    }
}

impl Entry {
    fn hold(&mut self, node: NodeId, now: Instant) {
        self.holders.insert(node, now);
        while self.holders.len() > MAX_HOLDERS {
            let oldest = self.holders.iter().min_by_key(|(_, heard)| **heard).map(|(node, _)| *node);
            oldest.map(|node| self.holders.remove(&node));
        }
    }

    fn is_empty(&self) -> bool {
        self.holders.is_empty() && self.seats.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixture {
        ledger: Ledger,
        now: Instant,
    }

    const MARK: [u8; 32] = [1; 32];

    impl Fixture {
        fn new() -> Self {
            Self { ledger: Ledger::default(), now: Instant::now() }
        }

        fn sit(&mut self, node: NodeId) -> SeatId {
            self.ledger.sit(mark(), node, self.now).expect("there is room")
        }

        fn word(&mut self, seat: SeatId) -> Option<Word> {
            self.ledger.word(mark(), seat, self.now, |_| true)
        }
    }

    fn mark() -> Mark {
        Mark::of(&MARK)
    }

    #[test]
    fn one_has_the_turn_and_the_others_are_sent_to_it_when_it_is_done() {
        let mut f = Fixture::new();
        let seats: Vec<_> = (1..=10).map(|node| f.sit(node)).collect();
        assert_eq!(f.word(seats[0]), Some(Word::Turn));
        assert!(seats[1..].iter().all(|seat| f.word(*seat).is_none()));
        f.ledger.rise(mark(), seats[0], true, f.now);
        assert!(seats[1..].iter().all(|seat| f.word(*seat) == Some(Word::Holders(vec![1]))));
    }

    #[test]
    fn a_turn_that_comes_to_nothing_passes_on() {
        let mut f = Fixture::new();
        let (first, second, third) = (f.sit(1), f.sit(2), f.sit(3));
        assert_eq!(f.word(first), Some(Word::Turn));
        f.ledger.rise(mark(), first, false, f.now);
        assert_eq!(f.word(third), Some(Word::Turn));
        assert_eq!(f.word(second), None);
    }

    #[test]
    fn a_turn_that_takes_long_lets_one_more_go_and_not_all() {
        let mut f = Fixture::new();
        let (first, second, third) = (f.sit(1), f.sit(2), f.sit(3));
        assert_eq!(f.word(first), Some(Word::Turn));
        f.now += TURN_PATIENCE;
        assert_eq!(f.word(second), Some(Word::Turn));
        assert_eq!(f.word(third), None);
        f.now += TURN_PATIENCE;
        assert_eq!(f.word(third), Some(Word::Turn));
    }

    #[test]
    fn a_holder_that_failed_is_not_named_again_and_one_without_the_blob_to_nobody() {
        let mut f = Fixture::new();
        (7..=9).for_each(|node| f.ledger.announce(mark(), node, f.now));
        let (first, second) = (f.sit(1), f.sit(2));
        f.ledger.blame(mark(), first, &[7], &[8]);
        assert_eq!(f.word(first), Some(Word::Holders(vec![9])));
        let Some(Word::Holders(mut others)) = f.word(second) else { panic!("two are left") };
        others.sort_unstable();
        assert_eq!(others, [8, 9]);
        f.ledger.blame(mark(), first, &[], &[9]);
        assert_eq!(f.word(first), Some(Word::Turn));
    }

    #[test]
    fn nobody_is_sent_to_itself_nor_to_who_may_not_be_asked() {
        let mut f = Fixture::new();
        f.ledger.announce(mark(), 1, f.now);
        f.ledger.announce(mark(), 2, f.now);
        let seat = f.sit(1);
        assert_eq!(f.ledger.word(mark(), seat, f.now, |node| node != 2), Some(Word::Turn));
    }

    #[test]
    fn holders_that_are_silent_are_forgotten_and_the_newest_stay() {
        let mut f = Fixture::new();
        for node in 1..=20 {
            f.now += Duration::from_secs(1);
            f.ledger.announce(mark(), node, f.now);
        }
        let held = |f: &Fixture| f.ledger.entries[&mark()].holders.keys().copied().collect::<Vec<_>>();
        assert_eq!(held(&f), (5..=20).collect::<Vec<_>>());
        f.now += HOLDER_LIFE;
        let seat = f.sit(50);
        assert_eq!(f.word(seat), Some(Word::Turn));
    }

    #[test]
    fn seats_and_marks_are_bounded_and_given_back() {
        let mut f = Fixture::new();
        let seats: Vec<_> = (0..MAX_SEATS as u64).map(|node| f.sit(node)).collect();
        assert_eq!(f.ledger.sit(mark(), 1, f.now), None);
        seats.iter().for_each(|seat| f.ledger.rise(mark(), *seat, false, f.now));
        assert!(f.ledger.entries.is_empty());
        for blob in 0..MAX_MARKS as u64 + 10 {
            let mut digest = [0; 32];
            digest[..8].copy_from_slice(&blob.to_be_bytes());
            f.ledger.announce(Mark::of(&digest), 1, f.now);
        }
        assert_eq!(f.ledger.entries.len(), MAX_MARKS);
        assert_eq!(f.ledger.sit(mark(), 1, f.now), None);
        f.now += HOLDER_LIFE;
        f.sit(1);
        assert_eq!(f.ledger.entries.len(), 1);
    }
}
