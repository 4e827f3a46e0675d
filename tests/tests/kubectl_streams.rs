//! What a person sees of and does in running containers with the real kubectl, on three nodes, over WebSockets and over
//! SPDY.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::time::Duration;

use flotilla_tests::cli::{self, Said};
use flotilla_tests::{Cluster, Kubectl, Scene, eventually, image};

const LIMIT: Duration = Duration::from_secs(60);
/// For an answer of a connection that is there.
const ANSWER: Duration = Duration::from_secs(20);

/// What makes kubectl speak SPDY.
const SPDY: [(&str, &str); 2] =
    [("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false"), ("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false")];
const WEBSOCKETS: [(&str, &str); 2] =
    [("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "true"), ("KUBECTL_PORT_FORWARD_WEBSOCKETS", "true")];

fn pods(image: &str, web: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: shell, labels: {{app: shell}}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: {image}
    command: [sh, -c, 'echo first; echo oops >&2; for n in 1 2 3 4 5; do echo line $n; done; while :; do sleep 0.2; done']
  - name: side
    image: {image}
    command: [sh, -c, 'echo beside; while :; do sleep 0.2; done']
---
apiVersion: v1
kind: Pod
metadata: {{name: crash}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: {image}
    command: [sh, -c, 'if [ -e /data/again ]; then echo second; while :; do sleep 0.2; done; fi; echo once > /data/again; echo first try; exit 3']
    volumeMounts: [{{name: data, mountPath: /data}}]
  volumes: [{{name: data, emptyDir: {{}}}}]
---
apiVersion: v1
kind: Pod
metadata: {{name: fed}}
spec:
  terminationGracePeriodSeconds: 1
  restartPolicy: Never
  containers:
  - name: main
    image: {image}
    stdin: true
    stdinOnce: true
    command: [sh, -c, 'while read line; do echo got $line; done; echo oops >&2; echo end']
---
apiVersion: v1
kind: Pod
metadata: {{name: web, labels: {{app: web}}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: {web}
    ports: [{{containerPort: 80}}]
"
    )
}

async fn scene() -> (Scene, Kubectl, String) {
    let scene = Scene::set(3).await;
    let busybox = scene.registry.push(&image::busybox(scene.registry.workshop()));
    let web = scene.registry.push(&image::nginx(scene.registry.workshop()));
    // Another node than most pods are on.
    let kubectl = Kubectl::new(&scene.cluster, "node-2");
    let file = kubectl.file("pods.yaml", &pods(&busybox, &web));
    kubectl.ok(&["create", "-f", &file]);
    kubectl.ok(&["wait", "--for=condition=Ready", "pod/shell", "pod/web", "pod/fed", "--timeout=60s"]);
    (scene, kubectl, busybox)
}

fn with(kubectl: &Kubectl, environment: &[(&str, &str)], arguments: &[&str], input: &[u8]) -> Said {
    let mut command = kubectl.command(arguments);
    command.envs(environment.iter().copied());
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("kubectl starts");
    let (mut stdin, input) = (child.stdin.take().expect("a pipe"), input.to_vec());
    let feeding = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let said = cli::said(child.wait_with_output().expect("kubectl ends"));
    feeding.join().expect("feeding does not panic");
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_commands_copies_and_ports_reach_into_pods() {
    let (scene, kubectl, busybox) = scene().await;
    logs(&kubectl).await;
    for environment in [&WEBSOCKETS, &SPDY] {
        exec(&kubectl, environment);
        terminal(&kubectl, environment);
        copy(&kubectl, environment);
        forward(&kubectl, environment);
        killed_client(&scene.cluster, &kubectl, environment).await;
    }
    attach(&kubectl, &busybox).await;
    proxy(&kubectl);
}

async fn logs(kubectl: &Kubectl) {
    let all = || async {
        let log = kubectl.ok(&["logs", "shell", "-c", "main"]);
        let wanted = ["first", "oops", "line 1", "line 5"];
        if wanted.iter().all(|line| log.lines().any(|l| l == *line)) { Ok(()) } else { Err(log) }
    };
    eventually(LIMIT, "the log is whole", all).await;
    assert_eq!(kubectl.ok(&["logs", "shell", "-c", "side"]), "beside\n");
    let defaulted = kubectl.run(&["logs", "shell", "--tail=1"]);
    assert_eq!((defaulted.code, defaulted.out.lines().count()), (Some(0), 1), "{defaulted:?}");
    assert_eq!(kubectl.ok(&["logs", "shell", "-c", "main", "--tail=0"]), "");
    assert_eq!(kubectl.ok(&["logs", "shell", "-c", "side", "--limit-bytes=3"]), "bes");
    let stamped = kubectl.ok(&["logs", "shell", "-c", "side", "--timestamps"]);
    assert!(stamped.starts_with("20") && stamped.ends_with("Z beside\n"), "{stamped}");
    assert_eq!(kubectl.ok(&["logs", "shell", "-c", "side", "--since=1h"]), "beside\n");
    assert_eq!(kubectl.ok(&["logs", "shell", "-c", "side", "--since-time=2999-01-01T00:00:00Z"]), "");
    assert_eq!(kubectl.ok(&["logs", "shell", "-c", "side", "--since-time=2001-01-01T00:00:00Z"]), "beside\n");
    let prefixed = kubectl.ok(&["logs", "-l", "app=shell", "--all-containers", "--prefix"]);
    assert!(prefixed.contains("[pod/shell/side] beside\n"), "{prefixed}");
    assert!(prefixed.contains("[pod/shell/main] line 5\n"), "{prefixed}");
    let raw = "/api/v1/namespaces/default/pods/shell/log?container=main&stream=Stderr";
    assert_eq!(kubectl.ok(&["get", "--raw", raw]), "oops\n");

    let again = || async {
        let count = kubectl.ok(&["get", "pod", "crash", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"]);
        if count == "1" { Ok(()) } else { Err(count) }
    };
    eventually(LIMIT, "the container that failed runs again", again).await;
    assert_eq!(kubectl.ok(&["logs", "crash", "--previous"]), "first try\n");
    let second = || async {
        let log = kubectl.ok(&["logs", "crash"]);
        if log == "second\n" { Ok(()) } else { Err(log) }
    };
    eventually(LIMIT, "it says so", second).await;
    let none = kubectl.fails(&["logs", "shell", "-c", "main", "--previous"]);
    assert!(none.contains("previous terminated container \"main\" in pod \"shell\" not found"), "{none}");
    let none = kubectl.fails(&["logs", "shell", "-c", "nothing"]);
    assert!(none.contains("container nothing is not valid for pod shell"), "{none}");

    let mut following = spawn(kubectl, &[], &["logs", "-f", "shell", "-c", "side"]);
    let mut lines = BufReader::new(following.stdout.take().expect("a pipe")).lines();
    assert_eq!(lines.next().expect("a line").expect("text"), "beside");
    kubectl.ok(&["exec", "shell", "-c", "side", "--", "sh", "-c", "echo later > /proc/1/fd/1"]);
    assert_eq!(lines.next().expect("a line").expect("text"), "later");
    end(following);
}

fn exec(kubectl: &Kubectl, environment: &[(&str, &str)]) {
    let main = |command: &str| ["exec", "-i", "shell", "-c", "main", "--", "sh", "-c", command].map(str::to_owned);
    let run = |command: &str, input: &[u8]| {
        let arguments = main(command);
        with(kubectl, environment, &arguments.each_ref().map(String::as_str), input)
    };
    let said = run("echo out; echo err >&2; exit 7", b"");
    assert_eq!((said.code, said.out.as_str()), (Some(7), "out\n"), "{said:?}");
    assert!(said.err.contains("err\n") && said.err.contains("exit code 7"), "{said:?}");
    // The end of the input has to get through, and all of it before.
    let said = run("wc -c", &vec![b'x'; 300_000]);
    assert_eq!((said.code, said.out.trim()), (Some(0), "300000"), "{said:?}");
    let said = run("cat", "some words\n".repeat(30_000).as_bytes());
    assert_eq!((said.code, said.out.len()), (Some(0), 330_000));
    let said = run("yes | head -c 3000000", b"");
    assert_eq!((said.code, said.out.len()), (Some(0), 3_000_000));
    let arguments = ["exec", "shell", "-c", "main", "--", "/no/such/thing"];
    let said = with(kubectl, environment, &arguments, b"");
    assert!(said.code != Some(0) && said.err.contains("/no/such/thing"), "{said:?}");
    let said = with(kubectl, environment, &["exec", "none", "--", "true"], b"");
    assert!(said.err.contains("pods \"none\" not found"), "{said:?}");
}

/// Through a pseudo-terminal that `script` makes.
fn terminal(kubectl: &Kubectl, environment: &[(&str, &str)]) {
    let command = "stty rows 33 cols 99; kubectl exec -it shell -c main -- sh -c 'until [ \"$(stty size)\" = \"33 99\" ]; do sleep 0.1; done; test -t 0 && stty size; read x; echo got $x; exit 5'";
    let mut script = std::process::Command::new("script");
    script.args(["-qec", command, "/dev/null"]).env("KUBECONFIG", kubectl.config()).env("HOME", kubectl.dir());
    script.envs(environment.iter().copied()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = script.spawn().expect("script is there");
    let mut stdin = child.stdin.take().expect("a pipe");
    let mut out = child.stdout.take().expect("a pipe");
    let mut seen = Vec::new();
    let mut buffer = [0; 1024];
    while !String::from_utf8_lossy(&seen).contains("33 99") {
        let length = out.read(&mut buffer).expect("the terminal can be read");
        assert!(length > 0, "the terminal ends: {}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&buffer[..length]);
    }
    stdin.write_all(b"typed\n").expect("the terminal can be written");
    out.read_to_end(&mut seen).expect("the terminal can be read");
    assert!(String::from_utf8_lossy(&seen).contains("got typed"), "{}", String::from_utf8_lossy(&seen));
    assert_eq!(child.wait().expect("script ends").code(), Some(5));
}

fn copy(kubectl: &Kubectl, environment: &[(&str, &str)]) {
    let noise: Vec<u8> = (0..1_500_000).map(|_| rand::random()).collect();
    std::fs::write(kubectl.dir().join("noise"), &noise).expect("a file can be written");
    let said = with(kubectl, environment, &["cp", "noise", "shell:/tmp/noise", "-c", "main"], b"");
    assert_eq!(said.code, Some(0), "{said:?}");
    let said = with(kubectl, environment, &["cp", "shell:/tmp/noise", "back", "-c", "main"], b"");
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(std::fs::read(kubectl.dir().join("back")).expect("it is there") == noise, "it came back another");
    std::fs::remove_file(kubectl.dir().join("back")).expect("it can be removed");
}

fn forward(kubectl: &Kubectl, environment: &[(&str, &str)]) {
    let (forwarding, port) = begin_forwarding(kubectl, environment, ":80");
    let asking: Vec<_> = (0..40).map(|_| std::thread::spawn(move || get(port))).collect();
    for answer in asking {
        let answer = answer.join().expect("asking does not panic");
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\nweb\n"), "{answer}");
    }
    end(forwarding);
    // Nobody listens there, and kubectl is told so.
    let (mut forwarding, port) = begin_forwarding(kubectl, environment, ":81");
    let mut errors = BufReader::new(forwarding.stderr.take().expect("a pipe")).lines();
    assert_eq!(get(port), "");
    let told = errors.next().expect("a line").expect("text");
    assert!(told.contains("error forwarding port 81 to pod"), "{told}");
    end(forwarding);
}

fn begin_forwarding(kubectl: &Kubectl, environment: &[(&str, &str)], ports: &str) -> (Child, u16) {
    let mut child = spawn(kubectl, environment, &["port-forward", "pod/web", ports]);
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let line = lines.next().expect("kubectl says where").expect("text");
    // Forwarding from 127.0.0.1:40123 -> 80
    let port = line.split(':').nth(1).and_then(|rest| rest.split(' ').next()).and_then(|port| port.parse().ok());
    std::thread::spawn(move || lines.count());
    (child, port.unwrap_or_else(|| panic!("{line}")))
}

fn get(port: u16) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("kubectl listens");
    stream.set_read_timeout(Some(ANSWER)).expect("a timeout can be set");
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").expect("kubectl reads");
    let mut answer = Vec::new();
    _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// What a client started ends with it, even if it could not say so.
async fn killed_client(cluster: &Cluster, kubectl: &Kubectl, environment: &[(&str, &str)]) {
    let sleeper = ["exec", "-i", "shell", "-c", "main", "--", "sleep", "4321"];
    let mut client = spawn(kubectl, environment, &sleeper);
    let runs = |wanted: bool| {
        move || async move {
            let found = cluster.nodes().iter().flat_map(|node| cluster.container_processes(node)).any(|pid| {
                std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|words| words.ends_with(b"sleep\x004321\x00"))
            });
            if found == wanted { Ok(()) } else { Err(found) }
        }
    };
    eventually(LIMIT, "the command runs", runs(true)).await;
    let counted = |wanted: &'static str| {
        move || async move {
            let metrics = kubectl.ok(&["get", "--raw", "/metrics"]);
            let mut lines = metrics.lines().filter(|line| line.starts_with("apiserver_longrunning_requests{"));
            let line = lines.find(|line| line.contains("subresource=\"exec\"") && line.contains("verb=\"CONNECT\""));
            if line.is_some_and(|line| line.ends_with(wanted)) { Ok(()) } else { Err(metrics) }
        }
    };
    eventually(LIMIT, "the session is counted", counted(" 1")).await;
    client.kill().expect("it can be killed");
    client.wait().expect("it ends");
    eventually(LIMIT, "the command is gone", runs(false)).await;
    eventually(LIMIT, "the session is over", counted(" 0")).await;
}

async fn attach(kubectl: &Kubectl, busybox: &str) {
    let said = with(kubectl, &WEBSOCKETS, &["attach", "-i", "fed"], b"a\nb\n");
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.out.ends_with("got a\ngot b\nend\n"), "{said:?}");
    assert!(said.err.contains("oops\n"), "errors come apart: {said:?}");
    let over = || async {
        let phase = kubectl.ok(&["get", "pod", "fed", "-o", "jsonpath={.status.phase}"]);
        if phase == "Succeeded" { Ok(()) } else { Err(phase) }
    };
    eventually(LIMIT, "the end of the input is the end of the container", over).await;
    for environment in [&WEBSOCKETS, &SPDY] {
        let image = format!("--image={busybox}");
        let name = if environment == &SPDY { "once-spdy" } else { "once-websocket" };
        let run = ["run", name, "-i", "--rm", "--restart=Never", &image, "--", "sh", "-c", "cat; exit 4"];
        let said = with(kubectl, environment, &run, b"through and through\n");
        assert!(said.out.contains("through and through"), "{said:?}");
        assert_eq!(said.code, Some(4), "{said:?}");
    }
}

fn proxy(kubectl: &Kubectl) {
    let path = "/api/v1/namespaces/default/pods/web:80/proxy";
    assert_eq!(kubectl.ok(&["get", "--raw", &format!("{path}/")]), "web\n");
    assert_eq!(
        kubectl.ok(&["get", "--raw", "/api/v1/namespaces/default/pods/web/proxy/any/../../../../path"]),
        "web\n"
    );
    let refused = kubectl.fails(&["get", "--raw", "/api/v1/namespaces/default/pods/web:81/proxy/"]);
    assert!(refused.contains("error trying to reach service"), "{refused}");
    kubectl.ok(&["expose", "pod", "web", "--port=8080", "--target-port=80"]);
    for id in ["web:8080", "web"] {
        let path = format!("/api/v1/namespaces/default/services/{id}/proxy/");
        assert_eq!(kubectl.ok(&["get", "--raw", &path]), "web\n");
    }
    let none = kubectl.fails(&["get", "--raw", "/api/v1/namespaces/default/services/web:99/proxy/"]);
    assert!(none.contains("no service port 99 found for service \"web\""), "{none}");
    assert_eq!(kubectl.ok(&["get", "--raw", "/api/v1/nodes/node-1/proxy/healthz"]), "ok");
}

fn spawn(kubectl: &Kubectl, environment: &[(&str, &str)], arguments: &[&str]) -> Child {
    let mut command = kubectl.command(arguments);
    command.envs(environment.iter().copied());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("kubectl starts")
}

fn end(mut child: Child) {
    child.kill().expect("it can be killed");
    child.wait().expect("it ends");
}
