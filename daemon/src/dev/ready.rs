//! Growing a cluster, and waiting for daemons until they are of use.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use flotilla_raft::membership::wanted_voters;
use tonic::transport::{Channel, Endpoint};

use super::Cluster;
use super::error::DevError;
use super::fabric::MAX_NODES;
use crate::config::{Config, Layer};
use crate::proto::cluster_client::ClusterClient;
use crate::proto::{ClusterStatusRequest, CreateTokenRequest, NodesRequest};

/// A node that is slower than this has failed.
pub(crate) const START_WAIT: Duration = Duration::from_secs(60);
const CALL_WAIT: Duration = Duration::from_secs(5);
const ASK_AGAIN: Duration = Duration::from_millis(50);
const TOKEN_TTL_SECONDS: u64 = 3_600;
const LOG_TAIL_BYTES: usize = 4_000;

impl Cluster {
    /// Adds nodes until there are `count` of them, and waits until all are ready. The first makes the cluster, the
    /// others join it at the same time with one token.
    ///
    /// # Errors
    /// If a daemon ends or is not ready in time; its log's end is part of the error.
    pub async fn grow_to(&mut self, count: usize, say: &mut (dyn FnMut(&str) + Send)) -> Result<(), DevError> {
        if count == 0 || count > MAX_NODES {
            return Err(DevError::TooManyNodes { asked: count, max: MAX_NODES });
        }
        if self.record.nodes.is_empty() {
            let first = self.add_node()?;
            self.start(&first, None)?;
            self.wait_answering(&first).await?;
            say(&format!("{first} is up at {} and made the cluster", self.address(&first)?));
        }
        let missing = count.saturating_sub(self.record.nodes.len());
        if missing > 0 {
            let uses = u32::try_from(missing).unwrap_or(u32::MAX);
            let token = self.create_token(uses).await?;
            let mut joining = Vec::new();
            for _ in 0..missing {
                let node = self.add_node()?;
                self.start(&node, Some(&token))?;
                joining.push(node);
            }
            for node in joining {
                self.wait_answering(&node).await?;
                say(&format!("{node} joined at {}", self.address(&node)?));
            }
        }
        let names = self.node_names();
        self.wait_ready(&names).await?;
        let voters = voters_of(names.len(), &self.configured()?);
        self.wait_voters(voters).await?;
        say(&format!("{} nodes are ready, {voters} of them vote", names.len()));
        Ok(())
    }

    /// What the daemons read from their common file.
    fn configured(&self) -> Result<Config, DevError> {
        let path = self.places.config();
        Config::load(Some(&path), [], Layer::default())
            .map_err(|error| DevError::Record { path, message: error.to_string() })
    }

    /// Keeps the nodes' logs where taking the cluster down does not reach them. `None` if there are none.
    ///
    /// # Errors
    /// If they cannot be copied.
    pub fn keep_logs(&self) -> io::Result<Option<PathBuf>> {
        let logs: Vec<PathBuf> = self.node_names().iter().map(|node| self.places.log(node)).collect();
        let logs: Vec<PathBuf> = logs.into_iter().filter(|log| log.exists()).collect();
        if logs.is_empty() {
            return Ok(None);
        }
        let kept = std::env::temp_dir().join(format!("flotilla-dev-{}-{}", self.places.name(), std::process::id()));
        fs::DirBuilder::new().mode(0o700).create(&kept)?;
        for log in logs {
            fs::copy(&log, kept.join(log.file_name().unwrap_or_default()))?;
        }
        Ok(Some(kept))
    }

    /// Waits until so many nodes vote and each of the nodes knows it, so that the cluster survives the loss of any of them
    /// that are fewer than half of the voters.
    async fn wait_voters(&self, count: usize) -> Result<(), DevError> {
        for node in self.node_names() {
            let channel = self.channel(&node)?;
            let ask = || {
                let mut client = ClusterClient::new(channel.clone());
                async move {
                    let status = bounded(client.status(ClusterStatusRequest {})).await;
                    status.is_ok_and(|status| status.voters.len() >= count && !status.voters_change)
                }
            };
            self.wait_for(&[node], &format!("having {count} voters"), ask).await?;
        }
        Ok(())
    }

    /// A gRPC connection to a node, made when it is first used.
    ///
    /// # Errors
    /// If there is no such node.
    pub fn channel(&self, node: &str) -> Result<Channel, DevError> {
        Ok(channel(&self.places.socket(&self.node(node)?.name)))
    }

    /// A token with which so many nodes may join, from the first node that gives one.
    ///
    /// # Errors
    /// If no node does.
    pub async fn create_token(&self, uses: u32) -> Result<String, DevError> {
        let mut last = DevError::Missing { name: self.places.name().into() };
        for node in self.node_names() {
            let request = CreateTokenRequest { ttl_seconds: TOKEN_TTL_SECONDS, uses, ..CreateTokenRequest::default() };
            let mut client = ClusterClient::new(self.channel(&node)?);
            match bounded(client.create_token(request)).await {
                Ok(response) => return Ok(response.token),
                Err(message) => last = DevError::Refused { node, message },
            }
        }
        Err(last)
    }

    /// Waits until the daemon of a node answers and knows a leader.
    ///
    /// # Errors
    /// If it ends or is too slow.
    pub async fn wait_answering(&self, node: &str) -> Result<(), DevError> {
        let channel = self.channel(node)?;
        let ask = || {
            let mut client = ClusterClient::new(channel.clone());
            async move {
                bounded(client.status(ClusterStatusRequest {})).await.is_ok_and(|status| !status.leader.is_empty())
            }
        };
        self.wait_for(&[node.to_owned()], &format!("{node}'s start"), ask).await
    }

    /// Waits until the cluster calls these nodes ready.
    ///
    /// # Errors
    /// If one ends or is too slow.
    pub async fn wait_ready(&self, nodes: &[String]) -> Result<(), DevError> {
        let Some(first) = nodes.first() else { return Ok(()) };
        let channel = self.channel(first)?;
        let ask = || {
            let mut client = ClusterClient::new(channel.clone());
            async move {
                bounded(client.nodes(NodesRequest {})).await.is_ok_and(|listed| {
                    let ready = |name: &String| listed.nodes.iter().any(|n| n.name == *name && n.status == "Ready");
                    nodes.iter().all(ready)
                })
            }
        };
        self.wait_for(nodes, "all nodes being ready", ask).await
    }

    async fn wait_for<F>(&self, nodes: &[String], what: &str, mut ask: impl FnMut() -> F) -> Result<(), DevError>
    where
        F: Future<Output = bool>,
    {
        let deadline = Instant::now() + START_WAIT;
        while !ask().await {
            for node in nodes {
                self.daemon(node).map_err(|_| self.ended(node))?;
            }
            if Instant::now() >= deadline {
                let node = nodes.first().map_or("", String::as_str);
                return Err(self.too_slow(what.to_owned(), node));
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
        Ok(())
    }

    fn ended(&self, node: &str) -> DevError {
        DevError::DaemonEnded { node: node.to_owned(), log_tail: tail(&self.places.log(node)) }
    }

    pub(super) fn too_slow(&self, what: String, node: &str) -> DevError {
        let log_tail = tail(&self.places.log(node));
        DevError::TooSlow { what, seconds: START_WAIT.as_secs(), node: node.to_owned(), log_tail }
    }
}

/// A connection to the socket of a daemon, made when it is first used.
#[must_use]
pub fn channel(socket: &Path) -> Channel {
    let target = socket.to_owned();
    let connector = tower::service_fn(move |_: http::Uri| {
        let target = target.clone();
        async move { tokio::net::UnixStream::connect(target).await.map(hyper_util::rt::TokioIo::new) }
    });
    Endpoint::from_static("http://flotilla").connect_timeout(CALL_WAIT).connect_with_connector_lazy(connector)
}

async fn bounded<T>(call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>) -> Result<T, String> {
    match tokio::time::timeout(CALL_WAIT, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(status.message().to_owned()),
        Err(_) => Err(format!("no answer within {} s", CALL_WAIT.as_secs())),
    }
}

/// How many replicas vote in a cluster of so many nodes that are configured alike.
fn voters_of(nodes: usize, config: &Config) -> usize {
    // The first node keeps its replica until others have one.
    let replicas = if config.no_replica { 1 } else { nodes.min(config.max_replicas) };
    wanted_voters(replicas)
}

fn tail(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let from = bytes.len().saturating_sub(LOG_TAIL_BYTES);
    String::from_utf8_lossy(&bytes[from..]).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_vote_as_the_product_makes_voters() {
        let config = Config::load(Some(Path::new("/dev/null")), [], Layer::default()).unwrap();
        let voters = [1, 2, 3, 4, 5, 6, 7, 8, 9, 12].map(|nodes| voters_of(nodes, &config));
        assert_eq!(voters, [1, 1, 3, 3, 5, 5, 5, 5, 7, 7]);
        let few = Config { max_replicas: 3, ..config.clone() };
        assert_eq!(voters_of(9, &few), 3);
        assert_eq!(voters_of(9, &Config { no_replica: true, ..config }), 1);
    }
}
