//! Which parts of an object the store keeps sealed, and how they leave it and come back.
//!
//! A kind declares them once, as JSON pointers ([`crate::kinds::Info::sealed`]). Before an object is proposed, what
//! stands at the pointers is taken out, sealed as one, and put under [`FIELD`]; the rest stays JSON that selectors,
//! planners and lists read. The sealing itself is the caller's: here is no key and no cipher.
//!
//! Invariant: nothing that objects are selected, owned or deleted by is sealed.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use crate::key::Key;

/// Where a stored object has its envelope, in base64. No schema has a field of this name.
pub const FIELD: &str = "$sealed";

/// Where apply remembers the manifest, which repeats what is sealed elsewhere.
pub const LAST_APPLIED: &str = "/metadata/annotations/kubectl.kubernetes.io~1last-applied-configuration";

/// Takes out what stands at the pointers.
pub fn take(object: &mut Value, pointers: &[String]) -> Map<String, Value> {
    let mut parts = Map::new();
    for pointer in pointers {
        let Some((parent, name)) = split(pointer) else { continue };
        let parent = object.pointer_mut(parent).and_then(Value::as_object_mut);
        if let Some(value) = parent.and_then(|parent| parent.remove(&name)) {
            parts.insert(pointer.clone(), value);
        }
    }
    parts
}

/// Puts back what [`take`] took out, and nothing at pointers that are not among `pointers`.
pub fn put_back(object: &mut Value, parts: Map<String, Value>, pointers: &[String]) {
    for (pointer, value) in parts {
        if !pointers.contains(&pointer) {
            continue;
        }
        let mut place = &mut *object;
        for name in pointer.split('/').skip(1).map(unescape) {
            if !place.is_object() {
                *place = Value::Object(Map::new());
            }
            place = &mut place[&name];
        }
        *place = value;
    }
}

/// Puts an envelope into an object.
pub fn set_envelope(object: &mut Value, envelope: &[u8]) {
    if let Some(object) = object.as_object_mut() {
        object.insert(FIELD.to_owned(), Value::String(STANDARD.encode(envelope)));
    }
}

/// Takes the envelope out of an object; `None` if it has none, or one that is no base64.
pub fn take_envelope(object: &mut Value) -> Option<Vec<u8>> {
    let envelope = object.as_object_mut()?.remove(FIELD)?;
    STANDARD.decode(envelope.as_str()?).ok()
}

/// What an envelope is bound to: this object at this place, so that it opens in no other.
pub fn context(key: &Key, object: &Value) -> Vec<u8> {
    let uid = object.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default();
    format!("{key}\0{uid}").into_bytes()
}

fn split(pointer: &str) -> Option<(&str, String)> {
    let (parent, name) = pointer.rsplit_once('/')?;
    Some((parent, unescape(name)))
}

fn unescape(name: &str) -> String {
    name.replace("~1", "/").replace("~0", "~")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Builtin, Registry};
    use serde_json::json;

    fn secret() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
            "metadata": {
                "name": "db", "uid": "u-1",
                "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{\"data\":1}", "note": "kept"},
            },
            "data": {"password": "aHVudGVyMg=="},
        })
    }

    #[test]
    fn what_is_taken_out_comes_back() {
        let kind = Registry::builtin().built_in(Builtin::Secret).unwrap();
        let mut object = secret();
        let parts = take(&mut object, &kind.sealed);
        assert_eq!(parts.len(), 2);
        let left = object.to_string();
        assert!(!left.contains("aHVudGVyMg") && !left.contains("\"data\"") && left.contains("kept"), "{left}");
        put_back(&mut object, parts, &kind.sealed);
        assert_eq!(object, secret());
    }

    #[test]
    fn parents_that_went_missing_are_made_and_other_places_are_not_touched() {
        let pointers = ["/a/b~1c".to_owned()];
        let mut object = json!({"x": 1});
        let parts = json!({"/a/b~1c": "sealed", "/x": "elsewhere"});
        put_back(&mut object, parts.as_object().unwrap().clone(), &pointers);
        assert_eq!(object, json!({"x": 1, "a": {"b/c": "sealed"}}));
    }

    #[test]
    fn an_envelope_is_put_in_and_taken_out() {
        let mut object = secret();
        set_envelope(&mut object, b"sealed");
        assert_eq!(object[FIELD], "c2VhbGVk");
        assert_eq!(take_envelope(&mut object).unwrap(), b"sealed");
        assert_eq!((take_envelope(&mut object), object), (None, secret()));
    }

    #[test]
    fn an_envelope_is_bound_to_its_object() {
        let key = Key::new(&Builtin::Secret.collection(), "default", "db");
        assert_eq!(context(&key, &secret()), b"core/secrets/default/db\0u-1");
    }

    #[test]
    fn nothing_is_both_selectable_and_sealed() {
        for kind in Registry::builtin().iter() {
            for field in &kind.selectable {
                let pointer = format!("/{}", field.replace('.', "/"));
                assert!(kind.sealed.iter().all(|sealed| !pointer.starts_with(sealed.as_str())), "{kind:?} {field}");
            }
            for pointer in &kind.sealed {
                let plain = ["/metadata/annotations/", "/data", "/stringData"];
                assert!(plain.iter().any(|begin| pointer.starts_with(begin)), "{kind:?} {pointer}");
            }
        }
    }
}
