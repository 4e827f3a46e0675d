//! Reading a backup: to see that it is whole, or to make a store of it.

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use flotilla_api::Key;

use super::{BackupError, BackupHeader, BackupInfo, DIGEST_BYTES, MAGIC, Piece};
use crate::codec::{self, CodecError, MAX_ENVELOPE_BYTES, VoteForm};
use crate::disk::{Disk, DiskError, StoreMeta};
use crate::epoch::REVISION_JUMP;
use crate::limits;
use crate::log;
use crate::snapshot::Places;
use crate::state::{Record, State};
use crate::types::NodeId;

const READ_BUFFER_BYTES: usize = 256 * 1024;

/// Reads a backup to its end.
///
/// # Errors
/// If it is not one, not whole, or of a newer format.
pub fn verify(file: &Path) -> Result<BackupInfo, BackupError> {
    let mut frames = Frames::open(file)?;
    while frames.next()?.is_some() {}
    frames.finish()
}

/// Makes the store of a new cluster epoch out of a backup, in a directory that does not exist yet, for a replica that is
/// its only one. `seen` is shown each object.
///
/// # Errors
/// If the backup cannot be used, or the directory not be written; nothing is left behind then.
pub fn restore(
    file: &Path,
    dir: &Path,
    id: NodeId,
    seen: &mut dyn FnMut(&Key, &Bytes),
) -> Result<BackupInfo, BackupError> {
    let frames = Frames::open(file)?;
    fs::create_dir(dir).map_err(DiskError::io(dir))?;
    let restored = restore_into(frames, dir, id, seen);
    if restored.is_err()
        && let Err(error) = fs::remove_dir_all(dir)
    {
        tracing::warn!(path = %dir.display(), %error, "cannot remove what could not be restored");
    }
    restored
}

fn restore_into(
    mut frames: Frames,
    dir: &Path,
    id: NodeId,
    seen: &mut dyn FnMut(&Key, &Bytes),
) -> Result<BackupInfo, BackupError> {
    let disk = Disk::default();
    let mut places = Places::find(dir, &disk)?;
    let path = frames.path.clone();
    let BackupHeader { cluster, epoch, revision, applied, now_ms, .. } = frames.header.clone();
    let state = State::open(&places.state, &cluster, &disk)?;
    while let Some(records) = frames.next()? {
        state.fill(&records)?;
        records.iter().for_each(|record| seen(&record.key, &record.value));
    }
    let info = frames.finish()?;
    // A file may be whole and still say what no store wrote.
    let none = || BackupError::Damaged { path: path.clone(), detail: "its epoch or term is none".into() };
    let epoch = epoch.next().ok_or_else(none)?;
    let term = applied.term.checked_add(1).ok_or_else(none)?;
    state.begin_epoch(epoch, applied, id, revision.saturating_add(REVISION_JUMP), now_ms)?;
    let meta = StoreMeta { epoch, ..StoreMeta::new(&cluster, Some(id)) };
    let vote = VoteForm { term, node: id, committed: false };
    log::begin(&places.log, &meta, applied, vote, &disk)?;
    places.keep(dir, &disk)?;
    Ok(BackupInfo { epoch, ..info })
}

/// A backup's bytes from whoever has them, up to its digest or to what is wrong with it.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(input: &[u8]) {
    let read = || {
        let mut frames = Frames::of(Path::new("backup"), Box::new(io::Cursor::new(input.to_vec())))?;
        while let Some(records) = frames.next()? {
            for record in &records {
                assert!(record.mod_revision <= frames.header.revision && record.value.len() <= limits::MAX_VALUE_BYTES);
            }
        }
        frames.finish()
    };
    if let Ok(info) = read() {
        assert_eq!(info.size_bytes, input.len() as u64, "a whole backup is all of the file");
    }
}

/// The pieces of a backup file, in order.
struct Frames {
    path: PathBuf,
    source: Box<dyn Read>,
    digest: Context,
    read_bytes: u64,
    header: BackupHeader,
    objects: u64,
    last: Option<Key>,
    ended: bool,
}

impl Frames {
    fn open(path: &Path) -> Result<Self, BackupError> {
        let file = File::open(path).map_err(|source| BackupError::Io { path: path.to_owned(), source })?;
        Self::of(path, Box::new(BufReader::with_capacity(READ_BUFFER_BYTES, file)))
    }

    fn of(path: &Path, source: Box<dyn Read>) -> Result<Self, BackupError> {
        let mut frames = Self {
            path: path.to_owned(),
            source,
            digest: Context::new(&SHA256),
            read_bytes: 0,
            header: BackupHeader::default(),
            objects: 0,
            last: None,
            ended: false,
        };
        let mut magic = [0; MAGIC.len()];
        match frames.fill(&mut magic) {
            Ok(()) if &magic == MAGIC => {}
            Err(error @ BackupError::Io { .. }) => return Err(error),
            _ => return Err(BackupError::Foreign { path: path.to_owned() }),
        }
        match frames.piece()? {
            Piece::Header(header) => frames.header = header,
            _ => return Err(frames.damaged("it does not begin with a header")),
        }
        Ok(frames)
    }

    /// The next objects; `None` after the last ones.
    fn next(&mut self) -> Result<Option<Vec<Record>>, BackupError> {
        match self.piece()? {
            Piece::Objects(records) => {
                records.iter().try_for_each(|record| self.check(record))?;
                Ok(Some(records))
            }
            Piece::End(objects) if objects == self.objects => {
                self.ended = true;
                Ok(None)
            }
            Piece::End(objects) => Err(self.damaged(format!("{} objects of {objects}", self.objects))),
            Piece::Header(_) => Err(self.damaged("a second header")),
        }
    }

    fn check(&mut self, record: &Record) -> Result<(), BackupError> {
        let revision = self.header.revision;
        let in_order = self.last.as_ref().is_none_or(|last| *last < record.key);
        let in_time = record.create_revision <= record.mod_revision && record.mod_revision <= revision;
        let whole = limits::check_key(&record.key).is_ok() && record.value.len() <= limits::MAX_VALUE_BYTES;
        if !(in_order && in_time && whole) {
            return Err(self.damaged(format!("object {} cannot be", self.objects)));
        }
        self.objects += 1;
        self.last = Some(record.key.clone());
        Ok(())
    }

    /// Compares the digest, after which there must be nothing.
    fn finish(mut self) -> Result<BackupInfo, BackupError> {
        debug_assert!(self.ended);
        let wanted = self.digest.clone().finish();
        let mut found = [0; DIGEST_BYTES];
        self.fill(&mut found)?;
        if wanted.as_ref() != found {
            return Err(self.damaged("its checksum is wrong"));
        }
        let more = self.source.read(&mut [0]).map_err(|error| self.io(error))?;
        if more > 0 {
            return Err(self.damaged("something follows its end"));
        }
        let BackupHeader { cluster, epoch, revision, taken_ms, .. } = self.header;
        Ok(BackupInfo { cluster, epoch, revision, taken_ms, objects: self.objects, size_bytes: self.read_bytes })
    }

    fn piece(&mut self) -> Result<Piece, BackupError> {
        let mut length = [0; 4];
        self.fill(&mut length)?;
        let length = u32::from_be_bytes(length) as usize;
        if length > MAX_ENVELOPE_BYTES {
            return Err(self.damaged(format!("a frame of {length} bytes")));
        }
        // Memory is taken as the bytes come, not as they are promised.
        let mut body = Vec::new();
        let read = (&mut self.source).take(length as u64).read_to_end(&mut body);
        let read = read.map_err(|error| self.io(error))?;
        self.read_bytes += read as u64;
        if read < length {
            return Err(self.cut_off());
        }
        self.digest.update(&body);
        codec::decode(&body).map_err(|error| match error {
            CodecError::Version(_) => BackupError::Newer { path: self.path.clone(), detail: error.to_string() },
            error => self.damaged(error),
        })
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), BackupError> {
        match self.source.read_exact(bytes) {
            Ok(()) => {
                self.read_bytes += bytes.len() as u64;
                self.digest.update(bytes);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(self.cut_off()),
            Err(error) => Err(self.io(error)),
        }
    }

    fn io(&self, source: io::Error) -> BackupError {
        BackupError::Io { path: self.path.clone(), source }
    }

    fn cut_off(&self) -> BackupError {
        BackupError::CutOff { path: self.path.clone(), read_bytes: self.read_bytes }
    }

    fn damaged(&self, detail: impl ToString) -> BackupError {
        BackupError::Damaged { path: self.path.clone(), detail: detail.to_string() }
    }
}
