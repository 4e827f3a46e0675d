//! Sessions with a process in the channels of a WebSocket.

use std::io;

use bytes::Bytes;
use flotilla_api::Status;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::channel::{ERROR, Protocol, RESIZE, STDERR, STDIN, STDOUT, Said};
use super::remote::{End, Input, Inward, Outward, Sizes, Wishes, bridge};
use super::websocket::{KEEPALIVE, LINGER, WRITE_TIMEOUT};
use crate::streams::Connection;

/// Runs a session until it ends and the client has all of it, or until the client is gone.
pub async fn run<S: AsyncRead + AsyncWrite + Send + Unpin>(
    socket: WebSocketStream<S>,
    protocol: &'static Protocol,
    wishes: Wishes,
    command: &[String],
    open: impl Future<Output = Result<Connection, Status>> + Send,
) -> io::Result<()> {
    let (sink, stream) = socket.split();
    let mut inward = FromSocket { stream, protocol, sizes: Sizes::default() };
    let mut outward = Sender { sink, protocol };
    // Some clients of the older versions wait for a first message before they speak. kubectl does not, and complains of one
    // that comes before it is ready.
    let lowest = if wishes.stdout {
        STDOUT
    } else if wishes.stderr {
        STDERR
    } else {
        ERROR
    };
    if protocol.version < 5 {
        outward.send(lowest, b"").await?;
    }
    let mut to = ToSocket { to: &mut outward, command };
    let end = match open.await {
        Ok(connection) => bridge(&mut inward, &mut to, connection, wishes, KEEPALIVE).await,
        Err(status) => Some(End::Failed(status)),
    };
    let Some(end) = end else { return Ok(()) };
    ToSocket { to: &mut outward, command }.end(&end).await?;
    goodbye(outward, inward.stream).await
}

/// Closes, and waits for the client to do so: else what it has not read yet could be thrown away.
pub async fn goodbye<S: AsyncRead + AsyncWrite + Send + Unpin>(
    mut sender: Sender<S>,
    mut stream: SplitStream<WebSocketStream<S>>,
) -> io::Result<()> {
    let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    in_time(sender.sink.send(Message::Close(Some(frame)))).await?;
    _ = timeout(LINGER, async { while let Some(Ok(_)) = stream.next().await {} }).await;
    Ok(())
}

struct FromSocket<S> {
    stream: SplitStream<WebSocketStream<S>>,
    protocol: &'static Protocol,
    sizes: Sizes,
}

/// What the next message says; `None` when the client is gone or breaks the rules.
pub async fn said<S: AsyncRead + AsyncWrite + Send + Unpin>(
    stream: &mut SplitStream<WebSocketStream<S>>,
    protocol: &Protocol,
) -> Option<Said> {
    loop {
        let message = match stream.next().await?.ok()? {
            Message::Binary(data) => data,
            Message::Text(text) => text.into(),
            Message::Close(_) => return None,
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => continue,
        };
        if let Some(said) = protocol.decode(&message) {
            return Some(said);
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Inward for FromSocket<S> {
    async fn next(&mut self) -> Option<Input> {
        loop {
            match said(&mut self.stream, self.protocol).await? {
                Said::Data(STDIN, data) if !data.is_empty() => return Some(Input::Stdin(data)),
                Said::Data(RESIZE, data) => {
                    if let Some(size) = self.sizes.push(&data) {
                        return Some(Input::Resize(size));
                    }
                }
                Said::End(STDIN) => return Some(Input::Eof),
                Said::Data(..) | Said::End(_) => {}
            }
        }
    }
}

/// Sends messages on channels.
pub struct Sender<S> {
    pub sink: SplitSink<WebSocketStream<S>, Message>,
    pub protocol: &'static Protocol,
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Sender<S> {
    pub async fn send(&mut self, channel: u8, data: &[u8]) -> io::Result<()> {
        let message = self.protocol.encode(channel, data);
        let message = match self.protocol.base64 {
            // Digits and base64 are ASCII.
            true => Message::Text(message.try_into().map_err(io::Error::other)?),
            false => Message::Binary(message),
        };
        in_time(self.sink.send(message)).await
    }

    pub async fn ping(&mut self) -> io::Result<()> {
        in_time(self.sink.send(Message::Ping(Bytes::new()))).await
    }
}

async fn in_time(sending: impl Future<Output = Result<(), Error>>) -> io::Result<()> {
    match timeout(WRITE_TIMEOUT, sending).await {
        Ok(sent) => sent.map_err(io::Error::other),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

struct ToSocket<'a, S> {
    to: &'a mut Sender<S>,
    command: &'a [String],
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Outward for ToSocket<'_, S> {
    async fn stdout(&mut self, data: Bytes) -> io::Result<()> {
        self.to.send(STDOUT, &data).await
    }

    async fn stderr(&mut self, data: Bytes) -> io::Result<()> {
        self.to.send(STDERR, &data).await
    }

    async fn keep_alive(&mut self) -> io::Result<()> {
        self.to.ping().await
    }

    async fn end(self, end: &End) -> io::Result<()> {
        match self.to.protocol.version {
            4.. => self.to.send(ERROR, end.status(self.command).to_string().as_bytes()).await,
            _ => match end.text(self.command) {
                Some(text) => self.to.send(ERROR, text.as_bytes()).await,
                None => Ok(()),
            },
        }
    }
}
