//! SIGKILL for the leader's process, and how long until the next write is acknowledged by one of the others.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::client::{Client, Door};
use crate::etcd::Etcd;
use crate::flotilla_cluster::Flotilla;
use crate::report::{Report, Spread};

const ROUNDS: usize = 10;
const NODES: usize = 3;
/// A write that takes longer is asked again at the next node.
const WRITE_WAIT: Duration = Duration::from_millis(200);
/// A node that refuses at once must not turn this into a busy loop.
const ASK_AGAIN: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(30);

/// # Errors
/// If a system does not start, or does not come back.
pub async fn measure(report: &mut Report) -> anyhow::Result<()> {
    let theirs = etcd().await?;
    let ours = flotilla().await?;
    for (name, percent) in [("median", 50), ("worst", 100)] {
        let what = format!("leader killed → next write acknowledged, {name} of {ROUNDS}");
        report.beside(&what, ours.percentile_ms(percent), "etcd", theirs.percentile_ms(percent), "ms");
    }
    Ok(())
}

async fn etcd() -> anyhow::Result<Spread> {
    let mut etcd = Etcd::start(NODES).await?;
    let mut gaps = Vec::new();
    for round in 0..ROUNDS {
        let leader = etcd.leader().await?;
        let mut survivors = connect(&etcd.others(leader), round).await?;
        let died = Instant::now();
        etcd.kill(leader)?;
        gaps.push(next_write(&mut survivors, round, died).await?);
        etcd.restart(leader).await?;
    }
    Spread::of(gaps)
}

async fn flotilla() -> anyhow::Result<Spread> {
    let mut flotilla = Flotilla::start(NODES).await?;
    let mut gaps = Vec::new();
    for round in 0..ROUNDS {
        let leader = flotilla.leader().await?;
        let others = flotilla.cluster.nodes_but(&leader);
        let doors = others.iter().map(|node| flotilla.door(node)).collect::<anyhow::Result<Vec<_>>>()?;
        let mut survivors = connect(&doors, round).await?;
        let daemon = flotilla.cluster.dev.daemon(&leader)?;
        let died = Instant::now();
        daemon.signal(Signal::SIGKILL)?;
        gaps.push(next_write(&mut survivors, round, died).await?);
        anyhow::ensure!(daemon.wait_gone(PATIENCE), "{leader} outlives SIGKILL");
        flotilla.cluster.restart(&leader).await;
        flotilla.cluster.dev.wait_ready(&flotilla.cluster.nodes()).await?;
    }
    Spread::of(gaps)
}

/// Opens the doors, and writes once through each so that nothing is left to set up.
async fn connect(doors: &[Door], round: usize) -> anyhow::Result<Vec<Client>> {
    let mut clients = Vec::new();
    for (number, door) in doors.iter().enumerate() {
        let mut client = door.open().await?;
        tokio::time::timeout(PATIENCE, client.put(&format!("before-{round}-{number}"), "x")).await??;
        clients.push(client);
    }
    Ok(clients)
}

/// Writes a new key again and again, now here, now there, until it is acknowledged.
async fn next_write(clients: &mut [Client], round: usize, died: Instant) -> anyhow::Result<Duration> {
    for attempt in 0_u64.. {
        let name = format!("after-{round}-{attempt}");
        if let Ok(Ok(())) = tokio::time::timeout(WRITE_WAIT, clients[0].put(&name, "x")).await {
            break;
        }
        anyhow::ensure!(died.elapsed() < PATIENCE, "no write for {} s", PATIENCE.as_secs());
        clients.rotate_left(1);
        tokio::time::sleep(ASK_AGAIN).await;
    }
    Ok(died.elapsed())
}
