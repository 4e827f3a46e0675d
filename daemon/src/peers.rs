//! Adaptors between the network and those who speak over it: the store's transport, and the streams of pods.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flotilla_net::{Alpn, Handler, Net, PeerInfo, RecvStream, SendStream, read_frame, write_frame, write_frame_after};
use flotilla_raft::{MAX_MESSAGE_BYTES, NodeId, Reader, Store, Transport, TransportError, Writer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tracing::debug;

use crate::agent::Local;
use crate::streams;

/// How long a peer may take to send a request that it began.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The first byte of a stream between replicas.
const CALL: u8 = 0;
const STREAM: u8 = 1;

/// Carries the store's messages over QUIC.
pub struct RaftTransport {
    net: Net,
}

impl RaftTransport {
    pub fn new(net: Net) -> Self {
        Self { net }
    }
}

#[async_trait]
impl Transport for RaftTransport {
    async fn call(&self, to: NodeId, message: Bytes, deadline: Duration) -> Result<Bytes, TransportError> {
        let exchange = async {
            let (mut send, mut recv) = self.net.open(to, Alpn::Raft).await.map_err(unreachable)?;
            // From the first byte on the peer may act on the message: what fails is an answer that did not come.
            let answer = async {
                write_frame_after(&mut send, &[CALL], &message).await.map_err(io::Error::other)?;
                // The end leaves with the message. A peer that has answered by now need not hear of it.
                _ = send.finish();
                read_frame(&mut recv, MAX_MESSAGE_BYTES).await.map_err(io::Error::other)
            };
            answer.await.map_err(|error| {
                debug!(peer = to, %error, "a call to a replica broke off");
                TransportError::Timeout
            })
        };
        timeout(deadline, exchange).await.unwrap_or(Err(TransportError::Timeout))
    }

    async fn open_stream(&self, to: NodeId) -> Result<(Reader, Writer), TransportError> {
        let (mut send, recv) = self.net.open(to, Alpn::Raft).await.map_err(unreachable)?;
        send.write_u8(STREAM).await.map_err(unreachable)?;
        Ok((Box::new(recv), Box::new(send)))
    }
}

fn unreachable(error: impl std::fmt::Display) -> TransportError {
    TransportError::Unreachable(error.to_string())
}

/// Hands what other replicas send to the store.
pub struct RaftHandler {
    pub store: Store,
}

#[async_trait]
impl Handler for RaftHandler {
    async fn handle(&self, peer: PeerInfo, send: SendStream, recv: RecvStream) {
        if let Err(error) = self.serve(peer.id, send, recv).await {
            debug!(peer = peer.name, %error, "a replica's stream ended early");
        }
    }
}

impl RaftHandler {
    async fn serve(&self, from: NodeId, mut send: SendStream, mut recv: RecvStream) -> io::Result<()> {
        let request = async {
            let kind = recv.read_u8().await?;
            match kind {
                CALL => read_frame(&mut recv, MAX_MESSAGE_BYTES).await.map(Some).map_err(io::Error::other),
                STREAM => Ok(None),
                other => Err(io::Error::other(format!("unknown kind of stream: {other}"))),
            }
        };
        match timeout(REQUEST_TIMEOUT, request).await?? {
            Some(message) => {
                let answer = self.store.handle(from, message).await.map_err(io::Error::other)?;
                write_frame(&mut send, &answer).await.map_err(io::Error::other)?;
                send.finish().map_err(io::Error::other)
            }
            None => self.store.handle_stream(from, Box::new(recv), Box::new(send)).await.map_err(io::Error::other),
        }
    }
}

/// Serves the logs and commands that clients of other nodes ask of this node's pods.
pub struct StreamHandler {
    pub local: Arc<Local>,
}

#[async_trait]
impl Handler for StreamHandler {
    async fn handle(&self, _peer: PeerInfo, send: SendStream, recv: RecvStream) {
        streams::serve(&self.local, recv, send).await;
    }
}
