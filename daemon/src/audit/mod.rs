//! The audit log: who asked for what and how it ended, a JSON line at each stage of a request.
//!
//! Defined by Kubernetes' auditing reference. It is off unless a file is configured.
//!
//! Invariant: a request waits for the log for at most [`MAX_WAIT`]; lines that the log does not take are counted and told.
//! Invariant: what waits to be written is at most [`QUEUED_BYTES`], and a line.
//! Invariant: the files together hold at most `max_bytes` times one more than `max_files`, and a line.

mod event;
mod file;
mod policy;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use flotilla_api::{Kind, names};
use flotilla_control::rbac::Action;
use http::{HeaderMap, Uri, header};
use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::gate::User;
use event::{Head, Record};
use file::File;
use policy::{Level, Policy, Recording, Stage};

pub use event::Side;

/// Lines that wait to be written.
const QUEUED_LINES: usize = 4_096;
/// What they may take together.
const QUEUED_BYTES: u32 = 16 << 20;
/// A body that is larger is left out.
pub const MAX_BODY_BYTES: usize = 128 << 10;
/// The longest that a request waits for room in the queue.
const MAX_WAIT: Duration = Duration::from_secs(1);
/// An id that a client gives is taken if it is not longer.
const MAX_ID_BYTES: usize = 64;
/// Names a request in the log, in the answer and wherever else it is told of.
pub const ID_HEADER: &str = "audit-id";

/// Where and what to record.
#[derive(Clone, Debug)]
pub struct Options {
    pub path: PathBuf,
    /// A file of upstream's form; `None`: who asked for what and how it ended, of everything.
    pub policy: Option<PathBuf>,
    pub max_bytes: u64,
    pub max_files: usize,
}

/// Where requests are recorded, if anywhere. Cheap to clone.
#[derive(Clone, Default)]
pub struct Audit(Option<Arc<Log>>);

struct Log {
    policy: Policy,
    lines: mpsc::Sender<Line>,
    room_bytes: Arc<Semaphore>,
    lost: AtomicU64,
}

/// A line, and the room that it takes until it is written.
struct Line {
    text: Vec<u8>,
    _room: OwnedSemaphorePermit,
}

/// Writes what requests record.
pub struct Writer {
    file: File,
    lines: mpsc::Receiver<Line>,
}

/// Opens the log.
///
/// # Errors
/// If the file cannot be written, or the policy cannot be read.
pub fn open(options: &Options) -> anyhow::Result<(Audit, Writer)> {
    let policy = match &options.policy {
        None => Policy::everything(),
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("audit_policy: {}", path.display()))?;
            Policy::parse(&text).map_err(|why| anyhow::anyhow!("audit_policy: {}: {why}", path.display()))?
        }
    };
    let file = File::open(&options.path, options.max_bytes, options.max_files)
        .with_context(|| format!("audit_log: {}", options.path.display()))?;
    let (sender, lines) = mpsc::channel(QUEUED_LINES);
    let room_bytes = Arc::new(Semaphore::new(QUEUED_BYTES as usize));
    let log = Log { policy, lines: sender, room_bytes, lost: AtomicU64::new(0) };
    Ok((Audit(Some(Arc::new(log))), Writer { file, lines }))
}

impl Writer {
    /// Writes until `stop`, and then what is left.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut batch = Vec::with_capacity(QUEUED_LINES);
        loop {
            tokio::select! {
                biased;
                _ = self.lines.recv_many(&mut batch, QUEUED_LINES) => {}
                () = stop.cancelled() => {
                    self.lines.close();
                    while let Ok(line) = self.lines.try_recv() {
                        batch.push(line);
                    }
                    _ = self.write(&mut batch).await;
                    return;
                }
            }
            if self.write(&mut batch).await.is_none() {
                return;
            }
        }
    }

    /// `None` if the log cannot go on.
    async fn write(&mut self, batch: &mut Vec<Line>) -> Option<()> {
        let (mut file, lines) = (self.file.take()?, std::mem::take(batch));
        let written = tokio::task::spawn_blocking(move || {
            let result = file.write(lines.iter().map(|line| line.text.as_slice()));
            (file, lines, result)
        });
        let (file, mut lines, result) = written.await.ok()?;
        if let Err(error) = result {
            warn!(error = &error as &dyn std::error::Error, lines = lines.len(), "the audit log cannot be written");
        }
        lines.clear();
        *batch = lines;
        self.file = file;
        Some(())
    }
}

/// What came with a request, beside its body.
pub struct Request<'a> {
    /// See [`id`].
    pub id: &'a str,
    pub headers: &'a HeaderMap,
    pub uri: &'a Uri,
    pub address: Option<IpAddr>,
    pub sender: &'a User,
    /// Whom it is judged as.
    pub user: &'a User,
    pub action: &'a Action<'a>,
    /// The API version in the path.
    pub version: &'a str,
    /// The kind of object that it is about, if it is about any.
    pub kind: Option<&'a Kind>,
}

/// A request that is recorded until it has ended; dropped, it has.
pub struct Entry {
    log: Arc<Log>,
    record: Record,
    level: Level,
    omitted: Vec<Stage>,
    code: Option<u16>,
}

impl Audit {
    /// Records that a request came; `None` if it is not recorded.
    pub async fn receive(&self, request: &Request<'_>) -> Option<Entry> {
        let log = self.0.as_ref()?;
        let mut recording = log.policy.recording(request.user, request.action)?;
        recording.level = recording.level.min(event::most(request.action, request.kind));
        let head = Head {
            id: request.id,
            uri: request.uri,
            user_agent: text(request.headers, header::USER_AGENT.as_str()),
            address: request.address,
            sender: request.sender,
            user: request.user,
            action: request.action,
            version: request.version,
        };
        let record = Record::new(&head, &recording, Timestamp::now());
        let Recording { level, omitted, .. } = recording;
        let entry = Entry { log: log.clone(), record, level, omitted, code: None };
        entry.tell(Stage::RequestReceived).await;
        Some(entry)
    }
}

impl Entry {
    /// Whether a body is to be recorded.
    pub fn wants(&self, side: Side) -> bool {
        self.level >= side.level()
    }

    /// A body that is [wanted](Self::wants); `None` if it is too large, or cannot be shown.
    pub fn add(&mut self, side: Side, object: Option<Value>) {
        if self.wants(side) {
            self.record.add(side, object);
        }
    }

    /// The answer has begun and goes on.
    pub async fn started(&mut self, code: u16) {
        self.code = Some(code);
        self.tell(Stage::ResponseStarted).await;
    }

    /// The answer is there.
    pub async fn complete(mut self, code: u16) {
        self.code = Some(code);
        self.tell(Stage::ResponseComplete).await;
        self.omitted.push(Stage::ResponseComplete);
    }

    async fn tell(&self, stage: Stage) {
        if self.omitted.contains(&stage) {
            return;
        }
        let text = self.record.line(stage, Timestamp::now(), self.code);
        if !matches!(timeout(MAX_WAIT, self.log.send(text)).await, Ok(Some(()))) {
            self.log.lose();
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if self.omitted.contains(&Stage::ResponseComplete) {
            return;
        }
        let text = self.record.line(Stage::ResponseComplete, Timestamp::now(), self.code);
        if self.log.try_send(text).is_none() {
            self.log.lose();
        }
    }
}

impl Log {
    /// Waits until there is room; `None` if nobody writes any more.
    async fn send(&self, text: Vec<u8>) -> Option<()> {
        let room = self.room_bytes.clone().acquire_many_owned(room_of(&text)).await.ok()?;
        self.lines.send(Line { text, _room: room }).await.ok()
    }

    /// `None` if there is no room now.
    fn try_send(&self, text: Vec<u8>) -> Option<()> {
        let room = self.room_bytes.clone().try_acquire_many_owned(room_of(&text)).ok()?;
        self.lines.try_send(Line { text, _room: room }).ok()
    }

    /// Told once for each power of two, so that a full disk does not fill the other log.
    fn lose(&self) {
        let lost = self.lost.fetch_add(1, Ordering::Relaxed) + 1;
        if lost.is_power_of_two() {
            warn!(lost, "requests are missing from the audit log");
        }
    }
}

/// What a line takes; one that is larger than all the room there is waits for all of it.
fn room_of(text: &[u8]) -> u32 {
    u32::try_from(text.len()).unwrap_or(u32::MAX).min(QUEUED_BYTES)
}

/// What names a request: the client's own id if it can be one, or else a new one.
pub fn id(headers: &HeaderMap) -> String {
    let given = text(headers, ID_HEADER);
    let fits = !given.is_empty() && given.len() <= MAX_ID_BYTES && given.bytes().all(|byte| byte.is_ascii_graphic());
    if fits { given.to_owned() } else { names::uid(&mut rand::rng()) }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn lines(path: &std::path::Path) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[tokio::test]
    async fn every_stage_is_a_line_and_nothing_secret_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let options = Options { path: path.clone(), policy: None, max_bytes: 1 << 20, max_files: 2 };
        let (audit, writer) = open(&options).unwrap();
        let stop = CancellationToken::new();
        let writing = tokio::spawn(writer.run(stop.clone()));
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, HeaderValue::from_static("Bearer hunter2"));
        headers.insert(ID_HEADER, HeaderValue::from_static("mine"));
        let uri: Uri = "/api/v1/pods?watch=1".parse().unwrap();
        let user = User::new("ann", vec![]);
        let action = Action::Path { verb: "get", path: "/x" };
        let request = Request {
            id: &id(&headers),
            headers: &headers,
            uri: &uri,
            address: None,
            sender: &user,
            user: &user,
            action: &action,
            version: "",
            kind: None,
        };
        audit.receive(&request).await.unwrap().complete(200).await;
        let mut long = audit.receive(&request).await.unwrap();
        long.started(200).await;
        drop(long);
        stop.cancel();
        writing.await.unwrap();
        let lines = lines(&path);
        let stages: Vec<&str> = lines.iter().filter_map(|line| line["stage"].as_str()).collect();
        let whole = ["RequestReceived", "ResponseComplete"];
        assert_eq!(stages, [whole[0], whole[1], whole[0], "ResponseStarted", whole[1]]);
        assert!(lines.iter().all(|line| line["auditID"] == "mine"));
        assert!(!std::fs::read_to_string(&path).unwrap().contains("hunter2"));
    }

    #[tokio::test]
    async fn nothing_is_recorded_unless_it_is_asked_for() {
        let (headers, uri) = (HeaderMap::new(), Uri::from_static("/"));
        let (user, action) = (User::root(), Action::Path { verb: "get", path: "/" });
        let request = Request {
            id: &id(&headers),
            headers: &headers,
            uri: &uri,
            address: None,
            sender: &user,
            user: &user,
            action: &action,
            version: "",
            kind: None,
        };
        assert!(Audit::default().receive(&request).await.is_none());
    }
}
