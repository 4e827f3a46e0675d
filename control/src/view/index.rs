//! Keeping tables and indexes in step.

use flotilla_api::Key;
use flotilla_api::account::ROOT_CA;
use flotilla_api::k8s_openapi::api::core::v1::Pod;
use flotilla_api::k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use flotilla_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use flotilla_api::kinds::FLOTILLA_GROUP;
use flotilla_api::kinds::cluster::ClusterObject;
use serde::Deserialize;

use super::entry::{Bound, NodeFacts, NodeUse, Other, QueuePlace};
use super::uid::Uid;
use super::{Definition, NodeEntry, PodEntry, Stored, View};
use crate::resources::Resources;
use crate::{keys, meta, pods};

/// What the scheduler cares about in one object.
#[derive(PartialEq)]
pub(super) enum CapacityFacts {
    None,
    Node(Box<NodeFacts>),
    /// A pod that takes room on a node.
    Taking(String, Resources),
    Waiting(u64),
}

impl View {
    pub(super) fn capacity_facts(&self, key: &Key) -> CapacityFacts {
        if let Some(node) = self.nodes.get(key) {
            return CapacityFacts::Node(Box::new(node.facts.clone()));
        }
        let Some(entry) = self.pods.get(key) else { return CapacityFacts::None };
        match pods::node_name(entry) {
            Some(node) if pods::takes_room(entry) => {
                CapacityFacts::Taking(node.to_owned(), entry.facts.requests.clone())
            }
            None if QueuePlace::of(key, entry).is_some() => CapacityFacts::Waiting(entry.facts.class),
            _ => CapacityFacts::None,
        }
    }

    pub(super) fn insert(&mut self, key: &Key, bytes: &[u8], revision: u64) {
        match (key.group(), key.resource()) {
            ("", "pods") => self.insert_pod(key, bytes, revision),
            ("", "nodes") => self.insert_node(key, bytes, revision),
            (keys::EXTENSIONS, keys::DEFINITIONS) => self.insert_definition(key, bytes, revision),
            ("", "configmaps") if key.name() == ROOT_CA => self.insert_root_ca(key, bytes, revision),
            (FLOTILLA_GROUP, "clusters") => {
                self.authorities = authorities(bytes);
                self.insert_other(key, bytes, revision);
            }
            _ => match self.tables.insert(key, bytes, revision) {
                Some(Ok(())) => {}
                Some(Err(error)) => self.insert_unreadable(key, bytes, revision, &error),
                None => self.insert_other(key, bytes, revision),
            },
        }
        self.uids.extend(self.uid(key).map(|uid| (uid, key.clone())));
        if let Some((meta, _)) = self.meta(key) {
            let owners: Vec<Uid> = owner_uids(meta).map(Uid::of).collect();
            for owner in owners {
                self.dependents.entry(owner).or_default().insert(key.clone());
            }
        }
    }

    fn insert_pod(&mut self, key: &Key, bytes: &[u8], revision: u64) {
        let pod = match PodEntry::read(key, bytes, revision) {
            Ok(pod) => pod,
            Err(error) => return self.insert_unreadable(key, bytes, revision, &error),
        };
        if let Some(node) = pods::node_name(&pod) {
            self.pods_by_node.entry(node.to_owned()).or_default().insert(key.clone());
            if pods::takes_room(&pod) {
                self.usage.entry(node.to_owned()).or_default().add(&pod.facts);
            }
        }
        if let Some((owner, node)) = place(&pod) {
            *self.spread.entry(owner.to_owned()).or_default().entry(node.to_owned()).or_default() += 1;
        }
        self.queue.extend(QueuePlace::of(key, &pod));
        if meta::controller_of(&pod.metadata).is_none() {
            self.loose_pods.insert(key.clone());
        }
        self.pods.insert(key.clone(), pod);
    }

    fn insert_node(&mut self, key: &Key, bytes: &[u8], revision: u64) {
        let object = match serde_json::from_slice(bytes) {
            Ok(object) => object,
            Err(error) => return self.insert_unreadable(key, bytes, revision, &error),
        };
        let facts = NodeFacts::of(&object);
        let stored = Stored { key: key.clone(), revision, object };
        self.nodes.insert(key.clone(), NodeEntry { stored, facts });
    }

    fn insert_definition(&mut self, key: &Key, bytes: &[u8], revision: u64) {
        self.insert_other(key, bytes, revision);
        match serde_json::from_slice::<CustomResourceDefinition>(bytes) {
            Ok(mut object) => {
                object.spec.versions.iter_mut().for_each(|version| version.schema = None);
                let definition = Definition { key: key.clone(), revision, object, raw: bytes.to_vec().into() };
                self.definitions.insert(key.clone(), definition);
            }
            Err(error) => _ = self.unreadable.insert(key.clone(), error.to_string()),
        }
    }

    fn insert_other(&mut self, key: &Key, bytes: &[u8], revision: u64) {
        match serde_json::from_slice::<Partial>(bytes) {
            Ok(Partial { metadata }) => {
                let uid = metadata.uid.as_deref().map(Uid::of);
                let editable = metadata.owner_references.is_some() || metadata.finalizers.is_some();
                // What these take of a quota stands in their specs.
                let measured =
                    key.group().is_empty() && matches!(key.resource(), "services" | "persistentvolumeclaims");
                let keeps_raw = editable || measured;
                let bound = (keeps_raw || metadata.deletion_timestamp.is_some()).then(|| {
                    let raw = keeps_raw.then(|| bytes.to_vec().into());
                    Box::new(Bound { metadata: metadata.into(), raw })
                });
                self.others.insert(key.clone(), Other { revision, uid, bound });
            }
            Err(error) => {
                self.unreadable.insert(key.clone(), error.to_string());
                self.others.insert(key.clone(), Other { revision, uid: None, bound: None });
            }
        }
    }

    /// What a kind that behaves cannot read is kept like any other.
    fn insert_unreadable(&mut self, key: &Key, bytes: &[u8], revision: u64, error: &serde_json::Error) {
        self.insert_other(key, bytes, revision);
        self.unreadable.insert(key.clone(), error.to_string());
    }

    pub(super) fn forget(&mut self, key: &Key) {
        if let Some(uid) = self.uid(key)
            && self.uids.get(&uid) == Some(key)
        {
            self.uids.remove(&uid);
        }
        if let Some((meta, _)) = self.meta(key) {
            let owners: Vec<Uid> = owner_uids(meta).map(Uid::of).collect();
            for owner in owners {
                if let Some(keys) = self.dependents.get_mut(&owner) {
                    keys.remove(key);
                    if keys.is_empty() {
                        self.dependents.remove(&owner);
                    }
                }
            }
        }
        self.unreadable.remove(key);
        self.others.remove(key);
        match (key.group(), key.resource()) {
            ("", "pods") => self.forget_pod(key),
            ("", "nodes") => drop(self.nodes.remove(key)),
            (keys::EXTENSIONS, keys::DEFINITIONS) => drop(self.definitions.remove(key)),
            ("", "configmaps") => drop(self.root_cas.remove(key)),
            _ => self.tables.remove(key),
        }
    }

    fn insert_root_ca(&mut self, key: &Key, bytes: &[u8], revision: u64) {
        match serde_json::from_slice(bytes) {
            Ok(object) => self.root_cas.insert(key.clone(), Stored { key: key.clone(), revision, object }),
            Err(error) => self.insert_unreadable(key, bytes, revision, &error),
        }
    }

    fn forget_place(&mut self, owner: &str, node: &str) {
        let Some(nodes) = self.spread.get_mut(owner) else { return };
        if let Some(count) = nodes.get_mut(node) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                nodes.remove(node);
            }
        }
        if nodes.is_empty() {
            self.spread.remove(owner);
        }
    }

    fn forget_pod(&mut self, key: &Key) {
        let Some(pod) = self.pods.remove(key) else { return };
        self.loose_pods.remove(key);
        if let Some((owner, node)) = place(&pod) {
            self.forget_place(owner, node);
        }
        if let Some(place) = QueuePlace::of(key, &pod) {
            self.queue.remove(&place);
        }
        let Some(node) = pods::node_name(&pod) else { return };
        if pods::takes_room(&pod)
            && let Some(usage) = self.usage.get_mut(node)
        {
            usage.remove(&pod.facts);
            if *usage == NodeUse::default() {
                self.usage.remove(node);
            }
        }
        if let Some(keys) = self.pods_by_node.get_mut(node) {
            keys.remove(key);
            if keys.is_empty() {
                self.pods_by_node.remove(node);
            }
        }
    }
}

/// Everyone whose signature on a certificate counts, in PEM; the one that signs first.
fn authorities(bytes: &[u8]) -> Option<String> {
    let cluster: ClusterObject = serde_json::from_slice(bytes).ok()?;
    let mut bundle = cluster.spec.ca_certificate;
    if let Some(rotation) = cluster.spec.rotation {
        bundle.push_str(&rotation.ca_certificate);
    }
    Some(bundle)
}

/// The controller of an active pod and the node that it is on.
fn place(pod: &Pod) -> Option<(&str, &str)> {
    let owner = meta::controller_of(&pod.metadata).filter(|_| pods::is_active(pod))?;
    Some((owner.uid.as_str(), pods::node_name(pod)?))
}

/// All that is read of an object whose kind does not behave.
#[derive(Deserialize)]
struct Partial {
    metadata: PartialMeta,
}

/// The rest of the metadata, such as who owns which field, is skipped: every object that is written is read here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PartialMeta {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    deletion_timestamp: Option<Time>,
    deletion_grace_period_seconds: Option<i64>,
    finalizers: Option<Vec<String>>,
    owner_references: Option<Vec<OwnerReference>>,
}

impl From<PartialMeta> for ObjectMeta {
    fn from(partial: PartialMeta) -> Self {
        Self {
            name: partial.name,
            namespace: partial.namespace,
            uid: partial.uid,
            deletion_timestamp: partial.deletion_timestamp,
            deletion_grace_period_seconds: partial.deletion_grace_period_seconds,
            finalizers: partial.finalizers,
            owner_references: partial.owner_references,
            ..Self::default()
        }
    }
}

pub(super) fn owner_uids(meta: &ObjectMeta) -> impl Iterator<Item = &str> {
    meta.owner_references.iter().flatten().map(|owner| owner.uid.as_str())
}
