//! JSON Patch, RFC 6902.

use json_patch::{Patch, PatchOperation};
use serde_json::Value;

use super::rejected;
use crate::error::{Reason, Status};

/// Upstream's bound.
const MAX_OPERATIONS: usize = 10_000;
/// What copies may make of an object: each copy adds what it copies.
const MAX_COPIES: usize = 100;

pub fn parse(body: &[u8]) -> Result<Patch, Status> {
    let patch: Patch =
        serde_json::from_slice(body).map_err(|error| Status::bad_request(format!("error decoding patch: {error}")))?;
    if patch.0.len() > MAX_OPERATIONS {
        return Err(Status::new(
            Reason::RequestEntityTooLarge,
            format!("The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}", patch.0.len()),
        ));
    }
    let copies = patch.0.iter().filter(|operation| matches!(operation, PatchOperation::Copy(_))).count();
    if copies > MAX_COPIES {
        return Err(Status::new(
            Reason::RequestEntityTooLarge,
            format!("the patch copies {copies} times; at most {MAX_COPIES} copies are taken at once"),
        ));
    }
    Ok(patch)
}

pub fn apply(patch: &Patch, current: &Value) -> Result<Value, Status> {
    let mut new = current.clone();
    let mut copied_bytes = 0;
    for (index, operation) in patch.0.iter().enumerate() {
        if let PatchOperation::Copy(copy) = operation {
            copied_bytes += new.pointer(copy.from.as_str()).map_or(0, |value| value.to_string().len());
            if copied_bytes > crate::admit::MAX_INPUT_BYTES {
                return Err(rejected(format!(
                    "operation {index}: what the patch copies is larger than an object may be"
                )));
            }
        }
        json_patch::patch(&mut new, std::slice::from_ref(operation))
            .map_err(|error| rejected(format!("operation {index}: {}", error.kind)))?;
    }
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn patched(current: Value, patch: Value) -> Result<Value, Status> {
        apply(&parse(patch.to_string().as_bytes())?, &current)
    }

    #[test]
    fn operations_are_carried_out_in_order() {
        let patch = json!([
            {"op": "test", "path": "/a/0", "value": 1},
            {"op": "add", "path": "/a/-", "value": 3},
            {"op": "replace", "path": "/b~1c", "value": "new"},
            {"op": "remove", "path": "/d"},
        ]);
        let new = patched(json!({"a": [1, 2], "b/c": "old", "d": 0}), patch).unwrap();
        assert_eq!(new, json!({"a": [1, 2, 3], "b/c": "new"}));
    }

    #[test]
    fn what_cannot_be_done_is_invalid_and_says_which_operation() {
        let patch = json!([{"op": "add", "path": "/x", "value": 1}, {"op": "test", "path": "/x", "value": 2}]);
        let refused = patched(json!({}), patch).unwrap_err();
        assert_eq!(refused.reason, Reason::Invalid);
        assert!(refused.message.contains("operation 1"), "{}", refused.message);
    }

    #[test]
    fn copies_do_not_grow_without_end() {
        let doubling: Vec<Value> =
            (0..60).map(|n| json!({"op": "copy", "from": "/a", "path": format!("/a/x{n}")})).collect();
        assert!(patched(json!({"a": {"k": "v".repeat(100)}}), json!(doubling)).is_err());
        let many: Vec<Value> = (0..=MAX_OPERATIONS).map(|_| json!({"op": "remove", "path": "/a"})).collect();
        assert_eq!(patched(json!({}), json!(many)).unwrap_err().reason, Reason::RequestEntityTooLarge);
    }
}
