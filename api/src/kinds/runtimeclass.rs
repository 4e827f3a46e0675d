//! RuntimeClasses: by what a pod's containers are run.

use jiff::Timestamp;
use k8s_openapi::api::node::v1 as node;

use super::{BuiltIn, Info, Scope};
use crate::columns::{self, Column};
use crate::field::{Errors, Path};
use crate::warn::{self, Warnings};
use crate::{names, validate};

pub struct RuntimeClass;

impl BuiltIn for RuntimeClass {
    type Object = node::RuntimeClass;
    const INFO: Info = Info {
        group: "node.k8s.io",
        kind: "RuntimeClass",
        plural: "runtimeclasses",
        singular: "runtimeclass",
        scope: Scope::Cluster,
        schema: "io.k8s.api.node.v1.RuntimeClass",
        unconditional_update: false,
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] = &[columns::NAME, Column::text("Handler"), columns::AGE];

    fn validate(class: &node::RuntimeClass, errors: &mut Errors) {
        validate::name(&class.handler, names::dns_label, &Path::new("handler"), errors);
        let overhead = class.overhead.iter().flat_map(|overhead| overhead.pod_fixed.iter().flatten());
        for (resource, quantity) in overhead {
            let path = Path::new("overhead").child("podFixed").key(resource);
            validate::resources::amount(resource, quantity, &path, errors);
        }
        let Some(scheduling) = &class.scheduling else { return };
        let path = Path::new("scheduling");
        let labels = scheduling.node_selector.as_ref();
        validate::metadata::labels(labels, &path.child("nodeSelector"), errors);
        let tolerations = scheduling.tolerations.as_deref().unwrap_or_default();
        validate::scheduling::tolerations(tolerations, &path.child("tolerations"), errors);
    }

    fn validate_update(old: &node::RuntimeClass, new: &node::RuntimeClass, errors: &mut Errors) {
        validate::immutable(&old.handler, &new.handler, &Path::new("handler"), errors);
    }

    fn warn(_old: Option<&node::RuntimeClass>, class: &node::RuntimeClass, warnings: &mut Warnings) {
        let scheduling = class.scheduling.as_ref().and_then(|scheduling| scheduling.node_selector.as_ref());
        for words in scheduling.into_iter().flatten().filter_map(|(key, _)| warn::deprecated_label(key)) {
            warnings.at(&Path::new("scheduling").child("nodeSelector"), words);
        }
    }

    fn row(class: &node::RuntimeClass, now: Timestamp) -> Vec<String> {
        vec![columns::name(&class.metadata), class.handler.clone(), columns::age(&class.metadata, now)]
    }
}
