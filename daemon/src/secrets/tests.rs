//! One replica with its gate: nothing readable on its disk, and keys that come and go.

use std::path::Path;
use std::sync::Arc;

use flotilla_api::{Key, Kind};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::gate::{Happened, ListQuery, ObjectEvent, alone};

/// In base64 as manifests have it, and what that stands for.
const ENCODED: &str = "aHVudGVyMi1pcy1ub3QtYS1nb29kLXBhc3N3b3Jk";
const PLAIN: &str = "hunter2-is-not-a-good-password";

struct Bench {
    gate: Gate,
    secrets: Arc<Kind>,
    dir: TempDir,
}

impl Bench {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let gate = alone::gate(&dir).await;
        let bench = Self { secrets: gate.built_in(Builtin::Secret).unwrap(), gate, dir };
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}});
        bench.create(Builtin::Namespace, namespace).await;
        let account_key = crate::accounts::new_key(bench.gate.sealer(), jiff::Timestamp::now()).unwrap();
        let keyring = serde_json::to_value(bench.gate.sealer().found(account_key)).unwrap();
        bench.create(Builtin::Keyring, keyring).await;
        bench
    }

    async fn create(&self, kind: Builtin, object: Value) {
        let kind = self.gate.built_in(kind).unwrap();
        self.gate.create(&User::root(), &kind, object, &WriteOptions::by("test")).await.unwrap();
    }

    async fn apply(&self, manifest: &Value) -> Value {
        let (user, options) = (User::root(), WriteOptions::by("test"));
        let applied = self.gate.apply(&user, manifest.to_string().as_bytes(), "", false, &options).await.unwrap();
        applied.into_iter().next().unwrap().object
    }

    async fn get(&self, name: &str) -> Value {
        self.gate.get(&User::root(), &self.secrets, "default", name).await.unwrap()
    }

    async fn list(&self, fields: &str) -> Vec<Value> {
        let query = ListQuery::parse(Some("default".into()), "", fields).unwrap();
        self.gate.list(&User::root(), &self.secrets, &query).await.unwrap().items
    }

    fn stored(&self, name: &str) -> KeyValue {
        let key = Key::new(&self.secrets.collection(), "default", name);
        self.gate.store().get(&key).unwrap().unwrap()
    }

    fn term(&self) -> u64 {
        self.gate.store().status().borrow().term
    }
}

fn secret(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": "example.com/login",
        "metadata": {"name": name, "labels": {"app": "db"}},
        "data": {"password": ENCODED}, "stringData": {"again": PLAIN},
    })
}

/// The object of the next event, which must be of this kind.
fn told(event: Result<Option<ObjectEvent>, Status>, happened: Happened) -> Value {
    let event = event.unwrap().expect("the watch goes on");
    assert_eq!(event.happened, happened);
    serde_json::from_slice(&event.json).unwrap()
}

/// Files under `dir` in which any of the texts stands.
fn files_with(dir: &Path, texts: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files_with(&path, texts));
        } else if let Ok(bytes) = std::fs::read(&path)
            && texts.iter().any(|text| bytes.windows(text.len()).any(|window| window == text.as_bytes()))
        {
            found.push(path.display().to_string());
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_readable_reaches_the_disk_and_everything_comes_back() {
    let bench = Bench::new().await;
    let applied = bench.apply(&secret("db")).await;
    assert_eq!((&applied["data"]["password"], applied.get("$sealed")), (&json!(ENCODED), None));
    let query = ListQuery::parse(Some("default".into()), "app=db", "type=example.com/login").unwrap();
    let mut watch = bench.gate.watch(&User::root(), &bench.secrets, query, 1).await.unwrap();
    let seen = told(watch.next().await, Happened::Added);
    assert_eq!(seen, applied);
    assert_eq!(bench.list("type=example.com/login").await, std::slice::from_ref(&applied));
    assert!(bench.list("type=Opaque").await.is_empty());
    assert!(files_with(bench.dir.path(), &["flotilla-no-such-text"]).is_empty());
    assert!(!files_with(bench.dir.path(), &["example.com/login"]).is_empty(), "the scan would find it");
    assert_eq!(files_with(bench.dir.path(), &[ENCODED, PLAIN]), Vec::<String>::new());

    // The manifest that is remembered names what a later one leaves out.
    let mut fewer = secret("db");
    fewer.as_object_mut().unwrap().remove("stringData");
    let unchanged = bench.apply(&secret("db")).await;
    assert_eq!(unchanged["metadata"]["resourceVersion"], applied["metadata"]["resourceVersion"]);
    bench.apply(&fewer).await;
    let seen = told(watch.next().await, Happened::Modified);
    assert_eq!(seen, bench.get("db").await);
    assert_eq!(seen["data"]["password"], ENCODED);
    let gone = bench.gate.delete(&User::root(), &bench.secrets, ("default", "db"), &Default::default()).await.unwrap();
    let last = told(watch.next().await, Happened::Deleted);
    assert_eq!((gone.gone, &last["data"]), (true, &seen["data"]));
    assert_eq!(files_with(bench.dir.path(), &[ENCODED, PLAIN]), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_seals_everything_anew_and_drops_the_old_key_with_its_history() {
    let bench = Bench::new().await;
    for name in ["a", "b", "c"] {
        bench.apply(&secret(name)).await;
    }
    let before = bench.get("b").await;
    let [old] = status(&bench.gate).await.unwrap().try_into().unwrap();
    assert_eq!((old.primary, old.objects), (true, 3));

    let new = rotate(&bench.gate, &User::root()).await.unwrap();
    // Written from the keyring as it was: refused, and sealed again from the new one.
    bench.apply(&secret("d")).await;
    let mixed = status(&bench.gate).await.unwrap();
    let counts: Vec<_> = mixed.iter().map(|key| (key.id.as_str(), key.primary, key.objects)).collect();
    assert_eq!(counts, [(new.as_str(), true, 1), (old.id.as_str(), false, 3)]);

    let mut clear = None;
    step(&bench.gate, bench.term(), &mut clear).await.unwrap();
    assert_eq!(clear, None, "what was just sealed is looked at again");
    step(&bench.gate, bench.term(), &mut clear).await.unwrap();
    let since = clear.expect("nothing is left to do").since;
    let done = status(&bench.gate).await.unwrap();
    assert_eq!(done.iter().map(|key| key.objects).collect::<Vec<_>>(), [4, 0], "history still needs the old key");
    assert_eq!(bench.get("b").await["data"], before["data"]);

    bench.gate.store().compact(since).await.unwrap();
    step(&bench.gate, bench.term(), &mut clear).await.unwrap();
    let [left] = status(&bench.gate).await.unwrap().try_into().unwrap();
    assert_eq!((left.id, left.objects), (new, 4));
    step(&bench.gate, bench.term(), &mut clear).await.unwrap();
    assert_eq!((clear, bench.list("").await.len()), (None, 4));
    assert_eq!(bench.get("b").await["data"], before["data"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deposed_leader_seals_nothing() {
    let bench = Bench::new().await;
    bench.apply(&secret("a")).await;
    rotate(&bench.gate, &User::root()).await.unwrap();
    let before = bench.stored("a");
    assert!(step(&bench.gate, bench.term() + 1, &mut None).await.is_err());
    assert_eq!(bench.stored("a"), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_keys_is_bounded() {
    let bench = Bench::new().await;
    for _ in 1..MAX_KEYS {
        rotate(&bench.gate, &User::root()).await.unwrap();
    }
    let refused = rotate(&bench.gate, &User::root()).await.unwrap_err();
    assert_eq!(refused.reason, Reason::TooManyRequests);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_secret_fits_when_it_is_sealed() {
    use base64::Engine as _;
    let bench = Bench::new().await;
    let data = base64::engine::general_purpose::STANDARD.encode(vec![0xa5_u8; 1 << 20]);
    let large = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "large"}, "data": {"blob": data}});
    bench.create(Builtin::Secret, large).await;
    assert_eq!(bench.get("large").await["data"]["blob"], data);
    rotate(&bench.gate, &User::root()).await.unwrap();
    step(&bench.gate, bench.term(), &mut None).await.unwrap();
    assert_eq!(bench.get("large").await["data"]["blob"], data);
}

/// A gate over a store of one replica, with a keyring and the namespace `default`; and where it is kept.
pub(crate) async fn bench() -> (Gate, TempDir) {
    let bench = Bench::new().await;
    (bench.gate, bench.dir)
}
