//! Listening: the Unix socket of root, and TLS for everyone else. What comes in is gRPC or REST, by its content type.
//!
//! Invariant: a connection's identity is what its handshake showed. One with a certificate ends as soon as that is worth
//! nothing any more: a node was removed, a certificate has ended. The Unix socket is root's by its mode, and its peer is
//! asked for its uid all the same.
//! Invariant: strangers are bounded: a connection that has not proved who it is counts as a handshake under way, and gives
//! way to newer ones.

use std::convert::Infallible;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use flotilla_net::{Caller, Net};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixSocket};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tracing::debug;

use crate::gate::User;
use crate::grpc;
use crate::handshakes::{Handshakes, Place};
use crate::rest::{Body, Rest};
use crate::slice::{self, Lane};

/// A client that does not finish its handshake, or the head of a request, in this time is hung up on.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams a client may have open on one connection.
const MAX_STREAMS: u32 = 1_000;
/// How long a client may be silent before it is asked whether it lives.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// How long requests under way may take when the daemon stops.
const LAST_REQUESTS: Duration = Duration::from_secs(1);

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1_024;

/// Takes the address for clients before anybody is served there, and sees whether that for nodes is free.
///
/// # Errors
/// If another process has one of them.
pub fn reserve(address: SocketAddr) -> anyhow::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address).with_context(|| format!("cannot listen on TCP {address}"))?;
    std::net::UdpSocket::bind(address).with_context(|| format!("cannot listen on UDP {address}"))?;
    Ok(socket)
}

/// Takes the path of root's socket before anybody is served there; until then, whoever connects is refused.
///
/// # Errors
/// If there can be no socket.
pub fn reserve_unix(path: &Path) -> anyhow::Result<UnixSocket> {
    let bind = || {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = UnixSocket::new_stream()?;
        socket.bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(socket)
    };
    bind().with_context(|| format!("cannot make the socket {}; choose another --run-dir", path.display()))
}

/// Opens a reserved address for clients.
///
/// # Errors
/// If another process has it.
pub fn open(socket: TcpSocket) -> io::Result<TcpListener> {
    socket.listen(BACKLOG)
}

/// What is served.
#[derive(Clone)]
pub struct Faces {
    pub grpc: Routes,
    pub rest: Rest,
}

/// Who is at the other end of a connection.
#[derive(Clone)]
pub struct Peer {
    /// As the handshake showed; `None` for somebody without a certificate.
    pub user: Option<User>,
    /// `None` on the Unix socket.
    pub address: Option<IpAddr>,
    place: Arc<Mutex<Option<Place>>>,
    /// A request on this connection proved who sent it.
    proved: Arc<AtomicBool>,
    /// On which its requests are passed on, if they are.
    pub lane: Lane,
}

impl Peer {
    pub fn new(user: Option<User>, address: Option<IpAddr>) -> Self {
        Self { user, address, place: Arc::default(), proved: Arc::default(), lane: Lane::default() }
    }

    /// A request on this connection proved who sent it: from now on it is no stranger's.
    pub fn is_known(&self) {
        self.proved.store(true, Ordering::Relaxed);
        self.place.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Whether a request on this connection has proved who sent it.
    pub fn has_proved(&self) -> bool {
        self.proved.load(Ordering::Relaxed)
    }
}

/// An accepted connection and until when it may speak.
struct Accepted<S> {
    stream: S,
    /// Both ends know that it is HTTP/2, and neither waits for the other to speak.
    is_http2: bool,
    refused: Refused,
}

/// Ends with the reason when the other end may no longer speak.
type Refused = Pin<Box<dyn Future<Output = &'static str> + Send>>;

/// Serves root over a Unix socket until `stop`.
///
/// # Errors
/// If the socket cannot be opened.
pub async fn serve_unix(socket: UnixSocket, faces: Faces, stop: CancellationToken) -> anyhow::Result<()> {
    let listener = socket.listen(BACKLOG)?;
    let connections = TaskTracker::new();
    let accept = async {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => match stream.peer_cred() {
                    Ok(peer) if peer.uid() == 0 => {
                        let stream = Accepted { stream, is_http2: false, refused: Box::pin(std::future::pending()) };
                        let peer = Peer::new(Some(User::root()), None);
                        connections.spawn(serve(faces.clone(), stream, peer, stop.clone()));
                    }
                    peer => debug!(?peer, "refused a connection to the Unix socket"),
                },
                Err(error) => out_of_descriptors(&error).await,
            }
        }
    };
    stop.run_until_cancelled(accept).await;
    finish(connections).await;
    Ok(())
}

/// Serves everyone over TLS until `stop`.
pub async fn serve_tcp(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    net: Net,
    faces: Faces,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let acceptor = TlsAcceptor::from(tls);
    let handshakes = Handshakes::default();
    let connections = TaskTracker::new();
    let accept = async {
        loop {
            let (stream, remote) = match listener.accept().await {
                Ok(connection) => connection,
                Err(error) => {
                    out_of_descriptors(&error).await;
                    continue;
                }
            };
            let address = remote.ip().to_canonical();
            let (acceptor, net, faces, stop) = (acceptor.clone(), net.clone(), faces.clone(), stop.clone());
            let place = handshakes.begin(address);
            connections.spawn(async move {
                let shaken = tokio::select! {
                    shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, shake_hands(&acceptor, &net, stream)) => shaken,
                    () = place.given_up() => return debug!(%remote, "a handshake made room for newer ones"),
                };
                match shaken {
                    Ok(Ok((accepted, Some(user)))) => {
                        drop(place);
                        serve(faces, accepted, Peer::new(Some(user), Some(address)), stop).await;
                    }
                    Ok(Ok((accepted, None))) => serve_stranger(faces, accepted, address, place, stop).await,
                    Ok(Err(error)) => debug!(%remote, %error, "refused a connection"),
                    Err(_) => debug!(%remote, "a client did not finish its handshake"),
                }
            });
        }
    };
    stop.run_until_cancelled(accept).await;
    finish(connections).await;
    Ok(())
}

/// Serves somebody without a certificate, until they are known at the place of a handshake.
async fn serve_stranger<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    faces: Faces,
    accepted: Accepted<S>,
    address: IpAddr,
    place: Place,
    stop: CancellationToken,
) {
    let peer = Peer::new(None, Some(address));
    let given_up = place.when_given_up();
    *peer.place.lock().unwrap_or_else(PoisonError::into_inner) = Some(place);
    tokio::select! {
        () = serve(faces, accepted, peer, stop) => {}
        () = given_up.cancelled() => debug!(%address, "a stranger's connection made room for newer ones"),
    }
}

/// Serves what another node passes on, as if whoever asks had come here.
pub async fn serve_forwarded<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    faces: Faces,
    stream: S,
    peer: Peer,
    stop: CancellationToken,
) {
    let known = peer.clone();
    let answer = move |request: Request<Incoming>| {
        let (faces, known) = (faces.clone(), known.clone());
        async move {
            let path = request.uri().path().to_owned();
            let Ok(mut response) = match is_fed(&faces, &path) {
                true => Ok(fed_meanwhile()),
                false => answer(&faces, known.clone(), request).await,
            };
            slice::tell_known(&known, &mut response);
            Ok(response)
        }
    };
    let stream = Accepted { stream, is_http2: false, refused: Box::pin(std::future::pending()) };
    serve_with(answer, stream, stop).await;
}

/// Serves one connection until it ends.
async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    faces: Faces,
    stream: Accepted<S>,
    peer: Peer,
    stop: CancellationToken,
) {
    serve_with(move |request| dispatch(faces.clone(), peer.clone(), request), stream, stop).await;
}

async fn serve_with<S, F>(answer: impl Fn(Request<Incoming>) -> F, stream: Accepted<S>, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = Result<Response<Body>, Infallible>> + Send + 'static,
{
    let is_http2 = stream.is_http2;
    let (stream, service) = (TokioIo::new(stream), service_fn(answer));
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HANDSHAKE_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .max_concurrent_streams(MAX_STREAMS);
    if is_http2 {
        let builder = builder.http2_only();
        run(builder.serve_connection(stream, service), |connection| connection.graceful_shutdown(), &stop).await;
    } else {
        let connection = builder.serve_connection_with_upgrades(stream, service);
        run(connection, |connection| connection.graceful_shutdown(), &stop).await;
    }
}

/// Runs a connection to its end, which a stop brings nearer.
async fn run<C, E>(connection: C, shut_down: impl FnOnce(Pin<&mut C>), stop: &CancellationToken)
where
    C: Future<Output = Result<(), E>>,
    E: std::fmt::Display,
{
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            shut_down(connection.as_mut());
            match tokio::time::timeout(LAST_REQUESTS, connection).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection broke");
    }
}

/// Gives a request to the face that it is for.
async fn dispatch(faces: Faces, peer: Peer, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let request = match slice::forward(faces.rest.node(), &peer, request).await {
        Ok(answered) => return Ok(answered),
        Err(request) => *request,
    };
    answer(&faces, peer, request).await
}

/// Answers from this node's own replica. A node that has lost it meanwhile does not say what it read of its slice.
async fn answer(faces: &Faces, peer: Peer, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let (path, store) = (request.uri().path().to_owned(), faces.rest.node().gate.store().clone());
    let (turns, writes) = (store.turns(), is_write(&request));
    let response = match is_grpc(&request) {
        true => grpc::call(faces.rest.node(), faces.grpc.clone(), peer, request).await?,
        false => faces.rest.answer(peer, request).await,
    };
    // What was written was written, wherever this node reads from by now.
    let is_done = writes && response.status().is_success();
    let has_turned = store.turns() != turns && !slice::is_own(&path);
    Ok(if !is_done && (has_turned || is_fed(faces, &path)) { fed_meanwhile() } else { response })
}

/// Whether the request stores something over REST, and would not come to the same if it was made again.
fn is_write(request: &Request<Incoming>) -> bool {
    let path = request.uri().path();
    let is_question = ["authorization", "authentication"].iter().any(|group| {
        path.strip_prefix("/apis/")
            .and_then(|rest| rest.strip_prefix(group))
            .is_some_and(|rest| rest.starts_with(".k8s.io/"))
    });
    matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH) && !is_grpc(request) && !is_question
}

/// Whether another node has to be asked.
fn is_fed(faces: &Faces, path: &str) -> bool {
    slice::receiver(faces.rest.node(), path).is_some()
}

fn fed_meanwhile() -> Response<Body> {
    slice::refusal(StatusCode::SERVICE_UNAVAILABLE, "this node has just begun to read from another; try again")
}

fn is_grpc(request: &Request<Incoming>) -> bool {
    let content_type = request.headers().get(http::header::CONTENT_TYPE);
    content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

async fn shake_hands(
    acceptor: &TlsAcceptor,
    net: &Net,
    stream: TcpStream,
) -> anyhow::Result<(Accepted<tokio_rustls::server::TlsStream<TcpStream>>, Option<User>)> {
    stream.set_nodelay(true)?;
    let stream = acceptor.accept(stream).await?;
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let Some(certificates) = stream.get_ref().1.peer_certificates().filter(|shown| !shown.is_empty()) else {
        return Ok((Accepted { stream, is_http2, refused: Box::pin(std::future::pending()) }, None));
    };
    let caller = Caller::new(certificates)?;
    net.admits(&caller).map_err(anyhow::Error::msg)?;
    // As in Kubernetes: the common name is the user, each organization a group.
    let mut groups = caller.subject().groups.clone();
    groups.push(User::AUTHENTICATED.into());
    let user = User::new(caller.subject().user.clone(), groups);
    let net = net.clone();
    let refused = Box::pin(async move { net.until_refused(&caller).await });
    Ok((Accepted { stream, is_http2, refused }, Some(user)))
}

/// Waits for the connections that are left; each ends by itself soon after the stop.
async fn finish(connections: TaskTracker) {
    connections.close();
    connections.wait().await;
}

/// Accepting fails when the process runs out of descriptors; trying again at once would spin.
async fn out_of_descriptors(error: &io::Error) {
    debug!(%error, "cannot accept");
    tokio::time::sleep(Duration::from_millis(50)).await;
}

impl<S> Accepted<S> {
    /// Looked at whenever there is something to do, and wakes the connection when there is nothing.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.refused.as_mut().poll(cx) {
            Poll::Pending => Ok(()),
            Poll::Ready(why) => {
                debug!(why, "a connection is ended");
                self.refused = Box::pin(std::future::ready(why));
                Err(io::Error::new(io::ErrorKind::ConnectionAborted, why))
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Accepted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Accepted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    // A frame's head and body leave as one record.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
