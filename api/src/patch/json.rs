//! JSON Patch, RFC 6902.

use json_patch::jsonptr::Pointer;
use json_patch::{Patch, PatchOperation};
use serde_json::Value;

use super::{MAX_DEPTH, is_shallow, rejected, too_deep};
use crate::error::{Reason, Status};

/// What an operation may say.
const FIELDS: [&str; 4] = ["op", "path", "from", "value"];
/// Upstream's bound.
const MAX_OPERATIONS: usize = 10_000;
/// Fields that no operation has and that are told.
const MAX_TOLD: usize = 100;
/// What the operations of one patch may copy and move: upstream's bound for copies.
const MAX_CARRIED_BYTES: usize = 3 * 1024 * 1024;

pub fn parse(operations: Value) -> Result<super::Patch, Status> {
    let patch: Patch = serde_json::from_value(operations)
        .map_err(|error| Status::bad_request(format!("error decoding patch: {error}")))?;
    if patch.0.len() > MAX_OPERATIONS {
        return Err(Status::new(
            Reason::RequestEntityTooLarge,
            format!(
                "Request entity too large: The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
                patch.0.len()
            ),
        ));
    }
    Ok(super::Patch::Json(patch))
}

/// A sentence for each field that no operation has.
pub fn unknown_fields(operations: &Value) -> Vec<String> {
    let operations = operations.as_array().into_iter().flatten().enumerate();
    let fields = operations.flat_map(|(index, operation)| {
        let fields = operation.as_object().into_iter().flat_map(|map| map.keys());
        fields.filter(|field| !FIELDS.contains(&field.as_str())).map(move |field| (index, field))
    });
    fields.take(MAX_TOLD).map(|(index, field)| format!("unknown field \"[{index}].{field}\"")).collect()
}

pub fn apply(patch: &Patch, current: &Value) -> Result<Value, Status> {
    let mut new = current.clone();
    let mut carried_bytes = 0;
    for (index, operation) in patch.0.iter().enumerate() {
        match operation {
            PatchOperation::Add(add) => fits(&add.path, &add.value)?,
            PatchOperation::Replace(replace) => fits(&replace.path, &replace.value)?,
            PatchOperation::Copy(copy) => carry(&new, &copy.from, &copy.path, &mut carried_bytes)?,
            PatchOperation::Move(moved) => carry(&new, &moved.from, &moved.path, &mut carried_bytes)?,
            // Upstream's library takes what is not there for null, and clients rely on it to say that a field is missing.
            PatchOperation::Test(test) if test.value.is_null() && new.pointer(test.path.as_str()).is_none() => continue,
            PatchOperation::Remove(_) | PatchOperation::Test(_) => {}
        }
        json_patch::patch(&mut new, std::slice::from_ref(operation))
            .map_err(|error| rejected(format!("operation {index}: {}", error.kind)))?;
    }
    Ok(new)
}

/// Whether what is put at a path makes the object no deeper than it may be; every step is looked at, since even to drop
/// what is too deep takes a deep stack.
fn fits(path: &Pointer, value: &Value) -> Result<(), Status> {
    match MAX_DEPTH.checked_sub(path.count()).is_some_and(|levels| is_shallow(value, levels)) {
        true => Ok(()),
        false => Err(too_deep()),
    }
}

/// Counts what is copied or moved; what is not there is told by the operation itself.
fn carry(object: &Value, from: &Pointer, to: &Pointer, carried_bytes: &mut usize) -> Result<(), Status> {
    let Some(value) = object.pointer(from.as_str()) else { return Ok(()) };
    *carried_bytes += value.to_string().len();
    if *carried_bytes > MAX_CARRIED_BYTES {
        return Err(rejected(format!(
            "Unable to complete the copy, the accumulated size increase of copy is {carried_bytes}, exceeding the limit \
             {MAX_CARRIED_BYTES}"
        )));
    }
    fits(to, value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_not_there_is_tested_as_null() {
        let first_finalizer = json!([
            {"op": "test", "path": "/metadata/finalizers", "value": null},
            {"op": "add", "path": "/metadata/finalizers", "value": ["a/b"]},
        ]);
        let new = patched(json!({"metadata": {}}), first_finalizer.clone()).unwrap();
        assert_eq!(new, json!({"metadata": {"finalizers": ["a/b"]}}));
        assert_eq!(patched(new, first_finalizer).unwrap_err().reason, Reason::Invalid);
    }

    fn patched(current: Value, patch: Value) -> Result<Value, Status> {
        parse(patch.clone())?.apply(None, &current)
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
        assert!(refused.message.starts_with("the server rejected our request due to an error in our request: "));
        assert!(refused.message.contains("operation 1"), "{refused:?}");
    }

    #[test]
    fn nothing_becomes_deeper_than_an_object_may_be() {
        let chain = |levels: usize| (0..levels).fold(json!({}), |below, _| json!({"a": below}));
        let steps: Vec<Value> = (0..200)
            .flat_map(|_| {
                [
                    json!({"op": "add", "path": "/c", "value": chain(100)}),
                    json!({"op": "move", "from": "/b", "path": format!("/c{}/b", "/a".repeat(100))}),
                    json!({"op": "move", "from": "/c", "path": "/b"}),
                ]
            })
            .collect();
        let refused = patched(json!({"b": {}}), json!(steps)).unwrap_err();
        assert!(refused.message.contains("levels deep"), "{refused:?}");
        let add = json!([{"op": "add", "path": "/a".repeat(140), "value": 1}]);
        assert_eq!(patched(chain(120), add).unwrap_err().reason, Reason::Invalid);
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
