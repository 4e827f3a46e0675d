//! Which kinds there are, and which of them a caller means.
//!
//! Invariant: a kind is found by its group, version and kind, by its group and plural, and by any name that people type;
//! of two kinds that share a typed name, the one registered first is meant.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::{Reason, Status};
use crate::kinds::{self, Builtin, Kind};
use crate::versions;

/// The kinds of a cluster at one time.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    kinds: Vec<Arc<Kind>>,
    by_type: BTreeMap<(String, String, String), Arc<Kind>>,
    by_resource: BTreeMap<(String, String), Arc<Kind>>,
    by_path: BTreeMap<(String, String, String), Arc<Kind>>,
    by_name: BTreeMap<String, Arc<Kind>>,
}

impl Registry {
    /// No kinds at all.
    pub fn new() -> Self {
        Self::default()
    }

    /// The built-in kinds.
    pub fn builtin() -> Self {
        let mut registry =
            Self { kinds: kinds::builtin_kinds().into_iter().map(Arc::new).collect(), ..Self::default() };
        registry.kinds.extend(versions::versions(|builtin| registry.built_in(builtin)).into_iter().map(Arc::new));
        registry.index();
        registry
    }

    /// Adds a kind, or replaces the one of the same group, version and kind.
    pub fn register(&mut self, kind: Kind) {
        self.remove(&kind.group, &kind.version, &kind.kind);
        self.kinds.push(Arc::new(kind));
        self.index();
    }

    /// Adds kinds that are of no group, version and kind that is there already; the others are left as they are.
    pub fn register_all(&mut self, kinds: impl IntoIterator<Item = Kind>) {
        for kind in kinds {
            if self.by_type(&kind.group, &kind.version, &kind.kind).is_none() {
                self.kinds.push(Arc::new(kind));
            }
        }
        self.index();
    }

    /// Takes a kind out; says whether it was there.
    pub fn remove(&mut self, group: &str, version: &str, kind: &str) -> bool {
        let before = self.kinds.len();
        self.kinds.retain(|k| (k.group.as_str(), k.version.as_str(), k.kind.as_str()) != (group, version, kind));
        let removed = self.kinds.len() < before;
        if removed {
            self.index();
        }
        removed
    }

    fn index(&mut self) {
        self.by_type.clear();
        self.by_resource.clear();
        self.by_path.clear();
        self.by_name.clear();
        for kind in &self.kinds {
            let of_type = (kind.group.clone(), kind.version.clone(), kind.kind.clone());
            self.by_type.insert(of_type, kind.clone());
            self.by_resource.entry((kind.group.clone(), kind.plural.clone())).or_insert_with(|| kind.clone());
            let of_path = (kind.group.clone(), kind.version.clone(), kind.plural.clone());
            self.by_path.insert(of_path, kind.clone());
            for name in typed_names(kind) {
                self.by_name.entry(name).or_insert_with(|| kind.clone());
            }
        }
    }

    /// All kinds, in the order of their registration.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Kind>> {
        self.kinds.iter()
    }

    /// The kind that an object with this `apiVersion` (`v1`, `apps/v1`) and `kind` has.
    ///
    /// # Errors
    /// `BadRequest` in upstream's words if there is none.
    pub fn of_object(&self, api_version: &str, kind: &str) -> Result<Arc<Kind>, Status> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        self.by_type(group, version, kind).ok_or_else(|| {
            Status::bad_request(format_args!("no matches for kind \"{kind}\" in version \"{api_version}\""))
        })
    }

    pub fn by_type(&self, group: &str, version: &str, kind: &str) -> Option<Arc<Kind>> {
        self.by_type.get(&(group.to_owned(), version.to_owned(), kind.to_owned())).cloned()
    }

    pub fn by_resource(&self, group: &str, plural: &str) -> Option<Arc<Kind>> {
        self.by_resource.get(&(group.to_owned(), plural.to_owned())).cloned()
    }

    /// The kind that is served under `/apis/GROUP/VERSION/PLURAL`.
    pub fn served(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Kind>> {
        self.by_path.get(&(group.to_owned(), version.to_owned(), plural.to_owned())).cloned()
    }

    /// The kind that someone means who types `pods`, `pod`, `po`, `Pod`, `deployments.apps` or `deployments.v1.apps`.
    ///
    /// # Errors
    /// `NotFound` in upstream's words.
    pub fn by_name(&self, name: &str) -> Result<Arc<Kind>, Status> {
        self.by_name.get(&name.to_ascii_lowercase()).cloned().ok_or_else(|| {
            Status::new(Reason::NotFound, format_args!("the server doesn't have a resource type \"{name}\""))
        })
    }

    /// A built-in kind, unless it was removed.
    pub fn built_in(&self, builtin: Builtin) -> Option<Arc<Kind>> {
        self.kinds.iter().find(|kind| kind.builtin == Some(builtin)).cloned()
    }

    /// The kinds of a category, such as `all`.
    pub fn category<'a>(&'a self, category: &'a str) -> impl Iterator<Item = &'a Arc<Kind>> {
        self.kinds.iter().filter(move |kind| kind.categories.iter().any(|c| c == category))
    }
}

/// Every name that people may type for a kind, in lower case.
fn typed_names(kind: &Kind) -> Vec<String> {
    let plain: Vec<&str> = [kind.plural.as_str(), &kind.singular, &kind.kind]
        .into_iter()
        .chain(kind.short_names.iter().map(String::as_str))
        .collect();
    let mut names: Vec<String> = plain.iter().map(|name| name.to_ascii_lowercase()).collect();
    for name in [&kind.plural, &kind.singular] {
        names.push(format!("{name}.{}", kind.group).trim_end_matches('.').to_ascii_lowercase());
        names.push(format!("{name}.{}.{}", kind.version, kind.group).trim_end_matches('.').to_ascii_lowercase());
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema;

    #[test]
    fn a_kind_answers_to_every_name_that_people_type() {
        let registry = Registry::builtin();
        let table = [
            ("pods", "Pod"),
            ("po", "Pod"),
            ("Pod", "Pod"),
            ("deployments.apps", "Deployment"),
            ("deployments.v1.apps", "Deployment"),
            ("deploy", "Deployment"),
            ("DEPLOYMENT", "Deployment"),
            ("jobs", "Job"),
            ("rs", "ReplicaSet"),
            ("no", "Node"),
            ("ns", "Namespace"),
            ("cm", "ConfigMap"),
            ("ev", "Event"),
            ("leases.coordination.k8s.io", "Lease"),
            ("jointokens", "JoinToken"),
        ];
        for (name, kind) in table {
            assert_eq!(registry.by_name(name).unwrap().kind, kind, "{name}");
        }
        let error = registry.by_name("widgets").unwrap_err();
        assert_eq!(error.message, "the server doesn't have a resource type \"widgets\"");
    }

    #[test]
    fn the_schema_agrees_with_every_kind() {
        for kind in Registry::builtin().iter() {
            let facts = schema::get(kind.schema.as_deref().unwrap()).unwrap();
            let [gvk] = facts.group_version_kinds.as_slice() else { panic!("{kind:?}") };
            // Old versions have no schema of their own; the stored kind's stands in.
            let is = |kind: &Kind| (&gvk.group, &gvk.version, &gvk.kind) == (&kind.group, &kind.version, &kind.kind);
            assert!(is(kind) || is(kind.stored()), "{kind:?} has the schema of {gvk:?}");
            assert_eq!(kind.has_status(), facts.properties.contains_key("status"), "{kind:?}");
            assert_eq!(kind.builtin.unwrap().collection(), kind.collection());
        }
    }

    #[test]
    fn kinds_come_and_go_at_run_time() {
        let mut registry = Registry::builtin();
        let mut kind = (*registry.by_name("configmaps").unwrap()).clone();
        kind.group = "example.com".into();
        kind.kind = "Widget".into();
        kind.plural = "widgets".into();
        kind.singular = "widget".into();
        kind.short_names.clear();
        registry.register(kind);
        assert_eq!(registry.by_resource("example.com", "widgets").unwrap().kind, "Widget");
        assert!(registry.remove("example.com", "v1", "Widget"));
        assert!(registry.by_name("widget").is_err());
        assert_eq!(registry.by_name("cm").unwrap().group, "");
    }
}
