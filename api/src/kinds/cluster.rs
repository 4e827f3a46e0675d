//! The cluster itself: its id, its certificate authority, and the version that its members agree on.
//!
//! Invariant: there is one, named [`NAME`]; authorities' keys are sealed before they get here.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::{Deserialize, Serialize};

use super::{BuiltIn, Info, Scope};
use crate::columns::{self, Column};
use crate::field::{Errors, Path};

/// The name of the one object of this kind.
pub const NAME: &str = "cluster";

pub struct Cluster;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterObject {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
    pub spec: ClusterSpec,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<ClusterStatus>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterSpec {
    pub id: String,
    /// PEM.
    pub ca_certificate: String,
    /// The authority that signs, with its key, in its sealing envelope.
    pub sealed_ca: ByteString,
    /// The replacement of the authority, while it is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<CaRotation>,
    /// Users whose certificates of before that time are worth nothing any more.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub revoked_users: BTreeMap<String, Time>,
}

/// How the authority is replaced.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CaRotation {
    pub phase: CaPhase,
    pub started_at: Time,
    pub phase_since: Time,
    /// How long both authorities are trusted once the new one signs.
    pub overlap_seconds: i64,
    /// The other authority, PEM: the new one in `Spread`, the old one in `Renew`.
    pub ca_certificate: String,
    /// The new authority in its sealing envelope, until it signs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed_ca: Option<ByteString>,
    /// The new authority's certificate, signed by the old one. PEM.
    pub bridge: String,
}

/// What the nodes are doing about a new authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CaPhase {
    /// They learn to trust it. The old one signs.
    Spread,
    /// They get certificates from it. It signs; both are trusted.
    Renew,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterStatus {
    /// Commands newer than this are not proposed.
    pub version: i64,
}

impl ClusterObject {
    pub fn new(spec: ClusterSpec) -> Self {
        Self {
            api_version: <Self as k8s_openapi::Resource>::API_VERSION.to_owned(),
            kind: <Self as k8s_openapi::Resource>::KIND.to_owned(),
            metadata: ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() },
            spec,
            status: None,
        }
    }
}

super::resource!(ClusterObject, "Cluster", "clusters", k8s_openapi::ClusterResourceScope);

impl BuiltIn for Cluster {
    type Object = ClusterObject;
    const INFO: Info = Info {
        group: super::FLOTILLA_GROUP,
        kind: "Cluster",
        plural: "clusters",
        singular: "cluster",
        scope: Scope::Cluster,
        subresources: &["status"],
        schema: "dev.flotilla.v1.Cluster",
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] =
        &[columns::NAME, Column::text("Id"), Column::number("Version"), columns::AGE];

    fn validate(cluster: &ClusterObject, errors: &mut Errors) {
        if cluster.metadata.name.as_deref() != Some(NAME) {
            let detail = format_args!("must be \"{NAME}\"");
            errors.invalid(&Path::new("metadata").child("name"), cluster.metadata.name.clone(), detail);
        }
        if cluster.spec.id.is_empty() {
            errors.required(&Path::new("spec").child("id"), "");
        }
    }

    fn validate_update(old: &ClusterObject, new: &ClusterObject, errors: &mut Errors) {
        if old.spec.id != new.spec.id {
            errors.invalid(&Path::new("spec").child("id"), new.spec.id.as_str(), "field is immutable");
        }
    }

    fn row(cluster: &ClusterObject, now: Timestamp) -> Vec<String> {
        vec![
            columns::name(&cluster.metadata),
            cluster.spec.id.clone(),
            cluster.status.as_ref().map_or(0, |status| status.version).to_string(),
            columns::age(&cluster.metadata, now),
        ]
    }
}
