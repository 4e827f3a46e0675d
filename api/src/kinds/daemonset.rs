//! DaemonSets: a pod on every node.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{self as apps, DaemonSetUpdateStrategy};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use super::{BuiltIn, Info};
use crate::columns::{self, Column};
use crate::defaults::{self, set, set_text};
use crate::field::{Errors, Path};
use crate::validate::{self, workload};
use crate::warn::{self, Warnings};

/// Counts the changes of the template, for clients of old.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

pub struct DaemonSet;

impl BuiltIn for DaemonSet {
    type Object = apps::DaemonSet;
    const INFO: Info = Info {
        group: "apps",
        kind: "DaemonSet",
        plural: "daemonsets",
        singular: "daemonset",
        short_names: &["ds"],
        categories: &["all"],
        subresources: &["status"],
        generation: true,
        schema: "io.k8s.api.apps.v1.DaemonSet",
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] = &[
        columns::NAME,
        Column::number("Desired"),
        Column::number("Current"),
        Column::number("Ready"),
        Column::number("Up-to-date"),
        Column::number("Available"),
        Column::text("Node Selector"),
        columns::AGE,
        Column::wide("Containers"),
        Column::wide("Images"),
        Column::wide("Selector"),
    ];

    fn default(set_: &mut apps::DaemonSet) {
        let spec = &mut set_.spec;
        let strategy = spec.update_strategy.get_or_insert_default();
        set_text(&mut strategy.type_, "RollingUpdate");
        if strategy.type_.as_deref() == Some("RollingUpdate") {
            let rolling = strategy.rolling_update.get_or_insert_default();
            set(&mut rolling.max_unavailable, || IntOrString::Int(1));
            set(&mut rolling.max_surge, || IntOrString::Int(0));
        }
        set(&mut spec.revision_history_limit, || 10);
        defaults::template(&mut spec.template);
    }

    fn create(set: &mut apps::DaemonSet) {
        set.status = Some(apps::DaemonSetStatus::default());
        set_template_generation(set, 1);
    }

    fn update(old: &apps::DaemonSet, new: &mut apps::DaemonSet) {
        let annotations = old.metadata.annotations.as_ref();
        let count = annotations.and_then(|all| all.get(TEMPLATE_GENERATION)?.parse::<i64>().ok()).unwrap_or(1);
        set_template_generation(new, count + i64::from(old.spec.template != new.spec.template));
    }

    fn validate(set: &apps::DaemonSet, errors: &mut Errors) {
        let (path, spec) = (Path::new("spec"), &set.spec);
        workload::selector(&spec.selector, &spec.template, "daemonset", &path, errors);
        validate::non_negative(spec.min_ready_seconds, &path.child("minReadySeconds"), errors);
        validate::non_negative(spec.revision_history_limit, &path.child("revisionHistoryLimit"), errors);
        if let Some(strategy) = &spec.update_strategy {
            update_strategy(strategy, &path.child("updateStrategy"), errors);
        }
        workload::running_template(&spec.template, "DaemonSet", &path.child("template"), errors);
    }

    fn validate_update(old: &apps::DaemonSet, new: &apps::DaemonSet, errors: &mut Errors) {
        let path = Path::new("spec").child("selector");
        validate::immutable(&old.spec.selector, &new.spec.selector, &path, errors);
    }

    fn validate_status(new: &apps::DaemonSet, errors: &mut Errors) {
        let Some(status) = &new.status else { return };
        workload::counts(
            &[
                ("currentNumberScheduled", Some(status.current_number_scheduled.into())),
                ("numberMisscheduled", Some(status.number_misscheduled.into())),
                ("desiredNumberScheduled", Some(status.desired_number_scheduled.into())),
                ("numberReady", Some(status.number_ready.into())),
                ("observedGeneration", status.observed_generation),
                ("updatedNumberScheduled", status.updated_number_scheduled.map(i64::from)),
                ("numberAvailable", status.number_available.map(i64::from)),
                ("numberUnavailable", status.number_unavailable.map(i64::from)),
                ("collisionCount", status.collision_count.map(i64::from)),
            ],
            errors,
        );
    }

    fn warn(old: Option<&apps::DaemonSet>, new: &apps::DaemonSet, warnings: &mut Warnings) {
        if !warn::is_told(old, new) {
            warn::pod::template(&new.spec.template, &Path::new("spec").child("template"), warnings);
        }
    }

    fn changed(old: &Value, new: &Value) -> bool {
        old.get("spec") != new.get("spec")
    }

    fn row(set: &apps::DaemonSet, now: Timestamp) -> Vec<String> {
        let status = set.status.clone().unwrap_or_default();
        let pods = set.spec.template.spec.clone().unwrap_or_default();
        vec![
            columns::name(&set.metadata),
            status.desired_number_scheduled.to_string(),
            status.current_number_scheduled.to_string(),
            status.number_ready.to_string(),
            status.updated_number_scheduled.unwrap_or_default().to_string(),
            status.number_available.unwrap_or_default().to_string(),
            columns::labels(pods.node_selector.as_ref()),
            columns::age(&set.metadata, now),
            columns::containers(&pods.containers),
            columns::images(&pods.containers),
            columns::selector(Some(&set.spec.selector)),
        ]
    }
}

fn set_template_generation(set: &mut apps::DaemonSet, count: i64) {
    set.metadata.annotations.get_or_insert_default().insert(TEMPLATE_GENERATION.to_owned(), count.to_string());
}

fn update_strategy(strategy: &DaemonSetUpdateStrategy, path: &Path, errors: &mut Errors) {
    match (strategy.type_.as_deref().unwrap_or_default(), &strategy.rolling_update) {
        ("OnDelete", _) => {}
        ("RollingUpdate", None) => errors.required(&path.child("rollingUpdate"), ""),
        ("RollingUpdate", Some(rolling)) => {
            let path = path.child("rollingUpdate");
            let unavailable = rolling.max_unavailable.clone().unwrap_or_default();
            let surge = rolling.max_surge.clone().unwrap_or_default();
            for (field, share) in [("maxUnavailable", &unavailable), ("maxSurge", &surge)] {
                workload::share(share, &path.child(field), errors);
                workload::at_most_100_percent(share, &path.child(field), errors);
            }
            match (workload::is_zero(&unavailable), workload::is_zero(&surge)) {
                (true, true) => errors.required(&path.child("maxUnavailable"), "cannot be 0 when maxSurge is 0"),
                (false, false) => {
                    let detail = "may not be set when maxUnavailable is non-zero";
                    errors.invalid(&path.child("maxSurge"), columns::int_or_string(&surge), detail);
                }
                _ => {}
            }
        }
        (other, _) => errors.not_supported(&path.child("type"), other, &["OnDelete", "RollingUpdate"]),
    }
}
