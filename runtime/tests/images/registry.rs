//! Pulls from Debian's docker-registry, filled by skopeo with images that umoci made.

use flotilla_runtime::images::{Credentials, HostConfig, PullError, PullPhase, PullProgress, RegistryConfig};
use tokio::sync::watch;

use crate::support::*;

#[tokio::test]
async fn an_image_is_pulled_and_mounted() {
    let options = RegistryOptions::default();
    let registry = Registry::start(&options);
    let made = tempfile::tempdir().unwrap();
    registry.push(&busybox_layout(made.path()), "v1", "tools/busybox:v1", &options);
    let node = Node::insecure(&[&registry.host()]);
    let name = registry.name("tools/busybox:v1");
    let (sender, progress) = watch::channel(PullProgress::default());
    let image = node.images.pull(&name, None, sender).await.unwrap();
    assert_eq!(image.references, std::slice::from_ref(&name));
    assert_eq!(image.config.entrypoint, ["/bin/sh"]);
    assert!(image.config.env.contains(&"A=b".to_owned()));
    let progress = progress.borrow().clone();
    assert_eq!((progress.phase, progress.layers_done), (PullPhase::Done, progress.layers));
    assert_eq!(progress.done_bytes, progress.total_bytes);
    let root = node.mount(&image, "c1");
    assert_eq!(std::fs::read(root.join("bin/busybox")).unwrap(), std::fs::read("/bin/busybox").unwrap());
    assert_eq!(std::fs::read_link(root.join("bin/sh")).unwrap().to_str(), Some("busybox"));
    assert_eq!(node.images.find(&name), node.images.find(&image.digest.to_string()));
    let again = node.pull(&format!("{}@{}", registry.name("tools/busybox"), image.digest)).await.unwrap();
    assert_eq!(again.id, image.id);
}

#[tokio::test]
async fn tls_and_a_password_are_spoken() {
    let options = RegistryOptions { tls: true, password: true };
    let registry = Registry::start(&options);
    let made = tempfile::tempdir().unwrap();
    registry.push(&busybox_layout(made.path()), "v1", "busybox:v1", &options);
    let trusting = HostConfig { ca_file: Some(registry.ca_file()), ..HostConfig::default() };
    let config = RegistryConfig { hosts: [(registry.host(), trusting)].into(), ..RegistryConfig::default() };
    let node = Node::new(config);
    let name = registry.name("busybox:v1");
    let sinbad = |password: &str| Credentials::Basic { username: USER.into(), password: password.into() };
    assert!(matches!(node.pull(&name).await, Err(PullError::Unauthorized { .. })));
    assert!(matches!(node.pull_as(&name, &sinbad("wrong")).await, Err(PullError::Unauthorized { .. })));
    node.pull_as(&name, &sinbad(PASSWORD)).await.unwrap();
    let stranger = Node::new(RegistryConfig::default());
    let error = stranger.pull_as(&name, &sinbad(PASSWORD)).await.unwrap_err();
    assert!(matches!(&error, PullError::Unreachable { detail, .. } if detail.contains("certificate")), "{error}");
}

#[tokio::test]
async fn plain_http_is_for_hosts_configured_so() {
    let registry = Registry::start(&RegistryOptions::default());
    let node = Node::new(RegistryConfig::default());
    let error = node.pull(&registry.name("busybox:v1")).await.unwrap_err();
    assert!(matches!(error, PullError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn what_is_missing_is_said_in_one_line() {
    let registry = Registry::start(&RegistryOptions::default());
    let node = Node::insecure(&[&registry.host()]);
    let error = node.pull(&registry.name("no/such:v9")).await.unwrap_err();
    assert_eq!(error.reason(), "NotFound");
    let text = error.to_string();
    assert!(text.contains("no/such:v9") && !text.contains('\n'), "{text}");
    let nobody = format!("127.0.0.1:{}/a:b", free_port());
    assert_eq!(node.pull(&nobody).await.unwrap_err().reason(), "RegistryUnavailable");
    assert_eq!(node.pull("UPPER/case").await.unwrap_err().reason(), "RegistryUnavailable");
    assert_eq!(node.pull("a//b").await.unwrap_err().reason(), "InvalidImageName");
}
