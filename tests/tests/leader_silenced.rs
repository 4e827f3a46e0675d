//! A leader that is held still, or that nobody hears, is replaced; when it is back it finds itself deposed.

use std::time::{Duration, Instant};

use flotilla_tests::writer::{Writer, Written};
use flotilla_tests::{Cluster, eventually, figure, object};

const WRITE_LIMIT: Duration = Duration::from_secs(2);
const CALM: Duration = Duration::from_secs(15);
/// A leader that hears nobody gives up its lease well within this time.
const LEASE: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_held_still_steps_down_and_nothing_is_lost() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader("node-1").await.unwrap();
    let others = cluster.nodes_but(&leader);
    let writer = Writer::start(&cluster, "meanwhile", &others);
    writer.wait_acknowledged(20).await;

    let paused = Instant::now();
    cluster.dev.pause(&leader).unwrap();
    writer.wait_acknowledged(writer.acknowledged() + 200).await;
    let successor = new_leader(&cluster, &others[0], &leader).await;
    // `STILL_SECONDS=60` for a longer time.
    let still = std::env::var("STILL_SECONDS").map_or(0, |seconds| seconds.parse().expect("STILL_SECONDS is a number"));
    tokio::time::sleep_until((paused + Duration::from_secs(still)).into()).await;
    cluster.dev.resume(&leader).unwrap();
    writer.wait_acknowledged(writer.acknowledged() + 200).await;
    let written = writer.stop().await;

    let gap = written.longest_gap(paused);
    figure("the leader was held still and released", &format!("no write for {:.2} s at most", gap.as_secs_f64()));
    assert!(gap <= WRITE_LIMIT, "{gap:?}");
    assert_eq!(cluster.leader(&others[0]).await.unwrap(), successor, "the one that came back leads again");
    nothing_missing(&cluster, &written).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_nobody_hears_acknowledges_and_tells_nothing() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader("node-1").await.unwrap();
    let others = cluster.nodes_but(&leader);
    cluster.dev.cut(&leader).unwrap();
    let cut = Instant::now();
    new_leader(&cluster, &others[0], &leader).await;
    // Its lease bounds how long it may believe that it leads.
    tokio::time::sleep_until((cut + LEASE).into()).await;

    let alone = b"{apiVersion: v1, kind: ConfigMap, metadata: {name: alone}}";
    let write = tokio::time::timeout(WRITE_LIMIT, object::apply(&cluster, &leader, alone)).await;
    assert!(!matches!(write, Ok(Ok(_))), "a write without a quorum is acknowledged: {write:?}");
    let together = b"{apiVersion: v1, kind: ConfigMap, metadata: {name: together}}";
    object::apply(&cluster, &others[0], together).await.unwrap();
    let read = tokio::time::timeout(WRITE_LIMIT, object::names(&cluster, &leader, "configmaps")).await;
    assert!(!matches!(&read, Ok(Ok(_))), "a read misses what was written elsewhere: {read:?}");

    cluster.dev.heal(&leader).unwrap();
    for node in cluster.nodes() {
        let there = || async {
            let names = object::names(&cluster, &node, "configmaps").await?;
            if names.contains(&"together".to_owned()) { Ok(()) } else { Err(format!("{names:?}")) }
        };
        eventually(CALM, &format!("{node} has what was written meanwhile"), there).await;
    }
}

/// Waits until `node` follows somebody else than `old`.
async fn new_leader(cluster: &Cluster, node: &str, old: &str) -> String {
    let changed = || async {
        let leader = cluster.leader(node).await?;
        if leader == old { Err(format!("{leader} still leads")) } else { Ok(leader) }
    };
    eventually(CALM, "another leader is elected", changed).await
}

async fn nothing_missing(cluster: &Cluster, written: &Written) {
    for node in cluster.nodes() {
        let missing = || async {
            match written.missing(cluster, &node).await?.as_slice() {
                [] => Ok(()),
                lost => Err(format!("{} writes are missing", lost.len())),
            }
        };
        eventually(CALM, &format!("{node} has every acknowledged write"), missing).await;
    }
}
