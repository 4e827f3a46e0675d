//! The policies of a namespace: what they write into new objects, what they refuse, and what they charge.
//!
//! The gate asks them for what people create, planners for the pods that they make. Each hands in the policies as it sees
//! them and writes the charged quotas with the object.

use k8s_openapi::api::core::v1::{LimitRange, PersistentVolumeClaim, Pod, ResourceQuota};
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use k8s_openapi::api::storage::v1::StorageClass;
use serde::Deserialize;
use serde_json::Value;

use super::quota::Scopes;
use super::usage::{self, Amounts};
use super::{limits, priority, quota, runtime_class, storage_class};
use crate::change::Change;
use crate::error::{Reason, Status};
use crate::field::Errors;
use crate::key::{GroupResource, Key};
use crate::kinds::pod::qos_class;
use crate::{defaults, object, validate};

/// A quota as it was seen, and charged since.
#[derive(Clone, Debug)]
pub struct Quota {
    pub key: Key,
    pub revision: u64,
    pub object: ResourceQuota,
    pub charged: bool,
}

/// What a namespace's policies are.
#[derive(Clone, Debug, Default)]
pub struct Policies {
    pub classes: Vec<PriorityClass>,
    pub runtime_classes: Vec<RuntimeClass>,
    pub storage_classes: Vec<StorageClass>,
    pub limit_ranges: Vec<LimitRange>,
    pub quotas: Vec<Quota>,
}

impl Policies {
    /// Gives a new pod its priority, what its RuntimeClass says and the defaults of its namespace, and holds it to the limits.
    ///
    /// # Errors
    /// `Forbidden` if a policy refuses it, `Invalid` if the defaults do not go with what it says.
    pub fn admit_pod(&self, pod: &mut Pod) -> Result<(), Status> {
        let name = pod.metadata.name.clone().unwrap_or_default();
        let refuse = |why: String| Err(forbidden(&GroupResource::new("", "pods"), &name, &why));
        let given = priority::apply(pod, &self.classes).and_then(|()| runtime_class::apply(pod, &self.runtime_classes));
        if let Err(why) = given {
            return refuse(why);
        }
        if let Some(spec) = &mut pod.spec {
            defaults::pod_only(spec);
        }
        if limits::default(pod, &self.limit_ranges) {
            let mut errors = Errors::new();
            validate::pod::pod(pod, &mut errors);
            if !errors.is_empty() {
                return Err(Status::invalid("Pod", &name, errors.into_causes()));
            }
        }
        self.hold(pod)?;
        if let (Some(spec), Some(status)) = (&pod.spec, &mut pod.status) {
            status.qos_class = Some(qos_class(spec).to_owned());
        }
        Ok(())
    }

    /// Holds a pod to the limits of its namespace.
    ///
    /// # Errors
    /// `Forbidden` if it is beyond one.
    pub fn hold(&self, pod: &Pod) -> Result<(), Status> {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let refuse = |why: &str| Err(forbidden(&GroupResource::new("", "pods"), name, why));
        match limits::check(pod, &self.limit_ranges).as_slice() {
            [] => Ok(()),
            [one] => refuse(one),
            many => refuse(&format!("[{}]", many.join(", "))),
        }
    }

    /// As [`Policies::admit_pod`], for an object of any collection; only some are touched.
    ///
    /// # Errors
    /// As [`Policies::admit_pod`].
    pub fn admit(&self, collection: &GroupResource, object: &mut Value) -> Result<(), Status> {
        match (collection.group.as_str(), collection.resource.as_str()) {
            ("", "pods") => {
                let mut pod = Pod::deserialize(&*object).map_err(Status::internal)?;
                self.admit_pod(&mut pod)?;
                *object = serde_json::to_value(&pod).map_err(Status::internal)?;
                Ok(())
            }
            ("", "persistentvolumeclaims") => {
                let mut claim = PersistentVolumeClaim::deserialize(&*object).map_err(Status::internal)?;
                storage_class::apply(&mut claim, &self.storage_classes);
                *object = serde_json::to_value(&claim).map_err(Status::internal)?;
                match limits::check_claim(&claim, &self.limit_ranges).as_slice() {
                    [] => Ok(()),
                    many => {
                        let name = claim.metadata.name.unwrap_or_default();
                        Err(forbidden(collection, &name, &many.join(", ")))
                    }
                }
            }
            _ => Ok(()),
        }
    }

    /// Charges the quotas with what `new` takes more than `old`.
    ///
    /// # Errors
    /// `Forbidden` with the quota that does not allow it; nothing is charged then that [`Policies::write`] would write.
    pub fn charge(&mut self, collection: &GroupResource, old: Option<&Value>, new: &Value) -> Result<(), Status> {
        if self.quotas.is_empty() {
            return Ok(());
        }
        let before = old.map(|old| usage::of(collection, old)).unwrap_or_default();
        let more: Amounts = usage::of(collection, new)
            .into_iter()
            .map(|(resource, amount)| {
                let less = before.get(&resource).copied();
                (resource, less.map_or(amount, |less| amount.minus(less)))
            })
            .filter(|(_, amount)| !amount.is_negative() && !amount.is_zero())
            .collect();
        let is_pod = (collection.group.as_str(), collection.resource.as_str()) == ("", "pods");
        let pod = if is_pod { Some(Pod::deserialize(new).map_err(Status::internal)?) } else { None };
        let scopes = pod.as_ref().map(Scopes::of);
        let mut charged = self.quotas.clone();
        for quota in &mut charged {
            let name = new.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
            let did = quota::charge(&mut quota.object, &more, pod.as_ref().zip(scopes.as_ref()));
            quota.charged |= did.map_err(|why| forbidden(collection, name, &why))?;
        }
        self.quotas = charged;
        Ok(())
    }

    /// Charges the quotas with a new pod.
    ///
    /// # Errors
    /// As [`Policies::charge`].
    pub fn charge_pod(&mut self, pod: &Pod) -> Result<(), Status> {
        if self.quotas.is_empty() {
            return Ok(());
        }
        let value = serde_json::to_value(pod).map_err(Status::internal)?;
        self.charge(&GroupResource::new("", "pods"), None, &value)
    }

    /// Adds the charged quotas to a Change, each as it was seen and no other.
    ///
    /// # Errors
    /// If a quota does not serialize.
    pub fn write(&self, mut change: Change) -> Result<Change, serde_json::Error> {
        for quota in self.quotas.iter().filter(|quota| quota.charged) {
            change = change.update(quota.key.clone(), quota.revision, object::encode(&quota.object)?);
        }
        Ok(change)
    }
}

fn forbidden(collection: &GroupResource, name: &str, why: &str) -> Status {
    Status::new(Reason::Forbidden, format_args!("{collection} \"{name}\" is forbidden: {why}"))
}
