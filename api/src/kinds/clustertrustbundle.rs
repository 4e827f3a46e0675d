//! ClusterTrustBundles: certificates to trust, by who signs with them.

use jiff::Timestamp;
use k8s_openapi::api::certificates::v1 as certificates;

use super::{BuiltIn, Info, Scope, certificatesigningrequest};
use crate::columns::{self, Column};
use crate::field::{Errors, Path};
use crate::validate;

pub struct ClusterTrustBundle;

impl BuiltIn for ClusterTrustBundle {
    type Object = certificates::ClusterTrustBundle;
    const INFO: Info = Info {
        group: "certificates.k8s.io",
        kind: "ClusterTrustBundle",
        plural: "clustertrustbundles",
        singular: "clustertrustbundle",
        scope: Scope::Cluster,
        selectable: &["spec.signerName"],
        schema: "io.k8s.api.certificates.v1.ClusterTrustBundle",
        name_rule: name,
        unconditional_update: false,
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] = &[columns::NAME, Column::text("SignerName")];

    fn validate(bundle: &certificates::ClusterTrustBundle, errors: &mut Errors) {
        let name = bundle.metadata.name.as_deref().unwrap_or_default();
        let at = Path::new("metadata").child("name");
        match bundle.spec.signer_name.as_deref().unwrap_or_default() {
            "" if name.contains(':') => {
                errors.invalid(&at, name, "ClusterTrustBundle without signer name must not have \":\" in its name");
            }
            "" => {}
            signer => {
                certificatesigningrequest::signer_name(signer, &Path::new("spec").child("signerName"), errors);
                let prefix = format!("{}:", signer.replace('/', ":"));
                if !name.starts_with(&prefix) {
                    let detail =
                        format_args!("ClusterTrustBundle for signerName {signer} must be named with prefix {prefix}");
                    errors.invalid(&at, name, detail);
                }
            }
        }
        let path = Path::new("spec").child("trustBundle");
        if !bundle.spec.trust_bundle.contains("-----BEGIN CERTIFICATE-----") {
            errors.invalid(&path, "<value omitted>", "at least one trust anchor must be provided");
        }
    }

    fn validate_update(
        old: &certificates::ClusterTrustBundle,
        new: &certificates::ClusterTrustBundle,
        errors: &mut Errors,
    ) {
        let path = Path::new("spec").child("signerName");
        validate::immutable(&old.spec.signer_name, &new.spec.signer_name, &path, errors);
    }

    fn row(bundle: &certificates::ClusterTrustBundle, _now: Timestamp) -> Vec<String> {
        vec![columns::name(&bundle.metadata), columns::or_none(bundle.spec.signer_name.as_deref())]
    }
}

/// The parts between colons are names.
fn name(text: &str) -> Vec<String> {
    text.split(':').flat_map(crate::names::dns_subdomain).collect()
}
