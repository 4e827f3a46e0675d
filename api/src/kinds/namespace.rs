//! Namespaces: where names are unique.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{self as core, NamespaceStatus};

use super::{BuiltIn, Info, Scope};
use crate::columns::{self, Column};
use crate::field::{Errors, Path};
use crate::{names, validate};

/// The label that lets selectors choose a namespace by its name.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";
/// Keeps a namespace until its contents are gone.
const FINALIZER: &str = "kubernetes";

pub struct Namespace;

impl BuiltIn for Namespace {
    type Object = core::Namespace;
    const INFO: Info = Info {
        kind: "Namespace",
        plural: "namespaces",
        singular: "namespace",
        short_names: &["ns"],
        scope: Scope::Cluster,
        subresources: &["status", "finalize"],
        selectable: &["status.phase"],
        schema: "io.k8s.api.core.v1.Namespace",
        name_rule: names::dns_label,
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] = &[columns::NAME, Column::text("Status"), columns::AGE];

    fn default(namespace: &mut core::Namespace) {
        if let Some(name) = namespace.metadata.name.clone() {
            namespace.metadata.labels.get_or_insert_default().insert(NAME_LABEL.to_owned(), name);
        }
    }

    fn create(namespace: &mut core::Namespace) {
        let finalizers = namespace.spec.get_or_insert_default().finalizers.get_or_insert_default();
        if !finalizers.iter().any(|f| f == FINALIZER) {
            finalizers.push(FINALIZER.to_owned());
        }
        namespace.status = Some(NamespaceStatus { phase: Some("Active".to_owned()), conditions: None });
    }

    fn update(old: &core::Namespace, new: &mut core::Namespace) {
        new.spec.clone_from(&old.spec);
    }

    fn validate(namespace: &core::Namespace, errors: &mut Errors) {
        let path = Path::new("spec").child("finalizers");
        let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.as_ref());
        for finalizer in finalizers.into_iter().flatten() {
            validate::name(finalizer, names::qualified_name, &path, errors);
            validate::metadata::standard_finalizer(finalizer, &path, errors);
        }
    }

    fn validate_status(namespace: &core::Namespace, errors: &mut Errors) {
        let phase = namespace.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
        let (expected, when) = match namespace.metadata.deletion_timestamp {
            None => ("Active", "is empty"),
            Some(_) => ("Terminating", "is not empty"),
        };
        if phase != expected {
            let detail = format_args!("may only be '{expected}' if `deletionTimestamp` {when}");
            errors.invalid(&Path::new("status").child("Phase"), phase, detail);
        }
    }

    fn row(namespace: &core::Namespace, now: Timestamp) -> Vec<String> {
        let phase = namespace.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default();
        vec![columns::name(&namespace.metadata), phase, columns::age(&namespace.metadata, now)]
    }
}
