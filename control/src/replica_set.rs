//! ReplicaSets, and ReplicationControllers, which differ in form only: so many pods of a template, no more and no fewer.
//!
//! Invariant: pods that finished or were told to go do not count; they are replaced.
//! Invariant: only pods that no other controller owns are adopted.

use bytes::Bytes;
use flotilla_api::k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetSpec, ReplicaSetStatus};
use flotilla_api::k8s_openapi::api::core::v1::{
    ObjectReference, ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
};
use flotilla_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use flotilla_api::kinds::replicationcontroller;
use flotilla_api::{Change, Expect, Key};

use crate::event::{self, Teller};
use crate::maker::{Maker, REFUSED_RETRY_MS};
use crate::plan::{Context, Plan, change};
use crate::view::{PodEntry, Stored};
use crate::{condition, deletion, meta, pods, preference, selector};

/// Pods created or deleted for one set by one plan.
const BURST_PODS: usize = 500;
/// Pods of one set that wait for a node at most.
const MAX_UNSCHEDULED: usize = 500;
/// Pods created by one Change, each with its Event.
const CREATED_PER_CHANGE: usize = 50;

pub(crate) fn plan(key: &Key, cx: &mut Context<'_>) -> Plan {
    let Some(set) = cx.view.replica_set(key) else { return Plan::default() };
    let pass = Pass {
        set,
        spec: &set.spec,
        owner: meta::controller_reference(&set.object),
        about: event::reference(&set.object),
        manager: "replicaset-controller",
        encode: &|next| meta::encode(next),
    };
    pass.plan(cx)
}

pub(crate) fn plan_controller(key: &Key, cx: &mut Context<'_>) -> Plan {
    let Some(controller) = cx.view.replication_controller(key) else { return Plan::default() };
    let set = Stored { key: key.clone(), revision: controller.revision, object: as_set(&controller.object) };
    let encode = |next: &ReplicaSet| {
        let status = next.status.as_ref().map(as_controller_status);
        meta::encode(&ReplicationController { status, ..controller.object.clone() })
    };
    let pass = Pass {
        set: &set,
        spec: &set.spec,
        owner: meta::controller_reference(&controller.object),
        about: event::reference(&controller.object),
        manager: "replication-controller",
        encode: &encode,
    };
    pass.plan(cx)
}

/// A controller in the form of a set.
fn as_set(controller: &ReplicationController) -> ReplicaSet {
    let spec = controller.spec.clone().unwrap_or_default();
    let status = controller.status.clone().map(|status| ReplicaSetStatus {
        replicas: status.replicas,
        fully_labeled_replicas: status.fully_labeled_replicas,
        ready_replicas: status.ready_replicas,
        available_replicas: status.available_replicas,
        observed_generation: status.observed_generation,
        terminating_replicas: None,
        conditions: condition::convert(status.conditions),
    });
    ReplicaSet {
        metadata: controller.metadata.clone(),
        spec: ReplicaSetSpec {
            replicas: spec.replicas,
            min_ready_seconds: spec.min_ready_seconds,
            selector: replicationcontroller::selector(controller),
            template: spec.template,
        },
        status,
    }
}

fn as_controller_status(status: &ReplicaSetStatus) -> ReplicationControllerStatus {
    ReplicationControllerStatus {
        replicas: status.replicas,
        fully_labeled_replicas: status.fully_labeled_replicas,
        ready_replicas: status.ready_replicas,
        available_replicas: status.available_replicas,
        observed_generation: status.observed_generation,
        conditions: condition::convert::<_, ReplicationControllerCondition>(status.conditions.clone()),
    }
}

/// One look at a set.
struct Pass<'a> {
    set: &'a Stored<ReplicaSet>,
    spec: &'a ReplicaSetSpec,
    /// How its pods refer to it.
    owner: OwnerReference,
    /// How Events refer to it.
    about: ObjectReference,
    manager: &'static str,
    /// The stored form of the object with another status.
    encode: &'a dyn Fn(&ReplicaSet) -> Bytes,
}

impl Pass<'_> {
    fn change(&self) -> Change {
        change(self.manager)
    }

    fn plan(&self, cx: &mut Context<'_>) -> Plan {
        let mut plan = Plan::default();
        if selector::is_empty(&self.spec.selector) {
            return plan;
        }
        let owned = self.claim(cx, &mut plan);
        let active: Vec<&PodEntry> = owned.iter().copied().filter(|pod| pods::is_active(pod)).collect();
        let mut failure = None;
        if !meta::is_deleting(&self.set.metadata) {
            let wanted = usize::try_from(self.spec.replicas.unwrap_or(1)).unwrap_or(0);
            if active.len() < wanted {
                failure = self.create_pods(wanted - active.len(), cx, &mut plan).err();
            } else if active.len() > wanted {
                self.delete_pods(&active, active.len() - wanted, cx, &mut plan);
            }
        }
        if failure.is_some() {
            plan.wake(meta::plus_ms(cx.now, REFUSED_RETRY_MS));
        }
        self.update_status(&owned, failure, cx, &mut plan);
        plan
    }

    /// The pods of the set. Orphans that match are adopted, own pods that do not match any more released.
    fn claim<'v>(&self, cx: &Context<'v>, plan: &mut Plan) -> Vec<&'v PodEntry> {
        let set = self.set;
        let uid = meta::uid(&set.metadata);
        let matches = |pod: &PodEntry| selector::matches(&self.spec.selector, pod.metadata.labels.as_ref());
        let owned = |pod: &PodEntry| meta::is_controlled_by(&pod.metadata, uid);
        let mut claimed = Vec::new();
        for pod in cx.view.pods_of(uid).filter(|pod| owned(pod)) {
            if matches(pod) {
                claimed.push(pod);
            } else if !meta::is_deleting(&set.metadata) && !meta::is_deleting(&pod.metadata) {
                plan.add(self.release(pod, uid));
            }
        }
        if meta::is_deleting(&set.metadata) {
            return claimed;
        }
        let orphans = cx.view.loose_pods_in(set.key.namespace()).filter(|pod| pods::is_active(pod));
        for pod in orphans.filter(|pod| matches(pod)) {
            plan.add(self.adopt(pod));
            claimed.push(pod);
        }
        claimed
    }

    fn adopt(&self, pod: &PodEntry) -> Change {
        let mut next = pod.whole();
        next.metadata.owner_references.get_or_insert_default().push(self.owner.clone());
        let change = self.change().require(self.set.key.clone(), Expect::Exists);
        change.update(pod.key.clone(), pod.revision, meta::encode(&next))
    }

    fn release(&self, pod: &PodEntry, uid: &str) -> Change {
        let mut next = pod.whole();
        if let Some(owners) = &mut next.metadata.owner_references {
            owners.retain(|owner| owner.uid != uid);
        }
        next.metadata.owner_references.take_if(|owners| owners.is_empty());
        self.change().update(pod.key.clone(), pod.revision, meta::encode(&next))
    }

    fn create_pods(&self, missing: usize, cx: &mut Context<'_>, plan: &mut Plan) -> Result<(), String> {
        let set = self.set;
        let namespace = set.key.namespace();
        let Some(template) = &self.spec.template else { return Err("the set has no pod template".into()) };
        let mut maker = Maker::new(cx.view, namespace)?;
        let prefix = format!("{}-", set.key.name());
        // Pods that no node has room for are no use; more of them come when these have found theirs.
        let uid = set.object.metadata.uid.as_deref().unwrap_or_default();
        let homeless = cx.view.pods_of(uid).filter(|pod| pods::node_name(pod).is_none()).count();
        let mut left = missing.min(BURST_PODS).min(MAX_UNSCHEDULED.saturating_sub(homeless));
        let mut refused = None;
        while left > 0 && refused.is_none() {
            let batch = left.min(CREATED_PER_CHANGE);
            left -= batch;
            // Not its revision: the set's status may be written beside this. Too many are deleted again.
            let mut change = self.change().require(set.key.clone(), Expect::Exists);
            for _ in 0..batch {
                let mut pod = pods::from_template(template, namespace, &prefix, self.owner.clone(), cx);
                if let Err(why) = maker.admit_pod(&mut pod, cx) {
                    refused = Some(why);
                    break;
                }
                change = maker.create_pod(change, &pod);
                let mut teller = Teller { component: self.manager, now: cx.now, rng: cx.rng };
                let message = format!("Created pod: {}", meta::name(&pod.metadata));
                change = teller.normal(change, &self.about, "SuccessfulCreate", &message);
            }
            plan.add(maker.finish(change));
        }
        refused.map_or(Ok(()), Err)
    }

    fn delete_pods(&self, active: &[&PodEntry], excess: usize, cx: &mut Context<'_>, plan: &mut Plan) {
        for pod in preference::least_missed(active).into_iter().take(excess.min(BURST_PODS)) {
            let (change, _) = deletion::delete_pod(self.change(), pod, cx.now);
            let mut teller = Teller { component: self.manager, now: cx.now, rng: cx.rng };
            let message = format!("Deleted pod: {}", pod.key.name());
            plan.add(teller.normal(change, &self.about, "SuccessfulDelete", &message));
        }
    }

    fn update_status(&self, owned: &[&PodEntry], failure: Option<String>, cx: &mut Context<'_>, plan: &mut Plan) {
        let (set, spec) = (self.set, self.spec);
        let min_ready = spec.min_ready_seconds.unwrap_or(0);
        let template = spec.template.as_ref().and_then(|template| template.metadata.as_ref()?.labels.as_ref());
        let active = || owned.iter().filter(|pod| pods::is_active(pod));
        let labeled = |pod: &PodEntry| {
            let labels = pod.metadata.labels.as_ref();
            template.into_iter().flatten().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
        };
        let available = active().filter_map(|pod| pods::available_at(pod, min_ready));
        let (past, future): (Vec<_>, Vec<_>) = available.partition(|at| *at <= cx.now);
        if let Some(at) = future.into_iter().min() {
            plan.wake(at);
        }
        let terminating =
            owned.iter().filter(|pod| meta::is_deleting(&pod.metadata) && !pods::is_finished(pod)).count();
        let mut next = set.object.clone();
        let status = next.status.get_or_insert_default();
        status.replicas = count(active().count());
        status.fully_labeled_replicas = meta::unless_zero(count(active().filter(|pod| labeled(pod)).count()));
        status.ready_replicas = meta::unless_zero(count(active().filter(|pod| pods::is_ready(pod)).count()));
        status.available_replicas = meta::unless_zero(count(past.len()));
        status.terminating_replicas = Some(count(terminating));
        status.observed_generation = set.metadata.generation;
        let mut told = None;
        match failure {
            Some(message) => {
                let conditions = &mut status.conditions;
                let before = condition::find(conditions.as_ref(), "ReplicaFailure").and_then(|c| c.message.clone());
                // The name of a pod that was never made is no news.
                let message = before.filter(|before| unnamed(before) == unnamed(&message)).unwrap_or(message);
                let news = condition::set(conditions, "ReplicaFailure", "True", "FailedCreate", &message, cx.now);
                told = news.then_some(message);
            }
            None => condition::remove(&mut status.conditions, "ReplicaFailure"),
        }
        if next == set.object {
            return;
        }
        let after = (self.encode)(&next);
        if after == (self.encode)(&set.object) {
            return;
        }
        let mut change = self.change().update(set.key.clone(), set.revision, after);
        if let Some(message) = told {
            let mut teller = Teller { component: self.manager, now: cx.now, rng: cx.rng };
            let message = format!("Error creating: {message}");
            change = teller.warning(change, &self.about, "FailedCreate", &message);
        }
        plan.add(change);
    }
}

/// A message without the first name in it.
fn unnamed(message: &str) -> (&str, &str) {
    let (head, rest) = message.split_once('"').unwrap_or((message, ""));
    (head, rest.split_once('"').map_or("", |(_, tail)| tail))
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}
