//! LimitRanges: what the containers of a namespace take by default, at least and at most.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{self as core, LimitRangeItem};

use super::{BuiltIn, Info};
use crate::columns::{self, Column};
use crate::field::{Errors, Path};
use crate::validate;

pub struct LimitRange;

impl BuiltIn for LimitRange {
    type Object = core::LimitRange;
    const INFO: Info = Info {
        kind: "LimitRange",
        plural: "limitranges",
        singular: "limitrange",
        short_names: &["limits"],
        schema: "io.k8s.api.core.v1.LimitRange",
        create_on_update: true,
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] = &[columns::NAME, columns::CREATED_AT];

    fn default(range: &mut core::LimitRange) {
        let limits = range.spec.iter_mut().flat_map(|spec| &mut spec.limits);
        limits.filter(|item| item.type_ == "Container").for_each(default_container);
    }

    fn validate(range: &core::LimitRange, errors: &mut Errors) {
        let limits = range.spec.as_ref().map(|spec| spec.limits.as_slice()).unwrap_or_default();
        validate::quota::limits(limits, &Path::new("spec").child("limits"), errors);
    }

    fn row(range: &core::LimitRange, _now: Timestamp) -> Vec<String> {
        vec![columns::name(&range.metadata), columns::created_at(&range.metadata)]
    }
}

/// The default limit is the maximum; the default request is the default limit, or the minimum.
fn default_container(item: &mut LimitRangeItem) {
    let default = item.default.get_or_insert_default();
    for (resource, max) in item.max.iter().flatten() {
        default.entry(resource.clone()).or_insert_with(|| max.clone());
    }
    let request = item.default_request.get_or_insert_default();
    for (resource, amount) in default.iter().chain(item.min.iter().flatten()) {
        request.entry(resource.clone()).or_insert_with(|| amount.clone());
    }
}
