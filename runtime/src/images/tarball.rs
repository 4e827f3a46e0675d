//! Reads tar streams from strangers.
//!
//! Layers are tar streams in the dialects of GNU tar, of PAX and of Go's archive/tar, and may come from
//! anyone. Off-the-shelf readers hold whole extension headers in memory, however large, and lose
//! extended attributes that hold a newline; this one does neither.
//!
//! Defined by POSIX.1-2017 `pax` ("ustar Interchange Format") and the GNU tar manual ("Basic Tar
//! Format", "Storing Sparse Files").
//!
//! Invariant: memory is bounded by [`EXTENSION_BYTES_MAX`] and [`SPARSE_RUNS_MAX`], whatever is read.
//! Invariant: the bytes of an entry end where its header says, whatever is done with them.

use std::io::{self, Read};

use super::tarheader::{self, Header, Kind, Record};

const BLOCK_BYTES: usize = 512;
/// One extension header: long names, extended attributes.
pub const EXTENSION_BYTES_MAX: u64 = 1 << 20;
const EXTENSIONS_PER_ENTRY_MAX: usize = 8;
pub const SPARSE_RUNS_MAX: usize = 65_536;

#[derive(Debug, thiserror::Error)]
pub enum TarError {
    #[error("{0}")]
    Read(#[from] io::Error),
    #[error("tar stream ends in the middle of an entry")]
    Truncated,
    #[error("tar header has a wrong checksum")]
    Checksum,
    #[error("tar header has a bad {0}")]
    Field(&'static str),
    #[error("tar extension header is larger than {EXTENSION_BYTES_MAX} bytes")]
    ExtensionTooLarge,
    #[error("tar entry has too many extension headers")]
    TooManyExtensions,
    #[error("tar entry has a bad sparse map")]
    Sparse,
    #[error("tar entry has a {what} longer than {limit_bytes} bytes")]
    NameTooLong { what: &'static str, limit_bytes: usize },
}

/// One file, directory, link or device. Names are bytes, as on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub path: Vec<u8>,
    /// The target of a symbolic or hard link.
    pub link: Vec<u8>,
    pub kind: Kind,
    /// Permissions with set-user-id, set-group-id and sticky bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Time,
    /// Of the file's contents, holes included.
    pub size_bytes: u64,
    pub device: (u32, u32),
    pub xattrs: Vec<Record>,
    /// Where the stored bytes belong, ascending and apart; `None` if the file is stored whole.
    pub sparse: Option<Vec<Run>>,
}

/// Seconds and nanoseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Time {
    pub seconds: i64,
    pub nanoseconds: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub offset: u64,
    pub length: u64,
}

/// Yields entries; between two of them, [`Read`] gives the stored bytes of the last one.
pub struct TarReader<R> {
    inner: R,
    /// Of the current entry's stored bytes, not yet read.
    remaining_bytes: u64,
    padding_bytes: u64,
}

impl<R: Read> TarReader<R> {
    pub fn new(inner: R) -> Self {
        Self { inner, remaining_bytes: 0, padding_bytes: 0 }
    }

    /// The stream behind the archive's end, where padding may follow.
    pub fn into_inner(self) -> R {
        self.inner
    }

    /// The next entry, or `None` at the end of the archive.
    ///
    /// # Errors
    /// If the stream cannot be read or is not a tar stream within the bounds.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut extensions = tarheader::Extensions::default();
        for count in 0.. {
            self.skip_rest()?;
            let Some(block) = self.header_block()? else {
                return if count == 0 { Ok(None) } else { Err(TarError::Truncated) };
            };
            if count > EXTENSIONS_PER_ENTRY_MAX {
                return Err(TarError::TooManyExtensions);
            }
            let header = Header::parse(&block)?;
            if header.is_extension() {
                let data = self.extension_data(header.size()?)?;
                extensions.add(&header, data)?;
                continue;
            }
            return self.entry(&header, extensions).map(Some);
        }
        Ok(None)
    }

    fn entry(&mut self, header: &Header<'_>, extensions: tarheader::Extensions) -> Result<Entry, TarError> {
        let stored_bytes = match header.kind() {
            Kind::File => extensions.size().unwrap_or(header.size()?),
            // Directories, links and devices have no contents, even if their header names a size.
            Kind::Other(_) => header.size()?,
            _ => 0,
        };
        self.begin_data(stored_bytes);
        let gnu_runs = if header.is_gnu_sparse() { Some(self.gnu_sparse_runs(header)?) } else { None };
        let mut entry = extensions.entry(header, stored_bytes)?;
        if let Some(runs) = gnu_runs {
            entry.size_bytes = header.gnu_real_size()?;
            entry.sparse = Some(runs);
        } else if extensions.has_sparse_map_in_data() {
            entry.sparse = Some(self.pax_sparse_runs()?);
        }
        if let Some(runs) = &entry.sparse {
            check_runs(runs, entry.size_bytes, self.remaining_bytes)?;
        }
        Ok(entry)
    }

    fn begin_data(&mut self, stored_bytes: u64) {
        self.remaining_bytes = stored_bytes;
        self.padding_bytes = stored_bytes.wrapping_neg() % BLOCK_BYTES as u64;
    }

    fn header_block(&mut self) -> Result<Option<[u8; BLOCK_BYTES]>, TarError> {
        let mut block = [0; BLOCK_BYTES];
        let mut filled = 0;
        while filled < BLOCK_BYTES {
            match self.inner.read(&mut block[filled..])? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(TarError::Truncated),
                count => filled += count,
            }
        }
        Ok(block.iter().any(|byte| *byte != 0).then_some(block))
    }

    fn extension_data(&mut self, size_bytes: u64) -> Result<Vec<u8>, TarError> {
        if size_bytes > EXTENSION_BYTES_MAX {
            return Err(TarError::ExtensionTooLarge);
        }
        self.begin_data(size_bytes);
        let mut data = Vec::new();
        self.read_to_end(&mut data)?;
        Ok(data)
    }

    /// GNU's sparse map begins in the header and goes on in blocks of its own before the data.
    fn gnu_sparse_runs(&mut self, header: &Header<'_>) -> Result<Vec<Run>, TarError> {
        let mut runs = Vec::new();
        let mut more = header.gnu_sparse_runs(&mut runs)?;
        while more {
            let mut block = [0; BLOCK_BYTES];
            self.inner.read_exact(&mut block).map_err(truncated)?;
            more = tarheader::sparse_block(&block, &mut runs)?;
            if runs.len() > SPARSE_RUNS_MAX {
                return Err(TarError::Sparse);
            }
        }
        Ok(runs)
    }

    /// PAX 1.0: decimal lines, a count and then pairs, padded to a block, at the beginning of the data.
    fn pax_sparse_runs(&mut self) -> Result<Vec<Run>, TarError> {
        let start_bytes = self.remaining_bytes;
        let count = self.decimal_line()?;
        if count > SPARSE_RUNS_MAX as u64 {
            return Err(TarError::Sparse);
        }
        let mut runs = Vec::new();
        for _ in 0..count {
            runs.push(Run { offset: self.decimal_line()?, length: self.decimal_line()? });
        }
        let used_bytes = start_bytes - self.remaining_bytes;
        let mut padding = [0; BLOCK_BYTES];
        let padding_bytes = (used_bytes.wrapping_neg() % BLOCK_BYTES as u64) as usize;
        self.read_exact(&mut padding[..padding_bytes]).map_err(truncated)?;
        Ok(runs)
    }

    fn decimal_line(&mut self) -> Result<u64, TarError> {
        let mut number = 0u64;
        loop {
            let mut byte = [0];
            self.read_exact(&mut byte).map_err(truncated)?;
            match byte[0] {
                b'\n' => return Ok(number),
                digit @ b'0'..=b'9' => {
                    number = number
                        .checked_mul(10)
                        .and_then(|tens| tens.checked_add(u64::from(digit - b'0')))
                        .ok_or(TarError::Sparse)?;
                }
                _ => return Err(TarError::Sparse),
            }
        }
    }

    fn skip_rest(&mut self) -> Result<(), TarError> {
        let rest_bytes = self.remaining_bytes + self.padding_bytes;
        let skipped_bytes = io::copy(&mut (&mut self.inner).take(rest_bytes), &mut io::sink())?;
        // The last entry's padding may be missing at the end of the stream.
        if skipped_bytes < self.remaining_bytes {
            return Err(TarError::Truncated);
        }
        self.begin_data(0);
        Ok(())
    }
}

impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.remaining_bytes).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        let count = self.inner.read(&mut buffer[..wanted])?;
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, TarError::Truncated));
        }
        self.remaining_bytes -= count as u64;
        Ok(count)
    }
}

fn truncated(error: io::Error) -> TarError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => TarError::Truncated,
        _ => TarError::Read(error),
    }
}

/// Runs must ascend, not overlap, lie within the file, and account for all stored bytes.
fn check_runs(runs: &[Run], size_bytes: u64, stored_bytes: u64) -> Result<(), TarError> {
    let mut end = 0u64;
    let mut sum = 0u64;
    for run in runs {
        if run.offset < end {
            return Err(TarError::Sparse);
        }
        end = run.offset.checked_add(run.length).ok_or(TarError::Sparse)?;
        sum += run.length;
    }
    if end > size_bytes || sum != stored_bytes || runs.len() > SPARSE_RUNS_MAX {
        return Err(TarError::Sparse);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads everything there is, as unpacking would.
    fn read_all(bytes: &[u8]) -> Result<Vec<(Entry, usize)>, TarError> {
        let mut tar = TarReader::new(bytes);
        let mut entries = Vec::new();
        while let Some(entry) = tar.next_entry()? {
            let mut data = Vec::new();
            tar.read_to_end(&mut data)?;
            entries.push((entry, data.len()));
        }
        Ok(entries)
    }

    fn sample() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_pax_extensions([("SCHILY.xattr.user.x", b"a\nb".as_slice()), ("mtime", b"-1.25")]).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_size(5);
        header.set_mode(0o640);
        builder.append_data(&mut header.clone(), "a/file", b"hello".as_slice()).unwrap();
        builder.append_data(&mut header, "n".repeat(200), b"again".as_slice()).unwrap();
        builder.into_inner().unwrap()
    }

    #[test]
    fn entries_come_with_names_times_and_attributes() {
        let entries = read_all(&sample()).unwrap();
        let (first, length) = &entries[0];
        assert_eq!((first.path.as_slice(), *length, first.mode), (b"a/file".as_slice(), 5, 0o640));
        assert_eq!(first.xattrs, [(b"user.x".to_vec(), b"a\nb".to_vec())]);
        assert_eq!(first.mtime, Time { seconds: -2, nanoseconds: 750_000_000 });
        assert_eq!(entries[1].0.path, b"n".repeat(200));
    }

    #[test]
    fn a_cut_off_stream_is_an_error_or_ends_between_entries() {
        let whole = sample();
        for end in 0..whole.len() {
            if let Ok(entries) = read_all(&whole[..end]) {
                assert!(entries.iter().all(|(entry, length)| entry.size_bytes == *length as u64));
            }
        }
    }

    #[test]
    fn runs_must_ascend_and_add_up() {
        let run = |offset, length| Run { offset, length };
        assert!(check_runs(&[run(0, 5), run(10, 5)], 20, 10).is_ok());
        assert!(check_runs(&[run(10, 5), run(0, 5)], 20, 10).is_err());
        assert!(check_runs(&[run(0, 6), run(5, 5)], 20, 11).is_err());
        assert!(check_runs(&[run(0, 5)], 4, 5).is_err());
        assert!(check_runs(&[run(u64::MAX, 2)], u64::MAX, 2).is_err());
    }

    proptest! {
        #[test]
        fn damaged_streams_are_read_or_refused_without_panic(
            damage in proptest::collection::vec((0usize..4096, any::<u8>()), 0..20),
            fix_checksums in any::<bool>(),
        ) {
            let mut bytes = sample();
            for (position, value) in damage {
                let position = position % bytes.len();
                bytes[position] = value;
            }
            if fix_checksums {
                for block in bytes.chunks_exact_mut(BLOCK_BYTES) {
                    block[148..156].fill(b' ');
                    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
                    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                }
            }
            let _ = read_all(&bytes);
        }

        #[test]
        fn noise_is_read_or_refused_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            let _ = read_all(&bytes);
        }
    }
}
