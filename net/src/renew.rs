//! How a node gets its next certificate, also when the last one expired while it was off. It comes without a certificate in
//! the handshake, and shows the old one with a signature over this very connection: so that the handshake never lets an
//! expired certificate pass, and a recorded request is worth nothing elsewhere.
//!
//! Invariant: the next certificate is for the same node and the same key.
//! Invariant: only a listed, unrevoked node is signed for.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use quinn::Connection;
use rcgen::{CertificateSigningRequestParams, PublicKeyData};
use rustls::pki_types::CertificateSigningRequestDer;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::alpn::Alpn;
use crate::authority::MAX_REQUEST_BYTES;
use crate::certificate::{MAX_CERTIFICATE_BYTES, Subject, fingerprint, verify_node_despite_age};
use crate::codec;
use crate::frame::{FrameError, read_frame};
use crate::home::elsewhere;
use crate::identity::Identity;
use crate::join::{MAX_ANSWER_BYTES, MAX_QUESTION_BYTES, bounded_reason, exchange, explain, write_answer};
use crate::names::NodeId;
use crate::pool::canonical;
use crate::ports::{RenewGrant, RenewRequest};
use crate::shared::Shared;

const LABEL: &[u8] = b"EXPORTER-flotilla-renew-1";
const MAX_PROOF_BYTES: usize = 128;

/// Between a failed renewal and the next try, at least and at most.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// A certificate of a short life is tried for more often: so many times in its life at least.
const TRIES_A_LIFE: u32 = 16;

/// Between two looks for other authorities, at least.
const ESTRANGED_MIN: Duration = Duration::from_secs(2);

/// The most peers that one round of a renewal asks.
const MAX_PEERS_ASKED: usize = 8;

#[derive(Serialize, Deserialize)]
struct Question {
    certificate: Vec<u8>,
    csr: Vec<u8>,
    /// Over this connection and the request, by the certificate's key.
    proof: Vec<u8>,
}

/// Why a certificate is renewed before its time.
#[derive(Default)]
pub(crate) struct Reasons {
    /// The daemon asks for it.
    pub(crate) asked: Notify,
    /// A peer does not believe this node or is not believed. This node may have slept through a change of authorities.
    pub(crate) estranged: Notify,
}

/// Renews this node's certificate at two thirds of its life, or when there is a reason, until the network stops.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut retry = RETRY_MIN;
    let mut estranged = Estranged::default();
    // A point in time, since reasons that come often must not put it off.
    let mut next = Instant::now();
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = shared.renewal.asked.notified() => {}
            () = shared.renewal.estranged.notified() => {
                estranged.look_elsewhere(&shared).await;
                continue;
            }
            () = tokio::time::sleep_until(next.into()) => {
                let due = shared.credentials.identity().subject().renew_at();
                if let Ok(left) = due.duration_since(SystemTime::now()) && !left.is_zero() {
                    // The clock may be set meanwhile, so that a long time is not slept through.
                    next = Instant::now() + left.min(shared.options.renew_check);
                    continue;
                }
            }
        }
        let identity = shared.credentials.identity();
        match renew(&shared, &identity).await {
            Ok(()) => (next, retry) = (Instant::now() + RETRY_MIN, RETRY_MIN),
            Err(reason) => {
                tracing::warn!(reason, retry_in_ms = retry.as_millis() as u64, "the certificate could not be renewed");
                let longest = (identity.subject().lifetime() / TRIES_A_LIFE).clamp(RETRY_MIN, RETRY_MAX);
                (next, retry) = (Instant::now() + retry, (retry * 2).min(longest));
            }
        }
    }
}

/// How a node finds its way back to a cluster whose authority was replaced while it was off: some peer that still lists its
/// key tells it the authorities in use.
#[derive(Default)]
struct Estranged {
    /// Not before this, and how long after that.
    next: Option<(Instant, Duration)>,
}

impl Estranged {
    async fn look_elsewhere(&mut self, shared: &Arc<Shared>) {
        let now = Instant::now();
        if self.next.is_some_and(|(at, _)| now < at) {
            return;
        }
        let pause = self.next.map_or(ESTRANGED_MIN, |(_, pause)| (pause * 2).min(RETRY_MAX));
        self.next = Some((now + pause, pause));
        let identity = shared.credentials.identity();
        let Ok(csr) = identity.key().request() else { return };
        let own = ask_self(shared, &identity, csr.clone()).await.map_or(0, |grant| grant.revision);
        for peer in peers_to_ask(shared) {
            let Ok(grant) = ask_peer(shared, &identity, peer, &csr).await else { continue };
            let known = grant.authorities.len() == identity.authorities().len()
                && identity.authorities().iter().all(|own| grant.authorities.iter().any(|other| **own == **other));
            // It may be the peer that was off.
            if known || grant.revision <= own {
                continue;
            }
            match install(shared, &identity, grant).await {
                Ok(()) => {
                    tracing::info!(peer, "the cluster's authorities changed while this node did not hear of it");
                    self.next = None;
                    return;
                }
                Err(reason) => tracing::warn!(peer, reason, "a peer's authorities cannot be used"),
            }
        }
    }
}

/// Asks this node's own authority, then others'.
async fn renew(shared: &Arc<Shared>, identity: &Identity) -> Result<(), String> {
    let csr = identity.key().request().map_err(|error| error.to_string())?;
    let mut reasons = Vec::new();
    match ask_self(shared, identity, csr.clone()).await {
        Ok(grant) => return install(shared, identity, grant).await,
        Err(reason) => reasons.push(reason),
    }
    for peer in peers_to_ask(shared) {
        match ask_peer(shared, identity, peer, &csr).await {
            Ok(grant) => return install(shared, identity, grant).await,
            Err(reason) => reasons.push(format!("node {peer}: {reason}")),
        }
    }
    Err(reasons.join("; "))
}

/// Some of the other members, beginning anywhere.
fn peers_to_ask(shared: &Shared) -> Vec<NodeId> {
    let own = shared.own_id();
    let mut ids: Vec<NodeId> = shared.members.watch().borrow().keys().copied().filter(|id| *id != own).collect();
    if !ids.is_empty() {
        let mut random = [0; 8];
        crate::random::fill(&mut random);
        let start = u64::from_be_bytes(random) % ids.len() as u64;
        ids.rotate_left(start as usize);
    }
    ids.truncate(MAX_PEERS_ASKED);
    ids
}

async fn ask_self(shared: &Shared, identity: &Identity, csr: Vec<u8>) -> Result<RenewGrant, String> {
    let request = RenewRequest {
        id: identity.id(),
        name: identity.name().to_string(),
        csr,
        key_fingerprint: identity.key().fingerprint(),
        addresses: addresses_of(shared, identity.id()),
    };
    let answer = tokio::time::timeout(shared.options.stranger_timeout, sign(shared, request));
    answer.await.unwrap_or_else(|_| Err("this node's own authority did not answer".to_string()))
}

async fn ask_peer(shared: &Shared, identity: &Identity, peer: NodeId, csr: &[u8]) -> Result<RenewGrant, String> {
    let connection = shared.connect(peer, Alpn::Renew).await.map_err(|error| error.to_string())?;
    let proof = identity.key().sign(&proven(&connection, csr)?).map_err(|error| error.to_string())?;
    let question = Question { certificate: identity.certificate().to_vec(), csr: csr.to_vec(), proof };
    let question = codec::encode(&question).map_err(|error| error.to_string())?;
    let answer = tokio::time::timeout(shared.options.stranger_timeout, exchange(&connection, &question)).await;
    let result = match answer {
        Ok(Ok(bytes)) => codec::decode_within::<Result<RenewGrant, String>, MAX_ANSWER_BYTES>(&bytes)
            .map_err(|error| error.to_string())
            .and_then(|answer| answer),
        Ok(Err(error)) => Err(explain(&connection, &error)),
        Err(_) => Err("no answer".to_string()),
    };
    // One question a connection.
    connection.close(0_u32.into(), b"done");
    result
}

/// Uses the new certificate from now on, here and on disk.
async fn install(shared: &Arc<Shared>, identity: &Identity, grant: RenewGrant) -> Result<(), String> {
    let next = grant.into_identity(identity.key().clone()).map_err(|error| error.to_string())?;
    crate::net::replace_identity(shared, next).await.map_err(|error| error.to_string())?;
    tracing::info!("the certificate was renewed");
    Ok(())
}

/// What the signature in a question covers: this connection and no other, this request and no other.
fn proven(connection: &Connection, csr: &[u8]) -> Result<Vec<u8>, String> {
    let mut exported = [0; 32];
    connection
        .export_keying_material(&mut exported, LABEL, &fingerprint(csr))
        .map_err(|_| "the connection yields no key material".to_string())?;
    Ok([LABEL, &exported].concat())
}

/// Answers the one question of a peer that comes without a certificate.
pub(crate) async fn serve(shared: &Arc<Shared>, connection: &Connection) {
    let remote = canonical(connection.remote_address());
    match answer(shared, connection).await {
        Ok(Ok(id)) => tracing::info!(%remote, node = id, "a certificate was renewed"),
        Ok(Err(reason)) => tracing::info!(%remote, reason, "a renewal was refused"),
        Err(error) => tracing::info!(%remote, %error, "a renewal broke off"),
    }
}

async fn answer(shared: &Arc<Shared>, connection: &Connection) -> Result<Result<NodeId, String>, FrameError> {
    let (mut send, mut recv) = connection.accept_bi().await.map_err(|error| FrameError::Stream(error.into()))?;
    let frame = read_frame(&mut recv, MAX_QUESTION_BYTES).await?;
    let (told, answer) = match check(shared, connection, &frame) {
        Ok(request) => {
            let id = request.id;
            match sign(shared, request).await {
                Ok(grant) => (Ok(id), Ok(grant)),
                Err(reason) => (Err(reason.clone()), Err(reason)),
            }
        }
        Err(reason) => (Err(reason.clone()), Err(reason)),
    };
    write_answer(&mut send, &answer).await?;
    Ok(told)
}

async fn sign(shared: &Shared, request: RenewRequest) -> Result<RenewGrant, String> {
    let port = shared.ports.renewal().ok_or("this node signs no certificates")?;
    let signed = elsewhere(&shared.callers, async move { port.renew(request).await }).await;
    signed.ok_or("the renewal failed; see the log")?.map_err(bounded_reason)
}

/// Checks all that a question claims.
fn check(shared: &Shared, connection: &Connection, frame: &[u8]) -> Result<RenewRequest, String> {
    let question: Question =
        codec::decode_within::<_, MAX_QUESTION_BYTES>(frame).map_err(|error| format!("not a renewal: {error}"))?;
    let sizes = [
        (question.certificate.len(), MAX_CERTIFICATE_BYTES),
        (question.csr.len(), MAX_REQUEST_BYTES),
        (question.proof.len(), MAX_PROOF_BYTES),
    ];
    if sizes.iter().any(|(bytes, max)| bytes > max) {
        return Err("a part of the renewal is too large".to_string());
    }
    let current = shared.credentials.current();
    let (node, subject) = Subject::node_of(&question.certificate).map_err(|error| error.to_string())?;
    if node.cluster != current.identity.cluster() {
        return Err("the certificate is another cluster's".to_string());
    }
    shared.judge(node.id, &node.name, &subject.key_fingerprint).map_err(|why| why.reason().to_string())?;
    // A listed key says more than a certificate, which may be of an authority that was replaced meanwhile.
    if shared.members.key(node.id).is_none() {
        verify_node_despite_age(&question.certificate, &current.roots).map_err(|error| error.to_string())?;
    }
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &subject.public_key)
        .verify(&proven(connection, &question.csr)?, &question.proof)
        .map_err(|_| "the request was not signed by the certificate's key".to_string())?;
    if requested_key(&question.csr)? != subject.key_fingerprint {
        return Err("the request is for another key".to_string());
    }
    let addresses = addresses_of(shared, node.id);
    Ok(RenewRequest {
        id: node.id,
        name: node.name,
        csr: question.csr,
        key_fingerprint: subject.key_fingerprint,
        addresses,
    })
}

fn requested_key(csr: &[u8]) -> Result<[u8; 32], String> {
    let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr))
        .map_err(|error| error.to_string())?;
    Ok(fingerprint(&request.public_key.subject_public_key_info()))
}

fn addresses_of(shared: &Shared, id: NodeId) -> Vec<std::net::SocketAddr> {
    shared.book.get(id).map(|record| record.addresses().to_vec()).unwrap_or_default()
}

#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(input: &[u8]) {
    if let Ok(question) = codec::decode_within::<Question, MAX_QUESTION_BYTES>(input) {
        _ = (crate::certificate::Subject::node_of(&question.certificate), requested_key(&question.csr));
    }
    _ = codec::decode_within::<Result<RenewGrant, String>, MAX_ANSWER_BYTES>(input);
}
