//! Custom kinds on this node: the registry follows the CustomResourceDefinitions in the store.
//!
//! Every node does so by itself, from what its replica has, and so serves a new kind as soon as it has heard of it.
//!
//! Invariant: a definition is read once for each change of it; the others keep the kinds that they have.

use std::collections::BTreeMap;
use std::time::Duration;

use flotilla_api::k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use flotilla_api::{Builtin, Key, Kind, Registry, custom};
use flotilla_raft::{KeyValue, Range, ReadError, Store, WatchItem};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::gate::Gate;

/// How long to wait before something that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Follows the definitions until `stop`.
pub async fn follow(gate: Gate, stop: CancellationToken) {
    let mut follower = Follower { built_in: Registry::clone(&gate.registry()), gate, known: BTreeMap::new() };
    stop.run_until_cancelled(follower.keep_up()).await;
}

struct Follower {
    gate: Gate,
    /// What there is without definitions.
    built_in: Registry,
    known: BTreeMap<Key, Known>,
}

/// A definition as it was read.
struct Known {
    revision: u64,
    kinds: Vec<Kind>,
}

impl Follower {
    async fn keep_up(&mut self) {
        let store = self.gate.store().clone();
        let prefix = Builtin::CustomResourceDefinition.collection().prefix();
        loop {
            // A slice has no definitions. Until there is a replica again, the kinds stay as they are.
            store.until_fed(false).await;
            let turns = store.turns();
            let watch = match self.catch_up(&store, &prefix) {
                Ok(revision) => store.watch(&prefix, revision + 1).await,
                Err(error) => Err(error),
            };
            let mut watch = match watch {
                Ok(_) if store.turns() != turns => continue,
                Ok(watch) => watch,
                Err(error) => {
                    debug!(%error, "the custom kinds cannot be followed now");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            };
            loop {
                match watch.next().await {
                    Some(WatchItem::Progress(_)) => {}
                    Some(WatchItem::Events(..)) => {
                        if self.catch_up(&store, &prefix).is_err() {
                            break;
                        }
                    }
                    Some(WatchItem::Compacted(_)) | None => break,
                }
            }
            // Who reads from elsewhere by now looks at once.
            if store.turns() == turns {
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    /// Makes the registry say what the store does; returns as of which revision.
    fn catch_up(&mut self, store: &Store, prefix: &str) -> Result<u64, ReadError> {
        let turns = store.turns();
        let (mut found, mut pages) = (Vec::new(), store.pages(Range::prefix(prefix)));
        for page in pages.by_ref() {
            found.extend(page?);
        }
        let revision = pages.revision();
        if store.turns() != turns || store.fed_by().is_some() {
            return Err(ReadError::Compacted { wanted: revision + 1, oldest: revision + 1 });
        }
        if self.take(found) {
            self.publish();
        }
        Ok(revision)
    }

    /// Takes over what is stored; says whether anything is new.
    fn take(&mut self, found: Vec<KeyValue>) -> bool {
        let before = self.known.len();
        self.known.retain(|key, _| found.iter().any(|kv| kv.key == *key));
        let mut changed = self.known.len() != before;
        for kv in found {
            if self.known.get(&kv.key).is_some_and(|known| known.revision == kv.mod_revision) {
                continue;
            }
            changed = true;
            let kinds = match serde_json::from_slice::<CustomResourceDefinition>(&kv.value) {
                Ok(definition) => custom::kinds(&definition),
                Err(error) => {
                    warn!(definition = kv.key.name(), %error, "a definition is stored as something else");
                    Vec::new()
                }
            };
            self.known.insert(kv.key, Known { revision: kv.mod_revision, kinds });
        }
        changed
    }

    fn publish(&self) {
        let mut registry = self.built_in.clone();
        registry.register_all(self.known.values().flat_map(|known| known.kinds.iter().cloned()));
        self.gate.set_registry(registry);
    }
}
