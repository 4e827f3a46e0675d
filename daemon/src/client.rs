//! How a client reaches a daemon: its Unix socket on this machine, or TLS with a client certificate from elsewhere.
//!
//! Invariant: a remote daemon is believed only if it shows a node's certificate under the CA of the credentials,
//! whatever address it was reached at; nothing older than TLS 1.3 is spoken.

use std::error::Error;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::config::DEFAULT_PORT;

/// What a handshake asks for. Any node of the cluster will do, so that nobody compares it.
const SERVER_NAME: &str = "flotilla";

/// Where the daemon of this machine listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/flotilla/flotilla.sock";

/// Answers larger than this are refused; listings come in pages far smaller.
pub const MAX_ANSWER_BYTES: usize = 64 << 20;

/// A credentials file larger than this is none.
const MAX_CREDENTIALS_BYTES: u64 = 1 << 20;

const CONNECT_TIMEOUT_MS: u64 = 5_000;
const GREETING_TIMEOUT_MS: u64 = 500;
const KEEPALIVE_INTERVAL_MS: u64 = 10_000;
const KEEPALIVE_TIMEOUT_MS: u64 = 10_000;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(
        "no daemon answers at {}: start one with 'flotilla up', or name another machine with --server",
        .socket.display()
    )]
    NoDaemon { socket: PathBuf },
    #[error("only root may open {}: use sudo, or --server with --credentials", .socket.display())]
    NotRoot { socket: PathBuf },
    #[error("{} cannot be opened", .socket.display())]
    Socket { socket: PathBuf, source: io::Error },
    #[error("--server needs --credentials FILE: make one on a node with 'flotilla credentials NAME'")]
    NoCredentials,
    #[error("{:?} is not an address: write HOST:PORT", .address)]
    BadAddress { address: String },
    #[error("credentials {}: {message}", .file.display())]
    Credentials { file: PathBuf, message: String },
    #[error("no daemon answers at {address}: {message}")]
    Unreachable { address: String, message: String },
    #[error("{address} is not trusted: {message}")]
    NotTrusted { address: String, message: String },
}

/// Which daemon to talk to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Socket(PathBuf),
    /// `HOST:PORT`, and a PEM bundle of key, certificate and CA.
    Server {
        address: String,
        credentials: PathBuf,
    },
}

impl Target {
    /// The daemon at `server`, or else the one behind `socket`.
    ///
    /// # Errors
    /// If there is a server without credentials, or its address makes no sense.
    pub fn new(server: Option<&str>, credentials: Option<&Path>, socket: &Path) -> Result<Self, ClientError> {
        let Some(server) = server.filter(|server| !server.is_empty()) else {
            return Ok(Self::Socket(socket.into()));
        };
        let credentials = credentials.ok_or(ClientError::NoCredentials)?.into();
        Ok(Self::Server { address: with_port(server)?, credentials })
    }

    /// Opens a channel and waits until it stands; it reconnects by itself from then on.
    ///
    /// # Errors
    /// If nobody listens, the caller may not connect, or the two do not trust each other.
    pub async fn connect(&self) -> Result<Channel, ClientError> {
        match self {
            Self::Socket(path) => connect_socket(path).await,
            Self::Server { address, credentials } => connect_server(address, credentials).await,
        }
    }

    /// The name to use in messages.
    pub fn name(&self) -> String {
        match self {
            Self::Socket(path) => path.display().to_string(),
            Self::Server { address, .. } => address.clone(),
        }
    }
}

fn endpoint() -> Endpoint {
    Endpoint::from_static("http://flotilla")
        .connect_timeout(Duration::from_millis(CONNECT_TIMEOUT_MS))
        .http2_keep_alive_interval(Duration::from_millis(KEEPALIVE_INTERVAL_MS))
        .keep_alive_timeout(Duration::from_millis(KEEPALIVE_TIMEOUT_MS))
        .keep_alive_while_idle(false)
}

async fn connect_socket(path: &Path) -> Result<Channel, ClientError> {
    let socket = path.to_path_buf();
    let connector = service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    endpoint().connect_with_connector(connector).await.map_err(|error| socket_error(path, &error))
}

fn socket_error(path: &Path, error: &(dyn Error + 'static)) -> ClientError {
    let socket = path.to_path_buf();
    match io_cause(error) {
        Some(cause) => match cause.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NoDaemon { socket },
            io::ErrorKind::PermissionDenied => ClientError::NotRoot { socket },
            kind => ClientError::Socket { socket, source: io::Error::new(kind, cause.to_string()) },
        },
        None => ClientError::Socket { socket, source: io::Error::other(innermost(error)) },
    }
}

async fn connect_server(address: &str, credentials: &Path) -> Result<Channel, ClientError> {
    let tls = TlsConnector::from(tls_config(credentials)?);
    let target = address.to_owned();
    let connector = service_fn(move |_: Uri| {
        let (tls, target) = (tls.clone(), target.clone());
        async move {
            let stream = TcpStream::connect(&target).await?;
            stream.set_nodelay(true)?;
            let name = ServerName::try_from(SERVER_NAME).map_err(io::Error::other)?;
            greeted(tls.connect(name, stream).await?).await.map(TokioIo::new)
        }
    });
    endpoint().connect_with_connector(connector).await.map_err(|error| server_error(address, &error))
}

/// Waits until the other side speaks. Under TLS 1.3 a client is done before the server has looked at its certificate,
/// and a refusal is heard for certain only by one who has not sent anything yet.
async fn greeted(stream: TlsStream<TcpStream>) -> io::Result<BufReader<TlsStream<TcpStream>>> {
    let mut stream = BufReader::new(stream);
    let greeting = tokio::time::timeout(Duration::from_millis(GREETING_TIMEOUT_MS), stream.fill_buf()).await;
    match greeting {
        Ok(Err(error)) => Err(error),
        Ok(Ok([])) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it hung up at once")),
        // A server that speaks second is as good.
        Ok(Ok(_)) | Err(_) => Ok(stream),
    }
}

/// What TLS and the resolver say, in words.
fn server_error(address: &str, error: &(dyn Error + 'static)) -> ClientError {
    let address = address.to_owned();
    let message = io_cause(error).map_or_else(|| innermost(error), ToString::to_string);
    match io_cause(error) {
        Some(cause) if matches!(cause.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => {
            let message =
                "it hung up on these credentials: were they revoked, or is it a node that was removed?".into();
            ClientError::NotTrusted { address, message }
        }
        Some(cause) if cause.kind() == io::ErrorKind::InvalidData => {
            let by_whom = if message.contains("received fatal alert") {
                format!("it refused these credentials ({message})")
            } else {
                format!(
                    "its certificate does not fit these credentials ({message}); was the CA replaced since they were made?"
                )
            };
            ClientError::NotTrusted { address, message: by_whom }
        }
        _ => ClientError::Unreachable { address, message },
    }
}

fn io_cause<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<io::Error>() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

/// `HOST:PORT`; the port may be left out.
fn with_port(server: &str) -> Result<String, ClientError> {
    let bad = || ClientError::BadAddress { address: server.to_owned() };
    if server.contains('/') || server.contains(char::is_whitespace) {
        return Err(bad());
    }
    if server.parse::<std::net::Ipv6Addr>().is_ok() {
        return Ok(format!("[{server}]:{DEFAULT_PORT}"));
    }
    if server.ends_with(']') {
        return Ok(format!("{server}:{DEFAULT_PORT}"));
    }
    match server.rsplit_once(':') {
        None => Ok(format!("{server}:{DEFAULT_PORT}")),
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0) => Ok(server.into()),
        Some(_) => Err(bad()),
    }
}

/// Reads a bundle: a private key, its certificate first, and then the CA.
fn tls_config(file: &Path) -> Result<Arc<ClientConfig>, ClientError> {
    let bad = |message: String| ClientError::Credentials { file: file.into(), message };
    let size_bytes = fs::metadata(file).map_err(|error| bad(error.to_string()))?.len();
    if size_bytes > MAX_CREDENTIALS_BYTES {
        return Err(bad(format!("{size_bytes} bytes are too many for a PEM bundle")));
    }
    let pem = fs::read(file).map_err(|error| bad(error.to_string()))?;
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| bad(format!("private key: {error}")))?;
    let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|error| bad(format!("certificates: {error}")))?;
    let [certificate, authorities @ ..] = certificates.as_slice() else {
        return Err(bad("holds no certificate".into()));
    };
    if authorities.is_empty() {
        return Err(bad("holds no CA certificate behind its own".into()));
    }
    flotilla_net::user_tls(authorities, vec![certificate.clone()], key, &["h2"]).map_err(|error| bad(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_may_be_left_out() {
        for (given, expected) in [
            ("node-1", "node-1:6443"),
            ("node-1:7000", "node-1:7000"),
            ("10.0.0.1", "10.0.0.1:6443"),
            ("fd00::1", "[fd00::1]:6443"),
            ("[fd00::1]", "[fd00::1]:6443"),
            ("[fd00::1]:7000", "[fd00::1]:7000"),
        ] {
            assert_eq!(with_port(given).unwrap(), expected);
        }
        for bad in ["https://node-1", "node-1:http", "node-1:0", ":6443", "a b"] {
            assert!(with_port(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_server_needs_credentials() {
        let error = Target::new(Some("node-1"), None, Path::new("/s")).unwrap_err();
        assert!(matches!(error, ClientError::NoCredentials));
        assert_eq!(Target::new(None, None, Path::new("/s")).unwrap(), Target::Socket("/s".into()));
    }

    #[tokio::test]
    async fn a_missing_socket_is_told_in_words() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("flotilla.sock");
        let error = Target::Socket(socket.clone()).connect().await.unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "no daemon answers at {}: start one with 'flotilla up', or name another machine with --server",
                socket.display()
            )
        );
    }

    #[test]
    fn bundles_that_lack_something_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("bundle.pem");
        fs::write(&file, "nothing").unwrap();
        assert!(tls_config(&file).unwrap_err().to_string().contains("private key"));
        let key = rcgen::KeyPair::generate().unwrap();
        fs::write(&file, key.serialize_pem()).unwrap();
        assert!(tls_config(&file).unwrap_err().to_string().contains("holds no certificate"));
    }
}
