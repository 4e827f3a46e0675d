//! The life of the keys that objects are sealed with: a new one, what is sealed anew with it, and the end of the old.
//!
//! A rotation is nothing but a new primary key in the keyring. From then on writers seal with it; the leader looks for
//! objects sealed with another and seals them anew, each with a Change of its own, and when none is left and no history
//! needs them, drops the other keys. Nothing else is remembered, so a new leader goes on where the last one was.
//!
//! Invariant: a key is dropped only from a keyring under which nothing is left that it opens, neither an object nor
//! history.

use std::time::Duration;

use flotilla_api::admit::Subresource;
use flotilla_api::kinds::keyring::{KeyringObject, MAX_KEYS};
use flotilla_api::{Builtin, Change, Reason, Status, object, sealing};
use flotilla_net::SealKey;
use flotilla_raft::{KeyValue, ProposeError, Range};
use futures::StreamExt;
use jiff::Timestamp;
use tokio::sync::mpsc;
use tracing::{debug, info};

use crate::gate::{self, Gate, Ring, User, WriteOptions, keyring_key};
use crate::proto::Progress;

/// How often the leader looks whether there is something to seal anew, and how often progress is told.
const INTERVAL: Duration = Duration::from_secs(1);
/// Objects sealed anew at the same time.
const MAX_PROPOSALS: usize = 32;

const MANAGER: &str = "flotilla-secrets";

/// A key as it stands in the keyring, and what is sealed with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyStanding {
    pub id: String,
    pub created: Timestamp,
    pub primary: bool,
    pub objects: u64,
}

/// Makes a new key the primary one; returns its id.
///
/// # Errors
/// `TooManyRequests` while too many keys are still in use, or those of [`Gate::update`].
pub async fn rotate(gate: &Gate, user: &User) -> Result<String, Status> {
    let kind = gate.built_in(Builtin::Keyring)?;
    let key = gate.sealer().new_key(Timestamp::now());
    let options = WriteOptions::by(MANAGER);
    let name = keyring_key();
    gate.update(user, &kind, ("", name.name()), Subresource::None, &options, |stored| {
        let mut keyring: KeyringObject = serde_json::from_value(stored.clone()).map_err(Status::internal)?;
        if !gate.sealer().fits(&keyring) {
            let why = "the seal key of this node opens no key of the cluster: copy identity/seal.key from another node, or \
                       ask another node";
            return Err(Status::internal(why));
        }
        if keyring.spec.keys.len() >= MAX_KEYS {
            let why = format!(
                "{MAX_KEYS} keys are in use, which is the most: older ones go when all is sealed with the newest and the \
                 history that they sealed is forgotten, which takes as long as history_seconds says (5 minutes unless \
                 configured); 'flotilla secrets status' shows what is left of them"
            );
            return Err(Status::new(Reason::TooManyRequests, why));
        }
        keyring.spec.primary.clone_from(&key.id);
        keyring.spec.keys.push(key.clone());
        *stored = serde_json::to_value(keyring).map_err(Status::internal)?;
        Ok(())
    })
    .await?;
    info!(key = key.id, user = user.name, "objects are sealed with a new key");
    Ok(key.id)
}

/// Whether this node's seal key is the cluster's, as far as this replica can tell: one that has caught up knows.
///
/// # Errors
/// If the store cannot be read.
pub fn can_be_read(gate: &Gate) -> Result<bool, Status> {
    let Some(stored) = gate.store().get(&keyring_key()).map_err(gate::read_status)? else { return Ok(true) };
    let keyring: KeyringObject = object::decode(&stored.value, stored.mod_revision).map_err(Status::internal)?;
    Ok(gate.sealer().fits(&keyring))
}

/// The keys and how much is sealed with each, the primary one first.
///
/// # Errors
/// If the store cannot be read.
pub async fn status(gate: &Gate) -> Result<Vec<KeyStanding>, Status> {
    gate.store().barrier().await.map_err(gate::read_status)?;
    let name = keyring_key();
    let stored = gate.store().get(&name).map_err(gate::read_status)?;
    let stored = stored.ok_or_else(|| Status::not_found(name.collection(), name.name()))?;
    let keyring: KeyringObject = object::decode(&stored.value, stored.mod_revision).map_err(Status::internal)?;
    let mut keys: Vec<KeyStanding> = keyring
        .spec
        .keys
        .iter()
        .map(|key| KeyStanding {
            id: key.id.clone(),
            created: key.created_at.0,
            primary: key.id == keyring.spec.primary,
            objects: 0,
        })
        .collect();
    keys.sort_by_key(|key| !key.primary);
    for prefix in prefixes(gate) {
        for page in gate.store().pages(Range::prefix(prefix)) {
            for kv in page.map_err(gate::read_status)? {
                let id = sealed_with(&kv);
                if let Some(key) = keys.iter_mut().find(|key| Some(&key.id) == id.as_ref()) {
                    key.objects += 1;
                }
            }
        }
    }
    Ok(keys)
}

/// Makes a new key and tells how far the objects that exist have been sealed anew.
///
/// # Errors
/// Those of [`rotate`].
pub async fn rotate_and_tell(
    gate: &Gate,
    user: &User,
    send: &mpsc::Sender<Result<Progress, tonic::Status>>,
) -> Result<(), Status> {
    let id = rotate(gate, user).await?;
    loop {
        let standing = status(gate).await?;
        let total: u64 = standing.iter().map(|key| key.objects).sum();
        // A later rotation seals again what this one did.
        let waiting: u64 = standing.iter().skip_while(|key| key.primary).map(|key| key.objects).sum();
        let words = if total == 0 { format!("key {id}") } else { format!("sealed with key {id}") };
        let progress = Progress { message: words, done: count(total - waiting), total: count(total) };
        if send.send(Ok(progress)).await.is_err() || waiting == 0 {
            return Ok(());
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

fn count(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// Seals anew what waits for it, for as long as this replica leads.
pub async fn keep(gate: &Gate, term: u64) {
    let mut clear = None;
    loop {
        if let Err(status) = step(gate, term, &mut clear).await {
            debug!(error = status.message, "what is sealed stays as it is for now");
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// A keyring under which, since a revision, nothing is sealed with any but its primary key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Clear {
    keyring: u64,
    since: u64,
}

/// One look at the keyring and what it asks for.
async fn step(gate: &Gate, term: u64, clear: &mut Option<Clear>) -> Result<(), Status> {
    let ring = gate.sealer().reload(gate.store())?;
    if !ring.is_rotating() {
        *clear = None;
        return Ok(());
    }
    let known = clear.filter(|clear| clear.keyring == ring.revision);
    let since = match known {
        Some(clear) => clear.since,
        None => {
            *clear = None;
            let Some(since) = seal_all(gate, term, &ring).await? else { return Ok(()) };
            info!(key = %ring.primary(), "every object is sealed with the new key");
            *clear = Some(Clear { keyring: ring.revision, since });
            since
        }
    };
    if gate.store().compacted() < since {
        return Ok(());
    }
    drop_others(gate, term, &ring).await
}

/// Seals anew what is not sealed with the primary key; gives the revision at which nothing was found to do.
async fn seal_all(gate: &Gate, term: u64, ring: &Ring) -> Result<Option<u64>, Status> {
    let (mut since, mut found, mut sealed) = (0, 0, 0);
    gate.store().barrier().await.map_err(gate::read_status)?;
    for prefix in prefixes(gate) {
        let mut pages = gate.store().pages(Range::prefix(prefix));
        while let Some(page) = pages.next() {
            since = since.max(pages.revision());
            let mut changes = Vec::new();
            for kv in page.map_err(gate::read_status)? {
                match ring.reseal(&kv.key, &kv.value) {
                    Ok(None) => {}
                    Ok(Some(bytes)) => {
                        let change = Change { term: Some(term), ..Change::new(MANAGER, MANAGER) };
                        changes.push(ring.bind(change.update(kv.key.clone(), kv.mod_revision, bytes)));
                    }
                    // Its key is kept as long as it is there: whoever looks into it needs all there is.
                    Err(status) => {
                        found += 1;
                        debug!(object = %kv.key, error = status.message, "an object cannot be sealed anew");
                    }
                }
            }
            found += changes.len();
            let store = gate.store();
            let mut outcomes =
                futures::stream::iter(changes).map(|change| store.propose(change)).buffer_unordered(MAX_PROPOSALS);
            while let Some(outcome) = outcomes.next().await {
                match outcome {
                    Ok(_) => sealed += 1,
                    // Somebody wrote it meanwhile, and thereby sealed it.
                    Err(ProposeError::Conflict(_)) => {}
                    Err(error) => return Err(gate::propose_status(error)),
                }
            }
        }
    }
    debug!(found, sealed, "looked for what is sealed with an old key");
    Ok((found == 0).then_some(since))
}

async fn drop_others(gate: &Gate, term: u64, ring: &Ring) -> Result<(), Status> {
    let key = keyring_key();
    let Some(stored) = gate.store().get(&key).map_err(gate::read_status)? else { return Ok(()) };
    if stored.mod_revision != ring.revision {
        return Ok(());
    }
    let mut keyring: KeyringObject = object::decode(&stored.value, stored.mod_revision).map_err(Status::internal)?;
    let before = keyring.spec.keys.len();
    let primary = keyring.spec.primary.clone();
    keyring.spec.keys.retain(|key| key.id == primary);
    let bytes = object::encode(&keyring).map_err(Status::internal)?;
    let change = Change { term: Some(term), ..Change::new(MANAGER, MANAGER) };
    gate.store().propose(change.update(key, ring.revision, bytes)).await.map_err(gate::propose_status)?;
    info!(dropped = before - 1, "old keys that sealed objects are dropped");
    Ok(())
}

/// Where objects with sealed parts are.
fn prefixes(gate: &Gate) -> Vec<String> {
    let registry = gate.registry();
    let kinds = registry.iter().filter(|kind| !kind.sealed.is_empty());
    kinds.map(|kind| kind.collection().prefix()).collect()
}

fn sealed_with(kv: &KeyValue) -> Option<String> {
    let mut object = serde_json::from_slice(&kv.value).ok()?;
    let envelope = sealing::take_envelope(&mut object)?;
    SealKey::key_id(&envelope).ok().map(|id| id.to_string())
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use tests::bench;
