//! A simulated database: a map in memory and its write-ahead log on the simulated disk.
//!
//! Invariant: what is there after a crash is what the log's whole records say, up to the first torn one.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::future::BoxFuture;

use crate::disk::{Database, DbError, Read, Scan, WriteBatch, WriteOp};

use super::disk::SimDisk;
use super::world::{Host, world};

pub(super) type Map = BTreeMap<Vec<u8>, Bytes>;

const LOG_FILE: &str = "WAL";

pub(super) struct SimDb {
    disk: Arc<SimDisk>,
    host: Arc<Host>,
    path: PathBuf,
    log: u64,
    map: Mutex<Arc<Map>>,
}

fn gone(detail: &str) -> DbError {
    DbError { detail: detail.into(), corrupt: false }
}

fn change(map: &mut Map, op: WriteOp) {
    match op {
        WriteOp::Put(key, value) => {
            map.insert(key, value.into());
        }
        WriteOp::Delete(key) => {
            map.remove(&key);
        }
        WriteOp::DeleteRange(from, to) if from < to => {
            let gone: Vec<Vec<u8>> = map.range(from..to).map(|(key, _)| key.clone()).collect();
            gone.iter().for_each(|key| drop(map.remove(key)));
        }
        WriteOp::DeleteRange(..) => {}
    }
}

/// A record: its length, its digest, then each operation as a tag and two strings.
pub(super) fn encode(ops: &[WriteOp]) -> Vec<u8> {
    let mut body = Vec::new();
    let string = |bytes: &[u8], body: &mut Vec<u8>| {
        body.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
        body.extend_from_slice(bytes);
    };
    for op in ops {
        let (tag, first, second): (u8, &[u8], &[u8]) = match op {
            WriteOp::Put(key, value) => (0, key, value),
            WriteOp::Delete(key) => (1, key, &[]),
            WriteOp::DeleteRange(from, to) => (2, from, to),
        };
        body.push(tag);
        string(first, &mut body);
        string(second, &mut body);
    }
    let mut record = (body.len() as u32).to_be_bytes().to_vec();
    record.extend_from_slice(&digest(&body).to_be_bytes());
    record.extend(body);
    record
}

pub(super) fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, b| (hash ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Takes a length and so many bytes off the front.
fn take<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (taken, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    *bytes = rest;
    Some(taken)
}

/// Takes one whole record off the front; `None` if it is torn.
fn decode(bytes: &mut &[u8]) -> Option<Vec<WriteOp>> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (wanted, rest) = rest.split_first_chunk::<8>()?;
    let (mut body, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    if digest(body) != u64::from_be_bytes(*wanted) {
        return None;
    }
    *bytes = rest;
    let mut ops = Vec::new();
    while let Some((tag, rest)) = body.split_first() {
        body = rest;
        let (first, second) = (take(&mut body)?.to_vec(), take(&mut body)?.to_vec());
        ops.push(match tag {
            0 => WriteOp::Put(first, second),
            1 => WriteOp::Delete(first),
            _ => WriteOp::DeleteRange(first, second),
        });
    }
    Some(ops)
}

impl SimDb {
    pub fn open(disk: Arc<SimDisk>, host: Arc<Host>, path: &Path) -> Result<Self, DbError> {
        let log = disk.make_file(&path.join(LOG_FILE));
        disk.sync_names(path);
        let bytes = disk.bytes(log);
        let mut left = bytes.as_slice();
        let mut map = Map::new();
        while let Some(ops) = decode(&mut left) {
            ops.into_iter().for_each(|op| change(&mut map, op));
        }
        disk.cut(log, bytes.len() - left.len());
        disk.sync_file(log);
        let world = world();
        world.note(host.id, format_args!("opens {} torn={}", path.display(), !left.is_empty()));
        world.invariants.lock().unwrap().opened(&world, host.id, path, &map);
        Ok(Self { disk, host, path: path.to_owned(), log, map: Mutex::new(Arc::new(map)) })
    }

    fn map(&self) -> Arc<Map> {
        self.map.lock().unwrap().clone()
    }

    fn put_through(&self, batch: WriteBatch, sync: bool) -> Result<(), DbError> {
        if self.host.is_off() {
            return Err(gone("the machine is down"));
        }
        let ops = batch.into_ops();
        let mut record = encode(&ops);
        let world = world();
        if self.disk.mood().fails {
            // A failed write may have got anywhere.
            record.truncate(world.between(0, record.len() as u64 + 1) as usize);
            self.disk.append(self.log, &record);
            return Err(gone("the disk fails"));
        }
        self.disk.append(self.log, &record);
        if sync {
            self.disk.sync_file(self.log);
        }
        world.note(self.host.id, format_args!("writes {} {:x} sync={sync}", self.path.display(), digest(&record)));
        world.invariants.lock().unwrap().written(&world, self.host.id, &self.path, &ops);
        let mut map = self.map.lock().unwrap();
        let map = Arc::make_mut(&mut map);
        ops.into_iter().for_each(|op| change(map, op));
        Ok(())
    }
}

struct View(Arc<Map>);

fn scan(map: Arc<Map>, from: &[u8], to: &[u8]) -> Scan<'static> {
    let is_some = from < to;
    let (mut at, to) = (Bound::Included(from.to_vec()), to.to_vec());
    let next = move || {
        let (key, value) = map.range((at.clone(), Bound::Excluded(to.clone()))).next()?;
        at = Bound::Excluded(key.clone());
        Some(Ok((key.clone().into(), value.clone())))
    };
    match is_some {
        true => Box::new(std::iter::from_fn(next)),
        false => Box::new(std::iter::empty()),
    }
}

impl Read for View {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, DbError> {
        Ok(self.0.get(key).cloned())
    }

    fn scan(&self, from: &[u8], to: &[u8]) -> Scan<'_> {
        scan(self.0.clone(), from, to)
    }
}

impl Read for SimDb {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, DbError> {
        Ok(self.map.lock().unwrap().get(key).cloned())
    }

    fn scan(&self, from: &[u8], to: &[u8]) -> Scan<'_> {
        scan(self.map(), from, to)
    }
}

impl Database for SimDb {
    fn view(&self) -> Box<dyn Read + '_> {
        Box::new(View(self.map()))
    }

    fn write(&self, batch: WriteBatch) -> Result<(), DbError> {
        self.put_through(batch, false)
    }

    fn is_busy(&self) -> bool {
        true
    }

    fn commit(&self, batch: WriteBatch) -> BoxFuture<'_, Result<(), DbError>> {
        Box::pin(async move {
            let world = world();
            let mood = self.disk.mood();
            tokio::time::sleep(world.ms(0, mood.slow_ms + 1)).await;
            while self.disk.mood().stalled_until > world.now() {
                tokio::time::sleep(self.disk.mood().stalled_until - world.now()).await;
            }
            self.put_through(batch, true)
        })
    }

    fn flush(&self) -> Result<(), DbError> {
        if self.host.is_off() || self.disk.mood().fails {
            return Err(gone("the disk fails"));
        }
        self.disk.sync_file(self.log);
        Ok(())
    }

    fn checkpoint(&self, into: &Path) -> Result<(), DbError> {
        if self.host.is_off() || self.disk.mood().fails {
            return Err(gone("the disk fails"));
        }
        self.disk.make_dir(into);
        let file = self.disk.make_file(&into.join(LOG_FILE));
        let ops: Vec<WriteOp> = self.map().iter().map(|(k, v)| WriteOp::Put(k.clone(), v.to_vec())).collect();
        self.disk.append(file, &encode(&ops));
        self.disk.sync_file(file);
        self.disk.sync_names(into);
        Ok(())
    }
}
