//! Secrets: what pods need and others must not see.
//!
//! Invariant: no complaint repeats a value.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1 as core;

use super::configmap::MAX_DATA_BYTES;
use super::{BuiltIn, Info};
use crate::columns::{self, Column};
use crate::defaults::set_text;
use crate::field::{Errors, Path};
use crate::{names, sealing, validate};

pub struct Secret;

impl BuiltIn for Secret {
    type Object = core::Secret;
    const INFO: Info = Info {
        kind: "Secret",
        plural: "secrets",
        singular: "secret",
        selectable: &["type"],
        sealed: &["/data", "/stringData", sealing::LAST_APPLIED],
        schema: "io.k8s.api.core.v1.Secret",
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] =
        &[columns::NAME, Column::text("Type"), Column::count("Data"), columns::AGE];

    fn default(secret: &mut core::Secret) {
        set_text(&mut secret.type_, "Opaque");
        if let Some(plain) = secret.string_data.take() {
            let encoded = plain.into_iter().map(|(key, value)| (key, ByteString(value.into_bytes())));
            secret.data.get_or_insert_default().extend(encoded);
        }
    }

    fn validate(secret: &core::Secret, errors: &mut Errors) {
        let empty = BTreeMap::new();
        let data = secret.data.as_ref().unwrap_or(&empty);
        for key in data.keys() {
            let path = Path::new("data").key(key);
            names::config_key(key).iter().for_each(|c| errors.invalid(&path, key.as_str(), c));
        }
        if data.values().map(|value| value.0.len()).sum::<usize>() > MAX_DATA_BYTES {
            errors.too_long(&Path::new("data"), MAX_DATA_BYTES);
        }
        validate_type(secret, data, errors);
    }

    fn validate_update(old: &core::Secret, new: &core::Secret, errors: &mut Errors) {
        if old.type_ != new.type_ {
            errors.invalid(&Path::new("type"), new.type_.clone(), "field is immutable");
        }
        if old.immutable == Some(true) {
            validate::stays_immutable(new.immutable, errors);
            if old.data != new.data {
                errors.forbidden(&Path::new("data"), "field is immutable when `immutable` is set");
            }
        }
    }

    fn row(secret: &core::Secret, now: Timestamp) -> Vec<String> {
        vec![
            columns::name(&secret.metadata),
            secret.type_.clone().unwrap_or_default(),
            secret.data.iter().flatten().count().to_string(),
            columns::age(&secret.metadata, now),
        ]
    }
}

/// The keys that a secret of a known type must have.
fn validate_type(secret: &core::Secret, data: &BTreeMap<String, ByteString>, errors: &mut Errors) {
    let path = Path::new("data");
    let mut need = |key: &str| {
        if !data.contains_key(key) {
            errors.required(&path.key(key), "");
        }
    };
    match secret.type_.as_deref().unwrap_or_default() {
        "kubernetes.io/tls" => ["tls.crt", "tls.key"].into_iter().for_each(need),
        "kubernetes.io/ssh-auth" => need("ssh-privatekey"),
        "kubernetes.io/basic-auth" if !data.contains_key("username") && !data.contains_key("password") => {
            ["username", "password"].into_iter().for_each(need);
        }
        "kubernetes.io/dockerconfigjson" => need_json(".dockerconfigjson", data, &path, errors),
        "kubernetes.io/dockercfg" => need_json(".dockercfg", data, &path, errors),
        "kubernetes.io/service-account-token" => {
            let annotations = secret.metadata.annotations.as_ref();
            let account = annotations.and_then(|a| a.get("kubernetes.io/service-account.name"));
            if account.is_none_or(String::is_empty) {
                let path = Path::new("metadata").child("annotations").key("kubernetes.io/service-account.name");
                errors.required(&path, "");
            }
        }
        _ => {}
    }
}

fn need_json(key: &str, data: &BTreeMap<String, ByteString>, path: &Path, errors: &mut Errors) {
    match data.get(key) {
        None => errors.required(&path.key(key), ""),
        Some(json) if serde_json::from_slice::<serde_json::Value>(&json.0).is_err() => {
            errors.invalid(&path.key(key), "<secret contents redacted>", "must be JSON");
        }
        Some(_) => {}
    }
}
