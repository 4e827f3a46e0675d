//! Objects as bytes: what the store keeps and what readers get.
//!
//! Invariant: stored bytes never contain `metadata.resourceVersion`; a reader's always do.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Serializes an object for the store: JSON without `metadata.resourceVersion`.
///
/// # Errors
/// If the object does not serialize to a JSON object with `metadata`.
pub fn encode(object: &impl Serialize) -> Result<bytes::Bytes, serde_json::Error> {
    let mut value = serde_json::to_value(object)?;
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("resourceVersion");
    }
    serde_json::to_vec(&value).map(Into::into)
}

/// Reads a stored object, with `metadata.resourceVersion` set to `revision`.
///
/// # Errors
/// If the bytes are not JSON of the type `T`.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], revision: u64) -> Result<T, serde_json::Error> {
    serde_json::from_value(decode_value(bytes, revision)?)
}

/// Reads a stored object as JSON, with `metadata.resourceVersion` set to `revision`.
///
/// # Errors
/// If the bytes are not JSON.
pub fn decode_value(bytes: &[u8], revision: u64) -> Result<Value, serde_json::Error> {
    let mut value: Value = serde_json::from_slice(bytes)?;
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("resourceVersion".into(), Value::String(revision.to_string()));
    }
    Ok(value)
}
