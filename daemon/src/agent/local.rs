//! What runs on this node, as the agent and the faces reach it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::Context;
use flotilla_net::Net;
use flotilla_runtime::Pods;
use flotilla_runtime::engine::EngineChoice;
use flotilla_runtime::images::{Credentials, HostConfig, Images, RegistryConfig};
use flotilla_runtime::network::NetworkConfig;
use flotilla_runtime::pods::{Config as PodsConfig, LogRotation};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::source::Sources;
use crate::accounts::Accounts;
use crate::config::{Config, Registry};
use crate::gate::{Gate, User};
use crate::usage::Usage;

/// Room for the headers of an overlay that a network below may need.
const MTU: u32 = 1450;
/// Sandboxes and containers that are made at the same time.
const STARTS_PER_CORE: usize = 4;

/// This node's images and pods. Cheap to clone.
#[derive(Clone)]
pub struct Local {
    inner: Arc<Inner>,
}

struct Inner {
    config: Arc<Config>,
    node: String,
    net: Net,
    images: Images,
    /// Set once the node knows its pod addresses.
    pods: OnceLock<Pods>,
    /// Why none can run here.
    trouble: OnceLock<String>,
    sources: Sources,
    usage: Mutex<Usage>,
    /// Sandboxes and containers being made: more at once only take the processors from those that run, and from the
    /// heartbeats.
    starts: Semaphore,
    /// Volumes being measured: one after the other, so that a node full of them still has its disk for the pods.
    measures: Semaphore,
}

impl Local {
    /// Opens the images; pods follow with [`Local::start`].
    ///
    /// # Errors
    /// If the directory cannot be used.
    pub async fn open(
        config: &Arc<Config>,
        accounts: Accounts,
        gate: Gate,
        node: &str,
        net: Net,
    ) -> anyhow::Result<Self> {
        let directory = config.data_dir.join("images");
        let registries = registries(config);
        let images = tokio::task::spawn_blocking(move || Images::open(&directory, registries)).await??;
        let sources = Sources { gate, accounts, user: User::node(node) };
        let inner = Inner {
            config: config.clone(),
            node: node.to_owned(),
            net,
            images,
            pods: OnceLock::new(),
            trouble: OnceLock::new(),
            sources,
            usage: Mutex::default(),
            starts: Semaphore::new(STARTS_PER_CORE * std::thread::available_parallelism().map_or(1, usize::from)),
            measures: Semaphore::new(1),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Adopts what runs, with pods at addresses of `cidr`.
    ///
    /// # Errors
    /// If the bridge or the directories cannot be set up.
    pub(super) async fn start(&self, cidr: &str) -> anyhow::Result<()> {
        let config = &self.inner.config;
        let cluster = config.cluster_cidr.parse().context("cluster_cidr")?;
        let network = NetworkConfig {
            bridge: config.bridge.clone(),
            pod_cidr: cidr.parse().with_context(|| format!("the node's podCIDR {cidr:?}"))?,
            mtu: MTU,
            masquerade: true,
            native_cidrs: vec![cluster],
        };
        self.adopt(Some(network)).await
    }

    /// Ends what runs on a machine that is a node no more.
    ///
    /// # Errors
    /// If the directories cannot be read.
    pub async fn clear(&self) -> anyhow::Result<()> {
        self.adopt(None).await?;
        self.stop_all(Duration::ZERO).await;
        Ok(())
    }

    async fn adopt(&self, network: Option<NetworkConfig>) -> anyhow::Result<()> {
        let config = &self.inner.config;
        let engine = match &config.engine {
            None => EngineChoice::Libcontainer,
            Some(path) => EngineChoice::Command { path: path.clone() },
        };
        let pods = Pods::open(PodsConfig {
            root: config.data_dir.join("pods"),
            run: config.run_dir.join("pods"),
            engine,
            cgroup_parent: config.cgroup_parent.clone(),
            shim: vec!["/proc/self/exe".into(), "shim".into()],
            network,
            log: LogRotation::default(),
        })
        .await
        .context("the pods of this node cannot be opened")?;
        _ = self.inner.pods.set(pods);
        Ok(())
    }

    pub fn images(&self) -> &Images {
        &self.inner.images
    }

    /// `None` until the node knows its pod addresses.
    pub fn pods(&self) -> Option<&Pods> {
        self.inner.pods.get()
    }

    /// Keeps why no pods can run here.
    pub(super) fn give_up(&self, why: String) {
        _ = self.inner.trouble.set(why);
    }

    /// Whether pods can run here; otherwise why not, in words for people.
    pub(super) fn readiness(&self) -> Result<(), &str> {
        match self.pods() {
            Some(_) => Ok(()),
            None => Err(self.inner.trouble.get().map_or("the node has no pod addresses yet", String::as_str)),
        }
    }

    pub(super) fn sources(&self) -> &Sources {
        &self.inner.sources
    }

    pub(super) fn node(&self) -> &str {
        &self.inner.node
    }

    /// The machine's first address, which may change while it runs.
    pub(super) fn host_ip(&self) -> String {
        let record = self.inner.net.own_record();
        let first = record.as_ref().and_then(|record| record.addresses().first());
        first.map_or_else(String::new, |address| address.ip().to_string())
    }

    /// Where this node's API is reached, from pods too; empty while the machine has no address.
    pub fn api_address(&self) -> String {
        let record = self.inner.net.own_record();
        let first = record.as_ref().and_then(|record| record.addresses().first());
        let port = self.inner.config.listen.port();
        first.map_or_else(String::new, |address| std::net::SocketAddr::new(address.ip(), port).to_string())
    }

    /// Where a pod's logs are, whether or not it still runs.
    pub(super) fn log_dir(&self, uid: &str) -> PathBuf {
        self.inner.config.data_dir.join("logs").join(uid)
    }

    pub(super) fn volume_dir(&self, uid: &str) -> PathBuf {
        self.inner.config.data_dir.join("volumes").join(uid)
    }

    /// Where parts of volumes are bound, a directory for each container.
    pub(super) fn sub_paths_dir(&self) -> PathBuf {
        self.inner.config.run_dir.join("subpaths")
    }

    pub(super) fn rootfs_dir(&self, container: &str) -> PathBuf {
        self.inner.config.run_dir.join("rootfs").join(container)
    }

    /// Waits for a turn to make a sandbox or a container; it lasts until what is returned is dropped. `None` if nothing is to
    /// begin here any more.
    pub(super) async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        self.inner.starts.acquire().await.ok()
    }

    /// Waits for a turn to measure volumes, as [`Local::turn`].
    pub(super) async fn measure(&self) -> Option<SemaphorePermit<'_>> {
        self.inner.measures.acquire().await.ok()
    }

    pub fn usage(&self) -> Usage {
        *self.inner.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_usage(&self, usage: Usage) {
        *self.inner.usage.lock().unwrap_or_else(PoisonError::into_inner) = usage;
    }

    /// Ends every pod of this node, all at once, and lets none begin: it is no longer a member.
    pub async fn stop_all(&self, grace: Duration) {
        let Some(pods) = self.pods() else { return };
        self.inner.starts.close();
        let stops = pods.list().into_iter().map(|sandbox| async move {
            // What does not end in its time is killed with the sandbox.
            _ = pods.stop_sandbox(&sandbox.id, grace).await;
            if let Err(error) = pods.remove_sandbox(&sandbox.id).await {
                tracing::warn!(sandbox = sandbox.id, error = &error as &dyn std::error::Error, "a pod is left behind");
            }
        });
        futures::future::join_all(stops).await;
    }

    /// Lets go of the shims, which live on.
    pub(super) async fn close(&self) {
        if let Some(pods) = self.pods() {
            pods.close().await;
        }
    }
}

fn registries(config: &Config) -> RegistryConfig {
    let host = |registry: &Registry| HostConfig {
        mirrors: registry.mirrors.clone(),
        insecure_http: registry.insecure_http,
        credentials: registry.username.as_ref().map(|username| Credentials::Basic {
            username: username.clone(),
            password: registry.password.clone().unwrap_or_default(),
        }),
        ca_file: registry.ca_file.clone(),
    };
    RegistryConfig {
        hosts: config.registries.iter().map(|(name, registry)| (name.clone(), host(registry))).collect(),
        ..RegistryConfig::default()
    }
}
