//! Is a key's history linearizable? The search of Wing and Gong, with Lowe's memory of what was tried.
//!
//! An operation takes effect at one moment between its call and its return. One without an answer may take
//! effect at any moment after its call, or never.

use std::collections::HashSet;
use std::time::Duration;

/// What a key holds: the id of a value and, where it is known, the revision that wrote it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Register {
    pub value: Option<u64>,
    pub revision: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// Reads a value and the revision that wrote it.
    Read(Option<(u64, u64)>),
    /// Writes a value, or deletes, at a revision.
    Write { value: Option<u64>, revision: u64 },
    /// Writes if the key still is as it was read: its value, and its revision.
    Swap { expected: Option<(u64, u64)>, value: u64, revision: u64 },
    /// Was refused since the key was written at another revision than the expected one.
    Refused { expected: Option<u64>, found: Option<u64> },
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Operation {
    pub act: Act,
    pub called: Duration,
    /// `None` if nobody was told.
    pub returned: Option<Duration>,
}

/// What the register is after an act, if the act can happen now.
fn step(now: Register, act: Act) -> Option<Register> {
    let fits = |known: Option<(u64, u64)>| {
        now.value == known.map(|(value, _)| value) && (known.is_none() || now.revision == known.map(|(_, at)| at))
    };
    match act {
        Act::Read(found) => fits(found).then_some(now),
        Act::Write { value, revision } => {
            let newer = now.revision.is_none_or(|before| before < revision);
            newer.then_some(Register { value, revision: Some(revision) })
        }
        Act::Swap { expected, value, revision } => {
            let newer = now.revision.is_none_or(|before| before < revision);
            (fits(expected) && newer).then_some(Register { value: Some(value), revision: Some(revision) })
        }
        Act::Refused { expected, found } => {
            let is = now.value.and(now.revision);
            (is == found && found != expected).then_some(now)
        }
    }
}

/// Operations that have been placed, as bits.
type Placed = Vec<u64>;

/// Whether the operations of one key, which begins absent, can be put in one order.
pub(super) fn check(operations: &[Operation]) -> Result<(), String> {
    let mut operations = operations.to_vec();
    operations.sort_by_key(|op| op.called);
    let must = operations.iter().filter(|op| op.returned.is_some()).count();
    let mut search = Search { operations: &operations, tried: HashSet::new(), deepest: 0, stuck: None };
    let placed = vec![0; operations.len().div_ceil(64)];
    match search.place(placed, Register::default(), must) {
        true => Ok(()),
        false => Err(format!("no order fits; stuck after {} operations at {:?}", search.deepest, search.stuck)),
    }
}

struct Search<'a> {
    operations: &'a [Operation],
    tried: HashSet<(Placed, Register)>,
    deepest: usize,
    stuck: Option<(Register, Vec<Operation>)>,
}

/// A choice point: where things stand, and what is left to try there.
struct Choice {
    placed: Placed,
    register: Register,
    left: usize,
    candidates: Vec<usize>,
}

impl Search<'_> {
    /// Places the rest, of which `left` have returned and so must be placed.
    fn place(&mut self, placed: Placed, register: Register, left: usize) -> bool {
        let candidates = self.candidates(&placed);
        let mut choices = vec![Choice { placed, register, left, candidates }];
        while let Some(choice) = choices.last_mut() {
            if choice.left == 0 {
                return true;
            }
            let Some(at) = choice.candidates.pop() else {
                choices.pop();
                continue;
            };
            let operation = self.operations[at];
            let Some(register) = step(choice.register, operation.act) else { continue };
            let mut placed = choice.placed.clone();
            placed[at / 64] |= 1 << (at % 64);
            if !self.tried.insert((placed.clone(), register)) {
                continue;
            }
            let left = choice.left - usize::from(operation.returned.is_some());
            let candidates = self.candidates(&placed);
            if choices.len() > self.deepest {
                self.deepest = choices.len();
                self.stuck = Some((register, candidates.iter().map(|at| self.operations[*at]).collect()));
            }
            choices.push(Choice { placed, register, left, candidates });
        }
        false
    }

    /// What can come next: whatever was called before all that is not placed has returned. The last one is tried
    /// first: the one that returned first.
    fn candidates(&self, placed: &Placed) -> Vec<usize> {
        let is_placed = |at: usize| placed[at / 64] & (1 << (at % 64)) != 0;
        let start = 64 * placed.iter().position(|word| *word != u64::MAX).unwrap_or(placed.len());
        let (mut next, mut first_return) = (Vec::new(), Duration::MAX);
        for (at, operation) in self.operations.iter().enumerate().skip(start).filter(|(at, _)| !is_placed(*at)) {
            // They stand in the order of their calls: nothing that follows returns before it.
            if operation.called > first_return {
                break;
            }
            first_return = first_return.min(operation.returned.unwrap_or(Duration::MAX));
            next.push(at);
        }
        next.retain(|at| self.operations[*at].called <= first_return);
        next.sort_by_key(|at| std::cmp::Reverse(self.operations[*at].returned.unwrap_or(Duration::MAX)));
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(act: Act, called: u64, returned: u64) -> Operation {
        let ms = Duration::from_millis;
        Operation { act, called: ms(called), returned: (returned > 0).then(|| ms(returned)) }
    }

    fn write(value: u64, revision: u64) -> Act {
        Act::Write { value: Some(value), revision }
    }

    #[test]
    fn one_after_the_other() {
        let history = [op(write(1, 1), 0, 1), op(Act::Read(Some((1, 1))), 2, 3), op(write(2, 5), 4, 5)];
        assert_eq!(check(&history), Ok(()));
        assert!(check(&[op(write(1, 1), 0, 1), op(Act::Read(None), 2, 3)]).is_err(), "a lost write");
        assert!(check(&[op(Act::Read(Some((1, 1))), 0, 1)]).is_err(), "a value from nowhere");
    }

    #[test]
    fn what_overlaps_may_be_seen_or_not_but_not_unseen_again() {
        let [writes, sees, not] = [write(1, 1), Act::Read(Some((1, 1))), Act::Read(None)];
        assert_eq!(check(&[op(writes, 0, 10), op(not, 1, 2), op(sees, 3, 4)]), Ok(()));
        assert!(check(&[op(writes, 0, 10), op(sees, 1, 2), op(not, 3, 4)]).is_err(), "time runs backwards");
    }

    #[test]
    fn what_nobody_was_told_of_may_happen_late_or_never() {
        let [writes, sees, not] = [write(1, 1), Act::Read(Some((1, 1))), Act::Read(None)];
        assert_eq!(check(&[op(writes, 0, 0), op(not, 10, 11), op(sees, 20, 21)]), Ok(()));
        assert_eq!(check(&[op(writes, 0, 0), op(not, 10, 11)]), Ok(()));
        assert!(check(&[op(writes, 15, 0), op(sees, 10, 11)]).is_err(), "seen before it was asked for");
    }

    #[test]
    fn a_swap_needs_what_it_expects() {
        let swap = |expected, value, revision| Act::Swap { expected, value, revision };
        let first = op(write(1, 1), 0, 1);
        assert_eq!(check(&[first, op(swap(Some((1, 1)), 2, 2), 2, 5), op(Act::Read(Some((2, 2))), 6, 7)]), Ok(()));
        let both = [first, op(swap(Some((1, 1)), 2, 2), 2, 5), op(swap(Some((1, 1)), 3, 3), 2, 5)];
        assert!(check(&both).is_err(), "both cannot win");
        let refused = op(Act::Refused { expected: Some(1), found: Some(2) }, 3, 6);
        assert_eq!(check(&[first, op(swap(Some((1, 1)), 2, 2), 2, 5), refused]), Ok(()));
        assert!(check(&[first, refused]).is_err(), "refused for no reason");
    }

    #[test]
    fn stale_reads_are_found_among_many_operations() {
        let mut history = Vec::new();
        for i in 1..200 {
            history.push(op(write(i, i), i * 10, i * 10 + 15));
            history.push(op(Act::Read(Some((i, i))), i * 10 + 3, i * 10 + 18));
        }
        assert_eq!(check(&history), Ok(()));
        history.push(op(Act::Read(Some((50, 50))), 700, 705));
        assert!(check(&history).is_err());
    }
}
