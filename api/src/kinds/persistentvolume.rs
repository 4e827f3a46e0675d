//! PersistentVolumes: storage that outlives pods.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{self as core, PersistentVolumeSpec};

use super::{BuiltIn, Info, Scope};
use crate::columns::{self, Column, UNSET};
use crate::defaults::{self, set_text};
use crate::field::{Errors, Path};
use crate::validate::{self, storage};
use crate::warn::{self, Warnings};

pub struct PersistentVolume;

impl BuiltIn for PersistentVolume {
    type Object = core::PersistentVolume;
    const INFO: Info = Info {
        kind: "PersistentVolume",
        plural: "persistentvolumes",
        singular: "persistentvolume",
        short_names: &["pv"],
        scope: Scope::Cluster,
        subresources: &["status"],
        schema: "io.k8s.api.core.v1.PersistentVolume",
        shows_deleted: true,
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] = &[
        columns::NAME,
        Column::text("Capacity"),
        Column::text("Access Modes"),
        Column::text("Reclaim Policy"),
        Column::text("Status"),
        Column::text("Claim"),
        Column::text("StorageClass"),
        Column::text("VolumeAttributesClass"),
        Column::text("Reason"),
        columns::AGE,
        Column::wide("VolumeMode"),
    ];

    fn default(volume: &mut core::PersistentVolume) {
        let spec = volume.spec.get_or_insert_default();
        set_text(&mut spec.persistent_volume_reclaim_policy, "Retain");
        set_text(&mut spec.volume_mode, "Filesystem");
        defaults::amounts(spec.capacity.as_mut());
        if let Some(host) = &mut spec.host_path {
            host.type_.get_or_insert_default();
        }
        spec.azure_disk.iter_mut().for_each(defaults::azure_disk);
        if let Some(source) = &mut spec.iscsi {
            set_text(&mut source.iscsi_interface, "default");
        }
        if let Some(source) = &mut spec.rbd {
            defaults::rbd(&mut source.pool, &mut source.user, &mut source.keyring);
        }
        if let Some(source) = &mut spec.scale_io {
            defaults::scale_io(&mut source.storage_mode, &mut source.fs_type);
        }
    }

    fn create(volume: &mut core::PersistentVolume) {
        volume.status = Some(core::PersistentVolumeStatus { phase: Some("Pending".into()), ..Default::default() });
    }

    fn validate(volume: &core::PersistentVolume, errors: &mut Errors) {
        if let Some(spec) = &volume.spec {
            storage::volume(spec, &Path::new("spec"), errors);
        }
    }

    fn validate_update(old: &core::PersistentVolume, new: &core::PersistentVolume, errors: &mut Errors) {
        let (Some(before), Some(after)) = (&old.spec, &new.spec) else { return };
        if source(before) != source(after) {
            let detail = "spec.persistentvolumesource is immutable after creation";
            errors.forbidden(&Path::new("spec").child("persistentvolumesource"), detail);
        }
        let path = Path::new("spec").child("volumeMode");
        validate::immutable(&before.volume_mode, &after.volume_mode, &path, errors);
    }

    fn warn(_old: Option<&core::PersistentVolume>, volume: &core::PersistentVolume, warnings: &mut Warnings) {
        warn::storage::volume(volume, warnings);
    }

    fn row(volume: &core::PersistentVolume, now: Timestamp) -> Vec<String> {
        let spec = volume.spec.clone().unwrap_or_default();
        let status = volume.status.clone().unwrap_or_default();
        let phase = match volume.metadata.deletion_timestamp {
            Some(_) => "Terminating".to_owned(),
            None => status.phase.unwrap_or_default(),
        };
        let claim = spec.claim_ref.as_ref().map(|claim| {
            format!("{}/{}", claim.namespace.as_deref().unwrap_or_default(), claim.name.as_deref().unwrap_or_default())
        });
        vec![
            columns::name(&volume.metadata),
            storage::capacity(spec.capacity.as_ref()),
            storage::modes(spec.access_modes.as_deref()),
            spec.persistent_volume_reclaim_policy.clone().unwrap_or_default(),
            phase,
            claim.unwrap_or_default(),
            spec.storage_class_name.clone().unwrap_or_default(),
            spec.volume_attributes_class_name.clone().unwrap_or_else(|| UNSET.to_owned()),
            status.reason.unwrap_or_default(),
            columns::age(&volume.metadata, now),
            spec.volume_mode.clone().unwrap_or_else(|| UNSET.to_owned()),
        ]
    }
}

/// Where the storage is, and nothing else.
fn source(spec: &PersistentVolumeSpec) -> PersistentVolumeSpec {
    PersistentVolumeSpec {
        access_modes: None,
        capacity: None,
        claim_ref: None,
        mount_options: None,
        node_affinity: None,
        persistent_volume_reclaim_policy: None,
        storage_class_name: None,
        volume_attributes_class_name: None,
        volume_mode: None,
        ..spec.clone()
    }
}
