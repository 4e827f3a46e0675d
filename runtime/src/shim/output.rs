//! A container's log file in the format of Kubernetes' container runtime interface, rotated by size.
//!
//! A line is `2026-01-02T03:04:05.123456789Z stdout F text`; `P` instead of `F` marks a piece of a longer line.
//!
//! Invariant: a line in the file is never longer than `MAX_PIECE_BYTES` and its prefix, whatever the container writes.
//! Invariant: `log`, `log.1`, … are from new to old, and at most `max_files` of them exist.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A longer line is cut into pieces of this size, as containerd does.
pub const MAX_PIECE_BYTES: usize = 16 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// The log of one container.
pub struct LogFile {
    path: PathBuf,
    file: File,
    size_bytes: u64,
    max_bytes: u64,
    max_files: u32,
    line: Vec<u8>,
}

impl LogFile {
    pub fn open(path: &Path, max_bytes: u64, max_files: u32) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let file = append(path)?;
        let size_bytes = file.metadata()?.len();
        Ok(Self { path: path.into(), file, size_bytes, max_bytes, max_files: max_files.max(1), line: Vec::new() })
    }

    /// Writes one line or piece of a line; `text` holds no newline.
    pub fn write(&mut self, now: &str, stream: Stream, whole: bool, text: &[u8]) -> io::Result<()> {
        let tag = if whole { "F" } else { "P" };
        self.line.clear();
        write!(self.line, "{now} {} {tag} ", stream.name())?;
        self.line.extend_from_slice(text);
        self.line.push(b'\n');
        if self.size_bytes > 0 && self.size_bytes + self.line.len() as u64 > self.max_bytes {
            self.rotate()?;
        }
        self.file.write_all(&self.line)?;
        self.size_bytes += self.line.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        for index in (1..self.max_files).rev() {
            let from = if index == 1 { self.path.clone() } else { numbered(&self.path, index - 1) };
            match fs::rename(from, numbered(&self.path, index)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if self.max_files == 1 {
            fs::remove_file(&self.path)?;
        }
        self.file = append(&self.path)?;
        self.size_bytes = 0;
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o640).open(path)
}

/// Where the log's `index`th rotation is.
pub fn numbered(path: &Path, index: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{index}"));
    PathBuf::from(name)
}

/// Cuts a stream of bytes into lines and pieces.
pub struct Splitter {
    stream: Stream,
    held: Vec<u8>,
}

impl Splitter {
    pub fn new(stream: Stream) -> Self {
        Self { stream, held: Vec::new() }
    }

    pub fn stream(&self) -> Stream {
        self.stream
    }

    pub fn push(&mut self, now: &str, mut bytes: &[u8], log: &mut LogFile) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = MAX_PIECE_BYTES - self.held.len();
            let newline = bytes.iter().take(room + 1).position(|byte| *byte == b'\n');
            if let Some(end) = newline {
                self.emit(now, &bytes[..end], true, log)?;
                bytes = &bytes[end + 1..];
            } else if bytes.len() > room {
                self.emit(now, &bytes[..room], false, log)?;
                bytes = &bytes[room..];
            } else {
                self.held.extend_from_slice(bytes);
                bytes = &[];
            }
        }
        Ok(())
    }

    /// What is left of a stream that ended without a newline.
    pub fn finish(&mut self, now: &str, log: &mut LogFile) -> io::Result<()> {
        if self.held.is_empty() { Ok(()) } else { self.emit(now, &[], true, log) }
    }

    fn emit(&mut self, now: &str, tail: &[u8], whole: bool, log: &mut LogFile) -> io::Result<()> {
        if self.held.is_empty() {
            return log.write(now, self.stream, whole, tail);
        }
        self.held.extend_from_slice(tail);
        let line = std::mem::take(&mut self.held);
        log.write(now, self.stream, whole, &line)
    }
}

/// The time as log lines have it: UTC with nanoseconds.
pub fn timestamp() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%9fZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(parts: &[&[u8]]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = LogFile::open(&path, 1 << 20, 2).unwrap();
        let mut splitter = Splitter::new(Stream::Stdout);
        for part in parts {
            splitter.push("T", part, &mut log).unwrap();
        }
        splitter.finish("T", &mut log).unwrap();
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn lines_are_whole_however_they_arrive() {
        assert_eq!(written(&[b"a\nb", b"c\n\nd"]), "T stdout F a\nT stdout F bc\nT stdout F \nT stdout F d\n");
    }

    #[test]
    fn a_long_line_becomes_pieces() {
        let text = written(&[&vec![b'x'; MAX_PIECE_BYTES + 5], b"y\n"]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with("T stdout P x") && lines[0].len() == "T stdout P ".len() + MAX_PIECE_BYTES);
        assert_eq!(lines[1], "T stdout F xxxxxy");
    }

    #[test]
    fn a_line_of_exactly_the_bound_is_whole() {
        let mut line = vec![b'x'; MAX_PIECE_BYTES];
        line.push(b'\n');
        assert!(written(&[&line]).starts_with("T stdout F x"));
    }

    #[test]
    fn rotation_keeps_the_newest_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = LogFile::open(&path, 30, 3).unwrap();
        for n in 0..9 {
            log.write("T", Stream::Stderr, true, format!("line {n}").as_bytes()).unwrap();
        }
        let lines = |path: PathBuf| fs::read_to_string(path).map(|t| t.lines().count()).unwrap_or(0);
        assert_eq!([lines(path.clone()), lines(numbered(&path, 1)), lines(numbered(&path, 2))], [1, 1, 1]);
        assert!(fs::read_to_string(&path).unwrap().contains("line 8"));
        assert!(!numbered(&path, 3).exists());
    }

    #[test]
    fn timestamps_are_rfc_3339_with_nine_digits() {
        let now = timestamp();
        assert_eq!(now.len(), "2026-01-02T03:04:05.123456789Z".len());
        assert!(now.parse::<jiff::Timestamp>().is_ok());
    }
}
