//! Following what is applied.
//!
//! Watchers pull: recent events wait in one ring that all of them share, older ones are read from
//! history. A watcher that falls behind costs a disk read, never memory.
//!
//! A watcher is woken by what changes in its collection, not by what changes elsewhere. Now and then all are, so that what
//! they have yet to see is still in the ring when they are woken next.
//!
//! Invariant: the ring's spans are consecutive; together they end at the applied revision.
//! Invariant: a watcher sees each event of its prefix once, in order, until it ends as compacted.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use flotilla_api::Key;
use tokio_util::sync::CancellationToken;

use crate::kv::Event;
use crate::runtime::{self, watch as signal};
use crate::slice::Source;
use crate::state::ReadError;

const RING_SPANS: usize = 4096;
const RING_BYTES: usize = 4 << 20;
/// All watchers are woken when so much of the ring is new.
const SWEEP_SPANS: usize = RING_SPANS / 4;
const SWEEP_BYTES: usize = RING_BYTES / 4;
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
    scopes: RwLock<Scopes>,
    revision: signal::Sender<u64>,
}

/// What is looked after together: a collection, the collections of a group, or everything.
struct Scope {
    /// The revision after which nothing in it has changed.
    last: u64,
    /// The revision at which its watchers were woken last, if it has had any.
    wake: Option<signal::Sender<u64>>,
}

/// By the beginning of keys: `GROUP/` and `GROUP/RESOURCE/`.
struct Scopes {
    /// Of those that have not changed since, nothing more is known.
    since: u64,
    all: BTreeMap<String, Scope>,
}

/// The smallest scope in which everything with this prefix is; empty for everything.
fn scope_of(prefix: &str) -> &str {
    let end = prefix.match_indices('/').take(2).last().map_or(0, |(at, _)| at + 1);
    &prefix[..end]
}

impl Scopes {
    fn since(revision: u64) -> Self {
        Self { since: revision, all: BTreeMap::new() }
    }

    fn note<'a>(&mut self, written: impl Iterator<Item = (&'a Key, u64)>) {
        for (key, revision) in written {
            let collection = scope_of(key.as_str());
            let group = &collection[..collection.find('/').map_or(0, |at| at + 1)];
            for name in [group, collection] {
                match self.all.get_mut(name) {
                    Some(scope) => scope.last = revision.max(scope.last),
                    None => _ = self.all.insert(name.to_owned(), Scope { last: revision, wake: None }),
                }
            }
        }
    }

    fn changed_at(&self, scope: &str) -> u64 {
        self.all.get(scope).map_or(self.since, |scope| scope.last)
    }

    /// Wakes the watchers of scopes that have changed after `told`, or all.
    fn wake(&self, told: u64, revision: u64, sweep: bool) {
        let woken = self.all.values().filter(|scope| sweep || scope.last > told);
        for wake in woken.filter_map(|scope| scope.wake.as_ref()) {
            wake.send_replace(revision);
        }
    }
}

#[derive(Default)]
struct Ring {
    spans: VecDeque<Arc<Span>>,
    size_bytes: usize,
    /// What came since all watchers were woken.
    new_spans: usize,
    new_bytes: usize,
}

impl Ring {
    /// Whether it is time to wake all watchers. What came since they were woken last is kept.
    fn push(&mut self, span: Span) -> bool {
        self.size_bytes += span.size_bytes;
        self.new_bytes += span.size_bytes;
        self.new_spans += 1;
        self.spans.push_back(Arc::new(span));
        let is_full = |ring: &Self| ring.spans.len() > RING_SPANS || ring.size_bytes > RING_BYTES;
        while is_full(self) && self.spans.len() > self.new_spans {
            let Some(span) = self.spans.pop_front() else { break };
            self.size_bytes -= span.size_bytes;
        }
        let sweep = self.new_spans >= SWEEP_SPANS || self.new_bytes >= SWEEP_BYTES;
        if sweep {
            (self.new_spans, self.new_bytes) = (0, 0);
        }
        sweep
    }
}

impl Hub {
    pub fn new(revision: u64) -> Self {
        Self {
            ring: RwLock::default(),
            scopes: RwLock::new(Scopes::since(revision)),
            revision: signal::Sender::new(revision),
        }
    }

    pub fn revision(&self) -> u64 {
        *self.revision.borrow()
    }

    /// The revision after which nothing with this prefix has changed, as far as is known here: that of its scope.
    pub fn changed_at(&self, prefix: &str) -> u64 {
        match scope_of(prefix) {
            "" => self.revision(),
            scope => self.scopes().changed_at(scope),
        }
    }

    /// Tells of every revision.
    pub fn subscribe(&self) -> signal::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Tells of a revision, not necessarily the first, after something with this prefix has changed.
    fn subscribe_to(&self, prefix: &str) -> signal::Receiver<u64> {
        let scope = scope_of(prefix);
        if scope.is_empty() {
            return self.subscribe();
        }
        let mut scopes = self.scopes.write().unwrap_or_else(PoisonError::into_inner);
        let since = scopes.since;
        let scope = scopes.all.entry(scope.to_owned()).or_insert(Scope { last: since, wake: None });
        scope.wake.get_or_insert_with(|| signal::Sender::new(scope.last)).subscribe()
    }

    fn scopes(&self) -> RwLockReadGuard<'_, Scopes> {
        self.scopes.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note that what is known of these keys changes with a revision, without an event.
    pub fn note<'a>(&self, keys: impl Iterator<Item = &'a Key>, revision: u64) {
        let mut scopes = self.scopes.write().unwrap_or_else(PoisonError::into_inner);
        scopes.note(keys.map(|key| (key, revision)));
    }

    /// Announces the events of an entry after which the revision is `last`.
    pub fn publish(&self, last: u64, events: Vec<Event>) {
        let first = self.revision() + 1;
        if last < first {
            return;
        }
        let size_bytes = events.iter().map(Event::size_bytes).sum();
        // Before the revision is known, so that nobody takes a scope for unchanged up to it.
        self.scopes
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .note(events.iter().map(|event| (event.key(), event.revision())));
        let sweep = {
            let mut ring = self.ring.write().unwrap_or_else(PoisonError::into_inner);
            ring.push(Span { first, last, events, size_bytes })
        };
        self.revision.send_replace(last);
        // After it, so that who is woken sees it.
        self.scopes().wake(first - 1, last, sweep);
    }

    /// A snapshot has moved the revision: what lies between is in history.
    pub fn jump(&self, revision: u64) {
        *self.ring.write().unwrap_or_else(PoisonError::into_inner) = Ring::default();
        {
            let mut scopes = self.scopes.write().unwrap_or_else(PoisonError::into_inner);
            scopes.since = revision;
            scopes.all.values_mut().for_each(|scope| scope.last = revision);
        }
        self.revision.send_replace(revision);
        self.scopes().wake(0, revision, true);
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
    wake: signal::Receiver<u64>,
    ended: bool,
}

impl Watch {
    pub(crate) fn new((source, over): (Source, CancellationToken), prefix: &str, next: u64) -> Self {
        let wake = source.hub().subscribe_to(prefix);
        Self { source, over, prefix: prefix.into(), next, wake, ended: false }
    }

    /// The first revision that has not been seen: a new watch from here misses nothing.
    pub fn next_revision(&self) -> u64 {
        self.next
    }

    /// Everything up to this revision has been seen; nothing is waited for.
    pub fn seen(&mut self) -> u64 {
        let applied = self.source.hub().revision();
        if !self.ended && !self.over.is_cancelled() && self.source.hub().changed_at(&self.prefix) < self.next {
            self.next = self.next.max(applied + 1);
        }
        self.next - 1
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
            if *self.wake.borrow_and_update() >= self.next {
                return self.look(self.source.hub().revision()).await;
            }
            // What it need not look at is behind it, though that may be forgotten before it is woken.
            self.seen();
            let closing = self.source.closing();
            tokio::select! {
                biased;
                () = closing.cancelled() => return None,
                () = self.over.cancelled() => {}
                changed = self.wake.changed() => changed.ok()?,
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use flotilla_api::GroupResource;
    use futures::FutureExt;

    use super::*;
    use crate::kv::KeyValue;

    fn put(resource: &str, revision: u64) -> Vec<Event> {
        let key = Key::new(&GroupResource::new("", resource), "default", "a");
        let kv = KeyValue { key, value: Bytes::new(), create_revision: revision, mod_revision: revision };
        vec![Event::Put { kv, prev: None }]
    }

    fn is_woken(told: &mut signal::Receiver<u64>) -> bool {
        told.changed().now_or_never().is_some()
    }

    fn sized(revision: u64, size_bytes: usize) -> Vec<Event> {
        let mut events = put("secrets", revision);
        let Event::Put { kv, .. } = &mut events[0] else { unreachable!() };
        kv.value = vec![0; size_bytes].into();
        events
    }

    #[test]
    fn what_nobody_was_woken_for_yet_stays_in_the_ring_however_large_it_is() {
        let mut ring = Ring::default();
        let span = |revision, size_bytes| Span { first: revision, last: revision, events: Vec::new(), size_bytes };
        let kept = |ring: &Ring| ring.spans.iter().map(|span| span.first).collect::<Vec<_>>();
        assert!(!ring.push(span(1, 10)));
        assert!(ring.push(span(2, 2 * RING_BYTES)), "it is time to wake all");
        assert_eq!(kept(&ring), [1, 2], "more than the ring is to hold, but not swept yet");
        assert!(!ring.push(span(3, 10)));
        assert_eq!((kept(&ring), ring.size_bytes), (vec![3], 10));
        assert!(!ring.push(span(4, SWEEP_BYTES / 2)) && ring.push(span(5, RING_BYTES)));
        assert_eq!(kept(&ring), [3, 4, 5]);
    }

    #[test]
    fn a_watcher_of_what_does_not_change_finds_what_it_has_yet_to_see_in_the_ring() {
        let hub = Hub::new(0);
        let mut quiet = hub.subscribe_to("core/pods/");
        let mut woken = 0;
        for revision in 1..=2_000 {
            let size_bytes = match revision % 100 {
                0 => RING_BYTES + 1,
                50 => SWEEP_BYTES - 1,
                _ => 5_000,
            };
            hub.publish(revision, sized(revision, size_bytes));
            if is_woken(&mut quiet) {
                assert!(hub.since(woken + 1).is_some(), "{woken} {revision}");
                woken = *quiet.borrow();
            }
        }
        assert!(woken > 1_900);
    }

    #[test]
    fn who_watches_a_collection_is_woken_by_it_and_when_much_has_happened_elsewhere() {
        let hub = Hub::new(10);
        let (mut pods, mut group) = (hub.subscribe_to("core/pods/x"), hub.subscribe_to("core/"));
        let mut all = hub.subscribe_to("");
        hub.publish(11, put("secrets", 11));
        assert_eq!([&mut pods, &mut group, &mut all].map(is_woken), [false, true, true]);
        assert_eq!(["core/pods/", "core/secrets/", "core/", ""].map(|at| hub.changed_at(at)), [10, 11, 11, 11]);
        hub.publish(12, put("pods", 12));
        assert_eq!([&mut pods, &mut group, &mut all].map(is_woken), [true; 3]);
        assert_eq!(*pods.borrow(), 12);
        let last = 12 + SWEEP_SPANS as u64;
        (13..=last).for_each(|revision| hub.publish(revision, put("secrets", revision)));
        assert!(is_woken(&mut pods) && *pods.borrow() > 12);
        // Once a snapshot has moved the revision, nothing is known of what lies between.
        hub.jump(last + 100);
        assert!(is_woken(&mut pods) && hub.changed_at("core/pods/") == last + 100);
    }
}
