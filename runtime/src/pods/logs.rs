//! Reading a container's log back: across rotations, from the end, since a time, and on as it grows.
//!
//! Invariant: while following, each line is given once and in order, whatever is rotated meanwhile, unless rotation
//! outruns the reader by more than the files that are kept.
//! Invariant: at most `BATCH_BYTES` are read ahead.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, Stream};

use super::{LogOptions, LogStreams, PodsError};
use crate::shim::output::{MAX_PIECE_BYTES, numbered};

/// How often a log that is followed is looked at.
const POLL: Duration = Duration::from_millis(100);
const BATCH_BYTES: usize = 256 * 1024;
/// The longest line of a file: a piece and its prefix. What is longer was not written by a shim.
const MAX_LINE_BYTES: usize = MAX_PIECE_BYTES + 128;
/// Rotated files looked for.
const MAX_FILES: u32 = 64;

/// Says whether the container has ended, so that nothing more will be written.
pub type Ended = Box<dyn Fn() -> bool + Send + Sync>;

/// Gives the output of one container, piece by piece.
pub struct LogReader {
    cursor: Option<Cursor>,
    ready: VecDeque<Bytes>,
    options: LogOptions,
    ended: Ended,
    /// What may still be given.
    left_bytes: u64,
}

/// A log whose container is gone; it is not followed.
pub fn read(path: &Path, options: LogOptions) -> LogReader {
    LogReader::new(path, options, Box::new(|| true))
}

impl LogReader {
    pub fn new(path: &Path, options: LogOptions, ended: Ended) -> Self {
        let left_bytes = options.limit_bytes.unwrap_or(u64::MAX);
        let cursor = Cursor { path: path.into(), file: None, started: false, at_line_start: true, partial: Vec::new() };
        Self { cursor: Some(cursor), ready: VecDeque::new(), options, ended, left_bytes }
    }

    /// The next piece of output, at most a line long; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, PodsError> {
        loop {
            if self.left_bytes == 0 {
                return Ok(None);
            }
            if let Some(mut piece) = self.ready.pop_front() {
                piece.truncate(usize::try_from(self.left_bytes).unwrap_or(usize::MAX));
                self.left_bytes -= piece.len() as u64;
                return Ok(Some(piece));
            }
            // Asked before reading: what was written before the end is then surely read.
            let ended = !self.options.follow || (self.ended)();
            if self.fill().await? {
                continue;
            }
            if ended {
                return Ok(None);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// The same as a stream.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, PodsError>> + Send {
        stream::unfold(Some(self), |reader| async move {
            let mut reader = reader?;
            match reader.next().await {
                Ok(Some(piece)) => Some((Ok(piece), Some(reader))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    /// `false` when there is nothing new.
    async fn fill(&mut self) -> Result<bool, PodsError> {
        let Some(mut cursor) = self.cursor.take() else { return Ok(false) };
        let options = self.options.clone();
        let path = cursor.path.clone();
        let read = tokio::task::spawn_blocking(move || cursor.batch(&options).map(|batch| (cursor, batch))).await;
        let (cursor, (moved, batch)) = read
            .map_err(|error| PodsError::io(&path, io::Error::other(error)))?
            .map_err(|source| PodsError::io(&path, source))?;
        self.cursor = Some(cursor);
        self.ready = batch.into();
        Ok(moved)
    }
}

/// Where in which file reading goes on.
struct Cursor {
    path: PathBuf,
    file: Option<BufReader<File>>,
    started: bool,
    /// The last piece given ended its line.
    at_line_start: bool,
    /// A line of the file of which the end is not written yet.
    partial: Vec<u8>,
}

impl Cursor {
    /// Reads some: whether anything was read, and what of it is wanted.
    fn batch(&mut self, options: &LogOptions) -> io::Result<(bool, Vec<Bytes>)> {
        if !self.started && !self.start(options.tail_lines)? {
            return Ok((false, Vec::new()));
        }
        let (mut out, mut read_bytes) = (Vec::new(), 0);
        while read_bytes < BATCH_BYTES {
            match self.line()? {
                Some(line) => {
                    read_bytes += line.len();
                    out.extend(self.wanted(&line, options));
                }
                None if self.next_file()? => {}
                None => break,
            }
        }
        Ok((read_bytes > 0, out))
    }

    /// Finds the first line; `false` when there is no log yet.
    fn start(&mut self, tail_lines: Option<u64>) -> io::Result<bool> {
        let files = self.files()?;
        let Some(newest) = files.first() else { return Ok(false) };
        let mut at = (files.len() - 1, 0);
        if let Some(mut wanted) = tail_lines {
            at = (0, newest.metadata()?.len());
            for (index, file) in files.iter().enumerate() {
                let (start, lines) = tail(file, wanted)?;
                if lines > 0 {
                    at = (index, start);
                }
                wanted -= lines;
                if wanted == 0 {
                    break;
                }
            }
        }
        let mut file = files.into_iter().nth(at.0).ok_or(io::ErrorKind::NotFound)?;
        file.seek(SeekFrom::Start(at.1))?;
        self.file = Some(BufReader::new(file));
        self.started = true;
        Ok(true)
    }

    /// The files there are, from new to old.
    fn files(&self) -> io::Result<Vec<File>> {
        let mut files = Vec::new();
        for index in 0..MAX_FILES {
            let path = if index == 0 { self.path.clone() } else { numbered(&self.path, index) };
            match File::open(path) {
                Ok(file) => files.push(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound && index > 0 => break,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(files)
    }

    /// Moves from a file that was rotated away and read to its end on to the next newer one.
    fn next_file(&mut self) -> io::Result<bool> {
        let Some(current) = &self.file else { return Ok(false) };
        let here = identity(current.get_ref())?;
        let files = self.files()?;
        let mut newer = None;
        for file in &files {
            if identity(file)? == here {
                break;
            }
            newer = Some(file);
        }
        let Some(newer) = newer else { return Ok(false) };
        // It may have grown between its end and its rotation.
        if !current.buffer().is_empty() || self.has_more()? {
            return Ok(true);
        }
        self.file = Some(BufReader::new(newer.try_clone()?));
        self.partial.clear();
        Ok(true)
    }

    fn has_more(&mut self) -> io::Result<bool> {
        self.file.as_mut().map_or(Ok(false), |file| file.fill_buf().map(|bytes| !bytes.is_empty()))
    }

    /// The next whole line of the file, without its newline.
    fn line(&mut self) -> io::Result<Option<Vec<u8>>> {
        let Some(file) = &mut self.file else { return Ok(None) };
        loop {
            let bytes = file.fill_buf()?;
            if bytes.is_empty() {
                return Ok(None);
            }
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let taken = end.unwrap_or(bytes.len());
            let room = MAX_LINE_BYTES.saturating_sub(self.partial.len());
            self.partial.extend_from_slice(&bytes[..taken.min(room)]);
            file.consume(end.map_or(taken, |end| end + 1));
            if end.is_some() {
                return Ok(Some(std::mem::take(&mut self.partial)));
            }
        }
    }

    fn wanted(&mut self, line: &[u8], options: &LogOptions) -> Option<Bytes> {
        let (time, stream, whole, text) = parse(line)?;
        let wanted = match options.streams {
            LogStreams::Both => true,
            LogStreams::Stdout => stream == b"stdout",
            LogStreams::Stderr => stream == b"stderr",
        };
        if !wanted {
            return None;
        }
        if options.since_ms.is_some_and(|since_ms| !is_since(time, since_ms)) {
            return None;
        }
        let mut piece = Vec::with_capacity(text.len() + time.len() + 2);
        if options.timestamps && self.at_line_start {
            piece.extend_from_slice(time.as_bytes());
            piece.push(b' ');
        }
        piece.extend_from_slice(text);
        if whole {
            piece.push(b'\n');
        }
        self.at_line_start = whole;
        Some(piece.into())
    }
}

fn identity(file: &File) -> io::Result<(u64, u64)> {
    file.metadata().map(|meta| (meta.dev(), meta.ino()))
}

/// Splits `TIME STREAM TAG TEXT`; what is not of that form is not a shim's line.
fn parse(line: &[u8]) -> Option<(&str, &[u8], bool, &[u8])> {
    let mut fields = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(fields.next()?).ok()?;
    let stream = fields.next()?;
    let tag = fields.next()?;
    Some((time, stream, tag.first() == Some(&b'F'), fields.next()?))
}

fn is_since(time: &str, since_ms: u64) -> bool {
    time.parse::<jiff::Timestamp>().is_ok_and(|time| i128::from(time.as_millisecond()) >= i128::from(since_ms))
}

/// Where the last `wanted` lines of a file begin, and how many there are. A line in pieces counts once.
fn tail(file: &File, wanted: u64) -> io::Result<(u64, u64)> {
    if wanted == 0 {
        return Ok((file.metadata()?.len(), 0));
    }
    let mut reader = BufReader::new(file);
    reader.seek(SeekFrom::Start(0))?;
    let mut starts: VecDeque<u64> = VecDeque::new();
    let (mut offset, mut fresh, mut line) = (0_u64, true, Vec::new());
    loop {
        line.clear();
        let length = reader.read_until(b'\n', &mut line)?;
        if length == 0 {
            break;
        }
        if fresh {
            starts.push_back(offset);
            if starts.len() as u64 > wanted {
                starts.pop_front();
            }
        }
        fresh = parse(&line).is_none_or(|(_, _, whole, _)| whole);
        offset += length as u64;
    }
    Ok((starts.front().copied().unwrap_or(offset), starts.len() as u64))
}

#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(input: &[u8]) {
    for line in input.split_inclusive(|byte| *byte == b'\n') {
        if let Some((time, _, _, _)) = parse(line) {
            is_since(time, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use crate::shim::output::{LogFile, Splitter, Stream as Kind};

    const TIMES: [&str; 2] = ["2026-01-02T03:04:05.000000000Z", "2026-01-02T03:04:06.000000000Z"];

    fn write(path: &Path, max_bytes: u64, lines: std::ops::Range<usize>) {
        let mut log = LogFile::open(path, max_bytes, 10).unwrap();
        for n in lines {
            log.write(TIMES[n % 2], Kind::Stdout, true, format!("line {n}").as_bytes()).unwrap();
        }
    }

    async fn all(mut reader: LogReader) -> String {
        let mut text = Vec::new();
        while let Some(piece) = reader.next().await.unwrap() {
            text.extend_from_slice(&piece);
        }
        String::from_utf8(text).unwrap()
    }

    fn numbers(range: std::ops::Range<usize>) -> String {
        range.map(|n| format!("line {n}\n")).collect()
    }

    #[tokio::test]
    async fn rotated_files_read_as_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        write(&path, 150, 0..20);
        assert!(numbered(&path, 3).exists());
        assert_eq!(all(read(&path, LogOptions::default())).await, numbers(0..20));
        let last = LogOptions { tail_lines: Some(7), ..Default::default() };
        assert_eq!(all(read(&path, last)).await, numbers(13..20));
        let none = LogOptions { tail_lines: Some(0), ..Default::default() };
        assert_eq!(all(read(&path, none)).await, "");
        let more = LogOptions { tail_lines: Some(99), ..Default::default() };
        assert_eq!(all(read(&path, more)).await, numbers(0..20));
    }

    #[tokio::test]
    async fn times_filter_and_show() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        write(&path, 1 << 20, 0..2);
        let since_ms = Some(TIMES[1].parse::<jiff::Timestamp>().unwrap().as_millisecond() as u64);
        let options = LogOptions { since_ms, timestamps: true, ..Default::default() };
        assert_eq!(all(read(&path, options)).await, format!("{} line 1\n", TIMES[1]));
        let options = LogOptions { limit_bytes: Some(9), ..Default::default() };
        assert_eq!(all(read(&path, options)).await, "line 0\nli");
    }

    #[tokio::test]
    async fn pieces_become_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = LogFile::open(&path, 1 << 20, 2).unwrap();
        let mut splitter = Splitter::new(Kind::Stdout);
        let long = "x".repeat(3 * MAX_PIECE_BYTES);
        splitter.push("T", format!("{long}\nend\n").as_bytes(), &mut log).unwrap();
        let options = LogOptions { tail_lines: Some(2), timestamps: true, ..Default::default() };
        assert_eq!(all(read(&path, options)).await, format!("T {long}\nT end\n"));
    }

    #[tokio::test]
    async fn following_survives_rotation_and_ends_with_the_container() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let over = Arc::new(AtomicBool::new(false));
        let ended = over.clone();
        let options = LogOptions { follow: true, ..Default::default() };
        let mut reader = LogReader::new(&path, options, Box::new(move || ended.load(Ordering::SeqCst)));
        let mut text = String::new();
        for round in 0..5 {
            write(&path, 150, round * 8..(round + 1) * 8);
            while text.len() < numbers(0..(round + 1) * 8).len() {
                text.push_str(std::str::from_utf8(&reader.next().await.unwrap().unwrap()).unwrap());
            }
        }
        over.store(true, Ordering::SeqCst);
        assert_eq!(reader.next().await.unwrap(), None);
        assert_eq!(text, numbers(0..40));
    }

    #[tokio::test]
    async fn what_no_shim_wrote_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let junk = [b"nonsense\n\n\xff\xff \n".to_vec(), vec![b'y'; 4 * MAX_LINE_BYTES], b"\nT stdout F ok\n".to_vec()];
        std::fs::write(&path, junk.concat()).unwrap();
        assert_eq!(all(read(&path, LogOptions::default())).await, "ok\n");
    }
}
