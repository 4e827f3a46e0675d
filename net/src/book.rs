//! The address book: the newest record of every node heard of, kept on disk so that a restarted node finds the others.
//!
//! Invariant: only verified records enter, and never one that is older than what is held.
//! Invariant: at most [`MAX_RECORDS`] are held.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use crate::codec;
use crate::credentials::Credentials;
use crate::files;
use crate::names::NodeId;
use crate::record::{AddressRecord, RecordError};

/// The most nodes whose addresses are held.
pub const MAX_RECORDS: usize = 8192;

const FILE: &str = "addresses";
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Learned {
    /// It is the newest, and the addresses differ from those held before.
    Moved,
    /// It is the newest, and the addresses are those held before.
    Renewed,
    /// One as new is held already.
    Known,
    /// The book is full.
    Full,
}

type Records = BTreeMap<NodeId, Arc<AddressRecord>>;

pub(crate) struct Book {
    credentials: Arc<Credentials>,
    dir: PathBuf,
    records: Mutex<Records>,
    generation: watch::Sender<u64>,
}

impl Book {
    /// The book that is kept in `dir`. What cannot be read or verified is left out: it is learned anew.
    pub(crate) fn load(credentials: Arc<Credentials>, dir: &Path) -> Self {
        let records = read(dir).unwrap_or_else(|reason| {
            tracing::warn!(reason, "the known addresses cannot be read and are learned anew");
            Vec::new()
        });
        let book =
            Book { credentials, dir: dir.to_path_buf(), records: Mutex::default(), generation: watch::Sender::new(0) };
        for record in records {
            if let Err(error) = book.learn(record) {
                tracing::warn!(%error, "a known address is left out");
            }
        }
        book
    }

    /// Takes `record` if it is true and newer than the one held.
    pub(crate) fn learn(&self, record: AddressRecord) -> Result<Learned, RecordError> {
        if self.held_sequence(record.id()).is_some_and(|held| held >= record.sequence()) {
            return Ok(Learned::Known);
        }
        let current = self.credentials.current();
        record.verify(current.identity.cluster(), &current.roots)?;
        Ok(self.insert(record))
    }

    fn insert(&self, record: AddressRecord) -> Learned {
        let mut records = self.lock();
        let learned = match records.get(&record.id()) {
            Some(held) if held.sequence() >= record.sequence() => return Learned::Known,
            Some(held) if held.addresses() == record.addresses() => Learned::Renewed,
            None if records.len() >= MAX_RECORDS => return Learned::Full,
            _ => Learned::Moved,
        };
        records.insert(record.id(), Arc::new(record));
        drop(records);
        self.generation.send_modify(|generation| *generation += 1);
        learned
    }

    /// Signs this node's own record for `addresses`, unless the one held says the same.
    pub(crate) fn publish(&self, addresses: &[SocketAddr], now: SystemTime) -> Result<(), RecordError> {
        let identity = self.credentials.identity();
        let held = self.get(identity.id());
        if held.as_ref().is_some_and(|record| record.is_current(&identity, addresses)) {
            return Ok(());
        }
        // Higher than all before, also where the file with the last one was lost.
        let clock = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let sequence = held.map_or(0, |record| record.sequence() + 1).max(clock);
        self.insert(AddressRecord::sign(&identity, addresses, sequence)?);
        Ok(())
    }

    pub(crate) fn get(&self, id: NodeId) -> Option<Arc<AddressRecord>> {
        self.lock().get(&id).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<AddressRecord>> {
        self.lock().values().cloned().collect()
    }

    pub(crate) fn remove(&self, id: NodeId) {
        if self.lock().remove(&id).is_some() {
            self.generation.send_modify(|generation| *generation += 1);
        }
    }

    /// A number that changes with every change of the book.
    pub(crate) fn generation(&self) -> u64 {
        *self.generation.borrow()
    }

    /// Wakes with every change of the book.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Keeps the book on disk. Blocks on it.
    pub(crate) fn store(&self) -> Result<(), String> {
        let records: Vec<_> = self.all().iter().map(|record| AddressRecord::clone(record)).collect();
        let bytes = codec::encode(&records).map_err(|error| error.to_string())?;
        files::write_private(&self.dir, FILE, &bytes).map_err(|error| error.to_string())
    }

    fn held_sequence(&self, id: NodeId) -> Option<u64> {
        self.lock().get(&id).map(|record| record.sequence())
    }

    fn lock(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(dir: &Path) -> Result<Vec<AddressRecord>, String> {
    match files::read_bounded(&dir.join(FILE), MAX_FILE_BYTES) {
        Ok(Some(bytes)) => codec::decode(&bytes).map_err(|error| error.to_string()),
        Ok(None) => Ok(Vec::new()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::authority::Authority;
    use crate::identity::Identity;
    use crate::names::ClusterId;

    struct Fixture {
        authority: Authority,
        dir: tempfile::TempDir,
        now: SystemTime,
    }

    impl Fixture {
        fn new() -> Self {
            let now = SystemTime::now();
            let authority = Authority::create(ClusterId::generate(), now).expect("an authority");
            Fixture { authority, dir: tempfile::tempdir().expect("a directory"), now }
        }

        fn identity(&self, id: NodeId) -> Identity {
            let lifetime = Duration::from_secs(3600);
            Identity::issue(&self.authority, id, &format!("n{id}"), &[], lifetime, self.now).expect("an identity")
        }

        fn book(&self) -> Book {
            Book::load(Credentials::new(self.identity(1)).expect("credentials"), self.dir.path())
        }
    }

    fn at(port: u16) -> Vec<SocketAddr> {
        vec![SocketAddr::from(([10, 0, 0, 1], port))]
    }

    #[test]
    fn the_highest_sequence_counts_in_whatever_order_records_come() {
        let fixture = Fixture::new();
        let (book, node) = (fixture.book(), fixture.identity(2));
        let record = |port, sequence| AddressRecord::sign(&node, &at(port), sequence).expect("signs");
        assert_eq!(book.learn(record(1, 5)).expect("is true"), Learned::Moved);
        assert_eq!(book.learn(record(2, 4)).expect("is true"), Learned::Known);
        assert_eq!(book.learn(record(1, 5)).expect("is true"), Learned::Known);
        assert_eq!(book.learn(record(1, 6)).expect("is true"), Learned::Renewed);
        assert_eq!(book.learn(record(3, 7)).expect("is true"), Learned::Moved);
        assert_eq!(book.get(2).expect("is held").addresses(), at(3));
    }

    #[test]
    fn what_is_kept_is_found_again_and_damage_is_survived() {
        let fixture = Fixture::new();
        let book = fixture.book();
        book.learn(AddressRecord::sign(&fixture.identity(2), &at(1), 5).expect("signs")).expect("is true");
        book.store().expect("stores");
        assert_eq!(fixture.book().get(2), book.get(2));
        std::fs::write(fixture.dir.path().join(FILE), b"nonsense").expect("writes");
        assert!(fixture.book().all().is_empty());
    }

    #[test]
    fn an_own_record_is_signed_anew_only_when_it_says_something_new() {
        let fixture = Fixture::new();
        let book = fixture.book();
        let sequence = || book.get(1).expect("is held").sequence();
        book.publish(&at(1), fixture.now).expect("signs");
        let first = sequence();
        book.publish(&at(1), fixture.now).expect("signs");
        assert_eq!(sequence(), first);
        // Also with a clock that was set back.
        book.publish(&at(2), SystemTime::UNIX_EPOCH).expect("signs");
        assert_eq!(sequence(), first + 1);
    }
}
