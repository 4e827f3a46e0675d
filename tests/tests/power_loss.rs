//! All machines lose power at once, and come back with everything that was acknowledged.

use std::time::Duration;

use flotilla_tests::writer::Writer;
use flotilla_tests::{Cluster, Scene, eventually, job, object};

const HELLO: &str = "flotilla.dev/hello:latest";
const BACK_WAIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_lost_power_has_every_acknowledged_write_and_runs_its_jobs() {
    let mut cluster = Cluster::start(3).await;
    job::submit(&cluster, "node-1", job::service("web", HELLO, 3)).await.unwrap();
    running(&cluster).await;
    let nodes = cluster.nodes();
    let writer = Writer::start(&cluster, "before", &nodes);
    writer.wait_acknowledged(200).await;
    for node in &nodes {
        cluster.dev.pull_plug(node).unwrap();
    }
    let written = writer.stop().await;

    for node in &nodes {
        cluster.dev.start(node, None).unwrap();
    }
    // One that was ready stays so for a while, also before it answers again.
    for node in &nodes {
        cluster.dev.wait_answering(node).await.unwrap();
    }
    cluster.dev.wait_ready(&nodes).await.unwrap();
    for node in &nodes {
        assert_eq!(written.missing(&cluster, node).await.unwrap(), Vec::<String>::new(), "on {node}");
    }
    running(&cluster).await;
}

async fn running(cluster: &Cluster) {
    let nodes = cluster.nodes();
    let attempt = || job::running_on(cluster, "node-1", "web", 3, &nodes);
    eventually(BACK_WAIT, "three replicas run", attempt).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_answers_the_same() {
    let scene = Scene::set(3).await;
    object::apply(&scene.cluster, "node-3", b"{apiVersion: v1, kind: ConfigMap, metadata: {name: seen}}")
        .await
        .unwrap();
    for node in scene.cluster.nodes() {
        assert_eq!(object::names(&scene.cluster, &node, "configmaps").await.unwrap(), ["seen"], "on {node}");
        assert_eq!(scene.cluster.status(&node).await.unwrap().voters.len(), 3);
    }
}
