//! The ReplicaSets of a Deployment: which are its own, which is the current one.

use flotilla_api::Change;
use flotilla_api::k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet, ReplicaSetSpec};
use flotilla_api::k8s_openapi::api::core::v1::PodTemplateSpec;
use flotilla_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use jiff::Timestamp;

use super::rollback::FAILED;
use super::status::REFUSED;
use super::{MANAGER, Pass, recreates, replicas, rollout};
use crate::event::Severity;
use crate::maker::{Maker, REFUSED_RETRY_MS};
use crate::plan::{Context, Plan, change};
use crate::view::Stored;
use crate::{keys, meta, names, pods, selector};

pub(super) const HASH: &str = "pod-template-hash";
pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
pub(super) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
pub(super) const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations that describe one object and are not handed on to its ReplicaSets.
const OWN_ANNOTATIONS: [&str; 4] = ["kubectl.kubernetes.io/last-applied-configuration", REVISION, DESIRED, MAX];

pub(super) struct Sets<'a> {
    /// The set of the current template; the oldest if there are several.
    pub new: Option<&'a Stored<ReplicaSet>>,
    /// All others, oldest first.
    pub old: Vec<&'a Stored<ReplicaSet>>,
}

pub(super) fn size(set: &ReplicaSet) -> i32 {
    set.spec.replicas.unwrap_or(1).max(0)
}

pub(super) fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
}

pub(super) fn revision(meta: &ObjectMeta) -> i64 {
    meta::annotation(meta, REVISION).and_then(|revision| revision.parse().ok()).unwrap_or(0)
}

impl<'a> Sets<'a> {
    /// The sets of the Deployment. Orphans that match are among them, to be adopted with whatever else is written; own
    /// sets that do not match any more are released.
    pub fn claim(deployment: &Stored<Deployment>, spec: &DeploymentSpec, cx: &Context<'a>, plan: &mut Plan) -> Self {
        let uid = meta::uid(&deployment.metadata);
        let deleting = meta::is_deleting(&deployment.metadata);
        let matches = |set: &Stored<ReplicaSet>| selector::matches(&spec.selector, set.metadata.labels.as_ref());
        let mut owned = Vec::new();
        for set in cx.view.replica_sets_in(deployment.key.namespace()) {
            match meta::controller_of(&set.metadata) {
                Some(owner) if owner.uid == uid && matches(set) => owned.push(set),
                Some(owner) if owner.uid == uid && !deleting => plan.add(release(set, uid)),
                None if !deleting && !meta::is_deleting(&set.metadata) && matches(set) => owned.push(set),
                _ => {}
            }
        }
        owned.sort_by(|a, b| {
            (meta::created(&a.metadata), a.key.name()).cmp(&(meta::created(&b.metadata), b.key.name()))
        });
        let new = owned.iter().copied().find(|set| has_template(set, &spec.template));
        let old = owned.into_iter().filter(|set| new.is_none_or(|new| new.key != set.key)).collect();
        Self { new, old }
    }

    pub fn all(&self) -> impl Iterator<Item = &'a Stored<ReplicaSet>> + use<'a, '_> {
        self.old.iter().copied().chain(self.new)
    }

    pub fn total(&self) -> i32 {
        self.all().map(|set| size(set)).fold(0, i32::saturating_add)
    }
}

fn release(set: &Stored<ReplicaSet>, uid: &str) -> Change {
    let mut next = set.object.clone();
    if let Some(owners) = &mut next.metadata.owner_references {
        owners.retain(|owner| owner.uid != uid);
    }
    next.metadata.owner_references.take_if(|owners| owners.is_empty());
    change(MANAGER).update(set.key.clone(), set.revision, meta::encode(&next))
}

/// Whether the set runs this template, its hash label aside.
fn has_template(set: &ReplicaSet, template: &PodTemplateSpec) -> bool {
    let Some(theirs) = set.spec.template.as_ref() else { return false };
    theirs.spec == template.spec && same_metadata(theirs.metadata.as_ref(), template.metadata.as_ref())
}

fn same_metadata(set: Option<&ObjectMeta>, deployment: Option<&ObjectMeta>) -> bool {
    let labels = |meta: Option<&ObjectMeta>| {
        let mut labels = meta.and_then(|meta| meta.labels.clone()).unwrap_or_default();
        labels.remove(HASH);
        labels
    };
    let annotations = |meta: Option<&ObjectMeta>| meta.and_then(|meta| meta.annotations.clone()).unwrap_or_default();
    let finalizers = |meta: Option<&ObjectMeta>| meta.and_then(|meta| meta.finalizers.clone()).unwrap_or_default();
    labels(set) == labels(deployment)
        && annotations(set) == annotations(deployment)
        && finalizers(set) == finalizers(deployment)
}

impl Pass<'_> {
    /// Begins a rollout: a set for the template, already as large as the rules allow.
    pub(super) fn create_new_set(&mut self, cx: &mut Context<'_>, plan: &mut Plan) {
        let namespace = self.deployment.key.namespace().to_owned();
        let collisions = self.next.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
        let hash = names::template_hash(&self.spec.template, collisions);
        let name = format!("{}-{hash}", self.deployment.key.name());
        if cx.view.meta(&keys::replica_set(&namespace, &name)).is_some() {
            // Another template of the same hash, or someone else's set: the next pass hashes differently.
            self.next.status.get_or_insert_default().collision_count = Some(collisions.saturating_add(1));
            return;
        }
        let size = if recreates(self.spec) { replicas(self.spec) } else { self.room_for_new(0) };
        let mut set = self.new_set(&namespace, name.clone(), &hash, size, cx);
        let admitted = Maker::new(cx.view, &namespace).and_then(|mut maker| maker.admit_set(&set).map(|()| maker));
        let maker = match admitted {
            Ok(maker) => maker,
            Err(why) => {
                self.note_refusal(&name, &why, cx.now);
                plan.wake(meta::plus_ms(cx.now, REFUSED_RETRY_MS));
                return;
            }
        };
        let revision = self.next_revision();
        meta::set(&mut set.metadata.annotations, REVISION, revision.to_string());
        self.annotate_size(&mut set.metadata);
        meta::set(&mut self.next.metadata.annotations, REVISION, revision.to_string());
        self.note_progress("True", "NewReplicaSetCreated", &format!("Created new replica set \"{name}\""), cx.now);
        if size > 0 {
            let message = format!("Scaled up replica set {name} from 0 to {size}");
            self.told.push((Severity::Normal, "ScalingReplicaSet", message));
        }
        self.created = Some((set, maker));
    }

    /// Says why the set cannot be made, once.
    fn note_refusal(&mut self, name: &str, why: &str, now: Timestamp) {
        let message = format!("Failed to create new replica set \"{name}\": {why}");
        if self.progress().and_then(|progress| progress.message.as_ref()) != Some(&message) {
            self.note_progress("False", REFUSED, &message, now);
            self.told.push((Severity::Warning, REFUSED, message));
        }
    }

    fn new_set(&self, namespace: &str, name: String, hash: &str, size: i32, cx: &mut Context<'_>) -> ReplicaSet {
        let mut template = self.spec.template.clone();
        meta::set(&mut template.metadata.get_or_insert_default().labels, HASH, hash);
        let mut selector = self.spec.selector.clone();
        meta::set(&mut selector.match_labels, HASH, hash);
        let mut metadata = meta::mint(namespace, name, cx.now, cx.rng);
        metadata.labels = template.metadata.as_ref().and_then(|metadata| metadata.labels.clone());
        metadata.annotations = self.handed_on();
        metadata.owner_references = Some(vec![meta::controller_reference(&self.deployment.object)]);
        let spec = ReplicaSetSpec {
            replicas: Some(size),
            min_ready_seconds: self.spec.min_ready_seconds,
            selector,
            template: Some(template),
        };
        ReplicaSet { metadata, spec, status: Some(Default::default()) }
    }

    fn handed_on(&self) -> Option<std::collections::BTreeMap<String, String>> {
        let annotations = self.deployment.metadata.annotations.iter().flatten();
        let kept = annotations.filter(|(key, _)| !OWN_ANNOTATIONS.contains(&key.as_str()));
        Some(kept.map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    fn next_revision(&self) -> i64 {
        self.sets.old.iter().map(|set| revision(&set.metadata)).max().unwrap_or(0) + 1
    }

    fn annotate_size(&self, metadata: &mut ObjectMeta) {
        let replicas = replicas(self.spec);
        let surge = rollout::bounds(self.spec).surge;
        meta::set(&mut metadata.annotations, DESIRED, replicas.to_string());
        meta::set(&mut metadata.annotations, MAX, replicas.saturating_add(surge).to_string());
    }

    /// A set as it shall be: whose it is, its size, and what it inherits from the Deployment.
    pub(super) fn updated(&self, set: &Stored<ReplicaSet>) -> ReplicaSet {
        let mut next = set.object.clone();
        if meta::controller_of(&next.metadata).is_none() {
            let owner = meta::controller_reference(&self.deployment.object);
            next.metadata.owner_references.get_or_insert_default().push(owner);
        }
        let is_new = self.sets.new.is_some_and(|new| new.key == set.key);
        if let Some(size) = self.sizes.get(&set.key) {
            next.spec.replicas = Some(*size);
        }
        let ours = !meta::is_deleting(&self.deployment.metadata);
        if ours && (is_new || super::sets::size(&next) > 0) {
            self.annotate_size(&mut next.metadata);
        }
        if ours && is_new {
            next.spec.min_ready_seconds = self.spec.min_ready_seconds;
            self.inherit(set, &mut next);
        }
        if self.failed.as_ref() == Some(&set.key) {
            meta::set(&mut next.metadata.annotations, FAILED, "true");
        } else if is_new
            && self.is_complete()
            && let Some(annotations) = &mut next.metadata.annotations
        {
            annotations.remove(FAILED);
        }
        if next.spec != set.object.spec {
            meta::bump_generation(&mut next.metadata);
        }
        next
    }

    /// The current set carries the highest revision and the Deployment's annotations.
    fn inherit(&self, set: &Stored<ReplicaSet>, next: &mut ReplicaSet) {
        for (key, value) in self.handed_on().into_iter().flatten() {
            meta::set(&mut next.metadata.annotations, &key, value);
        }
        let revision = self.next_revision().max(revision(&set.metadata));
        meta::set(&mut next.metadata.annotations, REVISION, revision.to_string());
    }

    /// The current set and the Deployment agree on the revision.
    pub(super) fn note_revision(&mut self) {
        if let Some(new) = self.sets.new {
            let revision = self.next_revision().max(revision(&new.metadata));
            meta::set(&mut self.next.metadata.annotations, REVISION, revision.to_string());
        }
    }

    /// Whether no pod of an old version is left that could still run.
    pub(super) fn old_pods_are_gone(&self, cx: &Context<'_>) -> bool {
        self.sets.old.iter().all(|set| {
            let uid = meta::uid(&set.metadata);
            size(set) == 0 && cx.view.pods_of(uid).all(|pod| pods::is_finished(pod))
        })
    }
}
