//! The worst days: two of three machines are lost for good, and then the third one too.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use flotilla_tests::writer::Writer;
use flotilla_tests::{Cluster, cli, eventually, job, object};

const HELLO: &str = "flotilla.dev/hello:latest";
const WAIT: Duration = Duration::from_secs(40);

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_outlives_its_majority_and_then_its_last_machine() {
    let mut cluster = Cluster::start(3).await;
    let kept = tempfile::tempdir().unwrap();
    let backup = kept.path().join("flotilla.backup");
    let file = backup.to_str().unwrap();
    job::submit(&cluster, "node-1", job::service("web", HELLO, 3)).await.unwrap();
    running(&cluster, &cluster.nodes()).await;
    let survivor = cluster.nodes().pop().unwrap();
    let lost = cluster.nodes_but(&survivor);
    let containers = cluster.container_processes(&survivor);
    assert!(!containers.is_empty());

    let (before, during) = back_up_while_writing(&cluster, &survivor, file).await;
    for node in &lost {
        cluster.dev.pull_plug(node).unwrap();
    }

    eventually(WAIT, "the survivor says that nobody leads, whether it led or not", || async {
        let status = cluster.status(&survivor).await?;
        let told = status.problems.iter().any(|problem| problem.starts_with("no leader: "));
        if status.leader.is_empty() && told { Ok(()) } else { Err(format!("{:?}", status.problems)) }
    })
    .await;
    let shown = cli::ok(&cluster, &survivor, &["status"]);
    assert!(shown.contains("not known without a leader") && shown.contains("flotilla recover"), "{shown}");
    let running_daemon = offline(&cluster, &survivor, &["recover", "--yes"]);
    assert!(running_daemon.err.contains("takes a daemon that is stopped"), "{running_daemon:?}");
    cluster.dev.stop_daemon(&survivor).unwrap();
    let unsure = offline(&cluster, &survivor, &["recover"]);
    assert!(unsure.code == Some(1) && unsure.err.contains("say --yes"), "{unsure:?}");
    let recovered = offline(&cluster, &survivor, &["recover", "--yes"]);
    assert_eq!(recovered.code, Some(0), "{recovered:?}");
    assert!(recovered.out.contains("only voter of epoch 2"), "{recovered:?}");
    cluster.restart(&survivor).await;
    assert_eq!(cluster.container_processes(&survivor), containers, "containers do not notice");
    assert_eq!(during.missing(&cluster, &survivor).await.unwrap(), Vec::<String>::new());
    object::apply(&cluster, &survivor, b"{apiVersion: v1, kind: ConfigMap, metadata: {name: alone}}").await.unwrap();

    refuse_the_old(&mut cluster, &survivor, &lost[0]).await;
    let joined = join_anew(&mut cluster, &survivor, &lost[1]).await;

    // The last machines are lost too; elsewhere, only the backup and the seal key are left.
    let seal_key = kept.path().join("seal.key");
    std::fs::copy(cluster.dev.places().data(&survivor).join("identity/seal.key"), &seal_key).unwrap();
    cluster.dev.pull_plug(&survivor).unwrap();
    cluster.dev.pull_plug(&joined).unwrap();
    restore_elsewhere(&mut cluster, file, seal_key.to_str().unwrap(), &before).await;
}

/// Both live, and neither would ask the other for anything by itself.
#[tokio::test(flavor = "multi_thread")]
async fn two_machines_that_were_recovered_apart_both_say_so() {
    let mut cluster = Cluster::start(3).await;
    let survivors = cluster.nodes().split_off(1);
    cluster.dev.pull_plug("node-1").unwrap();
    for node in &survivors {
        cluster.dev.stop_daemon(node).unwrap();
        let recovered = offline(&cluster, node, &["recover", "--yes"]);
        assert_eq!(recovered.code, Some(0), "{recovered:?}");
    }
    let mut epochs = Vec::new();
    for node in &survivors {
        cluster.restart(node).await;
        epochs.push(cluster.status(node).await.unwrap().epoch);
    }
    assert!(epochs[0] != epochs[1] && epochs.iter().all(|epoch| epoch >> 32 == 2), "{epochs:?}");
    for node in &survivors {
        eventually(WAIT, "each knows of the other", || async {
            let status = cluster.status(node).await?;
            let told = status.problems.iter().any(|problem| problem.contains("there are two clusters with one name"));
            if told { Ok(()) } else { Err(format!("{:?}", status.problems)) }
        })
        .await;
        let status = cluster.status(node).await.unwrap();
        assert_eq!((&status.voters, status.learners.len()), (&vec![node.clone()], 0), "each stays for itself");
        let shown = cli::ok(&cluster, node, &["status"]);
        assert!(shown.contains("(restored or recovered once)"), "{shown}");
    }
}

/// Returns what was written before the backup was asked for, and what was written until after it.
async fn back_up_while_writing(
    cluster: &Cluster,
    node: &str,
    file: &str,
) -> (flotilla_tests::writer::Written, flotilla_tests::writer::Written) {
    let early = Writer::start(cluster, "early", &cluster.nodes());
    early.wait_acknowledged(50).await;
    let before = early.stop().await;
    let writer = Writer::start(cluster, "during", &cluster.nodes());
    writer.wait_acknowledged(5).await;
    let said = cli::ok(cluster, node, &["backup", file]);
    assert!(said.contains("flotilla.backup: revision "), "{said}");
    let during = writer.stop().await;
    let left: Vec<_> = std::fs::read_dir(Path::new(file).parent().unwrap()).unwrap().collect();
    assert_eq!(left.len(), 1, "only the whole backup is left: {left:?}");
    let caught_up = || async { during.missing(cluster, node).await.map(|missing| missing.is_empty()) };
    eventually(WAIT, "the survivor has it all", || async {
        match caught_up().await {
            Ok(true) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    (before, during)
}

/// A machine of the old epoch comes back with its disk: it is told what to do and ends.
async fn refuse_the_old(cluster: &mut Cluster, survivor: &str, old: &str) {
    cluster.dev.start(old, None).unwrap();
    eventually(WAIT, "the old member is told to join anew", || async {
        let log = cluster.log(old).map_err(|error| error.to_string())?;
        let told = log.contains("the cluster has gone on without this node, which belongs to its epoch 1 and not to 2");
        if told { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    cluster.dev.pull_plug(old).unwrap();
    let status = cluster.status(survivor).await.unwrap();
    let life = status.epoch >> 32;
    assert_eq!((status.voters, status.learners.len(), life), (vec![survivor.to_owned()], 0, 2));
    let told = format!("node {old} is still of epoch 1 ");
    assert!(status.problems.iter().any(|problem| problem.starts_with(&told)), "{:?}", status.problems);
    let _ = cli::ok(cluster, survivor, &["delete", "node", old]);
}

/// A lost machine is wiped and joins under its old name.
async fn join_anew(cluster: &mut Cluster, survivor: &str, node: &str) -> String {
    let _ = cli::ok(cluster, survivor, &["delete", "node", node]);
    std::fs::remove_dir_all(cluster.dev.places().data(node)).unwrap();
    let token = cli::ok(cluster, survivor, &["token", "create"]);
    let token = token.split_whitespace().find(|word| word.starts_with("flt1.")).expect("a token").to_owned();
    cluster.dev.start(node, Some(&token)).unwrap();
    cluster.dev.wait_answering(node).await.unwrap();
    eventually(WAIT, "the new replica has what was written", || async {
        let names = object::names(cluster, node, "configmaps").await?;
        if names.iter().any(|name| name == "alone") { Ok(()) } else { Err(format!("{} objects", names.len())) }
    })
    .await;
    assert_eq!(cluster.status(survivor).await.unwrap().learners, [node]);
    node.to_owned()
}

async fn restore_elsewhere(
    cluster: &mut Cluster,
    file: &str,
    seal_key: &str,
    before: &flotilla_tests::writer::Written,
) {
    let node = cluster.dev.add_node().unwrap();
    std::fs::create_dir_all(cluster.dev.places().data(&node)).unwrap();
    let garbled = format!("{file}.garbled");
    let mut bytes = std::fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&garbled, bytes).unwrap();
    let refused = offline(cluster, &node, &["restore", &garbled, "--seal-key", seal_key]);
    assert!(refused.code == Some(1) && refused.err.contains("is damaged"), "{refused:?}");
    assert_eq!(refused.err.lines().count(), 1, "{refused:?}");
    let data = cluster.dev.places().data(&node);
    let left: Vec<_> = std::fs::read_dir(&data).unwrap().map(|item| item.unwrap().file_name()).collect();
    assert_eq!(left, ["lock"], "nothing is left behind");

    // One that was killed had moved its store to its place already; it is run again.
    std::fs::create_dir_all(data.join("restoring/identity")).unwrap();
    std::fs::create_dir_all(data.join("store/log")).unwrap();
    let restored = offline(cluster, &node, &["restore", file, "--seal-key", seal_key]);
    assert_eq!(restored.code, Some(0), "{restored:?}");
    let again = offline(cluster, &node, &["restore", file, "--seal-key", seal_key]);
    assert!(again.err.contains("holds a node's data"), "{again:?}");
    cluster.restart(&node).await;
    assert_eq!(before.missing(cluster, &node).await.unwrap(), Vec::<String>::new());
    let status = cluster.status(&node).await.unwrap();
    let life = status.epoch >> 32;
    assert_eq!((status.voters, life), (vec![node.clone()], 2));
    cluster.dev.wait_ready(std::slice::from_ref(&node)).await.unwrap();
    for gone in ["node-1", "node-2", "node-3"] {
        let _ = cli::ok(cluster, &node, &["delete", "node", gone]);
    }
    running(cluster, std::slice::from_ref(&node)).await;
    let _ = cli::ok(cluster, &node, &["token", "create"]);
}

async fn running(cluster: &Cluster, nodes: &[String]) {
    let attempt = || job::running_on(cluster, &nodes[0], "web", 3, nodes);
    eventually(WAIT, "three replicas run", attempt).await;
}

/// A command about a node's data directory, as typed on that machine.
fn offline(cluster: &Cluster, node: &str, arguments: &[&str]) -> cli::Said {
    let places = cluster.dev.places();
    let address = format!("{}:6443", cluster.dev.address(node).unwrap());
    let mut command = cli::program();
    command.args(arguments).arg("--config").arg(places.config());
    command.arg("--data-dir").arg(places.data(node)).arg("--run-dir").arg(places.node_run(node));
    command.args(["--name", node, "--listen", &address, "--advertise", &address]);
    cli::said(command.stdin(Stdio::null()).output().expect("the binary can be started"))
}
