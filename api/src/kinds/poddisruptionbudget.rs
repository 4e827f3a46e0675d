//! PodDisruptionBudgets: how many pods of an application may be taken away at once.

use jiff::Timestamp;
use k8s_openapi::api::policy::v1::{self as policy, PodDisruptionBudgetStatus};
use serde_json::json;

use super::{BuiltIn, Info};
use crate::columns::{self, Column};
use crate::field::{Errors, Path};
use crate::selector;
use crate::validate::{self, workload};

pub struct PodDisruptionBudget;

impl BuiltIn for PodDisruptionBudget {
    type Object = policy::PodDisruptionBudget;
    const INFO: Info = Info {
        group: "policy",
        kind: "PodDisruptionBudget",
        plural: "poddisruptionbudgets",
        singular: "poddisruptionbudget",
        short_names: &["pdb"],
        subresources: &["status"],
        generation: true,
        schema: "io.k8s.api.policy.v1.PodDisruptionBudget",
        unconditional_update: false,
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] = &[
        columns::NAME,
        Column::text("Min Available"),
        Column::text("Max Unavailable"),
        Column::number("Allowed Disruptions"),
        columns::AGE,
    ];

    fn create(budget: &mut policy::PodDisruptionBudget) {
        budget.status = Some(PodDisruptionBudgetStatus {
            current_healthy: Some(0),
            desired_healthy: Some(0),
            disruptions_allowed: Some(0),
            expected_pods: Some(0),
            ..PodDisruptionBudgetStatus::default()
        });
    }

    fn validate(budget: &policy::PodDisruptionBudget, errors: &mut Errors) {
        let path = Path::new("spec");
        let Some(spec) = &budget.spec else { return };
        if let (Some(min), Some(max)) = (&spec.min_available, &spec.max_unavailable) {
            let value = json!({"minAvailable": min, "maxUnavailable": max});
            errors.invalid(&path, value, "minAvailable and maxUnavailable cannot be both set");
        }
        let shares = [("minAvailable", &spec.min_available), ("maxUnavailable", &spec.max_unavailable)];
        for (field, share) in shares {
            if let Some(share) = share {
                workload::share(share, &path.child(field), errors);
                workload::at_most_100_percent(share, &path.child(field), errors);
            }
        }
        if let Some(labels) = &spec.selector {
            selector::validate(labels, &path.child("selector"), errors);
        }
        let policies = ["AlwaysAllow", "IfHealthyBudget"];
        let policy = spec.unhealthy_pod_eviction_policy.as_deref();
        validate::one_of(policy, &policies, &path.child("unhealthyPodEvictionPolicy"), errors);
    }

    fn validate_status(new: &policy::PodDisruptionBudget, errors: &mut Errors) {
        let Some(status) = &new.status else { return };
        let path = Path::new("status");
        for (field, value) in [
            ("disruptionsAllowed", status.disruptions_allowed),
            ("currentHealthy", status.current_healthy),
            ("desiredHealthy", status.desired_healthy),
            ("expectedPods", status.expected_pods),
        ] {
            validate::non_negative(value, &path.child(field), errors);
        }
    }

    fn row(budget: &policy::PodDisruptionBudget, now: Timestamp) -> Vec<String> {
        let spec = budget.spec.clone().unwrap_or_default();
        let share = |share: Option<&_>| share.map_or_else(|| "N/A".to_owned(), columns::int_or_string);
        vec![
            columns::name(&budget.metadata),
            share(spec.min_available.as_ref()),
            share(spec.max_unavailable.as_ref()),
            budget.status.as_ref().and_then(|status| status.disruptions_allowed).unwrap_or_default().to_string(),
            columns::age(&budget.metadata, now),
        ]
    }
}
