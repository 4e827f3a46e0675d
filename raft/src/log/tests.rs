//! The log alone: what survives, what is refused, what is bounded.

use openraft::EntryPayload;
use openraft::entry::RaftEntry;
use openraft::storage::RaftLogStorageExt;
use openraft::{RaftLogReader, storage::RaftLogStorage};
use tempfile::TempDir;

use super::*;
use crate::disk;
use crate::types::{Command, log_id};

fn entry(term: u64, index: u64, size_bytes: usize) -> Entry {
    Entry::new(log_id(term, index), EntryPayload::Normal(Command(vec![index as u8; size_bytes].into())))
}

fn open(dir: &TempDir) -> Log {
    Log::open(&dir.path().join("log"), &StoreMeta::new("c", Some(1)), &Disk::default()).unwrap()
}

async fn reopen(log: Log, dir: &TempDir) -> Log {
    log.close().await;
    drop(log);
    open(dir)
}

async fn indexes(log: &mut Log, range: std::ops::Range<u64>) -> Vec<u64> {
    log.try_get_log_entries(range).await.unwrap().iter().map(RaftEntry::index).collect()
}

/// What is found if the process is killed now and this sector of the log's journal holds something else.
fn killed(dir: &TempDir, sector: usize, change: impl Fn(&mut [u8])) -> TempDir {
    let copy = disk::killed(dir.path());
    let journal = copy.path().join("log/journal/0");
    let mut bytes = std::fs::read(&journal).unwrap();
    change(&mut bytes[sector * 512..][..512]);
    std::fs::write(&journal, bytes).unwrap();
    copy
}

#[tokio::test]
async fn entries_and_vote_survive() {
    let dir = TempDir::new().unwrap();
    let mut log = open(&dir);
    log.save_vote(&Vote::new(4, 9)).await.unwrap();
    log.blocking_append((0..10).map(|i| entry(1, i, 10))).await.unwrap();
    log.truncate_after(Some(log_id(1, 6))).await.unwrap();
    log.blocking_append((7..9).map(|i| entry(2, i, 10))).await.unwrap();
    log.purge(log_id(1, 2)).await.unwrap();
    let mut log = reopen(log, &dir).await;
    assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new(4, 9)));
    let state = log.get_log_state().await.unwrap();
    assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(log_id(1, 2)), Some(log_id(2, 8))));
    assert_eq!(indexes(&mut log, 0..100).await, (3..9).collect::<Vec<_>>());
    assert_eq!(indexes(&mut log, 5..7).await, [5, 6]);
    log.close().await;
}

#[tokio::test]
async fn what_is_on_disk_and_what_is_in_memory_read_as_one() {
    let dir = TempDir::new().unwrap();
    let mut log = open(&dir);
    // More than the tail keeps.
    for i in 0..20 {
        log.blocking_append([entry(1, i, 512 * 1024)]).await.unwrap();
    }
    assert_eq!(indexes(&mut log, 0..20).await, (0..20).collect::<Vec<_>>());
    let some = log.limited_get_log_entries(2, 20).await.unwrap();
    assert!((1..20).contains(&some.len()) && some[0].index() == 2, "{}", some.len());
    let one = log.limited_get_log_entries(19, 20).await.unwrap();
    assert_eq!(one.len(), 1);
    assert!(log.retained_bytes() > 20 * 512 * 1024);
    assert_eq!(log.purge_point(u64::MAX), None);
    let upto = log.purge_point(5 << 20).unwrap();
    log.purge(log_id(1, upto)).await.unwrap();
    assert!(log.retained_bytes() <= 5 << 20);
    assert_eq!(indexes(&mut log, 0..20).await, (upto + 1..20).collect::<Vec<_>>());
    log.close().await;
}

#[tokio::test]
async fn a_hole_is_refused() {
    let dir = TempDir::new().unwrap();
    let mut log = open(&dir);
    log.blocking_append([entry(1, 0, 1)]).await.unwrap();
    assert!(log.blocking_append([entry(1, 2, 1)]).await.is_err());
    log.close().await;
}

#[tokio::test]
async fn a_torn_tail_is_dropped_and_the_rest_is_whole() {
    let dir = TempDir::new().unwrap();
    let mut first = open(&dir);
    first.blocking_append([entry(1, 0, 100)]).await.unwrap();
    first.blocking_append([entry(1, 1, 1000)]).await.unwrap();
    // One sector of the last write did not reach the disk.
    let dir = killed(&dir, 2, |sector| sector.fill(0));
    let mut log = open(&dir);
    assert_eq!(indexes(&mut log, 0..100).await, [0]);
    log.blocking_append([entry(2, 1, 100)]).await.unwrap();
    let mut log = reopen(log, &dir).await;
    assert_eq!(log.get_log_state().await.unwrap().last_log_id, Some(log_id(2, 1)));
    log.close().await;
    first.close().await;
}

#[tokio::test]
async fn a_flipped_bit_is_refused_rather_than_forgotten() {
    let dir = TempDir::new().unwrap();
    let mut log = open(&dir);
    for i in 0..5 {
        log.blocking_append([entry(1, i, 100)]).await.unwrap();
    }
    let dir = killed(&dir, 4, |sector| sector[300] ^= 1);
    log.close().await;
    let refused = Log::open(&dir.path().join("log"), &StoreMeta::new("c", Some(1)), &Disk::default());
    let Err(error) = refused else { panic!("a damaged log was opened") };
    assert!(matches!(error, DiskError::Open { .. } | DiskError::Damaged { .. }), "{error}");
}

#[tokio::test]
async fn only_an_end_that_was_replaced_is_dropped() {
    let dir = TempDir::new().unwrap();
    let mut log = open(&dir);
    log.blocking_append((0..4).map(|i| entry(1, i, 10))).await.unwrap();
    log.purge(log_id(1, 1)).await.unwrap();
    // What is on disk comes after the purge.
    log.blocking_append([entry(1, 4, 10)]).await.unwrap();
    for as_it_is in [None, Some(log_id(1, 3)), Some(log_id(1, 4)), Some(log_id(1, 9)), Some(log_id(2, 9))] {
        log.drop_overtaken(as_it_is).await.unwrap();
        assert_eq!(log.get_log_state().await.unwrap().last_log_id, Some(log_id(1, 4)), "{as_it_is:?}");
    }
    for replaced in [log_id(2, 4), log_id(2, 2)] {
        let copy = disk::killed(dir.path());
        let log = open(&copy);
        log.drop_overtaken(Some(replaced)).await.unwrap();
        let state = reopen(log, &copy).await.get_log_state().await.unwrap();
        assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(log_id(1, 1)), Some(log_id(1, 1))));
    }
    log.close().await;
}
