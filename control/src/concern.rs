//! Whom an object concerns: what a node without a replica has to hear of, and what not.
//!
//! A pod concerns the node that it is bound to, and so does what it refers to; a Node concerns itself, and who it is
//! concerns all; the cluster's own objects concern all.
//!
//! Invariant: a node is told of an object when the first of its pods refers to it, and no more of it when the last is gone.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use flotilla_api::{Builtin, GroupResource, Key};
use serde_json::{Map, Value, json};

/// Annotations and labels of a Node that start with this say which machine it is, and how it is a member.
const OWN_PREFIX: &str = "flotilla.dev/";

/// Who has to hear of an event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Concerned {
    /// Every node is told; of a Node, those beside itself get its [`member`] form.
    pub all: bool,
    /// These are told of the whole object.
    pub nodes: BTreeSet<String>,
    /// Objects that did not change and concern these nodes from now on.
    pub gained: Vec<(String, Key)>,
    /// Objects that do not concern these nodes any more.
    pub lost: Vec<(String, Key)>,
}

/// Which pods run where, what they refer to, and who told which Events.
#[derive(Clone, Debug, Default)]
pub struct Concerns {
    pods: HashMap<Key, Placed>,
    pods_of: HashMap<String, BTreeSet<Key>>,
    /// Which node told an Event.
    events: HashMap<Key, String>,
    events_of: HashMap<String, BTreeSet<Key>>,
    /// How many pods of which nodes refer to an object.
    wanted: HashMap<Key, BTreeMap<String, usize>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Placed {
    node: String,
    references: BTreeSet<Key>,
}

impl Concerns {
    /// Takes note of an event and says who has to hear of it; `old` and `new` are the object before and after.
    pub fn apply(&mut self, key: &Key, old: Option<&[u8]>, new: Option<&[u8]>) -> Concerned {
        match (key.group(), key.resource()) {
            ("", "pods") => self.pod(key, new),
            ("", "nodes") => Concerned {
                all: old.and_then(member) != new.and_then(member),
                nodes: [key.name().to_owned()].into(),
                ..Concerned::default()
            },
            ("", "events") => self.event(key, new),
            _ if everybodys().iter().any(|all| *all == key.collection()) => {
                Concerned { all: true, ..Concerned::default() }
            }
            _ => {
                let nodes = self.wanted.get(key).map(|by_node| by_node.keys().cloned().collect()).unwrap_or_default();
                Concerned { nodes, ..Concerned::default() }
            }
        }
    }

    /// The pods of a node, what they refer to, and the Events that the node told.
    pub fn keys_of(&self, node: &str) -> BTreeSet<Key> {
        let pods = self.pods_of.get(node).into_iter().flatten();
        let told = self.events_of.get(node).into_iter().flatten();
        pods.flat_map(|key| [key].into_iter().chain(self.pods.get(key).into_iter().flat_map(|pod| &pod.references)))
            .chain(told)
            .cloned()
            .collect()
    }

    fn event(&mut self, key: &Key, new: Option<&[u8]>) -> Concerned {
        let (before, after) = (self.events.remove(key), new.and_then(teller));
        if let Some(node) = &before {
            drop_from(&mut self.events_of, node, key);
        }
        if let Some(node) = &after {
            self.events.insert(key.clone(), node.clone());
            self.events_of.entry(node.clone()).or_default().insert(key.clone());
        }
        Concerned { nodes: before.into_iter().chain(after).collect(), ..Concerned::default() }
    }

    /// Whether a pod of the node refers to the object.
    pub fn wants(&self, node: &str, key: &Key) -> bool {
        self.wanted.get(key).is_some_and(|by_node| by_node.contains_key(node))
    }

    fn pod(&mut self, key: &Key, new: Option<&[u8]>) -> Concerned {
        let after = new.and_then(|bytes| placed(key, bytes));
        let before = self.pods.remove(key);
        let mut told = Concerned::default();
        told.nodes.extend(before.iter().chain(&after).map(|pod| pod.node.clone()));
        // What stays wanted is neither gained nor lost.
        if let Some(pod) = &after {
            self.pods_of.entry(pod.node.clone()).or_default().insert(key.clone());
            for reference in &pod.references {
                let count = self.wanted.entry(reference.clone()).or_default().entry(pod.node.clone()).or_default();
                *count += 1;
                if *count == 1 {
                    told.gained.push((pod.node.clone(), reference.clone()));
                }
            }
        }
        if let Some(pod) = before {
            if after.as_ref().is_none_or(|after| after.node != pod.node) {
                drop_from(&mut self.pods_of, &pod.node, key);
            }
            for reference in &pod.references {
                if self.let_go(reference, &pod.node) {
                    told.lost.push((pod.node.clone(), reference.clone()));
                }
            }
        }
        self.pods.extend(after.map(|pod| (key.clone(), pod)));
        told
    }

    /// Whether no pod of the node refers to the object any more.
    fn let_go(&mut self, reference: &Key, node: &str) -> bool {
        let Some(by_node) = self.wanted.get_mut(reference) else { return false };
        let Some(count) = by_node.get_mut(node) else { return false };
        *count -= 1;
        if *count > 0 {
            return false;
        }
        by_node.remove(node);
        if by_node.is_empty() {
            self.wanted.remove(reference);
        }
        true
    }
}

fn drop_from(of: &mut HashMap<String, BTreeSet<Key>>, node: &str, key: &Key) {
    let Some(keys) = of.get_mut(node) else { return };
    keys.remove(key);
    if keys.is_empty() {
        of.remove(node);
    }
}

/// The collections of which what is there says whom it concerns.
pub fn telling() -> [GroupResource; 2] {
    [Builtin::Pod.collection(), Builtin::Event.collection()]
}

/// The collections of which every node knows everything.
pub fn everybodys() -> [GroupResource; 2] {
    [Builtin::Cluster.collection(), Builtin::Keyring.collection()]
}

/// A Node as other nodes know it: which machine it is. `None` if it is no object.
pub fn member(node: &[u8]) -> Option<Bytes> {
    let node: Value = serde_json::from_slice(node).ok()?;
    let metadata = node.get("metadata")?;
    let own = |field: &str| -> Map<String, Value> {
        let all = metadata.get(field).and_then(Value::as_object).into_iter().flatten();
        all.filter(|(name, _)| name.starts_with(OWN_PREFIX))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    };
    let cut = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": metadata.get("name"),
            "uid": metadata.get("uid"),
            "annotations": own("annotations"),
            "labels": own("labels"),
        },
    });
    serde_json::to_vec(&cut).ok().map(Bytes::from)
}

/// The node that tells an Event.
fn teller(event: &[u8]) -> Option<String> {
    let event: Value = serde_json::from_slice(event).ok()?;
    event.pointer("/source/host").and_then(Value::as_str).filter(|host| !host.is_empty()).map(str::to_owned)
}

fn placed(key: &Key, pod: &[u8]) -> Option<Placed> {
    let pod: Value = serde_json::from_slice(pod).ok()?;
    let spec = pod.get("spec")?;
    let node = spec.get("nodeName").and_then(Value::as_str).filter(|node| !node.is_empty())?.to_owned();
    let mut references = BTreeSet::new();
    let namespace = key.namespace();
    add(&mut references, "namespaces", "", namespace);
    let account = spec.get("serviceAccountName").and_then(Value::as_str).filter(|name| !name.is_empty());
    add(&mut references, "serviceaccounts", namespace, account.unwrap_or("default"));
    collect(spec, namespace, &mut references);
    Some(Placed { node, references })
}

/// The fields of a pod's spec that refer to an object by its name, and what kind it is of.
const FIELDS: [(&str, &str); 8] = [
    ("configMap", "configmaps"),
    ("configMapRef", "configmaps"),
    ("configMapKeyRef", "configmaps"),
    ("secret", "secrets"),
    ("secretRef", "secrets"),
    ("secretKeyRef", "secrets"),
    ("imagePullSecrets", "secrets"),
    ("persistentVolumeClaim", "persistentvolumeclaims"),
];

fn collect(spec: &Value, namespace: &str, references: &mut BTreeSet<Key>) {
    match spec {
        Value::Array(items) => items.iter().for_each(|item| collect(item, namespace, references)),
        Value::Object(map) => {
            for (field, value) in map {
                if let Some((_, resource)) = FIELDS.iter().find(|(known, _)| known == field) {
                    let all = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
                    let named = ["name", "secretName", "claimName"].into_iter();
                    let names = all.iter().filter_map(|one| named.clone().find_map(|name| one.get(name)?.as_str()));
                    names.for_each(|name| add(references, resource, namespace, name));
                }
                collect(value, namespace, references);
            }
        }
        _ => {}
    }
}

fn add(references: &mut BTreeSet<Key>, resource: &str, namespace: &str, name: &str) {
    if !name.is_empty() && !name.contains('/') && !namespace.contains('/') {
        references.insert(Key::new(&GroupResource::new("", resource), namespace, name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(resource: &str, namespace: &str, name: &str) -> Key {
        Key::new(&GroupResource::new("", resource), namespace, name)
    }

    fn pod(node: &str, secrets: &[&str]) -> Vec<u8> {
        let volumes: Vec<Value> = secrets.iter().map(|name| json!({"secret": {"secretName": name}})).collect();
        serde_json::to_vec(&json!({"spec": {"nodeName": node, "volumes": volumes}})).unwrap()
    }

    #[test]
    fn what_a_pod_refers_to_concerns_its_node_alone() {
        let mut concerns = Concerns::default();
        let (a, b) = (key("pods", "d", "a"), key("pods", "d", "b"));
        let told = concerns.apply(&a, None, Some(&pod("n1", &["s"])));
        assert_eq!(told.nodes, ["n1".to_owned()].into());
        let secret = key("secrets", "d", "s");
        assert!(told.gained.contains(&("n1".into(), secret.clone())) && told.gained.len() == 3, "{told:?}");
        assert_eq!(concerns.apply(&secret, None, Some(b"{}")).nodes, ["n1".to_owned()].into());
        assert_eq!(concerns.apply(&key("secrets", "e", "s"), None, Some(b"{}")), Concerned::default());
        // A second pod gains nothing anew, and only the last one that goes loses it.
        assert_eq!(concerns.apply(&b, None, Some(&pod("n1", &["s"]))).gained, []);
        assert_eq!(concerns.apply(&a, None, None).lost, []);
        let told = concerns.apply(&b, None, None);
        assert!(told.lost.contains(&("n1".into(), secret.clone())) && told.nodes == ["n1".to_owned()].into());
        assert_eq!(concerns.apply(&secret, None, None), Concerned::default());
        assert!(concerns.pods_of.is_empty() && concerns.wanted.is_empty());
    }

    #[test]
    fn a_pod_that_is_bound_nowhere_concerns_nobody() {
        let told = Concerns::default().apply(&key("pods", "d", "a"), None, Some(b"{\"spec\":{}}"));
        assert_eq!(told, Concerned::default());
    }

    #[test]
    fn others_hear_of_a_node_when_it_becomes_another_machine() {
        let node = |id: &str, ready: &str| {
            let node =
                json!({"metadata": {"name": "n", "annotations": {"flotilla.dev/node-id": id}}, "status": {"a": ready}});
            serde_json::to_vec(&node).unwrap()
        };
        let mut concerns = Concerns::default();
        let mut all = |old: Option<Vec<u8>>, new: Option<Vec<u8>>| {
            let told = concerns.apply(&key("nodes", "", "n"), old.as_deref(), new.as_deref());
            assert_eq!(told.nodes, ["n".to_owned()].into());
            told.all
        };
        assert!(all(None, Some(node("1", "a"))));
        assert!(!all(Some(node("1", "a")), Some(node("1", "b"))));
        assert!(all(Some(node("1", "b")), Some(node("2", "b"))));
        assert!(all(Some(node("2", "b")), None));
        let cut = member(&node("1", "secret-status")).unwrap();
        assert!(!String::from_utf8_lossy(&cut).contains("secret-status"));
    }

    #[test]
    fn the_clusters_own_objects_concern_all_and_an_event_its_teller() {
        let mut concerns = Concerns::default();
        for collection in everybodys() {
            assert!(concerns.apply(&Key::new(&collection, "", "x"), None, Some(b"{}")).all);
        }
        let event = serde_json::to_vec(&json!({"source": {"host": "n3"}})).unwrap();
        let told = key("events", "d", "e");
        assert_eq!(concerns.apply(&told, None, Some(&event)).nodes, ["n3".to_owned()].into());
        assert_eq!(concerns.keys_of("n3"), [told.clone()].into(), "the node counts them up");
        assert_eq!(concerns.apply(&told, Some(&event), None).nodes, ["n3".to_owned()].into());
        assert_eq!((concerns.keys_of("n3"), concerns.events_of.len()), (BTreeSet::new(), 0));
    }

    proptest! {
        /// Whatever happened before, the index is what the pods that are left make of it; gains and losses lead there.
        #[test]
        fn the_index_is_what_its_pods_make_of_it(steps in prop::collection::vec((0..6usize, 0..4usize, 0..8usize), 0..60)) {
            let mut concerns = Concerns::default();
            let mut pods: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
            let mut known: BTreeMap<String, BTreeSet<Key>> = BTreeMap::new();
            for (name, node, bits) in steps {
                let secrets: Vec<&str> =
                    ["s0", "s1", "s2"].into_iter().enumerate().filter(|(i, _)| bits & (1 << i) != 0).map(|(_, s)| s).collect();
                // Node 3 stands for none: the pod is gone.
                let new = (node < 3).then(|| pod(&format!("n{node}"), &secrets));
                let told = concerns.apply(&key("pods", "d", &name.to_string()), None, new.as_deref());
                match new { Some(new) => _ = pods.insert(name, new), None => _ = pods.remove(&name) }
                for (node, key) in told.gained { prop_assert!(known.entry(node).or_default().insert(key)); }
                for (node, key) in told.lost { prop_assert!(known.entry(node).or_default().remove(&key)); }
            }
            let mut anew = Concerns::default();
            for (name, bytes) in &pods { anew.apply(&key("pods", "d", &name.to_string()), None, Some(bytes)); }
            for node in ["n0", "n1", "n2"] {
                prop_assert_eq!(concerns.keys_of(node), anew.keys_of(node));
                let references = concerns.keys_of(node).into_iter().filter(|key| key.resource() != "pods").collect();
                prop_assert_eq!(known.remove(node).unwrap_or_default(), references);
            }
        }
    }
}
