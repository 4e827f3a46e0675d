//! A client that writes all the while, and remembers what was acknowledged and when.
//!
//! Each write creates a ConfigMap of its own. A write without an answer is tried again at the next node; that it exists
//! already then means that the lost answer would have been an acknowledgement.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use flotilla::proto::objects_client::ObjectsClient;
use flotilla::proto::{ApplyRequest, ListObjectsRequest};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::Channel;

use crate::Cluster;

/// A write that takes longer is asked again elsewhere.
const WRITE_WAIT: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(20);
const PAGE: u32 = 500;

pub struct Writer {
    stop: CancellationToken,
    /// How many writes were acknowledged.
    progress: watch::Receiver<usize>,
    task: JoinHandle<Written>,
}

/// What a writer did.
#[derive(Debug, Default)]
pub struct Written {
    pub acknowledged: Vec<(String, Instant)>,
}

impl Writer {
    /// Writes to the first of these nodes that answers, and changes to the next when one does not.
    #[must_use]
    pub fn start(cluster: &Cluster, prefix: &str, nodes: &[String]) -> Self {
        let stop = CancellationToken::new();
        let clients = nodes.iter().map(|node| cluster.objects(node)).collect();
        let (tell, progress) = watch::channel(0);
        let task = tokio::spawn(write_all_the_while(clients, prefix.to_owned(), tell, stop.clone()));
        Self { stop, progress, task }
    }

    /// Waits until so many writes were acknowledged.
    ///
    /// # Panics
    /// If that takes long.
    pub async fn wait_acknowledged(&self, count: usize) {
        let mut progress = self.progress.clone();
        let waited = tokio::time::timeout(PATIENCE, progress.wait_for(|written| *written >= count)).await;
        assert!(matches!(waited, Ok(Ok(_))), "not {count} writes were acknowledged within {} s", PATIENCE.as_secs());
    }

    /// How many writes were acknowledged up to now.
    #[must_use]
    pub fn acknowledged(&self) -> usize {
        *self.progress.borrow()
    }

    /// # Panics
    /// If the writer did.
    pub async fn stop(self) -> Written {
        self.stop.cancel();
        self.task.await.expect("the writer does not panic")
    }
}

impl Written {
    /// The longest time without an acknowledgement after `since`.
    #[must_use]
    pub fn longest_gap(&self, since: Instant) -> Duration {
        let times: Vec<Instant> = self.acknowledged.iter().map(|(_, at)| *at).collect();
        let pairs = times.windows(2).filter(|pair| pair[1] > since);
        pairs.map(|pair| pair[1] - pair[0].max(since)).max().unwrap_or_default()
    }

    /// Which acknowledged writes a node does not have.
    ///
    /// # Errors
    /// What the node says.
    pub async fn missing(&self, cluster: &Cluster, node: &str) -> Result<Vec<String>, String> {
        let there = config_maps(&mut cluster.objects(node)).await?;
        Ok(self.acknowledged.iter().map(|(name, _)| name).filter(|name| !there.contains(*name)).cloned().collect())
    }
}

async fn write_all_the_while(
    mut clients: Vec<ObjectsClient<Channel>>,
    prefix: String,
    tell: watch::Sender<usize>,
    stop: CancellationToken,
) -> Written {
    let mut written = Written::default();
    for number in 0_u64.. {
        let name = format!("{prefix}-{number}");
        while !stop.is_cancelled() && !write(&mut clients[0], &name).await {
            clients.rotate_left(1);
        }
        if stop.is_cancelled() {
            break;
        }
        written.acknowledged.push((name, Instant::now()));
        tell.send_replace(written.acknowledged.len());
    }
    written
}

async fn write(client: &mut ObjectsClient<Channel>, name: &str) -> bool {
    let manifest =
        format!(r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}"}},"data":{{"a":"b"}}}}"#);
    let request = ApplyRequest { manifest: manifest.into_bytes(), create_only: true, ..ApplyRequest::default() };
    match tokio::time::timeout(WRITE_WAIT, client.apply(request)).await {
        Ok(Ok(_)) => true,
        Ok(Err(status)) if status.code() == Code::AlreadyExists => true,
        Ok(Err(_)) => {
            // A node that refuses at once must not turn this into a busy loop.
            tokio::time::sleep(Duration::from_millis(5)).await;
            false
        }
        Err(_) => false,
    }
}

async fn config_maps(client: &mut ObjectsClient<Channel>) -> Result<BTreeSet<String>, String> {
    let mut names = BTreeSet::new();
    let mut request = ListObjectsRequest { kind: "configmaps".into(), limit: PAGE, ..ListObjectsRequest::default() };
    loop {
        let page = client.list(request.clone()).await.map_err(|status| status.message().to_owned())?.into_inner();
        for item in &page.items {
            let object: serde_json::Value = serde_json::from_slice(item).map_err(|error| error.to_string())?;
            names.insert(object["metadata"]["name"].as_str().unwrap_or_default().to_owned());
        }
        if page.continue_token.is_empty() {
            return Ok(names);
        }
        request.continue_token = page.continue_token;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_counts_from_the_moment_that_is_asked_about() {
        let zero = Instant::now();
        let at = |ms| zero + Duration::from_millis(ms);
        let times = [0, 500, 510, 900, 950];
        let written = Written { acknowledged: times.map(|ms| (ms.to_string(), at(ms))).to_vec() };
        assert_eq!(written.longest_gap(zero), Duration::from_millis(500));
        assert_eq!(written.longest_gap(at(400)), Duration::from_millis(390));
        assert_eq!(written.longest_gap(at(990)), Duration::ZERO);
    }
}
