//! How a person changes objects with kubectl: patches of every type, apply on either side, edit, diff, prune.

use std::time::Duration;

use flotilla_tests::{Cluster, Kubectl, cli, eventually};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);

const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  labels: {app: web}
spec:
  replicas: 1
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

const SETTINGS: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, labels: {part: of-app}}
data: {a: '1', b: '2'}
";

fn json_of(kubectl: &Kubectl, what: &str) -> Value {
    serde_json::from_str(&kubectl.ok(&["get", what, "-o", "json", "--show-managed-fields"]))
        .expect("kubectl gives JSON")
}

/// The managers of an object, with how they came to be.
fn managers(object: &Value) -> Vec<(String, String)> {
    let text = |entry: &Value, field: &str| entry[field].as_str().unwrap_or_default().to_owned();
    let entries = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    entries.iter().map(|entry| (text(entry, "manager"), text(entry, "operation"))).collect()
}

fn has(object: &Value, manager: &str, operation: &str) -> bool {
    managers(object).contains(&(manager.to_owned(), operation.to_owned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_patched_applied_and_edited() {
    let cluster = Cluster::start(1).await;
    let kubectl = Kubectl::new(&cluster, "node-1");
    patches(&kubectl).await;
    applies_on_the_clients_side(&kubectl);
    applies_on_the_servers_side(&kubectl);
    changes_by_command(&kubectl).await;
}

async fn patches(kubectl: &Kubectl) {
    kubectl.ok_with(&["create", "-f", "-"], WEB);
    assert!(has(&json_of(kubectl, "deployment/web"), "kubectl-create", "Update"));
    let patch = |type_: &str, patch: Value| {
        kubectl.run(&["patch", "deployment", "web", &format!("--type={type_}"), "-p", &patch.to_string()])
    };
    let said = patch(
        "strategic",
        json!({"spec": {"template": {"spec": {"containers": [
            {"name": "main", "env": [{"name": "A", "value": "1"}]}, {"name": "side", "image": "flotilla.dev/hello:latest"},
        ]}}}}),
    );
    assert_eq!((said.out.as_str(), said.err.as_str()), ("deployment.apps/web patched\n", ""));
    let containers = json_of(kubectl, "deployment/web")["spec"]["template"]["spec"]["containers"].clone();
    assert_eq!((&containers[0]["name"], &containers[0]["env"][0]["value"]), (&json!("main"), &json!("1")));
    assert_eq!((&containers[0]["ports"][0]["containerPort"], &containers[1]["name"]), (&json!(8080), &json!("side")));
    let deleted = json!({"spec": {"template": {"spec": {"containers": [{"name": "side", "$patch": "delete"}]}}}});
    assert!(patch("strategic", deleted.clone()).out.contains("patched"));
    // It is a change to kubectl as well when a controller writes the status between its reading and its patch.
    let settled = || async {
        let said = patch("strategic", deleted.clone());
        if said.out.contains("patched (no change)") { Ok(()) } else { Err(said.out) }
    };
    eventually(LIMIT, "a repeated patch changes nothing", settled).await;
    assert!(patch("merge", json!({"metadata": {"labels": {"tier": "front"}}})).out.contains("patched"));
    let steps = json!([
        {"op": "test", "path": "/metadata/labels/tier", "value": "front"},
        {"op": "replace", "path": "/metadata/labels/tier", "value": "back"},
    ]);
    assert!(patch("json", steps.clone()).out.contains("patched"));
    let said = patch("json", steps);
    assert!(said.err.contains("is invalid"), "{said:?}");
    let said = patch("merge", json!({"spec": {"replicas": "many"}}));
    assert!(said.err.contains("spec.replicas"), "{said:?}");
    let object = json_of(kubectl, "deployment/web");
    assert_eq!(object["metadata"]["labels"], json!({"app": "web", "tier": "back"}));
    assert!(has(&object, "kubectl-patch", "Update"), "{:?}", managers(&object));
    let scale = json!({"spec": {"replicas": 2}}).to_string();
    kubectl.ok(&["patch", "deployment", "web", "--subresource=scale", "--type=merge", "-p", &scale]);
    assert_eq!(json_of(kubectl, "deployment/web")["spec"]["replicas"], 2);
    let table = kubectl.ok(&["get", "deployment", "web", "--subresource=scale"]);
    let words: Vec<&str> = table.split_whitespace().collect();
    assert!(words.starts_with(&["NAME", "DESIRED", "AVAILABLE", "AGE", "web", "2"]), "{table}");
}

fn applies_on_the_clients_side(kubectl: &Kubectl) {
    assert_eq!(kubectl.ok_with(&["apply", "-f", "-"], SETTINGS), "configmap/settings created\n");
    assert_eq!(kubectl.ok_with(&["apply", "-f", "-"], SETTINGS), "configmap/settings unchanged\n");
    let changed = SETTINGS.replace("a: '1', b: '2'", "a: '1', c: '3'");
    let diff = kubectl.pipe(&["diff", "-f", "-"], &changed);
    assert!(diff.out.contains("-  b: \"2\"") && diff.out.contains("+  c: \"3\""), "{diff:?}");
    assert_eq!(kubectl.ok_with(&["apply", "-f", "-"], &changed), "configmap/settings configured\n");
    assert_eq!(json_of(kubectl, "cm/settings")["data"], json!({"a": "1", "c": "3"}));
    let other = changed.replace("name: settings", "name: others");
    let prune = ["apply", "--prune", "-l", "part=of-app", "--prune-allowlist=core/v1/ConfigMap", "-f", "-"];
    let pruned = kubectl.pipe(&prune, &other);
    assert!(
        pruned.out.contains("configmap/others created") && pruned.out.contains("configmap/settings pruned"),
        "{pruned:?}"
    );
    // What was applied on the client's side goes on being applied on the server's.
    let upgraded = other.replace("c: '3'", "d: '4'");
    let said = kubectl.pipe(&["apply", "--server-side", "-f", "-"], &upgraded);
    assert_eq!((said.out.as_str(), said.err.as_str()), ("configmap/others serverside-applied\n", ""));
    let object = json_of(kubectl, "cm/others");
    assert_eq!(object["data"], json!({"a": "1", "d": "4"}));
    assert!(has(&object, "kubectl", "Apply") && !has(&object, "kubectl-client-side-apply", "Update"), "{object}");
}

fn applies_on_the_servers_side(kubectl: &Kubectl) {
    let shared = SETTINGS.replace("settings", "shared");
    let apply = |manager: &str, manifest: &str, force: bool| {
        let manager = format!("--field-manager={manager}");
        let mut arguments = vec!["apply", "--server-side", manager.as_str(), "-f", "-"];
        arguments.extend(force.then_some("--force-conflicts"));
        kubectl.pipe(&arguments, manifest)
    };
    assert_eq!(apply("first", &shared, false).out, "configmap/shared serverside-applied\n");
    let before = json_of(kubectl, "cm/shared");
    apply("first", &shared, false);
    assert_eq!(json_of(kubectl, "cm/shared"), before, "the same again writes nothing");
    let mine = shared.replace("a: '1', b: '2'", "a: '7'");
    let refused = apply("second", &mine, false);
    assert!(refused.err.contains("Apply failed with 1 conflict: conflict with \"first\": .data.a"), "{refused:?}");
    assert!(refused.err.contains("--force-conflicts"), "{refused:?}");
    assert_eq!(apply("second", &mine, true).out, "configmap/shared serverside-applied\n");
    assert_eq!(json_of(kubectl, "cm/shared")["data"], json!({"a": "7", "b": "2"}));
    apply("first", &shared.replace("a: '1', b: '2'", "x: '1'"), false);
    assert_eq!(json_of(kubectl, "cm/shared")["data"], json!({"a": "7", "x": "1"}));
}

async fn changes_by_command(kubectl: &Kubectl) {
    let mut edit = kubectl.command(&["edit", "deployment", "web"]);
    edit.env("KUBE_EDITOR", "sed -i s/replicas:.2/replicas:\\ 1/");
    let said = cli::said(edit.output().expect("kubectl can be started"));
    assert_eq!(said.out, "deployment.apps/web edited\n", "{said:?}");
    assert!(has(&json_of(kubectl, "deployment/web"), "kubectl-edit", "Update"));
    kubectl.ok(&["label", "deployment", "web", "tier=middle", "--overwrite"]);
    kubectl.ok(&["label", "deployment", "web", "tier-"]);
    kubectl.ok(&["annotate", "deployment", "web", "note=hello"]);
    kubectl.ok(&["set", "env", "deployment/web", "A=2"]);
    kubectl.ok(&["set", "image", "deployment/web", "main=flotilla.dev/hello:again"]);
    kubectl.ok(&["set", "image", "deployment/web", "main=flotilla.dev/hello:latest"]);
    kubectl.ok(&["set", "resources", "deployment/web", "--limits=memory=64Mi"]);
    kubectl.ok(&["rollout", "restart", "deployment/web"]);
    let object = json_of(kubectl, "deployment/web");
    let template = &object["spec"]["template"];
    assert!(template["metadata"]["annotations"]["kubectl.kubernetes.io/restartedAt"].is_string(), "{template}");
    assert_eq!(template["spec"]["containers"][0]["env"][0]["value"], "2");
    assert_eq!(template["spec"]["containers"][0]["resources"]["limits"]["memory"], "64Mi");
    assert!(object["metadata"]["labels"].get("tier").is_none() && object["metadata"]["annotations"]["note"] == "hello");
    kubectl.ok(&["delete", "deployment", "web"]);
    let gone = || async {
        let left = kubectl.run(&["get", "pods", "-o", "name"]);
        if left.out.is_empty() { Ok(()) } else { Err(left.out) }
    };
    eventually(LIMIT, "its pods are gone", gone).await;
}
