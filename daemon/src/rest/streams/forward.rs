//! Forwarding ports of a pod: for each connection that a client accepts on its side, one to the pod.
//!
//! Over SPDY, itself perhaps within a WebSocket, a client opens two streams a connection, `data` and `error`, that a
//! request id makes a pair. Over the channels of a WebSocket it names its ports beforehand and gets one connection each.
//!
//! Invariant: a stream whose other half does not come within `PAIR_TIMEOUT` is reset.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use flotilla_api::Status;
use futures::stream::FuturesUnordered;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;

use super::channel::{Protocol, Said};
use super::over_websocket::{Sender, goodbye, said};
use super::spdy::{Acceptor, Connection, SpdyError, Stream};
use super::websocket::KEEPALIVE;
use crate::streams::{self, FromPod, ToPod};

/// The name under which clients ask for forwarding over SPDY.
pub const PROTOCOL: &str = "portforward.k8s.io";
/// The same within a WebSocket.
pub const TUNNEL_PROTOCOL: &str = "SPDY/3.1+portforward.k8s.io";
/// Ports that one WebSocket can name.
pub const MAX_PORTS: usize = 64;
/// For the other half of a pair of streams.
const PAIR_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes for the pod in one message between nodes.
const MAX_DATA_BYTES: usize = 64 * 1024;
/// Messages of a WebSocket that wait for one port.
const QUEUED_MESSAGES: usize = 4;

/// Opens connections to ports of one pod.
pub trait Dial: Sync {
    /// What an error that a client is told begins with.
    fn context(&self, port: u16) -> String;
    fn dial(&self, port: u16) -> impl Future<Output = Result<streams::Connection, Status>> + Send;
}

/// Forwards over SPDY until the client hangs up.
///
/// # Errors
/// If the connection broke or the client broke the rules.
pub async fn over_spdy<S: AsyncRead + AsyncWrite + Send + Unpin>(io: S, dial: &impl Dial) -> Result<(), SpdyError> {
    let (spdy, acceptor) = Connection::new(io);
    spdy.run(pair_up(acceptor, dial)).await
}

async fn pair_up(mut acceptor: Acceptor, dial: &impl Dial) {
    let mut halves: HashMap<String, (Instant, Stream)> = HashMap::new();
    let mut running = FuturesUnordered::new();
    let mut tidy = tokio::time::interval(PAIR_TIMEOUT);
    loop {
        tokio::select! {
            stream = acceptor.next() => {
                let Some(stream) = stream else { return };
                let Some((id, port)) = place(&stream) else { continue };
                match halves.remove(&id) {
                    Some((_, other)) if is_data(&other) != is_data(&stream) => {
                        let (data, error) = if is_data(&stream) { (stream, other) } else { (other, stream) };
                        running.push(forward(data, error, port, dial));
                    }
                    _ => _ = halves.insert(id, (Instant::now(), stream)),
                }
            }
            Some(()) = running.next(), if !running.is_empty() => {}
            now = tidy.tick() => halves.retain(|_, (since, _)| now.duration_since(*since) < PAIR_TIMEOUT),
        }
    }
}

fn is_data(stream: &Stream) -> bool {
    stream.headers.get("streamtype") == Some("data")
}

/// Which pair a stream belongs to, and its port; `None` for what is neither half.
fn place(stream: &Stream) -> Option<(String, u16)> {
    let kind = stream.headers.get("streamtype").filter(|kind| matches!(*kind, "data" | "error"))?;
    let port = stream.headers.get("port")?.parse().ok().filter(|port| *port > 0)?;
    let id = match stream.headers.get("requestid") {
        Some(id) => id.to_owned(),
        // Clients before there were request ids opened the two one after the other, the error stream first.
        None if kind == "error" => stream.id.to_string(),
        None => stream.id.checked_sub(2)?.to_string(),
    };
    Some((id, port))
}

async fn forward(mut data: Stream, mut error: Stream, port: u16, dial: &impl Dial) {
    // Nothing is ever read there.
    drop(error.reader);
    let trouble = match dial.dial(port).await {
        Ok(connection) => carry(&mut data, connection).await,
        Err(status) => Err(status.message),
    };
    if let Err(message) = trouble {
        _ = error.writer.write(format!("{}: {message}", dial.context(port)).into()).await;
    }
    _ = data.writer.finish().await;
    _ = error.writer.finish().await;
}

/// Until the pod has said all, or the client has reset the stream.
async fn carry(data: &mut Stream, connection: streams::Connection) -> Result<(), String> {
    let (mut to_pod, mut from_pod) = connection.split();
    let (reader, writer) = (&mut data.reader, &mut data.writer);
    let reset = writer.reset();
    let inward = async {
        while let Some(mut piece) = reader.next().await {
            while !piece.is_empty() {
                let part = piece.split_to(piece.len().min(MAX_DATA_BYTES));
                if to_pod.send(ToPod::Stdin(part)).await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        }
        _ = to_pod.send(ToPod::Eof).await;
        std::future::pending::<()>().await;
    };
    let outward = async {
        loop {
            match from_pod.next().await.map_err(|status| status.message)? {
                Some(FromPod::Stdout(bytes) | FromPod::Stderr(bytes)) => {
                    if writer.write(bytes).await.is_err() {
                        return Ok(());
                    }
                }
                Some(FromPod::Exit(_)) => return Ok(()),
                Some(FromPod::Failed(status)) => return Err(status.message),
                None => return Err("the node that runs the pod hung up".into()),
            }
        }
    };
    tokio::select! {
        done = outward => done,
        () = inward => Ok(()),
        () = reset => Ok(()),
    }
}

/// Forwards over the channels of a WebSocket: two for each port, data and errors, each begun by us with the port's number.
///
/// # Errors
/// If the connection broke.
pub async fn over_channels<S: AsyncRead + AsyncWrite + Send + Unpin>(
    socket: WebSocketStream<S>,
    protocol: &'static Protocol,
    ports: &[u16],
    dial: &impl Dial,
) -> io::Result<()> {
    let (sink, mut stream) = socket.split();
    let mut sender = Sender { sink, protocol };
    let (out, mut messages) = mpsc::channel::<(u8, Bytes)>(QUEUED_MESSAGES * 2);
    let mut inputs = Vec::new();
    let running = FuturesUnordered::new();
    for (index, port) in ports.iter().take(MAX_PORTS).enumerate() {
        let (input, received) = mpsc::channel(QUEUED_MESSAGES);
        inputs.push(input);
        running.push(serve_port(index as u8 * 2, *port, received, out.clone(), dial));
    }
    drop(out);
    let read = async {
        while let Some(said) = said(&mut stream, protocol).await {
            let Said::Data(channel, data) = said else { continue };
            if channel % 2 == 0
                && let Some(input) = inputs.get(usize::from(channel / 2))
            {
                // A port whose connection has ended takes nothing more.
                _ = input.send(data).await;
            }
        }
    };
    let serve = running.for_each(|()| std::future::ready(()));
    let write = async {
        let serve = std::pin::pin!(serve);
        let mut serve = futures::FutureExt::fuse(serve);
        loop {
            tokio::select! {
                message = messages.recv() => match message {
                    Some((channel, data)) => sender.send(channel, &data).await?,
                    None => return Ok::<_, io::Error>(()),
                },
                () = &mut serve => {}
                () = tokio::time::sleep(KEEPALIVE) => sender.ping().await?,
            }
        }
    };
    tokio::select! {
        written = write => written?,
        () = read => return Ok(()),
    }
    sender.sink.flush().await.map_err(io::Error::other)?;
    goodbye(sender, stream).await
}

async fn serve_port(
    channel: u8,
    port: u16,
    mut input: mpsc::Receiver<Bytes>,
    out: mpsc::Sender<(u8, Bytes)>,
    dial: &impl Dial,
) {
    let number = Bytes::copy_from_slice(&port.to_le_bytes());
    for channel in [channel, channel + 1] {
        if out.send((channel, number.clone())).await.is_err() {
            return;
        }
    }
    let trouble = match dial.dial(port).await {
        Ok(connection) => {
            let (mut to_pod, mut from_pod) = connection.split();
            let inward = async {
                while let Some(mut data) = input.recv().await {
                    while !data.is_empty() {
                        let part = data.split_to(data.len().min(MAX_DATA_BYTES));
                        _ = to_pod.send(ToPod::Stdin(part)).await;
                    }
                }
            };
            let outward = async {
                loop {
                    match from_pod.next().await.map_err(|status| status.message)? {
                        Some(FromPod::Stdout(bytes) | FromPod::Stderr(bytes)) => {
                            if out.send((channel, bytes)).await.is_err() {
                                return Ok(());
                            }
                        }
                        Some(FromPod::Exit(_)) => return Ok(()),
                        Some(FromPod::Failed(status)) => return Err(status.message),
                        None => return Err("the node that runs the pod hung up".into()),
                    }
                }
            };
            tokio::select! {
                done = outward => done,
                () = inward => Ok(()),
            }
        }
        Err(status) => Err(status.message),
    };
    if let Err(message) = trouble {
        _ = out.send((channel + 1, format!("{}: {message}", dial.context(port)).into())).await;
    }
}
