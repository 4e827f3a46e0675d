//! ReplicaSets: so many pods of one template.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1 as apps;
use serde_json::Value;

use super::{BuiltIn, Info};
use crate::columns::{self, Column};
use crate::defaults::{self, set};
use crate::field::{Errors, Path};
use crate::validate::{self, workload};
use crate::warn::{self, Warnings};

pub struct ReplicaSet;

impl BuiltIn for ReplicaSet {
    type Object = apps::ReplicaSet;
    const INFO: Info = Info {
        group: "apps",
        kind: "ReplicaSet",
        plural: "replicasets",
        singular: "replicaset",
        short_names: &["rs"],
        categories: &["all"],
        subresources: &["status", "scale"],
        selectable: &["status.replicas"],
        generation: true,
        schema: "io.k8s.api.apps.v1.ReplicaSet",
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] = &[
        columns::NAME,
        Column::number("Desired"),
        Column::number("Current"),
        Column::number("Ready"),
        columns::AGE,
        Column::wide("Containers"),
        Column::wide("Images"),
        Column::wide("Selector"),
    ];

    fn default(set_: &mut apps::ReplicaSet) {
        let spec = &mut set_.spec;
        set(&mut spec.replicas, || 1);
        if let Some(template) = &mut spec.template {
            defaults::template(template);
        }
    }

    fn create(set: &mut apps::ReplicaSet) {
        set.status = Some(apps::ReplicaSetStatus::default());
    }

    fn validate_json(object: &Value, errors: &mut Errors) {
        workload::selector_is_there(object, errors);
    }

    fn validate(set: &apps::ReplicaSet, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = &set.spec;
        workload::replicas(spec.replicas, &path, errors);
        validate::non_negative(spec.min_ready_seconds, &path.child("minReadySeconds"), errors);
        let template = spec.template.clone().unwrap_or_default();
        workload::selector(&spec.selector, &template, "deployment", &path, errors);
        workload::running_template(&template, "ReplicaSet", &path.child("template"), errors);
    }

    fn validate_update(old: &apps::ReplicaSet, new: &apps::ReplicaSet, errors: &mut Errors) {
        let path = Path::new("spec").child("selector");
        validate::immutable(&old.spec.selector, &new.spec.selector, &path, errors);
    }

    fn validate_status(new: &apps::ReplicaSet, errors: &mut Errors) {
        let Some(status) = &new.status else { return };
        workload::counts(
            &[
                ("replicas", Some(status.replicas.into())),
                ("fullyLabeledReplicas", status.fully_labeled_replicas.map(i64::from)),
                ("readyReplicas", status.ready_replicas.map(i64::from)),
                ("availableReplicas", status.available_replicas.map(i64::from)),
                ("observedGeneration", status.observed_generation),
            ],
            errors,
        );
        let parts = [
            ("fullyLabeledReplicas", status.fully_labeled_replicas),
            ("readyReplicas", status.ready_replicas),
            ("availableReplicas", status.available_replicas),
        ];
        workload::parts(status.replicas, &parts, "readyReplicas", errors);
    }

    fn warn(old: Option<&apps::ReplicaSet>, new: &apps::ReplicaSet, warnings: &mut Warnings) {
        warn::workload(old, new, new.spec.template.as_ref(), warnings);
    }

    fn row(set: &apps::ReplicaSet, now: Timestamp) -> Vec<String> {
        let spec = set.spec.clone();
        let status = set.status.clone().unwrap_or_default();
        let containers = spec.template.and_then(|t| t.spec).unwrap_or_default().containers;
        vec![
            columns::name(&set.metadata),
            spec.replicas.unwrap_or_default().to_string(),
            status.replicas.to_string(),
            status.ready_replicas.unwrap_or_default().to_string(),
            columns::age(&set.metadata, now),
            columns::containers(&containers),
            columns::images(&containers),
            columns::selector(Some(&spec.selector)),
        ]
    }
}
