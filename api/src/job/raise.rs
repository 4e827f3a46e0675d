//! From a stored object to the Job that it is shown as.

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec};
use k8s_openapi::api::batch::v1 as batch;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Deserialize;
use serde_json::Value;

use super::{BATCH, Container, EnvVar, Job, MARK, Port, SERVICE, UpdatePolicy};

/// The job that an object came from, as the object is now; `None` if it did not come from a job.
pub fn raise(object: &Value) -> Option<Job> {
    let mark = object.get("metadata")?.get("annotations")?.get(MARK)?.as_str()?;
    match (mark, object.get("kind")?.as_str()?) {
        (SERVICE, "Deployment") => Deployment::deserialize(object).ok().map(|d| service(&d)),
        (BATCH, "Job") => batch::Job::deserialize(object).ok().map(|j| batch(&j)),
        _ => None,
    }
}

pub(super) fn service(deployment: &Deployment) -> Job {
    let spec = &deployment.spec;
    Job {
        type_: SERVICE.to_owned(),
        count: spec.replicas,
        update: Some(update(spec)),
        ..common(&deployment.metadata, spec.template.spec.as_ref())
    }
}

pub(super) fn batch(job: &batch::Job) -> Job {
    let spec = job.spec.clone().unwrap_or_default();
    Job {
        type_: BATCH.to_owned(),
        count: spec.completions,
        parallelism: spec.parallelism,
        retries: spec.backoff_limit,
        ..common(&job.metadata, spec.template.spec.as_ref())
    }
}

fn common(metadata: &ObjectMeta, pod: Option<&core::PodSpec>) -> Job {
    let pod = pod.cloned().unwrap_or_default();
    let mut labels = metadata.labels.clone().unwrap_or_default();
    labels.remove(MARK);
    Job {
        name: metadata.name.clone().unwrap_or_default(),
        namespace: metadata.namespace.clone().unwrap_or_default(),
        containers: pod.containers.iter().map(container).collect(),
        restart_policy: pod.restart_policy.unwrap_or_default(),
        labels,
        node_selector: pod.node_selector.unwrap_or_default(),
        host_network: pod.host_network == Some(true),
        ..Job::default()
    }
}

fn update(spec: &DeploymentSpec) -> UpdatePolicy {
    let strategy = spec.strategy.clone().unwrap_or_default();
    let rolling = strategy.rolling_update.unwrap_or_default();
    let text = |share: Option<IntOrString>| match share {
        None => String::new(),
        Some(IntOrString::Int(count)) => count.to_string(),
        Some(IntOrString::String(text)) => text,
    };
    UpdatePolicy {
        max_surge: text(rolling.max_surge),
        max_unavailable: text(rolling.max_unavailable),
        recreate: strategy.type_.as_deref() == Some("Recreate"),
        deadline_seconds: spec.progress_deadline_seconds,
    }
}

fn container(container: &core::Container) -> Container {
    let limits = container.resources.clone().unwrap_or_default().limits.unwrap_or_default();
    let limit = |name: &str| limits.get(name).map(|quantity| quantity.0.clone()).unwrap_or_default();
    let plain = container.env.iter().flatten().filter(|variable| variable.value_from.is_none());
    Container {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        command: container.command.clone().unwrap_or_default(),
        args: container.args.clone().unwrap_or_default(),
        env: plain.map(|v| EnvVar { name: v.name.clone(), value: v.value.clone().unwrap_or_default() }).collect(),
        ports: container.ports.iter().flatten().map(port).collect(),
        cpu: limit("cpu"),
        memory: limit("memory"),
    }
}

fn port(port: &core::ContainerPort) -> Port {
    let number = |number: i32| u32::try_from(number).unwrap_or_default();
    Port {
        port: number(port.container_port),
        name: port.name.clone().unwrap_or_default(),
        protocol: port.protocol.clone().unwrap_or_default(),
        host_port: number(port.host_port.unwrap_or_default()),
    }
}
