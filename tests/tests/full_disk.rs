//! The disk of a voter fills: the cluster takes nothing that grows, says whose disk it is, and goes on when there is room.

use std::time::Duration;

use flotilla_tests::{Cluster, cli, disk, eventually, object};

const LIMIT: Duration = Duration::from_secs(60);
const DISK_BYTES: u64 = 1024 * 1024 * 1024;
const LEFT_BYTES: u64 = 40 * 1024 * 1024;

async fn write(cluster: &Cluster, name: &str) -> Result<(), String> {
    let manifest = format!("{{apiVersion: v1, kind: ConfigMap, metadata: {{name: {name}}}}}");
    let applied = object::apply(cluster, "node-1", manifest.as_bytes()).await;
    applied.map(drop).map_err(|status| status.message().to_owned())
}

async fn problems(cluster: &Cluster, node: &str) -> Result<String, String> {
    Ok(cluster.status(node).await?.problems.join("\n"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told_and_what_frees_space_is_taken() {
    let mut cluster = Cluster::empty(|_| String::new()).await;
    let data = cluster.dev.places().data("node-3");
    disk::mount_small(&data, DISK_BYTES).unwrap();
    cluster.grow_to(3).await;
    write(&cluster, "before").await.unwrap();

    disk::fill(&data, LEFT_BYTES).unwrap();
    for node in cluster.nodes() {
        let told = || async {
            let problems = problems(&cluster, &node).await?;
            if problems.contains("the disk of node node-3 is nearly full") { Ok(()) } else { Err(problems) }
        };
        eventually(LIMIT, "every node says whose disk is full", told).await;
    }
    let refused = write(&cluster, "while-full").await.expect_err("nothing may grow");
    assert!(refused.contains("the disk of a voter is nearly full"), "{refused}");
    let _ = cli::ok(&cluster, "node-2", &["delete", "configmap", "before"]);

    disk::empty(&data).unwrap();
    eventually(LIMIT, "the cluster takes writes again", || write(&cluster, "after")).await;
    let untold = || async {
        let problems = problems(&cluster, "node-2").await?;
        if problems.is_empty() { Ok(()) } else { Err(problems) }
    };
    eventually(LIMIT, "there is nothing to tell", untold).await;
}
