//! Old versions that are kept to go back to, and those that are not.

use super::{Pass, sets};
use crate::meta;

/// Sets removed by one plan.
const MAX_REMOVED: usize = 50;
/// Upstream's default of `spec.revisionHistoryLimit`.
const DEFAULT_LIMIT: i32 = 10;

impl Pass<'_> {
    /// Removes the oldest empty sets beyond the limit, once the rollout is complete.
    pub(super) fn trim_history(&mut self) {
        let limit = self.spec.revision_history_limit.unwrap_or(DEFAULT_LIMIT);
        let Ok(limit) = usize::try_from(limit) else { return };
        if !self.is_complete() {
            return;
        }
        let mut old: Vec<_> = self.sets.old.iter().copied().filter(|set| !meta::is_deleting(&set.metadata)).collect();
        let excess = old.len().saturating_sub(limit);
        old.sort_by_key(|set| sets::revision(&set.metadata));
        let idle = old.into_iter().take(excess).filter(|set| {
            let status = set.status.as_ref();
            let seen = status.and_then(|status| status.observed_generation) >= set.metadata.generation;
            let held = set.metadata.finalizers.as_ref().is_some_and(|finalizers| !finalizers.is_empty());
            sets::size(set) == 0 && status.is_none_or(|status| status.replicas == 0) && seen && !held
        });
        self.removed = idle.take(MAX_REMOVED).collect();
    }
}
