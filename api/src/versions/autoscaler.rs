//! HorizontalPodAutoscalers of `autoscaling/v1`: one metric, how busy the processors are. What else there is stands in
//! annotations.

use serde_json::{Map, Value, json};

use super::{Conversion, child};

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

pub(super) const V1: Conversion = Conversion {
    to_stored: |object| {
        let metrics = take_annotation(object, METRICS);
        let behavior = take_annotation(object, BEHAVIOR);
        let (current, conditions) = (take_annotation(object, CURRENT), take_annotation(object, CONDITIONS));
        if let Some(spec) = child(object, "spec") {
            let mut all = list(metrics);
            if let Some(percent) = spec.remove("targetCPUUtilizationPercentage").filter(|percent| !percent.is_null()) {
                let target = json!({"type": "Utilization", "averageUtilization": percent});
                all.insert(0, json!({"type": "Resource", "resource": {"name": "cpu", "target": target}}));
            }
            put_list(spec, "metrics", all);
            if let Some(behavior) = behavior {
                spec.insert("behavior".into(), behavior);
            }
        }
        if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
            let mut all = list(current);
            if let Some(percent) = status.remove("currentCPUUtilizationPercentage").filter(|percent| !percent.is_null())
            {
                let current = json!({"averageUtilization": percent});
                all.insert(0, json!({"type": "Resource", "resource": {"name": "cpu", "current": current}}));
            }
            put_list(status, "currentMetrics", all);
            put_list(status, "conditions", list(conditions));
        }
    },
    from_stored: |object| {
        let mut notes = Vec::new();
        if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
            let mut all = list(spec.remove("metrics"));
            let percent = |metric: &Value| metric.pointer("/resource/target/averageUtilization").cloned();
            if let Some(percent) = take_cpu(&mut all, percent) {
                spec.insert("targetCPUUtilizationPercentage".into(), percent);
            }
            notes.push((METRICS, Some(Value::Array(all)).filter(|all| *all != json!([]))));
            notes.push((BEHAVIOR, spec.remove("behavior")));
        }
        if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
            let mut all = list(status.remove("currentMetrics"));
            let percent = |metric: &Value| metric.pointer("/resource/current/averageUtilization").cloned();
            if let Some(percent) = take_cpu(&mut all, percent) {
                status.insert("currentCPUUtilizationPercentage".into(), percent);
            }
            notes.push((CURRENT, Some(Value::Array(all)).filter(|all| *all != json!([]))));
            notes.push((CONDITIONS, status.remove("conditions")));
        }
        for (key, value) in notes.into_iter().filter_map(|(key, value)| Some((key, value?))) {
            let metadata = child(object, "metadata");
            let annotations = metadata.map(|metadata| metadata.entry("annotations").or_insert_with(|| json!({})));
            if let Some(annotations) = annotations.and_then(Value::as_object_mut) {
                annotations.insert(key.to_owned(), value.to_string().into());
            }
        }
    },
    ..Conversion::NONE
};

/// The utilization of the first metric, if that is the processors' and says nothing else.
fn take_cpu(metrics: &mut Vec<Value>, percent: impl Fn(&Value) -> Option<Value>) -> Option<Value> {
    let first = metrics.first().filter(|metric| metric.pointer("/resource/name") == Some(&json!("cpu")))?;
    let percent = percent(first)?;
    metrics.remove(0);
    Some(percent)
}

fn take_annotation(object: &mut Value, key: &str) -> Option<Value> {
    let metadata = object.get_mut("metadata")?.as_object_mut()?;
    let annotations = metadata.get_mut("annotations")?.as_object_mut()?;
    let text = annotations.remove(key);
    if annotations.is_empty() {
        metadata.remove("annotations");
    }
    // What is no JSON says nothing.
    serde_json::from_str(text?.as_str()?).ok()
}

fn list(value: Option<Value>) -> Vec<Value> {
    match value {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    }
}

fn put_list(map: &mut Map<String, Value>, field: &str, items: Vec<Value>) {
    if !items.is_empty() {
        map.insert(field.to_owned(), items.into());
    }
}
