//! How many pods the scheduler decides about in a second.
//!
//! `cargo run --release -p flotilla-control --example schedule_bench [NODES] [RUNNING] [WAITING]`
//!
//! A View is filled with nodes, running pods and waiting pods of a hundred owners; then one pass after
//! the other places what waits, and what it decided is fed back. Counted are the passes, each decision
//! with its Change serialized; feeding back is shown apart.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use flotilla_api::{Key, Write};
use flotilla_control::{Context, Settings, View, Work, keys, plan};
use jiff::Timestamp;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use serde_json::{Value, json};

const OWNERS: usize = 100;

fn main() {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<usize>());
    let mut next = |default: usize| match arguments.next() {
        None => default,
        Some(Ok(number)) => number,
        Some(Err(error)) => {
            eprintln!("NODES, RUNNING and WAITING are numbers: {error}");
            std::process::exit(2);
        }
    };
    let (nodes, running, waiting) = (next(5_000), next(150_000), next(20_000));
    let mut bench = Bench::default();
    for index in 0..nodes {
        bench.put(&keys::node(&format!("n{index}")), &node(index));
    }
    for index in 0..running {
        bench.put(&pod_key("running", index), &pod("running", index, Some(index % nodes.max(1))));
    }
    for index in 0..waiting {
        bench.put(&pod_key("waiting", index), &pod("waiting", index, None));
    }
    println!("{nodes} nodes, {running} running pods, {waiting} waiting pods: View filled in {:.1?}", bench.feeding);
    bench.feeding = Duration::ZERO;
    let (decided, took) = bench.schedule();
    let rate = |took: Duration| decided as f64 / took.as_secs_f64();
    println!(
        "{decided} pods placed in {:.2?}, {:.2?} of it on the processor: {:.0} decisions/s, {:.0} a processor second",
        took.wall,
        took.processor,
        rate(took.wall),
        rate(took.processor)
    );
    println!("fed back in {:.2?}", bench.feeding);
}

/// A machine that others use stretches the wall's seconds, but not the processor's.
#[derive(Default)]
struct Took {
    wall: Duration,
    processor: Duration,
}

/// Time that this thread spent running, as the kernel counts it.
fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = text.split(' ').next().and_then(|nanos| nanos.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}

#[derive(Default)]
struct Bench {
    view: View,
    revision: u64,
    feeding: Duration,
}

impl Bench {
    fn put(&mut self, key: &Key, value: &Value) {
        let bytes = value.to_string();
        self.observe(key, Some(bytes.as_bytes()));
    }

    fn observe(&mut self, key: &Key, bytes: Option<&[u8]>) {
        self.revision += 1;
        let start = Instant::now();
        self.view.observe(key, bytes.map(|bytes| (bytes, self.revision)));
        self.feeding += start.elapsed();
    }

    fn schedule(&mut self) -> (usize, Took) {
        let mut rng = SmallRng::seed_from_u64(1);
        let settings = Settings::default();
        let liveness = BTreeMap::new();
        let (mut decided, mut took) = (0, Took::default());
        loop {
            let (start, before) = (Instant::now(), processor_time());
            let mut cx = Context {
                view: &self.view,
                now: Timestamp::UNIX_EPOCH,
                liveness: &liveness,
                rng: &mut rng,
                settings: &settings,
            };
            let plan = plan(&Work::Schedule, &mut cx);
            took.wall += start.elapsed();
            took.processor += processor_time().saturating_sub(before);
            decided += plan.changes.len();
            for write in plan.changes.iter().flat_map(|change| &change.writes) {
                match write {
                    Write::Put { key, value } if key.resource() == "pods" => self.observe(key, Some(value)),
                    Write::Put { .. } | Write::Delete { .. } => {}
                }
            }
            if plan.wake_at.is_none() {
                return (decided, took);
            }
        }
    }
}

fn node(index: usize) -> Value {
    let amounts = json!({"cpu": "16", "memory": "64Gi", "pods": "110"});
    json!({
        "metadata": {"name": format!("n{index}"), "uid": format!("node-{index}"),
            "labels": {"kubernetes.io/hostname": format!("n{index}"), "zone": format!("z{}", index % 3)}},
        "status": {"allocatable": amounts, "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

fn pod_key(stem: &str, index: usize) -> Key {
    keys::pod("default", &format!("{stem}-{index}"))
}

fn pod(stem: &str, index: usize, node: Option<usize>) -> Value {
    let owner = index % OWNERS;
    json!({
        "metadata": {"name": format!("{stem}-{index}"), "namespace": "default", "uid": format!("{stem}-{index}"),
            "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"app": format!("app-{owner}")},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("set-{owner}"),
                "uid": format!("set-{owner}"), "controller": true}]},
        "spec": {"nodeName": node.map(|node| format!("n{node}")), "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 30, "schedulerName": "default-scheduler",
            "containers": [{"name": "a", "image": "registry.example.com/app:1", "imagePullPolicy": "IfNotPresent",
                "ports": [{"containerPort": 80, "protocol": "TCP"}],
                "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "128Mi"}}}]},
        "status": {"phase": if node.is_some() { "Running" } else { "Pending" }},
    })
}
