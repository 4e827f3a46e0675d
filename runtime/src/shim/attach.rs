//! Those who watch and feed a container's streams besides its log.
//!
//! Invariant: a slow or stuck reader is let go once `MAX_WAITING_BYTES` wait for it; the container never waits.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

const MAX_WAITING_BYTES: usize = 256 * 1024;
const CHUNK_BYTES: usize = 16 * 1024;

pub struct Attachment {
    pub peer: u64,
    pub output: OwnedFd,
    /// Gone once it ended.
    pub input: Option<OwnedFd>,
    waiting: VecDeque<u8>,
}

impl Attachment {
    pub fn new(peer: u64, output: OwnedFd, input: OwnedFd) -> io::Result<Self> {
        set_nonblocking(&output)?;
        set_nonblocking(&input)?;
        Ok(Self { peer, output, input: Some(input), waiting: VecDeque::new() })
    }

    pub fn wants_to_write(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// `false` when the attachment is to be let go.
    pub fn feed(&mut self, bytes: &[u8]) -> bool {
        self.waiting.extend(bytes);
        self.flush() && self.waiting.len() <= MAX_WAITING_BYTES
    }

    pub fn flush(&mut self) -> bool {
        while !self.waiting.is_empty() {
            match write(&self.output, self.waiting.as_slices().0) {
                Ok(written) => drop(self.waiting.drain(..written)),
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
        }
        true
    }
}

/// What waits to go into the container.
#[derive(Default)]
pub struct Stdin {
    /// A pipe's writing end, or the terminal's master.
    pub fd: Option<OwnedFd>,
    waiting: VecDeque<u8>,
}

impl Stdin {
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        set_nonblocking(&fd)?;
        Ok(Self { fd: Some(fd), waiting: VecDeque::new() })
    }

    pub fn has_room(&self) -> bool {
        self.waiting.len() < CHUNK_BYTES
    }

    pub fn wants_to_write(&self) -> bool {
        self.fd.is_some() && !self.waiting.is_empty()
    }

    pub fn feed(&mut self, bytes: &[u8]) {
        self.waiting.extend(bytes);
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
