//! What the View keeps of one object: the object or its outline, and what planners would otherwise parse again and again.

use std::cmp::Reverse;
use std::ops::Deref;
use std::sync::OnceLock;

use bytes::Bytes;
use flotilla_api::Key;
use flotilla_api::admit::quota::Scopes;
use flotilla_api::admit::usage::{self, Amounts};
use flotilla_api::k8s_openapi::api::core::v1::{Node, Pod, PodSpec, Taint};
use flotilla_api::k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use flotilla_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::uid::Uid;
use crate::resources::{self, Resources};
use crate::{meta, names, node, pods};

/// An object and the revision that wrote it. Its `resourceVersion` is not set.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored<T> {
    pub key: Key,
    pub revision: u64,
    pub object: T,
}

impl<T> Deref for Stored<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.object
    }
}

/// An object of a kind that does not behave. There may be a million of them.
#[derive(Clone, Debug)]
pub struct Other {
    pub revision: u64,
    pub uid: Option<Uid>,
    /// None for most of them.
    pub bound: Option<Box<Bound>>,
}

/// What may come to concern a planner in an object whose kind does not behave: it has owners or finalizers, or is told to
/// go.
#[derive(Clone, Debug, Default)]
pub struct Bound {
    pub metadata: ObjectMeta,
    /// Kept only where it may have to be edited, or tells what it takes of a quota.
    pub raw: Option<Bytes>,
}

/// A CustomResourceDefinition without the schemas of its versions, which planners have no use for.
#[derive(Clone, Debug)]
pub struct Definition {
    pub key: Key,
    pub revision: u64,
    pub object: CustomResourceDefinition,
    /// As it is stored.
    pub raw: Bytes,
}

/// A pod, as planners look at it: it derefs to its outline. There may be a hundred thousand of them.
#[derive(Clone, Debug)]
pub struct PodEntry {
    pub key: Key,
    pub revision: u64,
    pub facts: PodFacts,
    /// Without what is large and decides nothing.
    outline: Pod,
    /// As it is stored, and decodes.
    raw: Box<[u8]>,
    /// Known from when a quota first asked on.
    charge: OnceLock<Box<Charge>>,
}

/// What a pod is to quotas.
#[derive(Clone, Debug)]
pub struct Charge {
    pub scopes: Scopes,
    pub amounts: Amounts,
}

impl Deref for PodEntry {
    type Target = Pod;

    fn deref(&self) -> &Pod {
        &self.outline
    }
}

impl PodEntry {
    pub(super) fn read(key: &Key, bytes: &[u8], revision: u64) -> serde_json::Result<Self> {
        let pod: Pod = serde_json::from_slice(bytes)?;
        let facts = PodFacts::of(&pod);
        Ok(Self {
            key: key.clone(),
            revision,
            facts,
            outline: outline(pod),
            raw: bytes.into(),
            charge: OnceLock::new(),
        })
    }

    /// All of the pod, to be changed and written back.
    pub fn whole(&self) -> Pod {
        serde_json::from_slice(&self.raw).expect("what was decoded once decodes again")
    }

    pub(crate) fn charge(&self) -> &Charge {
        self.charge.get_or_init(|| {
            let pod = self.whole();
            Box::new(Charge { scopes: Scopes::of(&pod), amounts: usage::of_pod(&pod) })
        })
    }

    /// All of the pod as JSON.
    pub(super) fn value(&self) -> Option<Value> {
        serde_json::from_slice(&self.raw).ok()
    }
}

/// A pod without who owns which field, the specs of its containers and its volumes, and with no room to spare.
fn outline(mut pod: Pod) -> Pod {
    pod.metadata.managed_fields = None;
    shrink(&mut pod.metadata.owner_references);
    if let Some(spec) = &mut pod.spec {
        spec.containers = Vec::new();
        spec.init_containers = None;
        spec.ephemeral_containers = None;
        spec.volumes = None;
        shrink(&mut spec.tolerations);
    }
    if let Some(status) = &mut pod.status {
        shrink(&mut status.conditions);
        let ephemeral = &mut status.ephemeral_container_statuses;
        for statuses in [&mut status.container_statuses, &mut status.init_container_statuses, ephemeral] {
            shrink(statuses);
            for status in statuses.iter_mut().flatten() {
                (status.image, status.image_id) = (String::new(), String::new());
                (status.allocated_resources, status.resources, status.volume_mounts) = (None, None, None);
            }
        }
    }
    pod
}

fn shrink<T>(list: &mut Option<Vec<T>>) {
    list.iter_mut().for_each(Vec::shrink_to_fit);
}

#[derive(Clone, Debug)]
pub struct PodFacts {
    pub requests: Resources,
    pub host_ports: Vec<HostPort>,
    /// Pods of the same class ask the scheduler the same question.
    pub class: u64,
}

/// A port that a pod takes on its node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    pub port: i32,
    pub protocol: String,
    /// Empty: on every address.
    pub address: String,
}

impl HostPort {
    pub fn collides(&self, other: &HostPort) -> bool {
        let everywhere = self.address.is_empty() || other.address.is_empty();
        self.port == other.port && self.protocol == other.protocol && (everywhere || self.address == other.address)
    }
}

impl PodFacts {
    pub(crate) fn of(pod: &Pod) -> Self {
        let Some(spec) = &pod.spec else {
            return Self { requests: Resources { pods: 1, ..Resources::default() }, host_ports: Vec::new(), class: 0 };
        };
        let requests = resources::requests(spec);
        let host_ports = host_ports(spec);
        let class = class(pod, spec, &requests, &host_ports);
        Self { requests, host_ports, class }
    }
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let ports = spec.containers.iter().flat_map(|container| container.ports.iter().flatten());
    let taken = ports.filter_map(|port| {
        let number = match port.host_port {
            Some(number) if number > 0 => number,
            _ if spec.host_network == Some(true) => port.container_port,
            _ => return None,
        };
        let address = port.host_ip.clone().filter(|ip| ip != "0.0.0.0" && ip != "::").unwrap_or_default();
        Some(HostPort { port: number, protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()), address })
    });
    taken.collect()
}

/// A digest of all that the scheduler looks at.
fn class(pod: &Pod, spec: &PodSpec, requests: &Resources, ports: &[HostPort]) -> u64 {
    #[derive(Serialize)]
    struct Question<'a> {
        owner: Option<&'a str>,
        selector: &'a Option<std::collections::BTreeMap<String, String>>,
        affinity: Option<&'a flotilla_api::k8s_openapi::api::core::v1::NodeAffinity>,
        tolerations: &'a Option<Vec<flotilla_api::k8s_openapi::api::core::v1::Toleration>>,
        cpu_millis: i64,
        memory_bytes: i64,
        others: &'a std::collections::BTreeMap<String, i64>,
        ports: Vec<(&'a str, i32, &'a str)>,
    }
    let question = Question {
        owner: meta::controller_of(&pod.metadata).map(|owner| owner.uid.as_str()),
        selector: &spec.node_selector,
        affinity: spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref()),
        tolerations: &spec.tolerations,
        cpu_millis: requests.cpu_millis,
        memory_bytes: requests.memory_bytes,
        others: &requests.others,
        ports: ports.iter().map(|port| (port.protocol.as_str(), port.port, port.address.as_str())).collect(),
    };
    // What cannot be serialized gets a class of its own: the pod's uid.
    let bytes = serde_json::to_vec(&question).unwrap_or_else(|_| meta::uid(&pod.metadata).as_bytes().to_vec());
    names::hash64(&bytes)
}

/// A node and what is derived from it.
#[derive(Clone, Debug)]
pub struct NodeEntry {
    pub stored: Stored<Node>,
    pub facts: NodeFacts,
}

impl Deref for NodeEntry {
    type Target = Stored<Node>;

    fn deref(&self) -> &Stored<Node> {
        &self.stored
    }
}

/// What the scheduler looks at; a change of it may let waiting pods go.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeFacts {
    pub allocatable: Resources,
    /// Its own taints and those that follow from being cordoned or not ready.
    pub taints: Vec<Taint>,
    labels: Option<std::collections::BTreeMap<String, String>>,
}

impl NodeFacts {
    pub(crate) fn of(node: &Node) -> Self {
        let status = node.status.as_ref();
        let offered = status.and_then(|status| status.allocatable.as_ref().or(status.capacity.as_ref()));
        Self {
            allocatable: Resources::from_quantities(offered),
            taints: node::taints_of(node),
            labels: node.metadata.labels.clone(),
        }
    }
}

/// What the pods of a node take.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeUse {
    pub requested: Resources,
    pub host_ports: Vec<HostPort>,
}

impl NodeUse {
    pub(crate) fn add(&mut self, facts: &PodFacts) {
        self.requested.add(&facts.requests);
        self.host_ports.extend(facts.host_ports.iter().cloned());
    }

    pub(crate) fn remove(&mut self, facts: &PodFacts) {
        self.requested.subtract(&facts.requests);
        for port in &facts.host_ports {
            if let Some(index) = self.host_ports.iter().position(|other| other == port) {
                self.host_ports.swap_remove(index);
            }
        }
    }
}

/// Where a pod stands in the queue: priority, then age.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct QueuePlace {
    priority: Reverse<i32>,
    created: Timestamp,
    pub key: Key,
}

impl QueuePlace {
    /// The place of a pod that waits for this scheduler, if it does.
    pub(crate) fn of(key: &Key, pod: &Pod) -> Option<Self> {
        let spec = pod.spec.as_ref()?;
        let gated = spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty());
        let ours = spec.scheduler_name.as_deref().is_none_or(|name| matches!(name, "" | "default-scheduler"));
        let waits = pods::node_name(pod).is_none() && pods::is_active(pod) && !gated && ours;
        waits.then(|| Self {
            priority: Reverse(spec.priority.unwrap_or(0)),
            created: meta::created(&pod.metadata),
            key: key.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use flotilla_api::GroupResource;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_is_seen_in_outline_and_written_whole() {
        let container = json!({"name": "a", "image": "app", "resources": {"requests": {"cpu": "250m"}}});
        let status = json!({"name": "a", "image": "app", "imageID": "sha256:1", "ready": true, "restartCount": 3,
            "state": {"running": {}}, "volumeMounts": [{"name": "data", "mountPath": "/data"}]});
        let value = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "p", "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:spec": {}}}]},
            "spec": {"containers": [container], "volumes": [{"name": "data", "emptyDir": {}}]},
            "status": {"phase": "Running", "containerStatuses": [status]},
        });
        let key = Key::new(&GroupResource::new("", "pods"), "default", "p");
        let pod = PodEntry::read(&key, &serde_json::to_vec(&value).unwrap(), 7).unwrap();
        assert_eq!(pod.metadata.managed_fields, None);
        let spec = pod.spec.as_ref().unwrap();
        assert!(spec.containers.is_empty() && spec.volumes.is_none());
        assert_eq!(pods::restarts(&pod), 3);
        assert_eq!(pod.facts.requests.cpu_millis, 250);
        assert_eq!(pod.charge().amounts["requests.cpu"].to_string(), "250m");
        assert_eq!(serde_json::to_value(pod.whole()).unwrap(), value);
        assert_eq!(pod.value(), Some(value));
    }
}
