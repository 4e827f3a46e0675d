//! PodTemplates: what pods are to be like, kept for whoever makes them.

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;

use super::{BuiltIn, Info};
use crate::columns::{self, Column};
use crate::defaults;
use crate::field::{Errors, Path};
use crate::validate::workload;
use crate::warn::{self, Warnings};

pub struct PodTemplate;

impl BuiltIn for PodTemplate {
    type Object = core::PodTemplate;
    const INFO: Info = Info {
        kind: "PodTemplate",
        plural: "podtemplates",
        singular: "podtemplate",
        generation: true,
        schema: "io.k8s.api.core.v1.PodTemplate",
        shows_deleted: true,
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] =
        &[columns::NAME, Column::text("Containers"), Column::text("Images"), Column::text("Pod Labels")];

    fn default(template: &mut core::PodTemplate) {
        defaults::template(template.template.get_or_insert_default());
    }

    fn validate(template: &core::PodTemplate, errors: &mut Errors) {
        let restart = ["Always", "Never", "OnFailure"];
        workload::template(&template.template.clone().unwrap_or_default(), &restart, &Path::new("template"), errors);
    }

    fn changed(old: &serde_json::Value, new: &serde_json::Value) -> bool {
        old.get("template") != new.get("template")
    }

    fn warn(old: Option<&core::PodTemplate>, new: &core::PodTemplate, warnings: &mut Warnings) {
        if let Some(template) = new.template.as_ref().filter(|_| !warn::is_told(old, new)) {
            warn::pod::template(template, &Path::new("template"), warnings);
        }
    }

    fn row(template: &core::PodTemplate, _now: Timestamp) -> Vec<String> {
        let pods = template.template.clone().unwrap_or_default();
        let containers = pods.spec.unwrap_or_default().containers;
        vec![
            columns::name(&template.metadata),
            columns::containers(&containers),
            columns::images(&containers),
            columns::labels(pods.metadata.unwrap_or_default().labels.as_ref()),
        ]
    }
}
