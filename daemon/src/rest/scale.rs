//! `scale`: how many replicas an object wants, apart from everything else about it.
//!
//! Defined by the Kubernetes API reference, `autoscaling/v1 Scale`.

use flotilla_api::{Kind, Status, selector};
use serde_json::{Value, json};

pub const SCALE: &str = "scale";

/// The Scale of an object.
pub fn of(object: &Value) -> Value {
    let metadata = |field: &str| object["metadata"][field].clone();
    let mut status = json!({"replicas": object["status"]["replicas"].as_i64().unwrap_or_default()});
    let selector = selector_text(&object["spec"]["selector"]);
    if !selector.is_empty() {
        status["selector"] = selector.into();
    }
    let mut of = json!({"name": metadata("name")});
    for field in ["namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if !metadata(field).is_null() {
            of[field] = metadata(field);
        }
    }
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": of,
        "spec": {"replicas": object["spec"]["replicas"].as_i64().unwrap_or_default()},
        "status": status,
    })
}

/// A label selector as text, in either of the two forms that kinds have.
fn selector_text(value: &Value) -> String {
    let labels = match value.get("matchLabels").is_some() || value.get("matchExpressions").is_some() {
        true => value.clone(),
        false => json!({"matchLabels": value}),
    };
    serde_json::from_value(labels).map(|labels| selector::format(&labels)).unwrap_or_default()
}

/// Makes an object want what a Scale says.
///
/// # Errors
/// `Invalid` or `BadRequest` for a Scale that makes no sense.
pub fn write(kind: &Kind, object: &mut Value, scale: &Value) -> Result<(), Status> {
    let says = |field: &str| scale.get(field).and_then(Value::as_str).unwrap_or_default();
    if (says("apiVersion"), says("kind")) != ("autoscaling/v1", "Scale") {
        return Err(Status::bad_request(format!(
            "expected an object of apiVersion \"autoscaling/v1\" and kind \"Scale\", found \"{}\" and \"{}\"",
            says("apiVersion"),
            says("kind")
        )));
    }
    let replicas = match scale.pointer("/spec/replicas") {
        None | Some(Value::Null) => 0,
        Some(value) => value.as_i64().filter(|n| i32::try_from(*n).is_ok()).ok_or_else(|| {
            Status::bad_request(format!("spec.replicas: Invalid value: {value}: must be a whole number"))
        })?,
    };
    if replicas < 0 {
        let cause = flotilla_api::Cause {
            reason: "FieldValueInvalid".into(),
            message: format!("Invalid value: {replicas}: must be greater than or equal to 0"),
            field: "spec.replicas".into(),
        };
        let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        return Err(Status::invalid(kind.qualified(), name, vec![cause]));
    }
    if let Some(version) = scale.pointer("/metadata/resourceVersion").filter(|version| !version.is_null()) {
        object["metadata"]["resourceVersion"] = version.clone();
    }
    object["spec"]["replicas"] = replicas.into();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_api::{Builtin, Registry};

    #[test]
    fn a_scale_is_read_and_written() {
        let kind = Registry::builtin().built_in(Builtin::Deployment).unwrap();
        let mut object = json!({
            "metadata": {"name": "web", "namespace": "a", "resourceVersion": "7"},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}},
            "status": {"replicas": 2},
        });
        let mut scale = of(&object);
        assert_eq!(scale["spec"]["replicas"], 3);
        assert_eq!(scale["status"], json!({"replicas": 2, "selector": "app=web"}));
        scale["spec"]["replicas"] = json!(5);
        write(&kind, &mut object, &scale).unwrap();
        assert_eq!(object["spec"]["replicas"], 5);
        scale["spec"]["replicas"] = json!(-1);
        assert!(write(&kind, &mut object, &scale).is_err());
        assert!(write(&kind, &mut object, &json!({"kind": "Pod"})).is_err());
        assert_eq!(of(&json!({"spec": {"selector": {"app": "x"}}}))["status"]["selector"], "app=x");
    }
}
