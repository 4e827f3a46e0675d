//! What is recorded of a request: `audit.k8s.io/v1 Event` at the level `Metadata`.
//!
//! Invariant: nothing of a body is in it, no credentials, and no query of a request that carries a command or is passed on.

use flotilla_control::rbac::Action;
use http::Uri;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::policy::Stage;
use crate::gate::User;

/// What a client says of itself is cut after this.
const MAX_TEXT_BYTES: usize = 1024;
/// Subresources whose queries are a command, or somebody else's.
const UNRECORDED: &[&str] = &["exec", "attach", "proxy", "portforward"];

/// A request as it is recorded, but for how it ends.
#[derive(Clone, Debug)]
pub struct Record {
    pub id: String,
    event: Value,
}

/// What a request came with.
pub struct Head<'a> {
    pub id: &'a str,
    pub uri: &'a Uri,
    pub user_agent: &'a str,
    pub address: Option<std::net::IpAddr>,
    pub sender: &'a User,
    /// Whom the request is judged as.
    pub user: &'a User,
    pub action: &'a Action<'a>,
    /// The API version in the path.
    pub version: &'a str,
}

impl Record {
    pub fn new(head: &Head, received: Timestamp) -> Self {
        let (Action::Path { verb, .. } | Action::Resource { verb, .. }) = *head.action;
        let mut event = json!({
            "kind": "Event",
            "apiVersion": "audit.k8s.io/v1",
            "level": "Metadata",
            "auditID": head.id,
            "requestURI": uri(head.uri, head.action),
            "verb": verb,
            "user": head.sender.info(),
            "userAgent": cut(head.user_agent),
            "requestReceivedTimestamp": micros(received),
        });
        if let Some(address) = head.address {
            event["sourceIPs"] = json!([address]);
        }
        if head.sender != head.user {
            event["impersonatedUser"] = head.user.info();
        }
        if let Some(object) = object(head.action, head.version) {
            event["objectRef"] = object;
        }
        Self { id: head.id.to_owned(), event }
    }

    /// The line of a stage. The code is known once there is an answer.
    pub fn line(&self, stage: Stage, now: Timestamp, code: Option<u16>) -> Vec<u8> {
        let mut event = self.event.clone();
        event["stage"] = stage.as_str().into();
        event["stageTimestamp"] = micros(now).into();
        if let Some(code) = code {
            event["responseStatus"] = json!({"metadata": {}, "code": code});
            // Upstream's words; why is told to who asked.
            let decision = if code == 403 { "forbid" } else { "allow" };
            event["annotations"] = json!({"authorization.k8s.io/decision": decision});
        }
        let mut line = event.to_string().into_bytes();
        line.push(b'\n');
        line
    }
}

fn object(action: &Action, version: &str) -> Option<Value> {
    let Action::Resource { group, resource, subresource, namespace, name, .. } = *action else { return None };
    let mut object = json!({"resource": resource});
    let fields = [
        ("namespace", namespace),
        ("name", name),
        ("apiGroup", group),
        ("apiVersion", version),
        ("subresource", subresource),
    ];
    for (field, value) in fields.into_iter().filter(|(_, value)| !value.is_empty()) {
        object[field] = value.into();
    }
    Some(object)
}

fn uri(uri: &Uri, action: &Action) -> String {
    let path = cut(uri.path());
    let passes_on = matches!(*action, Action::Resource { subresource, .. } if UNRECORDED.contains(&subresource));
    match uri.query().filter(|_| !passes_on) {
        Some(query) => format!("{path}?{}", cut(query)),
        None => path,
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(MAX_TEXT_BYTES / 4) {
        Some((at, _)) if text.len() > MAX_TEXT_BYTES => text[..at].to_owned(),
        _ => text.to_owned(),
    }
}

/// As `metav1.MicroTime` is written.
fn micros(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(uri: &str, action: &Action, sender: &User, user: &User) -> Value {
        let uri: Uri = uri.parse().unwrap();
        let head = Head {
            id: "id",
            uri: &uri,
            user_agent: "kubectl/v1.32",
            address: Some([127, 0, 0, 1].into()),
            sender,
            user,
            action,
            version: "v1",
        };
        let record = Record::new(&head, Timestamp::UNIX_EPOCH);
        serde_json::from_slice(&record.line(Stage::ResponseComplete, Timestamp::UNIX_EPOCH, Some(403))).unwrap()
    }

    #[test]
    fn a_request_is_recorded_as_upstream_does() {
        let action = Action::Resource {
            verb: "get",
            group: "apps",
            resource: "deployments",
            subresource: "scale",
            namespace: "red",
            name: "web",
        };
        let (root, ann) = (User::root(), User::new("ann", vec!["dev".into()]));
        let event = record("/apis/apps/v1/namespaces/red/deployments/web/scale?timeout=1s", &action, &root, &ann);
        assert_eq!(
            event,
            json!({
                "kind": "Event",
                "apiVersion": "audit.k8s.io/v1",
                "level": "Metadata",
                "auditID": "id",
                "stage": "ResponseComplete",
                "requestURI": "/apis/apps/v1/namespaces/red/deployments/web/scale?timeout=1s",
                "verb": "get",
                "user": {"username": "root", "groups": ["system:masters"]},
                "impersonatedUser": {"username": "ann", "groups": ["dev"]},
                "sourceIPs": ["127.0.0.1"],
                "userAgent": "kubectl/v1.32",
                "objectRef": {"resource": "deployments", "namespace": "red", "name": "web", "apiGroup": "apps",
                              "apiVersion": "v1", "subresource": "scale"},
                "responseStatus": {"metadata": {}, "code": 403},
                "requestReceivedTimestamp": "1970-01-01T00:00:00.000000Z",
                "stageTimestamp": "1970-01-01T00:00:00.000000Z",
                "annotations": {"authorization.k8s.io/decision": "forbid"},
            })
        );
    }

    #[test]
    fn commands_and_what_is_passed_on_are_not_recorded() {
        let root = User::root();
        for subresource in ["exec", "attach", "proxy"] {
            let action = Action::Resource {
                verb: "create",
                group: "",
                resource: "pods",
                subresource,
                namespace: "red",
                name: "p",
            };
            let event =
                record("/api/v1/namespaces/red/pods/p/exec?command=login&command=hunter2", &action, &root, &root);
            assert!(!event.to_string().contains("hunter2"), "{event}");
        }
    }

    #[test]
    fn what_clients_send_is_cut() {
        let root = User::root();
        let long = format!("/{}?{}", "a".repeat(9000), "b".repeat(9000));
        let event = record(&long, &Action::Path { verb: "get", path: "/a" }, &root, &root);
        assert!(event["requestURI"].as_str().unwrap().len() < 3 * MAX_TEXT_BYTES);
        assert!(event.get("objectRef").is_none() && event.get("impersonatedUser").is_none());
    }
}
