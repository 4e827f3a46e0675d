//! The friendly Job between its two forms: the message of the gRPC API, and the noun that files hold and the gate lowers.
//!
//! Invariant: converting there and back changes nothing.

use flotilla_api::job;

use crate::proto;

/// The noun of a message. Nothing is checked here: `flotilla_api::job` does that, with the fields' paths.
pub fn job_from_proto(job: proto::Job) -> job::Job {
    job::Job {
        name: job.name,
        namespace: job.namespace,
        type_: job.r#type,
        count: job.count,
        parallelism: job.parallelism,
        containers: job.containers.into_iter().map(container_from_proto).collect(),
        restart_policy: job.restart_policy,
        retries: job.retries,
        update: job.update.map(update_from_proto),
        labels: job.labels.into_iter().collect(),
        node_selector: job.node_selector.into_iter().collect(),
        host_network: job.host_network,
    }
}

fn container_from_proto(container: proto::Container) -> job::Container {
    let port = |port: proto::Port| job::Port {
        port: port.port,
        name: port.name,
        protocol: port.protocol,
        host_port: port.host_port,
    };
    let variable = |variable: proto::EnvVar| job::EnvVar { name: variable.name, value: variable.value };
    job::Container {
        name: container.name,
        image: container.image,
        command: container.command,
        args: container.args,
        env: container.env.into_iter().map(variable).collect(),
        ports: container.ports.into_iter().map(port).collect(),
        cpu: container.cpu,
        memory: container.memory,
    }
}

fn update_from_proto(update: proto::UpdatePolicy) -> job::UpdatePolicy {
    job::UpdatePolicy {
        max_surge: update.max_surge,
        max_unavailable: update.max_unavailable,
        recreate: update.recreate,
        deadline_seconds: update.deadline_seconds,
    }
}

/// The message of a noun.
pub fn job_to_proto(job: job::Job) -> proto::Job {
    proto::Job {
        name: job.name,
        namespace: job.namespace,
        r#type: job.type_,
        count: job.count,
        parallelism: job.parallelism,
        containers: job.containers.into_iter().map(container_to_proto).collect(),
        restart_policy: job.restart_policy,
        retries: job.retries,
        update: job.update.map(update_to_proto),
        labels: job.labels.into_iter().collect(),
        node_selector: job.node_selector.into_iter().collect(),
        host_network: job.host_network,
    }
}

fn container_to_proto(container: job::Container) -> proto::Container {
    let port = |port: job::Port| proto::Port {
        port: port.port,
        name: port.name,
        protocol: port.protocol,
        host_port: port.host_port,
    };
    let variable = |variable: job::EnvVar| proto::EnvVar { name: variable.name, value: variable.value };
    proto::Container {
        name: container.name,
        image: container.image,
        command: container.command,
        args: container.args,
        env: container.env.into_iter().map(variable).collect(),
        ports: container.ports.into_iter().map(port).collect(),
        cpu: container.cpu,
        memory: container.memory,
    }
}

fn update_to_proto(update: job::UpdatePolicy) -> proto::UpdatePolicy {
    proto::UpdatePolicy {
        max_surge: update.max_surge,
        max_unavailable: update.max_unavailable,
        recreate: update.recreate,
        deadline_seconds: update.deadline_seconds,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back_changes_nothing() {
        let file = b"\
name: web
namespace: shop
type: batch
count: 3
parallelism: 2
restartPolicy: Never
retries: 4
hostNetwork: true
labels: {tier: front}
nodeSelector: {disk: ssd}
update: {maxSurge: 50%, maxUnavailable: '1', recreate: true, deadlineSeconds: 30}
containers:
- name: main
  image: nginx
  command: [nginx]
  args: [-g, daemon off;]
  env: [{name: A, value: b}]
  ports: [{port: 80, name: http, protocol: TCP, hostPort: 8080}]
  cpu: 500m
  memory: 64Mi
";
        let [job] = job::from_yaml(file).unwrap().try_into().unwrap();
        let message = job_to_proto(job.clone());
        assert_eq!(message.containers[0].ports[0].host_port, 8080);
        assert_eq!(job_from_proto(message), job);
    }
}
