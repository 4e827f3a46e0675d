//! Heartbeats: each node tells every member that it is alive, in datagrams on a connection of their own, so that neither a
//! slow disk nor a busy stream delays them. The same connection carries address records, on streams, whenever there are
//! newer ones.
//!
//! Invariant: one task a member; a member that does not answer delays no other.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::{Connection, ConnectionError, RecvStream};
use serde::{Deserialize, Serialize};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::MissedTickBehavior;

use crate::alpn::Alpn;
use crate::codec;
use crate::frame::{FrameError, read_frame_or_end, write_frame};
use crate::members::Entries;
use crate::names::NodeId;
use crate::pool::canonical;
use crate::ports::PeerInfo;
use crate::pulse::MAX_PAYLOAD_BYTES;
use crate::record::AddressRecord;
use crate::shared::Shared;
use crate::socket::is_relayed;

/// Between two looks for a direct way to a node that is reached through another.
const DIRECT_PAUSE: Duration = Duration::from_secs(5);
/// Between two looks for a node that was seen elsewhere: who multicasts may say so of anybody, as often as they like.
const LOOK_PAUSE: Duration = Duration::from_secs(1);
/// So many heartbeats without a sign that they arrive make a connection doubtful.
const SILENT_BEATS: u64 = 3;
const MAX_BEAT_BYTES: usize = MAX_PAYLOAD_BYTES + 64;
const MAX_RECORDS_FRAME_BYTES: usize = 64 * 1024;
const MAX_FRAMES_EACH_STREAM: usize = 1024;
const RECORDS_EACH_FRAME: usize = 16;

#[derive(Serialize, Deserialize)]
struct Beat {
    /// Counts on each connection, since datagrams may overtake each other.
    sequence: u64,
    payload: Bytes,
}

/// Judges silence and keeps one sender for each member, until the network stops.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut members = shared.members.watch();
    // Members may have been listed before this task began.
    members.mark_changed();
    let mut senders = Senders::default();
    let mut ticks = tokio::time::interval(shared.pulse.tick_period());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => break,
            _ = ticks.tick() => shared.pulse.tick(Instant::now()),
            Ok(()) = members.changed() => {
                let members = members.borrow_and_update().clone();
                shared.pulse.set_members(&members, Instant::now());
                senders.set(&shared, &members);
            }
        }
    }
    senders.tasks.shutdown().await;
}

#[derive(Default)]
struct Senders {
    tasks: JoinSet<()>,
    running: HashMap<NodeId, AbortHandle>,
}

impl Senders {
    fn set(&mut self, shared: &Arc<Shared>, members: &Entries) {
        self.running.retain(|id, task| {
            let stays = members.contains_key(id);
            if !stays {
                task.abort();
            }
            stays
        });
        while self.tasks.try_join_next().is_some() {}
        for id in members.keys().filter(|id| **id != shared.own_id()) {
            self.running.entry(*id).or_insert_with(|| self.tasks.spawn(beat_to(shared.clone(), *id)));
        }
    }
}

/// Beats towards one member for ever.
async fn beat_to(shared: Arc<Shared>, id: NodeId) {
    let mut ticks = tokio::time::interval(shared.options.beat_period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut line = Line::default();
    let mut next_direct = Instant::now() + DIRECT_PAUSE;
    let mut next_look = Instant::now();
    let mut look: Option<AbortHandle> = None;
    loop {
        ticks.tick().await;
        match shared.connect(id, Alpn::Beat).await {
            Ok(connection) => {
                line.send(&shared, id, &connection).await;
                let now = Instant::now();
                let is_due = line.is_relayed && now >= next_direct;
                let is_doubtful = line.is_relayed || line.is_silent();
                let has_moved = is_doubtful && now >= next_look && shared.is_seen_elsewhere(id, &connection);
                if has_moved || is_due {
                    next_direct = now + DIRECT_PAUSE;
                    next_look = now + LOOK_PAUSE;
                    // One that is still under way knows less.
                    let next = shared.tasks.spawn(find_direct(shared.clone(), id)).abort_handle();
                    look.replace(next).inspect(AbortHandle::abort);
                }
            }
            Err(error) => tracing::trace!(node = id, %error, "no heartbeat could be sent"),
        }
    }
}

/// Replaces a connection that is relayed, or leads where the node may no longer be, by another one, if there is a way by now;
/// all others follow it.
async fn find_direct(shared: Arc<Shared>, id: NodeId) {
    match shared.connect_directly(id).await {
        Ok(()) => tracing::debug!(node = id, "there is another way to a node"),
        Err(error) => tracing::trace!(node = id, %error, "there is no other way to a node"),
    }
}

/// What has been said on a connection.
#[derive(Default)]
struct Line {
    connection: Option<Connection>,
    is_relayed: bool,
    acks: u64,
    /// When acknowledgements were last looked for.
    looked: Option<Instant>,
    /// A time at which the peer's process was alive that answers, or answered, on this connection.
    alive: Option<Instant>,
    beats: u64,
    /// The number of the heartbeat before which the peer last acknowledged anything.
    answered: u64,
    book: Option<u64>,
    records: HashMap<NodeId, u64>,
}

impl Line {
    async fn send(&mut self, shared: &Shared, id: NodeId, connection: &Connection) {
        if self.connection.as_ref().map(Connection::stable_id) != Some(connection.stable_id()) {
            self.leave(shared, id);
            let was_relayed = self.is_relayed;
            let is_relayed = is_relayed(connection.remote_address());
            *self = Line { connection: Some(connection.clone()), is_relayed, ..Line::default() };
            match (was_relayed, is_relayed) {
                (false, true) => tracing::info!(node = id, "a node is reached through other members"),
                (true, false) => tracing::info!(node = id, "a node is reached directly again"),
                _ => {}
            }
        }
        self.note_acks(shared, id, connection);
        self.beats += 1;
        let beat = Beat { sequence: self.beats, payload: shared.pulse.own_payload() };
        let sent = codec::encode(&beat).map(|bytes| connection.send_datagram(bytes.into()));
        if let Ok(Err(error)) = sent {
            tracing::debug!(node = id, %error, "a heartbeat could not be sent");
        }
        shared.pulse.set_rtt(id, connection.rtt());
        if let Err(error) = self.send_records(shared, id, connection).await {
            tracing::debug!(node = id, %error, "addresses could not be sent");
            self.book = None;
        }
    }

    /// A peer that no longer knows a connection is another process since, or was out of reach until it gave all of them up:
    /// either way it knows none from before.
    fn leave(&self, shared: &Shared, id: NodeId) {
        let reset = self.connection.as_ref().and_then(Connection::close_reason) == Some(ConnectionError::Reset);
        if let (true, Some(alive)) = (reset, self.alive) {
            shared.pool.close_those_of_before(id, alive);
        }
    }

    /// Whoever acknowledges heartbeats has got them: they go by a way that is one.
    fn note_acks(&mut self, shared: &Shared, id: NodeId, connection: &Connection) {
        let looked_before = self.looked.replace(Instant::now());
        let acks = connection.stats().frame_rx.acks;
        if acks == std::mem::replace(&mut self.acks, acks) {
            return;
        }
        self.answered = self.beats;
        self.alive = looked_before;
        if self.is_relayed {
            shared.relay.proved(id, Instant::now());
        }
    }

    /// Whether the heartbeats before the one just sent may not have arrived.
    fn is_silent(&self) -> bool {
        self.beats - self.answered > SILENT_BEATS
    }

    /// Sends the records that are newer than those sent before.
    async fn send_records(&mut self, shared: &Shared, id: NodeId, connection: &Connection) -> Result<(), FrameError> {
        let generation = shared.book.generation();
        if self.book.replace(generation) == Some(generation) {
            return Ok(());
        }
        let all = shared.book.all();
        let news: Vec<_> = all.iter().filter(|record| record.id() != id && self.is_news(record)).collect();
        if news.is_empty() {
            return Ok(());
        }
        let broken = |error: quinn::ConnectionError| FrameError::Stream(error.into());
        let mut stream = connection.open_uni().await.map_err(broken)?;
        for part in news.chunks(RECORDS_EACH_FRAME) {
            let records: Vec<&AddressRecord> = part.iter().map(|record| record.as_ref()).collect();
            let bytes = codec::encode(&records).map_err(|error| FrameError::Stream(std::io::Error::other(error)))?;
            write_frame(&mut stream, &bytes).await?;
        }
        // The peer may have closed the stream by now; then it has what it wanted.
        let _ = stream.finish();
        self.records.extend(news.iter().map(|record| (record.id(), record.sequence())));
        Ok(())
    }

    fn is_news(&self, record: &AddressRecord) -> bool {
        self.records.get(&record.id()).is_none_or(|sent| *sent < record.sequence())
    }
}

/// Takes the heartbeats and records that come on one connection, until it ends.
pub(crate) async fn receive(shared: &Arc<Shared>, peer: &PeerInfo, connection: &Connection) {
    let mut last = 0;
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            datagram = connection.read_datagram() => match datagram {
                Ok(datagram) => last = take_beat(shared, peer, connection, &datagram, last),
                Err(_) => break,
            },
            stream = connection.accept_uni(), if streams.len() < 4 => match stream {
                Ok(stream) => { streams.spawn(take_records(shared.clone(), peer.clone(), stream)); }
                Err(_) => break,
            },
            Some(_) = streams.join_next() => {}
            () = shared.stop.cancelled() => break,
        }
    }
    streams.shutdown().await;
}

/// Counts a heartbeat and returns the highest sequence so far.
fn take_beat(shared: &Shared, peer: &PeerInfo, connection: &Connection, datagram: &[u8], last: u64) -> u64 {
    match codec::decode_within::<Beat, MAX_BEAT_BYTES>(datagram) {
        Ok(beat) if beat.payload.len() <= MAX_PAYLOAD_BYTES && beat.sequence > last => {
            let from = canonical(connection.remote_address());
            let from = (!is_relayed(from)).then_some(from);
            shared.pulse.heard(peer.id, from, beat.payload, Instant::now());
            beat.sequence
        }
        Ok(_) => last,
        Err(error) => {
            tracing::debug!(node = peer.id, %error, "a heartbeat cannot be read");
            last
        }
    }
}

async fn take_records(shared: Arc<Shared>, peer: PeerInfo, mut stream: RecvStream) {
    for _ in 0..MAX_FRAMES_EACH_STREAM {
        let frame = match read_frame_or_end(&mut stream, MAX_RECORDS_FRAME_BYTES).await {
            Ok(Some(frame)) => frame,
            Ok(None) => return,
            Err(error) => return tracing::debug!(node = peer.id, %error, "addresses cannot be read"),
        };
        match codec::decode_within::<Vec<AddressRecord>, MAX_RECORDS_FRAME_BYTES>(&frame) {
            Ok(records) => records.into_iter().for_each(|record| take_record(&shared, &peer, record)),
            Err(error) => return tracing::debug!(node = peer.id, %error, "addresses cannot be read"),
        }
    }
}

fn take_record(shared: &Shared, peer: &PeerInfo, record: AddressRecord) {
    let about = record.id();
    if let Err(error) = shared.learn(record) {
        tracing::debug!(node = peer.id, about, %error, "an address is not believed");
    }
}

#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(input: &[u8]) {
    _ = codec::decode_within::<Beat, MAX_BEAT_BYTES>(input);
    _ = codec::decode_within::<Vec<AddressRecord>, MAX_RECORDS_FRAME_BYTES>(input);
}
