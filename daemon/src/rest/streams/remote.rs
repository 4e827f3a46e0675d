//! A client and a process in a container: what it is sent, what it says, and how it ended.
//!
//! The same session for both ways to carry it: channels of a WebSocket, or streams of SPDY.
//!
//! Invariant: whoever hangs up ends the session, and with it what it started.
//! Invariant: a client gets all output before it is told the end.

use std::io;

use bytes::Bytes;
use flotilla_api::Status;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::rest::answer;
use crate::streams::{Connection, FromPod, Size, ToPod};

/// Input for a process in one message between nodes.
const MAX_STDIN_BYTES: usize = 64 * 1024;
/// A change of a terminal's size is a few dozen bytes.
const MAX_RESIZE_BYTES: usize = 4 * 1024;

/// Which streams a client has asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// What a client sends.
#[derive(Debug, PartialEq, Eq)]
pub enum Input {
    Stdin(Bytes),
    Resize(Size),
    /// Standard input has ended.
    Eof,
}

/// Where a client's input comes from.
pub trait Inward: Send {
    /// The next; `None` when the client is gone.
    fn next(&mut self) -> impl Future<Output = Option<Input>> + Send;
}

/// Where a process's output goes to.
pub trait Outward: Send {
    fn stdout(&mut self, data: Bytes) -> impl Future<Output = io::Result<()>> + Send;
    fn stderr(&mut self, data: Bytes) -> impl Future<Output = io::Result<()>> + Send;
    /// Finds out whether the client is still there when there was nothing to send for a while.
    fn keep_alive(&mut self) -> impl Future<Output = io::Result<()>> + Send;
    /// How it ended; nothing follows.
    fn end(self, end: &End) -> impl Future<Output = io::Result<()>> + Send;
}

/// How a session ended.
#[derive(Debug)]
pub enum End {
    /// The process ended with this code; attaching ends with 0, whatever the process does.
    Code(i32),
    /// It could not go on.
    Failed(Status),
}

impl End {
    /// As the error channel has it from version 4 on; `command` is what ran.
    pub fn status(&self, command: &[String]) -> Value {
        match self {
            End::Code(0) => json!({"metadata": {}, "status": "Success"}),
            End::Code(code) => json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("command terminated with non-zero exit code: {}", exit_words(command, *code)),
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            End::Failed(status) => answer::failure_json(status, &answer::Details::default()),
        }
    }

    /// As the error channel had it before; nothing if all went well.
    pub fn text(&self, command: &[String]) -> Option<String> {
        match self {
            End::Code(0) => None,
            End::Code(code) => Some(exit_words(command, *code)),
            End::Failed(status) => Some(status.message.clone()),
        }
    }
}

fn exit_words(command: &[String], code: i32) -> String {
    format!("error executing command [{}], exit code {code}", command.join(" "))
}

/// A terminal's size, as clients write it.
#[derive(Deserialize)]
struct TerminalSize {
    #[serde(alias = "width")]
    #[serde(rename = "Width")]
    width: u16,
    #[serde(alias = "height")]
    #[serde(rename = "Height")]
    height: u16,
}

/// Sizes out of a stream of JSON objects.
#[derive(Default)]
pub struct Sizes(Vec<u8>);

impl Sizes {
    /// The last whole size among what came; what is no size is thrown away.
    pub fn push(&mut self, bytes: &[u8]) -> Option<Size> {
        self.0.extend_from_slice(bytes);
        let mut values = serde_json::Deserializer::from_slice(&self.0).into_iter::<TerminalSize>();
        let (mut last, mut read, mut broken) = (None, 0, false);
        loop {
            match values.next() {
                Some(Ok(size)) => {
                    (last, read) = (Some(Size { columns: size.width, rows: size.height }), values.byte_offset())
                }
                Some(Err(error)) => {
                    broken = !error.is_eof();
                    break;
                }
                None => break,
            }
        }
        match broken || self.0.len() - read > MAX_RESIZE_BYTES {
            true => self.0.clear(),
            false => drop(self.0.drain(..read)),
        }
        last
    }
}

/// Carries input in and output out until either side ends; how it ended, unless the client is gone.
pub async fn bridge(
    inward: &mut impl Inward,
    outward: &mut impl Outward,
    connection: Connection,
    wishes: Wishes,
    keep_alive: std::time::Duration,
) -> Option<End> {
    let (mut writer, mut reader) = connection.split();
    let send = async {
        while let Some(input) = inward.next().await {
            let sent = match input {
                Input::Stdin(_) | Input::Eof if !wishes.stdin => Ok(()),
                Input::Stdin(mut data) => loop {
                    let part = data.split_to(data.len().min(MAX_STDIN_BYTES));
                    match writer.send(ToPod::Stdin(part)).await {
                        Ok(()) if data.is_empty() => break Ok(()),
                        Ok(()) => {}
                        Err(error) => break Err(error),
                    }
                },
                Input::Resize(size) => writer.send(ToPod::Resize(size)).await,
                Input::Eof => writer.send(ToPod::Eof).await,
            };
            if sent.is_err() {
                // Why is for the other direction to say.
                std::future::pending::<()>().await;
            }
        }
    };
    let receive = async {
        loop {
            let mut next = std::pin::pin!(reader.next());
            let message = loop {
                tokio::select! {
                    message = &mut next => break message,
                    () = tokio::time::sleep(keep_alive) => outward.keep_alive().await.ok()?,
                }
            };
            match message {
                Ok(Some(FromPod::Stdout(data))) if wishes.stdout => outward.stdout(data).await.ok()?,
                Ok(Some(FromPod::Stderr(data))) if wishes.stderr => outward.stderr(data).await.ok()?,
                Ok(Some(FromPod::Stdout(_) | FromPod::Stderr(_))) => {}
                Ok(Some(FromPod::Exit(code))) => return Some(End::Code(code)),
                Ok(Some(FromPod::Failed(status))) => return Some(End::Failed(status)),
                Ok(None) => return Some(End::Failed(Status::internal("the node that runs the pod hung up"))),
                Err(status) => return Some(End::Failed(status)),
            }
        }
    };
    tokio::select! {
        end = receive => end,
        () = send => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_told_in_upstreams_words() {
        let command = ["sh".to_owned(), "-c".into(), "exit 7".into()];
        let status = End::Code(7).status(&command);
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(status["details"]["causes"][0], json!({"reason": "ExitCode", "message": "7"}));
        assert_eq!(
            status["message"],
            "command terminated with non-zero exit code: error executing command [sh -c exit 7], exit code 7"
        );
        assert_eq!(End::Code(0).status(&command)["status"], "Success");
        assert_eq!(End::Code(0).text(&command), None);
        let failed = End::Failed(Status::bad_request("container not found (\"x\")"));
        assert_eq!(failed.status(&command)["message"], "container not found (\"x\")");
        assert_eq!(failed.text(&command).as_deref(), Some("container not found (\"x\")"));
    }

    #[test]
    fn sizes_come_in_any_pieces() {
        let mut sizes = Sizes::default();
        assert_eq!(sizes.push(b"{\"Width\":80,"), None);
        assert_eq!(sizes.push(b"\"Height\":24}\n{\"Width\":90,\"Hei"), Some(Size { columns: 80, rows: 24 }));
        assert_eq!(sizes.push(b"ght\":30}"), Some(Size { columns: 90, rows: 30 }));
        assert_eq!(sizes.push(b"junk"), None);
        assert_eq!(sizes.push(b"{\"width\":1,\"height\":2}"), Some(Size { columns: 1, rows: 2 }));
        assert_eq!(sizes.push(&[b' '; 2 * MAX_RESIZE_BYTES]), None);
        assert!(sizes.0.len() <= MAX_RESIZE_BYTES);
    }
}
