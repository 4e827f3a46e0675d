//! Manifests as people write them: YAML of one or more documents, JSON, or a `List` of objects.
//!
//! Invariant: however hostile the input, what it unfolds into is bounded, and each error says where it is.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;

use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::DuplicateKeyPolicy;

use crate::error::{Reason, Status};
use crate::field::type_name;
use crate::kinds::Kind;
use crate::registry::Registry;

/// The largest manifest: 1.5 MiB.
pub const MAX_INPUT_BYTES: usize = 3 * 512 * 1024;
/// The most objects in one manifest.
pub const MAX_OBJECTS: usize = 1024;
const MAX_DEPTH: usize = 64;
const MAX_NODES: usize = 250_000;
const MAX_ALIASES: usize = 1_000;
const MAX_MERGE_KEYS: usize = 100;
/// What aliases may repeat.
const MAX_REPLAYED_NODES: usize = 20_000;
/// What a manifest may unfold to in memory, aliases followed.
pub(super) const MAX_UNFOLDED_BYTES: usize = 16 * 1024 * 1024;
/// What each value takes beside its text.
const NODE_BYTES: usize = 32;

/// One object of a manifest.
#[derive(Clone, Debug)]
pub struct Parsed {
    pub kind: Arc<Kind>,
    pub object: Value,
    /// Which document it came from, counted from 1.
    pub document: usize,
}

/// Reads the objects of a manifest, in their order, with the kind of each.
///
/// # Errors
/// `RequestEntityTooLarge` above [`MAX_INPUT_BYTES`]; `BadRequest` with document, line and column for what cannot be
/// read or is of no known kind.
pub fn parse(input: &[u8], registry: &Registry) -> Result<Vec<Parsed>, Status> {
    let mut parsed = Vec::new();
    for (index, document) in documents(input)?.into_iter().enumerate() {
        for object in unfold(document) {
            let kind = kind_of(&object, registry).map_err(|e| in_document(index + 1, e))?;
            parsed.push(Parsed { kind, object, document: index + 1 });
        }
    }
    match parsed.len() {
        0 => Err(Status::bad_request("the manifest holds no objects")),
        count if count > MAX_OBJECTS => Err(Status::new(
            Reason::RequestEntityTooLarge,
            format_args!("the manifest holds {count} objects; at most {MAX_OBJECTS} are taken at once"),
        )),
        _ => Ok(parsed),
    }
}

/// Reads YAML or JSON into one value a document, empty documents left out.
///
/// # Errors
/// As [`parse`], but knows of no kinds.
pub fn documents(input: &[u8]) -> Result<Vec<Value>, Status> {
    let text = text(input)?;
    let looks_like_json = text.trim_start().starts_with('{');
    match looks_like_json.then(|| json_documents(text)) {
        Some(Ok(values)) => Ok(values),
        _ => yaml_documents(text),
    }
}

/// Reads the only document of YAML with a seed, which sees keys that stand twice in a map as often as they do.
///
/// # Errors
/// As [`parse`], or if there is not one document.
pub(super) fn document<T>(input: &[u8], seed: impl for<'de> DeserializeSeed<'de, Value = T>) -> Result<T, Status> {
    let chunks = split_documents(text(input)?);
    let [chunk] = chunks.as_slice() else {
        return Err(match chunks.len() {
            0 => Status::bad_request("the body of the request is empty"),
            many => Status::bad_request(format!("the body of the request holds {many} documents instead of one")),
        });
    };
    let options = yaml_options(DuplicateKeyPolicy::PassThrough);
    let value = serde_saphyr::with_deserializer_from_str_with_options(chunk.text, options, |de| seed.deserialize(de));
    value.map_err(|error| yaml_error(chunk, &error))
}

fn text(input: &[u8]) -> Result<&str, Status> {
    if input.len() > MAX_INPUT_BYTES {
        return Err(Status::new(
            Reason::RequestEntityTooLarge,
            format_args!("the manifest has {} bytes; at most {MAX_INPUT_BYTES} are taken", input.len()),
        ));
    }
    let text = std::str::from_utf8(input).map_err(|e| {
        Status::bad_request(format_args!(
            "the manifest is neither YAML nor JSON: byte {} is not UTF-8",
            e.valid_up_to()
        ))
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

fn json_documents(text: &str) -> Result<Vec<Value>, serde_json::Error> {
    serde_json::Deserializer::from_str(text).into_iter::<Strict>().map(|value| value.map(|v| v.0)).collect()
}

fn yaml_documents(text: &str) -> Result<Vec<Value>, Status> {
    let (mut values, room_bytes) = (Vec::new(), Cell::new(MAX_UNFOLDED_BYTES));
    for chunk in split_documents(text) {
        let (seed, options) =
            (Seed { room_bytes: &room_bytes, repeated: None }, yaml_options(DuplicateKeyPolicy::Error));
        let value =
            serde_saphyr::with_deserializer_from_str_with_options(chunk.text, options, |de| seed.deserialize(de));
        match value.map_err(|e| yaml_error(&chunk, &e))? {
            Value::Null => {}
            value => values.push(value),
        }
        if values.len() > MAX_OBJECTS {
            return Err(Status::bad_request(format_args!("the manifest holds more than {MAX_OBJECTS} documents")));
        }
    }
    Ok(values)
}

/// One document of a YAML stream, and where it stands.
struct Chunk<'a> {
    text: &'a str,
    /// Counted from 1, empty documents left out.
    number: usize,
    /// Lines before it.
    offset_lines: u64,
}

/// Cuts at the lines `---`, which can stand nowhere else in YAML.
fn split_documents(text: &str) -> Vec<Chunk<'_>> {
    let mut chunks: Vec<Chunk<'_>> = Vec::new();
    let (mut start, mut position, mut start_line) = (0, 0, 0);
    for (line_number, line) in text.split_inclusive('\n').enumerate() {
        let marker =
            line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace));
        if marker && position > start {
            add_chunk(&mut chunks, &text[start..position], start_line);
            (start, start_line) = (position, line_number as u64);
        }
        position += line.len();
    }
    add_chunk(&mut chunks, &text[start..], start_line);
    chunks
}

fn add_chunk<'a>(chunks: &mut Vec<Chunk<'a>>, text: &'a str, offset_lines: u64) {
    let says_nothing = |line: &str| {
        let line = line.trim();
        line.is_empty() || line.starts_with('#') || line == "---" || line == "..."
    };
    if !text.lines().all(says_nothing) {
        chunks.push(Chunk { text, number: chunks.len() + 1, offset_lines });
    }
}

/// Numbers are read as upstream's YAML 1.1 has them (`0644` is octal), but only `true` and `false` are booleans, so that
/// a node may be called `n` and a variable may be `yes`.
fn yaml_options(duplicate_keys: DuplicateKeyPolicy) -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_reader_input_bytes: Some(MAX_INPUT_BYTES),
            max_depth: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_events: 2 * MAX_NODES,
            max_documents: 2,
            max_total_scalar_bytes: MAX_UNFOLDED_BYTES,
            max_aliases: MAX_ALIASES,
            max_anchors: MAX_ALIASES,
            max_merge_keys: MAX_MERGE_KEYS,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_REPLAYED_NODES,
            max_replay_stack_depth: MAX_DEPTH,
            max_alias_expansions_per_anchor: MAX_ALIASES,
        },
        duplicate_keys: duplicate_keys,
        legacy_octal_numbers: true,
        strict_booleans: true,
        with_snippet: false,
    }
}

fn yaml_error(chunk: &Chunk<'_>, error: &serde_saphyr::Error) -> Status {
    let error = error.without_snippet();
    let position = error.location().filter(|location| location.line() > 0);
    let place = position
        .map_or_else(String::new, |at| format!(", line {}, column {}", at.line() + chunk.offset_lines, at.column()));
    let (number, words) = (chunk.number, yaml_words(error));
    Status::bad_request(format_args!("the manifest is not valid YAML or JSON: document {number}{place}: {words}"))
}

/// What is wrong, without the place, which the library repeats in its own words.
fn yaml_words(error: &serde_saphyr::Error) -> String {
    use serde_saphyr::Error as E;
    match error {
        E::AliasError { error, .. } => yaml_words(error),
        E::DuplicateMappingKey { key: Some(key), .. } => format!("duplicate key \"{key}\""),
        E::Budget { .. }
        | E::AliasReplayCounterOverflow { .. }
        | E::AliasReplayLimitExceeded { .. }
        | E::AliasExpansionLimitExceeded { .. }
        | E::AliasReplayStackDepthExceeded { .. } => {
            "it unfolds to too much: too many values, aliases or merges, or nested too deep".to_owned()
        }
        other => {
            let text = other.to_string();
            let line = text.lines().next().unwrap_or_default();
            let end = [" at line ", " (defined at "].iter().filter_map(|place| line.find(place)).min();
            line[..end.unwrap_or(line.len())].to_owned()
        }
    }
}

/// The items of a `List`, or the object itself.
fn unfold(document: Value) -> Vec<Value> {
    let is_list = document.get("kind").and_then(Value::as_str).is_some_and(|kind| kind.ends_with("List"));
    match document {
        Value::Object(mut map) if is_list && map.get("items").is_some_and(Value::is_array) => match map.remove("items")
        {
            Some(Value::Array(items)) => items,
            _ => Vec::new(),
        },
        other => vec![other],
    }
}

fn kind_of(object: &Value, registry: &Registry) -> Result<Arc<Kind>, Status> {
    if !object.is_object() {
        return Err(Status::bad_request(format_args!(
            "expected an object with apiVersion, kind and metadata, found a value of type {}",
            type_name(object)
        )));
    }
    let text = |field: &str| {
        let text = object.get(field).and_then(Value::as_str).filter(|text| !text.is_empty());
        text.ok_or_else(|| Status::bad_request(format_args!("{field}: Required value")))
    };
    let (api_version, kind) = (text("apiVersion")?, text("kind")?);
    registry.of_object(api_version, kind)
}

fn in_document(document: usize, status: Status) -> Status {
    Status { message: format!("document {document}: {}", status.message), ..status }
}

/// JSON that refuses a key given twice in one object.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let room_bytes = Cell::new(MAX_UNFOLDED_BYTES);
        Seed { room_bytes: &room_bytes, repeated: None }.deserialize(deserializer).map(Strict)
    }
}

/// Builds a value while there is room for it. A key given twice in one map is refused, or only noted.
#[derive(Clone, Copy)]
pub(super) struct Seed<'b> {
    pub room_bytes: &'b Cell<usize>,
    pub repeated: Option<&'b Cell<bool>>,
}

impl Seed<'_> {
    fn take<E: de::Error>(self, bytes: usize) -> Result<(), E> {
        let left = self.room_bytes.get().checked_sub(bytes + NODE_BYTES);
        let left = left
            .ok_or_else(|| E::custom(format_args!("the manifest unfolds to more than {MAX_UNFOLDED_BYTES} bytes")))?;
        self.room_bytes.set(left);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        self.take(0)?;
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        self.take(0)?;
        Ok(value.into())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        self.take(0)?;
        Ok(value.into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        self.take(0)?;
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number must be finite"))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        self.take(value.len())?;
        Ok(value.into())
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        self.take(0)?;
        Ok(Value::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Value, E> {
        self.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        self.take(0)?;
        let mut values = Vec::new();
        while let Some(value) = items.next_element_seed(self)? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        self.take(0)?;
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if self.repeated.is_none() && map.contains_key(&key) {
                return Err(de::Error::custom(format_args!("duplicate key \"{key}\"")));
            }
            self.take(key.len())?;
            let replaced = map.insert(key, entries.next_value_seed(self)?);
            if let (Some(repeated), true) = (self.repeated, replaced.is_some()) {
                repeated.set(true);
            }
        }
        Ok(map.into())
    }
}
