//! Following what is applied.
//!
//! Watchers pull: recent events wait in one ring that all of them share, older ones are read from
//! history. A watcher that falls behind costs a disk read, never memory.
//!
//! Invariant: the ring's spans are consecutive; together they end at the applied revision.
//! Invariant: a watcher sees each event of its prefix once, in order, until it ends as compacted.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, PoisonError, RwLock};

use flotilla_api::Key;
use tokio_util::sync::CancellationToken;

use crate::kv::Event;
use crate::runtime::{self, watch as signal};
use crate::slice::Source;
use crate::state::ReadError;

const RING_SPANS: usize = 4096;
const RING_BYTES: usize = 4 << 20;
/// One item of a watch holds whole Changes until it holds this many events.
const ITEM_EVENTS: usize = 512;
/// One look at history reads at most about this much.
const LOOK_BYTES: usize = 4 << 20;

/// What a [`Watch`] yields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchItem {
    /// Events of whole Changes, and the revision up to which everything has now been seen.
    Events(Vec<Event>, u64),
    /// Everything up to this revision has been seen, and nothing of it matched.
    Progress(u64),
    /// History up to this revision is forgotten, and the watcher had not seen all of it. The watch ends.
    Compacted(u64),
}

/// The events of one log entry.
struct Span {
    first: u64,
    last: u64,
    events: Vec<Event>,
    size_bytes: usize,
}

/// Where apply announces and watchers listen.
pub(crate) struct Hub {
    ring: RwLock<Ring>,
    collections: RwLock<Collections>,
    revision: signal::Sender<u64>,
}

/// When collections were last changed.
struct Collections {
    /// Of those that have not changed since, nothing more is known.
    since: u64,
    last: HashMap<String, u64>,
}

impl Collections {
    fn since(revision: u64) -> Self {
        Self { since: revision, last: HashMap::new() }
    }

    fn note<'a>(&mut self, written: impl Iterator<Item = (&'a Key, u64)>) {
        for (key, revision) in written {
            let collection = key.collection_prefix();
            match self.last.get_mut(collection) {
                Some(last) => *last = revision.max(*last),
                None => _ = self.last.insert(collection.to_owned(), revision),
            }
        }
    }
}

#[derive(Default)]
struct Ring {
    spans: VecDeque<Arc<Span>>,
    size_bytes: usize,
}

impl Hub {
    pub fn new(revision: u64) -> Self {
        Self {
            ring: RwLock::default(),
            collections: RwLock::new(Collections::since(revision)),
            revision: signal::Sender::new(revision),
        }
    }

    pub fn revision(&self) -> u64 {
        *self.revision.borrow()
    }

    /// The revision after which nothing of a collection has changed, as far as is known here.
    pub fn changed_at(&self, collection_prefix: &str) -> u64 {
        let collections = self.collections.read().unwrap_or_else(PoisonError::into_inner);
        collections.last.get(collection_prefix).copied().unwrap_or(collections.since)
    }

    pub fn subscribe(&self) -> signal::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Takes note that what is known of these keys changes with a revision, without an event.
    pub fn note<'a>(&self, keys: impl Iterator<Item = &'a Key>, revision: u64) {
        let mut collections = self.collections.write().unwrap_or_else(PoisonError::into_inner);
        collections.note(keys.map(|key| (key, revision)));
    }

    /// Announces the events of an entry after which the revision is `last`.
    pub fn publish(&self, last: u64, events: Vec<Event>) {
        let first = self.revision() + 1;
        if last < first {
            return;
        }
        let size_bytes = events.iter().map(Event::size_bytes).sum();
        self.collections
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .note(events.iter().map(|event| (event.key(), event.revision())));
        {
            let mut ring = self.ring.write().unwrap_or_else(PoisonError::into_inner);
            ring.size_bytes += size_bytes;
            ring.spans.push_back(Arc::new(Span { first, last, events, size_bytes }));
            while ring.spans.len() > RING_SPANS || ring.size_bytes > RING_BYTES {
                let Some(span) = ring.spans.pop_front() else { break };
                ring.size_bytes -= span.size_bytes;
            }
        }
        self.revision.send_replace(last);
    }

    /// A snapshot has moved the revision: what lies between is in history.
    pub fn jump(&self, revision: u64) {
        *self.ring.write().unwrap_or_else(PoisonError::into_inner) = Ring::default();
        *self.collections.write().unwrap_or_else(PoisonError::into_inner) = Collections::since(revision);
        self.revision.send_replace(revision);
    }

    /// The spans from the one that holds `revision` on; `None` if the ring begins after it.
    fn since(&self, revision: u64) -> Option<Vec<Arc<Span>>> {
        let ring = self.ring.read().unwrap_or_else(PoisonError::into_inner);
        let at = ring.spans.partition_point(|span| span.last < revision);
        ring.spans.front().filter(|front| front.first <= revision)?;
        let mut events = 0;
        let wanted = ring.spans.range(at..).take_while(|span| {
            let more = events < ITEM_EVENTS;
            events += span.events.len();
            more
        });
        Some(wanted.cloned().collect())
    }
}

/// The events of keys with one prefix, from one revision on.
pub struct Watch {
    source: Source,
    /// Cancelled when this node reads from elsewhere.
    over: CancellationToken,
    prefix: String,
    /// The first revision not yet seen.
    next: u64,
    revision: signal::Receiver<u64>,
    ended: bool,
}

impl Watch {
    pub(crate) fn new((source, over): (Source, CancellationToken), prefix: &str, next: u64) -> Self {
        let revision = source.hub().subscribe();
        Self { source, over, prefix: prefix.into(), next, revision, ended: false }
    }

    /// The first revision that has not been seen: a new watch from here misses nothing.
    pub fn next_revision(&self) -> u64 {
        self.next
    }

    /// What is cancelled when this node reads from elsewhere, after which this watch ends.
    pub fn over(&self) -> CancellationToken {
        self.over.clone()
    }

    /// Waits for the next item; `None` after `Compacted`, or when the store has shut down.
    ///
    /// Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<WatchItem> {
        if self.ended {
            return None;
        }
        loop {
            if self.over.is_cancelled() {
                return self.end();
            }
            let applied = *self.revision.borrow_and_update();
            if applied >= self.next {
                return self.look(applied).await;
            }
            let closing = self.source.closing();
            tokio::select! {
                biased;
                () = closing.cancelled() => return None,
                () = self.over.cancelled() => {}
                changed = self.revision.changed() => changed.ok()?,
            }
        }
    }

    /// Whoever watches must list anew.
    fn end(&mut self) -> Option<WatchItem> {
        self.ended = true;
        Some(WatchItem::Compacted(self.next.saturating_sub(1)))
    }

    async fn look(&mut self, applied: u64) -> Option<WatchItem> {
        let (events, upto) = match self.source.hub().since(self.next) {
            Some(spans) => self.matching(&spans, applied),
            None => match self.read_history().await {
                Ok(found) => found,
                Err(ReadError::Compacted { oldest, .. }) => {
                    self.ended = true;
                    return Some(WatchItem::Compacted(oldest.saturating_sub(1)));
                }
                Err(error) => {
                    tracing::error!(%error, prefix = self.prefix, "a watch ends since history cannot be read");
                    self.ended = true;
                    return None;
                }
            },
        };
        self.next = self.next.max(upto + 1);
        match events.is_empty() {
            true => Some(WatchItem::Progress(upto)),
            false => Some(WatchItem::Events(events, upto)),
        }
    }

    fn matching(&self, spans: &[Arc<Span>], applied: u64) -> (Vec<Event>, u64) {
        let wanted = |event: &&Event| event.revision() >= self.next && event.key().as_str().starts_with(&self.prefix);
        let events = spans.iter().flat_map(|span| span.events.iter().filter(wanted).cloned()).collect();
        (events, spans.last().map_or(applied, |span| span.last))
    }

    async fn read_history(&self) -> Result<(Vec<Event>, u64), ReadError> {
        let Source::Replica(machine) = &self.source else {
            return Err(ReadError::Compacted { wanted: self.next, oldest: self.source.hub().revision() + 1 });
        };
        let (state, prefix, from) = (machine.state(), self.prefix.clone(), self.next);
        let look = move || state.history(&prefix, from, ITEM_EVENTS, LOOK_BYTES);
        let stretch = runtime::blocking(look).await.map_err(|_| ReadError::Closed)??;
        Ok((stretch.events, stretch.upto))
    }
}
