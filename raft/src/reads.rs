//! One question to the leader for all reads that wait: which index they must have applied.
//!
//! Invariant: a read is answered by a question that was asked after the read began.

use tokio::sync::{mpsc, oneshot};

use crate::inner::Inner;
use crate::wire::{Refusal, Reply, Request};

const QUEUED_READS: usize = 4096;

type Told = oneshot::Sender<Result<u64, Refusal>>;

/// A cheap handle on the asker.
#[derive(Clone)]
pub(crate) struct Reads {
    queue: mpsc::Sender<Told>,
}

/// What the asker's task runs on.
pub(crate) struct Asker {
    queue: mpsc::Receiver<Told>,
}

impl Reads {
    pub fn new() -> (Self, Asker) {
        let (sender, receiver) = mpsc::channel(QUEUED_READS);
        (Self { queue: sender }, Asker { queue: receiver })
    }

    /// The log index that a linearizable read must have applied.
    pub async fn index(&self) -> Result<u64, Refusal> {
        let closed = || Refusal::Failed("the store is shutting down".into());
        let (told, index) = oneshot::channel();
        self.queue.send(told).await.map_err(|_| closed())?;
        index.await.map_err(|_| closed())?
    }
}

impl Asker {
    pub async fn run(mut self, inner: &Inner) {
        let mut waiting = Vec::new();
        while self.queue.recv_many(&mut waiting, QUEUED_READS).await > 0 {
            let answer = match inner.ask_leader(Request::ReadIndex).await {
                Ok(Reply::ReadIndex(index)) => Ok(index),
                Ok(_) => Err(Refusal::Failed("the leader's reply does not fit the request".into())),
                Err(refusal) => Err(refusal),
            };
            for told in waiting.drain(..) {
                let _ = told.send(answer.clone());
            }
        }
    }
}
