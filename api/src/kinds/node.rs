//! Nodes: the machines.

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;

use super::{BuiltIn, Info, Scope};
use crate::columns::{self, Column, NONE, UNKNOWN};
use crate::field::Errors;
use crate::validate;
use crate::warn::Warnings;

const ROLE_LABEL: &str = "node-role.kubernetes.io/";

pub struct Node;

impl BuiltIn for Node {
    type Object = core::Node;
    const INFO: Info = Info {
        kind: "Node",
        plural: "nodes",
        singular: "node",
        short_names: &["no"],
        scope: Scope::Cluster,
        subresources: &["status", "proxy"],
        selectable: &["spec.unschedulable"],
        schema: "io.k8s.api.core.v1.Node",
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] = &[
        columns::NAME,
        Column::text("Status"),
        Column::text("Roles"),
        columns::AGE,
        Column::text("Version"),
        Column::wide("Internal-IP"),
        Column::wide("External-IP"),
        Column::wide("OS-Image"),
        Column::wide("Kernel-Version"),
        Column::wide("Container-Runtime"),
    ];

    fn validate(node: &core::Node, errors: &mut Errors) {
        validate::node::node(node, errors);
    }

    fn validate_update(old: &core::Node, new: &core::Node, errors: &mut Errors) {
        validate::node::update(old, new, errors);
    }

    fn validate_status(node: &core::Node, errors: &mut Errors) {
        validate::node::status(node, errors);
    }

    fn warn(_old: Option<&core::Node>, node: &core::Node, warnings: &mut Warnings) {
        let Some(spec) = &node.spec else { return };
        if spec.config_source.is_some() {
            warnings.say("spec.configSource: the feature is removed");
        }
        if spec.external_id.as_deref().is_some_and(|id| !id.is_empty()) {
            warnings.say("spec.externalID: this field is deprecated, and is unused by Kubernetes");
        }
    }

    fn row(node: &core::Node, now: Timestamp) -> Vec<String> {
        let status = node.status.clone().unwrap_or_default();
        let info = status.node_info.clone().unwrap_or_default();
        let address = |type_: &str| {
            let mut addresses = status.addresses.iter().flatten();
            columns::or_none(addresses.find(|a| a.type_ == type_).map(|a| a.address.as_str()))
        };
        let known = |text: String| if text.is_empty() { UNKNOWN.to_owned() } else { text };
        vec![
            columns::name(&node.metadata),
            status_words(node),
            roles(node),
            columns::age(&node.metadata, now),
            info.kubelet_version,
            address("InternalIP"),
            address("ExternalIP"),
            known(info.os_image),
            known(info.kernel_version),
            known(info.container_runtime_version),
        ]
    }
}

/// `Ready`, `NotReady`, `Unknown`, with `SchedulingDisabled` beside it for a cordoned node.
fn status_words(node: &core::Node) -> String {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let ready = match conditions.iter().find(|c| c.type_ == "Ready") {
        None => "Unknown",
        Some(condition) if condition.status == "True" => "Ready",
        Some(_) => "NotReady",
    };
    let cordoned = node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true));
    if cordoned { format!("{ready},SchedulingDisabled") } else { ready.to_owned() }
}

fn roles(node: &core::Node) -> String {
    let mut roles: Vec<&str> = Vec::new();
    for (label, value) in node.metadata.labels.iter().flatten() {
        if let Some(role) = label.strip_prefix(ROLE_LABEL).filter(|role| !role.is_empty()) {
            roles.push(role);
        } else if label == "kubernetes.io/role" && !value.is_empty() {
            roles.push(value);
        }
    }
    roles.sort_unstable();
    roles.dedup();
    if roles.is_empty() { NONE.to_owned() } else { roles.join(",") }
}
