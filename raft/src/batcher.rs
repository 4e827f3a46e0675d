//! Group commit: Changes that wait are proposed together, as one log entry.
//!
//! While `ENTRIES_UNDER_WAY` entries are on their way, Changes gather; the busier the disk, the greater
//! the entries. A Change that finds none on its way is proposed right where it comes from: nobody has to wake for it.
//!
//! Invariant: an entry holds at most `ENTRY_BYTES` and `ENTRY_CHANGES`, but always at least one Change.

use std::sync::Arc;

use flotilla_api::Change;
use openraft::errors::ClientWriteError;
use openraft::raft::ClientWriteResult;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::command::{Batch, EventBounds};
use crate::limits;
use crate::machine::Machine;
use crate::outcome::Outcome;
use crate::runtime::{self, now_ms};
use crate::types::{Fate, Raft, Types};
use crate::wire::Refusal;

const QUEUED_CHANGES: usize = 4096;
const ENTRY_CHANGES: usize = 1024;
const ENTRY_BYTES: usize = 1 << 20;
const ENTRIES_UNDER_WAY: usize = 4;

type Told = oneshot::Sender<Result<Outcome, Refusal>>;

/// Something for the next entry.
enum Item {
    Change(Change, Told),
    Compact(u64, oneshot::Sender<Result<(), Refusal>>),
    Raise(u32),
}

/// A cheap handle on the batcher.
#[derive(Clone)]
pub(crate) struct Batcher {
    queue: mpsc::Sender<Item>,
    proposer: Proposer,
    closing: CancellationToken,
}

impl Batcher {
    pub fn start(raft: Raft, machine: Arc<Machine>, events: EventBounds, tasks: &TaskTracker) -> Self {
        let closing = machine.closing().clone();
        let (queue, items) = mpsc::channel(QUEUED_CHANGES);
        let proposer = Proposer { raft, machine, events, slots: Arc::new(Semaphore::new(ENTRIES_UNDER_WAY)) };
        let run = Run { proposer: proposer.clone(), items, held: None };
        let closed = closing.clone();
        runtime::spawn(tasks, async move {
            tokio::select! {
                biased;
                () = closed.cancelled() => {}
                () = run.run() => {}
            }
        });
        Self { queue, proposer, closing }
    }

    /// Proposes a Change that has been checked against the limits.
    pub async fn propose(&self, change: Change) -> Result<Outcome, Refusal> {
        let (told, outcome) = oneshot::channel();
        match self.slot_if_idle() {
            Some(slot) => {
                let batch = Batch { changes: vec![change], ..self.proposer.batch() };
                let waiting = Waiting { changes: vec![told], ..Waiting::default() };
                self.proposer.submit(batch, waiting, slot).await;
            }
            None => self.send(Item::Change(change, told)).await?,
        }
        self.hear(outcome).await
    }

    /// A slot, if no entry is under way and nothing waits for the next one.
    fn slot_if_idle(&self) -> Option<OwnedSemaphorePermit> {
        let slots = &self.proposer.slots;
        let idle = slots.available_permits() == ENTRIES_UNDER_WAY && self.queue.capacity() == QUEUED_CHANGES;
        idle.then(|| slots.clone().try_acquire_owned().ok()).flatten()
    }

    /// Forgets history up to a revision.
    pub async fn compact(&self, revision: u64) -> Result<(), Refusal> {
        let (told, done) = oneshot::channel();
        self.send(Item::Compact(revision, told)).await?;
        self.hear(done).await
    }

    /// Without a quorum no answer comes; who waits then hears that the outcome is unknown when the store shuts down.
    async fn hear<T>(&self, answer: oneshot::Receiver<Result<T, Refusal>>) -> Result<T, Refusal> {
        match self.closing.run_until_cancelled(answer).await {
            Some(Ok(answer)) => answer,
            Some(Err(_)) => Err(Refusal::Unknown("Raft has stopped".into())),
            None => Err(Refusal::Unknown("the store is shutting down".into())),
        }
    }

    /// Has commands of a newer version allowed. If that is not committed, it has to be asked for again.
    pub async fn raise(&self, version: u32) {
        if let Err(refusal) = self.send(Item::Raise(version)).await {
            tracing::debug!(?refusal, version, "newer commands are not allowed yet");
        }
    }

    async fn send(&self, item: Item) -> Result<(), Refusal> {
        self.queue.send(item).await.map_err(|_| Refusal::Failed("the store is shutting down".into()))
    }
}

/// Makes entries of Changes. A cheap handle.
#[derive(Clone)]
struct Proposer {
    raft: Raft,
    machine: Arc<Machine>,
    events: EventBounds,
    slots: Arc<Semaphore>,
}

impl Proposer {
    /// A batch as of now, with nothing in it.
    fn batch(&self) -> Batch {
        Batch {
            version: self.machine.state().version(),
            now_ms: now_ms(),
            events: self.events,
            compact: None,
            raise: None,
            changes: Vec::new(),
        }
    }

    /// Hands an entry to openraft. Who waits for it is told where its fate becomes known.
    async fn submit(&self, batch: Batch, waiting: Waiting, slot: OwnedSemaphorePermit) {
        let command = match batch.encode() {
            Ok(command) => command,
            Err(error) => return waiting.tell(Err(Refusal::Failed(error.to_string()))),
        };
        let fate = Fate::new(|written| {
            waiting.tell(outcomes(written));
            drop(slot);
        });
        if let Err(error) = self.raft.client_write_ff(command, Some(fate)).await {
            tracing::debug!(%error, "Raft has stopped");
        }
    }
}

struct Run {
    proposer: Proposer,
    items: mpsc::Receiver<Item>,
    /// It did not fit the previous entry.
    held: Option<Item>,
}

/// Who waits for an entry.
#[derive(Default)]
struct Waiting {
    changes: Vec<Told>,
    compactions: Vec<oneshot::Sender<Result<(), Refusal>>>,
}

impl Run {
    async fn run(mut self) {
        loop {
            let first = match self.held.take() {
                Some(held) => held,
                None => match self.items.recv().await {
                    Some(item) => item,
                    None => return,
                },
            };
            // The slot comes before the rest of the entry, so that Changes gather meanwhile.
            let Ok(slot) = self.proposer.slots.clone().acquire_owned().await else { return };
            let (batch, waiting) = self.gather(first);
            self.proposer.submit(batch, waiting, slot).await;
        }
    }

    fn gather(&mut self, first: Item) -> (Batch, Waiting) {
        let mut batch = self.proposer.batch();
        let mut waiting = Waiting::default();
        let mut size_bytes = 0;
        let mut next = Some(first);
        while let Some(item) = next {
            match item {
                // Nobody waits any more: it was told that the outcome is unknown.
                Item::Change(_, told) if told.is_closed() => {}
                Item::Change(change, told) => {
                    let bytes = limits::change_bytes(&change);
                    if !batch.changes.is_empty() && size_bytes + bytes > ENTRY_BYTES {
                        self.held = Some(Item::Change(change, told));
                        break;
                    }
                    size_bytes += bytes;
                    batch.changes.push(change);
                    waiting.changes.push(told);
                }
                Item::Compact(revision, told) => {
                    batch.compact = batch.compact.max(Some(revision));
                    waiting.compactions.push(told);
                }
                Item::Raise(version) => {
                    batch.version = batch.version.max(version);
                    batch.raise = batch.raise.max(Some(version));
                }
            }
            next = match batch.changes.len() < ENTRY_CHANGES {
                true => self.items.try_recv().ok(),
                false => None,
            };
        }
        (batch, waiting)
    }
}

fn outcomes(written: ClientWriteResult<Types>) -> Result<Vec<Outcome>, Refusal> {
    match written {
        Ok(response) => Ok(response.data.0),
        Err(ClientWriteError::ForwardToLeader(forward)) => Err(Refusal::NotLeader(forward.leader_id)),
        Err(error @ ClientWriteError::LogEntryDiscarded(_)) => Err(Refusal::Unknown(error.to_string())),
        Err(error) => Err(Refusal::Failed(error.to_string())),
    }
}

impl Waiting {
    fn tell(self, answer: Result<Vec<Outcome>, Refusal>) {
        let compacted = answer.as_ref().map(|_| ()).map_err(Clone::clone);
        for told in self.compactions {
            let _ = told.send(compacted.clone());
        }
        match answer {
            Ok(outcomes) => {
                for (told, outcome) in self.changes.into_iter().zip(outcomes) {
                    let _ = told.send(Ok(outcome));
                }
            }
            Err(refusal) => {
                for told in self.changes {
                    let _ = told.send(Err(refusal.clone()));
                }
            }
        }
    }
}
