//! Objects and images of the world in [`super::daemon`].

use flotilla::proto::images_server::Images;
use flotilla::proto::objects_server::Objects;
use flotilla::proto::*;
use flotilla_api::Registry;
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use tonic::{Code, Request, Response, Status, Streaming};

use super::daemon::{Answer, World, nothing, refuse};

/// The pods that exist: one that runs, one that is being deleted.
fn pod(name: &str) -> Value {
    let phase = if name == "web-a" { "Running" } else { "Pending" };
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "resourceVersion": "7"},
        "spec": {"nodeName": "node-1", "containers": [{"name": "main", "image": "nginx"}]},
        "status": {"phase": phase},
    });
    if name == "dying" {
        pod["metadata"]["deletionTimestamp"] = json!("2026-11-23T14:00:00Z");
    }
    pod
}

fn event(kind: &str, object: Value) -> Result<WatchEvent, Status> {
    Ok(WatchEvent { r#type: kind.into(), json: object.to_string().into(), revision: 8 })
}

#[tonic::async_trait]
impl Objects for World {
    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<ApplyResponse>, Status> {
        let text = String::from_utf8(request.into_inner().manifest).unwrap();
        if text.contains("imagee") {
            let message = "spec.containers[0].imagee: unknown field";
            return Err(refuse(flotilla_api::Status::bad_request(message), Code::InvalidArgument));
        }
        let applied =
            apply_response::Applied { object: "pod/web-a".into(), result: "created".into(), json: Vec::new() };
        Ok(Response::new(ApplyResponse { applied: vec![applied] }))
    }

    async fn get(&self, request: Request<GetObjectRequest>) -> Result<Response<Object>, Status> {
        match request.into_inner().name.as_str() {
            name @ ("web-a" | "dying") => Ok(Response::new(Object { json: pod(name).to_string().into_bytes() })),
            name => Err(refuse(flotilla_api::Status::not_found("pods", name), Code::NotFound)),
        }
    }

    /// Two pages of one pod each, or one pod that was asked for.
    async fn list(&self, request: Request<ListObjectsRequest>) -> Result<Response<ListObjectsResponse>, Status> {
        let request = request.into_inner();
        let kind = Registry::builtin().by_name(&request.kind).unwrap();
        let (pods, continue_token) = match (request.field_selector.as_str(), request.continue_token.as_str()) {
            ("", "") => (vec![pod("web-a")], "more"),
            ("", _) => (vec![pod("web-b")], ""),
            ("metadata.name=web-a", _) => (vec![pod("web-a")], ""),
            _ => (Vec::new(), ""),
        };
        let now = "2026-11-23T14:00:00Z".parse().unwrap();
        let columns = kind.columns();
        let column = |column: &flotilla_api::kinds::Column| Column {
            name: column.name.to_string(),
            priority: column.wide.into(),
        };
        Ok(Response::new(ListObjectsResponse {
            columns: columns.iter().map(column).collect(),
            rows: pods.iter().map(|pod| Row { cells: kind.row(pod, now) }).collect(),
            items: pods.iter().map(|pod| pod.to_string().into()).collect(),
            revision: 7,
            continue_token: continue_token.into(),
            api_version: kind.api_version(),
            kind: kind.kind.clone(),
        }))
    }

    type WatchStream = Answer<WatchEvent>;

    async fn watch(&self, request: Request<WatchObjectsRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let request = request.into_inner();
        assert_eq!(request.revision, 7);
        let events = match request.field_selector.as_str() {
            "metadata.name=dying" => vec![event("MODIFIED", pod("dying")), event("DELETED", pod("dying"))],
            _ => vec![
                Ok(WatchEvent { r#type: "BOOKMARK".into(), json: Default::default(), revision: 8 }),
                event("ADDED", pod("a-much-longer-name")),
            ],
        };
        Ok(Response::new(Box::pin(stream::iter(events))))
    }

    async fn delete(&self, request: Request<DeleteObjectRequest>) -> Result<Response<DeleteObjectResponse>, Status> {
        match request.into_inner().name.as_str() {
            "web-a" => Ok(Response::new(DeleteObjectResponse { gone: true })),
            "dying" => Ok(Response::new(DeleteObjectResponse { gone: false })),
            name => Err(refuse(flotilla_api::Status::not_found("pods", name), Code::NotFound)),
        }
    }
}

#[tonic::async_trait]
impl Images for World {
    type PullStream = Answer<PullProgress>;

    async fn pull(&self, request: Request<PullImageRequest>) -> Result<Response<Self::PullStream>, Status> {
        let reference = request.into_inner().reference;
        let phase = |phase: &str, done_bytes, image| {
            Ok(PullProgress { phase: phase.into(), done_bytes, total_bytes: 40 << 20, image })
        };
        let image = ImageSummary {
            references: vec![reference],
            id: "sha256:abc".into(),
            size_bytes: 40 << 20,
            ..ImageSummary::default()
        };
        let steps = [
            phase("downloading", 1 << 20, None),
            phase("downloading", 9 << 20, None),
            phase("unpacking", 40 << 20, None),
            phase("done", 40 << 20, Some(image)),
        ];
        Ok(Response::new(stream::iter(steps).boxed()))
    }

    async fn import(&self, request: Request<Streaming<ImportChunk>>) -> Result<Response<ImportResponse>, Status> {
        let mut chunks = request.into_inner();
        let mut size_bytes = 0;
        while let Some(chunk) = chunks.message().await? {
            size_bytes += chunk.data.len() as u64;
        }
        let image = ImageSummary {
            references: vec!["web:v1".into()],
            id: "sha256:abc".into(),
            size_bytes,
            ..ImageSummary::default()
        };
        Ok(Response::new(ImportResponse { images: vec![image] }))
    }

    async fn list(&self, _: Request<ListImagesRequest>) -> Result<Response<ListImagesResponse>, Status> {
        nothing()
    }

    async fn remove(&self, _: Request<RemoveImageRequest>) -> Result<Response<RemoveImageResponse>, Status> {
        nothing()
    }
}
