//! A node that reads from a slice: what it may read from next, and when it reads from its own replica.

mod cluster;

use std::collections::BTreeSet;
use std::time::Duration;

use cluster::{Cluster, WAIT, insist, key, put, until};
use flotilla_raft::{Options, Question, Range, ReadError, SliceRefused, SliceStart, SliceUpdate, Store};
use tokio::sync::mpsc;

const THREE: [u64; 3] = [1, 2, 3];

fn impatient(options: &mut Options) {
    options.request_timeout = Duration::from_millis(700);
}

/// The slice with everything of a replica, and where its questions arrive.
fn whole(replica: &Store) -> (SliceStart, mpsc::Receiver<Question>) {
    let (questions, asked) = mpsc::channel(8);
    let listing = replica.range(Range::default()).unwrap();
    let epoch = replica.status().borrow().epoch;
    let start =
        SliceStart { replica: replica.id(), epoch, objects: listing.items, revision: listing.revision, questions };
    (start, asked)
}

async fn in_time<T>(what: &str, wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(WAIT, wait).await.unwrap_or_else(|_| panic!("not within {WAIT:?}: {what}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_gets_a_replica_while_its_feed_is_broken_reads_from_the_replica() {
    let mut cluster = Cluster::boot(impatient, &THREE, 3).await;
    insist(&cluster.store(1), put("a", "1")).await;
    let node = cluster.start(4).await;
    let (start, asked) = whole(&cluster.store(2));
    let feed = node.read_slice(start).unwrap();
    // Who feeds is gone, and nobody takes its place.
    drop((feed, asked));
    assert!(matches!(node.barrier().await, Err(ReadError::NoLeader(_))));
    let after = insist(&cluster.store(1), put("b", "1")).await;
    assert_eq!(node.get(&key("b")).unwrap(), None);
    cluster.store(1).add_replica(4).await.unwrap();
    in_time("its own replica serves", node.until_own_replica_serves()).await;
    node.leave_slice();
    assert_eq!((node.fed_by(), node.barrier().await.unwrap()), (None, after));
    assert!(node.get(&key("b")).unwrap().is_some());
    drop(node);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_let_go_without_hearing_of_it_is_not_read_from() {
    let cluster = Cluster::boot(impatient, &[1, 2, 3, 4], 3).await;
    let leader = cluster.leader(&THREE).await;
    let gone = *cluster.status(leader).learners.first().unwrap();
    insist(&cluster.store(leader), put("x", "1")).await;
    let before = insist(&cluster.store(leader), put("y", "1")).await;
    cluster.store(gone).reach(before).await.unwrap();
    let mut pages = cluster.store(gone).pages(Range { limit: 1, ..Range::default() });
    assert_eq!(pages.next().unwrap().unwrap().len(), 1);
    cluster.net.isolate(gone, &[1, 2, 3, 4]);
    cluster.store(leader).remove_replica(gone).await.unwrap();
    let last = insist(&cluster.store(leader), put("a", "1")).await;
    cluster.net.heal();
    let node = cluster.store(gone);
    assert!(cluster.status(gone).learners.contains(&gone), "it takes itself for a member");
    let (start, mut asked) = whole(&cluster.store(leader));
    let feed = node.read_slice(start).unwrap();
    assert!(
        matches!(pages.next(), Some(Err(ReadError::Compacted { .. }))),
        "what was begun with all does not end with a part"
    );
    assert!(pages.next().is_none());
    let feeding = async {
        while let Some(told) = asked.recv().await {
            feed.apply(SliceUpdate { upto: last, ..SliceUpdate::default() });
            told.send(last).unwrap();
        }
    };
    let long = tokio::time::timeout(Duration::from_secs(3), node.until_own_replica_serves());
    tokio::select! {
        ended = long => assert!(ended.is_err(), "it left its slice for a replica that nobody keeps up to date"),
        () = feeding => {}
    }
    drop((node, feed));
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_read_never_goes_back_and_who_leads_reads_everything() {
    let mut cluster = Cluster::boot(impatient, &THREE, 3).await;
    insist(&cluster.store(1), put("a", "1")).await;
    let (old, _old_asked) = whole(&cluster.store(1));
    let last = insist(&cluster.store(1), put("a", "2")).await;
    let node = cluster.start(4).await;
    let (start, _asked) = whole(&cluster.store(1));
    let begins = old.revision;
    node.read_slice(start).unwrap();
    let refused = node.read_slice(old).err();
    assert_eq!(refused, Some(SliceRefused::Behind { begins, shown: last }));
    assert_eq!(node.revision(), last);
    let leader = cluster.leader(&THREE).await;
    let (start, _asked) = whole(&cluster.store(leader));
    assert_eq!(cluster.store(leader).read_slice(start).err(), Some(SliceRefused::Leads));
    assert_eq!(cluster.store(leader).fed_by(), None);
    drop(node);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_barrier_waits_for_the_next_slice_and_so_does_who_waits_for_a_revision() {
    let mut cluster = Cluster::boot(|_| {}, &THREE, 3).await;
    insist(&cluster.store(1), put("a", "1")).await;
    let node = cluster.start(4).await;
    let (start, asked) = whole(&cluster.store(1));
    let feed = node.read_slice(start).unwrap();
    drop((feed, asked));
    let last = insist(&cluster.store(1), put("b", "1")).await;
    let next = async {
        // Not before somebody waits.
        tokio::task::yield_now().await;
        until("the feeder has it", || cluster.store(2).revision() >= last).await;
        let (start, mut asked) = whole(&cluster.store(2));
        let _feed = node.read_slice(start).unwrap();
        while let Some(told) = asked.recv().await {
            told.send(last).unwrap();
        }
    };
    let waiting = async { tokio::join!(node.barrier(), node.reach(last)) };
    tokio::select! {
        (barrier, reached) = waiting => assert_eq!((barrier.unwrap(), reached.unwrap()), (last, last)),
        () = next => {}
    }
    assert_eq!(node.count(&Range::default(), 10).unwrap(), Some(2));
    assert_eq!(node.count(&Range::default(), 1).unwrap(), None);
    drop(node);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_feeder_is_gone_asks_the_leader_that_its_replica_knows() {
    let mut cluster = Cluster::boot(impatient, &[1, 2, 3, 4], 3).await;
    let leader = cluster.leader(&THREE).await;
    let node = cluster.status(leader).learners.first().copied().unwrap();
    let feeder = *cluster.status(leader).voters.iter().find(|id| **id != leader).unwrap();
    let (start, _asked) = whole(&cluster.store(feeder));
    let _feed = cluster.store(node).read_slice(start).unwrap();
    cluster.stop(feeder).await;
    in_time("a write by way of the leader", async {
        while cluster.store(node).propose(put("a", "1")).await.is_err() {}
    })
    .await;
    cluster.start(feeder).await;
    let alive: BTreeSet<u64> = [1, 2, 3, 4].into();
    _ = cluster.store(leader).reconcile_membership(&alive).await;
    drop(_feed);
    cluster.stop_all().await;
}
