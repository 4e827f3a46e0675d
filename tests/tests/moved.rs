//! A machine gets another address while it runs, and the others find it there by themselves.

use std::net::Ipv4Addr;
use std::time::Duration;

use flotilla_tests::{Cluster, cli, eventually, figure, job, within};

const MOVE_LIMIT: Duration = Duration::from_secs(15);
const SETTLE_WAIT: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_a_new_address_is_found_without_a_person() {
    let mut cluster = Cluster::start(3).await;
    let node = "node-3";
    cluster.dev.stop_daemon(node).unwrap();
    cluster.dev.let_roam(node).unwrap();
    cluster.restart(node).await;
    cluster.dev.wait_ready(&cluster.nodes()).await.unwrap();
    let old = cluster.dev.address(node).unwrap();
    let [a, b, c, d] = old.octets();
    let new = Ipv4Addr::new(a, b, c, d + 100);

    let script = format!("ip addr del {old}/24 dev eth0 && ip addr add {new}/24 dev eth0");
    let moved = cluster.space(node).command("/bin/sh").unwrap().args(["-c", &script]).status().unwrap();
    assert!(moved.success(), "{script}");
    let (_, took) = within(MOVE_LIMIT, "every node knows the new address", || found(&cluster, node, new)).await;
    figure(
        "a node has moved",
        &format!("the others knew its new address after {:.1} s (limit 15 s)", took.as_secs_f64()),
    );
    // A call to the moved node has to be dialled.
    reached_through(&cluster, "node-1", node).await;

    // One that was off meanwhile reads the new address off its disk, or hears of it.
    cluster.dev.kill_daemon("node-1").unwrap();
    cluster.restart("node-1").await;
    cluster.dev.wait_ready(&cluster.nodes()).await.unwrap();
    reached_through(&cluster, "node-1", node).await;
}

async fn found(cluster: &Cluster, node: &str, at: Ipv4Addr) -> Result<(), String> {
    for asked in ["node-1", "node-2"] {
        let nodes = cluster.node_summaries(asked).await?;
        let one = nodes.iter().find(|one| one.name == node).ok_or("it is gone")?;
        if one.address != at.to_string() || one.status != "Ready" {
            return Err(format!("{asked}: {} at {}", one.status, one.address));
        }
    }
    Ok(())
}

/// A command in a container of one node, asked of another.
async fn reached_through(cluster: &Cluster, asked: &str, node: &str) {
    let name = format!("on-{node}");
    if job::status(cluster, asked, &name).await.is_err() {
        let manifest = format!(
            "name: {name}\nimage: flotilla.dev/hello:latest\nnodeSelector:\n  kubernetes.io/hostname: {node}\n"
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), manifest).unwrap();
        let _ = cli::ok(cluster, asked, &["submit", &file.path().display().to_string()]);
    }
    let answered = || async {
        let pods = cli::ok(cluster, asked, &["pods"]);
        let pod = pods.lines().find(|line| line.starts_with(&name)).and_then(|line| line.split_whitespace().next());
        let pod = pod.ok_or_else(|| pods.clone())?;
        let said = cli::flotilla(cluster, asked, &["exec", pod, "--", "/hello", "fail", "7"]);
        if said.code == Some(7) { Ok(()) } else { Err(format!("{said:?}")) }
    };
    eventually(SETTLE_WAIT, "a command runs on the moved node", answered).await;
}
