//! `scale`: how many replicas an object wants, apart from everything else about it.
//!
//! Defined by the Kubernetes API reference, `autoscaling/v1 Scale`.

use flotilla_api::{Kind, Status, selector};
use serde_json::{Value, json};

pub const SCALE: &str = "scale";

/// The Scale of an object.
pub fn of(kind: &Kind, object: &Value) -> Value {
    let metadata = |field: &str| object["metadata"][field].clone();
    let (wanted, there, selector) = match &kind.scale {
        Some(paths) => (
            number_at(object, &paths.spec_replicas),
            number_at(object, &paths.status_replicas),
            paths.selector.as_ref().and_then(|path| at(object, path)?.as_str()).unwrap_or_default().to_owned(),
        ),
        None => (
            object["spec"]["replicas"].as_i64().unwrap_or_default(),
            object["status"]["replicas"].as_i64().unwrap_or_default(),
            selector_text(&object["spec"]["selector"]),
        ),
    };
    let mut status = json!({"replicas": there});
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
        "spec": {"replicas": wanted},
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
        return Err(Status::invalid("Scale.autoscaling", name, vec![cause]));
    }
    let version = scale.pointer("/metadata/resourceVersion").and_then(Value::as_str).unwrap_or_default();
    if !matches!(version, "" | "0") {
        object["metadata"]["resourceVersion"] = version.into();
    }
    match &kind.scale {
        Some(paths) => set_at(object, &paths.spec_replicas, replicas.into()),
        None => object["spec"]["replicas"] = replicas.into(),
    }
    Ok(())
}

fn at<'a>(object: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(object, |value, field| value.get(field))
}

fn number_at(object: &Value, path: &[String]) -> i64 {
    at(object, path).and_then(Value::as_i64).unwrap_or_default()
}

/// Sets a field, with the objects that lead to it.
fn set_at(object: &mut Value, path: &[String], value: Value) {
    let [first, rest @ ..] = path else {
        *object = value;
        return;
    };
    if !object.is_object() {
        *object = json!({});
    }
    set_at(&mut object[first.as_str()], rest, value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_api::kinds::ScalePaths;
    use flotilla_api::{Builtin, Registry};

    #[test]
    fn a_scale_is_read_and_written() {
        let kind = Registry::builtin().built_in(Builtin::Deployment).unwrap();
        let mut object = json!({
            "metadata": {"name": "web", "namespace": "a", "resourceVersion": "7"},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}},
            "status": {"replicas": 2},
        });
        let mut scale = of(&kind, &object);
        assert_eq!(scale["spec"]["replicas"], 3);
        assert_eq!(scale["status"], json!({"replicas": 2, "selector": "app=web"}));
        scale["spec"]["replicas"] = json!(5);
        write(&kind, &mut object, &scale).unwrap();
        assert_eq!(object["spec"]["replicas"], 5);
        scale["spec"]["replicas"] = json!(-1);
        assert!(write(&kind, &mut object, &scale).is_err());
        assert!(write(&kind, &mut object, &json!({"kind": "Pod"})).is_err());
        assert_eq!(of(&kind, &json!({"spec": {"selector": {"app": "x"}}}))["status"]["selector"], "app=x");
    }

    #[test]
    fn a_custom_kind_says_where_its_replicas_are() {
        let path = |text: &str| text.split('.').map(str::to_owned).collect();
        let mut kind = (*Registry::builtin().built_in(Builtin::ConfigMap).unwrap()).clone();
        kind.scale = Some(ScalePaths {
            spec_replicas: path("spec.size.wanted"),
            status_replicas: path("status.size"),
            selector: Some(path("status.selector")),
        });
        let mut object = json!({"metadata": {"name": "a"}, "spec": {}, "status": {"size": 2, "selector": "a=b"}});
        let mut scale = of(&kind, &object);
        assert_eq!(scale["spec"]["replicas"], 0);
        assert_eq!(scale["status"], json!({"replicas": 2, "selector": "a=b"}));
        scale["spec"]["replicas"] = json!(4);
        write(&kind, &mut object, &scale).unwrap();
        assert_eq!(object["spec"], json!({"size": {"wanted": 4}}));
    }
}
