//! Taking a node out of use: cordon, drain, leave.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use flotilla_api::admit::Subresource;
use flotilla_api::kinds::Builtin;
use flotilla_api::{Reason, Status};
use flotilla_net::Net;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{error, warn};

use crate::gate::{DeleteOptions, Gate, ListQuery, User, WriteOptions};
use crate::members::{self, LEAVING_ANNOTATION};
use crate::node::Node;
use crate::proto::Progress;
use crate::{data_dir, slice};

const MANAGER: &str = "flotilla-drain";
/// How often the node's pods are counted while they go.
const POLL: Duration = Duration::from_millis(250);
/// How long the others may take to remove a node that leaves.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(15);

/// So often in a row must the others say that a node is no member before it believes that.
const REFUSALS: u32 = 3;
/// How long the pods of a deleted node have to end.
const DELETED_GRACE: Duration = Duration::from_secs(10);

/// Pods that a message names.
const MAX_NAMED: usize = 5;

type Sender = mpsc::Sender<Result<Progress, tonic::Status>>;

/// Sets or clears `spec.unschedulable`; false if it was so already.
///
/// # Errors
/// Those of [`Gate::update`].
pub async fn cordon(gate: &Gate, user: &User, node: &str, cordon: bool) -> Result<bool, Status> {
    let kind = gate.built_in(Builtin::Node)?;
    let mut changed = false;
    gate.update(user, &kind, ("", node), Subresource::None, &WriteOptions::by(MANAGER), |node| {
        let before = node.pointer("/spec/unschedulable").and_then(Value::as_bool).unwrap_or(false);
        changed = before != cordon;
        if changed {
            node["spec"]["unschedulable"] = json!(cordon);
        }
        Ok(())
    })
    .await?;
    Ok(changed)
}

/// Moves the pods of a node elsewhere.
pub struct Drain {
    pub gate: Gate,
    pub user: User,
    pub node: String,
    pub timeout: Duration,
    /// Overrides each pod's own.
    pub grace_period_seconds: Option<i64>,
    /// Also deletes pods that nobody makes anew.
    pub force: bool,
    /// The node that drains itself.
    pub own: Option<Node>,
}

/// A pod that is to go.
struct Leaver {
    namespace: String,
    name: String,
    /// Whether a controller makes another one in its place.
    is_replaced: bool,
}

impl Leaver {
    fn of(pod: &Value) -> Self {
        let text = |path: &str| pod.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        let owners = pod.pointer("/metadata/ownerReferences").and_then(Value::as_array);
        let is_replaced = owners.is_some_and(|owners| owners.iter().any(|owner| owner["controller"] == true));
        Self { namespace: text("/metadata/namespace"), name: text("/metadata/name"), is_replaced }
    }
}

/// The first few pods by name.
fn names<'a>(pods: impl Iterator<Item = &'a Leaver>) -> String {
    let named: Vec<String> = pods.take(MAX_NAMED).map(|pod| format!("{}/{}", pod.namespace, pod.name)).collect();
    named.join(", ")
}

impl Drain {
    /// Cordons the node, deletes its pods, and waits until they are gone.
    ///
    /// # Errors
    /// `Conflict` if there are pods that nobody makes anew, unless `force`; `Timeout` with the pods that remain; or those
    /// of the gate.
    pub async fn run(&self, send: &Sender) -> Result<(), Status> {
        if cordon(&self.gate, &self.user, &self.node, true).await? {
            tell(send, format!("node {} is cordoned", self.node), 0, 0).await;
        }
        self.refuse_bare_pods(&self.pods().await?)?;
        let until = Instant::now() + self.timeout;
        let (mut deleted, mut reported) = (BTreeSet::new(), usize::MAX);
        loop {
            let left = self.pods().await?;
            for Leaver { namespace, name, .. } in &left {
                if !deleted.insert((namespace.clone(), name.clone())) {
                    continue;
                }
                let options = DeleteOptions {
                    grace_period_seconds: self.grace_period_seconds,
                    manager: MANAGER.into(),
                    ..DeleteOptions::default()
                };
                match self.evict((namespace, name), &options).await {
                    Err(status) if status.reason == Reason::NotFound => {}
                    // Its budget does not allow it yet: asked again at the next count.
                    Err(status) if status.reason == Reason::TooManyRequests => {
                        deleted.remove(&(namespace.clone(), name.clone()));
                    }
                    Err(status) => return Err(status),
                    Ok(_) => {}
                }
            }
            if left.len() != reported {
                reported = left.len();
                let message =
                    format!("{} of {} pods have left {}", deleted.len() - left.len(), deleted.len(), self.node);
                tell(send, message, deleted.len() - left.len(), deleted.len()).await;
            }
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(Status::new(
                    Reason::Timeout,
                    format!(
                        "{} pods are still on {} after {} s: {}",
                        left.len(),
                        self.node,
                        self.timeout.as_secs(),
                        names(left.iter())
                    ),
                ));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn evict(&self, pod: (&str, &str), options: &DeleteOptions) -> Result<(), Status> {
        match self.own.as_ref().filter(|own| own.gate.store().fed_by().is_some()) {
            Some(own) => slice::evict(own, &self.user, pod, options.grace_period_seconds).await,
            None => self.gate.evict(&self.user, pod, options).await.map(drop),
        }
    }

    fn refuse_bare_pods(&self, pods: &[Leaver]) -> Result<(), Status> {
        let bare = || pods.iter().filter(|pod| !pod.is_replaced);
        if self.force || bare().next().is_none() {
            return Ok(());
        }
        let message =
            format!("cannot delete Pods that declare no controller (use --force to override): {}", names(bare()));
        Err(Status::new(Reason::Conflict, message))
    }

    /// The pods of the node that have not ended.
    async fn pods(&self) -> Result<Vec<Leaver>, Status> {
        let kind = self.gate.built_in(Builtin::Pod)?;
        let query = ListQuery::parse(None, "", &format!("spec.nodeName={}", self.node))?;
        let pods = self.gate.list(&self.user, &kind, &query).await?;
        let has_ended =
            |pod: &&Value| matches!(pod.pointer("/status/phase").and_then(Value::as_str), Some("Succeeded" | "Failed"));
        Ok(pods.items.iter().filter(|pod| !has_ended(pod)).map(Leaver::of).collect())
    }
}

/// Drains this node, hands over leadership, removes the node from the cluster, and ends the daemon.
///
/// # Errors
/// `Conflict` for the last node, or what the drain says unless it is forced.
pub async fn leave(node: &Node, drain: Drain, send: &Sender) -> Result<(), Status> {
    if node.members.all().len() < 2 {
        return Err(Status::new(
            Reason::Conflict,
            "this is the cluster's last node: stop the daemon and remove its data directory instead",
        ));
    }
    match drain.run(send).await {
        Err(status) if drain.force => tell(send, format!("going all the same: {status}"), 0, 0).await,
        drained => drained?,
    }
    // From here on the deletion of its Node is no news.
    node.is_leaving.store(true, Ordering::Relaxed);
    let left = depart(node, &drain, send).await;
    node.is_leaving.store(left.is_ok(), Ordering::Relaxed);
    if left.is_err()
        && data_dir::is_leaving(&node.config.data_dir)
        && let Err(error) = data_dir::mark_staying(&node.config.data_dir)
    {
        warn!(%error, "it cannot be taken back that this node leaves");
    }
    left
}

/// Has the others take this node out, and ends it when they have.
async fn depart(node: &Node, drain: &Drain, send: &Sender) -> Result<(), Status> {
    data_dir::mark_leaving(&node.config.data_dir).map_err(Status::internal)?;
    // From here on they do, even if it dies now.
    let kind = node.gate.built_in(Builtin::Node)?;
    node.gate
        .update(&drain.user, &kind, ("", &drain.node), Subresource::None, &WriteOptions::by(MANAGER), |node| {
            if !node["metadata"]["annotations"].is_object() {
                node["metadata"]["annotations"] = json!({});
            }
            node["metadata"]["annotations"][LEAVING_ANNOTATION] = json!("true");
            Ok(())
        })
        .await?;
    let store = node.gate.store();
    let own = node.members.own_id();
    let status = store.status().borrow().clone();
    if status.is_leader {
        tell(send, "handing over leadership".into(), 0, 0).await;
        let handed = match status.voters.len() {
            // The only voter hands its vote to another replica, and leadership with it.
            1 => store.remove_replica(own).await,
            _ => store.transfer_leader(None).await,
        };
        handed.map_err(|error| Status::new(Reason::ServiceUnavailable, error))?;
    }
    // Whoever leads now removes the replica, then the Node; then nobody answers this node any more.
    _ = tokio::time::timeout(REMOVAL_TIMEOUT, async {
        while store.barrier().await.is_ok() {
            tokio::time::sleep(POLL).await;
        }
    })
    .await;
    tell(send, format!("node {} is no longer a member", drain.node), 0, 0).await;
    node.local.stop_all(Duration::ZERO).await;
    crate::enrol::leave(&node.config, &drain.node, node.trust.cluster()).map_err(Status::internal)?;
    let place = node.config.data_dir.display();
    tell(send, format!("the daemon stops, and does not start here again until {place} is removed"), 0, 0).await;
    node.stop.cancel();
    Ok(())
}

/// Ends this node's pods and daemon when its Node was deleted and the others say that it is no member: its pods are made anew
/// elsewhere, and must not run twice. That nobody answers says nothing. What the node knows stays on its disk. A node that
/// leaves by itself ends by itself.
pub async fn end_when_deleted(node: Node) {
    let own = node.members.own_id();
    let mut changes = node.members.changes();
    if changes.wait_for(|roll| roll.deleted.contains(&own)).await.is_err() {
        return;
    }
    warn!("this Node was deleted: it goes when the others have taken it out of the group");
    while node.is_leaving.load(Ordering::Relaxed) || !is_taken_out(&node.net).await {
        tokio::time::sleep(POLL).await;
    }
    node.local.stop_all(DELETED_GRACE).await;
    let cluster = node.trust.cluster().to_string();
    if let Err(error) = data_dir::mark_left(&node.config.data_dir, node.members.own_name(), &cluster) {
        warn!(%error, "it cannot be kept that this node has left");
    }
    error!(
        "this machine was removed from the cluster with 'delete node'; its pods have ended, and so does the daemon. To join \
         anew, remove the data directory and run 'flotilla up --join TOKEN'"
    );
    node.stop.cancel();
}

/// Whether the others have taken this node out: they say so again and again.
pub async fn is_taken_out(net: &Net) -> bool {
    for _ in 0..REFUSALS {
        tokio::time::sleep(POLL).await;
        if members::is_let_in(net).await {
            return false;
        }
    }
    true
}

async fn tell(send: &Sender, message: String, done: usize, total: usize) {
    // A client that hung up does not stop what it began.
    _ = send.send(Ok(Progress { message, done: done as u32, total: total as u32 })).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_controller_makes_a_pod_anew() {
        let pod = |owners: Value| json!({"metadata": {"name": "p", "namespace": "n", "ownerReferences": owners}});
        assert!(Leaver::of(&pod(json!([{"kind": "ReplicaSet", "controller": true}]))).is_replaced);
        assert!(!Leaver::of(&pod(json!([{"kind": "ConfigMap"}]))).is_replaced);
        assert!(!Leaver::of(&pod(Value::Null)).is_replaced);
    }
}
