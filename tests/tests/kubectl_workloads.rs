//! How a person with kubectl rolls out and back, empties nodes, runs something for a moment, and deletes with and without
//! what belongs to it.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use flotilla_tests::{Kubectl, Scene, cli, eventually, image};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);

const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
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
";

#[tokio::test(flavor = "multi_thread")]
async fn work_is_rolled_out_moved_and_deleted() {
    let scene = Scene::set(3).await;
    let busybox = scene.registry.push(&image::busybox(scene.registry.workshop()));
    let kubectl = Kubectl::new(&scene.cluster, "node-2");
    roll_out_and_back(&kubectl);
    pause(&kubectl).await;
    taint(&kubectl).await;
    advertise(&kubectl, &busybox).await;
    drain(&kubectl, &busybox).await;
    run(&kubectl, &busybox).await;
    follow_logs_of_many(&kubectl, &busybox);
    delete_with_and_without(&kubectl).await;
    restart_others(&kubectl, &busybox);
}

fn settled(kubectl: &Kubectl) {
    let said = kubectl.ok(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    assert!(said.ends_with("deployment \"web\" successfully rolled out\n"), "{said}");
}

/// The revisions of a history, with why each came to be.
fn history(kubectl: &Kubectl) -> Vec<String> {
    let said = kubectl.ok(&["rollout", "history", "deployment/web"]);
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    said.lines().skip(2).map(words).filter(|line| !line.is_empty()).collect()
}

fn roll_out_and_back(kubectl: &Kubectl) {
    let because = |why: &str| {
        let cause = format!("kubernetes.io/change-cause={why}");
        kubectl.ok(&["annotate", "deployment/web", &cause, "--overwrite"]);
    };
    kubectl.ok_with(&["apply", "-f", "-"], WEB);
    because("first");
    settled(kubectl);
    assert_eq!(kubectl.ok(&["set", "env", "deployment/web", "A=1"]), "deployment.apps/web env updated\n");
    because("second");
    settled(kubectl);
    assert_eq!(kubectl.ok(&["set", "env", "deployment/web", "--list"]), "# Deployment web, container main\nA=1\n");
    let resources = ["set", "resources", "deployment/web", "--limits=memory=64Mi", "--requests=memory=32Mi"];
    assert_eq!(kubectl.ok(&resources), "deployment.apps/web resource requirements updated\n");
    because("third");
    settled(kubectl);
    assert_eq!(history(kubectl), ["1 first", "2 second", "3 third"]);
    let third = kubectl.ok(&["rollout", "history", "deployment/web", "--revision=3"]);
    assert!(third.contains("with revision #3") && third.contains("memory:\t64Mi"), "{third}");
    let template = || kubectl.ok(&["get", "deployment/web", "-o", "jsonpath={.spec.template.spec.containers[0]}"]);
    let last = template();
    let undo = ["rollout", "undo", "deployment/web", "--to-revision=1"];
    assert_eq!(kubectl.ok(&undo), "deployment.apps/web rolled back\n");
    settled(kubectl);
    assert_eq!(history(kubectl), ["2 second", "3 third", "4 first"]);
    assert!(!template().contains("\"env\"") && !template().contains("64Mi"), "{}", template());
    assert_eq!(kubectl.ok(&["rollout", "undo", "deployment/web"]), "deployment.apps/web rolled back\n");
    settled(kubectl);
    assert_eq!(template(), last);
    let none = kubectl.fails(&["rollout", "undo", "deployment/web", "--to-revision=77"]);
    assert_eq!(none, "error: unable to find specified revision 77 in history\n");
}

async fn pause(kubectl: &Kubectl) {
    assert_eq!(kubectl.ok(&["rollout", "pause", "deployment/web"]), "deployment.apps/web paused\n");
    kubectl.ok(&["set", "env", "deployment/web", "B=2"]);
    let seen = || async {
        let seen = "jsonpath={.metadata.generation} {.status.observedGeneration} {.status.updatedReplicas}";
        let seen = kubectl.ok(&["get", "deployment/web", "-o", seen]);
        let all: Vec<&str> = seen.split(' ').collect();
        if all[0] == all[1] { Ok(all.get(2).copied().unwrap_or_default().to_owned()) } else { Err(seen) }
    };
    let updated = eventually(LIMIT, "the change is seen", seen).await;
    assert!(matches!(updated.as_str(), "" | "0"), "a paused deployment does not move: {updated} are updated");
    let refused = kubectl.fails(&["rollout", "undo", "deployment/web"]);
    assert!(refused.contains("you cannot rollback a paused deployment"), "{refused}");
    assert_eq!(kubectl.ok(&["rollout", "resume", "deployment/web"]), "deployment.apps/web resumed\n");
    settled(kubectl);
    assert_eq!(history(kubectl).last().map(String::as_str), Some("6 third"));
}

/// The names of the nodes that pods of `web` are on, each as often as there are pods; those on their way out count.
fn places(kubectl: &Kubectl) -> Vec<String> {
    let nodes = kubectl.ok(&["get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].spec.nodeName}"]);
    nodes.split_whitespace().map(str::to_owned).collect()
}

async fn leaves(kubectl: &Kubectl, node: &str, count: usize) {
    let left = || async {
        let places = places(kubectl);
        if places.len() == count && !places.contains(&node.to_owned()) { Ok(()) } else { Err(format!("{places:?}")) }
    };
    eventually(LIMIT, "the pods are elsewhere", left).await;
    settled(kubectl);
}

async fn taint(kubectl: &Kubectl) {
    assert_eq!(kubectl.ok(&["taint", "node", "node-3", "only=x:NoSchedule"]), "node/node-3 tainted\n");
    let again = kubectl.fails(&["taint", "node", "node-3", "only=x:NoSchedule"]);
    assert!(again.contains("already has only taint(s)"), "{again}");
    assert!(kubectl.ok(&["describe", "node", "node-3"]).contains("only=x:NoSchedule"));
    let before = places(kubectl).iter().filter(|node| *node == "node-3").count();
    kubectl.ok(&["scale", "deployment/web", "--replicas=6"]);
    settled(kubectl);
    assert_eq!(places(kubectl).iter().filter(|node| *node == "node-3").count(), before, "nothing new comes, all stay");
    let patient = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "patient"}, "spec": {
        "nodeName": "node-3", "terminationGracePeriodSeconds": 1,
        "tolerations": [{"key": "out", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 3600}, {"key": "only", "operator": "Exists"}],
        "containers": [{"name": "main", "image": "flotilla.dev/hello:latest"}]}});
    kubectl.ok_with(&["create", "-f", "-"], &patient.to_string());
    kubectl.ok(&["wait", "--for=condition=Ready", "pod/patient", "--timeout=60s"]);
    kubectl.ok(&["taint", "node", "node-3", "out=now:NoExecute"]);
    leaves(kubectl, "node-3", 6).await;
    let marked = kubectl.ok(&["get", "pod", "patient", "-o", "jsonpath={.metadata.deletionTimestamp}"]);
    assert_eq!(marked, "", "who tolerates it for an hour stays");
    kubectl.ok(&["delete", "pod", "patient"]);
    assert_eq!(kubectl.ok(&["taint", "node", "node-3", "only-", "out-"]), "node/node-3 untainted\n");
}

/// A node has one of something that only an administrator knows of: one pod gets it, the next waits for it.
async fn advertise(kubectl: &Kubectl, busybox: &str) {
    let patch = json!([{"op": "add", "path": "/status/capacity/example.com~1dongle", "value": "1"}]).to_string();
    let said = kubectl.ok(&["patch", "node", "node-1", "--subresource=status", "--type=json", "-p", &patch]);
    assert_eq!(said, "node/node-1 patched\n");
    for name in ["has", "wants"] {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
            "terminationGracePeriodSeconds": 1, "containers": [{"name": "main", "image": busybox,
                "command": ["sleep", "1000"], "resources": {"limits": {"example.com/dongle": "1"}}}]}});
        kubectl.ok_with(&["create", "-f", "-"], &pod.to_string());
        if name == "has" {
            kubectl.ok(&["wait", "--for=condition=Ready", "pod/has", "--timeout=60s"]);
        }
    }
    let told = || async {
        let message = kubectl.ok(&["get", "pod", "wants", "-o", "jsonpath={.status.conditions[0].message}"]);
        if message.contains("example.com/dongle") { Ok(()) } else { Err(message) }
    };
    eventually(LIMIT, "the second pod says what it lacks", told).await;
    assert!(kubectl.ok(&["describe", "node", "node-1"]).contains("example.com/dongle  1"));
    kubectl.ok(&["delete", "pod", "has"]);
    kubectl.ok(&["wait", "--for=condition=Ready", "pod/wants", "--timeout=60s"]);
    kubectl.ok(&["delete", "pod", "wants"]);
}

async fn drain(kubectl: &Kubectl, busybox: &str) {
    kubectl.ok(&["create", "poddisruptionbudget", "web", "--selector=app=web", "--min-available=6"]);
    let lone = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "lone"}, "spec": {
        "nodeName": "node-2", "terminationGracePeriodSeconds": 1, "volumes": [{"name": "v", "emptyDir": {}}],
        "containers": [{"name": "main", "image": busybox, "command": ["sleep", "1000"],
                        "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]}});
    kubectl.ok_with(&["create", "-f", "-"], &lone.to_string());
    kubectl.ok(&["wait", "--for=condition=Ready", "pod/lone", "--timeout=60s"]);
    assert_eq!(kubectl.ok(&["cordon", "node-2"]), "node/node-2 cordoned\n");
    assert_eq!(kubectl.ok(&["cordon", "node-2"]), "node/node-2 already cordoned\n");
    assert!(kubectl.ok(&["get", "node", "node-2"]).contains("Ready,SchedulingDisabled"));
    let refused = kubectl.fails(&["drain", "node-2", "--force"]);
    assert!(refused.contains("cannot delete Pods with local storage (use --delete-emptydir-data"), "{refused}");
    let refused = kubectl.fails(&["drain", "node-2", "--delete-emptydir-data"]);
    assert!(refused.contains("that declare no controller (use --force to override): default/lone"), "{refused}");
    let all = ["drain", "node-2", "--delete-emptydir-data", "--ignore-daemonsets", "--force"];
    // The budget lets nobody go, and kubectl says so while it tries.
    let said = kubectl.run(&[&all[..], &["--timeout=3s"]].concat());
    let budget = "(will retry after 5s): Cannot evict pod as it would violate the pod's disruption budget.";
    assert!(said.code != Some(0) && said.err.contains(budget), "{said:?}");
    kubectl.ok(&["patch", "pdb", "web", "--type=merge", "-p", "{\"spec\":{\"minAvailable\":4}}"]);
    let allows = "--for=jsonpath={.status.disruptionsAllowed}=2";
    kubectl.ok(&["wait", allows, "pdb/web", "--timeout=60s"]);
    let said = kubectl.run(&[&all[..], &["--timeout=90s"]].concat());
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.out.ends_with("node/node-2 drained\n"), "{said:?}");
    assert!(!places(kubectl).contains(&"node-2".to_owned()));
    assert!(kubectl.fails(&["get", "pod", "lone"]).contains("NotFound"));
    assert_eq!(kubectl.ok(&["uncordon", "node-2"]), "node/node-2 uncordoned\n");
    kubectl.ok(&["delete", "pdb", "web"]);
}

async fn run(kubectl: &Kubectl, busybox: &str) {
    let image = format!("--image={busybox}");
    assert_eq!(kubectl.ok(&["run", "once", &image, "--restart=Never", "--", "echo", "hi"]), "pod/once created\n");
    kubectl.ok(&["wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/once", "--timeout=60s"]);
    assert_eq!(kubectl.ok(&["logs", "once"]), "hi\n");
    assert_eq!(kubectl.ok(&["delete", "pod", "once"]), "pod \"once\" deleted\n");
    // What it says of its own end.
    let script = "echo I gave up > /dev/termination-log; exit 4";
    kubectl.ok(&["run", "failed", &image, "--restart=Never", "--", "sh", "-c", script]);
    kubectl.ok(&["wait", "--for=jsonpath={.status.phase}=Failed", "pod/failed", "--timeout=60s"]);
    let words = "jsonpath={.status.containerStatuses[0].state.terminated.message}";
    assert_eq!(kubectl.ok(&["get", "pod", "failed", "-o", words]), "I gave up\n");
    let started = ["--field-selector=involvedObject.name=failed,reason=Started", "-o", "jsonpath={.items[*].count}"];
    assert_eq!(kubectl.ok(&[&["get", "events"], &started[..]].concat()), "1");
    kubectl.ok(&["delete", "pod", "failed"]);
    // At a terminal, which it takes with it.
    let command =
        format!("kubectl run typed {image} --rm -it --restart=Never -- sh -c 'test -t 0; echo at $?; exit 3'");
    let mut script = std::process::Command::new("script");
    script.args(["-qec", &command, "/dev/null"]).env("KUBECONFIG", kubectl.config()).env("HOME", kubectl.dir());
    let said = cli::said(script.stdin(Stdio::null()).output().expect("script is there"));
    assert!(said.out.contains("at 0") && said.out.contains("pod \"typed\" deleted"), "{said:?}");
    assert_eq!(said.code, Some(3), "{said:?}");
    assert!(kubectl.fails(&["get", "pod", "typed"]).contains("NotFound"));
    let dry =
        kubectl.ok(&["run", "dry", &image, "--dry-run=server", "--labels=a=b", "-o", "jsonpath={.metadata.labels}"]);
    assert_eq!(dry, "{\"a\":\"b\"}");
}

fn follow_logs_of_many(kubectl: &Kubectl, busybox: &str) {
    let many = WEB.replace("web", "many").replace("flotilla.dev/hello:latest", busybox).replace(
        "      - name: main\n",
        "      - name: main\n        command: [sh, -c, 'echo one; echo two; while :; do sleep 0.2; done']\n",
    );
    kubectl.ok_with(&["apply", "-f", "-"], &many);
    kubectl.ok(&["rollout", "status", "deployment/many", "--timeout=60s"]);
    let mut command = kubectl.command(&["logs", "-f", "-l", "app=many", "--prefix", "--tail=-1"]);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("kubectl starts");
    let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines().map_while(Result::ok);
    let mut seen: Vec<String> = lines.take(4).collect();
    seen.sort();
    assert!(seen.iter().all(|line| line.starts_with("[pod/many-")), "{seen:?}");
    assert_eq!(seen.iter().filter(|line| line.ends_with("/main] two")).count(), 2, "{seen:?}");
    child.kill().expect("it can be killed");
    child.wait().expect("it ends");
    assert_eq!(kubectl.ok(&["logs", "-l", "app=many", "--tail=1"]), "two\ntwo\n");
    kubectl.ok(&["delete", "deployment", "many", "--cascade=foreground"]);
}

async fn delete_with_and_without(kubectl: &Kubectl) {
    let names = |what: &str| kubectl.ok(&["get", what, "-l", "app=web", "-o", "name"]);
    kubectl.ok(&["scale", "deployment/web", "--replicas=1"]);
    settled(kubectl);
    let one = || async {
        let pods = names("pods");
        if pods.lines().count() == 1 { Ok(()) } else { Err(pods) }
    };
    eventually(LIMIT, "one pod is left", one).await;
    let (sets, pods) = (names("rs"), names("pods"));
    kubectl.ok(&["delete", "deployment", "web", "--cascade=orphan"]);
    assert_eq!((names("rs"), names("pods")), (sets.clone(), pods.clone()), "orphans stay");
    let adopted = || async {
        let list: Value = serde_json::from_str(&kubectl.ok(&["get", "rs", "-l", "app=web", "-o", "json"])).unwrap();
        let owned = list["items"]
            .as_array()
            .unwrap()
            .iter()
            .all(|set| set["metadata"]["ownerReferences"][0]["kind"] == "Deployment");
        if owned { Ok(()) } else { Err("not all have an owner".to_owned()) }
    };
    let list: Value = serde_json::from_str(&kubectl.ok(&["get", "rs", "-l", "app=web", "-o", "json"])).unwrap();
    let mut all = list["items"].as_array().unwrap().iter();
    let mut template = all.find(|set| set["spec"]["replicas"] == 1).unwrap()["spec"]["template"].clone();
    template["metadata"]["labels"].as_object_mut().unwrap().remove("pod-template-hash");
    let again = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {
        "replicas": 1, "selector": {"matchLabels": {"app": "web"}}, "template": template}});
    kubectl.ok_with(&["create", "-f", "-"], &again.to_string());
    eventually(LIMIT, "another one takes them over", adopted).await;
    settled(kubectl);
    assert_eq!((names("rs"), names("pods")), (sets, pods), "as they are");
    let replaced = kubectl.pipe(&["replace", "--force", "-f", "-"], WEB);
    assert_eq!(replaced.out, "deployment.apps \"web\" deleted\ndeployment.apps/web replaced\n", "{replaced:?}");
    settled(kubectl);
    let alone = || async {
        let (sets, pods) = (names("rs"), names("pods"));
        if (sets.lines().count(), pods.lines().count()) == (1, 2) { Ok(()) } else { Err(sets + &pods) }
    };
    eventually(LIMIT, "what the old one had is gone", alone).await;
    kubectl.ok(&["delete", "deployment", "web", "--cascade=foreground"]);
    assert_eq!((names("rs"), names("pods")), (String::new(), String::new()), "foreground: what it owns went first");
}

fn restart_others(kubectl: &Kubectl, busybox: &str) {
    for (kind, name) in [("StatefulSet", "statefulset.apps/others"), ("DaemonSet", "daemonset.apps/others")] {
        let mut object = json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "others"}, "spec": {
            "selector": {"matchLabels": {"app": "others"}}, "template": {
                "metadata": {"labels": {"app": "others"}},
                "spec": {"containers": [{"name": "main", "image": busybox, "command": ["sleep", "1000"]}]}}}});
        if kind == "StatefulSet" {
            object["spec"]["serviceName"] = json!("others");
        }
        kubectl.ok_with(&["create", "-f", "-"], &object.to_string());
        assert_eq!(kubectl.ok(&["rollout", "restart", name]), format!("{name} restarted\n"));
        let annotations = kubectl.ok(&["get", name, "-o", "jsonpath={.spec.template.metadata.annotations}"]);
        assert!(annotations.contains("kubectl.kubernetes.io/restartedAt"), "{annotations}");
        kubectl.ok(&["delete", name]);
    }
}
