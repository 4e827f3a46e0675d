//! Bytes under their digests: manifests, configurations, compressed layers.
//!
//! A blob is written to `ingest/` first, where what was received of it outlives a failed pull, and moved
//! to `blobs/` once its digest is right and it is on the disk.
//!
//! Invariant: a file in `blobs/` is complete and has the digest in its name.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::digest::{Digest, Hasher};
use super::disk;
use super::error::ImageError;

const READ_BYTES: usize = 256 << 10;

#[derive(Clone, Debug)]
pub struct Blobs {
    blobs: PathBuf,
    ingest: PathBuf,
}

impl Blobs {
    /// Opens or makes the store below `directory`.
    pub fn open(directory: &Path) -> Result<Self, ImageError> {
        let blobs = directory.join("blobs").join("sha256");
        let ingest = directory.join("ingest");
        disk::create_directory(&blobs)?;
        disk::create_directory(&ingest)?;
        Ok(Self { blobs, ingest })
    }

    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.blobs.join(digest.hex())
    }

    pub fn has(&self, digest: &Digest) -> bool {
        self.path(digest).is_file()
    }

    /// The size of a blob; 0 if it is not here.
    pub fn size_bytes(&self, digest: &Digest) -> u64 {
        fs::metadata(self.path(digest)).map_or(0, |status| status.len())
    }

    /// Opens a blob at an offset; `None` if it is not here or not so long.
    pub fn open_at(&self, digest: &Digest, offset_bytes: u64) -> Option<(u64, File)> {
        let mut file = File::open(self.path(digest)).ok()?;
        let size_bytes = file.metadata().ok()?.len();
        if offset_bytes > size_bytes {
            return None;
        }
        file.seek(SeekFrom::Start(offset_bytes)).ok()?;
        Some((size_bytes, file))
    }

    /// Reads a small blob whole and checks it again.
    pub fn read(&self, digest: &Digest, limit_bytes: u64) -> Result<Vec<u8>, ImageError> {
        let bytes = disk::read_bounded(&self.path(digest), limit_bytes)?
            .ok_or_else(|| ImageError::NotFound(digest.to_string()))?;
        match Digest::of(&bytes) {
            actual if actual == *digest => Ok(bytes),
            actual => Err(mismatch(*digest, actual)),
        }
    }

    /// Stores a small blob.
    pub fn put(&self, bytes: &[u8]) -> Result<Digest, ImageError> {
        let digest = Digest::of(bytes);
        if !self.has(&digest) {
            disk::replace(&self.path(&digest), bytes, &self.ingest)?;
        }
        Ok(digest)
    }

    /// Begins a blob or goes on with what an earlier attempt received of it.
    pub fn ingest(&self, digest: Digest) -> Result<Ingest, ImageError> {
        Ingest::open(self.ingest.join(digest.hex()), Some(digest), self.path(&digest))
    }

    /// Begins a blob whose digest is not known before its end.
    pub fn ingest_unknown(&self) -> Result<Ingest, ImageError> {
        let path = disk::temporary(&self.ingest);
        disk::remove(&path)?;
        Ingest::open(path, None, self.blobs.clone())
    }

    /// The digests of all blobs.
    pub fn list(&self) -> Result<Vec<Digest>, ImageError> {
        let names = disk::names(&self.blobs)?;
        Ok(names.iter().filter_map(|name| format!("sha256:{name}").parse().ok()).collect())
    }

    /// Deletes a blob; says how many bytes that freed.
    pub fn remove(&self, digest: &Digest) -> Result<u64, ImageError> {
        let size_bytes = self.size_bytes(digest);
        disk::remove(&self.path(digest))?;
        Ok(size_bytes)
    }

    /// Deletes unfinished blobs last written before `before`, but those that `keep` is true of; says how
    /// many bytes that freed.
    pub fn remove_unfinished(&self, before: SystemTime, keep: impl Fn(&Digest) -> bool) -> Result<u64, ImageError> {
        let mut freed_bytes = 0;
        for name in disk::names(&self.ingest)? {
            let Ok(digest) = format!("sha256:{name}").parse() else { continue };
            let path = self.ingest.join(&name);
            let Ok(status) = fs::metadata(&path) else { continue };
            if !keep(&digest) && status.modified().is_ok_and(|modified| modified < before) {
                freed_bytes += status.len();
                disk::remove(&path)?;
            }
        }
        Ok(freed_bytes)
    }

    /// Deletes what writes without a digest left behind; only when no other writer lives.
    pub fn remove_scratch(&self) -> Result<(), ImageError> {
        for name in disk::names(&self.ingest)? {
            if format!("sha256:{name}").parse::<Digest>().is_err() {
                disk::remove(&self.ingest.join(name))?;
            }
        }
        Ok(())
    }
}

/// A blob on its way in. Dropped unfinished, what was received stays for the next attempt.
#[derive(Debug)]
pub struct Ingest {
    file: File,
    path: PathBuf,
    /// The blob's path, or, as long as the digest is not known, the directory it goes to.
    target: PathBuf,
    expected: Option<Digest>,
    hasher: Hasher,
    written_bytes: u64,
}

impl Ingest {
    fn open(path: PathBuf, expected: Option<Digest>, target: PathBuf) -> Result<Self, ImageError> {
        let file = OpenOptions::new().create(true).read(true).write(true).truncate(false).open(&path);
        let mut file = file.map_err(ImageError::at("open", &path))?;
        let mut hasher = Hasher::new();
        let mut written_bytes = 0;
        let mut buffer = vec![0; READ_BYTES];
        loop {
            match file.read(&mut buffer).map_err(ImageError::at("read", &path))? {
                0 => break,
                count => {
                    hasher.update(&buffer[..count]);
                    written_bytes += count as u64;
                }
            }
        }
        Ok(Self { file, path, target, expected, hasher, written_bytes })
    }

    /// What is there already, from this attempt or an earlier one.
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    pub fn write(&mut self, bytes: &[u8]) -> Result<(), ImageError> {
        self.file.write_all(bytes).map_err(ImageError::at("write", &self.path))?;
        self.hasher.update(bytes);
        self.written_bytes += bytes.len() as u64;
        Ok(())
    }

    /// Forgets what is there.
    pub fn restart(&mut self) -> Result<(), ImageError> {
        self.file.set_len(0).map_err(ImageError::at("truncate", &self.path))?;
        self.file.seek(SeekFrom::Start(0)).map_err(ImageError::at("rewind", &self.path))?;
        self.hasher = Hasher::new();
        self.written_bytes = 0;
        Ok(())
    }

    /// Of what is there.
    pub fn digest(&self) -> Digest {
        self.hasher.clone().finish()
    }

    /// Checks the digest and moves the blob to its place, durably. If the digest is wrong, nothing of
    /// the blob remains.
    pub fn commit(self) -> Result<Digest, ImageError> {
        let actual = self.hasher.finish();
        if let Some(expected) = self.expected
            && expected != actual
        {
            disk::remove(&self.path)?;
            return Err(mismatch(expected, actual));
        }
        let target = if self.expected.is_some() { self.target } else { self.target.join(actual.hex()) };
        self.file.sync_all().map_err(ImageError::at("sync", &self.path))?;
        fs::rename(&self.path, &target).map_err(ImageError::at("rename", &self.path))?;
        disk::sync_parent(&target).map_err(ImageError::at("sync", &target))?;
        Ok(actual)
    }

    /// Gives the blob up and removes what was received of it.
    pub fn abandon(self) -> Result<(), ImageError> {
        disk::remove(&self.path)
    }
}

fn mismatch(expected: Digest, actual: Digest) -> ImageError {
    ImageError::DigestMismatch { what: "blob".into(), expected, actual }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_is_there_after_its_digest_was_checked() {
        let directory = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(directory.path()).unwrap();
        let digest = Digest::of(b"hello world");
        let mut ingest = blobs.ingest(digest).unwrap();
        ingest.write(b"hello ").unwrap();
        drop(ingest);
        assert!(!blobs.has(&digest));
        let mut ingest = blobs.ingest(digest).unwrap();
        assert_eq!(ingest.written_bytes(), 6);
        ingest.write(b"world").unwrap();
        assert_eq!(ingest.commit().unwrap(), digest);
        assert_eq!(blobs.read(&digest, 100).unwrap(), b"hello world");
    }

    #[test]
    fn a_wrong_digest_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(directory.path()).unwrap();
        let digest = Digest::of(b"right");
        let mut ingest = blobs.ingest(digest).unwrap();
        ingest.write(b"wrong").unwrap();
        let error = ingest.commit().unwrap_err();
        assert!(matches!(error, ImageError::DigestMismatch { expected, actual, .. }
            if expected == digest && actual == Digest::of(b"wrong")));
        assert!(!blobs.has(&digest));
        assert_eq!(blobs.ingest(digest).unwrap().written_bytes(), 0);
    }

    #[test]
    fn a_damaged_small_blob_is_not_believed() {
        let directory = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(directory.path()).unwrap();
        let digest = blobs.put(b"manifest").unwrap();
        fs::write(blobs.path(&digest), b"tampered").unwrap();
        assert!(matches!(blobs.read(&digest, 100), Err(ImageError::DigestMismatch { .. })));
        assert!(matches!(blobs.read(&digest, 3), Err(ImageError::TooLarge { .. })));
    }
}
