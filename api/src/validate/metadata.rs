//! Metadata, which every object has.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::{immutable, name, non_negative};
use crate::admit::added;
use crate::field::{Errors, Path};
use crate::kinds::Kind;
use crate::names;

/// All annotations of an object together.
const MAX_ANNOTATIONS_BYTES: usize = 256 * 1024;

pub(crate) fn object(metadata: &ObjectMeta, kind: &Kind, errors: &mut Errors) {
    let path = Path::new("metadata");
    let named = metadata.name.as_deref().unwrap_or_default();
    if let Some(base) = metadata.generate_name.as_deref().filter(|base| !base.is_empty()) {
        let complaints = (kind.name_rule)(base.trim_end_matches('-'));
        complaints.iter().for_each(|c| errors.invalid(&path.child("generateName"), base, c));
    }
    if named.is_empty() {
        errors.required(&path.child("name"), "name or generateName is required");
    } else {
        name(named, kind.name_rule, &path.child("name"), errors);
    }
    if kind.is_namespaced() {
        name(metadata.namespace.as_deref().unwrap_or_default(), names::dns_label, &path.child("namespace"), errors);
    }
    content(metadata, &path, errors);
}

/// Of a resource inside of a resource, whose kind is not known and which need not be named.
pub(crate) fn embedded(metadata: &ObjectMeta, path: &Path, errors: &mut Errors) {
    for (field, text) in [("generateName", &metadata.generate_name), ("name", &metadata.name)] {
        name(text.as_deref().unwrap_or_default(), names::path_segment, &path.child(field), errors);
    }
    if let Some(namespace) = metadata.namespace.as_deref().filter(|namespace| !namespace.is_empty()) {
        name(namespace, names::dns_label, &path.child("namespace"), errors);
    }
    content(metadata, path, errors);
}

/// What does not depend on the kind.
fn content(metadata: &ObjectMeta, path: &Path, errors: &mut Errors) {
    non_negative(metadata.generation, &path.child("generation"), errors);
    labels(metadata.labels.as_ref(), &path.child("labels"), errors);
    annotations(metadata.annotations.as_ref(), &path.child("annotations"), errors);
    owners(metadata.owner_references.as_deref().unwrap_or_default(), &path.child("ownerReferences"), errors);
    finalizers(metadata.finalizers.as_deref().unwrap_or_default(), &path.child("finalizers"), errors);
}

pub(crate) fn labels(labels: Option<&BTreeMap<String, String>>, path: &Path, errors: &mut Errors) {
    for (key, value) in labels.into_iter().flatten() {
        name(key, names::qualified_name, path, errors);
        name(value, names::label_value, path, errors);
    }
}

pub(crate) fn annotations(annotations: Option<&BTreeMap<String, String>>, path: &Path, errors: &mut Errors) {
    let mut size = 0;
    for (key, value) in annotations.into_iter().flatten() {
        let lower = key.to_lowercase();
        names::qualified_name(&lower).iter().for_each(|c| errors.invalid(path, key.as_str(), c));
        size += key.len() + value.len();
    }
    if size > MAX_ANNOTATIONS_BYTES {
        errors.too_long(path, MAX_ANNOTATIONS_BYTES);
    }
}

/// Upstream does not say which of the references is wrong.
fn owners(owners: &[OwnerReference], path: &Path, errors: &mut Errors) {
    let mut controller: Option<&OwnerReference> = None;
    for owner in owners {
        let version = owner.api_version.as_str();
        if version.is_empty() || version.ends_with('/') || version.matches('/').count() > 1 {
            errors.invalid(&path.child("apiVersion"), owner.api_version.as_str(), "version must not be empty");
        }
        for (field, value) in [("kind", &owner.kind), ("name", &owner.name), ("uid", &owner.uid)] {
            if value.is_empty() {
                errors.invalid(&path.child(field), "", format_args!("{field} must not be empty"));
            }
        }
        if (owner.api_version.as_str(), owner.kind.as_str()) == ("v1", "Event") {
            errors.invalid(path, "/v1, Kind=Event", "is disallowed from being an owner");
        }
        if owner.controller == Some(true) {
            if let Some(first) = controller {
                let detail = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {}/{} and {}/{}",
                    first.kind, first.name, owner.kind, owner.name
                );
                errors.invalid(path, owner.name.as_str(), detail);
            }
            controller = Some(owner);
        }
    }
}

fn finalizers(finalizers: &[String], path: &Path, errors: &mut Errors) {
    for (index, finalizer) in finalizers.iter().enumerate() {
        name(finalizer, names::qualified_name, path, errors);
        standard_finalizer(finalizer, &path.index(index), errors);
    }
    let distinct: BTreeSet<&str> = finalizers.iter().map(String::as_str).collect();
    if distinct.contains("orphan") && distinct.contains("foregroundDeletion") {
        let detail = "finalizer orphan and foregroundDeletion cannot be both set";
        errors.invalid(path, finalizers.to_vec(), detail);
    }
}

/// What keeps a namespace until its content is gone.
pub(crate) fn finalizers_of_namespace(finalizers: &[String], path: &Path, errors: &mut Errors) {
    for (index, finalizer) in finalizers.iter().enumerate() {
        name(finalizer, names::qualified_name, &path.index(index), errors);
        standard_finalizer(finalizer, &path.index(index), errors);
    }
}

/// A finalizer without a domain is one of Kubernetes' own.
pub(crate) fn standard_finalizer(finalizer: &str, path: &Path, errors: &mut Errors) {
    if !finalizer.contains('/') && !["orphan", "foregroundDeletion", "kubernetes"].contains(&finalizer) {
        errors.invalid(path, finalizer, "name is neither a standard finalizer name nor is it fully qualified");
    }
}

pub(crate) fn update(old: &ObjectMeta, new: &ObjectMeta, errors: &mut Errors) {
    let path = Path::new("metadata");
    immutable(&old.name, &new.name, &path.child("name"), errors);
    immutable(&old.namespace, &new.namespace, &path.child("namespace"), errors);
    immutable(&old.uid, &new.uid, &path.child("uid"), errors);
    if old.deletion_timestamp.is_some() {
        let late = added(old.finalizers.as_deref(), new.finalizers.as_deref());
        if !late.is_empty() {
            let late: Vec<String> = late.iter().map(|f| format!("{f:?}")).collect();
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                late.join(", ")
            );
            errors.forbidden(&path.child("finalizers"), detail);
        }
    }
}
