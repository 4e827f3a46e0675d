//! Delete: at once, or a mark that the object's node, finalizers or planner act on.
//!
//! Defined by the Kubernetes API reference, `DeleteOptions`, and by what an API server does with pods and namespaces.

use flotilla_api::kinds::customresourcedefinition::CLEANUP_FINALIZER;
use flotilla_api::kinds::priorityclass::SYSTEM;
use flotilla_api::{Builtin, Change, Expect, Key, Kind, Reason, Status};
use flotilla_raft::{NodeId, Range};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::authorize::Attempt;
use super::settle::{Decision, Reads};
use super::write::{encode, text, with_revision};
use super::{Gate, List, ListQuery, User, Verb, object};
use crate::members::{ID_ANNOTATION, LEAVING_ANNOTATION, MEMBER_FINALIZER, NO_REPLICA_LABEL};

/// A pod that says nothing else has this long to end.
const DEFAULT_GRACE_SECONDS: i64 = 30;

/// Namespaces that are there as long as the cluster is.
const LASTING_NAMESPACES: &[&str] = &["default", "kube-system", "kube-public"];

/// What happens to what an object owns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Propagation {
    #[default]
    Background,
    Foreground,
    Orphan,
}

#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// Overrides the pod's own.
    pub grace_period_seconds: Option<i64>,
    pub propagation: Propagation,
    pub manager: String,
    /// Only the object with this uid.
    pub uid: Option<String>,
    /// Only the object as it was at this resourceVersion.
    pub resource_version: Option<String>,
    /// Check everything, delete nothing.
    pub dry_run: bool,
}

/// What became of an object that was to be deleted.
#[derive(Clone, Debug)]
pub struct Deleted {
    /// Whether it is gone; otherwise it is on its way.
    pub gone: bool,
    /// As it was when it went, or as it is now.
    pub object: Value,
}

enum Step {
    Remove,
    Mark(Value),
    /// It is already on its way.
    Nothing,
}

impl Gate {
    /// Deletes an object, or marks it for deletion.
    ///
    /// # Errors
    /// `Forbidden`, `NotFound`, `Conflict` if it is not the one that is meant, or why the store cannot be written.
    pub async fn delete(
        &self,
        user: &User,
        kind: &Kind,
        (namespace, name): (&str, &str),
        options: &DeleteOptions,
    ) -> Result<Deleted, Status> {
        let key = Self::key(kind, namespace, name)?;
        let decide = || {
            let allowed = self.authorize_delete(user, kind, &key).and_then(|()| keep_system_class(kind, &key));
            let decided = allowed.and_then(|()| self.decide_delete(user, kind, &key, options));
            Ok(decided.unwrap_or_else(Decision::Refuse))
        };
        let (deleted, revision) = self.settle(&mut Reads::default(), kind, decide).await?;
        Ok(Deleted { object: with_revision(deleted.object, revision), ..deleted })
    }

    /// Deletes all objects that match, or marks them; what they were, as of when they were listed.
    ///
    /// # Errors
    /// `Forbidden`, or why the store cannot be read or written. What was deleted until then is.
    pub async fn delete_collection(
        &self,
        user: &User,
        kind: &Kind,
        query: &ListQuery,
        options: &DeleteOptions,
    ) -> Result<List<Value>, Status> {
        let mut list = self.list_for(user, Verb::DeleteCollection, kind, query, object).await?;
        let listed = std::mem::take(&mut list.items);
        for one in listed {
            let key = Self::key(kind, text(&one, "/metadata/namespace"), text(&one, "/metadata/name"))?;
            let decide = || Ok(self.decide_delete(user, kind, &key, options).unwrap_or_else(Decision::Refuse));
            match self.settle(&mut Reads::default(), kind, decide).await {
                Ok((deleted, revision)) => list.items.push(with_revision(deleted.object, revision)),
                Err(status) if status.reason == Reason::NotFound => {}
                Err(status) => return Err(status),
            }
        }
        Ok(list)
    }

    fn authorize_delete(&self, user: &User, kind: &Kind, key: &Key) -> Result<(), Status> {
        // Only those who may not do everything are judged by what the object says.
        let stored = if user.is_master() { None } else { self.load(key)? };
        let seen = stored.as_ref().map(object).transpose()?;
        self.authorize(&Attempt {
            user,
            verb: Verb::Delete,
            kind,
            subresource: None,
            namespace: key.namespace(),
            name: key.name(),
            object: seen.as_ref(),
        })
    }

    /// What deleting an object comes to.
    pub(super) fn decide_delete(
        &self,
        user: &User,
        kind: &Kind,
        key: &Key,
        options: &DeleteOptions,
    ) -> Result<Decision<Deleted>, Status> {
        let stored = self.load(key)?;
        let old = stored.as_ref().map(object).transpose()?;
        let not_found = || Status::not_found(kind.collection(), key.name());
        let (stored, old) = stored.zip(old).ok_or_else(not_found)?;
        check_preconditions(kind, key, &old, options)?;
        if is_kind(kind, "namespaces") && LASTING_NAMESPACES.contains(&key.name()) {
            return Err(Status::new(
                Reason::Forbidden,
                format!("namespaces \"{}\" is forbidden: this namespace may not be deleted", key.name()),
            ));
        }
        let mut change = Change::new(&user.name, &options.manager);
        let is_member = kind.builtin == Some(Builtin::Node) && is_member(&old["metadata"]["annotations"]);
        if is_member && !is_forced(options) && old.pointer("/metadata/deletionTimestamp").is_none() {
            // Which must not be told to go at the same time.
            let (heir, revision) = self.heir_of(key)?;
            change = change.require(heir, Expect::ModRevision(revision));
        }
        let (gone, object, change) = match step(kind, old.clone(), options, Timestamp::now()) {
            Step::Nothing => (false, old, None),
            Step::Remove => (true, old, Some(change.remove(key.clone(), stored.mod_revision))),
            Step::Mark(marked) => {
                let change = change.update(key.clone(), stored.mod_revision, encode(&marked)?);
                (false, marked, Some(change))
            }
        };
        let deleted = Deleted { gone, object: kind.present(self.open(kind, key, object)?) };
        Ok(match change.filter(|_| !options.dry_run) {
            Some(change) => Decision::Write(change, deleted),
            None => Decision::Keep(deleted),
        })
    }
}

impl Gate {
    /// Another member that could take over from this one, as it was seen.
    ///
    /// # Errors
    /// `Forbidden` if there is none.
    fn heir_of(&self, key: &Key) -> Result<(Key, u64), Status> {
        let nodes = self.store().range(Range::prefix(key.collection().prefix())).map_err(Status::internal)?;
        for other in nodes.items.iter().filter(|other| other.key != *key) {
            if could_take_over(&object(other)?) {
                return Ok((other.key.clone(), other.mod_revision));
            }
        }
        Err(Status::new(
            Reason::Forbidden,
            format!(
                "nodes \"{}\" is forbidden: no other node could take over from it now: if it is the cluster's last node, stop \
                 its daemon and remove its data directory instead",
                key.name()
            ),
        ))
    }
}

/// Whether a Node is a member that is well, stays, and may have a replica.
fn could_take_over(node: &Value) -> bool {
    let (annotations, labels) = (&node["metadata"]["annotations"], &node["metadata"]["labels"]);
    let conditions = node.pointer("/status/conditions").and_then(Value::as_array);
    let ready = |one: &Value| one["type"] == "Ready" && one["status"] == "True";
    is_member(annotations)
        && annotations.get(LEAVING_ANNOTATION).is_none()
        && node.pointer("/metadata/deletionTimestamp").is_none()
        && labels.get(NO_REPLICA_LABEL).is_none()
        && conditions.is_some_and(|all| all.iter().any(ready))
}

/// Whether an object is to go whatever that does to others.
fn is_forced(options: &DeleteOptions) -> bool {
    options.grace_period_seconds == Some(0)
}

/// As upstream has it, the system's own priority classes go only with all others.
fn keep_system_class(kind: &Kind, key: &Key) -> Result<(), Status> {
    if kind.builtin != Some(Builtin::PriorityClass) || !SYSTEM.iter().any(|(name, _, _)| *name == key.name()) {
        return Ok(());
    }
    Err(Status::new(
        Reason::Forbidden,
        format!(
            "{} \"{}\" is forbidden: this is a system priority class and cannot be deleted",
            kind.collection(),
            key.name()
        ),
    ))
}

/// Whether the stored object is the one that is meant.
fn check_preconditions(kind: &Kind, key: &Key, object: &Value, options: &DeleteOptions) -> Result<(), Status> {
    let differs = |name: &str, wanted: &Option<String>, path: &str, perhaps: &str| {
        let (wanted, found) = (wanted.as_deref()?, text(object, path));
        (wanted != found).then(|| {
            format!(
                "the {name} in the precondition ({wanted}) does not match the {name} in record ({found}). The object \
                 might have been {perhaps}"
            )
        })
    };
    let recreated = "deleted and then recreated";
    let differs = differs("UID", &options.uid, "/metadata/uid", recreated)
        .or_else(|| differs("ResourceVersion", &options.resource_version, "/metadata/resourceVersion", "modified"));
    match differs {
        None => Ok(()),
        // Upstream says the kind here, not the resource.
        Some(why) => Err(Status::new(
            Reason::Conflict,
            format!("Operation cannot be fulfilled on {} \"{}\": {why}", kind.qualified(), key.name()),
        )),
    }
}

fn step(kind: &Kind, mut object: Value, options: &DeleteOptions, now: Timestamp) -> Step {
    let grace = grace_seconds(kind, &object, options);
    add_finalizer(&mut object, options.propagation);
    if kind.builtin == Some(Builtin::CustomResourceDefinition) {
        // It goes when its objects are gone; its planner sees to that.
        hold(&mut object, CLEANUP_FINALIZER);
    }
    if kind.builtin == Some(Builtin::Node) && is_member(&object["metadata"]["annotations"]) {
        // It goes when its vote has gone to others, unless there is no time for that; the leader sees to it.
        match is_forced(options) {
            false => {
                hold(&mut object, MEMBER_FINALIZER);
                // For leaders that know nothing of the finalizer.
                object["metadata"]["annotations"][LEAVING_ANNOTATION] = json!("true");
            }
            true => release(&mut object, MEMBER_FINALIZER),
        }
    }
    let held = ["/metadata/finalizers", "/spec/finalizers"]
        .iter()
        .any(|path| object.pointer(path).and_then(Value::as_array).is_some_and(|list| !list.is_empty()));
    if grace == 0 && !held {
        return Step::Remove;
    }
    let metadata = &mut object["metadata"];
    let marked = metadata.get("deletionTimestamp").is_some();
    let left = metadata.get("deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or_default();
    if marked && left <= grace {
        return Step::Nothing;
    }
    // A shorter grace counts from when the object was first told to go.
    let told = metadata.get("deletionTimestamp").and_then(Value::as_str).and_then(|at| at.parse::<Timestamp>().ok());
    let since = told.map_or(now, |at| at.saturating_sub(SignedDuration::from_secs(left)).unwrap_or(now));
    let at = since.saturating_add(SignedDuration::from_secs(grace)).unwrap_or(now);
    metadata["deletionTimestamp"] = json!(at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    if let (false, Some(generation)) = (marked, metadata.get("generation").and_then(Value::as_i64)) {
        // Whoever acts on the object shall act otherwise from now on.
        metadata["generation"] = json!(generation + 1);
    }
    if is_kind(kind, "namespaces") {
        object["status"]["phase"] = json!("Terminating");
    } else {
        metadata["deletionGracePeriodSeconds"] = json!(grace);
    }
    Step::Mark(object)
}

/// Seconds that the object is left to end by itself; 0 for everything but pods that a node runs.
fn grace_seconds(kind: &Kind, object: &Value, options: &DeleteOptions) -> i64 {
    let phase = object.pointer("/status/phase").and_then(Value::as_str).unwrap_or_default();
    let bound = object.pointer("/spec/nodeName").and_then(Value::as_str).is_some_and(|node| !node.is_empty());
    if !is_kind(kind, "pods") || !bound || matches!(phase, "Succeeded" | "Failed") {
        return 0;
    }
    let own = object.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64);
    match options.grace_period_seconds.or(own) {
        None => DEFAULT_GRACE_SECONDS,
        // As upstream takes what is no time.
        Some(..=-1) => 1,
        Some(seconds) => seconds,
    }
}

fn is_kind(kind: &Kind, plural: &str) -> bool {
    kind.group.is_empty() && kind.plural == plural
}

fn add_finalizer(object: &mut Value, propagation: Propagation) {
    let finalizer = match propagation {
        Propagation::Background => return,
        Propagation::Foreground => "foregroundDeletion",
        Propagation::Orphan => "orphan",
    };
    hold(object, finalizer);
}

fn hold(object: &mut Value, finalizer: &str) {
    match object["metadata"]["finalizers"].as_array_mut() {
        Some(list) if list.iter().any(|f| f == finalizer) => {}
        Some(list) => list.push(json!(finalizer)),
        None => object["metadata"]["finalizers"] = json!([finalizer]),
    }
}

fn release(object: &mut Value, finalizer: &str) {
    if let Some(list) = object["metadata"]["finalizers"].as_array_mut() {
        list.retain(|held| held != finalizer);
    }
}

fn is_member(annotations: &Value) -> bool {
    annotations.get(ID_ANNOTATION).and_then(Value::as_str).is_some_and(|id| id.parse::<NodeId>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_api::Registry;

    fn step_of(kind: &str, object: Value, options: &DeleteOptions) -> Step {
        step(&Registry::builtin().by_name(kind).unwrap(), object, options, Timestamp::UNIX_EPOCH)
    }

    fn running_pod() -> Value {
        json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 5}, "status": {"phase": "Running"}})
    }

    #[test]
    fn a_running_pod_is_left_its_grace() {
        let Step::Mark(pod) = step_of("pods", running_pod(), &DeleteOptions::default()) else { panic!("not marked") };
        assert_eq!(pod["metadata"]["deletionTimestamp"], "1970-01-01T00:00:05Z");
        assert_eq!(pod["metadata"]["deletionGracePeriodSeconds"], 5);
        let again = step_of("pods", pod.clone(), &DeleteOptions::default());
        assert!(matches!(again, Step::Nothing));
        let sooner = DeleteOptions { grace_period_seconds: Some(0), ..Default::default() };
        assert!(matches!(step_of("pods", pod, &sooner), Step::Remove));
    }

    #[test]
    fn a_pod_that_no_node_has_goes_at_once() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {}});
        assert!(matches!(step_of("pods", pod, &DeleteOptions::default()), Step::Remove));
    }

    #[test]
    fn an_object_that_is_told_to_go_is_of_another_generation_once() {
        let mut pod = running_pod();
        pod["metadata"]["generation"] = json!(4);
        let Step::Mark(pod) = step_of("pods", pod, &DeleteOptions::default()) else { panic!("not marked") };
        let hurry = DeleteOptions { grace_period_seconds: Some(2), ..Default::default() };
        let Step::Mark(hurried) = step_of("pods", pod.clone(), &hurry) else { panic!("not hurried") };
        assert_eq!([&pod, &hurried].map(|pod| &pod["metadata"]["generation"]), [&json!(5), &json!(5)]);
    }

    #[test]
    fn another_object_than_the_one_that_is_meant_stays() {
        let kind = Registry::builtin().by_name("deployments").unwrap();
        let key = Key::new(&kind.collection(), "a", "d");
        let object = json!({"metadata": {"uid": "u", "resourceVersion": "7"}});
        let said = |options| check_preconditions(&kind, &key, &object, &options).unwrap_err().message;
        let uid = DeleteOptions { uid: Some("w".into()), ..DeleteOptions::default() };
        assert_eq!(
            said(uid),
            "Operation cannot be fulfilled on Deployment.apps \"d\": the UID in the precondition (w) does not match the UID \
             in record (u). The object might have been deleted and then recreated"
        );
        let version = DeleteOptions { resource_version: Some("6".into()), ..DeleteOptions::default() };
        assert!(said(version).ends_with("in record (7). The object might have been modified"));
        let same = DeleteOptions { uid: Some("u".into()), ..DeleteOptions::default() };
        assert!(check_preconditions(&kind, &key, &object, &same).is_ok());
    }

    #[test]
    fn the_systems_priority_classes_stay() {
        let registry = Registry::builtin();
        let of = |kind: &str, name: &str| {
            let kind = registry.by_name(kind).unwrap();
            keep_system_class(&kind, &Key::new(&kind.collection(), "", name)).map_err(|status| status.message)
        };
        let words = "priorityclasses.scheduling.k8s.io \"system-node-critical\" is forbidden: this is a system priority \
                     class and cannot be deleted";
        assert_eq!(of("priorityclasses", "system-node-critical"), Err(words.into()));
        assert_eq!(of("priorityclasses", "mine"), Ok(()));
        assert_eq!(of("storageclasses", "system-node-critical"), Ok(()));
    }

    #[test]
    fn finalizers_hold_an_object() {
        let held = json!({"metadata": {"name": "c", "finalizers": ["x/y"]}});
        let Step::Mark(object) = step_of("configmaps", held, &DeleteOptions::default()) else { panic!("not marked") };
        assert_eq!(object["metadata"]["deletionGracePeriodSeconds"], 0);
        assert!(matches!(step_of("configmaps", object, &DeleteOptions::default()), Step::Nothing));
        let foreground = DeleteOptions { propagation: Propagation::Foreground, ..Default::default() };
        let Step::Mark(object) = step_of("deployments", json!({"metadata": {"name": "d"}}), &foreground) else {
            panic!("not marked")
        };
        assert_eq!(object["metadata"]["finalizers"], json!(["foregroundDeletion"]));
    }

    #[test]
    fn a_member_stays_until_it_is_out_of_the_group_unless_it_is_forced() {
        let node = json!({"metadata": {"name": "n", "annotations": {ID_ANNOTATION: "7"}}});
        let Step::Mark(marked) = step_of("nodes", node, &DeleteOptions::default()) else { panic!("not marked") };
        assert_eq!(marked["metadata"]["finalizers"], json!([MEMBER_FINALIZER]));
        let forced = DeleteOptions { grace_period_seconds: Some(0), ..Default::default() };
        assert!(matches!(step_of("nodes", marked, &forced), Step::Remove));
        let foreign = json!({"metadata": {"name": "virtual"}});
        assert!(matches!(step_of("nodes", foreign, &DeleteOptions::default()), Step::Remove));
    }

    #[test]
    fn only_a_member_that_is_well_and_stays_could_take_over() {
        let node = json!({"metadata": {"name": "n", "annotations": {ID_ANNOTATION: "7"}, "labels": {}},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        assert!(could_take_over(&node));
        for (path, value) in [
            ("/metadata/annotations", json!({})),
            ("/metadata/annotations", json!({ID_ANNOTATION: "seven"})),
            ("/metadata/annotations", json!({ID_ANNOTATION: "7", LEAVING_ANNOTATION: "true"})),
            ("/metadata/labels", json!({NO_REPLICA_LABEL: ""})),
            ("/metadata", json!({"annotations": {ID_ANNOTATION: "7"}, "deletionTimestamp": "2026-01-01T00:00:00Z"})),
            ("/status/conditions", json!([{"type": "Ready", "status": "Unknown"}])),
        ] {
            let mut other = node.clone();
            *other.pointer_mut(path).unwrap() = value;
            assert!(!could_take_over(&other), "{other}");
        }
    }

    #[test]
    fn a_namespace_ends_when_its_content_has() {
        let namespace =
            json!({"metadata": {"name": "n"}, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}});
        let Step::Mark(object) = step_of("namespaces", namespace, &DeleteOptions::default()) else {
            panic!("not marked")
        };
        assert_eq!(object["status"]["phase"], "Terminating");
        assert_eq!(object["metadata"].get("deletionGracePeriodSeconds"), None);
        assert!(matches!(step_of("namespaces", object, &DeleteOptions::default()), Step::Nothing));
    }
}
