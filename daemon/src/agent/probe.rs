//! Probes: one attempt at asking a container how it is.
//!
//! Defined by the Kubernetes API reference, `Probe`; what is said of a failure is what kubelet says.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use flotilla_api::k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use flotilla_api::k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use flotilla_control::pod::ProbeKind;
use flotilla_runtime::Pods;
use flotilla_runtime::pods::{ExecSpec, PodsError};
use flotilla_runtime::state::container_key;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// What is read of an answer to find its status.
const MAX_HEAD_BYTES: usize = 4 * 1024;
/// What is kept of a command's words.
const MAX_MESSAGE_BYTES: usize = 512;

/// Asks once; whether it went well, and what was said if not.
pub async fn run(pods: &Pods, sandbox: &str, container: &Container, attempt: u32, kind: ProbeKind) -> (bool, String) {
    let probe = match kind {
        ProbeKind::Startup => &container.startup_probe,
        ProbeKind::Liveness => &container.liveness_probe,
        ProbeKind::Readiness => &container.readiness_probe,
    };
    let Some(probe) = probe else { return (true, String::new()) };
    let within = Duration::from_secs(probe.timeout_seconds.unwrap_or(1).max(1) as u64);
    if let Some(exec) = &probe.exec {
        let args = exec.command.clone().unwrap_or_default();
        let command = args.join(" ");
        let spec = ExecSpec { args, ..ExecSpec::default() };
        return match pods.exec_sync(sandbox, &container_key(&container.name, attempt), &spec, within).await {
            Ok(output) if output.code == 0 => (true, String::new()),
            Ok(output) => {
                let said = [output.stdout, output.stderr].concat();
                (false, String::from_utf8_lossy(&said[..said.len().min(MAX_MESSAGE_BYTES)]).trim().to_owned())
            }
            Err(PodsError::Timeout(_)) => {
                (false, format!("command timed out: {command:?} timed out after {}s", within.as_secs()))
            }
            Err(error) => (false, error.to_string()),
        };
    }
    if let Some(get) = &probe.http_get {
        return http(pods, sandbox, container, get, within).await;
    }
    if let Some(socket) = &probe.tcp_socket {
        let Some(port) = port(container, &socket.port) else { return (false, no_port(&socket.port)) };
        let host = socket.host.clone().unwrap_or_else(|| address(pods, sandbox));
        return match timeout(within, TcpStream::connect((host.as_str(), port))).await {
            Ok(Ok(_)) => (true, String::new()),
            Ok(Err(error)) => (false, undialled(&host, port, &error)),
            Err(_) => (false, format!("dial tcp {host}:{port}: i/o timeout")),
        };
    }
    if let Some(grpc) = &probe.grpc {
        let host = address(pods, sandbox);
        let service = grpc.service.clone().unwrap_or_default();
        return match timeout(within, grpc_health(&host, grpc.port, service)).await {
            Ok(Ok(())) => (true, String::new()),
            Ok(Err(message)) => (false, message),
            Err(_) => {
                let (port, seconds) = (grpc.port, within.as_secs());
                let words = "context deadline exceeded";
                (false, format!("timeout: failed to connect service \"{host}:{port}\" within {seconds}s: {words}"))
            }
        };
    }
    (true, String::new())
}

/// A GET; any status from 200 to 399 is well.
pub async fn http(
    pods: &Pods,
    sandbox: &str,
    container: &Container,
    get: &HTTPGetAction,
    within: Duration,
) -> (bool, String) {
    let Some(port) = port(container, &get.port) else { return (false, no_port(&get.port)) };
    let scheme = if get.scheme.as_deref() == Some("HTTPS") { "https" } else { "http" };
    let host = get.host.clone().filter(|host| !host.is_empty()).unwrap_or_else(|| address(pods, sandbox));
    let failed = |why: &str| (false, format!("Get \"{scheme}://{host}:{port}{}\": {why}", path(get)));
    match timeout(within, ask(scheme == "https", &host, port, get)).await {
        Ok(Ok(status @ 200..=399)) => (true, format!("HTTP status {status}")),
        Ok(Ok(status)) => (false, format!("HTTP probe failed with statuscode: {status}")),
        Ok(Err(error)) => failed(&error.to_string()),
        Err(_) => failed("context deadline exceeded (Client.Timeout exceeded while awaiting headers)"),
    }
}

/// A path needs no slash before it.
fn path(get: &HTTPGetAction) -> String {
    let path = get.path.as_deref().unwrap_or_default();
    format!("/{}", path.strip_prefix('/').unwrap_or(path))
}

fn undialled(host: &str, port: u16, error: &io::Error) -> String {
    let why = match error.kind() {
        io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
        io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_owned(),
        _ => error.to_string(),
    };
    format!("dial tcp {host}:{port}: {why}")
}

async fn ask(tls: bool, host: &str, port: u16, get: &HTTPGetAction) -> io::Result<u16> {
    let request = request(host, port, get);
    let connected = TcpStream::connect((host, port)).await;
    let stream = connected.map_err(|error| io::Error::other(undialled(host, port, &error)))?;
    let head = match tls {
        false => first_line(stream, &request).await?,
        true => {
            let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
            let connector = TlsConnector::from(unverified().map_err(io::Error::other)?);
            first_line(connector.connect(name, stream).await?, &request).await?
        }
    };
    status_of(&head).ok_or_else(|| io::Error::other("the answer is not HTTP"))
}

/// Sends the request, and reads until the first line of the answer is complete.
async fn first_line(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> io::Result<Vec<u8>> {
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut head = Vec::new();
    while head.len() < MAX_HEAD_BYTES && !head.contains(&b'\n') {
        if stream.read_buf(&mut head).await? == 0 {
            break;
        }
    }
    Ok(head)
}

fn request(host: &str, port: u16, get: &HTTPGetAction) -> String {
    let mut request = format!("GET {} HTTP/1.1\r\nConnection: close\r\n", path(get));
    let mut named = false;
    for header in get.http_headers.iter().flatten() {
        // Validation keeps line breaks out of headers; they must not split the request even if it did not.
        if header.name.contains(['\r', '\n', ':']) || header.value.contains(['\r', '\n']) {
            continue;
        }
        named |= header.name.eq_ignore_ascii_case("host");
        request.push_str(&format!("{}: {}\r\n", header.name, header.value));
    }
    if !named {
        request.push_str(&format!("Host: {host}:{port}\r\n"));
    }
    request.push_str("User-Agent: kube-probe/flotilla\r\nAccept: */*\r\n\r\n");
    request
}

/// TLS that believes whoever answers, as upstream's probes do: a pod's certificate is for its clients, and a probe asks
/// only whether the pod serves.
pub(crate) fn unverified() -> Result<Arc<ClientConfig>, rustls::Error> {
    let provider = flotilla_net::provider();
    let anybody = Anybody(provider.signature_verification_algorithms);
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(anybody))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Takes any certificate, but wants the handshake signed with its key.
#[derive(Debug)]
struct Anybody(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

/// The status of `HTTP/1.1 200 OK`.
fn status_of(head: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(head.split(|byte| *byte == b'\n').next()?).ok()?;
    let mut words = line.split_whitespace();
    words.next().filter(|version| version.starts_with("HTTP/"))?;
    words.next()?.parse().ok()
}

async fn grpc_health(host: &str, port: i32, service: String) -> Result<(), String> {
    use tonic_health::pb::health_check_response::ServingStatus;
    use tonic_health::pb::health_client::HealthClient;
    let endpoint =
        tonic::transport::Endpoint::from_shared(format!("http://{host}:{port}")).map_err(|e| e.to_string())?;
    let channel = endpoint.connect().await.map_err(|error| format!("dial {host}:{port}: {error}"))?;
    let request = tonic_health::pb::HealthCheckRequest { service };
    let answer = HealthClient::new(channel).check(request).await.map_err(|status| status.message().to_owned())?;
    match answer.into_inner().status() {
        ServingStatus::Serving => Ok(()),
        other => Err(format!("service unhealthy (responded with {:?})", other.as_str_name())),
    }
}

/// A pod on the host's network is asked at this machine.
fn address(pods: &Pods, sandbox: &str) -> String {
    let ip = pods.get(sandbox).and_then(|sandbox| sandbox.ip);
    ip.map_or_else(|| "127.0.0.1".to_owned(), |ip| ip.to_string())
}

/// A number, or the name of one of the container's ports.
fn port(container: &Container, asked: &IntOrString) -> Option<u16> {
    match asked {
        IntOrString::Int(port) => u16::try_from(*port).ok(),
        IntOrString::String(name) => name.parse().ok().or_else(|| {
            let named = container.ports.iter().flatten().find(|port| port.name.as_ref() == Some(name))?;
            u16::try_from(named.container_port).ok()
        }),
    }
}

fn no_port(asked: &IntOrString) -> String {
    match asked {
        IntOrString::Int(port) => format!("{port} is not a port"),
        IntOrString::String(name) => format!("the container has no port named {name:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_read_from_the_first_line() {
        assert_eq!(status_of(b"HTTP/1.1 204 No Content\r\nA: b\r\n"), Some(204));
        assert_eq!(status_of(b"HTTP/1.0 503\n"), Some(503));
        assert_eq!(status_of(b"SSH-2.0-x\r\n"), None);
        assert_eq!(status_of(b""), None);
    }

    #[test]
    fn who_is_not_there_is_told_of_in_kubelets_words() {
        let words = |kind: io::ErrorKind| undialled("10.0.0.1", 80, &kind.into());
        assert_eq!(words(io::ErrorKind::ConnectionRefused), "dial tcp 10.0.0.1:80: connect: connection refused");
        assert_eq!(words(io::ErrorKind::HostUnreachable), "dial tcp 10.0.0.1:80: connect: no route to host");
    }

    #[test]
    fn a_path_needs_no_slash_before_it() {
        let line = |path: Option<&str>| {
            let get = HTTPGetAction { path: path.map(str::to_owned), ..HTTPGetAction::default() };
            request("10.0.0.1", 80, &get).lines().next().unwrap_or_default().to_owned()
        };
        assert_eq!(line(Some("healthz?full=1&a=b")), "GET /healthz?full=1&a=b HTTP/1.1");
        assert_eq!(line(Some("/healthz")), "GET /healthz HTTP/1.1");
        assert_eq!(line(None), "GET / HTTP/1.1");
    }

    #[tokio::test]
    async fn a_probe_over_https_believes_any_certificate() {
        let made = rcgen::generate_simple_self_signed(vec!["elsewhere.example".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(flotilla_net::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serve = async {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = tokio_rustls::TlsAcceptor::from(Arc::new(config)).accept(stream).await.unwrap();
            let mut request = [0; 512];
            let length = stream.read(&mut request).await.unwrap();
            assert!(request[..length].starts_with(b"GET /healthz HTTP/1.1\r\n"));
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
            stream.flush().await.unwrap();
        };
        let get = HTTPGetAction { path: Some("/healthz".into()), ..HTTPGetAction::default() };
        let (status, ()) = tokio::join!(ask(true, "127.0.0.1", port, &get), serve);
        assert_eq!(status.unwrap(), 204);
    }

    #[test]
    fn ports_go_by_number_or_name() {
        let container: Container =
            serde_json::from_value(serde_json::json!({"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}))
                .unwrap();
        assert_eq!(port(&container, &IntOrString::String("web".into())), Some(8080));
        assert_eq!(port(&container, &IntOrString::Int(80)), Some(80));
        assert_eq!(port(&container, &IntOrString::String("db".into())), None);
        assert_eq!(port(&container, &IntOrString::Int(70_000)), None);
    }
}
