//! A machine is what its data directory says: neither a token nor a restart makes it something else by accident.

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use flotilla_net::{ClusterId, SealKey, Token};
use flotilla_tests::{Cluster, cli, eventually, object};

const WAIT: Duration = Duration::from_secs(40);
/// The exit code of a daemon that is not to be started again by itself.
const REFUSED: Option<i32> = Some(3);

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_stays_what_it_is_until_somebody_says_otherwise() {
    let mut cluster = Cluster::start(1).await;
    let token = cli::ok(&cluster, "node-1", &["token", "create", "--uses", "2"]).trim().to_owned();
    let other = cluster.dev.add_node().unwrap();
    cluster.dev.start(&other, Some(&token)).unwrap();
    cluster.dev.wait_ready(&cluster.nodes()).await.unwrap();

    a_token_of_another_cluster_is_not_ignored(&mut cluster, &token).await;
    who_left_stays_away(&mut cluster, &other, &token).await;
    who_cannot_listen_founds_nothing(&mut cluster, &other, &token).await;
    who_died_while_it_left_has_left(&mut cluster, &other).await;
    what_is_lost_is_missed(&mut cluster).await;
}

/// The one that a member has joined with does no harm; nothing is what it was if that of another cluster did.
async fn a_token_of_another_cluster_is_not_ignored(cluster: &mut Cluster, token: &str) {
    cluster.dev.stop_daemon("node-1").unwrap();
    let own = token.parse::<Token>().unwrap().cluster().to_string();
    let foreign =
        Token::generate(ClusterId::generate(), [7; 32], None, vec!["10.0.0.1:6443".parse().unwrap()]).unwrap();
    let said = up(cluster, "node-1", &[("FLOTILLA_JOIN", &foreign.to_string())]);
    assert_eq!(said.code, REFUSED, "{said:?}");
    for words in [format!("is of cluster {}", foreign.cluster()), format!("of cluster {own}"), "flotilla leave".into()]
    {
        assert!(said.err.contains(&words), "{words}: {said:?}");
    }
    cluster.dev.start("node-1", Some(token)).unwrap();
    cluster.dev.wait_answering("node-1").await.unwrap();
    assert!(cluster.log("node-1").unwrap().contains("this machine is a member already; the token is not used"));
}

async fn who_left_stays_away(cluster: &mut Cluster, node: &str, token: &str) {
    let data = cluster.dev.places().data(node);
    let said = cli::ok(cluster, node, &["leave", "--force"]);
    assert!(said.contains(&format!("does not start here again until {} is removed", data.display())), "{said}");
    let ended = || async { if cluster.dev.daemon(node).is_err() { Ok(()) } else { Err("it runs".to_owned()) } };
    eventually(WAIT, "the daemon ends", ended).await;
    let said = up(cluster, node, &[("FLOTILLA_JOIN", token)]);
    assert_eq!(said.code, REFUSED, "{said:?}");
    assert_eq!(said.err.trim().lines().count(), 1, "{said:?}");
    assert!(said.err.contains(&format!("has left its cluster; remove {}", data.display())), "{said:?}");
    let nodes = cluster.node_summaries("node-1").await.unwrap();
    assert_eq!(nodes.iter().map(|node| &*node.name).collect::<Vec<_>>(), ["node-1"]);
    assert!(cli::ok(cluster, "node-1", &["token", "list"]).contains("1/2"), "nothing was asked with the token");

    // What is left of a node without the word that it has left is not taken for an empty directory either.
    fs::remove_file(data.join("left")).unwrap();
    let said = up(cluster, node, &[("FLOTILLA_JOIN", token)]);
    assert!(said.code == REFUSED && said.err.contains("holds the store of a node"), "{said:?}");
    empty(&data);
    fs::create_dir(data.join("restoring")).unwrap();
    let said = up(cluster, node, &[]);
    assert!(said.code == REFUSED && said.err.contains("was interrupted: run 'flotilla restore' again"), "{said:?}");
    empty(&data);
}

/// A first start that fails leaves no cluster behind that a token would be ignored for.
async fn who_cannot_listen_founds_nothing(cluster: &mut Cluster, node: &str, token: &str) {
    let data = cluster.dev.places().data(node);
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    let said = up_outside(cluster, node, &address);
    assert!(said.code == Some(1) && said.err.contains(&format!("cannot listen on TCP {address}")), "{said:?}");
    drop(free);
    let _taken = UdpSocket::bind(&address).unwrap();
    let said = up_outside(cluster, node, &address);
    assert!(said.code == Some(1) && said.err.contains(&format!("cannot listen on UDP {address}")), "{said:?}");
    assert!(!data.join("identity").exists(), "nothing is founded");

    let file = data.join("token");
    fs::write(&file, format!("{token}\n")).unwrap();
    let file = file.display().to_string();
    let config = cluster.dev.places().config();
    let before = fs::read_to_string(&config).unwrap();
    cluster.dev.configure(&format!("join_file = \"{file}\"\n{before}")).unwrap();
    cluster.dev.start(node, None).unwrap();
    cluster.dev.wait_ready(&cluster.nodes()).await.unwrap();

    // Whoever has joined needs the file no more.
    cluster.dev.stop_daemon(node).unwrap();
    fs::remove_file(&file).unwrap();
    cluster.dev.start(node, None).unwrap();
    cluster.dev.wait_answering(node).await.unwrap();
}

/// The others took the node out, and its daemon was killed before it heard of it. What ran there ends with it.
async fn who_died_while_it_left_has_left(cluster: &mut Cluster, node: &str) {
    let data = cluster.dev.places().data(node);
    let pod = format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: left}}, spec: {{nodeName: {node}, \
         containers: [{{name: main, image: flotilla.dev/hello:latest}}]}}}}"
    );
    object::apply(cluster, "node-1", pod.as_bytes()).await.unwrap();
    let runs = || async {
        let said = cli::ok(cluster, "node-1", &["get", "pod", "left"]);
        if said.contains("Running") { Ok(()) } else { Err(said) }
    };
    eventually(WAIT, "the pod runs", runs).await;
    let sandboxes = || fs::read_dir(data.join("pods")).unwrap().count();
    assert_eq!(sandboxes(), 1);
    cluster.dev.stop_daemon(node).unwrap();
    fs::write(data.join("leaving"), "").unwrap();
    let _ = cli::ok(cluster, "node-1", &["delete", "node", node]);

    let said = up(cluster, node, &[]);
    assert_eq!(said.code, REFUSED, "{said:?}");
    assert!(said.err.contains(&format!("has left its cluster; remove {}", data.display())), "{said:?}");
    assert!(!data.join("identity").exists(), "what made it a node is forgotten");
    assert_eq!(sandboxes(), 0, "its pods have ended");
}

/// Without its store, or with another's seal key, a node does not begin anew or go on half: it says what to do.
async fn what_is_lost_is_missed(cluster: &mut Cluster) {
    cluster.dev.stop_daemon("node-1").unwrap();
    let data = cluster.dev.places().data("node-1");
    let refused = |words: &str| {
        let said = up(cluster, "node-1", &[]);
        assert!(said.code == REFUSED && said.err.contains(words), "{words}: {said:?}");
    };
    let (store, aside) = (data.join("store"), data.join("aside"));
    fs::rename(&store, &aside).unwrap();
    refused("this node had its replica in");
    fs::create_dir(&store).unwrap();
    refused("if that is on a disk of its own, mount it");
    fs::remove_dir(&store).unwrap();
    fs::rename(&aside, &store).unwrap();

    let (identity, words) = (data.join("identity"), "copy it from another node of the cluster");
    let key = identity.join("seal.key");
    fs::rename(&key, &aside).unwrap();
    refused(words);
    SealKey::generate().store(&identity).unwrap();
    refused(words);
    fs::rename(&aside, &key).unwrap();
    cluster.restart("node-1").await;
}

fn empty(dir: &Path) {
    fs::remove_dir_all(dir).unwrap();
    fs::create_dir(dir).unwrap();
}

/// `flotilla up` on that machine, until it ends.
fn up(cluster: &Cluster, node: &str, variables: &[(&str, &str)]) -> cli::Said {
    let address = format!("{}:6443", cluster.dev.address(node).unwrap());
    let program = cli::program().get_program().to_owned();
    ended(cluster.space(node).command(program).unwrap().envs(variables.iter().copied()), cluster, node, &address)
}

/// The same on the machine that the cluster is in, whose ports a test can take.
fn up_outside(cluster: &Cluster, node: &str, listen: &str) -> cli::Said {
    ended(&mut cli::program(), cluster, node, listen)
}

fn ended(command: &mut Command, cluster: &Cluster, node: &str, listen: &str) -> cli::Said {
    let places = cluster.dev.places();
    command.args(["up", "--name", node, "--listen", listen, "--advertise", listen, "--log", "warn"]);
    command.arg("--config").arg(places.config()).arg("--cgroup-parent").arg(places.node_cgroup(node));
    command.arg("--data-dir").arg(places.data(node)).arg("--run-dir").arg(places.node_run(node));
    cli::said(command.stdin(Stdio::null()).output().expect("the binary can be started"))
}
