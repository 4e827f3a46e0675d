//! What all objects have in common: names, owners, finalizers, times.

use std::collections::BTreeMap;

use bytes::Bytes;
use flotilla_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use flotilla_api::k8s_openapi::{Metadata, Resource};
use jiff::{SignedDuration, Timestamp};
use rand::RngCore;
use serde::Serialize;

use crate::names;

/// A count as statuses have it: none is left out.
pub(crate) fn unless_zero(count: i32) -> Option<i32> {
    (count != 0).then_some(count)
}

/// Metadata of a new object.
pub fn mint(namespace: &str, name: String, now: Timestamp, rng: &mut dyn RngCore) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: (!namespace.is_empty()).then(|| namespace.to_owned()),
        uid: Some(names::uid(rng)),
        creation_timestamp: Some(seconds(now)),
        generation: Some(1),
        ..ObjectMeta::default()
    }
}

/// Kubernetes' times have whole seconds.
pub fn seconds(now: Timestamp) -> Time {
    // Whole seconds of a time that exists are a time that exists.
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

/// `at` and so many seconds; the far future if that is no time.
pub(crate) fn plus_seconds(at: Timestamp, seconds: i64) -> Timestamp {
    at.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX)
}

pub(crate) fn plus_ms(at: Timestamp, ms: u64) -> Timestamp {
    let ms = i64::try_from(ms).unwrap_or(i64::MAX);
    at.saturating_add(SignedDuration::from_millis(ms)).unwrap_or(Timestamp::MAX)
}

pub(crate) fn elapsed_seconds(since: Timestamp, now: Timestamp) -> i64 {
    now.as_second().saturating_sub(since.as_second())
}

/// The reference of the controller of an object, if it has one.
pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// Whether the object's controller has this uid.
pub(crate) fn is_controlled_by(meta: &ObjectMeta, uid: &str) -> bool {
    controller_of(meta).is_some_and(|owner| owner.uid == uid)
}

/// A reference that makes `owner` the controller of what carries it.
pub(crate) fn controller_reference<T>(owner: &T) -> OwnerReference
where
    T: Resource + Metadata<Ty = ObjectMeta>,
{
    let meta = owner.metadata();
    OwnerReference {
        api_version: T::API_VERSION.to_owned(),
        kind: T::KIND.to_owned(),
        name: name(meta).to_owned(),
        uid: uid(meta).to_owned(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

pub(crate) fn name(meta: &ObjectMeta) -> &str {
    meta.name.as_deref().unwrap_or_default()
}

pub(crate) fn namespace(meta: &ObjectMeta) -> &str {
    meta.namespace.as_deref().unwrap_or_default()
}

pub(crate) fn uid(meta: &ObjectMeta) -> &str {
    meta.uid.as_deref().unwrap_or_default()
}

pub(crate) fn is_deleting(meta: &ObjectMeta) -> bool {
    meta.deletion_timestamp.is_some()
}

pub(crate) fn created(meta: &ObjectMeta) -> Timestamp {
    meta.creation_timestamp.as_ref().map_or(Timestamp::MIN, |time| time.0)
}

pub(crate) fn has_finalizer(meta: &ObjectMeta, finalizer: &str) -> bool {
    meta.finalizers.iter().flatten().any(|other| other == finalizer)
}

pub(crate) fn remove_finalizer(meta: &mut ObjectMeta, finalizer: &str) {
    if let Some(finalizers) = &mut meta.finalizers {
        finalizers.retain(|other| other != finalizer);
    }
    meta.finalizers.take_if(|finalizers| finalizers.is_empty());
}

pub(crate) fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

pub(crate) fn set(map: &mut Option<BTreeMap<String, String>>, key: &str, value: impl Into<String>) {
    map.get_or_insert_default().insert(key.to_owned(), value.into());
}

/// Marks that the spec changed.
pub(crate) fn bump_generation(meta: &mut ObjectMeta) {
    meta.generation = Some(meta.generation.unwrap_or(0) + 1);
}

/// The stored form of an object that was read from the View or made here: neither carries a
/// `resourceVersion`, so it is serialized in one go.
pub(crate) fn encode(object: &impl Serialize) -> Bytes {
    // Kubernetes' types have text keys and no number that JSON lacks, so they always serialize.
    let bytes: Bytes = serde_json::to_vec(object).expect("Kubernetes objects serialize to JSON").into();
    debug_assert!(
        serde_json::from_slice::<serde_json::Value>(&bytes)
            .is_ok_and(|value| value["metadata"].is_object() && value["metadata"]["resourceVersion"].is_null())
    );
    bytes
}
