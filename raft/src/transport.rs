//! The port through which replicas reach each other. Whoever uses the store holds the adaptor.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::types::NodeId;

/// A peer's bytes towards us.
pub type Reader = Box<dyn AsyncRead + Send + Unpin>;
/// Our bytes towards a peer.
pub type Writer = Box<dyn AsyncWrite + Send + Unpin>;

#[derive(Clone, Debug, thiserror::Error)]
pub enum TransportError {
    /// The message was certainly not delivered.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// The message may have been delivered: no answer came in time, or the connection broke meanwhile.
    #[error("no answer in time")]
    Timeout,
}

/// Messages and streams between replicas, by id; addresses are the implementor's business.
///
/// What arrives at the other end must be given to that replica's `Store::handle` and
/// `Store::handle_stream`, with the authenticated id of the sender.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// Sends a message of at most [`MAX_MESSAGE_BYTES`] and waits for the reply, no longer than `deadline`.
    async fn call(&self, to: NodeId, message: Bytes, deadline: Duration) -> Result<Bytes, TransportError>;

    /// Opens an ordered stream in both directions, for replication and for snapshots.
    async fn open_stream(&self, to: NodeId) -> Result<(Reader, Writer), TransportError>;
}

/// No message or reply of a call is longer.
pub const MAX_MESSAGE_BYTES: usize = crate::codec::MAX_ENVELOPE_BYTES;
