//! Sealing at the gate: what a kind declares as sealed leaves here encrypted and comes back readable only here.
//!
//! The keys are in the keyring, an object of the store, each sealed under the key that replicas hold beside their
//! identity. The cipher and its envelope are those of [`flotilla_net::SealKey`]; which parts of an object are sealed is
//! said by its kind ([`flotilla_api::sealing`]).
//!
//! Invariant: an envelope opens only for the object it was made for: its key in the store and its uid are authenticated.
//! Invariant: a Change that carries an envelope requires the keyring to be the one that the envelope was sealed from.
//! Invariant: a replica that has an object has the key too, since the keyring was applied before it.

use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use flotilla_api::k8s_openapi::ByteString;
use flotilla_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use flotilla_api::kinds::keyring::{self, AccountKey, KeyringKey, KeyringObject, KeyringSpec};
use flotilla_api::{Builtin, Change, Conflict, Expect, Key, Kind, Reason, Status, custom, object, sealing};
use flotilla_net::{SealKey, SealKeyId};
use flotilla_raft::Store;
use jiff::Timestamp;
use serde_json::Value;
use tracing::warn;

use super::{Gate, read_status};

/// The keys of the cluster, as this replica knows them. Cheap to clone.
#[derive(Clone)]
pub struct Sealer {
    seal_key: SealKey,
    ring: Arc<RwLock<Option<Arc<Ring>>>>,
}

/// The keyring as it was at one revision, opened.
pub struct Ring {
    pub revision: u64,
    primary: SealKey,
    /// Those of the others that can be opened.
    others: Vec<SealKey>,
    is_rotating: bool,
}

impl Ring {
    pub fn primary(&self) -> SealKeyId {
        self.primary.id()
    }

    /// Whether a key beside the primary is still kept.
    pub fn is_rotating(&self) -> bool {
        self.is_rotating
    }

    /// An object without its envelope, with the sealed parts readable.
    fn open(&self, kind: &Kind, key: &Key, mut object: Value, envelope: &[u8]) -> Result<Value, Status> {
        let plain = self.unseal(key, &object, envelope)?;
        let parts = serde_json::from_slice(&plain).map_err(|_| damaged(key, &"what was sealed is not a map"))?;
        // What stands readable in the places of what is sealed came by no gate.
        sealing::take(&mut object, &kind.sealed);
        sealing::put_back(&mut object, parts, &kind.sealed);
        Ok(object)
    }

    fn unseal(&self, key: &Key, object: &Value, envelope: &[u8]) -> Result<Vec<u8>, Status> {
        let id = key_id(key, envelope)?;
        let held = self.get(id).ok_or_else(|| dropped(key, id))?;
        held.open(envelope, &sealing::context(key, object)).map_err(|error| damaged(key, &error))
    }

    fn get(&self, id: SealKeyId) -> Option<&SealKey> {
        std::iter::once(&self.primary).chain(&self.others).find(|key| key.id() == id)
    }

    /// What makes a Change depend on this keyring.
    pub fn bind(&self, change: Change) -> Change {
        change.require(keyring_key(), Expect::ModRevision(self.revision))
    }

    /// Seals the same parts with the primary key; `None` if they are.
    ///
    /// # Errors
    /// If the object has no envelope, or one that cannot be opened.
    pub fn reseal(&self, key: &Key, stored: &[u8]) -> Result<Option<Bytes>, Status> {
        let mut object: Value = serde_json::from_slice(stored).map_err(Status::internal)?;
        let envelope = sealing::take_envelope(&mut object).ok_or_else(|| unsealed(key))?;
        if key_id(key, &envelope)? == self.primary() {
            return Ok(None);
        }
        let plain = self.unseal(key, &object, &envelope)?;
        let envelope = self.primary.seal(&plain, &sealing::context(key, &object));
        sealing::set_envelope(&mut object, &envelope);
        object::encode(&object).map(Some).map_err(Status::internal)
    }
}

impl Sealer {
    pub fn new(seal_key: SealKey) -> Self {
        Self { seal_key, ring: Arc::default() }
    }

    /// The keyring of a new cluster, with one key, and one that signs tokens.
    pub fn found(&self, account_key: AccountKey) -> KeyringObject {
        let key = self.new_key(Timestamp::now());
        let spec = KeyringSpec { primary: key.id.clone(), keys: vec![key], account_keys: vec![account_key] };
        KeyringObject::new(spec)
    }

    /// Seals something else that belongs in the keyring, under its name there.
    pub fn seal_for_keyring(&self, name: &str, plain: &[u8]) -> Vec<u8> {
        self.seal_key.seal(plain, &key_context(name))
    }

    /// Opens what [`Sealer::seal_for_keyring`] sealed.
    ///
    /// # Errors
    /// If this node cannot open it.
    pub fn open_of_keyring(&self, name: &str, envelope: &[u8]) -> Result<Vec<u8>, Status> {
        self.seal_key
            .open(envelope, &key_context(name))
            .map_err(|error| Status::internal(format!("{name} of the keyring cannot be opened on this node: {error}")))
    }

    /// A new key for the keyring.
    pub fn new_key(&self, now: Timestamp) -> KeyringKey {
        let key = SealKey::generate();
        let id = key.id().to_string();
        let sealed_key = ByteString(self.seal_key.seal(&key.encode(), &key_context(&id)));
        KeyringKey { id, sealed_key, created_at: Time(now) }
    }

    /// The keyring as it is remembered, or as this replica has it.
    ///
    /// # Errors
    /// If it is not there, or cannot be opened.
    pub fn ring(&self, store: &Store) -> Result<Arc<Ring>, Status> {
        let known = self.ring.read().unwrap_or_else(PoisonError::into_inner).clone();
        known.map_or_else(|| self.reload(store), Ok)
    }

    /// The keyring as this replica has it now.
    ///
    /// # Errors
    /// If it is not there, or cannot be opened.
    pub fn reload(&self, store: &Store) -> Result<Arc<Ring>, Status> {
        let stored = store.get(&keyring_key()).map_err(read_status)?.ok_or_else(|| {
            Status::new(Reason::ServiceUnavailable, "this node has not caught up with its cluster yet; try again")
        })?;
        let keyring: KeyringObject = object::decode(&stored.value, stored.mod_revision).map_err(Status::internal)?;
        let (primary, others): (Vec<_>, Vec<_>) =
            keyring.spec.keys.iter().partition(|key| key.id == keyring.spec.primary);
        let primary = primary.first().ok_or_else(|| Status::internal("the keyring has no primary key"))?;
        let primary = self.open_key(primary)?;
        // One that cannot be opened is missed when something is found that it sealed.
        let opened = |key: &KeyringKey| {
            self.open_key(key).inspect_err(|status| warn!(error = status.message, "an older key is not used")).ok()
        };
        let others = others.into_iter().filter_map(opened).collect();
        let is_rotating = keyring.spec.keys.len() > 1;
        let ring = Arc::new(Ring { revision: stored.mod_revision, primary, others, is_rotating });
        *self.ring.write().unwrap_or_else(PoisonError::into_inner) = Some(ring.clone());
        Ok(ring)
    }

    /// Whether this node's seal key is the one that the keyring's keys are sealed with.
    pub fn fits(&self, keyring: &KeyringObject) -> bool {
        keyring.spec.keys.iter().any(|key| self.open_key(key).is_ok())
    }

    fn open_key(&self, key: &KeyringKey) -> Result<SealKey, Status> {
        let opened = self.seal_key.open(&key.sealed_key.0, &key_context(&key.id));
        opened.and_then(|bytes| SealKey::decode(&bytes)).map_err(|error| {
            Status::internal(format!("key {} of the keyring cannot be opened on this node: {error}", key.id))
        })
    }

    /// The object with its sealed parts readable.
    ///
    /// # Errors
    /// If they cannot be opened.
    pub fn open(&self, store: &Store, kind: &Kind, key: &Key, mut object: Value) -> Result<Value, Status> {
        if kind.sealed.is_empty() {
            return Ok(object);
        }
        let envelope = sealing::take_envelope(&mut object).ok_or_else(|| unsealed(key))?;
        let mut ring = self.ring(store)?;
        if ring.get(key_id(key, &envelope)?).is_none() {
            ring = self.reload(store)?;
        }
        ring.open(kind, key, object, &envelope)
    }
}

impl Gate {
    pub fn sealer(&self) -> &Sealer {
        &self.sealer
    }

    /// The bytes to store for an object, and the Change bound to what they were sealed from.
    pub(super) fn encode(
        &self,
        kind: &Kind,
        key: &Key,
        object: &Value,
        change: Change,
    ) -> Result<(Change, Bytes), Status> {
        if kind.sealed.is_empty() {
            return Ok((change, super::write::encode(object)?));
        }
        let ring = self.sealer.ring(&self.store)?;
        let mut object = object.clone();
        let parts = serde_json::to_vec(&sealing::take(&mut object, &kind.sealed)).map_err(Status::internal)?;
        let envelope = ring.primary.seal(&parts, &sealing::context(key, &object));
        sealing::set_envelope(&mut object, &envelope);
        Ok((ring.bind(change), super::write::encode(&object)?))
    }

    /// Whoever sealed from an older keyring learns the newer one before trying again.
    pub(super) async fn learn_from(&self, conflict: &Conflict) -> Result<(), Status> {
        if conflict.key == keyring_key() {
            self.barrier().await?;
            self.sealer.reload(&self.store)?;
        }
        Ok(())
    }

    /// See [`Sealer::open`]. An object of a custom kind is shown as its schema has it now.
    pub(super) fn open(&self, kind: &Kind, key: &Key, object: Value) -> Result<Value, Status> {
        let mut object = self.sealer.open(&self.store, kind, key, object)?;
        custom::present(kind, &mut object);
        Ok(object)
    }
}

/// Where the keyring is.
pub fn keyring_key() -> Key {
    Key::new(&Builtin::Keyring.collection(), "", keyring::NAME)
}

fn key_context(id: &str) -> Vec<u8> {
    format!("{}\0{id}", keyring_key()).into_bytes()
}

fn key_id(key: &Key, envelope: &[u8]) -> Result<SealKeyId, Status> {
    SealKey::key_id(envelope).map_err(|error| damaged(key, &error))
}

fn unsealed(key: &Key) -> Status {
    Status::internal(format!("{key} is stored without its sealed parts"))
}

fn damaged(key: &Key, error: &dyn std::fmt::Display) -> Status {
    Status::internal(format!("the sealed parts of {key} cannot be opened: {error}"))
}

/// Only what is older than all history can be sealed so.
fn dropped(key: &Key, id: SealKeyId) -> Status {
    Status::new(Reason::Expired, format!("{key} is sealed with key {id}, which has been dropped; list again"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_api::Registry;
    use serde_json::json;

    /// Key id and key as [`SealKey::encode`] has them.
    fn fixed_key() -> SealKey {
        SealKey::decode(&[&[1][..], &[7; 8], &[9; 32]].concat()).unwrap()
    }

    fn place() -> Key {
        Key::new(&Builtin::Secret.collection(), "default", "db")
    }

    fn secret() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
            "metadata": {"name": "db", "namespace": "default", "uid": "u-1"},
            "data": {"password": "aHVudGVyMg=="},
        })
    }

    fn sealed(envelope: &str) -> Value {
        let mut object = secret();
        object.as_object_mut().unwrap().remove("data");
        object[sealing::FIELD] = json!(envelope);
        object
    }

    /// A store has written this: it must open for ever.
    const ENVELOPE: &str = concat!(
        "AQcHBwcHBwcHBQUFBQUFBQUFBQUFtFWZMmqsfW94X3eOvBwaAm6+1rKP8deEVAFy5jyO7WiVe9zCD4Ml",
        "zSeKGsl3hNxPri60TRc="
    );

    fn ring(primary: SealKey, others: Vec<SealKey>) -> Ring {
        Ring { revision: 1, primary, others, is_rotating: false }
    }

    fn open(ring: &Ring, key: &Key, mut object: Value) -> Result<Value, Status> {
        let kind = Registry::builtin().built_in(Builtin::Secret).unwrap();
        let envelope = sealing::take_envelope(&mut object).expect("an envelope");
        ring.open(&kind, key, object, &envelope)
    }

    #[test]
    fn the_stored_form_is_pinned() {
        let ring = ring(fixed_key(), Vec::new());
        assert_eq!(open(&ring, &place(), sealed(ENVELOPE)).unwrap(), secret());
    }

    #[test]
    fn an_envelope_opens_for_its_object_alone() {
        let ring = ring(fixed_key(), Vec::new());
        let elsewhere = Key::new(&Builtin::Secret.collection(), "default", "other");
        let refused = open(&ring, &elsewhere, sealed(ENVELOPE)).unwrap_err();
        assert!(refused.message.contains("core/secrets/default/other cannot be opened"), "{}", refused.message);
        let mut reborn = sealed(ENVELOPE);
        reborn["metadata"]["uid"] = json!("u-2");
        assert!(open(&ring, &place(), reborn).is_err());
    }

    #[test]
    fn readable_parts_beside_an_envelope_are_not_believed() {
        let mut forged = sealed(ENVELOPE);
        forged["stringData"] = json!({"password": "forged"});
        assert_eq!(open(&ring(fixed_key(), Vec::new()), &place(), forged).unwrap(), secret());
    }

    #[test]
    fn sealing_anew_changes_the_key_and_nothing_else() {
        let rotated = ring(SealKey::generate(), vec![fixed_key()]);
        let stored = object::encode(&sealed(ENVELOPE)).unwrap();
        let again = rotated.reseal(&place(), &stored).unwrap().expect("it was sealed with another key");
        assert_eq!(rotated.reseal(&place(), &again).unwrap(), None);
        let after = ring(rotated.primary.clone(), Vec::new());
        assert_eq!(open(&after, &place(), serde_json::from_slice(&again).unwrap()).unwrap(), secret());
        let gone = open(&after, &place(), sealed(ENVELOPE)).unwrap_err();
        assert_eq!(gone.reason, Reason::Expired);
    }
}
