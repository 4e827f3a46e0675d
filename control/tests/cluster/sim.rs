//! A store in memory with the shell's loop around it, and nodes that do as they are told.
//!
//! Invariant: Changes are applied as the real store does: whole, or not at all if a precondition fails.

use std::collections::BTreeMap;

use bytes::Bytes;
use flotilla_api::k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use flotilla_api::k8s_openapi::api::batch::v1::Job;
use flotilla_api::k8s_openapi::api::core::v1::{Event, Node, Pod};
use flotilla_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use flotilla_api::{Change, Expect, GroupResource, Key, Write};
use flotilla_control::{Context, Liveness, NodeLiveness, Settings, View, Work, keys, plan};
use jiff::{SignedDuration, Timestamp};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// More rounds than any story needs: planners that never agree with themselves end here.
const MAX_ROUNDS: usize = 400;

pub struct Sim {
    pub now: Timestamp,
    pub view: View,
    pub liveness: BTreeMap<String, NodeLiveness>,
    pub settings: Settings,
    pub rng: SmallRng,
    pub store: BTreeMap<Key, (Bytes, u64)>,
    pub revision: u64,
    pub wakes: BTreeMap<Work, Timestamp>,
    /// How many Changes were refused.
    pub conflicts: usize,
    /// How many were applied.
    pub applied: usize,
    /// Looked at after each Change.
    pub check: fn(&Sim),
}

impl Sim {
    pub fn new(seed: u64) -> Self {
        let mut sim = Self {
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
            view: View::new(),
            liveness: BTreeMap::new(),
            settings: Settings::default(),
            rng: SmallRng::seed_from_u64(seed),
            store: BTreeMap::new(),
            revision: 0,
            wakes: BTreeMap::new(),
            conflicts: 0,
            applied: 0,
            check: |_| {},
        };
        sim.put_json("", "namespaces", json!({"metadata": {"name": "default"}, "status": {"phase": "Active"}}));
        sim.view.mark(Work::PriorityClasses);
        sim.view.mark(Work::ServiceRange);
        sim
    }

    /// With nodes `n1`…, each of 4 cpus, 8 GiB and 110 pods.
    pub fn with_nodes(seed: u64, count: usize) -> Self {
        let mut sim = Self::new(seed);
        for index in 1..=count {
            sim.add_node(&format!("n{index}"));
        }
        sim.settle();
        sim
    }

    pub fn add_node(&mut self, name: &str) {
        let quantities = json!({"cpu": "4", "memory": "8Gi", "pods": "110"});
        self.put_json(
            "",
            "nodes",
            json!({
                "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
                "status": {"capacity": quantities, "allocatable": quantities,
                    "conditions": [{"type": "Ready", "status": "True", "reason": "NodeReady"}]},
            }),
        );
        self.hear(name, Liveness::Alive);
    }

    pub fn hear(&mut self, node: &str, state: Liveness) {
        let silent_ms = if state == Liveness::Dead { 3_000 } else { 0 };
        self.liveness.insert(node.to_owned(), NodeLiveness { state, silent_ms });
        self.view.mark(Work::Nodes);
    }

    /// What a user applies: keeps uid and status of what is there, bumps the generation.
    pub fn put_json(&mut self, group: &str, resource: &str, mut value: Value) -> Key {
        let name = value["metadata"]["name"].as_str().unwrap().to_owned();
        let cluster = matches!(
            resource,
            "nodes" | "namespaces" | "customresourcedefinitions" | "priorityclasses" | "clusterroles" | "ipaddresses"
        );
        let namespace =
            if cluster { "" } else { value["metadata"]["namespace"].as_str().unwrap_or("default") }.to_owned();
        let key = Key::new(&GroupResource::new(group, resource), &namespace, &name);
        let metadata = value["metadata"].as_object_mut().unwrap();
        if !cluster {
            metadata.insert("namespace".into(), namespace.into());
        }
        match self.store.get(&key).map(|(bytes, _)| serde_json::from_slice::<Value>(bytes).unwrap()) {
            Some(old) => {
                metadata.insert("uid".into(), old["metadata"]["uid"].clone());
                metadata.insert("creationTimestamp".into(), old["metadata"]["creationTimestamp"].clone());
                let generation = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
                metadata.insert("generation".into(), generation.into());
                if old["metadata"]["annotations"].is_object() {
                    metadata.entry("annotations").or_insert(old["metadata"]["annotations"].clone());
                }
                value.as_object_mut().unwrap().entry("status").or_insert(old["status"].clone());
            }
            None => {
                metadata.entry("uid").or_insert(format!("uid-{}-{name}", self.revision).into());
                metadata.entry("creationTimestamp").or_insert(self.now.to_string().into());
                metadata.entry("generation").or_insert(1.into());
            }
        }
        self.write(key.clone(), Some(serde_json::to_vec(&value).unwrap().into()));
        key
    }

    pub fn edit(&mut self, key: &Key, with: impl FnOnce(&mut Value)) {
        let mut value: Value = serde_json::from_slice(&self.store[key].0).unwrap();
        with(&mut value);
        self.write(key.clone(), Some(serde_json::to_vec(&value).unwrap().into()));
    }

    pub fn delete(&mut self, key: &Key) {
        self.write(key.clone(), None);
    }

    fn write(&mut self, key: Key, value: Option<Bytes>) {
        self.revision += 1;
        self.view.observe(&key, value.as_deref().map(|bytes| (bytes, self.revision)));
        match value {
            Some(bytes) => self.store.insert(key, (bytes, self.revision)),
            None => self.store.remove(&key),
        };
    }

    pub fn apply(&mut self, change: &Change) -> bool {
        assert!(change.writes.len() <= Change::MAX_WRITES, "{} writes", change.writes.len());
        let mut keys: Vec<&Key> = change.writes.iter().map(Write::key).collect();
        keys.sort();
        assert!(keys.windows(2).all(|pair| pair[0] != pair[1]), "a key is written twice: {change:?}");
        let holds = change.preconditions.iter().all(|condition| {
            let found = self.store.get(&condition.key).map(|(_, revision)| *revision);
            match condition.expect {
                Expect::Absent => found.is_none(),
                Expect::Exists | Expect::CreateRevision(_) => found.is_some(),
                Expect::ModRevision(revision) => found == Some(revision),
            }
        });
        if !holds {
            self.conflicts += 1;
            return false;
        }
        for write in &change.writes {
            match write {
                Write::Put { key, value } => {
                    self.check_pod(key, value);
                    self.write(key.clone(), Some(value.clone()));
                }
                Write::Delete { key } => self.write(key.clone(), None),
            }
        }
        self.applied += 1;
        (self.check)(self);
        true
    }

    /// A pod that planners write keeps what they do not look at.
    fn check_pod(&self, key: &Key, value: &Bytes) {
        let Some((before, _)) = self.store.get(key).filter(|_| key.resource() == "pods") else { return };
        let [before, after] = [before, value].map(|bytes| serde_json::from_slice::<Pod>(bytes).unwrap());
        let unseen = |mut pod: Pod| {
            pod.metadata = ObjectMeta { managed_fields: pod.metadata.managed_fields, ..ObjectMeta::default() };
            pod.spec.get_or_insert_default().node_name = None;
            let status = pod.status.get_or_insert_default();
            (status.phase, status.conditions, status.reason, status.message) = (None, None, None, None);
            pod
        };
        assert_eq!(unseen(before), unseen(after), "{key}");
    }

    /// One round of the shell: everything dirty is planned against one View, the Changes land in any
    /// order. Returns whether there was anything to do.
    pub fn round(&mut self) -> bool {
        let due: Vec<Work> =
            self.wakes.iter().filter(|(_, at)| **at <= self.now).map(|(work, _)| work.clone()).collect();
        for work in due {
            self.wakes.remove(&work);
            self.view.mark(work);
        }
        let dirty = self.view.take_dirty();
        let mut changes = Vec::new();
        for work in &dirty {
            let mut cx = Context {
                view: &self.view,
                now: self.now,
                liveness: &self.liveness,
                rng: &mut self.rng,
                settings: &self.settings,
            };
            let plan = plan(work, &mut cx);
            changes.extend(plan.changes.into_iter().map(|change| (work.clone(), change)));
            if let Some(at) = plan.wake_at {
                self.wakes.insert(work.clone(), at);
            }
        }
        changes.shuffle(&mut self.rng);
        let any = !changes.is_empty();
        for (work, change) in changes {
            if !self.apply(&change) {
                self.view.mark(work);
            }
        }
        any || !dirty.is_empty()
    }

    /// Plans until there is nothing left to do.
    pub fn settle(&mut self) {
        for _ in 0..MAX_ROUNDS {
            if !self.round() {
                return;
            }
        }
        panic!("planners do not settle: {:?}", self.view.take_dirty());
    }

    /// Asks everything again: nothing may come of it.
    pub fn assert_settled(&mut self) {
        self.settle();
        let before = self.applied;
        self.view.mark_all();
        self.settle();
        assert_eq!(self.applied, before, "planners change their minds");
    }

    pub fn advance(&mut self, seconds: i64) {
        self.now += SignedDuration::from_secs(seconds);
    }

    fn serves(&self, node: &str) -> bool {
        self.liveness.get(node).is_some_and(|liveness| liveness.state != Liveness::Dead)
    }

    /// What the nodes' agents do in one go: start what is bound, end what was told to go. Pods for
    /// which `fate` gives a phase end in it.
    pub fn agents(&mut self, fate: impl Fn(&Pod) -> Option<&'static str>) -> bool {
        let mut any = false;
        for pod in self.pods() {
            let key = keys::pod("default", pod.metadata.name.as_deref().unwrap());
            let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()) else { continue };
            let phase = pod.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default();
            if !self.serves(&node) || !self.store.contains_key(&keys::node(&node)) {
                continue;
            }
            let over = matches!(phase.as_str(), "Succeeded" | "Failed");
            if pod.metadata.deletion_timestamp.is_some() {
                if flotilla_control::deletion::confirm(&pod) {
                    self.delete(&key);
                    any = true;
                } else if !over {
                    self.set_phase(&key, "Failed");
                    any = true;
                }
            } else if !over {
                let next = fate(&pod).unwrap_or("Running");
                // A node that was silent was taken for not ready: its agent knows better.
                if phase != next || (next == "Running" && !is_ready(&pod)) {
                    self.set_phase(&key, next);
                    any = true;
                }
            }
            (self.check)(self);
        }
        any
    }

    pub fn set_phase(&mut self, key: &Key, phase: &str) {
        let now = self.now.to_string();
        let ready = if phase == "Running" { "True" } else { "False" };
        self.edit(key, |pod| {
            pod["status"]["phase"] = phase.into();
            let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let mut conditions: Vec<Value> = conditions.into_iter().filter(|c| c["type"] != "Ready").collect();
            conditions.push(json!({"type": "Ready", "status": ready, "lastTransitionTime": now}));
            pod["status"]["conditions"] = conditions.into();
            if phase == "Succeeded" || phase == "Failed" {
                let code = if phase == "Failed" { 1 } else { 0 };
                pod["status"]["containerStatuses"] = json!([{"name": "a", "image": "", "imageID": "", "ready": false,
                    "restartCount": 0, "state": {"terminated": {"exitCode": code, "finishedAt": now}}}]);
            }
        });
    }

    /// Planners and agents in turn until nothing moves.
    pub fn run(&mut self) {
        self.run_with(|_| None);
    }

    pub fn run_with(&mut self, fate: impl Fn(&Pod) -> Option<&'static str>) {
        for _ in 0..MAX_ROUNDS {
            self.settle();
            if !self.agents(&fate) {
                return;
            }
        }
        panic!("the cluster does not come to rest");
    }

    pub fn get<T: DeserializeOwned>(&self, key: &Key) -> T {
        serde_json::from_slice(&self.store[key].0).unwrap()
    }

    fn list<T: DeserializeOwned>(&self, group: &str, resource: &str) -> Vec<T> {
        let prefix = GroupResource::new(group, resource).prefix();
        let rows = self.store.iter().filter(|(key, _)| key.as_str().starts_with(&prefix));
        rows.map(|(_, (bytes, _))| serde_json::from_slice(bytes).unwrap()).collect()
    }

    pub fn pods(&self) -> Vec<Pod> {
        self.list("", "pods")
    }

    /// Pods that run or will run.
    pub fn active(&self) -> Vec<Pod> {
        let mut pods = self.pods();
        pods.retain(|pod| {
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            pod.metadata.deletion_timestamp.is_none() && !matches!(phase, Some("Succeeded" | "Failed"))
        });
        pods
    }

    pub fn nodes(&self) -> Vec<Node> {
        self.list("", "nodes")
    }

    pub fn replica_sets(&self) -> Vec<ReplicaSet> {
        self.list("apps", "replicasets")
    }

    pub fn deployment(&self, name: &str) -> Deployment {
        self.get(&keys::deployment("default", name))
    }

    pub fn job(&self, name: &str) -> Job {
        self.get(&keys::job("default", name))
    }

    pub fn events(&self, reason: &str) -> Vec<Event> {
        let mut events: Vec<Event> = self.list("", "events");
        events.retain(|event| event.reason.as_deref() == Some(reason));
        events
    }

    /// Active pods per node.
    pub fn spread(&self) -> BTreeMap<String, usize> {
        let mut spread = BTreeMap::new();
        for pod in self.active() {
            if let Some(node) = pod.spec.and_then(|spec| spec.node_name) {
                *spread.entry(node).or_default() += 1;
            }
        }
        spread
    }
}

pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// A pod template with one container.
pub fn template(app: &str, image: &str) -> Value {
    json!({"metadata": {"labels": {"app": app}}, "spec": {"containers": [{"name": "a", "image": image,
        "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}}}]}})
}

pub fn deployment(name: &str, replicas: i32, image: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"replicas": replicas,
        "selector": {"matchLabels": {"app": name}}, "template": template(name, image)}})
}

pub fn condition<'a>(value: &'a Value, kind: &str) -> &'a Value {
    let conditions = value["status"]["conditions"].as_array();
    conditions.into_iter().flatten().find(|condition| condition["type"] == kind).unwrap_or(&Value::Null)
}
