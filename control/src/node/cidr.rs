//! Pod address ranges: each node gets one out of the cluster's.
//!
//! Invariant: no two nodes of a View hold overlapping ranges that were given out here.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use flotilla_api::k8s_openapi::api::core::v1::Node;

/// The ranges that are free.
pub(crate) struct Ranges {
    first: u32,
    prefix: u8,
    count: u32,
    taken: BTreeSet<u32>,
    next: u32,
}

impl Ranges {
    /// All ranges of length `prefix` in `network`, less those that `nodes` have.
    pub fn new<'a>(network: (Ipv4Addr, u8), prefix: u8, nodes: impl Iterator<Item = &'a Node>) -> Self {
        let (address, length) = (u32::from(network.0), network.1.min(32));
        let prefix = prefix.clamp(length, 32);
        let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
        let bits = u32::from(prefix - length);
        let count = 1u32.checked_shl(bits).unwrap_or(u32::MAX);
        let mut ranges = Self { first: address & mask, prefix, count, taken: BTreeSet::new(), next: 0 };
        for node in nodes {
            if let Some((address, length)) = of_node(node) {
                ranges.take(address, length);
            }
        }
        ranges
    }

    fn size(&self) -> u32 {
        1u32.checked_shl(32 - u32::from(self.prefix)).unwrap_or(u32::MAX)
    }

    /// Marks every range that overlaps with the given one.
    fn take(&mut self, address: u32, length: u8) {
        let span = 1u64 << (32 - u32::from(length.min(32)));
        let (start, end) = (u64::from(address), u64::from(address) + span - 1);
        let (first, size) = (u64::from(self.first), u64::from(self.size()));
        let last = first + size * u64::from(self.count) - 1;
        if end < first || start > last {
            return;
        }
        let from = (start.max(first) - first) / size;
        let to = (end.min(last) - first) / size;
        self.taken.extend((from..=to).filter_map(|index| u32::try_from(index).ok()));
    }

    /// Takes the lowest free range; `None` if all are taken.
    pub fn next(&mut self) -> Option<String> {
        while self.next < self.count && self.taken.contains(&self.next) {
            self.next += 1;
        }
        if self.next >= self.count {
            return None;
        }
        let address = Ipv4Addr::from(self.first + self.next * self.size());
        self.taken.insert(self.next);
        Some(format!("{address}/{}", self.prefix))
    }
}

fn of_node(node: &Node) -> Option<(u32, u8)> {
    let (address, length) = node.spec.as_ref()?.pod_cidr.as_deref()?.split_once('/')?;
    let length: u8 = length.parse().ok().filter(|length| *length <= 32)?;
    Some((u32::from(address.parse::<Ipv4Addr>().ok()?), length))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(cidr: &str) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": {"podCIDR": cidr}})).unwrap()
    }

    #[test]
    fn ranges_do_not_overlap() {
        let nodes = [node("10.244.0.0/24"), node("10.244.2.0/23"), node("nonsense"), node("192.168.0.0/24")];
        let mut ranges = Ranges::new((Ipv4Addr::new(10, 244, 0, 0), 16), 24, nodes.iter());
        assert_eq!(ranges.next().as_deref(), Some("10.244.1.0/24"));
        assert_eq!(ranges.next().as_deref(), Some("10.244.4.0/24"));
    }

    #[test]
    fn an_exhausted_network_gives_nothing() {
        let mut ranges = Ranges::new((Ipv4Addr::new(10, 0, 0, 0), 23), 24, [].iter());
        assert_eq!(ranges.next().as_deref(), Some("10.0.0.0/24"));
        assert_eq!(ranges.next().as_deref(), Some("10.0.1.0/24"));
        assert_eq!(ranges.next(), None);
    }

    #[test]
    fn a_network_smaller_than_a_range_is_one_range() {
        let mut ranges = Ranges::new((Ipv4Addr::new(10, 0, 0, 0), 26), 24, [].iter());
        assert_eq!(ranges.next().as_deref(), Some("10.0.0.0/26"));
        assert_eq!(ranges.next(), None);
    }
}
