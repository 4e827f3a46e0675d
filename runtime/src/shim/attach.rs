//! Those who watch and feed a container's streams besides its log.
//!
//! Invariant: output is lost to no reader that takes it. Once `MAX_WAITING_BYTES` wait for a reader, the container's output
//! waits too, but at most `MAX_STALL` for a reader that takes nothing: that one is let go.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::output::Stream;

const MAX_WAITING_BYTES: usize = 256 * 1024;
const CHUNK_BYTES: usize = 16 * 1024;
/// How long a reader that takes nothing may hold up a container.
const MAX_STALL: Duration = Duration::from_secs(10);

/// One copy of output on its way to a reader.
pub struct Output {
    pub fd: OwnedFd,
    waiting: VecDeque<u8>,
    /// Since when the reader has taken nothing of what waits.
    stalled: Option<Instant>,
}

impl Output {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        set_nonblocking(&fd)?;
        Ok(Self { fd, waiting: VecDeque::new(), stalled: None })
    }

    pub fn wants_to_write(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// `false` when nobody reads any more.
    pub fn flush(&mut self) -> bool {
        while !self.waiting.is_empty() {
            match write(&self.fd, self.waiting.as_slices().0) {
                Ok(written) => {
                    self.waiting.drain(..written);
                    self.stalled = None;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.stalled.get_or_insert_with(Instant::now);
                    return true;
                }
                Err(_) => return false,
            }
        }
        true
    }
}

pub struct Attachment {
    pub id: u64,
    pub peer: u64,
    /// One for both of the container's streams, or one for each.
    pub outputs: Vec<Output>,
    /// Gone once it ended; some bring none.
    pub input: Option<OwnedFd>,
}

impl Attachment {
    pub fn new(id: u64, peer: u64, outputs: Vec<OwnedFd>, input: Option<OwnedFd>) -> io::Result<Self> {
        if let Some(input) = &input {
            set_nonblocking(input)?;
        }
        let outputs = outputs.into_iter().map(Output::new).collect::<io::Result<_>>()?;
        Ok(Self { id, peer, outputs, input })
    }

    /// Whether the container may go on writing.
    pub fn has_room(&self) -> bool {
        self.outputs.iter().all(|output| output.waiting.len() < MAX_WAITING_BYTES)
    }

    pub fn wants_to_write(&self) -> bool {
        self.outputs.iter().any(Output::wants_to_write)
    }

    /// When the reader has had its time, if it takes nothing until then.
    pub fn let_go_at(&self) -> Option<Instant> {
        self.outputs.iter().filter_map(|output| output.stalled).min().map(|since| since + MAX_STALL)
    }

    /// `false` when the attachment is to be let go.
    pub fn feed(&mut self, stream: Stream, bytes: &[u8]) -> bool {
        let index = usize::from(stream == Stream::Stderr).min(self.outputs.len().saturating_sub(1));
        let Some(output) = self.outputs.get_mut(index) else { return false };
        output.waiting.extend(bytes);
        output.flush()
    }
}

/// What waits to go into the container.
#[derive(Default)]
pub struct Stdin {
    /// A pipe's writing end, or the terminal's master.
    pub fd: Option<OwnedFd>,
    waiting: VecDeque<u8>,
    /// Nothing follows what waits.
    ended: bool,
}

impl Stdin {
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        set_nonblocking(&fd)?;
        Ok(Self { fd: Some(fd), ..Self::default() })
    }

    pub fn has_room(&self) -> bool {
        self.waiting.len() < CHUNK_BYTES
    }

    pub fn wants_to_write(&self) -> bool {
        self.fd.is_some() && !self.waiting.is_empty()
    }

    /// Takes input; a container that reads none throws it away.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.fd.is_some() && !self.ended {
            self.waiting.extend(bytes);
            self.flush();
        }
    }

    /// Lets the container read the end, after all that waits.
    pub fn end(&mut self) {
        self.ended = true;
        self.flush();
    }

    pub fn flush(&mut self) {
        while let (Some(fd), false) = (&self.fd, self.waiting.is_empty()) {
            match write(fd, self.waiting.as_slices().0) {
                Ok(written) => drop(self.waiting.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.fd = None;
                    self.waiting.clear();
                }
            }
        }
        if self.ended {
            self.fd = None;
        }
    }
}

/// Reads what is there: `Ok(None)` for the end, an empty slice when there is nothing now.
pub fn read<'b>(fd: &OwnedFd, buffer: &'b mut [u8]) -> Option<&'b [u8]> {
    match nix::unistd::read(fd.as_raw_fd(), buffer) {
        Ok(0) => None,
        Ok(length) => Some(&buffer[..length]),
        Err(nix::Error::EAGAIN | nix::Error::EINTR) => Some(&[]),
        // EIO is how a terminal's master says that nobody has the terminal any more.
        Err(_) => None,
    }
}

fn write(fd: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
    nix::unistd::write(fd, bytes).map_err(io::Error::from)
}

pub fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_truncate(fcntl(fd.as_raw_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd.as_raw_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
