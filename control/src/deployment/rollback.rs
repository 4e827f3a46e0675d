//! Going back by itself: a Deployment that asks for it returns to its last good version when a rollout
//! does not come up in time.
//!
//! Invariant: no version that was gone back from is gone back to, so that two bad ones do not alternate.

use jiff::Timestamp;

use super::sets::{self, HASH};
use super::{Pass, status};
use crate::event::Severity;
use crate::meta;

/// Asks for it, with the value `true`.
const AUTO_ROLLBACK: &str = "flotilla.dev/auto-rollback";
/// Marks a set that did not come up in time.
pub(super) const FAILED: &str = "flotilla.dev/rollout-failed";

impl Pass<'_> {
    /// Returns whether the template was put back.
    pub(super) fn roll_back(&mut self, now: Timestamp) -> bool {
        let asked = meta::annotation(&self.deployment.metadata, AUTO_ROLLBACK) == Some("true");
        let Some(new) = self.sets.new.filter(|_| asked && self.has_timed_out()) else { return false };
        let good = self
            .sets
            .old
            .iter()
            .copied()
            .filter(|set| sets::revision(&set.metadata) > 0 && meta::annotation(&set.metadata, FAILED).is_none());
        let Some(good) = good.max_by_key(|set| sets::revision(&set.metadata)) else { return false };
        let Some(mut template) = good.spec.template.clone() else { return false };
        if let Some(labels) = template.metadata.as_mut().and_then(|metadata| metadata.labels.as_mut()) {
            labels.remove(HASH);
        }
        self.next.spec.template = template;
        meta::bump_generation(&mut self.next.metadata);
        self.failed = Some(new.key.clone());
        let revision = sets::revision(&good.metadata);
        let message = format!("Rolled back to revision {revision}: {} did not come up in time", new.key.name());
        self.note_progress("True", status::FOUND, &message, now);
        self.told.push((Severity::Normal, "DeploymentRollback", message));
        true
    }
}
