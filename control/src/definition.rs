//! The life of a CustomResourceDefinition: whether its names are free, and its end, which comes after that of its objects.
//!
//! Invariant: two definitions of a group never both have a name accepted; the older one has it.
//! Invariant: a definition goes only when the View shows none of its objects.

use std::collections::BTreeSet;

use flotilla_api::k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinitionNames, CustomResourceDefinitionStatus,
};
use flotilla_api::kinds::customresourcedefinition::{
    CLEANUP_FINALIZER, ESTABLISHED, NAMES_ACCEPTED, TERMINATING, is_true,
};
use flotilla_api::{GroupResource, Key};
use serde_json::Value;

use crate::plan::{Context, Plan, change};
use crate::view::Definition;
use crate::{condition, deletion, meta};

const MANAGER: &str = "customresourcedefinition-controller";
/// Objects that one plan deletes; more wait for the next.
const MAX_OBJECTS: usize = 1000;

pub(crate) fn plan(name: &str, cx: &mut Context<'_>) -> Plan {
    let mut plan = Plan::default();
    let Some(definition) = cx.view.definition(name) else { return plan };
    let metadata = &definition.object.metadata;
    if !meta::is_deleting(metadata) {
        let status = accepted(definition, cx);
        plan.add(written(definition, &status, None));
        return plan;
    }
    if !meta::has_finalizer(metadata, CLEANUP_FINALIZER) {
        return plan;
    }
    let collection = GroupResource::new(&definition.object.spec.group, &definition.object.spec.names.plural);
    let content: Vec<&Key> = cx.view.of_collection(&collection).take(MAX_OBJECTS).collect();
    for key in &content {
        let (change, _) = deletion::delete(change(MANAGER), cx.view, key, cx.now);
        plan.add(change);
    }
    let mut status = definition.object.status.clone().unwrap_or_default();
    let mut set =
        |word, reason, message| condition::set(&mut status.conditions, TERMINATING, word, reason, message, cx.now);
    if !content.is_empty() {
        set("True", "InstanceDeletionInProgress", "CustomResource deletion is in progress");
        plan.add(written(definition, &status, None));
        return plan;
    }
    let left: Vec<String> = metadata.finalizers.iter().flatten().filter(|f| *f != CLEANUP_FINALIZER).cloned().collect();
    if left.is_empty() {
        plan.add(change(MANAGER).remove(definition.key.clone(), definition.revision));
        return plan;
    }
    set("False", "InstanceDeletionCompleted", "removed all instances");
    plan.add(written(definition, &status, Some(left)));
    plan
}

/// The definition with another status, and with these finalizers if any are given.
fn written(
    definition: &Definition,
    status: &CustomResourceDefinitionStatus,
    finalizers: Option<Vec<String>>,
) -> flotilla_api::Change {
    let change = change(MANAGER);
    let is_same = definition.object.status.as_ref() == Some(status);
    let Ok(mut object) = serde_json::from_slice::<Value>(&definition.raw) else { return change };
    if is_same && finalizers.is_none() {
        return change;
    }
    object["status"] = serde_json::to_value(status).unwrap_or_default();
    if let Some(finalizers) = finalizers {
        object["metadata"]["finalizers"] = finalizers.into();
    }
    change.update(definition.key.clone(), definition.revision, meta::encode(&object))
}

/// The names that other definitions of the group have or, being older, are about to have.
struct Taken {
    resources: BTreeSet<String>,
    kinds: BTreeSet<String>,
}

impl Taken {
    fn by_others(definition: &Definition, cx: &Context<'_>) -> Self {
        let mut taken = Self { resources: BTreeSet::new(), kinds: BTreeSet::new() };
        let age = |one: &Definition| {
            let created = one.object.metadata.creation_timestamp.as_ref().map(|time| time.0);
            (created, one.key.name().to_owned())
        };
        for other in cx.view.definitions_of(&definition.object.spec.group).filter(|other| other.key != definition.key) {
            let accepted = other.object.status.as_ref().and_then(|status| status.accepted_names.as_ref());
            let is_pending = !is_true(&other.object, NAMES_ACCEPTED) && age(other) < age(definition);
            let wished = Some(&other.object.spec.names).filter(|_| is_pending);
            for names in accepted.into_iter().chain(wished) {
                taken.resources.extend(resource_names(names));
                taken.kinds.extend([Some(names.kind.clone()), names.list_kind.clone()].into_iter().flatten());
            }
        }
        taken
    }
}

fn resource_names(names: &CustomResourceDefinitionNames) -> impl Iterator<Item = String> {
    let one = std::iter::once(names.plural.clone()).chain(names.singular.clone());
    one.chain(names.short_names.clone().unwrap_or_default()).filter(|name| !name.is_empty())
}

/// The status with the names that are free, and with what is to say of the others.
fn accepted(definition: &Definition, cx: &Context<'_>) -> CustomResourceDefinitionStatus {
    let wished = &definition.object.spec.names;
    let taken = Taken::by_others(definition, cx);
    let mut status = definition.object.status.clone().unwrap_or_default();
    let before = status.accepted_names.clone().unwrap_or_default();
    let mut names = before;
    let mut conflict: Option<(&str, String)> = None;
    let in_use = |name: &str| format!("{name:?} is already in use");
    match taken.resources.contains(&wished.plural) {
        true => conflict = Some(("PluralConflict", in_use(&wished.plural))),
        false => names.plural = wished.plural.clone(),
    }
    match wished.singular.as_ref().filter(|name| taken.resources.contains(*name)) {
        Some(name) => conflict = Some(("SingularConflict", in_use(name))),
        None => names.singular = wished.singular.clone(),
    }
    let short: Vec<&String> =
        wished.short_names.iter().flatten().filter(|name| taken.resources.contains(*name)).collect();
    match short.first() {
        Some(name) => conflict = Some(("ShortNamesConflict", in_use(name))),
        None => names.short_names = wished.short_names.clone(),
    }
    match taken.kinds.contains(&wished.kind) {
        true => conflict = Some(("KindConflict", in_use(&wished.kind))),
        false => names.kind = wished.kind.clone(),
    }
    match wished.list_kind.as_ref().filter(|kind| taken.kinds.contains(*kind)) {
        Some(kind) => conflict = Some(("ListKindConflict", in_use(kind))),
        None => names.list_kind = wished.list_kind.clone(),
    }
    names.categories = wished.categories.clone();
    status.accepted_names = Some(names);
    let mut set =
        |kind, word, reason, message: &str| condition::set(&mut status.conditions, kind, word, reason, message, cx.now);
    match &conflict {
        None => {
            set(NAMES_ACCEPTED, "True", "NoConflicts", "no conflicts found");
            set(ESTABLISHED, "True", "InitialNamesAccepted", "the initial names have been accepted");
        }
        Some((reason, message)) => {
            set(NAMES_ACCEPTED, "False", reason, message);
            // What was established stays so, under the names that it has.
            if !is_true(&definition.object, ESTABLISHED) {
                set(ESTABLISHED, "False", "NotAccepted", "not all names are accepted");
            }
        }
    }
    status
}
