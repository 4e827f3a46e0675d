//! ResourceQuotas: how much a namespace may hold.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{self as core, ResourceQuotaStatus};

use super::{BuiltIn, Info};
use crate::columns::{self, Column};
use crate::field::{Errors, Path};
use crate::validate;

pub struct ResourceQuota;

impl BuiltIn for ResourceQuota {
    type Object = core::ResourceQuota;
    const INFO: Info = Info {
        kind: "ResourceQuota",
        plural: "resourcequotas",
        singular: "resourcequota",
        short_names: &["quota"],
        subresources: &["status"],
        schema: "io.k8s.api.core.v1.ResourceQuota",
        shows_deleted: true,
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] =
        &[columns::NAME, Column::text("Request"), Column::text("Limit"), columns::AGE];

    fn create(quota: &mut core::ResourceQuota) {
        quota.status = Some(ResourceQuotaStatus::default());
    }

    fn validate(quota: &core::ResourceQuota, errors: &mut Errors) {
        if let Some(spec) = &quota.spec {
            validate::quota::spec(spec, &Path::new("spec"), errors);
        }
    }

    fn validate_update(old: &core::ResourceQuota, new: &core::ResourceQuota, errors: &mut Errors) {
        let sorted = |quota: &core::ResourceQuota| {
            let mut scopes = quota.spec.as_ref().and_then(|spec| spec.scopes.clone()).unwrap_or_default();
            scopes.sort_unstable();
            scopes
        };
        validate::immutable(&sorted(old), &sorted(new), &Path::new("spec").child("scopes"), errors);
    }

    fn validate_status(new: &core::ResourceQuota, errors: &mut Errors) {
        let Some(status) = &new.status else { return };
        let path = Path::new("status");
        validate::quota::amounts(status.hard.as_ref(), &path.child("hard"), errors);
        validate::quota::amounts(status.used.as_ref(), &path.child("used"), errors);
    }

    fn row(quota: &core::ResourceQuota, now: Timestamp) -> Vec<String> {
        let status = quota.status.clone().unwrap_or_default();
        let used = status.used.unwrap_or_default();
        let (mut requests, mut limits) = (Vec::new(), Vec::new());
        for (resource, hard) in status.hard.iter().flatten() {
            let used = used.get(resource).map_or("0", |used| used.0.as_str());
            let of = if resource.starts_with("limits.") { &mut limits } else { &mut requests };
            of.push(format!("{resource}: {used}/{}", hard.0));
        }
        vec![
            columns::name(&quota.metadata),
            requests.join(", "),
            limits.join(", "),
            columns::age(&quota.metadata, now),
        ]
    }
}
