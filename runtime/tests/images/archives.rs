//! Archives in and out, with other tools at the other end.

use std::process::Command;

use flotilla_runtime::images::{BUILTIN_IMAGE, ImageError};
use tokio::fs::File;

use crate::support::*;

#[tokio::test]
async fn archives_of_skopeo_are_imported() {
    let made = tempfile::tempdir().unwrap();
    let layout = busybox_layout(made.path());
    for (number, kind) in ["oci-archive", "docker-archive"].iter().enumerate() {
        let node = Node::insecure(&[]);
        let path = made.path().join(format!("{kind}.tar"));
        let target = format!("{kind}:{}:example.org/tools/busybox:v{number}", path.display());
        run(Command::new("skopeo")
            .args(["copy", "--quiet", "--insecure-policy"])
            .arg(format!("oci:{}:v1", layout.display()))
            .arg(target));
        run(Command::new("gzip").arg("--keep").arg(&path));
        for path in [path.clone(), path.with_extension("tar.gz")] {
            let images = node.images.import(File::open(path).await.unwrap(), None).await.unwrap();
            assert_eq!(images[0].references, [format!("example.org/tools/busybox:v{number}")]);
        }
        let image = node.images.find(&format!("example.org/tools/busybox:v{number}")).unwrap();
        assert!(node.mount(&image, "c1").join("bin/sh").exists());
    }
}

#[tokio::test]
async fn an_exported_image_is_read_by_others_and_by_us() {
    let node = Node::insecure(&[]);
    let image = node.import(vec![Layer::new().file("a", b"1").done()]).await.unwrap();
    let path = node.path("image.tar");
    node.images.export("test.local/image:v1", File::create(&path).await.unwrap()).await.unwrap();
    for kind in ["oci-archive", "docker-archive"] {
        run(Command::new("skopeo").args(["inspect", "--raw", &format!("{kind}:{}", path.display())]));
    }
    let other = Node::insecure(&[]);
    let images = other.images.import(File::open(&path).await.unwrap(), None).await.unwrap();
    assert_eq!((images[0].id, images[0].digest, &images[0].references), (image.id, image.digest, &image.references));
    let missing = node.images.export("no/such", File::create(&path).await.unwrap()).await;
    assert!(matches!(missing, Err(ImageError::NotFound(_))));
}

#[tokio::test]
async fn an_archive_without_a_name_needs_one() {
    let node = Node::insecure(&[]);
    let archive = image(vec![Layer::new().file("a", b"1").done()]).archive("v1");
    let error = node.images.import(archive.as_slice(), None).await.unwrap_err().to_string();
    assert!(error.contains("give it a name"), "{error}");
    let images = node.images.import(archive.as_slice(), Some("mine:v1")).await.unwrap();
    assert_eq!(images[0].references, ["docker.io/library/mine:v1"]);
}

#[tokio::test]
async fn an_archive_that_lies_or_lacks_something_is_refused() {
    let node = Node::insecure(&[]);
    let mut made = image(vec![Layer::new().file("a", b"1").done()]);
    let layer = made.blobs.remove(0);
    let error = node.images.import(made.archive("a:b").as_slice(), None).await.unwrap_err().to_string();
    assert!(error.contains("is missing"), "{error}");
    made.blobs.insert(0, (layer.0, b"other".to_vec()));
    let error = node.images.import(made.archive("a:b").as_slice(), None).await.unwrap_err();
    assert!(matches!(error, ImageError::DigestMismatch { .. }), "{error}");
    assert!(node.images.list().is_empty());
}

#[tokio::test]
async fn the_built_in_image_runs() {
    let node = Node::insecure(&[]);
    let image = node.pull(BUILTIN_IMAGE).await.unwrap();
    assert_eq!(node.images.provide_builtin().await.unwrap().digest, image.digest);
    assert_eq!(
        (image.config.entrypoint.clone(), image.config.cmd.clone()),
        (vec!["/hello".into()], vec!["serve".into()])
    );
    let root = node.mount(&image, "c1");
    let hello = |args: &[&str]| Command::new("chroot").arg(&root).arg("/hello").args(args).output().unwrap();
    assert_eq!(hello(&["echo", "one", "two"]).stdout, b"one two\n");
    assert_eq!(hello(&["count", "3", "1"]).stdout, b"1\n2\n3\n");
    assert_eq!(hello(&["fail", "7"]).status.code(), Some(7));
    assert_eq!(hello(&["dance"]).status.code(), Some(64));
    serves_until_terminated(&root);
}

fn serves_until_terminated(root: &std::path::Path) {
    use std::io::{Read, Write};
    let port = free_port();
    let mut server = Command::new("chroot")
        .arg(root)
        .arg("/hello")
        .env("PORT", port.to_string())
        .env("ENVIRONMENT", "test")
        .spawn()
        .unwrap();
    eventually("hello listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    let mut client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with(" in test\n"), "{answer}");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(server.id() as i32), nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(server.wait().unwrap().code(), Some(0));
}
