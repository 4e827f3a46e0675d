//! The tables that people read: each kind's rows, as `kubectl get -o wide` prints them.

use flotilla_api::Registry;
use serde_json::{Value, json};

const NOW: &str = "2026-01-02T03:04:05Z";
const HOUR_AGO: &str = "2026-01-02T02:04:05Z";

/// The cells of an object's row, joined by ` | `.
fn row(mut object: Value) -> String {
    object["metadata"]["creationTimestamp"] = json!(HOUR_AGO);
    let kind = Registry::builtin()
        .of_object(object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap())
        .unwrap();
    let row = kind.row(&object, NOW.parse().unwrap());
    assert_eq!(row.len(), kind.columns().len());
    row.join(" | ")
}

fn pod(metadata: Value, status: Value) -> Value {
    let spec = json!({"nodeName": "n1", "containers": [{"name": "a"}, {"name": "b"}],
                      "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}]});
    let mut pod =
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"}, "spec": spec, "status": status});
    pod["metadata"].as_object_mut().unwrap().extend(metadata.as_object().unwrap().clone());
    pod
}

fn container(name: &str, ready: bool, restarts: i32, state: Value) -> Value {
    json!({"name": name, "ready": ready, "restartCount": restarts, "image": "x", "imageID": "", "started": ready,
           "state": state})
}

fn done() -> Value {
    container("i", true, 0, json!({"terminated": {"exitCode": 0, "reason": "Completed"}}))
}

fn running(name: &str) -> Value {
    container(name, true, 0, json!({"running": {}}))
}

#[test]
fn a_pod_that_runs() {
    let mut restarted = container("b", true, 3, json!({"running": {}}));
    restarted["lastState"] = json!({"terminated": {"exitCode": 1, "finishedAt": "2026-01-02T02:59:05Z"}});
    let status = json!({"phase": "Running", "podIP": "10.0.0.1", "initContainerStatuses": [done(), running("s")],
                        "containerStatuses": [running("a"), restarted]});
    assert_eq!(row(pod(json!({}), status)), "web | 3/3 | Running | 3 (5m ago) | 60m | 10.0.0.1 | n1 | <none> | <none>");
}

#[test]
fn a_pods_status_names_its_trouble() {
    let table = [
        (json!({"phase": "Pending"}), "0/3 | Pending | 0"),
        (json!({"phase": "Failed", "reason": "Evicted"}), "0/3 | Evicted | 0"),
        (
            json!({"phase": "Pending", "initContainerStatuses": [container("i", false, 0, json!({"running": {}}))]}),
            "0/3 | Init:0/2 | 0",
        ),
        (
            json!({"phase": "Pending", "initContainerStatuses": [
                container("i", false, 2, json!({"waiting": {"reason": "CrashLoopBackOff"}}))]}),
            "0/3 | Init:CrashLoopBackOff | 2",
        ),
        (
            json!({"phase": "Running", "initContainerStatuses": [done(), running("s")], "containerStatuses": [
                running("a"), container("b", false, 4, json!({"waiting": {"reason": "CrashLoopBackOff"}}))]}),
            "2/3 | CrashLoopBackOff | 4",
        ),
        (
            json!({"phase": "Failed", "initContainerStatuses": [done()], "containerStatuses": [
                container("a", false, 0, json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}}))]}),
            "0/3 | OOMKilled | 0",
        ),
        (
            json!({"phase": "Failed", "initContainerStatuses": [done()], "containerStatuses": [
                container("a", false, 0, json!({"terminated": {"exitCode": 3}}))]}),
            "0/3 | ExitCode:3 | 0",
        ),
        (
            json!({"phase": "Succeeded", "initContainerStatuses": [done()], "containerStatuses": [
                container("a", false, 0, json!({"terminated": {"exitCode": 0, "reason": "Completed"}}))]}),
            "0/3 | Completed | 0",
        ),
    ];
    for (status, expected) in table {
        let row = row(pod(json!({}), status));
        assert!(row.starts_with(&format!("web | {expected} | 60m")), "{row} is not {expected}");
    }
    let leaving = row(pod(json!({"deletionTimestamp": HOUR_AGO}), json!({"phase": "Running"})));
    assert!(leaving.starts_with("web | 0/3 | Terminating | 0"), "{leaving}");
    let ended = json!({"phase": "Succeeded", "containerStatuses": [
        container("a", false, 0, json!({"terminated": {"exitCode": 0, "reason": "Completed"}}))]});
    let held = row(pod(json!({"deletionTimestamp": HOUR_AGO}), ended));
    assert!(held.starts_with("web | 0/3 | Completed | 0"), "{held}");
    let mut retried = container("i", false, 3, json!({"waiting": {"reason": "CrashLoopBackOff"}}));
    retried["lastState"] = json!({"terminated": {"exitCode": 1, "finishedAt": "2026-01-02T03:03:45Z"}});
    let begun = row(pod(json!({}), json!({"phase": "Pending", "initContainerStatuses": [retried]})));
    assert!(begun.starts_with("web | 0/3 | Init:CrashLoopBackOff | 3 (20s ago)"), "{begun}");
}

#[test]
fn workloads() {
    let template = json!({"spec": {"containers": [{"name": "a", "image": "x"}, {"name": "b", "image": "y"}]}});
    let selector = json!({"matchLabels": {"app": "web"}});
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"replicas": 3, "selector": selector, "template": template},
        "status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 1}});
    assert_eq!(row(deployment), "web | 2/3 | 3 | 1 | 60m | a,b | x,y | app=web");
    let set = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "web"},
        "spec": {"replicas": 3, "selector": selector, "template": template}, "status": {"replicas": 2}});
    assert_eq!(row(set), "web | 3 | 2 | 0 | 60m | a,b | x,y | app=web");
    let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "sum"},
        "spec": {"completions": 5, "template": template},
        "status": {"succeeded": 5, "startTime": HOUR_AGO, "completionTime": "2026-01-02T02:05:05Z",
                   "conditions": [{"type": "Complete", "status": "True"}]}});
    assert_eq!(row(job), "sum | Complete | 5/5 | 60s | 60m | a,b | x,y | <none>");
}

#[test]
fn the_rest() {
    let node = json!({"apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "n1", "labels": {"node-role.kubernetes.io/voter": ""}}, "spec": {"unschedulable": true},
        "status": {"conditions": [{"type": "Ready", "status": "Unknown"}],
                   "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}});
    let expected =
        "n1 | NotReady,SchedulingDisabled | voter | 60m |  | 10.0.0.1 | <none> | <unknown> | <unknown> | <unknown>";
    assert_eq!(row(node), expected);
    let event = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "type": "Warning", "reason": "Failed",
        "message": "no image", "involvedObject": {"kind": "Pod", "name": "web"}, "count": 2,
        "source": {"component": "agent", "host": "n1"}, "firstTimestamp": HOUR_AGO, "lastTimestamp": NOW});
    assert_eq!(row(event), "0s | Warning | Failed | pod/web |  | agent, n1 | no image | 60m | 2 | e");
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"a": "b"}});
    assert_eq!(row(map), "m | 1 | 60m");
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "type": "Opaque"});
    assert_eq!(row(secret), "s | Opaque | 0 | 60m");
    let namespace =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "d"}, "status": {"phase": "Active"}});
    assert_eq!(row(namespace), "d | Active | 60m");
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"},
        "spec": {"holderIdentity": "n1"}});
    assert_eq!(row(lease), "l | n1 | 60m");
    let token = json!({"apiVersion": "flotilla.dev/v1", "kind": "JoinToken", "metadata": {"name": "t"},
        "spec": {"secretHash": "", "maxUses": 2, "expiresAt": "2026-01-02T04:04:05Z"}, "status": {"uses": 1}});
    assert_eq!(row(token), "t | Valid | in 60m | 1/2 | 60m");
}

#[test]
fn an_object_that_does_not_decode_still_has_a_row() {
    let broken = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": 5});
    assert_eq!(row(broken), "m | <unknown> | <unknown>");
}
