//! `logs`: what the containers of a pod write, or those of a whole job, each line with its pod's name.

use std::io::{self, Write};

use anyhow::bail;
use clap::Args;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::output::{Tone, paint, parse_duration, plain};
use super::session::{Session, ask};
use super::{DONE, failure, job_logs};
use crate::proto::pods_client::PodsClient;
use crate::proto::{GetJobRequest, JobStatus, LogsRequest};

/// A line longer than this is broken.
const MAX_LINE_BYTES: usize = 256 << 10;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  flotilla logs web -f
  flotilla logs web-5d8f7c-x2b9q --tail 20 --timestamps
  flotilla logs web-5d8f7c-x2b9q --previous
  flotilla logs job/web --since 10m")]
pub struct LogsArgs {
    /// A job, whose pods are shown together, or a pod; job/NAME or pod/NAME says which
    pub target: String,
    /// Go on showing what is written
    #[arg(short, long)]
    pub follow: bool,
    /// Only this many last lines of each container
    #[arg(long, value_name = "LINES")]
    pub tail: Option<u32>,
    /// Only lines of the last while
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, value_parser = parse_duration)]
    pub since: Option<u64>,
    /// Begin each line with its time
    #[arg(long)]
    pub timestamps: bool,
    /// Of the container before its last restart
    #[arg(short, long, conflicts_with = "follow")]
    pub previous: bool,
    /// The container, where the pod has several
    #[arg(short, long, default_value = "", hide_default_value = true)]
    pub container: String,
}

pub async fn logs(session: &Session, args: &LogsArgs) -> anyhow::Result<u8> {
    let (kind, name) = args.target.split_once('/').unwrap_or(("", &args.target));
    match kind {
        "pod" | "pods" | "po" => pod(session, args, name).await,
        "job" | "jobs" => job_logs::show(session, args, name, job(session, name).await?).await,
        "" => match job(session, name).await {
            Ok(status) => job_logs::show(session, args, name, status).await,
            Err(status) if status.code() == Code::NotFound => pod(session, args, name).await,
            Err(status) => Err(status.into()),
        },
        _ => bail!("{:?}: write a job's or a pod's name, job/NAME or pod/NAME", args.target),
    }
}

async fn job(session: &Session, name: &str) -> Result<JobStatus, Status> {
    let request = GetJobRequest { namespace: session.namespace.clone(), name: name.into() };
    Ok(session.jobs().get(ask(request)).await?.into_inner())
}

async fn pod(session: &Session, args: &LogsArgs, name: &str) -> anyhow::Result<u8> {
    let request = request(session, args, name, &args.container);
    let mut stream = session.pods().logs(request).await?.into_inner();
    while let Some(chunk) = stream.message().await? {
        let mut out = io::stdout().lock();
        out.write_all(&chunk.data)?;
        out.flush()?;
    }
    Ok(DONE)
}

/// What to ask for one container.
pub fn request(session: &Session, args: &LogsArgs, pod: &str, container: &str) -> LogsRequest {
    LogsRequest {
        namespace: session.namespace.clone(),
        pod: pod.into(),
        container: container.into(),
        follow: args.follow,
        previous: args.previous,
        tail_lines: args.tail.map(i64::from),
        since_seconds: args.since.map(|seconds| seconds.try_into().unwrap_or(i64::MAX)),
        timestamps: args.timestamps,
        limit_bytes: None,
    }
}

/// Where a line of a job comes from, as it stands before the line.
#[derive(Clone, Debug)]
pub struct Source {
    prefix: String,
}

impl Source {
    pub fn new(name: &str, index: usize, colour: bool) -> Self {
        let tone = Tone::Source((index % usize::from(u8::MAX)) as u8);
        Self { prefix: paint(colour, tone, &format!("{} | ", plain(name))) }
    }
}

/// Copies one container's output, whole lines behind the name of their source.
///
/// # Errors
/// The daemon's refusal or the end of the connection; a closed standard output as `Cancelled`.
pub async fn copy(mut client: PodsClient<Channel>, request: LogsRequest, source: Source) -> Result<(), Status> {
    let mut stream = client.logs(request).await?.into_inner();
    let mut lines = Lines::new(source);
    let closed = |error: io::Error| Status::cancelled(format!("cannot write: {error}"));
    while let Some(chunk) = stream.message().await? {
        io::stdout().lock().write_all(&lines.push(&chunk.data)).map_err(closed)?;
    }
    io::stdout().lock().write_all(&lines.rest()).map_err(closed)
}

/// Cuts chunks into lines.
struct Lines {
    source: Source,
    partial: Vec<u8>,
}

impl Lines {
    fn new(source: Source) -> Self {
        Self { source, partial: Vec::new() }
    }

    /// The lines that `data` completes.
    fn push(&mut self, data: &[u8]) -> Vec<u8> {
        let mut complete = Vec::new();
        for piece in data.split_inclusive(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.partial.len() >= MAX_LINE_BYTES {
                complete.extend(self.rest());
            }
        }
        complete
    }

    /// What is left, as a line.
    fn rest(&mut self) -> Vec<u8> {
        if self.partial.is_empty() {
            return Vec::new();
        }
        let mut line = self.source.prefix.clone().into_bytes();
        line.append(&mut self.partial);
        if line.last() != Some(&b'\n') {
            line.push(b'\n');
        }
        line
    }
}

/// Tells why a container's output cannot be shown; returns the exit code.
pub fn report(source: &str, status: Status) -> u8 {
    failure::report(&anyhow::Error::new(status).context(source.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_and_named() {
        let mut lines = Lines::new(Source::new("web-1", 0, false));
        assert_eq!(lines.push(b"one\ntw"), b"web-1 | one\n");
        assert_eq!(lines.push(b"o\nthree\n"), b"web-1 | two\nweb-1 | three\n");
        assert_eq!(lines.push(b"last"), b"");
        assert_eq!(lines.rest(), b"web-1 | last\n");
        assert_eq!(lines.rest(), b"");
    }

    #[test]
    fn a_line_without_end_is_broken() {
        let mut lines = Lines::new(Source::new("a", 0, false));
        assert_eq!(lines.push(&vec![b'x'; MAX_LINE_BYTES]).len(), MAX_LINE_BYTES + "a | \n".len());
        assert!(lines.partial.is_empty());
    }

    #[test]
    fn names_are_coloured_on_a_terminal_only() {
        assert!(Source::new("a", 7, true).prefix.starts_with("\x1b["));
        assert_eq!(Source::new("a", 7, false).prefix, "a | ");
    }
}
