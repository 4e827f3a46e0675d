//! Objects in Kubernetes' protobuf form, as `kubectl` and other clients of built-in kinds send them, turned into JSON.
//!
//! The data holds one message a line: its name, then each field as `number:name:type`. Of a type, `*` stands for a list,
//! `%` for a map by text, `s i b y d` for text, number, truth, bytes and fraction; `@`, `~` and `^` begin the names of
//! messages. A field called `!` is one whose fields stand in JSON where it stands itself.
//!
//! The form has no way to leave out a field that is no pointer in upstream's code: it comes as empty text, as zero, or as
//! an empty message. Such are dropped where nobody means them.
//!
//! Invariant: input is bounded by its length, and nests at most [`MAX_DEPTH`] deep.

use std::collections::HashMap;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::error::Status;

const DATA: &str = include_str!("../data/kubernetes-protobuf.txt");
/// What every encoded object begins with.
const MAGIC: &[u8] = b"k8s\0";
const MAX_DEPTH: usize = 64;

const UNKNOWN: &str = "^runtime.Unknown";

/// Numbers that mean nothing when they are zero.
const ZERO_IS_NOTHING: &[&str] = &[
    "failureThreshold",
    "generation",
    "hostPort",
    "initialDelaySeconds",
    "minReadySeconds",
    "nodePort",
    "observedGeneration",
    "periodSeconds",
    "successThreshold",
    "timeoutSeconds",
];
/// Truths that mean nothing when they are false.
const FALSE_IS_NOTHING: &[&str] = &[
    "hostIPC",
    "hostNetwork",
    "hostPID",
    "paused",
    "publishNotReadyAddresses",
    "readOnly",
    "stdin",
    "stdinOnce",
    "tty",
    "unschedulable",
];

struct Field {
    number: u64,
    name: &'static str,
    of: &'static str,
}

static MESSAGES: LazyLock<HashMap<&'static str, Vec<Field>>> = LazyLock::new(|| {
    let line = |line: &'static str| {
        let mut words = line.split(' ');
        let name = words.next()?;
        let fields = words.filter_map(|word| {
            let mut parts = word.splitn(3, ':');
            Some(Field { number: parts.next()?.parse().ok()?, name: parts.next()?, of: parts.next()? })
        });
        Some((name, fields.collect()))
    };
    DATA.lines().filter_map(line).collect()
});

/// Whether the bytes are in this form.
pub fn is_encoded(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// The object that the bytes stand for.
///
/// # Errors
/// `BadRequest` if they are not in this form, or of a kind that has none.
pub fn decode(bytes: &[u8]) -> Result<Value, Status> {
    let bytes = bytes.strip_prefix(MAGIC).ok_or_else(|| broken("it does not begin as it must"))?;
    let envelope = message(UNKNOWN, bytes, false, 0)?;
    let text = |pointer: &str| envelope.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let (version, kind) = (text("/typeMeta/apiVersion"), text("/typeMeta/kind"));
    let raw = STANDARD.decode(text("/raw")).map_err(|_| broken("it holds nothing"))?;
    let name = message_of(version, kind)
        .ok_or_else(|| Status::bad_request(format!("no kind \"{kind}\" is registered for version \"{version}\"")))?;
    let mut object = message(name, &raw, false, 0)?;
    if let Value::Object(map) = &mut object {
        map.insert("apiVersion".into(), version.into());
        map.insert("kind".into(), kind.into());
    }
    Ok(object)
}

/// The message of a kind: those of a group are named after its first word.
fn message_of(api_version: &str, kind: &str) -> Option<&'static str> {
    let (group, version) = api_version.split_once('/').unwrap_or(("core", api_version));
    let package = group.split('.').next().unwrap_or_default();
    let own = format!("@{package}.{version}.{kind}");
    // Options have the version of what they are for.
    let names = [own, format!("~{kind}")];
    names.iter().find_map(|name| MESSAGES.get_key_value(name.as_str())).map(|(name, _)| *name)
}

fn broken(why: &str) -> Status {
    Status::bad_request(format!("the body of the request is not valid protobuf: {why}"))
}

/// A field as it stands on the wire.
enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Fixed(f64),
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn field(&mut self) -> Option<(u64, Wire<'a>)> {
        let tag = self.varint()?;
        let wire = match tag & 7 {
            0 => Wire::Number(self.varint()?),
            1 => Wire::Fixed(f64::from_le_bytes(self.take(8)?.try_into().ok()?)),
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Wire::Bytes(self.take(length)?)
            }
            5 => Wire::Fixed(f32::from_le_bytes(self.take(4)?.try_into().ok()?).into()),
            _ => return None,
        };
        Some((tag >> 3, wire))
    }
}

/// A message as JSON. In a status every zero means nothing.
fn message(name: &str, bytes: &[u8], is_status: bool, depth: usize) -> Result<Value, Status> {
    if depth > MAX_DEPTH {
        return Err(broken("it nests too deep"));
    }
    let fields = MESSAGES.get(name).ok_or_else(|| broken("it holds a message that nobody knows"))?;
    let mut map = Map::new();
    let mut reader = Reader(bytes);
    while !reader.0.is_empty() {
        let (number, wire) = reader.field().ok_or_else(|| broken("it breaks off"))?;
        let Some(field) = fields.iter().find(|field| field.number == number) else { continue };
        let is_status = is_status || field.name == "status";
        put(&mut map, field, wire, is_status, depth)?;
    }
    Ok(Value::Object(map))
}

fn put(map: &mut Map<String, Value>, field: &Field, wire: Wire, is_status: bool, depth: usize) -> Result<(), Status> {
    if field.name == "!" {
        if let Value::Object(inner) = one(field.of, wire, is_status, depth)? {
            map.extend(inner);
        }
        return Ok(());
    }
    if let Some(of) = field.of.strip_prefix('*') {
        let list = map.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(list) = list {
            append(list, of, wire, is_status, depth)?;
        }
        return Ok(());
    }
    if let Some(of) = field.of.strip_prefix('%') {
        let (key, value) = entry(of, wire, is_status, depth)?;
        let values = map.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(values) = values {
            values.insert(key, value);
        }
        return Ok(());
    }
    let value = one(field.of, wire, is_status, depth)?;
    if !means_nothing(field.name, &value, is_status) {
        map.insert(field.name.into(), value);
    }
    Ok(())
}

/// What stands on the wire only because it cannot be left out.
fn means_nothing(name: &str, value: &Value, is_status: bool) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_i64() == Some(0) && (is_status || ZERO_IS_NOTHING.contains(&name)),
        Value::Bool(truth) => !truth && (is_status || FALSE_IS_NOTHING.contains(&name)),
        // An empty selector or source says something; these do not.
        Value::Object(map) => map.is_empty() && matches!(name, "metadata" | "status" | "strategy" | "resources"),
        Value::Array(_) => false,
    }
}

/// One more of a list, or several numbers in one piece.
fn append(list: &mut Vec<Value>, of: &str, wire: Wire, is_status: bool, depth: usize) -> Result<(), Status> {
    match (of, wire) {
        ("i" | "b", Wire::Bytes(packed)) => {
            let mut reader = Reader(packed);
            while !reader.0.is_empty() {
                let number = reader.varint().ok_or_else(|| broken("it breaks off"))?;
                list.push(one(of, Wire::Number(number), is_status, depth)?);
            }
        }
        (of, wire) => list.push(one(of, wire, is_status, depth)?),
    }
    Ok(())
}

fn entry(of: &str, wire: Wire, is_status: bool, depth: usize) -> Result<(String, Value), Status> {
    let Wire::Bytes(bytes) = wire else { return Err(broken("a map is none")) };
    let mut reader = Reader(bytes);
    let (mut key, mut value) = (String::new(), None);
    while !reader.0.is_empty() {
        match reader.field().ok_or_else(|| broken("it breaks off"))? {
            (1, Wire::Bytes(bytes)) => key = text(bytes)?,
            (2, wire) => value = Some(one(of, wire, is_status, depth)?),
            _ => {}
        }
    }
    let empty = || match of {
        "y" | "s" => Value::String(String::new()),
        _ => Value::Object(Map::new()),
    };
    Ok((key, value.unwrap_or_else(empty)))
}

fn one(of: &str, wire: Wire, is_status: bool, depth: usize) -> Result<Value, Status> {
    Ok(match (of, wire) {
        ("s", Wire::Bytes(bytes)) => Value::String(text(bytes)?),
        ("y", Wire::Bytes(bytes)) => Value::String(STANDARD.encode(bytes)),
        ("i", Wire::Number(number)) => Value::from(number.cast_signed()),
        ("b", Wire::Number(number)) => Value::Bool(number != 0),
        ("d" | "f", Wire::Fixed(number)) => serde_json::Number::from_f64(number).map_or(Value::Null, Value::Number),
        (of, Wire::Bytes(bytes)) if of.starts_with(['@', '~', '^']) => {
            special(of, message(of, bytes, is_status, depth + 1)?)?
        }
        _ => return Err(broken("a field has another type than it should")),
    })
}

fn text(bytes: &[u8]) -> Result<String, Status> {
    String::from_utf8(bytes.to_vec()).map_err(|_| broken("a text is not UTF-8"))
}

/// Messages that JSON writes in a form of its own.
fn special(name: &str, value: Value) -> Result<Value, Status> {
    let number = |field: &str| value.get(field).and_then(Value::as_i64).unwrap_or_default();
    let bytes = |field: &str| {
        let text = value.get(field).and_then(Value::as_str).unwrap_or_default();
        STANDARD.decode(text).unwrap_or_default()
    };
    Ok(match name {
        "~Time" | "~MicroTime" | "~Timestamp" => {
            let (seconds, nanos) = (number("seconds"), number("nanos"));
            if (seconds, nanos) == (0, 0) {
                return Ok(Value::Null);
            }
            let nanos = i32::try_from(nanos).map_err(|_| broken("a time is none"))?;
            let at = Timestamp::new(seconds, nanos).map_err(|_| broken("a time is none"))?;
            let form = if name == "~MicroTime" { "%Y-%m-%dT%H:%M:%S.%6fZ" } else { "%Y-%m-%dT%H:%M:%SZ" };
            Value::String(at.strftime(form).to_string())
        }
        "^api.resource.Quantity" => value.get("string").cloned().unwrap_or(Value::String("0".into())),
        "^util.intstr.IntOrString" => match number("type") {
            0 => Value::from(number("intVal")),
            _ => value.get("strVal").cloned().unwrap_or(Value::String(String::new())),
        },
        "~Duration" => Value::String(format!("{}s", number("duration") / 1_000_000_000)),
        "~FieldsV1" => json_of(&bytes("Raw"))?,
        "^runtime.RawExtension" => json_of(&bytes("raw"))?,
        "@authentication.v1.ExtraValue" | "@authorization.v1.ExtraValue" | "@certificates.v1.ExtraValue" | "~Verbs" => {
            value.get("items").cloned().unwrap_or(Value::Array(Vec::new()))
        }
        _ => value,
    })
}

fn json_of(bytes: &[u8]) -> Result<Value, Status> {
    match bytes.is_empty() {
        true => Ok(Value::Object(Map::new())),
        false => serde_json::from_slice(bytes).map_err(|_| broken("it holds JSON that is none")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema;
    use serde_json::json;

    /// A field with these bytes.
    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2];
        let mut length = bytes.len();
        while length > 0x7f {
            out.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        out.push(length as u8);
        out.extend_from_slice(bytes);
        out
    }

    fn number(field: u8, value: u8) -> Vec<u8> {
        vec![field << 3, value]
    }

    fn object(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let of = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), field(1, &of), field(2, raw), field(3, b""), field(4, b"")].concat()
    }

    #[test]
    fn a_question_as_kubectl_sends_it() {
        let attributes = [field(1, b"red"), field(2, b"list"), field(3, b""), field(5, b"pods")].concat();
        // Metadata holds empty texts and an empty time, as Go's encoder writes them.
        let metadata = [field(1, b""), field(3, b""), number(7, 0), field(8, b"")].concat();
        let raw = [field(1, &metadata), field(2, &field(1, &attributes)), field(3, &number(1, 0))].concat();
        let decoded = decode(&object("authorization.k8s.io/v1", "SelfSubjectAccessReview", &raw)).unwrap();
        assert_eq!(
            decoded,
            json!({
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": {"namespace": "red", "verb": "list", "resource": "pods"}},
            })
        );
    }

    #[test]
    fn maps_lists_quantities_and_what_stands_in_its_parent() {
        let limit = [field(1, b"cpu"), field(2, &field(1, b"500m"))].concat();
        let probe = [field(1, &field(2, &field(2, &[number(1, 1), field(3, b"web")].concat()))), number(3, 0)].concat();
        let container = [
            field(1, b"c"),
            field(3, b"ls"),
            field(3, b"-l"),
            field(8, &field(1, &limit)),
            field(10, &probe),
            number(16, 0)[..0].to_vec(),
        ]
        .concat();
        let volume = [field(1, b"v"), field(2, &field(6, &field(1, b"s")))].concat();
        let spec = [field(1, &volume), field(2, &container)].concat();
        let labels = [field(1, b"a"), field(2, b"b")].concat();
        let metadata = [field(1, b"p"), field(11, &labels), field(8, &number(1, 1))].concat();
        let decoded = decode(&object("v1", "Pod", &[field(1, &metadata), field(2, &spec)].concat())).unwrap();
        assert_eq!(
            decoded,
            json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "p", "labels": {"a": "b"}, "creationTimestamp": "1970-01-01T00:00:01Z"},
                "spec": {
                    "volumes": [{"name": "v", "secret": {"secretName": "s"}}],
                    "containers": [{"name": "c", "command": ["ls", "-l"], "resources": {"limits": {"cpu": "500m"}},
                                    "livenessProbe": {"httpGet": {"port": "web"}}}],
                },
            })
        );
    }

    #[test]
    fn options_and_numbers_below_zero() {
        let minus =
            [number(1, 0xff)[..1].to_vec(), vec![0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]].concat();
        let raw = [minus, field(4, b"Background")].concat();
        let decoded = decode(&object("policy/v1", "DeleteOptions", &raw)).unwrap();
        assert_eq!((&decoded["gracePeriodSeconds"], &decoded["propagationPolicy"]), (&json!(-1), &json!("Background")));
    }

    #[test]
    fn every_message_is_there_and_its_fields_are_known() {
        assert!(MESSAGES.len() > 500);
        let long = |name: &str| {
            let packages = [
                ("@", "io.k8s.api."),
                ("~", "io.k8s.apimachinery.pkg.apis.meta.v1."),
                ("^", "io.k8s.apimachinery.pkg."),
            ];
            packages.iter().find_map(|(short, long)| Some(format!("{long}{}", name.strip_prefix(short)?))).unwrap()
        };
        for (name, fields) in MESSAGES.iter() {
            let facts = schema::get(&long(name)).filter(|facts| !facts.properties.is_empty());
            for field in fields {
                let of = field.of.trim_start_matches(['*', '%']);
                assert!(of.len() == 1 || MESSAGES.contains_key(of), "{name}.{}: {of}", field.name);
                let known = facts.is_none_or(|facts| facts.properties.contains_key(field.name));
                assert!(known || matches!(field.name, "!" | "rule"), "{name}.{}", field.name);
            }
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let deep = (0..200).fold(Vec::new(), |inner, _| field(1, &inner));
        for bytes in [
            b"".to_vec(),
            b"k8s\0".to_vec(),
            b"k8s\0\xff\xff\xff".to_vec(),
            object("v1", "Nothing", b""),
            object("v1", "Pod", b"\x0a\x7f"),
            object("v1", "Pod", &number(1, 1)),
            object("v1", "Pod", &field(1, &field(1, b"\xff"))),
            object("apiextensions.k8s.io/v1", "JSONSchemaProps", &deep),
        ] {
            assert!(decode(&bytes).is_err(), "{bytes:?}");
        }
        proptest::proptest!(|(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200))| {
            _ = decode(&object("v1", "Pod", &bytes));
            _ = decode(&[MAGIC, &bytes].concat());
        });
    }
}
