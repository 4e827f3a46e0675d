//! What the daemon and a pod's shim say to each other on the shim's Unix socket.
//!
//! A frame is its length as a big-endian `u32` and that many bytes of JSON. File descriptors of a frame travel with the
//! frame's first byte, and the message says how many there are.
//!
//! Invariant: a shim outlives the daemon that started it, so a newer daemon must speak every version since `OLDEST`.
//! Fields are only added, with defaults.
//! Invariant: frames and descriptors waiting are bounded; who exceeds a bound loses the connection.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::last_words;
use crate::engine::EngineChoice;
use crate::state::ContainerState;

pub const VERSION: u32 = 2;
/// From this version on an attachment may bring no input, and take errors apart.
pub const SPLIT_ATTACH: u32 = 2;
pub const OLDEST: u32 = 1;
pub const MAX_FRAME_BYTES: usize = 1024 * 1024;
/// Descriptors with one frame.
pub const MAX_FDS: usize = 3;
/// Descriptors received and not yet claimed by a frame.
const MAX_WAITING_FDS: usize = 8;

#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    #[error("a frame of {0} bytes exceeds {MAX_FRAME_BYTES}")]
    TooLong(usize),
    #[error("a frame is not what the protocol says")]
    Malformed(#[source] serde_json::Error),
    #[error("file descriptors without a frame, or a frame without its file descriptors")]
    Descriptors,
}

/// How a shim is started: one JSON argument on its command line.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Launch {
    pub sandbox: String,
    /// Holds `state.json` and `shim.log`.
    pub state_dir: PathBuf,
    /// Holds the socket and the engine's state.
    pub run_dir: PathBuf,
    pub hostname: String,
    pub host_network: bool,
    pub host_ipc: bool,
    #[serde(default)]
    pub share_pid: bool,
    pub engine: EngineChoice,
    pub log_max_bytes: u64,
    pub log_max_files: u32,
    pub sysctls: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Call {
    pub id: u64,
    pub request: Request,
    #[serde(default)]
    pub fds: usize,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// First on every connection; the answer is `Welcome`. A subscriber is sent the state after each change.
    Hello {
        version: u32,
        subscribe: bool,
    },
    /// Gives the pod's end of its link address, route and carrier.
    Link(Link),
    Create(Create),
    Start {
        key: String,
    },
    /// The container's stop signal now and SIGKILL after the grace, whether or not the caller stays.
    Stop {
        key: String,
        grace_ms: u64,
    },
    Remove {
        key: String,
    },
    /// Without a terminal: three descriptors come along. With one: the answer brings the terminal's master.
    Exec {
        key: String,
        process: serde_json::Value,
        tty: bool,
    },
    /// Joins the container's streams: output is copied to the first descriptor, input read from the next unless there is
    /// none, errors copied to the last if they are to be apart.
    Attach {
        key: String,
        #[serde(default)]
        no_input: bool,
        #[serde(default)]
        split: bool,
    },
    Resize {
        key: String,
        columns: u16,
        rows: u16,
    },
    /// Kills what runs, and ends.
    Shutdown,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Link {
    pub interface: String,
    pub address: Ipv4Addr,
    pub prefix_len: u8,
    pub gateway: Ipv4Addr,
    pub mtu: u32,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Create {
    pub name: String,
    pub attempt: u32,
    pub bundle: PathBuf,
    pub cgroup: String,
    pub log_path: PathBuf,
    pub tty: bool,
    /// Keep stdin open for those who attach.
    pub stdin: bool,
    /// Stdin ends with the input of the first who attaches.
    #[serde(default)]
    pub stdin_once: bool,
    pub oom_score_adj: Option<i32>,
    pub stop_signal: i32,
    #[serde(default)]
    pub last_words: Option<last_words::Place>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Message {
    Welcome {
        version: u32,
        pid: i32,
        state: State,
    },
    Done {
        id: u64,
        pid: Option<i32>,
        #[serde(default)]
        fds: usize,
    },
    Failed {
        id: u64,
        reason: String,
    },
    /// Unasked: what the shim knows now.
    Changed {
        state: State,
    },
    /// The process of an `Exec` on this connection has ended.
    ExecEnded {
        id: u64,
        code: i32,
    },
}

/// What a shim knows, as it stands on disk and on the wire.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub pid: i32,
    /// The shim's start time in clock ticks since boot: with the pid, its name for all time.
    pub started_ticks: u64,
    pub containers: Vec<ContainerState>,
    /// Whether the pod's end of the link is set up.
    #[serde(default)]
    pub linked: bool,
    /// The first process of the process namespace that all containers share, if they do.
    #[serde(default)]
    pub pause: Option<i32>,
}

pub fn encode(message: &impl Serialize) -> Result<Vec<u8>, ProtocolError> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message).map_err(ProtocolError::Malformed)?;
    let length = frame.len() - 4;
    if length > MAX_FRAME_BYTES {
        return Err(ProtocolError::TooLong(length));
    }
    frame[..4].copy_from_slice(&(length as u32).to_be_bytes());
    Ok(frame)
}

/// Bytes and descriptors that arrived and are not yet a whole frame.
#[derive(Debug, Default)]
pub struct Inbox {
    bytes: Vec<u8>,
    fds: VecDeque<OwnedFd>,
}

impl Inbox {
    pub fn push(&mut self, bytes: &[u8], fds: Vec<OwnedFd>) -> Result<(), ProtocolError> {
        self.bytes.extend_from_slice(bytes);
        self.fds.extend(fds);
        if self.fds.len() > MAX_WAITING_FDS { Err(ProtocolError::Descriptors) } else { Ok(()) }
    }

    /// The next whole frame, if it is there.
    pub fn take<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ProtocolError> {
        let Some((head, rest)) = self.bytes.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*head) as usize;
        if length > MAX_FRAME_BYTES {
            return Err(ProtocolError::TooLong(length));
        }
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let message = serde_json::from_slice(body).map_err(ProtocolError::Malformed)?;
        self.bytes.drain(..4 + length);
        if self.bytes.is_empty() {
            self.bytes = Vec::new();
        }
        Ok(Some(message))
    }

    /// The descriptors that the frame just taken brought along.
    pub fn claim(&mut self, count: usize) -> Result<Vec<OwnedFd>, ProtocolError> {
        if count > MAX_FDS || count > self.fds.len() {
            return Err(ProtocolError::Descriptors);
        }
        Ok(self.fds.drain(..count).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_any_cut() {
        let call = Call { id: 7, request: Request::Start { key: "web-0".into() }, fds: 0 };
        let frame = encode(&call).unwrap();
        let twice = [frame.clone(), frame].concat();
        for cut in 0..twice.len() {
            let mut inbox = Inbox::default();
            let mut seen = 0;
            for part in [&twice[..cut], &twice[cut..]] {
                inbox.push(part, Vec::new()).unwrap();
                while let Some(call) = inbox.take::<Call>().unwrap() {
                    assert_eq!(call.id, 7);
                    seen += 1;
                }
            }
            assert_eq!(seen, 2, "cut at {cut}");
        }
    }

    #[test]
    fn hostile_bytes_are_errors() {
        let mut inbox = Inbox::default();
        inbox.push(&u32::MAX.to_be_bytes(), Vec::new()).unwrap();
        assert!(matches!(inbox.take::<Call>(), Err(ProtocolError::TooLong(_))));
        let mut inbox = Inbox::default();
        inbox.push(b"\0\0\0\x02{]", Vec::new()).unwrap();
        assert!(matches!(inbox.take::<Call>(), Err(ProtocolError::Malformed(_))));
        assert!(matches!(inbox.claim(1), Err(ProtocolError::Descriptors)));
    }
}
