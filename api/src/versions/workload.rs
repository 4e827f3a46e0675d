//! Deployments, DaemonSets, ReplicaSets and StatefulSets before `apps/v1`.
//!
//! What they chose pods by, and their own labels, could be left out: the labels of the pods were taken.

use serde_json::{Value, json};

use super::{Conversion, child, default, is_empty};

/// What `extensions/v1beta1` meant by no limit.
const UNLIMITED: i32 = i32::MAX;
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

pub(super) const EXTENSIONS_DEPLOYMENT: Conversion = Conversion {
    to_stored: |object| {
        labels_of_template(object);
        deployment(object, 1.into(), UNLIMITED, UNLIMITED);
    },
    ..Conversion::NONE
};

pub(super) const APPS_V1BETA1_DEPLOYMENT: Conversion = Conversion {
    to_stored: |object| {
        labels_of_template(object);
        deployment(object, "25%".into(), 2, 600);
    },
    ..Conversion::NONE
};

pub(super) const EXTENSIONS_REPLICA_SET: Conversion =
    Conversion { to_stored: |object| labels_of_template(object), ..Conversion::NONE };

pub(super) const APPS_V1BETA1_STATEFUL_SET: Conversion = Conversion {
    to_stored: |object| {
        labels_of_template(object);
        on_delete(object);
    },
    ..Conversion::NONE
};

pub(super) const EXTENSIONS_DAEMON_SET: Conversion = Conversion {
    to_stored: |object| {
        labels_of_template(object);
        on_delete(object);
        if let Some(spec) = child(object, "spec") {
            // The server counts; what a client says of it never counted.
            spec.remove("templateGeneration");
        }
    },
    from_stored: |object| {
        let count = object.pointer("/metadata/annotations").and_then(|all| all.get(TEMPLATE_GENERATION)?.as_str());
        let count: Option<i64> = count.and_then(|count| count.parse().ok());
        if let (Some(count), Some(spec)) = (count, child(object, "spec")) {
            spec.insert("templateGeneration".into(), count.into());
        }
    },
    ..Conversion::NONE
};

/// The selector and the object's labels, from the pod template, where they are not given.
fn labels_of_template(object: &mut Value) {
    let Some(labels) = object.pointer("/spec/template/metadata/labels").cloned() else { return };
    if labels.as_object().is_none_or(serde_json::Map::is_empty) {
        return;
    }
    if let Some(spec) = child(object, "spec")
        && spec.get("selector").is_none_or(Value::is_null)
    {
        spec.insert("selector".into(), json!({"matchLabels": labels}));
    }
    if let Some(metadata) = child(object, "metadata")
        && is_empty(metadata, "labels")
    {
        metadata.insert("labels".into(), labels);
    }
}

fn deployment(object: &mut Value, step: Value, history: i32, deadline_seconds: i32) {
    let Some(spec) = child(object, "spec") else { return };
    // It was an order, not a state, and has been carried out or not.
    spec.remove("rollbackTo");
    default(spec, "revisionHistoryLimit", history);
    default(spec, "progressDeadlineSeconds", deadline_seconds);
    default(spec, "strategy", json!({}));
    let Some(strategy) = spec.get_mut("strategy").and_then(Value::as_object_mut) else { return };
    default(strategy, "type", "RollingUpdate");
    if strategy["type"] == "RollingUpdate" {
        default(strategy, "rollingUpdate", json!({}));
        if let Some(rolling) = strategy.get_mut("rollingUpdate").and_then(Value::as_object_mut) {
            default(rolling, "maxUnavailable", step.clone());
            default(rolling, "maxSurge", step);
        }
    }
}

/// Pods were replaced when somebody deleted them.
fn on_delete(object: &mut Value) {
    let Some(spec) = child(object, "spec") else { return };
    default(spec, "updateStrategy", json!({}));
    if let Some(strategy) = spec.get_mut("updateStrategy").and_then(Value::as_object_mut) {
        default(strategy, "type", "OnDelete");
    }
}
