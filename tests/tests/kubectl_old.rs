//! What a person does with the kubectl of Debian 12, which is of 2021, and with a manifest of its time.
//!
//! It checks manifests itself, by what the API says of its types, and speaks SPDY only.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use flotilla_tests::{Kubectl, Scene, image};
use serde_json::json;

/// Where `scripts/setup.sh` puts it, beside whatever kubectl the machine has.
const OLD: &str = "/opt/flotilla-tests/kubectl-1.20/usr/bin/kubectl";

const NGINX: &str = "
apiVersion: extensions/v1beta1
kind: Deployment
metadata:
  name: nginx-deployment
spec:
  replicas: 2
  template:
    metadata:
      labels:
        app: nginx
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: nginx
        image: IMAGE
        ports:
        - containerPort: 80
";

const INGRESS: &str = "
apiVersion: extensions/v1beta1
kind: Ingress
metadata: {name: site}
spec:
  backend: {serviceName: other, servicePort: http}
  rules:
  - host: site.example
    http: {paths: [{path: /x, backend: {serviceName: site, servicePort: 80}}]}
";

#[tokio::test(flavor = "multi_thread")]
async fn the_kubectl_of_old_does_what_it_did() {
    if !Path::new(OLD).exists() {
        println!("there is no {OLD}: nothing is shown");
        return;
    }
    let scene = Scene::set(3).await;
    let (nginx, busybox) = (image::nginx(scene.registry.workshop()), image::busybox(scene.registry.workshop()));
    let (nginx, busybox) = (scene.registry.push(&nginx), scene.registry.push(&busybox));
    let kubectl = Kubectl::new(&scene.cluster, "node-2").with_program(PathBuf::from(OLD));
    look_around(&kubectl);
    deploy(&kubectl, &NGINX.replace("IMAGE", &nginx));
    reach_into_pods(&kubectl, &busybox);
    other_manifests(&kubectl, &busybox);
    assert_eq!(
        kubectl.ok(&["delete", "deployment", "nginx-deployment"]),
        "deployment.apps \"nginx-deployment\" deleted\n"
    );
}

/// What a command says that names an old version. It may be warned of that, and of nothing else.
fn warned(kubectl: &Kubectl, arguments: &[&str], input: &str) -> String {
    let said = kubectl.pipe(arguments, input);
    let deprecated =
        |line: &str| line.starts_with("Warning: extensions/v1beta1 ") && line.contains(" is deprecated in ");
    assert!(said.code == Some(0) && said.err.lines().all(deprecated), "kubectl {arguments:?}: {said:?}");
    said.out
}

fn look_around(kubectl: &Kubectl) {
    let version = kubectl.ok(&["version", "--short"]);
    assert!(version.contains("Client Version: v1.20") && version.contains("+flotilla."), "{version}");
    assert_eq!(kubectl.ok(&["get", "nodes"]).lines().filter(|line| line.contains(" Ready ")).count(), 3);
    assert!(kubectl.ok(&["api-versions"]).lines().any(|line| line == "extensions/v1beta1"));
    let old = kubectl.ok(&["api-resources", "--api-group=extensions", "-o", "name"]);
    assert!(old.lines().any(|line| line == "deployments.extensions"), "{old}");
    let explained = kubectl.ok(&["explain", "deployment.spec.replicas"]);
    assert!(explained.contains("replicas <integer>") && explained.contains("Number of desired pods"), "{explained}");
    let explained = kubectl.ok(&["explain", "deployment.spec", "--api-version=extensions/v1beta1"]);
    assert!(explained.contains("rollbackTo") && explained.contains("Number of desired pods"), "{explained}");
}

fn deploy(kubectl: &Kubectl, nginx: &str) {
    let settled = || {
        let said = kubectl.ok(&["rollout", "status", "deployment/nginx-deployment", "--timeout=60s"]);
        assert!(said.ends_with("successfully rolled out\n"), "{said}");
    };
    let file = kubectl.file("nginx.yaml", nginx);
    assert_eq!(
        warned(kubectl, &["create", "--save-config", "-f", &file], ""),
        "deployment.extensions/nginx-deployment created\n"
    );
    settled();
    assert_eq!(warned(kubectl, &["apply", "-f", &file], ""), "deployment.extensions/nginx-deployment unchanged\n");
    let more = kubectl.file("nginx.yaml", &nginx.replace("replicas: 2", "replicas: 3"));
    assert_eq!(warned(kubectl, &["apply", "-f", &more], ""), "deployment.extensions/nginx-deployment configured\n");
    settled();
    let bad = kubectl.pipe(&["create", "-f", "-"], &nginx.replace("replicas: 2", "replicants: 2"));
    assert!(bad.err.contains("unknown field \"replicants\""), "{bad:?}");
    let described = kubectl.ok(&["describe", "deployment", "nginx-deployment"]);
    assert!(described.contains("3 desired") && described.contains("1 max unavailable"), "{described}");
    kubectl.ok(&["set", "env", "deployment/nginx-deployment", "A=b"]);
    settled();
    assert_eq!(
        kubectl.ok(&["rollout", "undo", "deployment/nginx-deployment"]),
        "deployment.apps/nginx-deployment rolled back\n"
    );
    settled();
    let history = kubectl.ok(&["rollout", "history", "deployment/nginx-deployment"]);
    assert!(history.lines().any(|line| line.starts_with("3 ")) && !history.contains("\n1 "), "{history}");
}

fn reach_into_pods(kubectl: &Kubectl, busybox: &str) {
    let shell = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "shell"}, "spec": {
        "terminationGracePeriodSeconds": 1, "containers": [{"name": "main", "image": busybox,
            "command": ["sh", "-c", "echo first; while :; do sleep 0.2; done"]}]}});
    kubectl.ok_with(&["create", "-f", "-"], &shell.to_string());
    kubectl.ok(&["wait", "--for=condition=Ready", "pod/shell", "--timeout=60s"]);
    assert_eq!(kubectl.ok(&["logs", "shell"]), "first\n");
    assert_eq!(kubectl.ok_with(&["exec", "-i", "shell", "--", "cat"], "through\n"), "through\n");
    let said = kubectl.run(&["exec", "shell", "--", "sh", "-c", "exit 3"]);
    assert_eq!(said.code, Some(3), "{said:?}");
    let file = kubectl.file("words", "some words\n");
    kubectl.ok(&["cp", &file, "shell:/tmp/words"]);
    assert_eq!(kubectl.ok(&["exec", "shell", "--", "cat", "/tmp/words"]), "some words\n");
    let mut command = kubectl.command(&["port-forward", "deployment/nginx-deployment", ":80"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("kubectl starts");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let line = lines.next().expect("kubectl says where").expect("text");
    // Forwarding from 127.0.0.1:40123 -> 80
    let at = line.split(' ').nth(2).unwrap_or_else(|| panic!("{line}")).to_owned();
    let mut stream = TcpStream::connect(&at).expect("kubectl listens");
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("kubectl reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the pod answers");
    assert!(answer.contains("200 OK") && answer.contains("nginx-deployment-"), "{answer}");
    child.kill().expect("it can be killed");
    child.wait().expect("it ends");
    kubectl.ok(&["delete", "pod", "shell"]);
}

fn other_manifests(kubectl: &Kubectl, busybox: &str) {
    assert_eq!(warned(kubectl, &["apply", "-f", "-"], INGRESS), "ingress.extensions/site created\n");
    let old = "jsonpath={.spec.backend.servicePort} {.spec.rules[0].http.paths[0].backend.serviceName}";
    assert_eq!(warned(kubectl, &["get", "ingresses.v1beta1.extensions", "site", "-o", old], ""), "http site");
    let sets = json!({"apiVersion": "extensions/v1beta1", "kind": "DaemonSet", "metadata": {"name": "all"}, "spec": {
        "templateGeneration": 3, "template": {"metadata": {"labels": {"app": "all"}},
            "spec": {"containers": [{"name": "main", "image": busybox}]}}}});
    assert_eq!(warned(kubectl, &["apply", "-f", "-"], &sets.to_string()), "daemonset.extensions/all created\n");
    kubectl.ok(&["delete", "daemonset/all", "ingress/site"]);
}
