//! What becomes of the default roles and bindings when a version starts: what is missing is added, what people added
//! stays, and what they marked as theirs is left alone.

use std::collections::BTreeMap;

use flotilla_api::k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule};
use flotilla_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::cover::covers;
use super::defaults::AUTO_UPDATE;

/// The stored role with what it lacks of `expected`; `None` if it lacks nothing or is not to be touched.
pub fn reconcile_role(expected: &ClusterRole, stored: &ClusterRole) -> Option<ClusterRole> {
    if is_protected(&stored.metadata) {
        return None;
    }
    let mut next = stored.clone();
    add_metadata(&expected.metadata, &mut next.metadata);
    match &expected.aggregation_rule {
        // Its rules are gathered from others.
        Some(expected) => {
            let selectors =
                next.aggregation_rule.get_or_insert_default().cluster_role_selectors.get_or_insert_default();
            for selector in expected.cluster_role_selectors.iter().flatten() {
                if !selectors.contains(selector) {
                    selectors.push(selector.clone());
                }
            }
        }
        None => {
            let held: Vec<&PolicyRule> = stored.rules.iter().flatten().collect();
            let missing = covers(&held, expected.rules.as_deref().unwrap_or_default());
            if !missing.is_empty() {
                next.rules.get_or_insert_default().extend(missing);
            }
        }
    }
    (next != *stored).then_some(next)
}

/// As [`reconcile_role`], for a binding. The role that a binding names cannot change, so that a binding of another role is
/// replaced: the answer then carries `expected`'s metadata, without a uid.
pub fn reconcile_binding(expected: &ClusterRoleBinding, stored: &ClusterRoleBinding) -> Option<ClusterRoleBinding> {
    if is_protected(&stored.metadata) {
        return None;
    }
    if stored.role_ref != expected.role_ref {
        return Some(expected.clone());
    }
    let mut next = stored.clone();
    add_metadata(&expected.metadata, &mut next.metadata);
    for subject in expected.subjects.iter().flatten() {
        let subjects = next.subjects.get_or_insert_default();
        if !subjects.contains(subject) {
            subjects.push(subject.clone());
        }
    }
    (next != *stored).then_some(next)
}

fn is_protected(metadata: &ObjectMeta) -> bool {
    metadata.annotations.as_ref().and_then(|all| all.get(AUTO_UPDATE)).is_some_and(|value| value == "false")
}

/// Labels and annotations that are there already keep their values.
fn add_metadata(expected: &ObjectMeta, into: &mut ObjectMeta) {
    let add = |from: &Option<BTreeMap<String, String>>, into: &mut Option<BTreeMap<String, String>>| {
        for (name, value) in from.iter().flatten() {
            into.get_or_insert_default().entry(name.clone()).or_insert_with(|| value.clone());
        }
    };
    add(&expected.labels, &mut into.labels);
    add(&expected.annotations, &mut into.annotations);
}

#[cfg(test)]
mod tests {
    use super::super::{default_bindings, default_roles, defaults::rule};
    use super::*;

    fn role(name: &str) -> ClusterRole {
        default_roles().into_iter().find(|role| role.metadata.name.as_deref() == Some(name)).unwrap()
    }

    fn binding(name: &str) -> ClusterRoleBinding {
        default_bindings().into_iter().find(|binding| binding.metadata.name.as_deref() == Some(name)).unwrap()
    }

    #[test]
    fn defaults_lack_nothing_of_themselves() {
        assert!(default_roles().iter().all(|role| reconcile_role(role, role).is_none()));
        assert!(default_bindings().iter().all(|binding| reconcile_binding(binding, binding).is_none()));
    }

    #[test]
    fn a_rule_that_was_taken_out_comes_back_and_one_that_was_added_stays() {
        let expected = role("system:discovery");
        let mut stored = expected.clone();
        stored.rules = Some(vec![rule("get", "example.com", "tanks")]);
        stored.metadata.labels.as_mut().unwrap().insert("kubernetes.io/bootstrapping".into(), "mine".into());
        let next = reconcile_role(&expected, &stored).unwrap();
        assert_eq!(next.metadata.labels.as_ref().unwrap()["kubernetes.io/bootstrapping"], "mine");
        let rules = next.rules.as_ref().unwrap();
        assert_eq!(rules[0], rule("get", "example.com", "tanks"));
        assert!(covers(&rules.iter().collect::<Vec<_>>(), expected.rules.as_ref().unwrap()).is_empty());
        assert!(reconcile_role(&expected, &next).is_none());
    }

    #[test]
    fn what_is_marked_as_somebodys_own_is_left_alone() {
        let (expected, mut stored) = (role("system:discovery"), role("system:discovery"));
        stored.rules = None;
        stored.metadata.annotations.as_mut().unwrap().insert(AUTO_UPDATE.into(), "false".into());
        assert!(reconcile_role(&expected, &stored).is_none());
        let (expected, mut stored) = (binding("system:discovery"), binding("system:discovery"));
        stored.subjects = None;
        stored.metadata.annotations.as_mut().unwrap().insert(AUTO_UPDATE.into(), "false".into());
        assert!(reconcile_binding(&expected, &stored).is_none());
    }

    #[test]
    fn selectors_and_subjects_are_added() {
        let (expected, mut stored) = (role("view"), role("view"));
        stored.aggregation_rule = None;
        stored.rules = Some(vec![rule("get", "core", "pods")]);
        let next = reconcile_role(&expected, &stored).unwrap();
        assert_eq!((next.aggregation_rule, next.rules), (expected.aggregation_rule, stored.rules));
        let (expected, mut stored) = (binding("system:discovery"), binding("system:discovery"));
        stored.subjects.as_mut().unwrap()[0].name = "others".into();
        let next = reconcile_binding(&expected, &stored).unwrap();
        assert_eq!(next.subjects.unwrap().len(), 2);
        stored.role_ref.name = "cluster-admin".into();
        assert_eq!(reconcile_binding(&expected, &stored), Some(expected));
    }
}
