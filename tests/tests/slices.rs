//! Nodes beyond the replicas run pods, answer clients, outlive the replica that feeds them, and take the place of one that
//! is lost.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use flotilla::dev;
use flotilla_tests::{Cluster, Kubectl, Registry, cli, eventually, figure, image, registry};
use serde_json::json;

const CONFIG: &str = "max_replicas = 3\nreplace_dead_seconds = 4\n";
const WAIT: Duration = Duration::from_secs(60);
const REPLICAS: [&str; 3] = ["node-1", "node-2", "node-3"];

#[tokio::test(flavor = "multi_thread")]
async fn nodes_without_a_replica_run_pods_and_are_promoted() {
    let config = |dev: &dev::Cluster| format!("{CONFIG}{}", Registry::trust((dev.gateway(), registry::PORT).into()));
    let mut cluster = Cluster::empty(config).await;
    let registry = Registry::start(cluster.dev.gateway().into());
    let image = registry.push(&image::busybox(registry.workshop()));
    cluster.grow_to(REPLICAS.len()).await;
    let token = cluster.dev.create_token(2).await.unwrap();
    for own in ["", "no_replica = true\n"] {
        cluster.dev.configure(&format!("{own}{}", config(&cluster.dev))).unwrap();
        let node = cluster.dev.add_node().unwrap();
        cluster.dev.start(&node, Some(&token)).unwrap();
        cluster.dev.wait_answering(&node).await.unwrap();
    }
    cluster.dev.configure(&config(&cluster.dev)).unwrap();
    cluster.dev.wait_ready(&cluster.nodes()).await.unwrap();
    assert_eq!((role(&cluster, "node-4").await, role(&cluster, "node-5").await), ("node".into(), "node".into()));

    // Through a node that has no replica, as a person would.
    let address = cluster.dev.address("node-4").unwrap();
    let kubectl = Kubectl::new(&cluster, "node-4");
    let server = format!("--server=https://{address}:6443");
    let ask = |arguments: &[&str]| kubectl.ok(&[&[server.as_str()], arguments].concat());
    for node in ["node-4", "node-5"] {
        let objects = kubectl.file(&format!("{node}.json"), &objects(node, &image).to_string());
        ask(&["apply", "-f", &objects]);
    }
    for node in ["node-4", "node-5"] {
        ask(&["wait", "--for=condition=Ready", &format!("pod/on-{node}"), "--timeout=60s"]);
        assert_eq!(ask(&["logs", &format!("on-{node}")]).trim(), format!("for {node}"));
    }
    assert_eq!(ask(&["exec", "on-node-4", "--", "cat", "/secret/word"]).trim(), "for node-4");
    assert!(cli::ok(&cluster, "node-4", &["nodes"]).contains("node-5"));

    // What concerns another node's pods has not come here.
    assert!(holds(&cluster, "node-4", "core/secrets/default/word-of-node-4"), "the search finds nothing");
    assert!(!holds(&cluster, "node-4", "core/secrets/default/word-of-node-5"));
    assert!(!holds(&cluster, "node-5", "core/secrets/default/word-of-node-4"));

    // A node that joined before node-5 and starts again has nothing but what it kept: it knows the members of today.
    cluster.dev.kill_daemon("node-4").unwrap();
    let kept = fs::read_to_string(cluster.dev.places().data("node-4").join("identity/members.json")).unwrap();
    assert!(kept.contains("\"node-5\""), "{kept}");
    cluster.restart("node-4").await;
    // The first that asks it for a log may find that the connection to its daemon before is dead.
    let shown = || async {
        let said = kubectl.run(&[&server, "logs", "on-node-4"]);
        if said.out.trim() == "for node-4" { Ok(()) } else { Err(said.err) }
    };
    eventually(WAIT, "a node without a replica shows its pods' logs after a restart", shown).await;
    assert!(cli::ok(&cluster, "node-4", &["nodes"]).contains("node-5"));

    // Whoever feeds node-4 dies: it goes on with another, and gets the lost replica's place. Node-5 wants none.
    let lost = feeder(&cluster, "node-4");
    let rest = cluster.nodes_but(&lost);
    let died = Instant::now();
    cluster.dev.pull_plug(&lost).unwrap();
    let more = kubectl.file("more.json", &objects("node-4", &image).to_string().replace("on-node-4", "after"));
    let survivor = rest.iter().find(|node| REPLICAS.contains(&node.as_str())).unwrap().clone();
    let applied = || async {
        let said = kubectl.run(&[&server, "apply", "-f", &more]);
        if said.code == Some(0) { Ok(()) } else { Err(said.err) }
    };
    eventually(WAIT, "a node without a replica passes requests on to another replica", applied).await;
    ask(&["wait", "--for=condition=Ready", "pod/after", "--timeout=60s"]);
    let again = died.elapsed();
    let promoted = || async {
        let now = [role_at(&cluster, &survivor, "node-4").await?, role_at(&cluster, &survivor, "node-5").await?];
        let gone = role_at(&cluster, &survivor, &lost).await?;
        let all = [&now[0], &now[1], &gone];
        if all == ["voter", "node", "node"] { Ok(()) } else { Err(format!("{all:?}")) }
    };
    eventually(WAIT, "node-4 has a replica and a vote, and neither node-5 nor the lost one has", promoted).await;
    let own = || async {
        let log = cluster.log("node-4").map_err(|error| error.to_string())?;
        log.contains("reads from its own replica").then_some(()).ok_or("it reads from a slice".to_owned())
    };
    eventually(WAIT, "node-4 reads from its own replica", own).await;
    figure(
        "a replica that fed a slice died",
        &format!(
            "a pod made afterwards ran on the node it fed after {:.1} s, another replica voted after {:.1} s",
            again.as_secs_f64(),
            died.elapsed().as_secs_f64()
        ),
    );
    // The pods went on, and each node still says how its own are.
    for pod in ["on-node-4", "on-node-5", "after"] {
        let restarts = ask(&["get", "pod", pod, "-o", "jsonpath={.status.containerStatuses[0].restartCount}"]);
        assert_eq!(restarts, "0", "{pod}");
    }
    ask(&["delete", "pod", "on-node-4", "on-node-5", "after", "--wait", "--timeout=60s"]);

    // The lost machine comes back to a cluster that is full: it reads from a slice now.
    cluster.restart(&lost).await;
    cluster.dev.wait_ready(&cluster.nodes()).await.unwrap();
    assert_eq!(role_at(&cluster, &survivor, &lost).await.unwrap(), "node");
    let back = kubectl.file("back.json", &objects(&lost, &image).to_string());
    ask(&["apply", "-f", &back]);
    ask(&["wait", "--for=condition=Ready", &format!("pod/on-{lost}"), "--timeout=60s"]);

    // It leaves for good, and its pod with it: who evicts is the replica, which knows the budgets.
    let said = cli::ok(&cluster, &lost, &["leave", "--force"]);
    assert!(said.contains(&format!("1 of 1 pods have left {lost}")), "{said}");
    let left = || async {
        let nodes = cluster.node_summaries(&survivor).await?;
        if nodes.iter().all(|node| node.name != lost) { Ok(()) } else { Err("it is listed".to_owned()) }
    };
    eventually(WAIT, "the node that left is listed no more", left).await;
}

/// A Secret and the pod that reads it, on one node.
fn objects(node: &str, image: &str) -> serde_json::Value {
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": format!("word-of-{node}")},
        "stringData": {"word": format!("for {node}")},
    });
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("on-{node}")},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "main", "image": image, "command": ["/bin/sh", "-c", "cat /secret/word; echo; sleep 100000"],
                "volumeMounts": [{"name": "word", "mountPath": "/secret"}],
            }],
            "volumes": [{"name": "word", "secret": {"secretName": format!("word-of-{node}")}}],
        },
    });
    json!({"apiVersion": "v1", "kind": "List", "items": [secret, pod]})
}

async fn role(cluster: &Cluster, node: &str) -> String {
    role_at(cluster, "node-1", node).await.unwrap()
}

async fn role_at(cluster: &Cluster, at: &str, node: &str) -> Result<String, String> {
    let nodes = cluster.node_summaries(at).await?;
    nodes.into_iter().find(|summary| summary.name == node).map(|summary| summary.role).ok_or("not listed".into())
}

/// The replica that feeds a node, as its status says.
fn feeder(cluster: &Cluster, node: &str) -> String {
    let log = std::fs::read_to_string(cluster.dev.places().log(node)).unwrap();
    let line = log.lines().rfind(|line| line.contains("reading from a slice of the store")).expect("it reads from one");
    let known = REPLICAS.into_iter().find(|replica| line.contains(&format!("from={replica}")));
    known.unwrap_or_else(|| panic!("no replica in {line:?}")).to_owned()
}

/// Whether the daemon of a node holds the text in its memory.
fn holds(cluster: &Cluster, node: &str, text: &str) -> bool {
    let pid = cluster.dev.daemon(node).unwrap().pid;
    let mut maps = String::new();
    File::open(format!("/proc/{pid}/maps")).unwrap().read_to_string(&mut maps).unwrap();
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let written = maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|mode| mode.starts_with("rw")));
    written.filter_map(|line| line.split(' ').next()?.split_once('-')).any(|(from, to)| {
        let bounds = [from, to].map(|text| u64::from_str_radix(text, 16).unwrap());
        let mut bytes = vec![0; usize::try_from(bounds[1] - bounds[0]).unwrap()];
        let read = memory.read_at(&mut bytes, bounds[0]).unwrap_or_default();
        bytes[..read].windows(text.len()).any(|window| window == text.as_bytes())
    })
}
