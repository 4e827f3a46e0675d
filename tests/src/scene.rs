//! A cluster with a registry that both hold what most stories need.

use std::net::IpAddr;
use std::time::Duration;

use flotilla::proto::PodSummary;

use crate::registry::Registry;
use crate::{Cluster, eventually, image, job, proxy, registry};

/// Pulling, unpacking and starting, on a machine that is busy with three nodes.
const RUN_WAIT: Duration = Duration::from_secs(60);

/// Nodes that trust a registry on the machine, and that registry. The cluster goes first when they are dropped.
pub struct Scene {
    pub cluster: Cluster,
    pub registry: Registry,
}

impl Scene {
    /// # Panics
    /// If nodes or registry do not start.
    pub async fn set(nodes: usize) -> Self {
        let mut cluster = Cluster::empty(|dev| {
            let gateway = IpAddr::V4(dev.gateway());
            Registry::trust((gateway, registry::PORT).into()) + &Registry::trust((gateway, proxy::PORT).into())
        })
        .await;
        let registry = Registry::start(cluster.dev.gateway().into());
        cluster.grow_to(nodes).await;
        Self { cluster, registry }
    }

    /// Debian's nginx as a service with so many replicas; returns its pods when all of them answer over HTTP.
    ///
    /// # Panics
    /// If they do not.
    pub async fn nginx(&self, name: &str, count: usize) -> Vec<PodSummary> {
        let image = self.registry.push(&image::nginx(self.registry.workshop()));
        let replicas = i32::try_from(count).expect("a small number");
        self.submit(job::service(name, &image, replicas)).await;
        self.wait_running(name, count).await
    }

    /// # Panics
    /// If the job is refused.
    pub async fn submit(&self, job: flotilla::proto::Job) {
        let first = &self.cluster.nodes()[0];
        job::submit(&self.cluster, first, job).await.unwrap_or_else(|error| panic!("the job is refused: {error}"));
    }

    /// Waits until so many pods of a job run, wherever.
    ///
    /// # Panics
    /// If they do not.
    pub async fn wait_running(&self, name: &str, count: usize) -> Vec<PodSummary> {
        let (cluster, nodes) = (&self.cluster, &self.cluster.nodes());
        let what = format!("{count} pods of {name} run");
        eventually(RUN_WAIT, &what, || job::running_on(cluster, &nodes[0], name, count, nodes)).await
    }
}
