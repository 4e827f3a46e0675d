//! What one node takes with a million keys.

use std::time::{Duration, Instant};

use anyhow::Context;
use futures::future::try_join_all;

use crate::client::{Client, Door};
use crate::etcd::Etcd;
use crate::flotilla_cluster::Flotilla;
use crate::load::{VALUE_BYTES, connect, value};
use crate::machine::rss_mb;
use crate::report::Report;

const KEYS: usize = 1_000_000;
const WRITERS: usize = 100;
/// Filling ends after this time, whether or not all keys are there.
const FILL_LIMIT: Duration = Duration::from_secs(300);

struct Filled {
    keys: usize,
    rss_mb: f64,
}

/// # Errors
/// If a system does not start, or a write fails.
pub async fn measure(report: &mut Report) -> anyhow::Result<()> {
    let theirs = etcd().await?;
    let ours = flotilla().await?;
    let what = match (ours.keys, theirs.keys) {
        (KEYS, KEYS) => format!("resident memory with {KEYS} keys of {VALUE_BYTES} B, 1 node"),
        (ours, theirs) => {
            let seconds = FILL_LIMIT.as_secs();
            format!(
                "resident memory, 1 node, {ours} ConfigMaps and {theirs} etcd keys of {VALUE_BYTES} B in {seconds} s"
            )
        }
    };
    report.beside(&what, ours.rss_mb, "etcd", theirs.rss_mb, "MB");
    let per_key = |filled: &Filled| filled.rss_mb * 1e6 / filled.keys as f64;
    report.beside("… for each key", per_key(&ours), "etcd", per_key(&theirs), "B");
    Ok(())
}

async fn etcd() -> anyhow::Result<Filled> {
    let etcd = Etcd::start(1).await?;
    let keys = fill(&etcd.door(0)).await?;
    Ok(Filled { keys, rss_mb: rss_mb(etcd.pid(0).context("etcd has ended")?)? })
}

async fn flotilla() -> anyhow::Result<Filled> {
    let flotilla = Flotilla::start(1).await?;
    let keys = fill(&flotilla.door("node-1")?).await?;
    Ok(Filled { keys, rss_mb: rss_mb(u32::try_from(flotilla.cluster.dev.daemon("node-1")?.pid)?)? })
}

async fn fill(door: &Door) -> anyhow::Result<usize> {
    let until = Instant::now() + FILL_LIMIT;
    let writers = connect(door, WRITERS).await?.into_iter().enumerate();
    let written = try_join_all(writers.map(|(number, client)| tokio::spawn(write(client, number, until)))).await?;
    written.into_iter().sum()
}

async fn write(mut client: Client, number: usize, until: Instant) -> anyhow::Result<usize> {
    for key in 0..KEYS / WRITERS {
        if Instant::now() >= until {
            return Ok(key);
        }
        client.put(&format!("memory-{number}-{key}"), &value()).await.context("a key cannot be written")?;
    }
    Ok(KEYS / WRITERS)
}
