//! The answering side: the tracker's desk, and the blobs that are held here.
//!
//! Invariant: at most [`MAX_UPLOADS`] blobs are sent at a time; who comes then is told so and comes again.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use quinn::{RecvStream, SendStream};
use tokio::io::AsyncReadExt;
use tokio::sync::Semaphore;

use super::desk::{Desk, Seat};
use super::rendezvous::Mark;
use super::seek::is_alive;
use super::wire::{self, Answer, Reply, Request, Said};
use super::{ANSWER_TIMEOUT, BlobDigest, Opened, Shelf};
use crate::net::Net;
use crate::ports::{Handler, PeerInfo};

/// The most blobs that are sent at a time.
pub const MAX_UPLOADS: usize = 32;
/// What is read ahead of a blob that is sent.
const CHUNK_BYTES: usize = 256 * 1024;
/// How often a waiting seeker hears that its tracker lives.
pub const WAIT_PERIOD: Duration = Duration::from_secs(5);
/// How long a seeker that was given its turn or holders may say nothing.
const MAX_SEAT: Duration = Duration::from_secs(3600);

pub struct Server {
    net: Net,
    desk: Arc<Desk>,
    shelf: Arc<dyn Shelf>,
    uploads: Semaphore,
}

#[async_trait]
impl Handler for Server {
    async fn handle(&self, peer: PeerInfo, send: SendStream, recv: RecvStream) {
        if let Err(reason) = self.answer(&peer, send, recv).await {
            tracing::debug!(peer = peer.name, reason, "a question about blobs ended early");
        }
    }
}

impl Server {
    pub fn new(net: Net, desk: Arc<Desk>, shelf: Arc<dyn Shelf>) -> Self {
        Self { net, desk, shelf, uploads: Semaphore::new(MAX_UPLOADS) }
    }

    async fn answer(&self, peer: &PeerInfo, mut send: SendStream, mut recv: RecvStream) -> Result<(), String> {
        let request: Request = wire::answer(&mut recv).await.ok_or("no request came")??;
        if !wire::is_bounded(&request) {
            return Err("the list is too long".to_owned());
        }
        match request {
            Request::Seek(mark) => self.attend(peer, mark, &mut send, &mut recv).await?,
            Request::Get { digest, offset_bytes } => self.upload(&digest, offset_bytes, &mut send).await?,
            Request::Holds(digests) => wire::send(&mut send, &self.shelf.holds(&digests).await).await?,
            Request::Announce(marks) => {
                self.desk.announce(peer.id, &marks);
                wire::send(&mut send, &Vec::<bool>::new()).await?;
            }
        }
        send.finish().map_err(|error| error.to_string())
    }

    /// Looks after a seeker until it holds the blob or goes away.
    async fn attend(
        &self,
        peer: &PeerInfo,
        mark: Mark,
        send: &mut SendStream,
        recv: &mut RecvStream,
    ) -> Result<(), String> {
        let Some(seat) = self.desk.sit(mark, peer.id) else { return wire::send(send, &Said::Full).await };
        loop {
            let said = self.word(&seat, send, recv).await?;
            wire::send(send, &said).await?;
            match wire::receive_within::<Reply>(recv, MAX_SEAT).await.ok_or("the seeker is silent")?? {
                Reply::Held => {
                    seat.held();
                    return Ok(());
                }
                Reply::Again { missing, failed } => seat.blame(&wire::bounded(missing), &wire::bounded(failed)),
            }
        }
    }

    /// Waits for something to say. A seeker says nothing meanwhile; what comes from it is its end.
    async fn word(&self, seat: &Seat, send: &mut SendStream, recv: &mut RecvStream) -> Result<Said, String> {
        let mut word = std::pin::pin!(seat.word(|node| is_alive(&self.net, node)));
        let mut gone = std::pin::pin!(wire::receive::<Reply>(recv));
        loop {
            tokio::select! {
                biased;
                word = &mut word => return Ok(word.into()),
                _ = &mut gone => return Err("the seeker went away".to_owned()),
                () = tokio::time::sleep(WAIT_PERIOD) => wire::send(send, &Said::Wait).await?,
            }
        }
    }

    async fn upload(&self, digest: &BlobDigest, offset_bytes: u64, send: &mut SendStream) -> Result<(), String> {
        let Ok(_place) = self.uploads.try_acquire() else { return wire::send(send, &Answer::Busy).await };
        let Some(Opened { size_bytes, mut content }) = self.shelf.open(digest, offset_bytes).await else {
            return wire::send(send, &Answer::Missing).await;
        };
        wire::send(send, &Answer::Here { size_bytes }).await?;
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let count = content.read(&mut chunk).await.map_err(|error| error.to_string())?;
            if count == 0 {
                return Ok(());
            }
            let sent = tokio::time::timeout(ANSWER_TIMEOUT, send.write_all(&chunk[..count])).await;
            sent.map_err(|_| "the receiver takes nothing")?.map_err(|error| error.to_string())?;
        }
    }
}
