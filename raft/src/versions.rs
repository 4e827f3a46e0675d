//! Which commands may be proposed: those that every member understands.
//!
//! Each member says with its answers to the leader which commands it understands. When all of them understand newer ones,
//! the leader commits that, and only then may such commands be proposed.
//!
//! Invariant: a member that has not said what it understands holds the cluster's version where it is.
//! Invariant: the version never falls. A build that does not understand it stops rather than misread an entry.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use openraft::async_runtime::watch::WatchReceiver;

use crate::inner::Inner;
use crate::types::NodeId;

/// What this replica and those that it has heard of understand.
pub(crate) struct Versions {
    own: u32,
    heard: Mutex<HashMap<NodeId, u32>>,
}

impl Versions {
    pub fn new(own: u32) -> Self {
        Self { own, heard: Mutex::default() }
    }

    pub fn own(&self) -> u32 {
        self.own
    }

    /// A member has said what it understands.
    pub fn heard(&self, member: NodeId, version: u32) {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).insert(member, version);
    }

    /// What this replica and all of these members understand; `None` while one of them has not said it.
    fn common(&self, others: impl IntoIterator<Item = NodeId>) -> Option<u32> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        others.into_iter().try_fold(self.own, |least, member| Some(least.min(*heard.get(&member)?)))
    }
}

/// Has newer commands allowed if this replica leads and every member understands them.
pub(crate) async fn raise(inner: &Inner) {
    if inner.leader() != Some(inner.id()) {
        return;
    }
    let members = {
        let metrics = inner.raft.metrics().borrow_watched().clone();
        let membership = metrics.membership_config.membership();
        let others = membership.nodes().map(|(id, ())| *id).filter(|id| *id != inner.id());
        inner.versions.common(others)
    };
    let current = inner.machine.state().version();
    if let Some(version) = members.filter(|version| *version > current) {
        tracing::info!(from = current, to = version, "every member understands newer commands");
        inner.batcher.raise(version).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_of_all_members_counts_once_all_have_spoken() {
        let versions = Versions::new(3);
        assert_eq!(versions.common([]), Some(3));
        assert_eq!(versions.common([2, 3]), None);
        versions.heard(2, 4);
        assert_eq!(versions.common([2, 3]), None);
        versions.heard(3, 2);
        assert_eq!(versions.common([2, 3]), Some(2));
        versions.heard(3, 9);
        assert_eq!(versions.common([2, 3]), Some(3));
    }
}
