//! `stop`: a job ends, its containers with it.

use std::time::Duration;

use anyhow::bail;
use clap::Args;
use tonic::Code;

use super::follow::{JobWatch, Step};
use super::output::{age, duration_seconds};
use super::session::{Session, ask};
use super::{DONE, INTERRUPTED};
use crate::proto::StopJobRequest;

/// How long containers may take to end before we stop watching them, unless the user says.
const TIMEOUT_SECONDS: u32 = 5 * 60;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  flotilla stop web
  flotilla stop web api --detach")]
pub struct StopArgs {
    /// The jobs' names
    #[arg(required = true)]
    jobs: Vec<String>,
    /// Do not wait until the containers have ended
    #[arg(long)]
    detach: bool,
    /// Wait no longer than this [default: 5m]
    #[arg(long, value_name = "DURATION", value_parser = duration_seconds)]
    timeout: Option<u32>,
}

pub async fn stop(session: &Session, args: &StopArgs) -> anyhow::Result<u8> {
    for job in &args.jobs {
        let seconds = args.timeout.unwrap_or(TIMEOUT_SECONDS);
        let code = tokio::select! {
            result = stop_one(session, job, args.detach) => result?,
            () = tokio::time::sleep(Duration::from_secs(seconds.into())) => {
                bail!("job {job} is not gone after {}; it goes on stopping", age(seconds.into()))
            }
            _ = tokio::signal::ctrl_c() => {
                eprintln!("\n{job} goes on stopping: see 'flotilla status {job}'");
                INTERRUPTED
            }
        };
        if code != DONE {
            return Ok(code);
        }
    }
    Ok(DONE)
}

async fn stop_one(session: &Session, job: &str, detach: bool) -> anyhow::Result<u8> {
    // The watch stands before the job goes, so that its end is not missed.
    let watch = if detach { None } else { Some(JobWatch::open(session, job).await?) };
    let request = StopJobRequest { namespace: session.namespace.clone(), name: job.into() };
    session.jobs().stop(ask(request)).await?;
    let Some(mut watch) = watch else {
        session.say(format!("job {job} is stopping"))?;
        return Ok(DONE);
    };
    let mut line = session.progress();
    loop {
        match watch.next().await {
            Ok(Step::Status(status)) => line.show(&format!("{job}: stopping, {} pods left", status.pods.len()))?,
            Ok(Step::Away) => line.show(&format!("{job}: waiting for the daemon to answer again"))?,
            Ok(Step::Deleted) => break,
            Err(status) if status.code() == Code::NotFound => break,
            Err(status) => return Err(status.into()),
        }
    }
    line.finish(&format!("job {job} stopped"))?;
    Ok(DONE)
}
