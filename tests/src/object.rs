//! Objects as tests apply, list and read them.

use flotilla::proto::{ApplyRequest, GetObjectRequest, ListObjectsRequest, LogsRequest};
use flotilla_api::account::ROOT_CA;
use serde_json::Value;
use tonic::Status;

use crate::Cluster;

const LOG_LIMIT_BYTES: usize = 4 << 20;

/// Applies a manifest and returns what was done with each object: `configmap/a created`.
///
/// # Errors
/// What the node says.
pub async fn apply(cluster: &Cluster, node: &str, manifest: &[u8]) -> Result<Vec<String>, Status> {
    let request = ApplyRequest { manifest: manifest.to_vec(), ..ApplyRequest::default() };
    let answer = cluster.objects(node).max_encoding_message_size(64 << 20).apply(request).await?;
    let applied = answer.into_inner().applied;
    Ok(applied.into_iter().map(|one| format!("{} {}", one.object, one.result)).collect())
}

/// Every object of a kind, in all namespaces.
///
/// # Errors
/// What the node says.
pub async fn list(cluster: &Cluster, node: &str, kind: &str) -> Result<Vec<Value>, String> {
    let request = ListObjectsRequest { kind: kind.into(), namespace: "*".into(), ..ListObjectsRequest::default() };
    let answer = cluster.objects(node).list(request).await.map_err(|status| status.message().to_owned())?;
    let items = answer.into_inner().items;
    items.iter().map(|item| serde_json::from_slice(item).map_err(|error| error.to_string())).collect()
}

/// # Errors
/// What the node says.
pub async fn get(cluster: &Cluster, node: &str, kind: &str, name: &str) -> Result<Value, String> {
    let request = GetObjectRequest { kind: kind.into(), namespace: String::new(), name: name.into() };
    let answer = cluster.objects(node).get(request).await.map_err(|status| status.message().to_owned())?;
    serde_json::from_slice(&answer.into_inner().json).map_err(|error| error.to_string())
}

/// The names of all objects of a kind, in all namespaces, but for what the cluster itself puts into each.
///
/// # Errors
/// What the node says.
pub async fn names(cluster: &Cluster, node: &str, kind: &str) -> Result<Vec<String>, String> {
    let objects = list(cluster, node, kind).await?;
    let names = objects.iter().map(|object| object["metadata"]["name"].as_str().unwrap_or_default().to_owned());
    Ok(names.filter(|name| name != ROOT_CA).collect())
}

/// What a pod has written up to now.
///
/// # Errors
/// What the node says.
pub async fn logs(cluster: &Cluster, node: &str, pod: &str) -> Result<String, String> {
    let request = LogsRequest { pod: pod.into(), ..LogsRequest::default() };
    let answer = cluster.pods(node).logs(request).await.map_err(|status| status.message().to_owned())?;
    let mut stream = answer.into_inner();
    let mut text = Vec::new();
    while let Some(chunk) = stream.message().await.map_err(|status| status.message().to_owned())? {
        text.extend_from_slice(&chunk.data);
        if text.len() > LOG_LIMIT_BYTES {
            return Err(format!("{pod} wrote more than {LOG_LIMIT_BYTES} bytes"));
        }
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}
