//! ConfigMaps: configuration that pods read.

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;

use super::{BuiltIn, Info};
use crate::columns::{self, Column};
use crate::field::{Errors, Path};
use crate::{names, validate};

/// The values of a ConfigMap or Secret taken together.
pub(crate) const MAX_DATA_BYTES: usize = 1024 * 1024;

pub struct ConfigMap;

impl BuiltIn for ConfigMap {
    type Object = core::ConfigMap;
    const INFO: Info = Info {
        kind: "ConfigMap",
        plural: "configmaps",
        singular: "configmap",
        short_names: &["cm"],
        schema: "io.k8s.api.core.v1.ConfigMap",
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] = &[columns::NAME, Column::count("Data"), columns::AGE];

    fn validate(map: &core::ConfigMap, errors: &mut Errors) {
        let mut size = 0;
        for (key, value) in map.data.iter().flatten() {
            let path = Path::new("data").key(key);
            names::config_key(key).iter().for_each(|c| errors.invalid(&path, key.as_str(), c));
            if map.binary_data.as_ref().is_some_and(|binary| binary.contains_key(key)) {
                errors.invalid(&path, key.as_str(), "duplicate of key present in binaryData");
            }
            size += value.len();
        }
        for (key, value) in map.binary_data.iter().flatten() {
            let path = Path::new("binaryData").key(key);
            names::config_key(key).iter().for_each(|c| errors.invalid(&path, key.as_str(), c));
            size += value.0.len();
        }
        if size > MAX_DATA_BYTES {
            // What upstream calls a path without words.
            errors.too_long(&Path::new("[]"), MAX_DATA_BYTES);
        }
    }

    fn validate_update(old: &core::ConfigMap, new: &core::ConfigMap, errors: &mut Errors) {
        if old.immutable != Some(true) {
            return;
        }
        validate::stays_immutable(new.immutable, errors);
        if old.data != new.data {
            errors.forbidden(&Path::new("data"), "field is immutable when `immutable` is set");
        }
        if old.binary_data != new.binary_data {
            errors.forbidden(&Path::new("binaryData"), "field is immutable when `immutable` is set");
        }
    }

    fn row(map: &core::ConfigMap, now: Timestamp) -> Vec<String> {
        let count = map.data.iter().flatten().count() + map.binary_data.iter().flatten().count();
        vec![columns::name(&map.metadata), count.to_string(), columns::age(&map.metadata, now)]
    }
}
