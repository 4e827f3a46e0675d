//! Bounds on what strangers can make this node do: how often an address may try to join, and how many handshakes may be
//! open at once.
//!
//! Invariant: memory is bounded whatever addresses come; those that find no room share one allowance.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often something may happen: `burst` times at once, and again after `refill` for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    pub burst: u32,
    pub refill: Duration,
}

/// Whoever shares an allowance: an IPv4 address, an IPv6 /64, which is one subscriber, or all nodes that are relayed, since a
/// member may hand on packets in the name of any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Origin(IpAddr);

impl Origin {
    pub(crate) fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Origin(ip.into()),
            IpAddr::V6(ip) => Origin(Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into()),
        }
    }
}

/// An allowance for each origin.
pub(crate) struct RateLimit {
    rate: Rate,
    max_origins: usize,
    used: HashMap<Origin, Allowance>,
    overflow: Allowance,
}

/// How much is left, as of a moment.
#[derive(Clone, Copy)]
struct Allowance {
    left: f64,
    at: Instant,
}

impl RateLimit {
    pub(crate) fn new(rate: Rate, max_origins: usize, now: Instant) -> Self {
        let overflow = Allowance { left: f64::from(rate.burst), at: now };
        RateLimit { rate, max_origins, used: HashMap::new(), overflow }
    }

    /// Whether `origin` may, and takes one from its allowance if so; else, how long until it may.
    pub(crate) fn take(&mut self, origin: Origin, now: Instant) -> Result<(), Duration> {
        if self.used.len() >= self.max_origins && !self.used.contains_key(&origin) {
            let rate = self.rate;
            self.used.retain(|_, allowance| allowance.refilled(rate, now) < f64::from(rate.burst));
        }
        let full = Allowance { left: f64::from(self.rate.burst), at: now };
        let allowance = if self.used.len() < self.max_origins || self.used.contains_key(&origin) {
            self.used.entry(origin).or_insert(full)
        } else {
            &mut self.overflow
        };
        allowance.take(self.rate, now)
    }
}

impl Allowance {
    fn refilled(&self, rate: Rate, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        (self.left + elapsed / rate.refill.as_secs_f64().max(1e-9)).min(f64::from(rate.burst))
    }

    fn take(&mut self, rate: Rate, now: Instant) -> Result<(), Duration> {
        *self = Allowance { left: self.refilled(rate, now), at: now };
        if self.left >= 1.0 {
            self.left -= 1.0;
            return Ok(());
        }
        Err(rate.refill.mul_f64(1.0 - self.left))
    }
}

/// Counts what is open, in all and for each key.
pub(crate) struct Gate<K> {
    max: usize,
    max_each: usize,
    open: Mutex<(usize, HashMap<K, usize>)>,
}

impl<K: Hash + Eq + Copy> Gate<K> {
    pub(crate) fn new(max: usize, max_each: usize) -> Arc<Self> {
        Arc::new(Gate { max, max_each, open: Mutex::new((0, HashMap::new())) })
    }

    /// How many are open.
    pub(crate) fn len(&self) -> usize {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    /// A place for `key`, given back when it is dropped; `None` where there is none.
    pub(crate) fn enter(self: &Arc<Self>, key: K) -> Option<Place<K>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let each = open.1.get(&key).copied().unwrap_or(0);
        if open.0 >= self.max || each >= self.max_each {
            return None;
        }
        open.0 += 1;
        open.1.insert(key, each + 1);
        Some(Place { gate: self.clone(), key })
    }
}

pub(crate) struct Place<K: Hash + Eq> {
    gate: Arc<Gate<K>>,
    key: K,
}

impl<K: Hash + Eq> Drop for Place<K> {
    fn drop(&mut self) {
        let mut open = self.gate.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.0 -= 1;
        if let Some(each) = open.1.get_mut(&self.key) {
            *each -= 1;
            if *each == 0 {
                open.1.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { burst: 2, refill: Duration::from_secs(10) };

    fn origin(n: u8) -> Origin {
        Origin::of(IpAddr::from([10, 0, 0, n]))
    }

    #[test]
    fn an_origin_has_its_burst_and_then_waits() {
        let start = Instant::now();
        let mut limit = RateLimit::new(RATE, 8, start);
        assert_eq!(limit.take(origin(1), start), Ok(()));
        assert_eq!(limit.take(origin(1), start), Ok(()));
        assert_eq!(limit.take(origin(1), start), Err(Duration::from_secs(10)));
        assert_eq!(limit.take(origin(2), start), Ok(()), "others are unharmed");
        assert_eq!(limit.take(origin(1), start + Duration::from_secs(11)), Ok(()));
    }

    #[test]
    fn more_origins_than_places_share_one_allowance_until_places_free_up() {
        let start = Instant::now();
        let mut limit = RateLimit::new(RATE, 2, start);
        let granted = (0..100).filter(|n| limit.take(origin(*n), start).is_ok()).count();
        assert_eq!(granted, 4, "one each for two origins, and two of the shared allowance");
        assert_eq!(limit.used.len(), 2);
        assert_eq!(limit.take(origin(200), start + Duration::from_secs(60)), Ok(()));
    }

    #[test]
    fn an_ipv6_subscriber_is_one_origin() {
        let ip = |text: &str| Origin::of(text.parse().expect("an address"));
        assert_eq!(ip("2001:db8::1"), ip("2001:db8::ffff:2"));
        assert_ne!(ip("2001:db8:0:1::1"), ip("2001:db8::1"));
        assert_eq!(ip("::ffff:10.0.0.1"), origin(1));
    }

    #[test]
    fn all_that_is_relayed_is_of_one_origin() {
        let relayed = |node| Origin::of(crate::socket::relayed_address(node).ip());
        assert_eq!(relayed(1), relayed(u64::MAX));
        assert_ne!(relayed(1), origin(1));
    }

    #[test]
    fn a_gate_gives_places_back() {
        let gate = Gate::new(3, 2);
        let first = gate.enter(1).expect("a place");
        let _second = gate.enter(1).expect("a place");
        assert!(gate.enter(1).is_none(), "two each");
        let _third = gate.enter(2).expect("a place");
        assert!(gate.enter(3).is_none(), "three in all");
        drop(first);
        assert!(gate.enter(3).is_some());
        assert_eq!(gate.len(), 2);
    }
}
