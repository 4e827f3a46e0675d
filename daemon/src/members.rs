//! Who the members are: the Nodes of the store, for everything that speaks to them by id or by name.
//!
//! Invariant: a machine is a member while its Node exists. Nothing else is spoken to, but for joining.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flotilla_api::{GroupResource, object};
use flotilla_control::{Liveness, NodeLiveness};
use flotilla_net::Net;
use flotilla_raft::{NodeId, Range, ReadError, Store, WatchItem};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// On a Node: its id in the Raft group and on the wire, in decimal.
pub const ID_ANNOTATION: &str = "flotilla.dev/node-id";
/// On a Node: SHA-256 of its public key, in hexadecimal.
pub const KEY_ANNOTATION: &str = "flotilla.dev/key";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub id: NodeId,
    pub name: String,
}

impl Member {
    fn of_node(node: &Value) -> Option<Self> {
        let id = node.pointer("/metadata/annotations")?.get(ID_ANNOTATION)?.as_str()?.parse().ok()?;
        let name = node.pointer("/metadata/name")?.as_str()?.to_owned();
        Some(Self { id, name })
    }
}

type ByName = Arc<BTreeMap<String, NodeId>>;
type LivenessByName = Arc<BTreeMap<String, NodeLiveness>>;

/// The members and how they fare. Cheap to clone.
#[derive(Clone)]
pub struct Members {
    own: Member,
    net: Net,
    by_name: watch::Receiver<ByName>,
    liveness: watch::Receiver<LivenessByName>,
}

/// What keeps [`Members`] up to date.
pub struct Keeper {
    store: Store,
    net: Net,
    own: Member,
    by_name: watch::Sender<ByName>,
    liveness: watch::Sender<LivenessByName>,
}

/// Begins with `seed`, which the cluster gave when this node joined, until the store knows better.
pub fn members(store: Store, net: Net, own: Member, seed: &[Member]) -> (Members, Keeper) {
    let by_name: BTreeMap<String, NodeId> =
        seed.iter().chain([&own]).map(|member| (member.name.clone(), member.id)).collect();
    let (by_name, by_name_seen) = watch::channel(Arc::new(by_name));
    let (liveness, liveness_seen) = watch::channel(LivenessByName::default());
    let members = Members { own: own.clone(), net: net.clone(), by_name: by_name_seen, liveness: liveness_seen };
    (members, Keeper { store, net, own, by_name, liveness })
}

impl Members {
    pub fn own_name(&self) -> &str {
        &self.own.name
    }

    pub fn own_id(&self) -> NodeId {
        self.own.id
    }

    pub fn id_of(&self, name: &str) -> Option<NodeId> {
        self.by_name.borrow().get(name).copied()
    }

    pub fn name_of(&self, id: NodeId) -> Option<String> {
        self.by_name.borrow().iter().find(|(_, member)| **member == id).map(|(name, _)| name.clone())
    }

    pub fn all(&self) -> ByName {
        self.by_name.borrow().clone()
    }

    /// Who came and went.
    pub fn changes(&self) -> watch::Receiver<ByName> {
        self.by_name.clone()
    }

    /// How each member fares, as this node hears it.
    pub fn liveness(&self) -> watch::Receiver<LivenessByName> {
        self.liveness.clone()
    }

    /// One look at the Raft group: adds and removes replicas as Nodes came and went, then lets the store choose voters.
    ///
    /// # Errors
    /// If the store refuses a step; the next look tries again.
    pub async fn reconcile_replicas(&self, store: &Store) -> Result<(), flotilla_raft::Error> {
        let wanted: BTreeSet<NodeId> = self.all().values().copied().collect();
        let status = store.status().borrow().clone();
        let replicas: BTreeSet<NodeId> = status.voters.iter().chain(&status.learners).copied().collect();
        for id in wanted.difference(&replicas) {
            info!(id, "a replica is added");
            store.add_replica(*id).await?;
        }
        for id in replicas.difference(&wanted).filter(|id| **id != self.own.id) {
            info!(id, "a replica is removed");
            store.remove_replica(*id).await?;
        }
        let liveness = self.net.liveness().borrow().clone();
        let alive = wanted.into_iter().filter(|id| {
            *id == self.own.id || liveness.get(id).is_some_and(|peer| peer.state != flotilla_net::Liveness::Dead)
        });
        store.reconcile_membership(&alive.collect()).await.map(|_| ())
    }
}

impl Keeper {
    /// Follows the Nodes and the heartbeats until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.follow_nodes() => {}
            () = self.follow_liveness() => {}
        }
    }

    async fn follow_nodes(&self) {
        let prefix = GroupResource::new("", "nodes").prefix();
        loop {
            match self.read_nodes(&prefix) {
                Ok(revision) => {
                    let Ok(mut watch) = self.store.watch(&prefix, revision + 1).await else { continue };
                    loop {
                        match watch.next().await {
                            None => return,
                            Some(WatchItem::Progress(_)) => {}
                            Some(WatchItem::Events(..) | WatchItem::Compacted(_)) => break,
                        }
                    }
                }
                Err(error) => {
                    warn!(error = &error as &dyn std::error::Error, "the nodes cannot be read");
                    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                }
            }
        }
    }

    fn read_nodes(&self, prefix: &str) -> Result<u64, ReadError> {
        let nodes = self.store.range(Range::prefix(prefix))?;
        let members: BTreeMap<String, NodeId> = nodes
            .items
            .iter()
            .filter_map(|kv| Member::of_node(&object::decode_value(&kv.value, kv.mod_revision).ok()?))
            .map(|member| (member.name, member.id))
            .collect();
        // A node that has just joined has an empty store: until it has caught up, the seed is right.
        if members.contains_key(&self.own.name) {
            self.publish(members);
        }
        Ok(nodes.revision)
    }

    fn publish(&self, members: BTreeMap<String, NodeId>) {
        self.net.set_members(members.iter().map(|(name, id)| (*id, name.clone())).collect());
        self.by_name.send_if_modified(|known| {
            let changed = **known != members;
            if changed {
                debug!(?members, "the members changed");
                *known = Arc::new(members);
            }
            changed
        });
        self.publish_liveness();
    }

    async fn follow_liveness(&self) {
        let mut liveness = self.net.liveness();
        loop {
            self.publish_liveness();
            if liveness.changed().await.is_err() {
                return;
            }
        }
    }

    fn publish_liveness(&self) {
        let heard = self.net.liveness().borrow().clone();
        let by_name = self.by_name.borrow().clone();
        let liveness: BTreeMap<String, NodeLiveness> = by_name
            .iter()
            .filter_map(|(name, id)| {
                if *id == self.own.id {
                    return Some((name.clone(), NodeLiveness { state: Liveness::Alive, silent_ms: 0 }));
                }
                let peer = heard.get(id)?;
                let state = match peer.state {
                    flotilla_net::Liveness::Alive => Liveness::Alive,
                    flotilla_net::Liveness::Suspect => Liveness::Suspect,
                    flotilla_net::Liveness::Dead => Liveness::Dead,
                    // Never heard since this daemon started: not judged yet.
                    flotilla_net::Liveness::Unknown => return None,
                };
                Some((name.clone(), NodeLiveness { state, silent_ms: silent_ms(peer) }))
            })
            .collect();
        self.liveness.send_if_modified(|known| {
            let states = |map: &BTreeMap<String, NodeLiveness>| -> Vec<(String, Liveness)> {
                map.iter().map(|(name, one)| (name.clone(), one.state)).collect()
            };
            let changed = states(known) != states(&liveness);
            *known = Arc::new(liveness);
            changed
        });
    }
}

fn silent_ms(peer: &flotilla_net::Peer) -> u64 {
    peer.last_heard.map_or(0, |at| at.elapsed().as_millis().try_into().unwrap_or(u64::MAX))
}
