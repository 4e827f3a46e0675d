//! The PriorityClasses that every cluster has.
//!
//! Invariant: one that somebody deletes comes back.

use flotilla_api::k8s_openapi::api::scheduling::v1::PriorityClass;
use flotilla_api::kinds::priorityclass::SYSTEM;

use crate::plan::{Context, Plan, change};
use crate::{keys, meta};

const MANAGER: &str = "flotilla-defaults";

pub(crate) fn plan(cx: &mut Context<'_>) -> Plan {
    let mut plan = Plan::default();
    for (name, value, description) in SYSTEM {
        let key = keys::priority_class(name);
        if cx.view.meta(&key).is_some() {
            continue;
        }
        let class = PriorityClass {
            metadata: meta::mint("", name.to_owned(), cx.now, cx.rng),
            value: Some(value),
            description: Some(description.to_owned()),
            preemption_policy: Some("PreemptLowerPriority".to_owned()),
            ..PriorityClass::default()
        };
        plan.add(change(MANAGER).create(key, meta::encode(&class)));
    }
    plan
}
