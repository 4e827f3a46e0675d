//! Files that only this node may read: keys, certificates, known addresses.
//!
//! Invariant: a file is replaced whole or not at all, also across a power loss, and is never readable by others.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Makes `dir`, and what leads to it, for the owner alone.
pub(crate) fn private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
}

/// Replaces `dir/name` by `bytes`.
pub(crate) fn write_private(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    private_dir(dir)?;
    let mut suffix = [0; 8];
    crate::random::fill(&mut suffix);
    let draft = dir.join(format!(".{name}.{:016x}", u64::from_be_bytes(suffix)));
    let written = write_draft(&draft, bytes).and_then(|()| fs::rename(&draft, dir.join(name)));
    if written.is_err() {
        // The first error is the one to tell; a draft that cannot be removed either does no harm.
        let _ = fs::remove_file(&draft);
    }
    written?;
    File::open(dir)?.sync_all()
}

fn write_draft(draft: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(draft)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// The bytes of `path`, or `None` where there is no such file. A file above `max_bytes` is an error.
pub(crate) fn read_bounded(path: &Path, max_bytes: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(max_bytes + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max_bytes {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("larger than {max_bytes} bytes")));
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("exists").permissions().mode() & 0o777
    }

    #[test]
    fn a_private_file_is_replaced_whole_and_read_by_its_owner_alone() {
        let root = tempfile::tempdir().expect("a directory");
        let dir = root.path().join("a/b");
        write_private(&dir, "key", b"old").expect("writes");
        write_private(&dir, "key", b"new").expect("writes");
        assert_eq!(read_bounded(&dir.join("key"), 3).expect("reads").as_deref(), Some(&b"new"[..]));
        assert_eq!((mode(&dir), mode(&dir.join("key"))), (0o700, 0o600));
        assert_eq!(fs::read_dir(&dir).expect("lists").count(), 1, "no draft is left");
    }

    #[test]
    fn a_missing_file_is_none_and_a_large_one_an_error() {
        let root = tempfile::tempdir().expect("a directory");
        assert!(read_bounded(&root.path().join("none"), 1).expect("reads").is_none());
        write_private(root.path(), "big", b"12345").expect("writes");
        assert!(read_bounded(&root.path().join("big"), 4).is_err());
    }
}
