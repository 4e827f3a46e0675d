//! Clients that read, write and compare-and-set registers all the while, each on its own, and note what became of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use flotilla::proto::objects_client::ObjectsClient;
use flotilla::proto::{ApplyRequest, GetObjectRequest};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::history::{Did, NEVER, Operation, Version};
use crate::Cluster;

/// The objects that are written. Few, so that clients meet.
pub const REGISTERS: usize = 6;
/// A client that gets no answer for so long asks another node.
const ANSWER_WAIT: Duration = Duration::from_secs(1);
/// Between two operations of one client, so that a history of minutes can be checked.
const PACE: Duration = Duration::from_millis(15);
/// After a node refused, so that a refusal at once is no busy loop.
const REFUSED_PACE: Duration = Duration::from_millis(50);

/// The history of each register.
pub type Histories = BTreeMap<String, Vec<Operation>>;

#[must_use]
pub fn register(number: usize) -> String {
    format!("register-{number}")
}

/// The register as an object. Only a value of its own is a version of its own.
#[must_use]
pub fn manifest(name: &str, value: &str, after: Option<u64>) -> Vec<u8> {
    let mut object =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"value": value}});
    if let Some(revision) = after {
        object["metadata"]["resourceVersion"] = json!(revision.to_string());
    }
    object.to_string().into_bytes()
}

/// A register's version as an object says it.
#[must_use]
pub fn version(object: &Value) -> Option<Version> {
    let revision = object.pointer("/metadata/resourceVersion")?.as_str()?.parse().ok()?;
    Some(Version { revision, value: object.pointer("/data/value")?.as_str()?.to_owned() })
}

/// Clients at work.
pub struct Clients {
    tasks: JoinSet<Histories>,
    stop: CancellationToken,
    acknowledged: Arc<AtomicU64>,
}

impl Clients {
    #[must_use]
    pub fn start(cluster: &Cluster, count: usize, seed: u64, epoch: Instant) -> Self {
        let (stop, acknowledged) = (CancellationToken::new(), Arc::new(AtomicU64::new(0)));
        let mut tasks = JoinSet::new();
        for number in 0..count {
            let mut nodes: Vec<_> = cluster.nodes().iter().map(|node| cluster.objects(node)).collect();
            let turn = number % nodes.len();
            nodes.rotate_left(turn);
            let client = Client {
                number,
                nodes,
                epoch,
                rng: StdRng::seed_from_u64(seed.wrapping_add(number as u64)),
                seen: BTreeMap::new(),
                written: 0,
                acknowledged: acknowledged.clone(),
                histories: Histories::new(),
            };
            let stop = stop.clone();
            tasks.spawn(client.run(stop));
        }
        Self { tasks, stop, acknowledged }
    }

    /// How many writes were acknowledged up to now.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Ends the clients and returns what all of them did.
    pub async fn stop(mut self) -> Histories {
        self.stop.cancel();
        let mut all = Histories::new();
        while let Some(ended) = self.tasks.join_next().await {
            for (name, operations) in ended.expect("a client does not panic") {
                all.entry(name).or_default().extend(operations);
            }
        }
        all
    }
}

struct Client {
    number: usize,
    /// The first is asked.
    nodes: Vec<ObjectsClient<Channel>>,
    epoch: Instant,
    rng: StdRng,
    /// The revision of each register that this client saw last.
    seen: BTreeMap<String, u64>,
    written: u64,
    acknowledged: Arc<AtomicU64>,
    histories: Histories,
}

impl Client {
    async fn run(mut self, stop: CancellationToken) -> Histories {
        while !stop.is_cancelled() {
            let name = register(self.rng.random_range(0..REGISTERS));
            let answered = match self.rng.random_range(0..10) {
                0..5 => self.read(&name).await,
                5..8 => self.write(&name, None).await,
                _ => {
                    let after = self.seen.get(&name).copied();
                    self.write(&name, after).await
                }
            };
            if !answered {
                self.nodes.rotate_left(1);
            }
            tokio::time::sleep(if answered { PACE } else { REFUSED_PACE }).await;
        }
        self.histories
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(NEVER - 1)
    }

    fn note(&mut self, name: &str, began_ns: u64, ended_ns: u64, did: Did) {
        self.histories.entry(name.to_owned()).or_default().push(Operation { began_ns, ended_ns, did });
    }

    async fn read(&mut self, name: &str) -> bool {
        let request = GetObjectRequest { kind: "configmaps".into(), name: name.into(), ..GetObjectRequest::default() };
        let began_ns = self.now_ns();
        let Ok(Ok(answer)) = tokio::time::timeout(ANSWER_WAIT, self.nodes[0].get(request)).await else { return false };
        let object: Value = serde_json::from_slice(&answer.into_inner().json).expect("an object is JSON");
        let version = version(&object).expect("a register has a value");
        self.seen.insert(name.to_owned(), version.revision);
        let ended_ns = self.now_ns();
        self.note(name, began_ns, ended_ns, Did::Read(version));
        true
    }

    async fn write(&mut self, name: &str, after: Option<u64>) -> bool {
        self.written += 1;
        let value = format!("{}-{}", self.number, self.written);
        let request = ApplyRequest { manifest: manifest(name, &value, after), ..ApplyRequest::default() };
        let began_ns = self.now_ns();
        let answer = tokio::time::timeout(ANSWER_WAIT, self.nodes[0].apply(request)).await;
        let did = |revision| Did::Wrote { value, after, revision };
        match answer {
            Ok(Ok(answer)) => {
                let applied = answer.into_inner().applied.pop().expect("one object was applied");
                let object: Value = serde_json::from_slice(&applied.json).expect("an object is JSON");
                let revision = version(&object).expect("a register has a value").revision;
                self.seen.insert(name.to_owned(), revision);
                self.acknowledged.fetch_add(1, Ordering::Relaxed);
                let ended_ns = self.now_ns();
                self.note(name, began_ns, ended_ns, did(Some(revision)));
                true
            }
            // Refused for certain: it had no effect, and the node is well.
            Ok(Err(status)) if is_overtaken(&status) => {
                self.seen.remove(name);
                true
            }
            // Nobody knows.
            Ok(Err(_)) | Err(_) => {
                self.note(name, began_ns, NEVER, did(None));
                false
            }
        }
    }
}

fn is_overtaken(status: &Status) -> bool {
    status.code() == Code::Aborted
}
