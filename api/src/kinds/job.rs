//! Jobs of `batch/v1`: pods that run to completion.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1 as batch;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::{BuiltIn, Info};
use crate::columns::{self, Column};
use crate::defaults::{self, set, set_text};
use crate::field::{Errors, Path};
use crate::validate::{self, workload};
use crate::warn::{self, Warnings};

/// Which job a pod belongs to, by the job's uid and by its name; the short forms are upstream's older ones.
const GENERATED_LABELS: [&str; 4] = [UID_LABEL, "batch.kubernetes.io/job-name", "controller-uid", "job-name"];
const UID_LABEL: &str = "batch.kubernetes.io/controller-uid";

pub struct Job;

impl BuiltIn for Job {
    type Object = batch::Job;
    const INFO: Info = Info {
        group: "batch",
        kind: "Job",
        plural: "jobs",
        singular: "job",
        categories: &["all"],
        subresources: &["status"],
        selectable: &["status.successful"],
        generation: true,
        schema: "io.k8s.api.batch.v1.Job",
        orphans: true,
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] = &[
        columns::NAME,
        Column::text("Status"),
        Column::text("Completions"),
        Column::text("Duration"),
        columns::AGE,
        Column::wide("Containers"),
        Column::wide("Images"),
        Column::wide("Selector"),
    ];

    fn default(job: &mut batch::Job) {
        let spec = job.spec.get_or_insert_default();
        if spec.completions.is_none() && spec.parallelism.is_none() {
            spec.completions = Some(1);
        }
        set(&mut spec.parallelism, || 1);
        let by_index = spec.backoff_limit_per_index.is_some();
        set(&mut spec.backoff_limit, || if by_index { i32::MAX } else { 6 });
        set_text(&mut spec.completion_mode, "NonIndexed");
        set(&mut spec.suspend, || false);
        set(&mut spec.manual_selector, || false);
        let replacement = if spec.pod_failure_policy.is_some() { "Failed" } else { "TerminatingOrFailed" };
        set_text(&mut spec.pod_replacement_policy, replacement);
        for rule in spec.pod_failure_policy.iter_mut().flat_map(|policy| &mut policy.rules) {
            let patterns = rule.on_pod_conditions.iter_mut().flatten();
            patterns.for_each(|pattern| set_text(&mut pattern.status, "True"));
        }
        defaults::template(&mut spec.template);
        take_labels_of_template(job);
    }

    fn create(job: &mut batch::Job) {
        job.status = Some(batch::JobStatus::default());
        let name = job.metadata.name.clone().unwrap_or_default();
        let uid = job.metadata.uid.clone().unwrap_or_default();
        let Some(spec) = job.spec.as_mut().filter(|spec| spec.manual_selector != Some(true)) else { return };
        let labels = spec.template.metadata.get_or_insert_default().labels.get_or_insert_default();
        for (label, value) in GENERATED_LABELS.into_iter().zip([&uid, &name, &uid, &name]) {
            labels.entry(label.to_owned()).or_insert_with(|| value.clone());
        }
        let selector = spec.selector.get_or_insert_with(LabelSelector::default);
        selector.match_labels.get_or_insert_default().entry(UID_LABEL.to_owned()).or_insert(uid);
        // Upstream sets defaults again on what it has stored, and then finds these labels.
        take_labels_of_template(job);
    }

    /// Whoever writes the manifest again does not write what was generated; it stays.
    fn update(old: &batch::Job, new: &mut batch::Job) {
        let (Some(before), Some(after)) = (&old.spec, &mut new.spec) else { return };
        if before.manual_selector == Some(true) {
            return;
        }
        if after.selector.is_none() {
            after.selector.clone_from(&before.selector);
        }
        let kept = before.template.metadata.as_ref().and_then(|metadata| metadata.labels.as_ref());
        for label in GENERATED_LABELS {
            if let Some(value) = kept.and_then(|labels| labels.get(label)) {
                let labels = after.template.metadata.get_or_insert_default().labels.get_or_insert_default();
                labels.entry(label.to_owned()).or_insert_with(|| value.clone());
            }
        }
        take_labels_of_template(new);
    }

    fn validate(job: &batch::Job, errors: &mut Errors) {
        validate::job::job(job, errors);
    }

    fn validate_update(old: &batch::Job, new: &batch::Job, errors: &mut Errors) {
        validate::job::update(old, new, errors);
    }

    fn validate_status(new: &batch::Job, errors: &mut Errors) {
        let Some(status) = &new.status else { return };
        let counts = [
            ("active", status.active),
            ("succeeded", status.succeeded),
            ("failed", status.failed),
            ("ready", status.ready),
            ("terminating", status.terminating),
        ];
        workload::counts(&counts.map(|(field, count)| (field, count.map(i64::from))), errors);
    }

    fn warn(old: Option<&batch::Job>, new: &batch::Job, warnings: &mut Warnings) {
        if old.is_none() {
            warn::name_of_pods(&new.metadata, warnings);
        }
        if let Some(spec) = new.spec.as_ref().filter(|_| !warn::is_told(old, new)) {
            warn::job(spec, &Path::new("spec"), warnings);
        }
    }

    fn row(job: &batch::Job, now: Timestamp) -> Vec<String> {
        let spec = job.spec.clone().unwrap_or_default();
        let status = job.status.clone().unwrap_or_default();
        let succeeded = status.succeeded.unwrap_or_default();
        let completions = match (spec.completions, spec.parallelism.unwrap_or_default()) {
            (Some(completions), _) => format!("{succeeded}/{completions}"),
            (None, parallelism) if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
            (None, _) => format!("{succeeded}/1"),
        };
        let duration = match (&status.start_time, &status.completion_time) {
            (None, _) => String::new(),
            (Some(start), end) => columns::since(Some(start), end.as_ref().map_or(now, |end| end.0)),
        };
        let words = status_words(job).to_owned();
        let containers = spec.template.spec.unwrap_or_default().containers;
        vec![
            columns::name(&job.metadata),
            words,
            completions,
            duration,
            columns::age(&job.metadata, now),
            columns::containers(&containers),
            columns::images(&containers),
            columns::selector(spec.selector.as_ref()),
        ]
    }
}

/// A Job without labels has those of its pods.
fn take_labels_of_template(job: &mut batch::Job) {
    let template = job.spec.as_ref().and_then(|spec| spec.template.metadata.as_ref());
    let labels = template.and_then(|metadata| metadata.labels.clone());
    if job.metadata.labels.as_ref().is_none_or(BTreeMap::is_empty) && labels.is_some() {
        job.metadata.labels = labels;
    }
}

/// `Complete`, `Failed`, `Terminating`, `Suspended`, `FailureTarget`, `SuccessCriteriaMet` or `Running`.
fn status_words(job: &batch::Job) -> &'static str {
    let conditions = job.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let holds = |type_: &str| conditions.iter().any(|c| c.type_ == type_ && c.status == "True");
    let ordered = ["Complete", "Failed"];
    if let Some(word) = ordered.into_iter().find(|word| holds(word)) {
        return word;
    }
    if job.metadata.deletion_timestamp.is_some() {
        return "Terminating";
    }
    ["Suspended", "FailureTarget", "SuccessCriteriaMet"].into_iter().find(|word| holds(word)).unwrap_or("Running")
}
