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
mod components;
mod connect;
mod delete;
mod discovery;
mod impersonate;
mod indent;
mod log;
mod metrics;
mod negotiate;
mod openapi;
mod part;
mod patch;
mod pieces;
mod plain;
mod proxy;
mod query;
mod read;
mod review;
mod route;
mod scale;
mod shown;
mod signing;
pub(crate) mod streams;
mod subresource;
mod table;
mod token;
mod watch;
mod write;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flotilla_api::admit::Subresource;
use flotilla_api::{Kind, Reason, Status, questions};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body as _, Incoming};

use crate::audit::{self, Side};
use crate::gate::{Gate, HEALTH_PATHS, User};
use crate::listen::Peer;
use crate::node::Node;
use crate::turnstile::{Place, Seat};
use answer::Reading;
pub(crate) use answer::full;
use asked::Asked;
pub use authn::authenticate;
use body::Sent;
use negotiate::Accepts;
use part::Part;
use query::Query;
use route::{Route, Target};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What is sent back, whole or as a stream.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

type Answer = Result<Response<Body>, Status>;

/// The largest request body: upstream's bound.
const MAX_BODY_BYTES: usize = 3 * 1024 * 1024;
/// A seat is kept for so long by what is read while it is sent. A client that takes longer goes on without.
const MAX_READING: Duration = Duration::from_secs(10);

/// The face of one node. Cheap to clone.
#[derive(Clone)]
pub struct Rest {
    node: Node,
    documents: Arc<openapi::Documents>,
}

/// Leave to be answered, and for how long.
struct Turn {
    user: User,
    /// Of an answer that may go on.
    long: Option<Place>,
    seat: Option<Seat>,
}

/// One request, as far as it is understood without its body.
struct Call {
    user: User,
    asked: Asked,
    head: Parts,
    query: Query,
    accepts: Accepts,
    layout: Layout,
    /// What it is about.
    kind: Arc<Kind>,
    target: Target,
}

impl Call {
    /// Namespace and name of the object that is meant. A namespaced object without a namespace in its path is one of no
    /// namespace that there is.
    ///
    /// # Errors
    /// `NotFound`.
    fn place(&self) -> Result<(&str, &str), Status> {
        at(&self.kind, &self.target, self.target.name.as_deref().unwrap_or_default())
    }
}

impl Rest {
    pub fn new(node: &Node) -> Self {
        Self { node: node.clone(), documents: Arc::default() }
    }

    fn gate(&self) -> &Gate {
        &self.node.gate
    }

    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Answers one request; what goes wrong is an answer too.
    pub async fn answer(&self, peer: Peer, request: Request<Incoming>) -> Response<Body> {
        let (mut head, body) = request.into_parts();
        let id = audit::id(&head.headers);
        let is_head = head.method == Method::HEAD;
        let query = Query::parse(head.uri.query().unwrap_or_default());
        let route = route::parse(head.uri.path());
        let kind = self.kind(&route);
        let asked = Asked::of(&head.method, route, &query, kind);
        let mut counted = self.node.metrics.requests.begin(asked.counted(&head, &query));
        let details = match &asked.route {
            Route::Resource(target) => answer::Details::of(target),
            Route::Path(_) => answer::Details::default(),
        };
        let (sender, user) = self.identify(&peer, &head).await;
        let recorded = audit::Request {
            id: &id,
            headers: &head.headers,
            uri: &head.uri,
            address: peer.address,
            sender: &sender,
            user: user.as_ref().unwrap_or(&sender),
            action: &asked.action(),
            version: asked.version(),
            kind: asked.kind.as_deref(),
        };
        let entry = self.node.audit.receive(&recorded).await;
        let seen = entry.map(|entry| Seen::new(entry, &head));
        let body = Sent::new(body, seen.as_ref().and_then(|seen| seen.sent.clone()));
        let is_long = asked.is_long;
        let layout = Layout::of(&asked, &query, &mut head.headers);
        let turn = match user {
            Ok(user) => self.turn(&asked, user).await.inspect_err(|_| counted.terminated()),
            Err(status) => Err(status),
        };
        // What a request may come to is large: it is not carried by every connection.
        let handled: Pin<Box<dyn Future<Output = Answer> + Send + '_>> =
            Box::pin(self.handle(turn, asked, head, query, body, layout));
        let response = match handled.await {
            Ok(response) => response,
            Err(status) => layout.lay_out(answer::failure(&status, &details)).await,
        };
        let mut response = if is_head { answer::bodiless(response) } else { response };
        if let Ok(id) = HeaderValue::from_str(&id) {
            response.headers_mut().insert(audit::ID_HEADER, id);
        }
        counted.answered(response.status());
        let goes_on = is_long && !response.status().is_client_error() && !response.status().is_server_error();
        let is_counted_still = goes_on || response.extensions().get::<Reading>().is_some();
        let response = if is_counted_still { answer::with(response, counted) } else { response };
        match seen {
            Some(seen) => seen.conclude(response, goes_on).await,
            None => response,
        }
    }

    /// The kind that a path is about, if it is served.
    fn kind(&self, route: &Route) -> Option<Arc<Kind>> {
        let Route::Resource(Target { group, version, resource, .. }) = route else { return None };
        let question = questions::find(group, version, resource).cloned();
        question.or_else(|| self.gate().registry().served(group, version, resource))
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

    /// Waits until it is the user's turn.
    ///
    /// # Errors
    /// `TooManyRequests`.
    async fn turn(&self, asked: &Asked, user: User) -> Result<Turn, Status> {
        let seat = match &asked.route {
            // How a node is must be told when it has the most to do.
            Route::Path(path) if HEALTH_PATHS.contains(&path.as_str()) => None,
            _ => Some(self.node.turnstile.enter(&user).await?),
        };
        let long = asked.is_long.then(|| self.node.turnstile.go_on(&user)).transpose()?;
        Ok(Turn { user, long, seat })
    }

    /// What an identified request comes to, when it is its turn.
    async fn handle(
        &self,
        turn: Result<Turn, Status>,
        asked: Asked,
        head: Parts,
        query: Query,
        body: Sent,
        layout: Layout,
    ) -> Answer {
        let Turn { user, long, mut seat } = turn?;
        let response = match asked.route.clone() {
            Route::Path(path) => self.plain(&user, &head, &query, &path).await?,
            Route::Resource(target) => {
                self.gate().require_early(&user, &asked.action()).await?;
                if target.subresource.as_deref() == Some("proxy") {
                    // Somebody else answers, in their own time: it is counted among what goes on.
                    drop(seat.take());
                }
                let accepts = Accepts::parse(&head.headers)?;
                let kind = asked.kind.clone().ok_or_else(no_such_resource)?;
                // Boxed: handlers nest deeper than the compiler likes to lay out in one piece.
                let call = Call { user, asked, head, query, accepts, layout, kind, target };
                let answer = Box::pin(self.resource(&call, body)).await;
                let mut response =
                    answer.unwrap_or_else(|status| answer::failure(&status, &answer::Details::of(&call.target)));
                if let Some(deprecation) = &call.kind.deprecation {
                    answer::warn(&mut response, std::slice::from_ref(&deprecation.warning));
                }
                response
            }
        };
        // It is work too, and needs the answer whole.
        let response = layout.lay_out(response).await;
        if let Some(reading) = response.extensions().get::<Reading>().cloned() {
            let seated = async move {
                _ = tokio::time::timeout(MAX_READING, reading.over()).await;
                drop(seat);
            };
            self.node.tasks.spawn(self.node.stop.clone().run_until_cancelled_owned(seated));
        }
        Ok(match long {
            Some(long) => answer::with(response, long),
            None => response,
        })
    }

    async fn resource(&self, call: &Call, body: Sent) -> Answer {
        let (kind, target) = (&call.kind, &call.target);
        if questions::is_binding(kind) {
            return self.bind_named(call, body).await;
        }
        if questions::is_component(kind) {
            return self.components(call).await;
        }
        if questions::is_one(kind) {
            return self.review(call, body, kind, target).await;
        }
        if !kind.is_namespaced() && target.namespace.is_some() {
            return Err(no_such_resource());
        }
        let method = call.head.method.clone();
        let watches = target.watch || call.query.flag("watch");
        match (&target.name, &target.subresource) {
            (None, Some(_)) => Err(no_such_resource()),
            (Some(name), Some(subresource)) => Box::pin(self.subresource(call, body, name, subresource)).await,
            (None, None) => match method {
                Method::GET | Method::HEAD if watches => self.watch(call, kind, target).await,
                Method::GET | Method::HEAD => self.list(call, kind, target).await,
                Method::POST => self.create(call, body).await,
                Method::DELETE => self.delete_collection(call, body).await,
                _ => Err(not_allowed()),
            },
            (Some(name), None) => match method {
                Method::GET | Method::HEAD if watches => self.watch(call, kind, target).await,
                Method::GET | Method::HEAD => self.get(call, kind, target, name).await,
                Method::PUT => self.replace(call, body, Part::Object(Subresource::None)).await,
                Method::PATCH => self.patch(call, body, Part::Object(Subresource::None)).await,
                Method::DELETE => self.delete(call, body).await,
                _ => Err(not_allowed()),
            },
        }
    }
}

/// How the JSON of an answer is laid out.
#[derive(Clone, Copy)]
enum Layout {
    AsMade,
    /// For people to read, and compressed only then.
    Indented {
        zipped: bool,
    },
}

impl Layout {
    /// What is somebody else's answer is left as it is, and so is what no person reads.
    fn of(asked: &Asked, query: &Query, headers: &mut HeaderMap) -> Self {
        let is_ours = match &asked.route {
            Route::Path(path) => path.starts_with("/api"),
            Route::Resource(target) => target.subresource.as_deref() != Some("proxy"),
        };
        if !is_ours || !negotiate::is_for_people(query, headers) {
            return Self::AsMade;
        }
        let zipped = answer::accepts_gzip(headers);
        headers.remove(header::ACCEPT_ENCODING);
        Self::Indented { zipped }
    }

    async fn lay_out(self, response: Response<Body>) -> Response<Body> {
        match self {
            Self::Indented { zipped } => answer::indented(response, zipped).await,
            Self::AsMade => response,
        }
    }
}

/// A request that is recorded.
struct Seen {
    entry: audit::Entry,
    /// What says how to read the body.
    headers: HeaderMap,
    sent: Option<body::Copy>,
}

impl Seen {
    fn new(entry: audit::Entry, head: &Parts) -> Self {
        let sent = entry.wants(Side::Request).then(body::Copy::default);
        let mut headers = HeaderMap::new();
        if let Some(value) = head.headers.get(header::CONTENT_TYPE).filter(|_| sent.is_some()) {
            headers.insert(header::CONTENT_TYPE, value.clone());
        }
        Self { entry, headers, sent }
    }

    /// Records how it ended, or that its answer goes on until its body ends.
    async fn conclude(mut self, mut response: Response<Body>, goes_on: bool) -> Response<Body> {
        // What was refused before it was understood may be anything, a Secret too.
        let understood = !matches!(response.status().as_u16(), 400 | 413 | 415);
        let sent = self.sent.as_ref().and_then(|sent| sent.get());
        if let Some(bytes) = sent.filter(|bytes| understood && !bytes.is_empty()) {
            let fits = bytes.len() <= audit::MAX_BODY_BYTES;
            self.entry.add(Side::Request, fits.then(|| body::shown(&self.headers, bytes)).flatten());
        }
        let code = response.status().as_u16();
        if goes_on {
            self.entry.started(code).await;
            return answer::with(response, self.entry);
        }
        if self.entry.wants(Side::Response) && !response.body().is_end_stream() {
            let object;
            (response, object) = answer::shown(response, audit::MAX_BODY_BYTES).await;
            self.entry.add(Side::Response, object);
        }
        self.entry.complete(code).await;
        response
    }
}

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
