//! A cluster in a box, reached as from another machine: over TCP, with a client certificate.

use std::fs;

use flotilla::config::DEFAULT_PORT;
use flotilla_tests::{Cluster, cli};
use tempfile::TempDir;

use crate::client::{Door, System};
use crate::etcd::DISK;

pub struct Flotilla {
    pub cluster: Cluster,
    dir: TempDir,
}

impl Flotilla {
    /// Boots so many nodes and waits until all are ready.
    ///
    /// # Errors
    /// If there is no certificate for this client.
    pub async fn start(nodes: usize) -> anyhow::Result<Self> {
        let cluster = Cluster::start(nodes).await;
        let dir = tempfile::tempdir_in(DISK)?;
        fs::write(dir.path().join("bench.pem"), cli::ok(&cluster, "node-1", &["credentials", "bench"]))?;
        Ok(Self { cluster, dir })
    }

    /// # Errors
    /// If there is no such node.
    pub fn door(&self, node: &str) -> anyhow::Result<Door> {
        let address = format!("{}:{DEFAULT_PORT}", self.cluster.dev.address(node)?);
        Ok(Door { system: System::Flotilla, address, credentials: self.dir.path().join("bench.pem") })
    }

    /// # Errors
    /// If the first node knows of none.
    pub async fn leader(&self) -> anyhow::Result<String> {
        self.cluster.leader("node-1").await.map_err(anyhow::Error::msg)
    }
}
