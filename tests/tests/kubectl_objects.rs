//! What else a person has kubectl do: make objects without manifests, keep sets of them, watch and wait, look at events,
//! and reach the API by other ways.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use flotilla_tests::cli::{self, Said};
use flotilla_tests::{Cluster, Kubectl};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_made_kept_watched_and_reached() {
    let cluster = Cluster::start(3).await;
    let kubectl = Kubectl::new(&cluster, "node-2");
    generate(&kubectl);
    instantiate(&kubectl);
    keep_sets(&kubectl);
    build(&kubectl);
    watch_and_wait(&kubectl);
    look_at_events(&kubectl);
    look_at_the_cluster(&kubectl);
    reach_through_a_proxy(&kubectl);
    sign(&kubectl);
    edit(&kubectl);
}

fn json_of(kubectl: &Kubectl, what: &[&str]) -> Value {
    let said = kubectl.ok(&[&["get", "-o", "json"], what].concat());
    serde_json::from_str(&said).expect("kubectl gives JSON")
}

fn generate(kubectl: &Kubectl) {
    let pem = |name: &str| kubectl.dir().join(name).display().to_string();
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=a"])
        .args(["-keyout", &pem("key.pem"), "-out", &pem("certificate.pem")])
        .output();
    assert!(made.is_ok_and(|made| made.status.success()), "openssl makes a certificate");
    let (key, certificate) = (format!("--key={}", pem("key.pem")), format!("--cert={}", pem("certificate.pem")));
    let cases: &[(&[&str], &str)] = &[
        (&["quota", "q", "--hard=pods=100,cpu=10"], "resourcequota/q"),
        (&["poddisruptionbudget", "p", "--selector=app=none", "--min-available=50%"], "poddisruptionbudget.policy/p"),
        (&["priorityclass", "high", "--value=1000", "--description=d"], "priorityclass.scheduling.k8s.io/high"),
        (&["ingress", "i", "--class=c", "--rule=host.example/path=s:80"], "ingress.networking.k8s.io/i"),
        (&["role", "r", "--verb=get,list", "--resource=pods"], "role.rbac.authorization.k8s.io/r"),
        (&["rolebinding", "b", "--role=r", "--user=jane"], "rolebinding.rbac.authorization.k8s.io/b"),
        (&["clusterrole", "r", "--verb=get", "--resource=nodes"], "clusterrole.rbac.authorization.k8s.io/r"),
        (
            &["clusterrolebinding", "b", "--clusterrole=r", "--group=g"],
            "clusterrolebinding.rbac.authorization.k8s.io/b",
        ),
        (&["serviceaccount", "s"], "serviceaccount/s"),
        (&["service", "clusterip", "c", "--tcp=80:8080"], "service/c"),
        (&["service", "nodeport", "n", "--tcp=80"], "service/n"),
        (&["service", "externalname", "e", "--external-name=e.example"], "service/e"),
        (&["deployment", "d", "--image=flotilla.dev/hello:latest", "--replicas=0"], "deployment.apps/d"),
        (&["secret", "generic", "g", "--from-literal=a=b"], "secret/g"),
        (&["secret", "tls", "t", &key, &certificate], "secret/t"),
        (
            &["secret", "docker-registry", "k", "--docker-server=r", "--docker-username=u", "--docker-password=p"],
            "secret/k",
        ),
    ];
    for (arguments, name) in cases {
        let arguments = [&["create"], *arguments].concat();
        assert_eq!(kubectl.ok(&arguments), format!("{name} created\n"));
        // What was made can be applied, compared and seen.
        let described = kubectl.ok(&["describe", name]);
        assert!(described.starts_with("Name:"), "{described}");
    }
    assert!(kubectl.ok(&["describe", "secret", "t"]).contains("Type:  kubernetes.io/tls"));
    assert!(kubectl.ok(&["describe", "quota", "q"]).contains("100"));
    assert_eq!(kubectl.ok(&["auth", "can-i", "list", "pods", "--as=jane"]), "yes\n");
    assert_eq!(kubectl.run(&["auth", "can-i", "delete", "pods", "--as=jane"]).out, "no\n");
    assert!(kubectl.ok(&["create", "token", "s"]).starts_with("eyJ"));
    assert_eq!(
        kubectl.ok(&["autoscale", "deployment", "d", "--min=1", "--max=4", "--cpu-percent=70"]),
        "horizontalpodautoscaler.autoscaling/d autoscaled\n"
    );
    assert!(kubectl.ok(&["get", "hpa", "d"]).contains("cpu: <unknown>/70%"));
    let taken = kubectl.fails(&["label", "deployment", "d", "app=other"]);
    assert_eq!(taken, "error: 'app' already has a value (d), and --overwrite is false\n");
    assert_eq!(kubectl.ok(&["label", "deployment", "d", "app=other", "--overwrite"]), "deployment.apps/d labeled\n");
    kubectl.ok(&["delete", "hpa", "d"]);
    for (_, name) in cases {
        kubectl.ok(&["delete", name]);
    }
}

/// A job of a CronJob, now.
fn instantiate(kubectl: &Kubectl) {
    let image = "--image=flotilla.dev/hello:latest";
    kubectl.ok(&["create", "cronjob", "yearly", image, "--schedule=0 0 1 1 *", "--", "/hello", "echo", "from", "cron"]);
    assert_eq!(kubectl.ok(&["create", "job", "now", "--from=cronjob/yearly"]), "job.batch/now created\n");
    let owner = kubectl.ok(&["get", "job", "now", "-o", "jsonpath={.metadata.ownerReferences[0].kind}"]);
    assert_eq!(owner, "CronJob");
    kubectl.ok(&["delete", "cronjob", "yearly"]);
}

const SET: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: first, labels: {set: s}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: second, labels: {set: s}}
";

fn keep_sets(kubectl: &Kubectl) {
    let fewer = SET.split_once("---").expect("two manifests").0;
    let listed = ["apply", "--prune", "-l", "set=s", "--prune-allowlist=core/v1/ConfigMap", "-f", "-"];
    let said = kubectl.ok_with(&listed, SET);
    assert_eq!(said, "configmap/first created\nconfigmap/second created\n");
    assert_eq!(kubectl.ok_with(&listed, fewer), "configmap/first unchanged\nconfigmap/second pruned\n");
    kubectl.ok(&["create", "namespace", "sets"]);
    let applyset = |set: &str, manifest: &str| -> Said {
        let mut command = kubectl.command(&["apply", "--prune", "-n", "sets", "--applyset", set, "-f", "-"]);
        command.env("KUBECTL_APPLYSET", "true").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("kubectl starts");
        child.stdin.take().expect("a pipe").write_all(manifest.as_bytes()).expect("kubectl reads");
        cli::said(child.wait_with_output().expect("kubectl ends"))
    };
    let said = applyset("mine", SET);
    assert_eq!((said.out.as_str(), said.err.as_str()), ("configmap/first created\nconfigmap/second created\n", ""));
    let said = applyset("mine", fewer);
    assert_eq!((said.out.as_str(), said.err.as_str()), ("configmap/first unchanged\nconfigmap/second pruned\n", ""));
    let parent = json_of(kubectl, &["secret", "mine", "-n", "sets"]);
    let annotations = &parent["metadata"]["annotations"];
    assert_eq!(annotations["applyset.kubernetes.io/contains-group-kinds"], "ConfigMap", "{parent}");
    let part_of = "jsonpath={.metadata.labels.applyset\\.kubernetes\\.io/part-of}";
    let member = kubectl.ok(&["get", "cm", "first", "-n", "sets", "-o", part_of]);
    assert_eq!(parent["metadata"]["labels"]["applyset.kubernetes.io/id"], json!(member));
    kubectl.ok(&["delete", "namespace", "sets"]);
    let refused = kubectl.fails(&["delete", "namespace", "default"]);
    let words =
        "Error from server (Forbidden): namespaces \"default\" is forbidden: this namespace may not be deleted\n";
    assert_eq!(refused, words);
    kubectl.ok(&["delete", "cm", "first"]);
}

fn build(kubectl: &Kubectl) {
    let dir = kubectl.dir().join("site");
    std::fs::create_dir_all(&dir).expect("a directory can be made");
    let overlay = "
namePrefix: pre-
labels: [{pairs: {part: site}}]
resources: [settings.yaml]
configMapGenerator: [{name: made, literals: [a=b]}]
patches: [{target: {kind: ConfigMap, name: settings}, patch: '[{\"op\": \"add\", \"path\": \"/data\", \"value\": {\"x\": \"y\"}}]'}]
";
    let settings = "{apiVersion: v1, kind: ConfigMap, metadata: {name: settings}}";
    std::fs::write(dir.join("kustomization.yaml"), overlay).expect("a file can be written");
    std::fs::write(dir.join("settings.yaml"), settings).expect("a file can be written");
    let built = kubectl.ok(&["kustomize", "site"]);
    assert_eq!(kubectl.ok_with(&["apply", "--dry-run=server", "-f", "-"], &built).lines().count(), 2);
    let said = kubectl.ok(&["apply", "-k", "site"]);
    assert!(said.contains("configmap/pre-settings created\n"), "{said}");
    assert_eq!(
        kubectl.ok(&["get", "cm", "pre-settings", "-o", "jsonpath={.data.x} {.metadata.labels.part}"]),
        "y site"
    );
    assert_eq!(kubectl.ok(&["diff", "-k", "site"]), "");
    assert_eq!(kubectl.ok(&["delete", "-k", "site"]).lines().count(), 2);
}

fn spawn(kubectl: &Kubectl, arguments: &[&str]) -> (Child, impl Iterator<Item = String>) {
    let mut command = kubectl.command(arguments);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("kubectl starts");
    let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines().map_while(Result::ok);
    (child, lines)
}

fn end(mut child: Child) {
    child.kill().expect("it can be killed");
    child.wait().expect("it ends");
}

fn watch_and_wait(kubectl: &Kubectl) {
    kubectl.ok(&["create", "cm", "before", "--from-literal=n=2"]);
    let watch = ["get", "cm", "--watch", "--field-selector=metadata.name!=kube-root-ca.crt", "--output-watch-events"];
    let (child, lines) = spawn(kubectl, &watch);
    let words = |line: String| line.split_whitespace().take(3).collect::<Vec<_>>().join(" ");
    let mut lines = lines.map(words);
    let mut next = || lines.next().expect("a line");
    assert_eq!((next(), next()), ("EVENT NAME DATA".to_owned(), "ADDED before 1".to_owned()));
    kubectl.ok(&["create", "cm", "after", "--from-literal=n=1"]);
    assert_eq!(next(), "ADDED after 1");
    kubectl.ok(&["patch", "cm", "after", "--type=merge", "-p", "{\"data\":{\"m\":\"3\"}}"]);
    assert_eq!(next(), "MODIFIED after 2");
    let (waiting, _lines) = spawn(kubectl, &["wait", "--for=delete", "cm/before", "--timeout=60s"]);
    kubectl.ok(&["delete", "cm", "before"]);
    assert_eq!(next(), "DELETED before 1");
    assert!(cli::said(waiting.wait_with_output().expect("kubectl ends")).code == Some(0));
    end(child);
    kubectl.ok(&["create", "cm", "also", "--from-literal=n=0"]);
    let sorted = ["get", "cm", "-o", "custom-columns=NAME:.metadata.name,N:.data.n", "--sort-by=.data.n"];
    let sorted = kubectl.ok(&[&sorted[..], &["--field-selector=metadata.name!=kube-root-ca.crt"]].concat());
    assert_eq!(sorted.split_whitespace().collect::<Vec<_>>(), ["NAME", "N", "also", "0", "after", "1"]);
    let (waiting, mut waited) = spawn(kubectl, &["wait", "--for=jsonpath={.data.n}=5", "cm/also", "--timeout=60s"]);
    kubectl.ok(&["patch", "cm", "also", "--type=merge", "-p", "{\"data\":{\"n\":\"5\"}}"]);
    assert_eq!(waited.next().as_deref(), Some("configmap/also condition met"));
    assert!(cli::said(waiting.wait_with_output().expect("kubectl ends")).code == Some(0));
    let late = kubectl.fails(&["wait", "--for=jsonpath={.data.n}=6", "cm/also", "--timeout=1s"]);
    assert_eq!(late, "error: timed out waiting for the condition on configmaps/also\n");
    kubectl.ok(&["delete", "cm", "also", "after"]);
}

fn look_at_events(kubectl: &Kubectl) {
    kubectl.ok(&["create", "deployment", "d", "--image=flotilla.dev/hello:latest"]);
    kubectl.ok(&["rollout", "status", "deployment/d", "--timeout=60s"]);
    let of_it = kubectl.ok(&["events", "--for=deployment/d"]);
    assert!(of_it.starts_with("LAST SEEN") && of_it.contains("ScalingReplicaSet"), "{of_it}");
    assert!(of_it.lines().skip(1).all(|line| line.contains("Deployment/d")), "{of_it}");
    let normal = kubectl.ok(&["events", "--types=Normal", "-A"]);
    assert!(normal.contains("Pod/d-") && !normal.contains("Warning"), "{normal}");
    let field = "--field-selector=involvedObject.kind=Pod,reason=Scheduled";
    let scheduled = kubectl.ok(&["get", "events", field, "--sort-by=.lastTimestamp"]);
    assert!(scheduled.contains("Successfully assigned default/d-"), "{scheduled}");
    kubectl.ok(&["delete", "deployment", "d", "--cascade=foreground"]);
}

fn look_at_the_cluster(kubectl: &Kubectl) {
    let info = kubectl.ok(&["cluster-info"]);
    assert!(info.contains("Kubernetes control plane") && info.contains("is running at"), "{info}");
    let said = kubectl.ok(&["cluster-info", "dump", "--all-namespaces", "--output-directory=dump"]);
    assert_eq!(said, "Cluster info dumped to dump\n");
    let nodes = std::fs::read(kubectl.dir().join("dump/nodes.json")).expect("nodes were dumped");
    let nodes: Value = serde_json::from_slice(&nodes).expect("as JSON");
    assert_eq!(nodes["items"].as_array().map(Vec::len), Some(3));
    for what in ["pods", "nodes"] {
        assert_eq!(kubectl.fails(&["top", what]), "error: Metrics API not available\n");
    }
}

fn reach_through_a_proxy(kubectl: &Kubectl) {
    let (child, mut lines) = spawn(kubectl, &["proxy", "--port=0"]);
    // Starting to serve on 127.0.0.1:40123
    let at = lines.next().expect("kubectl says where").rsplit(' ').next().expect("an address").to_owned();
    let get = |path: &str| {
        let mut stream = TcpStream::connect(&at).expect("kubectl listens");
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {at}\r\n\r\n").expect("kubectl reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("kubectl answers");
        answer
    };
    let answer = get("/api/v1/namespaces/default/configmaps?limit=1");
    assert!(answer.contains(" 200 OK\r\n") && answer.contains("\"kind\":\"ConfigMapList\""), "{answer}");
    assert!(get("/api/v1/namespaces/default/pods/none").contains("404 Not Found"));
    assert!(get("/readyz").ends_with("ok"));
    end(child);
}

fn sign(kubectl: &Kubectl) {
    let request = Command::new("openssl")
        .args(["req", "-new", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=jane/O=dev", "-keyout", "/dev/null"])
        .output();
    let request = request.expect("openssl is there").stdout;
    for name in ["good", "bad"] {
        let request = json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
            "metadata": {"name": name}, "spec": {"signerName": "kubernetes.io/kube-apiserver-client",
                "usages": ["client auth"], "request": base64(&request)}});
        kubectl.ok_with(&["create", "-f", "-"], &request.to_string());
    }
    assert!(kubectl.ok(&["get", "csr", "good"]).contains("Pending"));
    let approved = kubectl.ok(&["certificate", "approve", "good"]);
    assert_eq!(approved, "certificatesigningrequest.certificates.k8s.io/good approved\n");
    kubectl.ok(&["wait", "--for=jsonpath={.status.certificate}", "csr/good", "--timeout=60s"]);
    assert!(kubectl.ok(&["get", "csr", "good"]).contains("Approved,Issued"));
    assert!(kubectl.ok(&["describe", "csr", "good"]).contains("Common Name:    jane"));
    kubectl.ok(&["certificate", "deny", "bad"]);
    assert!(kubectl.ok(&["get", "csr", "bad"]).contains("Denied"));
    let late = kubectl.fails(&["certificate", "deny", "good"]);
    assert_eq!(late, "error: certificate signing request \"good\" is already Approved\n");
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// An editor's change that cannot be is shown again with the reason; one that changes nothing is none.
fn edit(kubectl: &Kubectl) {
    kubectl.ok(&["create", "deployment", "d", "--image=flotilla.dev/hello:latest", "--replicas=0"]);
    let edit = |script: &str| {
        let mut command = kubectl.command(&["edit", "deployment", "d"]);
        command.env("KUBE_EDITOR", script).stdin(Stdio::null());
        cli::said(command.output().expect("kubectl starts"))
    };
    let same = edit("true");
    assert_eq!((same.code, same.err.as_str()), (Some(0), "Edit cancelled, no changes made.\n"));
    let bad = edit("sed -i 's/^  replicas: 0/  replicas: -1/'");
    assert!(bad.err.contains("deployments.apps \"d\" is invalid"), "{bad:?}");
    assert!(bad.err.contains("Edit cancelled, no valid changes were saved"), "{bad:?}");
    let good = edit("sed -i 's/^  replicas: 0/  replicas: 1/'");
    assert_eq!(good.out, "deployment.apps/d edited\n", "{good:?}");
    kubectl.ok(&["rollout", "status", "deployment/d", "--timeout=60s"]);
}
