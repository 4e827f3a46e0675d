//! Long streams between a client's node and the node that runs a pod: logs and exec.
//!
//! A stream begins with one [`StreamRequest`]; then each side sends messages in frames until the serving side has
//! said how it ended. The same code serves a pod of this node, over a pipe in memory.
//!
//! Invariant: a frame is bounded, so that neither side can make the other hold more than one at a time.

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use flotilla_api::{Reason, Status};
use flotilla_net::{Alpn, Net, codec, read_frame_or_end, write_frame};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio_util::task::TaskTracker;

use crate::agent::Local;
use crate::members::Members;

/// The largest frame either side sends.
const MAX_FRAME_BYTES: usize = 256 * 1024;
/// What a stream within this node holds between its two ends.
const PIPE_BYTES: usize = 64 * 1024;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodReference {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// Variants are only added, at the end: a node of an earlier version refuses those that it does not know, and understands
/// the others.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum StreamRequest {
    Logs(Logs),
    Exec(Exec),
    /// Joins the streams of a container; the messages are those of `Exec`.
    Attach(Attach),
    /// Connects to a port of a pod: `Stdin` and `Eof` go there, `Stdout` comes from there.
    Forward(Forward),
    /// As `Logs`, with what that lacks.
    Log(Log),
    /// As `Forward`, to what listens at an address and not only at the pod's loopback.
    Reach(Reach),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Logs {
    pub pod: PodReference,
    pub container: String,
    pub follow: bool,
    pub previous: bool,
    pub tail_lines: Option<u64>,
    pub since_seconds: Option<u64>,
    pub timestamps: bool,
    pub limit_bytes: Option<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Exec {
    pub pod: PodReference,
    pub container: String,
    pub command: Vec<String>,
    pub tty: bool,
    pub stdin: bool,
    pub size: Option<Size>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Attach {
    pub pod: PodReference,
    pub container: String,
    pub stdin: bool,
    pub size: Option<Size>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Forward {
    pub pod: PodReference,
    pub port: u16,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reach {
    pub pod: PodReference,
    /// Of the pod, as its status has it.
    pub ip: IpAddr,
    pub port: u16,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Log {
    pub logs: Logs,
    /// Only lines since then, in wall-clock milliseconds.
    pub since_ms: Option<u64>,
    pub stream: LogStream,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogStream {
    #[default]
    All,
    Stdout,
    Stderr,
}

impl StreamRequest {
    /// A log, asked for in the oldest way that says all of it.
    pub fn log(log: Log) -> Self {
        match log.since_ms.is_none() && log.stream == LogStream::All {
            true => Self::Logs(log.logs),
            false => Self::Log(log),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    pub columns: u16,
    pub rows: u16,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum ToPod {
    Stdin(Bytes),
    Resize(Size),
    Eof,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum FromPod {
    Stdout(Bytes),
    Stderr(Bytes),
    /// The command or the log ended; nothing follows.
    Exit(i32),
    /// Why it could not go on; nothing follows.
    Failed(#[serde(with = "as_json")] Status),
}

/// A [`Status`] leaves out what is empty, which only a self-describing format can read back.
mod as_json {
    use flotilla_api::Status;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

    pub fn serialize<S: Serializer>(status: &Status, serializer: S) -> Result<S::Ok, S::Error> {
        serde_json::to_string(status).map_err(ser::Error::custom)?.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Status, D::Error> {
        serde_json::from_str(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// Opens streams to pods, wherever they run.
#[derive(Clone)]
pub struct Streams {
    net: Net,
    members: Members,
    local: Local,
    tasks: TaskTracker,
}

impl Streams {
    pub fn new(net: Net, members: Members, local: Local, tasks: TaskTracker) -> Self {
        Self { net, members, local, tasks }
    }

    /// Opens a stream to a pod on the named node.
    ///
    /// # Errors
    /// `ServiceUnavailable` if the node cannot be reached.
    pub async fn connect(&self, node: &str, request: StreamRequest) -> Result<Connection, Status> {
        let (read, mut write): (Box<dyn AsyncRead + Send + Unpin>, Box<dyn AsyncWrite + Send + Unpin>) =
            if node == self.members.own_name() {
                let (near, far) = tokio::io::duplex(PIPE_BYTES);
                let (far_read, far_write) = tokio::io::split(far);
                let local = self.local.clone();
                self.tasks.spawn(async move { serve(&local, far_read, far_write).await });
                let (read, write) = tokio::io::split(near);
                (Box::new(read), Box::new(write))
            } else {
                let id = self.members.id_of(node).ok_or_else(|| Status::not_found("nodes", node))?;
                let (write, read) = self.net.open(id, Alpn::Stream).await.map_err(|error| {
                    Status::new(Reason::ServiceUnavailable, format!("node {node} does not answer: {error}"))
                })?;
                (Box::new(read), Box::new(write))
            };
        send(&mut write, &request).await.map_err(broken)?;
        Ok(Connection { reader: Reader { read }, writer: Writer { write } })
    }
}

/// How long the pod may go on once its client has said all.
const HALF_CLOSED: Duration = Duration::from_secs(5);
/// How much of a connection to a port is carried in one message.
const PIECE_BYTES: usize = 32 * 1024;

impl Streams {
    /// Connects to a port of a pod as one would over TCP. Whatever keeps it from connecting is told as `refusal` before
    /// the other end is closed.
    ///
    /// # Errors
    /// `ServiceUnavailable` if the node cannot be reached.
    pub async fn dial(&self, node: &str, reach: Reach) -> Result<Dialled, Status> {
        let connection = self.connect(node, StreamRequest::Reach(reach)).await?;
        let (near, far) = tokio::io::duplex(PIPE_BYTES);
        let refusal = Arc::new(OnceLock::new());
        let told = refusal.clone();
        self.tasks.spawn(async move { pump(connection, far, &told).await });
        Ok(Dialled { io: near, refusal })
    }
}

/// A connection to a port of a pod.
pub struct Dialled {
    pub io: DuplexStream,
    /// Why it ended, if not because either side wanted it to.
    pub refusal: Arc<OnceLock<Status>>,
}

/// Carries bytes between a pipe and a pod until either has ended. What went wrong is told before the pipe ends.
async fn pump(connection: Connection, io: DuplexStream, refusal: &OnceLock<Status>) {
    let (mut writer, mut reader) = connection.split();
    let (mut from_client, mut to_client) = tokio::io::split(io);
    let inward = async {
        let mut buffer = vec![0; PIECE_BYTES];
        while let Ok(length @ 1..) = from_client.read(&mut buffer).await {
            if writer.send(ToPod::Stdin(Bytes::copy_from_slice(&buffer[..length]))).await.is_err() {
                return;
            }
        }
        _ = writer.send(ToPod::Eof).await;
    };
    let outward = async {
        loop {
            match reader.next().await? {
                Some(FromPod::Stdout(data) | FromPod::Stderr(data)) => {
                    if to_client.write_all(&data).await.is_err() {
                        return Ok(());
                    }
                }
                Some(FromPod::Failed(status)) => return Err(status),
                Some(FromPod::Exit(_)) | None => return Ok(()),
            }
        }
    };
    let mut outward = std::pin::pin!(outward);
    let ended = tokio::select! {
        ended = &mut outward => ended,
        // A client that has said all may still listen; one that is gone is noticed when something comes for it.
        () = inward => tokio::time::timeout(HALF_CLOSED, &mut outward).await.unwrap_or(Ok(())),
    };
    if let Err(status) = ended {
        _ = refusal.set(status);
    }
}

/// The client's end of a stream.
pub struct Connection {
    reader: Reader,
    writer: Writer,
}

pub struct Reader {
    read: Box<dyn AsyncRead + Send + Unpin>,
}

pub struct Writer {
    write: Box<dyn AsyncWrite + Send + Unpin>,
}

impl Connection {
    /// What comes next; `None` if the other side hung up.
    ///
    /// # Errors
    /// `ServiceUnavailable` if the stream broke.
    pub async fn next(&mut self) -> Result<Option<FromPod>, Status> {
        self.reader.next().await
    }

    pub fn split(self) -> (Writer, Reader) {
        (self.writer, self.reader)
    }
}

impl Reader {
    /// See [`Connection::next`].
    ///
    /// # Errors
    /// `ServiceUnavailable` if the stream broke.
    pub async fn next(&mut self) -> Result<Option<FromPod>, Status> {
        receive(&mut self.read).await.map_err(broken)
    }
}

impl Writer {
    /// # Errors
    /// If the stream broke.
    pub async fn send(&mut self, message: ToPod) -> io::Result<()> {
        send(&mut self.write, &message).await
    }
}

/// Serves one stream from its first frame to its end.
pub async fn serve(local: &Local, mut read: impl AsyncRead + Send + Unpin, mut write: impl AsyncWrite + Send + Unpin) {
    let end = match receive::<StreamRequest>(&mut read).await {
        Ok(Some(StreamRequest::Logs(logs))) => {
            let log = Log { logs, since_ms: None, stream: LogStream::All };
            let Some(ended) = serve_log(local, log, &mut read, &mut write).await else { return };
            ended
        }
        Ok(Some(StreamRequest::Log(log))) => {
            let Some(ended) = serve_log(local, log, &mut read, &mut write).await else { return };
            ended
        }
        Ok(Some(StreamRequest::Exec(exec))) => local.exec(exec, &mut read, &mut write).await,
        Ok(Some(StreamRequest::Attach(attach))) => local.attach(attach, &mut read, &mut write).await,
        Ok(Some(StreamRequest::Forward(Forward { pod, port }))) => {
            local.forward(&pod, None, port, &mut read, &mut write).await
        }
        Ok(Some(StreamRequest::Reach(Reach { pod, ip, port }))) => {
            local.forward(&pod, Some(ip), port, &mut read, &mut write).await
        }
        Ok(None) => return,
        Err(error) => Err(Status::bad_request(error)),
    };
    let last = end.map_or_else(FromPod::Failed, FromPod::Exit);
    // A client that hung up needs no answer.
    _ = send(&mut write, &last).await;
    _ = tokio::io::AsyncWriteExt::shutdown(&mut write).await;
}

/// `None` if the client hung up. One that reads a log says nothing more: what comes is its end, and the log may be silent
/// for ever.
async fn serve_log(
    local: &Local,
    log: Log,
    read: &mut (impl AsyncRead + Send + Unpin),
    write: &mut (impl AsyncWrite + Send + Unpin),
) -> Option<Result<i32, Status>> {
    tokio::select! {
        ended = local.logs(log, write) => Some(ended),
        _ = receive::<ToPod>(read) => None,
    }
}

/// Writes one message in a frame.
pub async fn send<T: Serialize>(write: &mut (impl AsyncWrite + Unpin), message: &T) -> io::Result<()> {
    let bytes = codec::encode(message).map_err(io::Error::other)?;
    write_frame(write, &bytes).await.map_err(io::Error::other)?;
    tokio::io::AsyncWriteExt::flush(write).await
}

/// Reads one message; `None` at the stream's end.
pub async fn receive<T: serde::de::DeserializeOwned>(read: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<T>> {
    let bytes = read_frame_or_end(read, MAX_FRAME_BYTES).await.map_err(io::Error::other)?;
    bytes.map(|bytes| codec::decode(&bytes).map_err(io::Error::other)).transpose()
}

fn broken(error: io::Error) -> Status {
    Status::new(Reason::ServiceUnavailable, format!("the stream to the pod's node broke: {error}"))
}
