//! Where a pod may run: tolerations, affinity, spreading, taints.

use k8s_openapi::api::core::v1::{
    Affinity, NodeSelector, NodeSelectorTerm, PodAffinityTerm, Taint, Toleration, TopologySpreadConstraint,
};

use super::{name, one_of};
use crate::field::{Errors, Path};
use crate::{names, selector};

const EFFECTS: [&str; 3] = ["NoExecute", "NoSchedule", "PreferNoSchedule"];

pub(crate) fn tolerations(tolerations: &[Toleration], path: &Path, errors: &mut Errors) {
    for (index, toleration) in tolerations.iter().enumerate() {
        let path = path.index(index);
        let key = toleration.key.as_deref().unwrap_or_default();
        let operator = toleration.operator.as_deref().unwrap_or_default();
        let value = toleration.value.as_deref().unwrap_or_default();
        let effect = toleration.effect.as_deref().unwrap_or_default();
        if !key.is_empty() {
            name(key, names::qualified_name, &path.child("key"), errors);
        } else if operator != "Exists" {
            let detail = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.invalid(&path.child("operator"), operator, detail);
        }
        if toleration.toleration_seconds.is_some() && effect != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.invalid(&path.child("effect"), effect, detail);
        }
        match operator {
            "" | "Equal" => {
                if let Some(complaint) = names::label_value(value).first() {
                    errors.invalid(&path.child("operator"), value, complaint);
                }
            }
            "Exists" if !value.is_empty() => {
                let detail = "value must be empty when `operator` is 'Exists'";
                errors.invalid(&path.child("operator"), value, detail);
            }
            "Exists" => {}
            other => errors.not_supported(&path.child("operator"), other, &["Equal", "Exists"]),
        }
        if !effect.is_empty() {
            one_of(Some(effect), &EFFECTS, &path.child("effect"), errors);
        }
    }
}

pub(crate) fn taints(taints: &[Taint], path: &Path, errors: &mut Errors) {
    for (index, taint) in taints.iter().enumerate() {
        let path = path.index(index);
        name(&taint.key, names::qualified_name, &path.child("key"), errors);
        if let Some(complaint) = names::label_value(taint.value.as_deref().unwrap_or_default()).first() {
            errors.invalid(&path.child("value"), taint.value.clone(), complaint);
        }
        if taint.effect.is_empty() {
            errors.required(&path.child("effect"), "");
        } else {
            one_of(Some(&taint.effect), &EFFECTS, &path.child("effect"), errors);
        }
        if taints[..index].iter().any(|other| (&other.key, &other.effect) == (&taint.key, &taint.effect)) {
            errors.duplicate(&path, serde_json::to_value(taint).unwrap_or_default());
        }
    }
}

pub(crate) fn affinity(affinity: &Affinity, path: &Path, errors: &mut Errors) {
    if let Some(node) = &affinity.node_affinity {
        let path = path.child("nodeAffinity");
        if let Some(required) = &node.required_during_scheduling_ignored_during_execution {
            node_selector(required, &path.child("requiredDuringSchedulingIgnoredDuringExecution"), errors);
        }
        let preferred = node.preferred_during_scheduling_ignored_during_execution.iter().flatten();
        for (index, term) in preferred.enumerate() {
            let path = path.child("preferredDuringSchedulingIgnoredDuringExecution").index(index);
            weight(term.weight, &path, errors);
            node_selector_term(&term.preference, &path.child("preference"), errors);
        }
    }
    let pods = affinity.pod_affinity.as_ref().map(|a| {
        (
            "podAffinity",
            &a.required_during_scheduling_ignored_during_execution,
            &a.preferred_during_scheduling_ignored_during_execution,
        )
    });
    let not_pods = affinity.pod_anti_affinity.as_ref().map(|a| {
        (
            "podAntiAffinity",
            &a.required_during_scheduling_ignored_during_execution,
            &a.preferred_during_scheduling_ignored_during_execution,
        )
    });
    for (field, required, preferred) in pods.into_iter().chain(not_pods) {
        let path = path.child(field);
        for (index, term) in required.iter().flatten().enumerate() {
            pod_term(term, &path.child("requiredDuringSchedulingIgnoredDuringExecution").index(index), errors);
        }
        for (index, term) in preferred.iter().flatten().enumerate() {
            let path = path.child("preferredDuringSchedulingIgnoredDuringExecution").index(index);
            weight(term.weight, &path, errors);
            pod_term(&term.pod_affinity_term, &path.child("podAffinityTerm"), errors);
        }
    }
}

fn weight(weight: i32, path: &Path, errors: &mut Errors) {
    if !(1..=100).contains(&weight) {
        errors.invalid(&path.child("weight"), weight, "must be in the range 1-100");
    }
}

pub(super) fn node_selector(selector: &NodeSelector, path: &Path, errors: &mut Errors) {
    let path = path.child("nodeSelectorTerms");
    if selector.node_selector_terms.is_empty() {
        errors.required(&path, "must have at least one node selector term");
    }
    for (index, term) in selector.node_selector_terms.iter().enumerate() {
        node_selector_term(term, &path.index(index), errors);
    }
}

fn node_selector_term(term: &NodeSelectorTerm, path: &Path, errors: &mut Errors) {
    for (index, requirement) in term.match_expressions.iter().flatten().enumerate() {
        let path = path.child("matchExpressions").index(index);
        let values = requirement.values.as_deref().unwrap_or_default();
        match requirement.operator.as_str() {
            "In" | "NotIn" if values.is_empty() => {
                errors.required(&path.child("values"), "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.forbidden(&path.child("values"), detail);
            }
            "Gt" | "Lt" if values.len() != 1 => {
                let detail = "must be specified single value when `operator` is 'Lt' or 'Gt'";
                errors.required(&path.child("values"), detail);
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            other => errors.invalid(&path.child("operator"), other, "not a valid selector operator"),
        }
        name(&requirement.key, names::qualified_name, &path.child("key"), errors);
    }
    for (index, requirement) in term.match_fields.iter().flatten().enumerate() {
        let path = path.child("matchFields").index(index);
        if requirement.key != "metadata.name" {
            errors.not_supported(&path.child("key"), requirement.key.as_str(), &["metadata.name"]);
        }
        if !matches!(requirement.operator.as_str(), "In" | "NotIn") {
            errors.invalid(&path.child("operator"), requirement.operator.as_str(), "not a valid selector operator");
        }
        if requirement.values.as_ref().map_or(0, Vec::len) != 1 {
            let detail = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
            errors.required(&path.child("values"), detail);
        }
    }
}

fn pod_term(term: &PodAffinityTerm, path: &Path, errors: &mut Errors) {
    let selectors = [("labelSelector", &term.label_selector), ("namespaceSelector", &term.namespace_selector)];
    for (field, labels) in selectors {
        if let Some(labels) = labels {
            selector::validate(labels, &path.child(field), errors);
        }
    }
    for namespace in term.namespaces.iter().flatten() {
        name(namespace, names::dns_label, &path.child("namespace"), errors);
    }
    if term.topology_key.is_empty() {
        errors.required(&path.child("topologyKey"), "can not be empty");
    } else {
        name(&term.topology_key, names::qualified_name, &path.child("topologyKey"), errors);
    }
}

pub(crate) fn spread(constraints: &[TopologySpreadConstraint], path: &Path, errors: &mut Errors) {
    for (index, constraint) in constraints.iter().enumerate() {
        let path = path.index(index);
        if constraint.max_skew <= 0 {
            errors.invalid(&path.child("maxSkew"), constraint.max_skew, super::POSITIVE);
        }
        if constraint.topology_key.is_empty() {
            errors.required(&path.child("topologyKey"), "can not be empty");
        } else {
            name(&constraint.topology_key, names::qualified_name, &path.child("topologyKey"), errors);
        }
        let action = constraint.when_unsatisfiable.as_str();
        one_of(Some(action), &["DoNotSchedule", "ScheduleAnyway"], &path.child("whenUnsatisfiable"), errors);
        let same = |other: &TopologySpreadConstraint| {
            (&other.topology_key, &other.when_unsatisfiable)
                == (&constraint.topology_key, &constraint.when_unsatisfiable)
        };
        if constraints[..index].iter().any(same) {
            let pair = format!("{{{}, {action}}}", constraint.topology_key);
            errors.duplicate(&path.child("{topologyKey, whenUnsatisfiable}"), pair);
        }
        if let Some(domains) = constraint.min_domains.filter(|domains| *domains <= 0) {
            errors.invalid(&path.child("minDomains"), domains, super::POSITIVE);
        }
        if constraint.min_domains.is_some() && action != "DoNotSchedule" {
            let detail = "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway";
            errors.invalid(&path.child("minDomains"), constraint.min_domains, detail);
        }
        if let Some(labels) = &constraint.label_selector {
            selector::validate(labels, &path.child("labelSelector"), errors);
        }
    }
}
