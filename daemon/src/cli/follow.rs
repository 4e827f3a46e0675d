//! A job's status as it changes, through the restarts of a daemon and the elections of a leader.
//!
//! Invariant: an interruption that lasts longer than [`PATIENCE_MS`] is an error; a shorter one is only told. After
//! each, the job is read anew, so that nothing that happened meanwhile is missed for good.

use std::time::{Duration, Instant};

use tonic::{Code, Status, Streaming};

use super::failure::is_passing;
use super::session::{Session, ask};
use crate::proto::{GetJobRequest, JobEvent, JobStatus, WatchJobsRequest};

/// How long the daemon may be away.
const PATIENCE_MS: u64 = 60_000;
const FIRST_RETRY_MS: u64 = 100;
const MAX_RETRY_MS: u64 = 2_000;

/// What a watch says next.
#[derive(Debug)]
pub enum Step {
    Status(Box<JobStatus>),
    Deleted,
    /// The daemon is away; it is asked again.
    Away,
}

/// The watch of one job.
pub struct JobWatch<'a> {
    session: &'a Session,
    name: String,
    stream: Option<Streaming<JobEvent>>,
    /// Whether the job was ever seen.
    seen: bool,
    away: Option<Away>,
}

struct Away {
    since: Instant,
    retry: Duration,
}

impl<'a> JobWatch<'a> {
    pub fn new(session: &'a Session, name: &str) -> Self {
        Self { session, name: name.into(), stream: None, seen: false, away: None }
    }

    /// What the job is like now, and then each time that it changes.
    ///
    /// # Errors
    /// If the daemon refuses, is away for too long, or the job never existed.
    pub async fn next(&mut self) -> Result<Step, Status> {
        match self.status().await {
            Ok(Some(status)) => {
                (self.seen, self.away) = (true, None);
                Ok(Step::Status(Box::new(status)))
            }
            Ok(None) => Ok(Step::Deleted),
            Err(status) if status.code() == Code::NotFound && self.seen => Ok(Step::Deleted),
            Err(status) if is_passing(&status) => self.interrupted(status),
            Err(status) => Err(status),
        }
    }

    /// `None`: the job is gone.
    async fn status(&mut self) -> Result<Option<JobStatus>, Status> {
        let Some(stream) = &mut self.stream else { return self.open().await.map(Some) };
        let event = stream.message().await?.ok_or_else(|| Status::unavailable("the daemon ended the watch"))?;
        Ok(event.status.filter(|_| event.r#type != "deleted"))
    }

    async fn open(&mut self) -> Result<JobStatus, Status> {
        if let Some(away) = &self.away {
            tokio::time::sleep(away.retry).await;
        }
        let (namespace, name) = (self.session.namespace.clone(), self.name.clone());
        let mut client = self.session.jobs();
        let request = WatchJobsRequest { namespace: namespace.clone(), name: name.clone() };
        let stream = client.watch(request).await?.into_inner();
        let status = client.get(ask(GetJobRequest { namespace, name })).await?.into_inner();
        self.stream = Some(stream);
        Ok(status)
    }

    fn interrupted(&mut self, status: Status) -> Result<Step, Status> {
        self.stream = None;
        let away = self
            .away
            .get_or_insert_with(|| Away { since: Instant::now(), retry: Duration::from_millis(FIRST_RETRY_MS / 2) });
        if away.since.elapsed() > Duration::from_millis(PATIENCE_MS) {
            return Err(status);
        }
        away.retry = (away.retry * 2).min(Duration::from_millis(MAX_RETRY_MS));
        Ok(Step::Away)
    }
}
