//! A job's status as it changes, through the restarts of a daemon and the elections of a leader.
//!
//! Invariant: an interruption that lasts longer than [`PATIENCE_MS`] is an error; a shorter one is only told.

use std::time::{Duration, Instant};

use tonic::{Status, Streaming};

use super::failure::is_passing;
use super::session::Session;
use crate::proto::{JobEvent, JobStatus, WatchJobsRequest};

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
    away: Option<Away>,
}

struct Away {
    since: Instant,
    retry: Duration,
}

impl<'a> JobWatch<'a> {
    /// # Errors
    /// If the daemon refuses.
    pub async fn open(session: &'a Session, name: &str) -> Result<Self, Status> {
        let mut watch = Self { session, name: name.into(), stream: None, away: None };
        watch.stream = Some(watch.request().await?);
        Ok(watch)
    }

    async fn request(&self) -> Result<Streaming<JobEvent>, Status> {
        let request = WatchJobsRequest { namespace: self.session.namespace.clone(), name: self.name.clone() };
        Ok(self.session.jobs().watch(request).await?.into_inner())
    }

    /// # Errors
    /// If the daemon refuses, or is away for too long.
    pub async fn next(&mut self) -> Result<Step, Status> {
        match self.event().await {
            Ok(event) if event.r#type == "deleted" => Ok(Step::Deleted),
            Ok(event) => Ok(Step::Status(Box::new(event.status.unwrap_or_default()))),
            Err(status) => self.interrupted(status),
        }
    }

    async fn event(&mut self) -> Result<JobEvent, Status> {
        if self.stream.is_none() {
            if let Some(away) = &self.away {
                tokio::time::sleep(away.retry).await;
            }
            self.stream = Some(self.request().await?);
        }
        let Some(stream) = &mut self.stream else {
            return Err(Status::unavailable("the watch has ended"));
        };
        let event = stream.message().await?.ok_or_else(|| Status::unavailable("the daemon ended the watch"))?;
        self.away = None;
        Ok(event)
    }

    fn interrupted(&mut self, status: Status) -> Result<Step, Status> {
        self.stream = None;
        if !is_passing(&status) {
            return Err(status);
        }
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
