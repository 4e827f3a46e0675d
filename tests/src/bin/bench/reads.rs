//! Linearizable reads: one object of 256 bytes, and lists of ten thousand.

use std::time::{Duration, Instant};

use anyhow::Context;
use futures::future::try_join_all;

use crate::client::{Client, Door};
use crate::load::{VALUE_BYTES, Work, connect, load, value};
use crate::pair::{Pair, at_leaders};
use crate::puts::tell;
use crate::report::{Report, Spread};

const CLIENTS: [usize; 3] = [1, 100, 1000];
const NODES: [usize; 2] = [1, 3];
const RANGE_KEYS: usize = 10_000;
const RANGES: usize = 20;
const WRITERS: usize = 100;

/// # Errors
/// If a system does not start, or a read fails.
pub async fn objects(report: &mut Report) -> anyhow::Result<()> {
    for nodes in NODES {
        let Pair { ours, theirs } = at_leaders(nodes, async |door| {
            let mut done = Vec::new();
            for clients in CLIENTS {
                done.push(load(&door, clients, Work::Get).await?);
            }
            Ok(done)
        })
        .await?;
        for ((clients, ours), theirs) in CLIENTS.into_iter().zip(&ours).zip(&theirs) {
            let what = format!("ConfigMaps of {VALUE_BYTES} B read linearizably, {clients} clients, {nodes} nodes");
            tell(report, &what, "etcd range of one key", ours, theirs);
        }
    }
    Ok(())
}

/// # Errors
/// If a system does not start, or a list fails.
pub async fn ranges(report: &mut Report) -> anyhow::Result<()> {
    let Pair { ours, theirs } = at_leaders(3, async |door| list_often(&door).await).await?;
    for (name, percent) in [("p50", 50), ("longest", 100)] {
        let what = format!("list of {RANGE_KEYS} ConfigMaps of {VALUE_BYTES} B, 3 nodes, {name} of {RANGES}");
        report.beside(&what, ours.percentile_ms(percent), "etcd range", theirs.percentile_ms(percent), "ms");
    }
    Ok(())
}

async fn list_often(door: &Door) -> anyhow::Result<Spread> {
    let clients = connect(door, WRITERS).await?;
    try_join_all(clients.into_iter().enumerate().map(|(number, client)| fill(client, number))).await?;
    let mut client = door.open().await?;
    let mut took: Vec<Duration> = Vec::new();
    for _ in 0..RANGES {
        let began = Instant::now();
        let count = client.list("range-").await?;
        took.push(began.elapsed());
        // A namespace of ours has a ConfigMap of its own.
        anyhow::ensure!((RANGE_KEYS..=RANGE_KEYS + 1).contains(&count), "the list holds {count} of {RANGE_KEYS} keys");
    }
    Spread::of(took)
}

async fn fill(mut client: Client, number: usize) -> anyhow::Result<()> {
    for key in 0..RANGE_KEYS / WRITERS {
        client.put(&format!("range-{number}-{key}"), &value()).await.context("a key cannot be written")?;
    }
    Ok(())
}
