//! PersistentVolumeClaims: what storage pods want.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    self as core, PersistentVolumeClaimSpec, TypedLocalObjectReference, TypedObjectReference,
};

use super::{BuiltIn, Info};
use crate::columns::{self, Column, UNSET};
use crate::defaults::{self, set_text};
use crate::field::{Errors, Path};
use crate::validate::storage;
use crate::warn::{self, Warnings};

pub struct PersistentVolumeClaim;

impl BuiltIn for PersistentVolumeClaim {
    type Object = core::PersistentVolumeClaim;
    const INFO: Info = Info {
        kind: "PersistentVolumeClaim",
        plural: "persistentvolumeclaims",
        singular: "persistentvolumeclaim",
        short_names: &["pvc"],
        subresources: &["status"],
        schema: "io.k8s.api.core.v1.PersistentVolumeClaim",
        shows_deleted: true,
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] = &[
        columns::NAME,
        Column::text("Status"),
        Column::text("Volume"),
        Column::text("Capacity"),
        Column::text("Access Modes"),
        Column::text("StorageClass"),
        Column::text("VolumeAttributesClass"),
        columns::AGE,
        Column::wide("VolumeMode"),
    ];

    fn default(claim: &mut core::PersistentVolumeClaim) {
        defaults::claim(claim.spec.get_or_insert_default());
    }

    fn create(claim: &mut core::PersistentVolumeClaim) {
        claim.status = Some(core::PersistentVolumeClaimStatus { phase: Some("Pending".into()), ..Default::default() });
        claim.spec.iter_mut().for_each(data_sources);
    }

    fn update(_old: &core::PersistentVolumeClaim, new: &mut core::PersistentVolumeClaim) {
        new.spec.iter_mut().for_each(data_sources);
    }

    fn validate(claim: &core::PersistentVolumeClaim, errors: &mut Errors) {
        if let Some(spec) = &claim.spec {
            storage::claim(spec, &Path::new("spec"), errors);
        }
    }

    fn validate_update(old: &core::PersistentVolumeClaim, new: &core::PersistentVolumeClaim, errors: &mut Errors) {
        let (Some(before), Some(after)) = (&old.spec, &new.spec) else { return };
        let bound = old.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Bound"));
        if fixed(before, bound) != fixed(after, bound) && !is_binding(before, after) {
            let detail = "spec is immutable after creation except resources.requests and volumeAttributesClassName for \
                          bound claims";
            errors.forbidden(&Path::new("spec"), detail);
        }
    }

    fn validate_status(claim: &core::PersistentVolumeClaim, errors: &mut Errors) {
        if let Some(status) = &claim.status {
            storage::claim_status(status, errors);
        }
    }

    fn warn(_old: Option<&core::PersistentVolumeClaim>, claim: &core::PersistentVolumeClaim, warnings: &mut Warnings) {
        warn::storage::claim(claim, warnings);
    }

    fn row(claim: &core::PersistentVolumeClaim, now: Timestamp) -> Vec<String> {
        let spec = claim.spec.clone().unwrap_or_default();
        let status = claim.status.clone().unwrap_or_default();
        let phase = match claim.metadata.deletion_timestamp {
            Some(_) => "Terminating".to_owned(),
            None => status.phase.clone().unwrap_or_default(),
        };
        let volume = spec.volume_name.clone().unwrap_or_default();
        let (capacity, modes) = match volume.as_str() {
            "" => Default::default(),
            _ => (storage::capacity(status.capacity.as_ref()), storage::modes(status.access_modes.as_deref())),
        };
        vec![
            columns::name(&claim.metadata),
            phase,
            volume,
            capacity,
            modes,
            spec.storage_class_name.clone().unwrap_or_default(),
            spec.volume_attributes_class_name.clone().unwrap_or_else(|| UNSET.to_owned()),
            columns::age(&claim.metadata, now),
            spec.volume_mode.clone().unwrap_or_else(|| UNSET.to_owned()),
        ]
    }
}

/// The defaults of a claim that stands within another object.
pub(crate) fn default_claim(claim: &mut core::PersistentVolumeClaim) {
    PersistentVolumeClaim::default(claim);
    set_text(&mut claim.status.get_or_insert_default().phase, "Pending");
}

/// What a claim is filled from stands in both of its fields. The one of old ignores what it does not know, and the other
/// may name what is in another namespace.
fn data_sources(spec: &mut PersistentVolumeClaimSpec) {
    let known = |source: &TypedLocalObjectReference| {
        let group = source.api_group.as_deref().unwrap_or_default();
        [("", "PersistentVolumeClaim"), ("snapshot.storage.k8s.io", "VolumeSnapshot")].contains(&(group, source.kind.as_str()))
    };
    match (&spec.data_source, &spec.data_source_ref) {
        (Some(old), None) if !known(old) => spec.data_source = None,
        (Some(old), None) => {
            let old = old.clone();
            let (api_group, kind, name) = (old.api_group, old.kind, old.name);
            spec.data_source_ref = Some(TypedObjectReference { api_group, kind, name, namespace: None });
        }
        (None, Some(new)) if new.namespace.as_deref().unwrap_or_default().is_empty() => {
            let new = new.clone();
            let (api_group, kind, name) = (new.api_group, new.kind, new.name);
            spec.data_source = Some(TypedLocalObjectReference { api_group, kind, name });
        }
        _ => {}
    }
}

/// What an update may not change.
fn fixed(spec: &PersistentVolumeClaimSpec, bound: bool) -> PersistentVolumeClaimSpec {
    let mut fixed = spec.clone();
    data_sources(&mut fixed);
    if bound {
        fixed.resources = None;
        fixed.volume_attributes_class_name = None;
    }
    fixed
}

/// Whether the change does nothing but give the claim its volume.
fn is_binding(before: &PersistentVolumeClaimSpec, after: &PersistentVolumeClaimSpec) -> bool {
    let unbound = before.volume_name.as_deref().unwrap_or_default().is_empty();
    let (before, after) = (fixed(before, false), fixed(after, false));
    unbound && before == PersistentVolumeClaimSpec { volume_name: before.volume_name.clone(), ..after }
}
