//! What survives when a daemon or a shim does not.

mod common;

use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Node, PATIENCE, alive, exit, output, read, run, running, said, sandbox, shim, state, until};
use flotilla_runtime::engine::EngineChoice;
use flotilla_runtime::pods::{ExecSpec, LogOptions};
use flotilla_runtime::state::Phase;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const COUNTER: &str = "i=0; while :; do echo line $i; i=$((i+1)); sleep 0.02; done";

#[tokio::test]
async fn containers_outlive_the_daemon_and_are_found_again() {
    let node = Node::new();
    let pods = node.open().await;
    let before = pods.create_sandbox(sandbox("a")).await.unwrap();
    let key = run(&pods, "a", node.container("main", COUNTER)).await;
    let brief = run(&pods, "a", node.container("brief", "sleep 0.3; exit 6")).await;
    let pid = running(&pods, "a", &key).await;
    drop(pods);
    // Nobody listens while this one ends.
    let record = node.config.root.join("a/state.json");
    until("the exit is on disk", || read(&record).contains("\"code\":6").then_some(())).await;

    let pods = node.open().await;
    let after = pods.get("a").unwrap();
    assert_eq!((after.shim_pid, after.ready, after.created_ms), (before.shim_pid, true, before.created_ms));
    assert_eq!(running(&pods, "a", &key).await, pid);
    assert_eq!(exit(&pods, "a", &brief).await.code, 6);
    let lines = output(&pods, "a", &key).await.lines().count();
    said(&pods, "a", &key, &format!("line {}\n", lines + 5)).await;
    let numbers: Vec<String> = output(&pods, "a", &key).await.lines().map(str::to_owned).collect();
    assert!(numbers.iter().enumerate().all(|(n, line)| *line == format!("line {n}")), "a line is missing");
    let spec = ExecSpec { args: vec!["echo".into(), "still here".into()], ..Default::default() };
    assert_eq!(pods.exec_sync("a", &key, &spec, PATIENCE).await.unwrap().stdout, b"still here\n");
    pods.stop_container("a", &key, Duration::from_millis(50)).await.unwrap();
    pods.remove_sandbox("a").await.unwrap();
}

#[tokio::test]
async fn the_shim_belongs_to_no_daemon() {
    let node = Node::new();
    let pods = node.open().await;
    let pid = pods.create_sandbox(sandbox("a")).await.unwrap().shim_pid.unwrap();
    let status = read(std::path::Path::new(&format!("/proc/{pid}/status")));
    let field = |key: &str| status.lines().find_map(|l| l.strip_prefix(key)).unwrap().trim().to_owned();
    assert_ne!(field("PPid:"), std::process::id().to_string());
    assert_eq!(field("Threads:"), "1");
    assert_eq!(nix::unistd::getsid(Some(Pid::from_raw(pid))).unwrap().as_raw(), pid);
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(node.config.run.join("a/shim.sock")).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
    // It goes on after a TERM: someone else decides when the machine goes down.
    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    let key = run(&pods, "a", node.container("main", "exit 0")).await;
    assert_eq!(exit(&pods, "a", &key).await.code, 0);
    pods.remove_sandbox("a").await.unwrap();
    until("the shim ends", || (!alive(pid)).then_some(())).await;
}

#[tokio::test]
async fn a_killed_shim_takes_its_containers_along_and_is_told() {
    let node = Node::new();
    let pods = node.open().await;
    let shim = pods.create_sandbox(sandbox("a")).await.unwrap().shim_pid.unwrap();
    let mut changes = pods.subscribe();
    let key = run(&pods, "a", node.container("main", COUNTER)).await;
    let early = run(&pods, "a", node.container("early", "exit 4")).await;
    let pid = running(&pods, "a", &key).await;
    exit(&pods, "a", &early).await;
    kill(Pid::from_raw(shim), Signal::SIGKILL).unwrap();
    let ended = exit(&pods, "a", &key).await;
    assert_eq!((ended.code, ended.reason.as_str()), (137, "ShimDied"));
    assert!(!alive(pid));
    assert_eq!(exit(&pods, "a", &early).await.code, 4, "a known exit stays known");
    assert!(!pods.get("a").unwrap().ready);
    assert_eq!(changes.recv().await.unwrap(), "a");
    // The same from disk.
    pods.close().await;
    drop(pods);
    let pods = node.open().await;
    assert_eq!(exit(&pods, "a", &key).await, ended);
    pods.remove_container("a", &key).await.unwrap();
    assert!(state(&pods, "a", &key).is_none());
    pods.remove_sandbox("a").await.unwrap();
    assert!(!node.config.root.join("a").exists() && !node.config.run.join("a").exists());
}

#[tokio::test]
async fn a_shim_that_died_unseen_is_buried_at_the_next_open() {
    let node = Node::new();
    let pods = node.open().await;
    let shim = pods.create_sandbox(sandbox("a")).await.unwrap().shim_pid.unwrap();
    let key = run(&pods, "a", node.container("main", "sleep 300")).await;
    let pid = running(&pods, "a", &key).await;
    pods.close().await;
    drop(pods);
    kill(Pid::from_raw(shim), Signal::SIGKILL).unwrap();
    until("the shim is dead", || (!alive(shim)).then_some(())).await;
    assert!(alive(pid), "a container outlives its shim until someone looks");
    let pods = node.open().await;
    assert_eq!(exit(&pods, "a", &key).await.reason, "ShimDied");
    assert!(!alive(pid));
    pods.remove_sandbox("a").await.unwrap();
}

#[tokio::test]
async fn following_a_log_ends_with_the_container() {
    let node = Node::new();
    let pods = node.open().await;
    pods.create_sandbox(sandbox("a")).await.unwrap();
    let key = run(&pods, "a", node.container("main", "for i in $(seq 20); do echo $i; sleep 0.01; done")).await;
    let mut reader = pods.logs("a", &key, LogOptions { follow: true, ..Default::default() }).unwrap();
    let mut text = String::new();
    while let Some(piece) = tokio::time::timeout(PATIENCE, reader.next()).await.unwrap().unwrap() {
        text.push_str(std::str::from_utf8(&piece).unwrap());
    }
    assert_eq!(text.lines().count(), 20);
    pods.remove_sandbox("a").await.unwrap();
}

/// The same life under a command-line engine.
async fn other_engine(path: &str) {
    let node = Node::with(EngineChoice::Command { path: path.into() });
    let pods = node.open().await;
    pods.create_sandbox(sandbox("a")).await.unwrap();
    let key = run(&pods, "a", node.container("main", COUNTER)).await;
    let pid = running(&pods, "a", &key).await;
    said(&pods, "a", &key, "line 3").await;
    pods.close().await;
    drop(pods);
    let pods = node.open().await;
    assert_eq!(running(&pods, "a", &key).await, pid);
    let spec = ExecSpec { args: ["sh", "-c", "echo $0; exit 3"].map(String::from).into(), ..Default::default() };
    let done = pods.exec_sync("a", &key, &spec, PATIENCE).await.unwrap();
    assert_eq!((done.code, done.stdout.as_slice()), (3, b"sh\n".as_slice()));
    let tty =
        ExecSpec { args: ["sh", "-c", "stty size; exit 2"].map(String::from).into(), tty: true, ..Default::default() };
    let mut session = pods.exec("a", &key, &tty).await.unwrap();
    assert_eq!(session.exit.wait().await.unwrap(), 2);
    pods.stop_container("a", &key, Duration::from_millis(100)).await.unwrap();
    let ended = exit(&pods, "a", &key).await;
    assert!(ended.code == 143 || ended.code == 137, "{ended:?}");
    let mut bad = node.container("bad", "");
    bad.args = vec!["/no/such/file".into()];
    let created = pods.create_container("a", bad).await;
    if created.is_ok() {
        pods.start_container("a", "bad-0").await.unwrap_err();
    }
    let ended = exit(&pods, "a", "bad-0").await;
    assert_eq!((ended.code, ended.reason.as_str()), (127, "StartError"), "{ended:?}");
    let mut greedy = node.container("greedy", "tail /dev/zero");
    greedy.limits.memory_bytes = Some(16 << 20);
    let greedy = run(&pods, "a", greedy).await;
    assert_eq!(exit(&pods, "a", &greedy).await.reason, "OOMKilled");
    pods.remove_sandbox("a").await.unwrap();
}

#[tokio::test]
async fn runc_runs_containers_too() {
    other_engine("/usr/sbin/runc").await;
}

#[test]
fn a_shim_without_a_launch_file_says_so() {
    let run = |args: &[&str]| {
        let output = Command::new(shim()).args(args).stdin(Stdio::null()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(run(&[]).0, Some(2));
    let (code, said) = run(&["/no/such/launch.json"]);
    assert!(code == Some(1) && said.contains("No such file"), "{said}");
}

#[tokio::test]
async fn a_stranger_on_the_socket_harms_nobody() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let node = Node::new();
    let pods = node.open().await;
    pods.create_sandbox(sandbox("a")).await.unwrap();
    let socket = node.config.run.join("a/shim.sock");
    for bytes in [u32::MAX.to_be_bytes().to_vec(), b"\0\0\0\x02{]".to_vec(), vec![0; 100_000]] {
        let mut stream = tokio::net::UnixStream::connect(&socket).await.unwrap();
        let _ = stream.write_all(&bytes).await;
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await.unwrap();
    }
    let body = br#"{"id":1,"request":{"op":"shutdown"}}"#;
    let mut stream = tokio::net::UnixStream::connect(&socket).await.unwrap();
    stream.write_all(&[&(body.len() as u32).to_be_bytes()[..], body].concat()).await.unwrap();
    let mut answer = [0; 512];
    let length = stream.read(&mut answer).await.unwrap();
    assert!(String::from_utf8_lossy(&answer[..length]).contains("hello"), "the first call is hello");
    let key = run(&pods, "a", node.container("main", "exit 0")).await;
    until("it ends", || matches!(state(&pods, "a", &key)?.phase, Phase::Exited(_)).then_some(())).await;
    pods.remove_sandbox("a").await.unwrap();
}
