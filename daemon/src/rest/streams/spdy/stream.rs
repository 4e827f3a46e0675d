//! One stream of a connection, as those see it who speak through it.
//!
//! Invariant: what a client sent and nobody read is at most `STREAM_BYTES` a stream and `SESSION_BYTES` a connection;
//! beyond, the client is not read from.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::connection::{Outgoing, Shared};
use super::flow::{INITIAL_WINDOW_BYTES, Window};
use super::frame::CANCEL;
use super::headers::Headers;

/// Unread bytes of a stream: as many as the client may send unasked.
pub const STREAM_BYTES: usize = INITIAL_WINDOW_BYTES as usize;
/// Unread bytes of all streams of a connection.
pub const SESSION_BYTES: usize = 1024 * 1024;
/// The largest data frame that is sent, and the largest piece of one that is read at a time.
pub const PIECE_BYTES: usize = 16 * 1024;
/// The client hears of what was read when it is so much.
const CREDIT_BYTES: u32 = STREAM_BYTES as u32 / 2;

/// Bytes of a client, with the room that they take.
pub struct Piece {
    pub data: Bytes,
    pub _room: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

/// A stream that the client opened.
pub struct Stream {
    pub id: u32,
    pub headers: Headers,
    pub reader: StreamReader,
    pub writer: StreamWriter,
}

pub struct StreamReader {
    pub(super) id: u32,
    pub(super) pieces: mpsc::UnboundedReceiver<Piece>,
    pub(super) room: Arc<Semaphore>,
    pub(super) out: mpsc::Sender<Outgoing>,
    pub(super) shared: Arc<Shared>,
    /// Read and not told to the client.
    pub(super) credit_bytes: u32,
}

impl StreamReader {
    /// What the client sent; `None` at its end. Cancel-safe.
    pub async fn next(&mut self) -> Option<Bytes> {
        loop {
            tokio::select! {
                piece = self.pieces.recv() => {
                    let piece = piece?;
                    let length = u32::try_from(piece.data.len()).unwrap_or(u32::MAX);
                    self.credit_bytes = self.credit_bytes.saturating_add(length);
                    self.shared.session_credit.add(length);
                    return Some(piece.data);
                }
                permit = self.out.reserve(), if self.owes() => {
                    let Ok(permit) = permit else { return None };
                    match self.credit_bytes >= CREDIT_BYTES {
                        true => {
                            let delta_bytes = std::mem::take(&mut self.credit_bytes);
                            permit.send(Outgoing::Window { stream: self.id, delta_bytes });
                        }
                        false => permit.send(Outgoing::Window { stream: 0, delta_bytes: self.shared.session_credit.take() }),
                    }
                }
            }
        }
    }

    fn owes(&self) -> bool {
        self.credit_bytes >= CREDIT_BYTES || self.shared.session_credit.due()
    }
}

impl Drop for StreamReader {
    fn drop(&mut self) {
        // Whoever waits for room need not wait any longer: what comes is thrown away.
        self.room.close();
        self.shared.unread(self.id);
    }
}

/// Bytes of a connection that were read and of which the client was not told.
#[derive(Default)]
pub struct Credit(AtomicU32);

impl Credit {
    pub fn add(&self, bytes: u32) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }

    fn due(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= CREDIT_BYTES
    }

    fn take(&self) -> u32 {
        self.0.swap(0, Ordering::Relaxed)
    }
}

pub struct StreamWriter {
    pub(super) id: u32,
    pub(super) window: Arc<Window>,
    pub(super) out: mpsc::Sender<Outgoing>,
    pub(super) shared: Arc<Shared>,
    pub(super) finished: bool,
}

impl StreamWriter {
    /// # Errors
    /// If the client has reset the stream, or is gone.
    pub async fn write(&mut self, mut data: Bytes) -> io::Result<()> {
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        while !data.is_empty() {
            let mine = self.window.take(data.len().min(PIECE_BYTES)).await.ok_or_else(gone)?;
            let all = match self.shared.session_window.take(mine).await {
                Some(all) => all,
                None => return Err(gone()),
            };
            self.window.give_back(mine - all);
            let data = data.split_to(all);
            self.out.send(Outgoing::Data { stream: self.id, data, fin: false }).await.map_err(|_| gone())?;
        }
        Ok(())
    }

    /// Waits until the client has reset the stream, or is gone.
    pub fn reset(&self) -> impl Future<Output = ()> + Send + use<> {
        let window = self.window.clone();
        async move { window.closed().await }
    }

    /// Says that nothing follows.
    ///
    /// # Errors
    /// If the client is gone.
    pub async fn finish(mut self) -> io::Result<()> {
        self.finished = true;
        let last = Outgoing::Data { stream: self.id, data: Bytes::new(), fin: true };
        self.out.send(last).await.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}

impl Drop for StreamWriter {
    fn drop(&mut self) {
        if !self.finished {
            // Where the queue is full, the connection is about to end or its client is stuck; either is told.
            _ = self.out.try_send(Outgoing::Reset { stream: self.id, status: CANCEL });
        }
        self.shared.unwritten(self.id);
    }
}
