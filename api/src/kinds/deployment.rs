//! Deployments: replicas of a pod template, and how one template replaces another.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{self as apps, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use super::{BuiltIn, Info};
use crate::columns::{self, Column};
use crate::defaults::{self, set, set_text};
use crate::field::{Errors, Path};
use crate::validate::{self, workload};
use crate::warn::{self, Warnings};

pub struct Deployment;

impl BuiltIn for Deployment {
    type Object = apps::Deployment;
    const INFO: Info = Info {
        group: "apps",
        kind: "Deployment",
        plural: "deployments",
        singular: "deployment",
        short_names: &["deploy"],
        categories: &["all"],
        subresources: &["status", "scale"],
        generation: true,
        schema: "io.k8s.api.apps.v1.Deployment",
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] = &[
        columns::NAME,
        Column::text("Ready"),
        Column::text("Up-to-date"),
        Column::text("Available"),
        columns::AGE,
        Column::wide("Containers"),
        Column::wide("Images"),
        Column::wide("Selector"),
    ];

    fn default(deployment: &mut apps::Deployment) {
        let spec = &mut deployment.spec;
        set(&mut spec.replicas, || 1);
        let strategy = spec.strategy.get_or_insert_default();
        set_text(&mut strategy.type_, "RollingUpdate");
        default_rolling_update(strategy);
        set(&mut spec.revision_history_limit, || 10);
        set(&mut spec.progress_deadline_seconds, || 600);
        defaults::template(&mut spec.template);
    }

    fn create(deployment: &mut apps::Deployment) {
        deployment.status = Some(apps::DeploymentStatus::default());
    }

    fn validate_json(object: &Value, errors: &mut Errors) {
        workload::selector_is_there(object, errors);
    }

    fn validate(deployment: &apps::Deployment, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = &deployment.spec;
        workload::replicas(spec.replicas, &path, errors);
        workload::selector(&spec.selector, &spec.template, "deployment", &path, errors);
        validate::non_negative(spec.min_ready_seconds, &path.child("minReadySeconds"), errors);
        validate::non_negative(spec.revision_history_limit, &path.child("revisionHistoryLimit"), errors);
        validate::non_negative(spec.progress_deadline_seconds, &path.child("progressDeadlineSeconds"), errors);
        if spec.progress_deadline_seconds <= Some(spec.min_ready_seconds.unwrap_or_default()) {
            let value = spec.progress_deadline_seconds.unwrap_or_default();
            errors.invalid(&path.child("progressDeadlineSeconds"), value, "must be greater than minReadySeconds");
        }
        if let Some(strategy) = &spec.strategy {
            workload::deployment_strategy(strategy, &path.child("strategy"), errors);
        }
        workload::running_template(&spec.template, "ReplicaSet", &path.child("template"), errors);
    }

    fn validate_update(old: &apps::Deployment, new: &apps::Deployment, errors: &mut Errors) {
        let path = Path::new("spec").child("selector");
        validate::immutable(&old.spec.selector, &new.spec.selector, &path, errors);
    }

    fn validate_status(new: &apps::Deployment, errors: &mut Errors) {
        let Some(status) = &new.status else { return };
        workload::counts(
            &[
                ("observedGeneration", status.observed_generation),
                ("replicas", status.replicas.map(i64::from)),
                ("updatedReplicas", status.updated_replicas.map(i64::from)),
                ("readyReplicas", status.ready_replicas.map(i64::from)),
                ("availableReplicas", status.available_replicas.map(i64::from)),
                ("unavailableReplicas", status.unavailable_replicas.map(i64::from)),
                ("collisionCount", status.collision_count.map(i64::from)),
            ],
            errors,
        );
        let parts = [
            ("updatedReplicas", status.updated_replicas),
            ("readyReplicas", status.ready_replicas),
            ("availableReplicas", status.available_replicas),
        ];
        workload::parts(status.replicas.unwrap_or_default(), &parts, "readyReplicas", errors);
    }

    fn warn(old: Option<&apps::Deployment>, new: &apps::Deployment, warnings: &mut Warnings) {
        warn::workload(old, new, Some(&new.spec.template), warnings);
    }

    fn changed(old: &Value, new: &Value) -> bool {
        let annotations = "/metadata/annotations";
        old.get("spec") != new.get("spec") || old.pointer(annotations) != new.pointer(annotations)
    }

    fn row(deployment: &apps::Deployment, now: Timestamp) -> Vec<String> {
        let spec = deployment.spec.clone();
        let status = deployment.status.clone().unwrap_or_default();
        let count = |n: Option<i32>| n.unwrap_or_default().to_string();
        let containers = spec.template.spec.unwrap_or_default().containers;
        vec![
            columns::name(&deployment.metadata),
            format!("{}/{}", status.ready_replicas.unwrap_or_default(), spec.replicas.unwrap_or_default()),
            count(status.updated_replicas),
            count(status.available_replicas),
            columns::age(&deployment.metadata, now),
            columns::containers(&containers),
            columns::images(&containers),
            columns::selector(Some(&spec.selector)),
        ]
    }
}

fn default_rolling_update(strategy: &mut DeploymentStrategy) {
    if strategy.type_.as_deref() != Some("RollingUpdate") {
        return;
    }
    let quarter = || IntOrString::String("25%".to_owned());
    let rolling: &mut RollingUpdateDeployment = strategy.rolling_update.get_or_insert_default();
    set(&mut rolling.max_unavailable, quarter);
    set(&mut rolling.max_surge, quarter);
}
