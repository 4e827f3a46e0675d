//! Apply: create, or merge a manifest into what exists.
//!
//! The manifest last applied is remembered in an annotation, upstream's own, so that a field which the user set before
//! and leaves out now is removed, while fields that others set are kept. Maps are merged, lists are replaced.

use std::collections::HashSet;
use std::sync::Arc;

use flotilla_api::admit::{self, Parsed, Subresource};
use flotilla_api::{Kind, Reason, Status};
use serde_json::{Map, Value, json};

use super::settle::{Decision, Reads};
use super::write::{Written, text, with_revision};
use super::{Gate, How, User, WriteOptions};

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Created,
    Configured,
    Unchanged,
}

/// What became of one object of a manifest.
#[derive(Debug)]
pub struct Applied {
    pub kind: Arc<Kind>,
    pub outcome: Outcome,
    pub object: Value,
}

impl Gate {
    /// Applies every object of a manifest. All are checked before the first is stored.
    ///
    /// # Errors
    /// Those of [`Gate::create`] and [`Gate::update`]; a manifest that cannot be read names its line.
    pub async fn apply(
        &self,
        user: &User,
        manifest: &[u8],
        namespace: &str,
        create_only: bool,
        options: &WriteOptions,
    ) -> Result<Vec<Applied>, Status> {
        let mut objects = admit::parse(manifest, &self.registry())?;
        for parsed in &mut objects {
            place(parsed, namespace);
        }
        let mut reads = Reads::default();
        let checked = self.check(&mut reads, user, &objects, create_only, options).await?;
        if options.dry_run {
            return Ok(checked.into_iter().flatten().filter_map(Checked::kept).collect());
        }
        let mut applied = Vec::with_capacity(objects.len());
        for (parsed, mut checked) in objects.iter().zip(checked) {
            if checked.is_none() {
                // It hangs on what this request has just written, which need not be seen here yet.
                reads.expire();
            }
            let decide = || match checked.take() {
                Some(checked) => Ok(checked.decision),
                None => self.decide_apply(user, parsed, create_only, options),
            };
            let ((outcome, object), revision) = self.settle(&mut reads, &parsed.kind, decide).await?;
            applied.push(Applied { kind: parsed.kind.clone(), outcome, object: with_revision(object, revision) });
        }
        Ok(applied)
    }

    /// Decides on each object before the first is stored. Objects that stand twice in a manifest, or in a namespace that
    /// it makes, are left undecided: what they come to is known only when those before them are stored.
    async fn check(
        &self,
        reads: &mut Reads,
        user: &User,
        objects: &[Parsed],
        create_only: bool,
        options: &WriteOptions,
    ) -> Result<Vec<Option<Checked>>, Status> {
        let mut made = Vec::new();
        let mut seen = HashSet::new();
        let mut checked = Vec::with_capacity(objects.len());
        for parsed in objects {
            let (namespace, name) = place_of(parsed);
            let decide = || self.decide_apply(user, parsed, create_only, options);
            checked.push(match self.decide(reads, decide).await? {
                Decision::Refuse(status) if status.reason == Reason::NotFound && made.contains(&namespace) => None,
                Decision::Refuse(status) => return Err(status),
                decision => Some(Checked { kind: parsed.kind.clone(), decision })
                    .filter(|_| seen.insert((parsed.kind.qualified(), namespace, name)) || name.is_empty()),
            });
            if parsed.kind.kind == "Namespace" {
                made.push(name);
            }
        }
        Ok(checked)
    }

    fn decide_apply(
        &self,
        user: &User,
        parsed: &Parsed,
        create_only: bool,
        options: &WriteOptions,
    ) -> Result<Decision<(Outcome, Value)>, Status> {
        let kind = &parsed.kind;
        let (namespace, name) = place_of(parsed);
        let created = |decision: Decision<Written>| decision.map(|written| (Outcome::Created, written.object));
        if create_only {
            return self.decide_create(user, kind, &parsed.object, options).map(created);
        }
        let remembered = remember(&parsed.object);
        let key = Self::key(kind, namespace, name)?;
        if name.is_empty() || self.load(&key)?.is_none() {
            return self.decide_create(user, kind, &remembered, options).map(created);
        }
        let mut before = Value::Null;
        let mut edit = |object: &mut Value| {
            before = object.clone();
            merge(object, &last_applied(object), &remembered);
            Ok(())
        };
        let decision = self.decide_update(user, kind, &key, How::update(Subresource::None), options, &mut edit);
        Ok(decision.map(|written| match written.object == before {
            true => (Outcome::Unchanged, written.object),
            false => (Outcome::Configured, written.object),
        }))
    }
}

/// A decision on an object of a manifest that is not stored yet.
struct Checked {
    kind: Arc<Kind>,
    decision: Decision<(Outcome, Value)>,
}

impl Checked {
    fn kept(self) -> Option<Applied> {
        match self.decision {
            Decision::Keep((outcome, object)) => Some(Applied { kind: self.kind, outcome, object }),
            _ => None,
        }
    }
}

/// Namespace and name, as the manifest has them.
fn place_of(parsed: &Parsed) -> (&str, &str) {
    (text(&parsed.object, "/metadata/namespace"), text(&parsed.object, "/metadata/name"))
}

/// Puts an object that names no namespace into this one.
fn place(parsed: &mut Parsed, namespace: &str) {
    let kind = parsed.kind.clone();
    let Some(metadata) = parsed.object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    if kind.is_namespaced() && metadata.get("namespace").is_none_or(|named| named == "") {
        metadata.insert("namespace".into(), json!(Gate::namespace(&kind, namespace)));
    }
}

/// The manifest with itself in the annotation, but for the revision that it may insist on: that holds only this once.
fn remember(manifest: &Value) -> Value {
    let mut bare = manifest.clone();
    let revision =
        bare.pointer_mut("/metadata").and_then(Value::as_object_mut).and_then(|all| all.remove("resourceVersion"));
    if let Some(annotations) = bare.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.remove(LAST_APPLIED);
    }
    if let Some(object) = bare.as_object_mut() {
        object.remove("status");
    }
    let mut manifest = bare.clone();
    if manifest.get("metadata").is_some_and(Value::is_object) {
        if !manifest["metadata"]["annotations"].is_object() {
            manifest["metadata"]["annotations"] = json!({});
        }
        manifest["metadata"]["annotations"][LAST_APPLIED] = Value::String(bare.to_string());
        if let Some(revision) = revision {
            manifest["metadata"]["resourceVersion"] = revision;
        }
    }
    manifest
}

fn last_applied(object: &Value) -> Value {
    object
        .pointer("/metadata/annotations")
        .and_then(|annotations| annotations.get(LAST_APPLIED))
        .and_then(Value::as_str)
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or(Value::Null)
}

/// A three-way merge: what `last` had and `new` lacks goes, what `new` has comes, the rest stays.
fn merge(live: &mut Value, last: &Value, new: &Value) {
    let (Some(live_map), Some(new_map)) = (live.as_object_mut(), new.as_object()) else {
        *live = new.clone();
        return;
    };
    let nothing = Map::new();
    let last_map = last.as_object().unwrap_or(&nothing);
    for field in last_map.keys().filter(|field| !new_map.contains_key(*field)) {
        live_map.remove(field);
    }
    for (field, value) in new_map {
        match live_map.get_mut(field) {
            Some(existing) => merge(existing, last_map.get(field).unwrap_or(&Value::Null), value),
            None => _ = live_map.insert(field.clone(), value.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_is_insisted_on_once() {
        let manifest = remember(&json!({"metadata": {"name": "a", "resourceVersion": "7"}}));
        assert_eq!(manifest["metadata"]["resourceVersion"], "7");
        assert_eq!(last_applied(&manifest), json!({"metadata": {"name": "a"}}));
    }

    #[test]
    fn fields_of_others_stay_and_fields_left_out_go() {
        let mut live = json!({"a": {"mine": 1, "theirs": 2, "dropped": 3}, "list": [1, 2]});
        let last = json!({"a": {"mine": 0, "dropped": 3}, "list": [1]});
        merge(&mut live, &last, &json!({"a": {"mine": 5}, "list": [9]}));
        assert_eq!(live, json!({"a": {"mine": 5, "theirs": 2}, "list": [9]}));
    }

    #[test]
    fn a_manifest_remembers_itself_once() {
        let first = remember(&json!({"metadata": {"name": "x"}, "status": {"a": 1}}));
        let second = remember(&first);
        assert_eq!(last_applied(&first), json!({"metadata": {"name": "x"}}));
        assert_eq!(last_applied(&second)["metadata"]["name"], "x");
        assert!(second.get("status").is_none());
    }
}
