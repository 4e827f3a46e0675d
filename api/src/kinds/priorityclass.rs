//! PriorityClasses: which pods matter more.

use jiff::Timestamp;
use k8s_openapi::api::scheduling::v1 as scheduling;

use super::{BuiltIn, Info, Scope};
use crate::columns::{self, Column};
use crate::defaults::{set, set_text};
use crate::field::{Errors, Path};
use crate::validate;

/// Higher ones are the system's own.
pub const MAX_USER_PRIORITY: i32 = 1_000_000_000;
/// The classes that every cluster has, with their priorities and what they are for.
pub const SYSTEM: [(&str, i32, &str); 2] = [
    (
        "system-cluster-critical",
        2_000_000_000,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    ),
    (
        "system-node-critical",
        2_000_001_000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
];
const RESERVED_PREFIX: &str = "system-";

pub struct PriorityClass;

impl BuiltIn for PriorityClass {
    type Object = scheduling::PriorityClass;
    const INFO: Info = Info {
        group: "scheduling.k8s.io",
        kind: "PriorityClass",
        plural: "priorityclasses",
        singular: "priorityclass",
        short_names: &["pc"],
        scope: Scope::Cluster,
        generation: true,
        schema: "io.k8s.api.scheduling.v1.PriorityClass",
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] = &[
        columns::NAME,
        Column::number("Value"),
        Column::boolean("Global-Default"),
        columns::AGE,
        Column::text("PreemptionPolicy"),
    ];

    fn default(class: &mut scheduling::PriorityClass) {
        set(&mut class.value, || 0);
        set_text(&mut class.preemption_policy, "PreemptLowerPriority");
    }

    fn validate(class: &scheduling::PriorityClass, errors: &mut Errors) {
        let name = class.metadata.name.as_deref().unwrap_or_default();
        if name.starts_with(RESERVED_PREFIX) {
            if let Err(why) = is_system(name, class) {
                let path = Path::new("metadata").child("name");
                let detail = "priority class names with 'system-' prefix are reserved for system use only";
                errors.forbidden(&path, format_args!("{detail}. error: {why}"));
            }
        } else if class.value > Some(MAX_USER_PRIORITY) {
            let detail = format_args!("maximum allowed value of a user defined priority is {MAX_USER_PRIORITY}");
            errors.forbidden(&Path::new("value"), detail);
        }
        let policies = ["Never", "PreemptLowerPriority"];
        validate::one_of(class.preemption_policy.as_deref(), &policies, &Path::new("preemptionPolicy"), errors);
    }

    fn validate_update(old: &scheduling::PriorityClass, new: &scheduling::PriorityClass, errors: &mut Errors) {
        if old.value != new.value {
            errors.forbidden(&Path::new("value"), "may not be changed in an update.");
        }
        let path = Path::new("preemptionPolicy");
        validate::immutable(&old.preemption_policy, &new.preemption_policy, &path, errors);
    }

    fn changed(old: &serde_json::Value, new: &serde_json::Value) -> bool {
        ["globalDefault", "description"].iter().any(|field| old.get(field) != new.get(field))
    }

    fn row(class: &scheduling::PriorityClass, now: Timestamp) -> Vec<String> {
        vec![
            columns::name(&class.metadata),
            class.value.unwrap_or_default().to_string(),
            class.global_default.unwrap_or_default().to_string(),
            columns::age(&class.metadata, now),
            class.preemption_policy.clone().unwrap_or_default(),
        ]
    }
}

/// Whether the class is one of the system's own, as it has to be; or why not.
fn is_system(name: &str, class: &scheduling::PriorityClass) -> Result<(), String> {
    let Some((_, value, _)) = SYSTEM.iter().find(|(known, _, _)| *known == name) else {
        return Err(format!("{name} is not a known system priority class"));
    };
    if Some(*value) != class.value {
        return Err(format!("value of {name} PriorityClass must be {value}"));
    }
    match class.global_default {
        Some(true) => Err(format!("globalDefault of {name} PriorityClass must be false")),
        _ => Ok(()),
    }
}
