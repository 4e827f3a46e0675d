//! From a Job to the object that is stored.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::api::batch::v1 as batch;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use super::{BATCH, Container, Job, MARK, Port, SERVICE, UpdatePolicy, raise};
use crate::admit::{self, Create, Prepared, Subresource, UnknownFields, Updated};
use crate::error::{Cause, Reason, Status};
use crate::field::{Errors, Path};
use crate::names;
use crate::quantity::Amount;
use crate::registry::Registry;
use crate::validate::name as check_name;

/// The object that a job is stored as, before defaulting: a Deployment or a `batch/v1` Job.
///
/// # Errors
/// `Invalid` with every field of the job that is wrong in itself. What only the object shows to be wrong comes out of
/// its admission; see [`explain`].
pub fn lower(job: &Job) -> Result<Value, Status> {
    let mut errors = Errors::new();
    validate(job, &mut errors);
    if !errors.is_empty() {
        return Err(Status::invalid("job", &job.name, errors.into_causes()));
    }
    let object = match job.type_.as_str() {
        BATCH => serde_json::to_value(batch_job(job)),
        _ => serde_json::to_value(deployment(job)),
    };
    object.map_err(Status::internal)
}

/// Makes a job ready to be created, as the object it is stored as.
///
/// # Errors
/// `Invalid` with every field of the job that is wrong.
pub fn prepare(job: &Job, registry: &Registry, request: Create<'_>) -> Result<Prepared, Status> {
    let object = lower(job)?;
    let text = |field: &str| object.get(field).and_then(Value::as_str).unwrap_or_default();
    let kind = registry.of_object(text("apiVersion"), text("kind"))?;
    admit::prepare_create(&kind, object, request).map_err(|status| explain(job, status))
}

/// Makes a job ready to replace the object that an earlier one of its name is stored as. What others noted in the
/// object's metadata stays.
///
/// # Errors
/// `AlreadyExists` if `old` did not come from a job of the same type; otherwise as [`prepare`].
pub fn resubmit(job: &Job, registry: &Registry, old: &Value) -> Result<Updated, Status> {
    let mut new = lower(job)?;
    let text = |object: &Value, field: &str| object.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let kind = registry.of_object(&text(&new, "apiVersion"), &text(&new, "kind"))?;
    if raise(old).is_none() || text(old, "kind") != kind.kind {
        return Err(Status::already_exists(kind.collection(), &job.name));
    }
    keep_metadata(old, &mut new);
    let updated = admit::prepare_update(&kind, old, new, Subresource::None, UnknownFields::Refuse);
    updated.map_err(|status| explain(job, status))
}

/// Everything but the labels, which are the job's, and the annotations that the job sets.
fn keep_metadata(old: &Value, new: &mut Value) {
    let mut metadata = old.get("metadata").cloned().unwrap_or_default();
    let (Some(kept), Some(lowered)) = (metadata.as_object_mut(), new.get("metadata").and_then(Value::as_object)) else {
        return;
    };
    kept.insert("labels".to_owned(), lowered.get("labels").cloned().unwrap_or_default());
    let annotations = kept.entry("annotations").or_insert_with(|| Value::Object(Default::default()));
    if let (Some(annotations), Some(ours)) =
        (annotations.as_object_mut(), lowered.get("annotations").and_then(Value::as_object))
    {
        annotations.extend(ours.clone());
    }
    new["metadata"] = metadata;
}

fn validate(job: &Job, errors: &mut Errors) {
    check_name(&job.name, names::dns_label, &Path::new("name"), errors);
    let supported: &[&str] = match job.type_.as_str() {
        "" | SERVICE => &["Always"],
        BATCH => &["Never", "OnFailure"],
        "system" | "cron" => {
            let message = format!(
                "Unsupported value: {:?}: supported values: \"service\", \"batch\" ({} jobs are not available yet)",
                job.type_, job.type_
            );
            errors.add("FieldValueNotSupported", &Path::new("type"), message);
            &["Always", "Never", "OnFailure"]
        }
        other => {
            errors.not_supported(&Path::new("type"), other, &[SERVICE, BATCH]);
            &["Always", "Never", "OnFailure"]
        }
    };
    if !job.restart_policy.is_empty() && !supported.contains(&job.restart_policy.as_str()) {
        errors.not_supported(&Path::new("restartPolicy"), job.restart_policy.as_str(), supported);
    }
    if job.containers.is_empty() {
        errors.required(&Path::new("containers"), "");
    }
    for (index, container) in job.containers.iter().enumerate() {
        validate_container(container, &Path::new("containers").index(index), errors);
    }
    validate_fit(job, errors);
    if let Some(update) = &job.update {
        validate_update(update, &Path::new("update"), errors);
    }
}

/// Fields that the job's type does not have.
fn validate_fit(job: &Job, errors: &mut Errors) {
    if job.type_ == BATCH {
        if job.update.is_some() {
            errors.forbidden(&Path::new("update"), "only services are updated");
        }
        return;
    }
    if job.parallelism.is_some() {
        errors.forbidden(&Path::new("parallelism"), "only batch jobs have tasks; set `count`");
    }
    if job.retries.is_some() {
        errors.forbidden(&Path::new("retries"), "only batch jobs are given up; services are always restarted");
    }
}

fn validate_container(container: &Container, path: &Path, errors: &mut Errors) {
    if container.image.is_empty() {
        errors.required(&path.child("image"), "");
    }
    for (field, text) in [("cpu", &container.cpu), ("memory", &container.memory)] {
        match Amount::parse(text) {
            _ if text.is_empty() => {}
            Ok(amount) if amount.is_negative() => {
                errors.invalid(&path.child(field), text.as_str(), "must be greater than or equal to 0");
            }
            Ok(_) => {}
            Err(error) => errors.invalid(&path.child(field), text.as_str(), error),
        }
    }
    for (index, port) in container.ports.iter().enumerate() {
        validate_port(port, &path.child("ports").index(index), errors);
    }
}

fn validate_port(port: &Port, path: &Path, errors: &mut Errors) {
    crate::validate::port(port.port, &path.child("port"), errors);
    if port.host_port != 0 {
        crate::validate::port(port.host_port, &path.child("hostPort"), errors);
    }
}

fn validate_update(update: &UpdatePolicy, path: &Path, errors: &mut Errors) {
    for (field, text) in [("maxSurge", &update.max_surge), ("maxUnavailable", &update.max_unavailable)] {
        if !text.is_empty() && update.recreate {
            errors.forbidden(&path.child(field), "may not be specified when `recreate` is true");
        }
    }
}

fn labels(job: &Job) -> BTreeMap<String, String> {
    let mut labels = job.labels.clone();
    labels.insert(MARK.to_owned(), job.name.clone());
    labels
}

fn metadata(job: &Job, type_: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(job.name.clone()),
        namespace: Some(job.namespace.clone()).filter(|namespace| !namespace.is_empty()),
        labels: Some(labels(job)),
        annotations: Some([(MARK.to_owned(), type_.to_owned())].into()),
        ..ObjectMeta::default()
    }
}

fn deployment(job: &Job) -> Deployment {
    let update = job.update.clone().unwrap_or_default();
    let selector = [(MARK.to_owned(), job.name.clone())].into();
    Deployment {
        metadata: metadata(job, SERVICE),
        spec: DeploymentSpec {
            replicas: Some(job.count.unwrap_or(1)),
            selector: LabelSelector { match_labels: Some(selector), match_expressions: None },
            strategy: Some(strategy(&update)),
            progress_deadline_seconds: update.deadline_seconds,
            template: template(job, "Always"),
            ..DeploymentSpec::default()
        },
        status: None,
    }
}

fn strategy(update: &UpdatePolicy) -> DeploymentStrategy {
    if update.recreate {
        return DeploymentStrategy { type_: Some("Recreate".to_owned()), rolling_update: None };
    }
    let rolling = RollingUpdateDeployment {
        max_surge: share(&update.max_surge),
        max_unavailable: share(&update.max_unavailable),
    };
    DeploymentStrategy { type_: Some("RollingUpdate".to_owned()), rolling_update: Some(rolling) }
}

/// `2` or `25%`.
fn share(text: &str) -> Option<IntOrString> {
    match text.parse() {
        _ if text.is_empty() => None,
        Ok(count) => Some(IntOrString::Int(count)),
        Err(_) => Some(IntOrString::String(text.to_owned())),
    }
}

fn batch_job(job: &Job) -> batch::Job {
    batch::Job {
        metadata: metadata(job, BATCH),
        spec: Some(batch::JobSpec {
            completions: Some(job.count.unwrap_or(1)),
            parallelism: Some(job.parallelism.unwrap_or(1)),
            backoff_limit: job.retries,
            template: template(job, "OnFailure"),
            ..batch::JobSpec::default()
        }),
        status: None,
    }
}

fn template(job: &Job, restart_policy: &str) -> core::PodTemplateSpec {
    let policy = if job.restart_policy.is_empty() { restart_policy } else { &job.restart_policy };
    let containers = job.containers.iter().enumerate().map(|(index, c)| container(c, index, &job.name)).collect();
    core::PodTemplateSpec {
        metadata: Some(ObjectMeta { labels: Some(labels(job)), ..ObjectMeta::default() }),
        spec: Some(core::PodSpec {
            containers,
            restart_policy: Some(policy.to_owned()),
            node_selector: Some(job.node_selector.clone()).filter(|selector| !selector.is_empty()),
            host_network: job.host_network.then_some(true),
            ..core::PodSpec::default()
        }),
    }
}

fn container(container: &Container, index: usize, job: &str) -> core::Container {
    let some = |list: &Vec<String>| Some(list.clone()).filter(|list| !list.is_empty());
    let name = match (container.name.as_str(), index) {
        ("", 0) => job.to_owned(),
        (name, _) => name.to_owned(),
    };
    let env = container.env.iter().map(|variable| core::EnvVar {
        name: variable.name.clone(),
        value: Some(variable.value.clone()),
        value_from: None,
    });
    core::Container {
        name,
        image: Some(container.image.clone()),
        command: some(&container.command),
        args: some(&container.args),
        env: Some(env.collect()).filter(|env: &Vec<_>| !env.is_empty()),
        ports: Some(container.ports.iter().map(port).collect()).filter(|ports: &Vec<_>| !ports.is_empty()),
        resources: resources(container),
        ..core::Container::default()
    }
}

/// Ports were validated to be at most 65535.
fn port(port: &Port) -> core::ContainerPort {
    let number = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
    let text = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    core::ContainerPort {
        container_port: number(port.port),
        host_port: Some(number(port.host_port)).filter(|port| *port != 0),
        name: text(&port.name),
        protocol: text(&port.protocol),
        host_ip: None,
    }
}

fn resources(container: &Container) -> Option<core::ResourceRequirements> {
    let given = [("cpu", &container.cpu), ("memory", &container.memory)];
    let amounts: BTreeMap<String, Quantity> = given
        .into_iter()
        .filter(|(_, text)| !text.is_empty())
        .map(|(name, text)| (name.to_owned(), Quantity(text.clone())))
        .collect();
    (!amounts.is_empty()).then(|| core::ResourceRequirements {
        limits: Some(amounts.clone()),
        requests: Some(amounts),
        ..core::ResourceRequirements::default()
    })
}

/// Rewrites what was wrong with a job's object into what is wrong with the job.
pub fn explain(job: &Job, status: Status) -> Status {
    if status.causes.is_empty() {
        return status;
    }
    let mut seen = BTreeSet::new();
    let causes: Vec<Cause> = status.causes.into_iter().map(|cause| explain_cause(job, cause)).collect();
    let causes = causes.into_iter().filter(|c| seen.insert((c.field.clone(), c.message.clone()))).collect();
    Status { reason: Reason::Invalid, ..Status::invalid("job", &job.name, causes) }
}

fn explain_cause(job: &Job, cause: Cause) -> Cause {
    if job.type_ == BATCH && cause.field == "spec.template" {
        let message = "Forbidden: what a batch job runs cannot be changed; stop it first".to_owned();
        return Cause { field: "containers".to_owned(), message, ..cause };
    }
    let count = if job.type_ == BATCH { "spec.completions" } else { "spec.replicas" };
    let exact = [
        (count, "count"),
        ("spec.parallelism", "parallelism"),
        ("spec.backoffLimit", "retries"),
        ("spec.progressDeadlineSeconds", "update.deadlineSeconds"),
        ("spec.selector", "name"),
        ("metadata.namespace", "namespace"),
        ("metadata.name", "name"),
    ];
    if let Some((_, field)) = exact.iter().find(|(field, _)| *field == cause.field) {
        return Cause { field: (*field).to_owned(), ..cause };
    }
    let prefixes = [
        ("spec.strategy.rollingUpdate.", "update."),
        ("spec.template.spec.", ""),
        ("spec.template.labels", "labels"),
        ("spec.template.metadata.labels", "labels"),
        ("metadata.labels", "labels"),
    ];
    let stripped =
        prefixes.iter().find_map(|(prefix, ours)| Some(format!("{ours}{}", cause.field.strip_prefix(prefix)?)));
    let field = stripped.unwrap_or_else(|| cause.field.clone());
    let field = field.replace(".containerPort", ".port");
    let resource = [".resources.limits[", ".resources.requests["].iter().find_map(|middle| {
        let (container, resource) = field.split_once(middle)?;
        Some(format!("{container}.{}", resource.trim_end_matches(']')))
    });
    Cause { field: resource.unwrap_or(field), ..cause }
}
