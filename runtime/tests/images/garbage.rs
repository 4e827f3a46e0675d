//! Removal of images, and collection of what nothing needs.

use std::collections::BTreeSet;

use flotilla_runtime::images::{GarbagePolicy, ImageError};

use crate::support::*;

fn everything() -> GarbagePolicy {
    let later = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
    GarbagePolicy { keep: BTreeSet::new(), unused_since: later, wanted_bytes: None }
}

fn blobs(node: &Node) -> usize {
    std::fs::read_dir(node.path("images/blobs/sha256")).unwrap().count()
}

async fn two_images(node: &Node) {
    let base = Layer::new().file("base", &[1; 100_000]).done();
    for name in ["a", "b"] {
        let made = image(vec![base.clone(), Layer::new().file(name, &[2; 50_000]).done()]);
        node.images.import(made.archive(&format!("test.local/{name}:v1")).as_slice(), None).await.unwrap();
    }
}

#[tokio::test]
async fn an_image_in_use_is_not_removed() {
    let node = Node::insecure(&[]);
    two_images(&node).await;
    let image = node.images.find("test.local/a:v1").unwrap();
    let root = node.mount(&image, "c1");
    let error = node.images.remove("test.local/a:v1").unwrap_err();
    assert_eq!(error.to_string(), "image test.local/a:v1 is in use by container c1");
    node.images.collect_garbage(&everything()).unwrap();
    assert!(root.join("base").exists());
    assert_eq!(node.images.list().len(), 1, "the other image is collected");
    node.images.unmount("c1").unwrap();
    assert!(node.images.remove("test.local/a:v1").unwrap() > 150_000);
    assert_eq!((node.images.list().len(), blobs(&node)), (0, 0));
    assert!(matches!(node.images.remove("test.local/a:v1"), Err(ImageError::NotFound(_))));
}

#[tokio::test]
async fn shared_layers_stay_as_long_as_one_image_needs_them() {
    let node = Node::insecure(&[]);
    two_images(&node).await;
    node.images.remove("test.local/a:v1").unwrap();
    let image = node.images.find("test.local/b:v1").unwrap();
    assert!(node.mount(&image, "c1").join("base").exists());
}

#[tokio::test]
async fn the_longest_unused_goes_first_and_what_is_kept_stays() {
    let node = Node::insecure(&[]);
    two_images(&node).await;
    let keep = GarbagePolicy { keep: ["test.local/a:v1".to_owned()].into(), ..everything() };
    node.images.collect_garbage(&keep).unwrap();
    assert_eq!(node.images.list()[0].references, ["test.local/a:v1"]);
    let recent = GarbagePolicy { unused_since: jiff::Timestamp::UNIX_EPOCH, ..everything() };
    assert_eq!(node.images.collect_garbage(&recent).unwrap(), 0);
    two_images(&node).await;
    let a_little = GarbagePolicy { wanted_bytes: Some(1), ..everything() };
    assert!(node.images.collect_garbage(&a_little).unwrap() > 0);
    assert_eq!(node.images.list().len(), 1);
}

#[tokio::test]
async fn the_store_comes_back_as_it_was_and_drops_half_layers() {
    let node = Node::insecure(&[]);
    two_images(&node).await;
    let before = node.images.list();
    // What a crash leaves: a layer without a record, scratch files, a record without a layer.
    std::fs::create_dir_all(node.path("images/layers/0123456789abcdef01234567/half")).unwrap();
    std::fs::create_dir_all(node.path("images/tmp/1-2/fs")).unwrap();
    std::fs::write(node.path("images/layers/ffffffffffffffffffffffff.json"), "{}").unwrap();
    let node = node.restart();
    assert_eq!(node.images.list(), before);
    assert!(!node.path("images/layers/0123456789abcdef01234567").exists());
    assert!(!node.path("images/tmp/1-2").exists());
    assert!(!node.path("images/layers/ffffffffffffffffffffffff.json").exists());
    assert!(node.mount(&before[0], "c1").join("base").exists());
}
