//! The reconcile shell: what the leader does with the planners' decisions.
//!
//! It feeds the View from a watch, plans what became dirty or due, proposes what the plans say, and waits until the
//! View has seen it before it plans again, so that a planner never misses its own writes.
//!
//! Invariant: every Change carries the term in which it was decided; a deposed leader's are refused at apply.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use flotilla_api::kinds::jointoken::JoinTokenObject;
use flotilla_api::{Builtin, Change, object};
use flotilla_control::{Context, Settings, View, Work, plan};
use flotilla_raft::{Event, KeyValue, ProposeError, Range, ReadError, Store, Watch, WatchItem};
use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::gate::Gate;
use crate::members::Members;
use crate::trust::{Trust, lead_rotation};
use crate::{accounts, requests, roles, secrets};

/// Changes proposed at once; the store batches them into few log entries.
const MAX_PROPOSALS: usize = 1_024;
/// The longest wait for the View to see what was just written.
const CATCH_UP: Duration = Duration::from_secs(5);
/// Between two looks at what was written, while nothing has to be planned.
const PAUSE: Duration = Duration::from_millis(5);
/// Work whose Change was overtaken is planned again after this, besides when the View changes.
const RETRY: SignedDuration = SignedDuration::from_millis(20);
/// The same after it was refused because a voter's disk is nearly full.
const NO_SPACE_RETRY: SignedDuration = SignedDuration::from_secs(5);
/// How often a quorum is asked whether this node leads, after it did not say so.
const CONFIRM_INTERVAL: Duration = Duration::from_secs(1);
/// How often membership is looked at, besides when nodes come and go.
const MEMBERSHIP_INTERVAL: Duration = Duration::from_secs(1);
/// How often history is compacted, as a part of how long it is kept.
const COMPACTIONS: u32 = 10;
/// How long an expired token stays, so that whoever comes with it hears that it has expired.
const TOKEN_MEMORY: SignedDuration = SignedDuration::from_secs(60 * 60);
/// How often expired tokens are looked for.
const TOKEN_INTERVAL: Duration = Duration::from_secs(60);

const MANAGER: &str = "flotilla-lead";

#[derive(Debug, thiserror::Error)]
enum LeadError {
    #[error("the store cannot be read")]
    Read(#[from] ReadError),
    #[error("the store cannot be written")]
    Write(#[from] ProposeError),
    #[error("the watch that feeds the planners fell behind compaction")]
    Compacted,
    #[error("the store is shutting down")]
    Ended,
}

/// Leads whenever this replica is elected, until `stop`. Keeps this much of the past.
pub async fn run(
    gate: Gate,
    members: Members,
    trust: Arc<Trust>,
    settings: Settings,
    history: Duration,
    stop: CancellationToken,
) {
    let mut status = gate.store().status();
    loop {
        let term = tokio::select! {
            () = stop.cancelled() => return,
            elected = status.wait_for(|status| status.is_leader) => match elected {
                Ok(status) => status.term,
                Err(_) => return,
            },
        };
        info!(term, "this node leads");
        let deposed = async { _ = status.wait_for(|status| !status.is_leader || status.term != term).await };
        tokio::select! {
            () = stop.cancelled() => return,
            () = deposed => info!(term, "this node no longer leads"),
            () = lead_on(&gate, &members, &trust, &settings, history, term) => {}
        }
    }
}

/// Leads, and begins anew after whatever went wrong; never ends by itself.
async fn lead_on(
    gate: &Gate,
    members: &Members,
    trust: &Arc<Trust>,
    settings: &Settings,
    history: Duration,
    term: u64,
) {
    loop {
        confirmed(gate.store(), term).await;
        if let Err(error) = lead(gate, members, trust, settings, history, term).await {
            warn!(error = &error as &dyn std::error::Error, "planning starts over");
        }
        // What went wrong must not make this loop spin.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Waits until a quorum says that this node leads. One that was cut off goes on believing it, and can do nothing.
async fn confirmed(store: &Store, term: u64) {
    // Who was elected while it read from a slice does not know enough to decide.
    store.until_fed(false).await;
    let mut told = false;
    while let Err(error) = store.barrier().await {
        if !std::mem::replace(&mut told, true) {
            warn!(
                term,
                error = &error as &dyn std::error::Error,
                "no quorum confirms that this node leads: planning waits"
            );
        }
        tokio::time::sleep(CONFIRM_INTERVAL).await;
    }
}

async fn lead(
    gate: &Gate,
    members: &Members,
    trust: &Arc<Trust>,
    settings: &Settings,
    history: Duration,
    term: u64,
) -> Result<(), LeadError> {
    let store = gate.store();
    tokio::select! {
        ended = reconcile(store, members, settings, term) => ended,
        () = keep_membership(store, members) => Ok(()),
        () = compact(store, history) => Ok(()),
        () = forget_tokens(store) => Ok(()),
        () = secrets::keep(gate, term) => Ok(()),
        () = accounts::keep(gate) => Ok(()),
        () = requests::keep(store, trust, term) => Ok(()),
        () = roles::keep(store, term) => Ok(()),
        () = lead_rotation(store, members, term) => Ok(()),
    }
}

async fn reconcile(store: &Store, members: &Members, settings: &Settings, term: u64) -> Result<(), LeadError> {
    let mut shell = Shell::fill(store, term).await?;
    let mut liveness = members.liveness();
    loop {
        shell.take_ready().await?;
        let now = Timestamp::now();
        // Also if it came while there was other work.
        if liveness.has_changed().map_err(|_| LeadError::Ended)? {
            shell.due.insert(Work::Nodes, now);
        }
        let alive = liveness.borrow_and_update().clone();
        let work = shell.take_work(now);
        if work.is_empty() {
            let due = shell.next_due(now);
            tokio::select! {
                item = shell.next() => shell.observe(item)?,
                changed = liveness.changed() => {
                    if changed.is_err() { return Err(LeadError::Ended) }
                    liveness.mark_changed();
                }
                () = sleep_until(due) => {}
            }
            continue;
        }
        let target = shell.carry_out(work, &alive, settings, now).await?;
        shell.catch_up(target).await?;
    }
}

struct Shell<'a> {
    store: &'a Store,
    term: u64,
    view: View,
    watch: Watch,
    /// The View holds everything up to this revision.
    seen: u64,
    due: BTreeMap<Work, Timestamp>,
}

impl<'a> Shell<'a> {
    async fn fill(store: &'a Store, term: u64) -> Result<Self, LeadError> {
        store.barrier().await?;
        let mut view = View::default();
        let mut pages = store.pages(Range::default());
        for page in pages.by_ref() {
            for kv in page? {
                view.observe(&kv.key, Some((&kv.value, kv.mod_revision)));
            }
        }
        view.mark_all();
        let seen = pages.revision();
        let watch = store.watch("", seen + 1).await?;
        Ok(Self { store, term, view, watch, seen, due: BTreeMap::new() })
    }

    fn observe(&mut self, item: Option<WatchItem>) -> Result<(), LeadError> {
        match item {
            None => Err(LeadError::Ended),
            Some(WatchItem::Compacted(_)) => Err(LeadError::Compacted),
            Some(WatchItem::Progress(revision)) => {
                self.seen = self.seen.max(revision);
                Ok(())
            }
            Some(WatchItem::Events(events, revision)) => {
                for event in &events {
                    match event {
                        Event::Put { kv, .. } => self.view.observe(&kv.key, Some((&kv.value, kv.mod_revision))),
                        Event::Delete { key, .. } => self.view.observe(key, None),
                    }
                }
                self.seen = self.seen.max(revision);
                Ok(())
            }
        }
    }

    /// The watch's next item, but no sooner than after a pause: most of what is written is none of the planners' business,
    /// and to wake for each of it would take the processors from those who write.
    async fn next(&mut self) -> Option<WatchItem> {
        sleep_until(Instant::now() + PAUSE).await;
        self.watch.next().await
    }

    /// Takes what the watch has ready, without waiting for more.
    async fn take_ready(&mut self) -> Result<(), LeadError> {
        while let Ok(item) = timeout(Duration::ZERO, self.watch.next()).await {
            self.observe(item)?;
        }
        Ok(())
    }

    async fn catch_up(&mut self, target: u64) -> Result<(), LeadError> {
        let until = Instant::now() + CATCH_UP;
        while self.seen < target {
            match tokio::time::timeout_at(until, self.watch.next()).await {
                Ok(item) => self.observe(item)?,
                Err(_) => {
                    warn!(seen = self.seen, target, "the view is behind its own writes");
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn take_work(&mut self, now: Timestamp) -> BTreeSet<Work> {
        let mut work = self.view.take_dirty();
        let due: Vec<Work> = self.due.iter().filter(|(_, at)| **at <= now).map(|(work, _)| work.clone()).collect();
        for one in due {
            self.due.remove(&one);
            work.insert(one);
        }
        work
    }

    fn next_due(&self, now: Timestamp) -> Instant {
        let wait = self
            .due
            .values()
            .min()
            .map_or(Duration::from_secs(60), |at| at.duration_since(now).try_into().unwrap_or(Duration::ZERO));
        Instant::now() + wait.min(Duration::from_secs(60))
    }

    /// Plans, proposes, and returns the last revision written.
    async fn carry_out(
        &mut self,
        work: BTreeSet<Work>,
        liveness: &BTreeMap<String, flotilla_control::NodeLiveness>,
        settings: &Settings,
        now: Timestamp,
    ) -> Result<u64, LeadError> {
        let mut proposals: Vec<(Work, Change)> = Vec::new();
        for one in work {
            let mut rng = rand::rng();
            let mut context = Context { view: &self.view, now, liveness, rng: &mut rng, settings };
            let plan = plan(&one, &mut context);
            if let Some(at) = plan.wake_at {
                self.due.entry(one.clone()).and_modify(|due| *due = (*due).min(at)).or_insert(at);
            }
            proposals.extend(plan.changes.into_iter().map(|change| (one.clone(), change)));
        }
        let (store, term) = (self.store, self.term);
        let mut outcomes = futures::stream::iter(proposals)
            .map(|(work, change)| async move { (work, store.propose(Change { term: Some(term), ..change }).await) })
            .buffer_unordered(MAX_PROPOSALS);
        let mut target = 0;
        while let Some((work, outcome)) = outcomes.next().await {
            match outcome {
                Ok(applied) => target = target.max(applied.revision),
                Err(ProposeError::Conflict(conflict)) => {
                    debug!(?work, %conflict, "a decision was overtaken");
                    self.due.insert(work, now.saturating_add(RETRY).unwrap_or(now));
                }
                // Everybody who looks is told of it; it is tried again, for some of it may be let through.
                Err(ProposeError::NoSpace) => {
                    debug!(?work, "a decision waits for room on a voter's disk");
                    self.due.insert(work, now.saturating_add(NO_SPACE_RETRY).unwrap_or(now));
                }
                Err(ProposeError::Invalid(message)) => warn!(?work, message, "a decision cannot be stored"),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(target)
    }
}

/// Makes the Raft group follow the Nodes: replicas for those that are there, voters as the store sees fit.
async fn keep_membership(store: &Store, members: &Members) {
    let mut changes = members.changes();
    loop {
        if let Err(error) = members.reconcile_replicas(store).await {
            debug!(error = &error as &dyn std::error::Error, "membership stays as it is");
        }
        members.greet_other_epochs(store).await;
        _ = timeout(MEMBERSHIP_INTERVAL, changes.changed()).await;
    }
}

/// Forgets what is older than `history`.
async fn compact(store: &Store, history: Duration) {
    let mut past: std::collections::VecDeque<(Instant, u64)> = Default::default();
    loop {
        past.push_back((Instant::now(), store.revision()));
        let mut compactable = None;
        while past.front().is_some_and(|(at, _)| at.elapsed() >= history) {
            compactable = past.pop_front();
        }
        if let Some((_, revision)) = compactable
            && let Err(error) = store.compact(revision).await
        {
            debug!(error = &error as &dyn std::error::Error, revision, "history stays as it is");
        }
        tokio::time::sleep(history / COMPACTIONS).await;
    }
}

/// Removes join tokens that have long expired.
async fn forget_tokens(store: &Store) {
    loop {
        let tokens = store.pages(Range::prefix(Builtin::JoinToken.collection().prefix()));
        // What cannot be read is looked at the next time.
        for change in tokens.map_while(Result::ok).flat_map(|page| removal(&page, Timestamp::now())) {
            // One that was used or revoked meanwhile is looked at again.
            if let Err(error) = store.propose(change).await {
                debug!(error = &error as &dyn std::error::Error, "an expired token stays for now");
            }
        }
        tokio::time::sleep(TOKEN_INTERVAL).await;
    }
}

/// What removes the tokens among these that are expired.
fn removal(tokens: &[KeyValue], now: Timestamp) -> Vec<Change> {
    let expired = tokens.iter().filter(|kv| {
        object::decode::<JoinTokenObject>(&kv.value, kv.mod_revision).is_ok_and(|token| is_forgettable(&token, now))
    });
    expired.map(|kv| Change::new(MANAGER, MANAGER).remove(kv.key.clone(), kv.mod_revision)).collect()
}

/// Whether nobody needs to be told any more why the token admits nobody.
fn is_forgettable(token: &JoinTokenObject, now: Timestamp) -> bool {
    token.spec.expires_at.as_ref().is_some_and(|expires| now.duration_since(expires.0) >= TOKEN_MEMORY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_api::k8s_openapi::ByteString;
    use flotilla_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use flotilla_api::kinds::jointoken::JoinTokenSpec;

    #[test]
    fn a_token_is_forgotten_an_hour_after_it_expired() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let token = |expires_at: Option<i64>| {
            let expires_at = expires_at.map(|second| Time(Timestamp::from_second(second).unwrap()));
            JoinTokenObject::new(
                "a",
                JoinTokenSpec { secret_hash: ByteString(vec![0; 32]), expires_at, ..JoinTokenSpec::default() },
            )
        };
        assert!(is_forgettable(&token(Some(1_000_000 - 3_600)), now));
        assert!(!is_forgettable(&token(Some(1_000_000 - 3_599)), now));
        assert!(!is_forgettable(&token(None), now));
    }
}
