//! Images that cannot be had are reported with the reason, and had as soon as they can be.

use std::time::Duration;

use flotilla::proto::{JobStatus, PodSummary};
use flotilla_tests::proxy::Proxy;
use flotilla_tests::{Scene, eventually, image, job};

const REPORT_WAIT: Duration = Duration::from_secs(30);
/// A registry is given up after 30 s of silence.
const HANG_WAIT: Duration = Duration::from_secs(60);
/// The next try may be a back-off away.
const RECOVERY_WAIT: Duration = Duration::from_secs(90);
const BULKY_BYTES: usize = 8 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_cannot_be_had_is_reported_and_had_later() {
    let scene = Scene::set(1).await;
    let missing = scene.registry.reference("missing");
    scene.submit(job::service("missing", &missing, 1)).await;
    reported(&scene, "missing", REPORT_WAIT, &["ErrImagePull", "ImagePullBackOff"], &["has no", &missing]).await;

    let nginx = scene.registry.push(&image::nginx(scene.registry.workshop()));
    scene.registry.damage_layers("nginx");
    scene.submit(job::service("damaged", &nginx, 1)).await;
    reported(&scene, "damaged", REPORT_WAIT, &["ErrImagePull", "ImagePullBackOff"], &["sha256:"]).await;

    let nowhere = format!("{}:9/nothing:1", scene.cluster.dev.gateway());
    scene.submit(job::service("unreachable", &nowhere, 1)).await;
    reported(&scene, "unreachable", REPORT_WAIT, &["ErrImagePull", "ImagePullBackOff"], &[":9"]).await;

    // The missing image appears.
    scene.registry.push_as(&image::bulky(scene.registry.workshop(), 0), "missing");
    recovered(&scene, "missing").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_dies_midway_or_hangs_is_waited_for() {
    let mut scene = Scene::set(1).await;
    let proxy = Proxy::start(scene.cluster.dev.gateway().into(), scene.registry.address).await;
    let _ = scene.registry.push(&image::bulky(scene.registry.workshop(), BULKY_BYTES));
    let through_proxy = format!("{}/bulky:1", proxy.address);

    proxy.die_after(BULKY_BYTES as u64 / 2);
    scene.submit(job::service("midway", &through_proxy, 1)).await;
    reported(&scene, "midway", REPORT_WAIT, &["ErrImagePull", "ImagePullBackOff"], &[&proxy.address.to_string()]).await;
    proxy.pass();
    recovered(&scene, "midway").await;
    remove_everything(&scene, "midway", &through_proxy).await;

    proxy.hang();
    scene.submit(job::service("hanging", &through_proxy, 1)).await;
    reported(&scene, "hanging", HANG_WAIT, &["ErrImagePull", "ImagePullBackOff"], &[&proxy.address.to_string()]).await;
    proxy.pass();
    recovered(&scene, "hanging").await;
    remove_everything(&scene, "hanging", &through_proxy).await;

    scene.registry.kill();
    let dead = scene.registry.reference("bulky");
    scene.submit(job::service("dead", &dead, 1)).await;
    reported(
        &scene,
        "dead",
        REPORT_WAIT,
        &["ErrImagePull", "ImagePullBackOff"],
        &[&scene.registry.address.to_string()],
    )
    .await;
    scene.registry.resume();
    recovered(&scene, "dead").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_fails_at_once_is_held_back_with_its_exit_code() {
    let scene = Scene::set(1).await;
    let busybox = scene.registry.push(&image::busybox(scene.registry.workshop()));
    scene.submit(job::script("fails", &busybox, 1, "echo about to fail; exit 42")).await;
    let pod = reported(&scene, "fails", REPORT_WAIT, &["CrashLoopBackOff"], &["42"]).await;
    assert!(pod.restarts >= 1 || pod.message.contains("back-off"), "{pod:?}");

    let mut nothing = job::service("nothing", &busybox, 1);
    nothing.containers[0].command = vec!["/no/such/program".into()];
    scene.submit(nothing).await;
    let states = ["CrashLoopBackOff", "RunContainerError", "StartError", "CreateContainerError"];
    reported(&scene, "nothing", REPORT_WAIT, &states, &["/no/such/program"]).await;
}

/// Waits until the job's one pod is in one of these states, and some of its messages or events say each of the words.
async fn reported(scene: &Scene, name: &str, limit: Duration, states: &[&str], words: &[&str]) -> PodSummary {
    let attempt = || async {
        let status = job::status(&scene.cluster, "node-1", name).await?;
        let pod = status.pods.first().ok_or("no pod yet")?.clone();
        let all = everything_said(&status);
        let told = states.contains(&&*pod.status) && words.iter().all(|word| all.contains(word));
        if told { Ok(pod) } else { Err(job::describe(&status)) }
    };
    eventually(limit, &format!("{name} is reported as {states:?} with {words:?}"), attempt).await
}

fn everything_said(status: &JobStatus) -> String {
    let pods = status.pods.iter().map(|pod| &pod.message);
    let events = status.events.iter().map(|event| &event.message);
    pods.chain(events).fold(status.message.clone(), |all, one| all + "\n" + one)
}

async fn recovered(scene: &Scene, name: &str) {
    let (cluster, nodes) = (&scene.cluster, &scene.cluster.nodes());
    let attempt = || job::running_on(cluster, "node-1", name, 1, nodes);
    eventually(RECOVERY_WAIT, &format!("{name} runs after all"), attempt).await;
}

/// So that the next job must pull again.
async fn remove_everything(scene: &Scene, name: &str, image: &str) {
    let request = flotilla::proto::StopJobRequest { namespace: String::new(), name: name.into() };
    scene.cluster.jobs("node-1").stop(request).await.unwrap();
    let remove = || async {
        let request = flotilla::proto::RemoveImageRequest { reference: image.into() };
        scene.cluster.images("node-1").remove(request).await.map(drop).map_err(|status| status.message().to_owned())
    };
    eventually(RECOVERY_WAIT, &format!("{image} can be removed"), remove).await;
}
