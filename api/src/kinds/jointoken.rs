//! Join tokens: what admits a machine to the cluster.
//!
//! Invariant: the secret itself is never stored, only its hash.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Taint;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::{Deserialize, Serialize};

use super::{BuiltIn, Info, Scope};
use crate::columns::{self, Column};
use crate::field::{Errors, Path};
use crate::validate;

/// The length of a SHA-256 digest.
const HASH_BYTES: usize = 32;

pub struct JoinToken;

/// A join token; its name is the token's id.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JoinTokenObject {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
    pub spec: JoinTokenSpec,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<JoinTokenStatus>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JoinTokenSpec {
    /// SHA-256 of the secret.
    pub secret_hash: ByteString,
    /// `None`: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// `None`: as many as there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_uses: Option<i32>,
    /// SHA-256 of the authority that the token pins, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_fingerprint: Option<String>,
    /// What a node gets that joins with it; the node cannot change these.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taints: Vec<Taint>,
}

/// Labels by which a node itself says what it is.
const OWN_LABELS: [&str; 3] = ["kubernetes.io/hostname", "kubernetes.io/os", "kubernetes.io/arch"];

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JoinTokenStatus {
    pub uses: i32,
    /// The node that used the token last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_node: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<Time>,
}

impl JoinTokenObject {
    pub fn new(id: &str, spec: JoinTokenSpec) -> Self {
        Self {
            api_version: <Self as k8s_openapi::Resource>::API_VERSION.to_owned(),
            kind: <Self as k8s_openapi::Resource>::KIND.to_owned(),
            metadata: ObjectMeta { name: Some(id.to_owned()), ..ObjectMeta::default() },
            spec,
            status: None,
        }
    }

    /// Why the token admits nobody any more, in one line; `None` while it does.
    pub fn refusal(&self, now: Timestamp) -> Option<&'static str> {
        let uses = self.status.as_ref().map_or(0, |status| status.uses);
        if self.spec.expires_at.as_ref().is_some_and(|time| time.0 <= now) {
            Some("the token has expired")
        } else if self.spec.max_uses.is_some_and(|max| uses >= max) {
            Some("the token has been used up")
        } else {
            None
        }
    }
}

super::resource!(JoinTokenObject, "JoinToken", "jointokens", k8s_openapi::ClusterResourceScope);

impl BuiltIn for JoinToken {
    type Object = JoinTokenObject;
    const INFO: Info = Info {
        group: super::FLOTILLA_GROUP,
        kind: "JoinToken",
        plural: "jointokens",
        singular: "jointoken",
        scope: Scope::Cluster,
        subresources: &["status"],
        schema: "dev.flotilla.v1.JoinToken",
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] =
        &[columns::NAME, Column::text("Status"), Column::text("Expires"), Column::text("Uses"), columns::AGE];

    fn validate(token: &JoinTokenObject, errors: &mut Errors) {
        let path = Path::new("spec");
        if token.spec.secret_hash.0.len() != HASH_BYTES {
            let message = format!("Invalid value: must be {HASH_BYTES} bytes");
            errors.add("FieldValueInvalid", &path.child("secretHash"), message);
        }
        if let Some(uses) = token.spec.max_uses.filter(|uses| *uses <= 0) {
            errors.invalid(&path.child("maxUses"), uses, "must be greater than 0");
        }
        validate::metadata::labels(Some(&token.spec.labels), &path.child("labels"), errors);
        for label in token.spec.labels.keys().filter(|label| OWN_LABELS.contains(&label.as_str())) {
            errors.invalid(&path.child("labels"), label.as_str(), "is for the node itself to say");
        }
        validate::scheduling::taints(&token.spec.taints, &path.child("taints"), errors);
    }

    fn validate_update(old: &JoinTokenObject, new: &JoinTokenObject, errors: &mut Errors) {
        if old.spec.secret_hash != new.spec.secret_hash {
            errors.forbidden(&Path::new("spec").child("secretHash"), "field is immutable");
        }
    }

    fn row(token: &JoinTokenObject, now: Timestamp) -> Vec<String> {
        let uses = token.status.as_ref().map_or(0, |status| status.uses);
        let expires = token.spec.expires_at.as_ref().map_or_else(
            || "never".to_owned(),
            |time| match time.0.as_second() - now.as_second() {
                ..=0 => "expired".to_owned(),
                left => format!("in {}", columns::duration(left)),
            },
        );
        vec![
            columns::name(&token.metadata),
            if token.refusal(now).is_none() { "Valid" } else { "Spent" }.to_owned(),
            expires,
            token.spec.max_uses.map_or_else(|| uses.to_string(), |max| format!("{uses}/{max}")),
            columns::age(&token.metadata, now),
        ]
    }
}
