//! Requests and limits.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::{NON_NEGATIVE, name};
use crate::field::{Errors, Path};
use crate::names;
use crate::quantity::Amount;

const STANDARD: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

pub(crate) fn requirements(resources: &ResourceRequirements, path: &Path, errors: &mut Errors) {
    let empty = BTreeMap::new();
    let limits = resources.limits.as_ref().unwrap_or(&empty);
    let requests = resources.requests.as_ref().unwrap_or(&empty);
    for (resource, quantity) in limits {
        let path = path.child("limits").key(resource);
        resource_name(resource, &path, errors);
        amount(resource, quantity, &path, errors);
    }
    for (resource, quantity) in requests {
        let path = path.child("requests").key(resource);
        resource_name(resource, &path, errors);
        let Some(request) = amount(resource, quantity, &path, errors) else { continue };
        let Some(limit) = limits.get(resource) else {
            if !overcommits(resource) {
                errors.required(&path, "Limit must be set for non overcommitable resources");
            }
            continue;
        };
        let Ok(most) = Amount::parse(&limit.0) else { continue };
        if request > most {
            let detail = format_args!("must be less than or equal to {resource} limit of {}", limit.0);
            errors.invalid(&path, quantity.0.as_str(), detail);
        } else if request != most && !overcommits(resource) {
            let detail = format_args!("must be equal to {resource} limit of {}", limit.0);
            errors.invalid(&path, quantity.0.as_str(), detail);
        }
    }
}

/// Whether more of the resource may be promised than there is.
fn overcommits(resource: &str) -> bool {
    STANDARD.contains(&resource)
}

fn resource_name(resource: &str, path: &Path, errors: &mut Errors) {
    name(resource, names::qualified_name, path, errors);
    if !resource.contains('/') && !STANDARD.contains(&resource) && !resource.starts_with("hugepages-") {
        errors.invalid(path, resource, "must be a standard resource for containers");
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
    if resource.contains('/') && !amount.is_whole() {
        errors.invalid(path, quantity.0.as_str(), "must be an integer");
    }
    Some(amount)
}
