//! Objects as bytes: what the store keeps and what readers get.
//!
//! Invariant: stored bytes never contain `metadata.resourceVersion`; a reader's always do.

use serde::de::DeserializeOwned;
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Map, Value};

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

/// As [`encode`], for an object that is JSON already.
///
/// # Errors
/// If the object does not serialize.
pub fn encode_value(object: &Value) -> Result<bytes::Bytes, serde_json::Error> {
    match object {
        Value::Object(map) => serde_json::to_vec(&Bare(map)),
        other => serde_json::to_vec(other),
    }
    .map(Into::into)
}

/// An object without the field that is not stored.
struct Bare<'a>(&'a Map<String, Value>);

impl Serialize for Bare<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (field, value) in self.0 {
            match value {
                Value::Object(metadata) if field == "metadata" => {
                    map.serialize_entry(field, &BareMetadata(metadata))?
                }
                value => map.serialize_entry(field, value)?,
            }
        }
        map.end()
    }
}

struct BareMetadata<'a>(&'a Map<String, Value>);

impl Serialize for BareMetadata<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().filter(|(field, _)| *field != "resourceVersion"))
    }
}

/// Puts stored bytes behind what is in `out`, as readers get them and without decoding them: `metadata.resourceVersion` comes
/// in at the front of the metadata. `None` if there is no metadata, which is never stored.
pub fn splice(stored: &[u8], revision: u64, out: &mut Vec<u8>) -> Option<()> {
    let at = metadata_at(stored)?;
    let (head, tail) = stored.split_at(at);
    let comma = if tail.first() == Some(&b'}') { "" } else { "," };
    let field = format!("\"resourceVersion\":\"{revision}\"{comma}");
    out.extend_from_slice(head);
    out.extend_from_slice(field.as_bytes());
    out.extend_from_slice(tail);
    Some(())
}

/// Where the fields of the outermost object's metadata begin, in JSON without blanks.
fn metadata_at(json: &[u8]) -> Option<usize> {
    const KEY: &[u8] = b"\"metadata\":{";
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(byte) = json.get(at) {
        match byte {
            b'"' if depth == 1 && json[at..].starts_with(KEY) => return Some(at + KEY.len()),
            b'"' => at = end_of_string(json, at)?,
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.checked_sub(1)?,
            _ => {}
        }
        at += 1;
    }
    None
}

/// Where the quote is that ends the string which begins at `at`.
fn end_of_string(json: &[u8], mut at: usize) -> Option<usize> {
    loop {
        at += 1;
        at += memchr::memchr2(b'"', b'\\', json.get(at..)?)?;
        match json[at] {
            b'"' => return Some(at),
            _ => at += 1,
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn spliced_is_what_decoding_and_encoding_gives() {
        let tricky = json!({
            "apiVersion": "v1",
            "data": {"metadata": {"x": 1}, "quote\"": "}\\\"metadata\":{", "a": "metadata", "list": [{"metadata": {}}, "]"]},
            "kind": "metadata",
            "metadata": {"name": "n", "annotations": {"metadata": "{\"metadata\":{}}"}, "resourceVersion": "7"},
        });
        for object in [tricky, json!({"metadata": {}}), json!({"a": "\\", "metadata": {"resourceVersion": "1"}})] {
            let stored = encode_value(&object).unwrap();
            assert_eq!(stored, encode(&object).unwrap());
            assert!(!serde_json::from_slice::<Value>(&stored).unwrap()["metadata"]["resourceVersion"].is_string());
            let mut spliced = b"[".to_vec();
            splice(&stored, 42, &mut spliced).unwrap();
            assert_eq!(serde_json::from_slice::<Value>(&spliced[1..]).unwrap(), decode_value(&stored, 42).unwrap());
        }
    }

    #[test]
    fn what_has_no_metadata_is_not_spliced() {
        for bytes in ["", "{}", "[]", "}", "\"", "{\"a\":{\"metadata\":{}}}", "{\"metadata\":\"x\"}", "{\"a\":\"\\"] {
            let mut out = Vec::new();
            assert_eq!((splice(bytes.as_bytes(), 1, &mut out), out), (None, Vec::new()), "{bytes}");
        }
    }
}
