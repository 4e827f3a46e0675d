//! ResourceQuotas: what a namespace takes of what they limit.
//!
//! Invariant: a quota's revision is that of the last charge, and a charge is written together with what it is for. So a
//! count that is written at the revision that the View has misses nothing and counts nothing twice.

use std::collections::BTreeMap;

use flotilla_api::admit::{quota, usage};
use flotilla_api::k8s_openapi::api::core::v1::ResourceQuota;
use flotilla_api::k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use flotilla_api::{GroupResource, Key};

use crate::meta;
use crate::plan::{Context, Plan, change};
use crate::view::{PodEntry, Stored, View};

const MANAGER: &str = "resourcequota-controller";

pub(crate) fn plan(key: &Key, cx: &mut Context<'_>) -> Plan {
    let mut plan = Plan::default();
    let Some(found) = cx.view.quota(key).filter(|found| !meta::is_deleting(&found.metadata)) else { return plan };
    let hard = found.spec.as_ref().and_then(|spec| spec.hard.clone()).unwrap_or_default();
    let taken = taken(found, &hard, cx.view);
    let zero = || Quantity("0".into());
    let used = hard.keys().map(|resource| {
        (resource.clone(), taken.get(resource).map_or_else(zero, |amount| Quantity(amount.to_string())))
    });
    let mut next = found.object.clone();
    let status = next.status.get_or_insert_default();
    status.used = Some(used.collect());
    status.hard = Some(hard);
    if next != found.object {
        plan.add(change(MANAGER).update(key.clone(), found.revision, meta::encode(&next)));
    }
    plan
}

/// What the namespace takes of each resource that the quota limits.
fn taken(found: &Stored<ResourceQuota>, hard: &BTreeMap<String, Quantity>, view: &View) -> usage::Amounts {
    let namespace = found.key.namespace();
    let mut taken = usage::Amounts::new();
    let charges = view.pods_in(namespace).map(PodEntry::charge);
    for charge in charges.filter(|charge| quota::covers(&found.object, Some(&charge.scopes))) {
        usage::add(&mut taken, &charge.amounts);
    }
    if !quota::covers(&found.object, None) {
        return taken;
    }
    for (collection, counted_as) in counted(hard) {
        let count = view.collection_in(&collection, namespace).len();
        taken.insert(counted_as, usage::count(count));
    }
    for plural in ["services", "persistentvolumeclaims"] {
        let collection = GroupResource::new("", plural);
        let values = view.collection_in(&collection, namespace).into_iter().filter_map(|key| view.value(key));
        values.for_each(|value| {
            usage::add_new(&mut taken, &usage::of(&collection, &value), &usage::count_name(&collection))
        });
    }
    taken
}

/// The collections whose objects are counted, and under which name.
fn counted(hard: &BTreeMap<String, Quantity>) -> Vec<(GroupResource, String)> {
    let plain = ["configmaps", "secrets", "replicationcontrollers", "resourcequotas"];
    let of = |resource: &String| match resource.strip_prefix("count/") {
        Some(name) => {
            let (plural, group) = name.split_once('.').unwrap_or((name, ""));
            Some((GroupResource::new(group, plural), resource.clone()))
        }
        None => {
            plain.contains(&resource.as_str()).then(|| (GroupResource::new("", resource.as_str()), resource.clone()))
        }
    };
    hard.keys().filter_map(of).collect()
}
