//! Deployments: rollouts of ReplicaSets, one per version of the pod template.
//!
//! One pass looks at the Deployment and its ReplicaSets, decides what each set's size should be, and
//! writes all of it together with the Deployment's status in one Change.
//!
//! Invariant: a rolling update never plans more than replicas + maxSurge pods, and never takes
//! available pods below replicas − maxUnavailable.

mod history;
mod rollback;
mod rollout;
mod scale;
mod sets;
mod status;

use std::collections::BTreeMap;

use flotilla_api::k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet};
use flotilla_api::{Change, Key};

use crate::event::{self, Severity, Teller};
use crate::maker::Maker;
use crate::plan::{Context, Plan, change};
use crate::view::Stored;
use crate::{meta, selector};
use sets::Sets;

const MANAGER: &str = "deployment-controller";

/// Whether the Deployment looks at pods: one that recreates waits until the old ones are gone.
pub(crate) fn waits_for_pods(deployment: &Deployment) -> bool {
    recreates(&deployment.spec)
}

fn recreates(spec: &DeploymentSpec) -> bool {
    spec.strategy.as_ref().and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate")
}

fn replicas(spec: &DeploymentSpec) -> i32 {
    spec.replicas.unwrap_or(1).max(0)
}

/// What a pass decides, before it is written.
struct Pass<'a> {
    deployment: &'a Stored<Deployment>,
    spec: &'a DeploymentSpec,
    sets: Sets<'a>,
    /// The Deployment as it shall be: annotations and status.
    next: Deployment,
    /// Sizes that change.
    sizes: BTreeMap<Key, i32>,
    /// The set that is made, and what makes it.
    created: Option<(ReplicaSet, Maker)>,
    removed: Vec<&'a Stored<ReplicaSet>>,
    /// The set that is gone back from.
    failed: Option<Key>,
    told: Vec<(Severity, &'static str, String)>,
}

pub(crate) fn plan(key: &Key, cx: &mut Context<'_>) -> Plan {
    let mut plan = Plan::default();
    let Some(deployment) = cx.view.deployment(key) else { return plan };
    let spec = &deployment.spec;
    if selector::is_empty(&spec.selector) {
        return plan;
    }
    let sets = Sets::claim(deployment, spec, cx, &mut plan);
    let mut pass = Pass {
        deployment,
        spec,
        sets,
        next: deployment.object.clone(),
        sizes: BTreeMap::new(),
        created: None,
        removed: Vec::new(),
        failed: None,
        told: Vec::new(),
    };
    if !meta::is_deleting(&deployment.metadata) {
        pass.decide(cx, &mut plan);
    }
    pass.report(cx, &mut plan);
    let change = pass.write(cx);
    plan.add(change);
    plan
}

impl<'a> Pass<'a> {
    fn decide(&mut self, cx: &mut Context<'_>, plan: &mut Plan) {
        let paused = self.spec.paused == Some(true);
        self.note_pause(paused, cx.now);
        if paused || self.is_scaling() {
            // A paused Deployment keeps its versions but still follows its size.
            self.note_new_set(cx.now);
            self.scale();
            return;
        }
        if self.roll_back(cx.now) {
            return;
        }
        if self.sets.new.is_none() && (!recreates(self.spec) || self.old_pods_are_gone(cx)) {
            self.create_new_set(cx, plan);
        }
        self.note_new_set(cx.now);
        if recreates(self.spec) {
            self.recreate(cx);
        } else {
            self.roll();
        }
        self.trim_history();
    }

    /// The size a set shall have.
    fn size(&self, set: &Stored<ReplicaSet>) -> i32 {
        self.sizes.get(&set.key).copied().unwrap_or_else(|| sets::size(set))
    }

    fn resize(&mut self, set: &Stored<ReplicaSet>, size: i32) {
        let (before, size) = (self.size(set), size.max(0));
        if before == size {
            return;
        }
        let direction = if size > before { "up" } else { "down" };
        let message = format!("Scaled {direction} replica set {} from {before} to {size}", set.key.name());
        self.told.push((Severity::Normal, "ScalingReplicaSet", message));
        self.sizes.insert(set.key.clone(), size);
    }

    /// Everything decided, as one Change.
    fn write(&self, cx: &mut Context<'_>) -> Change {
        let mut change = change(MANAGER);
        for set in self.sets.all() {
            if self.removed.iter().any(|removed| removed.key == set.key) {
                change = change.remove(set.key.clone(), set.revision);
                continue;
            }
            let next = self.updated(set);
            if next != set.object {
                change = change.update(set.key.clone(), set.revision, meta::encode(&next));
            }
        }
        if let Some((created, maker)) = &self.created {
            change = maker.finish(maker.create_set(change, created));
        }
        if self.next != self.deployment.object {
            let bytes = meta::encode(&self.next);
            change = change.update(self.deployment.key.clone(), self.deployment.revision, bytes);
        } else if !change.writes.is_empty() {
            let expect = flotilla_api::Expect::ModRevision(self.deployment.revision);
            change = change.require(self.deployment.key.clone(), expect);
        }
        if change.writes.is_empty() {
            return change;
        }
        let about = event::reference(&self.deployment.object);
        for (severity, reason, message) in &self.told {
            let mut teller = Teller { component: MANAGER, now: cx.now, rng: cx.rng };
            change = teller.tell(change, &about, *severity, reason, message);
        }
        change
    }
}
