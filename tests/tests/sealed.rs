//! What a Secret holds is on no disk and in no output, and in the pod that mounts it, before and after the key changed
//! and the leader died over it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use flotilla::proto::secrets_client::SecretsClient;
use flotilla::proto::{RotateSecretsKeyRequest, SecretsKey, SecretsStatusRequest};
use flotilla_tests::{Cluster, Scene, cli, eventually, figure, image, object};
use serde_json::json;

/// What nobody may find, and in base64 as the API has it.
const PLAIN: &str = "correct-horse-battery-staple-0x5ea1";
const ENCODED: &str = "Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5LXN0YXBsZS0weDVlYTE=";
/// What must be found, or the search is worth nothing.
const OPEN: &str = "incorrect-zebra-battery-staple-0x09e4";
const OTHERS: usize = 60;
const WAIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_readable_in_its_pod_alone() {
    let mut scene = Scene::set(3).await;
    let image = scene.registry.push(&image::busybox(scene.registry.workshop()));
    apply(&scene.cluster, "node-1", &secret("login", json!({"password": ENCODED}))).await;
    apply(&scene.cluster, "node-2", &others()).await;
    apply(&scene.cluster, "node-1", &reader("before", &image)).await;
    reads_it(&scene.cluster, "before").await;
    // Everything that a person may ask for about it without asking for the secret itself.
    let asked =
        ["get secrets", "get events -A", "get pod before -o yaml", "status", "secrets status", "get keyrings -o yaml"];
    for line in asked {
        let said = cli::ok(&scene.cluster, "node-1", &line.split(' ').collect::<Vec<_>>());
        assert!(!said.contains(PLAIN) && !said.contains(ENCODED), "{line}: {said}");
    }
    let yaml = cli::ok(&scene.cluster, "node-2", &["get", "secret", "login", "-o", "yaml"]);
    assert!(yaml.contains(ENCODED) && !yaml.contains("$sealed"), "{yaml}");
    nothing_is_found(&scene.cluster);

    let old = keys(&scene.cluster, "node-1").await.unwrap();
    assert_eq!((old.len(), old[0].primary), (1, true));
    let leader = scene.cluster.leader("node-1").await.unwrap();
    let asked = scene.cluster.nodes_but(&leader).remove(0);
    let mut progress =
        client(&scene.cluster, &asked).rotate_key(RotateSecretsKeyRequest {}).await.unwrap().into_inner();
    progress.message().await.unwrap().expect("how far it is");
    scene.cluster.dev.pull_plug(&leader).unwrap();
    let began = std::time::Instant::now();
    let all_sealed = || async {
        let keys = keys(&scene.cluster, &asked).await?;
        let [new, former] = keys.as_slice() else { return Err(format!("{keys:?}")) };
        if former.objects == 0 && new.objects > OTHERS as u64 { Ok(new.id.clone()) } else { Err(format!("{keys:?}")) }
    };
    let new = eventually(WAIT, "every secret is sealed with the new key", all_sealed).await;
    assert_ne!(new, old[0].id);
    let took = began.elapsed().as_secs_f64();
    figure(&format!("{} secrets sealed anew, the leader killed meanwhile", OTHERS + 1), &format!("{took:.1} s"));

    scene.cluster.restart(&leader).await;
    // A new replica gets what there is as a snapshot.
    scene.cluster.grow_to(4).await;
    apply(&scene.cluster, &asked, &reader("after", &image)).await;
    reads_it(&scene.cluster, "after").await;
    let yaml = cli::ok(&scene.cluster, "node-4", &["get", "secret", "login", "-o", "yaml"]);
    assert!(yaml.contains(ENCODED), "{yaml}");
    let typed = ["get", "secrets", "--field-selector", "type=example.com/other", "-o", "name"];
    assert_eq!(cli::ok(&scene.cluster, "node-4", &typed).lines().count(), OTHERS);
    nothing_is_found(&scene.cluster);
}

async fn apply(cluster: &Cluster, node: &str, manifest: &serde_json::Value) {
    let applied = object::apply(cluster, node, manifest.to_string().as_bytes()).await;
    applied.unwrap_or_else(|status| panic!("{}", status.message()));
}

fn client(cluster: &Cluster, node: &str) -> SecretsClient<tonic::transport::Channel> {
    SecretsClient::new(cluster.channel(node))
}

async fn keys(cluster: &Cluster, node: &str) -> Result<Vec<SecretsKey>, String> {
    let answer = client(cluster, node).status(SecretsStatusRequest {}).await;
    answer.map(|status| status.into_inner().keys).map_err(|status| status.message().to_owned())
}

fn secret(name: &str, data: serde_json::Value) -> serde_json::Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data})
}

/// Many more, and a ConfigMap whose content may be found.
fn others() -> serde_json::Value {
    let mut items: Vec<_> = (0..OTHERS)
        .map(|index| {
            let mut other = secret(&format!("other-{index}"), json!({}));
            other["type"] = json!("example.com/other");
            other["stringData"] = json!({"password": PLAIN});
            other
        })
        .collect();
    items.push(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "open"}, "data": {"text": OPEN}}));
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

/// A pod that has the secret in its environment and in a file, and says nothing.
fn reader(name: &str, image: &str) -> serde_json::Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "main", "image": image, "command": ["/bin/sh", "-c", "sleep 1000"],
                "env": [{"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "login", "key": "password"}}}],
                "volumeMounts": [{"name": "login", "mountPath": "/login"}],
            }],
            "volumes": [{"name": "login", "secret": {"secretName": "login"}}],
        },
    })
}

/// Waits until the pod shows the secret in both places.
async fn reads_it(cluster: &Cluster, pod: &str) {
    let node = cluster.nodes().pop().expect("a node");
    let script = "echo $PASSWORD; cat /login/password";
    let reads = || async {
        let said = cli::flotilla(cluster, &node, &["exec", pod, "--", "/bin/sh", "-c", script]);
        if said.out == format!("{PLAIN}\n{PLAIN}") { Ok(()) } else { Err(format!("{said:?}")) }
    };
    eventually(WAIT, &format!("pod {pod} has the secret"), reads).await;
}

/// Searches the data directories of all nodes and what their daemons wrote.
fn nothing_is_found(cluster: &Cluster) {
    for node in cluster.nodes() {
        let (data, log) = (cluster.dev.places().data(&node), cluster.dev.places().log(&node));
        assert!(!files_with(&data.join("store"), &[OPEN]).is_empty(), "{node}: the search finds nothing at all");
        let found = [files_with(&data, &[PLAIN, ENCODED]), files_with(&log, &[PLAIN, ENCODED])].concat();
        assert!(found.is_empty(), "{node}: {found:?}");
    }
}

/// Files at or under `path` in which any of the texts stands.
fn files_with(path: &Path, texts: &[&str]) -> Vec<String> {
    let mut grep = Command::new("grep");
    grep.args(["-r", "-l", "-a", "-F", "-s", "-D", "skip"]);
    for text in texts {
        grep.args(["-e", text]);
    }
    let found = grep.arg(path).output().expect("grep can be started");
    String::from_utf8_lossy(&found.stdout).lines().map(str::to_owned).collect()
}
