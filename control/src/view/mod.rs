//! The planners' picture of the cluster: typed, indexed, and marked where it changed.
//!
//! Kinds that behave are decoded, pods in outline beside their bytes; of all others the uid is kept, and the metadata where
//! that binds them to others or keeps them: enough to collect garbage and to empty namespaces.
//!
//! Invariant: indexes name exactly the objects that are in the tables.
//! Invariant: bytes that do not decode are remembered as unreadable and never panic; what can be read
//! of their metadata still counts, so that nothing is taken for gone that is there.

mod entry;
mod index;
mod table;
mod tables;
mod touch;
mod uid;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::LazyLock;

use flotilla_api::account::ROOT_CA;
use flotilla_api::admit::{Policies, Quota};
use flotilla_api::k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use flotilla_api::k8s_openapi::api::batch::v1::Job;
use flotilla_api::k8s_openapi::api::core::v1::{
    ConfigMap, LimitRange, Namespace, ReplicationController, ResourceQuota, ServiceAccount,
};
use flotilla_api::k8s_openapi::api::networking::v1::IPAddress;
use flotilla_api::k8s_openapi::api::policy::v1::PodDisruptionBudget;
use flotilla_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use flotilla_api::{GroupResource, Key};
use serde_json::Value;

use entry::Other;
use entry::QueuePlace;
pub use entry::{Definition, HostPort, NodeEntry, NodeFacts, NodeUse, PodEntry, PodFacts, Stored};
use table::Table;
use tables::Tables;
use uid::Uid;

use crate::work::Work;
use crate::{keys, meta};

/// The metadata of an object that has nothing to be looked at.
static NOTHING: LazyLock<ObjectMeta> = LazyLock::new(ObjectMeta::default);

/// A consistent copy of the store, as far as planners need it.
#[derive(Default)]
pub struct View {
    nodes: Table<NodeEntry>,
    pods: Table<PodEntry>,
    tables: Tables,
    /// Each namespace's copy of the authorities.
    root_cas: Table<Stored<ConfigMap>>,
    /// The cluster's authorities, in PEM.
    authorities: Option<String>,
    others: Table<Other>,
    /// CustomResourceDefinitions, which are among the others too.
    definitions: Table<Definition>,
    /// What did not decode, and why.
    unreadable: BTreeMap<Key, String>,
    /// Every object by its uid.
    uids: HashMap<Uid, Key>,
    /// Objects by the uid of each of their owners.
    dependents: HashMap<Uid, BTreeSet<Key>>,
    pods_by_node: HashMap<String, BTreeSet<Key>>,
    /// Pods without a controller.
    loose_pods: BTreeSet<Key>,
    /// What is taken on each node, by its name.
    usage: HashMap<String, NodeUse>,
    /// How many active pods of a controller, by its uid, are on which node.
    spread: HashMap<String, HashMap<String, u32>>,
    /// Pods without a node, most urgent first.
    queue: BTreeSet<QueuePlace>,
    dirty: BTreeSet<Work>,
}

impl View {
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes over a watch event: bytes with their mod revision, or a deletion.
    pub fn observe(&mut self, key: &Key, value: Option<(&[u8], u64)>) {
        self.touch(key);
        let before = self.capacity_facts(key);
        let uid = self.uid(key);
        self.forget(key);
        if let Some((bytes, revision)) = value {
            self.insert(key, bytes, revision);
        }
        if self.capacity_facts(key) != before {
            self.mark(Work::Schedule);
        }
        self.touch(key);
        self.touch_left_behind(key, uid.as_ref());
    }

    /// What has to be planned since this was last asked.
    pub fn take_dirty(&mut self) -> BTreeSet<Work> {
        let mut dirty = std::mem::take(&mut self.dirty);
        if self.queue.is_empty() {
            dirty.remove(&Work::Schedule);
        }
        dirty
    }

    /// Whether anything has to be planned.
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Asks for Work from outside: a wake-up that came due, a node whose heartbeats began or ended.
    pub fn mark(&mut self, work: Work) {
        self.dirty.insert(work);
    }

    /// Asks for everything, as a leader that begins must.
    pub fn mark_all(&mut self) {
        let keys: Vec<Key> = self.keys().cloned().collect();
        for key in &keys {
            self.touch(key);
        }
        self.dirty.extend([Work::Nodes, Work::PriorityClasses, Work::ServiceRange, Work::FinishedPods, Work::Schedule]);
    }

    fn keys(&self) -> impl Iterator<Item = &Key> {
        let plain = self.nodes.keys().chain(self.pods.keys()).chain(self.tables.keys());
        plain.chain(self.root_cas.keys()).chain(self.others.keys())
    }

    pub fn namespace(&self, name: &str) -> Option<&Stored<Namespace>> {
        self.tables.namespaces.get(&keys::namespace(name))
    }

    pub fn node(&self, name: &str) -> Option<&NodeEntry> {
        self.nodes.get(&keys::node(name))
    }

    /// All nodes, ordered by name.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeEntry> {
        self.nodes.values()
    }

    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    pub fn pod(&self, key: &Key) -> Option<&PodEntry> {
        self.pods.get(key)
    }

    pub fn pods(&self) -> impl Iterator<Item = &PodEntry> {
        self.pods.values()
    }

    pub fn pods_in(&self, namespace: &str) -> impl Iterator<Item = &PodEntry> {
        self.pods.range(keys::pod(namespace, ""), namespace)
    }

    /// Pods of a namespace that have no controller.
    pub fn loose_pods_in(&self, namespace: &str) -> impl Iterator<Item = &PodEntry> {
        let keys = self.loose_pods.range(keys::pod(namespace, "")..);
        keys.take_while(move |key| key.namespace() == namespace).filter_map(|key| self.pods.get(key))
    }

    pub fn pods_on(&self, node: &str) -> impl Iterator<Item = &PodEntry> {
        self.pods_by_node.get(node).into_iter().flatten().filter_map(|key| self.pods.get(key))
    }

    /// Pods that name this uid among their owners.
    pub fn pods_of<'a>(&'a self, uid: &str) -> impl Iterator<Item = &'a PodEntry> + use<'a> {
        self.dependents(uid).filter_map(|key| self.pods.get(key))
    }

    pub fn definition(&self, name: &str) -> Option<&Definition> {
        self.definitions.get(&keys::definition(name))
    }

    /// The CustomResourceDefinitions of a group.
    pub fn definitions_of(&self, group: &str) -> impl Iterator<Item = &Definition> {
        self.definitions.values().filter(move |definition| definition.object.spec.group == group)
    }

    /// Objects of a collection whose kind does not behave.
    pub fn of_collection(&self, collection: &GroupResource) -> impl Iterator<Item = &Key> {
        let first = Key::new(collection, "", "");
        self.others.keys_from(first).take_while(move |key| key.collection() == *collection)
    }

    pub fn replica_set(&self, key: &Key) -> Option<&Stored<ReplicaSet>> {
        self.tables.replica_sets.get(key)
    }

    pub fn replica_sets_in(&self, namespace: &str) -> impl Iterator<Item = &Stored<ReplicaSet>> {
        self.tables.replica_sets.range(keys::replica_set(namespace, ""), namespace)
    }

    pub fn replica_sets_of<'a>(&'a self, uid: &str) -> impl Iterator<Item = &'a Stored<ReplicaSet>> + use<'a> {
        self.dependents(uid).filter_map(|key| self.tables.replica_sets.get(key))
    }

    pub fn deployment(&self, key: &Key) -> Option<&Stored<Deployment>> {
        self.tables.deployments.get(key)
    }

    pub fn deployments_in(&self, namespace: &str) -> impl Iterator<Item = &Stored<Deployment>> {
        self.tables.deployments.range(keys::deployment(namespace, ""), namespace)
    }

    pub fn job(&self, key: &Key) -> Option<&Stored<Job>> {
        self.tables.jobs.get(key)
    }

    pub fn jobs_in(&self, namespace: &str) -> impl Iterator<Item = &Stored<Job>> {
        self.tables.jobs.range(keys::job(namespace, ""), namespace)
    }

    pub fn replication_controller(&self, key: &Key) -> Option<&Stored<ReplicationController>> {
        self.tables.replication_controllers.get(key)
    }

    pub fn replication_controllers_in(&self, namespace: &str) -> impl Iterator<Item = &Stored<ReplicationController>> {
        self.tables.replication_controllers.range(keys::replication_controller(namespace, ""), namespace)
    }

    pub fn budget(&self, key: &Key) -> Option<&Stored<PodDisruptionBudget>> {
        self.tables.budgets.get(key)
    }

    pub fn budgets_in(&self, namespace: &str) -> impl Iterator<Item = &Stored<PodDisruptionBudget>> {
        self.tables.budgets.range(keys::budget(namespace, ""), namespace)
    }

    pub fn has_service_range(&self) -> bool {
        self.tables.service_cidrs.len() > 0
    }

    pub fn ip_address(&self, key: &Key) -> Option<&Stored<IPAddress>> {
        self.tables.ip_addresses.get(key)
    }

    pub fn quota(&self, key: &Key) -> Option<&Stored<ResourceQuota>> {
        self.tables.quotas.get(key)
    }

    pub fn quotas_in(&self, namespace: &str) -> impl Iterator<Item = &Stored<ResourceQuota>> {
        self.tables.quotas.range(keys::quota(namespace, ""), namespace)
    }

    fn limit_ranges_in(&self, namespace: &str) -> impl Iterator<Item = &Stored<LimitRange>> {
        self.tables.limit_ranges.range(keys::limit_range(namespace, ""), namespace)
    }

    /// What holds for new pods of a namespace.
    pub fn policies(&self, namespace: &str) -> Policies {
        let quota = |quota: &Stored<ResourceQuota>| Quota {
            key: quota.key.clone(),
            revision: quota.revision,
            object: quota.object.clone(),
            charged: false,
        };
        Policies {
            classes: self.tables.priority_classes.values().map(|class| class.object.clone()).collect(),
            runtime_classes: self.tables.runtime_classes.values().map(|class| class.object.clone()).collect(),
            storage_classes: Vec::new(),
            limit_ranges: self.limit_ranges_in(namespace).map(|range| range.object.clone()).collect(),
            quotas: self.quotas_in(namespace).map(quota).collect(),
        }
    }

    /// Keys of the objects of one collection in a namespace.
    pub fn collection_in<'a>(&'a self, collection: &GroupResource, namespace: &str) -> Vec<&'a Key> {
        let prefix = collection.namespace_prefix(namespace);
        let first = Key::new(collection, namespace, "");
        let within = |key: &&Key| key.as_str().starts_with(&prefix);
        match (collection.group.as_str(), collection.resource.as_str()) {
            ("", "pods") => self.pods.keys_from(first).take_while(within).collect(),
            _ => {
                let decoded = self.tables.keys().chain(self.root_cas.keys()).filter(within);
                decoded.chain(self.others.keys_from(first).take_while(within)).collect()
            }
        }
    }

    pub fn service_account(&self, key: &Key) -> Option<&Stored<ServiceAccount>> {
        self.tables.service_accounts.get(key)
    }

    /// A namespace's copy of the authorities.
    pub fn root_ca(&self, namespace: &str) -> Option<&Stored<ConfigMap>> {
        self.root_cas.get(&keys::config_map(namespace, ROOT_CA))
    }

    /// The cluster's authorities, in PEM; `None` until the cluster is known.
    pub fn authorities(&self) -> Option<String> {
        self.authorities.clone()
    }

    /// Keys of the objects that name this uid among their owners.
    pub fn dependents<'a>(&'a self, uid: &str) -> impl Iterator<Item = &'a Key> + use<'a> {
        self.dependents.get(&Uid::of(uid)).into_iter().flatten()
    }

    pub fn key_of(&self, uid: &str) -> Option<&Key> {
        self.uids.get(&Uid::of(uid))
    }

    /// What did not decode, and why.
    pub fn unreadable(&self) -> &BTreeMap<Key, String> {
        &self.unreadable
    }

    /// What is taken on a node.
    pub fn usage(&self, node: &str) -> Option<&NodeUse> {
        self.usage.get(node)
    }

    /// How many active pods of a controller are on which node.
    pub fn spread_of(&self, uid: &str) -> Option<&HashMap<String, u32>> {
        self.spread.get(uid)
    }

    /// Pods that wait for a node, most urgent first.
    pub fn queue(&self) -> impl Iterator<Item = &PodEntry> {
        self.queue.iter().filter_map(|place| self.pods.get(&place.key))
    }

    /// Metadata and revision of an object of any kind. Of a kind that does not behave it is empty, unless the object has
    /// owners or finalizers or is told to go.
    pub fn meta(&self, key: &Key) -> Option<(&ObjectMeta, u64)> {
        fn of<T>(stored: &Stored<T>, meta: impl Fn(&T) -> &ObjectMeta) -> (&ObjectMeta, u64) {
            (meta(&stored.object), stored.revision)
        }
        match (key.group(), key.resource()) {
            ("", "pods") => self.pods.get(key).map(|pod| (&pod.metadata, pod.revision)),
            ("", "nodes") => self.nodes.get(key).map(|entry| of(&entry.stored, |o| &o.metadata)),
            ("", "configmaps") => self.root_cas.get(key).map(|stored| of(stored, |o| &o.metadata)),
            _ => self.tables.meta(key),
        }
        .or_else(|| {
            let other = self.others.get(key)?;
            Some((other.bound.as_ref().map_or(&NOTHING, |bound| &bound.metadata), other.revision))
        })
    }

    fn uid(&self, key: &Key) -> Option<Uid> {
        match self.others.get(key) {
            Some(other) => other.uid.clone(),
            None => self.meta(key)?.0.uid.as_deref().map(Uid::of),
        }
    }

    /// An object as JSON, to be written back with a part of its metadata changed. `None` for objects
    /// without owners and finalizers whose kind does not behave: nothing of theirs is ever changed.
    pub fn value(&self, key: &Key) -> Option<Value> {
        fn json<T: serde::Serialize>(object: &T) -> Option<Value> {
            serde_json::to_value(object).ok()
        }
        match (key.group(), key.resource()) {
            ("", "pods") => self.pods.get(key).and_then(PodEntry::value),
            ("", "nodes") => self.nodes.get(key).and_then(|entry| json(&entry.stored.object)),
            ("", "configmaps") => self.root_cas.get(key).and_then(|stored| json(&stored.object)),
            _ => self.tables.value(key),
        }
        .or_else(|| {
            let raw = self.others.get(key)?.bound.as_ref()?.raw.as_deref()?;
            serde_json::from_slice(raw).ok()
        })
    }

    /// Every object of a namespace, in key order within its kind.
    pub fn content_of(&self, namespace: &str) -> impl Iterator<Item = &Key> {
        self.keys().filter(move |key| key.namespace() == namespace)
    }

    /// Whether new objects may be created in a namespace: its revision, or why not.
    ///
    /// # Errors
    /// If the namespace does not exist or is being deleted, in words.
    pub fn admits(&self, namespace: &str) -> Result<u64, String> {
        match self.namespace(namespace) {
            None => Err(format!("namespaces \"{namespace}\" not found")),
            Some(found) if meta::is_deleting(&found.object.metadata) => {
                Err(format!("namespace {namespace} is being terminated"))
            }
            Some(found) => Ok(found.revision),
        }
    }
}
