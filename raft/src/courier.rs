//! A snapshot's way over a stream: its files in chunks, each file with its digest.
//!
//! Invariant: file names come from the other side and never leave the staging directory.
//! Invariant: what was received is opened and checked only after every digest was right.

use std::path::Path;
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::disk::DiskError;
use crate::frame::{self, FrameError, within};
use crate::machine::Machine;
use crate::snapshot::{SnapshotDir, Staging};
use crate::transport::{Reader, Writer};
use crate::wire::{SnapshotFile, SnapshotHeader};

const CHUNK_BYTES: usize = 256 * 1024;
const MAX_FILES: usize = 65_536;
const MAX_NAME_BYTES: usize = 64;
/// A transfer is given up when a chunk takes longer than this.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub(crate) enum CourierError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("snapshot file {name}")]
    File { name: String, source: std::io::Error },
    #[error("snapshot file {name}: {detail}")]
    Refused { name: String, detail: &'static str },
    #[error("a snapshot of {0} files, at most {MAX_FILES} are allowed")]
    TooMany(usize),
    #[error("a snapshot of {needed_bytes} bytes, but only {free_bytes} are free")]
    NoSpace { needed_bytes: u64, free_bytes: u64 },
}

fn file_error(name: &str) -> impl FnOnce(std::io::Error) -> CourierError {
    let name = name.to_owned();
    move |source| CourierError::File { name, source }
}

fn refused(name: &str, detail: &'static str) -> CourierError {
    CourierError::Refused { name: name.into(), detail }
}

/// The files of a copy, as its header lists them.
pub(crate) fn list(dir: &Path) -> Result<Vec<SnapshotFile>, DiskError> {
    let mut files = Vec::new();
    for item in std::fs::read_dir(dir).map_err(DiskError::io(dir))? {
        let item = item.map_err(DiskError::io(dir))?;
        let metadata = item.metadata().map_err(DiskError::io(dir))?;
        if metadata.is_file() && item.file_name() != "LOCK" {
            let name = item.file_name().to_string_lossy().into_owned();
            files.push(SnapshotFile { name, length_bytes: metadata.len() });
        }
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

pub(crate) async fn send(writer: &mut Writer, dir: &Path, files: &[SnapshotFile]) -> Result<(), CourierError> {
    for file in files {
        send_file(writer, dir, file).await?;
    }
    Ok(())
}

async fn send_file(writer: &mut Writer, dir: &Path, file: &SnapshotFile) -> Result<(), CourierError> {
    let mut source = File::open(dir.join(&file.name)).await.map_err(file_error(&file.name))?;
    let mut digest = Context::new(&SHA256);
    let mut left_bytes = file.length_bytes;
    let mut chunk = vec![0; CHUNK_BYTES];
    while left_bytes > 0 {
        let size = chunk.len().min(usize::try_from(left_bytes).unwrap_or(CHUNK_BYTES));
        source.read_exact(&mut chunk[..size]).await.map_err(file_error(&file.name))?;
        digest.update(&chunk[..size]);
        within(CHUNK_TIMEOUT, frame::write(writer, &chunk[..size])).await?;
        left_bytes -= size as u64;
    }
    Ok(within(CHUNK_TIMEOUT, frame::write(writer, digest.finish().as_ref())).await?)
}

/// Receives the files that `header` announces and checks that they are a state of this cluster.
pub(crate) async fn receive(
    reader: &mut Reader,
    header: &SnapshotHeader,
    machine: &Machine,
    free_bytes: u64,
) -> Result<SnapshotDir, CourierError> {
    check(header, free_bytes)?;
    let staging = Staging::new(machine.root())?;
    for file in &header.files {
        receive_file(reader, staging.path(), file).await?;
    }
    let (cluster, held) = (machine.cluster().to_owned(), machine.held().clone());
    let verified = tokio::task::spawn_blocking(move || SnapshotDir::verify(staging, &cluster, &held)).await;
    Ok(verified.map_err(|e| DiskError::damaged(machine.root(), e))??)
}

fn check(header: &SnapshotHeader, free_bytes: u64) -> Result<(), CourierError> {
    if header.files.len() > MAX_FILES {
        return Err(CourierError::TooMany(header.files.len()));
    }
    if let Some(file) = header.files.iter().find(|file| !is_plain(&file.name)) {
        return Err(refused(&file.name, "not a plain name"));
    }
    let needed_bytes = header.files.iter().fold(0_u64, |sum, file| sum.saturating_add(file.length_bytes));
    match needed_bytes < free_bytes {
        true => Ok(()),
        false => Err(CourierError::NoSpace { needed_bytes, free_bytes }),
    }
}

fn is_plain(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    (1..=MAX_NAME_BYTES).contains(&name.len()) && name.chars().all(plain) && !name.starts_with('.')
}

async fn receive_file(reader: &mut Reader, dir: &Path, file: &SnapshotFile) -> Result<(), CourierError> {
    let mut target = File::create_new(dir.join(&file.name)).await.map_err(file_error(&file.name))?;
    let mut digest = Context::new(&SHA256);
    let mut left_bytes = file.length_bytes;
    while left_bytes > 0 {
        let chunk = next_frame(reader, &file.name).await?;
        if chunk.is_empty() || chunk.len() as u64 > left_bytes {
            return Err(refused(&file.name, "a chunk of the wrong size"));
        }
        digest.update(&chunk);
        target.write_all(&chunk).await.map_err(file_error(&file.name))?;
        left_bytes -= chunk.len() as u64;
    }
    target.flush().await.map_err(file_error(&file.name))?;
    match next_frame(reader, &file.name).await? == digest.finish().as_ref() {
        true => Ok(()),
        false => Err(refused(&file.name, "the digest is wrong")),
    }
}

async fn next_frame(reader: &mut Reader, name: &str) -> Result<Vec<u8>, CourierError> {
    let chunk = within(CHUNK_TIMEOUT, frame::read(reader, CHUNK_BYTES)).await?;
    chunk.ok_or_else(|| refused(name, "the stream ended in the middle"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_the_directory_are_refused() {
        for name in ["", ".", "..", "../x", "a/b", "/etc/passwd", ".hidden", "a\0b", "ä", &"x".repeat(65)] {
            assert!(!is_plain(name), "{name:?}");
        }
        assert!(is_plain("000123.sst") && is_plain("MANIFEST-000004") && is_plain("CURRENT"));
    }
}
