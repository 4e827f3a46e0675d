//! A cluster in a box for one test.
//!
//! Invariant: clusters of tests come up one after the other, on the whole machine, so that a busy machine does not
//! pass for a slow product.
//! Invariant: a cluster is named after the process that made it; clusters of processes that are gone are taken down.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use flotilla::dev::{self, Options, Space};
use flotilla::proto::cluster_client::ClusterClient;
use flotilla::proto::images_client::ImagesClient;
use flotilla::proto::jobs_client::JobsClient;
use flotilla::proto::objects_client::ObjectsClient;
use flotilla::proto::pods_client::PodsClient;
use flotilla::proto::{ClusterStatus, ClusterStatusRequest, NodeSummary, NodesRequest};
use tonic::transport::Channel;

use crate::disk;

/// On a disk rather than in memory: durable writes shall cost what they cost.
const ROOT: &str = "/var/tmp/flotilla-tests";
const LOCK: &str = "/var/tmp/flotilla-tests.lock";
/// Where the logs of clusters whose test failed are kept, and of how many.
const KEPT: &str = "/var/tmp/flotilla-tests.kept";
const MAX_KEPT: usize = 20;

/// A running cluster; gone when it is dropped.
pub struct Cluster {
    pub dev: dev::Cluster,
    _turn: File,
}

impl Cluster {
    /// Boots so many nodes and waits until all are ready.
    ///
    /// # Panics
    /// If they are not.
    pub async fn start(nodes: usize) -> Self {
        Self::start_with(nodes, |_| String::new()).await
    }

    /// As [`Self::start`], with a configuration file that may name the machine's address in the cluster's network.
    ///
    /// # Panics
    /// If the nodes do not become ready.
    pub async fn start_with(nodes: usize, config: impl FnOnce(&dev::Cluster) -> String) -> Self {
        let mut cluster = Self::empty(config).await;
        cluster.grow_to(nodes).await;
        cluster
    }

    /// Adds nodes until there are so many, and waits until all are ready.
    ///
    /// # Panics
    /// If they are not.
    pub async fn grow_to(&mut self, nodes: usize) {
        let grown = self.dev.grow_to(nodes, &mut |line| println!("{line}")).await;
        grown.unwrap_or_else(|error| panic!("the cluster does not start: {error}"));
    }

    /// The network of a cluster, without nodes.
    ///
    /// # Panics
    /// If it cannot be made.
    pub async fn empty(config: impl FnOnce(&dev::Cluster) -> String) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let turn = tokio::task::spawn_blocking(take_turn).await.expect("waiting for a turn does not panic");
        sweep();
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("t{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let options = Options { root: ROOT.into(), name, binary: binary(), subnet: None };
        let dev = dev::Cluster::create(&options).unwrap_or_else(|error| panic!("no network: {error}"));
        let cluster = Self { dev, _turn: turn };
        cluster.dev.configure(&config(&cluster.dev)).expect("the configuration can be written");
        cluster
    }

    #[must_use]
    pub fn nodes(&self) -> Vec<String> {
        self.dev.node_names()
    }

    /// The nodes but for one.
    #[must_use]
    pub fn nodes_but(&self, node: &str) -> Vec<String> {
        self.nodes().into_iter().filter(|name| name != node).collect()
    }

    #[must_use]
    pub fn space(&self, node: &str) -> Space {
        self.dev.space(node).unwrap_or_else(|error| panic!("{error}"))
    }

    #[must_use]
    pub fn channel(&self, node: &str) -> Channel {
        self.dev.channel(node).unwrap_or_else(|error| panic!("{error}"))
    }

    #[must_use]
    pub fn cluster(&self, node: &str) -> ClusterClient<Channel> {
        ClusterClient::new(self.channel(node))
    }

    #[must_use]
    pub fn jobs(&self, node: &str) -> JobsClient<Channel> {
        JobsClient::new(self.channel(node))
    }

    #[must_use]
    pub fn objects(&self, node: &str) -> ObjectsClient<Channel> {
        ObjectsClient::new(self.channel(node)).max_decoding_message_size(64 << 20)
    }

    #[must_use]
    pub fn pods(&self, node: &str) -> PodsClient<Channel> {
        PodsClient::new(self.channel(node))
    }

    #[must_use]
    pub fn images(&self, node: &str) -> ImagesClient<Channel> {
        ImagesClient::new(self.channel(node))
    }

    /// The cluster as a node sees it.
    ///
    /// # Errors
    /// What the node says.
    pub async fn status(&self, node: &str) -> Result<ClusterStatus, String> {
        let answer = self.cluster(node).status(ClusterStatusRequest {}).await;
        answer.map(tonic::Response::into_inner).map_err(|status| status.message().to_owned())
    }

    /// The leader's name as a node sees it.
    ///
    /// # Errors
    /// What the node says, or that it knows of none.
    pub async fn leader(&self, node: &str) -> Result<String, String> {
        let leader = self.status(node).await?.leader;
        if leader.is_empty() { Err("no leader".into()) } else { Ok(leader) }
    }

    /// # Errors
    /// What the node says.
    pub async fn node_summaries(&self, node: &str) -> Result<Vec<NodeSummary>, String> {
        let answer = self.cluster(node).nodes(NodesRequest {}).await;
        answer.map(|nodes| nodes.into_inner().nodes).map_err(|status| status.message().to_owned())
    }

    /// Every process in the containers of a node, by the id it has on this machine.
    #[must_use]
    pub fn container_processes(&self, node: &str) -> Vec<i32> {
        dev::cgroup_processes(&self.dev.places().node_cgroup(node))
    }

    /// # Errors
    /// If the log cannot be read.
    pub fn log(&self, node: &str) -> std::io::Result<String> {
        fs::read_to_string(self.dev.places().log(node))
    }

    /// Starts a node again that was killed, and waits until it answers.
    ///
    /// # Panics
    /// If it does not.
    pub async fn restart(&mut self, node: &str) {
        self.dev.start(node, None).unwrap_or_else(|error| panic!("{node} does not start: {error}"));
        self.dev.wait_answering(node).await.unwrap_or_else(|error| panic!("{node} does not come back: {error}"));
    }

    /// For whoever looks into why the test failed.
    fn keep_logs(&self) -> std::io::Result<PathBuf> {
        let kept = Path::new(KEPT).join(self.dev.places().name());
        fs::create_dir_all(&kept)?;
        for node in self.nodes() {
            fs::copy(self.dev.places().log(&node), kept.join(format!("{node}.log")))?;
        }
        let mut all: Vec<_> = fs::read_dir(KEPT)?.flatten().collect();
        all.sort_by_key(|entry| std::cmp::Reverse(entry.metadata().and_then(|meta| meta.modified()).ok()));
        all.iter().skip(MAX_KEPT).try_for_each(|old| fs::remove_dir_all(old.path()))?;
        Ok(kept)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            match self.keep_logs() {
                Ok(kept) => eprintln!("the logs of the nodes are kept in {}", kept.display()),
                Err(error) => eprintln!("the logs of the nodes cannot be kept: {error}"),
            }
        }
        // A second panic would abort the test and hide the first.
        if let Err(error) = take_down(self.dev.places().name()) {
            eprintln!("the cluster does not go away: {error}");
        }
    }
}

/// Waits until no other test has a cluster. The lock goes away with the process at the latest.
fn take_turn() -> File {
    let lock = OpenOptions::new().create(true).truncate(false).write(true).open(LOCK).expect("the lock can be made");
    // SAFETY: the descriptor is open for as long as `lock` lives.
    let locked = unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX) };
    assert_eq!(locked, 0, "waiting for the lock: {}", std::io::Error::last_os_error());
    lock
}

/// Removes a cluster with the disks that it was given.
fn take_down(name: &str) -> anyhow::Result<()> {
    disk::unmount_below(&Path::new(ROOT).join(name))?;
    dev::Cluster::down(Path::new(ROOT), name)?;
    Ok(())
}

/// Takes down what tests left behind that were killed.
fn sweep() {
    for name in dev::Cluster::list(Path::new(ROOT)) {
        let maker =
            name.strip_prefix('t').and_then(|rest| rest.split('-').next()).and_then(|pid| pid.parse::<i32>().ok());
        if maker.is_none_or(|pid| dev::Process::of(pid).is_err()) {
            println!("sweeping up {name}");
            take_down(&name).unwrap_or_else(|error| panic!("cannot sweep up {name}: {error}"));
        }
    }
}

/// The binary under test lies beside the tests' own directory: `target/debug/flotilla`.
///
/// # Panics
/// If it was not built.
#[must_use]
pub fn binary() -> PathBuf {
    let tests = std::env::current_exe().expect("a test knows its own path");
    let found = tests.ancestors().skip(1).take(2).map(|dir| dir.join("flotilla")).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("build the binary first: make test, or cargo build -p flotilla"))
}
