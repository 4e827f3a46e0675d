//! Files of jobs and manifests, from a path, a folder or standard input.
//!
//! Invariant: no more than [`MAX_BYTES`] are read of any file.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, bail};
use serde_json::Value;

/// What the daemon takes at most in one request.
pub const MAX_BYTES: u64 = 3 << 19;

/// Standard input's name.
pub const STDIN: &str = "-";

const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];

/// The content of a file, or of standard input.
///
/// # Errors
/// If it cannot be read, or is too large.
pub fn read(file: &str) -> anyhow::Result<Vec<u8>> {
    if file == STDIN {
        return read_all(io::stdin().lock(), "standard input");
    }
    read_all(File::open(file).with_context(|| format!("cannot read {file}"))?, file)
}

fn read_all(source: impl Read, name: &str) -> anyhow::Result<Vec<u8>> {
    let mut content = Vec::new();
    source.take(MAX_BYTES + 1).read_to_end(&mut content).with_context(|| format!("cannot read {name}"))?;
    if content.len() as u64 > MAX_BYTES {
        bail!("{name} holds more than {MAX_BYTES} bytes (1.5 MiB): split it");
    }
    Ok(content)
}

/// Each file as it is; a folder as the manifests in it, by name.
///
/// # Errors
/// If a folder cannot be read, or holds no manifest.
pub fn expand(files: &[String]) -> anyhow::Result<Vec<String>> {
    let mut all = Vec::new();
    for file in files {
        if file != STDIN && Path::new(file).is_dir() {
            all.extend(manifests_in(Path::new(file)).with_context(|| format!("cannot read {file}"))?);
        } else {
            all.push(file.clone());
        }
    }
    if all.is_empty() {
        bail!("no .yaml, .yml or .json file in {}", files.join(", "));
    }
    Ok(all)
}

fn manifests_in(folder: &Path) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let known = path.extension().and_then(|e| e.to_str()).is_some_and(|e| EXTENSIONS.contains(&e));
        if known && path.is_file() {
            found.push(path.display().to_string());
        }
    }
    found.sort();
    Ok(found)
}

/// Whether the text is a Kubernetes manifest rather than a job's file.
pub fn is_kubernetes(text: &[u8]) -> bool {
    let text = String::from_utf8_lossy(text);
    if let Ok(Value::Object(object)) = serde_json::from_str(&text) {
        return object.contains_key("apiVersion") && object.contains_key("kind");
    }
    let has = |key: &str| text.lines().any(|line| line.strip_prefix(key).is_some_and(|rest| rest.starts_with(':')));
    has("apiVersion") && has("kind")
}

/// The objects of a manifest, those inside lists too.
///
/// # Errors
/// If it is neither YAML nor JSON, with the place.
pub fn objects(text: &[u8]) -> Result<Vec<Value>, flotilla_api::Status> {
    let documents = flotilla_api::admit::documents(text)?;
    Ok(documents.into_iter().flat_map(items).collect())
}

fn items(document: Value) -> Vec<Value> {
    match (document.get("items").and_then(Value::as_array), document["kind"].as_str()) {
        (Some(items), Some(kind)) if kind.ends_with("List") => items.clone(),
        _ => vec![document],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubernetes_manifests_are_told_from_jobs() {
        assert!(is_kubernetes(b"# web\napiVersion: apps/v1\nkind: Deployment\n"));
        assert!(is_kubernetes(br#"{"apiVersion": "v1", "kind": "Pod"}"#));
        assert!(!is_kubernetes(b"name: web\nimage: nginx\nlabels:\n  kind: x\n"));
        assert!(!is_kubernetes(b"\xff\xfe"));
    }

    #[test]
    fn folders_hold_manifests_in_order() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.yaml", "a.json", "c.txt"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let files = expand(&[dir.path().display().to_string(), STDIN.into()]).unwrap();
        let names: Vec<_> = files.iter().map(|f| f.rsplit('/').next().unwrap()).collect();
        assert_eq!(names, ["a.json", "b.yaml", "-"]);
    }

    #[test]
    fn a_file_that_is_too_large_is_not_read_whole() {
        let error = read_all(io::repeat(b'x'), "big.yaml").unwrap_err();
        assert!(error.to_string().starts_with("big.yaml holds more than 1572864 bytes"), "{error}");
    }
}
