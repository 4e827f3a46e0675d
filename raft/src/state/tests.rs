//! The fold against a model, and its layouts.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use bytes::Bytes;
use flotilla_api::{Change, Expect, GroupResource, Key};
use openraft::EntryPayload;
use openraft::entry::RaftEntry;
use proptest::prelude::*;
use tempfile::TempDir;

use super::record::{Current, Past, PastValue, aging_key, parse_aging_key};
use super::*;
use crate::codec::{LogIdForm, StoredMembershipForm};
use crate::command::{Batch, EventBounds};
use crate::kv::{Event, KeyValue, Range};
use crate::outcome::Outcome;
use crate::types::{Entry, log_id};

const NAMES: u8 = 6;
const BOUNDS: EventBounds = EventBounds { max_count: 100, max_age_ms: 1_000_000 };

fn key(name: u8) -> Key {
    Key::new(&GroupResource::new("", if name < 4 { "pods" } else { "nodes" }), "", &format!("k{name}"))
}

struct Bench {
    state: State,
    index: u64,
    /// Goes after what is in it.
    _dir: TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let state = State::open(&dir.path().join("s"), "c", &Disk::default()).unwrap();
        Self { state, index: 0, _dir: dir }
    }

    fn batch(&mut self, batch: &Batch) -> AppliedEntry {
        self.index += 1;
        let entry = Entry::new(log_id(1, self.index), EntryPayload::Normal(batch.encode().unwrap()));
        self.state.apply(&entry).unwrap()
    }

    fn apply(&mut self, now_ms: u64, changes: Vec<Change>, compact: Option<u64>) -> AppliedEntry {
        self.batch(&Batch { version: 1, now_ms, events: BOUNDS, compact, raise: None, changes })
    }
}

#[derive(Clone, Debug)]
struct Step {
    /// Name, value or deletion, and the expected revision to ask for, if any.
    writes: Vec<(u8, Option<u8>)>,
    expect: Option<(u8, Expect)>,
    compact: bool,
}

fn step() -> impl Strategy<Value = Step> {
    let expect = prop_oneof![
        Just(Expect::Absent),
        Just(Expect::Exists),
        (1_u64..30).prop_map(Expect::ModRevision),
        (1_u64..30).prop_map(Expect::CreateRevision),
    ];
    let writes = prop::collection::btree_map(0..NAMES, prop::option::of(any::<u8>()), 0..4);
    let expect = prop::option::weighted(0.3, (0..NAMES, expect));
    (writes, expect, prop::bool::weighted(0.1)).prop_map(|(writes, expect, compact)| Step {
        writes: writes.into_iter().collect(),
        expect,
        compact,
    })
}

/// Everything that ever was, kept naively.
#[derive(Default)]
struct Model {
    at: Vec<BTreeMap<Key, KeyValue>>,
    events: Vec<Event>,
    ends: BTreeMap<u64, u64>,
    compacted: u64,
}

impl Model {
    fn now(&self) -> BTreeMap<Key, KeyValue> {
        self.at.last().cloned().unwrap_or_default()
    }

    fn revision(&self) -> u64 {
        self.at.len() as u64
    }

    fn holds(&self, (name, expect): (u8, Expect)) -> bool {
        let found = self.now().get(&key(name)).cloned();
        match expect {
            Expect::Absent => found.is_none(),
            Expect::Exists => found.is_some(),
            Expect::ModRevision(r) => found.is_some_and(|kv| kv.mod_revision == r),
            Expect::CreateRevision(r) => found.is_some_and(|kv| kv.create_revision == r),
        }
    }

    fn write(&mut self, name: u8, value: Option<u8>, end: u64) {
        let (mut now, revision, key) = (self.now(), self.revision() + 1, key(name));
        let prev = now.remove(&key);
        self.ends.insert(revision, end);
        match (value, prev) {
            (Some(value), prev) => {
                let create_revision = prev.as_ref().map_or(revision, |kv| kv.create_revision);
                let kv =
                    KeyValue { key: key.clone(), value: vec![value].into(), create_revision, mod_revision: revision };
                now.insert(key, kv.clone());
                self.events.push(Event::Put { kv, prev });
            }
            (None, Some(prev)) => self.events.push(Event::Delete { key, revision, prev }),
            (None, None) => {}
        }
        self.at.push(now);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn state_is_as_the_model_says(steps in prop::collection::vec(step(), 1..20), prefix in prop::sample::select(vec!["", "core/pods/", "core/nodes/", "x"])) {
        let (mut bench, mut model) = (Bench::new(), Model::default());
        for step in &steps {
            let mut change = Change::new("u", "m");
            for (name, value) in &step.writes {
                change = match value {
                    Some(value) => change.put(key(*name), vec![*value].into()),
                    None => change.delete(key(*name)),
                };
            }
            if let Some((name, expect)) = step.expect {
                change = change.require(key(name), expect);
            }
            let compact = step.compact.then(|| model.revision() / 2);
            let applied = bench.apply(1, vec![change], compact);
            let expected = step.expect.is_none_or(|e| model.holds(e));
            prop_assert_eq!(matches!(applied.outcomes[0], Outcome::Applied(_)), expected);
            if expected {
                let end = model.revision() + step.writes.len() as u64;
                step.writes.iter().for_each(|(name, value)| model.write(*name, *value, end));
            }
            model.compacted = model.compacted.max(compact.unwrap_or(0));
        }
        check_ranges(&bench.state, &model, prefix)?;
        check_history(&bench.state, &model, prefix)?;
    }
}

fn check_ranges(state: &State, model: &Model, prefix: &str) -> Result<(), TestCaseError> {
    for revision in 1..=model.revision() {
        let range = Range { revision: Some(revision), ..Range::prefix(prefix) };
        if revision < model.compacted {
            prop_assert!(state.page(&range, &mut None).is_err());
            continue;
        }
        let expected: Vec<KeyValue> = model.at[revision as usize - 1]
            .values()
            .filter(|kv| kv.key.as_str().starts_with(prefix))
            .cloned()
            .collect();
        let listing = state.page(&range, &mut None).unwrap();
        prop_assert_eq!(&listing.items, &expected);
        for (index, kv) in expected.iter().enumerate() {
            let rest = Range { after: Some(kv.key.as_str().to_owned()), ..range.clone() };
            let left = expected.len() - index - 1;
            prop_assert_eq!(state.count(&rest, left).unwrap(), Some(left));
            if left > 0 {
                prop_assert_eq!(state.count(&rest, left - 1).unwrap(), None);
            }
        }
        // The same in pages of two.
        let mut paged = Vec::new();
        let (mut after, mut undone) = (None, None);
        loop {
            let page = state.page(&Range { limit: 2, after: after.clone(), ..range.clone() }, &mut undone).unwrap();
            prop_assert_eq!(page.more, page.items.len() + paged.len() < expected.len());
            after = page.items.last().map(|kv| kv.key.as_str().to_owned());
            paged.extend(page.items);
            if !page.more {
                break;
            }
        }
        prop_assert_eq!(&paged, &expected);
        for name in 0..NAMES {
            let found = state.get_at(&key(name), revision).unwrap();
            prop_assert_eq!(found.as_ref(), model.at[revision as usize - 1].get(&key(name)));
        }
    }
    Ok(())
}

/// From any revision on, in small pieces, all events come once and in order, and pieces end with Changes.
fn check_history(state: &State, model: &Model, prefix: &str) -> Result<(), TestCaseError> {
    for from in 1..=model.revision() {
        if from <= model.compacted {
            prop_assert!(state.history(prefix, from, 1, 1).is_err());
            continue;
        }
        let expected: Vec<&Event> =
            model.events.iter().filter(|e| e.revision() >= from && e.key().as_str().starts_with(prefix)).collect();
        let (mut next, mut seen) = (from, Vec::new());
        while next <= model.revision() {
            let stretch = state.history(prefix, next, 1, 1).unwrap();
            prop_assert!(stretch.upto >= next);
            prop_assert_eq!(model.ends[&stretch.upto], stretch.upto, "a change in two pieces");
            seen.extend(stretch.events);
            next = stretch.upto + 1;
        }
        prop_assert_eq!(seen.iter().collect::<Vec<_>>(), expected);
    }
    Ok(())
}

#[test]
fn excess_history_is_found_by_count_bytes_and_age() {
    let mut bench = Bench::new();
    for now_ms in 1..=100 {
        bench.apply(now_ms, vec![Change::new("u", "m").put(key(0), vec![0; 1000].into())], None);
    }
    let none = HistoryBounds { max_revisions: 1000, max_bytes: 1 << 30, max_age_ms: 1000 };
    let excess = |bounds| bench.state.excess_history(bounds, 100).unwrap();
    assert_eq!(excess(none), None);
    assert_eq!(excess(HistoryBounds { max_revisions: 30, ..none }), Some(70));
    assert_eq!(excess(HistoryBounds { max_age_ms: 10, ..none }), Some(89));
    let by_bytes = excess(HistoryBounds { max_bytes: 21_500, ..none }).unwrap();
    assert!((88..=92).contains(&by_bytes), "{by_bytes}");
    assert_eq!(excess(HistoryBounds { max_revisions: 0, max_bytes: 0, max_age_ms: 0 }), Some(100));
}

#[test]
fn events_leave_by_count_and_age_and_their_going_is_told() {
    let mut bench = Bench::new();
    let event = |i: u64| Key::new(&GroupResource::new("", "events"), "default", &format!("e{i}"));
    let bounds = EventBounds { max_count: 3, max_age_ms: 50 };
    let mut told = 0;
    for i in 0..10 {
        let changes = vec![Change::new("u", "m").put(event(i), "{}".into())];
        let applied =
            bench.batch(&Batch { version: 1, now_ms: i, events: bounds, compact: None, raise: None, changes });
        told += applied.events.iter().filter(|e| matches!(e, Event::Delete { .. })).count();
    }
    let left = |bench: &Bench| bench.state.page(&Range::prefix("core/events/"), &mut None).unwrap().items.len();
    assert_eq!((left(&bench), told, bench.state.header().events_count), (4, 6, 4));
    // Written again, an old one is young.
    let again = vec![Change::new("u", "m").put(event(7), "{}".into())];
    bench.batch(&Batch { version: 1, now_ms: 40, events: bounds, compact: None, raise: None, changes: again });
    let applied =
        bench.batch(&Batch { version: 1, now_ms: 80, events: bounds, compact: None, raise: None, changes: vec![] });
    assert_eq!(applied.events.len(), 2);
    assert!(bench.state.get(&event(7)).unwrap().is_some());
    assert_eq!((left(&bench), bench.state.header().events_count), (1, 1));
}

#[test]
fn the_bounds_of_events_hold_after_reopening() {
    let mut bench = Bench::new();
    let event = |i: u64| Key::new(&GroupResource::new("", "events"), "default", &format!("e{i}"));
    let batch = |now_ms, events, changes| Batch { version: 1, now_ms, events, compact: None, raise: None, changes };
    let bounds = EventBounds { max_count: 5, max_age_ms: 50 };
    for i in 0..3 {
        bench.batch(&batch(i, bounds, vec![Change::new("u", "m").put(event(i), "{}".into())]));
    }
    let Bench { _dir: dir, state, index } = bench;
    let path = state.path().to_owned();
    drop(state);
    let state = State::open(&path, "c", &Disk::default()).unwrap();
    assert_eq!(state.header().events_count, 3);
    let mut bench = Bench { _dir: dir, state, index };
    let names = |bench: &Bench| -> Vec<String> {
        let items = bench.state.page(&Range::prefix("core/events/"), &mut None).unwrap().items;
        items.iter().map(|kv| kv.key.name().to_owned()).collect()
    };
    for i in 3..12 {
        bench.batch(&batch(i, bounds, vec![Change::new("u", "m").put(event(i), "{}".into())]));
    }
    // The one that a Change adds is counted at the next.
    assert_eq!(names(&bench), ["e10", "e11", "e6", "e7", "e8", "e9"]);
    bench.batch(&batch(60, bounds, vec![]));
    assert_eq!((names(&bench), bench.state.header().events_count), (vec!["e10".into(), "e11".into()], 2));
}

#[test]
fn what_was_applied_is_there_after_reopening() {
    let Bench { _dir: dir, state, .. } = {
        let mut bench = Bench::new();
        bench.apply(5, vec![Change::new("u", "m").put(key(1), "x".into())], None);
        bench
    };
    let (path, header) = (state.path().to_owned(), state.header());
    drop(state);
    let state = State::open(&path, "c", &Disk::default()).unwrap();
    assert_eq!((state.header(), header.applied), (header.clone(), Some(LogIdForm { term: 1, index: 1 })));
    assert_eq!(state.get(&key(1)).unwrap().unwrap().value.as_ref(), b"x");
    drop(state);
    assert!(State::open(&path, "d", &Disk::default()).is_err(), "another cluster's");
    drop(dir);
}

/// The layouts of the state, for the golden file.
pub(crate) fn pin(lines: &mut String, membership: StoredMembershipForm) {
    let header = Header {
        applied: membership.at,
        membership,
        revision: 12,
        compacted: 3,
        now_ms: 1_700_000_000_000,
        events_count: 2,
        history_bytes: 4096,
        version: 2,
    };
    let value = |revision| PastValue { create_revision: 1, mod_revision: revision, value: "{}".into() };
    let past = Past {
        key: key(1),
        change_end: 12,
        time_ms: 5,
        history_bytes: 4096,
        new: Some(value(12)),
        old: Some(value(1)),
    };
    let current = Current { create_revision: 1, mod_revision: 12, time_ms: 5, value: "{}".into() };
    assert_eq!(Current::decode(current.encode().into()), Some(current.clone()));
    assert_eq!((0..25).find_map(|end| Current::decode(Bytes::copy_from_slice(&current.encode()[..end]))), None);
    assert_eq!(parse_aging_key(&aging_key(7, key(1).as_str())), Some((7, key(1))));
    for (name, bytes) in [
        ("header", codec::encode(&header).unwrap()),
        ("past", codec::encode(&past).unwrap()),
        ("current", current.encode()),
        ("current-key", record::current_key("a/b/c/d")),
        ("past-key", record::past_key(258).to_vec()),
        ("aging-key", aging_key(258, "a/b/c/d")),
    ] {
        let _ = writeln!(lines, "{name} {}", crate::golden::hex(&bytes));
    }
}
