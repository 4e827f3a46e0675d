//! A controller that somebody else wrote with kube-rs, and what its library does, while nodes die.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use flotilla_tests::{Cluster, cli, eventually};
use futures::StreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{
    ApiResource, AttachParams, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams,
    PostParams,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::controller::Action;
use kube::runtime::finalizer::{self, finalizer};
use kube::runtime::{Controller, WatchStreamExt, reflector, watcher};
use kube::{Api, Client, Config, ResourceExt};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const LIMIT: Duration = Duration::from_secs(90);
const HELLO: &str = "flotilla.dev/hello:latest";

async fn client(cluster: &Cluster, node: &str) -> Client {
    let kubeconfig = Kubeconfig::from_yaml(&cli::ok(cluster, node, &["kubeconfig"])).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

/// A node to kill: the leader, unless it is the one that is asked.
async fn victim(cluster: &Cluster, asked: &str) -> String {
    let leader = cluster.leader(asked).await.unwrap();
    if leader == asked { cluster.nodes_but(asked).remove(0) } else { leader }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reflector_misses_nothing_while_a_node_dies() {
    let cluster = Cluster::start(3).await;
    let client = client(&cluster, "node-1").await;
    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    // In both ways: a list and then a watch, and a watch that begins with what there is.
    let followed = [watcher::Config::default(), watcher::Config::default().streaming_lists()].map(|config| {
        let (store, writer) = reflector::store::<ConfigMap>();
        let seen = reflector(writer, watcher(maps.clone(), config).default_backoff());
        (store, tokio::spawn(seen.for_each(|_| async {})))
    });
    let dying = victim(&cluster, "node-1").await;
    for number in 0..60 {
        if number == 20 {
            cluster.dev.pull_plug(&dying).unwrap();
        }
        let name = format!("map-{}", number % 30);
        let params = PatchParams::apply("reflected").force();
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name},
                            "data": {"value": number.to_string()}});
        let written = || async {
            let done = maps.patch(&name, &params, &Patch::Apply(&object)).await;
            done.map(drop).map_err(|error| error.to_string())
        };
        eventually(LIMIT, "a write is taken", written).await;
    }
    maps.delete("map-0", &DeleteParams::default()).await.unwrap();
    let all = |store: reflector::Store<ConfigMap>| async move {
        let found: BTreeMap<String, String> = store
            .state()
            .iter()
            .filter(|map| map.name_any().starts_with("map-"))
            .map(|map| (map.name_any(), map.data.as_ref().map_or("", |data| &data["value"]).to_owned()))
            .collect();
        let wanted: BTreeMap<String, String> = (1..30).map(|n| (format!("map-{n}"), (n + 30).to_string())).collect();
        if found == wanted { Ok(()) } else { Err(format!("{found:?}")) }
    };
    for (store, following) in followed {
        eventually(LIMIT, "the reflector has what was written", || all(store.clone())).await;
        following.abort();
    }
}

#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct Failed(#[from] kube::Error);

const CUPS: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: cups.tea.example.com}
spec:
  group: tea.example.com
  scope: Namespaced
  names: {plural: cups, singular: cup, kind: Cup}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec: {type: object, properties: {size: {type: integer}}}
          status: {type: object, properties: {ready: {type: boolean}}}
";

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_of_a_custom_resource_goes_on_while_a_node_dies() {
    let cluster = Cluster::start(3).await;
    _ = cli::ok(
        &cluster,
        "node-1",
        &["apply", "-f", &{
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), CUPS).unwrap();
            file.into_temp_path().keep().unwrap().display().to_string()
        }],
    );
    let client = client(&cluster, "node-1").await;
    let cup = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("tea.example.com", "v1", "Cup"), "cups");
    let cups: Api<DynamicObject> = Api::default_namespaced_with(client.clone(), &cup);
    let served = || async { cups.list(&ListParams::default()).await.map(drop).map_err(|error| error.to_string()) };
    eventually(LIMIT, "the kind is served", served).await;

    let cleaned = Arc::new(AtomicU32::new(0));
    let (maps, of, count) = (Api::<ConfigMap>::default_namespaced(client.clone()), cups.clone(), cleaned.clone());
    let reconcile = move |cup: Arc<DynamicObject>, _: Arc<()>| {
        let (maps, cups, count) = (maps.clone(), of.clone(), count.clone());
        async move {
            let name = format!("for-{}", cup.name_any());
            let handle = |event: finalizer::Event<DynamicObject>| async move {
                match event {
                    finalizer::Event::Apply(cup) => {
                        let params = PatchParams::apply("cups").force();
                        let value = cup.data["spec"]["size"].to_string();
                        maps.patch(
                            &name,
                            &params,
                            &Patch::Apply(&json!({"apiVersion": "v1", "kind": "ConfigMap",
                            "metadata": {"name": name}, "data": {"size": value}})),
                        )
                        .await?;
                        let status =
                            json!({"apiVersion": "tea.example.com/v1", "kind": "Cup", "status": {"ready": true}});
                        let cups = Api::<DynamicObject>::default_namespaced_with(
                            maps.into_client(),
                            &ApiResource::from_gvk_with_plural(
                                &GroupVersionKind::gvk("tea.example.com", "v1", "Cup"),
                                "cups",
                            ),
                        );
                        cups.patch_status(&cup.name_any(), &params, &Patch::Apply(&status)).await?;
                    }
                    finalizer::Event::Cleanup(_) => {
                        maps.delete(&name, &DeleteParams::default()).await?;
                        count.fetch_add(1, Ordering::SeqCst);
                    }
                }
                Ok::<_, Failed>(Action::await_change())
            };
            finalizer(&cups, "tea.example.com/cups", cup, handle).await
        }
    };
    let controller = Controller::new_with(cups.clone(), watcher::Config::default(), cup).run(
        reconcile,
        |_, _, _| Action::requeue(Duration::from_millis(500)),
        Arc::new(()),
    );
    let running = tokio::spawn(controller.for_each(|looked| async move {
        if let Err(error) = looked {
            println!("the controller tries again: {error:?}");
        }
    }));

    let dying = victim(&cluster, "node-1").await;
    for number in 0..5 {
        if number == 2 {
            cluster.dev.pull_plug(&dying).unwrap();
        }
        let name = format!("cup-{number}");
        let object = json!({"apiVersion": "tea.example.com/v1", "kind": "Cup", "metadata": {"name": name},
                            "spec": {"size": number}});
        let made = || async {
            let params = PatchParams::apply("guest").force();
            cups.patch(&name, &params, &Patch::Apply(&object)).await.map(drop).map_err(|error| error.to_string())
        };
        eventually(LIMIT, "a cup is made", made).await;
    }
    let ready = || async {
        let list = cups.list(&ListParams::default()).await.map_err(|error| error.to_string())?;
        let ready = list.iter().filter(|cup| cup.data["status"]["ready"] == true).count();
        if ready == 5 { Ok(()) } else { Err(format!("{ready} of 5 are ready")) }
    };
    eventually(LIMIT, "all cups are ready", ready).await;
    for number in 0..5 {
        cups.delete(&format!("cup-{number}"), &DeleteParams::default()).await.unwrap();
    }
    let gone = || async {
        let left = cups.list(&ListParams::default()).await.map_err(|error| error.to_string())?.items.len();
        if left == 0 { Ok(()) } else { Err(format!("{left} are left")) }
    };
    eventually(LIMIT, "the cups are cleaned up and gone", gone).await;
    assert_eq!(cleaned.load(Ordering::SeqCst), 5);
    running.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_many_leads_and_pods_are_reached() {
    let cluster = Cluster::start(3).await;
    let client = client(&cluster, "node-1").await;

    // As every leader election does it: whoever replaces the Lease as it was read, leads.
    let leases: Api<Lease> = Api::default_namespaced(client.clone());
    let lease: Lease = serde_json::from_value(json!({"metadata": {"name": "election"}, "spec": {}})).unwrap();
    leases.create(&PostParams::default(), &lease).await.unwrap();
    let read = leases.get("election").await.unwrap();
    let candidates = (0..8).map(|number| {
        let (leases, mut lease) = (leases.clone(), read.clone());
        async move {
            lease.spec.get_or_insert_default().holder_identity = Some(format!("candidate-{number}"));
            leases.replace("election", &PostParams::default(), &lease).await
        }
    });
    let outcomes = futures::future::join_all(candidates).await;
    let refused = outcomes.iter().filter(|o| matches!(o, Err(kube::Error::Api(status)) if status.code == 409)).count();
    assert_eq!((outcomes.iter().filter(|o| o.is_ok()).count(), refused), (1, 7));

    let pods: Api<Pod> = Api::default_namespaced(client);
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "hello"},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "main", "image": HELLO}]},
    }))
    .unwrap();
    pods.create(&PostParams::default(), &pod).await.unwrap();
    let running = || async {
        let pod = pods.get("hello").await.map_err(|error| error.to_string())?;
        let phase = pod.status.and_then(|status| status.phase).unwrap_or_default();
        if phase == "Running" { Ok(()) } else { Err(phase) }
    };
    eventually(LIMIT, "the pod runs", running).await;

    let mut process =
        pods.exec("hello", ["/hello", "echo", "from inside"], &AttachParams::default().stderr(false)).await.unwrap();
    let mut said = String::new();
    process.stdout().unwrap().read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "from inside\n");
    let status = process.take_status().unwrap().await.unwrap();
    assert_eq!(status.status.as_deref(), Some("Success"));

    let mut forwarded = pods.portforward("hello", &[80]).await.unwrap();
    let mut stream = forwarded.take_stream(80).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\nHost: hello\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.") && answer.contains("200"), "{answer:?}");
    pods.logs("hello", &Default::default()).await.unwrap();
    pods.delete("hello", &DeleteParams::default().grace_period(0)).await.unwrap();
}
