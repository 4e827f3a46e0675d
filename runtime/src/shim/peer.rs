//! One connection to the daemon, as the shim holds it.
//!
//! Invariant: what waits to be sent is bounded; a daemon that does not read loses its connection, never the shim's
//! memory.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use super::protocol::{Call, Inbox, Message, encode};
use super::socket;

const MAX_OUTBOX_BYTES: usize = 4 * 1024 * 1024;
const READ_BYTES: usize = 16 * 1024;

pub struct Peer {
    pub stream: UnixStream,
    /// Whether the peer has said which version it speaks.
    pub welcomed: bool,
    pub subscribed: bool,
    inbox: Inbox,
    outbox: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    outbox_bytes: usize,
}

/// The connection is of no use any more.
pub struct Gone;

impl Peer {
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            welcomed: false,
            subscribed: false,
            inbox: Inbox::default(),
            outbox: VecDeque::new(),
            outbox_bytes: 0,
        })
    }

    pub fn wants_to_write(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Takes in what has arrived and returns the calls that are whole.
    pub fn read(&mut self) -> Result<Vec<(Call, Vec<OwnedFd>)>, Gone> {
        let mut buffer = [0; READ_BYTES];
        let (length, fds) = match socket::receive(&self.stream, &mut buffer) {
            Ok((0, _)) => return Err(Gone),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Vec::new()),
            Err(_) => return Err(Gone),
        };
        self.inbox.push(&buffer[..length], fds).map_err(|_| Gone)?;
        let mut calls = Vec::new();
        while let Some(call) = self.inbox.take::<Call>().map_err(|_| Gone)? {
            let fds = self.inbox.claim(call.fds).map_err(|_| Gone)?;
            calls.push((call, fds));
        }
        Ok(calls)
    }

    pub fn send(&mut self, message: &Message, fds: Vec<OwnedFd>) -> Result<(), Gone> {
        let frame = encode(message).map_err(|_| Gone)?;
        self.outbox_bytes += frame.len();
        if self.outbox_bytes > MAX_OUTBOX_BYTES {
            return Err(Gone);
        }
        self.outbox.push_back((frame, fds));
        self.flush()
    }

    pub fn flush(&mut self) -> Result<(), Gone> {
        while let Some((frame, fds)) = self.outbox.front_mut() {
            match socket::send(&self.stream, frame, fds) {
                Ok(sent) => {
                    fds.clear();
                    frame.drain(..sent);
                    self.outbox_bytes -= sent;
                    if frame.is_empty() {
                        self.outbox.pop_front();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(_) => return Err(Gone),
            }
        }
        Ok(())
    }
}
