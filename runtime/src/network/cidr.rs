//! A block of IPv4 addresses.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// Invariant: the address has no bits beyond the prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    network: u32,
    prefix_len: u8,
}

impl Cidr {
    /// `None` when there is no such prefix; bits beyond the prefix are cleared.
    pub fn new(address: Ipv4Addr, prefix_len: u8) -> Option<Self> {
        (prefix_len <= 32).then(|| Self { network: u32::from(address) & mask(prefix_len), prefix_len })
    }

    pub fn prefix_len(&self) -> u8 {
        self.prefix_len
    }

    /// The first address that a host may have.
    pub fn first(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.network.saturating_add(1))
    }

    pub fn last(&self) -> Ipv4Addr {
        Ipv4Addr::from((self.network | !mask(self.prefix_len)).saturating_sub(1))
    }

    pub fn contains(&self, address: Ipv4Addr) -> bool {
        u32::from(address) & mask(self.prefix_len) == self.network
    }
}

fn mask(prefix_len: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix_len)).unwrap_or(0)
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.network), self.prefix_len)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not an IPv4 block such as 10.77.1.0/24")]
pub struct NotACidr(String);

impl FromStr for Cidr {
    type Err = NotACidr;

    fn from_str(text: &str) -> Result<Self, NotACidr> {
        let parsed = text.split_once('/').and_then(|(ip, prefix)| Self::new(ip.parse().ok()?, prefix.parse().ok()?));
        parsed.ok_or_else(|| NotACidr(text.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_print_as_they_parse() {
        let block: Cidr = "10.77.1.9/24".parse().unwrap();
        assert_eq!(block.to_string(), "10.77.1.0/24");
        assert_eq!((block.first().to_string(), block.last().to_string()), ("10.77.1.1".into(), "10.77.1.254".into()));
        assert!(block.contains(Ipv4Addr::new(10, 77, 1, 255)) && !block.contains(Ipv4Addr::new(10, 77, 2, 0)));
        for bad in ["", "10.0.0.0", "10.0.0.0/33", "x/8", "10.0.0.0/-1"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }
}
