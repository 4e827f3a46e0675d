//! Jobs as people write them in a file.
//!
//! The form is the Job itself with a few short cuts: what one container needs may stand at the top, variables may be a
//! map, and ports may be plain numbers. `docs/jobs.md` shows it.
//!
//! Invariant: every field is known, and of its type; what is not is named by its path.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Job;
use crate::admit::{self, strict};
use crate::error::Status;
use crate::field::{Errors, Path, type_name};
use crate::validate;

/// The fields of a container that may stand at the top instead.
const OF_CONTAINER: [&str; 7] = ["image", "command", "args", "env", "ports", "cpu", "memory"];
const SCHEMA: &str = "dev.flotilla.v1.form.Job";

/// Reads the jobs of a YAML or JSON file, one a document.
///
/// # Errors
/// `RequestEntityTooLarge` or `BadRequest` with document, line and column for what cannot be read; `BadRequest` with
/// every unknown field and wrong type.
pub fn from_yaml(input: &[u8]) -> Result<Vec<Job>, Status> {
    let documents = admit::documents(input)?;
    if documents.is_empty() {
        return Err(Status::bad_request("the file holds no job"));
    }
    documents.into_iter().map(from_value).collect()
}

/// Writes a job as a file that [`from_yaml`] reads.
///
/// # Errors
/// If the job cannot be written as YAML, which no job is known to cause.
pub fn to_yaml(job: &Job) -> Result<String, Status> {
    serde_saphyr::to_string(job).map_err(Status::internal)
}

fn from_value(mut value: Value) -> Result<Job, Status> {
    let Value::Object(map) = &mut value else {
        return Err(Status::bad_request(format_args!(
            "expected a job with a name and an image, found a value of type {}",
            type_name(&value)
        )));
    };
    if map.contains_key("apiVersion") || map.contains_key("kind") {
        return Err(Status::bad_request("this is a Kubernetes object, not a job: use `flotilla apply -f FILE`"));
    }
    let name = map.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    unfold(map).map_err(|field| {
        Status::bad_request(format_args!(
            "job \"{name}\": {field}: may not stand beside `containers`; move it into one of them"
        ))
    })?;
    let mut findings = strict::check(&mut value, Some(SCHEMA));
    check_ports(&value, &mut findings.wrong);
    let mut causes = findings.unknown.into_causes();
    causes.extend(findings.wrong.into_causes());
    if !causes.is_empty() {
        let refused = Status::invalid("job", &name, causes);
        return Err(Status { reason: crate::Reason::BadRequest, ..refused });
    }
    counts_as_text(&mut value);
    Job::deserialize(value).map_err(|e| Status::bad_request(format_args!("job \"{name}\": {e}")))
}

/// Writes the short cuts out; fails with the name of a field that stands at the top beside `containers`.
fn unfold(map: &mut Map<String, Value>) -> Result<(), String> {
    let at_top: Vec<&str> = OF_CONTAINER.into_iter().filter(|field| map.contains_key(*field)).collect();
    if let (Some(field), true) = (at_top.first(), map.contains_key("containers")) {
        return Err((*field).to_owned());
    }
    if !at_top.is_empty() {
        let container: Map<String, Value> = at_top.iter().filter_map(|field| map.remove_entry(*field)).collect();
        map.insert("containers".to_owned(), json!([container]));
    }
    let containers = map.get_mut("containers").and_then(Value::as_array_mut);
    for container in containers.into_iter().flatten() {
        if let Some(env) = container.get_mut("env") {
            unfold_env(env);
        }
        for port in container.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            if port.is_number() {
                *port = json!({"port": port});
            }
        }
    }
    Ok(())
}

/// `{NAME: value}` becomes `[{name: NAME, value: value}]`; numbers and booleans become texts, as an environment has
/// nothing else.
fn unfold_env(env: &mut Value) {
    let Value::Object(map) = env else { return };
    let text = |value: Value| match value {
        Value::Number(_) | Value::Bool(_) => Value::String(value.to_string()),
        other => other,
    };
    let list = std::mem::take(map).into_iter().map(|(name, value)| json!({"name": name, "value": text(value)}));
    *env = list.collect();
}

/// `maxSurge: 1` becomes `maxSurge: "1"`.
fn counts_as_text(value: &mut Value) {
    for field in ["maxSurge", "maxUnavailable"] {
        if let Some(count) = value.get_mut("update").and_then(|update| update.get_mut(field)).filter(|c| c.is_number())
        {
            *count = Value::String(count.to_string());
        }
    }
}

/// No port is below 0; those above what a port may be are found when the job is submitted.
fn check_ports(value: &Value, errors: &mut Errors) {
    let list = |value: &Value, field: &str| value.get(field).and_then(Value::as_array).cloned().unwrap_or_default();
    for (index, container) in list(value, "containers").iter().enumerate() {
        for (number, port) in list(container, "ports").iter().enumerate() {
            let path = Path::new("containers").index(index).child("ports").index(number);
            for field in ["port", "hostPort"] {
                if let Some(value) = port.get(field).and_then(Value::as_i64).filter(|value| *value < 0) {
                    validate::port(value, &path.child(field), errors);
                }
            }
        }
    }
}
