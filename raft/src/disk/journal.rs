//! The write-ahead log of a database that is durable with each write.
//!
//! A write that makes a file longer has to wait for the file system's own journal besides the data. So the files of this
//! one get their length once, when they are made, and are written over again and again: a sync waits for the data alone.
//!
//! A batch stands in a row of sectors, each with its checksum, the batch's number, and which part of it this is. Numbers go up
//! by one in a life, which is the time between two openings; the database notes which life is the present one, and from
//! which number on it has to be told what it lacks. That one is always the first of a file.
//!
//! Invariant: a batch is written only after the one before it is on disk. So one of which sectors are missing was never
//! acknowledged if it is the last one, and is damage if there is a later one.
//! Invariant: a disk writes a sector whole or not at all, and what stood there before was whole too. So a sector that is not
//! is damage, also at the end.
//! Invariant: a file is written over only after the database itself has everything in it on disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// What a file is made with; a batch that is longer makes it longer.
const FILE_BYTES: u64 = 4 << 20;
/// Beyond this many files the database has to be waited for.
const MAX_FILES: usize = 4;
const SECTOR_BYTES: usize = 512;
const HEADER_BYTES: usize = 28;
/// What a sector holds of a batch.
const PART_BYTES: usize = SECTOR_BYTES - HEADER_BYTES;

/// Where a journal goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark {
    pub life: u64,
    /// The first number that the database lacks.
    pub from: u64,
}

impl Mark {
    pub fn encode(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.life.to_be_bytes());
        bytes[8..].copy_from_slice(&self.from.to_be_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (life, from) = bytes.split_first_chunk()?;
        Some(Self { life: u64::from_be_bytes(*life), from: u64::from_be_bytes(from.try_into().ok()?) })
    }
}

/// The journal of a life that has begun.
pub(super) struct Journal {
    dir: PathBuf,
    life: u64,
    /// The number of the next batch.
    next: u64,
    files: Vec<Slot>,
    /// Which of the files is written.
    current: usize,
    offset_bytes: u64,
    buffer: Vec<u8>,
}

struct Slot {
    file: File,
    length_bytes: u64,
    /// Greater than the number of every batch in it that is of this life.
    end: u64,
}

impl Journal {
    /// Begins a life on the files that there are, which the database no longer needs; makes one if there is none.
    pub fn begin(dir: &Path, life: u64) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        sync_dir(dir.parent().unwrap_or(dir))?;
        let mut files = Vec::new();
        for path in paths(dir)? {
            let file = OpenOptions::new().write(true).open(path)?;
            let length_bytes = file.metadata()?.len();
            // One that was not made whole is made again when it is needed.
            if length_bytes < FILE_BYTES {
                break;
            }
            // What a process that was killed wrote may still be on its way: it must not meet what is written next.
            file.sync_data()?;
            files.push(Slot { file, length_bytes, end: 0 });
        }
        if files.is_empty() {
            files.push(make(dir, 0)?);
        }
        Ok(Self { dir: dir.to_owned(), life, next: 0, files, current: 0, offset_bytes: 0, buffer: Vec::new() })
    }

    /// From here on the database lacks everything that is appended.
    pub fn mark(&self) -> Mark {
        Mark { life: self.life, from: self.next }
    }

    /// Whether a batch goes into the present file. One that is longer than a file goes into an empty one.
    pub fn has_room(&self, batch: &[u8]) -> bool {
        self.offset_bytes == 0
            || self.offset_bytes + (sectors(batch.len()) * SECTOR_BYTES) as u64 <= self.files[self.current].length_bytes
    }

    /// Goes on in another file, if there is one of which the database, as `persisted` says, needs nothing any more.
    pub fn turn(&mut self, persisted: Mark) -> io::Result<bool> {
        let done = |slot: &Slot| persisted.life == self.life && slot.end <= persisted.from;
        let free = self.files.iter().enumerate().find(|(number, slot)| *number != self.current && done(slot));
        let next = match free {
            Some((number, _)) => number,
            None if self.files.len() < MAX_FILES => match make(&self.dir, self.files.len()) {
                Ok(slot) => {
                    self.files.push(slot);
                    self.files.len() - 1
                }
                // On a full disk there are those that the database will have done with.
                Err(error) => {
                    tracing::warn!(%error, "no other file for the log's journal");
                    return Ok(false);
                }
            },
            None => return Ok(false),
        };
        (self.current, self.offset_bytes) = (next, 0);
        Ok(true)
    }

    /// Puts a batch on disk.
    pub fn append(&mut self, batch: &[u8]) -> io::Result<()> {
        self.buffer.clear();
        encode(&mut self.buffer, self.life, self.next, batch)?;
        let slot = &mut self.files[self.current];
        slot.file.write_all_at(&self.buffer, self.offset_bytes)?;
        slot.file.sync_data()?;
        self.offset_bytes += self.buffer.len() as u64;
        self.next += 1;
        slot.end = self.next;
        slot.length_bytes = slot.length_bytes.max(self.offset_bytes);
        Ok(())
    }
}

/// A file whose length and place on the disk do not change when it is written over.
fn make(dir: &Path, number: usize) -> io::Result<Slot> {
    let path = dir.join(number.to_string());
    let file = File::create(&path)?;
    fill(&file).and_then(|()| sync_dir(dir)).inspect_err(|_| drop(fs::remove_file(&path)))?;
    Ok(Slot { file, length_bytes: FILE_BYTES, end: 0 })
}

fn fill(mut file: &File) -> io::Result<()> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    for _ in 0..FILE_BYTES / ZEROS.len() as u64 {
        file.write_all(&ZEROS)?;
    }
    file.sync_all()
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// The files of a journal, in the order of their numbers; none if there is no journal.
fn paths(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let paths = (0..MAX_FILES).map(|number| dir.join(number.to_string()));
    let mut there = Vec::new();
    for path in paths {
        match path.try_exists()? {
            true => there.push(path),
            false => break,
        }
    }
    Ok(there)
}

/// The batches that the database lacks, in order; why not, if something is damaged.
///
/// # Errors
/// If a file cannot be read.
pub(super) fn read(dir: &Path, mark: Mark) -> io::Result<Result<Vec<Vec<u8>>, String>> {
    let files = paths(dir)?.into_iter().map(fs::read).collect::<io::Result<Vec<_>>>()?;
    if files.is_empty() {
        return Ok(Err(format!("there is no journal in {}", dir.display())));
    }
    let files: Vec<&[u8]> = files.iter().map(Vec::as_slice).collect();
    Ok(missing(&files, mark))
}

/// The batches from the mark on.
pub(super) fn missing(files: &[&[u8]], mark: Mark) -> Result<Vec<Vec<u8>>, String> {
    let mut live = Vec::new();
    for file in files {
        match sector(file, 0) {
            Sector::Broken => return Err(broken(mark.from)),
            Sector::Part(part) if part.life == mark.life && part.number >= mark.from => live.push((part.number, *file)),
            Sector::Blank | Sector::Part(_) => {}
        }
    }
    live.sort_by_key(|(first, _)| *first);
    let mut found = Vec::new();
    let mut next = mark.from;
    let mut end = Ok(());
    for (first, file) in live {
        if first != next {
            return Err(lacking(next, first));
        }
        let mut at = 0;
        end = loop {
            match batch(file, at, mark.life, next) {
                Ok(Some(batch)) => {
                    at += sectors(batch.len());
                    next += 1;
                    found.push(batch);
                }
                Ok(None) => break Ok(()),
                Err(Damage) => break Err(broken(next)),
            }
        };
    }
    // What is behind the end of a file that another one goes on from is left over from before.
    end?;
    let all = files.iter().flat_map(|file| (0..file.len() / SECTOR_BYTES).map(|at| sector(file, at)));
    let later = all.filter_map(|sector| match sector {
        Sector::Part(part) if part.life == mark.life && part.number > next => Some(part.number),
        _ => None,
    });
    later.min().map_or(Ok(found), |number| Err(lacking(next, number)))
}

fn lacking(number: u64, found: u64) -> String {
    format!("the journal has batch {found}, and of {number} something is missing")
}

fn broken(number: u64) -> String {
    format!("a sector of the journal is damaged where batch {number} is or would be")
}

struct Damage;

/// The batch of this number that begins at a sector; `None` if it was not written, or not whole.
fn batch(file: &[u8], at: usize, life: u64, number: u64) -> Result<Option<Vec<u8>>, Damage> {
    let first = match sector(file, at) {
        Sector::Broken => return Err(Damage),
        Sector::Part(first) if (first.life, first.number, first.index) == (life, number, 0) => first,
        Sector::Blank | Sector::Part(_) => return Ok(None),
    };
    let mut batch = Vec::new();
    for index in 0..sectors(first.batch_bytes) {
        match sector(file, at + index) {
            Sector::Broken => return Err(Damage),
            Sector::Part(part)
                if (part.life, part.number) == (life, number)
                    && (part.index, part.batch_bytes) == (index, first.batch_bytes) =>
            {
                batch.extend(part.bytes);
            }
            Sector::Blank | Sector::Part(_) => return Ok(None),
        }
    }
    batch.truncate(first.batch_bytes);
    Ok(Some(batch))
}

/// What a sector holds.
#[derive(Clone, Copy)]
struct Part<'a> {
    life: u64,
    number: u64,
    /// Which part of its batch it is.
    index: usize,
    /// How long the batch is.
    batch_bytes: usize,
    bytes: &'a [u8],
}

enum Sector<'a> {
    /// It was never written, or the file has no more.
    Blank,
    Part(Part<'a>),
    /// It does not hold what was written.
    Broken,
}

/// How many sectors a batch takes.
fn sectors(batch_bytes: usize) -> usize {
    batch_bytes.div_ceil(PART_BYTES).max(1)
}

fn sector(file: &[u8], at: usize) -> Sector<'_> {
    let Some(sector) = file.chunks_exact(SECTOR_BYTES).nth(at) else { return Sector::Blank };
    let word = |at: usize| u32::from_be_bytes(*sector[at..].first_chunk().unwrap_or(&[0; 4]));
    let long = |at: usize| u64::from_be_bytes(*sector[at..].first_chunk().unwrap_or(&[0; 8]));
    if word(0) != crc32fast::hash(&sector[4..]) {
        return if sector.iter().all(|byte| *byte == 0) { Sector::Blank } else { Sector::Broken };
    }
    Sector::Part(Part {
        life: long(4),
        number: long(12),
        index: word(20) as usize,
        batch_bytes: word(24) as usize,
        bytes: &sector[HEADER_BYTES..],
    })
}

fn encode(buffer: &mut Vec<u8>, life: u64, number: u64, batch: &[u8]) -> io::Result<()> {
    let length = u32::try_from(batch.len()).map_err(io::Error::other)?;
    for index in 0..sectors(batch.len()) {
        let part = &batch[index * PART_BYTES..batch.len().min((index + 1) * PART_BYTES)];
        let start = buffer.len();
        buffer.extend([0; 4]);
        buffer.extend(life.to_be_bytes());
        buffer.extend(number.to_be_bytes());
        buffer.extend((index as u32).to_be_bytes());
        buffer.extend(length.to_be_bytes());
        buffer.extend(part);
        buffer.resize(start + SECTOR_BYTES, 0);
        let sum = crc32fast::hash(&buffer[start + 4..]);
        buffer[start..start + 4].copy_from_slice(&sum.to_be_bytes());
    }
    Ok(())
}

/// Two files of any content: what is found was there.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(input: &[u8]) {
    let (first, second) = input.split_at(input.len() / 2);
    for from in 0..2 {
        let found = missing(&[first, second], Mark { life: 1, from }).unwrap_or_default();
        assert!(found.iter().map(Vec::len).sum::<usize>() <= input.len());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIFE: u64 = 7;

    fn file(batches: &[(u64, u64, &[u8])]) -> Vec<u8> {
        let mut file = Vec::new();
        for (life, number, batch) in batches {
            encode(&mut file, *life, *number, batch).unwrap();
        }
        file.resize(file.len() + 8 * SECTOR_BYTES, 0);
        file
    }

    fn found(files: &[Vec<u8>], from: u64) -> Result<Vec<Vec<u8>>, String> {
        let files: Vec<&[u8]> = files.iter().map(Vec::as_slice).collect();
        missing(&files, Mark { life: LIFE, from })
    }

    #[test]
    fn batches_are_found_in_order_across_files() {
        let files = [
            file(&[(LIFE, 4, b"e"), (LIFE, 5, b"f"), (LIFE, 1, b"old"), (6, 6, b"of an earlier life")]),
            file(&[(LIFE, 2, b"c"), (LIFE, 3, b"")]),
            file(&[(6, 4, b"of an earlier life")]),
            file(&[]),
        ];
        assert_eq!(found(&files, 2), Ok(vec![b"c".to_vec(), vec![], b"e".to_vec(), b"f".to_vec()]));
        assert_eq!(found(&files, 4), Ok(vec![b"e".to_vec(), b"f".to_vec()]));
        assert_eq!(found(&files, 6), Ok(vec![]));
        assert_eq!(found(&files[2..], 0), Ok(vec![]));
        assert!(found(&files[..1], 3).unwrap_err().contains("of 3 something is missing"));
    }

    #[test]
    fn an_end_of_which_sectors_are_missing_was_never_acknowledged() {
        let (first, second) = (vec![1; 2 * PART_BYTES], vec![2; 3 * PART_BYTES]);
        let whole = file(&[(LIFE, 0, &first), (LIFE, 1, &second)]);
        let before = file(&[(6, 0, &[3; 5 * PART_BYTES])]);
        for missing in 1..8_usize {
            let mut torn = whole.clone();
            for part in (0..3).filter(|part| missing & (1 << part) != 0) {
                let at = (2 + part) * SECTOR_BYTES;
                torn[at..at + SECTOR_BYTES].copy_from_slice(&before[at..at + SECTOR_BYTES]);
            }
            assert_eq!(found(&[torn], 0), Ok(vec![first.clone()]), "{missing:b}");
        }
    }

    #[test]
    fn a_flipped_bit_is_damage_wherever_it_was_acknowledged() {
        let whole = [file(&[(LIFE, 0, b"a"), (LIFE, 1, b"b")]), file(&[(LIFE, 2, &[9; 1000])])];
        for (number, sectors) in [(0, 0..2), (1, 0..3)] {
            for bit in (0..sectors.end * SECTOR_BYTES * 8).step_by(7) {
                let mut damaged = whole.clone();
                damaged[number][bit / 8] ^= 1 << (bit % 8);
                assert!(found(&damaged, 0).is_err(), "file {number}, bit {bit}");
            }
        }
        // Nobody misses what is in the database, nor what is behind the end.
        let mut left_over = whole.clone();
        left_over[0][SECTOR_BYTES] ^= 1;
        left_over[1][5 * SECTOR_BYTES] ^= 1;
        assert_eq!(found(&left_over, 2).unwrap().len(), 1);
        assert!(found(&left_over, 0).is_err());
    }

    #[test]
    fn what_is_missing_before_something_later_was_acknowledged() {
        let mut lost = file(&[(LIFE, 0, b"a"), (LIFE, 1, b"b"), (LIFE, 2, b"c")]);
        lost[SECTOR_BYTES..2 * SECTOR_BYTES].fill(0);
        assert_eq!(found(&[lost], 0), Err(lacking(1, 2)));
    }

    #[test]
    fn a_file_is_written_over_when_the_database_needs_nothing_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::begin(dir.path(), LIFE).unwrap();
        let batch = vec![1; FILE_BYTES as usize / 2];
        let mut persisted = Mark { life: LIFE, from: 0 };
        for number in 0..2 * MAX_FILES as u64 {
            if !journal.has_room(&batch) {
                while !journal.turn(persisted).unwrap() {
                    persisted.from += 1;
                }
            }
            journal.append(&batch).unwrap();
            assert_eq!(journal.mark(), Mark { life: LIFE, from: number + 1 });
        }
        assert_eq!((paths(dir.path()).unwrap().len(), persisted.from), (MAX_FILES, MAX_FILES as u64));
        assert_eq!(read(dir.path(), persisted).unwrap().unwrap().len(), MAX_FILES);

        // A long batch makes a file longer, and what an earlier life left is nothing of the next one's.
        let mut journal = Journal::begin(dir.path(), LIFE + 1).unwrap();
        journal.append(&vec![2; FILE_BYTES as usize + 1]).unwrap();
        assert!(!journal.has_room(b"") && !journal.turn(persisted).unwrap());
        assert!(journal.turn(Mark { life: LIFE + 1, from: 0 }).unwrap());
        journal.append(b"after it").unwrap();
        let found = read(dir.path(), Mark { life: LIFE + 1, from: 0 }).unwrap().unwrap();
        let lengths: Vec<usize> = found.iter().map(Vec::len).collect();
        assert_eq!(lengths, [FILE_BYTES as usize + 1, 8]);
    }

    proptest! {
        /// Whichever sectors of the last batch reached the disk before the power went, what was acknowledged is found.
        #[test]
        fn every_acknowledged_batch_survives_any_end(
            batches in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..2000), 1..12),
            last in proptest::collection::vec(any::<u8>(), 0..4096),
            reached in any::<u16>(),
        ) {
            let numbered: Vec<(u64, u64, &[u8])> =
                (0..).zip(&batches).map(|(number, batch)| (LIFE, number, batch.as_slice())).collect();
            let mut written = file(&numbered);
            let mut end = Vec::new();
            encode(&mut end, LIFE, batches.len() as u64, &last).unwrap();
            let start = written.len() - 8 * SECTOR_BYTES;
            written.resize(start + end.len() + SECTOR_BYTES, 0);
            for (part, sector) in end.chunks(SECTOR_BYTES).enumerate().filter(|(part, _)| reached & (1 << part) != 0) {
                written[start + part * SECTOR_BYTES..][..SECTOR_BYTES].copy_from_slice(sector);
            }
            let found = found(&[written], 0).unwrap();
            prop_assert!(found.len() >= batches.len());
            prop_assert_eq!(&found[..batches.len()], &batches[..]);
        }
    }
}
