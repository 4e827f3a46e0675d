//! Leases: who holds something, and until when.

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1 as coordination;

use super::{BuiltIn, Info};
use crate::columns::{self, Column};
use crate::field::{Errors, Path};
use crate::names;

pub struct Lease;

impl BuiltIn for Lease {
    type Object = coordination::Lease;
    const INFO: Info = Info {
        group: "coordination.k8s.io",
        kind: "Lease",
        plural: "leases",
        singular: "lease",
        schema: "io.k8s.api.coordination.v1.Lease",
        unconditional_update: false,
        create_on_update: true,
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] = &[columns::NAME, Column::text("Holder"), columns::AGE];

    fn validate(lease: &coordination::Lease, errors: &mut Errors) {
        let Some(spec) = &lease.spec else { return };
        let path = Path::new("spec");
        if let Some(seconds) = spec.lease_duration_seconds.filter(|seconds| *seconds <= 0) {
            errors.invalid(&path.child("leaseDurationSeconds"), seconds, "must be greater than 0");
        }
        if let Some(count) = spec.lease_transitions.filter(|count| *count < 0) {
            errors.invalid(&path.child("leaseTransitions"), count, "must be greater than or equal to 0");
        }
        if spec.preferred_holder.as_deref().is_some_and(|h| !h.is_empty()) && spec.strategy.is_none() {
            errors.forbidden(&path.child("preferredHolder"), "may only be specified when `strategy` is defined");
        }
        if let Some(strategy) = spec.strategy.as_deref() {
            validate_strategy(strategy, &path.child("strategy"), errors);
        }
    }

    fn row(lease: &coordination::Lease, now: Timestamp) -> Vec<String> {
        let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone()).unwrap_or_default();
        vec![columns::name(&lease.metadata), holder, columns::age(&lease.metadata, now)]
    }
}

/// The one that Kubernetes has, or somebody's own under a name with a domain.
fn validate_strategy(strategy: &str, path: &Path, errors: &mut Errors) {
    match strategy {
        "OldestEmulationVersion" => {}
        own if own.contains('/') => {
            names::qualified_name(own).iter().for_each(|complaint| errors.invalid(path, own, complaint));
        }
        other => errors.not_supported(path, other, &["OldestEmulationVersion"]),
    }
}
