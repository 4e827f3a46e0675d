//! What a Namespace is given while it lives, and its end: first its content, then itself.
//!
//! Invariant: a Namespace goes only when the View shows nothing left in it; what is created meanwhile
//! is refused, because creation requires the revision at which the Namespace was not yet terminating.

use std::collections::BTreeMap;

use flotilla_api::Key;
use flotilla_api::k8s_openapi::api::core::v1::Namespace;

use crate::plan::{Context, Plan, change};
use crate::{account, condition, deletion, meta};

const MANAGER: &str = "namespace-controller";
const FINALIZER: &str = "kubernetes";
/// Objects that one plan deletes; more wait for the next.
const MAX_OBJECTS: usize = 1000;

pub(crate) fn plan(name: &str, cx: &mut Context<'_>) -> Plan {
    let mut plan = Plan::default();
    let Some(namespace) = cx.view.namespace(name) else { return plan };
    if !meta::is_deleting(&namespace.metadata) {
        account::provide(namespace, cx, &mut plan);
        return plan;
    }
    let content: Vec<&Key> = cx.view.content_of(name).take(MAX_OBJECTS).collect();
    if content.is_empty() {
        plan.add(finish(namespace, cx));
        return plan;
    }
    let mut waiting = Vec::new();
    for key in &content {
        let (change, acts) = deletion::delete(change(MANAGER), cx.view, key, cx.now);
        if !acts {
            waiting.push(*key);
        }
        plan.add(change);
    }
    let terminating = terminating(namespace, &waiting, cx);
    if terminating != namespace.object {
        let bytes = meta::encode(&terminating);
        plan.add(change(MANAGER).update(namespace.key.clone(), namespace.revision, bytes));
    }
    plan
}

/// The last step: upstream's finalizer, then the object, unless others hold it.
fn finish(namespace: &crate::Stored<Namespace>, cx: &Context<'_>) -> flotilla_api::Change {
    let held = namespace.metadata.finalizers.as_ref().is_some_and(|finalizers| !finalizers.is_empty());
    let spec = namespace.spec.as_ref().and_then(|spec| spec.finalizers.as_deref()).unwrap_or_default();
    let others = spec.iter().any(|finalizer| finalizer != FINALIZER);
    if !held && !others {
        return change(MANAGER).remove(namespace.key.clone(), namespace.revision);
    }
    let mut next = terminating(namespace, &[], cx);
    if let Some(spec) = &mut next.spec {
        spec.finalizers = spec.finalizers.take().map(|list| list.into_iter().filter(|f| f != FINALIZER).collect());
    }
    match next == namespace.object {
        true => change(MANAGER),
        false => change(MANAGER).update(namespace.key.clone(), namespace.revision, meta::encode(&next)),
    }
}

/// The namespace with what stands in the way of its end, in upstream's words.
fn terminating(namespace: &Namespace, content: &[&Key], cx: &Context<'_>) -> Namespace {
    let mut next = namespace.clone();
    let status = next.status.get_or_insert_default();
    status.phase = Some("Terminating".into());
    let mut set = |kind, status_word, reason, message: &str| {
        condition::set(&mut status.conditions, kind, status_word, reason, message, cx.now);
    };
    let fine = "All resources successfully discovered";
    set("NamespaceDeletionDiscoveryFailure", "False", "ResourcesDiscovered", fine);
    let fine = "All legacy kube types successfully parsed";
    set("NamespaceDeletionGroupVersionParsingFailure", "False", "ParsedGroupVersions", fine);
    let fine = "All content successfully deleted, may be waiting on finalization";
    set("NamespaceDeletionContentFailure", "False", "ContentDeleted", fine);
    let remaining = counted(content.iter().map(|key| format!("{}.{}", key.resource(), key.group())));
    match remaining.is_empty() {
        true => set("NamespaceContentRemaining", "False", "ContentRemoved", "All content successfully removed"),
        false => {
            let each: Vec<String> = remaining
                .iter()
                .map(|(resource, count)| format!("{resource} has {count} resource instances"))
                .collect();
            let message = format!("Some resources are remaining: {}", each.join(", "));
            set("NamespaceContentRemaining", "True", "SomeResourcesRemain", &message);
        }
    }
    let metas = content.iter().filter_map(|key| cx.view.meta(key));
    let finalizers = counted(metas.flat_map(|(meta, _)| meta.finalizers.iter().flatten().cloned()));
    match finalizers.is_empty() {
        true => {
            let fine = "All content-preserving finalizers finished";
            set("NamespaceFinalizersRemaining", "False", "ContentHasNoFinalizers", fine);
        }
        false => {
            let each: Vec<String> =
                finalizers.iter().map(|(name, count)| format!("{name} in {count} resource instances")).collect();
            let message = format!("Some content in the namespace has finalizers remaining: {}", each.join(", "));
            set("NamespaceFinalizersRemaining", "True", "SomeFinalizersRemain", &message);
        }
    }
    next
}

fn counted(names: impl Iterator<Item = String>) -> BTreeMap<String, usize> {
    names.fold(BTreeMap::new(), |mut counts, name| {
        *counts.entry(name).or_default() += 1;
        counts
    })
}
