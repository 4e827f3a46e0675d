//! What clients ask of a node without a replica is passed on to the replica that feeds it, with who asked.
//!
//! Invariant: a request is passed on once: a node without a replica serves nobody else's.
//! Invariant: what concerns the machine itself, its images and whether it stays a member, is answered by the machine.

use std::net::IpAddr;
use std::pin::Pin;
use std::time::Duration;

use async_trait::async_trait;
use flotilla_net::{Alpn, Handler, PeerInfo, RecvStream, SendStream, codec, read_frame, write_frame};
use flotilla_raft::NodeId;
use http::header::{self, HeaderValue};
use http::{Request, Response, StatusCode, Uri, Version};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use tracing::debug;

use crate::gate::User;
use crate::listen::{Faces, Peer, serve_forwarded};
use crate::node::Node;
use crate::rest::{Body, full};

/// The largest introduction: a user's name and groups.
const MAX_INTRODUCTION_BYTES: usize = 64 * 1024;
const INTRODUCTION_TIMEOUT: Duration = Duration::from_secs(10);
/// gRPC methods, and paths, that this machine answers for itself.
const OWN: [&str; 8] = [
    "/flotilla.v1.Images/",
    "/flotilla.v1.Cluster/Leave",
    "/grpc.",
    "/healthz",
    "/livez",
    "/readyz",
    "/version",
    "/metrics",
];

/// Who asks, as the handshake with the node showed.
#[derive(Serialize, Deserialize)]
struct Introduction {
    user: Option<(String, Vec<String>)>,
    address: Option<IpAddr>,
}

/// Whom a request is passed on to, if it is.
pub fn receiver(node: &Node, path: &str) -> Option<NodeId> {
    node.gate.store().fed_by().filter(|_| !OWN.iter().any(|own| path.starts_with(own)))
}

/// Passes a request on, if this node has no replica.
///
/// # Errors
/// The request, if it is answered here.
pub async fn forward(
    node: &Node,
    peer: &Peer,
    request: Request<Incoming>,
) -> Result<Response<Body>, Box<Request<Incoming>>> {
    let Some(replica) = receiver(node, request.uri().path()) else { return Err(Box::new(request)) };
    let claims = peer.user.is_some() || request.headers().contains_key(header::AUTHORIZATION);
    match pass_on(node, replica, peer, request).await {
        Ok(response) => {
            if claims && response.status() != StatusCode::UNAUTHORIZED {
                peer.is_known();
            }
            Ok(response)
        }
        Err(error) => {
            debug!(replica, error, "a request is not passed on");
            let mut response =
                Response::new(full("the replica that this node reads from does not answer; try again\n"));
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            Ok(response)
        }
    }
}

async fn pass_on(
    node: &Node,
    replica: NodeId,
    peer: &Peer,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Box<dyn std::error::Error + Send + Sync>> {
    let (mut send, recv) = node.net.open(replica, Alpn::Api).await?;
    let user = peer.user.as_ref().map(|user| (user.name.clone(), user.groups.clone()));
    let introduction = codec::encode(&Introduction { user, address: peer.address })?;
    timeout(INTRODUCTION_TIMEOUT, write_frame(&mut send, &introduction)).await??;
    let io = TokioIo::new(tokio::io::join(recv, send));
    let near = hyper::upgrade::on(&mut request);
    let upgrades = request.headers().contains_key(header::UPGRADE);
    let mut response = if upgrades {
        let (mut sender, connection) = http1::handshake(io).await?;
        carry(node, Box::pin(async move { connection.with_upgrades().await }));
        sender.send_request(in_form(request, Version::HTTP_11)?).await?
    } else {
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
        carry(node, Box::pin(connection));
        sender.send_request(in_form(request, Version::HTTP_2)?).await?
    };
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let far = hyper::upgrade::on(&mut response);
        carry(
            node,
            Box::pin(async move {
                let (near, far) = tokio::try_join!(near, far)?;
                // How it ends is between the two.
                _ = tokio::io::copy_bidirectional(&mut TokioIo::new(near), &mut TokioIo::new(far)).await;
                Ok(())
            }),
        );
    }
    Ok(response.map(|body| body.map_err(Into::into).boxed_unsync()))
}

type Connection = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// Runs a connection until it ends or the daemon does.
fn carry(node: &Node, connection: Connection) {
    let stop = node.stop.clone();
    node.tasks.spawn(async move {
        if let Some(Err(error)) = stop.run_until_cancelled_owned(connection).await {
            debug!(%error, "a request that was passed on broke");
        }
    });
}

/// The request as it goes over a connection of a version: the second names whom it is for in its address.
fn in_form(mut request: Request<Incoming>, version: Version) -> Result<Request<Incoming>, http::Error> {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).map(str::to_owned);
    let host = host.or_else(|| request.uri().authority().map(ToString::to_string)).unwrap_or_else(|| "flotilla".into());
    let path = request.uri().path_and_query().map_or("/", http::uri::PathAndQuery::as_str).to_owned();
    let uri = Uri::builder();
    *request.uri_mut() = match version {
        Version::HTTP_2 => {
            request.headers_mut().remove(header::HOST);
            uri.scheme("https").authority(host).path_and_query(path).build()?
        }
        _ => {
            request.headers_mut().insert(header::HOST, HeaderValue::from_str(&host)?);
            uri.path_and_query(path).build()?
        }
    };
    *request.version_mut() = version;
    Ok(request)
}

/// Serves what nodes without a replica pass on.
pub struct ApiHandler {
    pub faces: Faces,
    pub node: Node,
}

#[async_trait]
impl Handler for ApiHandler {
    async fn handle(&self, peer: PeerInfo, send: SendStream, mut recv: RecvStream) {
        if self.node.gate.store().fed_by().is_some() {
            return debug!(peer = peer.name, "this node has no replica either");
        }
        let introduced = timeout(INTRODUCTION_TIMEOUT, read_frame(&mut recv, MAX_INTRODUCTION_BYTES)).await;
        let introduced = introduced.ok().and_then(Result::ok).and_then(|bytes| codec::decode(&bytes).ok());
        let Some(Introduction { user, address }) = introduced else {
            return debug!(peer = peer.name, "a node does not say who asks");
        };
        let user = user.map(|(name, groups)| User::new(name, groups));
        let stream = tokio::io::join(recv, send);
        serve_forwarded(self.faces.clone(), stream, Peer::new(user, address), self.node.stop.clone()).await;
    }
}
