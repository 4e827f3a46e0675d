//! What clusters and nodes are called. Ids are for machines, names for people; addresses are neither and live in
//! [`crate::AddressRecord`].

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A node for all its life; the same number is its id in the replicated store.
pub type NodeId = u64;

/// The longest node name, so that `system:node:NAME` stays a name that every TLS library reads.
pub const MAX_NODE_NAME_BYTES: usize = 63;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NameError {
    #[error("a cluster id is 32 hexadecimal digits")]
    ClusterId,
    #[error(
        "a node name is 1 to {MAX_NODE_NAME_BYTES} of a-z, 0-9, '-' and '.', beginning and ending with a letter or digit"
    )]
    NodeName,
}

/// A cluster for all its life: 128 random bits, shown as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ClusterId([u8; 16]);

impl ClusterId {
    pub fn generate() -> Self {
        let mut bytes = [0; 16];
        crate::random::fill(&mut bytes);
        ClusterId(bytes)
    }

    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        ClusterId(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ClusterId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let digits = text.as_bytes();
        if digits.len() != 32 {
            return Err(NameError::ClusterId);
        }
        let mut bytes = [0; 16];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = hex_digit(pair[0])? << 4 | hex_digit(pair[1])?;
        }
        Ok(ClusterId(bytes))
    }
}

/// One lower-case digit: an id has one spelling, so that texts compare like ids.
fn hex_digit(byte: u8) -> Result<u8, NameError> {
    match byte {
        b'0'..=b'9' => Ok(byte - b'0'),
        b'a'..=b'f' => Ok(byte - b'a' + 10),
        _ => Err(NameError::ClusterId),
    }
}

/// Whether `name` may be a node's name.
pub fn check_node_name(name: &str) -> Result<(), NameError> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    let outer = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = name.as_bytes();
    let fits = bytes.len() <= MAX_NODE_NAME_BYTES && outer(bytes.first()) && outer(bytes.last());
    if fits && bytes.iter().all(|b| inner(*b)) { Ok(()) } else { Err(NameError::NodeName) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_id_has_one_spelling() {
        let id = ClusterId::generate();
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "12", &"g".repeat(32), &"A".repeat(32), &"é".repeat(16)] {
            assert_eq!(bad.parse::<ClusterId>(), Err(NameError::ClusterId), "{bad}");
        }
    }

    #[test]
    fn node_names_are_host_names() {
        for good in ["a", "node-1", "machine-1.example", &"x".repeat(63)] {
            assert_eq!(check_node_name(good), Ok(()), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a/b", "a b", "é", &"x".repeat(64)] {
            assert_eq!(check_node_name(bad), Err(NameError::NodeName), "{bad}");
        }
    }
}
