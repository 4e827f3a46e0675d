//! Life after bad days: backups, and going on when most replicas are gone.

mod cluster;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cluster::{Cluster, insist, key, put, until};
use flotilla_raft::{
    EpochId, Options, Range, ReadError, RecoverError, Store, inspect, recover, restore, verify_backup,
};

const THREE: [u64; 3] = [1, 2, 3];
const CLUSTER: &str = "test-cluster";

fn plain(_: &mut Options) {}

/// So that the log is purged and the state has a past.
fn forgetful(options: &mut Options) {
    options.snapshot_entries = 20;
    options.log_keep_entries = 5;
}

async fn back_up(store: &Store, stale: bool, file: &Path) {
    let mut backup = store.backup(stale).await.unwrap();
    let mut bytes = Vec::new();
    while let Some(piece) = backup.next().await {
        bytes.extend_from_slice(&piece.unwrap());
    }
    std::fs::write(file, bytes).unwrap();
}

fn restored(file: &Path, dir: &Path, id: u64) -> Result<flotilla_raft::BackupInfo, flotilla_raft::BackupError> {
    restore(file, &dir.join("replica"), id, &mut |_, _| {})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_under_load_is_of_one_revision_and_begins_a_new_epoch() {
    let dir = tempfile::TempDir::new().unwrap();
    let file = dir.path().join("backup");
    let cluster = Cluster::boot(forgetful, &THREE, 3).await;
    for i in 0..50 {
        insist(&cluster.store(1), put(&format!("k{i:02}"), &"x".repeat(20_000))).await;
    }
    let leader = cluster.leader(&THREE).await;
    let follower = THREE.into_iter().find(|id| *id != leader).unwrap();
    let going = Arc::new(AtomicBool::new(true));
    let writer = tokio::spawn(write_pairs(cluster.store(leader), going.clone()));
    until("pairs are written", || cluster.store(leader).revision() > 60).await;
    let before = cluster.store(leader).revision();
    back_up(&cluster.store(follower), false, &file).await;
    going.store(false, Ordering::Relaxed);
    let last = writer.await.unwrap();
    cluster.stop_all().await;

    let found = verify_backup(&file).unwrap();
    assert_eq!((found.cluster.as_str(), found.epoch, found.objects), (CLUSTER, EpochId::FIRST, 52));
    assert!((before..=last).contains(&found.revision), "{before} {found:?} {last}");
    assert_eq!(found.size_bytes, std::fs::metadata(&file).unwrap().len());

    let info = restored(&file, dir.path(), 9).unwrap();
    assert_eq!((info.epoch.life(), info.revision, info.objects), (2, found.revision, 52));
    let mut cluster = Cluster::new(plain);
    let store = cluster.start_in(9, dir.path()).await;
    cluster.leader(&[9]).await;
    store.barrier().await.unwrap();
    assert_eq!(cluster.status(9).epoch, info.epoch);
    let value = |name: &str| store.get(&key(name)).unwrap().unwrap();
    assert_eq!(value("left").value, value("right").value, "a Change is in it whole");
    assert_eq!(value("k07").mod_revision, 8, "objects keep their revisions");
    assert!(matches!(store.watch("", found.revision + 1).await, Err(ReadError::Compacted { .. })));
    let next = insist(&store, put("after", "x")).await;
    assert!(next > last + (1 << 39), "no revision is taken twice: {next}");
    // And it is a cluster like any other.
    cluster.start(10).await;
    store.add_replica(10).await.unwrap();
    until("a new replica has it all", || cluster.store(10).revision() >= next).await;
    assert_eq!(cluster.store(10).range(Range::default()).unwrap().items.len(), 53);
    assert_eq!(cluster.status(10).epoch, info.epoch);
    drop(store);
    cluster.stop_all().await;
}

/// Writes two keys in one Change, always alike.
async fn write_pairs(store: Store, going: Arc<AtomicBool>) -> u64 {
    let (mut i, mut last) = (0, 0);
    while going.load(Ordering::Relaxed) {
        let value = i.to_string();
        last = insist(&store, put("left", &value).put(key("right"), value.into())).await;
        i += 1;
    }
    last
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_is_not_whole_is_refused_and_leaves_nothing() {
    let dir = tempfile::TempDir::new().unwrap();
    let file = dir.path().join("backup");
    let cluster = Cluster::boot(plain, &[1], 1).await;
    insist(&cluster.store(1), put("a", "1").put(key("b"), "2".into())).await;
    back_up(&cluster.store(1), false, &file).await;
    cluster.stop_all().await;
    let whole = std::fs::read(&file).unwrap();
    verify_backup(&file).unwrap();

    let refused = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        verify_backup(&file).expect_err("a backup that is not whole")
    };
    for end in 0..whole.len() {
        refused(&whole[..end]);
    }
    for at in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << (at % 8);
        refused(&flipped);
    }
    refused(&[&whole[..], b"x"].concat());
    let words = |bytes: &[u8]| refused(bytes).to_string();
    assert!(words(b"PK\x03\x04 an archive").contains("is not a backup"));
    assert!(words(&whole[..whole.len() - 1]).contains("is cut off after"));
    let mut newer = whole.clone();
    newer[12] = 9;
    assert!(words(&newer).contains("of a newer format"), "{}", words(&newer));

    let mut late = whole.clone();
    let at = late.len() - 1;
    late[at] ^= 1;
    std::fs::write(&file, late).unwrap();
    let error = restored(&file, dir.path(), 9).unwrap_err();
    assert!(error.to_string().contains("its checksum is wrong"), "{error}");
    assert_eq!(names(dir.path()), ["backup"], "nothing is left behind");
}

fn names(dir: &Path) -> Vec<String> {
    std::fs::read_dir(dir).unwrap().map(|item| item.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_survivor_goes_on_alone_and_the_old_epoch_is_refused() {
    let mut cluster = Cluster::boot(forgetful, &THREE, 3).await;
    let mut last = 0;
    for i in 0..60 {
        last = insist(&cluster.store(1), put(&format!("k{i}"), "old")).await;
    }
    until("the survivor has it", || cluster.store(3).revision() >= last).await;
    cluster.stop_all().await;

    let dir = cluster.dir(3).to_owned();
    let remains = inspect(&dir, CLUSTER, 3).unwrap();
    assert_eq!((remains.epoch, remains.voters), (EpochId::FIRST, THREE.into()));
    assert_eq!(inspect(&dir, CLUSTER, 3).unwrap().epoch, EpochId::FIRST, "looking changes nothing");
    let begun = recover(&dir, CLUSTER, 3).unwrap();
    assert_eq!((begun.epoch.life(), begun.voters.clone()), (2, [3].into()));
    assert!(begun.revision > last + (1 << 39));

    let store = cluster.start(3).await;
    cluster.leader(&[3]).await;
    store.barrier().await.unwrap();
    assert_eq!(store.range(Range::default()).unwrap().items.len(), 60);
    let written = insist(&store, put("k0", "new")).await;
    assert!(written > begun.revision);

    // The lost ones come back: they cannot have the survivor, though they could elect each other.
    for id in [1, 2] {
        cluster.start(id).await;
    }
    let stray = cluster.leader(&[1, 2]).await;
    until("their leader hears of it", || cluster.status(stray).superseded_by == Some(begun.epoch)).await;
    insist(&cluster.store(1), put("k0", "stray")).await;
    assert_eq!(store.get(&key("k0")).unwrap().unwrap().value.as_ref(), b"new");
    assert_eq!(cluster.status(3).voters, [3].into());
    assert_eq!(cluster.status(3).superseded_by, None);
    cluster.stop(1).await;
    cluster.stop(2).await;

    // One that belongs to the old epoch is of no use even if it is added; an empty one is.
    cluster.start(1).await;
    store.add_replica(1).await.unwrap();
    cluster.start(4).await;
    store.add_replica(4).await.unwrap();
    until("the empty one has it all", || cluster.store(4).revision() >= written).await;
    assert_eq!((cluster.status(4).epoch, cluster.status(1).epoch), (begun.epoch, EpochId::FIRST));
    assert!(cluster.store(1).revision() < begun.revision);
    store.remove_replica(1).await.unwrap();
    cluster.start(5).await;
    store.add_replica(5).await.unwrap();
    cluster.grow(&[3, 4, 5], 3).await;
    insist(&cluster.store(5), put("k1", "new")).await;
    drop(store);
    cluster.stop_all().await;
    cluster.start(3).await;
    assert_eq!(cluster.status(3).epoch, begun.epoch, "an epoch is for ever");
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_are_recovered_apart_refuse_each_other_and_both_say_so() {
    let mut cluster = Cluster::boot(plain, &THREE, 3).await;
    let last = insist(&cluster.store(1), put("a", "old")).await;
    until("both have it", || [2, 3].iter().all(|id| cluster.store(*id).revision() >= last)).await;
    cluster.stop_all().await;
    let [two, three] = [2, 3].map(|id| recover(cluster.dir(id), CLUSTER, id).unwrap());
    assert_eq!((two.epoch.life(), three.epoch.life()), (2, 2));
    assert_ne!(two.epoch, three.epoch);
    for id in [2, 3] {
        cluster.start(id).await;
        cluster.leader(&[id]).await;
        insist(&cluster.store(id), put("a", &id.to_string())).await;
    }
    cluster.store(3).greet(2).await;
    let heard = |id| (cluster.status(id).beside, cluster.status(id).superseded_by);
    until("both know", || heard(2) == (Some(three.epoch), None) && heard(3) == (Some(two.epoch), None)).await;

    // As a replica the other is of no use: it takes nothing from here and keeps what it has.
    cluster.store(3).add_replica(2).await.unwrap();
    insist(&cluster.store(3), put("b", "3")).await;
    for id in [2, 3] {
        let store = cluster.store(id);
        store.barrier().await.unwrap();
        assert_eq!(store.get(&key("a")).unwrap().unwrap().value.as_ref(), id.to_string().as_bytes());
    }
    assert!(cluster.store(2).get(&key("b")).unwrap().is_none());
    assert_eq!((cluster.status(2).voters, cluster.status(3).voters), ([2].into(), [3].into()));
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_restore_one_backup_begin_different_epochs() {
    let dir = tempfile::TempDir::new().unwrap();
    let file = dir.path().join("backup");
    let cluster = Cluster::boot(plain, &[1], 1).await;
    insist(&cluster.store(1), put("a", "1")).await;
    back_up(&cluster.store(1), false, &file).await;
    cluster.stop_all().await;
    let [one, other] = ["one", "other"].map(|name| {
        let place = dir.path().join(name);
        std::fs::create_dir(&place).unwrap();
        restored(&file, &place, 9).unwrap()
    });
    assert!(one.epoch.is_beside(other.epoch) && one.epoch.is_after(EpochId::FIRST), "{one:?} {other:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_the_log_has_is_kept_and_an_empty_replica_cannot_recover() {
    let mut cluster = Cluster::boot(plain, &THREE, 3).await;
    let leader = cluster.leader(&THREE).await;
    let revision = insist(&cluster.store(leader), put("a", "1")).await;
    until("all have it", || THREE.iter().all(|id| cluster.store(*id).revision() >= revision)).await;
    cluster.net.isolate(leader, &THREE);
    let store = cluster.store(leader);
    let logged = cluster.status(leader).last_log_index;
    let uncommitted = tokio::spawn(async move { store.propose(put("b", "1")).await });
    until("it is in the log", || cluster.status(leader).last_log_index > logged).await;
    cluster.stop_all().await;
    let _ = uncommitted.await.unwrap();
    // Left by a refill of which there is nobody any more to catch up with.
    let behind = cluster.dir(leader).with_extension("behind");
    std::fs::write(&behind, b"").unwrap();
    let begun = recover(cluster.dir(leader), CLUSTER, leader).unwrap();
    assert!(!behind.exists());
    assert!(begun.unapplied > 0, "{begun:?}");
    cluster.net.heal();
    let store = cluster.start(leader).await;
    cluster.leader(&[leader]).await;
    store.barrier().await.unwrap();
    assert!(store.get(&key("b")).unwrap().is_some());
    drop(store);
    cluster.stop_all().await;

    cluster.start(7).await;
    cluster.stop(7).await;
    assert!(matches!(recover(cluster.dir(7), CLUSTER, 7), Err(RecoverError::Empty)));
    let nowhere = PathBuf::from("/nonexistent/flotilla");
    assert!(matches!(inspect(&nowhere, CLUSTER, 7), Err(RecoverError::Empty)));
    assert!(matches!(recover(cluster.dir(1), "other", 1), Err(RecoverError::Disk(_))));
}
