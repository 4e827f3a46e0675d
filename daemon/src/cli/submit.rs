//! `submit`, `run`, `scale`: jobs begin and change.

use anyhow::{Context, bail};
use clap::Args;
use flotilla_api::job;

use super::output::duration_seconds;
use super::session::{Session, ask};
use super::wait::{Goal, wait};
use super::{DONE, manifest};
use crate::convert;
use crate::proto::{Container, EnvVar, Job, Port, ScaleJobRequest, SubmitJobRequest};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  flotilla submit docs/examples/web.yaml
  flotilla submit - --detach < web.yaml
  flotilla submit docs/examples/batch.yaml --wait-complete
  flotilla submit docs/examples/web.yaml --dry-run")]
pub struct SubmitArgs {
    /// The file of a job, or of several; - reads standard input
    file: String,
    #[command(flatten)]
    how: How,
}

#[derive(Debug, Args)]
struct How {
    /// Do not wait until the job runs
    #[arg(long, conflicts_with_all = ["wait_complete", "timeout"])]
    detach: bool,
    /// Wait until a batch job has ended
    #[arg(long)]
    wait_complete: bool,
    /// Wait no longer than this [default: 15m to run, 24h to complete]
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, value_parser = duration_seconds)]
    timeout: Option<u32>,
    /// Check everything, change nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  flotilla run web --image nginx --replicas 3 --port 80
  flotilla run db --image postgres --env POSTGRES_PASSWORD=secret --cpu 500m --memory 256Mi
  flotilla run load --image flotilla.dev/hello:latest --batch --replicas 100 --parallelism 10 -- sleep 1")]
pub struct RunArgs {
    /// The job's name
    name: String,
    /// The image of its container
    #[arg(long)]
    image: String,
    /// How many replicas run; with --batch, how many tasks must succeed
    #[arg(long, visible_alias = "count", default_value_t = 1, value_name = "NUMBER")]
    replicas: i32,
    /// A port that the container listens on; may be given again
    #[arg(long = "port", value_name = "[NODE-PORT:]PORT[/PROTOCOL]", value_parser = parse_port)]
    ports: Vec<Port>,
    /// A variable of its environment; may be given again
    #[arg(short, long = "env", value_name = "NAME=VALUE", value_parser = parse_variable)]
    env: Vec<EnvVar>,
    /// Cores it may use: 500m, 2
    #[arg(long, default_value = "", hide_default_value = true)]
    cpu: String,
    /// Memory it may use: 64Mi
    #[arg(long, default_value = "", hide_default_value = true)]
    memory: String,
    /// Run to completion instead of for ever
    #[arg(long)]
    batch: bool,
    /// How many tasks run at the same time
    #[arg(long, requires = "batch", value_name = "NUMBER")]
    parallelism: Option<i32>,
    /// What follows -- replaces the image's entrypoint, not only its arguments
    #[arg(long, requires = "args")]
    command: bool,
    #[command(flatten)]
    how: How,
    /// Arguments for the container, instead of the image's
    #[arg(last = true)]
    args: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  flotilla scale web 5")]
pub struct ScaleArgs {
    /// The job's name
    job: String,
    /// How many replicas shall run
    count: i32,
    /// Do not wait until they run
    #[arg(long)]
    detach: bool,
    /// Wait no longer than this [default: 15m]
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, value_parser = duration_seconds)]
    timeout: Option<u32>,
}

pub async fn submit(session: &Session, args: &SubmitArgs) -> anyhow::Result<u8> {
    let text = manifest::read(&args.file)?;
    if manifest::is_kubernetes(&text) {
        bail!("{0}: this is a Kubernetes manifest: use 'flotilla apply -f {0}'", args.file);
    }
    for job in job::from_yaml(&text).with_context(|| args.file.clone())? {
        let code = send(session, convert::job_to_proto(job), &args.how).await.with_context(|| args.file.clone())?;
        if code != DONE {
            return Ok(code);
        }
    }
    Ok(DONE)
}

pub async fn run(session: &Session, args: &RunArgs) -> anyhow::Result<u8> {
    send(session, job_of(args), &args.how).await
}

fn job_of(args: &RunArgs) -> Job {
    let (command, arguments) = match args.command {
        true => (args.args.clone(), Vec::new()),
        false => (Vec::new(), args.args.clone()),
    };
    let container = Container {
        image: args.image.clone(),
        command,
        args: arguments,
        env: args.env.clone(),
        ports: args.ports.clone(),
        cpu: args.cpu.clone(),
        memory: args.memory.clone(),
        ..Container::default()
    };
    Job {
        name: args.name.clone(),
        r#type: if args.batch { "batch" } else { "service" }.into(),
        count: Some(args.replicas),
        parallelism: args.parallelism,
        containers: vec![container],
        ..Job::default()
    }
}

/// Submits a job and waits for it as the user wants.
async fn send(session: &Session, mut job: Job, how: &How) -> anyhow::Result<u8> {
    let named = job.namespace.clone();
    let session = &session.within(if named.is_empty() { &session.namespace } else { &named });
    job.namespace.clone_from(&session.namespace);
    let name = job.name.clone();
    let batch = job.r#type == "batch";
    if how.wait_complete && !batch {
        bail!("--wait-complete is for batch jobs: {name} is a service, which runs until it is stopped");
    }
    let request = SubmitJobRequest { job: Some(job), dry_run: how.dry_run };
    let answer = session.jobs().submit(ask(request)).await?.into_inner();
    let dry = if how.dry_run { " (dry run)" } else { "" };
    session.say(format!("job {name} {}{dry}", answer.result))?;
    if how.detach || how.dry_run {
        return Ok(DONE);
    }
    let goal = if how.wait_complete { Goal::Complete } else { Goal::Running };
    wait(session, &name, goal, answer.status.map_or(0, |status| status.revision), how.timeout).await
}

pub async fn scale(session: &Session, args: &ScaleArgs) -> anyhow::Result<u8> {
    let request = ScaleJobRequest { namespace: session.namespace.clone(), name: args.job.clone(), count: args.count };
    let status = session.jobs().scale(ask(request)).await?.into_inner();
    session.say(format!("job {} scaled to {}", args.job, args.count))?;
    if args.detach {
        return Ok(DONE);
    }
    wait(session, &args.job, Goal::Running, status.revision, args.timeout).await
}

/// `80`, `53/udp`, `8080:80` (reachable at 8080 of the node).
fn parse_port(text: &str) -> Result<Port, String> {
    let bad = || format!("{text:?} is not a port: write 80, 53/udp, or 8080:80 to open port 8080 of the node");
    let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).map(u32::from).ok_or_else(bad);
    let (ports, protocol) = text.split_once('/').unwrap_or((text, ""));
    if !["", "TCP", "UDP", "SCTP"].contains(&protocol.to_uppercase().as_str()) {
        return Err(bad());
    }
    let (host_port, port) = match ports.split_once(':') {
        Some((host, port)) => (number(host)?, number(port)?),
        None => (0, number(ports)?),
    };
    Ok(Port { port, host_port, protocol: protocol.to_uppercase(), name: String::new() })
}

fn parse_variable(text: &str) -> Result<EnvVar, String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok(EnvVar { name: name.into(), value: value.into() }),
        _ => Err(format!("{text:?} is not a variable: write NAME=VALUE")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_plain_of_a_protocol_or_of_the_node_too() {
        let port =
            |port, host_port, protocol: &str| Port { port, host_port, protocol: protocol.into(), ..Port::default() };
        assert_eq!(parse_port("80"), Ok(port(80, 0, "")));
        assert_eq!(parse_port("53/udp"), Ok(port(53, 0, "UDP")));
        assert_eq!(parse_port("8080:80/tcp"), Ok(port(80, 8080, "TCP")));
        for bad in ["", "0", "65536", "80/http", "a:80", "80:"] {
            assert!(parse_port(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn variables_may_hold_what_they_like() {
        assert_eq!(parse_variable("A=b=c").unwrap().value, "b=c");
        assert_eq!(parse_variable("A=").unwrap().value, "");
        assert!(parse_variable("A").is_err() && parse_variable("=b").is_err());
    }
}
