//! Events of `events.k8s.io/v1`: those of the core group under other names.

use k8s_openapi::api::core::v1 as core;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Conversion, rename};
use crate::kinds::event::validate_strictly;

/// What each calls the same.
const NAMES: [(&str, &str); 7] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

pub(super) const V1: Conversion = Conversion {
    to_stored: |object| {
        if let Some(map) = object.as_object_mut() {
            NAMES.iter().for_each(|(own, stored)| rename(map, own, stored));
            // The core group insists on it, though it may say nothing.
            map.entry("involvedObject").or_insert_with(|| Value::Object(Map::new()));
        }
    },
    from_stored: |object| {
        if let Some(map) = object.as_object_mut() {
            NAMES.iter().for_each(|(own, stored)| rename(map, stored, own));
        }
    },
    check: |object, errors| {
        if let Ok(event) = core::Event::deserialize(object) {
            validate_strictly(&event, errors);
        }
    },
    fields: &[
        ("regarding.kind", "involvedObject.kind"),
        ("regarding.namespace", "involvedObject.namespace"),
        ("regarding.name", "involvedObject.name"),
        ("regarding.uid", "involvedObject.uid"),
        ("regarding.apiVersion", "involvedObject.apiVersion"),
        ("regarding.resourceVersion", "involvedObject.resourceVersion"),
        ("regarding.fieldPath", "involvedObject.fieldPath"),
        ("reportingController", "reportingComponent"),
    ],
};
