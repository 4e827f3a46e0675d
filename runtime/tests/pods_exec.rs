//! Further processes in a container, and its own streams.

mod common;

use std::time::{Duration, Instant};

use common::{Node, PATIENCE, alive, exit, run, running, said, sandbox, until};
use flotilla_runtime::Pods;
use flotilla_runtime::cgroup::Cgroup;
use flotilla_runtime::pods::{AttachSpec, ExecSpec, PodsError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn shell(script: &str) -> ExecSpec {
    ExecSpec { args: ["sh", "-c", script].map(String::from).into(), ..ExecSpec::default() }
}

async fn sleeper(node: &Node) -> (Pods, String) {
    let pods = node.open().await;
    pods.create_sandbox(sandbox("a")).await.unwrap();
    let mut spec = node.container("main", "trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done");
    spec.env = vec![("FROM".into(), "container".into()), ("KEPT".into(), "yes".into())];
    let key = run(&pods, "a", spec).await;
    running(&pods, "a", &key).await;
    (pods, key)
}

#[tokio::test]
async fn a_process_has_streams_an_environment_and_an_exit_code() {
    let node = Node::new();
    let (pods, key) = sleeper(&node).await;
    let mut spec = shell("echo out $FROM $KEPT; echo err >&2; pwd; id -u; grep Seccomp: /proc/self/status; exit 5");
    spec.env = vec![("FROM".into(), "exec".into())];
    spec.cwd = Some("/tmp".into());
    let done = pods.exec_sync("a", &key, &spec, PATIENCE).await.unwrap();
    let out = String::from_utf8(done.stdout).unwrap();
    assert_eq!(out, "out exec yes\n/tmp\n0\nSeccomp:\t2\n");
    assert_eq!((done.code, done.stderr.as_slice()), (5, b"err\n".as_slice()));

    let mut session = pods.exec("a", &key, &ExecSpec { args: vec!["cat".into()], ..Default::default() }).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"through and through").await.unwrap();
    drop(stdin);
    let mut back = String::new();
    session.stdout.take().unwrap().read_to_string(&mut back).await.unwrap();
    assert_eq!(back, "through and through");
    assert_eq!(session.exit.wait().await.unwrap(), 0);
    pods.remove_sandbox("a").await.unwrap();
}

#[tokio::test]
async fn a_terminal_echoes_and_resizes() {
    let node = Node::new();
    let (pods, key) = sleeper(&node).await;
    let spec = ExecSpec { args: vec!["sh".into()], tty: true, ..Default::default() };
    let mut session = pods.exec("a", &key, &spec).await.unwrap();
    assert!(session.stderr.is_none());
    session.terminal.as_ref().unwrap().resize(123, 45).unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"stty size; echo $TERM; exit 9\n").await.unwrap();
    let mut out = String::new();
    tokio::time::timeout(PATIENCE, session.stdout.take().unwrap().read_to_string(&mut out)).await.unwrap().unwrap();
    assert!(out.contains("45 123") && out.contains("xterm"), "{out:?}");
    assert_eq!(session.exit.wait().await.unwrap(), 9);
    pods.remove_sandbox("a").await.unwrap();
}

#[tokio::test]
async fn what_cannot_run_and_what_runs_too_long() {
    let node = Node::new();
    let (pods, key) = sleeper(&node).await;
    let missing = ExecSpec { args: vec!["/no/such".into()], ..Default::default() };
    let error = pods.exec_sync("a", &key, &missing, PATIENCE).await.unwrap_err();
    assert!(matches!(&error, PodsError::Refused(words) if words.contains("/no/such")), "{error:?}");
    let began = Instant::now();
    let late = pods.exec_sync("a", &key, &shell("echo $$ >/tmp/pid; sleep 61"), Duration::from_millis(300)).await;
    assert!(matches!(late, Err(PodsError::Timeout(_))), "{late:?}");
    assert!(began.elapsed() < Duration::from_secs(10));
    let group = Cgroup::new(&format!("{}/poduid-a", node.config.cgroup_parent)).unwrap();
    let late =
        |pid: &i32| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|args| args.ends_with(b"sleep\x0061\0"));
    until("the late process dies", || (!group.pids().iter().any(late)).then_some(())).await;
    let flood = pods.exec_sync("a", &key, &shell("yes | head -c 1000000"), PATIENCE).await.unwrap();
    assert_eq!((flood.code, flood.stdout.len()), (0, flotilla_runtime::pods::MAX_SYNC_OUTPUT_BYTES));
    let gone = pods.exec_sync("a", "none-0", &shell("true"), PATIENCE).await.unwrap_err();
    assert!(matches!(gone, PodsError::NoContainer(_)), "{gone:?}");
    pods.remove_sandbox("a").await.unwrap();
}

#[tokio::test]
async fn attaching_feeds_and_follows_a_container() {
    let node = Node::new();
    let pods = node.open().await;
    pods.create_sandbox(sandbox("a")).await.unwrap();
    let mut spec = node.container("main", "while read line; do echo got $line; [ $line = bye ] && exit 4; done");
    spec.stdin = true;
    let key = run(&pods, "a", spec).await;
    let mut session = pods.attach("a", &key, AttachSpec { stdin: true, split: false }).await.unwrap();
    session.stdin.as_mut().unwrap().write_all(b"hello\nbye\n").await.unwrap();
    let mut out = String::new();
    session.output.take().unwrap().read_to_string(&mut out).await.unwrap();
    assert_eq!(out, "got hello\ngot bye\n");
    assert_eq!(exit(&pods, "a", &key).await.code, 4);
    said(&pods, "a", &key, "got bye").await;
    pods.remove_sandbox("a").await.unwrap();
}

#[tokio::test]
async fn a_container_may_have_a_terminal_itself() {
    let node = Node::new();
    let pods = node.open().await;
    pods.create_sandbox(sandbox("a")).await.unwrap();
    let mut spec = node.container("main", "read line; stty size; echo got $line; exit 2");
    spec.tty = true;
    spec.stdin = true;
    let key = run(&pods, "a", spec).await;
    let pid = running(&pods, "a", &key).await;
    assert!(alive(pid));
    pods.resize("a", &key, 90, 30).await.unwrap();
    let mut session = pods.attach("a", &key, AttachSpec { stdin: true, split: false }).await.unwrap();
    session.stdin.as_mut().unwrap().write_all(b"hello\n").await.unwrap();
    assert_eq!(exit(&pods, "a", &key).await.code, 2);
    let text = said(&pods, "a", &key, "got hello").await;
    assert!(text.contains("30 90"), "{text:?}");
    pods.remove_sandbox("a").await.unwrap();
}
