//! How a decision comes to hold, though it was made from a replica that may be behind.
//!
//! A request is decided from what this node has, without asking anyone. If it comes to a Change, the preconditions of the
//! Change say what it was decided from, and are looked at when it is applied: nothing more is needed. Anything else is
//! decided once more behind a barrier, and so is what was overtaken.
//!
//! Invariant: a refusal, or the answer that nothing has to be written, rests on reads behind a barrier that was asked for
//! after the request began.
//! Invariant: a request that nobody overtakes asks for at most one barrier, unless it builds on what it wrote itself.

use std::time::Instant;

use flotilla_api::{Change, Kind, Reason, Status};
use flotilla_raft::ProposeError;

use super::write::contended;
use super::{Gate, MAX_ATTEMPTS, pause, propose_status};

/// What a request comes to, as far as this replica can tell.
pub(super) enum Decision<T> {
    /// Holds if the Change is applied.
    Write(Change, T),
    /// Nothing has to be written.
    Keep(T),
    Refuse(Status),
}

impl<T> Decision<T> {
    pub fn map<U>(self, then: impl FnOnce(T) -> U) -> Decision<U> {
        match self {
            Decision::Write(change, answer) => Decision::Write(change, then(answer)),
            Decision::Keep(answer) => Decision::Keep(then(answer)),
            Decision::Refuse(status) => Decision::Refuse(status),
        }
    }
}

/// How far the reads of one request can be trusted.
#[derive(Default)]
pub(super) struct Reads {
    /// Everything that was acknowledged before the request began is seen.
    current: bool,
    /// So are roles and bindings.
    roles_current: bool,
}

impl Reads {
    /// What this request wrote itself counts from now on: the next doubt takes a barrier.
    pub fn expire(&mut self) {
        *self = Self::default();
    }

    async fn renew(&mut self, gate: &Gate) -> Result<(), Status> {
        gate.barrier().await?;
        self.current = true;
        Ok(())
    }

    async fn renew_roles(&mut self, gate: &Gate) -> Result<(), Status> {
        gate.catch_up_roles().await?;
        *self = Self { current: true, roles_current: true };
        Ok(())
    }
}

impl Gate {
    /// Decides, behind a barrier only if the decision needs one.
    ///
    /// # Errors
    /// What `decide` fails with, which no later state would change, or why the store cannot be read.
    pub(super) async fn decide<T>(
        &self,
        reads: &mut Reads,
        mut decide: impl FnMut() -> Result<Decision<T>, Status>,
    ) -> Result<Decision<T>, Status> {
        loop {
            match decide()? {
                Decision::Refuse(status)
                    if matches!(status.reason, Reason::Forbidden | Reason::NotFound) && !reads.roles_current =>
                {
                    reads.renew_roles(self).await?;
                }
                Decision::Keep(_) | Decision::Refuse(_) if !reads.current => reads.renew(self).await?,
                decision => return Ok(decision),
            }
        }
    }

    /// Decides and proposes until a decision holds; its answer, and the revision if something was written.
    ///
    /// # Errors
    /// Why the request is refused, or why the store cannot be read or written.
    pub(super) async fn settle<T>(
        &self,
        reads: &mut Reads,
        kind: &Kind,
        mut decide: impl FnMut() -> Result<Decision<T>, Status>,
    ) -> Result<(T, Option<u64>), Status> {
        for attempt in 1..=MAX_ATTEMPTS {
            let (change, answer) = match self.decide(reads, &mut decide).await? {
                Decision::Write(change, answer) => (change, answer),
                Decision::Keep(answer) => return Ok((answer, None)),
                Decision::Refuse(status) => return Err(status),
            };
            let began = Instant::now();
            match self.store.propose(change).await {
                Ok(applied) => {
                    self.commits.observe(began.elapsed().as_secs_f64());
                    return Ok((answer, Some(applied.revision)));
                }
                Err(ProposeError::Conflict(conflict)) => {
                    self.learn_from(&conflict).await?;
                    pause(attempt).await;
                }
                Err(error) => return Err(propose_status(error)),
            }
            reads.renew(self).await?;
        }
        Err(contended(kind))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use flotilla_api::{Builtin, Key};

    use super::*;
    use crate::gate::alone::gate;

    fn key(name: &str) -> Key {
        Key::new(&Builtin::ConfigMap.collection(), "default", name)
    }

    fn create(name: &str) -> Decision<&'static str> {
        Decision::Write(Change::new("test", "test").create(key(name), Bytes::from_static(b"{}")), "written")
    }

    /// Settles what each look in turn comes to; how it ended, and how many looks were taken.
    async fn settle(gate: &Gate, looks: Vec<Decision<&'static str>>) -> (Result<&'static str, String>, usize) {
        let kind = gate.built_in(Builtin::ConfigMap).unwrap();
        let (mut looks, mut taken) = (looks.into_iter(), 0);
        let look = || {
            taken += 1;
            Ok(looks.next().expect("one look more than there is to see"))
        };
        let settled = gate.settle(&mut Reads::default(), &kind, look).await;
        (settled.map(|(answer, _)| answer).map_err(|status| status.message), taken)
    }

    fn refuse(why: &str) -> Decision<&'static str> {
        Decision::Refuse(Status::bad_request(why))
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn only_a_change_is_believed_at_the_first_look() {
        let dir = tempfile::tempdir().unwrap();
        let gate = gate(&dir).await;
        assert_eq!(settle(&gate, vec![create("a")]).await, (Ok("written"), 1));
        // A replica that was behind sees what is really there behind the barrier.
        assert_eq!(settle(&gate, vec![refuse("stale"), create("b")]).await, (Ok("written"), 2));
        assert_eq!(settle(&gate, vec![Decision::Keep("stale"), create("c")]).await, (Ok("written"), 2));
        let kept = settle(&gate, vec![refuse("stale"), Decision::Keep("kept")]).await;
        assert_eq!(kept, (Ok("kept"), 2));
        assert_eq!(settle(&gate, vec![refuse("stale"), refuse("true")]).await, (Err("true".into()), 2));
        gate.store().clone().shutdown().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_was_overtaken_is_decided_again_behind_a_barrier() {
        let dir = tempfile::tempdir().unwrap();
        let gate = gate(&dir).await;
        assert_eq!(settle(&gate, vec![create("a")]).await, (Ok("written"), 1));
        // The conflict renews the reads, so that the second refusal counts at once.
        assert_eq!(settle(&gate, vec![create("a"), refuse("exists")]).await, (Err("exists".into()), 2));
        assert_eq!(settle(&gate, vec![create("a"), create("b")]).await, (Ok("written"), 2));
        let always = (0..MAX_ATTEMPTS).map(|_| create("a")).collect();
        let (ended, looks) = settle(&gate, always).await;
        assert!(ended.unwrap_err().contains("change too fast") && looks == MAX_ATTEMPTS);
        gate.store().clone().shutdown().await;
    }
}
