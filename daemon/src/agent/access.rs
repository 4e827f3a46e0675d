//! Logs and commands of this node's pods, for streams from anywhere in the cluster.

use std::path::PathBuf;

use bytes::Bytes;
use flotilla_api::{Reason, Status};
use flotilla_runtime::pods::{ExecSpec, LogOptions, PodsError, logs};
use flotilla_runtime::state::{ContainerState, container_key};
use jiff::Timestamp;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::local::Local;
use crate::streams::{Exec, FromPod, Logs, PodReference, ToPod, receive, send};

/// Bytes of a command's output in one frame.
const CHUNK_BYTES: usize = 32 * 1024;

impl Local {
    /// Sends a container's log.
    ///
    /// # Errors
    /// If there is no such container, or its log cannot be read.
    pub async fn logs(&self, asked: Logs, write: &mut (impl AsyncWrite + Send + Unpin)) -> Result<i32, Status> {
        let since_ms = asked.since_seconds.map(|seconds| {
            let now = Timestamp::now().as_millisecond().max(0) as u64;
            now.saturating_sub(seconds.saturating_mul(1_000))
        });
        let options = LogOptions {
            follow: asked.follow && !asked.previous,
            tail_lines: asked.tail_lines,
            since_ms,
            limit_bytes: asked.limit_bytes,
            timestamps: asked.timestamps,
        };
        let mut reader = self.log(&asked, options)?;
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
        let attempts = self.attempts(&asked.pod, &asked.container);
        let running = attempts.last().filter(|attempt| attempt.is_running());
        let (Some(pods), Some(running)) = (self.pods(), running) else {
            return Err(Status::bad_request(format!(
                "container \"{}\" of pod \"{}\" is not running",
                asked.container, asked.pod.name
            )));
        };
        let spec = ExecSpec { args: asked.command, tty: asked.tty, ..ExecSpec::default() };
        let session = pods.exec(&asked.pod.uid, &running.key(), &spec).await;
        let mut session = session.map_err(|error| refused(&error))?;
        if let (Some(terminal), Some(size)) = (&session.terminal, asked.size) {
            _ = terminal.resize(size.columns, size.rows);
        }
        let mut stdin = session.stdin.take().filter(|_| asked.stdin);
        let terminal = session.terminal.take();
        let inward = async {
            while let Ok(Some(message)) = receive::<ToPod>(read).await {
                match message {
                    ToPod::Stdin(data) => {
                        if let Some(pipe) = stdin.as_mut()
                            && pipe.write_all(&data).await.is_err()
                        {
                            stdin = None;
                        }
                    }
                    ToPod::Resize(size) => {
                        // A size that the kernel refuses leaves the terminal as it is.
                        _ = terminal.as_ref().map(|terminal| terminal.resize(size.columns, size.rows));
                    }
                    // A terminal's input ends with its own character, not with its pipe.
                    ToPod::Eof if terminal.is_none() => stdin = None,
                    ToPod::Eof => {}
                }
            }
        };
        let (mut stdout, mut stderr) = (session.stdout.take(), session.stderr.take());
        let outward = async {
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
        };
        // The client that hangs up ends the command: dropping the session kills it.
        tokio::select! {
            code = async { outward.await; session.exit.wait().await } => code.map_err(|error| refused(&error)),
            () = inward => Err(Status::new(Reason::ServiceUnavailable, "the client hung up")),
        }
    }
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
