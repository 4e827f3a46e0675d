//! What upstream refuses, in upstream's words.
//!
//! Defined by the Kubernetes API reference and, where that is silent, by the behaviour of a current kube-apiserver. Every
//! function adds its complaints to [`Errors`] and goes on, so that all are told at once.
//!
//! Invariant: validation reads objects after defaulting and changes nothing.

use serde::Serialize;
use serde_json::Value;

use crate::field::{Errors, Path};

pub(crate) mod container;
pub(crate) mod ingress;
pub(crate) mod job;
pub(crate) mod metadata;
pub(crate) mod net;
pub(crate) mod node;
pub(crate) mod pod;
pub(crate) mod probe;
pub(crate) mod quota;
pub(crate) mod rbac;
pub(crate) mod remote;
pub(crate) mod resources;
pub(crate) mod scheduling;
pub(crate) mod service;
pub(crate) mod storage;
#[cfg(test)]
mod tests;
pub(crate) mod volume;
pub(crate) mod workload;

pub(crate) const NON_NEGATIVE: &str = "must be greater than or equal to 0";
pub(crate) const POSITIVE: &str = "must be greater than 0";
pub(crate) const PORT: &str = "must be between 1 and 65535, inclusive";

pub(crate) fn non_negative(value: Option<impl Into<i64>>, path: &Path, errors: &mut Errors) {
    if let Some(value) = value.map(Into::into).filter(|value| *value < 0) {
        errors.invalid(path, value, NON_NEGATIVE);
    }
}

pub(crate) fn positive(value: Option<impl Into<i64>>, path: &Path, errors: &mut Errors) {
    if let Some(value) = value.map(Into::into).filter(|value| *value <= 0) {
        errors.invalid(path, value, POSITIVE);
    }
}

pub(crate) fn port(value: impl Into<i64>, path: &Path, errors: &mut Errors) {
    let value = value.into();
    if !(1..=65_535).contains(&value) {
        errors.invalid(path, value, PORT);
    }
}

/// Complaints of one of the checks in [`crate::names`].
pub(crate) fn name(value: &str, rule: fn(&str) -> Vec<String>, path: &Path, errors: &mut Errors) {
    rule(value).iter().for_each(|complaint| errors.invalid(path, value, complaint));
}

/// One of a few words; an absent one is fine.
pub(crate) fn one_of(value: Option<&str>, supported: &[&str], path: &Path, errors: &mut Errors) {
    if let Some(value) = value.filter(|value| !supported.contains(value)) {
        errors.not_supported(path, value, supported);
    }
}

pub(crate) fn immutable<T: PartialEq + Serialize>(old: &T, new: &T, path: &Path, errors: &mut Errors) {
    if old != new {
        errors.invalid(path, serde_json::to_value(new).unwrap_or(Value::Null), "field is immutable");
    }
}

/// A ConfigMap or Secret that was made immutable stays so.
pub(crate) fn stays_immutable(immutable: Option<bool>, errors: &mut Errors) {
    if immutable != Some(true) {
        errors.forbidden(&Path::new("immutable"), "field is immutable when `immutable` is set");
    }
}
