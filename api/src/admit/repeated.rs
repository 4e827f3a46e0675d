//! Fields that stand in one object more than once. The last of them counts, and whoever asks is told of all of them.
//!
//! To look for them costs next to nothing while there are none: what inserting into a map gives back says so. Only then the
//! bytes are read once more, for the paths.
//!
//! Invariant: at most [`MAX_TOLD`] fields are told of, each once, by at most [`MAX_PATH_BYTES`] of its path. What a field costs
//! does not grow with how deep it is, how long names are, or how often it stands there.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::parse::{MAX_UNFOLDED_BYTES, Seed, document};
use crate::error::Status;

/// Upstream's bound.
const MAX_TOLD: usize = 100;
/// Of longer paths the beginning is told.
pub(crate) const MAX_PATH_BYTES: usize = 256;

/// A value, and what of it stood there more than once: `spec.containers[0].image`.
#[derive(Clone, Debug, PartialEq)]
pub struct Loose {
    pub value: Value,
    pub repeated: Vec<String>,
}

impl Loose {
    /// Upstream's sentences about what stood there more than once.
    pub fn complaints(&self) -> impl Iterator<Item = String> {
        self.repeated.iter().map(|field| format!("duplicate field \"{field}\""))
    }
}

/// Reads one value of JSON.
///
/// # Errors
/// Where it is none.
pub fn json(input: &[u8]) -> Result<Loose, serde_json::Error> {
    let (room_bytes, any) = (Cell::new(usize::MAX), Cell::new(false));
    let mut deserializer = serde_json::Deserializer::from_slice(input);
    let value = Seed { room_bytes: &room_bytes, repeated: Some(&any) }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    let search = Search::default();
    if any.get() {
        (&search).deserialize(&mut serde_json::Deserializer::from_slice(input))?;
    }
    Ok(Loose { value, repeated: search.into_found() })
}

/// Reads YAML of one document, or JSON.
///
/// # Errors
/// `BadRequest` with the place of what cannot be read, or if there is not one document.
pub fn yaml(input: &[u8]) -> Result<Loose, Status> {
    if input.trim_ascii_start().starts_with(b"{")
        && let Ok(read) = json(input)
    {
        return Ok(read);
    }
    let (room_bytes, any) = (Cell::new(MAX_UNFOLDED_BYTES), Cell::new(false));
    let value = document(input, Seed { room_bytes: &room_bytes, repeated: Some(&any) })?;
    let search = Search::default();
    if any.get() {
        document(input, &search)?;
    }
    Ok(Loose { value, repeated: search.into_found() })
}

/// Goes through a value in search of what stands there more than once.
#[derive(Default)]
struct Search {
    /// Where it is; the beginning, if that is longer than what is told.
    path: RefCell<String>,
    found: RefCell<Vec<String>>,
    told: RefCell<BTreeSet<String>>,
}

impl Search {
    /// Goes on below the place where it is.
    fn below<T>(&self, step: &str, go: impl FnOnce() -> T) -> T {
        let length = self.path.borrow().len();
        {
            let mut path = self.path.borrow_mut();
            if length > 0 && !step.starts_with('[') {
                path.push('.');
            }
            let room = MAX_PATH_BYTES.saturating_sub(path.len());
            path.push_str(&step[..step.floor_char_boundary(room)]);
        }
        let gone = go();
        self.path.borrow_mut().truncate(length);
        gone
    }

    fn note(&self) {
        let (path, mut found) = (self.path.borrow(), self.found.borrow_mut());
        if found.len() < MAX_TOLD && self.told.borrow_mut().insert(path.clone()) {
            found.push(path.clone());
        }
    }

    fn into_found(self) -> Vec<String> {
        self.found.into_inner()
    }
}

impl<'de> DeserializeSeed<'de> for &Search {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &Search {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: de::Error>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_none<E: de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        for index in 0.. {
            if self.below(&format!("[{index}]"), || items.next_element_seed(self))?.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        // Whether a key was told of.
        let mut seen: HashMap<String, bool> = HashMap::new();
        while let Some(key) = entries.next_key::<String>()? {
            self.below(&key, || {
                if let Some(told) = seen.get_mut(&key)
                    && !std::mem::replace(told, true)
                {
                    self.note();
                }
                entries.next_value_seed(self)
            })?;
            seen.entry(key).or_default();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_last_counts_and_each_is_told_once() {
        let input = r#"{"a": 1, "b": [{"c": 1, "c": 2, "c": 3}], "a": {"x.y": 1, "x.y": null}, "a": 1.5e3}"#;
        let wanted = Loose {
            value: json!({"a": 1500.0, "b": [{"c": 3}]}),
            repeated: vec!["b[0].c".into(), "a".into(), "a.x.y".into()],
        };
        assert_eq!(json(input.as_bytes()).unwrap(), wanted);
        assert_eq!(yaml(input.as_bytes()).unwrap(), wanted);
        let plain = json(br#"[1, -1, true, null, "x", {"a": {"a": {}}}]"#).unwrap();
        assert_eq!(plain, Loose { value: json!([1, -1, true, null, "x", {"a": {"a": {}}}]), repeated: vec![] });
        assert!(json(b"{} {}").is_err() && json(b"{\"a\":").is_err());
    }

    #[test]
    fn what_is_told_is_bounded_whatever_stands_there() {
        let long = "x".repeat(1 << 20);
        let many: String = (0..200).flat_map(|n| [n, n]).map(|n| format!(",\"{n}\":0")).collect();
        let often = ",\"z\":0".repeat(100_000);
        let read = json(format!("{{\"{long}\":{{\"a\":0{often}{many}}}}}").as_bytes()).unwrap();
        assert_eq!(read.repeated, [&long[..MAX_PATH_BYTES]].map(|path| format!("{path}.")));
        let read = json(format!("{{\"a\":0{often}{many}}}").as_bytes()).unwrap();
        assert_eq!((read.repeated.len(), read.repeated[0].as_str()), (MAX_TOLD, "z"));
    }

    #[test]
    fn yaml_is_read_alike() {
        let read = yaml(b"spec:\n  replicas: 1\n  replicas: 2\n").unwrap();
        assert_eq!(read, Loose { value: json!({"spec": {"replicas": 2}}), repeated: vec!["spec.replicas".into()] });
        assert!(yaml(b"").is_err() && yaml(b"a: 1\n---\nb: 2\n").is_err());
        let merged = yaml(b"a: &a {x: 1}\nb:\n  <<: *a\n  x: 2\n").unwrap();
        assert_eq!(merged, Loose { value: json!({"a": {"x": 1}, "b": {"x": 2}}), repeated: vec![] });
    }
}
