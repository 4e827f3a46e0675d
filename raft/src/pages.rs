//! Long listings, a page at a time.
//!
//! Invariant: all pages are of one revision; if its history is forgotten in between, the next page is an error, and the last.

use crate::kv::{KeyValue, Range};
use crate::state::ReadError;
use crate::store::Store;

/// A page ends after this many bytes of values. A smaller one stays in the processor's cache until it is sent.
const PAGE_BYTES: usize = 256 << 10;

/// What a range has, page by page.
pub struct Pages {
    store: Store,
    /// What is yet to be read.
    rest: Option<Range>,
    revision: u64,
}

impl Pages {
    pub(crate) fn new(store: Store, range: Range) -> Self {
        let revision = range.revision.unwrap_or_default();
        let max_bytes = if range.max_bytes == 0 { PAGE_BYTES } else { range.max_bytes };
        Self { store, rest: Some(Range { max_bytes, ..range }), revision }
    }

    /// As of when; known from the first page on.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Whether nothing comes after the last page.
    pub fn is_over(&self) -> bool {
        self.rest.is_none()
    }
}

impl Iterator for Pages {
    type Item = Result<Vec<KeyValue>, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        let range = self.rest.take()?;
        let page = match self.store.range(range.clone()) {
            Ok(page) => page,
            Err(error) => return Some(Err(error)),
        };
        self.revision = page.revision;
        if let (true, Some(last)) = (page.more, page.items.last()) {
            let after = Some(last.key.as_str().to_owned());
            self.rest = Some(Range { after, revision: Some(page.revision), ..range });
        }
        Some(Ok(page.items))
    }
}
