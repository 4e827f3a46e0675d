//! The door: takes connections in, looks at what they want and who they are, and hands them to whoever handles that.
//!
//! Invariant: nothing is read from a peer of a member's protocol before it has proved to be a member.
//! Invariant: handshakes, connections and calls are bounded, each in all and for each origin or peer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::crypto::rustls::HandshakeData;
use quinn::{Connection, Incoming, VarInt};
use rustls::pki_types::CertificateDer;
use tokio::task::JoinSet;
use tracing::Instrument;

use crate::alpn::Alpn;
use crate::beat;
use crate::certificate::Subject;
use crate::limit::{Origin, Place};
use crate::links::{Close, Link};
use crate::observed::encode_seen;
use crate::pool::{WELCOME, canonical};
use crate::ports::{Handler, PeerInfo};
use crate::shared::Shared;
use crate::socket::is_relayed;
use crate::transport::{MAX_CALLS, MEMBER_WINDOW_BYTES, is_given_up};
use crate::{join, relay, renew};

/// How long calls may go on after their connection has ended.
const CALLS_GRACE: Duration = Duration::from_secs(5);

/// How long a stranger that has been answered may take to read it.
const ANSWER_GRACE: Duration = Duration::from_secs(2);

/// Takes connections in until the network stops.
pub(crate) async fn run(shared: Arc<Shared>) {
    loop {
        let incoming = tokio::select! {
            () = shared.stop.cancelled() => return,
            incoming = shared.endpoint.accept() => incoming,
        };
        match incoming {
            Some(incoming) => take(&shared, incoming),
            None => return,
        }
    }
}

/// Decides on a first packet, before any memory or arithmetic is spent on it.
fn take(shared: &Arc<Shared>, incoming: Incoming) {
    if shared.endpoint.open_connections() >= shared.options.max_connections {
        return incoming.refuse();
    }
    // Under load, an address must first prove that it is not made up.
    let busy = shared.handshakes.len() >= shared.options.max_handshakes / 4;
    if busy && !incoming.remote_address_validated() && incoming.may_retry() {
        // It can only fail where it may not be tried.
        let _ = incoming.retry();
        return;
    }
    let Some(place) = shared.handshakes.enter(Origin::of(incoming.remote_address().ip())) else {
        return incoming.ignore();
    };
    let span = tracing::debug_span!("connection", from = %canonical(incoming.remote_address()));
    shared.tasks.spawn(serve(shared.clone(), incoming, place).instrument(span));
}

async fn serve(shared: Arc<Shared>, incoming: Incoming, place: Place<Origin>) {
    let from = canonical(incoming.remote_address());
    let handshake = async { incoming.accept()?.await };
    let connection = match tokio::time::timeout(shared.options.handshake_timeout, handshake).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) if is_given_up(&error) => return tracing::debug!(%from, %error, "a handshake was given up"),
        Ok(Err(error)) => return tracing::info!(%from, %error, "a handshake failed"),
        Err(_) => return tracing::info!(%from, "a handshake took too long"),
    };
    drop(place);
    let Some(alpn) = negotiated(&connection) else { return Close::NotServed.close(&connection) };
    if alpn.admits_strangers() {
        serve_stranger(&shared, alpn, &connection).await;
    } else if let Err(why) = serve_peer(&shared, alpn, &connection).await {
        tracing::debug!(%from, %alpn, reason = why.reason(), "a peer was refused");
        why.close(&connection);
    }
}

fn negotiated(connection: &Connection) -> Option<Alpn> {
    let data = connection.handshake_data()?.downcast::<HandshakeData>().ok()?;
    Alpn::from_bytes(&data.protocol?)
}

async fn serve_peer(shared: &Arc<Shared>, alpn: Alpn, connection: &Connection) -> Result<(), Close> {
    let (peer, _link) = admit(shared, alpn, connection)?;
    let handler = shared.ports.handler(alpn);
    // What is relayed is not relayed further.
    let is_detour = alpn == Alpn::Relay && is_relayed(connection.remote_address());
    if is_detour || handler.is_none() && !alpn.is_internal() {
        return Err(Close::NotServed);
    }
    connection.set_receive_window(VarInt::from_u32(MEMBER_WINDOW_BYTES));
    if welcome(connection).await.is_err() {
        return Ok(());
    }
    match handler {
        Some(handler) => serve_calls(shared, &peer, connection, handler).await,
        None if alpn == Alpn::Relay => relay::receive(shared, &peer, connection).await,
        None => beat::receive(shared, &peer, connection).await,
    }
    Ok(())
}

/// Establishes who the peer is and that it may speak. The link is made before it is judged: a node that is removed at this
/// moment is either found among the links or judged by the new list.
fn admit(shared: &Arc<Shared>, alpn: Alpn, connection: &Connection) -> Result<(PeerInfo, Link), Close> {
    let identity = connection.peer_identity().ok_or(Close::NoCertificate)?;
    let chain = identity.downcast::<Vec<CertificateDer<'static>>>().map_err(|_| Close::NoCertificate)?;
    let leaf = chain.first().ok_or(Close::NoCertificate)?;
    let (node, subject) = Subject::node_of(leaf).map_err(|_| Close::NoCertificate)?;
    if node.cluster != shared.credentials.identity().cluster() {
        return Err(Close::NotAMember);
    }
    let link = shared.links.add(node.id, alpn, connection);
    shared.judge(node.id, &node.name, &subject.key_fingerprint)?;
    shared.pulse.met(node.id, Instant::now());
    Ok((PeerInfo { id: node.id, name: node.name, address: canonical(connection.remote_address()) }, link))
}

/// Tells the peer that it was let in, and where it was seen.
async fn welcome(connection: &Connection) -> Result<(), quinn::WriteError> {
    let mut stream = connection.open_uni().await?;
    match stream.write_all(&welcome_of(canonical(connection.remote_address()))).await {
        // An older daemon reads the first byte and no more; then it knows.
        Ok(()) | Err(quinn::WriteError::Stopped(_)) => {}
        Err(error) => return Err(error),
    }
    // Only a stream that was finished or reset before cannot be finished.
    let _ = stream.finish();
    Ok(())
}

/// What a peer at `from` is sent, all at once.
fn welcome_of(from: SocketAddr) -> Vec<u8> {
    let seen = if is_relayed(from) { None } else { encode_seen(from).ok() };
    [&WELCOME[..], &seen.unwrap_or_default()].concat()
}

async fn serve_calls(shared: &Shared, peer: &PeerInfo, connection: &Connection, handler: Arc<dyn Handler>) {
    let mut calls = JoinSet::new();
    loop {
        tokio::select! {
            stream = connection.accept_bi(), if calls.len() < MAX_CALLS as usize => match stream {
                Ok((send, recv)) => {
                    let (handler, peer) = (handler.clone(), peer.clone());
                    let call = async move { handler.handle(peer, send, recv).await };
                    calls.spawn_on(call.in_current_span(), &shared.callers);
                }
                Err(_) => break,
            },
            Some(ended) = calls.join_next() => log_panic(ended),
            () = shared.stop.cancelled() => break,
        }
    }
    // Calls end by themselves when their streams break; those that do not are ended.
    let rest = async {
        while let Some(ended) = calls.join_next().await {
            log_panic(ended)
        }
    };
    if tokio::time::timeout(CALLS_GRACE, rest).await.is_err() {
        tracing::debug!(peer = peer.id, "calls outlived their connection and are ended");
    }
    calls.shutdown().await;
}

fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a call panicked");
    }
}

/// Lets a peer without a certificate ask one thing, within a bounded time.
async fn serve_stranger(shared: &Arc<Shared>, alpn: Alpn, connection: &Connection) {
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(1));
    connection.set_max_concurrent_uni_streams(VarInt::from_u32(0));
    let origin = Origin::of(connection.remote_address().ip());
    let allowed = {
        let mut attempts = shared.attempts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        attempts.take(origin, Instant::now())
    };
    let place = shared.strangers.enter(origin);
    let (Ok(()), Some(_place)) = (allowed, place) else {
        tracing::info!(from = %canonical(connection.remote_address()), %alpn, "too many attempts");
        return Close::Busy.close(connection);
    };
    let answer = async {
        match alpn {
            Alpn::Renew => renew::serve(shared, connection).await,
            _ => join::serve(shared, connection).await,
        }
    };
    let served = tokio::select! {
        served = tokio::time::timeout(shared.options.stranger_timeout, answer) => served.is_ok(),
        () = shared.stop.cancelled() => false,
    };
    if !served {
        return Close::TooSlow.close(connection);
    }
    // The stranger closes the connection once it has the answer.
    let _ = tokio::time::timeout(ANSWER_GRACE, connection.closed()).await;
    Close::Done.close(connection);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observed::decode_seen;
    use crate::socket::relayed_address;

    #[test]
    fn a_welcome_says_where_a_peer_was_seen_in_one_piece() {
        let from = SocketAddr::from(([203, 0, 113, 1], 6443));
        let welcome = welcome_of(from);
        let (first, seen) = welcome.split_at(WELCOME.len());
        assert_eq!((first, decode_seen(seen)), (&WELCOME[..], Some(from)));
        assert_eq!(welcome_of(relayed_address(7)), WELCOME, "a relayed peer was not seen");
    }
}
