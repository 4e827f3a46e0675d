//! One seed's story: a cluster grows, works under faults, is healed, and is judged.

use std::sync::Arc;
use std::time::Duration;

use crate::disk::Record;
use crate::options::Options;

use super::clients::{self, Client, Tally};
use super::cluster::Cluster;
use super::faults::{Faults, ask_to_add};
use super::watchers;
use super::world::{World, world};

/// Once all faults have ended, everything must agree within this time.
const MAX_RECOVERY: Duration = Duration::from_secs(90);

/// What a seed showed.
#[derive(Clone, Debug)]
pub(super) struct Report {
    pub seed: u64,
    pub trace_hash: u64,
    pub simulated: Duration,
    pub tally: Tally,
    pub events_watched: u64,
    pub terms: usize,
    pub revision: u64,
    pub violations: Vec<String>,
}

/// Small bounds, so that snapshots, purges and compactions happen all the time.
fn tune(options: &mut Options) {
    options.snapshot_entries = 60;
    options.log_keep_entries = 20;
    options.log_bytes = 256 * 1024;
    options.history.max_revisions = 400;
    options.replace_dead_after = Duration::from_secs(12);
}

/// Runs a seed on this thread.
pub(super) fn run(seed: u64) -> Report {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().expect("a runtime");
    runtime.block_on(async {
        let world = World::begin(seed);
        let report = play(seed, &world).await;
        Report { trace_hash: world.trace_hash(), violations: world.violations(), simulated: world.now(), ..report }
    })
}

async fn play(seed: u64, world: &Arc<World>) -> Report {
    let cluster = Cluster::new(tune);
    let machines = world.pick(&[1, 3, 3, 3, 5, 5]).expect("a size");
    let until = Duration::from_secs(world.between(20, 60));
    begin(&cluster, machines).await;

    let faults = Faults::new(cluster.clone(), machines + 1).run(until, world.pick(&[300, 2000, 8000]).expect("a pace"));
    let faults = tokio::spawn(faults);
    let stretches = watchers::Stretches::default();
    let watching = (0..3).map(|_| tokio::spawn(watchers::run(cluster.clone(), stretches.clone(), until)));
    let watching: Vec<_> = watching.collect();
    let pause_ms = world.pick(&[10, 60, 300]).expect("a pace");
    let working = (0..world.between(2, 7)).map(|_| tokio::spawn(Client::new(cluster.clone()).run(until, pause_ms)));
    let working: Vec<_> = working.collect();
    tend(&cluster, until).await;
    let _ = faults.await;
    world.note(0, "heals");
    cluster.heal();
    let mut clients = Vec::new();
    let patience = world.now() + MAX_RECOVERY;
    let healed = settle(&cluster, patience).await;
    for client in working {
        clients.extend(client.await.ok());
    }
    for watcher in watching {
        let _ = watcher.await;
    }
    if healed {
        agree(&cluster, world);
    }
    let invariants = world.invariants.lock().unwrap();
    let tally = clients::judge(clients, world, &invariants.truth);
    let events_watched = watchers::judge(&stretches, world, &invariants.truth);
    Report {
        seed,
        trace_hash: 0,
        simulated: Duration::ZERO,
        tally,
        events_watched,
        terms: invariants.terms(),
        revision: invariants.truth.last_key_value().map_or(0, |(revision, _)| *revision),
        violations: Vec::new(),
    }
}

/// Makes the first machine a cluster, and has the others become replicas of it.
async fn begin(cluster: &Arc<Cluster>, machines: u64) {
    cluster.add(1);
    cluster.keep_up().await;
    if let Some(station) = cluster.station(1) {
        let (tell, told) = tokio::sync::oneshot::channel();
        tokio::spawn(station.host.task(async move { tell.send(station.store.bootstrap().await) }));
        let _ = told.await;
    }
    for id in 2..=machines {
        cluster.add(id);
        ask_to_add(cluster, 1, id);
    }
}

/// Does what daemons and their supervisors do.
async fn tend(cluster: &Arc<Cluster>, until: Duration) {
    let world = world();
    let mut seconds = 0;
    while world.now() < until {
        cluster.keep_up().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        if world.now().as_secs() > seconds {
            seconds = world.now().as_secs();
            cluster.reconcile();
        }
    }
}

/// Waits until a write goes through and every replica has all that any has; whether that happened in time.
async fn settle(cluster: &Arc<Cluster>, patience: Duration) -> bool {
    let world = world();
    let mut written = false;
    while world.now() < patience {
        tend(cluster, world.now() + Duration::from_secs(1)).await;
        written = written || write_once(cluster).await;
        let last = world.invariants.lock().unwrap().last_applied();
        let leader = cluster.leader().and_then(|id| cluster.status(id));
        let Some(leader) = leader.filter(|_| written) else { continue };
        let members = leader.voters.union(&leader.learners);
        let caught_up =
            |id: &u64| cluster.status(*id).is_some_and(|s| s.applied_index >= last && s.leader == Some(leader.id));
        let present = members.filter(|id| cluster.ids().contains(id));
        if present.into_iter().all(caught_up) {
            return true;
        }
    }
    let standing: Vec<_> = cluster.ids().into_iter().map(|id| (id, cluster.status(id))).collect();
    world.violation(format_args!("no recovery within {MAX_RECOVERY:?}: written={written} {standing:?}"));
    false
}

async fn write_once(cluster: &Arc<Cluster>) -> bool {
    let Some(station) = cluster.leader().and_then(|id| cluster.station(id)) else { return false };
    let (tell, told) = tokio::sync::oneshot::channel();
    let change = flotilla_api::Change::new("sim", "sim").put(clients::key("marks", 0), "0".into());
    tokio::spawn(station.host.task(async move { tell.send(station.store.propose(change).await.is_ok()) }));
    matches!(tokio::time::timeout(Duration::from_secs(10), told).await, Ok(Ok(true)))
}

/// Replicas at the same index have the same state, byte for byte.
fn agree(cluster: &Cluster, world: &World) {
    let mut first: Option<(u64, u64, Vec<Record>)> = None;
    for id in cluster.running() {
        let Some(station) = cluster.station(id) else { continue };
        let (applied, state) = station.store.dump();
        match &first {
            None => first = Some((id, applied, state)),
            Some((other, index, wanted)) if *index == applied && *wanted != state => {
                world.violation(format_args!("nodes {other} and {id} differ at index {applied}"));
            }
            Some(_) => {}
        }
    }
}
