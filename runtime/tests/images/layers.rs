//! What layers mean once they are unpacked and mounted.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use tar::EntryType;

use crate::support::*;

fn node() -> Node {
    Node::insecure(&[])
}

fn text(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.as_ref().display()))
}

fn names(path: impl AsRef<Path>) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let (path, name) = (CString::new(path.as_os_str().as_bytes()).unwrap(), CString::new(name).unwrap());
    let mut value = vec![0u8; 256];
    // SAFETY: strings are terminated and the buffer is valid for its length.
    let length = unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(usize::try_from(length).ok()?);
    Some(value)
}

#[tokio::test]
async fn whiteouts_hide_what_lower_layers_have() {
    let node = node();
    let base = Layer::new()
        .directory("etc", 0o755)
        .file("etc/gone", b"1")
        .file("etc/kept", b"1")
        .directory("cache", 0o755)
        .file("cache/old", b"1")
        .directory("cache/deep", 0o755)
        .file("cache/deep/old", b"1")
        .directory("tree", 0o755)
        .file("tree/x", b"1")
        .done();
    let top = Layer::new()
        .file("etc/.wh.gone", b"")
        .directory("cache", 0o755)
        .file("cache/new", b"2")
        .file("cache/.wh..wh..opq", b"")
        .file("cache/deep/new", b"2")
        .file(".wh.tree", b"")
        .file(".wh.never-was", b"")
        .file("nowhere/.wh.x", b"")
        .done();
    let root = node.mounted(vec![base, top]).await;
    assert_eq!(names(root.join("etc")), ["kept"]);
    assert_eq!(names(root.join("cache")), ["deep", "new"]);
    assert_eq!(names(root.join("cache/deep")), ["new"]);
    assert_eq!(names(&root), ["cache", "etc"]);
}

#[tokio::test]
async fn a_layer_replaces_files_links_and_directories() {
    let node = node();
    let base = Layer::new()
        .file("a", b"old")
        .directory("b", 0o755)
        .file("b/x", b"old")
        .symlink("c", "a")
        .directory("d", 0o700)
        .file("d/kept", b"old")
        .done();
    let top = Layer::new()
        .directory("a", 0o755)
        .file("a/x", b"new")
        .file("b", b"new")
        .file("c", b"new")
        .directory("d", 0o750)
        .done();
    let root = node.mounted(vec![base, top]).await;
    assert_eq!(text(root.join("a/x")), "new");
    assert_eq!(text(root.join("b")), "new");
    assert_eq!(text(root.join("c")), "new");
    assert_eq!(text(root.join("d/kept")), "old");
    assert_eq!(std::fs::metadata(root.join("d")).unwrap().mode() & 0o7777, 0o750);
}

#[tokio::test]
async fn a_directory_that_a_layer_does_not_name_is_the_lower_one() {
    let node = node();
    let base = Layer::new().directory("tmp", 0o1777).directory("usr/lib", 0o711).symlink("lib", "usr/lib").done();
    let top = Layer::new().file("tmp/x", b"1").file("lib/y", b"2").done();
    let root = node.mounted(vec![base, top]).await;
    assert_eq!(std::fs::metadata(root.join("tmp")).unwrap().mode() & 0o7777, 0o1777);
    assert_eq!(std::fs::read_link(root.join("lib")).unwrap(), Path::new("usr/lib"));
    assert_eq!(text(root.join("usr/lib/y")), "2");
}

#[tokio::test]
async fn owners_modes_times_links_and_devices_are_kept() {
    let node = node();
    let mut owned = header("owned", EntryType::Regular, "", 0o4755, 1);
    owned.set_uid(3_000_000);
    owned.set_gid(12);
    owned.set_mtime(1_234_567_890);
    owned.set_cksum();
    let mut device = header("null", EntryType::Char, "", 0o666, 0);
    device.set_device_major(1).unwrap();
    device.set_device_minor(3).unwrap();
    device.set_cksum();
    let mut pipe = header("pipe", EntryType::Fifo, "", 0o600, 0);
    pipe.set_cksum();
    let layer = Layer::new()
        .raw(&owned, b"x")
        .hard_link("linked", "./owned")
        .symlink("dangling", "/no/where")
        .raw(&device, b"")
        .raw(&pipe, b"")
        .directory("dir", 0o2755)
        .file("dir/x", b"1")
        .done();
    let root = node.mounted(vec![layer]).await;
    let owned = std::fs::metadata(root.join("owned")).unwrap();
    assert_eq!(
        (owned.uid(), owned.gid(), owned.mode() & 0o7777, owned.mtime()),
        (3_000_000, 12, 0o4755, 1_234_567_890)
    );
    assert_eq!(std::fs::metadata(root.join("linked")).unwrap().ino(), owned.ino());
    assert_eq!(std::fs::read_link(root.join("dangling")).unwrap(), Path::new("/no/where"));
    let device = std::fs::metadata(root.join("null")).unwrap();
    assert!(device.file_type().is_char_device());
    assert_eq!((device.rdev(), device.permissions().mode() & 0o777), (libc::makedev(1, 3), 0o666));
    assert!(std::fs::metadata(root.join("pipe")).unwrap().file_type().is_fifo());
    let directory = std::fs::metadata(root.join("dir")).unwrap();
    assert_eq!((directory.mode() & 0o7777, directory.mtime()), (0o2755, 1_700_000_000));
}

#[tokio::test]
async fn attributes_are_kept_where_they_mean_something() {
    let node = node();
    // Version 2, effective, with a newline in the permitted set.
    let capability = [0x01, 0, 0, 0x02, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let layer = Layer::new()
        .pax(&[("SCHILY.xattr.security.capability", &capability), ("SCHILY.xattr.user.note", b"hi")])
        .file("ping", b"x")
        .pax(&[("SCHILY.xattr.trusted.overlay.opaque", b"y"), ("SCHILY.xattr.trusted.overlay.redirect", b"/etc")])
        .directory("sly", 0o755)
        .done();
    let root = node.mounted(vec![layer]).await;
    assert_eq!(xattr(&root.join("ping"), "security.capability").as_deref(), Some(capability.as_slice()));
    assert_eq!(xattr(&root.join("ping"), "user.note").as_deref(), Some(b"hi".as_slice()));
    let unpacked = std::fs::read_dir(node.path("images/layers")).unwrap();
    for layer in unpacked.map(|entry| entry.unwrap().path()).filter(|path| path.join("sly").exists()) {
        assert_eq!(xattr(&layer.join("sly"), "trusted.overlay.opaque"), None);
        assert_eq!(xattr(&layer.join("sly"), "trusted.overlay.redirect"), None);
    }
}

#[tokio::test]
async fn tarballs_of_gnu_tar_are_read_in_each_dialect() {
    let node = node();
    let made = tempfile::tempdir().unwrap();
    let source = made.path().join("source");
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(180));
    std::fs::create_dir_all(source.join(&long).parent().unwrap()).unwrap();
    std::fs::write(source.join(&long), "long").unwrap();
    std::os::unix::fs::symlink("t".repeat(300), source.join("link")).unwrap();
    let sparse = std::fs::File::create(source.join("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"middle", 32 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", (64 << 20) - 3).unwrap();
    for (number, options) in [
        &["--format=gnu"][..],
        &["--format=posix"],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
    ]
    .iter()
    .enumerate()
    {
        let path = made.path().join("layer.tar");
        let mut tar = std::process::Command::new("tar");
        run(tar.args(*options).arg("--sparse").arg("-cf").arg(&path).arg("-C").arg(&source).arg("."));
        let layer = std::fs::read(&path).unwrap();
        assert!(layer.len() < 1 << 20, "{options:?} stores holes");
        let image = node.import(vec![layer]).await.unwrap_or_else(|error| panic!("{options:?}: {error}"));
        let root = node.mount(&image, &format!("c{number}"));
        assert_eq!(text(root.join(&long)), "long");
        assert_eq!(std::fs::read_link(root.join("link")).unwrap().as_os_str().len(), 300);
        let copy = std::fs::metadata(root.join("sparse")).unwrap();
        assert!(copy.len() == 64 << 20 && copy.blocks() * 512 < 1 << 20, "{options:?} is not sparse");
        assert!(std::fs::read(root.join("sparse")).unwrap() == std::fs::read(source.join("sparse")).unwrap());
    }
}

#[tokio::test]
async fn layers_are_decompressed_whatever_they_are_called() {
    let node = node();
    let (first, second) = (Layer::new().file("a", b"1").done(), Layer::new().file("b", b"2").done());
    let compressed = vec![gzip(&first), zstd::encode_all(second.as_slice(), 3).unwrap()];
    let archive = image_of(compressed, &[first, second]).archive("test.local/packed:v1");
    let image = node.images.import(archive.as_slice(), None).await.unwrap().remove(0);
    assert_eq!(names(node.mount(&image, "c1")), ["a", "b"]);
}

#[tokio::test]
async fn a_hundred_layers_are_mounted() {
    let node = node();
    let layers = (0..100).map(|number| Layer::new().file(&format!("f{number}"), b"x").done()).collect();
    let root = node.mounted(layers).await;
    assert_eq!(names(root).len(), 100);
}

#[tokio::test]
async fn a_mount_survives_a_restart_and_keeps_what_was_written() {
    let node = node();
    let image = node.import(vec![Layer::new().file("a", b"image").done()]).await.unwrap();
    let root = node.mount(&image, "c1");
    std::fs::write(root.join("a"), "container").unwrap();
    let path = root.clone();
    assert_eq!(node.mount(&image, "c1"), path, "mounting again gives the same mount");
    let locked = flotilla_runtime::images::Images::open(&node.path("images"), insecure(&[]));
    assert!(matches!(locked, Err(flotilla_runtime::images::ImageError::Locked(_))));
    let node = node.restart();
    assert_eq!(text(path.join("a")), "container");
    assert_eq!(node.mount(&image, "c1"), path);
    assert_eq!(text(path.join("a")), "container");
    // A rebooted machine has lost its mounts.
    nix::mount::umount(&path).unwrap();
    node.mount(&image, "c1");
    assert_eq!(text(path.join("a")), "container");
    node.images.unmount("c1").unwrap();
    node.images.unmount("c1").unwrap();
    assert!(!path.join("a").exists());
    assert_eq!(text(node.mount(&image, "c1").join("a")), "image");
}

#[tokio::test]
async fn an_image_without_layers_is_an_empty_directory() {
    let node = node();
    let root = node.mounted(vec![]).await;
    assert!(names(&root).is_empty());
    std::fs::write(root.join("x"), "1").unwrap();
}
