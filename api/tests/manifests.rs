//! From the bytes of a manifest to an object that may be stored, or to the complaint that a person reads.

mod common;

use common::{NGINX, create, object, refusal};
use flotilla_api::admit::{self, MAX_INPUT_BYTES};
use flotilla_api::{Reason, Registry};
use serde_json::json;

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

fn parse_error(manifest: &[u8]) -> flotilla_api::Status {
    admit::parse(manifest, &Registry::builtin()).unwrap_err()
}

#[test]
fn what_is_no_manifest_is_refused_with_the_place() {
    let table: &[(&str, &str)] = &[
        ("", "the manifest holds no objects"),
        ("---\n# nothing\n---\n", "the manifest holds no objects"),
        ("kind: Pod", "document 1: apiVersion: Required value"),
        ("apiVersion: v1", "document 1: kind: Required value"),
        (
            "just some words",
            "document 1: expected an object with apiVersion, kind and metadata, found a value of type string",
        ),
        ("apiVersion: v1\nkind: Poddy", "document 1: no matches for kind \"Poddy\" in version \"v1\""),
        (
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Nope\n",
            "document 2: no matches for kind \"Nope\" in version \"v1\"",
        ),
        ("kind: List\napiVersion: v1\nitems: [{kind: Pod}]", "document 1: apiVersion: Required value"),
    ];
    for (manifest, expected) in table {
        let status = parse_error(manifest.as_bytes());
        assert_eq!((status.reason, status.message.as_str()), (Reason::BadRequest, *expected), "{manifest}");
    }
}

#[test]
fn what_is_neither_yaml_nor_json_is_called_so() {
    let table: &[(&[u8], &str)] = &[
        (b"\x7fELF\xff\xfe\x00", "the manifest is neither YAML nor JSON: byte 4 is not UTF-8"),
        (b"a: b\n---\na: [1, 2\nb: 3\n", "the manifest is not valid YAML or JSON: document 2, line 4, column "),
        (b"a: 1\nb: 2\na: 3\n", "the manifest is not valid YAML or JSON: document 1, line 3, column 1: "),
        (b"{\"a\": 1,\n \"a\": 2}", "the manifest is not valid YAML or JSON: document 1, line 2, column "),
        (b"key: \"unclosed", "the manifest is not valid YAML or JSON: document 1, line 1, column "),
    ];
    for (manifest, expected) in table {
        let status = parse_error(manifest);
        assert_eq!(status.reason, Reason::BadRequest);
        assert!(status.message.starts_with(expected), "{}", status.message);
    }
}

#[test]
fn a_duplicate_key_is_named() {
    for manifest in ["a: 1\nimage: 2\nimage: 3\n", "{\"image\": 1, \"image\": 2}"] {
        let message = parse_error(manifest.as_bytes()).message;
        assert!(message.ends_with(": duplicate key \"image\""), "{message}");
    }
}

#[test]
fn two_megabytes_are_too_many() {
    let manifest = format!("apiVersion: v1\nkind: ConfigMap\ndata:\n  a: {}\n", "x".repeat(2 << 20));
    let status = parse_error(manifest.as_bytes());
    assert_eq!(status.reason, Reason::RequestEntityTooLarge);
    let expected = format!("the manifest has {} bytes; at most {MAX_INPUT_BYTES} are taken", manifest.len());
    assert_eq!(status.message, expected);
}

#[test]
fn bombs_do_not_go_off() {
    let mut laughs = "a: &a [lol,lol,lol,lol,lol,lol,lol,lol,lol]\n".to_owned();
    for (one, next) in ('a'..'i').zip('b'..='i') {
        laughs += &format!("{next}: &{next} [{}]\n", vec![format!("*{one}"); 9].join(","));
    }
    let deep = "[".repeat(100_000);
    let long = format!("a: &a {}\nb: [{}]\n", "x".repeat(1 << 20), vec!["*a"; 900].join(","));
    let many = "---\na: b\n".repeat(100_000);
    let merged = format!(
        "a: &a {{{}}}\nb:\n{}",
        (0..500).map(|i| format!("k{i}: v,")).collect::<String>(),
        "  - {<<: *a}\n".repeat(5_000)
    );
    for (name, manifest) in [("laughs", laughs), ("deep", deep), ("long", long), ("many", many), ("merged", merged)] {
        let started = std::time::Instant::now();
        let status = parse_error(manifest.as_bytes());
        assert_eq!(status.reason, Reason::BadRequest, "{name}");
        let words = ["unfolds to too much", "recursion limit exceeded", "more than 1024 documents"];
        assert!(words.iter().any(|words| status.message.contains(words)), "{}", status.message);
        assert!(started.elapsed().as_secs() < 10, "{name} took {:?}", started.elapsed());
    }
}

#[test]
fn yaml_is_read_as_people_mean_it() {
    let prepared = create(
        "
apiVersion: v1
kind: Pod
metadata: {name: n, labels: {answer: 'no', off: off}}
spec:
  containers: [{name: y, image: nginx, env: [{name: A, value: yes}]}]
  volumes: [{name: s, secret: {secretName: s, defaultMode: 0400}}]
",
    )
    .unwrap();
    assert_eq!(prepared.object["spec"]["volumes"][0]["secret"]["defaultMode"], 256);
    assert_eq!(prepared.object["spec"]["containers"][0]["env"][0]["value"], "yes");
}

#[test]
fn a_list_is_its_items() {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "b"}},
    ]});
    let parsed = admit::parse(list.to_string().as_bytes(), &Registry::builtin()).unwrap();
    let kinds: Vec<&str> = parsed.iter().map(|p| p.kind.kind.as_str()).collect();
    assert_eq!(kinds, ["ConfigMap", "Secret"]);
}

#[test]
fn unknown_fields_are_refused_or_dropped_as_asked() {
    let manifest = NGINX.replace("image: nginx", "image: nginx\n        imagee: x");
    assert_eq!(
        refusal(&manifest),
        "Deployment in version \"v1\" cannot be handled as a Deployment: strict decoding error: unknown field \
         \"spec.template.spec.containers[0].imagee\""
    );
    let (kind, object) = object(&manifest);
    let mut rng = common::rng();
    let request = admit::Create { unknown_fields: admit::UnknownFields::Warn, ..common::request(&mut rng) };
    let prepared = admit::prepare_create(&kind, object, request).unwrap();
    assert_eq!(prepared.warnings, ["unknown field \"spec.template.spec.containers[0].imagee\""]);
}

#[test]
fn an_object_admitted_again_is_the_same() {
    let once = create(NGINX).unwrap().object;
    let (kind, _) = object(NGINX);
    let again = admit::prepare_update(&kind, &once, once.clone(), Default::default(), Default::default()).unwrap();
    assert_eq!(again.object, once);
    assert!(!again.changed);
}

proptest::proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
        let _ = admit::parse(&bytes, &Registry::builtin());
    }

    #[test]
    fn no_yaml_panics(text in "([a-z]{1,3}: |- |\\[|\\]|\\{|\\}|&a |\\*a |\"|'|\n  ?|---\n|[0-9]{1,3}|,|# |\\| ?\n){0,40}") {
        let _ = admit::parse(text.as_bytes(), &Registry::builtin());
    }
}
