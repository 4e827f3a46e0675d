//! Whom the cluster believes changes while it runs: a removed node, a revoked user, a replaced authority.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use flotilla::client::Target;
use flotilla::enrol::Draft;
use flotilla::proto::objects_client::ObjectsClient;
use flotilla::proto::{CaStatus, CaStatusRequest, CreateTokenRequest, WatchEvent, WatchObjectsRequest};
use flotilla_net::{Alpn, Identity, JoinParts, JoinTimeouts, NodeKey, Token};
use flotilla_tests::outsider::{Papers, knock_quic, knock_tcp};
use flotilla_tests::writer::Writer;
use flotilla_tests::{Cluster, cli, eventually, figure};
use tonic::Streaming;
use tonic::transport::Channel;

const REFUSED_LIMIT: Duration = Duration::from_secs(1);
const ANSWER_WAIT: Duration = Duration::from_secs(10);
const ROTATION_WAIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn who_was_removed_or_revoked_is_refused_within_a_second_everywhere() {
    let cluster = Cluster::start(3).await;
    let dir = tempfile::tempdir().unwrap();
    let alice = credentials(&cluster, "alice", dir.path());
    let mut hers = watch(&dial(&cluster, "node-2", &alice).await.unwrap()).await;
    let began = Instant::now();
    let _ = cli::ok(&cluster, "node-1", &["credentials", "alice", "--revoke"]);
    ends_within_a_second("a revoked user", &mut hers, began).await;
    refused(&cluster, "node-2", &alice).await;

    // Somebody has taken what the machine proves itself with.
    let identity = dir.path().join("identity");
    std::fs::create_dir(&identity).unwrap();
    for file in std::fs::read_dir(cluster.dev.places().data("node-3").join("identity")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), identity.join(file.file_name())).unwrap();
    }
    let papers = identity.join("identity.pem");
    let mut open = watch(&dial(&cluster, "node-1", &papers).await.unwrap()).await;
    let began = Instant::now();
    let _ = cli::ok(&cluster, "node-2", &["delete", "node", "node-3"]);
    ends_within_a_second("a removed node", &mut open, began).await;
    for node in ["node-1", "node-2"] {
        refused(&cluster, node, &papers).await;
        let at = address(&cluster, node);
        for alpn in Alpn::ALL.into_iter().filter(|alpn| !alpn.admits_strangers()) {
            let held = Identity::load(&identity).unwrap().expect("the identity was taken");
            let answer = knock_quic(at, alpn, &Papers::Node(Box::new(held))).await;
            let reason = answer.expect_err("a removed node is not answered");
            assert!(reason.contains("not a member of this cluster"), "{node} {alpn}: {reason}");
        }
        let held = Identity::load(&identity).unwrap().expect("the identity was taken");
        assert!(knock_tcp(at, &Papers::Node(Box::new(held))).await.is_err(), "{node}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_authority_is_replaced_under_load_while_a_leader_dies() {
    let mut cluster = Cluster::start(3).await;
    let dir = tempfile::tempdir().unwrap();
    let old = ca(&cluster, "node-1").await.unwrap();
    assert_eq!((old.phase.as_str(), old.nodes.len()), ("steady", 3));
    let alice = credentials(&cluster, "alice", dir.path());
    let mut hers = watch(&dial(&cluster, "node-1", &alice).await.unwrap()).await;
    let request = CreateTokenRequest::default();
    let token = cluster.cluster("node-1").create_token(request).await.unwrap().into_inner().token;

    let writer = Writer::start(&cluster, "while-the-ca-was-replaced", &cluster.nodes());
    writer.wait_acknowledged(10).await;
    let began = Instant::now();
    let _ = cli::ok(&cluster, "node-1", &["ca", "rotate", "--overlap", "0s"]);
    let leader = cluster.leader("node-1").await.unwrap();
    cluster.dev.kill_daemon(&leader).unwrap();
    cluster.restart(&leader).await;
    let replaced = || async {
        let status = ca(&cluster, "node-2").await?;
        let all = status.nodes.iter().all(|node| node.certified_by == status.fingerprint);
        let over = status.phase == "steady" && status.fingerprint != old.fingerprint && all;
        if over { Ok(()) } else { Err(format!("{status:?}")) }
    };
    eventually(ROTATION_WAIT, "every node has a certificate of the new authority", replaced).await;
    let took = began.elapsed();

    let written = writer.stop().await;
    let lost = written.missing(&cluster, "node-3").await.unwrap();
    assert_eq!(lost, Vec::<String>::new(), "acknowledged and lost");
    let gap = written.longest_gap(began);
    figure(
        "the authority was replaced",
        &format!(
            "on three nodes, with a leader killed meanwhile, in {:.1} s; writes paused for {:.2} s at most",
            took.as_secs_f64(),
            gap.as_secs_f64()
        ),
    );

    // What the old authority certified is worth nothing, open or new; what the new one does is.
    ends_within_a_second("a user of the old authority", &mut hers, began).await;
    refused(&cluster, "node-1", &alice).await;
    let bob = credentials(&cluster, "bob", dir.path());
    for node in cluster.nodes() {
        watch(&dial(&cluster, &node, &bob).await.unwrap()).await;
    }
    let node = cluster.dev.add_node().unwrap();
    if let Ok(daemon) = cluster.dev.start(&node, Some(&token)) {
        assert!(daemon.wait_gone(ANSWER_WAIT), "a token of the old authority is neither taken nor refused");
    }
    let said = cluster.log(&node).unwrap();
    assert!(said.contains("replaced since the token was made"), "{said}");
    let request = CreateTokenRequest::default();
    let fresh = cluster.cluster("node-1").create_token(request).await.unwrap().into_inner().token;
    cluster.dev.start(&node, Some(&fresh)).unwrap();
    cluster.dev.wait_ready(&cluster.nodes()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_off_while_the_authority_was_replaced_comes_back() {
    let mut cluster = Cluster::start(3).await;
    cluster.dev.stop_daemon("node-3").unwrap();
    let dead = || async {
        let status = cluster.status("node-1").await?;
        if status.problems.iter().any(|one| one.contains("node-3")) { Ok(()) } else { Err("not noticed".to_owned()) }
    };
    eventually(ANSWER_WAIT, "node-3 counts as dead", dead).await;
    let old = ca(&cluster, "node-1").await.unwrap();
    let _ = cli::ok(&cluster, "node-1", &["ca", "rotate", "--overlap", "0s"]);
    let replaced = || async {
        let status = ca(&cluster, "node-1").await?;
        let over = status.phase == "steady" && status.fingerprint != old.fingerprint;
        if over { Ok(status) } else { Err(format!("{status:?}")) }
    };
    let new = eventually(ROTATION_WAIT, "the authority is replaced without it", replaced).await;
    cluster.restart("node-3").await;
    let followed = || async {
        let status = ca(&cluster, "node-3").await?;
        let behind: Vec<_> = status.nodes.iter().filter(|node| node.certified_by != new.fingerprint).collect();
        if behind.is_empty() { Ok(()) } else { Err(format!("{behind:?}")) }
    };
    eventually(ROTATION_WAIT, "node-3 has a certificate of the new authority", followed).await;
    cluster.dev.wait_ready(&cluster.nodes()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_old_authority_certified_is_good_while_both_are_trusted() {
    let cluster = Cluster::start(1).await;
    let dir = tempfile::tempdir().unwrap();
    let alice = credentials(&cluster, "alice", dir.path());
    let old = ca(&cluster, "node-1").await.unwrap();
    let _ = cli::ok(&cluster, "node-1", &["ca", "rotate", "--overlap", "1h"]);
    let renewed = || async {
        let status = ca(&cluster, "node-1").await?;
        let all = status.nodes.iter().all(|node| node.certified_by == status.fingerprint);
        if status.phase == "renewing" && all { Ok(status) } else { Err(format!("{status:?}")) }
    };
    let status = eventually(ROTATION_WAIT, "the new authority signs", renewed).await;
    assert_eq!(status.other_fingerprint, old.fingerprint);
    // She trusts the old authority only, and the node is certified by the new one.
    watch(&dial(&cluster, "node-1", &alice).await.unwrap()).await;
    let again = cli::flotilla(&cluster, "node-1", &["ca", "rotate"]);
    assert!(again.code == Some(1) && again.err.contains("being replaced already"), "{again:?}");
    assert!(cli::ok(&cluster, "node-1", &["ca", "status"]).contains("dropped by"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_decides_on_labels_and_a_machine_that_died_while_it_joined_joins_again() {
    let mut cluster = Cluster::start(1).await;
    let made =
        ["token", "create", "--uses", "1", "--label", "zone=a", "--taint", "dedicated=db:NoSchedule", "-o", "json"];
    let made: serde_json::Value = serde_json::from_str(&cli::ok(&cluster, "node-1", &made)).unwrap();
    let text = made["token"].as_str().unwrap().to_owned();
    let token: Token = text.parse().unwrap();

    // Whoever has a token is not let in as somebody who is a member, under whatever name, and has not used the token.
    let member = cluster.node_summaries("node-1").await.unwrap()[0].id;
    let posing = JoinParts {
        name: "posing".into(),
        id: member,
        key: NodeKey::generate().unwrap(),
        addresses: Vec::new(),
        version: "0.1.0".into(),
        replica: true,
    };
    let refused = flotilla_net::join(&token, &posing, JoinTimeouts::default(), SystemTime::now()).await.unwrap_err();
    assert!(refused.to_string().contains("node \"node-1\" is this machine already"), "{refused}");

    // A machine is admitted, and dies before it has stored anything but what it asked for.
    let node = cluster.dev.add_node().unwrap();
    let key = NodeKey::generate().unwrap();
    let draft = Draft { cluster: token.cluster().to_string(), name: node.clone(), id: 4711, key: key.to_pem() };
    let parts = JoinParts {
        name: node.clone(),
        id: draft.id,
        key,
        addresses: Vec::new(),
        version: "0.1.0".into(),
        replica: true,
    };
    flotilla_net::join(&token, &parts, JoinTimeouts::default(), SystemTime::now()).await.unwrap();
    let other = JoinParts { key: NodeKey::generate().unwrap(), ..parts };
    let refused = flotilla_net::join(&token, &other, JoinTimeouts::default(), SystemTime::now()).await.unwrap_err();
    assert!(refused.to_string().contains("used up"), "{refused}");
    draft.keep(&cluster.dev.places().data(&node).join("identity")).unwrap();
    cluster.dev.start(&node, Some(&text)).unwrap();
    cluster.dev.wait_ready(&cluster.nodes()).await.unwrap();

    let tokens: serde_json::Value =
        serde_json::from_str(&cli::ok(&cluster, "node-1", &["token", "list", "-o", "json"])).unwrap();
    let listed = tokens.as_array().unwrap().iter().find(|one| one["id"] == made["id"]).unwrap();
    assert_eq!((&listed["uses"], &listed["labels"]["zone"]), (&1.into(), &"a".into()), "asked twice, used once");
    let nodes = cluster.node_summaries("node-1").await.unwrap();
    assert_eq!(nodes.iter().find(|one| one.name == node).map(|one| one.id), Some(4711), "{nodes:?}");
    let object = cli::ok(&cluster, "node-1", &["get", "node", &node, "-o", "json"]);
    let object: serde_json::Value = serde_json::from_str(&object).unwrap();
    assert_eq!(object["metadata"]["labels"]["zone"], "a");
    let taints = object["spec"]["taints"].as_array().unwrap();
    assert!(taints.iter().any(|taint| taint["key"] == "dedicated" && taint["value"] == "db"), "{taints:?}");
    assert!(!cluster.dev.places().data(&node).join("identity/joining.json").exists(), "the draft has served");
}

fn address(cluster: &Cluster, node: &str) -> SocketAddr {
    SocketAddr::new(cluster.dev.address(node).unwrap().into(), 6443)
}

/// A file with what `flotilla credentials` prints.
fn credentials(cluster: &Cluster, user: &str, dir: &Path) -> PathBuf {
    let file = dir.join(format!("{user}.pem"));
    fs::write(&file, cli::ok(cluster, "node-1", &["credentials", user])).unwrap();
    file
}

async fn dial(cluster: &Cluster, node: &str, papers: &Path) -> Result<Channel, String> {
    let target = Target::new(Some(&address(cluster, node).to_string()), Some(papers), Path::new("/none"));
    target.unwrap().connect().await.map_err(|error| error.to_string())
}

/// Their holder is refused, and told why it may be.
async fn refused(cluster: &Cluster, node: &str, papers: &Path) {
    let error = dial(cluster, node, papers).await.expect_err("these papers are worth nothing");
    assert!(error.contains("is not trusted"), "{node}: {error}");
}

/// A stream that has begun and would go on for ever.
async fn watch(channel: &Channel) -> Streaming<WatchEvent> {
    let request = WatchObjectsRequest { kind: "nodes".into(), ..WatchObjectsRequest::default() };
    let mut stream = ObjectsClient::new(channel.clone()).watch(request).await.unwrap().into_inner();
    let first = tokio::time::timeout(ANSWER_WAIT, stream.message()).await.expect("in time").unwrap();
    assert!(first.is_some(), "there are nodes");
    stream
}

/// The stream ends within a second of now; `began` is when the command was given that is behind it.
async fn ends_within_a_second(whose: &str, stream: &mut Streaming<WatchEvent>, began: Instant) {
    let ended = async { while let Ok(Some(_)) = stream.message().await {} };
    tokio::time::timeout(REFUSED_LIMIT, ended).await.unwrap_or_else(|_| panic!("{whose} is still heard"));
    let took = began.elapsed().as_millis();
    figure(&format!("the open stream of {whose} ended"), &format!("at most {took} ms after the command was begun"));
}

async fn ca(cluster: &Cluster, node: &str) -> Result<CaStatus, String> {
    let answer = cluster.cluster(node).get_ca_status(CaStatusRequest {}).await;
    answer.map(tonic::Response::into_inner).map_err(|status| status.message().to_owned())
}
