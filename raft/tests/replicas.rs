//! Several replicas: what holds while they come, go, stop and lose each other.

mod cluster;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cluster::{Cluster, WAIT, insist, key, put, until};
use flotilla_raft::{Options, ProposeError, Range, Store, Watch, WatchItem};

fn plain(_: &mut Options) {}

/// So that a replica that was away needs a snapshot.
fn forgetful(options: &mut Options) {
    options.snapshot_entries = 20;
    options.log_keep_entries = 5;
}

const THREE: [u64; 3] = [1, 2, 3];

async fn same_everywhere(cluster: &Cluster, ids: &[u64], revision: u64) {
    for id in ids {
        let store = cluster.store(*id);
        until("every replica has everything", || store.revision() >= revision).await;
    }
    let listings: Vec<_> = ids.iter().map(|id| cluster.store(*id).range(Range::default()).unwrap()).collect();
    assert!(listings.windows(2).all(|pair| pair[0] == pair[1]), "replicas differ");
}

async fn follow(watch: &mut Watch, upto: u64) -> Vec<u64> {
    let mut seen = Vec::new();
    while watch.next_revision() <= upto {
        match tokio::time::timeout(WAIT, watch.next()).await.expect("an item in time").expect("an open watch") {
            WatchItem::Events(events, _) => seen.extend(events.iter().map(|e| e.revision())),
            WatchItem::Progress(_) => {}
            WatchItem::Compacted(at) => panic!("compacted at {at}"),
        }
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn three_replicate_and_any_takes_writes_and_reads() {
    let cluster = Cluster::boot(plain, &THREE, 3).await;
    let mut last = 0;
    for i in 0..30_u64 {
        let store = cluster.store(1 + i % 3);
        last = insist(&store, put(&format!("k{i}"), "x")).await;
        let reader = cluster.store(1 + (i + 1) % 3);
        reader.barrier().await.unwrap();
        assert!(reader.get(&key(&format!("k{i}"))).unwrap().is_some(), "a read after a barrier sees k{i}");
    }
    assert_eq!(last, 30);
    same_everywhere(&cluster, &THREE, last).await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_restarted_at_once_have_every_acknowledged_write() {
    let mut cluster = Cluster::boot(plain, &THREE, 3).await;
    let mut last = 0;
    for i in 0..40 {
        last = insist(&cluster.store(1), put(&format!("k{i}"), "x")).await;
    }
    cluster.stop_all().await;
    for id in THREE {
        cluster.start(id).await;
    }
    cluster.leader(&THREE).await;
    let store = cluster.store(2);
    assert_eq!(store.barrier().await.unwrap(), last);
    assert_eq!(store.range(Range::default()).unwrap().items.len(), 40);
    drop(store);
    insist(&cluster.store(3), put("after", "x")).await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_leader_is_followed_by_another() {
    let mut cluster = Cluster::boot(plain, &THREE, 3).await;
    for round in 0..3 {
        let before = insist(&cluster.store(1), put(&format!("before{round}"), "x")).await;
        let lost = cluster.leader(&THREE).await;
        cluster.stop(lost).await;
        let rest: Vec<u64> = THREE.into_iter().filter(|id| *id != lost).collect();
        let began = Instant::now();
        let after = insist(&cluster.store(rest[0]), put(&format!("after{round}"), "x")).await;
        println!("writes again after {:?}", began.elapsed());
        assert!(after > before);
        cluster.start(lost).await;
        same_everywhere(&cluster, &THREE, after).await;
    }
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_cut_off_takes_no_writes_and_comes_back_a_follower() {
    let cluster = Cluster::boot(plain, &THREE, 3).await;
    insist(&cluster.store(1), put("a", "before")).await;
    let old = cluster.leader(&THREE).await;
    let rest: Vec<u64> = THREE.into_iter().filter(|id| *id != old).collect();
    let term = cluster.status(old).term;
    cluster.net.isolate(old, &THREE);

    let lonely = cluster.store(old);
    let lost = tokio::spawn(async move { lonely.propose(put("a", "lonely")).await });
    let after = insist(&cluster.store(rest[0]), put("a", "after")).await;
    let new = cluster.leader(&rest).await;
    assert!(cluster.status(new).term > term);
    match lost.await.unwrap() {
        Err(ProposeError::NoLeader(_) | ProposeError::Unknown(_)) => {}
        other => panic!("{other:?}"),
    }
    assert!(cluster.store(old).barrier().await.is_err(), "a leader alone cannot serve linearizable reads");

    cluster.net.heal();
    same_everywhere(&cluster, &THREE, after).await;
    until("the old leader follows", || cluster.status(old).leader == Some(new)).await;
    assert_eq!(cluster.store(old).get(&key("a")).unwrap().unwrap().value.as_ref(), b"after");
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_a_deposed_leaders_term_does_not_land() {
    let cluster = Cluster::boot(plain, &THREE, 3).await;
    let old = cluster.leader(&THREE).await;
    let term = cluster.status(old).term;
    cluster.store(old).transfer_leader(None).await.unwrap();
    let new = cluster.leader(&THREE).await;
    assert_ne!(new, old);
    let late = flotilla_api::Change { term: Some(term), ..put("a", "late") };
    assert!(
        matches!(cluster.store(old).propose(late).await, Err(ProposeError::StaleTerm { wanted, .. }) if wanted == term)
    );
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_slow_and_the_empty_catch_up_by_snapshot_while_writes_go_on() {
    let mut cluster = Cluster::boot(forgetful, &THREE, 3).await;
    let leader = cluster.leader(&THREE).await;
    let slow = THREE.into_iter().find(|id| *id != leader).unwrap();
    let mut watch = cluster.store(slow).watch("core/configmaps/", 0).await.unwrap();
    let first = watch.next_revision();
    cluster.net.isolate(slow, &THREE);
    for i in 0..120 {
        insist(&cluster.store(leader), put(&format!("k{}", i % 40), &format!("{i}"))).await;
    }
    let going = Arc::new(AtomicBool::new(true));
    let writer = tokio::spawn(keep_writing(cluster.store(leader), going.clone()));
    cluster.net.heal();
    let reached = cluster.store(leader).revision();
    until("the slow one has caught up", || cluster.store(slow).revision() >= reached).await;
    // An open watch misses nothing over the snapshot, since history came with it.
    assert_eq!(
        follow(&mut watch, reached).await.into_iter().filter(|r| *r <= reached).collect::<Vec<_>>(),
        (first..=reached).collect::<Vec<_>>()
    );

    // A new replica has nothing at all.
    cluster.start(4).await;
    cluster.store(leader).add_replica(4).await.unwrap();
    until("the empty one has caught up", || cluster.store(4).revision() >= reached).await;
    going.store(false, Ordering::Relaxed);
    let last = writer.await.unwrap();
    drop(watch);
    same_everywhere(&cluster, &[1, 2, 3, 4], last).await;
    cluster.stop_all().await;

    // What a snapshot brought survives a restart.
    for id in [1, 2, 3, 4] {
        cluster.start(id).await;
    }
    same_everywhere(&cluster, &[1, 2, 3, 4], last).await;
    cluster.stop_all().await;
}

async fn keep_writing(store: Store, going: Arc<AtomicBool>) -> u64 {
    let (mut i, mut last) = (0, 0);
    while going.load(Ordering::Relaxed) {
        last = insist(&store, put(&format!("w{}", i % 10), "x")).await;
        i += 1;
    }
    last
}

#[tokio::test(flavor = "multi_thread")]
async fn voters_grow_to_five_and_shrink_to_one() {
    let mut cluster = Cluster::boot(plain, &[1], 1).await;
    cluster.start(2).await;
    cluster.store(1).add_replica(2).await.unwrap();
    insist(&cluster.store(2), put("a", "1")).await;
    cluster.grow(&[1, 2], 1).await;
    for (id, voters) in [(3, 3), (4, 3), (5, 5)] {
        cluster.start(id).await;
        cluster.store(2).add_replica(id).await.unwrap();
        cluster.grow(&(1..=id).collect::<Vec<_>>(), voters).await;
    }
    insist(&cluster.store(5), put("b", "1")).await;
    let mut left: BTreeSet<u64> = (1..=5).collect();
    for (gone, voters) in [(5, 3), (1, 3), (4, 1), (3, 1)] {
        cluster.store(gone).remove_replica(gone).await.unwrap();
        left.remove(&gone);
        let ids: Vec<u64> = left.iter().copied().collect();
        cluster.grow(&ids, voters).await;
        until("it is gone", || {
            let status = cluster.status(ids[0]);
            !status.voters.contains(&gone) && !status.learners.contains(&gone)
        })
        .await;
        cluster.stop(gone).await;
        insist(&cluster.store(ids[0]), put("c", &gone.to_string())).await;
    }
    assert_eq!(cluster.status(2).voters, BTreeSet::from([2]));
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_voter_is_replaced_after_a_time() {
    let cluster =
        Cluster::boot(|options| options.replace_dead_after = Duration::from_millis(300), &[1, 2, 3, 4], 3).await;
    let leader = cluster.leader(&[1, 2, 3, 4]).await;
    let status = cluster.status(leader);
    let dead = *status.voters.iter().find(|id| **id != leader).unwrap();
    let heir = *status.learners.first().unwrap();
    cluster.stop(dead).await;
    let alive: BTreeSet<u64> = [1, 2, 3, 4].into_iter().filter(|id| *id != dead).collect();
    let deadline = Instant::now() + WAIT;
    while cluster.status(leader).voters.contains(&dead) {
        assert!(Instant::now() < deadline, "never replaced");
        let _ = cluster.store(leader).reconcile_membership(&alive).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let voters = cluster.status(leader).voters;
    assert!(voters.len() == 3 && voters.contains(&heir), "{voters:?}");
    cluster.stop_all().await;
}

/// A file system of its own that can be frozen: everything that wants to write to it hangs.
struct Freezer {
    _image: tempfile::NamedTempFile,
    mount: tempfile::TempDir,
}

fn run(program: &str, arguments: &[&str]) {
    let done = std::process::Command::new(program).args(arguments).output().unwrap();
    assert!(done.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
}

impl Freezer {
    fn new() -> Self {
        let (image, mount) = (tempfile::NamedTempFile::new().unwrap(), tempfile::TempDir::new().unwrap());
        image.as_file().set_len(128 << 20).unwrap();
        run("mkfs.ext4", &["-q", "-F", image.path().to_str().unwrap()]);
        run("mount", &["-o", "loop", image.path().to_str().unwrap(), mount.path().to_str().unwrap()]);
        Self { _image: image, mount }
    }

    fn freeze(&self) {
        run("fsfreeze", &["--freeze", self.mount.path().to_str().unwrap()]);
    }

    fn thaw(&self) {
        run("fsfreeze", &["--unfreeze", self.mount.path().to_str().unwrap()]);
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        let path = self.mount.path().to_str().unwrap();
        // Frozen it cannot be unmounted; not frozen this says so, and nobody minds.
        let _ = std::process::Command::new("fsfreeze").args(["--unfreeze", path]).output();
        let _ = std::process::Command::new("umount").args(["--lazy", path]).output();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_leader_whose_disk_hangs_hands_over() {
    let freezer = Freezer::new();
    let mut cluster = Cluster::boot(plain, &[1, 2], 1).await;
    cluster.start_in(3, freezer.mount.path()).await;
    cluster.store(1).add_replica(3).await.unwrap();
    cluster.grow(&THREE, 3).await;
    if cluster.leader(&THREE).await != 3 {
        cluster.store(1).transfer_leader(Some(3)).await.unwrap();
    }
    until("the one with the bad disk leads", || cluster.status(1).leader == Some(3)).await;
    insist(&cluster.store(1), put("a", "1")).await;

    freezer.freeze();
    let began = Instant::now();
    let writer = cluster.store(3);
    let stuck = tokio::spawn(async move { writer.propose(put("stuck", "1")).await });
    until("another leads", || cluster.status(1).leader.is_some_and(|l| l != 3)).await;
    insist(&cluster.store(1), put("b", "1")).await;
    println!("writes again {:?} after the disk hung", began.elapsed());
    freezer.thaw();
    let _ = stuck.await.unwrap();
    let last = insist(&cluster.store(2), put("c", "1")).await;
    same_everywhere(&cluster, &THREE, last).await;
    cluster.stop_all().await;
}
