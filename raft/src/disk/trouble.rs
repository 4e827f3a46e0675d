//! Taking note of what databases report: damage, and writes that failed.
//!
//! Invariant: damage is noted before whoever met it hears of it.

use std::path::Path;

use bytes::Bytes;

use super::{DbError, Read, Scan};
use crate::runtime::watch;

/// The first trouble of each kind that any database of a replica has reported. Neither goes away while it is open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// What is stored is not what was written.
    pub damaged: Option<String>,
    /// A write did not succeed, and nobody knows how much of it is there.
    pub failed: Option<String>,
}

pub(crate) struct Trouble(watch::Sender<Found>);

impl Default for Trouble {
    fn default() -> Self {
        Self(watch::Sender::new(Found::default()))
    }
}

impl Trouble {
    pub fn watch(&self) -> watch::Receiver<Found> {
        self.0.subscribe()
    }

    pub fn found(&self) -> Found {
        self.0.borrow().clone()
    }

    /// Hands a result on, and notes the damage that it tells of in the database at `path`.
    pub fn noted<T>(&self, path: &Path, result: Result<T, DbError>) -> Result<T, DbError> {
        result.inspect_err(|error| {
            if error.corrupt {
                let first = self
                    .note(|found| &mut found.damaged, format!("the database {} is damaged: {error}", path.display()));
                if first {
                    tracing::error!(path = %path.display(), %error, "this replica is damaged");
                }
            }
        })
    }

    pub fn failed(&self, path: &Path, error: &DbError) {
        self.note(|found| &mut found.failed, format!("the database {} cannot be written: {error}", path.display()));
    }

    /// Whether this is the first of its kind.
    fn note(&self, kind: impl FnOnce(&mut Found) -> &mut Option<String>, detail: String) -> bool {
        self.0.send_if_modified(|found| {
            let known = kind(found);
            let first = known.is_none();
            known.get_or_insert(detail);
            first
        })
    }
}

/// A view of a database whose damage is noted.
pub(super) struct Noting<'a> {
    pub view: Box<dyn Read + 'a>,
    pub path: &'a Path,
    pub trouble: &'a Trouble,
}

impl Read for Noting<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, DbError> {
        self.trouble.noted(self.path, self.view.get(key))
    }

    fn scan(&self, from: &[u8], to: &[u8]) -> Scan<'_> {
        Box::new(self.view.scan(from, to).map(|item| self.trouble.noted(self.path, item)))
    }
}
