//! The REST face: the Kubernetes API, for `kubectl` and every other client of it.
//!
//! A request is routed by its path, authenticated, and turned into calls of the gate; what the gate returns is written in
//! the form that the client accepts. Handlers are generic over kinds. Defined by the Kubernetes API reference and by what
//! kube-apiserver does where that is silent.
//!
//! Invariant: nothing here decides who may do what, or what an object must be like.
//! Invariant: a body is read whole only up to [`MAX_BODY_BYTES`], and only once it is known who sends it.

mod answer;
mod asked;
mod authn;
mod body;
mod connect;
mod delete;
mod discovery;
mod impersonate;
mod log;
mod negotiate;
mod openapi;
mod patch;
mod plain;
mod proxy;
mod query;
mod read;
mod review;
mod route;
mod scale;
mod signing;
pub(crate) mod streams;
mod subresource;
mod table;
mod token;
mod watch;
mod write;

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use flotilla_api::admit::Subresource;
use flotilla_api::{Kind, Reason, Status, questions};
use http::request::Parts;
use http::{Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use tokio::sync::Semaphore;

use crate::audit;
use crate::gate::{Gate, HEALTH_PATHS, User};
use crate::listen::Peer;
use crate::node::Node;
use asked::Asked;
pub use authn::authenticate;
use negotiate::Accepts;
use query::Query;
use route::{Route, Target};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What is sent back, whole or as a stream.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

type Answer = Result<Response<Body>, Status>;

/// The largest request body: upstream's bound.
const MAX_BODY_BYTES: usize = 3 * 1024 * 1024;

/// The face of one node. Cheap to clone.
#[derive(Clone)]
pub struct Rest {
    node: Node,
    /// Room for sessions: commands, attaching, forwarded ports.
    sessions: Arc<Semaphore>,
    documents: Arc<openapi::Documents>,
}

/// One request, as far as it is understood without its body.
struct Call {
    user: User,
    asked: Asked,
    head: Parts,
    query: Query,
    accepts: Accepts,
}

impl Rest {
    pub fn new(node: &Node) -> Self {
        let sessions = Arc::new(Semaphore::new(connect::MAX_SESSIONS));
        Self { node: node.clone(), sessions, documents: Arc::default() }
    }

    fn gate(&self) -> &Gate {
        &self.node.gate
    }

    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Answers one request; what goes wrong is an answer too.
    pub async fn answer(&self, peer: Peer, request: Request<Incoming>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let is_head = head.method == Method::HEAD;
        let query = Query::parse(head.uri.query().unwrap_or_default());
        let asked = Asked::of(&head.method, route::parse(head.uri.path()), &query);
        let details = match &asked.route {
            Route::Resource(target) => answer::Details::of(target),
            Route::Path(_) => answer::Details::default(),
        };
        let (sender, user) = self.identify(&peer, &head).await;
        let recorded = audit::Request {
            headers: &head.headers,
            uri: &head.uri,
            address: peer.address,
            sender: &sender,
            user: user.as_ref().unwrap_or(&sender),
            action: &asked.action(),
            version: asked.version(),
        };
        let entry = self.node.audit.receive(&recorded).await;
        let is_long = asked.is_long;
        // What a request may come to is large: it is not carried by every connection.
        let handled: Pin<Box<dyn Future<Output = Answer> + Send + '_>> =
            Box::pin(self.handle(user, asked, head, query, body));
        let response = handled.await.unwrap_or_else(|status| answer::failure(&status, &details));
        let response = if is_head { answer::bodiless(response) } else { response };
        match entry {
            Some(entry) => conclude(response, entry, is_long).await,
            None => response,
        }
    }

    /// Who sent a request, and whom it is to be judged as.
    async fn identify(&self, peer: &Peer, head: &Parts) -> (User, Result<User, Status>) {
        let sender = match authenticate(&self.node, peer, &head.headers).await {
            Ok(sender) => sender,
            Err(status) => return (User::anonymous(), Err(status)),
        };
        if !sender.is_anonymous() {
            peer.is_known();
        }
        let user = self.impersonate(sender.clone(), &head.headers).await;
        (sender, user)
    }

    /// What an identified request comes to, when it is its turn.
    async fn handle(
        &self,
        user: Result<User, Status>,
        asked: Asked,
        head: Parts,
        query: Query,
        body: Incoming,
    ) -> Answer {
        let user = user?;
        let _seat = match &asked.route {
            // How a node is must be told when it has the most to do.
            Route::Path(path) if HEALTH_PATHS.contains(&path.as_str()) => None,
            _ => Some(self.node.turnstile.enter(&user).await?),
        };
        let long = asked.is_long.then(|| self.node.turnstile.go_on(&user)).transpose()?;
        let response = match asked.route.clone() {
            Route::Path(path) => self.plain(&user, &head, &query, &path).await,
            Route::Resource(target) => {
                self.gate().require_early(&user, &asked.action()).await?;
                let accepts = Accepts::parse(&head.headers)?;
                // Boxed: handlers nest deeper than the compiler likes to lay out in one piece.
                let answer = Box::pin(self.resource(&Call { user, asked, head, query, accepts }, body, &target)).await;
                answer.map(|response| self.warned(response, &target))
            }
        }?;
        Ok(match long {
            Some(long) => answer::with(response, long),
            None => response,
        })
    }

    /// Tells who uses a version that is to go.
    fn warned(&self, mut response: Response<Body>, target: &Target) -> Response<Body> {
        let kind = self.gate().registry().served(&target.group, &target.version, &target.resource);
        if let Some(words) = kind.as_ref().and_then(|kind| kind.deprecation.as_ref()) {
            answer::warn(&mut response, std::slice::from_ref(words));
        }
        response
    }

    async fn resource(&self, call: &Call, body: Incoming, target: &Target) -> Answer {
        if let Some(kind) = questions::find(&target.group, &target.version, &target.resource) {
            return self.review(call, body, kind, target).await;
        }
        let kind = self
            .gate()
            .registry()
            .served(&target.group, &target.version, &target.resource)
            .filter(|kind| kind.is_namespaced() || target.namespace.is_none())
            .ok_or_else(no_such_resource)?;
        let method = call.head.method.clone();
        let watches = target.watch || call.query.flag("watch");
        match (&target.name, &target.subresource) {
            (None, Some(_)) => Err(no_such_resource()),
            (Some(name), Some(subresource)) => {
                Box::pin(self.subresource(call, body, &kind, target, name, subresource)).await
            }
            (None, None) => match method {
                Method::GET | Method::HEAD if watches => self.watch(call, &kind, target).await,
                Method::GET | Method::HEAD => self.list(call, &kind, target).await,
                Method::POST => self.create(call, body, &kind, target).await,
                Method::DELETE => self.delete_collection(call, body, &kind, target).await,
                _ => Err(not_allowed()),
            },
            (Some(name), None) => match method {
                Method::GET | Method::HEAD if watches => self.watch(call, &kind, target).await,
                Method::GET | Method::HEAD => self.get(call, &kind, target, name).await,
                Method::PUT => self.replace(call, body, &kind, target, name, Subresource::None).await,
                Method::PATCH => self.patch(call, body, &kind, target, name, Subresource::None).await,
                Method::DELETE => self.delete(call, body, &kind, target, name).await,
                _ => Err(not_allowed()),
            },
        }
    }
}

/// Records how a request ended, or that its answer goes on until its body ends.
async fn conclude(mut response: Response<Body>, mut entry: audit::Entry, is_long: bool) -> Response<Body> {
    if let Some(id) = entry.id() {
        response.headers_mut().insert(audit::ID_HEADER, id);
    }
    let code = response.status();
    if is_long && !code.is_client_error() && !code.is_server_error() {
        entry.started(code.as_u16()).await;
        return answer::with(response, entry);
    }
    entry.complete(code.as_u16()).await;
    response
}

/// A namespaced object without a namespace in its path is one of no namespace that there is.
fn at<'a>(kind: &Arc<Kind>, target: &'a Target, name: &'a str) -> Result<(&'a str, &'a str), Status> {
    match (&target.namespace, kind.is_namespaced()) {
        (Some(namespace), _) => Ok((namespace, name)),
        (None, false) => Ok(("", name)),
        (None, true) => Err(no_such_resource()),
    }
}

/// The namespace of a kind that is always in one.
fn at_namespace(target: &Target) -> Result<&str, Status> {
    target.namespace.as_deref().ok_or_else(no_such_resource)
}

fn no_such_resource() -> Status {
    Status::new(Reason::NotFound, "the server could not find the requested resource")
}

fn not_allowed() -> Status {
    Status::new(Reason::MethodNotAllowed, "the server does not allow this method on the requested resource")
}
