//! A disk flips bits: the node makes its replica anew from the others by itself, and its containers go on.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use flotilla_tests::writer::{Writer, Written};
use flotilla_tests::{Cluster, eventually, figure, job};

const HELLO: &str = "flotilla.dev/hello:latest";
const WAIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_disk_flipped_bits_gets_its_replica_from_the_others() {
    let mut cluster = Cluster::start(3).await;
    let nodes = cluster.nodes();
    job::submit(&cluster, "node-1", job::service("web", HELLO, 3)).await.unwrap();
    eventually(WAIT, "three replicas run", || job::running_on(&cluster, "node-1", "web", 3, &nodes)).await;
    // The founder knew nobody when it began: it has to find the others without its replica.
    for node in ["node-1", "node-3"] {
        let others = cluster.nodes_but(node);
        let before = cluster.container_processes(node);
        cluster.dev.kill_daemon(node).unwrap();
        let writer = Writer::start(&cluster, node, &others);
        writer.wait_acknowledged(50).await;
        flip_a_bit(&journal(&cluster.dev.places().data(node).join("store")));

        let began = Instant::now();
        cluster.restart(node).await;
        let voters = || async {
            let status = cluster.status(&others[0]).await?;
            if status.voters.len() == 3 { Ok(()) } else { Err(format!("{status:?}")) }
        };
        eventually(WAIT, "it votes again", voters).await;
        figure("a replica whose log had a flipped bit votes again", &format!("{:.1} s", began.elapsed().as_secs_f64()));
        let written = writer.stop().await;
        nothing_missing(&cluster, node, &written).await;
        let log = cluster.log(node).unwrap();
        assert!(log.contains("this node's replica is damaged; it is made anew from the others"), "{log}");
        assert_eq!(cluster.container_processes(node), before, "containers of {node} were touched");
    }
}

/// The file of the log's journal that was written last.
fn journal(store: &Path) -> PathBuf {
    let databases = fs::read_dir(store).unwrap().map(|entry| entry.unwrap().path().join("journal"));
    let files = databases.filter_map(|path| fs::read_dir(path).ok()).flatten().map(|entry| entry.unwrap().path());
    files.max_by_key(|path| path.metadata().unwrap().modified().unwrap()).expect("the log has a journal")
}

/// In the middle of what was written to a file.
fn flip_a_bit(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let written = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes[written / 2] ^= 4;
    fs::write(path, bytes).unwrap();
}

async fn nothing_missing(cluster: &Cluster, node: &str, written: &Written) {
    let missing = || async {
        match written.missing(cluster, node).await?.as_slice() {
            [] => Ok(()),
            lost => Err(format!("{} writes are missing", lost.len())),
        }
    };
    eventually(WAIT, &format!("{node} has every acknowledged write"), missing).await;
}
