//! The way of every gRPC call to its service: who asks, a seat, a line in the audit log, and what is counted of it.

use std::convert::Infallible;

use bytes::Bytes;
use flotilla_control::rbac::Action;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming};
use tonic::service::Routes;
use tower::Service;

use super::refuse;
use crate::audit;
use crate::gate::User;
use crate::listen::Peer;
use crate::metrics::Calling;
use crate::node::Node;
use crate::rest::{Body, authenticate};
use crate::turnstile::Seat;

/// The one service that answers strangers.
const HEALTH: &str = "/grpc.health.v1.Health/";

/// Answers one call; whatever refuses it is an answer too.
pub async fn call(
    node: &Node,
    mut routes: Routes,
    peer: Peer,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let mut counted = node.metrics.calls.begin(request.uri().path());
    let sender = authenticate(node, &peer, request.headers()).await;
    let user = sender.as_ref().cloned().unwrap_or_else(|_| User::anonymous());
    let path = request.uri().path().to_owned();
    let recorded = audit::Request {
        id: &audit::id(request.headers()),
        headers: request.headers(),
        uri: request.uri(),
        address: peer.address,
        sender: &user,
        user: &user,
        action: &Action::Path { verb: "post", path: &path },
        version: "",
        kind: None,
    };
    let entry = node.audit.receive(&recorded).await;
    let seat = match sender {
        Ok(_) => seat(node, &user, &path).await,
        Err(status) => Err(refuse(status)),
    };
    let answer = match seat {
        Err(status) => refused(status),
        Ok(_seat) => {
            if !user.is_anonymous() {
                peer.is_known();
                request.extensions_mut().insert(user);
            }
            request.extensions_mut().insert(peer);
            routes.call(request).await?.map(|body| body.map_err(Into::into).boxed_unsync())
        }
    };
    if let Some(entry) = entry {
        entry.complete(code(&answer)).await;
    }
    counted.ended(answer.headers());
    Ok(counting(answer, counted))
}

/// The same answer, which counts as under way until it has ended. How that was stands behind it.
fn counting(answer: Response<Body>, mut counted: Calling) -> Response<Body> {
    let look = move |frame: Frame<Bytes>| {
        if let Some(trailers) = frame.trailers_ref() {
            counted.ended(trailers);
        }
        frame
    };
    answer.map(|body| body.map_frame(look).boxed_unsync())
}

/// A seat for whoever needs one.
async fn seat(node: &Node, user: &User, path: &str) -> Result<Option<Seat>, tonic::Status> {
    if path.starts_with(HEALTH) {
        return Ok(None);
    }
    if user.is_anonymous() {
        return Err(tonic::Status::unauthenticated("this connection carries no identity"));
    }
    node.turnstile.enter(user).await.map(Some).map_err(refuse)
}

fn refused(status: tonic::Status) -> Response<Body> {
    status.into_http::<tonic::body::Body>().map(|body| body.map_err(Into::into).boxed_unsync())
}

/// What HTTP would have said; of an answer that goes on nothing but that it began is known.
fn code(answer: &Response<Body>) -> u16 {
    match tonic::Status::from_header_map(answer.headers()).map(|status| status.code()) {
        None | Some(tonic::Code::Ok) => answer.status().as_u16(),
        Some(tonic::Code::Unauthenticated) => 401,
        Some(tonic::Code::PermissionDenied) => 403,
        Some(tonic::Code::NotFound) => 404,
        Some(tonic::Code::AlreadyExists | tonic::Code::Aborted) => 409,
        Some(tonic::Code::InvalidArgument | tonic::Code::FailedPrecondition) => 400,
        Some(tonic::Code::ResourceExhausted) => 429,
        Some(tonic::Code::Unavailable) => 503,
        Some(tonic::Code::DeadlineExceeded) => 504,
        Some(_) => 500,
    }
}
