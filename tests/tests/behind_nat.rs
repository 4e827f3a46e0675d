//! Machines behind routers that masquerade: they join with a token and are nodes like any other, also to each other. Where the
//! routers allow it a hole is punched between them; else a member that both reach passes their packets on.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use flotilla::dev::Nat;
use flotilla_tests::{Cluster, Kubectl, cli, eventually, figure, object, within};

/// Three or four debug builds that start at the same time.
const START_WAIT: Duration = Duration::from_secs(90);
const RUN_WAIT: Duration = Duration::from_secs(60);
/// How long a stream may stand still when the member dies that passes it on: until its silence is noticed, and a little.
const SWITCH_LIMIT: Duration = Duration::from_secs(5);
const REMOVAL_LIMIT: Duration = Duration::from_secs(1);
/// Some looks for a direct way, which come every 5 s.
const HOLE_WAIT: Duration = Duration::from_secs(30);
/// What a node's log says by turns, once for each other node and change.
const RELAYED: &str = "a node is reached through other members";
const DIRECT: &str = "a node is reached directly again";

#[tokio::test(flavor = "multi_thread")]
async fn a_hole_is_punched_between_two_routers() {
    let mut cluster = Cluster::start(1).await;
    let hidden = add_behind(&mut cluster, Nat::Cone, 3).await;
    let [one, two] = &hidden;
    run_pods(&cluster, &hidden).await;
    reached_from(&cluster, "node-1", &hidden).await;
    kubectl_reaches(&cluster, "node-1", &hidden);
    reached_from(&cluster, one, &[two]).await;
    reached_from(&cluster, two, &[one]).await;

    // What began through the public machine has found the hole by itself.
    for node in &hidden {
        eventually(HOLE_WAIT, &format!("{node} reaches all directly"), || direct(&cluster, node)).await;
    }

    // Should the direct way fail, the public machine passes things on, until there is one again.
    let other = cluster.dev.address(two).unwrap();
    let block = "chain out { type filter hook output priority 0; ip daddr";
    let before = count(&cluster, one, RELAYED);
    nft(&cluster, one, &format!("table ip blocked {{ {block} {other} drop; }}; }}"));
    let relayed = || async {
        if count(&cluster, one, RELAYED) > before { Ok(()) } else { Err(format!("{one} does not say that {RELAYED}")) }
    };
    let (_, took) = within(RUN_WAIT, "the other is reached through others", relayed).await;
    figure("a hole is closed", &format!("relayed after {:.1} s", took.as_secs_f64()));
    reached_from(&cluster, one, &[two]).await;
    nft(&cluster, one, "delete table ip blocked");
    let (_, took) = within(HOLE_WAIT, "the other is reached directly", || direct(&cluster, one)).await;
    figure("a hole is open again", &format!("found after {:.1} s", took.as_secs_f64()));
    reached_from(&cluster, one, &[two]).await;

    // With the only public machine gone, nobody is left to pass anything on: two of three elect a leader directly.
    cluster.dev.pull_plug("node-1").unwrap();
    let write = b"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: alone}\n";
    let (_, took) =
        within(RUN_WAIT, "two nodes behind routers write on their own", || object::apply(&cluster, one, write)).await;
    figure("two nodes behind NATs, without a public one", &format!("wrote after {:.1} s", took.as_secs_f64()));
    reached_from(&cluster, one, &[two]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_hole_lets_through_is_relayed_and_outlives_the_relay() {
    let mut cluster = Cluster::start(2).await;
    let hidden = add_behind(&mut cluster, Nat::Symmetric, 3).await;
    let [one, two] = &hidden;
    run_pods(&cluster, &hidden).await;
    for node in ["node-1", "node-2"] {
        reached_from(&cluster, node, &hidden).await;
    }
    reached_from(&cluster, one, &[two]).await;
    reached_from(&cluster, two, &[one]).await;
    assert!(cluster.log(one).unwrap().contains(RELAYED), "no hole can have been punched");

    // One of the two passes this on; whichever it is, the stream goes on without it.
    let mut followed = Followed::start(&cluster, one, &pod_on(two));
    followed.next(RUN_WAIT).expect("the log begins");
    for relay in ["node-1", "node-2"] {
        cluster.dev.pull_plug(relay).unwrap();
        let longest = followed.longest_pause(SWITCH_LIMIT);
        assert!(longest < SWITCH_LIMIT, "the stream stood still for {longest:?} without {relay}");
        figure(
            &format!("a relayed stream, {relay} dies"),
            &format!("stood still for {:.1} s at most (limit 5 s)", longest.as_secs_f64()),
        );
        cluster.restart(relay).await;
        cluster.dev.wait_ready(&cluster.nodes()).await.unwrap();
    }

    // Whoever is removed is refused, though others would pass it on.
    let said = cli::flotilla(&cluster, "node-1", &["delete", "node", two]);
    // If it led, nobody is left to answer.
    assert!(said.code == Some(0) || said.err.contains("the outcome of the change is unknown"), "{said:?}");
    let went_on = followed.until_end(REMOVAL_LIMIT * 2);
    assert!(went_on < REMOVAL_LIMIT, "the stream of a removed node went on for {went_on:?}");
    eventually(RUN_WAIT, "the node is removed", || async {
        let nodes = cluster.node_summaries("node-1").await?;
        if nodes.iter().any(|node| node.name == *two) { Err(format!("{nodes:?}")) } else { Ok(()) }
    })
    .await;
}

/// Two machines behind a router each join; waits until all are ready and so many vote.
async fn add_behind(cluster: &mut Cluster, nat: Nat, voters: usize) -> [String; 2] {
    let token = cluster.dev.create_token(2).await.unwrap();
    let hidden = [(); 2].map(|()| cluster.dev.add_node_behind(nat).unwrap());
    for node in &hidden {
        cluster.dev.start(node, Some(&token)).unwrap();
    }
    let nodes = cluster.nodes();
    let ready = tokio::time::timeout(START_WAIT, cluster.dev.wait_ready(&nodes)).await;
    ready.expect("machines behind routers become nodes in time").unwrap();
    eventually(START_WAIT, "the voters are there", || async {
        let status = cluster.status("node-1").await?;
        if status.voters.len() == voters { Ok(()) } else { Err(format!("{:?} {:?}", status.voters, status.learners)) }
    })
    .await;
    hidden
}

/// How often a node's log says something.
fn count(cluster: &Cluster, node: &str, what: &str) -> usize {
    cluster.log(node).unwrap().matches(what).count()
}

/// All that a node has ever said to be reached through others is said to be reached directly by now.
async fn direct(cluster: &Cluster, node: &str) -> Result<(), String> {
    let (relayed, direct) = (count(cluster, node, RELAYED), count(cluster, node, DIRECT));
    if relayed == direct {
        Ok(())
    } else {
        Err(format!("{node}: {relayed} times relayed, {direct} times direct again"))
    }
}

fn nft(cluster: &Cluster, node: &str, rules: &str) {
    let done = cluster.space(node).command("/usr/sbin/nft").unwrap().arg(rules).status().unwrap();
    assert!(done.success(), "nft {rules}");
}

fn pod_on(node: &str) -> String {
    format!("on-{node}")
}

/// A pod on each of these nodes that counts on its output.
async fn run_pods(cluster: &Cluster, nodes: &[String]) {
    for node in nodes {
        let pod = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {}}}\nspec:\n  nodeName: {node}\n  terminationGracePeriodSeconds: 1\n  \
             containers:\n  - name: main\n    image: flotilla.dev/hello:latest\n    args: [count, '1000000', '100']\n",
            pod_on(node)
        );
        eventually(RUN_WAIT, "a pod is accepted", || object::apply(cluster, "node-1", pod.as_bytes())).await;
    }
}

/// Logs and commands of the pods on these nodes, asked of another.
async fn reached_from(cluster: &Cluster, asked: &str, nodes: &[impl AsRef<str>]) {
    for node in nodes.iter().map(AsRef::as_ref) {
        let pod = pod_on(node);
        eventually(RUN_WAIT, &format!("{asked} reaches the pod on {node}"), || async {
            let log = object::logs(cluster, asked, &pod).await?;
            let said = cli::flotilla(cluster, asked, &["exec", &pod, "--", "/hello", "fail", "7"]);
            if log.starts_with("1\n2\n") && said.code == Some(7) { Ok(()) } else { Err(format!("{log:?} {said:?}")) }
        })
        .await;
    }
}

fn kubectl_reaches(cluster: &Cluster, asked: &str, nodes: &[String]) {
    let kubectl = Kubectl::new(cluster, asked);
    for node in nodes {
        let log = kubectl.ok(&["logs", &pod_on(node), "--tail=2"]);
        assert_eq!(log.lines().count(), 2, "{log}");
        assert_eq!(kubectl.run(&["exec", &pod_on(node), "--", "/hello", "fail", "0"]).code, Some(0));
    }
}

/// `flotilla logs --follow`, line by line.
struct Followed {
    child: Child,
    lines: Receiver<String>,
    /// The number that the last line said.
    last: u64,
}

impl Followed {
    fn start(cluster: &Cluster, asked: &str, pod: &str) -> Self {
        let mut command = cli::program();
        command.env("FLOTILLA_SOCKET", cluster.dev.places().socket(asked)).args(["logs", "--follow", pod]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let (send, lines) = channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        Self { child, lines, last: 0 }
    }

    /// The next line, which must count on where the last one ended: the stream is still the same.
    fn next(&mut self, limit: Duration) -> Result<(), RecvTimeoutError> {
        let line = self.lines.recv_timeout(limit)?;
        self.last += 1;
        assert_eq!(line, self.last.to_string(), "a line is missing or came twice");
        Ok(())
    }

    /// The longest time between two lines, of those that come within so long.
    fn longest_pause(&mut self, watched: Duration) -> Duration {
        let (began, mut last, mut longest) = (Instant::now(), Instant::now(), Duration::ZERO);
        while began.elapsed() < watched {
            match self.next(watched) {
                Ok(()) => {}
                Err(RecvTimeoutError::Timeout) => return watched,
                Err(RecvTimeoutError::Disconnected) => panic!("the stream ended"),
            }
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
        longest
    }

    /// How long the stream went on, of so long at most.
    fn until_end(&mut self, limit: Duration) -> Duration {
        let began = Instant::now();
        while began.elapsed() < limit && self.next(limit) != Err(RecvTimeoutError::Disconnected) {}
        began.elapsed()
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
