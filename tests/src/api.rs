//! A small client of the REST API over one HTTP/2 connection, for what kubectl does not show: times, streams, bad bytes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::{Buf, Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Whom connections ask for, whichever node it is.
pub const SERVER_NAME: &str = "flotilla";
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// For an answer, or the head of one that goes on.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// The longest line of a watch.
const MAX_LINE_BYTES: usize = 8 << 20;

/// Whom a connection is made as: a key, its certificate and the cluster's authority, as `flotilla credentials` prints them.
#[derive(Clone)]
pub struct Papers(Arc<ClientConfig>);

impl Papers {
    /// # Errors
    /// If the bundle cannot be read.
    pub fn parse(bundle: &str) -> anyhow::Result<Self> {
        let (key, own, authority) = parts(bundle)?;
        Ok(Self(flotilla_net::user_tls(&[authority], own, key, &["h2"])?))
    }

    /// For any server whose certificate the authority signed for the name that is asked for, a node or not.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn for_others(bundle: &str) -> anyhow::Result<Self> {
        let (key, own, authority) = parts(bundle)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority)?;
        let builder = ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13]);
        let mut config = builder.with_root_certificates(roots).with_client_auth_cert(own, key)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self(Arc::new(config)))
    }

    /// What TLS needs of them.
    pub fn tls(&self) -> Arc<ClientConfig> {
        self.0.clone()
    }
}

type Parts = (PrivateKeyDer<'static>, Vec<CertificateDer<'static>>, CertificateDer<'static>);

/// The key, the certificate and the authority of a bundle.
fn parts(bundle: &str) -> anyhow::Result<Parts> {
    let key = PrivateKeyDer::from_pem_slice(bundle.as_bytes()).context("the bundle holds no key")?;
    let mut certificates = CertificateDer::pem_slice_iter(bundle.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let authority = certificates.pop().context("the bundle holds no certificates")?;
    Ok((key, certificates, authority))
}

/// One connection. Clones share it.
#[derive(Clone)]
pub struct Rest {
    send: SendRequest<Full<Bytes>>,
    at: SocketAddr,
}

impl Rest {
    /// # Errors
    /// If the node cannot be reached or does not trust us.
    pub async fn connect(at: SocketAddr, papers: &Papers) -> anyhow::Result<Self> {
        let connected = async {
            let stream = TcpStream::connect(at).await?;
            stream.set_nodelay(true)?;
            let name = ServerName::try_from(SERVER_NAME)?;
            let stream = TlsConnector::from(papers.0.clone()).connect(name, stream).await?;
            let (send, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
            // Ends with the last clone.
            tokio::spawn(connection);
            anyhow::Ok(Self { send, at })
        };
        tokio::time::timeout(CONNECT_LIMIT, connected).await.context("no connection in time")?
    }

    /// The head of the answer comes within [`ANSWER_LIMIT`]; its body is the caller's to wait for.
    ///
    /// # Errors
    /// If the connection broke, or there is no answer in time.
    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Response<Incoming>> {
        let request = Request::builder()
            .method(method)
            .uri(format!("https://{}{path}", self.at))
            .header(header::USER_AGENT, "flotilla-tests/1")
            .header(header::CONTENT_TYPE, "application/json");
        let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        let request = request.body(Full::new(body))?;
        let sent = async {
            self.send.ready().await?;
            self.send.send_request(request).await
        };
        Ok(tokio::time::timeout(ANSWER_LIMIT, sent).await.context("no answer in time")??)
    }

    /// Status and body, whole.
    ///
    /// # Errors
    /// If the connection broke, or the answer is not there in time.
    pub async fn ask(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let response = self.send(method, path, body).await?;
        let status = response.status();
        let body = tokio::time::timeout(ANSWER_LIMIT, response.into_body().collect()).await;
        Ok((status, body.context("no whole answer in time")??.to_bytes()))
    }

    /// The body of an answer that must be good.
    ///
    /// # Errors
    /// If the connection broke or the answer is another one.
    pub async fn ok(&mut self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Bytes> {
        let (status, answer) = self.ask(method.clone(), path, body).await?;
        ensure!(status.is_success(), "{method} {path}: {status}: {}", String::from_utf8_lossy(&answer));
        Ok(answer)
    }

    /// The events of a watch.
    ///
    /// # Errors
    /// If the connection broke or the watch is refused.
    pub async fn watch(&mut self, path: &str) -> anyhow::Result<Events> {
        let response = self.send(Method::GET, path, None).await?;
        ensure!(response.status().is_success(), "GET {path}: {}", response.status());
        Ok(Events { body: response.into_body(), read: BytesMut::new() })
    }
}

/// The events of a watch under way.
pub struct Events {
    body: Incoming,
    read: BytesMut,
}

impl Events {
    /// The next event; `None` at the end.
    ///
    /// # Errors
    /// If the connection broke or what comes is no event.
    pub async fn next(&mut self) -> anyhow::Result<Option<Value>> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line = self.read.split_to(end);
                self.read.advance(1);
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            ensure!(self.read.len() < MAX_LINE_BYTES, "an event is longer than {MAX_LINE_BYTES} bytes");
            match self.body.frame().await.transpose()? {
                None => return Ok(None),
                Some(frame) => self.read.extend_from_slice(frame.data_ref().map_or(&[], |data| data)),
            }
        }
    }
}
