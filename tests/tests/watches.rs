//! Watches over REST lose and repeat nothing: many writers, watchers with selectors that resume after their node was
//! killed, and a model of what each of them must see.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use flotilla_tests::api::{Papers, Rest};
use flotilla_tests::{Cluster, cli, eventually};
use http::Method;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::sync::watch;

const SEED: u64 = 20_261;
const WRITERS: usize = 6;
const WRITES_EACH: usize = 60;
const KEYS: usize = 8;
const LIMIT: Duration = Duration::from_secs(120);
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

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
            revision: text("/object/metadata/resourceVersion").parse().unwrap_or_default(),
            name,
        })
    }
}

#[derive(Clone)]
struct World {
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
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_see_what_the_model_says_though_their_node_is_killed() {
    let mut cluster = Cluster::start(3).await;
    let papers = Papers::parse(&cli::ok(&cluster, "node-1", &["credentials", "watcher"])).unwrap();
    let at = |node: &String| SocketAddr::new(cluster.dev.address(node).unwrap().into(), 6443);
    let nodes = cluster.nodes();
    let nodes = nodes.iter().map(at);
    let world = World { nodes: nodes.collect(), papers };
    println!("seed {SEED}");

    let mut first = world.connect(0).await;
    let list: Value = serde_json::from_slice(&first.ok(Method::GET, MAPS, None).await.unwrap()).unwrap();
    let start: u64 = list["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    let (end, until) = watch::channel(None::<u64>);
    // Node 1 is never killed: who watches there is the truth. The others begin at node 3, which is.
    let truth = tokio::spawn(follow(world.clone(), 0, String::new(), start, until.clone()));
    let selectors = ["color%3Dred", "color%20in%20(red,blue)", "color!%3Dred", "none%3Dx"];
    let watchers: Vec<_> = selectors
        .iter()
        .map(|selector| {
            let selector = format!("&labelSelector={selector}");
            tokio::spawn(follow(world.clone(), 2, selector, start, until.clone()))
        })
        .collect();

    let writers: Vec<_> = (0..WRITERS).map(|number| tokio::spawn(write(world.clone(), number))).collect();
    let mut half = world.connect(0).await;
    let busy = || {
        let mut half = half.clone();
        async move {
            let list = half.ok(Method::GET, MAPS, None).await.map_err(|error| error.to_string())?;
            let list: Value = serde_json::from_slice(&list).map_err(|error| error.to_string())?;
            let now: u64 = list["metadata"]["resourceVersion"].as_str().unwrap_or_default().parse().unwrap_or_default();
            let wanted = start + (WRITERS * WRITES_EACH / 2) as u64;
            if now >= wanted { Ok(()) } else { Err(format!("at revision {now} of {wanted}")) }
        }
    };
    eventually(LIMIT, "half of it is written", busy).await;
    cluster.dev.kill_daemon("node-3").unwrap();
    let mut acknowledged = Vec::new();
    for writer in writers {
        acknowledged.extend(writer.await.unwrap());
    }
    cluster.restart("node-3").await;

    let list: Value = serde_json::from_slice(&half.ok(Method::GET, MAPS, None).await.unwrap()).unwrap();
    let last = list["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    end.send(Some(last)).unwrap();
    let truth = truth.await.unwrap();
    check_truth(&truth, &list, &acknowledged);
    for (selector, watcher) in selectors.into_iter().zip(watchers) {
        let seen = watcher.await.unwrap();
        let wanted = selected(&truth, |color| match selector {
            "color%3Dred" => color == "red",
            "color%20in%20(red,blue)" => color == "red" || color == "blue",
            "color!%3Dred" => color != "red",
            _ => false,
        });
        assert_eq!(seen, wanted, "{selector}");
    }
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
                let object: Value = serde_json::from_slice(&answer).unwrap();
                acknowledged.push(object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap());
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
    node: usize,
    selector: String,
    start: u64,
    mut until: watch::Receiver<Option<u64>>,
) -> Vec<Seen> {
    let (mut seen, mut at, mut node) = (Vec::new(), start, node);
    loop {
        let mut rest = world.connect(node).await;
        let path =
            format!("{MAPS}?watch=true&allowWatchBookmarks=true&timeoutSeconds=2&resourceVersion={at}{selector}");
        let Ok(mut events) = rest.watch(&path).await else {
            node += 1;
            continue;
        };
        loop {
            match events.next().await {
                Ok(Some(event)) => {
                    assert_ne!(event["type"], "ERROR", "{event}");
                    let revision = event["object"]["metadata"]["resourceVersion"].as_str().unwrap_or_default();
                    at = revision.parse().unwrap();
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
        if until.borrow_and_update().is_some_and(|last| at >= last) {
            return seen;
        }
    }
}

/// The truth is in order, ends at what a list shows, and has everything that was acknowledged.
fn check_truth(truth: &[Seen], list: &Value, acknowledged: &[u64]) {
    assert!(truth.windows(2).all(|pair| pair[0].revision < pair[1].revision), "out of order or twice");
    let mut state: BTreeMap<&str, &str> = BTreeMap::new();
    for seen in truth {
        let before = match seen.what.as_str() {
            "DELETED" => state.remove(&*seen.name),
            _ => state.insert(&seen.name, &seen.color),
        };
        assert_eq!(before.is_none(), seen.what == "ADDED", "{seen:?} after {before:?}");
    }
    let listed: BTreeMap<&str, &str> = list["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|map| Some((map["metadata"]["name"].as_str()?, map["metadata"]["labels"]["color"].as_str()?)))
        .filter(|(name, _)| name.starts_with("key-"))
        .collect();
    assert_eq!(state, listed);
    // An update that changed nothing is acknowledged with the revision that was there.
    let revisions: Vec<u64> = truth.iter().map(|seen| seen.revision).collect();
    let missed: Vec<&u64> = acknowledged.iter().filter(|revision| !revisions.contains(revision)).collect();
    assert!(missed.is_empty(), "acknowledged and never seen: {missed:?}");
}

/// What a watcher sees that is told only of some colors.
fn selected(truth: &[Seen], takes: impl Fn(&str) -> bool) -> Vec<Seen> {
    let mut shown: BTreeMap<&str, &str> = BTreeMap::new();
    let mut wanted = Vec::new();
    for seen in truth {
        let before = shown.get(&*seen.name).copied();
        let now = (seen.what != "DELETED" && takes(&seen.color)).then_some(&*seen.color);
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
