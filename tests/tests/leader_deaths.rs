//! The leader's machine dies again and again while a client writes all the while.

use std::time::{Duration, Instant};

use flotilla_tests::writer::Writer;
use flotilla_tests::{Cluster, eventually, figure};

/// How many leaders die; `LEADER_DEATHS=30` makes it thirty.
const ROUNDS: usize = 10;
const MEDIAN_LIMIT: Duration = Duration::from_secs(1);
const WORST_LIMIT: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn writes_go_on_within_a_second_and_none_is_lost() {
    let mut cluster = Cluster::start(3).await;
    let mut gaps = Vec::new();
    let rounds = rounds();
    for round in 0..rounds {
        gaps.push(kill_leader(&mut cluster, round).await);
    }
    gaps.sort();
    let (median, worst) = (gaps[rounds / 2], gaps[rounds - 1]);
    figure(
        "the leader died while a client wrote",
        &format!(
            "{rounds} times; no write for {:.2} s (median), {:.2} s (worst)",
            median.as_secs_f64(),
            worst.as_secs_f64()
        ),
    );
    assert!(median <= MEDIAN_LIMIT && worst <= WORST_LIMIT, "{gaps:?}");
}

fn rounds() -> usize {
    let rounds = std::env::var("LEADER_DEATHS").ok().and_then(|text| text.parse().ok());
    rounds.filter(|rounds| *rounds > 0).unwrap_or(ROUNDS)
}

async fn kill_leader(cluster: &mut Cluster, round: usize) -> Duration {
    let leader = cluster.leader("node-1").await.unwrap();
    let survivors = cluster.nodes_but(&leader);
    let writer = Writer::start(cluster, &format!("round-{round}"), &survivors);
    writer.wait_acknowledged(20).await;

    let died = Instant::now();
    cluster.dev.pull_plug(&leader).unwrap();
    // More than can have been under way when the leader died.
    writer.wait_acknowledged(writer.acknowledged() + 50).await;
    let written = writer.stop().await;

    cluster.restart(&leader).await;
    cluster.dev.wait_ready(&cluster.nodes()).await.unwrap();
    // Also on the node that was gone: it must have caught up.
    for node in cluster.nodes() {
        let missing = || async {
            match written.missing(cluster, &node).await?.as_slice() {
                [] => Ok(()),
                lost => Err(format!("{lost:?} are lost")),
            }
        };
        eventually(Duration::from_secs(10), &format!("{node} has every acknowledged write"), missing).await;
    }
    written.longest_gap(died)
}
