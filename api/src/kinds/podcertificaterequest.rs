//! PodCertificateRequests: certificates that nodes ask for on behalf of pods.
//!
//! Invariant: what is requested never changes.

use jiff::Timestamp;
use k8s_openapi::api::certificates::v1 as certificates;

use super::{BuiltIn, Info, certificatesigningrequest};
use crate::columns::{self, Column};
use crate::defaults::set;
use crate::field::{Errors, Path};
use crate::validate;

const DAY_SECONDS: i32 = 86_400;
const MIN_SECONDS: i32 = 3_600;
const MAX_SECONDS: i32 = 91 * DAY_SECONDS;

pub struct PodCertificateRequest;

impl BuiltIn for PodCertificateRequest {
    type Object = certificates::PodCertificateRequest;
    const INFO: Info = Info {
        group: "certificates.k8s.io",
        kind: "PodCertificateRequest",
        plural: "podcertificaterequests",
        singular: "podcertificaterequest",
        subresources: &["status"],
        selectable: &["spec.nodeName", "spec.podName", "spec.signerName"],
        schema: "io.k8s.api.certificates.v1.PodCertificateRequest",
        unconditional_update: false,
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] = &[
        columns::NAME,
        Column::text("PodName"),
        Column::text("ServiceAccountName"),
        Column::text("NodeName"),
        Column::text("SignerName"),
        Column::text("State"),
    ];

    fn default(request: &mut certificates::PodCertificateRequest) {
        set(&mut request.spec.max_expiration_seconds, || DAY_SECONDS);
    }

    fn create(request: &mut certificates::PodCertificateRequest) {
        request.status = Some(certificates::PodCertificateRequestStatus::default());
    }

    fn validate(request: &certificates::PodCertificateRequest, errors: &mut Errors) {
        let (spec, path) = (&request.spec, Path::new("spec"));
        certificatesigningrequest::signer_name(&spec.signer_name, &path.child("signerName"), errors);
        for (field, value) in [
            ("podName", &spec.pod_name),
            ("podUID", &spec.pod_uid),
            ("serviceAccountName", &spec.service_account_name),
            ("serviceAccountUID", &spec.service_account_uid),
            ("nodeName", &spec.node_name),
            ("nodeUID", &spec.node_uid),
        ] {
            if value.is_empty() {
                errors.required(&path.child(field), "");
            }
        }
        let seconds = spec.max_expiration_seconds.unwrap_or_default();
        if !(MIN_SECONDS..=MAX_SECONDS).contains(&seconds) {
            let detail = format_args!("must be in the range [{MIN_SECONDS}, {MAX_SECONDS}]");
            errors.invalid(&path.child("maxExpirationSeconds"), seconds, detail);
        }
    }

    fn validate_update(
        old: &certificates::PodCertificateRequest,
        new: &certificates::PodCertificateRequest,
        errors: &mut Errors,
    ) {
        validate::immutable(&old.spec, &new.spec, &Path::new("spec"), errors);
    }

    fn row(request: &certificates::PodCertificateRequest, _now: Timestamp) -> Vec<String> {
        let spec = &request.spec;
        let status = request.status.clone().unwrap_or_default();
        let ended = |condition: &str| ["Issued", "Denied", "Failed"].contains(&condition);
        let state = status.conditions.iter().flatten().map(|condition| condition.type_.as_str()).find(|c| ended(c));
        vec![
            columns::name(&request.metadata),
            spec.pod_name.clone(),
            spec.service_account_name.clone(),
            spec.node_name.clone(),
            spec.signer_name.clone(),
            state.unwrap_or("Pending").to_owned(),
        ]
    }
}
