//! Who may speak. The store decides who is a member and says so here; a connection is judged by this list alone.
//!
//! A member is listed with its key, so that a certificate alone makes nobody a member, whoever got hold of the authority.
//!
//! Invariant: what is not listed is refused; what is revoked stays refused, also when a stale list names it and after a
//! restart.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use tokio::sync::watch;

use crate::certificate::Fingerprint;
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

/// A member as the store lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub id: NodeId,
    pub name: String,
    /// SHA-256 of its public key. Without one, any key that the authority certified for the node will do.
    pub key: Option<Fingerprint>,
}

impl From<(NodeId, String)> for Listed {
    fn from((id, name): (NodeId, String)) -> Self {
        Listed { id, name, key: None }
    }
}

/// What is known of a member beside its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: Arc<str>,
    pub(crate) key: Option<Fingerprint>,
}

/// Users by name, and when their certificates were revoked.
pub(crate) type RevokedUsers = BTreeMap<String, SystemTime>;

pub(crate) type Entries = BTreeMap<NodeId, Entry>;

pub(crate) struct Members {
    dir: PathBuf,
    listed: watch::Sender<Arc<Entries>>,
    revoked: RwLock<BTreeSet<NodeId>>,
    users: watch::Sender<Arc<RevokedUsers>>,
}

impl Members {
    pub(crate) fn load(dir: &Path) -> Result<Self, MembersError> {
        let revoked = match files::read_bounded(&dir.join(FILE), MAX_FILE_BYTES)? {
            Some(bytes) => codec::decode(&bytes)?,
            None => BTreeSet::new(),
        };
        let listed = watch::Sender::new(Arc::new(Entries::new()));
        let users = watch::Sender::new(Arc::default());
        Ok(Members { dir: dir.to_path_buf(), listed, revoked: RwLock::new(revoked), users })
    }

    /// Lists exactly `members` and returns those that were listed before and are not now, or with another name or key.
    pub(crate) fn set(&self, members: impl IntoIterator<Item = impl Into<Listed>>) -> Vec<NodeId> {
        let next: Entries = members
            .into_iter()
            .map(Into::into)
            .filter(|member: &Listed| !self.is_revoked(member.id))
            .take(MAX_MEMBERS)
            .map(|member| (member.id, Entry { name: Arc::from(member.name), key: member.key }))
            .collect();
        self.replace(next)
    }

    /// Takes `id` off the list.
    pub(crate) fn remove(&self, id: NodeId) {
        let mut next = Entries::clone(&self.listed.borrow());
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

    /// How a peer stands that proved to hold `key`, certified for `id` and `name`.
    pub(crate) fn standing(&self, id: NodeId, name: &str, key: &Fingerprint) -> Standing {
        if self.is_revoked(id) {
            return Standing::Revoked;
        }
        match self.listed.borrow().get(&id) {
            Some(listed) if *listed.name == *name && listed.key.is_none_or(|listed| listed == *key) => Standing::Member,
            _ => Standing::Unlisted,
        }
    }

    pub(crate) fn is_listed(&self, id: NodeId) -> bool {
        self.listed.borrow().contains_key(&id)
    }

    /// The key under which `id` is listed, if it is listed with one.
    pub(crate) fn key(&self, id: NodeId) -> Option<Fingerprint> {
        self.listed.borrow().get(&id)?.key
    }

    pub(crate) fn is_revoked(&self, id: NodeId) -> bool {
        self.revoked.read().unwrap_or_else(PoisonError::into_inner).contains(&id)
    }

    /// Lists exactly these users as revoked.
    pub(crate) fn set_revoked_users(&self, users: RevokedUsers) {
        self.users.send_if_modified(|held| {
            let changed = **held != users;
            *held = Arc::new(users);
            changed
        });
    }

    /// Whether a certificate of `user` that was made at `issued` was revoked since.
    pub(crate) fn is_revoked_user(&self, user: &str, issued: SystemTime) -> bool {
        self.users.borrow().get(user).is_some_and(|revoked| issued <= *revoked)
    }

    pub(crate) fn watch_users(&self) -> watch::Receiver<Arc<RevokedUsers>> {
        self.users.subscribe()
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Entries>> {
        self.listed.subscribe()
    }

    fn replace(&self, next: Entries) -> Vec<NodeId> {
        let mut removed = Vec::new();
        self.listed.send_if_modified(|listed| {
            removed = listed.iter().filter(|(id, entry)| next.get(id) != Some(entry)).map(|(id, _)| *id).collect();
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

    const KEY: Fingerprint = [1; 32];

    fn names(ids: &[NodeId]) -> Vec<(NodeId, String)> {
        ids.iter().map(|id| (*id, format!("n{id}"))).collect()
    }

    #[test]
    fn only_the_listed_speak_and_only_under_their_name() {
        let dir = tempfile::tempdir().expect("a directory");
        let members = Members::load(dir.path()).expect("loads");
        assert_eq!(members.standing(1, "n1", &KEY), Standing::Unlisted);
        assert!(members.set(names(&[1, 2])).is_empty());
        assert_eq!(members.standing(1, "n1", &KEY), Standing::Member);
        assert_eq!(members.standing(1, "other", &KEY), Standing::Unlisted);
        assert_eq!(members.set(names(&[2, 3])), [1]);
        assert_eq!(members.standing(1, "n1", &KEY), Standing::Unlisted);
    }

    #[test]
    fn one_that_is_listed_with_a_key_speaks_with_no_other() {
        let dir = tempfile::tempdir().expect("a directory");
        let members = Members::load(dir.path()).expect("loads");
        let listed = |key| [Listed { id: 1, name: "n1".into(), key: Some(key) }];
        members.set(listed(KEY));
        assert_eq!(members.standing(1, "n1", &KEY), Standing::Member);
        assert_eq!(members.standing(1, "n1", &[2; 32]), Standing::Unlisted);
        assert_eq!(members.set(listed([2; 32])), [1], "another key is another machine");
    }

    #[test]
    fn a_revoked_node_stays_out_whatever_a_list_or_a_restart_says() {
        let dir = tempfile::tempdir().expect("a directory");
        let members = Members::load(dir.path()).expect("loads");
        members.set(names(&[1, 2]));
        members.revoke(1).expect("is kept");
        members.set(names(&[1, 2]));
        assert_eq!(members.standing(1, "n1", &KEY), Standing::Revoked);
        let restarted = Members::load(dir.path()).expect("loads");
        restarted.set(names(&[1, 2]));
        assert_eq!(restarted.standing(1, "n1", &KEY), Standing::Revoked);
        assert_eq!(restarted.standing(2, "n2", &KEY), Standing::Member);
    }
}
