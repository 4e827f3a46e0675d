//! One replica alone: the store's rules as its user meets them.

mod cluster;

use cluster::{Cluster, WAIT, insist, key, put, until};
use flotilla_api::{Change, Expect, GroupResource, Key};
use flotilla_raft::{Event, OpenError, Options, ProposeError, Range, ReadError, Store, WatchItem};
use futures::FutureExt;

fn plain(_: &mut Options) {}

async fn events(watch: &mut flotilla_raft::Watch, upto: u64) -> Vec<Event> {
    let mut seen = Vec::new();
    while watch.next_revision() <= upto {
        match tokio::time::timeout(WAIT, watch.next()).await.expect("an item in time").expect("an open watch") {
            WatchItem::Events(events, _) => seen.extend(events),
            WatchItem::Progress(_) => {}
            WatchItem::Compacted(at) => panic!("compacted at {at}"),
        }
    }
    seen
}

fn revisions(events: &[Event]) -> Vec<u64> {
    events.iter().map(Event::revision).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_reads_and_conflicts() {
    let cluster = Cluster::boot(plain, &[1], 1).await;
    let store = cluster.store(1);
    let applied = store.propose(put("a", "1").put(key("b"), "2".into())).await.unwrap();
    assert_eq!((applied.first_revision, applied.revision), (1, 2));
    assert_eq!(store.barrier().await.unwrap(), 2);
    let a = store.get(&key("a")).unwrap().unwrap();
    assert_eq!((a.value.as_ref(), a.create_revision, a.mod_revision), (b"1".as_slice(), 1, 1));

    let stale = Change::new("t", "t").update(key("a"), 7, "x".into()).put(key("c"), "x".into());
    let Err(ProposeError::Conflict(conflict)) = store.propose(stale).await else { panic!("applied") };
    assert_eq!((conflict.key, conflict.expect, conflict.found), (key("a"), Expect::ModRevision(7), Some(1)));
    assert_eq!(store.get(&key("c")).unwrap(), None, "a refused change writes nothing");

    let elsewhere = Change::new("t", "t").require(key("gone"), Expect::Exists).put(key("a"), "x".into());
    assert!(matches!(store.propose(elsewhere).await, Err(ProposeError::Conflict(_))));
    let updated = store.propose(Change::new("t", "t").update(key("a"), 1, "3".into())).await.unwrap();
    assert_eq!(updated.revision, 3);
    assert_eq!(store.get(&key("a")).unwrap().unwrap().create_revision, 1);
    assert_eq!(store.get_at(&key("a"), 2).unwrap().unwrap().value.as_ref(), b"1");

    let term = store.status().borrow().term;
    let deposed = Change { term: Some(term + 1), ..put("a", "x") };
    assert_eq!(store.propose(deposed).await, Err(ProposeError::StaleTerm { wanted: term + 1, current: term }));
    let reigning = Change { term: Some(term), ..put("a", "4") };
    assert_eq!(store.propose(reigning).await.unwrap().revision, 4);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_one_revision() {
    let cluster = Cluster::boot(plain, &[1], 1).await;
    let store = cluster.store(1);
    for name in ["a", "b", "c", "d"] {
        insist(&store, put(name, "old")).await;
    }
    let prefix = GroupResource::new("", "configmaps").prefix();
    let first = store.range(Range { limit: 2, ..Range::prefix(&prefix) }).unwrap();
    assert_eq!((first.items.len(), first.more, first.revision), (2, true, 4));

    let mut begun = store.pages(Range { limit: 1, ..Range::prefix(&prefix) });
    assert_eq!(begun.next().unwrap().unwrap(), first.items[..1]);
    let meanwhile = Change::new("t", "t").delete(key("c")).put(key("d"), "new".into()).put(key("e"), "new".into());
    insist(&store, meanwhile).await;
    let rest = Range {
        after: Some(first.items[1].key.as_str().into()),
        revision: Some(first.revision),
        ..Range::prefix(&prefix)
    };
    let rest = store.range(rest).unwrap();
    let seen: Vec<_> = rest.items.iter().map(|kv| (kv.key.name(), kv.value.as_ref())).collect();
    assert_eq!(seen, [("c", b"old".as_slice()), ("d", b"old")]);
    assert!(!rest.more);

    let mut paged = begun.next().unwrap().unwrap();
    insist(&store, Change::new("t", "t").put(key("b"), "new".into()).put(key("c"), "new".into()).delete(key("d")))
        .await;
    paged.extend(begun.by_ref().flat_map(Result::unwrap));
    assert_eq!(
        paged,
        [&first.items[1..], &rest.items].concat(),
        "what has changed once more is as it was before all that"
    );
    assert!(begun.is_over() && begun.revision() == first.revision);

    let now = store.range(Range::prefix(&prefix)).unwrap();
    assert_eq!(now.items.iter().map(|kv| kv.key.name()).collect::<Vec<_>>(), ["a", "b", "c", "e"]);
    let future = store.range(Range { revision: Some(99), ..Range::prefix(&prefix) });
    assert!(matches!(future, Err(ReadError::Future { wanted: 99, current: 10 })));
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_sees_each_change_whole_and_knows_what_was_before() {
    let cluster = Cluster::boot(plain, &[1], 1).await;
    let store = cluster.store(1);
    insist(&store, put("a", "1").put(key("b"), "1".into())).await;
    let mut watch = store.watch("core/configmaps/", 1).await.unwrap();
    let last =
        insist(&store, Change::new("t", "t").put(key("a"), "2".into()).delete(key("b")).delete(key("none"))).await;
    assert_eq!(last, 5);
    let seen = events(&mut watch, last).await;
    assert_eq!(revisions(&seen), [1, 2, 3, 4]);
    assert_eq!(seen[2].prev().unwrap().value.as_ref(), b"1");
    assert!(matches!(&seen[3], Event::Delete { prev, .. } if prev.value.as_ref() == b"1"));

    // In the middle of a change, from a watch of its own.
    let mut inside = store.watch("core/configmaps/", 4).await.unwrap();
    assert_eq!(revisions(&events(&mut inside, last).await), [4]);

    // What changes elsewhere wakes nobody, and can be asked for.
    let mut other = store.watch("core/pods/", 0).await.unwrap();
    let last = insist(&store, put("a", "3")).await;
    assert_eq!((other.next().now_or_never(), other.seen()), (None, last));
    let mut elsewhere = store.watch("core/configmaps/elsewhere/", 0).await.unwrap();
    let last = insist(&store, put("a", "4")).await;
    assert_eq!(tokio::time::timeout(WAIT, elsewhere.next()).await.unwrap(), Some(WatchItem::Progress(last)));
    drop((watch, inside, other, elsewhere));
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn compaction_ends_watches_that_missed_something() {
    let cluster = Cluster::boot(plain, &[1], 1).await;
    let store = cluster.store(1);
    for value in ["1", "2", "3", "4"] {
        insist(&store, put("a", value)).await;
    }
    let mut behind = store.watch("", 1).await.unwrap();
    store.compact(2).await.unwrap();
    assert!(matches!(store.watch("", 2).await, Err(ReadError::Compacted { wanted: 2, oldest: 3 })));
    assert!(matches!(store.get_at(&key("a"), 1), Err(ReadError::Compacted { .. })));
    assert_eq!(store.get_at(&key("a"), 2).unwrap().unwrap().value.as_ref(), b"2");
    let mut rest = store.watch("", 3).await.unwrap();
    assert_eq!(revisions(&events(&mut rest, 4).await), [3, 4]);
    // The ring still has what history has forgotten.
    assert_eq!(revisions(&events(&mut behind, 4).await), [1, 2, 3, 4]);
    drop((behind, rest, store));
    cluster.stop_all().await;

    // After a restart only history is left.
    let mut cluster = cluster;
    let store = cluster.start(1).await;
    cluster.leader(&[1]).await;
    assert!(matches!(store.watch("", 1).await, Err(ReadError::Compacted { .. })));
    let mut rest = store.watch("", 3).await.unwrap();
    assert_eq!(revisions(&events(&mut rest, 4).await), [3, 4]);
    drop((rest, store));
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_left_behind_goes_on_from_history_or_ends_as_compacted() {
    let cluster = Cluster::boot(plain, &[1], 1).await;
    let store = cluster.store(1);
    let mut behind = store.watch("core/configmaps/", 0).await.unwrap();
    let mut lost = store.watch("core/configmaps/", 0).await.unwrap();
    // More than is kept in memory for watchers.
    let mut last = 0;
    for i in 0..80 {
        last = insist(&store, put(&format!("k{i}"), &"x".repeat(100_000))).await;
    }
    assert_eq!(revisions(&events(&mut behind, last).await), (1..=last).collect::<Vec<_>>());
    store.compact(10).await.unwrap();
    assert_eq!(lost.next().await, Some(WatchItem::Compacted(10)));
    assert_eq!(lost.next().await, None);
    drop((behind, lost, store));
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_watch_outlives_the_history_that_it_need_not_look_at() {
    let mut cluster = Cluster::boot(plain, &[1], 1).await;
    let store = cluster.store(1);
    let elsewhere = async |store: &Store, count: usize| {
        let mut last = 0;
        for i in 0..count {
            let pod = Key::new(&GroupResource::new("", "pods"), "default", &format!("p{i}"));
            last = insist(store, Change::new("t", "t").put(pod, "x".repeat(100_000).into())).await;
        }
        last
    };
    let told = insist(&store, put("a", "1")).await;
    // It goes on from what it was told last, as a client does; more than memory keeps happens elsewhere.
    let mut quiet = store.watch("core/configmaps/", told + 1).await.unwrap();
    let last = elsewhere(&store, 80).await;
    store.compact(last).await.unwrap();
    assert!(matches!(store.watch("core/configmaps/", told + 1).await, Err(ReadError::Compacted { .. })));
    assert_eq!((quiet.seen(), quiet.next_revision()), (last, last + 1));
    let told = insist(&store, put("a", "2")).await;
    assert_eq!(quiet.seen(), last, "what it has yet to look at is not seen");
    assert_eq!(revisions(&events(&mut quiet, told).await), [told]);
    let last = elsewhere(&store, 2).await;
    assert_eq!(quiet.seen(), last);
    drop((quiet, store));
    cluster.stop_all().await;

    // A restart forgets what has not changed for how long: who comes back has to look.
    let store = cluster.start(1).await;
    cluster.leader(&[1]).await;
    let mut resumed = store.watch("core/configmaps/", told + 1).await.unwrap();
    assert_eq!(resumed.seen(), told);
    assert_eq!(revisions(&events(&mut resumed, last).await), [0; 0]);
    assert_eq!(resumed.seen(), last);
    drop((resumed, store));
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_finds_every_acknowledged_write_and_leads_in_a_new_term() {
    let mut cluster = Cluster::boot(plain, &[1], 1).await;
    for round in 0..3 {
        let store = cluster.store(1);
        let term = store.status().borrow().term;
        for i in 0..50 {
            insist(&store, put(&format!("{round}-{i}"), "x")).await;
        }
        drop(store);
        cluster.stop(1).await;
        let store = cluster.start(1).await;
        cluster.leader(&[1]).await;
        store.barrier().await.unwrap();
        // What it wrote before it died and did not keep, it may have given to others already.
        assert!(store.status().borrow().term > term, "it leads on in term {term}");
        assert_eq!(store.range(Range::default()).unwrap().items.len(), 50 * (round + 1));
        assert_eq!(store.revision(), 50 * (round as u64 + 1));
    }
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_another_cluster_or_node_is_refused() {
    let cluster = Cluster::boot(plain, &[1], 1).await;
    cluster.stop_all().await;
    for (id, name, complaint) in
        [(1, "other", "cluster other"), (2, "test-cluster", "0000000000000002"), (0, "x", "never 0")]
    {
        let refused = Store::open(Options::new(cluster.dir(1), id, name), std::sync::Arc::new(NoOne)).await;
        let Err(error) = refused else { panic!("{name} opened it") };
        assert!(error.to_string().contains(complaint), "{error}");
        assert!(matches!(error, OpenError::Disk(_) | OpenError::ZeroId));
    }
}

struct NoOne;

#[async_trait::async_trait]
impl flotilla_raft::Transport for NoOne {
    async fn call(
        &self,
        _: u64,
        _: bytes::Bytes,
        _: std::time::Duration,
    ) -> Result<bytes::Bytes, flotilla_raft::TransportError> {
        Err(flotilla_raft::TransportError::Unreachable("alone".into()))
    }

    async fn open_stream(
        &self,
        _: u64,
    ) -> Result<(flotilla_raft::Reader, flotilla_raft::Writer), flotilla_raft::TransportError> {
        Err(flotilla_raft::TransportError::Unreachable("alone".into()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_bounded_and_others_are_not() {
    let cluster = Cluster::boot(|options| options.events.max_count = 10, &[1], 1).await;
    let store = cluster.store(1);
    let event = |i: usize| Key::new(&GroupResource::new("events.k8s.io", "events"), "default", &format!("e{i:03}"));
    for i in 0..40 {
        insist(&store, Change::new("t", "t").put(event(i), "{}".into()).put(key(&format!("{i}")), "{}".into())).await;
    }
    let kept = store.range(Range::prefix("events.k8s.io/events/")).unwrap();
    // Each entry first makes room for what the one before it brought.
    assert!((10..=12).contains(&kept.items.len()), "{}", kept.items.len());
    assert_eq!(kept.items.last().unwrap().key, event(39));
    assert_eq!(store.range(Range::prefix("core/configmaps/")).unwrap().items.len(), 40);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_bounded_by_bytes() {
    const BOUND_BYTES: u64 = 1 << 20;
    let cluster = Cluster::boot(|options| options.log_bytes = BOUND_BYTES, &[1], 1).await;
    let store = cluster.store(1);
    for i in 0..64 {
        insist(&store, put(&format!("k{i}"), &"x".repeat(100_000))).await;
    }
    until("the log is purged", || store.status().borrow().log_bytes <= BOUND_BYTES).await;
    drop(store);
    cluster.stop_all().await;
    let mut cluster = cluster;
    let store = cluster.start(1).await;
    cluster.leader(&[1]).await;
    store.barrier().await.unwrap();
    assert_eq!(store.range(Range::default()).unwrap().items.len(), 64);
    drop(store);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_takes_only_what_frees_space() {
    let cluster = Cluster::boot(plain, &[1], 1).await;
    let store = cluster.store(1);
    insist(&store, put("a", "1234")).await;
    drop(store);
    cluster.stop_all().await;

    let mut full = cluster;
    full.retune(|options| options.space_floor.min_bytes = u64::MAX);
    let store = full.start(1).await;
    full.leader(&[1]).await;
    assert_eq!(store.propose(put("b", "1")).await, Err(ProposeError::NoSpace));
    assert_eq!(store.propose(put("a", &"x".repeat(600))).await, Err(ProposeError::NoSpace));
    insist(&store, put("a", "4321, and a mark that it is being deleted")).await;
    insist(&store, Change::new("t", "t").delete(key("a"))).await;
    drop(store);
    full.stop_all().await;
}

/// So that the state is in files rather than in the write-ahead log.
fn forgetful(options: &mut Options) {
    options.snapshot_entries = 20;
    options.log_keep_entries = 5;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_the_state_is_never_served() {
    let mut cluster = Cluster::boot(forgetful, &[1], 1).await;
    let store = cluster.store(1);
    // Of bytes that do not compress, so that a file is about as long as what is in it.
    let value = |i: usize| {
        let mut seed = i as u64 + 1;
        let mut word = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            format!("{seed:016x}")
        };
        (0..200).map(|_| word()).collect::<String>()
    };
    for i in 0..100 {
        insist(&store, put(&format!("k{i:03}"), &value(i))).await;
    }
    drop(store);
    cluster.stop_all().await;
    let is_states = |path: &std::path::PathBuf| {
        path.extension().is_some_and(|e| e == "sst") && path.to_string_lossy().contains("/state-")
    };
    let files = walk(cluster.dir(1)).into_iter().filter(is_states);
    let file = files.max_by_key(|path| std::fs::metadata(path).unwrap().len()).expect("a file of the state");
    let mut bytes = std::fs::read(&file).unwrap();
    // Objects come first in it, history behind them.
    let among_objects = bytes.len() / 4;
    bytes[among_objects] ^= 1;
    std::fs::write(&file, bytes).unwrap();

    // Found out at once, or when it is read.
    let Ok(store) = cluster.try_start(1).await else { return };
    until("it leads or stops", || cluster.status(1).is_leader || cluster.status(1).fatal.is_some()).await;
    let read: Vec<_> = (0..100).map(|i| (i, store.get(&key(&format!("k{i:03}"))))).collect();
    let mut refused = 0;
    for (i, found) in read {
        match found {
            Ok(found) => assert_eq!(found.expect("every key is there").value, value(i).as_bytes()),
            Err(ReadError::Damaged(_)) => refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(refused > 0, "the damage was not found");
    assert!(matches!(store.range(Range::default()), Err(ReadError::Damaged(_))));
    let mut backup = store.backup(true).await.unwrap();
    let mut last = None;
    while let Some(piece) = backup.next().await {
        last = Some(piece);
    }
    assert!(matches!(last, Some(Err(_))), "a backup of a damaged state is none");
    drop(store);
    cluster.stop_all().await;
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let items = std::fs::read_dir(dir).unwrap().map(|item| item.unwrap().path());
    items.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}
