//! VolumeAttachments: which volume is to be at which node.

use jiff::Timestamp;
use k8s_openapi::api::storage::v1 as storage;

use super::{BuiltIn, Info, Scope};
use crate::columns::{self, Column};
use crate::field::{Errors, Path};
use crate::{names, validate};

pub struct VolumeAttachment;

impl BuiltIn for VolumeAttachment {
    type Object = storage::VolumeAttachment;
    const INFO: Info = Info {
        group: "storage.k8s.io",
        kind: "VolumeAttachment",
        plural: "volumeattachments",
        singular: "volumeattachment",
        scope: Scope::Cluster,
        subresources: &["status"],
        schema: "io.k8s.api.storage.v1.VolumeAttachment",
        unconditional_update: false,
        shows_deleted: true,
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] = &[
        columns::NAME,
        Column::text("Attacher"),
        Column::text("PV"),
        Column::text("Node"),
        Column::boolean("Attached"),
        columns::AGE,
    ];

    fn create(attachment: &mut storage::VolumeAttachment) {
        attachment.status = Some(storage::VolumeAttachmentStatus::default());
    }

    fn validate(attachment: &storage::VolumeAttachment, errors: &mut Errors) {
        let (spec, path) = (&attachment.spec, Path::new("spec"));
        validate::storage::driver(&spec.attacher, &path.child("attacher"), errors);
        let (volume, inline) = (&spec.source.persistent_volume_name, &spec.source.inline_volume_spec);
        let source = path.child("source");
        match (volume.as_deref().unwrap_or_default(), inline) {
            ("", None) => errors.required(&source, "must specify exactly one of inlineVolumeSpec and persistentVolumeName"),
            (_, None) | ("", Some(_)) => {}
            _ => errors.forbidden(&source, "must specify exactly one of inlineVolumeSpec and persistentVolumeName"),
        }
        validate::name(&spec.node_name, names::dns_subdomain, &path.child("nodeName"), errors);
    }

    fn validate_update(old: &storage::VolumeAttachment, new: &storage::VolumeAttachment, errors: &mut Errors) {
        validate::immutable(&old.spec, &new.spec, &Path::new("spec"), errors);
    }

    fn row(attachment: &storage::VolumeAttachment, now: Timestamp) -> Vec<String> {
        let spec = &attachment.spec;
        vec![
            columns::name(&attachment.metadata),
            spec.attacher.clone(),
            spec.source.persistent_volume_name.clone().unwrap_or_default(),
            spec.node_name.clone(),
            attachment.status.as_ref().is_some_and(|status| status.attached).to_string(),
            columns::age(&attachment.metadata, now),
        ]
    }
}
