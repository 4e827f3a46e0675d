//! One container as the shim supervises it: its record, its streams, its log, and when it must die.
//!
//! Invariant: output is read until the streams are dry before an exit is recorded, so that the log has all of it.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use nix::unistd::pipe2;

use super::attach::{Attachment, Stdin, read, set_nonblocking};
use super::output::{LogFile, Splitter, Stream, timestamp};
use super::protocol::Create;
use super::worker::Streams;
use crate::cgroup::Cgroup;
use crate::state::{
    ContainerState, Exit, Phase, REASON_COMPLETED, REASON_ERROR, REASON_OOM_KILLED, REASON_START_ERROR, wall_ms,
};

/// Read at a time, and what a pipe holds at most.
const READ_BYTES: usize = 64 * 1024;
/// Reads in a row of one stream, so that one loud container does not starve the others.
const MAX_READS_IN_A_ROW: usize = 16;

/// A stream of the container's output.
struct Source {
    fd: OwnedFd,
    splitter: Splitter,
}

pub struct Container {
    pub state: ContainerState,
    pub create: Create,
    pub cgroup: Cgroup,
    pub stdin: Stdin,
    pub attachments: Vec<Attachment>,
    /// SIGKILL is due then.
    pub kill_at: Option<Instant>,
    /// The engine has forgotten it.
    pub deleted: bool,
    /// Who waits for it to be forgotten.
    pub remover: Option<(u64, u64)>,
    terminal: Option<OwnedFd>,
    sources: Vec<Source>,
    log: Option<LogFile>,
}

impl Container {
    /// A record with streams for init to use.
    pub fn new(create: Create, cgroup: Cgroup, log: LogFile) -> io::Result<(Self, Streams)> {
        let state = ContainerState {
            name: create.name.clone(),
            attempt: create.attempt,
            phase: Phase::Creating,
            pid: None,
            created_ms: wall_ms(),
            started_ms: None,
            finished_ms: None,
            log_path: create.log_path.clone(),
        };
        let mut streams = Streams::default();
        let mut container = Self {
            state,
            cgroup,
            stdin: Stdin::default(),
            attachments: Vec::new(),
            kill_at: None,
            deleted: false,
            remover: None,
            terminal: None,
            sources: Vec::new(),
            log: Some(log),
            create,
        };
        if !container.create.tty {
            streams.stdout = Some(container.source(Stream::Stdout)?);
            streams.stderr = Some(container.source(Stream::Stderr)?);
            if container.create.stdin {
                let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
                container.stdin = Stdin::new(writer)?;
                streams.stdin = Some(reader);
            }
        }
        Ok((container, streams))
    }

    fn source(&mut self, stream: Stream) -> io::Result<OwnedFd> {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
        set_nonblocking(&reader)?;
        self.sources.push(Source { fd: reader, splitter: Splitter::new(stream) });
        Ok(writer)
    }

    pub fn created(&mut self, pid: i32, terminal: Option<OwnedFd>) -> io::Result<()> {
        self.state.pid = Some(pid);
        self.state.phase = Phase::Created;
        if let Some(master) = terminal {
            set_nonblocking(&master)?;
            self.sources.push(Source { fd: master.try_clone()?, splitter: Splitter::new(Stream::Stdout) });
            self.stdin = Stdin::new(master.try_clone()?)?;
            self.terminal = Some(master);
        }
        set_oom_score(pid, self.create.oom_score_adj.unwrap_or(0));
        Ok(())
    }

    pub fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        let master = self.terminal.as_ref().ok_or_else(|| io::Error::other("the container has no terminal"))?;
        resize(master, columns, rows)
    }

    /// Descriptors with output to read.
    pub fn output_fds(&self) -> impl Iterator<Item = &OwnedFd> {
        self.sources.iter().map(|source| &source.fd)
    }

    /// Reads what stream `index` has; forgets the stream when it has ended.
    pub fn pump(&mut self, index: usize) {
        self.pump_if(index, Self::has_room);
    }

    fn pump_if(&mut self, index: usize, may: impl Fn(&Self) -> bool) {
        let mut buffer = vec![0; READ_BYTES];
        for _ in 0..MAX_READS_IN_A_ROW {
            if !may(self) {
                return;
            }
            let Some(source) = self.sources.get_mut(index) else { return };
            let Some(bytes) = read(&source.fd, &mut buffer) else {
                let mut source = self.sources.remove(index);
                if let Some(log) = &mut self.log {
                    report(source.splitter.finish(&timestamp(), log));
                }
                return;
            };
            if bytes.is_empty() {
                return;
            }
            if let Some(log) = &mut self.log {
                report(source.splitter.push(&timestamp(), bytes, log));
            }
            let stream = source.splitter.stream();
            self.attachments.retain_mut(|attachment| attachment.feed(stream, bytes));
        }
    }

    /// Whether all who are attached keep up with the output, which otherwise has to wait.
    pub fn has_room(&self) -> bool {
        self.state.phase.exit().is_some() || self.attachments.iter().all(Attachment::has_room)
    }

    /// Lets go of those who are attached and meant.
    pub fn detach(&mut self, meant: impl Fn(&Attachment) -> bool) {
        let fed = self.attachments.iter().any(|attachment| meant(attachment) && attachment.input.is_some());
        self.attachments.retain(|attachment| !meant(attachment));
        if fed {
            self.input_ended();
        }
    }

    /// Somebody's input has ended.
    pub fn input_ended(&mut self) {
        if self.create.stdin_once {
            self.stdin.end();
        }
    }

    fn drain(&mut self) {
        // Those who are far behind get what is left all the same: there is no more of it than pipes hold.
        for index in (0..self.sources.len()).rev() {
            self.pump_if(index, |_| true);
        }
        let now = timestamp();
        for mut source in self.sources.drain(..) {
            if let Some(log) = &mut self.log {
                report(source.splitter.finish(&now, log));
            }
        }
        self.log = None;
        self.attachments.retain(Attachment::wants_to_write);
        self.stdin = Stdin::default();
        self.terminal = None;
    }

    /// Records how init ended.
    pub fn ended(&mut self, status: WaitStatus) {
        let (code, signal) = code_of(status);
        let oom_killed = code != 0 && self.cgroup.oom_kills() > 0;
        let reason = match (oom_killed, code) {
            (true, _) => REASON_OOM_KILLED,
            (false, 0) => REASON_COMPLETED,
            _ => REASON_ERROR,
        };
        if self.state.phase == Phase::Created && self.kill_at.is_none() {
            self.state.started_ms = Some(wall_ms());
        }
        self.exited(Exit { code, signal, oom_killed, reason: reason.into(), message: String::new() });
    }

    /// Records that there never was a process to end.
    pub fn failed(&mut self, message: &str) {
        let missing = ["not found", "no such file"].iter().any(|words| message.to_lowercase().contains(words));
        let code = if missing { 127 } else { 128 };
        self.exited(Exit {
            code,
            signal: None,
            oom_killed: false,
            reason: REASON_START_ERROR.into(),
            message: message.into(),
        });
    }

    fn exited(&mut self, mut exit: Exit) {
        self.drain();
        if let (true, Some(words)) = (exit.message.is_empty(), &self.create.last_words) {
            exit.message = words.read(exit.code != 0, &self.create.log_path);
        }
        if self.state.phase.exit().is_none() {
            self.state.phase = Phase::Exited(exit);
            self.state.finished_ms = Some(wall_ms());
        }
        self.kill_at = None;
    }
}

/// A shell's view of a status: the code, or 128 and the signal.
pub fn code_of(status: WaitStatus) -> (i32, Option<i32>) {
    match status {
        WaitStatus::Exited(_, code) => (code, None),
        WaitStatus::Signaled(_, signal, _) => (128 + signal as i32, Some(signal as i32)),
        _ => (255, None),
    }
}

pub fn resize(terminal: &impl AsRawFd, columns: u16, rows: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel reads one `winsize`, which lives for the call.
    if unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A score below what this machine allows is left as it is: the container matters more.
fn set_oom_score(pid: i32, score: i32) {
    if let Err(error) = std::fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string()) {
        eprintln!("oom_score_adj {score} for {pid}: {error}");
    }
}

pub fn signal_of(number: i32) -> Signal {
    Signal::try_from(number).unwrap_or(Signal::SIGTERM)
}

fn report(written: io::Result<()>) {
    if let Err(error) = written {
        eprintln!("log: {error}");
    }
}
