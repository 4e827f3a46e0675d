//! A service of six real nginx survives the death of a machine, and then of the leader's machine.

use std::time::{Duration, Instant};

use flotilla_tests::writer::Writer;
use flotilla_tests::{Scene, eventually, figure, job, process, within};

const REPLICAS: usize = 6;
const HEAL_LIMIT: Duration = Duration::from_secs(8);
const ANSWER_WAIT: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn six_nginx_move_off_a_dead_machine_and_off_a_dead_leader() {
    let mut scene = Scene::set(3).await;
    let pods = scene.nginx("web", REPLICAS).await;
    all_answer(&scene, &pods).await;

    let leader = scene.cluster.leader("node-1").await.unwrap();
    let follower = scene.cluster.nodes_but(&leader).pop().unwrap();
    lose(&scene, &follower, "a machine died").await;
    come_back(&mut scene, &follower).await;

    let leader = scene.cluster.leader(&follower).await.unwrap();
    lose(&scene, &leader, "the leader's machine died").await;
    come_back(&mut scene, &leader).await;
}

/// Pulls the plug of a node while somebody writes, and sees its work move.
async fn lose(scene: &Scene, dead: &str, what: &str) {
    let cluster = &scene.cluster;
    let survivors = cluster.nodes_but(dead);
    // Something must run there, or nothing is shown.
    let before = job::status(cluster, &survivors[0], "web").await.unwrap();
    let moving = job::running(&before).iter().filter(|pod| pod.node == dead).count();
    assert!(moving > 0, "nothing runs on {dead}: {}", job::describe(&before));
    let writer = Writer::start(cluster, &format!("while-{dead}-died"), &survivors);

    let died = Instant::now();
    cluster.dev.pull_plug(dead).unwrap();
    let attempt = || job::running_on(cluster, &survivors[0], "web", REPLICAS, &survivors);
    let (pods, _) = within(HEAL_LIMIT, "six replicas run on the other two", attempt).await;
    let healed = died.elapsed();
    all_answer(scene, &pods).await;

    let written = writer.stop().await;
    let lost = written.missing(cluster, &survivors[1]).await.unwrap();
    assert_eq!(lost, Vec::<String>::new(), "acknowledged and lost");
    assert!(written.acknowledged.iter().any(|(_, at)| *at > died), "nothing was written afterwards");
    let (seconds, gap) = (healed.as_secs_f64(), written.longest_gap(died).as_secs_f64());
    figure(
        what,
        &format!(
            "{moving} of {REPLICAS} replicas ran elsewhere after {seconds:.2} s (limit 8 s), writes paused for {gap:.2} s"
        ),
    );
    assert!(healed <= HEAL_LIMIT, "{seconds:.2} s");
}

/// Switches a dead node on again: it is ready, and nothing of what moved away runs there a second time.
async fn come_back(scene: &mut Scene, node: &str) {
    scene.cluster.restart(node).await;
    scene.cluster.dev.wait_ready(&scene.cluster.nodes()).await.unwrap();
    // Pods are spread anew, so that the next death also finds something to kill.
    let cluster = &scene.cluster;
    let all = cluster.nodes();
    let count = || async {
        let found: usize = all.iter().map(|node| process::first_processes(cluster, node).len()).sum();
        if found == REPLICAS { Ok(()) } else { Err(format!("{found} containers run")) }
    };
    eventually(Duration::from_secs(20), "each replica runs once", count).await;
}

async fn all_answer(scene: &Scene, pods: &[flotilla::proto::PodSummary]) {
    let attempt = || job::all_answer(&scene.cluster, pods);
    eventually(ANSWER_WAIT, "each replica answers with its own name", attempt).await;
}
