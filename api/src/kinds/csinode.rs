//! CSINodes: which storage drivers a node has.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::storage::v1 as storage;

use super::{BuiltIn, Info, Scope};
use crate::columns::{self, Column};
use crate::field::{Errors, Path};
use crate::validate;

const MAX_NODE_ID_BYTES: usize = 192;

pub struct CSINode;

impl BuiltIn for CSINode {
    type Object = storage::CSINode;
    const INFO: Info = Info {
        group: "storage.k8s.io",
        kind: "CSINode",
        plural: "csinodes",
        singular: "csinode",
        scope: Scope::Cluster,
        subresources: &["status"],
        schema: "io.k8s.api.storage.v1.CSINode",
        unconditional_update: false,
        shows_deleted: true,
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] = &[columns::NAME, Column::number("Drivers"), columns::AGE];

    fn validate(node: &storage::CSINode, errors: &mut Errors) {
        let mut seen = BTreeSet::new();
        for (index, driver) in node.spec.drivers.iter().enumerate() {
            let path = Path::new("spec").child("drivers").index(index);
            validate::storage::driver(&driver.name, &path.child("name"), errors);
            if !seen.insert(&driver.name) {
                errors.duplicate(&path.child("name"), driver.name.as_str());
            }
            match driver.node_id.len() {
                0 => errors.required(&path.child("nodeID"), ""),
                1..=MAX_NODE_ID_BYTES => {}
                _ => {
                    let detail = format_args!("must be {MAX_NODE_ID_BYTES} characters or less");
                    errors.invalid(&path.child("nodeID"), driver.node_id.as_str(), detail);
                }
            }
        }
    }

    fn row(node: &storage::CSINode, now: Timestamp) -> Vec<String> {
        let drivers = node.spec.drivers.len().to_string();
        vec![columns::name(&node.metadata), drivers, columns::age(&node.metadata, now)]
    }
}
