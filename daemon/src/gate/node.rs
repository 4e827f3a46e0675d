//! What a node may do: what concerns itself and the pods that are bound to it.
//!
//! Defined by Kubernetes' Node authorizer and NodeRestriction admission. Nothing here needs a pod that its node makes by
//! itself, so that a node creates none.

use flotilla_api::field::{Errors, Path};
use flotilla_api::{Builtin, GroupResource, Key, Kind, Reason, Status};
use flotilla_raft::{KeyValue, Range};
use serde_json::{Value, json};

use super::authorize::Attempt;
use super::{Gate, User, Verb, read_status};
use crate::members::{EPOCH_ANNOTATION, ID_ANNOTATION, KEY_ANNOTATION, LEAVING_ANNOTATION, TOKEN_LABELS_ANNOTATION};

/// Labels that a node may set on itself though they are Kubernetes' own.
const OWN_LABELS: &[&str] = &[
    "kubernetes.io/hostname",
    "kubernetes.io/arch",
    "kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
];

/// What a node asks to do with an object.
#[derive(Clone, Copy)]
pub(super) struct NodeAction<'a> {
    pub verb: &'a str,
    pub group: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    /// What is stored; `None` if nothing is.
    pub object: Option<&'a Value>,
}

impl NodeAction<'_> {
    fn is(&self, verbs: &[&str]) -> bool {
        verbs.contains(&self.verb)
    }
}

const READS: &[&str] = &["get", "list", "watch"];
const EDITS: &[&str] = &["update", "patch"];

impl Gate {
    /// # Errors
    /// Why not, in upstream's words; empty where upstream says nothing.
    pub(super) fn node_may(&self, node: &str, action: &NodeAction) -> Result<(), String> {
        let own = action.name == node;
        let bound = || is_bound_to(action.object, node);
        let granted = match (action.group, action.resource, action.subresource) {
            ("", "nodes", "") => action.is(READS) || (action.is(EDITS) && own),
            ("", "nodes", "status") => action.is(EDITS) && own,
            // Which pods there are is no secret among nodes; what one says is for its own node.
            ("", "pods", "") => action.is(&["list", "watch"]) || (action.is(&["get", "delete"]) && bound()),
            ("", "pods", "status") => action.is(EDITS) && bound(),
            ("", "pods", "eviction") => action.is(&["create"]) && bound(),
            ("" | "events.k8s.io", "events", "") => action.is(&["create", "update", "patch"]),
            ("", "services", "") | ("node.k8s.io", "runtimeclasses", "") | ("storage.k8s.io", "csidrivers", "") => {
                action.is(READS)
            }
            ("", "endpoints", "") => action.is(&["get"]),
            ("", "configmaps" | "secrets", "") => return self.pod_refers(node, action, READS),
            ("", "persistentvolumeclaims" | "serviceaccounts", "") => return self.pod_refers(node, action, &["get"]),
            ("", "persistentvolumeclaims", "status") => {
                return self.pod_refers(node, action, &["get", "update", "patch"]);
            }
            ("", "serviceaccounts", "token") => return self.pod_refers(node, action, &["create"]),
            ("", "persistentvolumes", "") => action.is(&["get"]) && self.claims(node, action.object),
            ("storage.k8s.io", "volumeattachments", "") => {
                action.is(&["get"]) && text(action.object, "/spec/nodeName") == node
            }
            ("storage.k8s.io", "csinodes", "") => action.is(&["get", "update", "patch", "delete"]) && own,
            ("coordination.k8s.io", "leases", "") => {
                let fits = action.is(&["create"]) || (action.is(&["get", "update", "patch", "delete"]) && own);
                fits && action.namespace == "kube-node-lease"
            }
            ("certificates.k8s.io", "certificatesigningrequests", "") => action.is(&["create", "get", "list", "watch"]),
            ("authentication.k8s.io", "tokenreviews", "")
            | ("authorization.k8s.io", "subjectaccessreviews" | "localsubjectaccessreviews", "") => {
                action.is(&["create"])
            }
            _ => false,
        };
        if granted { Ok(()) } else { Err(String::new()) }
    }

    /// Something that pods refer to by its name: only if one of the node's does.
    fn pod_refers(&self, node: &str, action: &NodeAction, verbs: &[&str]) -> Result<(), String> {
        if !action.is(verbs) {
            return Err(String::new());
        }
        if action.namespace.is_empty() {
            return Err("can only read namespaced object of this type".into());
        }
        if action.name.is_empty() {
            return Err("No Object name found".into());
        }
        let refers = |pod: &Value| pod.get("spec").is_some_and(|spec| refers_to(spec, action.resource, action.name));
        match self.pods_of_node(node, action.namespace, action.name).iter().any(refers) {
            true => Ok(()),
            false => Err(format!("no relationship found between node '{node}' and this object")),
        }
    }

    /// Whether a volume is bound to a claim that a pod of the node uses.
    fn claims(&self, node: &str, volume: Option<&Value>) -> bool {
        let (namespace, claim) = (text(volume, "/spec/claimRef/namespace"), text(volume, "/spec/claimRef/name"));
        let refers = |pod: &Value| pod.get("spec").is_some_and(|spec| refers_to(spec, "persistentvolumeclaims", claim));
        !claim.is_empty() && self.pods_of_node(node, namespace, claim).iter().any(refers)
    }

    /// Pods of a namespace that are bound to the node and hold this word somewhere.
    fn pods_of_node(&self, node: &str, namespace: &str, word: &str) -> Vec<Value> {
        let prefix = GroupResource::new("", "pods").namespace_prefix(namespace);
        let Ok(pods) = self.store().range(Range::prefix(prefix)) else { return Vec::new() };
        // Most pods of a large namespace are other nodes'; they are not worth decoding. A service account that is not
        // named is `default`.
        let may = |kv: &&KeyValue| holds(&kv.value, node) && (word == "default" || holds(&kv.value, word));
        let pods = pods.items.iter().filter(may).filter_map(|kv| serde_json::from_slice::<Value>(&kv.value).ok());
        pods.filter(|pod| is_bound_to(Some(pod), node)).collect()
    }
}

/// Whether the text stands somewhere in the bytes. Names have no character that JSON would write otherwise.
fn holds(bytes: &[u8], text: &str) -> bool {
    !text.is_empty() && bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// What a node may create only for itself: that it may, it is asked before the object has a name.
///
/// # Errors
/// `Forbidden`, if it is another's.
pub(super) fn restrict_new(user: &User, kind: &Kind, key: &Key) -> Result<(), Status> {
    match user.as_node().filter(|node| kind.builtin == Some(Builtin::Lease) && *node != key.name()) {
        None => Ok(()),
        Some(node) => Err(Status::new(
            Reason::Forbidden,
            format!("leases \"{}\" is forbidden: node \"{node}\" can only access its own lease", key.name()),
        )),
    }
}

/// Annotations of a Node that say which machine it is.
const IDENTITY: &[&str] = &[ID_ANNOTATION, KEY_ANNOTATION, EPOCH_ANNOTATION, TOKEN_LABELS_ANNOTATION];

/// Which machine a new Node is, nobody says here, not even who may do everything: machines become Nodes by joining. A copy
/// of a Node would be the same machine under another name, and take it along when it is deleted.
///
/// # Errors
/// `Forbidden`, naming what may not be set.
pub(super) fn restrict_identity(kind: &Kind, key: &Key, new: &Value) -> Result<(), Status> {
    let set = |name: &&&str| annotation(new, name).is_some();
    match IDENTITY.iter().find(set).filter(|_| kind.builtin == Some(Builtin::Node)) {
        None => Ok(()),
        Some(name) => {
            let why = "may not be set: it says which machine a Node is, and machines join with 'flotilla up --join'";
            Err(forbidden_annotation(key, name, why))
        }
    }
}

fn forbidden_annotation(key: &Key, name: &str, why: &str) -> Status {
    let path = Path::new("metadata").child("annotations").key(name);
    let mut errors = Errors::new();
    errors.forbidden(&path, why);
    let words = format!("nodes \"{}\" is forbidden: {path}: Forbidden: {why}", key.name());
    Status { causes: errors.into_causes(), ..Status::new(Reason::Forbidden, words) }
}

impl Gate {
    /// Which machine a Node is, only those may change who may do everything, and not to one that another Node is already;
    /// that it leaves the cluster is for those to say who may delete it. Who leaves out which machine it is, as a manifest
    /// does, does not mean that it is none.
    ///
    /// # Errors
    /// `Forbidden`, naming what may not be changed.
    pub(super) fn restrict_membership(
        &self,
        user: &User,
        kind: &Kind,
        key: &Key,
        old: &Value,
        new: &mut Value,
    ) -> Result<(), Status> {
        if kind.builtin != Some(Builtin::Node) {
            return Ok(());
        }
        keep_identity(old, new);
        let changed = |name: &&&str| annotation(old, name) != annotation(new, name);
        if let Some(name) = IDENTITY.iter().find(changed) {
            if !user.is_master() {
                return Err(forbidden_annotation(key, name, "may not be changed"));
            }
            if let Some(id) = annotation(new, ID_ANNOTATION)
                && let Some(other) = self.other_node(key, id)?
            {
                return Err(forbidden_annotation(key, ID_ANNOTATION, &format!("node {other:?} is this machine")));
            }
        }
        if annotation(old, LEAVING_ANNOTATION) != annotation(new, LEAVING_ANNOTATION) {
            let verb = Verb::Delete;
            let (namespace, name, object) = (key.namespace(), key.name(), Some(old));
            self.authorize(&Attempt { user, verb, kind, subresource: None, namespace, name, object })?;
        }
        Ok(())
    }
}

impl Gate {
    /// Another Node that is the machine with this id.
    pub(crate) fn other_node(&self, key: &Key, id: &Value) -> Result<Option<String>, Status> {
        let nodes = self.store().range(Range::prefix(key.collection().prefix())).map_err(read_status)?;
        let is_it = |kv: &&KeyValue| {
            let node = serde_json::from_slice::<Value>(&kv.value).ok();
            kv.key != *key && node.is_some_and(|node| annotation(&node, ID_ANNOTATION) == Some(id))
        };
        Ok(nodes.items.iter().find(is_it).map(|kv| kv.key.name().to_owned()))
    }
}

fn annotation<'a>(node: &'a Value, name: &str) -> Option<&'a Value> {
    node.pointer("/metadata/annotations")?.get(name)
}

fn keep_identity(old: &Value, new: &mut Value) {
    for name in IDENTITY {
        if let (Some(value), None) = (annotation(old, name), annotation(new, name)) {
            if !new["metadata"]["annotations"].is_object() {
                new["metadata"]["annotations"] = json!({});
            }
            new["metadata"]["annotations"][*name] = value.clone();
        }
    }
}

/// What a node may not change of itself: its taints, its owners, what its token gave it, and labels that others rely on.
///
/// # Errors
/// `Forbidden`, naming the first of these.
pub(super) fn restrict_node(user: &User, kind: &Kind, old: &Value, new: &Value) -> Result<(), Status> {
    let Some(node) = user.as_node().filter(|_| kind.group.is_empty() && kind.plural == "nodes") else { return Ok(()) };
    let given = annotation(old, TOKEN_LABELS_ANNOTATION).and_then(Value::as_str).unwrap_or_default();
    let given: Vec<&str> = given.split(',').filter(|label| !label.is_empty()).collect();
    let labels: Vec<String> = changed_labels(old, new)
        .into_iter()
        .filter(|label| given.contains(&label.as_str()) || is_others(label))
        .collect();
    let what = if old["spec"]["taints"] != new["spec"]["taints"] {
        "taints".to_owned()
    } else if old["metadata"]["ownerReferences"] != new["metadata"]["ownerReferences"] {
        // The Node would be collected with an owner that is not there.
        "ownerReferences".to_owned()
    } else if !labels.is_empty() {
        format!("labels: {}", labels.join(", "))
    } else {
        return Ok(());
    };
    Err(Status::new(
        Reason::Forbidden,
        format!("nodes \"{node}\" is forbidden: node \"{node}\" is not allowed to modify {what}"),
    ))
}

/// The labels that one has and the other has not, or with another value.
fn changed_labels(old: &Value, new: &Value) -> Vec<String> {
    let labels = |node: &Value| node["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    let (old, new) = (labels(old), labels(new));
    let mut names: Vec<String> =
        old.keys().chain(new.keys()).filter(|name| old.get(*name) != new.get(*name)).cloned().collect();
    names.sort();
    names.dedup();
    names
}

/// Labels that a node must not give itself, since people tell nodes apart by them.
fn is_others(label: &str) -> bool {
    let Some((domain, _)) = label.split_once('/') else { return false };
    let within = |of: &str| domain == of || domain.strip_suffix(of).is_some_and(|rest| rest.ends_with('.'));
    if within("node-restriction.kubernetes.io") {
        return true;
    }
    let own = OWN_LABELS.contains(&label) || within("kubelet.kubernetes.io") || within("node.kubernetes.io");
    (within("kubernetes.io") || within("k8s.io")) && !own
}

fn is_bound_to(pod: Option<&Value>, node: &str) -> bool {
    pod.and_then(|pod| pod.pointer("/spec/nodeName")).and_then(Value::as_str) == Some(node)
}

fn text<'a>(object: Option<&'a Value>, pointer: &str) -> &'a str {
    object.and_then(|object| object.pointer(pointer)).and_then(Value::as_str).unwrap_or_default()
}

/// Whether a pod's spec names the object, in any of the fields that can.
fn refers_to(spec: &Value, plural: &str, name: &str) -> bool {
    let fields: &[&str] = match plural {
        "serviceaccounts" => return service_account(spec) == name,
        "configmaps" => &["configMap", "configMapRef", "configMapKeyRef"],
        "secrets" => &["secret", "secretRef", "secretKeyRef", "imagePullSecrets"],
        "persistentvolumeclaims" => &["persistentVolumeClaim"],
        _ => return false,
    };
    holds_reference(spec, fields, name)
}

fn service_account(spec: &Value) -> &str {
    spec.get("serviceAccountName").and_then(Value::as_str).filter(|name| !name.is_empty()).unwrap_or("default")
}

fn holds_reference(spec: &Value, fields: &[&str], name: &str) -> bool {
    match spec {
        Value::Array(items) => items.iter().any(|item| holds_reference(item, fields, name)),
        Value::Object(map) => map.iter().any(|(field, value)| {
            (fields.contains(&field.as_str()) && names(value, name)) || holds_reference(value, fields, name)
        }),
        _ => false,
    }
}

fn names(reference: &Value, name: &str) -> bool {
    match reference {
        Value::Array(items) => items.iter().any(|item| names(item, name)),
        Value::Object(map) => ["name", "secretName", "claimName"]
            .iter()
            .any(|field| map.get(*field).and_then(Value::as_str) == Some(name)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use flotilla_api::admit::Subresource;

    use super::*;
    use crate::gate::{WriteOptions, alone};

    #[test]
    fn a_reference_is_found_wherever_a_pod_may_hold_one() {
        let spec = json!({
            "containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "a", "key": "k"}}}],
                            "envFrom": [{"configMapRef": {"name": "b"}}]}],
            "volumes": [{"secret": {"secretName": "c"}}, {"projected": {"sources": [{"configMap": {"name": "d"}}]}},
                        {"persistentVolumeClaim": {"claimName": "f"}}],
            "imagePullSecrets": [{"name": "e"}],
            "serviceAccountName": "g",
        });
        let table = [
            ("secrets", "a"),
            ("configmaps", "b"),
            ("secrets", "c"),
            ("configmaps", "d"),
            ("secrets", "e"),
            ("persistentvolumeclaims", "f"),
            ("serviceaccounts", "g"),
        ];
        for (plural, name) in table {
            assert!(refers_to(&spec, plural, name), "{plural} {name}");
        }
        for (plural, name) in [("configmaps", "a"), ("secrets", "b"), ("serviceaccounts", "default"), ("nodes", "a")] {
            assert!(!refers_to(&spec, plural, name), "{plural} {name}");
        }
        assert!(refers_to(&json!({}), "serviceaccounts", "default"));
    }

    #[test]
    fn a_node_does_not_change_what_its_token_gave_it() {
        let registry = flotilla_api::Registry::builtin();
        let kind = registry.built_in(flotilla_api::Builtin::Node).unwrap();
        let old = json!({
            "metadata": {
                "labels": {"zone": "a", "own": "1"},
                "ownerReferences": [],
                "annotations": {ID_ANNOTATION: "7", KEY_ANNOTATION: "k", TOKEN_LABELS_ANNOTATION: "zone,disk"},
            },
            "spec": {"taints": [{"key": "dedicated", "effect": "NoSchedule"}]},
        });
        let may = |user: &User, path: &str, value: Value| {
            let mut new = old.clone();
            *new.pointer_mut(path).unwrap() = value;
            restrict_node(user, &kind, &old, &new).is_ok()
        };
        let node = User::node("n");
        assert!(may(&node, "/metadata/labels/own", json!("2")));
        assert!(!may(&node, "/metadata/labels/zone", json!("b")));
        assert!(!may(&node, "/metadata/labels", json!({"zone": "a", "disk": "fast"})), "added though the token's");
        assert!(!may(&node, "/metadata/ownerReferences", json!([{"name": "gone"}])));
        assert!(!may(&node, "/spec/taints", json!([])));
        assert!(may(&User::root(), "/spec/taints", json!([])));
    }

    #[tokio::test]
    async fn no_two_nodes_are_one_machine() {
        let dir = tempfile::tempdir().unwrap();
        let gate = alone::gate(&dir).await;
        let (kind, root) = (gate.built_in(Builtin::Node).unwrap(), User::root());
        let options = WriteOptions::by("test");
        let node = |name: &str, annotations: Value| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "annotations": annotations}});
        for name in IDENTITY {
            let copy = node("copy", json!({*name: "7"}));
            let refused = gate.create(&root, &kind, copy.clone(), &options).await.unwrap_err();
            let field = format!("metadata.annotations[{name}]");
            assert_eq!((refused.reason, &refused.causes[0].field), (Reason::Forbidden, &field));
            assert!(
                refused.message.starts_with(&format!("nodes \"copy\" is forbidden: {field}: Forbidden: may not be"))
            );
            let applied = gate.apply(&root, copy.to_string().as_bytes(), "", false, &options).await.unwrap_err();
            assert_eq!(applied.message, refused.message);
        }
        for name in ["a", "b"] {
            gate.create(&root, &kind, node(name, json!({"other": "1"})), &options).await.unwrap();
        }
        let become_seven = async |user: &User, name: &str| {
            let edit = |node: &mut Value| {
                node["metadata"]["annotations"][ID_ANNOTATION] = json!("7");
                Ok(())
            };
            gate.update(user, &kind, ("", name), Subresource::None, &options, edit).await.map_err(|s| s.message)
        };
        let may_not = "metadata.annotations[flotilla.dev/node-id]: Forbidden:";
        let refused = become_seven(&User::node("a"), "a").await.unwrap_err();
        assert_eq!(refused, format!("nodes \"a\" is forbidden: {may_not} may not be changed"));
        become_seven(&root, "a").await.unwrap();
        let refused = become_seven(&root, "b").await.unwrap_err();
        assert_eq!(refused, format!("nodes \"b\" is forbidden: {may_not} node \"a\" is this machine"));
    }

    #[test]
    fn who_leaves_out_which_machine_a_node_is_does_not_change_it() {
        let old = json!({"metadata": {"annotations": {ID_ANNOTATION: "7", KEY_ANNOTATION: "k", "other": "1"}}});
        for sent in [json!({"metadata": {}}), json!({"metadata": {"annotations": null}})] {
            let mut new = sent;
            keep_identity(&old, &mut new);
            assert_eq!(new["metadata"]["annotations"], json!({ID_ANNOTATION: "7", KEY_ANNOTATION: "k"}));
        }
        let mut new = json!({"metadata": {"annotations": {ID_ANNOTATION: "8"}}});
        keep_identity(&old, &mut new);
        assert_eq!(new["metadata"]["annotations"], json!({ID_ANNOTATION: "8", KEY_ANNOTATION: "k"}));
    }

    #[test]
    fn a_node_does_not_give_itself_labels_that_people_rely_on() {
        let table = [
            ("zone", false),
            ("example.com/disk", false),
            ("kubernetes.io/hostname", false),
            ("topology.kubernetes.io/zone", false),
            ("kubelet.kubernetes.io/x", false),
            ("a.node.kubernetes.io/x", false),
            ("node-restriction.kubernetes.io/pci", true),
            ("a.node-restriction.kubernetes.io/pci", true),
            ("node-role.kubernetes.io/control-plane", true),
            ("kubernetes.io/other", true),
            ("k8s.io/x", true),
            ("mykubernetes.io/x", false),
        ];
        for (label, others) in table {
            assert_eq!(is_others(label), others, "{label}");
        }
    }

    #[test]
    fn a_pod_is_bound_to_one_node() {
        let pod = json!({"spec": {"nodeName": "n1"}});
        assert!(is_bound_to(Some(&pod), "n1") && !is_bound_to(Some(&pod), "n2") && !is_bound_to(None, "n1"));
    }
}
