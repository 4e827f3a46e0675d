//! What a person does with kubectl, on three nodes with real containers.

use std::time::Duration;

use flotilla_tests::{Cluster, Kubectl, eventually};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);

const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  labels: {app: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: flotilla.dev/hello:latest
        ports: [{containerPort: 8080}]
";

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_made_seen_changed_and_deleted() {
    let cluster = Cluster::start(3).await;
    let kubectl = Kubectl::new(&cluster, "node-1");
    let other = Kubectl::new(&cluster, "node-3");

    let version = kubectl.run(&["version"]);
    assert!(version.out.contains("+flotilla."), "{version:?}");
    assert!(kubectl.ok(&["api-versions"]).lines().any(|line| line == "apps/v1"));
    let resources = kubectl.ok(&["api-resources"]);
    assert!(resources.lines().any(|line| line.starts_with("deployments") && line.contains("deploy")), "{resources}");
    assert!(kubectl.ok(&["cluster-info"]).contains("is running at"));
    assert!(kubectl.ok(&["get", "--raw", "/readyz?verbose"]).contains("[+]leader ok"));

    let nodes = kubectl.ok(&["get", "nodes", "-o", "wide"]);
    assert_eq!(nodes.lines().filter(|line| line.contains(" Ready ")).count(), 3, "{nodes}");
    assert!(nodes.starts_with("NAME"), "{nodes}");

    let file = kubectl.file("web.yaml", WEB);
    assert_eq!(kubectl.ok(&["create", "-f", &file]), "deployment.apps/web created\n");
    let again = kubectl.fails(&["create", "-f", &file]);
    assert!(again.contains("(AlreadyExists)") && again.contains("deployments.apps \"web\" already exists"), "{again}");

    kubectl.ok(&["wait", "--for=condition=Available", "deployment/web", "--timeout=60s"]);
    kubectl.ok(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let pods = other.ok(&["get", "pods", "-l", "app=web", "-o", "name"]);
    assert_eq!(pods.lines().count(), 2, "{pods}");
    let phases = other.ok(&["get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].status.phase}"]);
    assert_eq!(phases, "Running Running");
    let wide = other.ok(&["get", "pods", "--sort-by=.metadata.name", "-o", "wide"]);
    assert!(wide.lines().next().is_some_and(|head| head.contains("NODE")), "{wide}");
    let columns = other.ok(&["get", "deploy", "-o", "custom-columns=N:.metadata.name,R:.spec.replicas"]);
    assert_eq!(columns.split_whitespace().collect::<Vec<_>>(), ["N", "R", "web", "2"]);
    let describe = other.ok(&["describe", "deployment", "web"]);
    assert!(describe.contains("ScalingReplicaSet") && describe.contains("2 desired"), "{describe}");

    kubectl.ok(&["scale", "deployment/web", "--replicas=3"]);
    kubectl.ok(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let replaced = WEB.replace("replicas: 2", "replicas: 1");
    assert_eq!(kubectl.ok_with(&["replace", "-f", "-"], &replaced), "deployment.apps/web replaced\n");
    let one = || async {
        let names = kubectl.ok(&["get", "pods", "-l", "app=web", "-o", "name"]);
        if names.lines().count() == 1 { Ok(()) } else { Err(names) }
    };
    eventually(LIMIT, "one replica is left", one).await;

    let missing = kubectl.fails(&["get", "deployment", "none"]);
    assert_eq!(missing, "Error from server (NotFound): deployments.apps \"none\" not found\n");
    let bad = kubectl.pipe(&["create", "-f", "-"], &WEB.replace("name: web\n", "name: Bad_Name\n"));
    assert!(bad.err.contains("is invalid") && bad.err.contains("metadata.name"), "{bad:?}");

    let list: Value = serde_json::from_str(&kubectl.ok(&["get", "pods", "-o", "json"])).unwrap();
    assert_eq!(list["kind"], "List");
    assert_eq!(kubectl.ok(&["delete", "deployment", "web"]), "deployment.apps \"web\" deleted\n");
    let none = || async {
        let left = kubectl.run(&["get", "pods", "-o", "name"]);
        if left.out.is_empty() { Ok(()) } else { Err(left.out) }
    };
    eventually(LIMIT, "its pods are gone", none).await;
    kubectl.ok(&["create", "namespace", "place"]);
    kubectl.ok(&["create", "configmap", "settings", "-n", "place", "--from-literal=a=b"]);
    assert_eq!(kubectl.ok(&["get", "cm", "settings", "-n", "place", "-o", "jsonpath={.data.a}"]), "b");
    kubectl.ok(&["delete", "namespace", "place"]);
    assert!(kubectl.fails(&["get", "ns", "place"]).contains("NotFound"));
}
