//! ReplicationControllers: so many pods of one template, in the form of old.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::{BuiltIn, Info};
use crate::columns::{self, Column};
use crate::defaults::{self, set};
use crate::field::{Errors, Path};
use crate::validate::{self, workload};
use crate::warn::{self, Warnings};

pub struct ReplicationController;

impl BuiltIn for ReplicationController {
    type Object = core::ReplicationController;
    const INFO: Info = Info {
        kind: "ReplicationController",
        plural: "replicationcontrollers",
        singular: "replicationcontroller",
        short_names: &["rc"],
        categories: &["all"],
        subresources: &["status", "scale"],
        selectable: &["status.replicas"],
        generation: true,
        schema: "io.k8s.api.core.v1.ReplicationController",
        orphans: true,
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

    /// Selector and labels that are not given are the labels of the template.
    fn default(controller: &mut core::ReplicationController) {
        let spec = controller.spec.get_or_insert_default();
        set(&mut spec.replicas, || 1);
        let Some(template) = &mut spec.template else { return };
        defaults::template(template);
        let labels = template.metadata.as_ref().and_then(|metadata| metadata.labels.clone());
        for empty in [&mut spec.selector, &mut controller.metadata.labels] {
            if empty.as_ref().is_none_or(BTreeMap::is_empty) {
                empty.clone_from(&labels);
            }
        }
    }

    fn create(controller: &mut core::ReplicationController) {
        controller.status = Some(core::ReplicationControllerStatus::default());
    }

    fn validate(controller: &core::ReplicationController, errors: &mut Errors) {
        let path = Path::new("spec");
        let Some(spec) = &controller.spec else { return errors.required(&path, "") };
        workload::replicas(spec.replicas, &path, errors);
        validate::non_negative(spec.min_ready_seconds, &path.child("minReadySeconds"), errors);
        let Some(template) = &spec.template else { return errors.required(&path.child("template"), "") };
        match spec.selector.as_ref().filter(|labels| !labels.is_empty()) {
            Some(_) => workload::must_match(&selector(controller), template, &path, errors),
            None => errors.required(&path.child("selector"), ""),
        }
        workload::running_template(template, "ReplicationController", &path.child("template"), errors);
    }

    fn validate_status(new: &core::ReplicationController, errors: &mut Errors) {
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

    fn warn(old: Option<&core::ReplicationController>, new: &core::ReplicationController, warnings: &mut Warnings) {
        let template = new.spec.as_ref().and_then(|spec| spec.template.as_ref());
        warn::workload(old, new, template, warnings);
    }

    fn row(controller: &core::ReplicationController, now: Timestamp) -> Vec<String> {
        let spec = controller.spec.clone().unwrap_or_default();
        let status = controller.status.clone().unwrap_or_default();
        let containers = spec.template.and_then(|template| template.spec).unwrap_or_default().containers;
        vec![
            columns::name(&controller.metadata),
            spec.replicas.unwrap_or_default().to_string(),
            status.replicas.to_string(),
            status.ready_replicas.unwrap_or_default().to_string(),
            columns::age(&controller.metadata, now),
            columns::containers(&containers),
            columns::images(&containers),
            columns::labels(spec.selector.as_ref()),
        ]
    }
}

/// The controller's selector, in the form of younger kinds.
pub fn selector(controller: &core::ReplicationController) -> LabelSelector {
    let labels = controller.spec.as_ref().and_then(|spec| spec.selector.clone());
    LabelSelector { match_labels: labels, match_expressions: None }
}
