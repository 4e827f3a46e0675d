//! Plain requests to the REST face, one connection each, for what no client of others would send.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use flotilla_net::provider;
use http::Method;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::Cluster;
use crate::cli;

const PATIENCE: Duration = Duration::from_secs(30);
const MAX_ANSWER_BYTES: u64 = 16 << 20;

/// Somebody who speaks to one node. Cheap to clone.
#[derive(Clone)]
pub struct Caller {
    at: SocketAddr,
    tls: Arc<ClientConfig>,
    headers: Vec<(String, String)>,
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    pub code: u16,
    /// The head, in lower case.
    pub head: String,
    pub body: String,
}

impl Answer {
    /// The body; null if it is not JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }

    /// The message of a `Status`.
    #[must_use]
    pub fn message(&self) -> String {
        self.json()["message"].as_str().unwrap_or_default().to_owned()
    }
}

impl Caller {
    /// Somebody with a certificate of this cluster for the name and groups.
    ///
    /// # Panics
    /// If the node gives none.
    #[must_use]
    pub fn new(cluster: &Cluster, node: &str, user: &str, groups: &[&str]) -> Self {
        let mut arguments = vec!["credentials", user];
        // A user without groups of their own is in one that nobody grants anything.
        let groups = if groups.is_empty() { &["nothing"] } else { groups };
        arguments.extend(groups.iter().flat_map(|group| ["--group", group]));
        Self::with(cluster, node, &cli::ok(cluster, node, &arguments), true)
    }

    /// Somebody without a certificate.
    ///
    /// # Panics
    /// If the cluster's authority cannot be learnt.
    #[must_use]
    pub fn stranger(cluster: &Cluster, node: &str) -> Self {
        Self::with(cluster, node, &cli::ok(cluster, node, &["credentials", "nobody", "--group", "nothing"]), false)
    }

    fn with(cluster: &Cluster, node: &str, pem: &str, shown: bool) -> Self {
        let certificates: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(pem.as_bytes()).map(|one| one.expect("certificates are PEM")).collect();
        let [own, authorities @ ..] = certificates.as_slice() else { panic!("there is no certificate") };
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            roots.add(authority.clone()).expect("an authority");
        }
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider knows TLS 1.3")
            .with_root_certificates(roots);
        let tls = match shown {
            false => builder.with_no_client_auth(),
            true => {
                let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).expect("keys are PEM");
                builder.with_client_auth_cert(vec![own.clone()], key).expect("key and certificate fit")
            }
        };
        let at = SocketAddr::new(cluster.dev.address(node).expect("the node has an address").into(), 6443);
        Self { at, tls: Arc::new(tls), headers: Vec::new() }
    }

    /// The same, with a header in each request.
    #[must_use]
    pub fn saying(mut self, header: &str, value: &str) -> Self {
        self.headers.push((header.to_owned(), value.to_owned()));
        self
    }

    /// What the node answers.
    ///
    /// # Errors
    /// If it does not answer, or not in HTTP.
    pub async fn ask(&self, method: &Method, path: &str, body: Option<&Value>) -> Result<Answer, String> {
        self.send(method, path, &body.map(Value::to_string).unwrap_or_default()).await
    }

    /// As [`Self::ask`], with a body of any form.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub async fn send(&self, method: &Method, path: &str, body: &str) -> Result<Answer, String> {
        let talk = async { self.talk(method, path, body).await.map_err(|error| error.to_string()) };
        let answer = tokio::time::timeout(PATIENCE, talk).await.map_err(|_| "silence".to_owned())??;
        parse(&answer).ok_or_else(|| format!("no HTTP: {}", String::from_utf8_lossy(&answer)))
    }

    /// As [`Self::ask`] for a `GET`.
    ///
    /// # Panics
    /// If the node does not answer.
    pub async fn get(&self, path: &str) -> Answer {
        self.ask(&Method::GET, path, None).await.unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    /// As [`Self::ask`] for a `POST`.
    ///
    /// # Panics
    /// If the node does not answer.
    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask(&Method::POST, path, Some(body)).await.unwrap_or_else(|error| panic!("POST {path}: {error}"))
    }

    async fn talk(&self, method: &Method, path: &str, body: &str) -> std::io::Result<Vec<u8>> {
        let mut line = self.connect().await?;
        line.stream.write_all(self.request(method, path, body, "close").as_bytes()).await?;
        let mut answer = Vec::new();
        match line.stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer).await {
            // A node that refuses before it has read everything may end the connection roughly.
            Err(error) if answer.is_empty() => Err(error),
            _ => Ok(answer),
        }
    }

    /// A connection for many requests.
    ///
    /// # Errors
    /// If there is none.
    pub async fn connect(&self) -> std::io::Result<Line> {
        let connector = tokio_rustls::TlsConnector::from(self.tls.clone());
        let stream = tokio::net::TcpStream::connect(self.at).await?;
        let stream = connector.connect(ServerName::from(self.at.ip()), stream).await?;
        Ok(Line { caller: self.clone(), stream: Box::new(stream) })
    }

    fn request(&self, method: &Method, path: &str, body: &str, connection: &str) -> String {
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: {connection}\r\nContent-Length: {}\r\n",
            self.at,
            body.len()
        );
        if !self.headers.iter().any(|(name, _)| name == "Content-Type") {
            let patches = *method == Method::PATCH;
            let kind = if patches { "application/merge-patch+json" } else { "application/json" };
            head.push_str(&format!("Content-Type: {kind}\r\n"));
        }
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        format!("{head}\r\n{body}")
    }
}

/// A connection that is kept open.
pub struct Line {
    caller: Caller,
    stream: Box<tokio_rustls::client::TlsStream<tokio::net::TcpStream>>,
}

impl Line {
    /// What the node answers to a `GET`.
    ///
    /// # Errors
    /// If it does not, or not in HTTP.
    pub async fn get(&mut self, path: &str) -> Result<Answer, String> {
        let request = self.caller.request(&Method::GET, path, "", "keep-alive");
        let talk = async {
            self.stream.write_all(request.as_bytes()).await?;
            let (mut answer, mut piece) = (Vec::new(), vec![0; 16 << 10]);
            while !is_whole(&answer) {
                match self.stream.read(&mut piece).await? {
                    0 => break,
                    length => answer.extend_from_slice(&piece[..length]),
                }
            }
            std::io::Result::Ok(answer)
        };
        let answer = tokio::time::timeout(PATIENCE, talk).await.map_err(|_| "silence".to_owned())?;
        let answer = answer.map_err(|error| error.to_string())?;
        parse(&answer).ok_or_else(|| format!("no HTTP: {}", String::from_utf8_lossy(&answer)))
    }
}

/// Whether an answer of known length, or in chunks, has come to its end.
fn is_whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let head = head.to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    match length {
        Some(length) => body.len() >= length,
        None => body.ends_with("0\r\n\r\n"),
    }
}

fn parse(answer: &[u8]) -> Option<Answer> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let code = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let head = head.to_lowercase();
    let body = if head.contains("transfer-encoding: chunked") { joined(body) } else { body.to_owned() };
    Some(Answer { code, head, body })
}

/// A body that came in chunks.
fn joined(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((size, more)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or_default();
        let Some(chunk) = more.get(..size).filter(|chunk| !chunk.is_empty()) else { break };
        body.push_str(chunk);
        rest = more.get(size + 2..).unwrap_or_default();
    }
    body
}
