//! CertificateSigningRequests: who wants a certificate, and whether it was granted.
//!
//! Invariant: what is requested never changes; only the status does.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::certificates::v1 as certificates;

use super::{BuiltIn, Info, Scope};
use crate::columns::{self, Column, NONE};
use crate::field::{Errors, Path};
use crate::{names, validate};

const MIN_EXPIRATION_SECONDS: i32 = 600;
const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

pub struct CertificateSigningRequest;

impl BuiltIn for CertificateSigningRequest {
    type Object = certificates::CertificateSigningRequest;
    const INFO: Info = Info {
        group: "certificates.k8s.io",
        kind: "CertificateSigningRequest",
        plural: "certificatesigningrequests",
        singular: "certificatesigningrequest",
        short_names: &["csr"],
        scope: Scope::Cluster,
        subresources: &["status", "approval"],
        selectable: &["spec.signerName"],
        schema: "io.k8s.api.certificates.v1.CertificateSigningRequest",
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] = &[
        columns::NAME,
        columns::AGE,
        Column::text("SignerName"),
        Column::text("Requestor"),
        Column::text("RequestedDuration"),
        Column::text("Condition"),
    ];

    fn create(request: &mut certificates::CertificateSigningRequest) {
        request.status = Some(certificates::CertificateSigningRequestStatus::default());
    }

    fn update(old: &certificates::CertificateSigningRequest, new: &mut certificates::CertificateSigningRequest) {
        new.spec.clone_from(&old.spec);
    }

    fn validate(request: &certificates::CertificateSigningRequest, errors: &mut Errors) {
        let (spec, path) = (&request.spec, Path::new("spec"));
        if !is_pem_request(&spec.request.0) {
            let detail = "PEM block type must be CERTIFICATE REQUEST";
            errors.invalid(&path.child("request"), "<certificate request>", detail);
        }
        usages(spec.usages.as_deref().unwrap_or_default(), &path.child("usages"), errors);
        signer_name(&spec.signer_name, &path.child("signerName"), errors);
        if spec.signer_name == "kubernetes.io/legacy-unknown" {
            let detail = "the legacy signerName is not allowed via this API version";
            errors.invalid(&path.child("signerName"), spec.signer_name.as_str(), detail);
        }
        if let Some(seconds) = spec.expiration_seconds.filter(|seconds| *seconds < MIN_EXPIRATION_SECONDS) {
            let detail = "may not specify a duration less than 600 seconds (10 minutes)";
            errors.invalid(&path.child("expirationSeconds"), seconds, detail);
        }
    }

    fn validate_status(new: &certificates::CertificateSigningRequest, errors: &mut Errors) {
        let status = new.status.clone().unwrap_or_default();
        let path = Path::new("status").child("conditions");
        let conditions = status.conditions.as_deref().unwrap_or_default();
        let mut seen = BTreeSet::new();
        for (index, condition) in conditions.iter().enumerate() {
            let path = path.index(index);
            match condition.type_.as_str() {
                "" => errors.required(&path.child("type"), ""),
                type_ if !seen.insert(type_) => errors.duplicate(&path.child("type"), type_),
                _ => {}
            }
            match (condition.type_.as_str(), condition.status.as_str()) {
                (_, "") => errors.required(&path.child("status"), ""),
                ("Approved" | "Denied" | "Failed", "True") => {}
                ("Approved" | "Denied" | "Failed", other) => {
                    errors.not_supported(&path.child("status"), other, &["True"]);
                }
                (_, other) => validate::one_of(Some(other), &["False", "True", "Unknown"], &path.child("status"), errors),
            }
        }
        if seen.contains("Approved") && seen.contains("Denied") {
            let index = conditions.iter().rposition(|c| matches!(c.type_.as_str(), "Approved" | "Denied"));
            let detail = "Approved and Denied conditions are mutually exclusive";
            errors.invalid(&path.index(index.unwrap_or_default()).child("type"), "Denied", detail);
        }
    }

    fn row(request: &certificates::CertificateSigningRequest, now: Timestamp) -> Vec<String> {
        let spec = &request.spec;
        vec![
            columns::name(&request.metadata),
            columns::age(&request.metadata, now),
            columns::or_none(Some(&spec.signer_name)),
            spec.username.clone().unwrap_or_default(),
            spec.expiration_seconds.map_or_else(|| NONE.to_owned(), |seconds| columns::duration(seconds.into())),
            status_words(request),
        ]
    }
}

fn is_pem_request(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok_and(|text| {
        let begin = text.find("-----BEGIN CERTIFICATE REQUEST-----");
        begin.is_some_and(|begin| text[begin..].contains("-----END CERTIFICATE REQUEST-----"))
    })
}

fn usages(usages: &[String], path: &Path, errors: &mut Errors) {
    if usages.is_empty() {
        errors.required(path, "");
    }
    let mut seen = BTreeSet::new();
    for (index, usage) in usages.iter().enumerate() {
        if !USAGES.contains(&usage.as_str()) {
            errors.not_supported(&path.index(index), usage.as_str(), USAGES);
        }
        if !seen.insert(usage) {
            errors.duplicate(&path.index(index), usage.as_str());
        }
    }
}

/// `example.com/name`: a domain of at least two labels, and a path of at most 571 bytes in all.
pub(crate) fn signer_name(name: &str, path: &Path, errors: &mut Errors) {
    const MAX_BYTES: usize = 571;
    if name.is_empty() {
        return errors.required(path, "");
    }
    let parts: Vec<&str> = name.split('/').collect();
    let [domain, rest] = parts.as_slice() else {
        let detail = "must be a fully qualified domain and path of the form \"example.com/signer-name\"";
        return errors.invalid(path, name, detail);
    };
    if domain.is_empty() || !domain.contains('.') {
        errors.invalid(path, *domain, "should be a domain with at least two segments separated by dots");
    }
    names::dns_subdomain(domain).iter().for_each(|c| errors.invalid(path, *domain, format_args!("validating label \"{domain}\": {c}")));
    names::dns_subdomain(rest).iter().for_each(|c| errors.invalid(path, *rest, format_args!("validating label \"{rest}\": {c}")));
    if name.len() > MAX_BYTES {
        errors.too_long(path, MAX_BYTES);
    }
}

fn status_words(request: &certificates::CertificateSigningRequest) -> String {
    let status = request.status.clone().unwrap_or_default();
    let is = |type_: &str| status.conditions.iter().flatten().any(|condition| condition.type_ == type_);
    let mut words = match (is("Denied"), is("Approved")) {
        (true, _) => "Denied",
        (false, true) => "Approved",
        (false, false) => "Pending",
    }
    .to_owned();
    if is("Failed") {
        words.push_str(",Failed");
    }
    if status.certificate.is_some_and(|certificate| !certificate.0.is_empty()) {
        words.push_str(",Issued");
    }
    words
}
