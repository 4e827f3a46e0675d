//! The commands of the README, as a person types them.

use std::time::Duration;

use flotilla_tests::{Cluster, cli, eventually};

const HELLO: &str = "flotilla.dev/hello:latest";
const WAIT: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn a_person_runs_scales_watches_and_stops_a_job() {
    let cluster = Cluster::start(3).await;
    let ok = |arguments: &[&str]| cli::ok(&cluster, "node-2", arguments);

    let nodes = ok(&["nodes"]);
    assert_eq!(nodes.lines().count(), 4, "{nodes}");
    assert!(nodes.lines().next().unwrap().contains("NAME"), "{nodes}");
    assert_eq!(nodes.matches("leader").count(), 1, "{nodes}");

    ok(&["run", "web", &format!("--image={HELLO}"), "--replicas=3"]);
    let status = ok(&["status", "web"]);
    assert!(status.contains("3"), "{status}");
    assert!(ok(&["jobs"]).contains("web"));
    let pods = ok(&["pods"]);
    assert_eq!(pods.matches("Running").count(), 3, "{pods}");
    let pod = pods.lines().nth(1).and_then(|line| line.split_whitespace().next()).unwrap().to_owned();

    let exec = cli::flotilla(&cluster, "node-1", &["exec", &pod, "--", "/hello", "fail", "7"]);
    assert_eq!(exec.code, Some(7), "{exec:?}");
    let _ = ok(&["logs", &pod]);

    ok(&["scale", "web", "5"]);
    let five = || async {
        let pods = ok(&["pods"]);
        if pods.matches("Running").count() == 5 { Ok(()) } else { Err(pods) }
    };
    eventually(WAIT, "five pods run", five).await;
    let yaml = ok(&["get", "deployment", "web", "-o", "yaml"]);
    assert!(yaml.contains("replicas: 5") && yaml.contains("kind: Deployment"), "{yaml}");
    let json: serde_json::Value = serde_json::from_str(&ok(&["get", "deployment", "web", "-o", "json"])).unwrap();
    assert_eq!(json["spec"]["replicas"], 5);

    ok(&["stop", "web"]);
    let none = || async {
        let pods = ok(&["get", "pods", "-o", "name"]);
        if pods.trim().is_empty() { Ok(()) } else { Err(pods) }
    };
    eventually(WAIT, "no pod is left", none).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_keeps_house() {
    let cluster = Cluster::start(3).await;
    let ok = |arguments: &[&str]| cli::ok(&cluster, "node-1", arguments);

    let token = ok(&["token", "create", "--ttl", "1h"]);
    assert!(token.contains("flt1."), "{token}");
    let listed = ok(&["token", "list"]);
    assert!(listed.contains("valid"), "{listed}");

    ok(&["run", "web", &format!("--image={HELLO}"), "--replicas=3"]);
    ok(&["cordon", "node-3"]);
    assert!(ok(&["nodes"]).contains("SchedulingDisabled"));
    ok(&["drain", "node-3"]);
    let moved = || async {
        let pods = ok(&["get", "pods", "-o", "wide"]);
        let good = !pods.contains("node-3") && pods.matches("Running").count() == 3;
        if good { Ok(()) } else { Err(pods) }
    };
    eventually(WAIT, "node-3 is empty and all replicas run", moved).await;
    ok(&["uncordon", "node-3"]);
    assert!(!ok(&["nodes"]).contains("SchedulingDisabled"));

    assert!(ok(&["image", "ls"]).contains("hello"));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yaml");
    std::fs::write(&file, "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: one\ndata:\n  a: b\n").unwrap();
    let file = file.display().to_string();
    assert!(ok(&["apply", "-f", &file]).contains("created"));
    assert!(ok(&["apply", "-f", &file]).contains("unchanged"));
    ok(&["delete", "configmap", "one"]);
    let gone = cli::flotilla(&cluster, "node-1", &["get", "configmap", "one"]);
    assert!(gone.code == Some(1) && gone.err.contains("not found"), "{gone:?}");
}

#[test]
fn without_a_daemon_the_command_says_what_to_do() {
    let output = cli::program().args(["--socket", "/no/such/socket", "nodes"]).output().unwrap();
    let said = cli::said(output);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.err.contains("/no/such/socket") && said.err.contains("flotilla up"), "{said:?}");
}
