//! Old and new builds side by side: what a new one can do is not done before all can.

mod cluster;

use std::time::Duration;

use cluster::{Cluster, insist, key, put, until};
use flotilla_raft::{Options, Store};

const THREE: [u64; 3] = [1, 2, 3];

/// A build that understands one set of commands more than this one.
fn new(options: &mut Options) {
    options.command_version += 1;
    forgetful(options);
}

fn forgetful(options: &mut Options) {
    options.snapshot_entries = 20;
    options.log_keep_entries = 5;
}

/// Writes for so long that the leader has looked at what the others understand.
async fn write_for_a_while(store: &Store) {
    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_millis(2500) {
        insist(store, put("a", "x")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_are_new_when_all_members_are_and_an_old_build_stops_then() {
    let mut cluster = Cluster::boot(forgetful, &THREE, 3).await;
    until("they agree on what they have", || THREE.iter().all(|id| cluster.status(*id).version == 1)).await;

    // One after the other is replaced, under writes; two new ones of three are not enough.
    cluster.retune(new);
    for id in [1, 2] {
        cluster.stop(id).await;
        cluster.start(id).await;
        insist(&cluster.store(3), put("a", &id.to_string())).await;
    }
    if cluster.leader(&THREE).await == 3 {
        cluster.store(3).transfer_leader(Some(1)).await.unwrap();
    }
    write_for_a_while(&cluster.store(2)).await;
    assert!(THREE.iter().all(|id| cluster.status(*id).version == 1), "an old member holds it where it is");

    cluster.stop(3).await;
    cluster.start(3).await;
    let last = insist(&cluster.store(3), put("b", "x")).await;
    until("all may do new things", || THREE.iter().all(|id| cluster.status(*id).version == 2)).await;
    insist(&cluster.store(1), put("c", "x")).await;

    // There is no way back for a member, whose build would misread what follows.
    cluster.stop(3).await;
    cluster.retune(forgetful);
    let refused = cluster.try_start(3).await.err().expect("an old build does not start");
    assert!(
        refused.contains("takes commands of version 2, this build understands 1: use a newer flotilla"),
        "{refused}"
    );
    cluster.retune(new);
    cluster.start(3).await;

    // Nor can an old build become a member.
    cluster.retune(forgetful);
    let old = cluster.start(4).await;
    cluster.store(1).add_replica(4).await.unwrap();
    write_for_a_while(&cluster.store(1)).await;
    assert!(old.revision() <= last, "it has applied {} of what it does not understand", old.revision());
    assert!(old.get(&key("c")).unwrap().is_none());
    cluster.store(1).remove_replica(4).await.unwrap();
    insist(&cluster.store(2), put("d", "x")).await;
    drop(old);
    cluster.stop_all().await;
}
