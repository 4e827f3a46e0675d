//! Sets of fields, as `metadata.managedFields` keeps them.
//!
//! Defined by `meta/v1 FieldsV1`: a member of an object is `f:NAME`, an element of a list `k:{KEYS}`, `v:VALUE` or `i:INDEX`,
//! and `.` says that what it stands in is itself in the set.
//!
//! Invariant: a node that is not in the set has children that are: no node is there for nothing.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// Nesting of fields that is followed; an object is nested no deeper.
const MAX_DEPTH: usize = 128;

/// A field or element and what is in the set below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields {
    /// It is in the set itself.
    pub own: bool,
    /// By their names in FieldsV1.
    pub children: BTreeMap<String, Fields>,
}

impl Fields {
    pub fn leaf() -> Self {
        Self { own: true, children: BTreeMap::new() }
    }

    pub fn is_empty(&self) -> bool {
        !self.own && self.children.is_empty()
    }

    /// Puts a child in, unless there is nothing to it.
    pub fn add(&mut self, name: String, child: Fields) {
        if !child.is_empty() {
            self.children.insert(name, child);
        }
    }

    /// Reads FieldsV1.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(value: &Value) -> Result<Self, String> {
        let Value::Object(map) = value else { return Err("fieldsV1 is not an object".into()) };
        let mut set = Self::read(map, 0)?;
        set.own = false;
        Ok(set)
    }

    fn read(map: &Map<String, Value>, depth: usize) -> Result<Self, String> {
        if depth > MAX_DEPTH {
            return Err("fieldsV1 is nested too deep".into());
        }
        let mut set = Self { own: map.is_empty(), children: BTreeMap::new() };
        for (name, below) in map {
            if name == "." {
                set.own = true;
                continue;
            }
            let Value::Object(below) = below else { return Err(format!("{name}: not an object")) };
            set.children.insert(canonical(name)?, Self::read(below, depth + 1)?);
        }
        Ok(set)
    }

    pub fn to_value(&self) -> Value {
        let mut map = Map::new();
        if self.own && !self.children.is_empty() {
            map.insert(".".into(), Value::Object(Map::new()));
        }
        for (name, child) in &self.children {
            map.insert(name.clone(), child.to_value());
        }
        Value::Object(map)
    }

    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let mut all = self.clone();
        all.own |= other.own;
        for (name, theirs) in &other.children {
            match all.children.get_mut(name) {
                Some(mine) => *mine = mine.union(theirs),
                None => _ = all.children.insert(name.clone(), theirs.clone()),
            }
        }
        all
    }

    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let mut both = Self { own: self.own && other.own, children: BTreeMap::new() };
        for (name, mine) in &self.children {
            if let Some(theirs) = other.children.get(name) {
                both.add(name.clone(), mine.intersection(theirs));
            }
        }
        both
    }

    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        let mut left = Self { own: self.own && !other.own, children: BTreeMap::new() };
        for (name, mine) in &self.children {
            match other.children.get(name) {
                Some(theirs) => left.add(name.clone(), mine.difference(theirs)),
                None => left.add(name.clone(), mine.clone()),
            }
        }
        left
    }

    /// Takes out a field and everything below it.
    pub fn remove(&mut self, path: &[&str]) {
        let [first, rest @ ..] = path else { return };
        let name = format!("f:{first}");
        if rest.is_empty() {
            self.children.remove(&name);
            return;
        }
        if let Some(child) = self.children.get_mut(&name) {
            child.remove(rest);
            if child.is_empty() {
                self.children.remove(&name);
            }
        }
    }

    /// The paths of all members, as upstream words them in conflicts: `.spec.containers[name="a"].image`.
    pub fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.walk(String::new(), &mut paths);
        paths
    }

    fn walk(&self, path: String, paths: &mut Vec<String>) {
        for (name, child) in &self.children {
            let path = format!("{path}{}", shown(name));
            if child.own {
                paths.push(path.clone());
            }
            child.walk(path, paths);
        }
    }
}

/// The same name for the same element, however its keys were written.
fn canonical(name: &str) -> Result<String, String> {
    let (kind, rest) = name.split_at_checked(2).ok_or_else(|| format!("{name:?} names no field"))?;
    match kind {
        "f:" => Ok(name.to_owned()),
        "k:" => match serde_json::from_str::<Value>(rest) {
            Ok(keys @ Value::Object(_)) => Ok(format!("k:{keys}")),
            _ => Err(format!("{name:?} names no element")),
        },
        "v:" => {
            let value: Value = serde_json::from_str(rest).map_err(|_| format!("{name:?} names no element"))?;
            Ok(format!("v:{value}"))
        }
        "i:" => rest.parse::<u32>().map(|index| format!("i:{index}")).map_err(|_| format!("{name:?} names no element")),
        _ => Err(format!("{name:?} names no field")),
    }
}

pub(super) fn shown(name: &str) -> String {
    let (kind, rest) = name.split_at(2);
    match kind {
        "f:" => format!(".{rest}"),
        "k:" => {
            let keys: Map<String, Value> = serde_json::from_str(rest).unwrap_or_default();
            let keys: Vec<String> = keys.iter().map(|(key, value)| format!("{key}={value}")).collect();
            format!("[{}]", keys.join(","))
        }
        "v:" => format!("[={rest}]"),
        _ => format!("[{rest}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn fields(value: Value) -> Fields {
        Fields::parse(&value).unwrap()
    }

    #[test]
    fn fields_v1_is_read_and_written() {
        let value = json!({
            "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
            "f:spec": {"f:containers": {"k:{\"name\":\"a\"}": {".": {}, "f:image": {}}}, "f:finalizers": {"v:\"x\"": {}}},
        });
        let set = fields(value.clone());
        assert_eq!(set.to_value(), value);
        assert_eq!(
            set.paths(),
            [
                ".metadata.labels",
                ".metadata.labels.app",
                ".spec.containers[name=\"a\"]",
                ".spec.containers[name=\"a\"].image",
                ".spec.finalizers[=\"x\"]",
            ]
        );
        for wrong in [json!([]), json!({"x": {}}), json!({"f:a": 1}), json!({"k:[]": {}}), json!({"i:x": {}})] {
            assert!(Fields::parse(&wrong).is_err(), "{wrong}");
        }
    }

    fn any_fields() -> impl Strategy<Value = Fields> {
        let leaf = Just(Fields::leaf());
        leaf.prop_recursive(3, 12, 3, |inner| {
            (any::<bool>(), prop::collection::btree_map("f:[abc]", inner, 1..3))
                .prop_map(|(own, children)| Fields { own, children })
        })
        .prop_map(|mut set| {
            set.own = false;
            set
        })
    }

    proptest! {
        #[test]
        fn sets_are_sets(a in any_fields(), b in any_fields()) {
            let members = |set: &Fields| set.paths().into_iter().collect::<std::collections::BTreeSet<_>>();
            let (of_a, of_b) = (members(&a), members(&b));
            prop_assert_eq!(members(&a.union(&b)), of_a.union(&of_b).cloned().collect());
            prop_assert_eq!(members(&a.intersection(&b)), of_a.intersection(&of_b).cloned().collect());
            prop_assert_eq!(members(&a.difference(&b)), of_a.difference(&of_b).cloned().collect());
            prop_assert_eq!(Fields::parse(&a.to_value()).unwrap(), a);
        }
    }
}
