//! Clients that read and write through any machine and write down what they were told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flotilla_api::{Change, Expect, GroupResource, Key};

use crate::error::ProposeError;
use crate::kv::{KeyValue, Range};
use crate::outcome::Applied;
use crate::state::ReadError;
use crate::store::Store;

use super::cluster::Cluster;
use super::invariants::Written;
use super::linear::{self, Act, Operation};
use super::world::{World, world};

const RESOURCES: [&str; 2] = ["configmaps", "secrets"];
const KEYS_EACH: u64 = 3;
/// A client gives up on an answer after this time.
const PATIENCE: Duration = Duration::from_secs(15);

pub(super) fn key(resource: &str, name: u64) -> Key {
    Key::new(&GroupResource::new("", resource), "default", &format!("k{name}"))
}

pub(super) fn prefixes() -> Vec<String> {
    RESOURCES.iter().map(|resource| format!("core/{resource}/")).collect()
}

/// A value's id is all that it says.
pub(super) fn id_of(value: &[u8]) -> u64 {
    std::str::from_utf8(value).ok().and_then(|text| text.trim_end().parse().ok()).unwrap_or(u64::MAX)
}

fn seen(kv: &KeyValue) -> (u64, u64) {
    (id_of(&kv.value), kv.mod_revision)
}

/// A write of one key: what the client asked for.
#[derive(Clone, Debug)]
struct Wish {
    key: Key,
    /// `None` deletes.
    value: Option<u64>,
    /// The writes of this Change come so many revisions before the one whose value tells it.
    before_mark: u64,
    mark: u64,
    expected: Option<Expected>,
}

#[derive(Clone, Copy, Debug)]
struct Expected(Option<(u64, u64)>);

/// What became of a write.
#[derive(Clone, Debug)]
enum Fate {
    Applied(Applied),
    Refused {
        found: Option<u64>,
    },
    /// It has certainly not happened.
    Not,
    Unknown,
}

#[derive(Clone, Debug)]
enum Told {
    Read(Vec<(Key, Option<(u64, u64)>)>),
    Wrote(Vec<Wish>, Fate),
}

#[derive(Clone, Debug)]
struct Entry {
    told: Told,
    called: Duration,
    returned: Duration,
}

/// What one client knows.
pub(super) struct Client {
    cluster: Arc<Cluster>,
    /// The last of each key that it has seen.
    known: BTreeMap<Key, Option<(u64, u64)>>,
    history: Vec<Entry>,
}

/// A number that no other value has.
fn fresh() -> u64 {
    world().random() >> 16
}

fn value(id: u64, world: &World) -> Bytes {
    let padding = match world.one_in(20) {
        true => world.between(1000, 60_000),
        false => world.between(0, 100),
    };
    format!("{id}{}", " ".repeat(padding as usize)).into()
}

impl Client {
    pub fn new(cluster: Arc<Cluster>) -> Self {
        Self { cluster, known: BTreeMap::new(), history: Vec::new() }
    }

    /// Works until the world's clock says so, or nobody can be asked any more.
    pub async fn run(mut self, until: Duration, pause_ms: u64) -> Self {
        let world = world();
        while world.now() < until {
            tokio::time::sleep(world.ms(0, pause_ms)).await;
            match world.between(0, 10) {
                0..4 => self.write().await,
                4..6 => self.swap().await,
                6..9 => self.read().await,
                _ => self.list().await,
            }
        }
        self
    }

    fn any_key(&self) -> Key {
        let world = world();
        key(RESOURCES[world.between(0, 2) as usize], world.between(0, KEYS_EACH))
    }

    async fn write(&mut self) {
        let world = world();
        let (mark, key) = (fresh(), self.any_key());
        let mut wishes = vec![];
        let mut change = Change::new("client", "sim");
        match world.between(0, 8) {
            0 => {
                // A mark of its own tells whether the deletion has happened.
                change = change.delete(key.clone()).put(super::clients::key("marks", mark), value(mark, &world));
                wishes.push(Wish { key, value: None, before_mark: 1, mark, expected: None });
            }
            1 => {
                let other = loop {
                    let other = self.any_key();
                    if other != key {
                        break other;
                    }
                };
                let first = fresh();
                change = change.put(other.clone(), value(first, &world)).put(key.clone(), value(mark, &world));
                wishes.push(Wish { key: other, value: Some(first), before_mark: 1, mark, expected: None });
                wishes.push(Wish { key, value: Some(mark), before_mark: 0, mark, expected: None });
            }
            _ => {
                change = change.put(key.clone(), value(mark, &world));
                wishes.push(Wish { key, value: Some(mark), before_mark: 0, mark, expected: None });
            }
        }
        self.propose(change, wishes).await;
    }

    async fn swap(&mut self) {
        let (mark, key) = (fresh(), self.any_key());
        let expected = self.known.get(&key).copied().flatten();
        let expect = expected.map_or(Expect::Absent, |(_, revision)| Expect::ModRevision(revision));
        let change = Change::new("client", "sim").require(key.clone(), expect).put(key.clone(), value(mark, &world()));
        let wish = Wish { key, value: Some(mark), before_mark: 0, mark, expected: Some(Expected(expected)) };
        self.propose(change, vec![wish]).await;
    }

    /// Has some machine do something; `None` if nobody knows what came of it.
    async fn ask<T, F>(&self, work: impl FnOnce(Store) -> F) -> Option<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let station = self.cluster.any_station()?;
        let (tell, told) = tokio::sync::oneshot::channel();
        let work = work(station.store.clone());
        drop(station.store);
        tokio::spawn(station.host.task(async move {
            let _ = tell.send(work.await);
        }));
        tokio::time::timeout(PATIENCE, told).await.ok()?.ok()
    }

    async fn propose(&mut self, change: Change, wishes: Vec<Wish>) {
        let world = world();
        if self.cluster.running().is_empty() {
            return;
        }
        let (called, writes) = (world.now(), change.writes.len() as u64);
        let answer = self.ask(|store| async move { store.propose(change).await }).await;
        let fate = match answer {
            Some(Ok(applied)) if applied.revision + 1 - applied.first_revision == writes => Fate::Applied(applied),
            Some(Err(ProposeError::Conflict(conflict))) => Fate::Refused { found: conflict.found },
            Some(Err(ProposeError::NoLeader(_) | ProposeError::Failed(_) | ProposeError::NoSpace)) => Fate::Not,
            Some(Err(ProposeError::Unknown(_))) | None => Fate::Unknown,
            Some(odd) => return world.violation(format_args!("{wishes:?} got {odd:?}")),
        };
        for wish in &wishes {
            match &fate {
                Fate::Applied(applied) => {
                    let known = wish.value.map(|value| (value, applied.revision - wish.before_mark));
                    self.known.insert(wish.key.clone(), known);
                }
                _ => drop(self.known.remove(&wish.key)),
            }
        }
        world.note(100, format_args!("{} {fate:?}", wishes[0].mark));
        self.history.push(Entry { told: Told::Wrote(wishes, fate), called, returned: world.now() });
    }

    async fn read(&mut self) {
        let (key, called) = (self.any_key(), world().now());
        let wanted = key.clone();
        let read = self.ask(|store| async move {
            store.barrier().await?;
            store.get(&wanted)
        });
        if let Some(Ok(found)) = read.await {
            self.saw(vec![(key, found.as_ref().map(seen))], called);
        }
    }

    /// Lists all keys of one resource: as of one revision, all of them.
    async fn list(&mut self) {
        let called = world().now();
        let resource = RESOURCES[world().between(0, 2) as usize];
        let listed = self.ask(|store| async move {
            store.barrier().await?;
            let mut items = Vec::new();
            for page in store.pages(Range { limit: 2, ..Range::prefix(format!("core/{resource}/")) }) {
                items.extend(page?);
            }
            Ok::<_, ReadError>(items)
        });
        if let Some(Ok(items)) = listed.await {
            let found = |key: &Key| items.iter().find(|kv| &kv.key == key).map(seen);
            let keys = (0..KEYS_EACH).map(|name| key(resource, name));
            self.saw(keys.map(|key| (key.clone(), found(&key))).collect(), called);
        }
    }

    fn saw(&mut self, found: Vec<(Key, Option<(u64, u64)>)>, called: Duration) {
        let world = world();
        world.note(100, format_args!("saw {found:?}"));
        self.known.extend(found.iter().cloned());
        self.history.push(Entry { told: Told::Read(found), called, returned: world.now() });
    }
}

/// How much the clients did.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub acknowledged: u64,
    pub unknown: u64,
    pub reads: u64,
}

/// Judges what the clients were told, by what was really written.
pub(super) fn judge(clients: Vec<Client>, world: &World, truth: &BTreeMap<u64, Written>) -> Tally {
    let by_value: BTreeMap<u64, u64> = truth
        .iter()
        .filter_map(|(revision, (_, value))| value.as_ref().map(|value| (id_of(value), *revision)))
        .collect();
    let mut keys: BTreeMap<Key, Vec<Operation>> = BTreeMap::new();
    let mut tally = Tally::default();
    for entry in clients.into_iter().flat_map(|client| client.history) {
        let Entry { told, called, returned } = entry;
        match told {
            Told::Read(found) => {
                tally.reads += 1;
                for (key, found) in found {
                    let operation = Operation { act: Act::Read(found), called, returned: Some(returned) };
                    keys.entry(key).or_default().push(operation);
                }
            }
            Told::Wrote(wishes, fate) => {
                let happened = by_value.get(&wishes[0].mark).copied();
                match (&fate, happened) {
                    (Fate::Applied(applied), at) if at != Some(applied.revision) => {
                        world.violation(format_args!("{wishes:?} was acknowledged as {applied:?} but is at {at:?}"));
                    }
                    (Fate::Refused { .. } | Fate::Not, Some(at)) => {
                        world.violation(format_args!("{wishes:?} was told {fate:?} but is at {at}"));
                    }
                    _ => {}
                }
                tally.acknowledged += u64::from(matches!(fate, Fate::Applied(_)));
                tally.unknown += u64::from(matches!(fate, Fate::Unknown));
                for wish in wishes {
                    let returned = (!matches!(fate, Fate::Unknown)).then_some(returned);
                    if let Some(act) = act(&wish, &fate, happened) {
                        keys.entry(wish.key).or_default().push(Operation { act, called, returned });
                    }
                }
            }
        }
    }
    for (key, operations) in keys {
        if let Err(why) = linear::check(&operations) {
            world.violation(format_args!("{key} is not linearizable: {why}"));
        }
    }
    tally
}

/// What a wish did to its key; nothing if it has not happened.
fn act(wish: &Wish, fate: &Fate, happened: Option<u64>) -> Option<Act> {
    match (fate, happened) {
        (Fate::Refused { found }, None) => {
            let expected = wish.expected.and_then(|Expected(expected)| expected).map(|(_, revision)| revision);
            Some(Act::Refused { expected, found: *found })
        }
        (_, Some(at)) => {
            let revision = at - wish.before_mark;
            Some(match (wish.expected, wish.value) {
                (Some(Expected(expected)), Some(value)) => Act::Swap { expected, value, revision },
                (_, value) => Act::Write { value, revision },
            })
        }
        (_, None) => None,
    }
}
