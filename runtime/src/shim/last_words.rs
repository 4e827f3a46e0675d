//! What a container leaves to say how it ended: the end of a file that it wrote, or else of its log.
//!
//! Defined by `terminationMessagePath` and `terminationMessagePolicy` in the Kubernetes API reference.
//!
//! Invariant: the container owns what is read, so that neither its kind nor its size is trusted.

use std::fs::OpenOptions;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::output::MAX_PIECE_BYTES;

/// The kubelet's bounds of what is taken from a log.
const MAX_LOG_LINES: usize = 80;
const MAX_LOG_BYTES: usize = 2048;
/// Holds that many lines with what is in front of each, and at least one whole piece.
const LOG_TAIL_BYTES: u64 = (2 * MAX_PIECE_BYTES) as u64;

/// Where to look for them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// On the node; none if the container has no such file.
    pub file: Option<PathBuf>,
    pub max_bytes: u64,
    /// If it failed and the file is empty, its log is taken.
    pub or_log: bool,
}

impl Place {
    pub fn read(&self, failed: bool, log: &Path) -> String {
        let written = self.file.as_deref().map(|file| tail(file, self.max_bytes)).transpose();
        let words = match written {
            Ok(Some(words)) if !words.is_empty() => Ok(words),
            Ok(_) if self.or_log && failed => tail(log, LOG_TAIL_BYTES).map(|tail| log_text(&tail)),
            Ok(_) => Ok(Vec::new()),
            Err(error) => Err(error),
        };
        match words {
            Ok(words) => self.bounded(String::from_utf8_lossy(&words).into_owned()),
            Err(error) => format!("Error on reading termination log: {error}"),
        }
    }

    /// What is no UTF-8 grows when it is made so.
    fn bounded(&self, mut words: String) -> String {
        let max_bytes = usize::try_from(self.max_bytes).unwrap_or(usize::MAX);
        words.drain(..words.ceil_char_boundary(words.len().saturating_sub(max_bytes)));
        words
    }
}

/// The last bytes of a file.
fn tail(path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let mut file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    file.seek(SeekFrom::Start(meta.len().saturating_sub(max_bytes)))?;
    let mut bytes = Vec::new();
    file.take(max_bytes).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The output in the last lines of a log, of whose first one the beginning may be missing.
fn log_text(log: &[u8]) -> Vec<u8> {
    let mut lines: Vec<&[u8]> = log.split_inclusive(|byte| *byte == b'\n').collect();
    if log.len() as u64 == LOG_TAIL_BYTES {
        lines.remove(0);
    }
    let mut text = Vec::new();
    for line in &lines[lines.len().saturating_sub(MAX_LOG_LINES)..] {
        let mut fields = line.splitn(4, |byte| *byte == b' ');
        if let (Some(tag), Some(output)) = (fields.nth(2), fields.next()) {
            let piece = tag == b"P";
            text.extend_from_slice(if piece { output.strip_suffix(b"\n").unwrap_or(output) } else { output });
        }
    }
    text.drain(..text.len().saturating_sub(MAX_LOG_BYTES));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    struct Left {
        dir: tempfile::TempDir,
    }

    impl Left {
        fn new(file: &[u8], log: &str) -> Left {
            let left = Left { dir: tempfile::tempdir().unwrap() };
            fs::write(left.file(), file).unwrap();
            fs::write(left.dir.path().join("log"), log).unwrap();
            left
        }

        fn file(&self) -> PathBuf {
            self.dir.path().join("file")
        }

        fn read(&self, failed: bool, or_log: bool) -> String {
            let words = Place { file: Some(self.file()), max_bytes: 4096, or_log };
            words.read(failed, &self.dir.path().join("log"))
        }
    }

    #[test]
    fn the_file_counts_and_the_log_only_if_it_is_empty_and_the_container_failed() {
        let log = "T stdout F one\nT stderr P tw\nT stderr F o\n";
        assert_eq!(Left::new(b"why\n", log).read(true, true), "why\n");
        let silent = Left::new(b"", log);
        assert_eq!(silent.read(true, true), "one\ntwo\n");
        assert_eq!([silent.read(false, true), silent.read(true, false)], ["", ""]);
    }

    #[test]
    fn only_the_end_is_taken_whatever_there_is() {
        assert_eq!(Left::new(&[&[b'a'; 5000][..], b"end"].concat(), "").read(false, false).len(), 4096);
        let binary = Left::new(&[0xff; 5000], "").read(false, false);
        assert!(binary.len() <= 4096 && !binary.is_empty());
        let log: String = (0..5000).map(|n| format!("T stdout F line {n}\n")).collect();
        let words = Left::new(b"", &log).read(true, true);
        assert!(words.len() <= MAX_LOG_BYTES && words.starts_with("line 4920\n") && words.ends_with("line 4999\n"));
        let long = format!("T stdout P {}\nT stdout F {}\n", "x".repeat(MAX_PIECE_BYTES), "y".repeat(100));
        let words = Left::new(b"", &long.repeat(3)).read(true, true);
        assert!(words.len() == MAX_LOG_BYTES && words.contains("xy"), "{}", words.len());
    }

    #[test]
    fn what_is_no_file_is_not_followed() {
        let left = Left::new(b"", "");
        fs::remove_file(left.file()).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", left.file()).unwrap();
        assert!(left.read(false, false).starts_with("Error on reading termination log"));
    }
}
