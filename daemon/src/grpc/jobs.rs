//! Jobs: lowered to Deployments and batch Jobs on the way in, raised from them on the way out.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use flotilla_api::admit::Subresource;
use flotilla_api::job::{self, MARK};
use flotilla_api::k8s_openapi::api::core::v1::Pod;
use flotilla_api::{Builtin, Kind, Reason, Status};
use flotilla_raft::WatchItem;
use serde_json::{Value, json};
use tonic::{Request, Response};

use super::watch::{Answer, Sender, stream};
use super::{refuse, text, user};
use crate::convert;
use crate::gate::{DeleteOptions, Gate, ListQuery, User, WriteOptions};
use crate::node::Node;
use crate::proto::{self, jobs_server::Jobs};

const MANAGER: &str = "flotilla-submit";
/// The newest events that a status shows.
const MAX_EVENTS: usize = 20;
/// Changes that come within this time are told as one.
const WATCH_PAUSE: Duration = Duration::from_millis(50);

pub struct Service {
    gate: Gate,
}

impl Service {
    pub fn new(node: &Node) -> Self {
        Self { gate: node.gate.clone() }
    }
}

#[tonic::async_trait]
impl Jobs for Service {
    async fn submit(
        &self,
        request: Request<proto::SubmitJobRequest>,
    ) -> Result<Response<proto::SubmitJobResponse>, tonic::Status> {
        let user = user(&request)?;
        let request = request.into_inner();
        let (status, result) = submit(&self.gate, &user, request).await.map_err(refuse)?;
        Ok(Response::new(proto::SubmitJobResponse { status: Some(status), result: result.into() }))
    }

    async fn get(&self, request: Request<proto::GetJobRequest>) -> Result<Response<proto::JobStatus>, tonic::Status> {
        let user = user(&request)?;
        let request = request.into_inner();
        let found = find(&self.gate, &user, &request.namespace, &request.name).await.map_err(refuse)?;
        Ok(Response::new(describe(&self.gate, &user, &found.object).await.map_err(refuse)?))
    }

    async fn list(
        &self,
        request: Request<proto::ListJobsRequest>,
    ) -> Result<Response<proto::ListJobsResponse>, tonic::Status> {
        let user = user(&request)?;
        let jobs = list(&self.gate, &user, &request.into_inner().namespace).await.map_err(refuse)?;
        Ok(Response::new(proto::ListJobsResponse { jobs }))
    }

    type WatchStream = Answer<proto::JobEvent>;

    async fn watch(
        &self,
        request: Request<proto::WatchJobsRequest>,
    ) -> Result<Response<Self::WatchStream>, tonic::Status> {
        let user = user(&request)?;
        let request = request.into_inner();
        let gate = self.gate.clone();
        Ok(Response::new(stream(|send| async move { watch(&gate, &user, &request, &send).await.map_err(refuse) })))
    }

    async fn scale(
        &self,
        request: Request<proto::ScaleJobRequest>,
    ) -> Result<Response<proto::JobStatus>, tonic::Status> {
        let user = user(&request)?;
        let request = request.into_inner();
        let object = scale(&self.gate, &user, &request).await.map_err(refuse)?;
        Ok(Response::new(describe(&self.gate, &user, &object).await.map_err(refuse)?))
    }

    async fn stop(
        &self,
        request: Request<proto::StopJobRequest>,
    ) -> Result<Response<proto::StopJobResponse>, tonic::Status> {
        let user = user(&request)?;
        let request = request.into_inner();
        let found = find(&self.gate, &user, &request.namespace, &request.name).await.map_err(refuse)?;
        let options = DeleteOptions { manager: MANAGER.into(), ..DeleteOptions::default() };
        self.gate
            .delete(&user, &found.kind, (namespace(&request.namespace), &request.name), &options)
            .await
            .map_err(refuse)?;
        Ok(Response::new(proto::StopJobResponse {}))
    }
}

/// A job as it is stored.
struct Found {
    kind: Arc<Kind>,
    object: Value,
}

fn namespace(asked: &str) -> &str {
    if asked.is_empty() { "default" } else { asked }
}

/// The kinds that jobs are lowered to.
const LOWERED: [Builtin; 2] = [Builtin::Deployment, Builtin::Job];

async fn find(gate: &Gate, user: &User, asked: &str, name: &str) -> Result<Found, Status> {
    for builtin in LOWERED {
        let kind = gate.built_in(builtin)?;
        match gate.get(user, &kind, namespace(asked), name).await {
            Ok(object) if job::raise(&object).is_some() => return Ok(Found { kind, object }),
            Err(status) if status.reason != Reason::NotFound => return Err(status),
            _ => {}
        }
    }
    Err(Status::not_found("jobs", name))
}

async fn submit(
    gate: &Gate,
    user: &User,
    request: proto::SubmitJobRequest,
) -> Result<(proto::JobStatus, &'static str), Status> {
    let message = request.job.ok_or_else(|| Status::bad_request("job: Required value"))?;
    let job = convert::job_from_proto(message);
    let lowered = job::lower(&job)?;
    let kind = gate.registry().of_object(&text(&lowered, "/apiVersion"), &text(&lowered, "/kind"))?;
    let options = WriteOptions { dry_run: request.dry_run, ..WriteOptions::by(MANAGER) };
    let explain = |status| job::explain(&job, status);
    let target = (namespace(&job.namespace), job.name.as_str());
    let Some(found) = taken(gate, user, target).await? else {
        let mut object = lowered;
        object["metadata"]["namespace"] = json!(target.0);
        let created = gate.create(user, &kind, object, &options).await.map_err(explain)?.object;
        return Ok((describe(gate, user, &created).await?, "created"));
    };
    if job::raise(&found.object).is_none() {
        return Err(Status::new(
            Reason::AlreadyExists,
            format!(
                "a {} \"{}\" exists that was not submitted as a job; choose another name, or change it with 'flotilla apply'",
                found.kind.kind, job.name
            ),
        ));
    }
    if found.kind.kind != kind.kind {
        return Err(Status::new(
            Reason::AlreadyExists,
            format!("job \"{}\" exists with another type; end it with 'flotilla stop {}' first", job.name, job.name),
        ));
    }
    let registry = gate.registry();
    let edit = |object: &mut Value| {
        *object = job::resubmit(&job, &registry, object)?.object;
        Ok(())
    };
    let updated = gate.update(user, &kind, target, Subresource::None, &options, edit).await.map_err(explain)?.object;
    let same = text(&updated, "/metadata/resourceVersion") == text(&found.object, "/metadata/resourceVersion");
    Ok((describe(gate, user, &updated).await?, if same { "unchanged" } else { "updated" }))
}

/// The object that has the name already: one name is one job, whichever kind it was lowered to.
async fn taken(gate: &Gate, user: &User, (namespace, name): (&str, &str)) -> Result<Option<Found>, Status> {
    for builtin in LOWERED {
        let kind = gate.built_in(builtin)?;
        match gate.get(user, &kind, namespace, name).await {
            Ok(object) => return Ok(Some(Found { kind, object })),
            Err(status) if status.reason == Reason::NotFound => {}
            Err(status) => return Err(status),
        }
    }
    Ok(None)
}

async fn scale(gate: &Gate, user: &User, request: &proto::ScaleJobRequest) -> Result<Value, Status> {
    let found = find(gate, user, &request.namespace, &request.name).await?;
    if found.kind.builtin != Some(Builtin::Deployment) {
        return Err(Status::new(
            Reason::MethodNotAllowed,
            format!(
                "job \"{}\" is a batch job: it runs until enough of its tasks succeeded and cannot be scaled",
                request.name
            ),
        ));
    }
    if request.count < 0 {
        return Err(Status::bad_request(format!("count: Invalid value: {}: must be 0 or more", request.count)));
    }
    let target = (namespace(&request.namespace), request.name.as_str());
    let options = WriteOptions::by(MANAGER);
    let edit = |object: &mut Value| {
        object["spec"]["replicas"] = json!(request.count);
        Ok(())
    };
    Ok(gate.update(user, &found.kind, target, Subresource::None, &options, edit).await?.object)
}

async fn list(gate: &Gate, user: &User, asked: &str) -> Result<Vec<proto::JobStatus>, Status> {
    let namespace = (asked != "*").then(|| namespace(asked).to_owned());
    let mut jobs = Vec::new();
    for builtin in LOWERED {
        let query = ListQuery::parse(namespace.clone(), MARK, "")?;
        for object in gate.list(user, &*gate.built_in(builtin)?, &query).await?.items {
            jobs.push(describe(gate, user, &object).await?);
        }
    }
    jobs.sort_by_key(key_of);
    Ok(jobs)
}

fn key_of(status: &proto::JobStatus) -> (String, String) {
    let job = status.job.clone().unwrap_or_default();
    (job.namespace, job.name)
}

/// Tells the jobs now, then each one again when anything about it changes.
async fn watch(
    gate: &Gate,
    user: &User,
    request: &proto::WatchJobsRequest,
    send: &Sender<proto::JobEvent>,
) -> Result<(), Status> {
    let mut told: Vec<proto::JobStatus> = Vec::new();
    let mut watch = gate.store().watch("", 0).await.map_err(crate::gate::read_status)?;
    loop {
        let now = match request.name.as_str() {
            "" => list(gate, user, &request.namespace).await?,
            name => match find(gate, user, &request.namespace, name).await {
                Ok(found) => vec![describe(gate, user, &found.object).await?],
                Err(status) if status.reason == Reason::NotFound => Vec::new(),
                Err(status) => return Err(status),
            },
        };
        for status in &now {
            let same = told.iter().any(|old| same(old, status));
            if !same
                && send
                    .send(Ok(proto::JobEvent { r#type: "updated".into(), status: Some(status.clone()) }))
                    .await
                    .is_err()
            {
                return Ok(());
            }
        }
        let left: BTreeSet<_> = now.iter().map(key_of).collect();
        for gone in told.into_iter().filter(|old| !left.contains(&key_of(old))) {
            if send.send(Ok(proto::JobEvent { r#type: "deleted".into(), status: Some(gone) })).await.is_err() {
                return Ok(());
            }
        }
        told = now;
        loop {
            match watch.next().await {
                None => return Ok(()),
                Some(WatchItem::Progress(_)) => {}
                Some(WatchItem::Compacted(_)) => break,
                Some(WatchItem::Events(events, _)) => {
                    if events.iter().any(|event| concerns(event.key(), &request.namespace)) {
                        break;
                    }
                }
            }
        }
        tokio::time::sleep(WATCH_PAUSE).await;
    }
}

/// Two statuses that say the same, whenever they were read.
fn same(a: &proto::JobStatus, b: &proto::JobStatus) -> bool {
    proto::JobStatus { revision: 0, ..a.clone() } == proto::JobStatus { revision: 0, ..b.clone() }
}

fn concerns(key: &flotilla_api::Key, asked: &str) -> bool {
    (asked == "*" || key.namespace() == namespace(asked))
        && matches!(key.resource(), "deployments" | "jobs" | "pods" | "events" | "replicasets")
}

async fn describe(gate: &Gate, user: &User, object: &Value) -> Result<proto::JobStatus, Status> {
    let name = text(object, "/metadata/name");
    let namespace = text(object, "/metadata/namespace");
    let labels = job::pods_of(&name).map_err(Status::internal)?;
    let query = ListQuery { namespace: Some(namespace.clone()), labels, ..ListQuery::default() };
    let pods = gate.list(user, &*gate.built_in(Builtin::Pod)?, &query).await?.items;
    let events = events(gate, user, &namespace, object, &pods).await?;
    let typed: Vec<Pod> = pods.into_iter().filter_map(|pod| serde_json::from_value(pod).ok()).collect();
    let summary = job::summarize(object, &typed, jiff::Timestamp::now())
        .ok_or_else(|| Status::internal(format!("{name} did not come from a job")))?;
    Ok(proto::JobStatus {
        phase: summary.phase.to_string(),
        message: summary.message,
        desired: summary.desired,
        ready: summary.ready,
        updated: summary.updated,
        succeeded: summary.succeeded,
        failed: summary.failed,
        pods: summary.pods.into_iter().map(pod_summary).collect(),
        events,
        created: text(object, "/metadata/creationTimestamp"),
        revision: text(object, "/metadata/resourceVersion").parse().unwrap_or_default(),
        job: Some(convert::job_to_proto(summary.job)),
    })
}

fn pod_summary(pod: job::PodSummary) -> proto::PodSummary {
    proto::PodSummary {
        name: pod.name,
        namespace: pod.namespace,
        status: pod.status,
        ready: pod.ready,
        restarts: pod.restarts,
        node: pod.node,
        ip: pod.ip,
        created: pod.created.map(|at| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()).unwrap_or_default(),
        message: pod.message,
    }
}

/// What happened to the job, its ReplicaSets and its pods, newest last.
async fn events(
    gate: &Gate,
    user: &User,
    namespace: &str,
    object: &Value,
    pods: &[Value],
) -> Result<Vec<proto::EventSummary>, Status> {
    let mut uids: BTreeSet<String> = pods.iter().map(|pod| text(pod, "/metadata/uid")).collect();
    uids.extend(pods.iter().map(|pod| text(pod, "/metadata/ownerReferences/0/uid")));
    uids.insert(text(object, "/metadata/uid"));
    let kind = gate.built_in(Builtin::Event)?;
    let query = ListQuery::parse(Some(namespace.to_owned()), "", "")?;
    let mut events = gate.list(user, &kind, &query).await?.items;
    events.retain(|event| uids.contains(&text(event, "/involvedObject/uid")));
    events.sort_by_key(last_seen);
    let newest = events.len().saturating_sub(MAX_EVENTS);
    Ok(events[newest..].iter().map(event_summary).collect())
}

fn last_seen(event: &Value) -> String {
    ["/lastTimestamp", "/eventTime", "/firstTimestamp", "/metadata/creationTimestamp"]
        .iter()
        .map(|path| text(event, path))
        .find(|time| !time.is_empty())
        .unwrap_or_default()
}

fn event_summary(event: &Value) -> proto::EventSummary {
    proto::EventSummary {
        r#type: text(event, "/type"),
        reason: text(event, "/reason"),
        message: text(event, "/message"),
        object: format!(
            "{}/{}",
            text(event, "/involvedObject/kind").to_lowercase(),
            text(event, "/involvedObject/name")
        ),
        last_seen: last_seen(event),
        count: event["count"].as_i64().unwrap_or(1) as i32,
    }
}
