//! PersistentVolumeClaims: what storage pods want.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{self as core, PersistentVolumeClaimSpec};

use super::{BuiltIn, Info};
use crate::columns::{self, Column, UNSET};
use crate::defaults::set_text;
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
        set_text(&mut claim.spec.get_or_insert_default().volume_mode, "Filesystem");
    }

    fn create(claim: &mut core::PersistentVolumeClaim) {
        claim.status = Some(core::PersistentVolumeClaimStatus { phase: Some("Pending".into()), ..Default::default() });
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

/// What an update may not change.
fn fixed(spec: &PersistentVolumeClaimSpec, bound: bool) -> PersistentVolumeClaimSpec {
    let mut fixed = spec.clone();
    if bound {
        fixed.resources = None;
        fixed.volume_attributes_class_name = None;
    }
    fixed
}

/// Whether the change does nothing but give the claim its volume.
fn is_binding(before: &PersistentVolumeClaimSpec, after: &PersistentVolumeClaimSpec) -> bool {
    let unbound = before.volume_name.as_deref().unwrap_or_default().is_empty();
    unbound && *before == PersistentVolumeClaimSpec { volume_name: before.volume_name.clone(), ..after.clone() }
}
