//! Images that try to break out, or to use up the machine.

use std::path::Path;

use flotilla_runtime::images::{ImageError, Limits, RegistryConfig};
use tar::EntryType;

use crate::support::*;

fn small() -> Node {
    let limits = Limits { unpacked_bytes: 4 << 20, entries: 1000, ..Limits::default() };
    Node::new(RegistryConfig { limits, ..RegistryConfig::default() })
}

async fn refusal(node: &Node, layers: Vec<Vec<u8>>) -> String {
    let count = layers.len();
    match node.import(layers).await {
        Err(error) => error.to_string(),
        Ok(_) => panic!("an image of {count} hostile layers was accepted"),
    }
}

/// No scratch file, no half layer and no image is left.
fn assert_clean(node: &Node) {
    assert!(node.images.list().is_empty());
    assert_eq!(std::fs::read_dir(node.path("images/tmp")).unwrap().count(), 0);
}

#[tokio::test]
async fn names_that_leave_the_layer_are_refused() {
    for name in ["../escape", "a/../../escape", "./../escape", "/../escape", "a/.."] {
        let node = small();
        let error = refusal(&node, vec![Layer::new().file(name, b"x").done()]).await;
        assert!(error.contains("path leaves the layer"), "{name}: {error}");
        assert_clean(&node);
    }
}

#[tokio::test]
async fn links_do_not_lead_outside() {
    let node = small();
    let outside = node.path("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("precious"), "untouched").unwrap();
    let target = outside.to_str().unwrap();
    // A relative link with more `..` than there are directories, and an absolute one.
    let up = format!("{}{target}", "../".repeat(60).trim_end_matches('/'));
    for link in [target.to_owned(), up.chars().take(99).collect()] {
        let layer = Layer::new().symlink("door", &link).file("door/precious", b"stolen").done();
        let _ = node.import(vec![layer]).await;
        let lower = Layer::new().symlink("door", &link).done();
        let upper = Layer::new()
            .file("door/precious", b"stolen")
            .file("door/.wh.precious", b"")
            .file("door/.wh..wh..opq", b"")
            .done();
        let _ = node.import(vec![lower, upper]).await;
        assert_eq!(std::fs::read_to_string(outside.join("precious")).unwrap(), "untouched");
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
    }
}

#[tokio::test]
async fn a_write_through_a_link_lands_in_the_layer() {
    let node = small();
    let layer = Layer::new().directory("tmp", 0o755).symlink("door", "/tmp").file("door/landed", b"inside").done();
    let root = node.mounted(vec![layer]).await;
    assert_eq!(std::fs::read_to_string(root.join("tmp/landed")).unwrap(), "inside");
    assert!(!Path::new("/tmp/landed").exists());
}

#[tokio::test]
async fn a_file_replaces_a_link_instead_of_following_it() {
    let node = small();
    let victim = node.path("victim");
    std::fs::write(&victim, "untouched").unwrap();
    let layer = Layer::new().symlink("file", victim.to_str().unwrap()).file("file", b"stolen").done();
    let root = node.mounted(vec![layer]).await;
    assert_eq!(std::fs::read_to_string(victim).unwrap(), "untouched");
    assert!(root.join("file").symlink_metadata().unwrap().is_file());
}

#[tokio::test]
async fn hard_links_reach_nothing_outside() {
    for target in ["/etc/passwd", "../../../../../../etc/passwd", "etc/passwd"] {
        let node = small();
        let error = refusal(&node, vec![Layer::new().hard_link("passwd", target).done()]).await;
        assert!(error.contains("passwd"), "{target}: {error}");
        assert_clean(&node);
    }
    let node = small();
    let layer = Layer::new().symlink("etc", "/etc").hard_link("stolen", "etc/passwd").done();
    refusal(&node, vec![layer]).await;
}

#[tokio::test]
async fn whiteouts_of_no_file_are_refused() {
    for name in [".wh...", "a/.wh...", ".wh.", ".wh.."] {
        let node = small();
        let error = refusal(&node, vec![Layer::new().directory("a", 0o755).file(name, b"").done()]).await;
        assert!(error.contains("whiteout of no file"), "{name}: {error}");
    }
}

#[tokio::test]
async fn floods_of_entries_end() {
    let node = small();
    let mut layer = Layer::new();
    for number in 0..1100 {
        let mut device = header(&format!("d{number}"), EntryType::Char, "", 0o600, 0);
        device.set_device_major(1).unwrap();
        device.set_device_minor(3).unwrap();
        device.set_cksum();
        layer = layer.raw(&device, b"");
    }
    let error = refusal(&node, vec![layer.done()]).await;
    assert!(error.contains("more than 1000 entries"), "{error}");
    assert_clean(&node);
}

#[tokio::test]
async fn bombs_are_stopped_at_the_limit() {
    let zeros = Layer::new().file("zeros", &vec![0; 64 << 20]).done();
    for packed in [gzip(&zeros), zstd::encode_all(zeros.as_slice(), 3).unwrap()] {
        assert!(packed.len() < 1 << 20);
        let node = small();
        let archive = image_of(vec![packed], std::slice::from_ref(&zeros)).archive("test.local/bomb:v1");
        let error = node.images.import(archive.as_slice(), None).await.unwrap_err().to_string();
        assert!(error.contains("more than 4194304 bytes when decompressed"), "{error}");
        assert_clean(&node);
    }
}

#[tokio::test]
async fn headers_that_lie_about_sizes_are_refused() {
    for kind in [EntryType::GNULongName, EntryType::GNULongLink, EntryType::XHeader, EntryType::XGlobalHeader] {
        let node = small();
        let mut huge = header("x", kind, "", 0o644, 1 << 40);
        huge.set_cksum();
        let error = refusal(&node, vec![Layer::new().raw(&huge, b"").done()]).await;
        assert!(error.contains("extension header is larger"), "{kind:?}: {error}");
    }
    let node = small();
    let mut long = header("file", EntryType::Regular, "", 0o644, 1 << 50);
    long.set_cksum();
    let error = refusal(&node, vec![Layer::new().raw(&long, b"short").done()]).await;
    assert!(error.contains("ends in the middle"), "{error}");
    let mut chained = Layer::new();
    for _ in 0..20 {
        chained = chained.pax(&[("comment", b"x")]);
    }
    let error = refusal(&node, vec![chained.file("x", b"").done()]).await;
    assert!(error.contains("too many extension headers"), "{error}");
}

#[tokio::test]
async fn deep_and_long_names_are_refused() {
    let node = small();
    let deep = "a/".repeat(300) + "x";
    let error = refusal(&node, vec![Layer::new().pax(&[("path", deep.as_bytes())]).file("x", b"").done()]).await;
    assert!(error.contains("too deep"), "{error}");
    let long = "a".repeat(5000);
    let error = refusal(&node, vec![Layer::new().pax(&[("path", long.as_bytes())]).file("x", b"").done()]).await;
    assert!(error.contains("path longer than 4096"), "{error}");
    let mut ladder = Layer::new();
    let step = "b/".repeat(120);
    for number in 0..5 {
        let path = if number == 0 { format!("{step}x") } else { format!("l{}/{step}x", number - 1) };
        let link = if number == 0 { step.clone() } else { format!("l{}/{step}", number - 1) };
        ladder = ladder.pax(&[("path", path.as_bytes())]).file("x", b"");
        ladder = ladder.pax(&[("linkpath", link.trim_end_matches('/').as_bytes())]).symlink(&format!("l{number}"), "x");
    }
    let error = refusal(&node, vec![ladder.done()]).await;
    assert!(error.contains("too deep"), "{error}");
    assert_clean(&node);
}

#[tokio::test]
async fn a_layer_that_is_not_what_it_is_said_to_be_is_refused() {
    let node = small();
    let (said, is) = (Layer::new().file("a", b"1").done(), Layer::new().file("a", b"2").done());
    let archive = image_of(vec![is], &[said]).archive("test.local/liar:v1");
    let error = node.images.import(archive.as_slice(), None).await.unwrap_err();
    assert!(matches!(error, ImageError::Unpack { .. }), "{error}");
    assert!(error.to_string().contains("contents have the digest"), "{error}");
    assert_clean(&node);
}

#[tokio::test]
async fn devices_that_hide_files_are_refused() {
    let node = small();
    let mut device = header("x", EntryType::Char, "", 0o600, 0);
    device.set_device_major(0).unwrap();
    device.set_device_minor(0).unwrap();
    device.set_cksum();
    let error = refusal(&node, vec![Layer::new().raw(&device, b"").done()]).await;
    assert!(error.contains("0:0"), "{error}");
}

#[tokio::test]
async fn garbage_is_refused_in_words() {
    let node = small();
    for garbage in
        [b"".to_vec(), vec![7; 600], gzip(b"not a tar stream, however long it may be"), b"\x28\xb5\x2f\xfd\0".to_vec()]
    {
        let error = node.images.import(garbage.as_slice(), None).await.unwrap_err().to_string();
        assert!(error.starts_with("archive") && !error.contains('\n'), "{error}");
    }
}
