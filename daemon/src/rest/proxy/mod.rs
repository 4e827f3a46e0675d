//! Proxying to pods, services and nodes: a request goes on to what it names, and the answer comes back.
//!
//! Pods are reached at their address from within their own network, through the node that they are on, so that it does not
//! matter which node was asked. Defined by upstream's proxy subresources.
//!
//! Invariant: what says who the client is to us is not passed on.
//! Invariant: nothing is followed: a redirect is the client's to follow, through the proxy again.

mod kubelet;
mod place;

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use flotilla_api::selector::Labels;
use flotilla_api::{Builtin, Kind, Reason, Status};
use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tracing::debug;

use super::route::Target;
use super::streams::websocket;
use super::{Answer, Body, Call, Rest, answer, at_namespace, authn, not_allowed};
use crate::gate::{ListQuery, User, Verb};
use crate::pods;
use crate::streams::Reach;
use place::Place;

/// For connecting to what is proxied to, and for its first word of TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Of a pod or node that names no port.
const HTTP_PORT: u16 = 80;
/// Where a kubelet would answer.
const KUBELET_PORT: &str = "10250";

/// Headers that belong to one connection (RFC 9110, section 7.6.1).
const OF_CONNECTION: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// A connection that a request can go on.
trait Pipe: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Pipe for T {}

/// A connection that carries itself on for as long as it is polled.
type Connected = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// What a request goes to.
struct Far {
    io: Box<dyn Pipe>,
    /// As it is called in `Host`.
    authority: String,
    /// Why there is nobody, where that is known only later.
    refusal: Option<Arc<OnceLock<Status>>>,
}

impl Rest {
    pub(super) async fn proxy(&self, call: &Call, body: Incoming, kind: &Kind, target: &Target, id: &str) -> Answer {
        let resource = kind.plural.as_str();
        let place = place::parse(id)
            .ok_or_else(|| Status::bad_request(format!("invalid {} request \"{id}\"", kind.singular)))?;
        let verb = verb(call)?;
        let namespace = target.namespace.as_deref().unwrap_or_default();
        let object = self.gate().connect_through(&call.user, verb, kind, "proxy", (namespace, id), place.name).await?;
        let path = call.head.uri.path();
        let rest = match &target.rest {
            Some(rest) => rest.as_str(),
            None if path.ends_with('/') => "",
            // What is relative to a page is relative to its directory.
            None => return Ok(moved(&call.head.uri)),
        };
        let far = match resource {
            "pods" => self.to_pod(&object, &place, None).await?,
            "services" => {
                at_namespace(target)?;
                self.to_service(&object, &place, id).await?
            }
            "nodes" if matches!(place.port, "" | KUBELET_PORT) => {
                return self.kubelet(call, &object, &place::clean(rest)).await;
            }
            "nodes" => to_node(&object, &place).await?,
            _ => return Err(not_allowed()),
        };
        let prefix = match rest.is_empty() {
            true => path.trim_end_matches('/'),
            false => path.strip_suffix(rest).unwrap_or(path).trim_end_matches('/'),
        };
        self.pass_on(call, body, far, place.tls, &place::clean(rest), prefix).await
    }

    /// The port named, that of the pod's first container that has one, or HTTP's.
    async fn to_pod(&self, pod: &Value, place: &Place<'_>, port: Option<u16>) -> Result<Far, Status> {
        let port = match (port, place.port) {
            (Some(port), _) => port,
            (None, "") => first_port(pod).unwrap_or(HTTP_PORT),
            (None, text) => text.parse().ok().filter(|port| *port > 0).ok_or_else(|| {
                Status::bad_request(format!("invalid pod request: \"{text}\" is not the number of a port"))
            })?,
        };
        let host = pods::host(pod)?;
        let ip = proxyable(&pods::text(pod, "/status/podIP"))?;
        let authority = SocketAddr::new(ip, port).to_string();
        let dialled = self.node.streams.dial(&host, Reach { pod: pods::reference(pod), ip, port }).await;
        let dialled = dialled.map_err(|status| unreachable(&authority, &status.message))?;
        Ok(Far { io: Box::new(dialled.io), authority, refusal: Some(dialled.refusal) })
    }

    /// A pod of the service that is ready, at random.
    async fn to_service(&self, service: &Value, place: &Place<'_>, id: &str) -> Result<Far, Status> {
        let port = service_port(service, place)?;
        let nobody = || unavailable(format!("no endpoints available for service \"{id}\""));
        let namespace = pods::text(service, "/metadata/namespace");
        let selector = service["spec"]["selector"].as_object().filter(|selector| !selector.is_empty());
        let terms = selector.ok_or_else(nobody)?.iter();
        let terms: Vec<String> =
            terms.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
        let labels = Labels::parse(&terms.join(",")).map_err(Status::internal)?;
        let query = ListQuery { namespace: Some(namespace), labels, ..ListQuery::default() };
        let kind = self.gate().built_in(Builtin::Pod)?;
        // Who may proxy to a service need not be one who may list its pods.
        let listed = self.gate().list(&User::root(), &kind, &query).await?;
        let ready: Vec<&Value> = listed.items.iter().filter(|pod| is_ready(pod)).collect();
        let chosen = ready.get(rand::random_range(0..ready.len().max(1))).ok_or_else(nobody)?;
        let port = target_port(port, chosen).ok_or_else(nobody)?;
        self.to_pod(chosen, place, Some(port)).await
    }

    async fn pass_on(&self, call: &Call, body: Incoming, far: Far, tls: bool, path: &str, prefix: &str) -> Answer {
        let Far { io, authority, refusal } = far;
        let failed = |error: &dyn std::fmt::Display| match refusal.as_ref().and_then(|refusal| refusal.get()) {
            Some(status) => unreachable(&authority, &status.message),
            None => unreachable(&authority, error),
        };
        let io: Box<dyn Pipe> = match tls {
            false => io,
            true => Box::new(
                timeout(CONNECT_TIMEOUT, secure(io, &authority))
                    .await
                    .map_err(|error| failed(&error))?
                    .map_err(|error| failed(&error))?,
            ),
        };
        let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(|error| failed(&error))?;
        let connection: Connected = Box::pin(connection.with_upgrades());
        self.carry_on(connection);
        let upgrades = websocket::has_token(&call.head.headers, header::CONNECTION, "upgrade");
        let request = request(&call.head, body, &authority, path, upgrades, tls)?;
        let mut response = sender.send_request(request).await.map_err(|error| failed(&error))?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            self.join(call, &mut response)?;
        }
        let host = call.head.headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let host = host.or_else(|| call.head.uri.authority().map(http::uri::Authority::as_str)).unwrap_or_default();
        Ok(returned(response, &[&authority, host], prefix))
    }

    /// Joins the two connections, which both are no HTTP any more.
    fn join(&self, call: &Call, response: &mut Response<Incoming>) -> Result<(), Status> {
        let far = hyper::upgrade::on(&mut *response);
        let near = call.head.extensions.get::<OnUpgrade>().cloned();
        let near = near.ok_or_else(|| Status::bad_request("this connection cannot be upgraded"))?;
        let (place, kept) = (self.node.turnstile.open(&call.user)?, answer::Kept::default());
        response.extensions_mut().insert(kept.clone());
        self.carry_on(Box::pin(async move {
            let _kept = (place, kept);
            let (near, far) = tokio::try_join!(near, far)?;
            // How it ends is between the two.
            _ = copy_bidirectional(&mut TokioIo::new(near), &mut TokioIo::new(far)).await;
            Ok(())
        }));
        Ok(())
    }
}

impl Rest {
    /// Runs a connection until it ends or the daemon does.
    fn carry_on(&self, connection: Connected) {
        let stop = self.node.stop.clone();
        self.node.tasks.spawn(async move {
            tokio::select! {
                ended = connection => {
                    if let Err(error) = ended {
                        debug!(%error, "a proxied connection broke");
                    }
                }
                () = stop.cancelled_owned() => {}
            }
        });
    }
}

fn verb(call: &Call) -> Result<Verb, Status> {
    Ok(match call.asked.verb.as_str() {
        "get" => Verb::Get,
        "create" => Verb::Create,
        "update" => Verb::Update,
        "patch" => Verb::Patch,
        "delete" => Verb::Delete,
        _ => return Err(not_allowed()),
    })
}

fn moved(uri: &Uri) -> Response<Body> {
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let mut response = Response::new(answer::full(""));
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    if let Ok(location) = HeaderValue::from_str(&format!("{}/{query}", uri.path())) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// An address that requests may be sent on to: none that means this machine, or something beside it, to whoever connects.
///
/// # Errors
/// `BadRequest`, as upstream has it.
fn proxyable(address: &str) -> Result<IpAddr, Status> {
    let refused = || Status::bad_request("address not allowed");
    let ip = address.parse::<IpAddr>().map_err(|_| refused())?.to_canonical();
    let is_near = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    match is_near || ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() {
        true => Err(refused()),
        false => Ok(ip),
    }
}

async fn to_node(node: &Value, place: &Place<'_>) -> Result<Far, Status> {
    let addresses = node["status"]["addresses"].as_array().map(Vec::as_slice).unwrap_or_default();
    let address = addresses.iter().find(|address| address["type"] == "InternalIP").and_then(|a| a["address"].as_str());
    let address = address.ok_or_else(|| unavailable(format!("node \"{}\" has no address", place.name)))?;
    let ip = proxyable(address)?;
    let port: u16 = place.port.parse().map_err(|_| Status::bad_request(format!("invalid port {:?}", place.port)))?;
    let address = SocketAddr::new(ip, port);
    let authority = address.to_string();
    let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
    let stream =
        connected.map_err(|error| unreachable(&authority, &error))?.map_err(|error| unreachable(&authority, &error))?;
    Ok(Far { io: Box::new(stream), authority, refusal: None })
}

/// Whoever answers is believed, as upstream does: the client asked for a proxy to just this pod.
async fn secure(io: Box<dyn Pipe>, authority: &str) -> std::io::Result<tokio_rustls::client::TlsStream<Box<dyn Pipe>>> {
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host).to_owned();
    let name = rustls::pki_types::ServerName::try_from(host).map_err(std::io::Error::other)?;
    let config = crate::agent::unverified().map_err(std::io::Error::other)?;
    TlsConnector::from(config).connect(name, io).await
}

fn request(
    head: &Parts,
    body: Incoming,
    authority: &str,
    path: &str,
    upgrades: bool,
    tls: bool,
) -> Result<Request<Incoming>, Status> {
    let query = head.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let uri: Uri = format!("{path}{query}").parse().map_err(Status::bad_request)?;
    let mut request = Request::new(body);
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = uri;
    let headers = request.headers_mut();
    *headers = passed_on(&head.headers, upgrades);
    authn::remove_identity(headers);
    let value = |text: &str| HeaderValue::from_str(text).map_err(Status::bad_request);
    if let Some(host) = head.headers.get(header::HOST).cloned() {
        headers.insert("x-forwarded-host", host);
    }
    headers.insert("x-forwarded-uri", value(head.uri.path())?);
    headers.insert("x-forwarded-proto", HeaderValue::from_static(if tls { "https" } else { "http" }));
    headers.insert(header::HOST, value(authority)?);
    Ok(request)
}

/// Headers without those that belong to the connection that they came on.
fn passed_on(headers: &HeaderMap, upgrades: bool) -> HeaderMap {
    let named: Vec<String> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|line| line.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    let mut passed = HeaderMap::new();
    for (name, value) in headers {
        let of_upgrade = upgrades && (name == header::CONNECTION || name == header::UPGRADE);
        let of_connection = OF_CONNECTION.contains(&name.as_str()) || named.iter().any(|one| one == name.as_str());
        if of_upgrade || !of_connection {
            passed.append(name.clone(), value.clone());
        }
    }
    passed
}

fn returned(response: Response<Incoming>, hosts: &[&str], prefix: &str) -> Response<Body> {
    let upgraded = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let (mut parts, body) = response.into_parts();
    parts.headers = passed_on(&parts.headers, upgraded);
    let location = parts.headers.get(header::LOCATION).and_then(|location| location.to_str().ok());
    if let Some(Ok(through)) = location.map(|l| HeaderValue::from_str(&place::relocate(l, hosts, prefix))) {
        parts.headers.insert(header::LOCATION, through);
    }
    Response::from_parts(parts, body.map_err(Into::into).boxed_unsync())
}

fn first_port(pod: &Value) -> Option<u16> {
    let containers = pod["spec"]["containers"].as_array()?;
    containers.iter().find_map(|container| u16::try_from(container["ports"][0]["containerPort"].as_u64()?).ok())
}

/// The port of a service that is meant: by number, by name, or the nameless one.
fn service_port<'a>(service: &'a Value, place: &Place<'_>) -> Result<&'a Value, Status> {
    let ports = service["spec"]["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    let found = match place.port.parse::<u64>() {
        Ok(number) => ports.iter().find(|port| port["port"].as_u64() == Some(number)),
        Err(_) => ports.iter().find(|port| port["name"].as_str().unwrap_or_default() == place.port),
    };
    found.ok_or_else(|| match place.port.parse::<u64>() {
        Ok(number) => unavailable(format!("no service port {number} found for service \"{}\"", place.name)),
        Err(_) => unavailable(format!("no endpoints available for service \"{}:{}\"", place.name, place.port)),
    })
}

/// Where that port leads in a pod.
fn target_port(port: &Value, pod: &Value) -> Option<u16> {
    let number = |value: &Value| value.as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
    match &port["targetPort"] {
        Value::String(name) => {
            let containers = pod["spec"]["containers"].as_array()?;
            let ports = containers.iter().flat_map(|container| container["ports"].as_array().into_iter().flatten());
            ports.into_iter().find(|port| port["name"] == *name).and_then(|port| number(&port["containerPort"]))
        }
        target => number(target).or_else(|| number(&port["port"])),
    }
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    pod["metadata"]["deletionTimestamp"].is_null()
        && conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

fn unreachable(authority: &str, error: &(impl std::fmt::Display + ?Sized)) -> Status {
    unavailable(format!("error trying to reach service: dial tcp {authority}: {error}"))
}

fn unavailable(message: String) -> Status {
    Status::new(Reason::ServiceUnavailable, message)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ports_of_services_lead_to_ports_of_pods() {
        let service = json!({"spec": {"ports": [
            {"name": "http", "port": 80, "targetPort": "web"}, {"name": "admin", "port": 81, "targetPort": 9001}, {"port": 82},
        ]}});
        let pod = json!({"spec": {"containers": [{"ports": [{"name": "web", "containerPort": 8080}]}]}});
        for (port, wanted) in [("http", 8080), ("80", 8080), ("admin", 9001), ("81", 9001), ("", 82), ("82", 82)] {
            let place = Place { tls: false, name: "s", port };
            assert_eq!(target_port(service_port(&service, &place).unwrap(), &pod), Some(wanted), "{port:?}");
        }
        for port in ["99", "other"] {
            let place = Place { tls: false, name: "s", port };
            assert_eq!(service_port(&service, &place).unwrap_err().reason, Reason::ServiceUnavailable);
        }
        assert_eq!(first_port(&pod), Some(8080));
    }

    #[test]
    fn what_belongs_to_a_connection_or_to_us_is_not_passed_on() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "upgrade, x-own"),
            ("upgrade", "websocket"),
            ("x-own", "1"),
            ("transfer-encoding", "chunked"),
            ("accept", "*/*"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let names = |upgrades| {
            let passed = passed_on(&headers, upgrades);
            let mut names: Vec<String> = passed.keys().map(ToString::to_string).collect();
            names.sort();
            names
        };
        assert_eq!(names(false), ["accept"]);
        assert_eq!(names(true), ["accept", "connection", "upgrade"]);
    }
}
