//! Watches over REST lose and repeat nothing: many writers, watchers with selectors that resume after their node was
//! killed, and a model of what each of them must see; and what becomes of a watcher that was away for too long. Nor is half a list ever
//! taken for a whole one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use flotilla_tests::api::{Papers, Rest};
use flotilla_tests::{Cluster, cli, eventually};
use futures::future::join_all;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

const SEED: u64 = 20_261;
const WRITERS: usize = 6;
const WRITES_EACH: usize = 60;
const KEYS: usize = 8;
const LIMIT: Duration = Duration::from_secs(60);
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
/// How long the cluster remembers: longer than the writers take, and short enough to be waited for.
const HISTORY: &str = "history_seconds = 40\n";
/// Of the events, one in so many is where somebody begins to watch.
const RESUME_EACH: usize = 7;

/// Objects of nearly a megabyte: more than waits between a node and whoever reads.
const LONG_LIST: usize = 24;

/// What watchers ask for, and which colors that lets through.
const SELECTORS: [(&str, &[&str]); 5] = [
    ("", &["red", "blue", "green"]),
    ("color%3Dred", &["red"]),
    ("color%20in%20(red,blue)", &["red", "blue"]),
    ("color!%3Dred", &["blue", "green"]),
    ("none%3Dx", &[]),
];

/// One event as a watcher saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    what: String,
    name: String,
    color: String,
    revision: u64,
}

impl Seen {
    fn of(event: &Value) -> Option<Self> {
        let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let name = text("/object/metadata/name");
        // What the cluster keeps for itself is not of this test.
        name.starts_with("key-").then(|| Self {
            what: text("/type"),
            color: text("/object/metadata/labels/color"),
            revision: revision(&event["object"]),
            name,
        })
    }
}

#[derive(Clone)]
struct World {
    /// The first is never killed, and the last is.
    nodes: Vec<SocketAddr>,
    papers: Papers,
}

impl World {
    /// A connection to this node, or to the next one that answers.
    async fn connect(&self, first: usize) -> Rest {
        let any = || async {
            for number in 0..self.nodes.len() {
                let at = self.nodes[(first + number) % self.nodes.len()];
                if let Ok(rest) = Rest::connect(at, &self.papers).await {
                    return Ok(rest);
                }
            }
            Err("no node answers".to_owned())
        };
        eventually(LIMIT, "a node answers", any).await
    }

    /// What there is, as the first node shows it.
    async fn list(&self) -> Result<Value, String> {
        let list = async { self.connect(0).await.ok(Method::GET, MAPS, None).await };
        let list = list.await.map_err(|error| error.to_string())?;
        serde_json::from_slice(&list).map_err(|error| error.to_string())
    }
}

fn revision(object: &Value) -> u64 {
    let text = object["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    text.parse().unwrap_or_else(|error| panic!("{text:?} is no revision: {error}"))
}

/// What a task comes to, which must be soon.
async fn outcome<T>(what: &str, task: JoinHandle<T>) -> T {
    let ended = timeout(LIMIT, task).await.unwrap_or_else(|_| panic!("{what} does not come to its end"));
    ended.unwrap_or_else(|error| panic!("{what}: {error}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_see_what_the_model_says_though_their_node_is_killed() {
    let mut cluster = Cluster::start_with(3, |_| HISTORY.into()).await;
    let papers = Papers::parse(&cli::ok(&cluster, "node-1", &["credentials", "watcher"])).unwrap();
    let victim = cluster.leader("node-1").await.unwrap();
    let nodes = [cluster.nodes_but(&victim), vec![victim.clone()]].concat();
    let at = |node: &String| SocketAddr::new(cluster.dev.address(node).unwrap().into(), 6443);
    let world = World { nodes: nodes.iter().map(at).collect(), papers };
    println!("seed {SEED}; {victim} leads and is killed");

    let start = revision(&world.list().await.unwrap());
    let (end, until) = watch::channel(None::<u64>);
    let truth = tokio::spawn(follow(world.clone(), 0, "", start, until.clone()));
    let follow_there = |(selector, _)| tokio::spawn(follow(world.clone(), 2, selector, start, until.clone()));
    let watchers = SELECTORS.map(follow_there);
    let writers: Vec<_> = (0..WRITERS).map(|number| tokio::spawn(write(world.clone(), number))).collect();
    let busy = || async {
        let (now, wanted) = (revision(&world.list().await?), start + (WRITERS * WRITES_EACH / 6) as u64);
        if now >= wanted { Ok(()) } else { Err(format!("at revision {now} of {wanted}")) }
    };
    eventually(LIMIT, "the writers are in the middle of it", busy).await;
    cluster.dev.kill_daemon(&victim).unwrap();
    let mut acknowledged = Vec::new();
    for writer in writers {
        acknowledged.extend(outcome("a writer", writer).await);
    }
    cluster.restart(&victim).await;

    let list = world.list().await.unwrap();
    let last = revision(&list);
    end.send(Some(last)).unwrap();
    let truth = outcome("the first watcher", truth).await;
    check_truth(&truth, &list, &acknowledged);
    for ((selector, colors), watcher) in SELECTORS.into_iter().zip(watchers) {
        assert_eq!(outcome(selector, watcher).await, selected(&truth, colors), "{selector}");
    }
    println!("{} events; {} writes were acknowledged", truth.len(), acknowledged.len());
    resume_anywhere(&world, &truth, start, &until).await;
    be_away_for_too_long(&world, &truth, start).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_whose_node_is_killed_breaks_off_and_is_whole_elsewhere() {
    let cluster = Cluster::start(3).await;
    let papers = Papers::parse(&cli::ok(&cluster, "node-1", &["credentials", "reader"])).unwrap();
    let victim = cluster.leader("node-1").await.unwrap();
    let nodes = [cluster.nodes_but(&victim), vec![victim.clone()]].concat();
    let at = |node: &String| SocketAddr::new(cluster.dev.address(node).unwrap().into(), 6443);
    let world = World { nodes: nodes.iter().map(at).collect(), papers };

    let mut rest = world.connect(2).await;
    for number in 0..LONG_LIST {
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("long-{number}")},
            "data": {"text": "x".repeat(900_000)},
        });
        rest.ok(Method::POST, MAPS, Some(&map)).await.unwrap();
    }
    let mut half = rest.send(Method::GET, MAPS, None).await.unwrap().into_body();
    half.frame().await.expect("the list begins").unwrap();
    cluster.dev.kill_daemon(&victim).unwrap();
    let end = timeout(LIMIT, half.collect()).await.expect("the list ends");
    assert!(end.is_err(), "half a list of {:?} bytes looks whole", end.map(|list| list.to_bytes().len()));

    let list = world.list().await.unwrap();
    let names = list["items"].as_array().unwrap().iter().map(|map| map["metadata"]["name"].as_str().unwrap());
    assert_eq!(names.filter(|name| name.starts_with("long-")).count(), LONG_LIST);
}

/// Watchers that begin between any two events, at any node, see what comes after and nothing else.
async fn resume_anywhere(world: &World, truth: &[Seen], start: u64, until: &watch::Receiver<Option<u64>>) {
    let begins = std::iter::once(start).chain(truth.iter().step_by(RESUME_EACH).map(|seen| seen.revision));
    let resumed = begins.enumerate().map(|(number, from)| async move {
        let (selector, colors) = SELECTORS[number % SELECTORS.len()];
        let mut wanted = selected(truth, colors);
        wanted.retain(|seen| seen.revision > from);
        let task = tokio::spawn(follow(world.clone(), number, selector, from, until.clone()));
        assert_eq!(outcome("a watcher that resumes", task).await, wanted, "{selector} from {from}");
    });
    join_all(resumed).await;
}

/// What a watcher missed is forgotten one day: it is told so by every node, lists, and goes on from there.
async fn be_away_for_too_long(world: &World, truth: &[Seen], start: u64) {
    for node in 0..world.nodes.len() {
        let path = format!("{MAPS}?watch=true&timeoutSeconds=1&resourceVersion={start}");
        let forgotten = || async {
            let answer = world.connect(node).await.ask(Method::GET, &path, None).await;
            let (status, answer) = answer.map_err(|error| error.to_string())?;
            let answer = String::from_utf8_lossy(&answer).into_owned();
            if status == StatusCode::OK && answer.contains("\"code\":410") && answer.contains("\"Expired\"") {
                Ok(())
            } else {
                Err(answer)
            }
        };
        eventually(LIMIT, "the beginning is forgotten", forgotten).await;
    }
    let list = world.list().await.unwrap();
    assert_eq!(listed(&list), state(truth));
    let mut events = world.connect(2).await;
    let path = format!("{MAPS}?watch=true&resourceVersion={}", revision(&list));
    let mut events = events.watch(&path).await.unwrap();
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "key-last"}});
    let made = world.connect(0).await.ok(Method::POST, MAPS, Some(&map)).await.unwrap();
    let event = timeout(LIMIT, events.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(event, json!({"type": "ADDED", "object": serde_json::from_slice::<Value>(&made).unwrap()}));
}

/// Creates, changes and deletes keys of its own; the revisions that were acknowledged.
async fn write(world: World, number: usize) -> Vec<u64> {
    let mut rng = StdRng::seed_from_u64(SEED + number as u64);
    let mut rest = world.connect(number % 3).await;
    let mut acknowledged = Vec::new();
    for step in 0..WRITES_EACH {
        let name = format!("key-{number}-{}", rng.random_range(0..KEYS));
        let path = format!("{MAPS}/{name}");
        let color = ["red", "blue", "green"][rng.random_range(0..3)];
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"color": color}},
                         "data": {"step": step.to_string()}});
        let (method, path, body) = match rng.random_range(0..10) {
            0..2 => (Method::DELETE, path, None),
            2..5 => (Method::POST, MAPS.to_owned(), Some(&map)),
            _ => (Method::PUT, path, Some(&map)),
        };
        match rest.ask(method.clone(), &path, body).await {
            Ok((status, answer)) if status.is_success() && method != Method::DELETE => {
                acknowledged.push(revision(&serde_json::from_slice(&answer).unwrap()));
            }
            // Whether it was carried out or refused, the watchers know.
            Ok(_) => {}
            Err(_) => rest = world.connect(number + step).await,
        }
    }
    acknowledged
}

/// Watches from `start` on, at this node while it lives, until everything up to the end was seen.
async fn follow(
    world: World,
    mut node: usize,
    selector: &str,
    start: u64,
    until: watch::Receiver<Option<u64>>,
) -> Vec<Seen> {
    let (mut seen, mut at) = (Vec::new(), start);
    let path = format!("{MAPS}?watch=true&allowWatchBookmarks=true&timeoutSeconds=2&labelSelector={selector}");
    loop {
        let mut rest = world.connect(node).await;
        let path = format!("{path}&resourceVersion={at}");
        let Ok(mut events) = rest.watch(&path).await else {
            node += 1;
            continue;
        };
        loop {
            match events.next().await {
                Ok(Some(event)) => {
                    assert_ne!(event["type"], "ERROR", "{event}");
                    at = revision(&event["object"]);
                    seen.extend(Seen::of(&event).filter(|_| event["type"] != "BOOKMARK"));
                }
                Ok(None) => break,
                Err(_) => {
                    node += 1;
                    break;
                }
            }
        }
        // A watch that ends by its time says with a bookmark how far it saw.
        if until.borrow().is_some_and(|last| at >= last) {
            return seen;
        }
    }
}

/// The truth is in order, ends at what a list shows, and has everything that was acknowledged.
fn check_truth(truth: &[Seen], list: &Value, acknowledged: &[u64]) {
    assert!(truth.windows(2).all(|pair| pair[0].revision < pair[1].revision), "out of order or twice");
    assert_eq!(state(truth), listed(list));
    // An update that changed nothing is acknowledged with the revision that was there.
    let revisions: Vec<u64> = truth.iter().map(|seen| seen.revision).collect();
    let missed: Vec<&u64> = acknowledged.iter().filter(|revision| !revisions.contains(revision)).collect();
    assert!(missed.is_empty(), "acknowledged and never seen: {missed:?}");
}

/// What there is after these events, by name; each of them must fit what was there before.
fn state(truth: &[Seen]) -> BTreeMap<&str, &str> {
    let mut state = BTreeMap::new();
    for seen in truth {
        let before = match seen.what.as_str() {
            "DELETED" => state.remove(&*seen.name),
            _ => state.insert(&*seen.name, &*seen.color),
        };
        assert_eq!(before.is_none(), seen.what == "ADDED", "{seen:?} after {before:?}");
    }
    state
}

/// The same, as a list shows it.
fn listed(list: &Value) -> BTreeMap<&str, &str> {
    let items = list["items"].as_array().expect("a list has items").iter();
    let named =
        items.filter_map(|map| Some((map["metadata"]["name"].as_str()?, map["metadata"]["labels"]["color"].as_str()?)));
    named.filter(|(name, _)| name.starts_with("key-")).collect()
}

/// What a watcher sees that is told only of some colors.
fn selected(truth: &[Seen], colors: &[&str]) -> Vec<Seen> {
    let mut shown: BTreeMap<&str, &str> = BTreeMap::new();
    let mut wanted = Vec::new();
    for seen in truth {
        let before = shown.get(&*seen.name).copied();
        let now = (seen.what != "DELETED" && colors.contains(&&*seen.color)).then_some(&*seen.color);
        let what = match (before, now) {
            (None, None) => continue,
            (None, Some(_)) => "ADDED",
            (Some(_), Some(_)) => "MODIFIED",
            (Some(_), None) => "DELETED",
        };
        // What leaves a selector is told as it last matched.
        let color = now.or(before).unwrap_or_default();
        wanted.push(Seen { what: what.into(), color: color.into(), ..seen.clone() });
        match now {
            Some(color) => _ = shown.insert(&seen.name, color),
            None => _ = shown.remove(&*seen.name),
        }
    }
    wanted
}
