//! What decisions are made from again and again, read and decoded once for as long as it holds.
//!
//! Invariant: what is kept is what reading it now would give: nothing of its collection has changed since it was read, and
//! it was read from where it would be read now.
//! Invariant: at most `MAX_KNOWN` entries are kept.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use flotilla_api::{GroupResource, Status};
use flotilla_raft::Store;

const MAX_KNOWN: usize = 1024;

/// Something of a collection under each of many names.
pub(super) struct Known<T>(Mutex<HashMap<String, Entry<T>>>);

struct Entry<T> {
    /// See [`Store::turns`]: what a slice lacks may be in the store.
    turns: u64,
    /// It was read at this revision or later.
    revision: u64,
    value: Arc<T>,
}

impl<T> Default for Known<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Known<T> {
    /// What is known under the name; read with `read` if something of the collection has changed since it was.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn get(
        &self,
        store: &Store,
        collection: &GroupResource,
        name: &str,
        read: impl FnOnce() -> Result<T, Status>,
    ) -> Result<Arc<T>, Status> {
        let turns = store.turns();
        let changed_at = store.changed_at(collection);
        let holds = |entry: &&Entry<T>| entry.turns == turns && entry.revision >= changed_at;
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = known.get(name).filter(holds).filter(|_| store.turns() == turns) {
            return Ok(entry.value.clone());
        }
        drop(known);
        // It may be newer than this already, never older.
        let revision = store.revision();
        let value = Arc::new(read()?);
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_KNOWN && !known.contains_key(name) {
            known.clear();
        }
        // If it was read from the next source, nobody takes it for this one's or the next one's.
        known.insert(name.to_owned(), Entry { turns, revision, value: value.clone() });
        Ok(value)
    }
}
