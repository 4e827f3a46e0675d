//! A follower that was killed comes back when a gigabyte was written meanwhile: how long until it serves the last write.

use std::time::{Duration, Instant};

use anyhow::Context;
use futures::future::try_join_all;
use nix::sys::signal::Signal;
use rand::distr::{Alphanumeric, SampleString};

use crate::client::{Client, Door};
use crate::etcd::Etcd;
use crate::flotilla_cluster::Flotilla;
use crate::load::connect;
use crate::report::Report;

const NODES: usize = 3;
const VALUE_BYTES: usize = 16 << 10;
const KEYS: usize = (1 << 30) / VALUE_BYTES;
const WRITERS: usize = 100;
/// Writing ends after this time, whether or not all keys are there.
const FILL_LIMIT: Duration = Duration::from_secs(240);
const PATIENCE: Duration = Duration::from_secs(300);
const ASK_AGAIN: Duration = Duration::from_millis(20);
const ASK_LIMIT: Duration = Duration::from_secs(10);

struct Caught {
    written_mb: f64,
    took: Duration,
}

/// # Errors
/// If a system does not start, or the follower does not come back.
pub async fn measure(report: &mut Report) -> anyhow::Result<()> {
    let theirs = etcd().await?;
    let ours = flotilla().await?;
    let what = format!(
        "follower back → serves the last write, {:.0} MB behind (etcd {:.0} MB), values of {} KiB, 3 nodes",
        ours.written_mb,
        theirs.written_mb,
        VALUE_BYTES >> 10
    );
    report.beside(&what, ours.took.as_secs_f64(), "etcd", theirs.took.as_secs_f64(), "s");
    Ok(())
}

async fn etcd() -> anyhow::Result<Caught> {
    let mut etcd = Etcd::start(NODES).await?;
    let leader = etcd.leader().await?;
    let follower = (leader + 1) % NODES;
    etcd.kill(follower)?;
    let (written_mb, last) = fill(&etcd.door(leader)).await?;
    let began = Instant::now();
    etcd.restart(follower).await?;
    served(&etcd.door(follower), &last).await?;
    Ok(Caught { written_mb, took: began.elapsed() })
}

async fn flotilla() -> anyhow::Result<Caught> {
    let mut flotilla = Flotilla::start(NODES).await?;
    let leader = flotilla.leader().await?;
    let follower = flotilla.cluster.nodes_but(&leader).remove(0);
    let daemon = flotilla.cluster.dev.daemon(&follower)?;
    daemon.signal(Signal::SIGKILL)?;
    anyhow::ensure!(daemon.wait_gone(PATIENCE), "{follower} outlives SIGKILL");
    let (written_mb, last) = fill(&flotilla.door(&leader)?).await?;
    let began = Instant::now();
    flotilla.cluster.restart(&follower).await;
    served(&flotilla.door(&follower)?, &last).await?;
    Ok(Caught { written_mb, took: began.elapsed() })
}

/// Writes until all is written or the time is over: how much, and a name that was written last.
async fn fill(door: &Door) -> anyhow::Result<(f64, String)> {
    let until = Instant::now() + FILL_LIMIT;
    let mut writers = connect(door, WRITERS + 1).await?;
    let mut last = writers.pop().context("a connection")?;
    let writers = writers.into_iter().enumerate();
    let written = try_join_all(writers.map(|(number, client)| tokio::spawn(write(client, number, until)))).await?;
    let keys = written.into_iter().sum::<anyhow::Result<usize>>()?;
    last.put("catch-up-last", "x").await?;
    Ok(((keys * VALUE_BYTES) as f64 / 1e6, "catch-up-last".to_owned()))
}

async fn write(mut client: Client, number: usize, until: Instant) -> anyhow::Result<usize> {
    for key in 0..KEYS / WRITERS {
        // A snapshot is compressed: what repeats would hardly have to be sent.
        let value = Alphanumeric.sample_string(&mut rand::rng(), VALUE_BYTES);
        if Instant::now() >= until {
            return Ok(key);
        }
        client.put(&format!("catch-up-{number}-{key}"), &value).await.context("a key cannot be written")?;
    }
    Ok(KEYS / WRITERS)
}

/// Waits until a member answers a linearizable read of `name`.
async fn served(door: &Door, name: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let asked = async { anyhow::Ok(door.open().await?.get(name).await?) };
        match tokio::time::timeout(ASK_LIMIT, asked).await {
            Ok(Ok(())) => return Ok(()),
            _ if Instant::now() >= deadline => anyhow::bail!("the follower does not catch up"),
            _ => tokio::time::sleep(ASK_AGAIN).await,
        }
    }
}
