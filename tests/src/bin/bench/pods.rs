//! From the request that creates a pod to the event that says it runs: one pod after the other, the image present.

use std::time::{Duration, Instant};

use anyhow::Context;
use flotilla::proto::objects_client::ObjectsClient;
use flotilla::proto::{ApplyRequest, DeleteObjectRequest, WatchEvent, WatchObjectsRequest};
use serde_json::{Value, json};
use tonic::Streaming;
use tonic::transport::Channel;

use crate::flotilla_cluster::Flotilla;
use crate::report::{Report, Spread};

const NODES: usize = 3;
const PODS: usize = 50;
/// It ships inside the binary.
const IMAGE: &str = "flotilla.dev/hello:latest";
const AIM_MS: f64 = 300.0;
const RUN_LIMIT: Duration = Duration::from_secs(60);

/// # Errors
/// If the cluster refuses a pod, or a pod does not run.
pub async fn measure(report: &mut Report) -> anyhow::Result<()> {
    let flotilla = Flotilla::start(NODES).await?;
    let door = flotilla.door(&flotilla.leader().await?)?;
    let mut client = ObjectsClient::new(door.channel().await?);
    let request = WatchObjectsRequest { kind: "pods".into(), ..WatchObjectsRequest::default() };
    let mut events = client.watch(request).await?.into_inner();
    for node in flotilla.cluster.nodes() {
        let name = format!("first-on-{node}");
        run(&mut client, &mut events, &name, Some(&node)).await?;
    }
    let mut took = Vec::new();
    for number in 0..PODS {
        took.push(run(&mut client, &mut events, &format!("pod-{number}"), None).await?);
    }
    let took = Spread::of(took)?;
    let what = format!("pod created → seen running, {PODS} one after the other, {NODES} nodes");
    report.alone(&format!("{what}, p50"), took.percentile_ms(50), "ms");
    report.aimed(&format!("{what}, p99"), took.percentile_ms(99), AIM_MS, "ms");
    stop(&mut client, &mut events).await
}

async fn run(
    client: &mut ObjectsClient<Channel>,
    events: &mut Streaming<WatchEvent>,
    name: &str,
    node: Option<&str>,
) -> anyhow::Result<Duration> {
    let manifest = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"nodeName": node, "containers": [{"name": "hello", "image": IMAGE}]},
    });
    let request = ApplyRequest { manifest: manifest.to_string().into_bytes(), ..ApplyRequest::default() };
    let began = Instant::now();
    client.apply(request).await?;
    let running = |event: &WatchEvent, pod: &Value| {
        event.r#type != "DELETED" && pod["metadata"]["name"] == name && pod["status"]["phase"] == "Running"
    };
    wait_for(events, running).await.with_context(|| format!("{name} does not run"))?;
    Ok(began.elapsed())
}

/// Deletes the pods one after the other, each when the one before is gone.
async fn stop(client: &mut ObjectsClient<Channel>, events: &mut Streaming<WatchEvent>) -> anyhow::Result<()> {
    for number in 0..PODS {
        let name = format!("pod-{number}");
        let request = DeleteObjectRequest {
            kind: "pods".into(),
            name: name.clone(),
            grace_period_seconds: Some(1),
            ..DeleteObjectRequest::default()
        };
        if !client.delete(request).await?.into_inner().gone {
            let gone = |event: &WatchEvent, pod: &Value| event.r#type == "DELETED" && pod["metadata"]["name"] == name;
            wait_for(events, gone).await.with_context(|| format!("{name} does not go away"))?;
        }
    }
    Ok(())
}

async fn wait_for(
    events: &mut Streaming<WatchEvent>,
    mut is_it: impl FnMut(&WatchEvent, &Value) -> bool,
) -> anyhow::Result<()> {
    let read = async {
        loop {
            let event = events.message().await?.context("the watch ended")?;
            if event.r#type != "BOOKMARK" && is_it(&event, &serde_json::from_slice(&event.json)?) {
                return Ok(());
            }
        }
    };
    tokio::time::timeout(RUN_LIMIT, read).await.with_context(|| format!("not within {} s", RUN_LIMIT.as_secs()))?
}
