//! The keyring: the keys that sealed parts of objects are sealed with, and those that sign the tokens of service accounts.
//!
//! Invariant: there is one, named [`NAME`]; each key in it is sealed before it gets here, under the key that replicas
//! hold beside their identity.
//! Invariant: writers seal with the primary key and require the keyring to be as they knew it, so that no object is
//! sealed with a key that has been dropped.

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::{Deserialize, Serialize};

use super::{BuiltIn, Info, Scope};
use crate::columns::{self, Column};
use crate::field::{Errors, Path};

/// The name of the one object of this kind.
pub const NAME: &str = "keyring";
/// Keys that may be in use at the same time: the primary, and those of rotations that have not ended.
pub const MAX_KEYS: usize = 8;
/// Keys that tokens may be signed with at the same time: the one that signs, and those whose tokens have not ended.
pub const MAX_ACCOUNT_KEYS: usize = 8;

pub struct Keyring;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyringObject {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
    pub spec: KeyringSpec,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyringSpec {
    /// The id of the key that new envelopes are sealed with.
    pub primary: String,
    pub keys: Vec<KeyringKey>,
    /// The keys of service accounts' tokens. The one that has not retired signs; the others verify what they signed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub account_keys: Vec<AccountKey>,
}

/// A key that signs, or signed, the tokens of service accounts: ECDSA on P-256.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AccountKey {
    /// As it stands in the head of tokens.
    pub id: String,
    /// The point on the curve, uncompressed.
    pub public_key: ByteString,
    /// The private key in its envelope.
    pub sealed_key: ByteString,
    pub created_at: Time,
    /// Since when another one signs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retired_at: Option<Time>,
    /// When the last of its tokens ends that live longer than usual.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_end: Option<Time>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyringKey {
    /// In hexadecimal, as it stands in the envelopes.
    pub id: String,
    /// The key in its own envelope.
    pub sealed_key: ByteString,
    pub created_at: Time,
}

impl KeyringObject {
    pub fn new(spec: KeyringSpec) -> Self {
        Self {
            api_version: <Self as k8s_openapi::Resource>::API_VERSION.to_owned(),
            kind: <Self as k8s_openapi::Resource>::KIND.to_owned(),
            metadata: ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() },
            spec,
        }
    }
}

super::resource!(KeyringObject, "Keyring", "keyrings", k8s_openapi::ClusterResourceScope);

impl BuiltIn for Keyring {
    type Object = KeyringObject;
    const INFO: Info = Info {
        group: super::FLOTILLA_GROUP,
        kind: "Keyring",
        plural: "keyrings",
        singular: "keyring",
        scope: Scope::Cluster,
        schema: "dev.flotilla.v1.Keyring",
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] =
        &[columns::NAME, Column::text("Primary"), Column::number("Keys"), columns::AGE];

    fn validate(keyring: &KeyringObject, errors: &mut Errors) {
        if keyring.metadata.name.as_deref() != Some(NAME) {
            let detail = format_args!("must be \"{NAME}\"");
            errors.invalid(&Path::new("metadata").child("name"), keyring.metadata.name.clone(), detail);
        }
        let (path, keys) = (Path::new("spec"), &keyring.spec.keys);
        if keys.len() > MAX_KEYS {
            errors.too_many(&path.child("keys"), keys.len(), MAX_KEYS);
        }
        for (index, key) in keys.iter().enumerate() {
            if keys[..index].iter().any(|other| other.id == key.id) {
                errors.duplicate(&path.child("keys").index(index).child("id"), key.id.as_str());
            }
        }
        let accounts = &keyring.spec.account_keys;
        if accounts.len() > MAX_ACCOUNT_KEYS {
            errors.too_many(&path.child("accountKeys"), accounts.len(), MAX_ACCOUNT_KEYS);
        }
        for (index, key) in accounts.iter().enumerate() {
            if accounts[..index].iter().any(|other| other.id == key.id) {
                errors.duplicate(&path.child("accountKeys").index(index).child("id"), key.id.as_str());
            }
        }
        if keys.iter().all(|key| key.id != keyring.spec.primary) {
            errors.not_found(&path.child("primary"), keyring.spec.primary.as_str());
        }
    }

    fn row(keyring: &KeyringObject, now: Timestamp) -> Vec<String> {
        vec![
            columns::name(&keyring.metadata),
            keyring.spec.primary.clone(),
            keyring.spec.keys.len().to_string(),
            columns::age(&keyring.metadata, now),
        ]
    }
}
