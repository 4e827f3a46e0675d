//! The policies of a namespace as this replica has them: classes, LimitRanges and ResourceQuotas.
//!
//! A replica that is behind may not know a policy that was made a moment ago; what a quota is charged with is written with
//! the object, at the revision of the quota that was read, so that no quota is overdrawn.

use flotilla_api::admit::{self, Quota, usage};
use flotilla_api::k8s_openapi::api::core::v1::{LimitRange, Pod};
use flotilla_api::k8s_openapi::api::node::v1::RuntimeClass;
use flotilla_api::k8s_openapi::api::scheduling::v1::PriorityClass;
use flotilla_api::k8s_openapi::api::storage::v1::StorageClass;
use flotilla_api::{Builtin, Change, GroupResource, Key, Kind, Reason, Status};
use flotilla_raft::Range;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::known::Known;
use super::{Gate, read_status};

/// Policies of one sort that are looked at.
const MAX_POLICIES: usize = 500;

/// The policies that were read, by namespace.
#[derive(Default)]
pub(super) struct Policies {
    classes: Known<Vec<PriorityClass>>,
    runtime_classes: Known<Vec<RuntimeClass>>,
    storage_classes: Known<Vec<StorageClass>>,
    limit_ranges: Known<Vec<LimitRange>>,
    quotas: Known<Vec<Quota>>,
}

impl Gate {
    /// Lets the policies of its namespace change a new object, and charges their quotas in the Change that creates it.
    ///
    /// # Errors
    /// Why a policy refuses the object, or why they cannot be read.
    pub(super) fn apply_policies(
        &self,
        kind: &Kind,
        key: &Key,
        object: &mut Value,
        change: Change,
    ) -> Result<Change, Status> {
        let collection = kind.collection();
        self.check_default_class(&collection, key, object)?;
        let Some(mut policies) = self.policies(&collection, key.namespace())? else { return Ok(change) };
        policies.admit(&collection, object)?;
        policies.charge(&collection, None, object)?;
        policies.write(change).map_err(Status::internal)
    }

    /// Charges the quotas with what an object takes more after a change of it, and holds a pod that was resized to the
    /// limits.
    ///
    /// # Errors
    /// As [`Gate::apply_policies`].
    pub(super) fn charge_update(
        &self,
        kind: &Kind,
        key: &Key,
        (old, new): (&Value, &Value),
        change: Change,
    ) -> Result<Change, Status> {
        let collection = kind.collection();
        self.check_default_class(&collection, key, new)?;
        let is_resized = kind.builtin == Some(Builtin::Pod)
            && old["spec"] != new["spec"]
            && usage::of(&collection, old) != usage::of(&collection, new);
        // What others take does not change.
        let grows = matches!(kind.builtin, Some(Builtin::Service | Builtin::PersistentVolumeClaim));
        if !grows && !is_resized {
            return Ok(change);
        }
        let Some(mut policies) = self.policies(&collection, key.namespace())? else { return Ok(change) };
        if is_resized {
            policies.hold(&Pod::deserialize(new).map_err(Status::internal)?)?;
        }
        policies.charge(&collection, Some(old), new)?;
        policies.write(change).map_err(Status::internal)
    }

    /// Of the PriorityClasses one at most is for pods that name none.
    fn check_default_class(&self, collection: &GroupResource, key: &Key, object: &Value) -> Result<(), Status> {
        if *collection != Builtin::PriorityClass.collection() || object["globalDefault"] != true {
            return Ok(());
        }
        let classes: Vec<PriorityClass> =
            self.policy(&self.policies.classes, Builtin::PriorityClass, "", |_, _, class| class)?;
        let mut defaults = classes.iter().filter(|class| class.global_default == Some(true));
        let other = defaults.find_map(|class| class.metadata.name.as_deref().filter(|name| *name != key.name()));
        let Some(other) = other else { return Ok(()) };
        let why = format!("PriorityClass {other} is already marked as default. Only one default can exist");
        Err(Status::new(Reason::Forbidden, format!("{collection} \"{}\" is forbidden: {why}", key.name())))
    }

    /// `None` for what no policy is about.
    fn policies(&self, collection: &GroupResource, namespace: &str) -> Result<Option<admit::Policies>, Status> {
        let plural = if collection.group.is_empty() { collection.resource.as_str() } else { "" };
        if namespace.is_empty() || plural == "events" {
            return Ok(None);
        }
        let mut policies = admit::Policies::default();
        if plural == "pods" {
            policies.classes = self.policy(&self.policies.classes, Builtin::PriorityClass, "", |_, _, class| class)?;
            let known = &self.policies.runtime_classes;
            policies.runtime_classes = self.policy(known, Builtin::RuntimeClass, "", |_, _, class| class)?;
        }
        if plural == "persistentvolumeclaims" {
            let known = &self.policies.storage_classes;
            policies.storage_classes = self.policy(known, Builtin::StorageClass, "", |_, _, class| class)?;
        }
        if plural == "pods" || plural == "persistentvolumeclaims" {
            let known = &self.policies.limit_ranges;
            policies.limit_ranges = self.policy(known, Builtin::LimitRange, namespace, |_, _, range| range)?;
        }
        let quota = |key, revision, object| Quota { key, revision, object, charged: false };
        policies.quotas = self.policy(&self.policies.quotas, Builtin::ResourceQuota, namespace, quota)?;
        Ok(Some(policies))
    }

    /// The policies of one sort in a namespace, or in none.
    fn policy<T: DeserializeOwned, P: Clone>(
        &self,
        known: &Known<Vec<P>>,
        builtin: Builtin,
        namespace: &str,
        made: impl Fn(Key, u64, T) -> P,
    ) -> Result<Vec<P>, Status> {
        let collection = builtin.collection();
        let read = || {
            let prefix = match namespace {
                "" => collection.prefix(),
                namespace => collection.namespace_prefix(namespace),
            };
            let page = self.store.range(Range { limit: MAX_POLICIES, ..Range::prefix(prefix) }).map_err(read_status)?;
            let policies = page.items.into_iter().map(|kv| {
                let object = serde_json::from_slice(&kv.value).map_err(Status::internal)?;
                Ok(made(kv.key, kv.mod_revision, object))
            });
            policies.collect()
        };
        known.get(&self.store, &collection, namespace, read).map(|known| known.as_ref().clone())
    }
}
