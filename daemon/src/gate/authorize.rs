//! Who may do what, until roles can be declared: masters everything; a node what concerns itself and its pods.
//!
//! Defined by Kubernetes' Node authorizer and NodeRestriction admission.

use flotilla_api::{GroupResource, Kind, Reason, Status};
use serde_json::Value;

use super::{Gate, User, Verb};
use crate::members::{ID_ANNOTATION, KEY_ANNOTATION, TOKEN_LABELS_ANNOTATION};

/// One request, as the rules see it.
pub(super) struct Attempt<'a> {
    pub user: &'a User,
    pub verb: Verb,
    pub kind: &'a Kind,
    pub subresource: Option<&'a str>,
    pub namespace: &'a str,
    /// Empty for lists, watches and creations.
    pub name: &'a str,
    /// What is stored, or what is to be created.
    pub object: Option<&'a Value>,
}

impl Gate {
    /// # Errors
    /// `Forbidden`, in upstream's words.
    pub(super) fn authorize(&self, attempt: &Attempt) -> Result<(), Status> {
        if attempt.user.is_master() {
            return Ok(());
        }
        if let Some(node) = attempt.user.as_node()
            && self.node_may(node, attempt)
        {
            return Ok(());
        }
        Err(forbidden(attempt))
    }

    /// Whether a path that is no resource may be asked: health and version by anyone, discovery by everyone who is known,
    /// the rest by those who may do everything.
    ///
    /// # Errors
    /// `Forbidden`, in upstream's words.
    pub fn authorize_path(&self, user: &User, method: &http::Method, path: &str) -> Result<(), Status> {
        const PUBLIC: &[&str] = &["healthz", "livez", "readyz", "version"];
        const KNOWN: &[&str] = &["api", "apis", "openapi"];
        let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
        let allowed = user.is_master()
            || PUBLIC.contains(&first)
            || (!user.is_anonymous() && (KNOWN.contains(&first) || path == "/"));
        if allowed {
            return Ok(());
        }
        let verb = method.as_str().to_ascii_lowercase();
        Err(Status::new(Reason::Forbidden, format!("forbidden: User \"{}\" cannot {verb} path \"{path}\"", user.name)))
    }

    fn node_may(&self, node: &str, attempt: &Attempt) -> bool {
        let reading = matches!(attempt.verb, Verb::Get | Verb::List | Verb::Watch);
        match (&*attempt.kind.group, &*attempt.kind.plural) {
            ("", "nodes") => reading || (matches!(attempt.verb, Verb::Update | Verb::Patch) && attempt.name == node),
            ("", "pods") => match attempt.verb {
                Verb::List | Verb::Watch => true,
                Verb::Get | Verb::Delete => is_bound_to(attempt.object, node),
                Verb::Update | Verb::Patch => {
                    attempt.subresource == Some("status") && is_bound_to(attempt.object, node)
                }
                Verb::Create | Verb::DeleteCollection => false,
            },
            ("", "events") => matches!(attempt.verb, Verb::Create | Verb::Update | Verb::Patch),
            ("", "configmaps" | "secrets") => {
                attempt.verb == Verb::Get && self.a_pod_of_the_node_refers_to(node, attempt)
            }
            ("coordination.k8s.io", "leases") => {
                attempt.namespace == "kube-node-lease" && (attempt.verb == Verb::Create || attempt.name == node)
            }
            _ => false,
        }
    }

    fn a_pod_of_the_node_refers_to(&self, node: &str, attempt: &Attempt) -> bool {
        let prefix = GroupResource::new("", "pods").namespace_prefix(attempt.namespace);
        let Ok(pods) = self.store.range(flotilla_raft::Range::prefix(prefix)) else { return false };
        pods.items.iter().filter_map(|kv| serde_json::from_slice::<Value>(&kv.value).ok()).any(|pod| {
            is_bound_to(Some(&pod), node)
                && pod.get("spec").is_some_and(|spec| refers_to(spec, &attempt.kind.plural, attempt.name))
        })
    }
}

/// What a node may not change of itself: who it is, its taints, and what its token gave it.
///
/// # Errors
/// `Forbidden`, naming the first of these.
pub(super) fn restrict_node(user: &User, kind: &Kind, old: &Value, new: &Value) -> Result<(), Status> {
    let Some(node) = user.as_node().filter(|_| kind.group.is_empty() && kind.plural == "nodes") else { return Ok(()) };
    let annotation = |node: &Value, name: &str| node["metadata"]["annotations"][name].clone();
    let label = |node: &Value, name: &str| node["metadata"]["labels"][name].clone();
    let fixed = [ID_ANNOTATION, KEY_ANNOTATION, TOKEN_LABELS_ANNOTATION];
    let given = annotation(old, TOKEN_LABELS_ANNOTATION);
    let given = given.as_str().unwrap_or_default().split(',').filter(|label| !label.is_empty());
    let changed = fixed.into_iter().find(|name| annotation(old, name) != annotation(new, name));
    let changed = changed.or_else(|| given.into_iter().find(|name| label(old, name) != label(new, name)));
    let changed = changed.or_else(|| (old["spec"]["taints"] != new["spec"]["taints"]).then_some("spec.taints"));
    match changed {
        None => Ok(()),
        Some(what) => Err(Status::new(
            Reason::Forbidden,
            format!("nodes \"{node}\" is forbidden: node \"{node}\" is not allowed to modify {what} of itself"),
        )),
    }
}

fn is_bound_to(pod: Option<&Value>, node: &str) -> bool {
    pod.and_then(|pod| pod.pointer("/spec/nodeName")).and_then(Value::as_str) == Some(node)
}

/// Whether a pod's spec names the ConfigMap or Secret, in any of the fields that can.
fn refers_to(spec: &Value, plural: &str, name: &str) -> bool {
    let fields: &[&str] = match plural {
        "configmaps" => &["configMap", "configMapRef", "configMapKeyRef"],
        _ => &["secret", "secretRef", "secretKeyRef", "imagePullSecrets"],
    };
    match spec {
        Value::Array(items) => items.iter().any(|item| refers_to(item, plural, name)),
        Value::Object(map) => map.iter().any(|(field, value)| {
            (fields.contains(&field.as_str()) && names(value, name)) || refers_to(value, plural, name)
        }),
        _ => false,
    }
}

fn names(reference: &Value, name: &str) -> bool {
    match reference {
        Value::Array(items) => items.iter().any(|item| names(item, name)),
        Value::Object(map) => {
            ["name", "secretName"].iter().any(|field| map.get(*field).and_then(Value::as_str) == Some(name))
        }
        _ => false,
    }
}

fn forbidden(attempt: &Attempt) -> Status {
    let collection = GroupResource::new(&*attempt.kind.group, &*attempt.kind.plural);
    let resource = match attempt.subresource {
        Some(subresource) => format!("{}/{subresource}", attempt.kind.plural),
        None => attempt.kind.plural.to_string(),
    };
    let place = match attempt.namespace {
        "" => "at the cluster scope".to_owned(),
        namespace => format!("in the namespace \"{namespace}\""),
    };
    let name = if attempt.name.is_empty() { String::new() } else { format!(" \"{}\"", attempt.name) };
    Status::new(
        Reason::Forbidden,
        format!(
            "{collection}{name} is forbidden: User \"{}\" cannot {} resource \"{resource}\" in API group \"{}\" {place}",
            attempt.user.name, attempt.verb, attempt.kind.group
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_reference_is_found_wherever_a_pod_may_hold_one() {
        let spec = json!({
            "containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "a", "key": "k"}}}],
                            "envFrom": [{"configMapRef": {"name": "b"}}]}],
            "volumes": [{"secret": {"secretName": "c"}}, {"projected": {"sources": [{"configMap": {"name": "d"}}]}}],
            "imagePullSecrets": [{"name": "e"}],
        });
        for (plural, name) in
            [("secrets", "a"), ("configmaps", "b"), ("secrets", "c"), ("configmaps", "d"), ("secrets", "e")]
        {
            assert!(refers_to(&spec, plural, name), "{plural} {name}");
        }
        assert!(!refers_to(&spec, "configmaps", "a") && !refers_to(&spec, "secrets", "b"));
    }

    #[test]
    fn a_node_does_not_change_who_it_is_nor_what_its_token_gave_it() {
        let registry = flotilla_api::Registry::builtin();
        let kind = registry.built_in(flotilla_api::Builtin::Node).unwrap();
        let old = json!({
            "metadata": {
                "labels": {"zone": "a", "own": "1"},
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
        assert!(!may(&node, "/metadata/annotations/flotilla.dev~1node-id", json!("8")));
        assert!(!may(&node, "/spec/taints", json!([])));
        assert!(may(&User::root(), "/spec/taints", json!([])));
    }

    #[test]
    fn a_pod_is_bound_to_one_node() {
        let pod = json!({"spec": {"nodeName": "n1"}});
        assert!(is_bound_to(Some(&pod), "n1") && !is_bound_to(Some(&pod), "n2") && !is_bound_to(None, "n1"));
    }
}
