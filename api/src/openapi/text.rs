//! What Kubernetes says of its types and fields, for `explain`.
//!
//! The texts are 1.4 MB that hardly anybody asks for: they stay compressed in the program, and are read while a document
//! is made. `api/examples/descriptions.rs` writes the data.

use std::io::Read as _;
use std::ops::Range;

use flate2::read::GzDecoder;
use serde_json::{Map, Value};

const COMPRESSED: &[u8] = include_bytes!("../../data/descriptions.jsonl.gz");

/// Where kinds went whose first version was `v1beta1`.
const SUCCESSORS: [&str; 2] = ["io.k8s.api.apps.v1", "io.k8s.api.networking.v1"];

/// The texts, unfolded; let go of them soon.
pub(super) struct Texts {
    text: String,
    /// Each type's name and what follows it, sorted by name.
    lines: Vec<(Range<usize>, Range<usize>)>,
}

impl Texts {
    pub fn load() -> Self {
        let mut text = String::new();
        // The data is the program's own; a test reads it whole.
        if GzDecoder::new(COMPRESSED).read_to_string(&mut text).is_err() {
            text.clear();
        }
        let mut lines = Vec::new();
        let mut start = 0;
        for line in text.split_inclusive('\n') {
            if let Some(end) = line.find("\":") {
                lines.push((start + 1..start + end, start + end + 2..start + line.trim_end().len()));
            }
            start += line.len();
        }
        Self { text, lines }
    }

    /// The texts of a type by field; the type's own is under the empty name. What is said of types of today goes for those
    /// of old versions.
    pub fn of(&self, name: &str) -> Map<String, Value> {
        let found = self.find(name);
        match name.split_once(".v1beta1.").filter(|_| found.is_empty()) {
            Some((_, last)) => {
                let mut successors = SUCCESSORS.iter().map(|package| self.find(&format!("{package}.{last}")));
                successors.find(|texts| !texts.is_empty()).unwrap_or_default()
            }
            None => found,
        }
    }

    fn find(&self, name: &str) -> Map<String, Value> {
        let found = self.lines.binary_search_by_key(&name, |(key, _)| &self.text[key.clone()]);
        found.ok().and_then(|at| serde_json::from_str(&self.text[self.lines[at].1.clone()]).ok()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema;

    #[test]
    fn every_type_that_is_served_is_described() {
        let texts = Texts::load();
        assert!(texts.lines.len() > 600);
        let deployment = texts.of("io.k8s.api.apps.v1.Deployment");
        assert_eq!(deployment[""], "Deployment enables declarative updates for Pods and ReplicaSets.");
        assert!(deployment["spec"].as_str().unwrap().contains("desired behavior"));
        assert!(texts.of("io.k8s.api.apps.v1.Nonsense").is_empty());
        assert_eq!(texts.of("io.k8s.api.extensions.v1beta1.Deployment"), deployment);
        for name in ["io.k8s.api.core.v1.PodSpec", "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"] {
            let texts = texts.of(name);
            for field in schema::get(name).unwrap().properties.keys() {
                assert!(texts.contains_key(field), "{name}.{field}");
            }
        }
    }
}
