//! What each type looks like: the structural facts of Kubernetes' API, loaded a type at a time.
//!
//! The data holds one type a line, sorted by name, so that finding a type costs a binary search over the program's own
//! read-only pages and only types that are used take memory. Strict decoding, merges, discovery and OpenAPI all read
//! these facts; none keeps a table of its own.
//!
//! Invariant: a type's facts never change while the program runs.

use std::collections::BTreeMap;
use std::sync::{LazyLock, OnceLock};

use serde::Deserialize;

use crate::structural::Constraints;

const KUBERNETES: &str = include_str!("../data/kubernetes-1.37-schema.json");
/// Of versions that Kubernetes has no more, where they are not made like the stored one.
const OLD: &str = include_str!("../data/old-versions-schema.json");
const FLOTILLA: &str = include_str!("../data/flotilla-schema.json");
/// What a schema does not tell, and the types of Kubernetes' own programs do.
const ZERO_IS_UNSET: &str = include_str!("../data/zero-is-unset.txt");

pub const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
pub const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
pub const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
pub const RAW_EXTENSION: &str = "io.k8s.apimachinery.pkg.runtime.RawExtension";
pub const FIELDS_V1: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1";

/// A type, or the type of a field together with how the field is merged.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Schema {
    /// `object`, `array`, `string`, `integer`, `number` or `boolean`.
    #[serde(rename = "type")]
    pub type_: Option<String>,
    /// `int32`, `int64`, `double`, `byte` or `date-time`.
    pub format: Option<String>,
    /// The name of another type.
    #[serde(rename = "ref")]
    pub reference: Option<String>,
    /// Of an array.
    pub items: Option<Box<Schema>>,
    /// Of an object with any keys.
    pub values: Option<Box<Schema>>,
    /// Of an object with known keys.
    pub properties: BTreeMap<String, Schema>,
    pub required: Vec<String>,
    #[serde(rename = "enum")]
    pub allowed: Vec<String>,
    /// `atomic`, `set` or `map`.
    #[serde(rename = "x-kubernetes-list-type")]
    pub list_type: Option<String>,
    #[serde(rename = "x-kubernetes-list-map-keys")]
    pub list_map_keys: Vec<String>,
    /// `atomic` or `granular`.
    #[serde(rename = "x-kubernetes-map-type")]
    pub map_type: Option<String>,
    #[serde(rename = "x-kubernetes-patch-merge-key")]
    pub patch_merge_key: Option<String>,
    /// `merge`, `replace`, `retainKeys`, joined by commas.
    #[serde(rename = "x-kubernetes-patch-strategy")]
    pub patch_strategy: Option<String>,
    #[serde(rename = "x-kubernetes-group-version-kind")]
    pub group_version_kinds: Vec<GroupVersionKind>,
    /// The fields in which `false`, `0` and `""` say as much as nothing.
    #[serde(skip)]
    pub zero_is_unset: Vec<&'static str>,
    /// What the schemas of custom kinds have besides.
    #[serde(skip)]
    pub constraints: Option<Box<Constraints>>,
}

impl Schema {
    /// This schema, or the type that it refers to.
    pub fn resolve(&self) -> Option<&Schema> {
        match &self.reference {
            Some(name) => get(name),
            None => Some(self),
        }
    }
}

/// What an object calls itself by `apiVersion` and `kind`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
pub struct GroupVersionKind {
    pub group: String,
    pub version: String,
    pub kind: String,
}

struct Entry {
    name: &'static str,
    json: &'static str,
    schema: OnceLock<Option<Schema>>,
}

static ENTRIES: LazyLock<Vec<Entry>> = LazyLock::new(|| {
    let mut entries: Vec<Entry> =
        [FLOTILLA, OLD, KUBERNETES].into_iter().flat_map(str::lines).filter_map(entry).collect();
    entries.sort_by_key(|entry| entry.name);
    entries
});

/// `"NAME":{…},` on a line of its own; other lines are the outer braces.
fn entry(line: &'static str) -> Option<Entry> {
    let (name, json) = line.strip_prefix('"')?.split_once("\":")?;
    Some(Entry { name, json: json.trim_end_matches(','), schema: OnceLock::new() })
}

/// What the type of one of Kubernetes' own kinds is called.
pub fn name_of(group: &str, version: &str, kind: &str) -> String {
    let package = match group {
        "" => "core",
        group => group.strip_suffix(".k8s.io").unwrap_or(group).split('.').next().unwrap_or(group),
    };
    format!("io.k8s.api.{package}.{version}.{kind}")
}

/// The facts of a type: `io.k8s.api.core.v1.Pod`.
pub fn get(name: &str) -> Option<&'static Schema> {
    let index = ENTRIES.binary_search_by_key(&name, |entry| entry.name).ok()?;
    let entry = &ENTRIES[index];
    let load = || {
        let schema: Schema = serde_json::from_str(entry.json).ok()?;
        Some(Schema { zero_is_unset: zero_is_unset(entry.name), ..schema })
    };
    entry.schema.get_or_init(load).as_ref()
}

fn zero_is_unset(name: &str) -> Vec<&'static str> {
    static LINES: LazyLock<Vec<(&str, &str)>> =
        LazyLock::new(|| ZERO_IS_UNSET.lines().filter_map(|line| line.split_once(' ')).collect());
    let found = LINES.binary_search_by_key(&name, |(name, _)| name);
    found.map(|index| LINES[index].1.split(' ').collect()).unwrap_or_default()
}

/// The facts of a type as they stand in the data.
pub fn json(name: &str) -> Option<&'static str> {
    let index = ENTRIES.binary_search_by_key(&name, |entry| entry.name).ok()?;
    Some(ENTRIES[index].json)
}

/// The names of all types, sorted.
pub fn names() -> impl Iterator<Item = &'static str> {
    ENTRIES.iter().map(|entry| entry.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_loads_and_refers_to_types_that_exist() {
        fn references<'a>(schema: &'a Schema, found: &mut Vec<&'a str>) {
            found.extend(schema.reference.as_deref());
            schema.items.iter().chain(&schema.values).for_each(|s| references(s, found));
            schema.properties.values().for_each(|s| references(s, found));
        }
        assert!(names().count() > 860);
        for name in names() {
            let mut found = Vec::new();
            references(get(name).unwrap_or_else(|| panic!("{name} does not load")), &mut found);
            for reference in found {
                assert!(get(reference).is_some(), "{name} refers to {reference}");
            }
        }
    }

    #[test]
    fn merge_facts_are_reachable() {
        let containers = &get("io.k8s.api.core.v1.PodSpec").unwrap().properties["containers"];
        assert_eq!(containers.patch_merge_key.as_deref(), Some("name"));
        assert_eq!(containers.list_type.as_deref(), Some("map"));
        assert_eq!(containers.list_map_keys, ["name"]);
        assert!(get("io.k8s.api.core.v1.Nonsense").is_none());
    }
}
