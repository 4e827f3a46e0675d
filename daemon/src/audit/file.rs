//! The file of the audit log, and the older ones beside it: `audit.log`, `audit.log.1` and so on, the newest first.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

pub struct File {
    path: PathBuf,
    max_bytes: u64,
    max_files: usize,
    /// `None` after it could not be opened; the next write tries again.
    open: Option<fs::File>,
    size_bytes: u64,
    /// It is in another's hands.
    taken: bool,
}

impl File {
    /// # Errors
    /// If it cannot be opened for writing.
    pub fn open(path: &Path, max_bytes: u64, max_files: usize) -> io::Result<Self> {
        let mut file = Self { path: path.to_owned(), max_bytes, max_files, open: None, size_bytes: 0, taken: false };
        file.reopen()?;
        Ok(file)
    }

    /// Leaves an empty shell behind; `None` if that was done before.
    pub fn take(&mut self) -> Option<Self> {
        if self.taken {
            return None;
        }
        let shell = Self {
            path: self.path.clone(),
            max_bytes: self.max_bytes,
            max_files: self.max_files,
            open: None,
            size_bytes: 0,
            taken: true,
        };
        Some(std::mem::replace(self, shell))
    }

    /// Appends the lines, beginning a new file whenever one is full.
    ///
    /// # Errors
    /// If the disk does not take them; those that it took are written.
    pub fn write<'a>(&mut self, lines: impl IntoIterator<Item = &'a [u8]>) -> io::Result<()> {
        let mut buffer = Vec::new();
        for line in lines {
            if self.size_bytes + buffer.len() as u64 + line.len() as u64 > self.max_bytes {
                self.append(&buffer)?;
                buffer.clear();
                if self.size_bytes > 0 {
                    self.rotate()?;
                }
            }
            buffer.extend_from_slice(line);
        }
        self.append(&buffer)
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        if self.open.is_none() {
            self.reopen()?;
        }
        let Some(file) = &mut self.open else { return Ok(()) };
        file.write_all(bytes)?;
        self.size_bytes += bytes.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.open = None;
        for number in (0..self.max_files).rev() {
            let (from, to) = (self.numbered(number), self.numbered(number + 1));
            match fs::rename(from, to) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if self.max_files == 0 {
            fs::remove_file(&self.path)?;
        }
        self.reopen()
    }

    /// 0 is the file that is written.
    fn numbered(&self, number: usize) -> PathBuf {
        match number {
            0 => self.path.clone(),
            number => {
                let mut name = self.path.clone().into_os_string();
                name.push(format!(".{number}"));
                name.into()
            }
        }
    }

    fn reopen(&mut self) -> io::Result<()> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&self.path)?;
        self.size_bytes = file.metadata()?.len();
        self.open = Some(file);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_files_are_put_aside_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let line = |letter: u8| vec![letter; 10];
        let mut file = File::open(&path, 25, 2).unwrap();
        let write = |file: &mut File, lines: &[Vec<u8>]| file.write(lines.iter().map(Vec::as_slice)).unwrap();
        write(&mut file, &[line(b'a'), line(b'b'), line(b'c')]);
        drop(file);
        let mut file = File::open(&path, 25, 2).unwrap();
        write(&mut file, &(b'd'..=b'i').map(line).collect::<Vec<_>>());
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(read("audit.log"), "iiiiiiiiii");
        assert_eq!(read("audit.log.1"), "gggggggggghhhhhhhhhh");
        assert_eq!(read("audit.log.2"), "eeeeeeeeeeffffffffff");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
        write(&mut file, &[vec![b'x'; 100], line(b'y')]);
        assert_eq!((read("audit.log"), read("audit.log.1").len()), ("yyyyyyyyyy".into(), 100));
    }
}
