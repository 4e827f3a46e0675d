//! Roles and their bindings.

use k8s_openapi::api::rbac::v1::{PolicyRule, RoleRef, Subject};

use super::{name, one_of};
use crate::field::{Errors, Path};
use crate::names;

const GROUP: &str = "rbac.authorization.k8s.io";

pub(crate) fn rules(rules: Option<&[PolicyRule]>, namespaced: bool, path: &Path, errors: &mut Errors) {
    for (index, one) in rules.unwrap_or_default().iter().enumerate() {
        rule(one, namespaced, &path.index(index), errors);
    }
}

fn rule(rule: &PolicyRule, namespaced: bool, path: &Path, errors: &mut Errors) {
    let empty = |list: &Option<Vec<String>>| list.as_ref().is_none_or(Vec::is_empty);
    if rule.verbs.is_empty() {
        errors.required(&path.child("verbs"), "verbs must contain at least one value");
    }
    if let Some(urls) = rule.non_resource_urls.clone().filter(|urls| !urls.is_empty()) {
        let path = path.child("nonResourceURLs");
        if namespaced {
            errors.invalid(&path, urls.clone(), "namespaced rules cannot apply to non-resource URLs");
        }
        if !empty(&rule.api_groups) || !empty(&rule.resources) || !empty(&rule.resource_names) {
            errors.invalid(&path, urls, "rules cannot apply to both regular resources and non-resource URLs");
        }
        return;
    }
    if empty(&rule.api_groups) {
        errors.required(&path.child("apiGroups"), "resource rules must supply at least one api group");
    }
    if empty(&rule.resources) {
        errors.required(&path.child("resources"), "resource rules must supply at least one resource");
    }
}

pub(crate) fn role_ref(role: &RoleRef, kinds: &[&str], errors: &mut Errors) {
    let path = Path::new("roleRef");
    one_of(Some(role.api_group.as_deref().unwrap_or_default()), &[GROUP], &path.child("apiGroup"), errors);
    one_of(Some(&role.kind), kinds, &path.child("kind"), errors);
    if role.name.is_empty() {
        errors.required(&path.child("name"), "");
    } else {
        name(&role.name, names::path_segment, &path.child("name"), errors);
    }
}

pub(crate) fn subjects(subjects: Option<&[Subject]>, namespaced: bool, errors: &mut Errors) {
    for (index, one) in subjects.unwrap_or_default().iter().enumerate() {
        subject(one, namespaced, &Path::new("subjects").index(index), errors);
    }
}

fn subject(subject: &Subject, namespaced: bool, path: &Path, errors: &mut Errors) {
    if subject.name.is_empty() {
        errors.required(&path.child("name"), "");
    }
    let group = subject.api_group.as_deref().unwrap_or_default();
    match subject.kind.as_str() {
        "ServiceAccount" => {
            if !subject.name.is_empty() {
                name(&subject.name, names::dns_subdomain, &path.child("name"), errors);
            }
            one_of(Some(group), &[""], &path.child("apiGroup"), errors);
            if !namespaced && subject.namespace.as_deref().unwrap_or_default().is_empty() {
                errors.required(&path.child("namespace"), "");
            }
        }
        "User" | "Group" => one_of(Some(group), &[GROUP], &path.child("apiGroup"), errors),
        other => errors.not_supported(&path.child("kind"), other, &["ServiceAccount", "User", "Group"]),
    }
}

pub(crate) fn same_role(old: &RoleRef, new: &RoleRef, errors: &mut Errors) {
    if old != new {
        let value = serde_json::to_value(new).unwrap_or_default();
        errors.invalid(&Path::new("roleRef"), value, "cannot change roleRef");
    }
}
