//! Who may speak. The store decides who is a member and says so here; a connection is judged by this list alone.
//!
//! Invariant: what is not listed is refused; what is revoked stays refused, also when a stale list names it and after a
//! restart.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::watch;

use crate::codec;
use crate::files;
use crate::names::NodeId;

/// The most members, and the most removed nodes that are remembered.
pub const MAX_MEMBERS: usize = 65_536;

const FILE: &str = "revoked";
const MAX_FILE_BYTES: u64 = 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum MembersError {
    #[error("the list of revoked nodes cannot be used")]
    Io(#[from] io::Error),
    #[error("the list of revoked nodes is damaged")]
    Codec(#[from] codec::CodecError),
    #[error("more than {MAX_MEMBERS} nodes are revoked")]
    Full,
}

/// Why a peer is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    Member,
    Unlisted,
    Revoked,
}

type Names = BTreeMap<NodeId, Arc<str>>;

pub(crate) struct Members {
    dir: PathBuf,
    listed: watch::Sender<Arc<Names>>,
    revoked: RwLock<BTreeSet<NodeId>>,
}

impl Members {
    pub(crate) fn load(dir: &Path) -> Result<Self, MembersError> {
        let revoked = match files::read_bounded(&dir.join(FILE), MAX_FILE_BYTES)? {
            Some(bytes) => codec::decode(&bytes)?,
            None => BTreeSet::new(),
        };
        let listed = watch::Sender::new(Arc::new(Names::new()));
        Ok(Members { dir: dir.to_path_buf(), listed, revoked: RwLock::new(revoked) })
    }

    /// Lists exactly `members` and returns those that were listed before and are not now.
    pub(crate) fn set(&self, members: Vec<(NodeId, String)>) -> Vec<NodeId> {
        let next: Names = members
            .into_iter()
            .filter(|(id, _)| !self.is_revoked(*id))
            .take(MAX_MEMBERS)
            .map(|(id, name)| (id, Arc::from(name)))
            .collect();
        self.replace(next)
    }

    /// Takes `id` off the list.
    pub(crate) fn remove(&self, id: NodeId) {
        let mut next = Names::clone(&self.listed.borrow());
        next.remove(&id);
        self.replace(next);
    }

    /// Takes `id` off the list for ever. Blocks on the disk; the refusal stands even if that fails.
    pub(crate) fn revoke(&self, id: NodeId) -> Result<(), MembersError> {
        let revoked = {
            let mut revoked = self.revoked.write().unwrap_or_else(PoisonError::into_inner);
            if revoked.len() >= MAX_MEMBERS && !revoked.contains(&id) {
                return Err(MembersError::Full);
            }
            revoked.insert(id);
            revoked.clone()
        };
        self.remove(id);
        Ok(files::write_private(&self.dir, FILE, &codec::encode(&revoked)?)?)
    }

    pub(crate) fn standing(&self, id: NodeId, name: &str) -> Standing {
        if self.is_revoked(id) {
            return Standing::Revoked;
        }
        match self.listed.borrow().get(&id) {
            Some(listed) if **listed == *name => Standing::Member,
            _ => Standing::Unlisted,
        }
    }

    pub(crate) fn name(&self, id: NodeId) -> Option<Arc<str>> {
        self.listed.borrow().get(&id).cloned()
    }

    pub(crate) fn is_revoked(&self, id: NodeId) -> bool {
        self.revoked.read().unwrap_or_else(PoisonError::into_inner).contains(&id)
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Names>> {
        self.listed.subscribe()
    }

    fn replace(&self, next: Names) -> Vec<NodeId> {
        let mut removed = Vec::new();
        self.listed.send_if_modified(|listed| {
            removed = listed.iter().filter(|(id, name)| next.get(id) != Some(name)).map(|(id, _)| *id).collect();
            let changed = **listed != next;
            *listed = Arc::new(next);
            changed
        });
        removed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(ids: &[NodeId]) -> Vec<(NodeId, String)> {
        ids.iter().map(|id| (*id, format!("n{id}"))).collect()
    }

    #[test]
    fn only_the_listed_speak_and_only_under_their_name() {
        let dir = tempfile::tempdir().expect("a directory");
        let members = Members::load(dir.path()).expect("loads");
        assert_eq!(members.standing(1, "n1"), Standing::Unlisted);
        assert!(members.set(names(&[1, 2])).is_empty());
        assert_eq!(members.standing(1, "n1"), Standing::Member);
        assert_eq!(members.standing(1, "other"), Standing::Unlisted);
        assert_eq!(members.set(names(&[2, 3])), [1]);
        assert_eq!(members.standing(1, "n1"), Standing::Unlisted);
    }

    #[test]
    fn a_revoked_node_stays_out_whatever_a_list_or_a_restart_says() {
        let dir = tempfile::tempdir().expect("a directory");
        let members = Members::load(dir.path()).expect("loads");
        members.set(names(&[1, 2]));
        members.revoke(1).expect("is kept");
        members.set(names(&[1, 2]));
        assert_eq!(members.standing(1, "n1"), Standing::Revoked);
        let restarted = Members::load(dir.path()).expect("loads");
        restarted.set(names(&[1, 2]));
        assert_eq!(restarted.standing(1, "n1"), Standing::Revoked);
        assert_eq!(restarted.standing(2, "n2"), Standing::Member);
    }
}
