//! CSIStorageCapacities: how much storage a driver has left, and where.

use jiff::Timestamp;
use k8s_openapi::api::storage::v1 as storage;

use super::{BuiltIn, Info};
use crate::columns::{self, Column, UNSET};
use crate::field::{Errors, Path};
use crate::warn::{self, Warnings};
use crate::{names, selector, validate};

pub struct CSIStorageCapacity;

impl BuiltIn for CSIStorageCapacity {
    type Object = storage::CSIStorageCapacity;
    const INFO: Info = Info {
        group: "storage.k8s.io",
        kind: "CSIStorageCapacity",
        plural: "csistoragecapacities",
        singular: "csistoragecapacity",
        schema: "io.k8s.api.storage.v1.CSIStorageCapacity",
        unconditional_update: false,
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] =
        &[columns::NAME, Column::text("StorageClassName"), Column::text("Capacity")];

    fn validate(capacity: &storage::CSIStorageCapacity, errors: &mut Errors) {
        if let Some(labels) = &capacity.node_topology {
            selector::validate(labels, &Path::new("nodeTopology"), errors);
        }
        let path = Path::new("storageClassName");
        validate::name(&capacity.storage_class_name, names::dns_subdomain, &path, errors);
        let amounts = [("capacity", &capacity.capacity), ("maximumVolumeSize", &capacity.maximum_volume_size)];
        for (field, quantity) in amounts {
            if let Some(quantity) = quantity {
                validate::resources::amount("storage", quantity, &Path::new(field), errors);
            }
        }
    }

    fn validate_update(old: &storage::CSIStorageCapacity, new: &storage::CSIStorageCapacity, errors: &mut Errors) {
        validate::immutable(&old.node_topology, &new.node_topology, &Path::new("nodeTopology"), errors);
        let classes = (&old.storage_class_name, &new.storage_class_name);
        validate::immutable(classes.0, classes.1, &Path::new("storageClassName"), errors);
    }

    fn warn(
        _old: Option<&storage::CSIStorageCapacity>,
        capacity: &storage::CSIStorageCapacity,
        warnings: &mut Warnings,
    ) {
        if let Some(topology) = &capacity.node_topology {
            warn::storage::topology(topology, &Path::new("nodeTopology"), warnings);
        }
    }

    fn row(capacity: &storage::CSIStorageCapacity, _now: Timestamp) -> Vec<String> {
        vec![
            columns::name(&capacity.metadata),
            capacity.storage_class_name.clone(),
            capacity.capacity.as_ref().map_or_else(|| UNSET.to_owned(), |quantity| quantity.0.clone()),
        ]
    }
}
