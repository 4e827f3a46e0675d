//! The agent of this node: it runs the pods that are bound to the node and says how they are.
//!
//! For each pod a worker observes, asks [`flotilla_control::pod::step`] what to do, publishes the status, and carries
//! out the effects. Nothing is remembered that could not be observed again, but for a few facts beside the pod's logs.
//!
//! Invariant: one worker a pod uid, so that no two decide about the same sandbox.
//! Invariant: no pod is begun that a quorum does not know any more, unless none can be asked: a store that was killed begins
//! with an earlier state than it had.
//! Invariant: a sandbox without a Pod is taken down only after this node has heard from a quorum since it started; a
//! node that is cut off keeps serving.

mod access;
mod carry;
mod events;
mod local;
mod lower;
mod memory;
mod news;
mod node;
mod observe;
mod probe;
mod resize;
mod room;
mod source;
mod subpath;
mod tidy;
mod volumes;
mod worker;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use flotilla_api::k8s_openapi::api::core::v1::Pod;
use flotilla_api::{Builtin, object};
use flotilla_raft::{Event, Range, ReadError, WatchItem};
use futures::FutureExt;
use tokio::sync::{Notify, broadcast, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{info, warn};

pub use local::Local;
pub(crate) use probe::unverified;

use crate::node::Node;
use worker::Worker;

/// How long to wait before something that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How long pods wait at the start for a quorum to say what is wanted.
const CATCH_UP: Duration = Duration::from_secs(3);

/// Runs the agent until the daemon stops. Containers go on running.
pub async fn run(node: Node) {
    let stop = node.stop.clone();
    let status = node::publish(&node);
    let pods = async {
        let cidr = node::pod_cidr(&node).await;
        if let Err(error) = node.local.start(&cidr).await {
            let why = format!("{error:#}");
            tracing::error!(error = why, "pods cannot run on this node");
            node.local.give_up(why);
            node::announce(&node).await;
            return std::future::pending().await;
        }
        info!(cidr, "running pods");
        node::announce(&node).await;
        node::label(&node).await;
        tokio::join!(supervise(&node), tidy::run(&node));
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = async { tokio::join!(status, pods); } => {}
    }
    node.local.close().await;
}

async fn supervise(node: &Node) {
    // Containers that run go on meanwhile.
    let _ = timeout(CATCH_UP, node.gate.store().barrier()).await;
    let mut supervisor = Supervisor { node, workers: HashMap::new(), tasks: JoinSet::new() };
    loop {
        if let Err(error) = supervisor.run().await {
            warn!(error = &error as &dyn std::error::Error, "the pods of this node cannot be followed; trying again");
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// One pod's worker, as its supervisor holds it.
struct Held {
    /// `None`: the Pod is gone.
    wanted: watch::Sender<Option<Arc<Pod>>>,
    nudge: Arc<Notify>,
}

struct Supervisor<'a> {
    node: &'a Node,
    /// By the pod's uid.
    workers: HashMap<String, Held>,
    /// The uid of a worker that ended, and whether it ended on purpose.
    tasks: JoinSet<(String, bool)>,
}

impl Supervisor<'_> {
    async fn run(&mut self) -> Result<(), ReadError> {
        let store = self.node.gate.store();
        let Some(runtime) = self.node.local.pods() else { return Ok(()) };
        let mut changes = runtime.subscribe();
        let prefix = Builtin::Pod.collection().prefix();
        let listing = store.range(Range::prefix(&prefix))?;
        let mut known: Vec<String> = Vec::new();
        for kv in &listing.items {
            if let Some(pod) = self.own_pod(&kv.value, kv.mod_revision) {
                known.extend(pod.metadata.uid.clone());
                self.want(pod);
            }
        }
        // Those that went while nobody watched.
        for (uid, held) in &self.workers {
            if !known.contains(uid) {
                held.wanted.send_replace(None);
            }
        }
        let mut watch = store.watch(&prefix, listing.revision + 1).await?;
        let orphans = store.barrier();
        let mut orphans = std::pin::pin!(orphans);
        let mut looking = true;
        loop {
            tokio::select! {
                item = watch.next() => match item {
                    None => return Err(ReadError::Closed),
                    Some(WatchItem::Compacted(_)) => return Ok(()),
                    Some(WatchItem::Progress(_)) => {}
                    Some(WatchItem::Events(events, _)) => events.iter().for_each(|event| self.take(event)),
                },
                change = changes.recv() => match change {
                    Ok(id) => self.nudge(&id),
                    Err(broadcast::error::RecvError::Lagged(_)) => self.workers.values().for_each(|w| w.nudge.notify_one()),
                    Err(broadcast::error::RecvError::Closed) => return Ok(()),
                },
                Some(ended) = self.tasks.join_next(), if !self.tasks.is_empty() => {
                    let Ok((uid, went_well)) = ended else { continue };
                    self.workers.remove(&uid);
                    if !went_well {
                        // Its pod gets another worker when the pods are listed again.
                        warn!(uid, "the worker of a pod failed");
                        tokio::time::sleep(RETRY).await;
                        return Ok(());
                    }
                },
                reached = &mut orphans, if looking => {
                    looking = false;
                    match reached {
                        Ok(revision) => self.take_down_orphans(revision, watch.next_revision()),
                        // Without a quorum nobody knows what is wanted: look again from the start.
                        Err(_) => { tokio::time::sleep(RETRY).await; return Ok(()) }
                    }
                }
            }
        }
    }

    fn take(&mut self, event: &Event) {
        match event {
            Event::Put { kv, .. } => {
                if let Some(pod) = self.own_pod(&kv.value, kv.mod_revision) {
                    self.want(pod);
                }
            }
            Event::Delete { prev, .. } => {
                let uid = self.own_pod(&prev.value, prev.mod_revision).and_then(|pod| pod.metadata.uid);
                if let Some(held) = uid.and_then(|uid| self.workers.get(&uid)) {
                    held.wanted.send_replace(None);
                }
            }
        }
    }

    fn own_pod(&self, bytes: &[u8], revision: u64) -> Option<Pod> {
        let pod: Pod = object::decode(bytes, revision).ok()?;
        let bound = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        (bound == Some(self.node.members.own_name())).then_some(pod)
    }

    fn want(&mut self, pod: Pod) {
        let Some(uid) = pod.metadata.uid.clone() else { return };
        let pod = Some(Arc::new(pod));
        match self.workers.get(&uid) {
            Some(held) => _ = held.wanted.send_replace(pod),
            None => self.begin(uid, pod),
        }
    }

    fn begin(&mut self, uid: String, pod: Option<Arc<Pod>>) {
        let (wanted, seen) = watch::channel(pod);
        let nudge = Arc::new(Notify::new());
        let worker = Worker::new((*self.node.local).clone(), uid.clone(), seen, nudge.clone());
        let name = uid.clone();
        self.tasks.spawn(async move {
            let ended = std::panic::AssertUnwindSafe(worker.run()).catch_unwind().await;
            (name, ended.is_ok())
        });
        self.workers.insert(uid, Held { wanted, nudge });
    }

    fn nudge(&self, id: &str) {
        if let Some(held) = self.workers.get(id) {
            held.nudge.notify_one();
        }
    }

    /// What runs here and belongs to no Pod of the store as it was at a time when this node was not behind.
    fn take_down_orphans(&mut self, revision: u64, next: u64) {
        // Pods bound between the listing and the barrier may still be on their way through the watch: they have no
        // sandbox yet, so nothing of theirs is found here.
        let Some(runtime) = self.node.local.pods() else { return };
        for sandbox in runtime.list() {
            let uid = sandbox.uid.clone();
            if self.workers.contains_key(&uid) {
                continue;
            }
            let key = flotilla_api::Key::new(&Builtin::Pod.collection(), &sandbox.namespace, &sandbox.name);
            let stored = self.node.gate.store().get(&key).ok().flatten();
            let still = stored
                .and_then(|kv| self.own_pod(&kv.value, kv.mod_revision))
                .filter(|p| p.metadata.uid.as_ref() == Some(&uid));
            match still {
                Some(pod) => self.want(pod),
                None => {
                    info!(
                        pod = sandbox.name,
                        uid, revision, next, "a sandbox belongs to no pod any more; taking it down"
                    );
                    self.begin(uid, None);
                }
            }
        }
    }
}
