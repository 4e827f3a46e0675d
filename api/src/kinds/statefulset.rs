//! StatefulSets: pods with names, an order and volumes of their own.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{self as apps, StatefulSetSpec, StatefulSetUpdateStrategy};
use k8s_openapi::api::core::v1::{PersistentVolumeClaimVolumeSource, PodTemplateSpec, Volume};
use serde_json::Value;

use super::{BuiltIn, Info, persistentvolumeclaim};
use crate::columns::{self, Column};
use crate::defaults::{self, set, set_text};
use crate::field::{Errors, Path};
use crate::validate::{self, workload};
use crate::warn::{self, Warnings};

const FIXED: &str = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', \
    'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";

pub struct StatefulSet;

impl BuiltIn for StatefulSet {
    type Object = apps::StatefulSet;
    const INFO: Info = Info {
        group: "apps",
        kind: "StatefulSet",
        plural: "statefulsets",
        singular: "statefulset",
        short_names: &["sts"],
        categories: &["all"],
        subresources: &["status", "scale"],
        generation: true,
        schema: "io.k8s.api.apps.v1.StatefulSet",
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] = &[
        columns::NAME,
        Column::text("Ready"),
        columns::AGE,
        Column::wide("Containers"),
        Column::wide("Images"),
    ];

    fn default(set_: &mut apps::StatefulSet) {
        let spec = &mut set_.spec;
        set_text(&mut spec.pod_management_policy, "OrderedReady");
        let strategy = spec.update_strategy.get_or_insert_default();
        set_text(&mut strategy.type_, "RollingUpdate");
        if strategy.type_.as_deref() == Some("RollingUpdate") {
            set(&mut strategy.rolling_update.get_or_insert_default().partition, || 0);
        }
        let retention = spec.persistent_volume_claim_retention_policy.get_or_insert_default();
        set_text(&mut retention.when_deleted, "Retain");
        set_text(&mut retention.when_scaled, "Retain");
        set(&mut spec.replicas, || 1);
        set(&mut spec.revision_history_limit, || 10);
        defaults::template(&mut spec.template);
        for claim in spec.volume_claim_templates.iter_mut().flatten() {
            persistentvolumeclaim::default_claim(claim);
        }
    }

    fn create(set: &mut apps::StatefulSet) {
        set.status = Some(apps::StatefulSetStatus { available_replicas: Some(0), ..apps::StatefulSetStatus::default() });
    }

    fn validate_json(object: &Value, errors: &mut Errors) {
        workload::selector_is_there(object, errors);
    }

    fn validate(set: &apps::StatefulSet, errors: &mut Errors) {
        let (path, spec) = (Path::new("spec"), &set.spec);
        match spec.pod_management_policy.as_deref().unwrap_or_default() {
            "" => errors.required(&path.child("podManagementPolicy"), ""),
            "OrderedReady" | "Parallel" => {}
            other => {
                errors.invalid(&path.child("podManagementPolicy"), other, "must be 'OrderedReady' or 'Parallel'");
            }
        }
        if let Some(strategy) = &spec.update_strategy {
            update_strategy(strategy, &path.child("updateStrategy"), errors);
        }
        retention(spec, &path.child("persistentVolumeClaimRetentionPolicy"), errors);
        workload::replicas(spec.replicas, &path, errors);
        validate::non_negative(spec.min_ready_seconds, &path.child("minReadySeconds"), errors);
        validate::non_negative(spec.revision_history_limit, &path.child("revisionHistoryLimit"), errors);
        let start = spec.ordinals.as_ref().and_then(|ordinals| ordinals.start);
        validate::non_negative(start, &path.child("ordinals").child("start"), errors);
        workload::selector(&spec.selector, &spec.template, "statefulset", &path, errors);
        workload::running_template(&with_claims(spec), "StatefulSet", &path.child("template"), errors);
    }

    fn validate_update(old: &apps::StatefulSet, new: &apps::StatefulSet, errors: &mut Errors) {
        if fixed(&old.spec) != fixed(&new.spec) {
            errors.forbidden(&Path::new("spec"), FIXED);
        }
    }

    fn validate_status(new: &apps::StatefulSet, errors: &mut Errors) {
        let Some(status) = &new.status else { return };
        workload::counts(
            &[
                ("replicas", Some(status.replicas.into())),
                ("readyReplicas", status.ready_replicas.map(i64::from)),
                ("currentReplicas", status.current_replicas.map(i64::from)),
                ("updatedReplicas", status.updated_replicas.map(i64::from)),
                ("availableReplicas", status.available_replicas.map(i64::from)),
                ("observedGeneration", status.observed_generation),
                ("collisionCount", status.collision_count.map(i64::from)),
            ],
            errors,
        );
        let parts = [
            ("currentReplicas", status.current_replicas),
            ("updatedReplicas", status.updated_replicas),
            ("readyReplicas", status.ready_replicas),
            ("availableReplicas", status.available_replicas),
        ];
        workload::parts(status.replicas, &parts, "status.readyReplicas", errors);
    }

    fn warn(old: Option<&apps::StatefulSet>, new: &apps::StatefulSet, warnings: &mut Warnings) {
        let path = Path::new("spec");
        if !warn::is_told(old, new) {
            warn::pod::template(&new.spec.template, &path.child("template"), warnings);
        }
        for (index, claim) in new.spec.volume_claim_templates.iter().flatten().enumerate() {
            let path = path.child("volumeClaimTemplates").index(index);
            // Upstream says so of what is there.
            let path = if old.is_some() { path.child("Spec") } else { path };
            if let Some(spec) = &claim.spec {
                warn::storage::claim_spec(spec, &path, warnings);
            }
        }
        if new.spec.revision_history_limit.is_some_and(|limit| limit < 0) {
            let words = "a negative value retains all historical revisions; a value >= 0 is recommended";
            warnings.at(&path.child("revisionHistoryLimit"), words);
        }
    }

    fn row(set: &apps::StatefulSet, now: Timestamp) -> Vec<String> {
        let ready = set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or_default();
        let containers = set.spec.template.spec.clone().unwrap_or_default().containers;
        vec![
            columns::name(&set.metadata),
            format!("{ready}/{}", set.spec.replicas.unwrap_or_default()),
            columns::age(&set.metadata, now),
            columns::containers(&containers),
            columns::images(&containers),
        ]
    }
}

/// The template with a volume for each of the set's claims, as its pods have it; a claim goes before a volume of its name.
fn with_claims(spec: &StatefulSetSpec) -> PodTemplateSpec {
    let mut template = spec.template.clone();
    let Some(pod) = &mut template.spec else { return template };
    for name in spec.volume_claim_templates.iter().flatten().filter_map(|claim| claim.metadata.name.clone()) {
        let volumes = pod.volumes.get_or_insert_default();
        volumes.retain(|volume| volume.name != name);
        let source = PersistentVolumeClaimVolumeSource { claim_name: name.clone(), read_only: None };
        volumes.push(Volume { name, persistent_volume_claim: Some(source), ..Volume::default() });
    }
    template
}

/// What an update may not change.
fn fixed(spec: &StatefulSetSpec) -> StatefulSetSpec {
    StatefulSetSpec {
        replicas: None,
        ordinals: None,
        template: Default::default(),
        update_strategy: None,
        revision_history_limit: None,
        persistent_volume_claim_retention_policy: None,
        min_ready_seconds: None,
        ..spec.clone()
    }
}

fn update_strategy(strategy: &StatefulSetUpdateStrategy, path: &Path, errors: &mut Errors) {
    match (strategy.type_.as_deref().unwrap_or_default(), &strategy.rolling_update) {
        ("", _) => errors.required(path, ""),
        ("OnDelete", None) => {}
        ("OnDelete", Some(rolling)) => {
            let value = serde_json::to_value(rolling).unwrap_or_default();
            errors.invalid(&path.child("rollingUpdate"), value, "only allowed for updateStrategy 'RollingUpdate'");
        }
        ("RollingUpdate", rolling) => {
            let path = path.child("rollingUpdate");
            validate::non_negative(rolling.as_ref().and_then(|r| r.partition), &path.child("partition"), errors);
            if let Some(share) = rolling.as_ref().and_then(|rolling| rolling.max_unavailable.as_ref()) {
                workload::share(share, &path.child("maxUnavailable"), errors);
                workload::at_most_100_percent(share, &path.child("maxUnavailable"), errors);
            }
        }
        (other, _) => errors.invalid(path, other, "must be 'RollingUpdate' or 'OnDelete'"),
    }
}

fn retention(spec: &StatefulSetSpec, path: &Path, errors: &mut Errors) {
    let Some(policy) = &spec.persistent_volume_claim_retention_policy else { return };
    let words = ["Retain", "Delete"];
    validate::one_of(policy.when_deleted.as_deref(), &words, &path.child("whenDeleted"), errors);
    validate::one_of(policy.when_scaled.as_deref(), &words, &path.child("whenScaled"), errors);
}
