//! Sessions with a process in streams of SPDY.
//!
//! The client opens one stream for each thing: `error`, `stdin`, `stdout`, `stderr`, and `resize` from the third version
//! of the protocol on.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use flotilla_api::Status;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use super::remote::{End, Input, Inward, Outward, Sizes, Wishes, bridge};
use super::spdy::{Acceptor, Connection, SpdyError, StreamReader, StreamWriter};
use crate::streams;

/// How long a client may take to open its streams.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// A version of the protocol, as `X-Stream-Protocol-Version` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    pub name: &'static str,
    pub number: u8,
}

/// The versions that are understood. The fifth differs only over WebSockets.
pub const VERSIONS: &[Version] = &[
    Version { name: "v5.channel.k8s.io", number: 5 },
    Version { name: "v4.channel.k8s.io", number: 4 },
    Version { name: "v3.channel.k8s.io", number: 3 },
    Version { name: "v2.channel.k8s.io", number: 2 },
    Version { name: "channel.k8s.io", number: 1 },
];

/// Runs a session until it ends and the client has all of it, or until the client is gone.
///
/// # Errors
/// If the connection broke or the client broke the rules.
pub async fn run<S: AsyncRead + AsyncWrite + Send + Unpin>(
    io: S,
    version: Version,
    wishes: Wishes,
    command: &[String],
    open: impl Future<Output = Result<streams::Connection, Status>> + Send,
) -> Result<(), SpdyError> {
    let (spdy, mut acceptor) = Connection::new(io);
    spdy.run(async move {
        let Ok(Some(opened)) = timeout(OPEN_TIMEOUT, Opened::gather(&mut acceptor, version, wishes)).await else {
            return;
        };
        // Further streams would be of no use.
        drop(acceptor);
        let Opened { error, stdin, stdout, stderr, resize, silent } = opened;
        let mut inward = FromStreams { stdin, resize, sizes: Sizes::default() };
        let mut outward = ToStreams { error, stdout, stderr, silent, version, command };
        // The connection itself notices a client that is gone.
        let end = match open.await {
            Ok(connection) => bridge(&mut inward, &mut outward, connection, wishes, OPEN_TIMEOUT).await,
            Err(status) => Some(End::Failed(status)),
        };
        if let Some(end) = end {
            _ = outward.end(&end).await;
        }
    })
    .await
}

struct Opened {
    error: StreamWriter,
    stdin: Option<StreamReader>,
    stdout: Option<StreamWriter>,
    stderr: Option<StreamWriter>,
    resize: Option<StreamReader>,
    silent: Vec<StreamWriter>,
}

impl Opened {
    /// Waits for all streams that the client has asked for; `None` if it goes away before.
    async fn gather(acceptor: &mut Acceptor, version: Version, wishes: Wishes) -> Option<Self> {
        let (mut error, mut stdin, mut stdout, mut stderr, mut resize) = (None, None, None, None, None);
        let mut silent = Vec::new();
        loop {
            let complete = (stdin.is_some() || !wishes.stdin)
                && (stdout.is_some() || !wishes.stdout)
                && (stderr.is_some() || !wishes.stderr)
                && (resize.is_some() || !wishes.tty || version.number < 3);
            if let Some(error) = error.take_if(|_| complete) {
                return Some(Self { error, stdin, stdout, stderr, resize, silent });
            }
            let stream = acceptor.next().await?;
            match stream.headers.get("streamtype").unwrap_or_default() {
                "error" => error = Some(stream.writer),
                "stdin" => {
                    stdin = Some(stream.reader);
                    silent.push(stream.writer);
                }
                "stdout" => stdout = Some(stream.writer),
                "stderr" => stderr = Some(stream.writer),
                "resize" => {
                    resize = Some(stream.reader);
                    silent.push(stream.writer);
                }
                // Dropping it tells the client that it is of no use.
                _ => {}
            }
        }
    }
}

struct FromStreams {
    stdin: Option<StreamReader>,
    resize: Option<StreamReader>,
    sizes: Sizes,
}

impl Inward for FromStreams {
    async fn next(&mut self) -> Option<Input> {
        loop {
            tokio::select! {
                data = read(&mut self.stdin) => return Some(data.map_or(Input::Eof, Input::Stdin)),
                data = read(&mut self.resize) => {
                    if let Some(size) = data.and_then(|data| self.sizes.push(&data)) {
                        return Some(Input::Resize(size));
                    }
                }
            }
        }
    }
}

/// The next bytes; `None` once at the end, and then never again.
async fn read(stream: &mut Option<StreamReader>) -> Option<Bytes> {
    let Some(open) = stream else { return std::future::pending().await };
    let data = open.next().await;
    if data.is_none() {
        *stream = None;
    }
    data
}

struct ToStreams<'a> {
    error: StreamWriter,
    stdout: Option<StreamWriter>,
    stderr: Option<StreamWriter>,
    /// Where nothing is ever said. A client takes their end for the session's, and stops reading its own input.
    silent: Vec<StreamWriter>,
    version: Version,
    command: &'a [String],
}

impl Outward for ToStreams<'_> {
    async fn stdout(&mut self, data: Bytes) -> io::Result<()> {
        match &mut self.stdout {
            Some(stdout) => stdout.write(data).await,
            None => Ok(()),
        }
    }

    async fn stderr(&mut self, data: Bytes) -> io::Result<()> {
        match &mut self.stderr {
            Some(stderr) => stderr.write(data).await,
            None => Ok(()),
        }
    }

    async fn keep_alive(&mut self) -> io::Result<()> {
        // SPDY's own pings do.
        Ok(())
    }

    async fn end(mut self, end: &End) -> io::Result<()> {
        let text = match self.version.number {
            4.. => Some(end.status(self.command).to_string()),
            _ => end.text(self.command),
        };
        let outputs = [self.stdout.take(), self.stderr.take()].into_iter().flatten();
        for output in outputs.chain(std::mem::take(&mut self.silent)) {
            output.finish().await?;
        }
        if let Some(text) = text {
            self.error.write(text.into()).await?;
        }
        self.error.finish().await
    }
}
