//! OpenAPI 2 in the protobuf form that `kubectl` asks for: messages of gnostic's `OpenAPIv2.proto`, written from the JSON
//! form, piece by piece.
//!
//! Defined by google/gnostic, `openapiv2/OpenAPIv2.proto`; the numbers below are its field numbers.

use serde_json::{Map, Value};

/// A message being written.
#[derive(Default)]
pub(super) struct Message(Vec<u8>);

impl Message {
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value as u8 & 0x7f) | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn key(&mut self, field: u64, wire: u64) {
        self.varint(field << 3 | wire);
    }

    pub fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.key(field, 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    pub fn text(&mut self, field: u64, text: &str) {
        self.bytes(field, text.as_bytes());
    }

    pub fn message(&mut self, field: u64, write: impl FnOnce(&mut Message)) {
        let mut inner = Message::default();
        write(&mut inner);
        self.bytes(field, &inner.0);
    }

    /// An entry of a map, as gnostic has them: a name and a value.
    pub fn named(&mut self, field: u64, name: &str, write: impl FnOnce(&mut Message)) {
        self.message(field, |entry| {
            entry.text(1, name);
            entry.message(2, write);
        });
    }

    fn flag(&mut self, field: u64, value: Option<&Value>) {
        if value.and_then(Value::as_bool) == Some(true) {
            self.key(field, 0);
            self.varint(1);
        }
    }

    fn integer(&mut self, field: u64, value: Option<&Value>) {
        if let Some(number) = value.and_then(Value::as_i64) {
            self.key(field, 0);
            self.varint(number as u64);
        }
    }

    fn double(&mut self, field: u64, value: Option<&Value>) {
        if let Some(number) = value.and_then(Value::as_f64) {
            self.key(field, 1);
            self.0.extend_from_slice(&number.to_le_bytes());
        }
    }

    fn string(&mut self, field: u64, value: Option<&Value>) {
        if let Some(text) = value.and_then(Value::as_str) {
            self.text(field, text);
        }
    }

    fn strings(&mut self, field: u64, value: Option<&Value>) {
        for text in value.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
            self.text(field, text);
        }
    }

    /// Any value, as YAML; JSON is YAML.
    fn any(&mut self, field: u64, value: &Value) {
        self.message(field, |any| any.text(2, &value.to_string()));
    }

    fn extensions(&mut self, field: u64, map: &Map<String, Value>) {
        for (name, value) in map.iter().filter(|(name, _)| name.starts_with("x-")) {
            self.named(field, name, |any| any.text(2, &value.to_string()));
        }
    }
}

/// `Schema`.
pub(super) fn schema(message: &mut Message, value: &Value) {
    let Value::Object(map) = value else { return };
    let get = |name: &str| map.get(name);
    message.string(1, get("$ref"));
    message.string(2, get("format"));
    message.string(3, get("title"));
    message.string(4, get("description"));
    if let Some(default) = get("default") {
        message.any(5, default);
    }
    message.double(6, get("multipleOf"));
    message.double(7, get("maximum"));
    message.flag(8, get("exclusiveMaximum"));
    message.double(9, get("minimum"));
    message.flag(10, get("exclusiveMinimum"));
    message.integer(11, get("maxLength"));
    message.integer(12, get("minLength"));
    message.string(13, get("pattern"));
    message.integer(14, get("maxItems"));
    message.integer(15, get("minItems"));
    message.flag(16, get("uniqueItems"));
    message.integer(17, get("maxProperties"));
    message.integer(18, get("minProperties"));
    message.strings(19, get("required"));
    for one in get("enum").and_then(Value::as_array).into_iter().flatten() {
        message.any(20, one);
    }
    match get("additionalProperties") {
        Some(Value::Bool(_)) => message.message(21, |item| item.flag(2, get("additionalProperties"))),
        Some(values) => message.message(21, |item| item.message(1, |inner| schema(inner, values))),
        None => {}
    }
    if let Some(type_) = get("type").and_then(Value::as_str) {
        message.message(22, |item| item.text(1, type_));
    }
    if let Some(items) = get("items") {
        message.message(23, |item| item.message(1, |inner| schema(inner, items)));
    }
    for one in get("allOf").and_then(Value::as_array).into_iter().flatten() {
        message.message(24, |inner| schema(inner, one));
    }
    if let Some(Value::Object(fields)) = get("properties") {
        message.message(25, |properties| {
            for (name, field) in fields {
                properties.named(1, name, |inner| schema(inner, field));
            }
        });
    }
    message.extensions(31, map);
}

/// `PathItem`.
pub(super) fn path_item(message: &mut Message, value: &Value) {
    for (field, method) in
        [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (6, "options"), (7, "head"), (8, "patch")]
    {
        if let Some(Value::Object(map)) = value.get(method) {
            message.message(field, |inner| operation(inner, map));
        }
    }
    parameters(message, 9, value.get("parameters"));
}

fn operation(message: &mut Message, map: &Map<String, Value>) {
    message.strings(1, map.get("tags"));
    message.string(3, map.get("description"));
    message.string(5, map.get("operationId"));
    message.strings(6, map.get("produces"));
    message.strings(7, map.get("consumes"));
    parameters(message, 8, map.get("parameters"));
    message.message(9, |responses| {
        for (code, response) in map.get("responses").and_then(Value::as_object).into_iter().flatten() {
            responses.named(1, code, |value| {
                value.message(1, |inner| {
                    inner.string(1, response.get("description"));
                    if let Some(of) = response.get("schema") {
                        inner.message(2, |item| item.message(1, |inner| schema(inner, of)));
                    }
                });
            });
        }
    });
    message.strings(10, map.get("schemes"));
    message.extensions(13, map);
}

fn parameters(message: &mut Message, field: u64, list: Option<&Value>) {
    for one in list.and_then(Value::as_array).into_iter().flatten() {
        message.message(field, |item| item.message(1, |inner| parameter(inner, one)));
    }
}

/// `Parameter`: of a body, a query or a path.
fn parameter(message: &mut Message, value: &Value) {
    let get = |name: &str| value.get(name);
    match get("in").and_then(Value::as_str).unwrap_or_default() {
        "body" => message.message(1, |body| {
            body.string(1, get("description"));
            body.string(2, get("name"));
            body.string(3, get("in"));
            body.flag(4, get("required"));
            if let Some(of) = get("schema") {
                body.message(5, |inner| schema(inner, of));
            }
        }),
        place => {
            let is_query = place == "query";
            message.message(2, |other| {
                other.message(if is_query { 3 } else { 4 }, |inner| {
                    inner.flag(1, get("required"));
                    inner.string(2, get("in"));
                    inner.string(3, get("description"));
                    inner.string(4, get("name"));
                    inner.string(if is_query { 6 } else { 5 }, get("type"));
                    inner.flag(if is_query { 20 } else { 19 }, get("uniqueItems"));
                });
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn messages_have_gnostics_numbers() {
        let mut message = Message::default();
        schema(&mut message, &json!({"$ref": "a", "type": "b", "maxLength": 300, "x-c": [1]}));
        // _ref = 1, max_length = 11, type = 22 { value = 1 }, vendor_extension = 31 { name = 1, value = 2 { yaml = 2 } }
        let expected: &[u8] = &[
            0x0a, 1, b'a', 0x58, 0xac, 0x02, 0xb2, 0x01, 3, 0x0a, 1, b'b', 0xfa, 0x01, 12, 0x0a, 3, b'x', b'-', b'c',
            0x12, 5, 0x12, 3, b'[', b'1', b']',
        ];
        assert_eq!(message.into_bytes(), expected);
    }
}
