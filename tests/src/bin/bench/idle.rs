//! What three nodes take while nothing happens.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::etcd::Etcd;
use crate::flotilla_cluster::Flotilla;
use crate::machine::{anonymous_mb, rss_mb};
use crate::report::Report;

const NODES: usize = 3;
pub const SETTLE: Duration = Duration::from_secs(5);
const LASTING: Duration = Duration::from_secs(10);
const LEADER_AIM_MB: f64 = 80.0;

/// Memory at the end, and processor time as a share of one core.
struct Cost {
    rss_mb: f64,
    anonymous_mb: f64,
    cpu_percent: f64,
}

/// # Errors
/// If a system does not start.
pub async fn measure(report: &mut Report) -> anyhow::Result<()> {
    let theirs = etcd().await?;
    let ours = flotilla().await?;
    for (role, ours, theirs) in [("leader", &ours[0], &theirs[0]), ("follower", &ours[1], &theirs[1])] {
        report.beside(&format!("idle {role}, resident memory"), ours.rss_mb, "etcd", theirs.rss_mb, "MB");
        report.beside("… of which not of files", ours.anonymous_mb, "etcd", theirs.anonymous_mb, "MB");
        report.beside(&format!("idle {role}, of one core"), ours.cpu_percent, "etcd", theirs.cpu_percent, "%");
    }
    report.aimed("idle leader, resident memory", ours[0].rss_mb, LEADER_AIM_MB, "MB");
    Ok(())
}

/// Leader and a follower.
async fn etcd() -> anyhow::Result<Vec<Cost>> {
    let etcd = Etcd::start(NODES).await?;
    let leader = etcd.leader().await?;
    let pids = [leader, (leader + 1) % NODES].map(|member| etcd.pid(member));
    watch(&pids.into_iter().flatten().collect::<Vec<_>>()).await
}

/// Leader and a follower.
async fn flotilla() -> anyhow::Result<Vec<Cost>> {
    let flotilla = Flotilla::start(NODES).await?;
    let leader = flotilla.leader().await?;
    let follower = flotilla.cluster.nodes_but(&leader).remove(0);
    let mut pids = Vec::new();
    for node in [leader, follower] {
        pids.push(u32::try_from(flotilla.cluster.dev.daemon(&node)?.pid)?);
    }
    watch(&pids).await
}

async fn watch(pids: &[u32]) -> anyhow::Result<Vec<Cost>> {
    tokio::time::sleep(SETTLE).await;
    let began = Instant::now();
    let before = pids.iter().map(|pid| cpu_seconds(*pid)).collect::<anyhow::Result<Vec<_>>>()?;
    tokio::time::sleep(LASTING).await;
    let cost = |(pid, before): (&u32, f64)| {
        let cpu_percent = (cpu_seconds(*pid)? - before) / began.elapsed().as_secs_f64() * 100.0;
        Ok(Cost { rss_mb: rss_mb(*pid)?, anonymous_mb: anonymous_mb(*pid)?, cpu_percent })
    };
    pids.iter().zip(before).map(cost).collect()
}

/// User and system time since the process began.
fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name may hold blanks and brackets; what follows it does not.
    let rest = stat.rsplit_once(')').context("no name")?.1;
    let ticks: Vec<u64> = rest.split_ascii_whitespace().skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    // SAFETY: a query without side effects.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Ok(ticks.iter().sum::<u64>() as f64 / per_second as f64)
}
