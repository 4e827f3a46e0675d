//! What is recorded of a request: `audit.k8s.io/v1 Event`.
//!
//! Invariant: no credentials are in it, nothing of a body that holds secrets, and no query of a request that carries a
//! command or is passed on.

use flotilla_api::Kind;
use flotilla_api::kinds::FLOTILLA_GROUP;
use flotilla_control::rbac::Action;
use http::Uri;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::MAX_BODY_BYTES;
use super::policy::{Level, Recording, Stage};
use crate::gate::User;

/// What a client says of itself is cut after this.
const MAX_TEXT_BYTES: usize = 1024;
/// Subresources whose queries are a command, or somebody else's.
const UNRECORDED: &[&str] = &["exec", "attach", "proxy", "portforward"];

/// Upstream's mark of an event that a body is left out of.
const TRUNCATED: &str = "audit.k8s.io/truncated";
/// Whose bodies are tokens.
const TOKENS: [(&str, &str); 2] = [("authentication.k8s.io", "tokenreviews"), ("", "serviceaccounts/token")];

/// One of the two bodies of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Request,
    Response,
}

impl Side {
    pub fn level(self) -> Level {
        match self {
            Side::Request => Level::Request,
            Side::Response => Level::RequestResponse,
        }
    }

    fn field(self) -> &'static str {
        match self {
            Side::Request => "requestObject",
            Side::Response => "responseObject",
        }
    }
}

/// How much of a request may be recorded, whatever a policy asks for.
pub fn most(action: &Action, kind: Option<&Kind>) -> Level {
    let Action::Resource { group, resource, subresource, .. } = *action else { return Level::Metadata };
    let Some(kind) = kind else { return Level::Metadata };
    let whole = match subresource {
        "" => resource.to_owned(),
        subresource => format!("{resource}/{subresource}"),
    };
    let is_secret = !kind.sealed.is_empty() || group == FLOTILLA_GROUP || TOKENS.contains(&(group, whole.as_str()));
    match is_secret || subresource == "log" || UNRECORDED.contains(&subresource) {
        true => Level::Metadata,
        false => Level::RequestResponse,
    }
}

/// A request as it is recorded, but for how it ends.
#[derive(Clone, Debug)]
pub struct Record {
    omit_managed_fields: bool,
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
    pub fn new(head: &Head, recording: &Recording, received: Timestamp) -> Self {
        let (Action::Path { verb, .. } | Action::Resource { verb, .. }) = *head.action;
        let mut event = json!({
            "kind": "Event",
            "apiVersion": "audit.k8s.io/v1",
            "level": recording.level.as_str(),
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
        Self { omit_managed_fields: recording.omit_managed_fields, event }
    }

    /// Adds a body to all lines that follow; `None`: one that is not shown, which is noted.
    pub fn add(&mut self, side: Side, object: Option<Value>) {
        let object = object.map(|object| match self.omit_managed_fields {
            true => without_managed_fields(object),
            false => object,
        });
        match object.filter(|object| object.to_string().len() <= MAX_BODY_BYTES) {
            Some(object) => self.event[side.field()] = object,
            None => self.event["annotations"][TRUNCATED] = "true".into(),
        }
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
            event["annotations"]["authorization.k8s.io/decision"] = decision.into();
        }
        let mut line = event.to_string().into_bytes();
        line.push(b'\n');
        line
    }
}

/// Of an object, or of each in a list or in a table.
fn without_managed_fields(mut object: Value) -> Value {
    let remove = |object: &mut Value| {
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
    };
    remove(&mut object);
    object.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten().for_each(remove);
    let rows = object.get_mut("rows").and_then(Value::as_array_mut).into_iter().flatten();
    rows.filter_map(|row| row.get_mut("object")).for_each(remove);
    object
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
    use flotilla_api::{Builtin, Registry};

    use super::*;

    const METADATA: Recording = Recording { level: Level::Metadata, omitted: Vec::new(), omit_managed_fields: false };

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
        let record = Record::new(&head, &METADATA, Timestamp::UNIX_EPOCH);
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
    fn bodies_that_hold_secrets_are_never_recorded() {
        let registry = Registry::builtin();
        let most = |builtin: Builtin, subresource: &str| {
            let kind = registry.built_in(builtin).unwrap();
            let (group, resource) = (kind.group.as_str(), kind.plural.as_str());
            let action = Action::Resource { verb: "get", group, resource, subresource, namespace: "red", name: "a" };
            super::most(&action, Some(&kind))
        };
        assert_eq!(most(Builtin::Pod, ""), Level::RequestResponse);
        assert_eq!(most(Builtin::ConfigMap, ""), Level::RequestResponse);
        assert_eq!(most(Builtin::ServiceAccount, ""), Level::RequestResponse);
        for (builtin, subresource) in [
            (Builtin::Secret, ""),
            (Builtin::ServiceAccount, "token"),
            (Builtin::Keyring, ""),
            (Builtin::JoinToken, ""),
            (Builtin::Pod, "log"),
            (Builtin::Pod, "proxy"),
        ] {
            assert_eq!(most(builtin, subresource), Level::Metadata, "{builtin:?} {subresource}");
        }
        let review = flotilla_api::questions::find("authentication.k8s.io", "v1", "tokenreviews").unwrap();
        let action = Action::Resource {
            verb: "create",
            group: "authentication.k8s.io",
            resource: "tokenreviews",
            subresource: "",
            namespace: "",
            name: "",
        };
        assert_eq!(super::most(&action, Some(review)), Level::Metadata);
        assert_eq!(super::most(&Action::Path { verb: "post", path: "/x" }, None), Level::Metadata);
    }

    #[test]
    fn bodies_are_bounded_and_shown_without_what_is_left_out() {
        let uri: Uri = "/api/v1/namespaces/red/pods".parse().unwrap();
        let (root, action) = (User::root(), Action::Path { verb: "get", path: "/" });
        let head = Head {
            id: "id",
            uri: &uri,
            user_agent: "",
            address: None,
            sender: &root,
            user: &root,
            action: &action,
            version: "v1",
        };
        let recording = Recording { level: Level::RequestResponse, omit_managed_fields: true, ..METADATA };
        let mut record = Record::new(&head, &recording, Timestamp::UNIX_EPOCH);
        record.add(Side::Request, Some(json!({"metadata": {"name": "p", "managedFields": [{}]}})));
        record.add(Side::Response, Some(json!({"items": [{"metadata": {"managedFields": [{}]}}]})));
        let line = |record: &Record| {
            let line = record.line(Stage::ResponseComplete, Timestamp::UNIX_EPOCH, Some(200));
            serde_json::from_slice::<Value>(&line).unwrap()
        };
        let event = line(&record);
        assert_eq!(event["level"], "RequestResponse");
        assert_eq!(event["requestObject"], json!({"metadata": {"name": "p"}}));
        assert_eq!(event["responseObject"], json!({"items": [{"metadata": {}}]}));
        let table = json!({"rows": [{"cells": [], "object": {"metadata": {"managedFields": [{}]}}}]});
        record.add(Side::Response, Some(table));
        let event = line(&record);
        assert_eq!(event["responseObject"], json!({"rows": [{"cells": [], "object": {"metadata": {}}}]}));
        let mut record = Record::new(&head, &recording, Timestamp::UNIX_EPOCH);
        record.add(Side::Request, Some(json!({"data": "x".repeat(MAX_BODY_BYTES)})));
        let event = line(&record);
        assert_eq!(event.get("requestObject"), None);
        assert_eq!(event["annotations"], json!({TRUNCATED: "true", "authorization.k8s.io/decision": "allow"}));
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
