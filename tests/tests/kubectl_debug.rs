//! A person finds out why a pod does not come up, looks into one while it runs, with a container of their own, and gives it
//! other resources.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use flotilla_tests::{Kubectl, Scene, cli, eventually, image};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);

fn shell(image: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: shell}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: {image}
    command: [sh, -c, 'while :; do sleep 0.2; done', the-target]
    resources: {{requests: {{cpu: 100m, memory: 32Mi}}, limits: {{cpu: 200m, memory: 64Mi}}}}
"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_pod_is_looked_into_and_resized() {
    let scene = Scene::set(3).await;
    let busybox = scene.registry.push(&image::busybox(scene.registry.workshop()));
    // Perhaps another node than the pod's.
    let kubectl = Kubectl::new(&scene.cluster, "node-2");
    kubectl.ok_with(&["create", "-f", "-"], &shell(&busybox));
    kubectl.ok(&["wait", "--for=condition=Ready", "pod/shell", "--timeout=60s"]);
    hear_what_happens(&kubectl, &busybox).await;
    hear_what_is_missing(&kubectl, &busybox).await;
    take_too_much(&kubectl, &busybox);
    fall_ill(&kubectl, &busybox).await;
    stay_in_the_volume(&kubectl, &busybox);
    look(&kubectl, &busybox);
    type_at_a_terminal(&kubectl, &busybox);
    leave_a_container(&kubectl, &busybox).await;
    look_at_a_copy(&kubectl, &busybox).await;
    resize(&kubectl).await;
    resize_to_too_little(&kubectl).await;
    be_evicted(&kubectl).await;
}

/// The messages of a pod's Events for one reason, each after the part of the pod that it is about.
fn told(kubectl: &Kubectl, pod: &str, reason: &str) -> String {
    let selector = format!("--field-selector=involvedObject.name={pod},reason={reason}");
    let words = r#"jsonpath={range .items[*]}{.involvedObject.fieldPath}: {.message}{"\n"}{end}"#;
    kubectl.ok(&["get", "events", &selector, "-o", words])
}

/// Waits until it is told.
async fn tells(kubectl: &Kubectl, pod: &str, reason: &str, words: &str) {
    let look = || async {
        let said = told(kubectl, pod, reason);
        if said.contains(words) { Ok(()) } else { Err(said) }
    };
    eventually(LIMIT, &format!("{reason} is told of {pod}"), look).await;
}

async fn hear_what_happens(kubectl: &Kubectl, busybox: &str) {
    let present = format!("spec.containers{{main}}: Container image \"{busybox}\" already present on machine");
    let pulled = told(kubectl, "shell", "Pulled");
    let fetched = format!("spec.containers{{main}}: Successfully pulled image \"{busybox}\" in ");
    assert!(pulled.contains(&present) || pulled.contains(&fetched) && pulled.contains(" bytes."), "{pulled}");
    tells(kubectl, "shell", "Created", "spec.containers{main}: Created container: main").await;
    tells(kubectl, "shell", "Started", "spec.containers{main}: Started container main").await;
    let images = || async {
        let said = kubectl.ok(&["get", "nodes", "-o", "jsonpath={.items[*].status.images[*].names}"]);
        if said.contains(busybox) { Ok(()) } else { Err(said) }
    };
    eventually(LIMIT, "a node says that it has the image", images).await;
}

/// A pod whose Secret is not there, and whose hook fails.
async fn hear_what_is_missing(kubectl: &Kubectl, busybox: &str) {
    let pod = format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: missing}}
spec:
  terminationGracePeriodSeconds: 1
  restartPolicy: Never
  volumes: [{{name: keys, secret: {{secretName: later}}}}]
  containers:
  - name: main
    image: {busybox}
    command: [sh, -c, 'while :; do sleep 0.2; done']
    volumeMounts: [{{name: keys, mountPath: /keys}}]
    lifecycle: {{postStart: {{exec: {{command: ['false']}}}}}}
"
    );
    kubectl.ok_with(&["create", "-f", "-"], &pod);
    let unmounted = ": MountVolume.SetUp failed for volume \"keys\" : secret \"later\" not found";
    tells(kubectl, "missing", "FailedMount", unmounted).await;
    let waits = "jsonpath={.status.containerStatuses[0].state.waiting}";
    let said = kubectl.ok(&["get", "pod", "missing", "-o", waits]);
    assert_eq!(said, "{\"reason\":\"ContainerCreating\"}");
    kubectl.ok(&["create", "secret", "generic", "later", "--from-literal=a=b"]);
    tells(kubectl, "missing", "FailedPostStartHook", "spec.containers{main}: PostStartHook failed").await;
    kubectl.ok(&["delete", "pod/missing", "secret/later"]);
}

/// A pod that writes more into a volume than it may.
fn take_too_much(kubectl: &Kubectl, busybox: &str) {
    let pod = format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: greedy}}
spec:
  volumes: [{{name: room, emptyDir: {{sizeLimit: 1Mi}}}}]
  containers:
  - name: main
    image: {busybox}
    command: [sh, -c, 'dd if=/dev/zero of=/room/file bs=1M count=2; while :; do sleep 0.2; done']
    volumeMounts: [{{name: room, mountPath: /room}}]
"
    );
    kubectl.ok_with(&["create", "-f", "-"], &pod);
}

async fn be_evicted(kubectl: &Kubectl) {
    // With a space at its end, as kubelet says it.
    let words = "Usage of EmptyDir volume \"room\" exceeds the limit \"1Mi\". ";
    tells(kubectl, "greedy", "Evicted", words).await;
    kubectl.ok(&["wait", "--for=jsonpath={.status.phase}=Failed", "pod/greedy", "--timeout=60s"]);
    let said = kubectl.ok(&["get", "pod", "greedy", "-o", "jsonpath={.status.reason}: {.status.message}"]);
    assert_eq!(said, format!("Evicted: {words}"));
    kubectl.ok(&["delete", "pod", "greedy"]);
}

/// A container that is found ill and cannot say farewell.
async fn fall_ill(kubectl: &Kubectl, busybox: &str) {
    let pod = format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: ill}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: {busybox}
    command: [sh, -c, 'while :; do sleep 0.2; done']
    livenessProbe: {{exec: {{command: [sh, -c, 'echo unwell; exit 1']}}, periodSeconds: 1, failureThreshold: 1}}
    lifecycle: {{preStop: {{exec: {{command: ['false']}}}}}}
"
    );
    kubectl.ok_with(&["create", "-f", "-"], &pod);
    tells(kubectl, "ill", "Unhealthy", "spec.containers{main}: Liveness probe failed: unwell").await;
    let killed = "spec.containers{main}: Container main failed liveness probe, will be restarted";
    tells(kubectl, "ill", "Killing", killed).await;
    tells(kubectl, "ill", "FailedPreStopHook", "spec.containers{main}: PreStopHook failed").await;
    kubectl.ok(&["delete", "pod", "ill"]);
}

/// A container that puts a link into a volume gets nothing outside of it by asking for a part of the volume.
fn stay_in_the_volume(kubectl: &Kubectl, busybox: &str) {
    let outside = std::env::temp_dir().join(format!("flotilla-outside-{}", std::process::id()));
    std::fs::create_dir(&outside).expect("a directory can be made");
    let pod = format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: parts}}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{{name: shared, emptyDir: {{}}}}]
  initContainers:
  - name: link
    image: {busybox}
    command: [sh, -c, 'ln -s {outside} /shared/out']
    volumeMounts: [{{name: shared, mountPath: /shared}}]
  containers:
  - name: inside
    image: {busybox}
    command: [sh, -c, 'echo kept > /part/file; while :; do sleep 0.2; done']
    volumeMounts: [{{name: shared, mountPath: /part, subPath: own/part}}]
  - name: escaping
    image: {busybox}
    command: ['true']
    volumeMounts: [{{name: shared, mountPath: /part, subPath: out/made}}]
",
        outside = outside.display()
    );
    kubectl.ok_with(&["create", "-f", "-"], &pod);
    let refused = "--for=jsonpath={.status.containerStatuses[?(@.name==\"escaping\")].state.waiting.reason}";
    kubectl.ok(&["wait", &format!("{refused}=CreateContainerConfigError"), "pod/parts", "--timeout=60s"]);
    let ready = "--for=jsonpath={.status.containerStatuses[?(@.name==\"inside\")].ready}=true";
    kubectl.ok(&["wait", ready, "pod/parts", "--timeout=60s"]);
    assert_eq!(kubectl.ok(&["exec", "parts", "-c", "inside", "--", "cat", "/part/file"]), "kept\n");
    kubectl.ok(&["delete", "pod", "parts"]);
    // Also what was made and left again would be seen.
    std::fs::remove_dir(&outside).expect("nothing was made outside of the volume");
}

fn debug<'a>(image: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["debug", "shell", "--profile=general", "--image", image], more].concat()
}

/// The container sees the processes of its target, and what is typed gets through.
fn look(kubectl: &Kubectl, busybox: &str) {
    let script = "read x; echo got $x; ps; exit 3";
    let arguments = debug(busybox, &["-i", "-c", "look", "--target=main", "--", "sh", "-c", script]);
    let said = kubectl.pipe(&arguments, "words\n");
    assert!(said.out.contains("got words\n") && said.out.contains("the-target"), "{said:?}");
    assert!(said.out.starts_with("Targeting container \"main\"."), "{said:?}");
    let none = kubectl.fails(&debug(busybox, &["-i", "--target=none", "--", "true"]));
    assert!(none.contains("targetContainerName") && none.contains("none"), "{none}");
    let again = kubectl.fails(&debug(busybox, &["-i", "-c", "main", "--", "true"]));
    assert!(again.contains("Duplicate value: \"main\""), "{again}");
}

fn type_at_a_terminal(kubectl: &Kubectl, busybox: &str) {
    let debug = debug(busybox, &["-it", "-c", "typed", "--"]).join(" ");
    let command = format!("kubectl {debug} sh -c 'test -t 0 && read x; echo got $x'");
    let mut script = Command::new("script");
    script.args(["-qec", &command, "/dev/null"]).env("KUBECONFIG", kubectl.config()).env("HOME", kubectl.dir());
    let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("script is there");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(b"at a terminal\n").expect("the terminal can be written");
    let mut seen = String::new();
    child.stdout.take().expect("a pipe").read_to_string(&mut seen).expect("the terminal can be read");
    drop(stdin);
    assert!(seen.contains("got at a terminal"), "{seen}");
    assert!(child.wait().expect("script ends").success(), "{seen}");
}

/// Who does not attach hears nothing, and finds the container's output and end later.
async fn leave_a_container(kubectl: &Kubectl, busybox: &str) {
    assert_eq!(kubectl.ok(&debug(busybox, &["-c", "left", "--", "sh", "-c", "echo alone; exit 4"])), "");
    let ended = || async {
        let left = "jsonpath={.status.ephemeralContainerStatuses[?(@.name==\"left\")].state.terminated.exitCode}";
        let code = kubectl.ok(&["get", "pod", "shell", "-o", left]);
        if code == "4" { Ok(()) } else { Err(code) }
    };
    eventually(LIMIT, "the container ends", ended).await;
    assert_eq!(kubectl.ok(&["logs", "shell", "-c", "left"]), "alone\n");
    let described = kubectl.ok(&["describe", "pod", "shell"]);
    assert!(described.contains("Ephemeral Containers:") && described.contains("Exit Code:    4"), "{described}");
    // The pod itself did not notice.
    let pod = pod(kubectl);
    let main = &pod["status"]["containerStatuses"][0];
    assert_eq!((&pod["status"]["phase"], &main["restartCount"]), (&json!("Running"), &json!(0)));
}

/// The containers of a copy share their processes, as kubectl has it unless it is told otherwise.
async fn look_at_a_copy(kubectl: &Kubectl, busybox: &str) {
    let arguments =
        debug(busybox, &["--copy-to=copy", "-c", "looker", "--", "sh", "-c", "while :; do ps; sleep 0.5; done"]);
    assert_eq!(kubectl.ok(&arguments), "");
    let seen = || async {
        let seen = kubectl.run(&["logs", "copy", "-c", "looker"]);
        if seen.out.contains("the-target") && seen.out.contains("/pause") { Ok(()) } else { Err(format!("{seen:?}")) }
    };
    eventually(LIMIT, "the copy's processes are seen", seen).await;
    kubectl.ok(&["delete", "pod", "copy", "--grace-period=1"]);
}

fn pod(kubectl: &Kubectl) -> Value {
    serde_json::from_str(&kubectl.ok(&["get", "pod", "shell", "-o", "json"])).expect("kubectl gives JSON")
}

fn resources(cpu: [&str; 2], memory: [&str; 2]) -> Value {
    json!({"requests": {"cpu": cpu[0], "memory": memory[0]}, "limits": {"cpu": cpu[1], "memory": memory[1]}})
}

fn patch(kubectl: &Kubectl, resources: &Value) -> cli::Said {
    let patch = json!({"spec": {"containers": [{"name": "main", "resources": resources}]}}).to_string();
    kubectl.run(&["patch", "pod", "shell", "--subresource=resize", "-p", &patch])
}

/// What the kernel grants the container, as the container sees it: bytes, and microseconds in each tenth of a second.
fn granted(kubectl: &Kubectl) -> String {
    let script = "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us 2>/dev/null || \
                  cat memory.max cpu.max";
    let words = kubectl.ok(&["exec", "shell", "-c", "main", "--", "sh", "-c", script]);
    words.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
}

async fn resize(kubectl: &Kubectl) {
    assert_eq!(granted(kubectl), format!("{} 20000", 64 << 20));
    let id = |pod: &Value| pod["status"]["containerStatuses"][0]["containerID"].clone();
    let before = id(&pod(kubectl));
    let wanted = resources(["150m", "300m"], ["48Mi", "96Mi"]);
    let said = patch(kubectl, &wanted);
    assert_eq!((said.out.as_str(), said.err.as_str()), ("pod/shell patched\n", ""));
    let done = || async {
        let granted = granted(kubectl);
        if granted == format!("{} 30000", 96 << 20) { Ok(()) } else { Err(granted) }
    };
    eventually(LIMIT, "the container has what it was given", done).await;
    let told = || async {
        let pod = pod(kubectl);
        let main = &pod["status"]["containerStatuses"][0];
        let condition = resizing(&pod);
        if main["resources"] == wanted && condition.is_null() { Ok(pod) } else { Err(main.to_string()) }
    };
    let pod = eventually(LIMIT, "the pod says so", told).await;
    assert_eq!(id(&pod), before, "without a restart");
    let said = patch(kubectl, &json!({"requests": {"cpu": "300m", "memory": "96Mi"}}));
    assert!(said.err.contains("Pod QOS Class may not change as a result of resizing"), "{said:?}");
}

fn resizing(pod: &Value) -> Value {
    let conditions = pod["status"]["conditions"].as_array().expect("a pod has conditions");
    conditions.iter().find(|one| one["type"] == "PodResizeInProgress").cloned().unwrap_or_default()
}

/// Less memory than is in use is not granted: the pod says why, keeps what it has, and takes what comes next.
async fn resize_to_too_little(kubectl: &Kubectl) {
    let before = pod(kubectl)["status"]["containerStatuses"][0]["resources"].clone();
    assert_eq!(patch(kubectl, &resources(["150m", "300m"], ["1Ki", "1Ki"])).err, "");
    let refused = || async {
        let pod = pod(kubectl);
        let condition = resizing(&pod);
        if condition["reason"] == "Error" { Ok((pod, condition)) } else { Err(pod["status"].to_string()) }
    };
    let (pod, condition) = eventually(LIMIT, "the pod says that it cannot be", refused).await;
    let message = condition["message"].as_str().unwrap_or_default();
    assert!(message.contains("more memory is in use than the new limit"), "{message}");
    assert_eq!(pod["status"]["containerStatuses"][0]["resources"], before);
    let events = kubectl.ok(&["events", "--for=pod/shell", "--types=Warning"]);
    assert_eq!(events.lines().filter(|line| line.contains("ResizeError")).count(), 1, "{events}");
    assert_eq!(patch(kubectl, &resources(["150m", "300m"], ["48Mi", "80Mi"])).err, "");
    let done = || async {
        let granted = granted(kubectl);
        if granted == format!("{} 30000", 80 << 20) { Ok(()) } else { Err(granted) }
    };
    eventually(LIMIT, "it can be given something else", done).await;
}
