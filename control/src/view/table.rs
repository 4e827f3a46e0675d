//! Objects of one kind, ordered by key.

use std::collections::BTreeMap;

use flotilla_api::Key;

pub(crate) struct Table<T> {
    /// Rows are large, and a tree keeps room for many that it does not have.
    rows: BTreeMap<Key, Box<T>>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { rows: BTreeMap::new() }
    }
}

impl<T> Table<T> {
    pub fn get(&self, key: &Key) -> Option<&T> {
        self.rows.get(key).map(Box::as_ref)
    }

    pub fn insert(&mut self, key: Key, row: T) {
        self.rows.insert(key, Box::new(row));
    }

    pub fn remove(&mut self, key: &Key) -> Option<T> {
        self.rows.remove(key).map(|row| *row)
    }

    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.rows.keys()
    }

    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.rows.values().map(Box::as_ref)
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Keys from `first` on.
    pub fn keys_from(&self, first: Key) -> impl Iterator<Item = &Key> {
        self.rows.range(first..).map(|(key, _)| key)
    }

    /// Rows from `first` on that are in `namespace`.
    pub fn range(&self, first: Key, namespace: &str) -> impl Iterator<Item = &T> {
        self.rows.range(first..).take_while(move |(key, _)| key.namespace() == namespace).map(|(_, row)| row.as_ref())
    }
}
