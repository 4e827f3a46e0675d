//! Who the members are: the Nodes of the store, for everything that speaks to them by id or by name.
//!
//! Invariant: a machine is a member while its Node exists. Nothing else is spoken to, but for joining.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use flotilla_api::{Change, GroupResource, Key, object};
use flotilla_control::{Liveness, NodeLiveness};
use flotilla_net::{Alpn, Fingerprint, Listed, Net, NetError};
use flotilla_raft::replicas::{self, Candidate, Replicas, Step};
use flotilla_raft::{EpochId, NodeId, Range, ReadError, Status, Store, WatchItem};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::enrol;

/// On a Node: its id in the Raft group and on the wire, in decimal.
pub const ID_ANNOTATION: &str = "flotilla.dev/node-id";
/// On a Node: SHA-256 of its public key, in hexadecimal.
pub const KEY_ANNOTATION: &str = "flotilla.dev/key";
/// On a Node: the fingerprint of the authority that signed its certificate, in hexadecimal.
pub const CA_ANNOTATION: &str = "flotilla.dev/ca";
/// On a Node: the fingerprints of the authorities that it trusts, with commas between them.
pub const TRUSTED_CAS_ANNOTATION: &str = "flotilla.dev/trusted-cas";
/// On a Node: the labels that its token gave it, with commas between them. The node may not change them.
pub const TOKEN_LABELS_ANNOTATION: &str = "flotilla.dev/token-labels";

/// On a Node: the cluster epoch in which it became one, in decimal.
pub const EPOCH_ANNOTATION: &str = "flotilla.dev/epoch";

/// On a Node that asked to go: the leader takes its replica out of the group, then removes the Node.
pub const LEAVING_ANNOTATION: &str = "flotilla.dev/leaving";

/// On a Node that was told to go: it stays until the leader has taken its replica out of the group.
pub const MEMBER_FINALIZER: &str = "flotilla.dev/member";

/// A label of a Node that is never to get a replica of the store; its value does not matter.
pub const NO_REPLICA_LABEL: &str = "flotilla.dev/no-replica";

/// Others that a node asks whether they know it.
const MAX_ASKED: usize = 8;

/// How long to wait before the Nodes are read again after that failed.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub id: NodeId,
    pub name: String,
    /// SHA-256 of its public key: whoever holds another is not this member.
    pub key: Option<Fingerprint>,
}

impl From<&Member> for Listed {
    fn from(member: &Member) -> Self {
        Listed { id: member.id, name: member.name.clone(), key: member.key }
    }
}

impl Member {
    /// One of whom the addresses were kept, and nothing else.
    pub fn known(id: NodeId, name: &str) -> Self {
        Self { id, name: name.to_owned(), key: None }
    }

    fn of_node(node: &Value) -> Option<Self> {
        let annotations = node.pointer("/metadata/annotations")?;
        let id = annotations.get(ID_ANNOTATION)?.as_str()?.parse().ok()?;
        let key = annotations.get(KEY_ANNOTATION).and_then(Value::as_str).and_then(fingerprint_of);
        let name = node.pointer("/metadata/name")?.as_str()?.to_owned();
        Some(Self { id, name, key })
    }
}

/// Who is a member, and who of them is on the way out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roll {
    pub by_name: BTreeMap<String, NodeId>,
    pub keys: BTreeMap<NodeId, Fingerprint>,
    pub leaving: BTreeSet<NodeId>,
    /// Those of them whose Node was deleted.
    pub deleted: BTreeSet<NodeId>,
    /// Those that are to have no replica.
    pub without_replica: BTreeSet<NodeId>,
    /// The cluster epoch in which each became a member: a replica of an earlier one is of no use in this.
    pub epochs: BTreeMap<NodeId, EpochId>,
}

impl Roll {
    fn add(&mut self, member: Member) {
        self.keys.extend(member.key.map(|key| (member.id, key)));
        self.by_name.insert(member.name, member.id);
    }

    /// The epoch in which a member became one, if it is not this one and the member has no replica in this. Whoever was there
    /// when this one began has one.
    fn other_epoch(&self, id: NodeId, status: &Status) -> Option<EpochId> {
        let has_replica = status.voters.contains(&id) || status.learners.contains(&id);
        let epoch = self.epochs.get(&id).copied().filter(|epoch| *epoch != status.epoch);
        // Nobody is judged before it is known who has a replica.
        epoch.filter(|_| !has_replica && !status.voters.is_empty())
    }

    fn members(&self) -> impl Iterator<Item = Member> {
        self.by_name.iter().map(|(name, id)| Member { id: *id, name: name.clone(), key: self.keys.get(id).copied() })
    }

    fn listed(&self) -> impl Iterator<Item = Listed> {
        self.members().map(|member| Listed::from(&member))
    }
}

/// What a node knows of the members when it starts.
pub struct Known {
    pub members: Vec<Member>,
    /// As of when; 0 for what the cluster gave when the node joined.
    pub revision: u64,
    /// Where they are kept for the next start.
    pub directory: PathBuf,
}

/// Whether any other node lets this one in, or none says that it is no member. Those that do not answer say nothing.
pub async fn is_let_in(net: &Net) -> bool {
    let own = net.credentials().identity().id();
    let others = net.peers().into_iter().map(|record| record.id()).filter(|id| *id != own).take(MAX_ASKED);
    let answers = futures::future::join_all(others.map(|peer| net.open(peer, Alpn::Raft))).await;
    let refused = answers.iter().any(|answer| answer.as_ref().is_err_and(NetError::says_no_member));
    !refused || answers.iter().any(Result::is_ok)
}

type LivenessByName = Arc<BTreeMap<String, NodeLiveness>>;

/// The members and how they fare. Cheap to clone.
#[derive(Clone)]
pub struct Members {
    own: Member,
    net: Net,
    /// At most so many of them have a replica.
    max_replicas: usize,
    roll: watch::Receiver<Arc<Roll>>,
    liveness: watch::Receiver<LivenessByName>,
}

/// What keeps [`Members`] up to date.
pub struct Keeper {
    store: Store,
    net: Net,
    own: Member,
    known_revision: u64,
    directory: PathBuf,
    /// Who was kept there last.
    kept: Mutex<Vec<Member>>,
    /// The store has had this machine's Node.
    was_listed: AtomicBool,
    roll: watch::Sender<Arc<Roll>>,
    liveness: watch::Sender<LivenessByName>,
}

/// Begins with who is known, until the store knows better.
pub fn members(store: Store, net: Net, own: Member, known: Known, max_replicas: usize) -> (Members, Keeper) {
    let Known { members: seed, revision: known_revision, directory } = known;
    let mut begun = Roll::default();
    seed.iter().chain([&own]).for_each(|member| begun.add(member.clone()));
    let (roll, roll_seen) = watch::channel(Arc::new(begun));
    let (liveness, liveness_seen) = watch::channel(LivenessByName::default());
    let members =
        Members { own: own.clone(), net: net.clone(), max_replicas, roll: roll_seen, liveness: liveness_seen };
    (
        members,
        Keeper {
            store,
            net,
            own,
            known_revision,
            directory,
            kept: Mutex::default(),
            was_listed: AtomicBool::default(),
            roll,
            liveness,
        },
    )
}

impl Members {
    pub fn own_name(&self) -> &str {
        &self.own.name
    }

    pub fn own_id(&self) -> NodeId {
        self.own.id
    }

    pub fn id_of(&self, name: &str) -> Option<NodeId> {
        self.roll.borrow().by_name.get(name).copied()
    }

    pub fn name_of(&self, id: NodeId) -> Option<String> {
        self.roll.borrow().by_name.iter().find(|(_, member)| **member == id).map(|(name, _)| name.clone())
    }

    /// SHA-256 of the public key of a member.
    pub fn key_of(&self, id: NodeId) -> Option<Fingerprint> {
        self.roll.borrow().keys.get(&id).copied()
    }

    pub fn all(&self) -> BTreeMap<String, NodeId> {
        self.roll.borrow().by_name.clone()
    }

    /// Who came and went.
    pub fn changes(&self) -> watch::Receiver<Arc<Roll>> {
        self.roll.clone()
    }

    /// How each member fares, as this node hears it.
    pub fn liveness(&self) -> watch::Receiver<LivenessByName> {
        self.liveness.clone()
    }

    /// Who leads in deed, as far as this node can tell: not one that no majority answers, and not one that is dead.
    pub fn acting_leader(&self, status: &Status) -> Option<NodeId> {
        let liveness = self.net.liveness().borrow().clone();
        let is_dead = |id: &NodeId| liveness.get(id).is_some_and(|peer| peer.state == flotilla_net::Liveness::Dead);
        status.acting_leader().filter(|id| !is_dead(id))
    }

    /// The members that live on in another life of the cluster: that their daemons are heard does not mean that they do
    /// what is wanted in this one.
    pub fn in_other_epochs(&self, status: &Status) -> BTreeMap<String, EpochId> {
        let roll = self.roll.borrow().clone();
        let found = roll.by_name.iter().filter_map(|(name, id)| {
            let epoch = roll.other_epoch(*id, status).filter(|_| *id != self.own.id)?;
            Some((name.clone(), epoch))
        });
        found.collect()
    }

    /// One look at the Raft group: adds and removes replicas as Nodes came and went, then lets the store choose voters.
    ///
    /// # Errors
    /// If the store refuses a step; the next look tries again.
    pub async fn reconcile_replicas(&self, store: &Store) -> Result<(), flotilla_raft::Error> {
        let roll = self.roll.borrow().clone();
        let now = self.replicas(store, &roll, store.long_dead().await);
        let steps = replicas::plan(&now);
        let own_end = steps.contains(&Step::Remove(self.own.id));
        for step in steps.into_iter().filter(|step| *step != Step::Remove(self.own.id)) {
            info!(?step, "the replicas change");
            match step {
                Step::Add(id) => store.add_replica(id).await?,
                Step::Remove(id) => store.remove_replica(id).await?,
                Step::HandOver(id) => store.transfer_leader(Some(id)).await?,
            }
        }
        for (name, id) in roll.by_name.iter().filter(|(_, id)| roll.leaving.contains(id) && **id != self.own.id) {
            info!(node = name, "a node has left");
            remove_node(store, name, *id).await;
        }
        // Who is not to have a replica does not vote for long.
        let alive = now.nodes.iter().filter(|(_, node)| node.alive && !node.leaving && !node.without_replica);
        store.reconcile_membership(&alive.map(|(id, _)| *id).collect()).await?;
        if own_end {
            info!("this node was deleted: another is to lead");
            store.remove_replica(self.own.id).await?;
        }
        Ok(())
    }

    /// Tells the members of other epochs which one this is, and hears of theirs: two replicas that were recovered apart have
    /// nothing else to say to each other.
    pub async fn greet_other_epochs(&self, store: &Store) {
        let now = self.replicas(store, &self.roll.borrow().clone(), BTreeSet::new());
        let has_replica = |id: &NodeId| now.voters.contains(id) || now.learners.contains(id);
        let others = now.nodes.iter().filter(|(id, node)| node.alive && !node.of_this_epoch && !has_replica(id));
        futures::future::join_all(others.map(|(id, _)| store.greet(*id))).await;
    }

    /// Whether the leader gives a member a replica as soon as it looks, as far as this node knows.
    pub fn is_about_to_have_replica(&self, store: &Store, id: NodeId) -> bool {
        let now = self.replicas(store, &self.roll.borrow(), BTreeSet::new());
        let has_one = now.voters.contains(&id) || now.learners.contains(&id);
        let has_room = now.voters.len() + now.learners.len() < now.max_replicas;
        !has_one && has_room && now.nodes.get(&id).is_some_and(Candidate::may_have_replica)
    }

    fn replicas(&self, store: &Store, roll: &Roll, long_dead: BTreeSet<NodeId>) -> Replicas {
        let status = store.status().borrow().clone();
        let heard = self.net.liveness().borrow().clone();
        let node = |id: &NodeId| Candidate {
            alive: *id == self.own.id || heard.get(id).is_some_and(|peer| peer.state != flotilla_net::Liveness::Dead),
            // One that leaves by itself hands over by itself.
            leaving: roll.leaving.contains(id) && (*id != self.own.id || roll.deleted.contains(id)),
            without_replica: roll.without_replica.contains(id),
            of_this_epoch: roll.epochs.get(id).is_some_and(|epoch| *epoch == status.epoch),
        };
        Replicas {
            leader: self.own.id,
            nodes: roll.by_name.values().map(|id| (*id, node(id))).collect(),
            voters: status.voters,
            learners: status.learners,
            long_dead,
            max_replicas: self.max_replicas,
        }
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
        // Whoever goes by members of long ago does not let those in who would bring the news.
        tokio::select! {
            () = self.store.caught_up() => {}
            // Another has its place by now, and a slice brings the news.
            () = self.store.until_fed(true) => {}
        }
        let prefix = GroupResource::new("", "nodes").prefix();
        loop {
            match self.read_nodes(&prefix).await {
                Ok(revision) => {
                    let Ok(mut watch) = self.store.watch(&prefix, revision + 1).await else {
                        tokio::time::sleep(RETRY).await;
                        continue;
                    };
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
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn read_nodes(&self, prefix: &str) -> Result<u64, ReadError> {
        let nodes = self.store.range(Range::prefix(prefix))?;
        // A replica that was let go holds the members of back then.
        if nodes.revision < self.known_revision {
            return Ok(nodes.revision);
        }
        let mut roll = Roll::default();
        for kv in &nodes.items {
            let Ok(node) = object::decode_value(&kv.value, kv.mod_revision) else { continue };
            let Some(member) = Member::of_node(&node) else { continue };
            if node.pointer("/metadata/annotations").is_some_and(|all| all.get(LEAVING_ANNOTATION).is_some()) {
                roll.leaving.insert(member.id);
            }
            if node.pointer("/metadata/deletionTimestamp").is_some() {
                roll.leaving.insert(member.id);
                roll.deleted.insert(member.id);
            }
            if node.pointer("/metadata/labels").is_some_and(|all| all.get(NO_REPLICA_LABEL).is_some()) {
                roll.without_replica.insert(member.id);
            }
            let epoch = node.pointer("/metadata/annotations").and_then(|all| all.get(EPOCH_ANNOTATION)?.as_str());
            roll.epochs
                .extend(epoch.and_then(|epoch| epoch.parse::<u64>().ok()).map(|epoch| (member.id, epoch.into())));
            roll.add(member);
        }
        // A node that has just joined has an empty store: until it has caught up, the seed is right.
        if roll.by_name.contains_key(&self.own.name) {
            self.was_listed.store(true, Ordering::Relaxed);
            self.remember(&roll, nodes.revision).await;
            self.publish(roll);
        } else if self.was_listed.load(Ordering::Relaxed) {
            // The Node went before its mark was seen here. Who the others are stays known.
            let mut known = Roll::clone(&self.roll.borrow());
            known.deleted.insert(self.own.id);
            self.publish(known);
        }
        Ok(nodes.revision)
    }

    /// Keeps who is a member for the next start, if there is no replica to know it from.
    async fn remember(&self, roll: &Roll, revision: u64) {
        let members: Vec<Member> = roll.members().collect();
        let mut kept = self.kept.lock().await;
        if self.store.fed_by().is_none() || *kept == members {
            return;
        }
        kept.clone_from(&members);
        let directory = self.directory.clone();
        let kept = tokio::task::spawn_blocking(move || enrol::remember(&directory, members, revision)).await;
        if let Err(error) = kept.map_err(anyhow::Error::from).flatten() {
            warn!(error = format!("{error:#}"), "the members cannot be kept for the next start");
        }
    }

    fn publish(&self, roll: Roll) {
        self.net.set_members(roll.listed());
        self.roll.send_if_modified(|known| {
            let changed = **known != roll;
            if changed {
                debug!(?roll, "the members changed");
                *known = Arc::new(roll);
            }
            changed
        });
        self.publish_liveness();
    }

    async fn follow_liveness(&self) {
        let (mut liveness, mut status) = (self.net.liveness(), self.store.status());
        loop {
            self.publish_liveness();
            // Who is of another epoch depends on who has a replica.
            let changed = tokio::select! {
                changed = liveness.changed() => changed,
                changed = status.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
        }
    }

    fn publish_liveness(&self) {
        let heard = self.net.liveness().borrow().clone();
        let roll = self.roll.borrow().clone();
        let status = self.store.status().borrow().clone();
        let liveness: BTreeMap<String, NodeLiveness> = roll
            .by_name
            .iter()
            .filter_map(|(name, id)| {
                if *id == self.own.id {
                    return Some((name.clone(), NodeLiveness { state: Liveness::Alive, silent_ms: 0 }));
                }
                let peer = heard.get(id)?;
                let state = match peer.state {
                    _ if roll.other_epoch(*id, &status).is_some() => Liveness::Dead,
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

/// A fingerprint in hexadecimal, as [`KEY_ANNOTATION`] has it.
fn fingerprint_of(text: &str) -> Option<Fingerprint> {
    let digits = text.as_bytes();
    let mut bytes = Fingerprint::default();
    if digits.len() != 2 * bytes.len() {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

/// Removes the Node of a machine that has left, whatever else holds it: who is no member must not be let in. One that changed
/// meanwhile is looked at again.
async fn remove_node(store: &Store, name: &str, id: NodeId) {
    let key = Key::new(&GroupResource::new("", "nodes"), "", name);
    let removed = match store.get(&key) {
        Ok(Some(node)) => {
            store.propose(Change::new("system:flotilla", "membership").remove(key, node.mod_revision)).await.map(|_| ())
        }
        _ => Ok(()),
    };
    if let Err(error) = removed {
        debug!(node = name, id, %error, "a node that has left is still listed");
    }
}

fn silent_ms(peer: &flotilla_net::Peer) -> u64 {
    peer.last_heard.map_or(0, |at| at.elapsed().as_millis().try_into().unwrap_or(u64::MAX))
}
