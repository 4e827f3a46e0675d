//! ResourceQuotas and LimitRanges.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{LimitRangeItem, ResourceQuotaSpec, ScopedResourceSelectorRequirement};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::{NON_NEGATIVE, name};
use crate::field::{Errors, Path};
use crate::names;
use crate::quantity::Amount;

/// What is counted, and so comes whole.
const COUNTED: [&str; 9] = [
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];
const MEASURED: [&str; 10] = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.storage",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
];
const POD_SCOPES: [&str; 6] =
    ["Terminating", "NotTerminating", "BestEffort", "NotBestEffort", "PriorityClass", "CrossNamespacePodAffinity"];
const CLAIM_SCOPE: &str = "VolumeAttributesClass";

type Amounts = BTreeMap<String, Quantity>;

pub(crate) fn spec(spec: &ResourceQuotaSpec, path: &Path, errors: &mut Errors) {
    amounts(spec.hard.as_ref(), &path.child("hard"), errors);
    scopes(spec, path, errors);
    let requirements = spec.scope_selector.iter().flat_map(|selector| selector.match_expressions.iter().flatten());
    for (index, requirement) in requirements.enumerate() {
        let path = path.child("scopeSelector").child("matchExpressions").index(index);
        scope_requirement(requirement, &path, errors);
    }
}

pub(crate) fn amounts(amounts: Option<&Amounts>, path: &Path, errors: &mut Errors) {
    for (resource, quantity) in amounts.into_iter().flatten() {
        let path = path.key(resource);
        name(resource, names::qualified_name, &path, errors);
        if !resource.contains('/') && !is_quota_resource(resource) {
            errors.invalid(&path, resource.as_str(), "must be a standard resource for quotas");
        }
        if let Some(amount) = positive_amount(quantity, &path, errors) {
            let counted = COUNTED.contains(&resource.as_str()) || resource.contains('/');
            if counted && !amount.is_whole() {
                errors.invalid(&path, quantity.0.as_str(), "must be an integer");
            }
        }
    }
}

fn is_quota_resource(resource: &str) -> bool {
    let huge = ["hugepages-", "requests.hugepages-"].iter().any(|prefix| resource.starts_with(prefix));
    COUNTED.contains(&resource) || MEASURED.contains(&resource) || huge
}

/// Whether a resource without a domain is one that Kubernetes knows.
pub(crate) fn is_standard(resource: &str) -> bool {
    is_quota_resource(resource) || resource == "storage"
}

fn positive_amount(quantity: &Quantity, path: &Path, errors: &mut Errors) -> Option<Amount> {
    let amount = Amount::parse(&quantity.0).map_err(|error| errors.invalid(path, quantity.0.as_str(), error)).ok()?;
    if amount.is_negative() {
        errors.invalid(path, quantity.0.as_str(), NON_NEGATIVE);
    }
    Some(amount)
}

fn scopes(spec: &ResourceQuotaSpec, path: &Path, errors: &mut Errors) {
    let Some(scopes) = spec.scopes.as_ref().filter(|scopes| !scopes.is_empty()) else { return };
    let path = path.child("scopes");
    let distinct: BTreeSet<&str> = scopes.iter().map(String::as_str).collect();
    for scope in &distinct {
        if !POD_SCOPES.contains(scope) && *scope != CLAIM_SCOPE {
            errors.invalid(&path, scopes.clone(), "unsupported scope");
        }
        for resource in spec.hard.iter().flatten().map(|(resource, _)| resource.as_str()) {
            if !fits(scope, resource) {
                errors.invalid(&path, scopes.clone(), "unsupported scope applied to resource");
            }
        }
    }
    for (one, other) in [("BestEffort", "NotBestEffort"), ("Terminating", "NotTerminating")] {
        if distinct.contains(one) && distinct.contains(other) {
            errors.invalid(&path, scopes.clone(), "conflicting scopes");
        }
    }
}

/// Whether a quota of this scope may limit the resource.
fn fits(scope: &str, resource: &str) -> bool {
    let of_pods = || resource == "pods" || resource == "count/pods";
    let of_compute = || {
        ["cpu", "memory", "ephemeral-storage"]
            .contains(&resource.trim_start_matches("requests.").trim_start_matches("limits."))
            || resource.contains("hugepages-")
            || (resource.starts_with("requests.") && resource.contains('/'))
    };
    match scope {
        "BestEffort" => of_pods(),
        CLAIM_SCOPE => resource == "persistentvolumeclaims" || resource == "requests.storage",
        _ if POD_SCOPES.contains(&scope) => of_pods() || of_compute(),
        _ => true,
    }
}

fn scope_requirement(requirement: &ScopedResourceSelectorRequirement, path: &Path, errors: &mut Errors) {
    let scope = requirement.scope_name.as_str();
    let values = requirement.values.as_deref().unwrap_or_default();
    if !POD_SCOPES.contains(&scope) && scope != CLAIM_SCOPE {
        errors.invalid(&path.child("scopeName"), scope, "unsupported scope");
    }
    let valued = matches!(scope, "PriorityClass" | CLAIM_SCOPE);
    if !valued && requirement.operator != "Exists" {
        let detail = "must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, \
                      ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, \
                      ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
        errors.invalid(&path.child("operator"), requirement.operator.as_str(), detail);
    }
    match requirement.operator.as_str() {
        "In" | "NotIn" if values.is_empty() => {
            let detail = "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
            errors.required(&path.child("values"), detail);
        }
        "In" | "NotIn" => {}
        "Exists" | "DoesNotExist" if values.is_empty() => {}
        "Exists" | "DoesNotExist" => {
            let detail = "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector";
            errors.invalid(&path.child("values"), values.to_vec(), detail);
        }
        other => errors.invalid(&path.child("operator"), other, "not a valid selector operator"),
    }
}

pub(crate) fn limits(limits: &[LimitRangeItem], path: &Path, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (index, item) in limits.iter().enumerate() {
        let path = path.index(index);
        name(&item.type_, names::qualified_name, &path.child("type"), errors);
        let standard = matches!(item.type_.as_str(), "Container" | "Pod" | "PersistentVolumeClaim");
        if !item.type_.contains('/') && !standard {
            let detail = "must be a standard limit type or fully qualified";
            errors.invalid(&path.child("type"), item.type_.as_str(), detail);
        }
        if !seen.insert(&item.type_) {
            errors.duplicate(&path.child("type"), item.type_.as_str());
        }
        limit(item, &path, errors);
    }
}

fn limit(item: &LimitRangeItem, path: &Path, errors: &mut Errors) {
    let maps = [
        ("max", &item.max),
        ("min", &item.min),
        ("default", &item.default),
        ("defaultRequest", &item.default_request),
        ("maxLimitRequestRatio", &item.max_limit_request_ratio),
    ];
    let mut resources = BTreeSet::new();
    for (field, map) in maps {
        if item.type_ == "Pod" && field.starts_with("default") {
            if map.as_ref().is_some_and(|map| !map.is_empty()) {
                errors.forbidden(&path.child(field), "may not be specified when `type` is 'Pod'");
            }
            continue;
        }
        for resource in map.iter().flatten().map(|(resource, _)| resource) {
            limited_resource(&item.type_, resource, &path.child(field).key(resource), errors);
            resources.insert(resource.as_str());
        }
    }
    if item.type_ == "PersistentVolumeClaim" {
        let storage = |map: &Option<Amounts>| map.as_ref().is_some_and(|map| map.contains_key("storage"));
        if !storage(&item.min) && !storage(&item.max) {
            let detail = "either minimum or maximum storage value is required, but neither was provided";
            errors.required(&path.child("limits"), detail);
        }
    }
    for resource in resources {
        order(item, resource, path, errors);
    }
}

fn limited_resource(type_: &str, resource: &str, path: &Path, errors: &mut Errors) {
    name(resource, names::qualified_name, path, errors);
    let compute = matches!(resource, "cpu" | "memory" | "ephemeral-storage") || resource.starts_with("hugepages-");
    if resource.contains('/') || compute {
        return;
    }
    match type_ {
        "Pod" | "Container" => errors.invalid(path, resource, "must be a standard resource for containers"),
        _ if resource == "storage" || COUNTED.contains(&resource) || MEASURED.contains(&resource) => {}
        _ => errors.invalid(path, resource, "must be a standard resource type or fully qualified"),
    }
}

/// The minimum is below the defaults, and these are below the maximum.
fn order(item: &LimitRangeItem, resource: &str, path: &Path, errors: &mut Errors) {
    let of = |map: &Option<Amounts>| {
        let quantity = map.as_ref()?.get(resource)?;
        Some((Amount::parse(&quantity.0).ok()?, quantity.0.clone()))
    };
    let (min, max, default, request) = (of(&item.min), of(&item.max), of(&item.default), of(&item.default_request));
    let mut check = |low: (&str, &Option<(Amount, String)>),
                     high: (&str, &Option<(Amount, String)>),
                     field: &str,
                     shown: &Option<(Amount, String)>| {
        let ((low_words, Some(low)), (high_words, Some(high))) = (low, high) else { return };
        if low.0 > high.0 {
            let shown = shown.as_ref().map(|(_, text)| text.clone()).unwrap_or_default();
            let detail = format!("{low_words} value {} is greater than {high_words} value {}", low.1, high.1);
            errors.invalid(&path.child(field).key(resource), shown, detail);
        }
    };
    check(("min", &min), ("max", &max), "min", &min);
    check(("min", &min), ("default request", &request), "defaultRequest", &request);
    check(("default request", &request), ("max", &max), "defaultRequest", &request);
    check(("default request", &request), ("default limit", &default), "defaultRequest", &request);
    check(("min", &min), ("default", &default), "default", &min);
    check(("default", &default), ("max", &max), "default", &max);
    if let Some((ratio, text)) = of(&item.max_limit_request_ratio)
        && ratio < Amount::units(1, crate::quantity::Notation::Decimal)
    {
        let detail = format_args!("ratio {text} is less than 1");
        errors.invalid(&path.child("maxLimitRequestRatio").key(resource), text.as_str(), detail);
    }
}
