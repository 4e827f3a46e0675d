//! Logs and commands of this node's pods, for streams from anywhere in the cluster.

use std::net::IpAddr;
use std::path::PathBuf;

use bytes::Bytes;
use flotilla_api::{Reason, Status};
use flotilla_runtime::Pods;
use flotilla_runtime::pods::{
    AttachSession, AttachSpec, ExecSession, ExecSpec, FdStream, LogOptions, LogStreams, PodsError, Terminal, logs,
};
use flotilla_runtime::state::{ContainerState, container_key};
use jiff::Timestamp;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::local::Local;
use crate::streams::{Attach, Exec, FromPod, Log, LogStream, Logs, PodReference, Size, ToPod, receive, send};

/// Bytes of a command's output in one frame.
const CHUNK_BYTES: usize = 32 * 1024;

impl Local {
    /// Sends a container's log.
    ///
    /// # Errors
    /// If there is no such container, or its log cannot be read.
    pub async fn logs(&self, asked: Log, write: &mut (impl AsyncWrite + Send + Unpin)) -> Result<i32, Status> {
        let Log { logs: asked, since_ms, stream } = asked;
        let since_ms = since_ms.or_else(|| {
            let now = Timestamp::now().as_millisecond().max(0) as u64;
            Some(now.saturating_sub(asked.since_seconds?.saturating_mul(1_000)))
        });
        let options = LogOptions {
            follow: asked.follow && !asked.previous,
            tail_lines: asked.tail_lines,
            since_ms,
            limit_bytes: asked.limit_bytes,
            timestamps: asked.timestamps,
            streams: match stream {
                LogStream::All => LogStreams::Both,
                LogStream::Stdout => LogStreams::Stdout,
                LogStream::Stderr => LogStreams::Stderr,
            },
        };
        let mut reader = self.log(&asked, options)?;
        // Nothing may be said for long, and the client wants to know that it will be.
        if send(write, &FromPod::Stdout(Bytes::new())).await.is_err() {
            return Ok(0);
        }
        while let Some(data) = reader.next().await.map_err(Status::internal)? {
            if send(write, &FromPod::Stdout(data)).await.is_err() {
                return Ok(0);
            }
        }
        Ok(0)
    }

    fn log(&self, asked: &Logs, options: LogOptions) -> Result<logs::LogReader, Status> {
        let attempts = self.attempts(&asked.pod, &asked.container);
        if let Some(pods) = self.pods() {
            let index = if asked.previous { attempts.len().checked_sub(2) } else { attempts.len().checked_sub(1) };
            if let Some(found) = index.and_then(|index| attempts.get(index)) {
                let key = container_key(&found.name, found.attempt);
                return pods.logs(&asked.pod.uid, &key, options).map_err(|error| refused(&error));
            }
        }
        // The sandbox is gone; its logs stay until the Pod goes.
        let path = self.old_log(&asked.pod.uid, &asked.container, asked.previous);
        let path = path.ok_or_else(|| {
            let what = if asked.previous { "previous terminated container" } else { "container" };
            let waiting = if asked.previous { "not found" } else { "is waiting to start: there is no log yet" };
            Status::bad_request(format!("{what} \"{}\" in pod \"{}\" {waiting}", asked.container, asked.pod.name))
        })?;
        Ok(logs::read(&path, options))
    }

    /// The attempts of a container that are still known, oldest first.
    fn attempts(&self, pod: &PodReference, container: &str) -> Vec<ContainerState> {
        let sandbox = self.pods().and_then(|pods| pods.get(&pod.uid));
        let mut attempts: Vec<ContainerState> =
            sandbox.into_iter().flat_map(|sandbox| sandbox.containers).filter(|c| c.name == container).collect();
        attempts.sort_by_key(|attempt| attempt.attempt);
        attempts
    }

    fn old_log(&self, uid: &str, container: &str, previous: bool) -> Option<PathBuf> {
        let dir = self.log_dir(uid).join(container);
        let mut attempts: Vec<u32> = std::fs::read_dir(&dir)
            .ok()?
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".log")?.parse().ok())
            .collect();
        attempts.sort_unstable();
        let index = attempts.len().checked_sub(if previous { 2 } else { 1 })?;
        Some(dir.join(format!("{}.log", attempts.get(index)?)))
    }

    /// Runs a command in a container; its exit code.
    ///
    /// # Errors
    /// If the container does not run, or the command cannot be started.
    pub async fn exec(
        &self,
        asked: Exec,
        read: &mut (impl AsyncRead + Send + Unpin),
        write: &mut (impl AsyncWrite + Send + Unpin),
    ) -> Result<i32, Status> {
        let (pods, key) = self.running(&asked.pod, &asked.container)?;
        let spec = ExecSpec { args: asked.command, tty: asked.tty, ..ExecSpec::default() };
        let session = pods.exec(&asked.pod.uid, &key, &spec).await;
        let session =
            session.map_err(|error| Status::internal(format!("error executing command in container: {error}")))?;
        if let (Some(terminal), Some(size)) = (&session.terminal, asked.size) {
            _ = terminal.resize(size.columns, size.rows);
        }
        let ExecSession { stdin, stdout, stderr, terminal, mut exit } = session;
        let ends_at_eof = terminal.is_none();
        let inward = feed(read, stdin.filter(|_| asked.stdin), ends_at_eof, Resizer::Process(terminal));
        let outward = async {
            copy_out(stdout, stderr, write).await;
            exit.wait().await
        };
        // The client that hangs up ends the command: dropping the session kills it.
        tokio::select! {
            code = outward => code.map_err(|error| refused(&error)),
            () = inward => Err(hung_up()),
        }
    }

    /// Joins the streams of a container until it ends or the client goes.
    ///
    /// # Errors
    /// If the container does not run.
    pub async fn attach(
        &self,
        asked: Attach,
        read: &mut (impl AsyncRead + Send + Unpin),
        write: &mut (impl AsyncWrite + Send + Unpin),
    ) -> Result<i32, Status> {
        let (pods, key) = self.running(&asked.pod, &asked.container)?;
        let uid = &asked.pod.uid;
        let spec = AttachSpec { stdin: asked.stdin, split: true };
        let session = pods.attach(uid, &key, spec).await.map_err(|error| refused(&error))?;
        // A container without a terminal keeps its size to itself.
        let resizer = Resizer::Container { pods, uid, key: &key };
        if let Some(size) = asked.size {
            resizer.resize(size).await;
        }
        let AttachSession { stdin, output, errors, hold } = session;
        let ended = tokio::select! {
            () = copy_out(output, errors, write) => Ok(0),
            () = feed(read, stdin, true, resizer) => Err(hung_up()),
        };
        drop(hold);
        ended
    }

    /// Connects to a port of the pod, at its loopback or at an address of it, and carries bytes both ways until the pod
    /// has said all or the client goes.
    ///
    /// # Errors
    /// If nobody answers there.
    pub async fn forward(
        &self,
        pod: &PodReference,
        ip: Option<IpAddr>,
        port: u16,
        read: &mut (impl AsyncRead + Send + Unpin),
        write: &mut (impl AsyncWrite + Send + Unpin),
    ) -> Result<i32, Status> {
        let pods = self.pods().ok_or_else(|| no_such_pod(pod))?;
        let failed = |error: PodsError| {
            let why = match &error {
                PodsError::Stream(source) => {
                    let host = ip.map_or_else(|| "localhost".to_owned(), |ip| ip.to_string());
                    format!("connect to {host}:{port}: {source}")
                }
                other => other.to_string(),
            };
            Status::new(Reason::ServiceUnavailable, why)
        };
        let stream = match pods.connect(&pod.uid, ip, port).await {
            Err(PodsError::NoSandbox(_)) => return Err(no_such_pod(pod)),
            connected => connected.map_err(failed)?,
        };
        let (mut from_pod, mut to_pod) = stream.into_split();
        let inward = async {
            loop {
                match receive::<ToPod>(read).await {
                    Ok(Some(ToPod::Stdin(data))) => {
                        if to_pod.write_all(&data).await.is_err() {
                            break;
                        }
                    }
                    Ok(Some(ToPod::Eof)) => _ = to_pod.shutdown().await,
                    Ok(Some(ToPod::Resize(_))) => {}
                    Ok(None) | Err(_) => return,
                }
            }
            // The pod takes nothing more, but may have something to say.
            while let Ok(Some(_)) = receive::<ToPod>(read).await {}
        };
        let outward = async {
            let mut buffer = vec![0; CHUNK_BYTES];
            while let Ok(length @ 1..) = from_pod.read(&mut buffer).await {
                if send(write, &FromPod::Stdout(Bytes::copy_from_slice(&buffer[..length]))).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = outward => Ok(0),
            () = inward => Err(hung_up()),
        }
    }

    /// The attempt of a container that runs now.
    fn running(&self, pod: &PodReference, container: &str) -> Result<(&Pods, String), Status> {
        let attempts = self.attempts(pod, container);
        let running = attempts.last().filter(|attempt| attempt.is_running());
        match (self.pods(), running) {
            (Some(pods), Some(running)) => Ok((pods, running.key())),
            _ => Err(Status::new(Reason::NotFound, format!("container not found (\"{container}\")"))),
        }
    }
}

/// Whose terminal a client resizes.
enum Resizer<'a> {
    Process(Option<Terminal>),
    Container { pods: &'a Pods, uid: &'a str, key: &'a str },
}

impl Resizer<'_> {
    /// A size that the kernel refuses, or for which there is no terminal, changes nothing.
    async fn resize(&self, size: Size) {
        match self {
            Self::Process(terminal) => _ = terminal.as_ref().map(|terminal| terminal.resize(size.columns, size.rows)),
            Self::Container { pods, uid, key } => _ = pods.resize(uid, key, size.columns, size.rows).await,
        }
    }
}

/// Takes what a client says to a process, until the client goes.
async fn feed(
    read: &mut (impl AsyncRead + Send + Unpin),
    mut stdin: Option<FdStream>,
    ends_at_eof: bool,
    resizer: Resizer<'_>,
) {
    while let Ok(Some(message)) = receive::<ToPod>(read).await {
        match message {
            ToPod::Stdin(data) => {
                if let Some(pipe) = stdin.as_mut()
                    && pipe.write_all(&data).await.is_err()
                {
                    stdin = None;
                }
            }
            ToPod::Resize(size) => resizer.resize(size).await,
            // A terminal's input ends with its own character, not with its pipe.
            ToPod::Eof if ends_at_eof => stdin = None,
            ToPod::Eof => {}
        }
    }
}

/// Sends what a process says until it has said all, or the client takes no more.
async fn copy_out(
    mut stdout: Option<FdStream>,
    mut stderr: Option<FdStream>,
    write: &mut (impl AsyncWrite + Send + Unpin),
) {
    let (mut out, mut err) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    while stdout.is_some() || stderr.is_some() {
        let message = tokio::select! {
            length = next(&mut stdout, &mut out) => length.map(|length| FromPod::Stdout(Bytes::copy_from_slice(&out[..length]))),
            length = next(&mut stderr, &mut err) => length.map(|length| FromPod::Stderr(Bytes::copy_from_slice(&err[..length]))),
        };
        if let Some(message) = message
            && send(write, &message).await.is_err()
        {
            return;
        }
    }
}

fn hung_up() -> Status {
    Status::new(Reason::ServiceUnavailable, "the client hung up")
}

fn no_such_pod(pod: &PodReference) -> Status {
    Status::new(Reason::NotFound, format!("pod \"{}\" does not run on this node", pod.name))
}

/// Reads once; a stream that has ended is dropped and gives `None`.
async fn next(stream: &mut Option<impl AsyncRead + Unpin>, buffer: &mut [u8]) -> Option<usize> {
    let Some(open) = stream else { return std::future::pending().await };
    match open.read(buffer).await {
        Ok(length @ 1..) => Some(length),
        _ => {
            *stream = None;
            None
        }
    }
}

fn refused(error: &PodsError) -> Status {
    Status::bad_request(error)
}
