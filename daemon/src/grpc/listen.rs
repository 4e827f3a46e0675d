//! Listening: the Unix socket of root, and TLS with client certificates.
//!
//! Invariant: a connection without an identity never reaches a service. On TCP the handshake demands a certificate of
//! the cluster's CA, and a connection ends as soon as that is worth nothing any more: a node was removed, a certificate
//! has ended. The Unix socket is root's by its mode, and its peer is asked for its uid all the same.

use std::io::{self, IoSlice};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use flotilla_net::{Caller, Net};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tracing::debug;

use super::handshakes::Handshakes;
use crate::gate::User;

/// A client that does not finish its handshake in this time is hung up on.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections accepted and not yet taken up by the server.
const BACKLOG: usize = 64;
/// Streams a client may have open on one connection.
const MAX_STREAMS: u32 = 1_000;
/// How long a client may be silent before it is asked whether it lives.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// An accepted connection and who is at its other end.
struct Accepted<S> {
    stream: S,
    user: User,
    refused: Refused,
}

/// Ends with the reason when the other end may no longer speak.
type Refused = Pin<Box<dyn Future<Output = &'static str> + Send>>;

/// Serves root over a Unix socket until `stop`.
///
/// # Errors
/// If the socket cannot be made, or the server fails.
pub async fn serve_unix(path: PathBuf, routes: Routes, stop: CancellationToken) -> anyhow::Result<()> {
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    let (send, accepted) = mpsc::channel(BACKLOG);
    let accept = async {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => match stream.peer_cred() {
                    Ok(peer) if peer.uid() == 0 => {
                        let never = Box::pin(std::future::pending());
                        if send.send(Ok(Accepted { stream, user: User::root(), refused: never })).await.is_err() {
                            return;
                        }
                    }
                    peer => debug!(?peer, "refused a connection to the Unix socket"),
                },
                Err(error) => out_of_descriptors(&error).await,
            }
        }
    };
    serve::<UnixStream>(routes, accepted, accept, stop).await
}

/// Serves holders of client certificates over TLS until `stop`.
///
/// # Errors
/// If the server fails.
pub async fn serve_tcp(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    net: Net,
    routes: Routes,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let acceptor = TlsAcceptor::from(tls);
    let handshakes = Handshakes::default();
    let tracker = TaskTracker::new();
    let (send, accepted) = mpsc::channel(BACKLOG);
    let accept = async {
        loop {
            let (stream, remote) = match listener.accept().await {
                Ok(connection) => connection,
                Err(error) => {
                    out_of_descriptors(&error).await;
                    continue;
                }
            };
            let (acceptor, net, send) = (acceptor.clone(), net.clone(), send.clone());
            let place = handshakes.begin(remote.ip().to_canonical());
            tracker.spawn(async move {
                let shaken = tokio::select! {
                    shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, shake_hands(&acceptor, &net, stream)) => shaken,
                    () = place.given_up() => return debug!(%remote, "a handshake made room for newer ones"),
                };
                drop(place);
                match shaken {
                    Ok(Ok(accepted)) => _ = send.send(Ok(accepted)).await,
                    Ok(Err(error)) => debug!(%remote, %error, "refused a connection"),
                    Err(_) => debug!(%remote, "a client did not finish its handshake"),
                }
            });
        }
    };
    serve::<tokio_rustls::server::TlsStream<TcpStream>>(routes, accepted, accept, stop).await
}

async fn serve<S>(
    routes: Routes,
    accepted: mpsc::Receiver<io::Result<Accepted<S>>>,
    accept: impl Future<Output = ()>,
    stop: CancellationToken,
) -> anyhow::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let server = Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_routes(routes)
        .serve_with_incoming_shutdown(ReceiverStream::new(accepted), stop.cancelled());
    tokio::select! {
        served = server => Ok(served?),
        () = accept => Ok(()),
    }
}

async fn shake_hands(
    acceptor: &TlsAcceptor,
    net: &Net,
    stream: TcpStream,
) -> anyhow::Result<Accepted<tokio_rustls::server::TlsStream<TcpStream>>> {
    stream.set_nodelay(true)?;
    let stream = acceptor.accept(stream).await?;
    let caller = Caller::new(stream.get_ref().1.peer_certificates().unwrap_or_default())?;
    net.admits(&caller).map_err(anyhow::Error::msg)?;
    // As in Kubernetes: the common name is the user, each organization a group.
    let user = User { name: caller.subject().user.clone(), groups: caller.subject().groups.clone() };
    let net = net.clone();
    let refused = Box::pin(async move { net.until_refused(&caller).await });
    Ok(Accepted { stream, user, refused })
}

/// Accepting fails when the process runs out of descriptors; trying again at once would spin.
async fn out_of_descriptors(error: &io::Error) {
    debug!(%error, "cannot accept");
    tokio::time::sleep(Duration::from_millis(50)).await;
}

impl<S> Connected for Accepted<S> {
    type ConnectInfo = User;

    fn connect_info(&self) -> User {
        self.user.clone()
    }
}

impl<S> Accepted<S> {
    /// Looked at whenever there is something to do, and wakes the connection when there is nothing.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.refused.as_mut().poll(cx) {
            Poll::Pending => Ok(()),
            Poll::Ready(why) => {
                debug!(user = self.user.name, why, "a connection is ended");
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
