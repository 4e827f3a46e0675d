//! `--server`: TLS 1.3 with certificates on both sides.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use flotilla_net::{Authority, ClusterId, NodeKey, NodeNames, certificate_pem};
use futures::{StreamExt, stream};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use super::{daemon, flotilla};

const LIFETIME: Duration = Duration::from_secs(3600);

/// A stream that tonic serves.
struct Secure(TlsStream<TcpStream>);

impl Connected for Secure {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Secure {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Secure {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// A cluster's CA, and what it signs.
struct Cluster(Authority);

impl Cluster {
    fn new() -> Self {
        Self(Authority::create(ClusterId::generate(), SystemTime::now()).unwrap())
    }

    fn node(&self) -> (CertificateDer<'static>, NodeKey) {
        let key = NodeKey::generate().unwrap();
        let node = NodeNames { id: 7, name: "node-7", addresses: &[] };
        let signed = self.0.sign_node(&key.request().unwrap(), &node, LIFETIME, SystemTime::now());
        (signed.unwrap(), key)
    }

    fn user(&self) -> (CertificateDer<'static>, NodeKey) {
        let key = NodeKey::generate().unwrap();
        let groups = ["system:masters".to_owned()];
        let signed = self.0.sign_client(&key.request().unwrap(), "alice", &groups, LIFETIME, SystemTime::now());
        (signed.unwrap(), key)
    }

    /// Key, certificate and CA in a file.
    fn bundle(&self, dir: &TempDir, file: &str, ca: &Cluster) -> PathBuf {
        let (certificate, key) = self.user();
        let path = dir.path().join(file);
        let parts = [key.to_pem(), certificate_pem(&certificate), certificate_pem(ca.0.certificate())];
        fs::write(&path, parts.concat()).unwrap();
        path
    }
}

/// A daemon on a TCP port of loopback.
struct Remote {
    port: u16,
    task: JoinHandle<()>,
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Remote {
    /// Shows a certificate, and believes the clients of `cluster`.
    async fn start(cluster: &Cluster, (certificate, key): (CertificateDer<'static>, NodeKey)) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(cluster.0.certificate().clone()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(key.to_pem().as_bytes()).unwrap();
        let mut config = rustls::ServerConfig::builder()
            .with_client_cert_verifier(WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap())
            .with_single_cert(vec![certificate], key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let incoming = stream::unfold((listener, acceptor), |(listener, acceptor)| async {
            let (stream, _) = listener.accept().await.ok()?;
            Some((acceptor.accept(stream).await.map(Secure), (listener, acceptor)))
        });
        let incoming = Box::pin(incoming.filter(|accepted| std::future::ready(accepted.is_ok())));
        let serve = tonic::transport::Server::builder().add_routes(daemon::routes()).serve_with_incoming(incoming);
        Self { port, task: tokio::spawn(async move { serve.await.unwrap() }) }
    }

    async fn nodes(&self, credentials: &std::path::Path) -> (bool, String) {
        let mut command = flotilla(std::path::Path::new("/nowhere"));
        command.args(["nodes", "--server", &format!("127.0.0.1:{}", self.port), "--credentials"]).arg(credentials);
        let output = tokio::time::timeout(super::PATIENCE, command.output()).await.expect("in time").unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    }
}

fn install_provider() {
    // Another test of this process may have done it.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

#[tokio::test]
async fn a_daemon_elsewhere_answers_those_with_credentials() {
    install_provider();
    let (ours, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let remote = Remote::start(&ours, ours.node()).await;
    assert_eq!(remote.nodes(&ours.bundle(&dir, "ours.pem", &ours)).await, (true, String::new()));
}

#[tokio::test]
async fn a_daemon_of_another_cluster_is_not_trusted() {
    install_provider();
    let (ours, theirs, dir) = (Cluster::new(), Cluster::new(), tempfile::tempdir().unwrap());
    let remote = Remote::start(&theirs, theirs.node()).await;
    let (succeeded, error) = remote.nodes(&ours.bundle(&dir, "ours.pem", &ours)).await;
    assert!(!succeeded && error.contains("is not trusted: its certificate does not fit"), "{error}");
    let no_node = Remote::start(&ours, ours.user()).await;
    let (succeeded, error) = no_node.nodes(&ours.bundle(&dir, "ours.pem", &ours)).await;
    assert!(!succeeded && error.contains("is not trusted"), "{error}");
}

#[tokio::test]
async fn credentials_of_another_cluster_are_refused() {
    install_provider();
    let (ours, theirs, dir) = (Cluster::new(), Cluster::new(), tempfile::tempdir().unwrap());
    let remote = Remote::start(&ours, ours.node()).await;
    let (succeeded, error) = remote.nodes(&theirs.bundle(&dir, "theirs.pem", &ours)).await;
    assert!(!succeeded && error.starts_with("error: ") && error.lines().count() == 1, "{error}");
    assert!(error.contains("refused these credentials"), "{error}");
}
