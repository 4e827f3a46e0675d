//! What a namespace's LimitRanges give to pods that say nothing, and what they refuse.
//!
//! Defined by the Kubernetes API reference, `LimitRange`; the words are those of upstream's `LimitRanger`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Container, LimitRange, LimitRangeItem, PersistentVolumeClaim, Pod, ResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::usage::{self, Amounts};
use crate::quantity::Amount;

/// Says which of a pod's resources came from here.
const ANNOTATION: &str = "kubernetes.io/limit-ranger";

/// Fills in requests and limits of containers; says whether anything was filled in.
pub(super) fn default(pod: &mut Pod, ranges: &[LimitRange]) -> bool {
    let mut told = Vec::new();
    for item in items(ranges, "Container") {
        let Some(spec) = &mut pod.spec else { continue };
        let init = spec.init_containers.iter_mut().flatten().map(|container| (container, "init container"));
        for (container, what) in spec.containers.iter_mut().map(|container| (container, "container")).chain(init) {
            default_container(container, what, item, &mut told);
        }
    }
    if told.is_empty() {
        return false;
    }
    let text = format!("LimitRanger plugin set: {}", told.join("; "));
    pod.metadata.annotations.get_or_insert_default().insert(ANNOTATION.to_owned(), text);
    true
}

fn default_container(container: &mut Container, what: &str, item: &LimitRangeItem, told: &mut Vec<String>) {
    let resources = container.resources.get_or_insert_default();
    let mut fill =
        |map: &mut Option<BTreeMap<String, Quantity>>, defaults: &Option<BTreeMap<String, Quantity>>, word: &str| {
            let mut set = Vec::new();
            for (resource, quantity) in defaults.iter().flatten() {
                let map = map.get_or_insert_default();
                if !map.contains_key(resource) {
                    map.insert(resource.clone(), quantity.clone());
                    set.push(resource.as_str());
                }
            }
            if !set.is_empty() {
                told.push(format!("{} {word} for {what} {}", set.join(", "), container.name));
            }
        };
    fill(&mut resources.requests, &item.default_request, "request");
    fill(&mut resources.limits, &item.default, "limit");
}

fn items<'a>(ranges: &'a [LimitRange], type_: &'a str) -> impl Iterator<Item = &'a LimitRangeItem> {
    let limits = ranges.iter().flat_map(|range| range.spec.iter().flat_map(|spec| &spec.limits));
    limits.filter(move |item| item.type_ == type_)
}

/// What the ranges refuse in a pod.
pub(super) fn check(pod: &Pod, ranges: &[LimitRange]) -> Vec<String> {
    let mut complaints = Vec::new();
    let Some(spec) = &pod.spec else { return complaints };
    let none = ResourceRequirements::default();
    for item in items(ranges, "Container") {
        for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
            let resources = container.resources.as_ref().unwrap_or(&none);
            let of = |map: &Option<BTreeMap<String, Quantity>>| usage::amounts(map.as_ref());
            hold(item, &of(&resources.requests), &of(&resources.limits), &mut complaints);
        }
    }
    for item in items(ranges, "Pod") {
        hold(item, &usage::requests(spec), &usage::limits(spec), &mut complaints);
    }
    complaints
}

/// What the ranges refuse in a claim.
pub(super) fn check_claim(claim: &PersistentVolumeClaim, ranges: &[LimitRange]) -> Vec<String> {
    let mut complaints = Vec::new();
    let resources = claim.spec.as_ref().and_then(|spec| spec.resources.clone()).unwrap_or_default();
    let requests = usage::amounts(resources.requests.as_ref());
    for item in items(ranges, "PersistentVolumeClaim") {
        hold(item, &requests, &Amounts::new(), &mut complaints);
    }
    complaints
}

fn hold(item: &LimitRangeItem, requests: &Amounts, limits: &Amounts, complaints: &mut Vec<String>) {
    let type_ = item.type_.as_str();
    for (resource, min) in usage::amounts(item.min.as_ref()) {
        let (request, limit) = (requests.get(&resource), limits.get(&resource));
        let head = format!("minimum {resource} usage per {type_} is {min}");
        match (request, limit) {
            (None, _) => complaints.push(format!("{head}.  No request is specified")),
            (Some(request), _) if *request < min => complaints.push(format!("{head}, but request is {request}")),
            (_, Some(limit)) if *limit < min => complaints.push(format!("{head}, but limit is {limit}")),
            _ => {}
        }
    }
    for (resource, max) in usage::amounts(item.max.as_ref()) {
        let (request, limit) = (requests.get(&resource), limits.get(&resource));
        let head = format!("maximum {resource} usage per {type_} is {max}");
        // A claim has no limits.
        let needs_limit = type_ != "PersistentVolumeClaim";
        match (request, limit) {
            (_, None) if needs_limit => complaints.push(format!("{head}.  No limit is specified")),
            (_, Some(limit)) if *limit > max => complaints.push(format!("{head}, but limit is {limit}")),
            (Some(request), _) if *request > max => complaints.push(format!("{head}, but request is {request}")),
            _ => {}
        }
    }
    for (resource, most) in usage::amounts(item.max_limit_request_ratio.as_ref()) {
        ratio(&resource, type_, most, requests.get(&resource), limits.get(&resource), complaints);
    }
}

fn ratio(
    resource: &str,
    type_: &str,
    most: Amount,
    request: Option<&Amount>,
    limit: Option<&Amount>,
    complaints: &mut Vec<String>,
) {
    let head = format!("{resource} max limit to request ratio per {type_} is {most}");
    let (Some(request), Some(limit)) = (request.filter(|request| !request.is_zero()), limit.filter(|l| !l.is_zero()))
    else {
        let missing = if request.is_none_or(|request| request.is_zero()) { "request" } else { "limit" };
        return complaints.push(format!("{head}, but no {missing} is specified or {missing} is 0"));
    };
    // Only shown, and compared with one part in a million: floating point will do.
    let provided = limit.milli_value() as f64 / request.milli_value().max(1) as f64;
    if provided > most.milli_value() as f64 / 1000.0 {
        complaints.push(format!("{head}, but provided ratio is {provided:.6}"));
    }
}
