//! Who is alive: a function of when heartbeats came and of now.
//!
//! A member is alive while it is heard, suspect after a short silence, dead after a long one; the first heartbeat brings
//! it back. One that was never heard is unknown, and dead after a longer time, since a whole cluster that starts is slow.
//!
//! Invariant: silence counts only while this node itself was listening. If it was paused, it begins to count anew.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::names::NodeId;

/// How the silence of a member is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Silence {
    pub suspect_after: Duration,
    pub dead_after: Duration,
    /// How long a member that was never heard is given.
    pub unheard_after: Duration,
    /// How late this node's own clock tick must be for it to have been paused.
    pub pause_after: Duration,
}

impl Default for Silence {
    fn default() -> Self {
        Silence {
            suspect_after: Duration::from_secs(1),
            dead_after: Duration::from_secs(3),
            unheard_after: Duration::from_secs(10),
            pause_after: Duration::from_millis(500),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Liveness {
    /// Listed, not heard yet.
    Unknown,
    Alive,
    Suspect,
    Dead,
}

/// What is known of one member's heartbeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Clock {
    pub(crate) state: Liveness,
    pub(crate) last_heard: Option<Instant>,
    /// From when on silence counts.
    silent_since: Instant,
}

/// What a tick found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Ticked {
    pub(crate) changed: bool,
    /// This node was paused, and all clocks began anew.
    pub(crate) paused: bool,
}

#[derive(Debug)]
pub(crate) struct Suspicion {
    silence: Silence,
    period: Duration,
    last_tick: Instant,
    clocks: BTreeMap<NodeId, Clock>,
}

impl Suspicion {
    /// `period` is how often [`Suspicion::tick`] will be called.
    pub(crate) fn new(silence: Silence, period: Duration, now: Instant) -> Self {
        Suspicion { silence, period, last_tick: now, clocks: BTreeMap::new() }
    }

    /// Judges exactly `members` from now on.
    pub(crate) fn set_members(&mut self, members: impl Iterator<Item = NodeId>, now: Instant) {
        let fresh = Clock { state: Liveness::Unknown, last_heard: None, silent_since: now };
        self.clocks = members.map(|id| (id, self.clocks.get(&id).copied().unwrap_or(fresh))).collect();
    }

    /// A heartbeat of `id` came. Whether that changes its state.
    pub(crate) fn heard(&mut self, id: NodeId, now: Instant) -> bool {
        let Some(clock) = self.clocks.get_mut(&id) else { return false };
        let changed = clock.state != Liveness::Alive;
        *clock = Clock { state: Liveness::Alive, last_heard: Some(now), silent_since: now };
        changed
    }

    /// Time passed. Judges every silence.
    pub(crate) fn tick(&mut self, now: Instant) -> Ticked {
        let late = now.saturating_duration_since(self.last_tick).saturating_sub(self.period);
        self.last_tick = now;
        if late > self.silence.pause_after {
            self.clocks.values_mut().for_each(|clock| clock.silent_since = now);
            return Ticked { changed: false, paused: true };
        }
        let mut changed = false;
        for clock in self.clocks.values_mut() {
            let state = judge(clock, &self.silence, now);
            changed |= state != clock.state;
            clock.state = state;
        }
        Ticked { changed, paused: false }
    }

    pub(crate) fn clocks(&self) -> &BTreeMap<NodeId, Clock> {
        &self.clocks
    }
}

fn judge(clock: &Clock, silence: &Silence, now: Instant) -> Liveness {
    let silent = now.saturating_duration_since(clock.silent_since);
    match clock.state {
        Liveness::Unknown if silent >= silence.unheard_after => Liveness::Dead,
        Liveness::Alive | Liveness::Suspect if silent >= silence.dead_after => Liveness::Dead,
        Liveness::Alive if silent >= silence.suspect_after => Liveness::Suspect,
        state => state,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(100);

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn state(suspicion: &Suspicion, id: NodeId) -> Liveness {
        suspicion.clocks()[&id].state
    }

    /// Ticks from `from` to `to` as a running node does.
    fn run(suspicion: &mut Suspicion, start: Instant, from: u64, to: u64) -> Vec<u64> {
        let ticks = (from..=to).step_by(TICK.as_millis() as usize);
        ticks.filter(|at| suspicion.tick(start + ms(*at)).changed).collect()
    }

    fn watched() -> (Suspicion, Instant) {
        let start = Instant::now();
        let mut suspicion = Suspicion::new(Silence::default(), TICK, start);
        suspicion.set_members([1, 2].into_iter(), start);
        (suspicion, start)
    }

    #[test]
    fn silence_makes_suspect_and_then_dead_and_a_beat_brings_back() {
        let (mut suspicion, start) = watched();
        assert!(suspicion.heard(1, start));
        assert_eq!(run(&mut suspicion, start, 0, 900), []);
        assert_eq!(run(&mut suspicion, start, 1000, 2900), [1000]);
        assert_eq!(state(&suspicion, 1), Liveness::Suspect);
        assert_eq!(run(&mut suspicion, start, 3000, 3000), [3000]);
        assert_eq!(state(&suspicion, 1), Liveness::Dead);
        assert!(suspicion.heard(1, start + ms(3050)));
        assert_eq!(state(&suspicion, 1), Liveness::Alive);
        assert!(!suspicion.heard(1, start + ms(3060)), "nothing changes while it is heard");
    }

    #[test]
    fn a_member_never_heard_is_given_longer() {
        let (mut suspicion, start) = watched();
        run(&mut suspicion, start, 0, 9900);
        assert_eq!(state(&suspicion, 2), Liveness::Unknown);
        run(&mut suspicion, start, 10_000, 10_000);
        assert_eq!(state(&suspicion, 2), Liveness::Dead);
    }

    #[test]
    fn after_a_pause_every_clock_begins_anew() {
        let (mut suspicion, start) = watched();
        suspicion.heard(1, start);
        run(&mut suspicion, start, 0, 500);
        assert_eq!(suspicion.tick(start + ms(60_000)), Ticked { changed: false, paused: true });
        assert_eq!(state(&suspicion, 1), Liveness::Alive);
        run(&mut suspicion, start, 60_100, 60_900);
        assert_eq!(state(&suspicion, 1), Liveness::Alive);
        run(&mut suspicion, start, 61_000, 62_900);
        assert_eq!(state(&suspicion, 1), Liveness::Suspect);
        run(&mut suspicion, start, 63_000, 63_000);
        assert_eq!(state(&suspicion, 1), Liveness::Dead);
    }

    #[test]
    fn a_pause_neither_kills_a_suspect_nor_wakes_the_dead() {
        let (mut suspicion, start) = watched();
        suspicion.heard(1, start);
        run(&mut suspicion, start, 0, 1500);
        suspicion.tick(start + ms(9_000));
        run(&mut suspicion, start, 9_100, 9_200);
        assert_eq!(state(&suspicion, 1), Liveness::Suspect);
        run(&mut suspicion, start, 9_300, 12_500);
        assert_eq!(state(&suspicion, 1), Liveness::Dead);
        suspicion.tick(start + ms(20_000));
        assert_eq!(state(&suspicion, 1), Liveness::Dead);
    }

    #[test]
    fn a_tick_a_little_late_is_no_pause() {
        let (mut suspicion, start) = watched();
        suspicion.heard(1, start);
        suspicion.tick(start + ms(600));
        assert_eq!(suspicion.tick(start + ms(1200)), Ticked { changed: true, paused: false });
    }

    #[test]
    fn those_no_longer_listed_are_forgotten_and_those_listed_keep_their_clock() {
        let (mut suspicion, start) = watched();
        suspicion.heard(1, start);
        suspicion.set_members([1, 3].into_iter(), start + ms(10));
        assert_eq!(state(&suspicion, 1), Liveness::Alive);
        assert_eq!(state(&suspicion, 3), Liveness::Unknown);
        assert!(!suspicion.heard(2, start + ms(20)));
        assert_eq!(suspicion.clocks().len(), 2);
    }
}
