//! `jobs` and `status`: what runs, how far it is, and why it is not further.

use std::fmt::Write;

use clap::Args;

use super::output::{Cell, Format, Out, Table, Tone, age_of, plain, tone_of};
use super::session::{Session, ask, now};
use super::views::JobView;
use super::{DONE, cluster};
use crate::proto::{EventSummary, GetJobRequest, Job, JobStatus, ListJobsRequest, PodSummary};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  flotilla jobs
  flotilla jobs -A -o json")]
pub struct JobsArgs {
    /// The jobs of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// How to write the list
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  flotilla status
  flotilla status web
  flotilla status web -o yaml")]
pub struct StatusArgs {
    /// The job; without one, the cluster
    job: Option<String>,
    /// How to write it
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

pub async fn list(session: &Session, args: &JobsArgs) -> anyhow::Result<u8> {
    let request = ListJobsRequest { namespace: session.namespace_or_all(args.all_namespaces) };
    let jobs = session.jobs().list(ask(request)).await?.into_inner().jobs;
    let views: Vec<JobView> = jobs.iter().map(JobView::from).collect();
    session.out.show(args.output, &views, || table(&jobs, args.all_namespaces))?;
    Ok(DONE)
}

pub async fn status(session: &Session, args: &StatusArgs) -> anyhow::Result<u8> {
    let Some(name) = &args.job else {
        return cluster::status(session, args.output).await;
    };
    let request = GetJobRequest { namespace: session.namespace.clone(), name: name.clone() };
    let status = session.jobs().get(ask(request)).await?.into_inner();
    match args.output {
        Format::Table => session.say(describe(&session.out, &status).trim_end())?,
        format => session.out.show(format, &JobView::from(&status), Table::default)?,
    }
    Ok(DONE)
}

/// `service` unless the job says otherwise.
pub fn type_of(job: &Job) -> &str {
    if job.r#type.is_empty() { "service" } else { &job.r#type }
}

pub fn is_batch(status: &JobStatus) -> bool {
    status.job.as_ref().is_some_and(|job| job.r#type == "batch")
}

/// Replicas that run, or tasks that succeeded, of those wanted.
pub fn tally(status: &JobStatus) -> String {
    let done = if is_batch(status) { status.succeeded } else { status.ready };
    format!("{done}/{}", status.desired)
}

fn images(job: &Job) -> String {
    job.containers.iter().map(|container| container.image.as_str()).collect::<Vec<_>>().join(",")
}

fn table(jobs: &[JobStatus], namespaces: bool) -> Table {
    let telling = jobs.iter().any(|status| !status.message.is_empty());
    let header = namespaces.then_some("NAMESPACE").into_iter();
    let header = header.chain(["NAME", "TYPE", "STATUS", "TASKS", "AGE", "IMAGES"]);
    let mut table = Table::new(header.chain(telling.then_some("MESSAGE")));
    let nameless = Job::default();
    for status in jobs {
        let job = status.job.as_ref().unwrap_or(&nameless);
        let mut cells = Vec::new();
        cells.extend(namespaces.then(|| Cell::from(&job.namespace)));
        cells.extend([
            Cell::from(&job.name),
            Cell::from(type_of(job)),
            Cell::status(&status.phase),
            Cell::from(tally(status)),
            Cell::from(age_of(&status.created, now())),
            Cell::from(images(job)),
        ]);
        cells.extend(telling.then(|| Cell::from(&status.message)));
        table.row(cells);
    }
    table
}

/// A job for people: what it is, how far it is, its pods, what happened.
fn describe(out: &Out, status: &JobStatus) -> String {
    let nameless = Job::default();
    let job = status.job.as_ref().unwrap_or(&nameless);
    let mut text = String::new();
    let mut fact = |name: &str, value: &str| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{}{}", out.paint(Tone::Strong, &format!("{name:<11}")), value);
    };
    fact("Job", &plain(&format!("{} ({}, namespace {})", job.name, type_of(job), job.namespace)));
    let phase = out.paint(tone_of(&status.phase), &plain(&status.phase));
    fact("Status", &if status.message.is_empty() { phase } else { format!("{phase}: {}", plain(&status.message)) });
    fact("Tasks", &counts(status));
    fact("Images", &plain(&images(job)));
    fact("Age", &age_of(&status.created, now()));
    section(out, &mut text, "Pods", &pod_table(&status.pods));
    section(out, &mut text, "Events", &event_table(&status.events));
    text
}

fn counts(status: &JobStatus) -> String {
    if is_batch(status) {
        format!(
            "{} wanted, {} succeeded, {} running, {} failed",
            status.desired, status.succeeded, status.ready, status.failed
        )
    } else {
        format!("{} wanted, {} running, {} of the newest version", status.desired, status.ready, status.updated)
    }
}

fn section(out: &Out, text: &mut String, name: &str, table: &Table) {
    if !table.is_empty() {
        let _ = write!(text, "\n{}\n{}", out.paint(Tone::Strong, name), table.render(out.colour));
    }
}

fn pod_table(pods: &[PodSummary]) -> Table {
    let telling = pods.iter().any(|pod| !pod.message.is_empty());
    let header = ["NAME", "READY", "STATUS", "RESTARTS", "AGE", "NODE", "IP"];
    let mut table = Table::new(header.into_iter().chain(telling.then_some("MESSAGE")));
    for pod in pods {
        let mut cells = vec![
            Cell::from(&pod.name),
            Cell::from(&pod.ready),
            Cell::status(&pod.status),
            Cell::from(pod.restarts.to_string()),
            Cell::from(age_of(&pod.created, now())),
            Cell::from(&pod.node),
            Cell::from(&pod.ip),
        ];
        cells.extend(telling.then(|| Cell::from(&pod.message)));
        table.row(cells);
    }
    table
}

fn event_table(events: &[EventSummary]) -> Table {
    let mut table = Table::new(["LAST SEEN", "TYPE", "REASON", "OBJECT", "COUNT", "MESSAGE"]);
    for event in events {
        let tone = if event.r#type == "Warning" { Tone::Bad } else { Tone::Plain };
        table.row([
            Cell::from(age_of(&event.last_seen, now())),
            Cell::new(&event.r#type, tone),
            Cell::from(&event.reason),
            Cell::from(&event.object),
            Cell::from(event.count.to_string()),
            Cell::from(&event.message),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::Container;

    fn sample() -> JobStatus {
        let container = Container { image: "nginx:1.27".into(), ..Container::default() };
        let job =
            Job { name: "web".into(), namespace: "default".into(), containers: vec![container], ..Job::default() };
        JobStatus { job: Some(job), phase: "Running".into(), desired: 6, ready: 6, updated: 6, ..JobStatus::default() }
    }

    #[test]
    fn jobs_are_rows() {
        assert_eq!(
            table(&[sample()], false).render(false),
            "NAME   TYPE      STATUS    TASKS   AGE   IMAGES\n\
             web    service   Running   6/6     -     nginx:1.27\n"
        );
        assert!(table(&[sample()], true).render(false).starts_with("NAMESPACE   NAME"));
    }

    #[test]
    fn a_job_is_described_with_its_pods_and_events() {
        let mut status = sample();
        status.message = "0/1 nodes are available: 1 Insufficient memory.".into();
        status.pods.push(PodSummary {
            name: "web-1".into(),
            status: "Pending".into(),
            ready: "0/1".into(),
            ..PodSummary::default()
        });
        status.events.push(EventSummary { reason: "FailedScheduling".into(), count: 2, ..EventSummary::default() });
        let text = describe(&Out { terminal: false, colour: false }, &status);
        assert_eq!(
            text,
            "Job        web (service, namespace default)\n\
             Status     Running: 0/1 nodes are available: 1 Insufficient memory.\n\
             Tasks      6 wanted, 6 running, 6 of the newest version\n\
             Images     nginx:1.27\n\
             Age        -\n\
             \n\
             Pods\n\
             NAME    READY   STATUS    RESTARTS   AGE   NODE   IP\n\
             web-1   0/1     Pending   0          -     -      -\n\
             \n\
             Events\n\
             LAST SEEN   TYPE   REASON             OBJECT   COUNT   MESSAGE\n\
             -           -      FailedScheduling   -        2       -\n"
        );
    }
}
