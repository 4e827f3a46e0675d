//! Nodes that pull the same image together cost its registry each layer once, and one that comes later nothing but the
//! manifest.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use flotilla::proto::{ImageSummary, ListImagesRequest, PullImageRequest};
use flotilla_tests::{Cluster, Scene, eventually, figure, image};
use futures::future::join_all;

const NODES: usize = 5;
const BULKY_BYTES: usize = 16 << 20;
/// For five debug builds that unpack at the same time.
const PULL_WAIT: Duration = Duration::from_secs(60);
const SEE_WAIT: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_by_many_nodes_costs_the_registry_about_one() {
    let mut scene = Scene::set(NODES).await;
    let reference = scene.registry.push(&image::bulky(scene.registry.workshop(), BULKY_BYTES));
    let nodes = scene.cluster.nodes();
    let before = scene.registry.blobs_fetched().len();
    let begun = Instant::now();
    join_all(nodes.iter().map(|node| pull(&scene.cluster, node, &reference))).await;
    let took = begun.elapsed();
    let fetched = scene.registry.blobs_fetched().split_off(before);
    let blobs: BTreeSet<&String> = fetched.iter().collect();
    let cost = format!("{} requests for {} blobs, in {took:.1?} (at most one more)", fetched.len(), blobs.len());
    figure(&format!("{NODES} nodes pulled an image of 16 MiB"), &cost);
    assert!(blobs.len() >= 2, "a configuration and a layer: {fetched:?}");
    // One more for a node that took another for its tracker, as when one has just come up.
    assert!(fetched.len() <= blobs.len() + 1, "{fetched:?}");
    sees_holders(&scene.cluster, &reference, &nodes).await;

    // A node that comes later gets all from the others; and so it does when it has forgotten the image.
    scene.cluster.grow_to(NODES + 1).await;
    let late = scene.cluster.nodes().pop().expect("there are nodes");
    eventually(SEE_WAIT, "the late node gets the image from the others", || async {
        let remove = flotilla::proto::RemoveImageRequest { reference: reference.clone() };
        // It may not be there yet.
        let _ = scene.cluster.images(&late).remove(remove).await;
        let before = scene.registry.blobs_fetched().len();
        pull(&scene.cluster, &late, &reference).await;
        let fetched = scene.registry.blobs_fetched().split_off(before);
        if fetched.is_empty() { Ok(()) } else { Err(format!("{fetched:?}")) }
    })
    .await;
    sees_holders(&scene.cluster, &reference, &scene.cluster.nodes()).await;
}

async fn pull(cluster: &Cluster, node: &str, reference: &str) {
    let pulled = async {
        let request = PullImageRequest { reference: reference.into() };
        let mut progress = cluster.images(node).pull(request).await?.into_inner();
        while progress.message().await?.is_some() {}
        Ok::<(), tonic::Status>(())
    };
    let pulled = tokio::time::timeout(PULL_WAIT, pulled).await;
    pulled.unwrap_or_else(|_| panic!("{node} does not finish")).unwrap_or_else(|error| panic!("{node}: {error}"));
}

/// `flotilla image ls --peers` names them.
async fn sees_holders(cluster: &Cluster, reference: &str, holders: &[String]) {
    let attempt = || async {
        let listed = cluster.images("node-1").list(ListImagesRequest { peers: true }).await;
        let images = listed.map_err(|status| status.message().to_owned())?.into_inner().images;
        let is_it = |image: &&ImageSummary| image.references.iter().any(|name| name == reference);
        let nodes = images.iter().find(is_it).map(|image| image.nodes.clone()).unwrap_or_default();
        if nodes == holders { Ok(()) } else { Err(format!("{nodes:?}")) }
    };
    eventually(SEE_WAIT, &format!("all of {holders:?} are seen to hold it"), attempt).await;
}
