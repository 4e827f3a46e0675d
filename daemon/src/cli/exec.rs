//! `exec`: a command in a container, with our standard streams and, if wanted, our terminal.

use std::io::{self, Write};

use anyhow::{bail, ensure};
use clap::Args;
use futures::{Stream, StreamExt, stream};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::session::Session;
use super::terminal::{self, RawMode, Signals, Told};
use crate::proto::exec_input::Input;
use crate::proto::exec_output::Output;
use crate::proto::{ExecInput, ExecOutput, ExecStart};

/// How much of standard input travels in one message.
const CHUNK_BYTES: usize = 32 << 10;

/// Terminal sizes on their way to the daemon.
const QUEUE_MESSAGES: usize = 16;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  flotilla exec web-5d8f7c-x2b9q -- ls /etc
  flotilla exec web-5d8f7c-x2b9q -it -- sh
  flotilla exec web-5d8f7c-x2b9q -c sidecar -i -- tee /data/file < file

The exit code is that of the command.")]
pub struct ExecArgs {
    /// The pod's name
    pod: String,
    /// The container, where the pod has several
    #[arg(short, long, default_value = "", hide_default_value = true)]
    container: String,
    /// Give it our standard input
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub async fn exec(session: &Session, args: &ExecArgs) -> anyhow::Result<u8> {
    if args.tty && args.stdin {
        ensure!(
            terminal::is_interactive(),
            "-t needs a terminal: leave it out where input or output is a file or pipe"
        );
    }
    let mut signals = Signals::listen()?;
    let (to_daemon, sizes) = mpsc::channel(QUEUE_MESSAGES);
    let outputs = session.pods().exec(requests(start_of(session, args), sizes)).await?.into_inner();
    let raw = if args.tty && args.stdin { Some(RawMode::enter()?) } else { None };
    let result = tokio::select! {
        result = receive(outputs) => result,
        code = steer(&mut signals, &to_daemon, args.tty) => Ok(code),
    };
    drop(raw);
    result
}

fn start_of(session: &Session, args: &ExecArgs) -> ExecStart {
    ExecStart {
        namespace: session.namespace.clone(),
        pod: args.pod.clone(),
        container: args.container.clone(),
        command: args.command.clone(),
        tty: args.tty,
        stdin: args.stdin,
        size: if args.tty { terminal::size() } else { None },
    }
}

fn message(input: Input) -> ExecInput {
    ExecInput { input: Some(input) }
}

/// What goes to the daemon: the start first, then sizes and, if the command gets it, standard input.
fn requests(start: ExecStart, sizes: mpsc::Receiver<ExecInput>) -> impl Stream<Item = ExecInput> + Send {
    let input = if start.stdin { stdin_chunks().left_stream() } else { stream::empty().right_stream() };
    let first = stream::iter([message(Input::Start(start))]);
    first.chain(stream::select(ReceiverStream::new(sizes), input))
}

/// Standard input in pieces, and a last message that it has ended.
fn stdin_chunks() -> impl Stream<Item = ExecInput> + Send {
    stream::unfold(Some(tokio::io::stdin()), |stdin| async {
        let mut stdin = stdin?;
        let mut chunk = vec![0; CHUNK_BYTES];
        match stdin.read(&mut chunk).await {
            Ok(0) | Err(_) => Some((message(Input::Eof(true)), None)),
            Ok(count) => {
                chunk.truncate(count);
                Some((message(Input::Stdin(chunk)), Some(stdin)))
            }
        }
    })
}

/// Writes what the command writes until it ends.
async fn receive(mut outputs: Streaming<ExecOutput>) -> anyhow::Result<u8> {
    while let Some(output) = outputs.message().await? {
        match output.output {
            Some(Output::Stdout(data)) => write(io::stdout().lock(), &data)?,
            Some(Output::Stderr(data)) => write(io::stderr().lock(), &data)?,
            Some(Output::ExitCode(code)) => return Ok(u8::try_from(code).unwrap_or(u8::MAX)),
            None => {}
        }
    }
    bail!("the daemon hung up before the command ended")
}

fn write(mut to: impl Write, data: &[u8]) -> io::Result<()> {
    to.write_all(data)?;
    to.flush()
}

/// Tells the daemon the terminal's size as it changes; returns when a signal ends this program.
async fn steer(signals: &mut Signals, to_daemon: &mpsc::Sender<ExecInput>, tty: bool) -> u8 {
    loop {
        match signals.next().await {
            Told::End(code) => return code,
            Told::Resized => {
                if let (true, Some(size)) = (tty, terminal::size()) {
                    // A queue that is full, or a command that has ended, can do without this size.
                    let _ = to_daemon.try_send(message(Input::Resize(size)));
                }
            }
        }
    }
}
