//! Objects of any kind.

use std::time::Duration;

use flotilla_api::kinds::Column;
use flotilla_api::{Kind, Status};
use serde_json::Value;
use tokio::time::timeout;
use tonic::{Request, Response};

use super::watch::{Answer, Sender, stream};
use super::{refuse, user};
use crate::gate::{
    DeleteOptions, Found, Gate, Happened, List, ListQuery, ObjectEvent, Outcome, Propagation, User, Verb, WriteOptions,
};
use crate::node::Node;
use crate::proto::{self, objects_server::Objects};

/// How long a watcher is told nothing before it is told how far everything was looked at.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);

pub struct Service {
    gate: Gate,
}

impl Service {
    pub fn new(node: &Node) -> Self {
        Self { gate: node.gate.clone() }
    }
}

#[tonic::async_trait]
impl Objects for Service {
    async fn apply(
        &self,
        request: Request<proto::ApplyRequest>,
    ) -> Result<Response<proto::ApplyResponse>, tonic::Status> {
        let user = user(&request)?;
        let request = request.into_inner();
        let manager = if request.field_manager.is_empty() { "flotilla".to_owned() } else { request.field_manager };
        let options = WriteOptions { dry_run: request.dry_run, ..WriteOptions::by(manager) };
        let applied = self
            .gate
            .apply(&user, &request.manifest, &request.namespace, request.create_only, &options)
            .await
            .map_err(refuse)?;
        let applied = applied.into_iter().map(|one| proto::apply_response::Applied {
            object: format!("{}/{}", one.kind.qualified_singular(), super::text(&one.object, "/metadata/name")),
            result: match one.outcome {
                Outcome::Created => "created",
                Outcome::Configured => "configured",
                Outcome::Unchanged => "unchanged",
            }
            .into(),
            json: json(&one.object),
        });
        Ok(Response::new(proto::ApplyResponse { applied: applied.collect() }))
    }

    async fn get(&self, request: Request<proto::GetObjectRequest>) -> Result<Response<proto::Object>, tonic::Status> {
        let user = user(&request)?;
        let request = request.into_inner();
        let kind = self.gate.kind(&request.kind).map_err(refuse)?;
        let json = self.gate.get_json(&user, &kind, &request.namespace, &request.name).await.map_err(refuse)?;
        Ok(Response::new(proto::Object { json }))
    }

    async fn list(
        &self,
        request: Request<proto::ListObjectsRequest>,
    ) -> Result<Response<proto::ListObjectsResponse>, tonic::Status> {
        let user = user(&request)?;
        let request = request.into_inner();
        let kind = self.gate.kind(&request.kind).map_err(refuse)?;
        let query = ListQuery::parse(namespace(request.namespace), &request.label_selector, &request.field_selector);
        let query = ListQuery {
            limit: request.limit as usize,
            continue_token: request.continue_token,
            ..query.map_err(refuse)?
        };
        let answer = match request.json_only {
            true => bare_list(self.gate.list_json(&user, &kind, &query).await.map_err(refuse)?, &kind),
            false => table(&self.gate.list(&user, &kind, &query).await.map_err(refuse)?, &kind),
        };
        Ok(Response::new(answer))
    }

    type WatchStream = Answer<proto::WatchEvent>;

    async fn watch(
        &self,
        request: Request<proto::WatchObjectsRequest>,
    ) -> Result<Response<Self::WatchStream>, tonic::Status> {
        let user = user(&request)?;
        let gate = self.gate.clone();
        let request = request.into_inner();
        Ok(Response::new(stream(|send| async move { watch(&gate, &user, request, &send).await.map_err(refuse) })))
    }

    async fn delete(
        &self,
        request: Request<proto::DeleteObjectRequest>,
    ) -> Result<Response<proto::DeleteObjectResponse>, tonic::Status> {
        let user = user(&request)?;
        let request = request.into_inner();
        let kind = self.gate.kind(&request.kind).map_err(refuse)?;
        let options = DeleteOptions {
            grace_period_seconds: request.grace_period_seconds.map(i64::from),
            propagation: propagation(&request.propagation).map_err(refuse)?,
            manager: "flotilla".into(),
            ..DeleteOptions::default()
        };
        let deleted =
            self.gate.delete(&user, &kind, (&request.namespace, &request.name), &options).await.map_err(refuse)?;
        Ok(Response::new(proto::DeleteObjectResponse { gone: deleted.gone }))
    }
}

async fn watch(
    gate: &Gate,
    user: &User,
    request: proto::WatchObjectsRequest,
    send: &Sender<proto::WatchEvent>,
) -> Result<(), Status> {
    let kind = gate.kind(&request.kind)?;
    let query = ListQuery::parse(namespace(request.namespace), &request.label_selector, &request.field_selector)?;
    let found = match request.revision {
        0 => Some(gate.all(user, Verb::Watch, &kind, &query).await?),
        _ => None,
    };
    let from = found.as_ref().map_or(request.revision, Found::revision);
    let mut observer = gate.watch(user, &kind, query, from).await?;
    if let Some(mut found) = found {
        let mut json = Vec::new();
        while found.next(&mut json).await? {
            let json = std::mem::take(&mut json).into();
            let event = proto::WatchEvent { r#type: "ADDED".into(), json, revision: from };
            if send.send(Ok(event)).await.is_err() {
                return Ok(());
            }
        }
    }
    let mut told = from;
    loop {
        let event = match timeout(BOOKMARK_INTERVAL, observer.next()).await {
            Ok(event) => event?,
            // Who goes on from it elsewhere does not ask for what is long forgotten.
            Err(_) => Some(ObjectEvent::bookmark(observer.seen().unwrap_or(told))),
        };
        let Some(ObjectEvent { happened, json, revision }) = event else { return Ok(()) };
        if happened == Happened::Bookmark && revision <= told {
            continue;
        }
        told = revision;
        let r#type = match happened {
            Happened::Added => "ADDED",
            Happened::Modified => "MODIFIED",
            Happened::Deleted => "DELETED",
            Happened::Bookmark => "BOOKMARK",
        };
        if send.send(Ok(proto::WatchEvent { r#type: r#type.into(), json, revision })).await.is_err() {
            return Ok(());
        }
    }
}

fn bare_list(list: List<Vec<u8>>, kind: &Kind) -> proto::ListObjectsResponse {
    proto::ListObjectsResponse {
        items: list.items.into_iter().map(Into::into).collect(),
        revision: list.revision,
        continue_token: list.continue_token,
        columns: Vec::new(),
        rows: Vec::new(),
        api_version: kind.api_version(),
        kind: kind.kind.to_string(),
    }
}

/// A list with what people read of it.
fn table(list: &List<Value>, kind: &Kind) -> proto::ListObjectsResponse {
    let now = jiff::Timestamp::now();
    let column = |column: &Column| proto::Column { name: column.name.to_string(), priority: column.wide.into() };
    let items = List {
        items: list.items.iter().map(json).collect(),
        revision: list.revision,
        continue_token: list.continue_token.clone(),
        remaining: list.remaining,
    };
    proto::ListObjectsResponse {
        columns: kind.columns().iter().map(column).collect(),
        rows: list.items.iter().map(|item| proto::Row { cells: kind.row(item, now) }).collect(),
        ..bare_list(items, kind)
    }
}

/// `*` is all namespaces, nothing is `default`.
fn namespace(asked: String) -> Option<String> {
    match asked.as_str() {
        "*" => None,
        "" => Some("default".into()),
        _ => Some(asked),
    }
}

fn propagation(asked: &str) -> Result<Propagation, Status> {
    match asked {
        "" | "Background" => Ok(Propagation::Background),
        "Foreground" => Ok(Propagation::Foreground),
        "Orphan" => Ok(Propagation::Orphan),
        other => Err(Status::bad_request(format!(
            "propagation: Unsupported value: {other:?}: supported values: \"Background\", \"Foreground\", \"Orphan\""
        ))),
    }
}

fn json(object: &Value) -> Vec<u8> {
    object.to_string().into_bytes()
}
