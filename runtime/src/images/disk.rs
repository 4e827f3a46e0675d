//! Files that are there whole or not at all.
//!
//! Invariant: after [`replace`] returns, a crash leaves the new contents; before, the old.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::ImageError;

static TEMPORARY: AtomicU64 = AtomicU64::new(0);

/// A path in `directory` that nobody else uses while this process lives.
pub fn temporary(directory: &Path) -> PathBuf {
    let number = TEMPORARY.fetch_add(1, Ordering::Relaxed);
    directory.join(format!("{}-{number}", std::process::id()))
}

pub fn create_directory(path: &Path) -> Result<(), ImageError> {
    fs::create_dir_all(path).map_err(ImageError::at("create", path))
}

/// Writes `bytes` to `path` by way of the directory `scratch` on the same file system.
pub fn replace(path: &Path, bytes: &[u8], scratch: &Path) -> Result<(), ImageError> {
    let unfinished = temporary(scratch);
    let written = write_synced(&unfinished, bytes).and_then(|()| fs::rename(&unfinished, path));
    if written.is_err() {
        // The error that matters is the first; the scratch directory is emptied when the store opens.
        let _ = fs::remove_file(&unfinished);
    }
    written.and_then(|()| sync_parent(path)).map_err(ImageError::at("write", path))
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes a rename into `path`'s directory durable.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// Reads a file of at most `limit_bytes`; `None` if it does not exist.
pub fn read_bounded(path: &Path, limit_bytes: u64) -> Result<Option<Vec<u8>>, ImageError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(ImageError::at("open", path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(limit_bytes + 1).read_to_end(&mut bytes).map_err(ImageError::at("read", path))?;
    if bytes.len() as u64 > limit_bytes {
        return Err(ImageError::TooLarge { what: path.display().to_string(), limit_bytes });
    }
    Ok(Some(bytes))
}

/// Removes a file or a tree; nothing there is fine.
pub fn remove(path: &Path) -> Result<(), ImageError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(status) if status.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ImageError::at("remove", path)(error)),
        _ => Ok(()),
    }
}

/// The names in a directory.
pub fn names(directory: &Path) -> Result<Vec<String>, ImageError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(ImageError::at("list", directory))? {
        let entry = entry.map_err(ImageError::at("list", directory))?;
        names.extend(entry.file_name().into_string());
    }
    Ok(names)
}
