//! What a node without a replica knows of the store: the objects that concern it, in memory, as a replica feeds them.
//!
//! Invariant: a slice holds every object that concerns the node as of its revision. Nothing else is in it, so that what it
//! lacks need not be missing from the store.
//! Invariant: what a slice serves comes from one replica's stream. Another stream is another slice: the watches of the one
//! before end as compacted, and their owners list anew.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock};

use flotilla_api::Key;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::epoch::EpochId;
use crate::inner::Inner;
use crate::kv::{Event, KeyValue, Listing, Range};
use crate::machine::Machine;
use crate::state::{ReadError, Undone};
use crate::types::NodeId;
use crate::watch::Hub;

/// Asks the replica that feeds a slice how far it has come: it answers once everything before is on its way.
pub type Question = oneshot::Sender<u64>;

/// How a slice begins.
#[derive(Debug)]
pub struct SliceStart {
    /// The replica that feeds it.
    pub replica: NodeId,
    /// The cluster epoch of that replica.
    pub epoch: EpochId,
    pub objects: Vec<KeyValue>,
    pub revision: u64,
    pub questions: mpsc::Sender<Question>,
}

/// What changed in a slice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SliceUpdate {
    /// Nothing that concerns the node is missing up to this revision.
    pub upto: u64,
    /// Objects that concern the node from now on, though they did not change.
    pub gained: Vec<KeyValue>,
    pub writes: Vec<SliceWrite>,
    /// Objects that do not concern it any more.
    pub lost: Vec<Key>,
}

/// One key written that concerns the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SliceWrite {
    Put(KeyValue),
    Delete { key: Key, revision: u64 },
}

/// A slice as its node reads it.
pub(crate) struct Slice {
    pub replica: NodeId,
    pub epoch: EpochId,
    objects: RwLock<BTreeMap<String, KeyValue>>,
    first: u64,
    hub: Hub,
    questions: mpsc::Sender<Question>,
    closing: CancellationToken,
}

impl Slice {
    fn new(start: SliceStart, closing: CancellationToken) -> Self {
        let objects = start.objects.into_iter().map(|kv| (kv.key.as_str().to_owned(), kv)).collect();
        Self {
            replica: start.replica,
            epoch: start.epoch,
            objects: RwLock::new(objects),
            first: start.revision,
            hub: Hub::new(start.revision),
            questions: start.questions,
            closing,
        }
    }

    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    pub fn closing(&self) -> &CancellationToken {
        &self.closing
    }

    /// The revision with which the slice began: what was before it is not known here.
    pub fn first(&self) -> u64 {
        self.first
    }

    pub fn get(&self, key: &Key) -> Option<KeyValue> {
        self.objects.read().unwrap_or_else(PoisonError::into_inner).get(key.as_str()).cloned()
    }

    pub fn range(&self, range: &Range) -> Result<Listing, ReadError> {
        let objects = self.objects.read().unwrap_or_else(PoisonError::into_inner);
        let revision = self.hub.revision();
        match range.revision {
            Some(wanted) if wanted > revision => return Err(ReadError::Future { wanted, current: revision }),
            // Only the present is kept.
            Some(wanted) if wanted < revision => return Err(ReadError::Compacted { wanted, oldest: revision }),
            _ => {}
        }
        let from = match &range.after {
            Some(after) if after.as_str() >= range.prefix.as_str() => Bound::Excluded(after.clone()),
            _ => Bound::Included(range.prefix.clone()),
        };
        let limit = if range.limit == 0 { usize::MAX } else { range.limit };
        let found = objects.range((from, Bound::Unbounded)).take_while(|(key, _)| key.starts_with(&range.prefix));
        let mut items: Vec<KeyValue> = found.take(limit.saturating_add(1)).map(|(_, kv)| kv.clone()).collect();
        let more = items.len() > limit;
        items.truncate(limit);
        Ok(Listing { items, revision, more })
    }

    /// How many keys a range has, whatever its limit; `None` if they are more than `most`.
    pub fn count(&self, range: &Range, most: usize) -> Result<Option<usize>, ReadError> {
        let found = self.range(&Range { limit: most.saturating_add(1), ..range.clone() })?.items.len();
        Ok((found <= most).then_some(found))
    }

    /// Asks the replica for the revision up to which everything was acknowledged, and waits until it is here.
    pub async fn barrier(&self) -> Option<u64> {
        let (told, answer) = oneshot::channel();
        self.questions.send(told).await.ok()?;
        let revision = answer.await.ok()?;
        let mut applied = self.hub.subscribe();
        let reached = *applied.wait_for(|applied| *applied >= revision).await.ok()?;
        Some(reached)
    }

    fn apply(&self, update: SliceUpdate) {
        let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
        for kv in &update.gained {
            objects.insert(kv.key.as_str().to_owned(), kv.clone());
        }
        let mut events = Vec::with_capacity(update.writes.len());
        for write in update.writes {
            match write {
                SliceWrite::Put(kv) => {
                    let prev = objects.insert(kv.key.as_str().to_owned(), kv.clone());
                    events.push(Event::Put { kv, prev });
                }
                SliceWrite::Delete { key, revision } => {
                    let prev = objects.remove(key.as_str());
                    events.extend(prev.map(|prev| Event::Delete { key, revision, prev }));
                }
            }
        }
        for key in &update.lost {
            objects.remove(key.as_str());
        }
        let moved = update.gained.iter().map(|kv| &kv.key).chain(&update.lost);
        self.hub.note(moved, update.upto);
        // Under the lock, so that no listing is of a revision before what it holds.
        self.hub.publish(update.upto, events);
    }
}

/// From where a node reads.
#[derive(Clone)]
pub(crate) enum Source {
    Replica(Arc<Machine>),
    Slice(Arc<Slice>),
}

impl Source {
    pub fn hub(&self) -> &Hub {
        match self {
            Self::Replica(machine) => machine.hub(),
            Self::Slice(slice) => slice.hub(),
        }
    }

    /// A part of a range; see [`State::page`](crate::state::State::page).
    pub fn page(&self, range: &Range, undone: &mut Option<Undone>) -> Result<Listing, ReadError> {
        match self {
            Self::Replica(machine) => machine.state().page(range, undone),
            Self::Slice(slice) => slice.range(range),
        }
    }

    pub fn closing(&self) -> &CancellationToken {
        match self {
            Self::Replica(machine) => machine.closing(),
            Self::Slice(slice) => slice.closing(),
        }
    }
}

/// Which slice is read from, if one is.
#[derive(Default)]
pub(crate) struct Current(RwLock<Held>);

#[derive(Default)]
struct Held {
    slice: Option<Arc<Slice>>,
    /// Cancelled when it is read from elsewhere.
    over: CancellationToken,
    /// How often something else has been read from.
    turns: u64,
}

impl Current {
    pub fn turns(&self) -> u64 {
        self.0.read().unwrap_or_else(PoisonError::into_inner).turns
    }

    pub fn slice(&self) -> Option<Arc<Slice>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).slice.clone()
    }

    /// From where to read, and what is cancelled when that changes.
    pub fn source(&self, machine: &Arc<Machine>) -> (Source, CancellationToken) {
        let held = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let source = match &held.slice {
            Some(slice) => Source::Slice(slice.clone()),
            None => Source::Replica(machine.clone()),
        };
        (source, held.over.clone())
    }

    /// Waits until a slice is read from, or none.
    pub async fn until_fed(&self, fed: bool) {
        loop {
            let over = {
                let held = self.0.read().unwrap_or_else(PoisonError::into_inner);
                if held.slice.is_some() == fed {
                    return;
                }
                held.over.clone()
            };
            over.cancelled().await;
        }
    }

    /// Reads from elsewhere from now on, if that may be, given what is read from now.
    fn replace<E>(
        &self,
        slice: Option<Arc<Slice>>,
        may: impl FnOnce(&Option<Arc<Slice>>) -> Result<(), E>,
    ) -> Result<(), E> {
        let before = {
            let mut held = self.0.write().unwrap_or_else(PoisonError::into_inner);
            may(&held.slice)?;
            let next = Held { slice, over: CancellationToken::new(), turns: held.turns + 1 };
            std::mem::replace(&mut *held, next)
        };
        before.over.cancel();
        Ok(())
    }
}

/// Why a slice is not read from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SliceRefused {
    #[error("it begins with revision {begins}, and {shown} has been read here already")]
    Behind { begins: u64, shown: u64 },
    #[error("this node leads")]
    Leads,
}

/// Feeds the slice that a node reads from.
pub struct SliceFeed {
    slice: Arc<Slice>,
}

impl SliceFeed {
    pub fn revision(&self) -> u64 {
        self.slice.hub.revision()
    }

    pub fn apply(&self, update: SliceUpdate) {
        self.slice.apply(update);
    }
}

impl Inner {
    pub fn read_slice(&self, start: SliceStart) -> Result<SliceFeed, SliceRefused> {
        let slice = Arc::new(Slice::new(start, self.machine.closing().clone()));
        self.slice.replace(Some(slice.clone()), |held| {
            // Who leads decides from all that there is. Looked at under the lock: a leader looks whether it reads from a
            // slice after it has said that it leads.
            if self.status.borrow().is_leader {
                return Err(SliceRefused::Leads);
            }
            let shown = held.as_ref().map_or_else(|| self.machine.hub().revision(), |before| before.hub.revision());
            match slice.first {
                first if first < shown => Err(SliceRefused::Behind { begins: first, shown }),
                _ => Ok(()),
            }
        })?;
        Ok(SliceFeed { slice })
    }

    pub fn leave_slice(&self) {
        if self.slice.slice().is_some() {
            let Ok(()) = self.slice.replace(None, |_| Ok::<(), Infallible>(()));
        }
    }

    /// Whom to ask for what only the leader does, of those who have not refused: the replica that feeds this node, which
    /// knows the leader, or else the leader that its own replica knows.
    pub fn leader_or_feeder(&self, refused: &BTreeSet<NodeId>) -> Option<NodeId> {
        let feeder = self.slice.slice().map(|slice| slice.replica);
        let mut known = feeder.into_iter().chain(self.leader());
        known.clone().find(|id| !refused.contains(id)).or_else(|| known.next())
    }

    /// The epoch in which this node speaks.
    pub fn spoken_epoch(&self) -> EpochId {
        match (self.epoch.own(), self.slice.slice()) {
            (EpochId::NONE, Some(slice)) => slice.epoch,
            (own, _) => own,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use flotilla_api::GroupResource;

    fn kv(name: &str, revision: u64) -> KeyValue {
        let key = Key::new(&GroupResource::new("", "pods"), "default", name);
        KeyValue { key, value: Bytes::from_static(b"{}"), create_revision: revision, mod_revision: revision }
    }

    fn slice(objects: Vec<KeyValue>, revision: u64) -> (Slice, mpsc::Receiver<Question>) {
        let (questions, asked) = mpsc::channel(1);
        let start = SliceStart { replica: 1, epoch: EpochId::FIRST, objects, revision, questions };
        (Slice::new(start, CancellationToken::new()), asked)
    }

    #[test]
    fn a_slice_is_listed_in_pages_as_of_now() {
        let (slice, _asked) = slice(vec![kv("a", 1), kv("b", 2), kv("c", 3)], 3);
        let prefix = GroupResource::new("", "pods").prefix();
        let page = slice.range(&Range { limit: 2, ..Range::prefix(&prefix) }).unwrap();
        assert!(page.more && page.items.len() == 2 && page.revision == 3);
        let after = page.items.last().map(|kv| kv.key.as_str().to_owned());
        let rest = Range { after, limit: 2, revision: Some(3), ..Range::prefix(&prefix) };
        assert_eq!(slice.range(&rest).unwrap().items, [kv("c", 3)]);
        slice.apply(SliceUpdate { upto: 4, ..SliceUpdate::default() });
        assert!(matches!(slice.range(&rest), Err(ReadError::Compacted { .. })), "the past is not kept");
    }

    #[test]
    fn what_is_gained_and_lost_is_no_event_but_counts_as_a_change() {
        let (slice, _asked) = slice(vec![kv("a", 1)], 3);
        let pods = GroupResource::new("", "pods").prefix();
        slice.apply(SliceUpdate {
            upto: 5,
            gained: vec![kv("b", 2)],
            lost: vec![kv("a", 1).key],
            ..Default::default()
        });
        assert_eq!(slice.range(&Range::default()).unwrap().items, [kv("b", 2)]);
        assert_eq!(slice.hub.changed_at(&pods), 5);
        let writes = vec![SliceWrite::Put(kv("c", 6))];
        slice.apply(SliceUpdate { upto: 7, writes, ..Default::default() });
        assert_eq!((slice.get(&kv("c", 6).key), slice.hub.revision()), (Some(kv("c", 6)), 7));
    }

    #[tokio::test]
    async fn a_barrier_ends_when_the_answer_has_been_reached() {
        let (slice, mut asked) = slice(Vec::new(), 3);
        let replica = async {
            asked.recv().await.unwrap().send(9).unwrap();
            slice.apply(SliceUpdate { upto: 8, ..Default::default() });
            slice.apply(SliceUpdate { upto: 10, ..Default::default() });
        };
        let (reached, ()) = tokio::join!(slice.barrier(), replica);
        assert_eq!(reached, Some(10));
        drop(asked);
        assert_eq!(slice.barrier().await, None, "without a replica nobody knows");
    }
}
