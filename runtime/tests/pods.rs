//! The life of containers, as the daemon sees it, with real ones.

mod common;

use std::time::Duration;

use common::{Node, exit, output, read, run, running, said, sandbox, state};
use flotilla_runtime::cgroup::Cgroup;

#[tokio::test]
async fn a_container_runs_to_its_end_and_leaves_nothing() {
    let node = Node::new();
    let pods = node.open().await;
    let pod = pods.create_sandbox(sandbox("a")).await.unwrap();
    assert!(pod.ready && pod.ip.is_none());
    let key = run(&pods, "a", node.container("main", "echo out; echo err >&2; exit 7")).await;
    let ended = exit(&pods, "a", &key).await;
    assert_eq!((ended.code, ended.signal, ended.oom_killed, ended.reason.as_str()), (7, None, false, "Error"));
    let log = read(&node.log_path("main"));
    let mut lines: Vec<&str> = log.lines().collect();
    lines.sort_by_key(|line| line.contains("stderr"));
    for (line, rest) in lines.iter().zip(["stdout F out", "stderr F err"]) {
        let (time, text) = line.split_once(' ').unwrap();
        assert_eq!((time.len(), text), (30, rest), "{log}");
    }
    assert_eq!(output(&pods, "a", &key).await.len(), "out\nerr\n".len());
    pods.remove_container("a", &key).await.unwrap();
    assert!(state(&pods, "a", &key).is_none());
    pods.remove_sandbox("a").await.unwrap();
    assert!(pods.list().is_empty());
    assert!(!node.config.root.join("a").exists() && !node.config.run.join("a").exists());
    assert!(!Cgroup::new(&format!("{}/poduid-a", node.config.cgroup_parent)).unwrap().exists());
    pods.close().await;
}

#[tokio::test]
async fn term_first_and_kill_after_the_grace() {
    let node = Node::new();
    let pods = node.open().await;
    pods.create_sandbox(sandbox("a")).await.unwrap();
    let polite = run(&pods, "a", node.container("polite", "trap 'exit 3' TERM; echo up; while :; do sleep 0.05; done")).await;
    let deaf = run(&pods, "a", node.container("deaf", "trap '' TERM; echo up; while :; do sleep 0.05; done")).await;
    said(&pods, "a", &polite, "up").await;
    said(&pods, "a", &deaf, "up").await;
    running(&pods, "a", &polite).await;
    running(&pods, "a", &deaf).await;
    pods.stop_container("a", &polite, Duration::from_secs(20)).await.unwrap();
    assert_eq!(exit(&pods, "a", &polite).await.code, 3);
    pods.stop_container("a", &deaf, Duration::from_millis(100)).await.unwrap();
    assert_eq!(exit(&pods, "a", &deaf).await.code, 137);
    pods.remove_sandbox("a").await.unwrap();
}
