//! The store's housekeeping: what has to be looked at again and again.

use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::disk::DiskError;
use crate::epoch::{Epoch, EpochId};
use crate::inner::Inner;
use crate::log::Log;
use crate::machine::Machine;
use crate::reads::Asker;
use crate::refill::{self, Mark};
use crate::runtime::{self, watch};
use crate::space::Space;
use crate::status::Status;
use crate::types::Raft;
use crate::versions;

const STALL_CHECK_MS: u64 = 250;
const CHORE_MS: u64 = 1000;
/// What moves with each entry is published no more often than this: whoever writes would wake for it.
const PROGRESS: Duration = Duration::from_millis(100);

/// Where a status is read from.
pub(crate) struct Sources {
    pub raft: Raft,
    pub log: Log,
    pub machine: Arc<Machine>,
    pub space: Arc<Space>,
    pub epoch: Arc<Epoch>,
}

/// Keeps the published status current until the store closes.
pub(crate) async fn publish_status(from: Sources, status: watch::Sender<Status>) {
    let Sources { raft, log, machine, space, epoch } = from;
    let (mut metrics, mut server, mut standing) = (raft.metrics(), raft.server_metrics(), epoch.standing());
    let mut trouble = machine.disk().trouble().watch();
    let mut pause = PROGRESS;
    loop {
        let found = trouble.borrow_and_update().clone();
        if let Some(detail) = &found.damaged {
            mark(&machine, detail, epoch.own()).await;
        }
        let (revision, log_bytes) = (machine.hub().revision(), log.retained_bytes());
        let standing_now = *standing.borrow_and_update();
        drop(server.borrow_and_update());
        let next =
            Status::from_metrics(&metrics.borrow_and_update(), standing_now, revision, log_bytes, space.is_low());
        let fatal = found.damaged.or(next.fatal).or(found.failed);
        let next = Status { version: machine.state().version(), fatal, ..next };
        status.send_if_modified(|current| {
            let changed = current.differs(&next);
            *current = next;
            changed
        });
        let pausing = sleep(std::mem::replace(&mut pause, PROGRESS));
        let progress = async {
            pausing.await;
            metrics.changed().await
        };
        tokio::select! {
            biased;
            () = machine.closing().cancelled() => return,
            changed = trouble.changed() => if changed.is_err() { return },
            changed = standing.changed() => if changed.is_err() { return },
            // openraft tells this a moment before the metrics, which are what is published: they are not waited for.
            changed = server.changed() => if changed.is_err() { return } else { pause = Duration::ZERO },
            changed = progress => if changed.is_err() { return },
        }
    }
}

/// Sees to it that a damaged replica does not open again.
async fn mark(machine: &Arc<Machine>, detail: &str, epoch: EpochId) {
    let (marked, mark) = (machine.clone(), Mark { detail: detail.into(), epoch });
    let marked = runtime::blocking(move || refill::mark(marked.root(), &mark, marked.disk())).await;
    if let Err(error) = marked.map_err(DiskError::io(machine.root())).flatten() {
        tracing::error!(error = &error as &dyn std::error::Error, "the damage cannot be noted");
    }
}

/// Asks for the reads, hands over when the disk stalls, and does the chores.
pub(crate) async fn keep(inner: Arc<Inner>, asker: Asker) {
    let closing = inner.machine.closing().clone();
    let work = async {
        tokio::join!(asker.run(&inner), watch_disk(&inner), chores(&inner), proposals(&inner));
    };
    tokio::select! {
        biased;
        () = closing.cancelled() => {}
        () = work => {}
    }
}

fn ticks(every_ms: u64) -> tokio::time::Interval {
    let mut ticks = interval(Duration::from_millis(every_ms));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

async fn watch_disk(inner: &Inner) {
    let mut ticks = ticks(STALL_CHECK_MS);
    loop {
        ticks.tick().await;
        let stalled = inner.log.stalled_for();
        if stalled < inner.options.disk_stall || inner.leader() != Some(inner.id()) {
            continue;
        }
        let Some(heir) = inner.best_heir() else { continue };
        tracing::warn!(?stalled, heir = format!("{heir:016x}"), "the disk stalls: handing the leadership over");
        if let Err(refusal) = inner.transfer_leader_here(Some(heir)).await {
            tracing::warn!(?refusal, "the leadership could not be handed over");
        }
    }
}

async fn chores(inner: &Inner) {
    let mut ticks = ticks(CHORE_MS);
    loop {
        ticks.tick().await;
        tend_space(inner).await;
        inner.log.save_rest().await;
        bound_log(inner).await;
    }
}

/// What the others have to agree to: apart from the chores, for that may take as long as they are away.
async fn proposals(inner: &Inner) {
    let mut ticks = ticks(CHORE_MS);
    loop {
        ticks.tick().await;
        bound_history(inner).await;
        versions::raise(inner).await;
    }
}

async fn tend_space(inner: &Inner) {
    let (space, disk) = (inner.space.clone(), inner.machine.disk().clone());
    if let Err(error) = runtime::blocking(move || space.tend(&disk)).await {
        tracing::warn!(%error, "the disk was not looked at");
    }
}

/// openraft bounds the log by entries; this bounds it by bytes.
async fn bound_log(inner: &Inner) {
    if inner.log.retained_bytes() <= inner.options.log_bytes {
        return;
    }
    let snapshot = inner.raft.metrics().borrow_watched().snapshot.as_ref().map_or(0, |id| id.index());
    let applied = inner.raft.metrics().borrow_watched().last_applied.as_ref().map_or(0, |id| id.index());
    let Some(upto) = inner.log.purge_point(inner.options.log_bytes / 2) else { return };
    let done = match upto {
        upto if upto <= snapshot => inner.raft.trigger().purge_log(upto).await,
        _ if applied > snapshot => inner.raft.trigger().snapshot().await,
        _ => Ok(()),
    };
    if let Err(error) = done {
        tracing::warn!(%error, "the log could not be bounded");
    }
}

async fn bound_history(inner: &Inner) {
    if inner.leader() != Some(inner.id()) {
        return;
    }
    let (state, bounds) = (inner.machine.state(), inner.options.history);
    let looked = runtime::blocking(move || state.excess_history(bounds, runtime::now_ms())).await;
    match looked {
        Ok(Ok(Some(revision))) => {
            if let Err(refusal) = inner.batcher.compact(revision).await {
                tracing::debug!(?refusal, revision, "history was not compacted");
            }
        }
        Ok(Ok(None)) | Err(_) => {}
        Ok(Err(error)) => tracing::error!(%error, "history cannot be read"),
    }
}
