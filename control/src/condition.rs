//! Conditions: one shape, many types.
//!
//! Invariant: a transition time changes only when the status does.

use flotilla_api::k8s_openapi::api::apps::v1::{DeploymentCondition, ReplicaSetCondition};
use flotilla_api::k8s_openapi::api::batch::v1::JobCondition;
use flotilla_api::k8s_openapi::api::core::v1::{
    NamespaceCondition, NodeCondition, PodCondition, ReplicationControllerCondition,
};
use flotilla_api::k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinitionCondition;
use flotilla_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use jiff::Timestamp;

use crate::meta::seconds;

/// What the conditions of all kinds share.
pub(crate) trait Condition: Default {
    fn kind(&self) -> &str;
    fn status(&self) -> &str;
    fn become_(&mut self, kind: &str, status: &str);
    fn fields(&mut self) -> Fields<'_>;
}

pub(crate) struct Fields<'a> {
    reason: &'a mut Option<String>,
    message: &'a mut Option<String>,
    transition: &'a mut Option<Time>,
}

/// Some kinds declare type and status as required, some do not.
macro_rules! conditions {
    ($($name:ty: |$field:ident| $read:expr;)*) => {
        $(
            impl Condition for $name {
                fn kind(&self) -> &str {
                    let $field = &self.type_;
                    $read
                }

                fn status(&self) -> &str {
                    let $field = &self.status;
                    $read
                }

                fn become_(&mut self, kind: &str, status: &str) {
                    self.type_ = kind.to_owned().into();
                    self.status = status.to_owned().into();
                }

                fn fields(&mut self) -> Fields<'_> {
                    Fields {
                        reason: &mut self.reason,
                        message: &mut self.message,
                        transition: &mut self.last_transition_time,
                    }
                }
            }
        )*
    };
}

conditions! {
    DeploymentCondition: |field| field.as_deref().unwrap_or_default();
    ReplicaSetCondition: |field| field.as_deref().unwrap_or_default();
    JobCondition: |field| field;
    NamespaceCondition: |field| field;
    CustomResourceDefinitionCondition: |field| field;
    NodeCondition: |field| field;
    PodCondition: |field| field;
    ReplicationControllerCondition: |field| field;
}

/// The same conditions in the form of another kind.
pub(crate) fn convert<A: Condition, B: Condition>(conditions: Option<Vec<A>>) -> Option<Vec<B>> {
    let convert = |mut from: A| {
        let mut to = B::default();
        to.become_(from.kind(), from.status());
        let (from, into) = (from.fields(), to.fields());
        *into.reason = from.reason.take();
        *into.message = from.message.take();
        *into.transition = from.transition.take();
        to
    };
    conditions.map(|all| all.into_iter().map(convert).collect())
}

pub(crate) fn find<'a, C: Condition>(conditions: Option<&'a Vec<C>>, kind: &str) -> Option<&'a C> {
    conditions?.iter().find(|condition| condition.kind() == kind)
}

/// Sets a condition; empty `reason` and `message` are left out. Returns whether anything changed.
pub(crate) fn set<C: Condition>(
    conditions: &mut Option<Vec<C>>,
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> bool {
    let conditions = conditions.get_or_insert_default();
    let index = conditions.iter().position(|condition| condition.kind() == kind).unwrap_or_else(|| {
        conditions.push(C::default());
        conditions.len() - 1
    });
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let found = &mut conditions[index];
    let mut changed = found.kind() != kind || found.status() != status;
    if changed {
        found.become_(kind, status);
        *found.fields().transition = Some(seconds(now));
    }
    let fields = found.fields();
    if fields.reason.as_deref().unwrap_or_default() != reason {
        *fields.reason = text(reason);
        changed = true;
    }
    if fields.message.as_deref().unwrap_or_default() != message {
        *fields.message = text(message);
        changed = true;
    }
    changed
}

pub(crate) fn remove<C: Condition>(conditions: &mut Option<Vec<C>>, kind: &str) {
    if let Some(list) = conditions {
        list.retain(|condition| condition.kind() != kind);
    }
    conditions.take_if(|list| list.is_empty());
}
