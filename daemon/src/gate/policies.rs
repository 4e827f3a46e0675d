//! The policies of a namespace as this replica has them: PriorityClasses, LimitRanges and ResourceQuotas.
//!
//! A replica that is behind may not know a policy that was made a moment ago; what a quota is charged with is written with
//! the object, at the revision of the quota that was read, so that no quota is overdrawn.

use flotilla_api::admit::{Policies, Quota};
use flotilla_api::{Builtin, Change, GroupResource, Key, Kind, Status};
use flotilla_raft::Range;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Gate, read_status};

/// Policies of one sort that are looked at.
const MAX_POLICIES: usize = 500;

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
        let Some(mut policies) = self.policies(&collection, key.namespace())? else { return Ok(change) };
        policies.admit(&collection, object)?;
        policies.charge(&collection, None, object)?;
        policies.write(change).map_err(Status::internal)
    }

    /// Charges the quotas with what an object takes more after a change of it.
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
        // What others take does not change.
        let grows = ["services", "persistentvolumeclaims"].contains(&collection.resource.as_str());
        if !collection.group.is_empty() || !grows {
            return Ok(change);
        }
        let Some(mut policies) = self.policies(&collection, key.namespace())? else { return Ok(change) };
        policies.charge(&collection, Some(old), new)?;
        policies.write(change).map_err(Status::internal)
    }

    /// `None` for what no policy is about.
    fn policies(&self, collection: &GroupResource, namespace: &str) -> Result<Option<Policies>, Status> {
        let plural = if collection.group.is_empty() { collection.resource.as_str() } else { "" };
        if namespace.is_empty() || plural == "events" {
            return Ok(None);
        }
        let of = |builtin: Builtin| builtin.collection().namespace_prefix(namespace);
        let mut policies = Policies::default();
        if plural == "pods" {
            let classes = self.policy(Builtin::PriorityClass.collection().prefix())?;
            policies.classes = classes.into_iter().map(|(_, _, class)| class).collect();
        }
        if plural == "pods" || plural == "persistentvolumeclaims" {
            let ranges = self.policy(of(Builtin::LimitRange))?;
            policies.limit_ranges = ranges.into_iter().map(|(_, _, range)| range).collect();
        }
        let quotas = self.policy(of(Builtin::ResourceQuota))?.into_iter();
        policies.quotas =
            quotas.map(|(key, revision, object)| Quota { key, revision, object, charged: false }).collect();
        Ok(Some(policies))
    }

    fn policy<T: DeserializeOwned>(&self, prefix: String) -> Result<Vec<(Key, u64, T)>, Status> {
        let page = self.store.range(Range { limit: MAX_POLICIES, ..Range::prefix(prefix) }).map_err(read_status)?;
        let read = page.items.into_iter().map(|kv| {
            let policy = serde_json::from_slice(&kv.value);
            policy.map(|policy| (kv.key, kv.mod_revision, policy)).map_err(Status::internal)
        });
        read.collect()
    }
}
