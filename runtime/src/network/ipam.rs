//! Which addresses of the node's block are free.
//!
//! Invariant: the block's network, first (the bridge's) and broadcast addresses are never given.
//! Invariant: a freed address is given again as late as possible, so that a client's stale connection does not meet
//! another pod.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::Cidr;

pub struct Ipam {
    first: u32,
    last: u32,
    next: u32,
    taken: BTreeSet<u32>,
}

impl Ipam {
    pub fn new(block: Cidr, held: impl Iterator<Item = Ipv4Addr>) -> Self {
        let (first, last) = (u32::from(block.first()) + 1, u32::from(block.last()));
        let taken: BTreeSet<u32> = held.map(u32::from).filter(|ip| (first..=last).contains(ip)).collect();
        let next = taken.last().map_or(first, |ip| ip + 1);
        Self { first, last, next, taken }
    }

    pub fn capacity(&self) -> usize {
        (self.last - self.first + 1) as usize
    }

    pub fn take(&mut self) -> Option<Ipv4Addr> {
        let free = (self.next..=self.last)
            .chain(self.first..self.next.min(self.last + 1))
            .find(|ip| !self.taken.contains(ip))?;
        self.taken.insert(free);
        self.next = if free == self.last { self.first } else { free + 1 };
        Some(Ipv4Addr::from(free))
    }

    pub fn free(&mut self, ip: Ipv4Addr) {
        self.taken.remove(&u32::from(ip));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_small_block_is_used_up_and_comes_back() {
        let mut ipam = Ipam::new("10.0.0.0/29".parse().unwrap(), std::iter::empty());
        let all: Vec<Ipv4Addr> = std::iter::from_fn(|| ipam.take()).collect();
        assert_eq!(all.len(), 5);
        assert_eq!((all[0].octets()[3], all[4].octets()[3]), (2, 6));
        ipam.free(all[2]);
        assert_eq!(ipam.take(), Some(all[2]));
        assert_eq!(ipam.take(), None);
    }

    #[test]
    fn a_freed_address_rests() {
        let mut ipam = Ipam::new("10.0.0.0/24".parse().unwrap(), std::iter::empty());
        let first = ipam.take().unwrap();
        ipam.free(first);
        assert_ne!(ipam.take().unwrap(), first);
    }

    proptest! {
        #[test]
        fn no_address_twice(steps in proptest::collection::vec(any::<bool>(), 1..200), held in proptest::collection::vec(0u32..20, 0..10)) {
            let base = u32::from(Ipv4Addr::new(10, 0, 0, 0));
            let mut live: BTreeSet<Ipv4Addr> = held.iter().filter(|n| (2..=14).contains(*n)).map(|n| Ipv4Addr::from(base + n)).collect();
            let mut ipam = Ipam::new("10.0.0.0/28".parse().unwrap(), held.iter().map(|n| Ipv4Addr::from(base + n)));
            for take in steps {
                if take {
                    match ipam.take() {
                        Some(ip) => prop_assert!(live.insert(ip), "{ip} given twice"),
                        None => prop_assert_eq!(live.len(), 13),
                    }
                } else if let Some(ip) = live.pop_first() {
                    ipam.free(ip);
                }
            }
        }
    }
}
