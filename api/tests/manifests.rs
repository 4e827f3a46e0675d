//! From the bytes of a manifest to an object that may be stored, or to the complaint that a person reads.

use flotilla_api::admit::{self, Create, Prepared, Subresource, UnknownFields};
use flotilla_api::{Reason, Registry, Status};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Value, json};

fn create(manifest: &str) -> Result<Prepared, Status> {
    let registry = Registry::builtin();
    let parsed = admit::parse(manifest.as_bytes(), &registry)?.remove(0);
    let mut rng = StdRng::seed_from_u64(7);
    let request = Create {
        namespace: "",
        now: "2026-01-02T03:04:05Z".parse().unwrap(),
        rng: &mut rng,
        unknown_fields: UnknownFields::Refuse,
    };
    admit::prepare_create(&parsed.kind, parsed.object, request)
}

fn refusal(manifest: &str) -> String {
    create(manifest).unwrap_err().message
}

const NGINX: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: nginx
        image: nginx
        ports: [{containerPort: 80}]
        resources: {limits: {cpu: 0.5, memory: 64Mi}}
";

#[test]
fn a_deployment_gets_upstreams_defaults() {
    let prepared = create(NGINX).unwrap();
    assert_eq!(prepared.key.as_str(), "apps/deployments/default/web");
    let uid = prepared.object["metadata"]["uid"].clone();
    assert_eq!(
        prepared.object,
        json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {
                "name": "web", "namespace": "default", "uid": uid, "generation": 1,
                "creationTimestamp": "2026-01-02T03:04:05Z",
            },
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": {"app": "web"}},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
                "revisionHistoryLimit": 10,
                "progressDeadlineSeconds": 600,
                "template": {
                    "metadata": {"labels": {"app": "web"}},
                    "spec": {
                        "containers": [{
                            "name": "nginx", "image": "nginx", "imagePullPolicy": "Always",
                            "ports": [{"containerPort": 80, "protocol": "TCP"}],
                            "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}},
                            "terminationMessagePath": "/dev/termination-log",
                            "terminationMessagePolicy": "File",
                        }],
                        "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "schedulerName": "default-scheduler",
                        "securityContext": {}, "terminationGracePeriodSeconds": 30,
                    },
                },
            },
            "status": {},
        })
    );
}

#[test]
fn a_pod_gets_upstreams_defaults() {
    let prepared = create(
        "
apiVersion: v1
kind: Pod
metadata: {generateName: web-}
spec:
  containers:
  - name: a
    image: nginx:1.27
    resources: {limits: {cpu: 1000m, memory: 1024Ki}}
    livenessProbe: {httpGet: {port: 80}}
    env: [{name: A, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
  volumes:
  - name: scratch
  - name: config
    configMap: {name: c}
",
    )
    .unwrap();
    let pod = &prepared.object;
    let name = pod["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("web-") && name.len() == 9, "{name}");
    assert_eq!(pod["spec"]["containers"][0]["resources"]["requests"], json!({"cpu": "1", "memory": "1Mi"}));
    assert_eq!(pod["spec"]["containers"][0]["imagePullPolicy"], "IfNotPresent");
    assert_eq!(
        pod["spec"]["containers"][0]["livenessProbe"],
        json!({"httpGet": {"path": "/", "port": 80, "scheme": "HTTP"}, "timeoutSeconds": 1, "periodSeconds": 10,
               "successThreshold": 1, "failureThreshold": 3})
    );
    assert_eq!(
        pod["spec"]["volumes"],
        json!([{"name": "scratch", "emptyDir": {}}, {"name": "config", "configMap": {"name": "c", "defaultMode": 420}}])
    );
    assert_eq!(pod["status"], json!({"phase": "Pending", "qosClass": "Guaranteed"}));
    assert_eq!(pod["spec"]["enableServiceLinks"], true);
    assert_eq!(pod["spec"]["priority"], 0);
}

#[test]
fn a_job_gets_upstreams_defaults_and_selector() {
    let prepared = create(
        "
apiVersion: batch/v1
kind: Job
metadata: {name: sum}
spec:
  template:
    spec:
      restartPolicy: Never
      containers: [{name: a, image: 'x:1'}]
",
    )
    .unwrap();
    let (spec, uid) = (&prepared.object["spec"], &prepared.object["metadata"]["uid"]);
    for (field, value) in [
        ("completions", json!(1)),
        ("parallelism", json!(1)),
        ("backoffLimit", json!(6)),
        ("completionMode", json!("NonIndexed")),
        ("suspend", json!(false)),
        ("podReplacementPolicy", json!("TerminatingOrFailed")),
        ("selector", json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}})),
    ] {
        assert_eq!(spec[field], value, "{field}");
    }
    assert_eq!(
        spec["template"]["metadata"]["labels"],
        json!({"batch.kubernetes.io/controller-uid": uid, "batch.kubernetes.io/job-name": "sum",
               "controller-uid": uid, "job-name": "sum"})
    );
}

#[test]
fn bad_manifests_are_refused_in_words_that_name_the_place() {
    let table: &[(&str, &str)] = &[
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c}]}",
            "Pod \"a\" is invalid: spec.containers[0].image: Required value",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, imagee: x}]}",
            "Pod \"a\" is invalid: [spec.containers[0].imagee: unknown field, spec.containers[0].image: Required value]",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {}",
            "Pod \"a\" is invalid: spec.containers: Required value",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: A_}\nspec: {containers: [{name: c, image: x}]}",
            "Pod \"A_\" is invalid: metadata.name: Invalid value: \"A_\": a lowercase RFC 1123 subdomain must consist of \
             lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. \
             'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
        ),
        (
            "apiVersion: v1\nkind: Poddy\nmetadata: {name: a}",
            "document 1: no matches for kind \"Poddy\" in version \"v1\"",
        ),
        ("kind: Pod", "document 1: apiVersion: Required value"),
        (
            "just some words",
            "document 1: expected an object with apiVersion, kind and metadata, found a value of type string",
        ),
        ("", "the manifest holds no objects"),
        (
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Nope\n",
            "document 2: no matches for kind \"Nope\" in version \"v1\"",
        ),
        (
            "apiVersion: v1\nkind: Node\nmetadata: {name: n, namespace: x}\nspec: {taints: [{key: a}]}",
            "Node \"n\" is invalid: [metadata.namespace: Forbidden: not allowed on this type, spec.taints[0].effect: \
             Required value]",
        ),
    ];
    for (manifest, expected) in table {
        assert_eq!(refusal(manifest), *expected, "{manifest}");
    }
}
