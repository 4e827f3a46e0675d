//! The objects as a stream of records, out of one state and into another.
//!
//! Invariant: what goes out is of one revision throughout, and every block that is read is checked against its sum.

use bytes::Bytes;
use flotilla_api::Key;
use serde::{Deserialize, Serialize};

use crate::codec::{self, LogIdForm, MembershipForm, StoredMembershipForm};
use crate::disk::{DiskError, WriteBatch};
use crate::epoch::EpochId;
use crate::limits;
use crate::types::NodeId;

use super::read::{ReadError, View, parse_key};
use super::record::{Current, Header, aging_key, current_key, past_key};
use super::{HEADER_KEY, State};

/// An object with its revisions, wherever it is on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub key: Key,
    pub create_revision: u64,
    pub mod_revision: u64,
    pub time_ms: u64,
    pub value: Bytes,
}

impl Record {
    /// About what it takes.
    pub fn size_bytes(&self) -> usize {
        const HEADER_BYTES: usize = 32;
        HEADER_BYTES + self.key.as_str().len() + self.value.len()
    }
}

impl State {
    /// Gives what is known about the state, then each object in the order of its key.
    pub fn dump<S, E: From<ReadError>>(
        &self,
        begin: impl FnOnce(Header) -> Result<S, E>,
        mut each: impl FnMut(&mut S, Record) -> Result<(), E>,
    ) -> Result<S, E> {
        let view = View::new(self)?;
        let mut sink = begin(view.header.clone())?;
        for item in view.records.scan(b"c", b"d") {
            let (key, record) = item.map_err(ReadError::from)?;
            let key = parse_key(&key)?;
            let current = Current::decode(record).ok_or_else(|| ReadError::Damaged(key.to_string()))?;
            let Current { create_revision, mod_revision, time_ms, value } = current;
            each(&mut sink, Record { key, create_revision, mod_revision, time_ms, value })?;
        }
        Ok(sink)
    }

    /// Takes objects into a state that is still being made.
    pub fn fill(&self, records: &[Record]) -> Result<(), DiskError> {
        let mut header = self.header().as_ref().clone();
        let mut batch = WriteBatch::default();
        for record in records {
            let Record { key, create_revision, mod_revision, time_ms, value } = record.clone();
            if limits::is_event_kind(&key) {
                batch.put(aging_key(time_ms, key.as_str()), b"".as_slice());
                header.events_count += 1;
            }
            batch.put(current_key(key.as_str()), Current { create_revision, mod_revision, time_ms, value }.encode());
        }
        self.put_header(header, batch)
    }

    /// Makes a state that nobody serves the beginning of an epoch: what it held at `at` is all that there was, `voter`
    /// is all that votes, revisions go on after `revision`, and no earlier history is known.
    pub fn begin_epoch(
        &self,
        epoch: EpochId,
        at: LogIdForm,
        voter: NodeId,
        revision: u64,
        now_ms: u64,
    ) -> Result<(), DiskError> {
        let membership = MembershipForm { voters: vec![[voter].into()], members: [voter].into() };
        let header = Header {
            applied: Some(at),
            membership: StoredMembershipForm { at: Some(at), membership },
            revision,
            compacted: revision,
            now_ms,
            ..self.header().as_ref().clone()
        };
        let mut batch = WriteBatch::default();
        batch.delete_range(past_key(0).as_slice(), b"i".as_slice());
        self.put_header(header, batch)?;
        self.set_epoch(epoch)?;
        self.flush().map_err(DiskError::db(self.path()))
    }

    fn put_header(&self, header: Header, mut batch: WriteBatch) -> Result<(), DiskError> {
        batch.put(HEADER_KEY, codec::encode(&header).map_err(|e| DiskError::damaged(self.path(), e))?);
        self.db.write(batch).map_err(DiskError::db(self.path()))?;
        self.set_header(header);
        Ok(())
    }
}
