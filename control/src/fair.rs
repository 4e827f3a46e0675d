//! Whose request goes next when more came than are served at once.
//!
//! Users who wait take turns, a request each, however many each of them has sent.
//!
//! Invariant: at most `seats` requests are under way, and at most `seats_per_user` of one user.
//! Invariant: while a seat is free, nobody waits who may have it.
//! Invariant: nothing is kept of a user who has no request here.

use std::collections::{HashMap, VecDeque};

/// How many requests are let in, and how many wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub seats: usize,
    pub seats_per_user: usize,
    pub queue_per_user: usize,
    pub queue: usize,
}

/// Stands for a request that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

/// What becomes of a request that comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It goes on at once.
    Enter,
    /// It goes on when its ticket is called.
    Wait(Ticket),
    /// Too many wait already.
    Refuse,
}

#[derive(Debug)]
pub struct Fair {
    bounds: Bounds,
    users: HashMap<String, Line>,
    /// Users of whom a request waits and could go if there were a seat; each once.
    turns: VecDeque<String>,
    under_way: usize,
    waiting: usize,
    next: u64,
}

/// The requests of one user.
#[derive(Debug, Default)]
struct Line {
    under_way: usize,
    waiting: VecDeque<Ticket>,
}

impl Fair {
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, users: HashMap::new(), turns: VecDeque::new(), under_way: 0, waiting: 0, next: 0 }
    }

    /// A request of `user` comes.
    pub fn arrive(&mut self, user: &str) -> Arrival {
        let line = self.users.entry(user.to_owned()).or_default();
        if self.under_way < self.bounds.seats && line.under_way < self.bounds.seats_per_user {
            line.under_way += 1;
            self.under_way += 1;
            return Arrival::Enter;
        }
        if self.waiting >= self.bounds.queue || line.waiting.len() >= self.bounds.queue_per_user {
            self.forget(user);
            return Arrival::Refuse;
        }
        let ticket = Ticket(self.next);
        self.next += 1;
        self.waiting += 1;
        line.waiting.push_back(ticket);
        if line.waiting.len() == 1 && line.under_way < self.bounds.seats_per_user {
            self.turns.push_back(user.to_owned());
        }
        Arrival::Wait(ticket)
    }

    /// A request of `user` that was under way is done; the tickets of those that go on now.
    pub fn leave(&mut self, user: &str) -> Vec<Ticket> {
        let Some(line) = self.users.get_mut(user).filter(|line| line.under_way > 0) else { return Vec::new() };
        let was_full = line.under_way == self.bounds.seats_per_user;
        line.under_way -= 1;
        self.under_way -= 1;
        if was_full && !line.waiting.is_empty() {
            self.turns.push_back(user.to_owned());
        }
        self.forget(user);
        self.call()
    }

    /// A request of `user` waits no longer, and was not called.
    pub fn give_up(&mut self, user: &str, ticket: Ticket) {
        let Some(line) = self.users.get_mut(user) else { return };
        let before = line.waiting.len();
        line.waiting.retain(|other| *other != ticket);
        self.waiting -= before - line.waiting.len();
        if line.waiting.is_empty() {
            self.turns.retain(|other| other != user);
        }
        self.forget(user);
    }

    /// Gives free seats to those who wait, a user at a time.
    fn call(&mut self) -> Vec<Ticket> {
        let mut called = Vec::new();
        while self.under_way < self.bounds.seats {
            let Some(user) = self.turns.pop_front() else { break };
            let Some(line) = self.users.get_mut(&user) else { continue };
            let Some(ticket) = line.waiting.pop_front() else { continue };
            line.under_way += 1;
            self.under_way += 1;
            self.waiting -= 1;
            if !line.waiting.is_empty() && line.under_way < self.bounds.seats_per_user {
                self.turns.push_back(user);
            }
            called.push(ticket);
        }
        called
    }

    fn forget(&mut self, user: &str) {
        if self.users.get(user).is_some_and(|line| line.under_way == 0 && line.waiting.is_empty()) {
            self.users.remove(user);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Bounds = Bounds { seats: 4, seats_per_user: 3, queue_per_user: 5, queue: 12 };

    fn wait(fair: &mut Fair, user: &str) -> Ticket {
        match fair.arrive(user) {
            Arrival::Wait(ticket) => ticket,
            other => panic!("{user}: {other:?}"),
        }
    }

    #[test]
    fn whoever_sends_much_waits_for_those_who_send_little() {
        let mut fair = Fair::new(BOUNDS);
        for _ in 0..3 {
            assert_eq!(fair.arrive("loud"), Arrival::Enter);
        }
        let loud: Vec<Ticket> = (0..5).map(|_| wait(&mut fair, "loud")).collect();
        assert_eq!(fair.arrive("loud"), Arrival::Refuse);
        assert_eq!(fair.arrive("a"), Arrival::Enter, "the loud one has its seats and no more");
        let (b, a) = (wait(&mut fair, "b"), wait(&mut fair, "a"));
        assert_eq!(fair.leave("loud"), [b]);
        assert_eq!(fair.leave("b"), [a], "the loud one has just come to its turn");
        assert_eq!(fair.leave("a"), [loud[0]]);
        assert_eq!(fair.leave("a"), [] as [Ticket; 0], "it has three seats again");
        assert_eq!(fair.leave("loud"), [loud[1]]);
    }

    #[test]
    fn who_gives_up_is_not_called() {
        let mut fair = Fair::new(BOUNDS);
        (0..3).for_each(|_| assert_eq!(fair.arrive("a"), Arrival::Enter));
        assert_eq!(fair.arrive("b"), Arrival::Enter);
        let (first, second) = (wait(&mut fair, "c"), wait(&mut fair, "d"));
        fair.give_up("c", first);
        assert_eq!(fair.leave("a"), [second]);
        assert!(!fair.users.contains_key("c"));
    }

    #[test]
    fn all_who_wait_are_bounded() {
        let mut fair = Fair::new(BOUNDS);
        let users: Vec<String> = (0..4).map(|user| user.to_string()).collect();
        users.iter().for_each(|user| assert_eq!(fair.arrive(user), Arrival::Enter));
        for round in 0..3 {
            users.iter().for_each(|user| assert!(matches!(fair.arrive(user), Arrival::Wait(_)), "{round}"));
        }
        assert_eq!(fair.arrive("another"), Arrival::Refuse);
        assert!(!fair.users.contains_key("another"));
    }

    proptest! {
        /// Users come, leave and give up in any order; the invariants hold, and in the end nothing is left.
        #[test]
        fn seats_are_neither_lost_nor_doubled(steps in prop::collection::vec((0_u8..3, 0_usize..4, any::<usize>()), 1..200)) {
            let mut fair = Fair::new(BOUNDS);
            let mut inside: BTreeMap<String, usize> = BTreeMap::new();
            let mut waiting: Vec<(Ticket, String)> = Vec::new();
            let enter = |called: Vec<Ticket>, inside: &mut BTreeMap<String, usize>, waiting: &mut Vec<(Ticket, String)>| {
                for ticket in called {
                    let at = waiting.iter().position(|(other, _)| *other == ticket).expect("it was waiting");
                    *inside.entry(waiting.remove(at).1).or_default() += 1;
                }
            };
            for (what, user, pick) in steps {
                let user = format!("u{user}");
                match what {
                    0 => match fair.arrive(&user) {
                        Arrival::Enter => *inside.entry(user).or_default() += 1,
                        Arrival::Wait(ticket) => waiting.push((ticket, user)),
                        Arrival::Refuse => prop_assert!(waiting.iter().filter(|(_, other)| *other == user).count() >= 5 || waiting.len() >= 12),
                    },
                    1 if inside.get(&user).is_some_and(|count| *count > 0) => {
                        *inside.entry(user.clone()).or_default() -= 1;
                        enter(fair.leave(&user), &mut inside, &mut waiting);
                    }
                    2 if !waiting.is_empty() => {
                        let (ticket, user) = waiting.remove(pick % waiting.len());
                        fair.give_up(&user, ticket);
                    }
                    _ => {}
                }
                let total: usize = inside.values().sum();
                prop_assert!(total <= 4 && inside.values().all(|count| *count <= 3));
                prop_assert_eq!((fair.under_way, fair.waiting), (total, waiting.len()));
                let may = |(_, user): &(Ticket, String)| inside.get(user).copied().unwrap_or_default() < 3;
                prop_assert!(total == 4 || !waiting.iter().any(may), "a seat is free and somebody waits");
            }
            while let Some(user) = inside.iter().find(|(_, count)| **count > 0).map(|(user, _)| user.clone()) {
                *inside.entry(user.clone()).or_default() -= 1;
                enter(fair.leave(&user), &mut inside, &mut waiting);
            }
            prop_assert!(waiting.is_empty() && fair.users.is_empty() && fair.turns.is_empty());
        }
    }
}
