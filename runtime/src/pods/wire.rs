//! The daemon's end of a shim's socket.
//!
//! Invariant: receiving is cancel-safe: a frame half read stays in the inbox.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::UnixStream;

use super::PodsError;
use crate::shim::protocol::{Call, Inbox, Message, Request, State, VERSION, encode};
use crate::shim::socket;

const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
const READ_BYTES: usize = 16 * 1024;

pub struct Wire {
    stream: UnixStream,
    inbox: Inbox,
    next_id: u64,
    /// What both sides speak.
    pub version: u32,
}

impl Wire {
    /// Connects and says hello; returns what the shim knows.
    pub async fn open(path: &Path, subscribe: bool) -> Result<(Self, State), PodsError> {
        tokio::time::timeout(HELLO_TIMEOUT, Self::greet(path, subscribe))
            .await
            .map_err(|_| PodsError::Shim(format!("{}: no answer in {HELLO_TIMEOUT:?}", path.display())))?
    }

    async fn greet(path: &Path, subscribe: bool) -> Result<(Self, State), PodsError> {
        let stream = UnixStream::connect(path).await.map_err(|source| PodsError::io(path, source))?;
        let mut wire = Self { stream, inbox: Inbox::default(), next_id: 0, version: VERSION };
        wire.send(Request::Hello { version: VERSION, subscribe }, Vec::new()).await?;
        match wire.receive().await? {
            Some((Message::Welcome { state, version, .. }, _)) => {
                wire.version = version;
                Ok((wire, state))
            }
            Some((Message::Failed { reason, .. }, _)) => Err(PodsError::Shim(reason)),
            Some(_) => Err(PodsError::Shim("an answer other than a welcome".into())),
            None => Err(PodsError::ShimGone),
        }
    }

    /// Sends a call and returns its id.
    pub async fn send(&mut self, request: Request, mut fds: Vec<OwnedFd>) -> Result<u64, PodsError> {
        self.next_id += 1;
        let call = Call { id: self.next_id, request, fds: fds.len() };
        let frame = encode(&call).map_err(|error| PodsError::Shim(error.to_string()))?;
        let mut rest = frame.as_slice();
        while !rest.is_empty() {
            let sent = self.stream.async_io(Interest::WRITABLE, || socket::send(&self.stream, rest, &fds)).await;
            rest = &rest[sent.map_err(|_| PodsError::ShimGone)?..];
            fds.clear();
        }
        Ok(self.next_id)
    }

    /// The next message and its descriptors; `None` when the shim is gone.
    pub async fn receive(&mut self) -> Result<Option<(Message, Vec<OwnedFd>)>, PodsError> {
        let broken = |error: crate::shim::protocol::ProtocolError| PodsError::Shim(error.to_string());
        loop {
            if let Some(message) = self.inbox.take::<Message>().map_err(broken)? {
                let count = if let Message::Done { fds, .. } = &message { *fds } else { 0 };
                let fds = self.inbox.claim(count).map_err(broken)?;
                return Ok(Some((message, fds)));
            }
            let mut buffer = [0; READ_BYTES];
            let read = self.stream.async_io(Interest::READABLE, || socket::receive(&self.stream, &mut buffer)).await;
            match read {
                Ok((0, _)) => return Ok(None),
                Ok((length, fds)) => self.inbox.push(&buffer[..length], fds).map_err(broken)?,
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(_) => return Err(PodsError::ShimGone),
            }
        }
    }

    /// Sends a call and awaits its answer.
    pub async fn call(&mut self, request: Request, fds: Vec<OwnedFd>) -> Result<(u64, Vec<OwnedFd>), PodsError> {
        let id = self.send(request, fds).await?;
        loop {
            match self.receive().await? {
                Some((Message::Done { id: done, .. }, fds)) if done == id => return Ok((id, fds)),
                Some((Message::Failed { id: failed, reason }, _)) if failed == id => {
                    return Err(PodsError::Refused(reason));
                }
                Some(_) => {}
                None => return Err(PodsError::ShimGone),
            }
        }
    }
}
