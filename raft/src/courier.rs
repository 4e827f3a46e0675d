//! A snapshot's way over a stream: its files in chunks, each file with its digest.
//!
//! Invariant: file names come from the other side and never leave the staging directory.
//! Invariant: what was received is opened and checked only after every digest was right.

use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};

use crate::disk::DiskError;
use crate::frame::{self, FrameError, within};
use crate::machine::Machine;
use crate::runtime;
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
pub(crate) fn list(copy: &SnapshotDir) -> Result<Vec<SnapshotFile>, DiskError> {
    let items = copy.disk().list(copy.path()).map_err(DiskError::io(copy.path()))?;
    let wanted = items.into_iter().filter(|item| !item.is_dir && item.name != "LOCK");
    let mut files: Vec<_> = wanted.map(|i| SnapshotFile { name: i.name, length_bytes: i.length_bytes }).collect();
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

pub(crate) async fn send(writer: &mut Writer, copy: &SnapshotDir, files: &[SnapshotFile]) -> Result<(), CourierError> {
    for file in files {
        send_file(writer, copy, file).await?;
    }
    Ok(())
}

async fn send_file(writer: &mut Writer, copy: &SnapshotDir, file: &SnapshotFile) -> Result<(), CourierError> {
    let mut source = copy.disk().reader(&copy.path().join(&file.name)).map_err(file_error(&file.name))?;
    let mut digest = Context::new(&SHA256);
    let mut left_bytes = file.length_bytes;
    let mut chunk = vec![0; CHUNK_BYTES];
    while left_bytes > 0 {
        let size = chunk.len().min(usize::try_from(left_bytes).unwrap_or(CHUNK_BYTES));
        let read = runtime::blocking(move || {
            let read = source.read_exact(&mut chunk[..size]);
            read.map(|()| (source, chunk))
        });
        (source, chunk) = read.await.flatten().map_err(file_error(&file.name))?;
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
    let staging = Staging::new(machine.root(), machine.disk())?;
    for file in &header.files {
        receive_file(reader, &staging, file).await?;
    }
    let (cluster, epoch, understands) = (machine.cluster().to_owned(), machine.state().epoch(), machine.understands());
    let verified = runtime::blocking(move || SnapshotDir::verify(staging, &cluster, epoch, understands)).await;
    Ok(verified.map_err(|e| DiskError::damaged(machine.root(), e))??)
}

pub(crate) fn check(header: &SnapshotHeader, free_bytes: u64) -> Result<(), CourierError> {
    if header.files.len() > MAX_FILES {
        return Err(CourierError::TooMany(header.files.len()));
    }
    if let Some(file) = header.files.iter().find(|file| !is_plain(&file.name)) {
        return Err(refused(&file.name, "not a plain name"));
    }
    if let Some(pair) = header.files.windows(2).find(|pair| pair[0].name >= pair[1].name) {
        return Err(refused(&pair[1].name, "out of order"));
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

async fn receive_file(reader: &mut Reader, staging: &Staging, file: &SnapshotFile) -> Result<(), CourierError> {
    let path = staging.path().join(&file.name);
    let mut target = staging.disk().writer(&path).map_err(file_error(&file.name))?;
    let mut digest = Context::new(&SHA256);
    let mut left_bytes = file.length_bytes;
    while left_bytes > 0 {
        let chunk = next_frame(reader, &file.name).await?;
        if chunk.is_empty() || chunk.len() as u64 > left_bytes {
            return Err(refused(&file.name, "a chunk of the wrong size"));
        }
        digest.update(&chunk);
        left_bytes -= chunk.len() as u64;
        let written = runtime::blocking(move || target.write_all(&chunk).map(|()| target));
        target = written.await.flatten().map_err(file_error(&file.name))?;
    }
    target.flush().map_err(file_error(&file.name))?;
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
