//! Finding the leader and having it do something.
//!
//! Invariant: a write is repeated only while it is certain that it has not been carried out.

use std::collections::BTreeSet;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use tokio::time::Instant;

use crate::codec;
use crate::inner::Inner;
use crate::transport::TransportError;
use crate::types::NodeId;
use crate::wire::{Addressed, Refusal, Reply, Request};

/// Between two attempts to find a leader, unless one shows up.
const RETRY_AFTER: Duration = Duration::from_millis(50);

impl Inner {
    /// Has the leader do something, here or elsewhere; tries again while that can do no harm.
    pub async fn ask_leader(&self, request: Request) -> Result<Reply, Refusal> {
        let deadline = Instant::now() + self.options.request_timeout;
        let mut leader = self.leader_or_feeder(&BTreeSet::new());
        // Who has refused since the last pause: replicas that each take the other for the leader are not asked in a
        // tight loop.
        let mut refused = BTreeSet::new();
        loop {
            let attempt = match leader {
                Some(leader) => self.ask(leader, &request, deadline).await,
                None => Err(Refusal::NotLeader(None)),
            };
            let hint = match attempt {
                Err(Refusal::NotLeader(hint)) => hint,
                done => return done,
            };
            if self.machine.closing().is_cancelled() {
                return Err(Refusal::Failed("the store is shutting down".into()));
            }
            if Instant::now() + RETRY_AFTER >= deadline {
                return Err(Refusal::NotLeader(hint));
            }
            refused.extend(leader);
            leader = match hint.filter(|hint| !refused.contains(hint)) {
                Some(hint) => Some(hint),
                None => self.other_leader(&refused).await,
            };
            if leader.is_none_or(|leader| refused.contains(&leader)) {
                refused.clear();
            }
        }
    }

    /// Waits a little for a leader to show up that has not refused; whoever leads after that, one that has included.
    async fn other_leader(&self, refused: &BTreeSet<NodeId>) -> Option<NodeId> {
        let mut server = self.raft.server_metrics();
        let changed = async {
            while server.borrow_and_update().current_leader.is_none_or(|leader| refused.contains(&leader)) {
                if server.changed().await.is_err() {
                    // Raft has stopped. To return at once would be to ask again without pause.
                    std::future::pending::<()>().await;
                }
            }
        };
        let _ = tokio::time::timeout(RETRY_AFTER, changed).await;
        self.leader_or_feeder(refused)
    }

    async fn ask(&self, leader: NodeId, request: &Request, deadline: Instant) -> Result<Reply, Refusal> {
        let left = deadline.saturating_duration_since(Instant::now());
        let asking = async {
            match leader == self.id() {
                true => tokio::time::timeout(left, self.answer(leader, request.clone())).await.unwrap_or_else(late),
                false => self.ask_peer(leader, request, left).await,
            }
        };
        tokio::select! {
            biased;
            answered = asking => answered,
            () = self.deposed(leader) => abandoned(request),
        }
    }

    pub async fn ask_peer(&self, leader: NodeId, request: &Request, bound: Duration) -> Result<Reply, Refusal> {
        let message = Addressed { epoch: self.spoken_epoch(), body: request };
        let message = codec::encode(&message).map_err(|e| Refusal::Failed(e.to_string()))?;
        match self.transport.call(leader, message.into(), bound).await {
            Ok(reply) => match codec::decode(&reply) {
                Ok(Reply::Refused(Refusal::Epoch(epoch))) => {
                    self.epoch.heard(leader, epoch);
                    Err(Refusal::NotLeader(None))
                }
                Ok(Reply::Refused(refusal)) => Err(refusal),
                Ok(reply) => Ok(reply),
                Err(error) => Err(Refusal::Unknown(error.to_string())),
            },
            Err(TransportError::Unreachable(_)) => Err(Refusal::NotLeader(None)),
            Err(error @ TransportError::Timeout) => late(error),
        }
    }

    /// Waits until somebody else leads, beside whom this replica took for the leader when it asked: a hint may be ahead of
    /// it. Every request under way waits here: it must not be woken by each entry, as all of openraft's metrics would.
    async fn deposed(&self, leader: NodeId) {
        let mut server = self.raft.server_metrics();
        let believed = server.borrow_and_update().current_leader;
        let known = |now: NodeId| now == leader || Some(now) == believed;
        while server.borrow_and_update().current_leader.is_none_or(known) {
            if server.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

fn late<E>(_: E) -> Result<Reply, Refusal> {
    Err(Refusal::Unknown("the leader has not answered in time".into()))
}

/// When another leads before the answer came: what is idempotent can be asked again, a handing over
/// has happened, and a write may have got through.
fn abandoned(request: &Request) -> Result<Reply, Refusal> {
    match request {
        Request::ReadIndex | Request::AddReplica(_) | Request::RemoveReplica(_) => Err(Refusal::NotLeader(None)),
        Request::TransferLeader(_) => Ok(Reply::Done),
        _ => Err(Refusal::Unknown("the leader was lost on the way".into())),
    }
}
