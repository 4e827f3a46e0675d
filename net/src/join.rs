//! How a machine becomes a node. It dials an address of its token, sees by the pinned authority that it has found the right
//! cluster, and only then sends the token's secret with a request for a certificate. One question, one answer, to one node at
//! a time.
//!
//! Invariant: the secret is sent to nobody but a node certified by the authority that the token pins.
//! Invariant: what comes back is believed only if it fits the token and what was asked for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use quinn::{Connection, ConnectionError, Endpoint};
use serde::{Deserialize, Serialize};

use crate::alpn::Alpn;
use crate::authority::MAX_REQUEST_BYTES;
use crate::certificate::fingerprint;
use crate::codec::{self, CodecError};
use crate::frame::{FrameError, read_frame, write_frame};
use crate::home::elsewhere;
use crate::identity::{Identity, IdentityError, NodeKey};
use crate::names::{NameError, NodeId, check_node_name};
use crate::pool::canonical;
use crate::ports::{JoinGrant, JoinRequest, Member, Refusal, RenewGrant};
use crate::record::MAX_ADDRESSES;
use crate::seal::SealKey;
use crate::shared::Shared;
use crate::tls;
use crate::token::{Token, TokenId, TokenSecret};
use crate::transport::{self, Keeping, is_revoked_alert, is_tls_alert};

/// The largest question.
pub const MAX_QUESTION_BYTES: usize = 64 * 1024;

/// The largest answer.
pub const MAX_ANSWER_BYTES: usize = 4 * 1024 * 1024;

/// By so much an address is dialled before the next one, unless it fails sooner (RFC 8305, section 5).
const HEAD_START: Duration = Duration::from_millis(500);

const MAX_VERSION_BYTES: usize = 64;
const MAX_REASON_BYTES: usize = 512;

#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("the token has expired; ask for a new one")]
    Expired,
    #[error("none of the token's addresses answers: {0}")]
    Unreachable(String),
    #[error("{0} belongs to another cluster than the token, or is not what it claims to be; nothing was sent to it")]
    WrongCluster(SocketAddr),
    #[error(
        "{0} says that it is of the token's cluster, but shows another authority than the token pins: either the cluster's \
         CA was replaced since the token was made ('flotilla token create' makes a new one), or it is not what it claims to \
         be; nothing was sent to it"
    )]
    Replaced(SocketAddr),
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Broken(String),
    #[error("the cluster's answer does not fit what was asked: {0}")]
    Misfit(&'static str),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("this machine cannot dial: {0}")]
    Local(String),
}

/// What the machine says about itself.
#[derive(Debug, Clone)]
pub struct JoinParts {
    pub name: String,
    pub id: NodeId,
    /// A machine that asks again with the same id and key, since it did not hear the answer, is admitted again.
    pub key: NodeKey,
    /// Where it will listen (UDP).
    pub addresses: Vec<SocketAddr>,
    pub version: String,
    /// Whether it is willing to hold a replica.
    pub replica: bool,
}

/// How long a join may take.
#[derive(Debug, Clone, Copy)]
pub struct JoinTimeouts {
    /// For each address, until it has proved what it is.
    pub connect: Duration,
    /// From the question to the answer.
    pub answer: Duration,
}

impl Default for JoinTimeouts {
    fn default() -> Self {
        JoinTimeouts { connect: Duration::from_secs(5), answer: Duration::from_secs(15) }
    }
}

impl JoinError {
    /// Whether the cluster may have admitted the machine all the same: nobody heard it say no.
    pub fn is_open(&self) -> bool {
        matches!(self, JoinError::Unreachable(_) | JoinError::Broken(_) | JoinError::Local(_))
    }
}

/// What a machine has once it is a node. Nothing is on disk yet.
#[derive(Debug)]
pub struct Joined {
    pub identity: Identity,
    pub seal_key: Option<SealKey>,
    pub members: Vec<Member>,
}

#[derive(Serialize, Deserialize)]
struct Question {
    token_id: TokenId,
    secret: TokenSecret,
    name: String,
    id: NodeId,
    csr: Vec<u8>,
    addresses: Vec<SocketAddr>,
    version: String,
    replica: bool,
}

type Answer<T> = Result<T, String>;

/// Joins the cluster of `token`. The addresses are dialled in order, each with a head start, and the first that proves to be
/// of the token's cluster is asked; a refusal is final.
pub async fn join(
    token: &Token,
    parts: &JoinParts,
    timeouts: JoinTimeouts,
    now: SystemTime,
) -> Result<Joined, JoinError> {
    check_node_name(&parts.name)?;
    if token.expires().is_some_and(|expires| expires <= now) {
        return Err(JoinError::Expired);
    }
    let question = question(token, parts)?;
    let (mut failures, mut stranger) = (Vec::new(), None);
    let mut left = token.addresses().iter().copied();
    let dial = |address: SocketAddr| {
        tracing::info!(%address, "dialling an address of the token");
        reach(token, address, timeouts.connect)
    };
    let mut dials: FuturesUnordered<_> = left.next().map(dial).into_iter().collect();
    while !dials.is_empty() {
        let reached = tokio::select! {
            biased;
            Some(reached) = dials.next() => reached,
            () = tokio::time::sleep(HEAD_START), if left.len() > 0 => {
                dials.extend(left.next().map(dial));
                continue;
            }
        };
        let granted = match reached {
            Ok(line) => line.ask(&question, timeouts.answer).await,
            Err(error) => Err(error),
        };
        match granted {
            Ok(grant) => return accept(token, parts, grant),
            // The question is the same again, and the cluster knows it again: a lost answer costs no second admission.
            Err(JoinError::Unreachable(reason) | JoinError::Broken(reason)) => {
                tracing::warn!(reason, "an address of the token does not help");
                failures.push(reason);
            }
            Err(error @ (JoinError::WrongCluster(_) | JoinError::Replaced(_))) => {
                tracing::warn!(reason = %error, "an address of the token does not help");
                stranger = Some(error);
            }
            Err(error) => return Err(error),
        }
        dials.extend(left.next().map(dial));
    }
    Err(stranger.unwrap_or_else(|| JoinError::Unreachable(failures.join("; "))))
}

fn question(token: &Token, parts: &JoinParts) -> Result<Vec<u8>, JoinError> {
    let question = Question {
        token_id: token.id(),
        secret: token.secret().clone(),
        name: parts.name.clone(),
        id: parts.id,
        csr: parts.key.request()?,
        addresses: parts.addresses.clone(),
        version: parts.version.clone(),
        replica: parts.replica,
    };
    codec::encode(&question).map_err(|error| JoinError::Local(error.to_string()))
}

/// A connection to a node that has proved to be of the token's cluster.
struct Line {
    address: SocketAddr,
    endpoint: Endpoint,
    connection: Connection,
}

/// Dials one address.
async fn reach(token: &Token, address: SocketAddr, bound: Duration) -> Result<Line, JoinError> {
    // Another address may be of a family that this machine has.
    let endpoint = caller_endpoint(address).map_err(|error| JoinError::Unreachable(format!("{address}: {error}")))?;
    let connection = tokio::time::timeout(bound, dial(&endpoint, token, address))
        .await
        .map_err(|_| JoinError::Unreachable(format!("{address} does not answer")))??;
    Ok(Line { address, endpoint, connection })
}

impl Line {
    async fn ask(self, question: &[u8], bound: Duration) -> Result<JoinGrant, JoinError> {
        let Line { address, endpoint, connection } = self;
        let result = tokio::time::timeout(bound, exchange(&connection, question)).await;
        // Before this end closes too: then that is all there is to know.
        let result = result.map(|answer| answer.map_err(|error| explain(&connection, &error)));
        connection.close(0_u32.into(), b"done");
        // So that the close is sent; the answer stands whether or not it is heard.
        let _ = tokio::time::timeout(Duration::from_millis(200), endpoint.wait_idle()).await;
        let broken = |reason: String| JoinError::Broken(format!("{address} broke off: {reason}"));
        match result {
            Ok(Ok(bytes)) => codec::decode_within::<Answer<JoinGrant>, MAX_ANSWER_BYTES>(&bytes)
                .map_err(|error| broken(error.to_string()))?
                .map_err(JoinError::Refused),
            Ok(Err(why)) => Err(broken(why)),
            Err(_) => Err(broken(format!("no answer within {} ms", bound.as_millis()))),
        }
    }
}

/// The peer's reason for closing, where it gave one.
pub(crate) fn explain(connection: &Connection, error: &FrameError) -> String {
    match connection.close_reason() {
        Some(ConnectionError::ApplicationClosed(close)) => String::from_utf8_lossy(&close.reason).into_owned(),
        Some(ConnectionError::LocallyClosed) | None => error.to_string(),
        Some(other) => other.to_string(),
    }
}

fn caller_endpoint(address: SocketAddr) -> Result<Endpoint, String> {
    let any = if address.is_ipv4() { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { IpAddr::from(Ipv6Addr::UNSPECIFIED) };
    Endpoint::client(SocketAddr::new(any, 0)).map_err(|error| error.to_string())
}

async fn dial(endpoint: &Endpoint, token: &Token, address: SocketAddr) -> Result<Connection, JoinError> {
    let tls =
        tls::quic_join(*token.authority(), token.cluster()).map_err(|error| JoinError::Local(error.to_string()))?;
    let keeping = Keeping { idle_timeout: Duration::from_secs(10), keep_alive: Duration::from_secs(2) };
    let config = transport::client(tls, keeping, Alpn::Join).map_err(JoinError::Local)?;
    let unreachable = |error: String| JoinError::Unreachable(format!("{address}: {error}"));
    let connecting =
        endpoint.connect_with(config, address, "join.flotilla").map_err(|error| unreachable(error.to_string()))?;
    connecting.await.map_err(|error| match error {
        // What this side found wrong with the other is a TLS alert; all else may pass.
        ConnectionError::TransportError(error) if is_revoked_alert(error.code) => JoinError::Replaced(address),
        ConnectionError::TransportError(error) if is_tls_alert(error.code) => JoinError::WrongCluster(address),
        other => unreachable(other.to_string()),
    })
}

pub(crate) async fn exchange(connection: &Connection, question: &[u8]) -> Result<bytes::Bytes, FrameError> {
    let (mut send, mut recv) = connection.open_bi().await.map_err(|error| FrameError::Stream(error.into()))?;
    write_frame(&mut send, question).await?;
    // Only a stream that was finished or reset before cannot be finished.
    let _ = send.finish();
    read_frame(&mut recv, MAX_ANSWER_BYTES).await
}

/// Checks that what was granted is what was asked for.
fn accept(token: &Token, parts: &JoinParts, grant: JoinGrant) -> Result<Joined, JoinError> {
    if grant.cluster != token.cluster() {
        return Err(JoinError::Misfit("another cluster"));
    }
    if !grant.authorities.iter().any(|authority| fingerprint(authority) == *token.authority()) {
        return Err(JoinError::Misfit("another authority"));
    }
    let JoinGrant { certificate, authorities, bridges, .. } = grant;
    let identity = RenewGrant { certificate, authorities, bridges, revision: 0 }.into_identity(parts.key.clone())?;
    if identity.cluster() != token.cluster() || identity.id() != parts.id || identity.name() != parts.name {
        return Err(JoinError::Misfit("a certificate for another node"));
    }
    Ok(Joined { identity, seal_key: grant.seal_key, members: grant.members })
}

/// Answers the one question of a stranger.
pub(crate) async fn serve(shared: &Arc<Shared>, connection: &Connection) {
    let remote = canonical(connection.remote_address());
    match answer(shared, connection, remote).await {
        Ok(Ok(name)) => tracing::info!(%remote, name, "a node joined"),
        Ok(Err(reason)) => tracing::info!(%remote, reason, "a join was refused"),
        Err(error) => tracing::info!(%remote, %error, "a join broke off"),
    }
}

async fn answer(
    shared: &Arc<Shared>,
    connection: &Connection,
    remote: SocketAddr,
) -> Result<Result<String, String>, FrameError> {
    let (mut send, mut recv) = connection.accept_bi().await.map_err(|error| FrameError::Stream(error.into()))?;
    let frame = read_frame(&mut recv, MAX_QUESTION_BYTES).await?;
    let (name, answer) = decide(shared, &frame, remote).await;
    let told = answer.as_ref().map(|_| name).map_err(String::clone);
    write_answer(&mut send, &answer).await?;
    Ok(told)
}

pub(crate) async fn write_answer<T: Serialize>(
    send: &mut quinn::SendStream,
    answer: &Answer<T>,
) -> Result<(), FrameError> {
    let bytes = codec::encode(answer).map_err(|error: CodecError| FrameError::Stream(std::io::Error::other(error)))?;
    write_frame(send, &bytes).await?;
    // Only a stream that was finished or reset before cannot be finished.
    let _ = send.finish();
    Ok(())
}

async fn decide(shared: &Arc<Shared>, frame: &[u8], remote: SocketAddr) -> (String, Answer<JoinGrant>) {
    let request = match read_question(frame, remote) {
        Ok(request) => request,
        Err(reason) => return (String::new(), Err(reason)),
    };
    let name = request.name.clone();
    let answer = match shared.ports.admission() {
        Some(admission) => elsewhere(&shared.callers, async move { admission.admit(request).await })
            .await
            .unwrap_or_else(|| Err(Refusal("the join failed within the cluster; see its log".to_string())))
            .map_err(bounded_reason),
        None => Err("this node admits nobody yet; try again".to_string()),
    };
    (name, answer)
}

pub(crate) fn bounded_reason(Refusal(mut reason): Refusal) -> String {
    let end = (0..=MAX_REASON_BYTES.min(reason.len())).rev().find(|at| reason.is_char_boundary(*at)).unwrap_or(0);
    reason.truncate(end);
    reason.replace(['\n', '\r'], " ")
}

/// Checks the bounds of a question.
fn read_question(frame: &[u8], remote: SocketAddr) -> Result<JoinRequest, String> {
    let question: Question =
        codec::decode_within::<_, MAX_QUESTION_BYTES>(frame).map_err(|error| format!("not a join request: {error}"))?;
    check_node_name(&question.name).map_err(|error| error.to_string())?;
    if question.csr.len() > MAX_REQUEST_BYTES {
        return Err(format!("the certificate request is larger than {MAX_REQUEST_BYTES} bytes"));
    }
    if question.addresses.len() > MAX_ADDRESSES {
        return Err(format!("more than {MAX_ADDRESSES} addresses"));
    }
    if question.version.len() > MAX_VERSION_BYTES || question.version.chars().any(char::is_control) {
        return Err(format!("a version is at most {MAX_VERSION_BYTES} printable bytes"));
    }
    Ok(JoinRequest {
        token_id: question.token_id,
        secret: question.secret,
        name: question.name,
        id: question.id,
        csr: question.csr,
        addresses: question.addresses,
        version: question.version,
        replica: question.replica,
        remote,
    })
}

#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(input: &[u8]) {
    _ = read_question(input, SocketAddr::from(([192, 0, 2, 1], 6443)));
    _ = codec::decode_within::<Answer<JoinGrant>, MAX_ANSWER_BYTES>(input);
}
