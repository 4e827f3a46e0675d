//! Reading objects: one, or a range of them, now or as of an earlier revision.
//!
//! An earlier revision is today's state with the events since undone, each key by the first of them.
//!
//! Invariant: a listing is of one revision throughout, from one database snapshot.

use std::collections::BTreeMap;

use bytes::Bytes;
use flotilla_api::Key;

use crate::codec;
use crate::disk::{DbError, Read};
use crate::kv::{KeyValue, Listing, Range};

use super::record::{Current, Header, Past, current_key, past_key, revision_of};
use super::{HEADER_KEY, State};

/// A listing is cut after this many bytes of values, whatever it is asked for.
const MAX_LISTING_BYTES: usize = 64 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The history that would be needed is forgotten: list anew.
    #[error("revision {wanted} is compacted, the oldest one left is {oldest}")]
    Compacted { wanted: u64, oldest: u64 },
    #[error("revision {wanted} is in the future, the last one is {current}")]
    Future { wanted: u64, current: u64 },
    #[error("no leader could be asked within {0:?}: more than half of the voters must run and reach each other")]
    NoLeader(std::time::Duration),
    #[error("the store is shutting down")]
    Closed,
    #[error("the state is damaged: {0}")]
    Damaged(String),
}

impl From<DbError> for ReadError {
    fn from(error: DbError) -> Self {
        Self::Damaged(error.to_string())
    }
}

impl From<codec::CodecError> for ReadError {
    fn from(error: codec::CodecError) -> Self {
        Self::Damaged(error.to_string())
    }
}

impl State {
    /// One object as of now.
    pub fn get(&self, key: &Key) -> Result<Option<KeyValue>, ReadError> {
        let current = self.current(key).map_err(|e| ReadError::Damaged(e.to_string()))?;
        Ok(current.map(|c| c.into_kv(key.clone())))
    }

    /// A part of a range. What was `undone` for the parts before it, all of one prefix and revision, is not looked for again.
    pub fn page(&self, range: &Range, undone: &mut Option<Undone>) -> Result<Listing, ReadError> {
        let view = View::new(self)?;
        let revision = range.revision.unwrap_or(view.header.revision);
        view.check(revision)?;
        let undone = undone.get_or_insert_with(|| Undone::since(revision));
        undone.catch_up(&view, |key| key.as_str().starts_with(&range.prefix))?;
        view.list(range, revision, &undone.first)
    }

    /// How many keys a range has, whatever its limit; `None` if they are more than `most`.
    pub fn count(&self, range: &Range, most: usize) -> Result<Option<usize>, ReadError> {
        let view = View::new(self)?;
        let revision = range.revision.unwrap_or(view.header.revision);
        view.check(revision)?;
        let mut undone = Undone::since(revision);
        undone.catch_up(&view, |key| key.as_str().starts_with(&range.prefix))?;
        view.count(range, &undone.first, most)
    }

    /// One object as of a revision.
    pub fn get_at(&self, key: &Key, revision: u64) -> Result<Option<KeyValue>, ReadError> {
        let view = View::new(self)?;
        view.check(revision)?;
        let mut undone = Undone::since(revision);
        undone.catch_up(&view, |k| k == key)?;
        match undone.first.get(key.as_str()) {
            Some(at) => view.before(*at),
            None => Ok(view.get(key)?.map(|c| c.into_kv(key.clone()))),
        }
    }
}

/// What has to be undone to see an earlier revision.
pub(crate) struct Undone {
    /// For each of the keys that changed since, the first revision that changed it.
    first: BTreeMap<String, u64>,
    /// Up to here, that is known.
    upto: u64,
}

impl Undone {
    fn since(revision: u64) -> Self {
        Self { first: BTreeMap::new(), upto: revision }
    }

    /// Adds what has changed `of` the keys since it was looked at last.
    fn catch_up(&mut self, view: &View<'_>, of: impl Fn(&Key) -> bool) -> Result<(), ReadError> {
        if self.upto >= view.header.revision {
            return Ok(());
        }
        for item in view.records.scan(&past_key(self.upto + 1), b"i") {
            let (at, bytes) = item?;
            let past: Past = codec::decode(&bytes)?;
            if let (Some(at), true) = (revision_of(&at), of(&past.key)) {
                self.first.entry(past.key.as_str().to_owned()).or_insert(at);
            }
        }
        self.upto = view.header.revision;
        Ok(())
    }
}

/// The database at one moment.
pub(super) struct View<'a> {
    pub records: Box<dyn Read + 'a>,
    pub header: Header,
}

impl<'a> View<'a> {
    pub fn new(state: &'a State) -> Result<Self, ReadError> {
        let records = state.db.view();
        let header = match records.get(HEADER_KEY)? {
            Some(bytes) => codec::decode(&bytes)?,
            None => Header::default(),
        };
        Ok(Self { records, header })
    }

    fn check(&self, wanted: u64) -> Result<(), ReadError> {
        match wanted {
            w if w < self.header.compacted => Err(ReadError::Compacted { wanted, oldest: self.header.compacted }),
            w if w > self.header.revision => Err(ReadError::Future { wanted, current: self.header.revision }),
            _ => Ok(()),
        }
    }

    /// What a key was before the event at a revision.
    fn before(&self, revision: u64) -> Result<Option<KeyValue>, ReadError> {
        let bytes = self.records.get(&past_key(revision))?;
        let bytes = bytes.ok_or_else(|| ReadError::Damaged(format!("revision {revision} is missing")))?;
        let past: Past = codec::decode(&bytes)?;
        Ok(past.old.map(|old| old.into_kv(past.key)))
    }

    fn get(&self, key: &Key) -> Result<Option<Current>, ReadError> {
        let Some(bytes) = self.records.get(&current_key(key.as_str()))? else { return Ok(None) };
        Current::decode(bytes).map(Some).ok_or_else(|| ReadError::Damaged(key.to_string()))
    }

    fn count(&self, range: &Range, undone: &BTreeMap<String, u64>, most: usize) -> Result<Option<usize>, ReadError> {
        let (start, upper) = bounds(range);
        let mut count = 0;
        for item in self.records.scan(&current_key(&start), &upper) {
            let (bytes, _) = item?;
            count += usize::from(!undone.contains_key(parse_key(&bytes)?.as_str()));
            if count > most {
                return Ok(None);
            }
        }
        for (_, at) in undone.range(start..) {
            count += usize::from(self.before(*at)?.is_some());
        }
        Ok(Some(count).filter(|count| *count <= most))
    }

    fn list(&self, range: &Range, revision: u64, undone: &BTreeMap<String, u64>) -> Result<Listing, ReadError> {
        let (start, upper) = bounds(range);
        let max_bytes = if range.max_bytes == 0 { MAX_LISTING_BYTES } else { range.max_bytes.min(MAX_LISTING_BYTES) };
        let listing = Listing { revision, ..Listing::default() };
        let mut page = Page { listing, limit: range.limit, max_bytes, size_bytes: 0 };
        let mut undone = undone.range(start.clone()..).peekable();
        for item in self.records.scan(&current_key(&start), &upper) {
            let (bytes, record) = item?;
            let key = parse_key(&bytes)?;
            while let Some((_, at)) = undone.next_if(|(earlier, _)| earlier.as_str() < key.as_str()) {
                page.add_before(self, *at)?;
            }
            match undone.next_if(|(same, _)| same.as_str() == key.as_str()) {
                Some((_, at)) => page.add_before(self, *at)?,
                None => page.add_current(key, record)?,
            }
            if page.listing.more {
                return Ok(page.listing);
            }
        }
        undone.try_for_each(|(_, at)| page.add_before(self, *at))?;
        Ok(page.listing)
    }
}

/// The first key that a range may have, and the first record behind it.
fn bounds(range: &Range) -> (String, Vec<u8>) {
    let start = match &range.after {
        Some(after) if after.as_str() >= range.prefix.as_str() => format!("{after}\0"),
        _ => range.prefix.clone(),
    };
    (start, after_prefix(&current_key(&range.prefix)).unwrap_or_else(|| b"d".to_vec()))
}

/// A listing while it fills.
struct Page {
    listing: Listing,
    limit: usize,
    max_bytes: usize,
    size_bytes: usize,
}

impl Page {
    fn full(&self) -> bool {
        let count = self.listing.items.len();
        (self.limit > 0 && count >= self.limit) || (count > 0 && self.size_bytes >= self.max_bytes)
    }

    fn add_before(&mut self, view: &View<'_>, at: u64) -> Result<(), ReadError> {
        if let Some(kv) = view.before(at)? {
            self.add(|| Ok(kv))?;
        }
        Ok(())
    }

    fn add_current(&mut self, key: Key, record: Bytes) -> Result<(), ReadError> {
        self.add(|| {
            let current = Current::decode(record).ok_or_else(|| ReadError::Damaged(key.to_string()))?;
            Ok(current.into_kv(key))
        })
    }

    fn add(&mut self, kv: impl FnOnce() -> Result<KeyValue, ReadError>) -> Result<(), ReadError> {
        if self.full() {
            self.listing.more = true;
            return Ok(());
        }
        let kv = kv()?;
        self.size_bytes += kv.value.len();
        self.listing.items.push(kv);
        Ok(())
    }
}

/// The first byte string after all that start with `prefix`.
fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let kept = prefix.iter().rposition(|b| *b < u8::MAX)?;
    let mut after = prefix[..=kept].to_vec();
    after[kept] += 1;
    Some(after)
}

pub(super) fn parse_key(bytes: &[u8]) -> Result<Key, ReadError> {
    let text = bytes.get(1..).and_then(|b| std::str::from_utf8(b).ok());
    text.and_then(Key::parse).ok_or_else(|| ReadError::Damaged("a key that is not a key".into()))
}
