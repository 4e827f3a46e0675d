//! Jobs as tests submit and watch them.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use flotilla::proto::{Container, GetJobRequest, Job, JobStatus, PodSummary, SubmitJobRequest};

use crate::{Cluster, http};

/// A service with one container that runs what the image says.
#[must_use]
pub fn service(name: &str, image: &str, count: i32) -> Job {
    Job {
        name: name.into(),
        count: Some(count),
        containers: vec![Container { image: image.into(), ..Container::default() }],
        ..Job::default()
    }
}

/// As [`service`], with a shell script instead.
#[must_use]
pub fn script(name: &str, image: &str, count: i32, script: &str) -> Job {
    let mut job = service(name, image, count);
    job.containers[0].command = ["/bin/sh", "-c", script].map(String::from).to_vec();
    job
}

/// # Errors
/// What the node says.
pub async fn submit(cluster: &Cluster, node: &str, job: Job) -> Result<JobStatus, String> {
    let request = SubmitJobRequest { job: Some(job), dry_run: false };
    let answer = cluster.jobs(node).submit(request).await.map_err(|status| status.message().to_owned())?;
    answer.into_inner().status.ok_or_else(|| "no status".into())
}

/// # Errors
/// What the node says.
pub async fn status(cluster: &Cluster, node: &str, name: &str) -> Result<JobStatus, String> {
    let request = GetJobRequest { namespace: String::new(), name: name.into() };
    let answer = cluster.jobs(node).get(request).await;
    answer.map(tonic::Response::into_inner).map_err(|status| status.message().to_owned())
}

/// The pods that run and are ready.
#[must_use]
pub fn running(status: &JobStatus) -> Vec<PodSummary> {
    let ready = |pod: &&PodSummary| {
        let (ready, all) = pod.ready.split_once('/').unwrap_or(("0", ""));
        pod.status == "Running" && ready == all
    };
    status.pods.iter().filter(ready).cloned().collect()
}

/// Exactly `count` pods of the job that run, all of them on `nodes`, as `node` sees it.
///
/// # Errors
/// What there is instead.
pub async fn running_on(
    cluster: &Cluster,
    node: &str,
    name: &str,
    count: usize,
    nodes: &[String],
) -> Result<Vec<PodSummary>, String> {
    let status = status(cluster, node, name).await?;
    let pods: Vec<_> = running(&status).into_iter().filter(|pod| nodes.contains(&pod.node)).collect();
    if pods.len() == count { Ok(pods) } else { Err(describe(&status)) }
}

/// The pods in one line, for failures.
#[must_use]
pub fn describe(status: &JobStatus) -> String {
    let pods: Vec<_> = status
        .pods
        .iter()
        .map(|pod| format!("{} {} {} on {:?} {:?}", pod.name, pod.status, pod.ready, pod.node, pod.message))
        .collect();
    let events: Vec<_> = status.events.iter().map(|event| format!("{}: {}", event.reason, event.message)).collect();
    format!("{} {:?}; pods: {}; events: {}", status.phase, status.message, pods.join("; "), events.join("; "))
}

/// Asks each pod for its page, from the node it runs on, and checks that it names itself.
///
/// # Errors
/// The first that does not answer so.
pub async fn all_answer(cluster: &Cluster, pods: &[PodSummary]) -> Result<(), String> {
    let mut names = BTreeSet::new();
    for pod in pods {
        let ip = pod.ip.parse().map_err(|_| format!("{} has the address {:?}", pod.name, pod.ip))?;
        let (code, body) = http::get(cluster.space(&pod.node), SocketAddr::new(ip, 80)).await?;
        if code != 200 || body.trim() != pod.name {
            return Err(format!("{} answers {code} {body:?}", pod.name));
        }
        names.insert(&pod.name);
    }
    if names.len() == pods.len() { Ok(()) } else { Err("a pod is listed twice".into()) }
}
