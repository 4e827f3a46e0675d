//! StorageClasses: how volumes are provided.

use jiff::Timestamp;
use k8s_openapi::api::storage::v1 as storage;

use super::{BuiltIn, Info, Scope};
use crate::columns::{self, Column};
use crate::defaults::set_text;
use crate::field::{Errors, Path};
use crate::warn::{self, Warnings};
use crate::{names, validate};

const DEFAULT_CLASS: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];

pub struct StorageClass;

impl BuiltIn for StorageClass {
    type Object = storage::StorageClass;
    const INFO: Info = Info {
        group: "storage.k8s.io",
        kind: "StorageClass",
        plural: "storageclasses",
        singular: "storageclass",
        short_names: &["sc"],
        scope: Scope::Cluster,
        schema: "io.k8s.api.storage.v1.StorageClass",
        shows_deleted: true,
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] = &[
        columns::NAME,
        Column::text("Provisioner"),
        Column::text("ReclaimPolicy"),
        Column::text("VolumeBindingMode"),
        Column::text("AllowVolumeExpansion"),
        columns::AGE,
    ];

    fn default(class: &mut storage::StorageClass) {
        set_text(&mut class.reclaim_policy, "Delete");
        set_text(&mut class.volume_binding_mode, "Immediate");
    }

    fn validate(class: &storage::StorageClass, errors: &mut Errors) {
        let path = Path::new("provisioner");
        match class.provisioner.as_str() {
            "" => errors.required(&path, ""),
            provisioner => {
                let lower = provisioner.to_lowercase();
                names::qualified_name(&lower).iter().for_each(|c| errors.invalid(&path, provisioner, c));
            }
        }
        let policies = ["Delete", "Retain"];
        validate::one_of(class.reclaim_policy.as_deref(), &policies, &Path::new("reclaimPolicy"), errors);
        let modes = ["Immediate", "WaitForFirstConsumer"];
        validate::one_of(class.volume_binding_mode.as_deref(), &modes, &Path::new("volumeBindingMode"), errors);
        validate::storage::parameters(class.parameters.as_ref(), &Path::new("parameters"), errors);
        let topologies = class.allowed_topologies.as_deref().unwrap_or_default();
        validate::storage::topologies(topologies, &Path::new("allowedTopologies"), errors);
    }

    fn validate_update(old: &storage::StorageClass, new: &storage::StorageClass, errors: &mut Errors) {
        for (field, differs) in [
            ("parameters", old.parameters != new.parameters),
            ("provisioner", old.provisioner != new.provisioner),
            ("reclaimPolicy", old.reclaim_policy != new.reclaim_policy),
        ] {
            if differs {
                errors.forbidden(&Path::new(field), format_args!("updates to {field} are forbidden."));
            }
        }
        let path = Path::new("volumeBindingMode");
        validate::immutable(&old.volume_binding_mode, &new.volume_binding_mode, &path, errors);
    }

    fn warn(_old: Option<&storage::StorageClass>, class: &storage::StorageClass, warnings: &mut Warnings) {
        for (index, term) in class.allowed_topologies.iter().flatten().enumerate() {
            let path = Path::new("allowedTopologies").index(index).child("matchLabelExpressions");
            for (index, expression) in term.match_label_expressions.iter().flatten().enumerate() {
                if let Some(words) = warn::deprecated_label(&expression.key) {
                    warnings.at(&path.index(index).child("key"), words);
                }
            }
        }
    }

    fn row(class: &storage::StorageClass, now: Timestamp) -> Vec<String> {
        let annotations = class.metadata.annotations.as_ref();
        let says = |key: &&str| annotations.is_some_and(|all| all.get(*key).is_some_and(|value| value == "true"));
        let name = columns::name(&class.metadata);
        vec![
            if DEFAULT_CLASS.iter().any(says) { format!("{name} (default)") } else { name },
            class.provisioner.clone(),
            class.reclaim_policy.clone().unwrap_or_else(|| "Delete".to_owned()),
            class.volume_binding_mode.clone().unwrap_or_else(|| columns::UNSET.to_owned()),
            class.allow_volume_expansion.unwrap_or_default().to_string(),
            columns::age(&class.metadata, now),
        ]
    }
}
