//! Replicas in one process that talk through memory, and a network between them that can be cut.
//!
//! Each test file uses a part of it.
#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use flotilla_api::{Change, GroupResource, Key};
use flotilla_raft::{
    NodeId, Options, ProposeError, Reader, RefillError, Status, Store, Transport, TransportError, Writer, refill,
};
use tempfile::TempDir;
use tokio::task::JoinHandle;

pub const WAIT: Duration = Duration::from_secs(30);
const PIPE_BYTES: usize = 256 * 1024;

pub fn key(name: &str) -> Key {
    Key::new(&GroupResource::new("", "configmaps"), "default", name)
}

pub fn put(name: &str, value: &str) -> Change {
    Change::new("test", "test").put(key(name), Bytes::copy_from_slice(value.as_bytes()))
}

/// Waits for a condition, with a bound.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + WAIT;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {WAIT:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[derive(Default)]
pub struct Net {
    stores: RwLock<BTreeMap<NodeId, Store>>,
    /// Pairs that cannot reach each other.
    cut: RwLock<HashSet<(NodeId, NodeId)>>,
    streams: Mutex<Vec<(NodeId, NodeId, JoinHandle<()>)>>,
}

impl Net {
    fn reachable(&self, from: NodeId, to: NodeId) -> Option<Store> {
        let cut = self.cut.read().unwrap();
        if cut.contains(&(from, to)) || cut.contains(&(to, from)) {
            return None;
        }
        self.stores.read().unwrap().get(&to).cloned()
    }

    /// Cuts one replica off from all others, its open streams included.
    pub fn isolate(&self, id: NodeId, others: &[NodeId]) {
        self.cut.write().unwrap().extend(others.iter().filter(|o| **o != id).map(|o| (id, *o)));
        self.streams.lock().unwrap().retain(|(from, to, task)| {
            let hit = *from == id || *to == id;
            if hit {
                task.abort();
            }
            !hit
        });
    }

    pub fn heal(&self) {
        self.cut.write().unwrap().clear();
    }
}

struct Port {
    net: Arc<Net>,
    from: NodeId,
}

#[async_trait]
impl Transport for Port {
    async fn call(&self, to: NodeId, message: Bytes, deadline: Duration) -> Result<Bytes, TransportError> {
        let store = self.net.reachable(self.from, to).ok_or_else(|| TransportError::Unreachable("cut".into()))?;
        let answered = tokio::time::timeout(deadline, store.handle(self.from, message)).await;
        let reply = answered.map_err(|_| TransportError::Timeout)?.map_err(|_| TransportError::Timeout)?;
        self.net.reachable(self.from, to).map(|_| reply).ok_or(TransportError::Timeout)
    }

    async fn open_stream(&self, to: NodeId) -> Result<(Reader, Writer), TransportError> {
        let store = self.net.reachable(self.from, to).ok_or_else(|| TransportError::Unreachable("cut".into()))?;
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        let (from, (reader, writer)) = (self.from, tokio::io::split(theirs));
        let task = tokio::spawn(async move {
            let _ = store.handle_stream(from, Box::new(reader), Box::new(writer)).await;
        });
        let mut streams = self.net.streams.lock().unwrap();
        streams.retain(|(_, _, task)| !task.is_finished());
        streams.push((from, to, task));
        let (reader, writer) = tokio::io::split(ours);
        Ok((Box::new(reader), Box::new(writer)))
    }
}

/// A cluster whose directories go with it.
pub struct Cluster {
    pub net: Arc<Net>,
    dirs: BTreeMap<NodeId, PathBuf>,
    /// Removed with the cluster.
    temporary: Vec<TempDir>,
    tune: fn(&mut Options),
}

impl Cluster {
    pub fn new(tune: fn(&mut Options)) -> Self {
        Self { net: Arc::default(), dirs: BTreeMap::new(), temporary: Vec::new(), tune }
    }

    /// One replica, in a directory that is the caller's.
    pub fn at(tune: fn(&mut Options), id: NodeId, dir: &Path) -> Self {
        Self { dirs: BTreeMap::from([(id, dir.to_owned())]), ..Self::new(tune) }
    }

    /// What the replicas started from now on are told.
    pub fn retune(&mut self, tune: fn(&mut Options)) {
        self.tune = tune;
    }

    pub fn dir(&self, id: NodeId) -> &Path {
        &self.dirs[&id]
    }

    /// Starts a replica in a directory that is the caller's.
    pub async fn start_in(&mut self, id: NodeId, dir: &Path) -> Store {
        self.dirs.insert(id, dir.join("replica"));
        self.start(id).await
    }

    /// Starts a replica, in the directory it had before if it had one.
    pub async fn start(&mut self, id: NodeId) -> Store {
        let started = self.try_start(id).await;
        started.unwrap_or_else(|error| panic!("replica {id} does not start: {error}"))
    }

    /// As [`Self::start`], or why it does not start.
    pub async fn try_start(&mut self, id: NodeId) -> Result<Store, String> {
        self.dirs.entry(id).or_insert_with(|| {
            let temporary = TempDir::new().unwrap();
            let dir = temporary.path().join("replica");
            self.temporary.push(temporary);
            dir
        });
        let store = Store::open(self.options(id), self.port(id)).await.map_err(|error| error.to_string())?;
        self.net.stores.write().unwrap().insert(id, store.clone());
        Ok(store)
    }

    fn options(&self, id: NodeId) -> Options {
        let mut options = Options::new(self.dir(id), id, "test-cluster");
        options.space_floor.min_bytes = 0;
        options.space_floor.min_percent = 0;
        options.space_floor.reserve_bytes = 0;
        (self.tune)(&mut options);
        options
    }

    fn port(&self, id: NodeId) -> Arc<dyn Transport> {
        Arc::new(Port { net: self.net.clone(), from: id })
    }

    /// As [`Self::refill`], once.
    pub async fn try_refill(&self, id: NodeId) -> Result<(), RefillError> {
        let peers: Vec<NodeId> = self.dirs.keys().copied().collect();
        refill(&self.options(id), &peers, &self.port(id)).await
    }

    /// Makes a damaged replica, which is stopped, an empty one, as soon as the others let it go.
    pub async fn refill(&self, id: NodeId) {
        let deadline = Instant::now() + WAIT;
        while let Err(error) = self.try_refill(id).await {
            assert!(Instant::now() < deadline, "replica {id} is not let go: {error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn store(&self, id: NodeId) -> Store {
        self.net.stores.read().unwrap()[&id].clone()
    }

    /// Stops a replica without saying goodbye to anybody.
    pub async fn stop(&self, id: NodeId) {
        let store = self.net.stores.write().unwrap().remove(&id).unwrap();
        let gone: Vec<_> = {
            let mut streams = self.net.streams.lock().unwrap();
            streams.extract_if(.., |(from, to, _)| *from == id || *to == id).collect()
        };
        for (_, _, task) in gone {
            task.abort();
            let _ = task.await;
        }
        store.shutdown().await;
    }

    pub async fn stop_all(&self) {
        let ids: Vec<NodeId> = self.net.stores.read().unwrap().keys().copied().collect();
        for id in ids {
            self.stop(id).await;
        }
    }

    pub fn status(&self, id: NodeId) -> Status {
        self.store(id).status().borrow().clone()
    }

    /// The one that the most recent term made leader.
    pub async fn leader(&self, among: &[NodeId]) -> NodeId {
        let deadline = Instant::now() + WAIT;
        loop {
            let leaders = among.iter().map(|id| self.status(*id)).filter(|s| s.is_leader);
            if let Some(leader) = leaders.max_by_key(|s| s.term) {
                return leader.id;
            }
            assert!(Instant::now() < deadline, "no leader among {among:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// A new cluster of these replicas, of which all vote that should.
    pub async fn boot(tune: fn(&mut Options), ids: &[NodeId], voters: usize) -> Self {
        let mut cluster = Self::new(tune);
        let first = cluster.start(ids[0]).await;
        first.bootstrap().await.unwrap();
        cluster.leader(&ids[..1]).await;
        for id in &ids[1..] {
            cluster.start(*id).await;
            first.add_replica(*id).await.unwrap();
        }
        cluster.grow(ids, voters).await;
        cluster
    }

    /// Reconciles until so many vote, as every one of them sees it.
    pub async fn grow(&self, ids: &[NodeId], voters: usize) {
        let alive: BTreeSet<NodeId> = ids.iter().copied().collect();
        let deadline = Instant::now() + WAIT;
        while ids.iter().any(|id| self.status(*id).voters.len() != voters) {
            assert!(Instant::now() < deadline, "never {voters} voters: {:?}", self.status(ids[0]));
            for id in ids {
                let _ = self.store(*id).reconcile_membership(&alive).await;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Proposes until it is applied; only for Changes that may be applied twice.
pub async fn insist(store: &Store, change: Change) -> u64 {
    let deadline = Instant::now() + WAIT;
    loop {
        match store.propose(change.clone()).await {
            Ok(applied) => return applied.revision,
            Err(ProposeError::NoLeader(_) | ProposeError::Unknown(_) | ProposeError::Failed(_)) => {
                assert!(Instant::now() < deadline, "never applied: {change:?}");
            }
            Err(error) => panic!("{error}"),
        }
    }
}
