//! A Job from its file to the object that is stored, and back.

mod common;

use common::{request, rng};
use flotilla_api::job::{self, Container, EnvVar, Job, Phase, Port, UpdatePolicy};
use flotilla_api::k8s_openapi::api::core::v1::Pod;
use flotilla_api::{Reason, Registry, Status};
use serde_json::{Value, json};

const WEB: &str = include_str!("../../docs/examples/web.yaml");
const BATCH: &str = include_str!("../../docs/examples/batch.yaml");

fn one(file: &str) -> Job {
    let mut jobs = job::from_yaml(file.as_bytes()).unwrap();
    assert_eq!(jobs.len(), 1);
    jobs.remove(0)
}

fn prepare(job: &Job) -> Result<Value, Status> {
    job::prepare(job, &Registry::builtin(), request(&mut rng())).map(|prepared| prepared.object)
}

#[test]
fn the_service_of_the_examples_becomes_a_deployment() {
    let object = prepare(&one(WEB)).unwrap();
    assert_eq!((&object["apiVersion"], &object["kind"]), (&json!("apps/v1"), &json!("Deployment")));
    assert_eq!(object["metadata"]["annotations"], json!({"flotilla.dev/job": "service"}));
    assert_eq!(object["spec"]["selector"], json!({"matchLabels": {"flotilla.dev/job": "web"}}));
    let container = &object["spec"]["template"]["spec"]["containers"][0];
    assert_eq!((&container["name"], &container["image"]), (&json!("web"), &json!("flotilla.dev/hello:latest")));
    assert!(job::pods_of("web").unwrap().matches_value(&object["spec"]["template"]));
}

#[test]
fn the_batch_job_of_the_examples_becomes_a_job() {
    let object = prepare(&one(BATCH)).unwrap();
    assert_eq!((&object["apiVersion"], &object["kind"]), (&json!("batch/v1"), &json!("Job")));
    assert_eq!(object["spec"]["template"]["spec"]["restartPolicy"], "OnFailure");
    assert!(object["spec"]["completions"].as_i64() > Some(1));
}

#[test]
fn a_job_is_shown_as_it_was_submitted() {
    let service = Job {
        name: "web".into(),
        namespace: "prod".into(),
        type_: "service".into(),
        count: Some(3),
        containers: vec![Container {
            name: "main".into(),
            image: "nginx:1".into(),
            command: vec!["nginx".into()],
            args: vec!["-g".into()],
            env: vec![EnvVar { name: "A".into(), value: "b".into() }],
            ports: vec![Port { port: 80, name: "http".into(), protocol: "TCP".into(), host_port: 8080 }],
            cpu: "500m".into(),
            memory: "64Mi".into(),
        }],
        restart_policy: "Always".into(),
        update: Some(UpdatePolicy {
            max_surge: "1".into(),
            max_unavailable: "10%".into(),
            recreate: false,
            deadline_seconds: Some(60),
        }),
        labels: [("team".to_owned(), "a".to_owned())].into(),
        node_selector: [("disk".to_owned(), "ssd".to_owned())].into(),
        ..Job::default()
    };
    assert_eq!(job::raise(&prepare(&service).unwrap()), Some(service.clone()));
    let file = job::to_yaml(&service).unwrap();
    assert_eq!(one(&file), service);
    let batch = Job {
        type_: "batch".into(),
        parallelism: Some(2),
        restart_policy: "Never".into(),
        retries: Some(4),
        update: None,
        ..service
    };
    assert_eq!(job::raise(&prepare(&batch).unwrap()), Some(batch));
    assert_eq!(job::raise(&common::create(common::NGINX).unwrap().object), None);
}

#[test]
fn short_cuts_are_written_out() {
    let job = one("name: a\nimage: x\nenv: {B: 1, A: 'yes', C: yes, D: true}\nports: [80, {port: 81, hostPort: 82}]\n\
                   cpu: 0.5\nupdate: {maxSurge: 1}\n");
    let container = &job.containers[0];
    let env: Vec<String> = container.env.iter().map(|v| format!("{}={}", v.name, v.value)).collect();
    assert_eq!(env, ["A=yes", "B=1", "C=yes", "D=true"]);
    assert_eq!(container.ports[0], Port { port: 80, ..Port::default() });
    assert_eq!(container.ports[1], Port { port: 81, host_port: 82, ..Port::default() });
    assert_eq!(container.cpu, "500m");
    assert_eq!(job.update.unwrap().max_surge, "1");
}

#[test]
fn a_file_that_is_no_job_is_refused_in_words() {
    let table = [
        ("", "the file holds no job"),
        ("- a", "expected a job with a name and an image, found a value of type array"),
        ("apiVersion: v1\nkind: Pod", "this is a Kubernetes object, not a job: use `flotilla apply -f FILE`"),
        ("name: a\nimage: x\nreplicas: 3", "job \"a\" is invalid: replicas: unknown field"),
        ("name: a\ncontainers: [{imagee: x}]", "job \"a\" is invalid: containers[0].imagee: unknown field"),
        (
            "name: a\nimage: x\ncount: three",
            "job \"a\" is invalid: count: Invalid value: \"string\": must be of type integer",
        ),
        (
            "name: a\nimage: x\nports: [-1]",
            "job \"a\" is invalid: containers[0].ports[0].port: Invalid value: -1: must be between 1 and 65535, inclusive",
        ),
        (
            "name: a\nimage: x\ncontainers: []",
            "job \"a\": image: may not stand beside `containers`; move it into one of them",
        ),
    ];
    for (file, expected) in table {
        let status = job::from_yaml(file.as_bytes()).unwrap_err();
        assert_eq!((status.reason, status.message.as_str()), (Reason::BadRequest, expected));
    }
}

#[test]
fn a_wrong_job_is_refused_by_its_own_fields() {
    let table = [
        ("name: a", "containers: Required value"),
        ("name: a\ncontainers: [{name: c}]", "containers[0].image: Required value"),
        (
            "image: x\nname: A",
            "name: Invalid value: \"A\": a lowercase RFC 1123 label must consist of lower case \
          alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or \
          '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
        ),
        (
            "name: a\nimage: x\ntype: cron",
            "type: Unsupported value: \"cron\": supported values: \"service\", \"batch\" (cron jobs are not available yet)",
        ),
        (
            "name: a\nimage: x\ntype: daemon",
            "type: Unsupported value: \"daemon\": supported values: \"service\", \"batch\"",
        ),
        ("name: a\nimage: x\ncount: -2", "count: Invalid value: -2: must be greater than or equal to 0"),
        ("name: a\nimage: x\nparallelism: 2", "parallelism: Forbidden: only batch jobs have tasks; set `count`"),
        ("name: a\nimage: x\ntype: batch\nupdate: {}", "update: Forbidden: only services are updated"),
        (
            "name: a\nimage: x\nrestartPolicy: Never",
            "restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
        ),
        (
            "name: a\nimage: x\nports: [99999]",
            "containers[0].ports[0].port: Invalid value: 99999: must be between 1 and \
          65535, inclusive",
        ),
        (
            "name: a\nimage: x\nmemory: -1Mi",
            "containers[0].memory: Invalid value: \"-1Mi\": must be greater than or equal to 0",
        ),
        (
            "name: a\nimage: x\nnodeSelector: {'a b': c}",
            "nodeSelector: Invalid value: \"a b\": name part must consist of \
          alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or \
          'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
        ),
        (
            "name: a\nimage: x\nupdate: {maxSurge: 0, maxUnavailable: 0}",
            "update.maxUnavailable: Invalid value: 0: may not be 0 \
          when `maxSurge` is 0",
        ),
        (
            "name: a\nimage: x\nupdate: {recreate: true, maxSurge: 1}",
            "update.maxSurge: Forbidden: may not be specified when \
          `recreate` is true",
        ),
    ];
    for (file, expected) in table {
        let job = one(file);
        let message = prepare(&job).expect_err(file).message;
        assert_eq!(message, format!("job \"{}\" is invalid: {expected}", job.name), "{file}");
    }
}

#[test]
fn a_job_submitted_again_changes_its_object_and_keeps_what_others_noted() {
    let registry = Registry::builtin();
    let mut old = prepare(&one(WEB)).unwrap();
    old["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = json!("1");
    assert!(!job::resubmit(&one(WEB), &registry, &old).unwrap().changed);
    let updated = job::resubmit(&Job { count: Some(5), ..one(WEB) }, &registry, &old).unwrap();
    assert_eq!(updated.object["spec"]["replicas"], 5);
    assert_eq!(updated.object["metadata"]["annotations"], old["metadata"]["annotations"]);
    assert_eq!(updated.object["metadata"]["generation"], 2);
    let foreign = common::create(common::NGINX).unwrap().object;
    let refused = job::resubmit(&one(WEB), &registry, &foreign).unwrap_err();
    assert_eq!(refused.reason, Reason::AlreadyExists);
}

#[test]
fn a_batch_job_submitted_again_may_not_run_something_else() {
    let registry = Registry::builtin();
    let old = prepare(&one(BATCH)).unwrap();
    assert!(!job::resubmit(&one(BATCH), &registry, &old).unwrap().changed);
    let mut other = one(BATCH);
    other.containers[0].image = "other".into();
    let refused = job::resubmit(&other, &registry, &old).unwrap_err();
    let expected =
        "job \"sleepers\" is invalid: containers: Forbidden: what a batch job runs cannot be changed; stop it first";
    assert_eq!(refused.message, expected);
}

fn phase(object: &mut Value, status: Value, pods: &[Pod]) -> (Phase, String) {
    object["status"] = status;
    let summary = job::summarize(object, pods, common::NOW.parse().unwrap()).unwrap();
    (summary.phase, summary.message)
}

#[test]
fn a_services_phase_says_how_it_does() {
    let mut web = prepare(&Job { count: Some(3), ..one(WEB) }).unwrap();
    let seen = |more: Value| {
        let mut status = json!({"observedGeneration": 1});
        status.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        status
    };
    let progressing = |reason: &str| json!([{"type": "Progressing", "status": "True", "reason": reason}]);
    assert_eq!(phase(&mut web, json!({}), &[]), (Phase::Pending, "0 of 3 replicas are available".into()));
    let all = json!({"replicas": 3, "updatedReplicas": 3, "availableReplicas": 3, "readyReplicas": 3});
    assert_eq!(phase(&mut web, seen(all), &[]), (Phase::Running, String::new()));
    let some = json!({"replicas": 4, "updatedReplicas": 1, "availableReplicas": 3});
    assert_eq!(phase(&mut web, seen(some), &[]), (Phase::Updating, "1 of 3 replicas are updated".into()));
    let less = json!({"replicas": 3, "updatedReplicas": 3, "availableReplicas": 2,
                      "conditions": progressing("NewReplicaSetAvailable")});
    assert_eq!(phase(&mut web, seen(less), &[]), (Phase::Degraded, "2 of 3 replicas are available".into()));
    let stuck = json!({"conditions": progressing("ProgressDeadlineExceeded")});
    assert_eq!(phase(&mut web, seen(stuck), &[]).0, Phase::Degraded);
}

#[test]
fn a_pod_in_trouble_is_told_of() {
    let mut web = prepare(&one(WEB)).unwrap();
    let pod: Pod = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web-1"},
        "spec": {"containers": [{"name": "web"}]},
        "status": {"phase": "Pending", "containerStatuses": [{
            "name": "web", "image": "x", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}},
        }]},
    }))
    .unwrap();
    let (phase, message) = phase(&mut web, json!({}), &[pod]);
    assert_eq!(phase, Phase::Pending);
    assert!(message.ends_with("; web-1 is ErrImagePull: no such image"), "{message}");
}

#[test]
fn a_batch_jobs_phase_counts_its_tasks() {
    let mut batch = prepare(&Job { count: Some(10), ..one(BATCH) }).unwrap();
    let condition = |type_: &str, message: &str| json!({"succeeded": 3, "conditions": [{"type": type_, "status": "True", "message": message}]});
    assert_eq!(phase(&mut batch, json!({}), &[]), (Phase::Pending, "0 of 10 tasks have succeeded".into()));
    let some = json!({"succeeded": 3, "ready": 2});
    assert_eq!(phase(&mut batch, some, &[]), (Phase::Running, "3 of 10 tasks have succeeded".into()));
    assert_eq!(phase(&mut batch, condition("Complete", ""), &[]).0, Phase::Complete);
    let failed = phase(&mut batch, condition("Failed", "Job has reached the specified backoff limit"), &[]);
    assert_eq!(failed, (Phase::Failed, "Job has reached the specified backoff limit".into()));
}
