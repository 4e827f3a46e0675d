//! The daemon is killed; its containers do not notice, and the next daemon takes them over.

use std::collections::BTreeMap;
use std::time::Duration;

use flotilla_tests::{Scene, eventually, image, job, object, process};

const REPLICAS: usize = 6;
const ADOPT_WAIT: Duration = Duration::from_secs(20);
/// Writes a number every 100 ms, so that a gap in its output shows.
const COUNTER: &str = "i=0; while true; do i=$((i+1)); echo line $i; sleep 0.1; done";

#[tokio::test(flavor = "multi_thread")]
async fn containers_keep_their_processes_and_output_through_crashes() {
    let mut scene = Scene::set(3).await;
    let image = scene.registry.push(&image::busybox(scene.registry.workshop()));
    scene.submit(job::script("count", &image, 6, COUNTER)).await;
    scene.wait_running("count", REPLICAS).await;
    let before = processes(&scene);
    assert_eq!(before.values().map(BTreeMap::len).sum::<usize>(), REPLICAS, "{before:?}");

    scene.cluster.dev.kill_daemon("node-2").unwrap();
    scene.cluster.restart("node-2").await;
    same_as(&scene, &before, "one daemon was killed").await;

    for node in scene.cluster.nodes() {
        scene.cluster.dev.kill_daemon(&node).unwrap();
    }
    for node in scene.cluster.nodes() {
        scene.cluster.dev.start(&node, None).unwrap();
    }
    scene.cluster.dev.wait_ready(&scene.cluster.nodes()).await.unwrap();
    same_as(&scene, &before, "all daemons were killed").await;
    adopted_ones_still_obey(&scene).await;
}

/// The containers' first processes by node.
fn processes(scene: &Scene) -> BTreeMap<String, BTreeMap<i32, String>> {
    let nodes = scene.cluster.nodes().into_iter();
    nodes.map(|node| (node.clone(), process::first_processes(&scene.cluster, &node))).collect()
}

/// The same processes, no others, no restart counted, and output without a gap up to now.
async fn same_as(scene: &Scene, before: &BTreeMap<String, BTreeMap<i32, String>>, what: &str) {
    let pods = scene.wait_running("count", REPLICAS).await;
    assert_eq!(processes(scene), *before, "after {what}");
    for pod in &pods {
        assert_eq!(pod.restarts, 0, "{} after {what}", pod.name);
        let first = lines(scene, &pod.name).await;
        let grown = || async {
            let now = lines(scene, &pod.name).await;
            if now > first { Ok(()) } else { Err(format!("{} lines", now)) }
        };
        eventually(ADOPT_WAIT, &format!("{} writes on after {what}", pod.name), grown).await;
    }
}

/// How many lines a pod wrote, all in their order.
async fn lines(scene: &Scene, pod: &str) -> usize {
    let text = object::logs(&scene.cluster, "node-1", pod).await.unwrap();
    for (number, line) in (1..).zip(text.lines()) {
        assert_eq!(line, format!("line {number}"), "a gap in the output of {pod}");
    }
    text.lines().count()
}

async fn adopted_ones_still_obey(scene: &Scene) {
    let request = flotilla::proto::ScaleJobRequest { namespace: String::new(), name: "count".into(), count: 3 };
    scene.cluster.jobs("node-1").scale(request).await.unwrap();
    let fewer = || async {
        let left: usize = processes(scene).values().map(BTreeMap::len).sum();
        if left == 3 { Ok(()) } else { Err(format!("{left} containers run")) }
    };
    eventually(Duration::from_secs(60), "three adopted containers are stopped", fewer).await;
}
