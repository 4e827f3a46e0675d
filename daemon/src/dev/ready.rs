//! Growing a cluster, and waiting for daemons until they are of use.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use tonic::transport::{Channel, Endpoint};

use super::Cluster;
use super::error::DevError;
use super::fabric::MAX_NODES;
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
        self.wait_voters(voters_of(names.len())).await?;
        say(&format!("{} nodes are ready, {} of them vote", names.len(), voters_of(names.len())));
        Ok(())
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

/// How many replicas vote in a cluster of this size.
fn voters_of(nodes: usize) -> usize {
    match nodes {
        0..=2 => 1,
        3 | 4 => 3,
        5 | 6 => 5,
        _ => 7,
    }
}

fn tail(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let from = bytes.len().saturating_sub(LOG_TAIL_BYTES);
    String::from_utf8_lossy(&bytes[from..]).trim_end().to_owned()
}
