//! Waiting until a job does what it was submitted for, telling how far it is and what holds it up.

use std::time::Duration;

use anyhow::bail;

use super::follow::{JobWatch, Step};
use super::jobs::{is_batch, tally};
use super::output::age;
use super::session::Session;
use super::{DONE, INTERRUPTED};
use crate::proto::JobStatus;

/// How long a job may take to run, and to complete, unless the user says.
const RUN_TIMEOUT_SECONDS: u32 = 15 * 60;
const COMPLETE_TIMEOUT_SECONDS: u32 = 24 * 60 * 60;

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// All replicas run, or as many tasks as may at a time.
    Running,
    /// A batch job has ended.
    Complete,
}

/// How a job stands to its goal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    NotYet,
    Reached,
    Failed,
}

/// Waits for `goal`; statuses older than `revision` say nothing about what was just asked for.
///
/// # Errors
/// If the job fails, is stopped meanwhile, or takes longer than `timeout_seconds`.
pub async fn wait(
    session: &Session,
    name: &str,
    goal: Goal,
    revision: u64,
    timeout_seconds: Option<u32>,
) -> anyhow::Result<u8> {
    let seconds = timeout_seconds.unwrap_or(match goal {
        Goal::Running => RUN_TIMEOUT_SECONDS,
        Goal::Complete => COMPLETE_TIMEOUT_SECONDS,
    });
    let mut last = String::new();
    tokio::select! {
        result = follow(session, name, goal, revision, &mut last) => result,
        () = tokio::time::sleep(Duration::from_secs(seconds.into())) => {
            bail!("{last} after {}; it goes on: see 'flotilla status {name}'", age(seconds.into()))
        }
        _ = tokio::signal::ctrl_c() => {
            eprintln!("\n{name} goes on without us: see 'flotilla status {name}', end it with 'flotilla stop {name}'");
            Ok(INTERRUPTED)
        }
    }
}

async fn follow(session: &Session, name: &str, goal: Goal, revision: u64, last: &mut String) -> anyhow::Result<u8> {
    let mut line = session.progress();
    *last = format!("{name}: not running");
    let mut watch = JobWatch::new(session, name);
    loop {
        let status = match watch.next().await? {
            Step::Status(status) if status.revision >= revision => status,
            Step::Status(_) => continue,
            Step::Deleted => bail!("job {name} was stopped meanwhile"),
            Step::Away => {
                line.show(&format!("{name}: waiting for the daemon to answer again"))?;
                continue;
            }
        };
        *last = words(name, &status);
        match verdict(&status, goal) {
            Verdict::NotYet => line.show(last)?,
            Verdict::Reached => {
                line.finish(last)?;
                return Ok(DONE);
            }
            Verdict::Failed => {
                drop(line);
                bail!("job {name} failed: {}", if status.message.is_empty() { &*last } else { &status.message });
            }
        }
    }
}

fn verdict(status: &JobStatus, goal: Goal) -> Verdict {
    match status.phase.as_str() {
        "Failed" => Verdict::Failed,
        "Complete" => Verdict::Reached,
        _ if goal == Goal::Complete => Verdict::NotYet,
        "Running" if !is_batch(status) => Verdict::Reached,
        _ if is_batch(status) && status.ready + status.succeeded >= at_a_time(status) => Verdict::Reached,
        _ => Verdict::NotYet,
    }
}

/// How many tasks of a batch job run at the same time.
fn at_a_time(status: &JobStatus) -> i32 {
    let parallelism = status.job.as_ref().and_then(|job| job.parallelism).unwrap_or(1);
    parallelism.min(status.desired).max(1)
}

/// `web: 2/6 running (pulling image on node-2)`.
fn words(name: &str, status: &JobStatus) -> String {
    let mut words = format!("{name}: {}", tally(status));
    if is_batch(status) {
        words.push_str(" succeeded");
        for (count, what) in [(status.ready, "running"), (status.failed, "failed")] {
            if count > 0 {
                words.push_str(&format!(", {count} {what}"));
            }
        }
    } else {
        words.push_str(" running");
    }
    if !status.message.is_empty() {
        words.push_str(&format!(" ({})", status.message));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::Job;

    fn status(type_: &str, phase: &str, ready: i32, desired: i32) -> JobStatus {
        let job = Job { name: "web".into(), r#type: type_.into(), parallelism: Some(10), ..Job::default() };
        JobStatus { job: Some(job), phase: phase.into(), ready, desired, ..JobStatus::default() }
    }

    #[test]
    fn a_service_is_waited_for_until_it_runs() {
        for (phase, verdict_of_phase) in [
            ("Pending", Verdict::NotYet),
            ("Updating", Verdict::NotYet),
            ("Degraded", Verdict::NotYet),
            ("Running", Verdict::Reached),
            ("Failed", Verdict::Failed),
        ] {
            assert_eq!(verdict(&status("service", phase, 3, 3), Goal::Running), verdict_of_phase, "{phase}");
        }
    }

    #[test]
    fn a_batch_job_runs_when_as_many_tasks_run_as_may() {
        assert_eq!(verdict(&status("batch", "Running", 9, 100), Goal::Running), Verdict::NotYet);
        assert_eq!(verdict(&status("batch", "Running", 10, 100), Goal::Running), Verdict::Reached);
        assert_eq!(verdict(&status("batch", "Running", 3, 3), Goal::Running), Verdict::Reached);
        assert_eq!(verdict(&status("batch", "Running", 10, 100), Goal::Complete), Verdict::NotYet);
        assert_eq!(verdict(&status("batch", "Complete", 0, 100), Goal::Complete), Verdict::Reached);
        assert_eq!(verdict(&status("batch", "Complete", 0, 100), Goal::Running), Verdict::Reached);
    }

    #[test]
    fn progress_says_what_holds_it_up() {
        let mut service = status("", "Updating", 2, 6);
        service.message = "pulling image on node-2".into();
        assert_eq!(words("web", &service), "web: 2/6 running (pulling image on node-2)");
        let batch = JobStatus { succeeded: 40, failed: 2, ..status("batch", "Running", 10, 100) };
        assert_eq!(words("load", &batch), "load: 40/100 succeeded, 10 running, 2 failed");
    }
}
