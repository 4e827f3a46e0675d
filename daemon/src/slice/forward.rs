//! What clients ask of a node without a replica is passed on to the replica that feeds it, with who asked.
//!
//! Invariant: a request is passed on once: a node without a replica serves nobody else's.
//! Invariant: one client cannot take the streams from the others: what comes over one connection goes over one stream, and
//! streams are counted for each user.
//! Invariant: what concerns the machine itself, its images and whether it stays a member, is answered by the machine.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use flotilla_api::{Reason, Status};
use flotilla_net::{Alpn, Handler, PeerInfo, RecvStream, SendStream, codec, read_frame, write_frame};
use flotilla_raft::NodeId;
use http::header::{self, HeaderName, HeaderValue};
use http::{Request, Response, StatusCode, Uri, Version};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tracing::debug;

use crate::gate::User;
use crate::listen::{Faces, Peer, serve_forwarded};
use crate::node::Node;
use crate::rest::{Body, full};
use crate::turnstile::Place;

/// The largest introduction: a user's name and groups.
const MAX_INTRODUCTION_BYTES: usize = 64 * 1024;
const INTRODUCTION_TIMEOUT: Duration = Duration::from_secs(10);
/// A replica's answer to an eviction, and how long it may take.
const MAX_EVICTED_BYTES: usize = 4 << 20;
const EVICTION_TIMEOUT: Duration = Duration::from_secs(10);
/// With what was asked, the replica says that the request proved who sent it. Clients do not see it.
const KNOWN: HeaderName = HeaderName::from_static("flotilla-known");
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

/// The stream on which the requests of one client's connection are passed on.
#[derive(Clone, Default)]
pub struct Lane(Arc<Mutex<Option<Open>>>);

struct Open {
    replica: NodeId,
    sender: http2::SendRequest<Incoming>,
    _place: Place,
}

/// Says with an answer to another node whether the request proved who sent it.
pub fn tell_known(peer: &Peer, response: &mut Response<Body>) {
    if peer.has_proved() {
        response.headers_mut().insert(KNOWN, HeaderValue::from_static("true"));
    }
}

/// Whom a request is passed on to, if it is.
pub fn receiver(node: &Node, path: &str) -> Option<NodeId> {
    node.gate.store().fed_by().filter(|_| !is_own(path))
}

/// Whether a node without a replica answers this itself.
pub fn is_own(path: &str) -> bool {
    OWN.iter().any(|own| path.starts_with(own))
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
    match pass_on(node, replica, peer, request).await {
        Ok(mut response) => {
            if response.headers_mut().remove(KNOWN).is_some() {
                peer.is_known();
            }
            Ok(response)
        }
        Err(error) if error.is::<Busy>() => Ok(refusal(StatusCode::TOO_MANY_REQUESTS, &error.to_string())),
        Err(error) => {
            debug!(replica, error, "a request is not passed on");
            let why = "the replica that this node reads from does not answer; try again";
            Ok(refusal(StatusCode::SERVICE_UNAVAILABLE, why))
        }
    }
}

pub fn refusal(code: StatusCode, why: &str) -> Response<Body> {
    let mut response = Response::new(full(format!("{why}\n")));
    *response.status_mut() = code;
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// Why a request was not passed on.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Who asks has too many streams.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Busy(String);

async fn pass_on(
    node: &Node,
    replica: NodeId,
    peer: &Peer,
    request: Request<Incoming>,
) -> Result<Response<Body>, Failure> {
    let response = if request.headers().contains_key(header::UPGRADE) {
        upgrade(node, replica, peer, request).await?
    } else {
        let mut sender = lane(node, replica, peer).await?;
        sender.ready().await?;
        sender.send_request(in_form(request, Version::HTTP_2)?).await?
    };
    Ok(response.map(|body| body.map_err(Into::into).boxed_unsync()))
}

/// Where this client's requests go, made if need be.
async fn lane(node: &Node, replica: NodeId, peer: &Peer) -> Result<http2::SendRequest<Incoming>, Failure> {
    let mut open = peer.lane.0.lock().await;
    if let Some(open) = open.as_ref().filter(|open| open.replica == replica && !open.sender.is_closed()) {
        return Ok(open.sender.clone());
    }
    *open = None;
    let (io, place) = introduce(node, replica, peer).await?;
    let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
    carry(node, Box::pin(connection));
    *open = Some(Open { replica, sender: sender.clone(), _place: place });
    Ok(sender)
}

type Stream = TokioIo<tokio::io::Join<RecvStream, SendStream>>;

/// Opens a stream to the replica and says there who asks.
async fn introduce(node: &Node, replica: NodeId, peer: &Peer) -> Result<(Stream, Place), Failure> {
    let place = node.turnstile.pass_on(peer.user.as_ref(), peer.address).map_err(|status| Busy(status.message))?;
    let (mut send, recv) = node.net.open(replica, Alpn::Api).await?;
    let user = peer.user.as_ref().map(|user| (user.name.clone(), user.groups.clone()));
    let introduction = codec::encode(&Introduction { user, address: peer.address })?;
    timeout(INTRODUCTION_TIMEOUT, write_frame(&mut send, &introduction)).await??;
    Ok((TokioIo::new(tokio::io::join(recv, send)), place))
}

/// Has the replica that feeds this node evict a pod: this node does not know the budgets.
///
/// # Errors
/// What the replica says, or `ServiceUnavailable` if it cannot be asked.
pub async fn evict(
    node: &Node,
    user: &User,
    (namespace, name): (&str, &str),
    grace_period_seconds: Option<i64>,
) -> Result<(), Status> {
    let path = format!("https://flotilla/api/v1/namespaces/{namespace}/pods/{name}/eviction");
    let eviction = json!({
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": name, "namespace": namespace},
        "deleteOptions": {"gracePeriodSeconds": grace_period_seconds},
    });
    let asked = async {
        let replica = node.gate.store().fed_by().ok_or("no replica feeds this node now")?;
        let (io, _place) = introduce(node, replica, &Peer::new(Some(user.clone()), None)).await?;
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
        carry(node, Box::pin(connection));
        let request = Request::post(path).header(header::CONTENT_TYPE, "application/json");
        let response = sender.send_request(request.body(full(eviction.to_string()))?).await?;
        let code = response.status();
        let said = Limited::new(response.into_body(), MAX_EVICTED_BYTES).collect().await?.to_bytes();
        Ok::<_, Failure>((code, said))
    };
    let unavailable = |why: &dyn std::fmt::Display| Status::new(Reason::ServiceUnavailable, why);
    let answered = timeout(EVICTION_TIMEOUT, asked).await.map_err(|late| unavailable(&late))?;
    match answered.map_err(|error| unavailable(&error))? {
        (code, _) if code.is_success() => Ok(()),
        (code, said) => Err(serde_json::from_slice(&said).unwrap_or_else(|_| unavailable(&code))),
    }
}

/// A request after which the two ends speak something else has a stream of its own.
async fn upgrade(
    node: &Node,
    replica: NodeId,
    peer: &Peer,
    mut request: Request<Incoming>,
) -> Result<Response<Incoming>, Failure> {
    let (io, place) = introduce(node, replica, peer).await?;
    let place = Arc::new(place);
    let near = hyper::upgrade::on(&mut request);
    let (mut sender, connection) = http1::handshake(io).await?;
    let held = place.clone();
    carry(
        node,
        Box::pin(async move {
            let _held = held;
            connection.with_upgrades().await
        }),
    );
    let mut response = sender.send_request(in_form(request, Version::HTTP_11)?).await?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let far = hyper::upgrade::on(&mut response);
        carry(
            node,
            Box::pin(async move {
                let _held = place;
                let (near, far) = tokio::try_join!(near, far)?;
                // How it ends is between the two.
                _ = tokio::io::copy_bidirectional(&mut TokioIo::new(near), &mut TokioIo::new(far)).await;
                Ok(())
            }),
        );
    }
    Ok(response)
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
