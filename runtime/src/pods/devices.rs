//! The host's devices, for privileged containers.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use serde_json::{Value, json};

const MAX_DEVICES: usize = 1024;
const MAX_DEPTH: usize = 4;
/// What the container mounts for itself.
const OWN: [&str; 5] = ["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/console", "/dev/ptmx"];

/// Nodes of `/dev` as entries of an OCI specification's `linux.devices`.
pub fn of_host() -> Vec<Value> {
    let mut found = Vec::new();
    walk(Path::new("/dev"), MAX_DEPTH, &mut found);
    found
}

fn walk(dir: &Path, depth: usize, found: &mut Vec<Value>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if found.len() >= MAX_DEVICES || OWN.iter().any(|own| path == Path::new(own)) {
            continue;
        }
        let Ok(meta) = entry.metadata() else { continue };
        let kind = meta.file_type();
        if kind.is_dir() && depth > 0 {
            walk(&path, depth - 1, found);
        } else if kind.is_char_device() || kind.is_block_device() {
            found.push(json!({
                "path": path,
                "type": if kind.is_block_device() { "b" } else { "c" },
                "major": libc::major(meta.rdev()),
                "minor": libc::minor(meta.rdev()),
                "fileMode": meta.mode() & 0o7777,
                "uid": meta.uid(),
                "gid": meta.gid(),
            }));
        }
    }
}
