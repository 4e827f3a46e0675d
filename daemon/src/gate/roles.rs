//! The roles and bindings as this node has seen them, kept from a watch.
//!
//! Invariant: the index holds what the store held at the revision that it says it has seen, or later.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use flotilla_api::{Reason, Status};
use flotilla_control::rbac::{GROUP, Policy};
use flotilla_raft::{Event, Range, ReadError, Store, Watch, WatchItem};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

/// How long a refused request waits until the index has seen what was written before it.
const MAX_LAG: Duration = Duration::from_secs(3);
/// The pause before the index is built anew after its watch broke.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Cheap to clone.
#[derive(Clone)]
pub(super) struct Roles {
    policy: Arc<RwLock<Policy>>,
    seen: watch::Sender<u64>,
}

impl Default for Roles {
    fn default() -> Self {
        Self { policy: Arc::default(), seen: watch::Sender::new(0) }
    }
}

impl Roles {
    pub fn policy(&self) -> RwLockReadGuard<'_, Policy> {
        self.policy.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the index has seen every change of roles and bindings up to `revision`, which this replica has applied.
    ///
    /// # Errors
    /// `ServiceUnavailable` if it does not come to it in time.
    pub async fn reach(&self, store: &Store, revision: u64) -> Result<(), Status> {
        let mut seen = self.seen.subscribe();
        let wanted = store.changed_under(&prefix()).min(revision);
        let reached = tokio::time::timeout(MAX_LAG, seen.wait_for(|seen| *seen >= wanted)).await;
        match reached {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Status {
                retry_after_seconds: Some(1),
                ..Status::new(Reason::ServiceUnavailable, "the roles of this cluster are not read yet; try again")
            }),
        }
    }

    /// Follows the store until `stop`.
    pub async fn follow(self, store: Store, stop: CancellationToken) {
        let keep = async {
            loop {
                match self.fill(&store).await {
                    Ok(watch) => self.take(watch).await,
                    Err(error) => debug!(error = &error as &dyn std::error::Error, "the roles cannot be read yet"),
                }
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        };
        stop.run_until_cancelled(keep).await;
    }

    /// Builds the index from the store as it is here; the watch goes on from there.
    async fn fill(&self, store: &Store) -> Result<Watch, ReadError> {
        // A slice has no roles. Until there is a replica again, the index holds what it held, and clients are answered
        // elsewhere.
        store.until_fed(false).await;
        let turns = store.turns();
        let mut policy = Policy::default();
        let mut pages = store.pages(Range::prefix(prefix()));
        for page in pages.by_ref() {
            for kv in page? {
                policy.observe(&kv.key, Some(&kv.value));
            }
        }
        let revision = pages.revision();
        let watch = store.watch(&prefix(), revision + 1).await?;
        if store.turns() != turns || store.fed_by().is_some() {
            return Err(ReadError::Compacted { wanted: revision + 1, oldest: revision + 1 });
        }
        *self.policy.write().unwrap_or_else(PoisonError::into_inner) = policy;
        self.seen.send_replace(revision);
        Ok(watch)
    }

    /// Takes over what happens until the watch ends.
    async fn take(&self, mut watch: Watch) {
        loop {
            match watch.next().await {
                None => return,
                Some(WatchItem::Compacted(revision)) => {
                    info!(
                        revision,
                        "the roles are read anew: too much has changed, or this node reads from elsewhere now"
                    );
                    return;
                }
                Some(WatchItem::Progress(revision)) => _ = self.seen.send_replace(revision),
                Some(WatchItem::Events(events, revision)) => {
                    {
                        let mut policy = self.policy.write().unwrap_or_else(PoisonError::into_inner);
                        for event in &events {
                            match event {
                                Event::Put { kv, .. } => policy.observe(&kv.key, Some(&kv.value)),
                                Event::Delete { key, .. } => policy.observe(key, None),
                            }
                        }
                    }
                    self.seen.send_replace(revision);
                }
            }
        }
    }
}

/// Every key of the group begins with this.
fn prefix() -> String {
    format!("{GROUP}/")
}
