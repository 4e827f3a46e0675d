//! Commands, attaching and forwarded ports: requests that end as HTTP and go on as streams.
//!
//! Invariant: to connect is to create, whatever the method: a WebSocket can only be asked for with GET, and who may read a
//! pod may not therefore run commands in it.
//! Invariant: nothing happens in a pod before the client has its answer, and nothing goes on once the client is gone.

use flotilla_api::Status;
use http::header::{CONNECTION, HeaderValue, UPGRADE};
use http::{HeaderMap, Response, StatusCode};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tracing::{Instrument, debug};

use super::route::Target;
use super::streams::channel::{self, Protocol};
use super::streams::forward::{self, Dial};
use super::streams::over_spdy::{VERSIONS, Version};
use super::streams::remote::Wishes;
use super::streams::tunnel::Tunnel;
use super::streams::{over_spdy, over_websocket, websocket};
use super::{Answer, Call, Rest, answer, at_namespace};
use crate::pods;
use crate::streams::{Attach, Connection, Exec, Forward, PodReference, StreamRequest, Streams};

const SPDY: &str = "SPDY/3.1";
const STREAM_PROTOCOL: &str = "x-stream-protocol-version";
const ACCEPTED_PROTOCOLS: &str = "x-accepted-stream-protocol-versions";
/// The longest command that is run, all words together.
const MAX_COMMAND_BYTES: usize = 128 * 1024;

/// How a session is carried.
enum Carrier {
    Spdy(Version),
    Channels(&'static Protocol),
}

/// How forwarded ports are carried.
enum Carriage {
    Spdy,
    Tunnel,
    Channels(&'static Protocol, Vec<u16>),
}

impl Rest {
    pub(super) async fn exec(&self, call: &Call, target: &Target, name: &str) -> Answer {
        let pod = self.gate().connect(&call.user, "exec", at_namespace(target)?, name).await?;
        let (wishes, container) = (wishes(call)?, pods::container(&pod, call.query.get("container"))?);
        let command: Vec<String> = call.query.all("command").into_iter().map(str::to_owned).collect();
        if command.iter().all(String::is_empty) {
            return Err(Status::bad_request("you must specify at least one command for the container"));
        }
        if command.iter().map(String::len).sum::<usize>() > MAX_COMMAND_BYTES {
            return Err(Status::bad_request(format!("the command is longer than {MAX_COMMAND_BYTES} bytes")));
        }
        let exec = Exec {
            pod: pods::reference(&pod),
            container,
            command: command.clone(),
            tty: wishes.tty,
            stdin: wishes.stdin,
            size: None,
        };
        self.session(call, &pod, wishes, command, StreamRequest::Exec(exec))
    }

    pub(super) async fn attach(&self, call: &Call, target: &Target, name: &str) -> Answer {
        let pod = self.gate().connect(&call.user, "attach", at_namespace(target)?, name).await?;
        let (wishes, container) = (wishes(call)?, pods::container(&pod, call.query.get("container"))?);
        let attach = Attach { pod: pods::reference(&pod), container, stdin: wishes.stdin, size: None };
        self.session(call, &pod, wishes, Vec::new(), StreamRequest::Attach(attach))
    }

    fn session(
        &self,
        call: &Call,
        pod: &Value,
        wishes: Wishes,
        command: Vec<String>,
        request: StreamRequest,
    ) -> Answer {
        let headers = &call.head.headers;
        let host = pods::host(pod)?;
        let (carrier, answer) = if websocket::is_asked(headers) {
            let offered = websocket::offered(headers);
            let Some(protocol) = channel::negotiate(&offered, channel::REMOTE_COMMAND) else {
                return Ok(no_protocol(&offered, channel::REMOTE_COMMAND.iter().map(|protocol| protocol.name)));
            };
            (Carrier::Channels(protocol), accept(headers, protocol.name)?)
        } else if is_spdy(headers) {
            let offered = offered(headers);
            let Some(version) = version(&offered) else {
                return Ok(no_protocol(&offered, VERSIONS.iter().map(|version| version.name)));
            };
            (Carrier::Spdy(version), spdy_answer(if offered.is_empty() { "" } else { version.name }))
        } else {
            return Err(Status::bad_request("Upgrade request required"));
        };
        let streams = self.node.streams.clone();
        let open = async move { streams.connect(&host, request).await };
        self.upgrade(call, answer, move |io| async move {
            match carrier {
                Carrier::Spdy(version) => {
                    over_spdy::run(io, version, wishes, &command, open).await.map_err(|error| error.to_string())
                }
                Carrier::Channels(protocol) => {
                    let socket = websocket::server(io).await;
                    let ran = over_websocket::run(socket, protocol, wishes, &command, open).await;
                    ran.map_err(|error| error.to_string())
                }
            }
        })
    }

    pub(super) async fn port_forward(&self, call: &Call, target: &Target, name: &str) -> Answer {
        let pod = self.gate().connect(&call.user, "portforward", at_namespace(target)?, name).await?;
        let headers = &call.head.headers;
        let host = pods::host(&pod)?;
        let (carriage, answer) = if websocket::is_asked(headers) {
            let offered = websocket::offered(headers);
            if offered.contains(&forward::TUNNEL_PROTOCOL) {
                (Carriage::Tunnel, accept(headers, forward::TUNNEL_PROTOCOL)?)
            } else {
                let Some(protocol) = channel::negotiate(&offered, channel::PORT_FORWARD) else {
                    return Ok(no_protocol(&offered, channel::PORT_FORWARD.iter().map(|protocol| protocol.name)));
                };
                (Carriage::Channels(protocol, ports(call)?), accept(headers, protocol.name)?)
            }
        } else if is_spdy(headers) {
            let offered = offered(headers);
            if !offered.is_empty() && !offered.contains(&forward::PROTOCOL) {
                return Ok(no_protocol(&offered, [forward::PROTOCOL].into_iter()));
            }
            (Carriage::Spdy, spdy_answer(if offered.is_empty() { "" } else { forward::PROTOCOL }))
        } else {
            return Err(Status::bad_request("Upgrade request required"));
        };
        let dialler = ToPod { streams: self.node.streams.clone(), host, pod: pods::reference(&pod) };
        self.upgrade(call, answer, move |io| async move {
            match carriage {
                Carriage::Spdy => forward::over_spdy(io, &dialler).await.map_err(|error| error.to_string()),
                Carriage::Tunnel => {
                    let tunnel = Tunnel::new(websocket::server(io).await);
                    forward::over_spdy(tunnel, &dialler).await.map_err(|error| error.to_string())
                }
                Carriage::Channels(protocol, ports) => {
                    let socket = websocket::server(io).await;
                    forward::over_channels(socket, protocol, &ports, &dialler).await.map_err(|error| error.to_string())
                }
            }
        })
    }

    /// Answers that the connection becomes something else, and runs that until the client or the daemon goes.
    fn upgrade<F>(
        &self,
        call: &Call,
        headers: HeaderMap,
        session: impl FnOnce(TokioIo<Upgraded>) -> F + Send + 'static,
    ) -> Answer
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        let Some(upgrade) = call.head.extensions.get::<OnUpgrade>().cloned() else {
            return Err(Status::bad_request("Upgrade request required"));
        };
        let place = self.node.turnstile.open(&call.user)?;
        let stop = self.node.stop.clone();
        let span = tracing::info_span!("session", path = call.head.uri.path(), user = call.user.name);
        let kept = answer::Kept::default();
        let session_keeps = kept.clone();
        let run = async move {
            let _kept = (place, session_keeps);
            let upgraded = match upgrade.await {
                Ok(upgraded) => TokioIo::new(upgraded),
                Err(error) => return debug!(%error, "the client did not stay for its session"),
            };
            if let Some(Err(error)) = stop.run_until_cancelled(session(upgraded)).await {
                debug!(error, "a session broke");
            }
        };
        self.node.tasks.spawn(run.instrument(span));
        let mut response = Response::new(answer::full(""));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *response.headers_mut() = headers;
        response.extensions_mut().insert(kept);
        Ok(response)
    }
}

/// Dials ports of one pod.
struct ToPod {
    streams: Streams,
    host: String,
    pod: PodReference,
}

impl Dial for ToPod {
    fn context(&self, port: u16) -> String {
        format!("error forwarding port {port} to pod {}, uid {}", self.pod.name, self.pod.uid)
    }

    async fn dial(&self, port: u16) -> Result<Connection, Status> {
        let forward = Forward { pod: self.pod.clone(), port };
        self.streams.connect(&self.host, StreamRequest::Forward(forward)).await
    }
}

fn wishes(call: &Call) -> Result<Wishes, Status> {
    let flag = |name: &str| call.query.flag(name);
    let tty = flag("tty");
    // A terminal has one output.
    let wishes = Wishes { stdin: flag("stdin"), stdout: flag("stdout"), stderr: flag("stderr") && !tty, tty };
    match wishes.stdin || wishes.stdout || wishes.stderr {
        true => Ok(wishes),
        false => Err(Status::bad_request("you must specify at least 1 of stdin, stdout, stderr")),
    }
}

fn ports(call: &Call) -> Result<Vec<u16>, Status> {
    let mut ports = Vec::new();
    for text in call.query.all("ports").iter().flat_map(|list| list.split(',')) {
        match text.parse() {
            Ok(port) if port > 0 => ports.push(port),
            _ => return Err(Status::bad_request(format!("unable to parse \"{text}\" as a port"))),
        }
    }
    match ports.len() {
        0 => Err(Status::bad_request("query parameter \"port\" is required")),
        many if many > forward::MAX_PORTS => {
            Err(Status::bad_request(format!("at most {} ports are forwarded at a time", forward::MAX_PORTS)))
        }
        _ => Ok(ports),
    }
}

fn accept(headers: &HeaderMap, protocol: &str) -> Result<HeaderMap, Status> {
    websocket::accept(headers, protocol).map_err(|error| Status::bad_request(format!("unable to upgrade: {error}")))
}

fn is_spdy(headers: &HeaderMap) -> bool {
    websocket::has_token(headers, CONNECTION, "upgrade") && websocket::has_token(headers, UPGRADE, SPDY)
}

/// The versions of a protocol that a client offers, as it prefers them.
fn offered(headers: &HeaderMap) -> Vec<&str> {
    let lines = headers.get_all(STREAM_PROTOCOL).into_iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|name| !name.is_empty()).collect()
}

/// The client's first that is known; the first of all for a client from before there were versions.
fn version(offered: &[&str]) -> Option<Version> {
    let find = |name: &str| VERSIONS.iter().find(|version| version.name == name).copied();
    if offered.is_empty() { find("channel.k8s.io") } else { offered.iter().find_map(|name| find(name)) }
}

fn spdy_answer(protocol: &'static str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(SPDY));
    if !protocol.is_empty() {
        headers.insert(STREAM_PROTOCOL, HeaderValue::from_static(protocol));
    }
    headers
}

fn no_protocol<'a>(offered: &[&str], known: impl Iterator<Item = &'a str>) -> Response<super::Body> {
    let known: Vec<&str> = known.filter(|name| !name.is_empty()).collect();
    let words = format!(
        "unable to upgrade: unable to negotiate protocol: client supports [{}], server accepts [{}]",
        offered.join(" "),
        known.join(" ")
    );
    let mut response = answer::text(StatusCode::FORBIDDEN, words);
    for name in known.iter().filter_map(|name| HeaderValue::from_str(name).ok()) {
        response.headers_mut().append(ACCEPTED_PROTOCOLS, name);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_first_version_that_is_known_is_spoken() {
        let name = |offered: &[&str]| version(offered).map(|version| version.name);
        assert_eq!(name(&["v4.channel.k8s.io", "v3.channel.k8s.io"]), Some("v4.channel.k8s.io"));
        assert_eq!(name(&["v77.channel.k8s.io", "v2.channel.k8s.io"]), Some("v2.channel.k8s.io"));
        assert_eq!(name(&[]), Some("channel.k8s.io"));
        assert_eq!(name(&["portforward.k8s.io"]), None);
        let mut headers = HeaderMap::new();
        headers.append(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.append(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
        headers.append(STREAM_PROTOCOL, HeaderValue::from_static("v4.channel.k8s.io"));
        headers.append(STREAM_PROTOCOL, HeaderValue::from_static("v3.channel.k8s.io"));
        assert!(is_spdy(&headers));
        assert_eq!(offered(&headers), ["v4.channel.k8s.io", "v3.channel.k8s.io"]);
    }

    #[test]
    fn a_client_without_a_known_protocol_is_told_which_there_are() {
        let response = no_protocol(&["x"], VERSIONS.iter().map(|version| version.name));
        assert_eq!(response.status(), StatusCode::FORBIDDEN);
        assert_eq!(response.headers().get_all(ACCEPTED_PROTOCOLS).iter().count(), VERSIONS.len());
    }
}
