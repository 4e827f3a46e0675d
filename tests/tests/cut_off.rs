//! A node is cut off, its work moves, and it comes back without harm.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use flotilla_tests::writer::Writer;
use flotilla_tests::{Scene, eventually, figure, job, process};

const REPLICAS: usize = 6;
const CALM: Duration = Duration::from_secs(20);
/// How long the cable is out; `CUT_OFF_SECONDS=60` makes it a minute.
const CUT_SECONDS: u64 = 15;

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_cut_off_comes_back_without_a_second_copy_of_anything() {
    let scene = Scene::set(3).await;
    let cluster = &scene.cluster;
    scene.nginx("web", REPLICAS).await;
    let leader = cluster.leader("node-1").await.unwrap();
    let lost = cluster.nodes_but(&leader).pop().unwrap();
    let others = cluster.nodes_but(&lost);
    let stale = process::first_processes(cluster, &lost);
    assert!(!stale.is_empty(), "nothing runs on {lost}");
    let writer = Writer::start(cluster, "meanwhile", &others);
    writer.wait_acknowledged(20).await;

    let began = Instant::now();
    cluster.dev.cut(&lost).unwrap();
    let attempt = || job::running_on(cluster, &others[0], "web", REPLICAS, &others);
    let moved = eventually(CALM, "the work moves to the others", attempt).await;
    assert_eq!(process::first_processes(cluster, &lost), stale, "a node that is cut off keeps serving");
    let moved: BTreeSet<_> = moved.iter().map(|pod| &pod.name).collect();
    assert!(stale.values().all(|name| !moved.contains(name)), "one name runs twice: {stale:?} {moved:?}");
    wait_out(began + cut_time()).await;
    let written = writer.stop().await;

    cluster.dev.heal(&lost).unwrap();
    let healed = Instant::now();
    cluster.dev.wait_ready(&cluster.nodes()).await.unwrap();
    let stopped = || async {
        let left: Vec<_> =
            process::first_processes(cluster, &lost).into_keys().filter(|pid| stale.contains_key(pid)).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?} still run")) }
    };
    eventually(CALM, "the stale pods stop", stopped).await;
    figure(
        "a node was cut off and came back",
        &format!("its stale pods were gone after {:.1} s", healed.elapsed().as_secs_f64()),
    );
    each_runs_once(&scene).await;
    for node in cluster.nodes() {
        let nothing_lost = || async {
            match written.missing(cluster, &node).await?.as_slice() {
                [] => Ok(()),
                lost => Err(format!("{} writes are missing", lost.len())),
            }
        };
        eventually(CALM, &format!("{node} has every acknowledged write"), nothing_lost).await;
    }
}

async fn each_runs_once(scene: &Scene) {
    let count = || async {
        let nodes = scene.cluster.nodes();
        let mut hosts = BTreeMap::<String, usize>::new();
        for host in nodes.iter().flat_map(|node| process::first_processes(&scene.cluster, node).into_values()) {
            *hosts.entry(host).or_default() += 1;
        }
        let once = hosts.len() == REPLICAS && hosts.values().all(|count| *count == 1);
        if once { Ok(()) } else { Err(format!("{hosts:?}")) }
    };
    eventually(CALM, "each replica runs once", count).await;
    let pods = scene.wait_running("web", REPLICAS).await;
    eventually(CALM, "each replica answers", || job::all_answer(&scene.cluster, &pods)).await;
}

fn cut_time() -> Duration {
    let seconds = std::env::var("CUT_OFF_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(CUT_SECONDS))
}

/// The length of the cut is what is tested; there is no condition to wait for.
async fn wait_out(until: Instant) {
    tokio::time::sleep_until(until.into()).await;
}
