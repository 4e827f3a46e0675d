//! A cluster under load while machines die, pause, are cut off and run out of disk, at random but by a seed.
//!
//! What is checked: no acknowledged write is lost or applied twice, the history of each register is linearizable, every
//! watcher sees every event once and in order, and the cluster takes writes again soon after each fault is over.

mod clients;
mod faults;
mod follow;
mod history;

use std::fmt;
use std::time::{Duration, Instant};

use flotilla::proto::ApplyRequest;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::{Cluster, disk, eventually};
use clients::{Clients, Histories, REGISTERS, manifest, register, version};
use faults::Counts;
use follow::{Followers, Seen};
use history::{Did, Version};

const CLIENTS: usize = 6;
const WATCHERS: usize = 4;
const NODES: usize = 5;
const DISK_BYTES: u64 = 768 << 20;
/// A probe that takes longer is sent to the next node.
const PROBE_WAIT: Duration = Duration::from_millis(200);
/// Nothing takes longer than this unless it never comes.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two faults, so that there is something to disturb.
const CALM_WRITES: u64 = 30;

#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub seed: u64,
    pub duration: Duration,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Outcome {
    pub seed: u64,
    pub lasted: Duration,
    pub faults: Counts,
    pub acknowledged: usize,
    pub unknown: usize,
    pub reads: usize,
    pub events: usize,
    pub resumed: u64,
    /// From each fault's end to the next acknowledged write.
    pub recoveries: Vec<Duration>,
    pub violations: Vec<String>,
}

impl Outcome {
    #[must_use]
    pub fn slowest_recovery(&self) -> Duration {
        self.recoveries.iter().max().copied().unwrap_or_default()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: Vec<String> = self.faults.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        write!(
            f,
            "chaos: seed {}, {:.0} s, faults: {}; {} writes acknowledged, {} unanswered, {} reads, {} events to \
             {WATCHERS} watchers that resumed {} times; writable again after {:.2} s at the latest; {} violations",
            self.seed,
            self.lasted.as_secs_f64(),
            faults.join(", "),
            self.acknowledged,
            self.unknown,
            self.reads,
            self.events,
            self.resumed,
            self.slowest_recovery().as_secs_f64(),
            self.violations.len()
        )
    }
}

/// Boots a cluster, lets it suffer for the time given, and judges what came of it.
///
/// # Errors
/// If the cluster does not start, or a fault cannot be brought about or undone.
///
/// # Panics
/// If a node does not come back.
pub async fn run(options: Options) -> anyhow::Result<Outcome> {
    let mut cluster = Cluster::empty(|_| String::new()).await;
    for number in 1..=NODES {
        disk::mount_small(&cluster.dev.places().data(&format!("node-{number}")), DISK_BYTES)?;
    }
    cluster.grow_to(NODES).await;
    let began = first_versions(&cluster).await;
    let revision = began.iter().map(|version| version.revision).max().unwrap_or_default();
    let followers = Followers::start(&cluster, WATCHERS, revision);
    let clients = Clients::start(&cluster, CLIENTS, options.seed, Instant::now());

    let mut outcome = Outcome { seed: options.seed, ..Outcome::default() };
    let start = Instant::now();
    let mut rng = StdRng::seed_from_u64(options.seed);
    while start.elapsed() < options.duration {
        suffer(&mut cluster, &clients, &mut rng, &mut outcome).await?;
    }
    outcome.lasted = start.elapsed();
    let histories = clients.stop().await;
    let last = probe(&cluster, "the end").await;
    let seen = followers.finish(last, PATIENCE).await;
    judge(&mut outcome, &began, &histories, &seen);
    Ok(outcome)
}

/// Writes each register once, so that no reader finds it missing.
async fn first_versions(cluster: &Cluster) -> Vec<Version> {
    let mut all = Vec::new();
    for number in 0..REGISTERS {
        let request = ApplyRequest { manifest: manifest(&register(number), "first", None), ..ApplyRequest::default() };
        let answer = cluster.objects("node-1").apply(request).await.expect("a healthy cluster takes writes");
        let applied = answer.into_inner().applied.pop().expect("one object was applied");
        let object = serde_json::from_slice(&applied.json).expect("an object is JSON");
        all.push(version(&object).expect("a register has a value"));
    }
    all
}

/// One fault from its beginning until all nodes are well again.
async fn suffer(
    cluster: &mut Cluster,
    clients: &Clients,
    rng: &mut StdRng,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let calm = clients.acknowledged() + CALM_WRITES;
    let written = || async { if clients.acknowledged() >= calm { Ok(()) } else { Err("too few writes") } };
    eventually(PATIENCE, "clients write", written).await;
    let leader = eventually(PATIENCE, "somebody leads", || cluster.leader("node-1")).await;
    let (fault, hold) = faults::draw(rng, &cluster.nodes(), &leader);
    println!("fault {}: {fault:?} for {:.1} s", outcome.recoveries.len() + 1, hold.as_secs_f64());
    faults::bring_about(cluster, &fault)?;
    // The fault's length is part of the draw; there is no condition to wait for.
    tokio::time::sleep(hold).await;
    faults::undo(cluster, &fault)?;
    let healed = Instant::now();
    probe(cluster, &format!("recovery {}", outcome.recoveries.len())).await;
    let recovery = healed.elapsed();
    println!("  writable again after {:.2} s", recovery.as_secs_f64());
    outcome.recoveries.push(recovery);
    for kind in fault.kinds() {
        *outcome.faults.entry(kind).or_default() += 1;
    }
    for node in cluster.nodes() {
        cluster.dev.wait_answering(&node).await?;
    }
    Ok(cluster.dev.wait_ready(&cluster.nodes()).await?)
}

/// Writes through one node after the other until a write is acknowledged, and returns its revision.
async fn probe(cluster: &Cluster, value: &str) -> u64 {
    let mut nodes: Vec<_> = cluster.nodes().iter().map(|node| cluster.objects(node)).collect();
    let write = || {
        nodes.rotate_left(1);
        let mut node = nodes[0].clone();
        let request = ApplyRequest { manifest: manifest("probe", value, None), ..ApplyRequest::default() };
        async move {
            let answer = match tokio::time::timeout(PROBE_WAIT, node.apply(request)).await {
                Ok(Ok(answer)) => answer.into_inner(),
                Ok(Err(status)) => return Err(status.message().to_owned()),
                Err(_) => return Err("no answer in time".to_owned()),
            };
            let object = answer.applied.first().map(|applied| serde_json::from_slice(&applied.json));
            let object = object.ok_or("nothing was applied")?.map_err(|error| error.to_string())?;
            version(&object).map(|version| version.revision).ok_or_else(|| "no version".to_owned())
        }
    };
    eventually(PATIENCE, "a write is acknowledged", write).await
}

fn judge(outcome: &mut Outcome, began: &[Version], histories: &Histories, seen: &[Seen]) {
    let (mut orders, mut violations) = follow::agreed(seen);
    orders.remove("probe");
    for (number, first) in began.iter().enumerate() {
        orders.entry(register(number)).or_default().insert(0, first.clone());
    }
    for (name, order) in &orders {
        let operations = histories.get(name).map_or(&[][..], Vec::as_slice);
        violations.extend(history::contradictions(order, operations).into_iter().map(|one| format!("{name}: {one}")));
    }
    for operation in histories.values().flatten() {
        match &operation.did {
            Did::Read(_) => outcome.reads += 1,
            Did::Wrote { revision: Some(_), .. } => outcome.acknowledged += 1,
            Did::Wrote { revision: None, .. } => outcome.unknown += 1,
        }
    }
    outcome.events = seen.iter().map(|seen| seen.events.len()).sum();
    outcome.resumed = seen.iter().map(|seen| seen.resumed).sum();
    outcome.violations = violations;
}
