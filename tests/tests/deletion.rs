//! Nodes are deleted while their machines run, whoever votes or leads among them: the cluster goes on.

use std::collections::BTreeSet;
use std::time::Duration;

use flotilla_tests::writer::Writer;
use flotilla_tests::{Cluster, cli, eventually, job, object};

const LIMIT: Duration = Duration::from_secs(60);

async fn writes(cluster: &Cluster, node: &str, name: &str) {
    let manifest = format!("{{apiVersion: v1, kind: ConfigMap, metadata: {{name: {name}}}}}");
    let written = || async {
        let applied = object::apply(cluster, node, manifest.as_bytes()).await;
        applied.map(drop).map_err(|status| status.message().to_owned())
    };
    eventually(LIMIT, "the cluster takes writes", written).await;
}

/// The deleted machine ends by itself, and says why.
async fn ends(cluster: &Cluster, node: &str) {
    let told = || async {
        let log = cluster.log(node).map_err(|error| error.to_string())?;
        let told = log.contains("this machine was removed from the cluster") && log.contains("stopping;");
        if told { Ok(()) } else { Err("not yet".to_owned()) }
    };
    eventually(LIMIT, "the deleted machine ends", told).await;
}

async fn vote(cluster: &Cluster, voters: &[String]) {
    let settled = || async {
        let status = cluster.status(&voters[0]).await?;
        let now: BTreeSet<_> = status.voters.iter().collect();
        if now == voters.iter().collect() { Ok(()) } else { Err(format!("{:?}", status.voters)) }
    };
    eventually(LIMIT, "these vote", settled).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voter_is_deleted_while_another_is_dead() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader("node-1").await.unwrap();
    let others = cluster.nodes_but(&leader);
    cluster.dev.pull_plug(&others[0]).unwrap();
    let _ = cli::ok(&cluster, &leader, &["delete", "node", &others[1]]);
    vote(&cluster, std::slice::from_ref(&leader)).await;
    writes(&cluster, &leader, "after-the-voter").await;
    ends(&cluster, &others[1]).await;
    let _ = cli::ok(&cluster, &leader, &["delete", "node", &others[0]]);
    let last = cli::flotilla(&cluster, &leader, &["delete", "node", &leader]);
    assert!(last.code == Some(1) && last.err.contains("it is the cluster's last node"), "{last:?}");
    writes(&cluster, &leader, "after-all").await;
    // Who was off meanwhile is told when it comes back.
    cluster.dev.start(&others[0], None).unwrap();
    let told = || async {
        let log = cluster.log(&others[0]).map_err(|error| error.to_string())?;
        if log.contains("do not know this machine as a member") { Ok(()) } else { Err("not yet".to_owned()) }
    };
    eventually(LIMIT, "the machine that was off is told", told).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_voter_is_deleted_and_the_other_node_takes_over() {
    let cluster = Cluster::start(2).await;
    let leader = cluster.leader("node-1").await.unwrap();
    let heir = cluster.nodes_but(&leader).remove(0);
    writes(&cluster, &leader, "before").await;
    let _ = cli::ok(&cluster, &heir, &["delete", "node", &leader]);
    vote(&cluster, std::slice::from_ref(&heir)).await;
    writes(&cluster, &heir, "after").await;
    let names = object::names(&cluster, &heir, "configmaps").await.unwrap();
    assert!(["before", "after"].iter().all(|name| names.iter().any(|known| known == name)), "{names:?}");
    ends(&cluster, &leader).await;
}

/// The leader and another voter go together: those that stay are a majority at each step, and take over what ran there.
#[tokio::test(flavor = "multi_thread")]
async fn two_voters_are_deleted_with_one_command() {
    let cluster = Cluster::start(5).await;
    vote(&cluster, &cluster.nodes()).await;
    let leader = cluster.leader("node-1").await.unwrap();
    let mut rest = cluster.nodes_but(&leader);
    let other = rest.remove(0);
    job::submit(&cluster, &leader, job::service("web", "flotilla.dev/hello:latest", 10)).await.unwrap();
    let runs = |nodes: Vec<String>| {
        let cluster = &cluster;
        async move {
            let attempt = || job::running_on(cluster, nodes.last().unwrap(), "web", 10, &nodes);
            eventually(LIMIT, "all pods run", attempt).await;
        }
    };
    runs(cluster.nodes()).await;
    let writer = Writer::start(&cluster, "meanwhile", &rest);
    writer.wait_acknowledged(20).await;
    let _ = cli::ok(&cluster, &rest[0], &["delete", "node", &leader, &other]);
    vote(&cluster, &rest).await;
    for gone in [&leader, &other] {
        ends(&cluster, gone).await;
        assert_eq!(cluster.container_processes(gone), Vec::<i32>::new());
    }
    writes(&cluster, &rest[1], "after").await;
    runs(rest.clone()).await;
    let written = writer.stop().await;
    assert_eq!(written.missing(&cluster, &rest[0]).await.unwrap(), Vec::<String>::new());
    let alone = || async {
        let names = object::names(&cluster, &rest[0], "nodes").await?;
        if names == rest { Ok(()) } else { Err(format!("{names:?}")) }
    };
    eventually(LIMIT, "nobody else is listed", alone).await;
}

/// It may hear nothing of its deletion but that the others refuse it. Its pods run elsewhere by then.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_a_vote_is_deleted_and_leaves_no_pod_behind() {
    let cluster = Cluster::start(4).await;
    let status = cluster.status("node-1").await.unwrap();
    let (voter, learner) = (status.voters[0].clone(), status.learners[0].clone());
    job::submit(&cluster, &voter, job::service("web", "flotilla.dev/hello:latest", 8)).await.unwrap();
    let runs = || async {
        let processes = cluster.container_processes(&learner);
        if processes.is_empty() { Err("nothing runs there".to_owned()) } else { Ok(()) }
    };
    eventually(LIMIT, "a pod runs on the node", runs).await;
    let _ = cli::ok(&cluster, &voter, &["delete", "node", &learner]);
    ends(&cluster, &learner).await;
    assert_eq!(cluster.container_processes(&learner), Vec::<i32>::new());
}
