//! Handshakes under way on the TCP port. Whoever opens connections and says nothing must not keep out those who talk: a
//! handshake takes milliseconds, so when there are too many, the oldest is given up for the newest.
//!
//! Invariant: at most [`MAX_HANDSHAKES`] are under way, and at most [`MAX_HANDSHAKES_EACH`] from one address.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// Handshakes under way at once.
pub(crate) const MAX_HANDSHAKES: usize = 512;
/// From one address.
pub(crate) const MAX_HANDSHAKES_EACH: usize = 256;

#[derive(Clone, Default)]
pub(crate) struct Handshakes(Arc<Mutex<Open>>);

#[derive(Default)]
struct Open {
    next: u64,
    /// Oldest first.
    under_way: BTreeMap<u64, (IpAddr, CancellationToken)>,
}

impl Handshakes {
    /// A place for a handshake with `from`, the oldest one's if there is none.
    pub fn begin(&self, from: IpAddr) -> Place {
        let mut open = self.lock();
        let same = open.under_way.iter().filter(|(_, (address, _))| *address == from);
        let oldest = if same.clone().count() >= MAX_HANDSHAKES_EACH {
            same.map(|(number, _)| *number).next()
        } else if open.under_way.len() >= MAX_HANDSHAKES {
            open.under_way.keys().next().copied()
        } else {
            None
        };
        if let Some((_, given_up)) = oldest.and_then(|number| open.under_way.remove(&number)) {
            given_up.cancel();
        }
        let (number, given_up) = (open.next, CancellationToken::new());
        open.next += 1;
        open.under_way.insert(number, (from, given_up.clone()));
        Place { handshakes: self.clone(), number, given_up }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One handshake's place, given back when it is dropped.
pub(crate) struct Place {
    handshakes: Handshakes,
    number: u64,
    given_up: CancellationToken,
}

impl Place {
    /// Waits until the place is needed for a newer handshake.
    pub async fn given_up(&self) {
        self.given_up.cancelled().await;
    }

    /// The same, for whoever does not hold the place; never so once it was given back.
    pub fn when_given_up(&self) -> CancellationToken {
        self.given_up.clone()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.handshakes.lock().under_way.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    #[test]
    fn an_address_with_too_many_loses_its_own_oldest() {
        let handshakes = Handshakes::default();
        let other = handshakes.begin(from(1));
        let greedy: Vec<Place> = (0..=MAX_HANDSHAKES_EACH).map(|_| handshakes.begin(from(2))).collect();
        let ended: Vec<usize> = (0..greedy.len()).filter(|at| greedy[*at].given_up.is_cancelled()).collect();
        assert_eq!(ended, [0]);
        assert!(!other.given_up.is_cancelled());
    }

    #[test]
    fn when_all_places_are_taken_the_oldest_of_all_goes_and_places_come_back() {
        let handshakes = Handshakes::default();
        let mut all: Vec<Place> =
            (0..MAX_HANDSHAKES).map(|n| handshakes.begin(from((n / MAX_HANDSHAKES_EACH) as u8))).collect();
        assert!(all.iter().all(|place| !place.given_up.is_cancelled()));
        all.push(handshakes.begin(from(200)));
        assert!(all[0].given_up.is_cancelled() && !all[1].given_up.is_cancelled());
        drop(all);
        assert!(handshakes.lock().under_way.is_empty());
    }
}
