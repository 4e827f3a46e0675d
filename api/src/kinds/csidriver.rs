//! CSIDrivers: what a storage driver can do.

use jiff::Timestamp;
use k8s_openapi::api::storage::v1 as storage;

use super::{BuiltIn, Info, Scope};
use crate::columns::{self, Column, UNSET};
use crate::defaults::{set, set_text};
use crate::field::{Errors, Path};
use crate::validate;

pub struct CSIDriver;

impl BuiltIn for CSIDriver {
    type Object = storage::CSIDriver;
    const INFO: Info = Info {
        group: "storage.k8s.io",
        kind: "CSIDriver",
        plural: "csidrivers",
        singular: "csidriver",
        scope: Scope::Cluster,
        generation: true,
        schema: "io.k8s.api.storage.v1.CSIDriver",
        unconditional_update: false,
        shows_deleted: true,
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] = &[
        columns::NAME,
        Column::boolean("AttachRequired"),
        Column::boolean("PodInfoOnMount"),
        Column::boolean("StorageCapacity"),
        Column::text("TokenRequests"),
        Column::boolean("RequiresRepublish"),
        Column::text("Modes"),
        columns::AGE,
    ];

    fn default(driver: &mut storage::CSIDriver) {
        let spec = &mut driver.spec;
        set(&mut spec.attach_required, || true);
        for field in [
            &mut spec.pod_info_on_mount,
            &mut spec.storage_capacity,
            &mut spec.requires_republish,
            &mut spec.se_linux_mount,
        ] {
            set(field, || false);
        }
        set_text(&mut spec.fs_group_policy, "ReadWriteOnceWithFSType");
        if spec.volume_lifecycle_modes.as_ref().is_none_or(Vec::is_empty) {
            spec.volume_lifecycle_modes = Some(vec!["Persistent".to_owned()]);
        }
    }

    fn validate(driver: &storage::CSIDriver, errors: &mut Errors) {
        let path = Path::new("spec");
        let name = driver.metadata.name.as_deref().unwrap_or_default();
        validate::storage::driver(name, &Path::new("metadata").child("name"), errors);
        let policies = ["File", "None", "ReadWriteOnceWithFSType"];
        validate::one_of(driver.spec.fs_group_policy.as_deref(), &policies, &path.child("fsGroupPolicy"), errors);
        for mode in driver.spec.volume_lifecycle_modes.iter().flatten() {
            let path = path.child("volumeLifecycleModes");
            validate::one_of(Some(mode), &["Ephemeral", "Persistent"], &path, errors);
        }
    }

    fn validate_update(old: &storage::CSIDriver, new: &storage::CSIDriver, errors: &mut Errors) {
        let path = Path::new("spec");
        let (old, new) = (&old.spec, &new.spec);
        validate::immutable(&old.attach_required, &new.attach_required, &path.child("attachedRequired"), errors);
        let modes = (&old.volume_lifecycle_modes, &new.volume_lifecycle_modes);
        validate::immutable(modes.0, modes.1, &path.child("volumeLifecycleModes"), errors);
    }

    fn row(driver: &storage::CSIDriver, now: Timestamp) -> Vec<String> {
        let spec = &driver.spec;
        let flag = |value: Option<bool>, otherwise: bool| value.unwrap_or(otherwise).to_string();
        let tokens: Vec<&str> = spec.token_requests.iter().flatten().map(|token| token.audience.as_str()).collect();
        let modes = spec.volume_lifecycle_modes.clone().unwrap_or_default().join(",");
        vec![
            columns::name(&driver.metadata),
            flag(spec.attach_required, true),
            flag(spec.pod_info_on_mount, false),
            flag(spec.storage_capacity, false),
            if tokens.is_empty() { UNSET.to_owned() } else { tokens.join(",") },
            flag(spec.requires_republish, false),
            if modes.is_empty() { columns::NONE.to_owned() } else { modes },
            columns::age(&driver.metadata, now),
        ]
    }
}
