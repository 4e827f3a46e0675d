//! The simulated network: it delays, loses, repeats and reorders calls, delays streams, and is cut.
//!
//! Invariant: what asks for a change is delivered at most once, as a real transport does; all else may be repeated.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::oneshot;

use crate::codec;
use crate::store::Store;
use crate::transport::{Reader, Transport, TransportError, Writer};
use crate::types::NodeId;
use crate::wire::{Addressed, Request};

use super::world::{Host, world};

const PIPE_BYTES: usize = 64 * 1024;
const PIECE_BYTES: usize = 16 * 1024;

/// How the network behaves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weather {
    pub delay_ms: (u64, u64),
    /// One in so many messages is lost; 0 for none.
    pub lost_one_in: u64,
    /// One in so many calls is repeated; 0 for none.
    pub repeated_one_in: u64,
    /// One in so many messages is late, by up to a second; 0 for none.
    pub late_one_in: u64,
}

impl Weather {
    pub const FAIR: Self = Self { delay_ms: (0, 3), lost_one_in: 0, repeated_one_in: 0, late_one_in: 0 };
}

#[derive(Clone)]
pub(super) struct Station {
    pub host: Arc<Host>,
    pub store: Store,
}

pub(super) struct Net {
    stations: Mutex<BTreeMap<NodeId, Station>>,
    /// Ways, from and to, that nothing passes.
    cut: Mutex<BTreeSet<(NodeId, NodeId)>>,
    weather: Mutex<Weather>,
}

impl Net {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { stations: Mutex::default(), cut: Mutex::default(), weather: Mutex::new(Weather::FAIR) })
    }

    pub fn join(&self, id: NodeId, station: Station) {
        self.stations.lock().unwrap().insert(id, station);
    }

    pub fn leave(&self, id: NodeId) {
        self.stations.lock().unwrap().remove(&id);
    }

    pub fn cut(&self, ways: impl IntoIterator<Item = (NodeId, NodeId)>) {
        self.cut.lock().unwrap().extend(ways);
    }

    pub fn heal(&self) {
        self.cut.lock().unwrap().clear();
    }

    pub fn set_weather(&self, weather: Weather) {
        *self.weather.lock().unwrap() = weather;
    }

    fn is_cut(&self, from: NodeId, to: NodeId) -> bool {
        self.cut.lock().unwrap().contains(&(from, to))
    }

    fn station(&self, id: NodeId) -> Option<Station> {
        self.stations.lock().unwrap().get(&id).cloned()
    }

    fn delay(&self) -> Duration {
        let (world, weather) = (world(), *self.weather.lock().unwrap());
        let late = weather.late_one_in > 0 && world.one_in(weather.late_one_in);
        world.ms(weather.delay_ms.0, weather.delay_ms.1 + 1) + if late { world.ms(0, 1000) } else { Duration::ZERO }
    }

    fn loses(&self) -> bool {
        let weather = *self.weather.lock().unwrap();
        weather.lost_one_in > 0 && world().one_in(weather.lost_one_in)
    }

    fn repeats(&self, message: &[u8]) -> bool {
        let weather = *self.weather.lock().unwrap();
        if weather.repeated_one_in == 0 || !world().one_in(weather.repeated_one_in) {
            return false;
        }
        let request = codec::decode::<Addressed<Request>>(message).map(|addressed| addressed.body);
        matches!(request, Ok(Request::Append(_) | Request::Vote(_) | Request::PreVote(_) | Request::ReadIndex))
    }

    /// Has `to` answer a message; the answer comes through the receiver, unless it is lost.
    async fn deliver(self: &Arc<Self>, from: NodeId, to: NodeId, message: Bytes) -> oneshot::Receiver<Bytes> {
        let (answer, answered) = oneshot::channel();
        tokio::time::sleep(self.delay()).await;
        let Some(station) = self.station(to).filter(|_| !self.is_cut(from, to) && !self.loses()) else {
            return answered;
        };
        world().note(to, format_args!("from {from}: {}", describe(&message)));
        let net = self.clone();
        let store = station.store;
        tokio::spawn(station.host.task(async move {
            let reply = store.handle(from, message).await;
            tokio::time::sleep(net.delay()).await;
            match reply {
                Ok(reply) if !net.is_cut(to, from) && !net.loses() => drop(answer.send(reply)),
                _ => {}
            }
        }));
        answered
    }
}

fn describe(message: &[u8]) -> String {
    match codec::decode::<Addressed<Request>>(message).map(|addressed| addressed.body) {
        Ok(Request::Append(a)) => {
            let (first, last) = (a.entries.first().map(|e| e.id), a.entries.last().map(|e| e.id));
            format!("append term {} after {:?} {first:?}..{last:?}", a.vote.term, a.previous)
        }
        Ok(Request::Propose(change)) => format!("propose {} writes", change.writes.len()),
        Ok(other) => format!("{other:?}"),
        Err(error) => error.to_string(),
    }
}

/// A machine's place in the network.
pub(super) struct Port {
    pub net: Arc<Net>,
    pub from: NodeId,
}

#[async_trait]
impl Transport for Port {
    async fn call(&self, to: NodeId, message: Bytes, deadline: Duration) -> Result<Bytes, TransportError> {
        let net = &self.net;
        if net.station(to).is_none() {
            tokio::time::sleep(net.delay()).await;
            return Err(TransportError::Unreachable("no such machine runs".into()));
        }
        if net.repeats(&message) {
            let (net, from, message) = (net.clone(), self.from, message.clone());
            tokio::spawn(async move { net.deliver(from, to, message).await.await });
        }
        let answered = async {
            match net.deliver(self.from, to, message).await.await {
                Ok(reply) => Ok(reply),
                // Some losses show at once, as a connection that breaks.
                Err(_) if world().one_in(3) => Err(TransportError::Timeout),
                Err(_) => std::future::pending().await,
            }
        };
        tokio::time::timeout(deadline, answered).await.unwrap_or(Err(TransportError::Timeout))
    }

    async fn open_stream(&self, to: NodeId) -> Result<(Reader, Writer), TransportError> {
        let (net, from) = (self.net.clone(), self.from);
        tokio::time::sleep(net.delay()).await;
        let station = net.station(to).filter(|_| !net.is_cut(from, to) && !net.is_cut(to, from));
        let Some(station) = station else {
            return Err(TransportError::Unreachable("cut".into()));
        };
        let (ours, near) = tokio::io::duplex(PIPE_BYTES);
        let (far, theirs) = tokio::io::duplex(PIPE_BYTES);
        tokio::spawn(carry(net, (from, near), (to, far)));
        let (reader, writer) = tokio::io::split(theirs);
        tokio::spawn(station.host.task(async move {
            let _ = station.store.handle_stream(from, Box::new(reader), Box::new(writer)).await;
        }));
        let (reader, writer) = tokio::io::split(ours);
        Ok((Box::new(reader), Box::new(writer)))
    }
}

/// Carries a stream's bytes both ways, in order, until an end closes or a piece is lost.
async fn carry(net: Arc<Net>, near: (NodeId, DuplexStream), far: (NodeId, DuplexStream)) {
    let ((from, near), (to, far)) = (near, far);
    let (near_reader, near_writer) = tokio::io::split(near);
    let (far_reader, far_writer) = tokio::io::split(far);
    let there = one_way(&net, (from, to), near_reader, far_writer);
    let back = one_way(&net, (to, from), far_reader, near_writer);
    futures::future::select(Box::pin(there), Box::pin(back)).await;
}

async fn one_way(
    net: &Net,
    (from, to): (NodeId, NodeId),
    mut reader: impl AsyncReadExt + Unpin,
    mut writer: impl AsyncWriteExt + Unpin,
) {
    let mut piece = vec![0; PIECE_BYTES];
    while let Ok(length @ 1..) = reader.read(&mut piece).await {
        tokio::time::sleep(net.delay()).await;
        if net.is_cut(from, to) || net.loses() {
            // What is lost on an ordered stream holds up all that follows; here for ever.
            tokio::time::sleep(world().ms(0, 8000)).await;
            return;
        }
        if writer.write_all(&piece[..length]).await.is_err() {
            return;
        }
    }
}
