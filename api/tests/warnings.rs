//! What writers are told of objects that are taken, in upstream's words.

mod common;

use common::{create, object};
use flotilla_api::Registry;
use flotilla_api::admit::{self, Subresource, UnknownFields};
use serde_json::{Value, json};

fn warnings(manifest: &Value) -> Vec<String> {
    create(&manifest.to_string()).unwrap_or_else(|status| panic!("{manifest}: {status}")).warnings
}

/// What is said of a change of an object that was made of the manifest.
fn of_change(manifest: &Value, change: impl FnOnce(&mut Value)) -> Vec<String> {
    let old = create(&manifest.to_string()).unwrap().object;
    let mut new = old.clone();
    change(&mut new);
    let (kind, _) = object(&manifest.to_string());
    admit::prepare_update(&kind, &old, new, Subresource::None, UnknownFields::Refuse).unwrap().warnings
}

fn pod(spec: Value) -> Value {
    let mut spec = spec;
    if spec.get("containers").is_none() {
        spec["containers"] = json!([{"name": "c", "image": "x"}]);
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": spec})
}

fn container(fields: Value) -> Value {
    let mut container = json!({"name": "c", "image": "x"});
    container.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    pod(json!({"containers": [container]}))
}

fn volume(source: Value) -> Value {
    let mut volume = json!({"name": "v"});
    volume.as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
    pod(json!({"volumes": [volume]}))
}

fn check(table: &[(Value, &[&str])]) {
    for (manifest, expected) in table {
        assert_eq!(warnings(manifest), *expected, "{manifest}");
    }
}

#[test]
fn of_containers() {
    let hides = "hides previous definition of \"A\", which may be dropped when using apply";
    let fraction = "is invalid, must be an integer";
    check(&[
        (container(json!({"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "1"}]})), &[]),
        (container(json!({"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "$(A)2"}]})), &[]),
        (
            container(json!({"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]})),
            &[&format!("spec.containers[0].env[1]: {hides}")],
        ),
        (
            container(json!({"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "$(A)"}]})),
            &[&format!("spec.containers[0].env[1]: {hides}")],
        ),
        (
            container(json!({"resources": {
                "limits": {"memory": "1500m", "ephemeral-storage": "0.5", "cpu": "100m"},
                "requests": {"memory": "100m"}}})),
            &[
                &format!("spec.containers[0].resources.limits[memory]: fractional byte value \"1500m\" {fraction}"),
                &format!("spec.containers[0].resources.requests[memory]: fractional byte value \"100m\" {fraction}"),
                &format!(
                    "spec.containers[0].resources.limits[ephemeral-storage]: fractional byte value \"500m\" {fraction}"
                ),
                &format!(
                    "spec.containers[0].resources.requests[ephemeral-storage]: fractional byte value \"500m\" {fraction}"
                ),
            ],
        ),
    ]);
}

#[test]
fn of_ports() {
    let ports = |ports: Value| container(json!({"ports": ports}));
    check(&[
        (ports(json!([{"containerPort": 80}, {"containerPort": 80, "protocol": "UDP"}])), &[]),
        (
            ports(json!([{"containerPort": 80}, {"containerPort": 80}])),
            &["spec.containers[0].ports[1]: duplicate port definition with spec.containers[0].ports[0]"],
        ),
        (
            ports(json!([{"containerPort": 80}, {"containerPort": 80, "hostPort": 80}])),
            &["spec.containers[0].ports[1]: overlapping port definition with spec.containers[0].ports[0]"],
        ),
        (
            ports(json!([{"containerPort": 80, "hostPort": 80},
                {"containerPort": 80, "hostPort": 80, "hostIP": "10.0.0.1"}])),
            &["spec.containers[0].ports[1]: dangerously ambiguous port definition with spec.containers[0].ports[0]"],
        ),
        (
            ports(json!([{"containerPort": 80, "hostIP": "10.0.0.1"}])),
            &["spec.containers[0].ports[0]: hostIP set without hostPort: {Name: HostPort:0 ContainerPort:80 \
               Protocol:TCP HostIP:10.0.0.1}"],
        ),
        (
            pod(json!({"initContainers": [{"name": "i", "image": "x", "ports": [{"containerPort": 80}]}],
                "containers": [{"name": "c", "image": "x", "ports": [{"containerPort": 80}]}]})),
            &["spec.containers[0].ports[0]: duplicate port definition with spec.initContainers[0].ports[0]"],
        ),
    ]);
}

#[test]
fn of_where_a_pod_goes() {
    let key = |key: &str| json!({"matchExpressions": [{"key": key, "operator": "Exists"}]});
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
    check(&[
        (
            pod(json!({"nodeSelector": {"beta.kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}})),
            &["spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead"],
        ),
        (
            pod(json!({"affinity": {"nodeAffinity": {
                required: {"nodeSelectorTerms": [key("failure-domain.beta.kubernetes.io/zone")]},
                preferred: [{"weight": 1, "preference": key("node-role.kubernetes.io/master")}]}}})),
            &[
                "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0]\
                 .matchExpressions[0].key: failure-domain.beta.kubernetes.io/zone is deprecated since v1.17; use \
                 \"topology.kubernetes.io/zone\" instead",
                "spec.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].preference\
                 .matchExpressions[0].key: node-role.kubernetes.io/master is use \
                 \"node-role.kubernetes.io/control-plane\" instead",
            ],
        ),
        (
            pod(json!({"topologySpreadConstraints": [{"maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule",
                "topologyKey": "failure-domain.beta.kubernetes.io/region"}]})),
            &[
                "spec.topologySpreadConstraints[0].topologyKey: failure-domain.beta.kubernetes.io/region is deprecated \
                 since v1.17; use \"topology.kubernetes.io/region\" instead",
                "spec.topologySpreadConstraints[0].labelSelector: a null labelSelector results in matching no pod",
            ],
        ),
        (
            pod(json!({"affinity": {"podAntiAffinity": {required: [{"topologyKey": "k"}],
                preferred: [{"weight": 1, "podAffinityTerm": {"topologyKey": "k"}}]}}})),
            &[
                "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].labelSelector: a null \
                 labelSelector results in matching no pod",
                "spec.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].podAffinityTerm\
                 .labelSelector: a null labelSelector results in matching no pod",
            ],
        ),
    ]);
}

#[test]
fn of_what_a_pod_says_of_itself() {
    let annotated = |annotations: Value| {
        let mut pod = pod(json!({}));
        pod["metadata"]["annotations"] = annotations;
        pod
    };
    let mut dotted = pod(json!({}));
    dotted["metadata"]["name"] = json!("a.b");
    check(&[
        (
            dotted,
            &[
                "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label \
               is recommended: [must not contain dots]",
            ],
        ),
        (
            pod(json!({"terminationGracePeriodSeconds": -1})),
            &["spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1"],
        ),
        (
            pod(json!({"imagePullSecrets": [{"name": "s"}, {"name": "s"}, {"name": ""}]})),
            &[
                "spec.imagePullSecrets[1].name: duplicate name \"s\"",
                "spec.imagePullSecrets[2].name: invalid empty name \"\"",
            ],
        ),
        (
            pod(json!({"hostAliases": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.1"}]})),
            &["spec.hostAliases[1].ip: duplicate ip \"10.0.0.1\""],
        ),
        (
            annotated(json!({"seccomp.security.alpha.kubernetes.io/pod": "runtime/default",
                "container.seccomp.security.alpha.kubernetes.io/c": "runtime/default",
                "container.apparmor.security.beta.kubernetes.io/c": "runtime/default",
                "scheduler.alpha.kubernetes.io/critical-pod": ""})),
            &[
                "metadata.annotations[scheduler.alpha.kubernetes.io/critical-pod]: non-functional in v1.16+; use the \
                 \"priorityClassName\" field instead",
                "metadata.annotations[seccomp.security.alpha.kubernetes.io/pod]: non-functional in v1.27+; use the \
                 \"seccompProfile\" field instead",
                "metadata.annotations[container.seccomp.security.alpha.kubernetes.io/c]: non-functional in v1.27+; use \
                 the \"seccompProfile\" field instead",
                "metadata.annotations[container.apparmor.security.beta.kubernetes.io/c]: deprecated since v1.30; use the \
                 \"appArmorProfile\" field instead",
            ],
        ),
    ]);
}

#[test]
fn of_volumes() {
    let items = |paths: &[&str]| -> Value { paths.iter().map(|path| json!({"key": "k", "path": path})).collect() };
    check(&[
        (
            volume(json!({"gitRepo": {"repository": "https://x.org/r"}})),
            &["spec.volumes[0].gitRepo: deprecated in v1.11"],
        ),
        (
            volume(json!({"cephfs": {"monitors": ["m"]}})),
            &["spec.volumes[0].cephfs: deprecated in v1.28, non-functional in v1.31+"],
        ),
        (volume(json!({"configMap": {"name": "m", "items": items(&["a", "ab"])}})), &[]),
        (
            volume(json!({"configMap": {"name": "m", "items": items(&["a", "a/b"])}})),
            &["volume \"v\" (ConfigMap \"m\"): overlapping paths: \"a/b\" with \"a\""],
        ),
        (
            volume(json!({"secret": {"secretName": "s", "items": items(&["a", "a"])}})),
            &["volume \"v\" (Secret \"s\"): overlapping paths: \"a\" with \"a\""],
        ),
        (
            volume(json!({"projected": {"sources": [
                {"configMap": {"name": "m", "items": items(&["a"])}},
                {"serviceAccountToken": {"path": "a"}},
                {"downwardAPI": {"items": [{"path": "a/b", "fieldRef": {"fieldPath": "metadata.name"}}]}}]}})),
            &[
                "volume \"v\" (Projected): overlapping paths: \"a\" (ServiceAccountToken) with \"a\" (ConfigMap \"m\")",
                "volume \"v\" (Projected): overlapping paths: \"a/b\" (DownwardAPI) with \"a\" (ConfigMap \"m\")",
                "volume \"v\" (Projected): overlapping paths: \"a/b\" (DownwardAPI) with \"a\" (ServiceAccountToken)",
            ],
        ),
        (volume(json!({"projected": {"sources": [{}]}})), &["volume \"v\" (Projected) has no sources provided"]),
        (
            volume(json!({"ephemeral": {"volumeClaimTemplate": {"spec": {"accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "1500m"}}}}}})),
            &["spec.volumes[0].ephemeral.volumeClaimTemplate.spec.resources.requests[storage]: fractional byte value \
               \"1500m\" is invalid, must be an integer"],
        ),
    ]);
}

/// A kind with a template for pods whose grace is negative.
fn workload(kind: &str) -> Value {
    let restart = if matches!(kind, "Job" | "CronJob") { "Never" } else { "Always" };
    let template = json!({"metadata": {"labels": {"app": "a"}}, "spec": {"restartPolicy": restart,
        "terminationGracePeriodSeconds": -1, "containers": [{"name": "c", "image": "x"}]}});
    let selector = json!({"matchLabels": {"app": "a"}});
    let (api_version, body) = match kind {
        "PodTemplate" => ("v1", ("template", template)),
        "ReplicationController" => ("v1", ("spec", json!({"template": template}))),
        "Job" => ("batch/v1", ("spec", json!({"template": template}))),
        "CronJob" => {
            ("batch/v1", ("spec", json!({"schedule": "@daily", "jobTemplate": {"spec": {"template": template}}})))
        }
        _ => ("apps/v1", ("spec", json!({"selector": selector, "template": template}))),
    };
    json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "a.b"}, body.0: body.1})
}

#[test]
fn of_what_makes_pods() {
    let name = "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS \
                label is recommended: [must not contain dots]";
    let grace = "terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1";
    let table: [(&str, &str, bool); 8] = [
        ("PodTemplate", "template.spec", false),
        ("ReplicationController", "spec.template.spec", true),
        ("Deployment", "spec.template.spec", true),
        ("ReplicaSet", "spec.template.spec", true),
        ("DaemonSet", "spec.template.spec", false),
        ("StatefulSet", "spec.template.spec", false),
        ("Job", "spec.template.spec", true),
        ("CronJob", "spec.jobTemplate.spec.template.spec", true),
    ];
    for (kind, path, named) in table {
        let grace = format!("{path}.{grace}");
        let expected: Vec<&str> = [name].into_iter().filter(|_| named).chain([grace.as_str()]).collect();
        assert_eq!(warnings(&workload(kind)), expected, "{kind}");
        let marked = of_change(&workload(kind), |new| new["metadata"]["labels"] = json!({"a": "b"}));
        assert_eq!(marked, [""; 0], "{kind}");
    }
    let scaled = of_change(&workload("Deployment"), |new| new["spec"]["replicas"] = json!(3));
    assert_eq!(scaled, [format!("spec.template.spec.{grace}")]);
    assert_eq!(of_change(&pod(json!({"terminationGracePeriodSeconds": -1})), |_| {}), [""; 0]);
}

#[test]
fn of_other_kinds() {
    let of = |api_version: &str, kind: &str, fields: Value| {
        let mut manifest = json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "a"}});
        manifest.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        manifest
    };
    let service = |spec: Value| of("v1", "Service", json!({"spec": spec}));
    let ports = json!([{"port": 80}]);
    let backend = json!({"defaultBackend": {"service": {"name": "s", "port": {"number": 80}}}});
    let class = json!({"name": "a", "annotations": {"volume.beta.kubernetes.io/storage-class": "x"}});
    let deprecated = "deprecated since v1.8; use \"storageClassName\" attribute instead";
    check(&[
        (
            of(
                "networking.k8s.io/v1",
                "Ingress",
                json!({"spec": backend,
                "metadata": {"name": "a", "annotations": {"kubernetes.io/ingress.class": "x"}}}),
            ),
            &["annotation \"kubernetes.io/ingress.class\" is deprecated, please use 'spec.ingressClassName' instead"],
        ),
        (
            of(
                "v1",
                "PersistentVolume",
                json!({"metadata": class, "spec": {"capacity": {"storage": "1Gi"},
                "accessModes": ["ReadWriteOnce"], "persistentVolumeReclaimPolicy": "Recycle", "nfs": {"server": "s", "path": "/"}}}),
            ),
            &[
                &format!("metadata.annotations[volume.beta.kubernetes.io/storage-class]: {deprecated}"),
                "spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended \
                 approach is to use dynamic provisioning.",
            ],
        ),
        (
            of(
                "v1",
                "PersistentVolumeClaim",
                json!({"metadata": class, "spec": {"accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "1500m"}}}}),
            ),
            &[
                &format!("metadata.annotations[volume.beta.kubernetes.io/storage-class]: {deprecated}"),
                "spec.resources.requests[storage]: fractional byte value \"1500m\" is invalid, must be an integer",
            ],
        ),
        (
            service(
                json!({"clusterIP": "None", "sessionAffinity": "ClientIP", "externalName": "x.org", "ports": ports}),
            ),
            &[
                "spec.SessionAffinity is ignored for headless services",
                "spec.externalName is ignored when spec.type is not \"ExternalName\"",
            ],
        ),
        (
            service(json!({"type": "LoadBalancer", "trafficDistribution": "PreferClose", "ports": ports,
                "loadBalancerIP": "2001:DB8::1", "loadBalancerSourceRanges": ["10.0.0.1/8"]})),
            &[
                "spec.loadBalancerIP: IPv6 address \"2001:DB8::1\" should be in RFC 5952 canonical format (\"2001:db8::1\")",
                "spec.loadBalancerSourceRanges[0]: CIDR value \"10.0.0.1/8\" is ambiguous in this context (should be \
                 \"10.0.0.0/8\" or \"10.0.0.1/32\"?)",
                "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"",
            ],
        ),
        (
            of(
                "networking.k8s.io/v1",
                "NetworkPolicy",
                json!({"spec": {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.1/8"}}]}],
                    "egress": [{"to": [{"ipBlock": {"cidr": "2001:DB8::/32"}}]}]}}),
            ),
            &[
                "spec.ingress[0].from[0].ipBlock.cidr: CIDR value \"10.0.0.1/8\" is ambiguous in this context (should be \
                 \"10.0.0.0/8\" or \"10.0.0.1/32\"?)",
                "spec.egress[0].to[0].ipBlock.cidr: IPv6 CIDR value \"2001:DB8::/32\" should be in RFC 5952 canonical format \
                 (\"2001:db8::/32\")",
            ],
        ),
        (
            service(json!({"externalIPs": ["10.0.0.1"], "ports": ports})),
            &["spec.externalIPs is deprecated and may no longer be implemented in some clusters"],
        ),
        (
            of(
                "node.k8s.io/v1",
                "RuntimeClass",
                json!({"handler": "runc",
                "scheduling": {"nodeSelector": {"beta.kubernetes.io/os": "linux"}}}),
            ),
            &["scheduling.nodeSelector: deprecated since v1.14; use \"kubernetes.io/os\" instead"],
        ),
        (
            of("v1", "Node", json!({"spec": {"externalID": "x"}})),
            &["spec.externalID: this field is deprecated, and is unused by Kubernetes"],
        ),
        (
            of(
                "batch/v1",
                "Job",
                json!({"spec": {"completionMode": "Indexed", "completions": 100_001,
                "parallelism": 10_001, "template": {"spec": {"restartPolicy": "Never",
                "containers": [{"name": "c", "image": "x"}]}}}}),
            ),
            &[
                "spec: In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, \
               Kubernetes might not be able to track completedIndexes when a big number of indexes fail",
            ],
        ),
    ]);
}

#[test]
fn unknown_fields_are_told_first() {
    let mut manifest = pod(json!({"terminationGracePeriodSeconds": -1}));
    manifest["spec"]["x"] = json!(1);
    let kind = Registry::builtin().of_object("v1", "Pod").unwrap();
    let mut rng = common::rng();
    let request = admit::Create { unknown_fields: UnknownFields::Warn, ..common::request(&mut rng) };
    let told = admit::prepare_create(&kind, manifest, request).unwrap().warnings;
    assert_eq!(told[0], "unknown field \"spec.x\"");
    assert_eq!(told.len(), 2);
}
