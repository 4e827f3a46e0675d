//! ControllerRevisions: what a controller's object was like at some time.
//!
//! Invariant: what was recorded never changes.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1 as apps;

use super::{BuiltIn, Info};
use crate::columns::{self, Column, NONE};
use crate::field::{Errors, Path};
use crate::validate;

pub struct ControllerRevision;

impl BuiltIn for ControllerRevision {
    type Object = apps::ControllerRevision;
    const INFO: Info = Info {
        group: "apps",
        kind: "ControllerRevision",
        plural: "controllerrevisions",
        singular: "controllerrevision",
        schema: "io.k8s.api.apps.v1.ControllerRevision",
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] =
        &[columns::NAME, Column::text("Controller"), Column::count("Revision"), columns::AGE];

    fn validate(revision: &apps::ControllerRevision, errors: &mut Errors) {
        validate::non_negative(revision.revision, &Path::new("revision"), errors);
        if revision.data.0.is_null() {
            errors.required(&Path::new("data"), "data is mandatory");
        }
    }

    fn validate_update(old: &apps::ControllerRevision, new: &apps::ControllerRevision, errors: &mut Errors) {
        validate::immutable(&old.data, &new.data, &Path::new("data"), errors);
    }

    fn row(revision: &apps::ControllerRevision, now: Timestamp) -> Vec<String> {
        let owners = revision.metadata.owner_references.iter().flatten();
        let controller = owners.into_iter().find(|owner| owner.controller == Some(true)).map(|owner| {
            let group = owner.api_version.rsplit_once('/').map_or("", |(group, _)| group);
            format!("{}/{}", format!("{}.{group}", owner.kind).trim_end_matches('.').to_lowercase(), owner.name)
        });
        vec![
            columns::name(&revision.metadata),
            controller.unwrap_or_else(|| NONE.to_owned()),
            revision.revision.unwrap_or_default().to_string(),
            columns::age(&revision.metadata, now),
        ]
    }
}
