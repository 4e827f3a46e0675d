//! Making what controllers make, as the policies of its namespace allow.
//!
//! A namespace that has begun to be deleted since it was seen takes nothing more, and a quota that was charged since is
//! looked at again.

use flotilla_api::admit::Policies;
use flotilla_api::k8s_openapi::api::apps::v1::ReplicaSet;
use flotilla_api::k8s_openapi::api::core::v1::Pod;
use flotilla_api::{Change, Expect, Key};
use serde::Serialize;

use crate::plan::Context;
use crate::view::View;
use crate::{account, keys, meta};

/// When what was refused is tried again, besides when its controller changes.
pub(crate) const REFUSED_RETRY_MS: u64 = 2_000;

/// Makes objects of one namespace.
pub(crate) struct Maker {
    namespace: String,
    namespace_revision: u64,
    policies: Policies,
}

impl Maker {
    /// # Errors
    /// If the namespace takes nothing new, in words.
    pub fn new(view: &View, namespace: &str) -> Result<Self, String> {
        let namespace_revision = view.admits(namespace)?;
        Ok(Self { namespace: namespace.to_owned(), namespace_revision, policies: view.policies(namespace) })
    }

    /// Makes a pod one of its account, lets the policies change it, and charges it.
    ///
    /// # Errors
    /// That there is no such account, or why a policy refuses it, in words.
    pub fn admit_pod(&mut self, pod: &mut Pod, cx: &mut Context<'_>) -> Result<(), String> {
        account::admit(pod, cx)?;
        self.policies.admit_pod(pod).and_then(|()| self.policies.charge_pod(pod)).map_err(|status| status.message)
    }

    /// Charges a set.
    ///
    /// # Errors
    /// Why a quota refuses it, in words.
    pub fn admit_set(&mut self, set: &ReplicaSet) -> Result<(), String> {
        let collection = keys::replica_set("", "").collection();
        let value = serde_json::to_value(set).map_err(|error| error.to_string())?;
        self.policies.charge(&collection, None, &value).map_err(|status| status.message)
    }

    /// Adds the creation of a pod that was admitted.
    pub fn create_pod(&self, change: Change, pod: &Pod) -> Change {
        self.create(change, keys::pod(&self.namespace, meta::name(&pod.metadata)), pod)
    }

    /// Adds the creation of a set that was admitted.
    pub fn create_set(&self, change: Change, set: &ReplicaSet) -> Change {
        self.create(change, keys::replica_set(&self.namespace, meta::name(&set.metadata)), set)
    }

    fn create(&self, change: Change, key: Key, object: &impl Serialize) -> Change {
        let gate = keys::namespace(&self.namespace);
        let change = match change.preconditions.iter().any(|condition| condition.key == gate) {
            true => change,
            false => change.require(gate, Expect::ModRevision(self.namespace_revision)),
        };
        change.create(key, meta::encode(object))
    }

    /// Adds what the quotas were charged with.
    pub fn finish(&self, change: Change) -> Change {
        let charged = self.policies.quotas.iter().filter(|quota| quota.charged);
        charged
            .fold(change, |change, quota| change.update(quota.key.clone(), quota.revision, meta::encode(&quota.object)))
    }
}
