//! Ingresses before `networking.k8s.io/v1`: a backend was a Service's name and port.

use serde_json::{Map, Value, json};

use super::{Conversion, child, default, rename};

pub(super) const V1BETA1: Conversion = Conversion {
    to_stored: |object| {
        let Some(spec) = child(object, "spec") else { return };
        rename(spec, "backend", "defaultBackend");
        if let Some(backend) = spec.get_mut("defaultBackend") {
            to_service(backend);
        }
        for path in paths(spec) {
            default(path, "pathType", "ImplementationSpecific");
            if let Some(backend) = path.get_mut("backend") {
                to_service(backend);
            }
        }
    },
    from_stored: |object| {
        let Some(spec) = child(object, "spec") else { return };
        rename(spec, "defaultBackend", "backend");
        if let Some(backend) = spec.get_mut("backend") {
            from_service(backend);
        }
        paths(spec).into_iter().filter_map(|path| path.get_mut("backend")).for_each(from_service);
    },
    ..Conversion::NONE
};

fn paths(spec: &mut Map<String, Value>) -> Vec<&mut Map<String, Value>> {
    let rules = spec.get_mut("rules").and_then(Value::as_array_mut).into_iter().flatten();
    let paths = rules.filter_map(|rule| rule.pointer_mut("/http/paths")?.as_array_mut()).flatten();
    paths.filter_map(Value::as_object_mut).collect()
}

fn to_service(backend: &mut Value) {
    let Some(map) = backend.as_object_mut() else { return };
    let (name, port) = (map.remove("serviceName"), map.remove("servicePort"));
    if name.is_none() && port.is_none() {
        return;
    }
    let port = match port {
        Some(Value::Number(number)) => json!({"number": number}),
        Some(Value::String(text)) => match text.parse::<i32>() {
            Ok(number) => json!({"number": number}),
            Err(_) => json!({"name": text}),
        },
        Some(other) => other,
        None => json!({}),
    };
    map.insert("service".into(), json!({"name": name.unwrap_or_default(), "port": port}));
}

fn from_service(backend: &mut Value) {
    let Some(map) = backend.as_object_mut() else { return };
    let Some(service) = map.remove("service") else { return };
    map.insert("serviceName".into(), service["name"].clone());
    let port = &service["port"];
    let number = port.get("number").filter(|number| !number.is_null()).or_else(|| port.get("name"));
    map.insert("servicePort".into(), number.cloned().unwrap_or_else(|| 0.into()));
}
