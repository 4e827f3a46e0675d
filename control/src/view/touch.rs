//! Which Work an object asks for when it appears, changes or goes.

use flotilla_api::Key;
use flotilla_api::account::{self, DEFAULT, ROOT_CA};
use flotilla_api::k8s_openapi::api::core::v1::PodTemplateSpec;
use flotilla_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use flotilla_api::kinds::{FLOTILLA_GROUP, replicationcontroller};

use super::View;
use super::index::owner_uids;
use super::uid::Uid;
use crate::work::Work;
use crate::{address, budget, deployment, garbage, job, keys, meta, node, pods, selector};

impl View {
    /// Marks what depends on the object as it now stands in the View. Called before and after each
    /// change, so that both its old and its new relations are looked at.
    pub(super) fn touch(&mut self, key: &Key) {
        let Some((meta, _)) = self.meta(key) else { return };
        let mut works = self.relations(key, meta);
        works.extend(self.by_kind(key, meta));
        self.dirty.extend(works);
    }

    fn by_kind(&self, key: &Key, meta: &ObjectMeta) -> Vec<Work> {
        match (key.group(), key.resource()) {
            ("", "pods") => self.of_pod(key, meta),
            ("", "nodes") => vec![Work::Nodes, Work::Evict(key.name().to_owned())],
            ("", "serviceaccounts") => self.of_account(key),
            ("", "configmaps") if key.name() == ROOT_CA => vec![Work::Namespace(key.namespace().to_owned())],
            (FLOTILLA_GROUP, "clusters") => {
                self.tables.namespaces.keys().map(|key| Work::Namespace(key.name().to_owned())).collect()
            }
            ("", "namespaces") => vec![Work::Namespace(key.name().to_owned())],
            ("apps", "replicasets") => self.of_replica_set(key, meta),
            ("apps", "deployments") => vec![Work::Deployment(key.clone())],
            ("batch", "jobs") => vec![Work::Job(key.clone())],
            (keys::EXTENSIONS, keys::DEFINITIONS) => self.of_definition(key),
            ("", "replicationcontrollers") => vec![Work::ReplicationController(key.clone())],
            ("", "services") => {
                let service = self.value(key).unwrap_or_default();
                address::addresses(&service).map(|address| Work::Address(keys::ip_address(address))).collect()
            }
            ("networking.k8s.io", "ipaddresses") => vec![Work::Address(key.clone())],
            ("networking.k8s.io", "servicecidrs") => vec![Work::ServiceRange],
            ("scheduling.k8s.io", "priorityclasses") => vec![Work::PriorityClasses],
            ("policy", "poddisruptionbudgets") => vec![Work::Budget(key.clone())],
            _ => Vec::new(),
        }
    }

    /// What any object may ask for: its owners, its dependents, its finalizers, its namespace.
    fn relations(&self, key: &Key, meta: &ObjectMeta) -> Vec<Work> {
        let mut works = Vec::new();
        if meta.owner_references.is_some() || garbage::has_finalizer(meta) {
            works.push(Work::Garbage(key.clone()));
        }
        for owner in owner_uids(meta) {
            let waiting =
                self.key_of(owner).filter(|key| self.meta(key).is_some_and(|(meta, _)| meta::is_deleting(meta)));
            works.extend(waiting.map(|key| Work::Garbage(key.clone())));
        }
        if key.group().contains('.') {
            let name = format!("{}.{}", key.resource(), key.group());
            let ending = self.definition(&name).filter(|found| meta::is_deleting(&found.object.metadata));
            works.extend(ending.map(|_| Work::Definition(name)));
        }
        let namespace = key.namespace();
        if self.namespace(namespace).is_some_and(|found| meta::is_deleting(&found.object.metadata)) {
            works.push(Work::Namespace(namespace.to_owned()));
        }
        if !namespace.is_empty() {
            works.extend(self.quotas_in(namespace).map(|quota| Work::Quota(quota.key.clone())));
        }
        works
    }

    /// Those whose pods run as it may wait for it.
    fn of_account(&self, key: &Key) -> Vec<Work> {
        let namespace = key.namespace();
        if key.name() == DEFAULT {
            return vec![Work::Namespace(namespace.to_owned())];
        }
        let runs_as = |template: Option<&PodTemplateSpec>| {
            template.and_then(|template| template.spec.as_ref()).is_some_and(|spec| account::name(spec) == key.name())
        };
        let sets = self.replica_sets_in(namespace).filter(|set| runs_as(set.spec.template.as_ref()));
        let jobs = self.jobs_in(namespace).filter(|job| runs_as(job.spec.as_ref().map(|spec| &spec.template)));
        let controllers = self.replication_controllers_in(namespace);
        let controllers = controllers.filter(|found| runs_as(found.spec.as_ref().and_then(|s| s.template.as_ref())));
        let mut works: Vec<Work> = sets.map(|set| Work::ReplicaSet(set.key.clone())).collect();
        works.extend(jobs.map(|job| Work::Job(job.key.clone())));
        works.extend(controllers.map(|found| Work::ReplicationController(found.key.clone())));
        works
    }

    /// The others of its group may want the names that it has.
    fn of_definition(&self, key: &Key) -> Vec<Work> {
        let Some(definition) = self.definitions.get(key) else { return Vec::new() };
        let group = self.definitions_of(&definition.object.spec.group);
        group.map(|other| Work::Definition(other.key.name().to_owned())).collect()
    }

    fn of_pod(&self, key: &Key, meta: &ObjectMeta) -> Vec<Work> {
        let mut works = match meta::controller_of(meta) {
            Some(owner) => match owner.kind.as_str() {
                "ReplicaSet" => self.of_replica_set_pod(&keys::replica_set(key.namespace(), &owner.name)),
                "ReplicationController" => {
                    vec![Work::ReplicationController(keys::replication_controller(key.namespace(), &owner.name))]
                }
                "Job" => vec![Work::Job(keys::job(key.namespace(), &owner.name))],
                _ => Vec::new(),
            },
            None => self.adopters_of_pod(key.namespace(), meta),
        };
        let Some(pod) = self.pods.get(key) else { return works };
        let guards = self.budgets_in(key.namespace()).filter(|found| budget::guards(&found.object, pod));
        works.extend(guards.map(|found| Work::Budget(found.key.clone())));
        if job::is_tracked(meta) {
            works.push(Work::Garbage(key.clone()));
        }
        match pods::node_name(pod) {
            Some(name) => match self.node(name) {
                Some(found) if node::disturbs(&found.object) => works.push(Work::Evict(name.to_owned())),
                Some(_) => {}
                None => works.push(Work::Garbage(key.clone())),
            },
            None if meta::is_deleting(meta) => works.push(Work::Garbage(key.clone())),
            None => works.push(Work::Schedule),
        }
        if pods::is_finished(pod) {
            works.push(Work::FinishedPods);
        }
        works
    }

    fn of_replica_set_pod(&self, key: &Key) -> Vec<Work> {
        let mut works = vec![Work::ReplicaSet(key.clone())];
        let owner = self.replica_set(key).and_then(|set| meta::controller_of(&set.object.metadata));
        let deployment = owner.map(|owner| keys::deployment(key.namespace(), &owner.name));
        // A Deployment that recreates waits for pods; others look at ReplicaSets only.
        let waits = deployment
            .filter(|key| self.deployment(key).is_some_and(|found| deployment::waits_for_pods(&found.object)));
        works.extend(waits.map(Work::Deployment));
        works
    }

    fn adopters_of_pod(&self, namespace: &str, meta: &ObjectMeta) -> Vec<Work> {
        let Some(labels) = &meta.labels else { return Vec::new() };
        let sets = self.replica_sets_in(namespace);
        let sets = sets.filter(|set| selector::matches(&set.spec.selector, Some(labels)));
        let controllers = self.replication_controllers_in(namespace);
        let controllers = controllers
            .filter(|found| selector::matches(&replicationcontroller::selector(&found.object), Some(labels)));
        let sets = sets.map(|set| Work::ReplicaSet(set.key.clone()));
        sets.chain(controllers.map(|found| Work::ReplicationController(found.key.clone()))).collect()
    }

    fn of_replica_set(&self, key: &Key, meta: &ObjectMeta) -> Vec<Work> {
        let mut works = vec![Work::ReplicaSet(key.clone())];
        match meta::controller_of(meta) {
            Some(owner) => works.push(Work::Deployment(keys::deployment(key.namespace(), &owner.name))),
            None => {
                let adopters = self.deployments_in(key.namespace());
                let adopters = adopters.filter(|found| selector::matches(&found.spec.selector, meta.labels.as_ref()));
                works.extend(adopters.map(|found| Work::Deployment(found.key.clone())));
            }
        }
        works
    }

    /// Marks what an object leaves behind that no longer exists: its dependents, a node's pods.
    pub(super) fn touch_left_behind(&mut self, key: &Key, uid: Option<&Uid>) {
        let mut works: Vec<Work> = Vec::new();
        if let Some(uid) = uid.filter(|uid| !self.uids.contains_key(*uid)) {
            let dependents = self.dependents.get(uid).into_iter().flatten();
            works.extend(dependents.map(|key| Work::Garbage(key.clone())));
        }
        if (key.group(), key.resource()) == ("", "nodes") && self.node(key.name()).is_none() {
            works.extend(self.pods_on(key.name()).map(|pod| Work::Garbage(pod.key.clone())));
        }
        self.dirty.extend(works);
    }
}
