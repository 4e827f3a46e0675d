//! CronJobs: jobs that begin at times of the calendar.

use jiff::Timestamp;
use k8s_openapi::api::batch::v1 as batch;
use serde_json::json;

use super::{BuiltIn, Info};
use crate::columns::{self, Column, NONE};
use crate::defaults::{self, set, set_text};
use crate::field::{Errors, Path};
use crate::warn::{self, Warnings};
use crate::{schedule, validate, zones};

/// The names of its jobs are longer by eleven, and have to fit a label.
const MAX_NAME_CHARACTERS: usize = 52;

pub struct CronJob;

impl BuiltIn for CronJob {
    type Object = batch::CronJob;
    const INFO: Info = Info {
        group: "batch",
        kind: "CronJob",
        plural: "cronjobs",
        singular: "cronjob",
        short_names: &["cj"],
        categories: &["all"],
        subresources: &["status"],
        generation: true,
        schema: "io.k8s.api.batch.v1.CronJob",
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] = &[
        columns::NAME,
        Column::text("Schedule"),
        Column::text("Timezone"),
        Column::boolean("Suspend"),
        Column::number("Active"),
        Column::text("Last Schedule"),
        columns::AGE,
        Column::wide("Containers"),
        Column::wide("Images"),
        Column::wide("Selector"),
    ];

    fn default(job: &mut batch::CronJob) {
        let spec = &mut job.spec;
        set_text(&mut spec.concurrency_policy, "Allow");
        set(&mut spec.suspend, || false);
        set(&mut spec.successful_jobs_history_limit, || 3);
        set(&mut spec.failed_jobs_history_limit, || 1);
        defaults::template(&mut spec.job_template.spec.get_or_insert_default().template);
    }

    fn create(job: &mut batch::CronJob) {
        job.status = Some(batch::CronJobStatus::default());
    }

    fn validate(job: &batch::CronJob, errors: &mut Errors) {
        let name = job.metadata.name.as_deref().unwrap_or_default();
        if name.len() > MAX_NAME_CHARACTERS {
            let detail = format_args!("must be no more than {MAX_NAME_CHARACTERS} characters");
            errors.invalid(&Path::new("metadata").child("name"), name, detail);
        }
        let path = Path::new("spec");
        let spec = &job.spec;
        match spec.schedule.as_str() {
            "" => errors.required(&path.child("schedule"), ""),
            text if text.contains("TZ") => {
                let detail = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
                errors.invalid(&path.child("schedule"), text, detail);
            }
            text => {
                if let Err(error) = schedule::check(text) {
                    errors.invalid(&path.child("schedule"), text, error);
                }
            }
        }
        validate::non_negative(spec.starting_deadline_seconds, &path.child("startingDeadlineSeconds"), errors);
        let policies = ["Allow", "Forbid", "Replace"];
        validate::one_of(spec.concurrency_policy.as_deref(), &policies, &path.child("concurrencyPolicy"), errors);
        let limits = [
            ("successfulJobsHistoryLimit", spec.successful_jobs_history_limit),
            ("failedJobsHistoryLimit", spec.failed_jobs_history_limit),
        ];
        limits.into_iter().for_each(|(field, limit)| validate::non_negative(limit, &path.child(field), errors));
        if let Some(template) = &spec.job_template.spec {
            let path = path.child("jobTemplate").child("spec");
            validate::job::template(template, &path, errors);
            if let Some(selector) = &template.selector {
                errors.invalid(&path.child("selector"), json!(selector), "`selector` will be auto-generated");
            }
            if template.manual_selector == Some(true) {
                errors.not_supported(&path.child("manualSelector"), true, &["nil", "false"]);
            }
        }
    }

    fn validate_create(new: &batch::CronJob, errors: &mut Errors) {
        check_zone(new, errors);
    }

    // One that is stored may be of a zone that this build does not know, and is to be changed and suspended all the same.
    fn validate_update(old: &batch::CronJob, new: &batch::CronJob, errors: &mut Errors) {
        if old.spec.time_zone != new.spec.time_zone {
            check_zone(new, errors);
        }
    }

    fn warn(old: Option<&batch::CronJob>, new: &batch::CronJob, warnings: &mut Warnings) {
        if old.is_none() {
            warn::name_of_pods(&new.metadata, warnings);
        }
        if let Some(spec) = new.spec.job_template.spec.as_ref().filter(|_| !warn::is_told(old, new)) {
            warn::job(spec, &Path::new("spec").child("jobTemplate").child("spec"), warnings);
        }
    }

    fn row(job: &batch::CronJob, now: Timestamp) -> Vec<String> {
        let spec = job.spec.clone();
        let status = job.status.clone().unwrap_or_default();
        let suspend = match spec.suspend {
            Some(true) => "True",
            Some(false) => "False",
            None => "<unset>",
        };
        let template = spec.job_template.spec.unwrap_or_default();
        let containers = template.template.spec.unwrap_or_default().containers;
        vec![
            columns::name(&job.metadata),
            spec.schedule,
            columns::or_none(spec.time_zone.as_deref()),
            suspend.to_owned(),
            status.active.iter().flatten().count().to_string(),
            status.last_schedule_time.as_ref().map_or_else(|| NONE.to_owned(), |at| columns::since(Some(at), now)),
            columns::age(&job.metadata, now),
            columns::containers(&containers),
            columns::images(&containers),
            columns::selector(template.selector.as_ref()),
        ]
    }
}

fn check_zone(job: &batch::CronJob, errors: &mut Errors) {
    let path = Path::new("spec").child("timeZone");
    match job.spec.time_zone.as_deref() {
        Some("") => errors.invalid(&path, "", "must be nil or non-empty string"),
        Some(zone) if zone.eq_ignore_ascii_case("local") => {
            let detail = "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
            errors.invalid(&path, zone, detail);
        }
        Some(zone) => {
            if let Err(error) = zones::zone(zone) {
                errors.invalid(&path, zone, error);
            }
        }
        None => {}
    }
}
