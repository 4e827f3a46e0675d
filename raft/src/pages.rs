//! Long listings, a page at a time.
//!
//! Invariant: all pages are of one revision, and from where the first one was read. If its history is forgotten in between, or
//! the node reads from elsewhere, the next page is an error, and the last.

use tokio_util::sync::CancellationToken;

use crate::kv::{KeyValue, Listing, Range};
use crate::slice::Source;
use crate::state::{ReadError, Undone};

/// A page ends after this many bytes of values. A smaller one stays in the processor's cache until it is sent.
const PAGE_BYTES: usize = 256 << 10;

/// What a range has, page by page.
pub struct Pages {
    source: Source,
    /// Cancelled when the node reads from elsewhere.
    over: CancellationToken,
    /// What is yet to be read.
    rest: Option<Range>,
    revision: u64,
    undone: Option<Undone>,
}

impl Pages {
    pub(crate) fn new((source, over): (Source, CancellationToken), range: Range) -> Self {
        let revision = range.revision.unwrap_or_default();
        let max_bytes = if range.max_bytes == 0 { PAGE_BYTES } else { range.max_bytes };
        Self { source, over, rest: Some(Range { max_bytes, ..range }), revision, undone: None }
    }

    /// As of when; known from the first page on.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Whether nothing comes after the last page.
    pub fn is_over(&self) -> bool {
        self.rest.is_none()
    }

    fn read(&mut self, range: &Range) -> Result<Listing, ReadError> {
        let page = self.source.page(range, &mut self.undone)?;
        match self.over.is_cancelled() {
            true => Err(ReadError::Compacted { wanted: page.revision, oldest: page.revision + 1 }),
            false => Ok(page),
        }
    }
}

impl Iterator for Pages {
    type Item = Result<Vec<KeyValue>, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        let range = self.rest.take()?;
        let page = match self.read(&range) {
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
