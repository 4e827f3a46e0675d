//! A disk that does not keep what it was given: the replica notices, serves none of it, and is made anew from the others.

mod cluster;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use cluster::{Cluster, insist, key, put, until};
use flotilla_raft::{Options, Range, ReadError};

const THREE: [u64; 3] = [1, 2, 3];
const OBJECTS: usize = 60;

/// So that the state has tables and the log is purged now and then.
fn forgetful(options: &mut Options) {
    options.snapshot_entries = 20;
    options.log_keep_entries = 5;
}

/// Where what is to be damaged lies.
#[derive(Clone, Copy, Debug)]
enum Place {
    Journal,
    LogTable,
    StateTable,
}

/// The largest such file of a replica.
fn file(dir: &Path, place: Place) -> PathBuf {
    let (database, part, extension) = match place {
        Place::Journal => ("log", "journal", None),
        Place::LogTable => ("log", "", Some("sst")),
        Place::StateTable => ("state-", "", Some("sst")),
    };
    let databases = fs::read_dir(dir).unwrap().map(|item| item.unwrap().path());
    let files = databases
        .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(database) && path.is_dir())
        .flat_map(|path| fs::read_dir(path.join(part)).unwrap().map(|item| item.unwrap().path()))
        .filter(|path| path.extension().and_then(|found| found.to_str()) == extension);
    files.max_by_key(|path| path.metadata().unwrap().len()).unwrap_or_else(|| panic!("nothing at {place:?}"))
}

/// How much of a file was written; the journal's is longer from the beginning.
fn written_bytes(path: &Path) -> usize {
    fs::read(path).unwrap().iter().rposition(|byte| *byte != 0).unwrap() + 1
}

fn flip(path: &Path, at: usize) {
    let flipped = fs::read(path).unwrap()[at] ^ (1 << (at % 8));
    fs::File::options().write(true).open(path).unwrap().write_all_at(&[flipped], at as u64).unwrap();
}

fn others(id: u64) -> Vec<u64> {
    THREE.into_iter().filter(|other| *other != id).collect()
}

/// What a disk may do to the end of a file in a power loss, though it said that it is there.
fn garble_tail(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let end = written_bytes(path);
    bytes[end - end / 4..end].iter_mut().enumerate().for_each(|(at, byte)| *byte = (at * 37 + 11) as u8);
    fs::write(path, bytes).unwrap();
}

/// Displaces what this process has read of other databases: a replica that starts has nothing in memory.
async fn forget_what_was_read() {
    let mut cluster = Cluster::boot(forgetful, &[9], 1).await;
    for i in 0..300_u32 {
        let noise: String =
            (0..16_000_u32).map(|at| char::from(b'a' + (at.wrapping_mul(i * i + 7) >> 7) as u8 % 26)).collect();
        insist(&cluster.store(9), put(&format!("noise{i:03}"), &noise.repeat(4))).await;
    }
    cluster.stop(9).await;
    let store = cluster.start(9).await;
    assert_eq!(store.range(Range::default()).unwrap().items.len(), 300);
    drop(store);
    cluster.stop_all().await;
}

/// A cluster with something in it that every replica has.
async fn filled() -> Cluster {
    let cluster = Cluster::boot(forgetful, &THREE, 3).await;
    for i in 0..OBJECTS {
        insist(&cluster.store(1), put(&format!("k{i:03}"), &"x".repeat(300))).await;
    }
    until("all have it", || THREE.iter().all(|id| cluster.store(*id).revision() >= OBJECTS as u64)).await;
    cluster
}

/// The same, and a replica of it that is stopped.
async fn with_one_stopped(leads: bool) -> (Cluster, u64) {
    let cluster = filled().await;
    let leader = cluster.leader(&THREE).await;
    let stopped = THREE.into_iter().find(|id| (*id == leader) == leads).unwrap();
    cluster.stop(stopped).await;
    forget_what_was_read().await;
    (cluster, stopped)
}

/// Starts a replica on a damaged disk, reads all that it has, and has it made anew if need be. Returns whether it was.
async fn comes_back(cluster: &mut Cluster, id: u64) -> bool {
    let others = others(id);
    let written = insist(&cluster.store(others[0]), put("meanwhile", "y")).await;
    let damaged = match cluster.try_start(id).await {
        Err(error) => {
            println!("{error}");
            assert!(
                cluster.try_start(id).await.is_err_and(|error| error.contains("damaged")),
                "once damaged, always damaged"
            );
            true
        }
        Ok(store) => {
            match store.range(Range::default()) {
                Ok(listing) => {
                    let found = listing.items.iter().filter(|kv| kv.value.as_ref() == "x".repeat(300).as_bytes());
                    assert_eq!(found.count(), OBJECTS, "damaged objects are served");
                }
                Err(ReadError::Damaged(_)) => until("it stops", || cluster.status(id).fatal.is_some()).await,
                Err(error) => panic!("{error}"),
            }
            let damaged = cluster.status(id).fatal.is_some();
            if damaged {
                drop(store);
                cluster.stop(id).await;
                assert!(
                    cluster.try_start(id).await.is_err_and(|error| error.contains("damaged")),
                    "once damaged, always damaged"
                );
            }
            damaged
        }
    };
    if damaged {
        cluster.refill(id).await;
        cluster.start(id).await;
        assert_eq!(cluster.store(id).revision(), 0, "it begins with nothing");
        let leader = cluster.leader(&others).await;
        assert!(!cluster.status(leader).voters.contains(&id), "nobody counts on it");
        cluster.store(leader).add_replica(id).await.unwrap();
    }
    cluster.grow(&THREE, 3).await;
    until("it has it all", || cluster.store(id).revision() >= written).await;
    let listings: Vec<_> = THREE.iter().map(|id| cluster.store(*id).range(Range::default()).unwrap()).collect();
    assert!(listings.windows(2).all(|pair| pair[0].items == pair[1].items), "replicas differ");
    assert_eq!(listings[0].items.len(), OBJECTS + 1);
    damaged
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_either_database_is_never_served() {
    let mut refilled = 0;
    for (place, share) in [(Place::Journal, 2), (Place::LogTable, 10), (Place::StateTable, 3), (Place::StateTable, 10)]
    {
        let (mut cluster, id) = with_one_stopped(false).await;
        let path = file(cluster.dir(id), place);
        flip(&path, written_bytes(&path) / share);
        let damaged = comes_back(&mut cluster, id).await;
        println!("{place:?}, a bit at one part in {share}: {}", if damaged { "made anew" } else { "not needed" });
        refilled += usize::from(damaged);
        cluster.stop_all().await;
    }
    assert!(refilled >= 3, "{refilled}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_garbled_tail_of_the_log_is_fetched_from_the_others() {
    let (mut cluster, id) = with_one_stopped(true).await;
    garble_tail(&file(cluster.dir(id), Place::Journal));
    assert!(comes_back(&mut cluster, id).await, "a log with a garbled tail is taken");
    // It has a vote again and counts: with one of the others gone, writes go on.
    let other = THREE.into_iter().find(|other| *other != id).unwrap();
    cluster.stop(other).await;
    insist(&cluster.store(id), put("after", "z")).await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_reads_damage_goes_and_sends_it_to_nobody() {
    let mut cluster = filled().await;
    // The log is purged in batches; with all of it there, nobody would need a copy.
    for i in 0..300 {
        insist(&cluster.store(1), put("busy", &i.to_string())).await;
    }
    forget_what_was_read().await;
    let id = cluster.leader(&THREE).await;
    let (store, others) = (cluster.store(id), others(id));
    let path = file(cluster.dir(id), Place::StateTable);
    // Where its objects are: what only helps to find them is read when one is looked for.
    flip(&path, fs::metadata(&path).unwrap().len() as usize / 10);
    // A new replica has to be given a copy.
    cluster.start(4).await;
    store.add_replica(4).await.unwrap();
    until("it stops", || cluster.status(id).fatal.is_some()).await;
    assert_eq!(cluster.store(4).revision(), 0, "the new one was given something");
    drop(store);
    cluster.stop(id).await;
    insist(&cluster.store(others[0]), put("after", "z")).await;
    let three = [others[0], others[1], 4];
    until("the new one has it from another", || cluster.store(4).get(&key("after")).unwrap().is_some()).await;
    cluster.refill(id).await;
    let leader = cluster.leader(&three).await;
    assert!(!cluster.status(leader).voters.contains(&id));
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_leader_nothing_is_emptied() {
    let (mut cluster, id) = with_one_stopped(false).await;
    garble_tail(&file(cluster.dir(id), Place::Journal));
    assert!(cluster.try_start(id).await.is_err());
    let others = others(id);
    cluster.stop(others[0]).await;
    let alone = cluster.try_refill(id).await;
    assert!(alone.is_err() && cluster.dir(id).join("damaged").exists(), "{alone:?}");
    cluster.start(others[0]).await;
    cluster.refill(id).await;
    assert!(!cluster.dir(id).exists());
    cluster.stop_all().await;
}
