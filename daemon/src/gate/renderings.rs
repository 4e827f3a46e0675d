//! Events as watchers get them: the object's JSON with the revision in it, made once for all who watch.
//!
//! Invariant: a revision is one event, so that it names one rendering.
//! Invariant: at most `MAX_RENDERED_BYTES` are kept, unless a single rendering is larger.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use flotilla_api::Status;

/// What is kept for watchers that have not come to it yet; the others make their own.
const MAX_RENDERED_BYTES: usize = 4 << 20;

#[derive(Default)]
pub(super) struct Renderings(Mutex<Recent>);

#[derive(Default)]
struct Recent {
    by_revision: BTreeMap<u64, Bytes>,
    size_bytes: usize,
}

impl Renderings {
    /// What every watcher of the event at `revision` is told; made if nobody has made it yet.
    pub fn share(&self, revision: u64, make: impl FnOnce() -> Result<Bytes, Status>) -> Result<Bytes, Status> {
        if let Some(found) = self.find(revision) {
            return Ok(found);
        }
        let made = make()?;
        self.keep(revision, made.clone());
        Ok(made)
    }

    fn find(&self, revision: u64) -> Option<Bytes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).by_revision.get(&revision).cloned()
    }

    fn keep(&self, revision: u64, made: Bytes) {
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        recent.size_bytes += made.len();
        if let Some(other) = recent.by_revision.insert(revision, made) {
            recent.size_bytes -= other.len();
        }
        while recent.size_bytes > MAX_RENDERED_BYTES && recent.by_revision.len() > 1 {
            let Some((_, oldest)) = recent.by_revision.pop_first() else { break };
            recent.size_bytes -= oldest.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watchers_of_an_event_share_its_bytes() {
        let renderings = Renderings::default();
        let first = renderings.share(7, || Ok(Bytes::from(b"{}".to_vec()))).unwrap();
        let second = renderings.share(7, || panic!("it was made before")).unwrap();
        assert_eq!(second.as_ptr(), first.as_ptr());
        assert_eq!(renderings.share(8, || Ok(Bytes::from_static(b"[]"))).unwrap(), "[]");
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let renderings = Renderings::default();
        for revision in 0..40 {
            renderings.share(revision, || Ok(vec![0; MAX_RENDERED_BYTES / 8].into())).unwrap();
        }
        let recent = renderings.0.lock().unwrap();
        assert!(recent.size_bytes <= MAX_RENDERED_BYTES && recent.by_revision.contains_key(&39));
        assert_eq!(recent.size_bytes, recent.by_revision.values().map(Bytes::len).sum::<usize>());
    }
}
