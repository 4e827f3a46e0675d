//! What can go wrong when nodes call each other.

use crate::alpn::Alpn;
use crate::links::Close;
use crate::names::NodeId;

/// Cheap to clone: one failed dial answers everyone who waited for it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NetError {
    #[error("node {0} is not a member of this cluster")]
    NotAMember(NodeId),
    #[error("no address of node {0} is known")]
    NoAddress(NodeId),
    #[error("node {node} does not answer on {alpn}: {reason}")]
    Unreachable { node: NodeId, alpn: Alpn, reason: String },
    #[error("node {node} refuses {alpn}: {reason}")]
    Refused { node: NodeId, alpn: Alpn, reason: String },
    #[error("node {node} did not answer on {alpn} within {waited_ms} ms")]
    Timeout { node: NodeId, alpn: Alpn, waited_ms: u64 },
    #[error("this node is shutting down")]
    ShuttingDown,
    #[error("a heartbeat carries at most {max_bytes} bytes")]
    PayloadTooLarge { max_bytes: usize },
    #[error("the network cannot be started: {0}")]
    Start(String),
    #[error("the address record cannot be used: {0}")]
    Record(String),
    #[error("the list of removed nodes cannot be kept: {0}")]
    Members(String),
    #[error("the identity cannot be used: {0}")]
    Identity(String),
}

impl NetError {
    /// Whether a node says that this one is no member, or none any more.
    #[must_use]
    pub fn says_no_member(&self) -> bool {
        let words = [Close::NotAMember.reason(), Close::Revoked.reason()];
        matches!(self, Self::Refused { reason, .. } if words.contains(&reason.as_str()))
    }
}
