//! Long streams between a client's node and the node that runs a pod: logs and exec.
//!
//! A stream begins with one [`StreamRequest`]; then each side sends messages in frames until the serving side has
//! said how it ended. The same code serves a pod of this node, over a pipe in memory.
//!
//! Invariant: a frame is bounded, so that neither side can make the other hold more than one at a time.

use std::io;

use bytes::Bytes;
use flotilla_api::{Reason, Status};
use flotilla_net::{Alpn, Net, codec, read_frame_or_end, write_frame};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
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

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum StreamRequest {
    Logs(Logs),
    Exec(Exec),
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
        Ok(Some(StreamRequest::Logs(logs))) => tokio::select! {
            ended = local.logs(logs, &mut write) => ended,
            // A client that reads a log says nothing more. What comes is its end, and the log may be silent for ever.
            _ = receive::<ToPod>(&mut read) => return,
        },
        Ok(Some(StreamRequest::Exec(exec))) => local.exec(exec, &mut read, &mut write).await,
        Ok(None) => return,
        Err(error) => Err(Status::bad_request(error)),
    };
    let last = end.map_or_else(FromPod::Failed, FromPod::Exit);
    // A client that hung up needs no answer.
    _ = send(&mut write, &last).await;
    _ = tokio::io::AsyncWriteExt::shutdown(&mut write).await;
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
