//! What is refused, and the exact words that name the field and say why.

mod common;

use common::{NGINX, create, object, refusal};
use flotilla_api::Reason;
use flotilla_api::admit::{self, Subresource};
use serde_json::{Value, json};

fn pod(spec: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec:\n  {}\n", spec.replace('\n', "\n  "))
}

fn container(fields: &str) -> String {
    pod(&format!("containers: [{{name: c, image: x, {fields}}}]"))
}

/// What is said beside `Pod "a" is invalid: `.
fn check(table: &[(String, &str)]) {
    for (manifest, expected) in table {
        let status = create(manifest).map(|p| p.object).expect_err(manifest);
        assert_eq!(status.reason, Reason::Invalid, "{manifest}");
        let words = status.message.split_once(" is invalid: ").unwrap().1;
        assert_eq!(words, *expected, "{manifest}");
    }
}

#[test]
fn policies_of_jobs() {
    let job = |fields: &str| {
        format!(
            "{{apiVersion: batch/v1, kind: Job, metadata: {{name: a}}, spec: {{completions: 3, {fields}, template: \
            {{spec: {{restartPolicy: Never, containers: [{{name: c, image: x}}]}}}}}}}}"
        )
    };
    let codes = |codes: &str| job(&format!("podFailurePolicy: {{rules: [{{action: FailJob, onExitCodes: {codes}}}]}}"));
    let values = "spec.podFailurePolicy.rules[0].onExitCodes.values";
    let success = |rule: &str| job(&format!("completionMode: Indexed, successPolicy: {{rules: [{rule}]}}"));
    check(&[
        (
            codes("{operator: In, values: [0]}"),
            &format!("{values}[0]: Invalid value: 0: must not be 0 for the In operator"),
        ),
        (codes("{operator: In, values: [2, 1]}"), &format!("{values}: Invalid value: [2,1]: must be ordered")),
        (
            codes("{operator: In, values: [1], containerName: d}"),
            "spec.podFailurePolicy.rules[0].onExitCodes.containerName: Invalid value: \"d\": must be one of the container or \
             initContainer names in the pod template",
        ),
        (
            job("podFailurePolicy: {rules: [{action: FailIndex, onPodConditions: [{type: DisruptionTarget}]}]}"),
            "spec.podFailurePolicy.rules[0].action: Invalid value: \"FailIndex\": requires the backoffLimitPerIndex to be set",
        ),
        (
            job("podReplacementPolicy: TerminatingOrFailed, podFailurePolicy: {rules: []}"),
            "spec.podReplacementPolicy: Unsupported value: \"TerminatingOrFailed\": supported values: \"Failed\"",
        ),
        (
            success("{succeededIndexes: '0,7'}"),
            "spec.successPolicy.rules[0].succeededIndexes: Invalid value: \"0,7\": error parsing succeededIndexes: too \
             large index: \"7\"",
        ),
        (
            success("{succeededIndexes: 0-1, succeededCount: 3}"),
            "spec.successPolicy.rules[0].succeededCount: Invalid value: 3: must be less than or equal to 2 (the number of \
             indexes in the specified succeededIndexes field)",
        ),
    ]);
    create(&codes("{operator: NotIn, values: [0, 3]}")).unwrap();
    create(&success("{succeededCount: 2}")).unwrap();
}

#[test]
fn containers() {
    check(&[
        (pod("{}"), "spec.containers: Required value"),
        (pod("containers: [{name: c}]"), "spec.containers[0].image: Required value"),
        (pod("containers: [{image: x}]"), "spec.containers[0].name: Required value"),
        (
            pod("containers: [{name: c, image: ' x'}]"),
            "spec.containers[0].image: Invalid value: \" x\": must not have leading or trailing whitespace",
        ),
        (
            pod("containers: [{name: c, image: x}, {name: c, image: x}]"),
            "spec.containers[1].name: Duplicate value: \"c\"",
        ),
        (
            pod("containers: [{name: c, image: x}]\ninitContainers: [{name: c, image: x}]"),
            "spec.initContainers[0].name: Duplicate value: \"c\"",
        ),
        (
            container("imagePullPolicy: Sometimes"),
            "spec.containers[0].imagePullPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \
             \"IfNotPresent\", \"Never\"",
        ),
        (
            container("ports: [{containerPort: 70000}]"),
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
        ),
        (
            container("ports: [{containerPort: 80, protocol: http}]"),
            "spec.containers[0].ports[0].protocol: Unsupported value: \"http\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
        ),
        (
            container("ports: [{containerPort: 80, hostPort: 80}, {containerPort: 81, hostPort: 80}]"),
            "spec.containers[0].ports[1].hostPort: Duplicate value: \"TCP//80\"",
        ),
        (
            container("ports: [{name: web, containerPort: 80}, {name: web, containerPort: 81}]"),
            "spec.containers[0].ports[1].name: Duplicate value: \"web\"",
        ),
        (
            container("env: [{name: 'a=b', value: x}]"),
            "spec.containers[0].env[0].name: Invalid value: \"a=b\": a valid environment variable name must consist only \
             of printable ASCII characters other than '='",
        ),
        (
            container("env: [{name: A, value: x, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]"),
            "spec.containers[0].env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty",
        ),
        (
            container("env: [{name: A, valueFrom: {fieldRef: {fieldPath: metadata.nam}}}]"),
            "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Invalid value: \"metadata.nam\": error converting \
             fieldPath: field label not supported: metadata.nam",
        ),
        (
            container("env: [{name: A, valueFrom: {configMapKeyRef: {name: m}}}]"),
            "spec.containers[0].env[0].valueFrom.configMapKeyRef.key: Required value",
        ),
        (
            container("envFrom: [{prefix: A}]"),
            "spec.containers[0].envFrom[0]: Invalid value: \"\": must specify one of: `configMapRef` or `secretRef`",
        ),
        (
            container("securityContext: {runAsUser: -1}"),
            "spec.containers[0].securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive",
        ),
        (
            container("securityContext: {privileged: true, allowPrivilegeEscalation: false}"),
            "spec.containers[0].securityContext: Invalid value: \"\": cannot set `allowPrivilegeEscalation` to false and \
             `privileged` to true",
        ),
    ]);
}

#[test]
fn resources() {
    check(&[
        (
            container("resources: {requests: {cpu: 2}, limits: {cpu: 1}}"),
            "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
        ),
        (
            container("resources: {limits: {memory: -1}}"),
            "[spec.containers[0].resources.limits[memory]: Invalid value: \"-1\": must be greater than or equal to 0, \
             spec.containers[0].resources.requests[memory]: Invalid value: \"-1\": must be greater than or equal to 0]",
        ),
        (
            container("resources: {limits: {gold: 1}}"),
            "[spec.containers[0].resources.limits[gold]: Invalid value: \"gold\": must be a standard resource type or \
             fully qualified, spec.containers[0].resources.limits[gold]: Invalid value: \"gold\": must be a standard \
             resource for containers, spec.containers[0].resources.requests[gold]: Invalid value: \"gold\": must be a \
             standard resource type or fully qualified, spec.containers[0].resources.requests[gold]: Invalid value: \
             \"gold\": must be a standard resource for containers]",
        ),
        (
            container("resources: {requests: {example.com/gpu: 1}}"),
            "spec.containers[0].resources.limits: Required value: Limit must be set for non overcommitable resources",
        ),
        (
            container("resources: {limits: {example.com/gpu: 2}, requests: {example.com/gpu: 1}}"),
            "spec.containers[0].resources.requests: Invalid value: \"1\": must be equal to example.com/gpu limit of 2",
        ),
        (
            container("resources: {limits: {requests.x.org/y: 1}}"),
            "[spec.containers[0].resources.limits[requests.x.org/y]: Invalid value: \"requests.x.org/y\": doesn't follow \
             extended resource name standard, spec.containers[0].resources.requests[requests.x.org/y]: Invalid value: \
             \"requests.x.org/y\": doesn't follow extended resource name standard]",
        ),
        (
            container("resources: {requests: {pods: 1}}"),
            "spec.containers[0].resources.requests[pods]: Invalid value: \"pods\": must be a standard resource for \
             containers",
        ),
        (
            container("resources: {limits: {hugepages-2Mi: 3Mi, cpu: 1}}"),
            "[spec.containers[0].resources.limits[hugepages-2Mi]: Invalid value: \"3Mi\": 3Mi is not positive integer \
             multiple of hugepages-2Mi, spec.containers[0].resources.requests[hugepages-2Mi]: Invalid value: \"3Mi\": 3Mi \
             is not positive integer multiple of hugepages-2Mi]",
        ),
        (
            container("resources: {limits: {hugepages-2Mi: 2Mi}}"),
            "spec.containers[0].resources: Forbidden: HugePages require cpu or memory",
        ),
        (
            pod("{resources: {requests: {ephemeral-storage: 1Gi}}, containers: [{name: c, image: x}]}"),
            "spec.resources.requests[ephemeral-storage]: Unsupported value: \"ephemeral-storage\": supported values: \
             \"cpu\", \"hugepages-\", \"memory\"",
        ),
    ]);
}

#[test]
fn probes() {
    check(&[
        (
            container("livenessProbe: {}"),
            "spec.containers[0].livenessProbe: Required value: must specify a handler type",
        ),
        (
            container("livenessProbe: {tcpSocket: {port: 80}, successThreshold: 2}"),
            "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
        ),
        (
            container("readinessProbe: {tcpSocket: {port: 0}}"),
            "spec.containers[0].readinessProbe.tcpSocket.port: Invalid value: 0: must be between 1 and 65535, inclusive",
        ),
        (
            container("readinessProbe: {exec: {command: [a]}, tcpSocket: {port: 80}}"),
            "spec.containers[0].readinessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type",
        ),
        (
            container("readinessProbe: {exec: {}, periodSeconds: -1}"),
            "[spec.containers[0].readinessProbe.exec.command: Required value, \
             spec.containers[0].readinessProbe.periodSeconds: Invalid value: -1: must be greater than or equal to 0]",
        ),
        (
            container("lifecycle: {preStop: {}}"),
            "spec.containers[0].lifecycle.preStop: Required value: must specify a handler type",
        ),
        (
            pod(
                "containers: [{name: c, image: x}]\ninitContainers: [{name: i, image: x, livenessProbe: {exec: {command: [a]}}}]",
            ),
            "spec.initContainers[0].livenessProbe: Forbidden: may not be set for init containers without restartPolicy=Always",
        ),
    ]);
}

#[test]
fn volumes() {
    let with = |volume: &str, mount: &str| {
        pod(&format!("containers: [{{name: c, image: x, volumeMounts: [{mount}]}}]\nvolumes: [{volume}]"))
    };
    check(&[
        (with("", "{name: v, mountPath: /v}"), "spec.containers[0].volumeMounts[0].name: Not found: \"v\""),
        (with("{name: v}", "{name: v}"), "spec.containers[0].volumeMounts[0].mountPath: Required value"),
        (
            with("{name: v}", "{name: v, mountPath: /v}, {name: v, mountPath: /v}"),
            "spec.containers[0].volumeMounts[1].mountPath: Invalid value: \"/v\": must be unique",
        ),
        (
            with("{name: v}", "{name: v, mountPath: /v, subPath: ../x}"),
            "spec.containers[0].volumeMounts[0].subPath: Invalid value: \"../x\": must not contain '..'",
        ),
        (with("{name: v}, {name: v}", ""), "spec.volumes[1].name: Duplicate value: \"v\""),
        (
            with("{name: v, emptyDir: {}, hostPath: {path: /a}}", ""),
            "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type",
        ),
        (with("{name: v, hostPath: {}}", ""), "spec.volumes[0].hostPath.path: Required value"),
        (
            with("{name: v, hostPath: {path: /a/../b}}", ""),
            "spec.volumes[0].hostPath.path: Invalid value: \"/a/../b\": must not contain '..'",
        ),
        (
            with("{name: v, secret: {secretName: s, defaultMode: 0777}}, {name: w, secret: {defaultMode: 512}}", ""),
            "[spec.volumes[1].secret.secretName: Required value, spec.volumes[1].secret.defaultMode: Invalid value: 512: \
             must be a number between 0 and 0777 (octal), both inclusive]",
        ),
        (
            with("{name: v, configMap: {name: m, items: [{key: a, path: /a}]}}", ""),
            "spec.volumes[0].configMap.items[0].path: Invalid value: \"/a\": must be a relative path",
        ),
        (
            with("{name: v, persistentVolumeClaim: {}}", ""),
            "spec.volumes[0].persistentVolumeClaim.claimName: Required value",
        ),
    ]);
}

#[test]
fn pods() {
    let also = |fields: &str| pod(&format!("containers: [{{name: c, image: x}}]\n{fields}"));
    check(&[
        (
            also("restartPolicy: Perhaps"),
            "spec.restartPolicy: Unsupported value: \"Perhaps\": supported values: \"Always\", \"Never\", \"OnFailure\"",
        ),
        (also("dnsPolicy: None"), "spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None"),
        (
            also("activeDeadlineSeconds: 0"),
            "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive",
        ),
        (
            also("tolerations: [{operator: Equal, value: x}]"),
            "spec.tolerations[0].operator: Invalid value: \"Equal\": operator must be Exists when `key` is empty, which \
             means \"match all values and all keys\"",
        ),
        (
            also("tolerations: [{key: a, operator: Exists, tolerationSeconds: 3}]"),
            "spec.tolerations[0].effect: Invalid value: \"\": effect must be 'NoExecute' when `tolerationSeconds` is set",
        ),
        (
            also("affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: []}}}"),
            "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms: Required value: \
             must have at least one node selector term",
        ),
        (
            also("topologySpreadConstraints: [{maxSkew: 0, topologyKey: a, whenUnsatisfiable: DoNotSchedule}]"),
            "spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than 0",
        ),
        (
            also("hostAliases: [{ip: here}]"),
            "spec.hostAliases[0].ip: Invalid value: \"here\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ),
        (
            pod("hostNetwork: true\ncontainers: [{name: c, image: x, ports: [{containerPort: 80, hostPort: 81}]}]"),
            "spec.containers[0].ports[0].hostPort: Invalid value: 81: must match `containerPort` when `hostNetwork` is true",
        ),
    ]);
}

#[test]
fn workloads() {
    let deployment = |from: &str, to: &str| {
        let manifest = NGINX.replace(from, to);
        assert_ne!(manifest, NGINX);
        manifest
    };
    check(&[
        (
            deployment("spec:\n  selector", "spec:\n  replicas: -1\n  selector"),
            "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
        ),
        (
            deployment("  selector: {matchLabels: {app: web}}\n", ""),
            "[spec.selector: Required value, spec.template.metadata.labels: Invalid value: {\"app\":\"web\"}: `selector` does \
             not match template `labels`]",
        ),
        (
            deployment("{matchLabels: {app: web}}", "{}"),
            "spec.selector: Invalid value: {}: empty selector is invalid for deployment",
        ),
        (
            deployment("    spec:\n      containers", "    spec:\n      activeDeadlineSeconds: 5\n      containers"),
            "spec.template.spec.activeDeadlineSeconds: Forbidden: activeDeadlineSeconds in ReplicaSet is not Supported",
        ),
        (
            deployment("labels: {app: web}", "labels: {app: db}"),
            "spec.template.metadata.labels: Invalid value: {\"app\":\"db\"}: `selector` does not match template `labels`",
        ),
        (
            deployment(
                "spec:\n  selector",
                "spec:\n  strategy: {rollingUpdate: {maxSurge: 0, maxUnavailable: 0}}\n  selector",
            ),
            "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0",
        ),
        (
            deployment("spec:\n  selector", "spec:\n  strategy: {rollingUpdate: {maxSurge: some}}\n  selector"),
            "spec.strategy.rollingUpdate.maxSurge: Invalid value: \"some\": a valid percent string must be a numeric string \
             followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')",
        ),
        (
            deployment("spec:\n  selector", "spec:\n  strategy: {type: Recreate, rollingUpdate: {}}\n  selector"),
            "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
        ),
        (
            deployment("    spec:\n      containers", "    spec:\n      restartPolicy: Never\n      containers"),
            "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
        ),
        (
            deployment("metadata: {name: web}", "metadata: {name: web, labels: {'a b': c, d: 'e f'}}"),
            "[metadata.labels: Invalid value: \"a b\": name part must consist of alphanumeric characters, '-', '_' or '.', \
             and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used \
             for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]'), metadata.labels: Invalid value: \"e f\": a valid \
             label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end \
             with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is \
             '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')]",
        ),
    ]);
}

#[test]
fn jobs() {
    let job = |fields: &str, pod: &str| {
        format!(
            "apiVersion: batch/v1\nkind: Job\nmetadata: {{name: j}}\nspec:\n  {fields}\n  template: {{spec: {{{pod}\
             containers: [{{name: c, image: x}}]}}}}\n"
        )
    };
    check(&[
        (job("", ""), "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\""),
        (
            job("parallelism: -1", "restartPolicy: Never, "),
            "spec.parallelism: Invalid value: -1: must be greater than or equal to 0",
        ),
        (
            job("{completionMode: Indexed, parallelism: 2,", "restartPolicy: Never, ")
                .replace("\n  template: ", " template: ")
                .replace("}}\n", "}}}\n"),
            "spec.completions: Required value: when completion mode is Indexed",
        ),
    ]);
}

#[test]
fn configuration() {
    let secret = |fields: &str| format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: a}}\n{fields}\n");
    let map = |fields: &str| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: a}}\n{fields}\n");
    check(&[
        (map(&format!("data: {{a: {}}}", "x".repeat(1 << 20 | 1))), "[]: Too long: may not be more than 1048576 bytes"),
        (map("data: {..: x}"), "data[..]: Invalid value: \"..\": must not be '..'"),
        (secret("type: kubernetes.io/tls\ndata: {tls.crt: eA==}"), "data[tls.key]: Required value"),
        (
            "apiVersion: coordination.k8s.io/v1\nkind: Lease\nmetadata: {name: a}\nspec: {leaseDurationSeconds: 0}\n"
                .into(),
            "spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0",
        ),
        (
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: a.b}\n".into(),
            "metadata.name: Invalid value: \"a.b\": must not contain dots",
        ),
    ]);
}

#[test]
fn a_secret_is_encoded_and_never_repeated() {
    let prepared =
        create("apiVersion: v1\nkind: Secret\nmetadata: {name: a}\nstringData: {password: hunter2}\n").unwrap();
    assert_eq!(prepared.object["data"], json!({"password": "aHVudGVyMg=="}));
    assert_eq!(prepared.object["type"], "Opaque");
    assert!(prepared.object.get("stringData").is_none());
    let message = refusal("apiVersion: v1\nkind: Secret\nmetadata: {name: a}\ndata: {password: hunter2!}\n");
    assert!(!message.contains("hunter2"), "{message}");
}

#[test]
fn a_name_or_a_base_for_one_is_needed() {
    let message = refusal("apiVersion: v1\nkind: ConfigMap\n");
    assert_eq!(message, "ConfigMap \"\" is invalid: metadata.name: Required value: name or generateName is required");
}

/// Creates the manifest, changes it, and sends it in as an update.
fn update(manifest: &str, change: impl Fn(&mut Value)) -> Result<admit::Updated, flotilla_api::Status> {
    let old = create(manifest).unwrap().object;
    let mut new = old.clone();
    change(&mut new);
    let (kind, _) = object(manifest);
    admit::prepare_update(&kind, &old, new, Subresource::None, Default::default())
}

#[test]
fn an_update_counts_generations_and_keeps_what_is_not_the_writers() {
    let updated = update(NGINX, |object| {
        object["spec"]["replicas"] = json!(3);
        object["status"] = json!({"replicas": 9});
        object["metadata"] = json!({"name": "web", "resourceVersion": "5"});
    })
    .unwrap();
    assert!(updated.changed);
    let metadata = &updated.object["metadata"];
    assert_eq!(metadata["generation"], 2);
    assert_eq!(metadata["creationTimestamp"], common::NOW);
    assert_eq!(metadata["namespace"], "default");
    assert!(metadata["uid"].is_string());
    assert_eq!(updated.object["status"], json!({}));
    let relabelled = update(NGINX, |object| object["metadata"]["labels"] = json!({"a": "b"})).unwrap();
    assert_eq!((relabelled.changed, &relabelled.object["metadata"]["generation"]), (true, &json!(1)));
}

#[test]
fn a_status_update_changes_the_status_only() {
    let old = create(NGINX).unwrap().object;
    let mut new = old.clone();
    new["spec"]["replicas"] = json!(7);
    new["status"] = json!({"replicas": 1, "readyReplicas": 1});
    let (kind, _) = object(NGINX);
    let updated = admit::prepare_update(&kind, &old, new, Subresource::Status, Default::default()).unwrap();
    assert_eq!(updated.object["spec"], old["spec"]);
    assert_eq!(updated.object["metadata"], old["metadata"]);
    assert_eq!(updated.object["status"], json!({"replicas": 1, "readyReplicas": 1}));
}

#[test]
fn a_status_counts_what_there_is() {
    let template = "template: {metadata: {labels: {app: a}}, spec: {containers: [{name: c, image: x}]}}";
    let of = |kind: &str| {
        format!(
            "{{apiVersion: apps/v1, kind: {kind}, metadata: {{name: a}}, spec: {{selector: {{matchLabels: {{app: a}}}}, \
             {template}}}}}"
        )
    };
    let controller =
        format!("{{apiVersion: v1, kind: ReplicationController, metadata: {{name: a}}, spec: {{{template}}}}}");
    let job = "{apiVersion: batch/v1, kind: Job, metadata: {name: a}, spec: {template: {spec: {restartPolicy: Never, \
               containers: [{name: c, image: x}]}}}}";
    let negative = "Invalid value: -1: must be greater than or equal to 0";
    let table = [
        (of("Deployment"), json!({"unavailableReplicas": -1}), format!("status.unavailableReplicas: {negative}")),
        (
            of("Deployment"),
            json!({"replicas": 2, "readyReplicas": 1, "availableReplicas": 2}),
            "status.availableReplicas: Invalid value: 2: cannot be greater than readyReplicas".to_owned(),
        ),
        (
            of("ReplicaSet"),
            json!({"replicas": 1, "fullyLabeledReplicas": 2}),
            "status.fullyLabeledReplicas: Invalid value: 2: cannot be greater than status.replicas".to_owned(),
        ),
        (of("ReplicaSet"), json!({"replicas": -1}), format!("status.replicas: {negative}")),
        (
            controller,
            json!({"replicas": 0, "observedGeneration": -1}),
            format!("status.observedGeneration: {negative}"),
        ),
        (
            of("StatefulSet"),
            json!({"replicas": 2, "readyReplicas": 1, "availableReplicas": 2}),
            "status.availableReplicas: Invalid value: 2: cannot be greater than status.readyReplicas".to_owned(),
        ),
        (
            of("DaemonSet"),
            json!({"currentNumberScheduled": 0, "desiredNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": -1}),
            format!("status.numberReady: {negative}"),
        ),
        (job.to_owned(), json!({"failed": -1}), format!("status.failed: {negative}")),
    ];
    for (manifest, status, expected) in table {
        let old = create(&manifest).unwrap().object;
        let mut new = old.clone();
        new["status"] = status;
        let (kind, _) = object(&manifest);
        let refused = admit::prepare_update(&kind, &old, new, Subresource::Status, Default::default()).unwrap_err();
        let words = refused.message.split_once("is invalid: ").unwrap().1;
        assert!(words.starts_with(&expected) || words.starts_with(&format!("[{expected}")), "{words}");
    }
}

#[test]
fn what_may_not_change_does_not() {
    type Case = (&'static str, fn(&mut Value), &'static str);
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, image: x}]}\n";
    let job = "apiVersion: batch/v1\nkind: Job\nmetadata: {name: a}\nspec: {template: {spec: {restartPolicy: Never, \
               containers: [{name: c, image: x}]}}}\n";
    let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\nimmutable: true\ndata: {a: b}\n";
    let table: [Case; 7] = [
        (
            NGINX,
            |o| {
                o["spec"]["selector"]["matchLabels"]["app"] = json!("db");
                o["spec"]["template"]["metadata"]["labels"]["app"] = json!("db");
            },
            "Deployment.apps \"web\" is invalid: spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"db\"}}: field is \
             immutable",
        ),
        (
            pod,
            |o| o["spec"]["containers"][0]["command"] = json!(["sh"]),
            "Pod \"a\" is invalid: spec: Forbidden: pod updates may not change fields other than \
             `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only \
             additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was \
             previously negative)",
        ),
        (
            pod,
            |o| o["metadata"]["uid"] = json!("other"),
            "Pod \"a\" is invalid: metadata.uid: Invalid value: \"other\": field is immutable",
        ),
        (
            pod,
            |o| o["metadata"]["name"] = json!("b"),
            "Pod \"b\" is invalid: metadata.name: Invalid value: \"b\": field is immutable",
        ),
        (
            job,
            |o| o["spec"]["completions"] = json!(5),
            "Job.batch \"a\" is invalid: spec.completions: Invalid value: 5: field is immutable",
        ),
        (
            map,
            |o| o["data"]["a"] = json!("c"),
            "ConfigMap \"a\" is invalid: data: Forbidden: field is immutable when `immutable` is set",
        ),
        (
            map,
            |o| {
                o.as_object_mut().unwrap().remove("immutable");
            },
            "ConfigMap \"a\" is invalid: immutable: Forbidden: field is immutable when `immutable` is set",
        ),
    ];
    for (manifest, change, expected) in table {
        assert_eq!(update(manifest, change).unwrap_err().message, expected);
    }
    assert!(update(pod, |o| o["spec"]["containers"][0]["image"] = json!("y")).is_ok());
    assert!(update(pod, |o| o["spec"]["tolerations"] = json!([{"operator": "Exists"}])).is_ok());
}

#[test]
fn a_job_written_again_without_what_was_generated_keeps_it() {
    let job = "apiVersion: batch/v1\nkind: Job\nmetadata: {name: a}\nspec: {template: {spec: {restartPolicy: Never, \
               containers: [{name: c, image: x}]}}}\n";
    let old = create(job).unwrap().object;
    let (kind, new) = object(job);
    let updated = admit::prepare_update(&kind, &old, new, Subresource::None, Default::default()).unwrap();
    assert!(!updated.changed, "{:#}", updated.object);
}

/// Every place in a value, as JSON pointers.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Object(map) => map.iter().for_each(|(key, v)| places(v, &format!("{at}/{key}"), found)),
        Value::Array(items) => items.iter().enumerate().for_each(|(i, v)| places(v, &format!("{at}/{i}"), found)),
        _ => {}
    }
}

fn anything() -> impl proptest::strategy::Strategy<Value = Value> {
    use proptest::prelude::*;
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(|f| json!(f)),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map("[a-z]{1,8}", inner, 0..4).prop_map(|map| json!(map)),
        ]
    })
}

proptest::proptest! {
    /// Whatever stands anywhere in an object, it is refused in words, or what was admitted decodes and stays as it is.
    #[test]
    fn anything_anywhere_is_refused_or_admitted_for_good(place in 0usize..1000, value in anything()) {
        let (kind, mut object) = object(NGINX);
        let mut found = Vec::new();
        places(&object, "", &mut found);
        *object.pointer_mut(&found[place % found.len()]).unwrap() = value;
        match admit::prepare_create(&kind, object, common::request(&mut common::rng())) {
            Err(status) => proptest::prop_assert!(!status.message.is_empty()),
            Ok(prepared) => {
                let old = prepared.object;
                let again = admit::prepare_update(&kind, &old, old.clone(), Subresource::None, Default::default());
                let again = again.map_err(|e| proptest::test_runner::TestCaseError::fail(e.message))?;
                proptest::prop_assert_eq!(&again.object, &old);
                let decoded: flotilla_api::k8s_openapi::api::apps::v1::Deployment = serde_json::from_value(old).unwrap();
                proptest::prop_assert!(decoded.metadata.uid.is_some());
            }
        }
    }
}
