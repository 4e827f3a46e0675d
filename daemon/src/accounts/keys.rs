//! The keys of tokens, as the keyring has them: made, opened, replaced, and dropped when no token needs them.
//!
//! Invariant: one key signs, the one that has not retired. A key stays for as long as a token may live that it signed.

use std::sync::Arc;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use flotilla_api::admit::Subresource;
use flotilla_api::k8s_openapi::ByteString;
use flotilla_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use flotilla_api::kinds::keyring::{AccountKey, KeyringObject, MAX_ACCOUNT_KEYS};
use flotilla_api::{Builtin, Reason, Status, object};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tracing::info;

use super::{Accounts, MANAGER, jwt};
use crate::gate::{self, Sealer, User, WriteOptions, keyring_key};

/// A token that lives no longer than this is not remembered: its key stays so long after it retired.
pub(super) const USUAL_LIFE: SignedDuration = SignedDuration::from_hours(366 * 24);

/// A new key that signs tokens.
///
/// # Errors
/// If no key can be made.
pub fn new_key(sealer: &Sealer, now: Timestamp) -> Result<AccountKey, Status> {
    let failed = |_| Status::internal("a key for tokens cannot be made");
    let random = aws_lc_rs::rand::SystemRandom::new();
    let private = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).map_err(failed)?;
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, private.as_ref())
        .map_err(|_| Status::internal("a key for tokens cannot be read back"))?;
    let point = pair.public_key().as_ref().to_vec();
    let id = jwt::key_id(&point);
    Ok(AccountKey {
        sealed_key: ByteString(sealer.seal_for_keyring(&context(&id), private.as_ref())),
        id,
        public_key: ByteString(point),
        created_at: Time(now),
        retired_at: None,
        last_end: None,
    })
}

fn context(id: &str) -> String {
    format!("account key {id}")
}

/// When the last of a retired key's tokens ends.
pub fn ends(key: &AccountKey) -> Option<Timestamp> {
    let usual = key.retired_at.as_ref()?.0.saturating_add(USUAL_LIFE).unwrap_or(Timestamp::MAX);
    Some(key.last_end.as_ref().map_or(usual, |end| end.0.max(usual)))
}

/// The keys as they were at one revision of the keyring.
pub(super) struct Keys {
    revision: u64,
    /// Id and point of each.
    public: Vec<(String, Vec<u8>)>,
    signer: Option<AccountKey>,
    pair: Option<Arc<EcdsaKeyPair>>,
}

impl Keys {
    pub fn point(&self, kid: &str) -> Option<&[u8]> {
        self.public.iter().find(|(id, _)| id == kid).map(|(_, point)| point.as_slice())
    }

    /// As RFC 7517 has them.
    pub fn set(&self) -> Value {
        let keys: Vec<Value> = self.public.iter().filter_map(|(id, point)| jwt::jwk(id, point)).collect();
        json!({"keys": keys})
    }

    /// The key that signs, and its record.
    ///
    /// # Errors
    /// If there is none, or this node cannot open it.
    pub fn signer(&self) -> Result<(&AccountKey, &EcdsaKeyPair), Status> {
        match (&self.signer, &self.pair) {
            (Some(key), Some(pair)) => Ok((key, pair)),
            (None, _) => Err(Status {
                retry_after_seconds: Some(1),
                ..Status::new(Reason::ServiceUnavailable, "the cluster has no key to sign tokens with yet; try again")
            }),
            (Some(_), None) => Err(Status::internal("this node cannot open the key that signs tokens")),
        }
    }
}

impl Accounts {
    /// The keys as this replica has them now.
    ///
    /// # Errors
    /// If the keyring is not there or cannot be read.
    pub(super) fn keys(&self) -> Result<Arc<Keys>, Status> {
        let stored = self.gate.store().get(&keyring_key()).map_err(gate::read_status)?.ok_or_else(|| {
            Status::new(Reason::ServiceUnavailable, "this node has not caught up with its cluster yet; try again")
        })?;
        let known = self.keys.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        if let Some(known) = known.filter(|known| known.revision == stored.mod_revision) {
            return Ok(known);
        }
        let keyring: KeyringObject = object::decode(&stored.value, stored.mod_revision).map_err(Status::internal)?;
        let keys = Arc::new(self.open(keyring, stored.mod_revision));
        *self.keys.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(keys.clone());
        Ok(keys)
    }

    fn open(&self, keyring: KeyringObject, revision: u64) -> Keys {
        let public = keyring.spec.account_keys.iter().map(|key| (key.id.clone(), key.public_key.0.clone())).collect();
        let signer = keyring.spec.account_keys.into_iter().find(|key| key.retired_at.is_none());
        let pair = signer.as_ref().and_then(|key| {
            let private = self.gate.sealer().open_of_keyring(&context(&key.id), &key.sealed_key.0).ok()?;
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &private).ok().map(Arc::new)
        });
        Keys { revision, public, signer, pair }
    }

    /// Lets a new key sign from now on; returns its id. The old ones verify until the tokens have ended that they
    /// signed, or not at all any more if `end_tokens`.
    ///
    /// # Errors
    /// `TooManyRequests` while too many keys are needed, or those of [`gate::Gate::update`].
    pub async fn rotate_key(&self, user: &User, end_tokens: bool) -> Result<String, Status> {
        let now = Timestamp::now();
        let key = new_key(self.gate.sealer(), now)?;
        let id = key.id.clone();
        self.edit_keys(user, move |keys| {
            if end_tokens {
                keys.clear();
            }
            if keys.len() >= MAX_ACCOUNT_KEYS {
                let why = format!(
                    "tokens of {MAX_ACCOUNT_KEYS} keys have not ended; 'flotilla accounts rotate-key --end-tokens' ends \
                     them all"
                );
                return Err(Status::new(Reason::TooManyRequests, why));
            }
            keys.iter_mut().for_each(|key| _ = key.retired_at.get_or_insert(Time(now)));
            keys.push(key.clone());
            Ok(())
        })
        .await?;
        info!(key = id, user = user.name, end_tokens, "tokens of service accounts are signed with a new key");
        Ok(id)
    }

    /// Remembers that a key signs a token that lives longer than usual.
    pub(super) async fn remember_end(&self, id: &str, end: Timestamp) -> Result<(), Status> {
        self.edit_keys(&User::root(), |keys| {
            let key = keys.iter_mut().find(|key| key.id == id);
            let key = key.ok_or_else(|| Status::new(Reason::Conflict, "the key that signs has just been replaced"))?;
            if key.last_end.as_ref().is_none_or(|known| known.0 < end) {
                key.last_end = Some(Time(end));
            }
            Ok(())
        })
        .await
    }

    /// Sees to it that there is a key that signs and none that is not needed: the leader's part.
    ///
    /// # Errors
    /// If the keyring cannot be read or written.
    pub async fn keep_keys(&self) -> Result<(), Status> {
        let now = Timestamp::now();
        let stored = self.gate.store().get(&keyring_key()).map_err(gate::read_status)?;
        let Some(stored) = stored else { return Ok(()) };
        let keyring: KeyringObject = object::decode(&stored.value, stored.mod_revision).map_err(Status::internal)?;
        let keys = &keyring.spec.account_keys;
        let over = |key: &AccountKey| ends(key).is_some_and(|end| end <= now);
        if keys.iter().any(|key| key.retired_at.is_none()) && !keys.iter().any(over) {
            return Ok(());
        }
        let new = new_key(self.gate.sealer(), now)?;
        self.edit_keys(&User::root(), |keys| {
            keys.retain(|key| !over(key));
            if keys.iter().all(|key| key.retired_at.is_some()) {
                keys.push(new.clone());
            }
            Ok(())
        })
        .await
    }

    /// The keys, for people to see.
    ///
    /// # Errors
    /// If the keyring cannot be read.
    pub async fn key_records(&self) -> Result<Vec<AccountKey>, Status> {
        self.gate.store().barrier().await.map_err(gate::read_status)?;
        let stored = self.gate.store().get(&keyring_key()).map_err(gate::read_status)?;
        let Some(stored) = stored else { return Ok(Vec::new()) };
        let keyring: KeyringObject = object::decode(&stored.value, stored.mod_revision).map_err(Status::internal)?;
        let mut keys = keyring.spec.account_keys;
        keys.sort_by_key(|key| (key.retired_at.is_some(), std::cmp::Reverse(key.created_at.0)));
        Ok(keys)
    }

    async fn edit_keys(
        &self,
        user: &User,
        mut edit: impl FnMut(&mut Vec<AccountKey>) -> Result<(), Status>,
    ) -> Result<(), Status> {
        let kind = self.gate.built_in(Builtin::Keyring)?;
        let name = keyring_key();
        let options = WriteOptions::by(MANAGER);
        let edit = |stored: &mut Value| {
            let mut keyring: KeyringObject = serde_json::from_value(stored.clone()).map_err(Status::internal)?;
            edit(&mut keyring.spec.account_keys)?;
            *stored = serde_json::to_value(keyring).map_err(Status::internal)?;
            Ok(())
        };
        self.gate.update(user, &kind, ("", name.name()), Subresource::None, &options, edit).await.map(drop)
    }
}
