//! Nodes on one network find each other where addresses are of no use: a machine with an old token, and a cluster whose
//! addresses all changed at once.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use flotilla::proto::NodeSummary;
use flotilla_net::Token;
use flotilla_tests::{Cluster, eventually, figure, object};

/// For a join that first tries an address in vain.
const JOIN_WAIT: Duration = Duration::from_secs(60);
/// Three debug builds that start at the same time and elect a leader.
const MEET_WAIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_joins_though_its_token_leads_nowhere() {
    let mut cluster = Cluster::start(1).await;
    let token: Token = cluster.dev.create_token(1).await.unwrap().parse().unwrap();
    let nowhere: SocketAddr = "192.0.2.1:6443".parse().unwrap();
    let node = cluster.dev.add_node().unwrap();
    cluster.dev.start(&node, Some(&token.found_at(vec![nowhere]).to_string())).unwrap();
    let ready = tokio::time::timeout(JOIN_WAIT, cluster.dev.wait_ready(&["node-1".into(), node])).await;
    ready.expect("it joins in time").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_whose_addresses_all_changed_finds_itself_again() {
    let mut cluster = Cluster::start(3).await;
    let nodes = cluster.nodes();
    for node in &nodes {
        cluster.dev.let_roam(node).unwrap();
        cluster.dev.kill_daemon(node).unwrap();
    }
    renumber(&mut cluster);
    for node in &nodes {
        cluster.dev.start(node, None).unwrap();
    }
    finds_itself(&cluster, "while all daemons were off").await;
    renumber(&mut cluster);
    finds_itself(&cluster, "while all daemons ran").await;
}

/// Gives every node another address.
fn renumber(cluster: &mut Cluster) {
    for node in cluster.nodes() {
        let before = cluster.dev.address(&node).unwrap();
        assert_ne!(cluster.dev.renumber(&node).unwrap(), before);
    }
}

async fn finds_itself(cluster: &Cluster, when: &str) {
    let begun = Instant::now();
    // The first writes may still go over connections that have not noticed. A node is ready at its new address when it
    // wrote that down, which takes a quorum.
    for node in cluster.nodes() {
        let address = cluster.dev.address(&node).unwrap().to_string();
        eventually(MEET_WAIT, &format!("{node} is ready at {address}"), || async {
            let summaries = cluster.node_summaries("node-2").await?;
            let is_there = |one: &&NodeSummary| one.name == node && one.status == "Ready" && one.address == address;
            summaries.iter().find(is_there).map(drop).ok_or_else(|| format!("{summaries:?}"))
        })
        .await;
    }
    let write = format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: moved}}\ndata: {{when: {when}}}\n");
    eventually(MEET_WAIT, "a write is acknowledged", || object::apply(cluster, "node-1", write.as_bytes())).await;
    figure(&format!("all addresses changed {when}"), &format!("found again after {:.1?}", begun.elapsed()));
}
