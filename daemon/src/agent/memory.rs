//! The few facts about a pod's containers that cannot be observed again: kept beside the pod's logs.
//!
//! Invariant: lost, they cost a pod its back-off, never a container.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Facts about attempts, by `NAME-ATTEMPT`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Memory {
    pub attempts: BTreeMap<String, Fact>,
    #[serde(skip)]
    path: PathBuf,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// Restarts in a row that did not last.
    pub crashes: u32,
    pub image_id: String,
}

impl Memory {
    pub fn load(dir: &Path) -> Self {
        let path = dir.join("attempts.json");
        let stored = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Self>(&bytes).ok());
        Self { path, ..stored.unwrap_or_default() }
    }

    pub fn get(&self, key: &str) -> Fact {
        self.attempts.get(key).cloned().unwrap_or_default()
    }

    pub fn set(&mut self, key: String, fact: Fact) {
        self.attempts.insert(key, fact);
        self.store();
    }

    pub fn remove(&mut self, key: &str) {
        if self.attempts.remove(key).is_some() {
            self.store();
        }
    }

    fn store(&self) {
        let stored = serde_json::to_vec(self).map_err(std::io::Error::other).and_then(|bytes| {
            let scratch = self.path.with_extension("new");
            fs::create_dir_all(self.path.parent().unwrap_or(Path::new("/")))?;
            fs::write(&scratch, bytes)?;
            fs::rename(&scratch, &self.path)
        });
        if let Err(error) = stored {
            tracing::warn!(path = %self.path.display(), %error, "the back-off of a pod would not survive a restart");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let fact = Fact { crashes: 3, image_id: "sha256:x".into() };
        Memory::load(dir.path()).set("web-1".into(), fact.clone());
        let mut memory = Memory::load(dir.path());
        assert_eq!(memory.get("web-1"), fact);
        memory.remove("web-1");
        assert_eq!(Memory::load(dir.path()).get("web-1"), Fact::default());
    }
}
