//! `stop`: a job ends, its containers with it.

use std::time::Duration;

use anyhow::bail;
use clap::Args;
use tonic::{Code, Status};

use super::failure::is_passing;
use super::output::{age, duration_seconds};
use super::session::{Session, ask};
use super::{DONE, INTERRUPTED};
use crate::proto::{GetJobRequest, ListObjectsRequest, StopJobRequest};

/// How long containers may take to end before we stop watching them, unless the user says.
const TIMEOUT_SECONDS: u32 = 5 * 60;

/// How often we look whether they have.
const LOOK_EVERY_MS: u64 = 250;

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
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, value_parser = duration_seconds)]
    timeout: Option<u32>,
}

pub async fn stop(session: &Session, args: &StopArgs) -> anyhow::Result<u8> {
    for job in &args.jobs {
        let request = StopJobRequest { namespace: session.namespace.clone(), name: job.into() };
        session.jobs().stop(ask(request)).await?;
        if args.detach {
            session.say(format!("job {job} is stopping"))?;
            continue;
        }
        let code = wait(session, job, args.timeout.unwrap_or(TIMEOUT_SECONDS)).await?;
        if code != DONE {
            return Ok(code);
        }
    }
    Ok(DONE)
}

async fn wait(session: &Session, job: &str, timeout_seconds: u32) -> anyhow::Result<u8> {
    tokio::select! {
        result = until_gone(session, job) => result.map(|()| DONE),
        () = tokio::time::sleep(Duration::from_secs(timeout_seconds.into())) => {
            bail!("job {job} is not gone after {}; it goes on stopping", age(timeout_seconds.into()))
        }
        _ = tokio::signal::ctrl_c() => {
            eprintln!("\n{job} goes on stopping: see 'flotilla status {job}'");
            Ok(INTERRUPTED)
        }
    }
}

async fn until_gone(session: &Session, job: &str) -> anyhow::Result<()> {
    let mut line = session.progress();
    let mut look = tokio::time::interval(Duration::from_millis(LOOK_EVERY_MS));
    loop {
        look.tick().await;
        match left(session, job).await {
            Ok(None) => break,
            Ok(Some(pods)) => line.show(&format!("{job}: stopping, {pods} pods left"))?,
            Err(status) if is_passing(&status) => {
                line.show(&format!("{job}: waiting for the daemon to answer again"))?;
            }
            Err(status) => return Err(status.into()),
        }
    }
    line.finish(&format!("job {job} stopped"))?;
    Ok(())
}

/// How many pods of the job there still are; `None` if they and the job are gone.
async fn left(session: &Session, job: &str) -> Result<Option<usize>, Status> {
    let request = ListObjectsRequest {
        kind: "pods".into(),
        namespace: session.namespace.clone(),
        label_selector: format!("{}={job}", flotilla_api::job::MARK),
        ..ListObjectsRequest::default()
    };
    let pods = session.objects().list(ask(request)).await?.into_inner().items.len();
    let request = GetJobRequest { namespace: session.namespace.clone(), name: job.into() };
    match session.jobs().get(ask(request)).await {
        Ok(_) => Ok(Some(pods)),
        Err(status) if status.code() == Code::NotFound => Ok(Some(pods).filter(|pods| *pods > 0)),
        Err(status) => Err(status),
    }
}
