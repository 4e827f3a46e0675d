//! The command line as people and scripts meet it: the program itself, talking over a socket.

mod daemon;
mod objects;
mod remote;
mod terminal;

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use daemon::Daemon;

/// No command here takes this long unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub fn flotilla(socket: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flotilla"));
    for name in ["FLOTILLA_SERVER", "FLOTILLA_CREDENTIALS", "FLOTILLA_NAMESPACE"] {
        command.env_remove(name);
    }
    command.env("FLOTILLA_SOCKET", socket).stdin(Stdio::null()).kill_on_drop(true);
    command
}

async fn run(daemon: &Daemon, line: &str) -> Output {
    let mut command = flotilla(daemon.socket());
    command.args(line.split_whitespace());
    tokio::time::timeout(PATIENCE, command.output()).await.expect("in time").unwrap()
}

/// Exit code, standard output, standard error.
fn parts(output: &Output) -> (i32, &str, &str) {
    let text = |bytes| std::str::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test]
async fn run_waits_until_the_job_runs_and_says_what_holds_it_up() {
    let daemon = Daemon::start();
    let output = run(&daemon, "run web --image nginx --replicas 2").await;
    let expected = "job web created\nweb: 0/2 running (pulling image on node-2)\nweb: 1/2 running\nweb: 2/2 running\n";
    assert_eq!(parts(&output), (0, expected, ""));
    let output = run(&daemon, "run web --image nginx --detach").await;
    assert_eq!(parts(&output), (0, "job web created\n", ""));
}

#[tokio::test]
async fn a_daemon_that_is_away_for_a_moment_is_waited_for() {
    let daemon = Daemon::start();
    let output = run(&daemon, "run flaky --image nginx").await;
    let (code, out, error) = parts(&output);
    assert_eq!((code, error), (0, ""), "{out}");
    assert!(out.contains("flaky: waiting for the daemon to answer again\n"), "{out}");
    assert!(out.ends_with("flaky: 2/2 running\n"), "{out}");
}

#[tokio::test]
async fn a_job_that_fails_says_why() {
    let daemon = Daemon::start();
    let output = run(&daemon, "run broken --image nginx").await;
    assert_eq!(parts(&output), (1, "job broken created\n", "error: job broken failed: no progress for 600 s\n"));
}

#[tokio::test]
async fn every_field_that_is_wrong_has_a_line() {
    let daemon = Daemon::start();
    let output = run(&daemon, "run web --image nginx --replicas=-1").await;
    let expected = "error: Job \"web\" is invalid\n  count: Invalid value: -1: must be 0 or more\n  \
                    containers[0].image: Required value\n";
    assert_eq!(parts(&output), (1, "", expected));
}

#[tokio::test]
async fn listings_are_tables_json_or_yaml() {
    let daemon = Daemon::start();
    let output = run(&daemon, "jobs").await;
    let table = "NAME   TYPE      STATUS    TASKS   AGE   IMAGES\nweb    service   Running   2/2     -     nginx\n";
    assert_eq!(parts(&output), (0, table, ""));
    let output = run(&daemon, "nodes -o json").await;
    let nodes: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(nodes[0]["name"], "node-1");
    assert_eq!(nodes[0]["cpuCapacityMillis"], 2_000);
    let output = run(&daemon, "status web -o yaml").await;
    let (code, out, _) = parts(&output);
    assert!(code == 0 && out.starts_with("name: web\nnamespace: default\n"), "{out}");
}

#[tokio::test]
async fn logs_of_a_job_name_the_pod_of_each_line() {
    let daemon = Daemon::start();
    let output = run(&daemon, "logs web").await;
    let expected = "web-a | first of web-a\nweb-a | second\nweb-b | first of web-b\nweb-b | second\n";
    assert_eq!(parts(&output), (0, expected, ""));
    let output = run(&daemon, "logs web-a").await;
    assert_eq!(parts(&output), (0, "first of web-a\nsecond\n", ""));
    let output = run(&daemon, "logs job/nothing").await;
    assert_eq!(parts(&output), (1, "", "error: jobs \"nothing\" not found\n"));
}

#[tokio::test]
async fn following_a_batch_job_ends_with_it_and_shows_each_line_once() {
    let daemon = Daemon::start();
    let output = run(&daemon, "logs done -f").await;
    let (code, out, error) = parts(&output);
    let mut lines: Vec<&str> = out.lines().collect();
    lines.sort_unstable();
    let expected = ["web-a | first of web-a", "web-a | second", "web-b | first of web-b", "web-b | second"];
    assert_eq!((code, lines.as_slice(), error), (0, expected.as_slice(), ""));
}

#[tokio::test]
async fn exec_ends_with_the_code_of_the_command() {
    let daemon = Daemon::start();
    let output = run(&daemon, "exec web-a -- exit 7").await;
    assert_eq!(parts(&output), (7, "", "leaving\n"));
}

#[tokio::test]
async fn exec_passes_standard_input_on_to_its_end() {
    let daemon = Daemon::start();
    let mut command = flotilla(daemon.socket());
    let mut child = command
        .args(["exec", "web-a", "-i", "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let text = "line\n".repeat(100_000);
    let writing = async {
        stdin.write_all(text.as_bytes()).await.unwrap();
        drop(stdin);
    };
    let (output, ()) = tokio::join!(tokio::time::timeout(PATIENCE, child.wait_with_output()), writing);
    let output = output.expect("in time").unwrap();
    assert!(output.status.success());
    assert_eq!(output.stdout.len(), text.len());
}

#[tokio::test]
async fn tokens_and_drains_are_told() {
    let daemon = Daemon::start();
    let output = run(&daemon, "token create --ttl 1h --uses 3").await;
    let (code, out, hint) = parts(&output);
    assert_eq!((code, out), (0, "flt1.3600.3\n"));
    assert!(hint.contains("3 machines") && hint.contains("flotilla up --join"), "{hint}");
    let output = run(&daemon, "drain node-1").await;
    assert_eq!(parts(&output), (0, "0/2 pods moved\n1/2 pods moved\n2/2 pods moved\nnode node-1 drained\n", ""));
}

#[tokio::test]
async fn without_a_daemon_it_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("none.sock");
    let output = flotilla(&socket).arg("nodes").output().await.unwrap();
    let expected = format!(
        "error: no daemon answers at {}: start one with 'flotilla up', or name another machine with --server\n",
        socket.display()
    );
    assert_eq!(parts(&output), (1, "", expected.as_str()));
    let output = flotilla(&socket).args(["version", "--client"]).output().await.unwrap();
    assert_eq!(parts(&output).0, 0);
    let output = flotilla(&socket).args(["nodes", "--nonsense"]).output().await.unwrap();
    assert_eq!(parts(&output).0, 2);
}

#[tokio::test]
async fn a_reader_that_has_had_enough_is_no_error_to_tell() {
    let daemon = Daemon::start();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = flotilla(daemon.socket()).arg("nodes").stdout(writer).stderr(Stdio::piped()).output().await.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[tokio::test]
async fn objects_come_as_tables_names_json_or_yaml() {
    let daemon = Daemon::start();
    let output = run(&daemon, "get pods").await;
    let expected = "NAME    READY   STATUS    RESTARTS   AGE\n\
                    web-a   0/1     Running   0          <unknown>\n\
                    web-b   0/1     Pending   0          <unknown>\n";
    assert_eq!(parts(&output), (0, expected, ""));
    let output = run(&daemon, "get po -o name").await;
    assert_eq!(parts(&output), (0, "pod/web-a\npod/web-b\n", ""));
    let output = run(&daemon, "get pod/web-a -o json").await;
    let pod: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&pod["kind"], &pod["metadata"]["name"]), (&"Pod".into(), &"web-a".into()));
    let output = run(&daemon, "get pods -o yaml").await;
    let list: serde_json::Value = serde_saphyr::from_slice(&output.stdout).unwrap();
    assert_eq!((&list["kind"], list["items"].as_array().map(Vec::len)), (&"List".into(), Some(2)));
    let output = run(&daemon, "get pod nothing").await;
    assert_eq!(parts(&output), (1, "", "error: pods \"nothing\" not found\n"));
}

#[tokio::test]
async fn a_watch_goes_on_below_its_list() {
    let daemon = Daemon::start();
    let output = run(&daemon, "get pods --watch").await;
    let (code, out, _) = parts(&output);
    assert_eq!(code, 0);
    assert_eq!(out.lines().count(), 4, "{out}");
    assert!(out.contains("\na-much-longer-name   0/1"), "{out}");
    let output = run(&daemon, "get pods --watch -o name").await;
    assert_eq!(parts(&output), (0, "pod/web-a\npod/web-b\npod/a-much-longer-name\n", ""));
}

#[tokio::test]
async fn deleting_waits_until_the_object_is_gone() {
    let daemon = Daemon::start();
    let output = run(&daemon, "delete pods web-a dying").await;
    assert_eq!(parts(&output), (0, "pod/web-a deleted\npod/dying deleted\n", ""));
    let output = run(&daemon, "delete pods dying --detach").await;
    assert_eq!(parts(&output), (0, "pod/dying is being deleted\n", ""));
    let output = run(&daemon, "delete pods nothing web-a").await;
    assert_eq!(parts(&output), (1, "pod/web-a deleted\n", "error: pods \"nothing\" not found\n"));
    let output = run(&daemon, "delete pods nothing --ignore-not-found").await;
    assert_eq!(parts(&output), (0, "", ""));
}

#[tokio::test]
async fn manifests_are_applied_and_deleted_from_files() {
    let (daemon, dir) = (Daemon::start(), tempfile::tempdir().unwrap());
    let pod = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web-a\n";
    std::fs::write(dir.path().join("a-bad.yaml"), format!("{pod}spec: {{imagee: x}}\n")).unwrap();
    std::fs::write(dir.path().join("b-good.yaml"), pod).unwrap();
    let folder = dir.path().display();
    let output = run(&daemon, &format!("apply -f {folder}")).await;
    let expected = format!("error: {folder}/a-bad.yaml: spec.containers[0].imagee: unknown field\n");
    assert_eq!(parts(&output), (1, "pod/web-a created\n", expected.as_str()));
    let output = run(&daemon, &format!("delete -f {folder}/b-good.yaml")).await;
    assert_eq!(parts(&output), (0, "pod/web-a deleted\n", ""));
    let output = run(&daemon, &format!("submit {folder}/b-good.yaml")).await;
    let expected = format!(
        "error: {folder}/b-good.yaml: this is a Kubernetes manifest: use 'flotilla apply -f {folder}/b-good.yaml'\n"
    );
    assert_eq!(parts(&output), (1, "", expected.as_str()));
}

#[tokio::test]
async fn job_files_are_submitted() {
    let (daemon, dir) = (Daemon::start(), tempfile::tempdir().unwrap());
    let file = dir.path().join("web.yaml");
    std::fs::write(&file, "name: web\nimage: nginx\ncount: 2\n").unwrap();
    let output = run(&daemon, &format!("submit {}", file.display())).await;
    let (code, out, error) = parts(&output);
    assert_eq!((code, error), (0, ""));
    assert!(out.starts_with("job web created\n") && out.ends_with("web: 2/2 running\n"), "{out}");
    std::fs::write(&file, "name: web\nimagee: nginx\n").unwrap();
    let output = run(&daemon, &format!("submit {}", file.display())).await;
    let (code, _, error) = parts(&output);
    assert!(code == 1 && error.contains("imagee"), "{error}");
}

#[tokio::test]
async fn images_are_pulled_and_imported() {
    let (daemon, dir) = (Daemon::start(), tempfile::tempdir().unwrap());
    let output = run(&daemon, "image pull nginx").await;
    let expected = "nginx: downloading 40Mi\nnginx: unpacking 40Mi\nnginx: done 40Mi\nnginx: abc (40Mi)\n";
    assert_eq!(parts(&output), (0, expected, ""));
    let archive = dir.path().join("web.tar");
    std::fs::write(&archive, vec![0; 3 << 20]).unwrap();
    let output = run(&daemon, &format!("image import {}", archive.display())).await;
    assert_eq!(parts(&output), (0, "web:v1 abc (3Mi)\n", ""));
    let output = run(&daemon, &format!("image import {}", dir.path().display())).await;
    let (code, _, error) = parts(&output);
    assert!(code == 1 && error.starts_with("error: cannot read "), "{error}");
}

#[tokio::test]
async fn a_backup_that_is_not_whole_is_none() {
    let (daemon, dir) = (Daemon::start(), tempfile::tempdir().unwrap());
    let file = dir.path().join("flotilla.backup");
    std::fs::write(&file, "an earlier one").unwrap();
    let output = run(&daemon, &format!("backup {}", file.display())).await;
    let (code, out, error) = parts(&output);
    assert!((code, out) == (1, "") && error.contains("is cut off after 8 bytes"), "{error}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "an earlier one");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
    let output = run(&daemon, &format!("backup {}", dir.path().display())).await;
    assert!(parts(&output).2.contains("is a directory"));
}
