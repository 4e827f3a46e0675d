//! VolumeAttributesClasses: how volumes that exist may be changed.

use jiff::Timestamp;
use k8s_openapi::api::storage::v1 as storage;

use super::{BuiltIn, Info, Scope};
use crate::columns::{self, Column};
use crate::field::{Errors, Path};
use crate::validate;

pub struct VolumeAttributesClass;

impl BuiltIn for VolumeAttributesClass {
    type Object = storage::VolumeAttributesClass;
    const INFO: Info = Info {
        group: "storage.k8s.io",
        kind: "VolumeAttributesClass",
        plural: "volumeattributesclasses",
        singular: "volumeattributesclass",
        short_names: &["vac"],
        scope: Scope::Cluster,
        schema: "io.k8s.api.storage.v1.VolumeAttributesClass",
        shows_deleted: true,
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] = &[columns::NAME, Column::text("DriverName"), columns::AGE];

    fn validate(class: &storage::VolumeAttributesClass, errors: &mut Errors) {
        validate::storage::driver(&class.driver_name, &Path::new("driverName"), errors);
        if class.parameters.as_ref().is_none_or(|parameters| parameters.is_empty()) {
            errors.required(&Path::new("parameters"), "must contain at least one key/value pair");
        }
    }

    fn validate_update(
        old: &storage::VolumeAttributesClass,
        new: &storage::VolumeAttributesClass,
        errors: &mut Errors,
    ) {
        for (field, differs) in
            [("driverName", old.driver_name != new.driver_name), ("parameters", old.parameters != new.parameters)]
        {
            if differs {
                errors.forbidden(&Path::new(field), format_args!("updates to {field} are forbidden."));
            }
        }
    }

    fn row(class: &storage::VolumeAttributesClass, now: Timestamp) -> Vec<String> {
        vec![columns::name(&class.metadata), class.driver_name.clone(), columns::age(&class.metadata, now)]
    }
}
