//! Another process in a running container, and joining a container's own streams.
//!
//! The process's pipes or terminal come straight to the daemon; the shim only starts it and says how it ended.
//!
//! Invariant: a process lives no longer than its `ExecExit`: dropping that closes the connection, upon which the shim
//! kills the process.

use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use tokio::io::AsyncReadExt;

use super::sandbox::Sandbox;
use super::streams::FdStream;
use super::wire::Wire;
use super::{ExecSpec, PodsError};
use crate::engine::spec::{Tenant, tenant_process};
use crate::shim::protocol::{Message, Request, SPLIT_ATTACH};

/// What `exec_sync` keeps of each stream.
pub const MAX_SYNC_OUTPUT_BYTES: usize = 64 * 1024;
/// For output that is still under way when the process has ended.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);
/// For starting a process: longer than an engine call may take.
const EXEC_TIMEOUT: Duration = Duration::from_secs(130);

/// A process that runs. Take out of it what is needed where.
#[derive(Debug)]
pub struct ExecSession {
    /// Dropping it ends the process's input, but not a terminal's.
    pub stdin: Option<FdStream>,
    pub stdout: Option<FdStream>,
    /// `None` with a terminal, which has one output.
    pub stderr: Option<FdStream>,
    pub terminal: Option<Terminal>,
    pub exit: ExecExit,
}

/// A terminal to be resized.
#[derive(Debug)]
pub struct Terminal(OwnedFd);

impl Terminal {
    pub fn resize(&self, columns: u16, rows: u16) -> Result<(), PodsError> {
        crate::shim::resize_terminal(&self.0, columns, rows).map_err(PodsError::Stream)
    }
}

/// The process's life, and its end.
pub struct ExecExit {
    wire: Wire,
    id: u64,
}

impl std::fmt::Debug for ExecExit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExecExit").field("id", &self.id).finish_non_exhaustive()
    }
}

impl ExecExit {
    /// The exit code, or 128 and the signal. Cancel-safe.
    pub async fn wait(&mut self) -> Result<i32, PodsError> {
        loop {
            match self.wire.receive().await? {
                Some((Message::ExecEnded { id, code }, _)) if id == self.id => return Ok(code),
                Some(_) => {}
                None => return Err(PodsError::ShimGone),
            }
        }
    }
}

/// What a process that was run to its end said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

pub async fn exec(sandbox: &Sandbox, key: &str, spec: &ExecSpec) -> Result<ExecSession, PodsError> {
    let started = start(sandbox, key, spec);
    tokio::time::timeout(EXEC_TIMEOUT, started).await.map_err(|_| PodsError::Timeout(EXEC_TIMEOUT))?
}

async fn start(sandbox: &Sandbox, key: &str, spec: &ExecSpec) -> Result<ExecSession, PodsError> {
    let path = sandbox.places.bundle(key).join("config.json");
    let config = tokio::fs::read(&path).await.map_err(|_| PodsError::NoContainer(key.into()))?;
    let config = serde_json::from_slice(&config).map_err(|error| PodsError::io(&path, error.into()))?;
    let tenant = Tenant {
        args: spec.args.clone(),
        env: spec.env.clone(),
        cwd: spec.cwd.clone(),
        user: spec.user,
        tty: spec.tty,
    };
    let process = tenant_process(&config, &tenant)?;
    let (mut wire, _) = Wire::open(&sandbox.places.socket(), false).await?;
    let request = Request::Exec { key: key.into(), process, tty: spec.tty };
    if spec.tty {
        let (id, mut fds) = wire.call(request, Vec::new()).await?;
        let master = fds.pop().ok_or_else(|| PodsError::Shim("no terminal came".into()))?;
        let copy = || master.try_clone().map_err(PodsError::Stream);
        return Ok(ExecSession {
            stdin: Some(FdStream::new(copy()?)?),
            stdout: Some(FdStream::new(copy()?)?),
            stderr: None,
            terminal: Some(Terminal(master)),
            exit: ExecExit { wire, id },
        });
    }
    let pipe = || pipe2(OFlag::O_CLOEXEC).map_err(|error| PodsError::Stream(error.into()));
    let ((stdin, to_stdin), (from_stdout, stdout), (from_stderr, stderr)) = (pipe()?, pipe()?, pipe()?);
    let (id, _) = wire.call(request, vec![stdin, stdout, stderr]).await?;
    Ok(ExecSession {
        stdin: Some(FdStream::new(to_stdin)?),
        stdout: Some(FdStream::new(from_stdout)?),
        stderr: Some(FdStream::new(from_stderr)?),
        terminal: None,
        exit: ExecExit { wire, id },
    })
}

/// Runs to the end, or kills when `within` has passed.
pub async fn exec_sync(
    sandbox: &Sandbox,
    key: &str,
    spec: &ExecSpec,
    within: Duration,
) -> Result<ExecOutput, PodsError> {
    let run = async {
        let mut session = exec(sandbox, key, spec).await?;
        drop(session.stdin.take());
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let (out, err) = (session.stdout.take(), session.stderr.take());
        let code = {
            let reading = async { tokio::join!(keep(out, &mut stdout), keep(err, &mut stderr)) };
            let mut reading = std::pin::pin!(reading);
            tokio::select! {
                code = session.exit.wait() => {
                    let code = code?;
                    // A background process may hold the pipes open for ever.
                    let _ = tokio::time::timeout(DRAIN_TIMEOUT, &mut reading).await;
                    code
                }
                _ = &mut reading => session.exit.wait().await?,
            }
        };
        Ok::<_, PodsError>((code, stdout, stderr))
    };
    let (code, stdout, stderr) = tokio::time::timeout(within, run).await.map_err(|_| PodsError::Timeout(within))??;
    Ok(ExecOutput { code, stdout, stderr })
}

/// Reads to the end and keeps the beginning.
async fn keep(stream: Option<FdStream>, kept: &mut Vec<u8>) {
    let Some(mut stream) = stream else { return };
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut buffer).await {
        let room = MAX_SYNC_OUTPUT_BYTES - kept.len();
        kept.extend_from_slice(&buffer[..length.min(room)]);
    }
}

/// A container's own streams.
pub struct AttachSession {
    /// `None` if none was asked for.
    pub stdin: Option<FdStream>,
    /// stdout, and stderr where it is not apart. Ends when the container does.
    pub output: Option<FdStream>,
    /// `None` with a terminal, and with a shim from before it could be apart.
    pub errors: Option<FdStream>,
    /// Letting go of it detaches.
    pub hold: AttachHold,
}

pub struct AttachHold(#[expect(dead_code, reason = "held for its drop, which detaches")] Wire);

/// What somebody who attaches wants beside the output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AttachSpec {
    pub stdin: bool,
    /// stderr by itself.
    pub split: bool,
}

pub async fn attach(sandbox: &Sandbox, key: &str, spec: AttachSpec) -> Result<AttachSession, PodsError> {
    let (mut wire, _) = Wire::open(&sandbox.places.socket(), false).await?;
    let able = wire.version >= SPLIT_ATTACH;
    let pipe = || pipe2(OFlag::O_CLOEXEC).map_err(|error| PodsError::Stream(error.into()));
    let (from_output, output) = pipe()?;
    let mut fds = vec![output];
    let mut stdin = None;
    if spec.stdin || !able {
        let (input, to_input) = pipe()?;
        fds.push(input);
        // An older shim takes an input that says nothing.
        stdin = Some(FdStream::new(to_input)?).filter(|_| spec.stdin);
    }
    let mut errors = None;
    let split = spec.split && able;
    if split {
        let (from_errors, to_errors) = pipe()?;
        fds.push(to_errors);
        errors = Some(FdStream::new(from_errors)?);
    }
    let no_input = able && !spec.stdin;
    wire.call(Request::Attach { key: key.into(), no_input, split }, fds).await?;
    Ok(AttachSession { stdin, output: Some(FdStream::new(from_output)?), errors, hold: AttachHold(wire) })
}
