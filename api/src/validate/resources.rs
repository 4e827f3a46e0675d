//! Requests and limits.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::{NON_NEGATIVE, quota};
use crate::field::{Errors, Path};
use crate::names;
use crate::quantity::Amount;

const STANDARD: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];
const PAGES: &str = "hugepages-";

/// What a container asks for.
pub(crate) fn requirements(resources: &ResourceRequirements, path: &Path, errors: &mut Errors) {
    amounts(resources, of_container, path, errors);
}

/// What a pod asks for, for all of its containers.
pub(crate) fn of_pod(resources: &ResourceRequirements, path: &Path, errors: &mut Errors) {
    amounts(resources, of_whole_pod, path, errors);
}

/// Complaints about the name of a resource.
type NameRule = fn(&str, &Path, &mut Errors);

fn amounts(resources: &ResourceRequirements, rule: NameRule, path: &Path, errors: &mut Errors) {
    let empty = BTreeMap::new();
    let limits = resources.limits.as_ref().unwrap_or(&empty);
    let requests = resources.requests.as_ref().unwrap_or(&empty);
    let (of_limits, of_requests) = (path.child("limits"), path.child("requests"));
    for (resource, quantity) in limits {
        let path = of_limits.key(resource);
        rule(resource, &path, errors);
        amount(resource, quantity, &path, errors);
        whole_pages(resource, quantity, &path, errors);
    }
    for (resource, quantity) in requests {
        let path = of_requests.key(resource);
        rule(resource, &path, errors);
        let Some(request) = amount(resource, quantity, &path, errors) else { continue };
        whole_pages(resource, quantity, &path, errors);
        let Some(limit) = limits.get(resource) else {
            if !overcommits(resource) {
                errors.required(&of_limits, "Limit must be set for non overcommitable resources");
            }
            continue;
        };
        let Ok(most) = Amount::parse(&limit.0) else { continue };
        if request != most && !overcommits(resource) {
            let detail = format_args!("must be equal to {resource} limit of {}", limit.0);
            errors.invalid(&of_requests, quantity.0.as_str(), detail);
        } else if request > most {
            let detail = format_args!("must be less than or equal to {resource} limit of {}", limit.0);
            errors.invalid(&of_requests, quantity.0.as_str(), detail);
        }
    }
    let asked = || limits.keys().chain(requests.keys());
    if asked().any(|resource| is_pages(resource)) && !asked().any(|one| matches!(one.as_str(), "cpu" | "memory")) {
        errors.forbidden(path, "HugePages require cpu or memory");
    }
}

/// Whether more of the resource may be promised than there is.
fn overcommits(resource: &str) -> bool {
    is_native(resource) && !is_pages(resource)
}

fn is_pages(resource: &str) -> bool {
    resource.starts_with(PAGES)
}

/// Whether the resource is Kubernetes' own.
fn is_native(resource: &str) -> bool {
    !resource.contains('/') || resource.contains("kubernetes.io/")
}

/// Whether the resource is somebody's own, which comes in pieces.
fn is_extended(resource: &str) -> bool {
    let in_quota = format!("requests.{resource}");
    !is_native(resource) && !resource.starts_with("requests.") && names::qualified_name(&in_quota).is_empty()
}

/// Whether the name may be one of a resource at all.
fn resource_name(resource: &str, path: &Path, errors: &mut Errors) -> bool {
    let complaints = names::qualified_name(resource);
    complaints.iter().for_each(|complaint| errors.invalid(path, resource, complaint));
    let known = resource.contains('/') || quota::is_standard(resource);
    if complaints.is_empty() && !known {
        errors.invalid(path, resource, "must be a standard resource type or fully qualified");
    }
    complaints.is_empty() && known
}

/// Complaints about the name of a resource that a container has.
pub(crate) fn of_container(resource: &str, path: &Path, errors: &mut Errors) {
    resource_name(resource, path, errors);
    if !resource.contains('/') {
        if !STANDARD.contains(&resource) && !is_pages(resource) {
            errors.invalid(path, resource, "must be a standard resource for containers");
        }
    } else if !is_native(resource) && !is_extended(resource) {
        errors.invalid(path, resource, "doesn't follow extended resource name standard");
    }
}

fn of_whole_pod(resource: &str, path: &Path, errors: &mut Errors) {
    if resource_name(resource, path, errors) && !matches!(resource, "cpu" | "memory") && !is_pages(resource) {
        errors.not_supported(path, resource, &["cpu", PAGES, "memory"]);
    }
}

/// Pages are not divided.
fn whole_pages(resource: &str, quantity: &Quantity, path: &Path, errors: &mut Errors) {
    let Some(page) = resource.strip_prefix(PAGES) else { return };
    let Ok(amount) = Amount::parse(&quantity.0) else { return };
    let fits = Amount::parse(page).is_ok_and(|page| {
        page.is_whole() && page.value() > 0 && amount.is_whole() && amount.value() % page.value() == 0
    });
    if !fits {
        let detail = format_args!("{} is not positive integer multiple of {resource}", quantity.0);
        errors.invalid(path, quantity.0.as_str(), detail);
    }
}

/// A quantity that is not negative and, where the resource comes in pieces, whole.
pub(crate) fn amount(resource: &str, quantity: &Quantity, path: &Path, errors: &mut Errors) -> Option<Amount> {
    let amount = match Amount::parse(&quantity.0) {
        Ok(amount) => amount,
        Err(error) => {
            errors.invalid(path, quantity.0.as_str(), error);
            return None;
        }
    };
    if amount.is_negative() {
        errors.invalid(path, quantity.0.as_str(), NON_NEGATIVE);
    }
    if is_extended(resource) && !amount.is_whole() {
        errors.invalid(path, quantity.0.as_str(), "must be an integer");
    }
    Some(amount)
}
