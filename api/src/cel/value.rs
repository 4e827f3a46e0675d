//! Values: those of an object as they stand in its JSON, and those that an expression makes.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::rc::Rc;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Number, Value};

use crate::quantity::Amount;
use crate::schema::Schema;

/// A value of CEL. Objects and lists of JSON are looked at in place.
#[derive(Clone, Debug)]
pub enum Val<'a> {
    Null,
    Bool(bool),
    Int(i64),
    UInt(u64),
    Double(f64),
    Text(Rc<str>),
    /// A text of the object.
    Borrowed(&'a str),
    Bytes(Rc<[u8]>),
    List(Rc<Vec<Val<'a>>>),
    Map(Rc<Vec<(Val<'a>, Val<'a>)>>),
    JsonList(&'a [Value], Option<&'a Schema>),
    JsonMap(&'a Map<String, Value>, Option<&'a Schema>),
    Timestamp(Timestamp),
    Duration(SignedDuration),
    Optional(Option<Rc<Val<'a>>>),
    /// `int`, `string`, …
    Type(&'static str),
    Quantity(Amount),
    Ip(IpAddr),
    Cidr(IpAddr, u8),
    Url(Rc<str>),
}

impl<'a> Val<'a> {
    /// A value of JSON, of the type that the schema says.
    pub fn of(value: &'a Value, schema: Option<&'a Schema>) -> Self {
        match value {
            Value::Null => Val::Null,
            Value::Bool(value) => Val::Bool(*value),
            Value::Number(number) => Self::number(number, schema),
            Value::String(text) => Self::text_of(text, schema),
            Value::Array(items) => Val::JsonList(items, schema),
            Value::Object(map) => Val::JsonMap(map, schema),
        }
    }

    fn number(number: &Number, schema: Option<&Schema>) -> Self {
        let is_number = schema.and_then(|schema| schema.type_.as_deref()) == Some("number");
        match number.as_i64() {
            Some(whole) if is_number => Val::Double(whole as f64),
            Some(whole) => Val::Int(whole),
            None => Val::Double(number.as_f64().unwrap_or(f64::NAN)),
        }
    }

    /// Texts with a format are what the format says, if they are.
    fn text_of(text: &'a str, schema: Option<&Schema>) -> Self {
        use base64::Engine as _;
        let converted = match schema.and_then(|schema| schema.format.as_deref()) {
            Some("date-time") => text.parse().ok().map(Val::Timestamp),
            Some("date") => format!("{text}T00:00:00Z").parse().ok().map(Val::Timestamp),
            Some("duration") => super::text::duration(text).map(Val::Duration),
            Some("byte") => {
                base64::engine::general_purpose::STANDARD.decode(text).ok().map(|bytes| Val::Bytes(bytes.into()))
            }
            _ => None,
        };
        converted.unwrap_or(Val::Borrowed(text))
    }

    pub fn text(text: impl Into<Rc<str>>) -> Self {
        Val::Text(text.into())
    }

    pub fn list(items: Vec<Val<'a>>) -> Self {
        Val::List(Rc::new(items))
    }

    pub fn as_text(&self) -> Option<&str> {
        match self {
            Val::Text(text) => Some(text),
            Val::Borrowed(text) => Some(text),
            _ => None,
        }
    }

    /// How many there are in a list or a map.
    pub fn count(&self) -> Option<usize> {
        match self {
            Val::List(items) => Some(items.len()),
            Val::JsonList(items, _) => Some(items.len()),
            Val::Map(entries) => Some(entries.len()),
            Val::JsonMap(map, _) => Some(map.len()),
            _ => None,
        }
    }

    pub fn is_list(&self) -> bool {
        matches!(self, Val::List(_) | Val::JsonList(..))
    }

    pub fn is_map(&self) -> bool {
        matches!(self, Val::Map(_) | Val::JsonMap(..))
    }

    /// An item of a list.
    pub fn item(&self, index: usize) -> Option<Val<'a>> {
        match self {
            Val::List(items) => items.get(index).cloned(),
            Val::JsonList(items, schema) => {
                items.get(index).map(|item| Val::of(item, schema.and_then(|schema| schema.items.as_deref())))
            }
            _ => None,
        }
    }

    /// An entry of a map or a field of an object.
    pub fn entry(&self, key: &Val<'_>) -> Option<Val<'a>> {
        match self {
            Val::JsonMap(map, schema) => {
                let value = map.get(key.as_text()?)?;
                Some(Val::of(value, field_schema(*schema, key.as_text()?)))
            }
            Val::Map(entries) => entries.iter().find(|(name, _)| name.equals(key)).map(|(_, value)| value.clone()),
            _ => None,
        }
    }

    /// The key of an entry of a map, by its place.
    pub fn key(&self, index: usize) -> Option<Val<'a>> {
        match self {
            Val::Map(entries) => entries.get(index).map(|(key, _)| key.clone()),
            Val::JsonMap(map, _) => map.keys().nth(index).map(|key| Val::Borrowed(key)),
            _ => None,
        }
    }

    /// The keys of a map.
    pub fn keys(&self) -> Vec<Val<'a>> {
        match self {
            Val::Map(entries) => entries.iter().map(|(key, _)| key.clone()).collect(),
            Val::JsonMap(map, _) => map.keys().map(|key| Val::Borrowed(key)).collect(),
            _ => Vec::new(),
        }
    }

    /// The items of a list.
    pub fn items(&self) -> Vec<Val<'a>> {
        match self {
            Val::List(items) => items.as_ref().clone(),
            Val::JsonList(items, schema) => {
                let schema = schema.and_then(|schema| schema.items.as_deref());
                items.iter().map(|item| Val::of(item, schema)).collect()
            }
            _ => Vec::new(),
        }
    }

    /// What CEL calls the type.
    pub fn type_name(&self) -> &'static str {
        match self {
            Val::Null => "null_type",
            Val::Bool(_) => "bool",
            Val::Int(_) => "int",
            Val::UInt(_) => "uint",
            Val::Double(_) => "double",
            Val::Text(_) | Val::Borrowed(_) => "string",
            Val::Bytes(_) => "bytes",
            Val::List(_) | Val::JsonList(..) => "list",
            Val::Map(_) | Val::JsonMap(..) => "map",
            Val::Timestamp(_) => "google.protobuf.Timestamp",
            Val::Duration(_) => "google.protobuf.Duration",
            Val::Optional(_) => "optional_type",
            Val::Type(_) => "type",
            Val::Quantity(_) => "kubernetes.Quantity",
            Val::Ip(_) => "net.IP",
            Val::Cidr(..) => "net.CIDR",
            Val::Url(_) => "kubernetes.URL",
        }
    }

    /// Equality across types is false, but for numbers, which are compared by their amounts.
    pub fn equals(&self, other: &Val<'_>) -> bool {
        match (self, other) {
            (Val::Null, Val::Null) => true,
            (Val::Bool(a), Val::Bool(b)) => a == b,
            (Val::Bytes(a), Val::Bytes(b)) => a == b,
            (Val::Timestamp(a), Val::Timestamp(b)) => a == b,
            (Val::Duration(a), Val::Duration(b)) => a == b,
            (Val::Type(a), Val::Type(b)) => a == b,
            (Val::Quantity(a), Val::Quantity(b)) => a == b,
            (Val::Ip(a), Val::Ip(b)) => a == b,
            (Val::Cidr(a, m), Val::Cidr(b, n)) => a == b && m == n,
            (Val::Url(a), Val::Url(b)) => a == b,
            (Val::Optional(a), Val::Optional(b)) => match (a, b) {
                (None, None) => true,
                (Some(a), Some(b)) => a.equals(b),
                _ => false,
            },
            _ if self.as_text().is_some() => self.as_text() == other.as_text(),
            _ if self.is_list() && other.is_list() => self.equal_lists(other),
            _ if self.is_map() && other.is_map() => self.equal_maps(other),
            _ => self.compare_numbers(other) == Some(Ordering::Equal),
        }
    }

    fn equal_lists(&self, other: &Val<'_>) -> bool {
        let is_set = matches!(self, Val::JsonList(_, Some(schema)) if schema.list_type.as_deref() == Some("set"));
        if self.count() != other.count() {
            return false;
        }
        let (a, b) = (self.items(), other.items());
        if !is_set {
            return a.iter().zip(&b).all(|(a, b)| a.equals(b));
        }
        // The order of a set means nothing.
        let sorted =
            |items: &[Val<'_>]| -> BTreeSet<String> { items.iter().map(|i| i.to_json().to_string()).collect() };
        sorted(&a) == sorted(&b)
    }

    fn equal_maps(&self, other: &Val<'_>) -> bool {
        if self.count() != other.count() {
            return false;
        }
        self.keys().iter().all(|key| match (self.entry(key), other.entry(key)) {
            (Some(a), Some(b)) => a.equals(&b),
            _ => false,
        })
    }

    fn compare_numbers(&self, other: &Val<'_>) -> Option<Ordering> {
        match (self, other) {
            (Val::Int(a), Val::Int(b)) => Some(a.cmp(b)),
            (Val::UInt(a), Val::UInt(b)) => Some(a.cmp(b)),
            (Val::Int(a), Val::UInt(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
            (Val::UInt(a), Val::Int(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
            _ => self.as_double()?.partial_cmp(&other.as_double()?),
        }
    }

    fn as_double(&self) -> Option<f64> {
        match self {
            Val::Int(value) => Some(*value as f64),
            Val::UInt(value) => Some(*value as f64),
            Val::Double(value) => Some(*value),
            _ => None,
        }
    }

    /// The order of two values, of types that have one.
    pub fn compare(&self, other: &Val<'_>) -> Option<Ordering> {
        match (self, other) {
            (Val::Bool(a), Val::Bool(b)) => Some(a.cmp(b)),
            (Val::Bytes(a), Val::Bytes(b)) => Some(a.cmp(b)),
            (Val::Timestamp(a), Val::Timestamp(b)) => Some(a.cmp(b)),
            (Val::Duration(a), Val::Duration(b)) => Some(a.cmp(b)),
            (Val::Quantity(a), Val::Quantity(b)) => Some(a.cmp(b)),
            _ => match (self.as_text(), other.as_text()) {
                (Some(a), Some(b)) => Some(a.cmp(b)),
                _ => self.compare_numbers(other),
            },
        }
    }

    /// How much there is to look at when two such values are compared, up to `limit`.
    pub fn weight(&self, limit: u64) -> u64 {
        fn of_json(value: &Value, limit: u64, sum: &mut u64) {
            *sum += 1;
            if *sum > limit {
                return;
            }
            match value {
                Value::String(text) => *sum += text.len() as u64 / 10,
                Value::Array(items) => each(items, limit, sum, of_json),
                Value::Object(map) => each(map.values(), limit, sum, of_json),
                _ => {}
            }
        }
        fn each<T>(all: impl IntoIterator<Item = T>, limit: u64, sum: &mut u64, one: impl Fn(T, u64, &mut u64)) {
            for item in all {
                if *sum > limit {
                    return;
                }
                one(item, limit, sum);
            }
        }
        fn of(value: &Val<'_>, limit: u64, sum: &mut u64) {
            *sum += 1;
            if *sum > limit {
                return;
            }
            match value {
                Val::Text(text) => *sum += text.len() as u64 / 10,
                Val::Borrowed(text) => *sum += text.len() as u64 / 10,
                Val::Bytes(bytes) => *sum += bytes.len() as u64 / 10,
                Val::List(items) => each(items.iter(), limit, sum, of),
                Val::Map(entries) => each(entries.iter(), limit, sum, |(_, item), limit, sum| of(item, limit, sum)),
                Val::JsonList(items, _) => each(items.iter(), limit, sum, of_json),
                Val::JsonMap(map, _) => each(map.values(), limit, sum, of_json),
                Val::Optional(Some(inner)) => of(inner, limit, sum),
                _ => {}
            }
        }
        let mut sum = 0;
        of(self, limit, &mut sum);
        sum
    }

    /// As JSON, for tests and messages.
    pub fn to_json(&self) -> Value {
        match self {
            Val::Bool(value) => (*value).into(),
            Val::Int(value) => (*value).into(),
            Val::UInt(value) => (*value).into(),
            Val::Double(value) => Number::from_f64(*value).map_or(Value::Null, Value::Number),
            Val::Text(text) => text.as_ref().into(),
            Val::Borrowed(text) => (*text).into(),
            Val::List(items) => items.iter().map(Val::to_json).collect(),
            Val::JsonList(items, _) => items.to_vec().into(),
            Val::JsonMap(map, _) => Value::Object((*map).clone()),
            Val::Map(entries) => {
                let entries = entries.iter().map(|(key, value)| {
                    (key.as_text().map_or_else(|| key.to_json().to_string(), str::to_owned), value.to_json())
                });
                Value::Object(entries.collect())
            }
            Val::Optional(Some(inner)) => inner.to_json(),
            other => super::text::words(other).map_or(Value::Null, Value::String),
        }
    }
}

/// The schema of a field of an object, or of an entry of a map.
pub(super) fn field_schema<'a>(schema: Option<&'a Schema>, name: &str) -> Option<&'a Schema> {
    let schema = schema?;
    schema.properties.get(name).or(schema.values.as_deref())
}
