//! A machine whose processors and disk are busy with other things is no reason for an election.

use std::time::{Duration, Instant};

use flotilla_tests::burden::Burden;
use flotilla_tests::writer::Writer;
use flotilla_tests::{Cluster, figure};

/// How long the machine is busy; `BUSY_SECONDS=600` makes it ten minutes.
const BUSY_SECONDS: u64 = 20;
const LOOK_AGAIN: Duration = Duration::from_millis(250);

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_elected_while_the_machine_is_busy() {
    let cluster = Cluster::start(3).await;
    let before = cluster.status("node-1").await.unwrap();
    let writer = Writer::start(&cluster, "meanwhile", &cluster.nodes());
    let burden = Burden::start(cluster.dev.places().dir().join("burden")).unwrap();
    let began = Instant::now();
    while began.elapsed() < busy_time() {
        for node in cluster.nodes() {
            // Not to hear from a node in time is what a busy machine may bring; another term is not.
            if let Ok(status) = cluster.status(&node).await {
                assert_eq!((status.term, &status.leader), (before.term, &before.leader), "as {node} sees it");
            }
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    let disk_bytes = burden.written_bytes();
    drop(burden);
    let written = writer.stop().await;
    figure(
        "the machine was busy",
        &format!(
            "{} s, {} MiB written and synced beside the cluster: no election, {} writes acknowledged",
            busy_time().as_secs(),
            disk_bytes >> 20,
            written.acknowledged.len()
        ),
    );
    assert!(!written.acknowledged.is_empty(), "nothing was written");
    assert_eq!(written.missing(&cluster, "node-2").await.unwrap(), Vec::<String>::new());
}

fn busy_time() -> Duration {
    let seconds = std::env::var("BUSY_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(BUSY_SECONDS))
}
