//! Where an object lives in the store.
//!
//! Invariant: keys of one resource are contiguous and ordered by namespace, then name, so that a list
//! is a prefix scan and a namespace of a resource is one too.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// What stands in a key for Kubernetes' core group, whose name is empty. No other group can take it:
/// a custom resource's group must contain a dot.
const CORE: &str = "core";

/// A collection of objects: an API group (`""` is core) and a plural resource name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GroupResource {
    pub group: String,
    pub resource: String,
}

impl GroupResource {
    pub fn new(group: impl Into<String>, resource: impl Into<String>) -> Self {
        Self { group: group.into(), resource: resource.into() }
    }

    /// Every key of the collection starts with this.
    pub fn prefix(&self) -> String {
        let group = if self.group.is_empty() { CORE } else { &self.group };
        format!("{group}/{}/", self.resource)
    }

    /// Every key of the collection in one namespace starts with this.
    pub fn namespace_prefix(&self, namespace: &str) -> String {
        format!("{}{namespace}/", self.prefix())
    }
}

impl fmt::Display for GroupResource {
    /// Upstream's form: `deployments.apps`, `pods`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.group.as_str() {
            "" => f.write_str(&self.resource),
            group => write!(f, "{}.{group}", self.resource),
        }
    }
}

/// `GROUP/RESOURCE/NAMESPACE/NAME`; cluster-scoped objects have an empty namespace.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key(Arc<str>);

impl Key {
    /// The key of one object. The parts must have been validated: none may contain `/`.
    pub fn new(collection: &GroupResource, namespace: &str, name: &str) -> Self {
        debug_assert!(!namespace.contains('/') && !name.contains('/'));
        Self(format!("{}{namespace}/{name}", collection.prefix()).into())
    }

    /// Reads a stored key back; `None` if it does not have four parts.
    pub fn parse(text: &str) -> Option<Self> {
        (text.split('/').count() == 4).then(|| Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The API group; `""` for core.
    pub fn group(&self) -> &str {
        match self.part(0) {
            CORE => "",
            group => group,
        }
    }

    /// The plural resource name.
    pub fn resource(&self) -> &str {
        self.part(1)
    }

    /// The namespace; `""` for cluster-scoped objects.
    pub fn namespace(&self) -> &str {
        self.part(2)
    }

    pub fn name(&self) -> &str {
        self.part(3)
    }

    pub fn collection(&self) -> GroupResource {
        GroupResource::new(self.group(), self.resource())
    }

    fn part(&self, index: usize) -> &str {
        self.0.split('/').nth(index).unwrap_or_default()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_gives_back_its_parts() {
        let key = Key::new(&GroupResource::new("apps", "deployments"), "default", "web");
        assert_eq!(key.as_str(), "apps/deployments/default/web");
        assert_eq!(
            (key.group(), key.resource(), key.namespace(), key.name()),
            ("apps", "deployments", "default", "web")
        );
        assert_eq!(Key::parse(key.as_str()), Some(key));
    }

    #[test]
    fn core_and_cluster_scope() {
        let key = Key::new(&GroupResource::new("", "nodes"), "", "n1");
        assert_eq!(key.as_str(), "core/nodes//n1");
        assert_eq!((key.group(), key.namespace()), ("", ""));
        assert_eq!(Key::parse("core/nodes"), None);
    }

    #[test]
    fn a_resource_whose_name_begins_like_another_is_not_in_its_prefix() {
        let pods = GroupResource::new("", "pods");
        let other = Key::new(&GroupResource::new("", "podsets"), "a", "b");
        assert!(!other.as_str().starts_with(&pods.prefix()));
    }
}
