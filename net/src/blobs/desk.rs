//! Where seekers wait: the ledger, with whoever is to be woken when it has something new to say.
//!
//! Invariant: a seat is given back when it is dropped, and the next seeker is woken.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::ledger::{Ledger, SeatId, Word};
use super::rendezvous::Mark;
use crate::names::NodeId;

/// How often a waiting seeker is looked after without a cause: its turn may have come by time alone.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

#[derive(Default)]
pub struct Desk {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    ledger: Ledger,
    /// How many wait for a mark, and how they are woken.
    waiting: HashMap<Mark, (usize, Arc<Notify>)>,
}

impl Desk {
    /// Sits down as `node`; `None` if there is no room.
    pub fn sit(self: &Arc<Self>, mark: Mark, node: NodeId) -> Option<Seat> {
        let mut state = self.lock();
        let id = state.ledger.sit(mark, node, Instant::now())?;
        let (count, changed) = state.waiting.entry(mark).or_default();
        *count += 1;
        let changed = changed.clone();
        Some(Seat { desk: self.clone(), mark, id, changed, holds: false })
    }

    /// `node` says that it holds these.
    pub fn announce(&self, node: NodeId, marks: &[Mark]) {
        let now = Instant::now();
        let mut state = self.lock();
        for mark in marks {
            state.ledger.announce(*mark, node, now);
            if let Some((_, changed)) = state.waiting.get(mark) {
                changed.notify_waiters();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A seeker's place.
pub struct Seat {
    desk: Arc<Desk>,
    mark: Mark,
    id: SeatId,
    changed: Arc<Notify>,
    holds: bool,
}

impl Seat {
    /// What there is to say, as soon as there is something. `may` tells whom the seeker may be sent to.
    pub async fn word(&self, may: impl Fn(NodeId) -> bool) -> Word {
        loop {
            let changed = self.changed.notified();
            if let Some(word) = self.desk.lock().ledger.word(self.mark, self.id, Instant::now(), &may) {
                return word;
            }
            // Whether it was woken or looks by itself makes no difference.
            let _ = tokio::time::timeout(LOOK_AGAIN, changed).await;
        }
    }

    pub fn blame(&self, missing: &[NodeId], failed: &[NodeId]) {
        self.desk.lock().ledger.blame(self.mark, self.id, missing, failed);
    }

    /// The seeker has the blob now, and gets up.
    pub fn held(mut self) {
        self.holds = true;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.desk.lock();
        state.ledger.rise(self.mark, self.id, self.holds, Instant::now());
        if let Some((count, _)) = state.waiting.get_mut(&self.mark) {
            *count -= 1;
            if *count == 0 {
                state.waiting.remove(&self.mark);
            }
        }
        self.changed.notify_waiters();
    }
}
