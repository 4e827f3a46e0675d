//! JSON Patch, RFC 6902.

use json_patch::jsonptr::{Pointer, PointerBuf};
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
    let count = match operations.as_array() {
        Some(list) if list.iter().all(Value::is_object) => list.len(),
        _ => return Err(Status::bad_request("error decoding patch: it is not a list of operations")),
    };
    if count > MAX_OPERATIONS {
        return Err(Status::new(
            Reason::RequestEntityTooLarge,
            format!(
                "Request entity too large: The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {count}"
            ),
        ));
    }
    // To upstream, what an operation lacks is a reason why it cannot be carried out.
    serde_json::from_value(operations).map(super::Patch::Json).map_err(|error| rejected(error.to_string()))
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
        let operation = &counted(operation.clone(), &new);
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

/// An operation with all indices counted from the beginning.
fn counted(mut operation: PatchOperation, object: &Value) -> PatchOperation {
    match &mut operation {
        PatchOperation::Add(add) => count(&mut add.path, object, true),
        PatchOperation::Replace(replace) => count(&mut replace.path, object, false),
        PatchOperation::Remove(remove) => count(&mut remove.path, object, false),
        PatchOperation::Test(test) => count(&mut test.path, object, false),
        PatchOperation::Copy(copy) => {
            count(&mut copy.from, object, false);
            count(&mut copy.path, object, true);
        }
        PatchOperation::Move(moved) => {
            // Within a list it is taken out first.
            let adds = moved.from.parent() != moved.path.parent();
            count(&mut moved.from, object, false);
            count(&mut moved.path, object, adds);
        }
    }
    operation
}

/// Upstream's library counts a negative index from the end: -1 is the last element or, where one is added, behind it.
fn count(path: &mut PointerBuf, object: &Value, adds: bool) {
    let (depth, mut at) = (path.count(), Some(object));
    let mut tokens = Vec::with_capacity(depth);
    for token in path.tokens() {
        let mut token = token.decoded().into_owned();
        if let Some(Value::Array(list)) = at {
            let places = list.len() + usize::from(adds && tokens.len() + 1 == depth);
            let index = token.parse::<isize>().ok().filter(|index| *index < 0);
            if let Some(index) = index.and_then(|index| places.checked_add_signed(index)) {
                token = index.to_string();
            }
        }
        at = match at {
            Some(Value::Array(list)) => token.parse::<usize>().ok().and_then(|index| list.get(index)),
            Some(Value::Object(map)) => map.get(&token),
            _ => None,
        };
        tokens.push(token);
    }
    *path = PointerBuf::from_tokens(tokens);
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
    fn negative_indices_are_counted_from_the_end() {
        let table = [
            (json!({"op": "remove", "path": "/a/-1"}), json!({"a": [{"b": 1}]})),
            (json!({"op": "replace", "path": "/a/-2/b", "value": 3}), json!({"a": [{"b": 3}, {"b": 2}]})),
            (json!({"op": "add", "path": "/a/-1", "value": 3}), json!({"a": [{"b": 1}, {"b": 2}, 3]})),
            (json!({"op": "add", "path": "/a/-3", "value": 3}), json!({"a": [3, {"b": 1}, {"b": 2}]})),
            (json!({"op": "copy", "from": "/a/-1", "path": "/c"}), json!({"a": [{"b": 1}, {"b": 2}], "c": {"b": 2}})),
            (json!({"op": "move", "from": "/a/0", "path": "/a/-1"}), json!({"a": [{"b": 2}, {"b": 1}]})),
            (json!({"op": "test", "path": "/a/-1/b", "value": 2}), json!({"a": [{"b": 1}, {"b": 2}]})),
        ];
        for (operation, wanted) in table {
            let new = patched(json!({"a": [{"b": 1}, {"b": 2}]}), json!([operation]));
            assert_eq!(new.unwrap(), wanted, "{operation}");
        }
        let beyond = json!([{"op": "remove", "path": "/a/-3"}]);
        assert_eq!(patched(json!({"a": [1, 2]}), beyond).unwrap_err().reason, Reason::Invalid);
    }

    #[test]
    fn what_no_operation_is_cannot_be_carried_out() {
        for operation in [json!({"op": "jump", "path": "/a"}), json!({"path": "/a"}), json!({"op": "remove"})] {
            assert_eq!(patched(json!({"a": 1}), json!([operation])).unwrap_err().reason, Reason::Invalid);
        }
        assert_eq!(patched(json!({}), json!(["remove"])).unwrap_err().reason, Reason::BadRequest);
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
