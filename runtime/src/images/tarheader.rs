//! The fields of tar headers and of the extensions that override them.
//!
//! Invariant: nothing here reads a stream; each function is total over its bytes.

use super::tarball::{Entry, Run, SPARSE_RUNS_MAX, TarError, Time};

pub const PATH_BYTES_MAX: usize = 4096;
const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";
const XATTRS_MAX: usize = 256;
const XATTR_NAME_BYTES_MAX: usize = 255;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    HardLink,
    SymbolicLink,
    CharacterDevice,
    BlockDevice,
    Directory,
    Fifo,
    /// A type that is not unpacked, such as a volume label.
    Other(u8),
}

/// One 512-byte header whose checksum is right.
pub struct Header<'a>(&'a [u8; 512]);

impl<'a> Header<'a> {
    pub fn parse(block: &'a [u8; 512]) -> Result<Self, TarError> {
        let header = Self(block);
        let expected = number(header.field(148, 8)).ok_or(TarError::Field("checksum"))?;
        let blanked = |index: usize| if (148..156).contains(&index) { b' ' } else { block[index] };
        let unsigned: u64 = (0..512).map(|index| u64::from(blanked(index))).sum();
        let signed: i64 = (0..512).map(|index| i64::from(blanked(index) as i8)).sum();
        let is_right = expected == unsigned || i64::try_from(expected) == Ok(signed);
        if is_right { Ok(header) } else { Err(TarError::Checksum) }
    }

    pub fn kind(&self) -> Kind {
        match self.0[156] {
            // An old header marks a directory by its name alone.
            0 | b'0' if self.is_old() && text(self.field(0, 100)).ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::SymbolicLink,
            b'3' => Kind::CharacterDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => Kind::Other(other),
        }
    }

    pub fn is_extension(&self) -> bool {
        matches!(self.0[156], b'x' | b'g' | b'L' | b'K')
    }

    pub fn is_gnu_sparse(&self) -> bool {
        self.0[156] == b'S'
    }

    pub fn size(&self) -> Result<u64, TarError> {
        number(self.field(124, 12)).filter(|size| *size <= i64::MAX as u64).ok_or(TarError::Field("size"))
    }

    pub fn gnu_real_size(&self) -> Result<u64, TarError> {
        number(self.field(483, 12)).filter(|size| *size <= i64::MAX as u64).ok_or(TarError::Field("size"))
    }

    /// Adds the runs in the header itself; says whether more follow in blocks of their own.
    pub fn gnu_sparse_runs(&self, runs: &mut Vec<Run>) -> Result<bool, TarError> {
        add_runs(self.field(386, 96), runs)?;
        Ok(self.0[482] == 1)
    }

    fn is_old(&self) -> bool {
        self.field(257, 5) != b"ustar"
    }

    fn is_gnu(&self) -> bool {
        self.field(257, 8) == b"ustar  \0"
    }

    fn path(&self) -> Vec<u8> {
        let name = text(self.field(0, 100));
        let prefix = if self.is_old() || self.is_gnu() { b"" } else { text(self.field(345, 155)) };
        match prefix {
            b"" => name.to_vec(),
            prefix => [prefix, b"/", name].concat(),
        }
    }

    fn id(&self, offset: usize, what: &'static str) -> Result<u32, TarError> {
        let id = number(self.field(offset, 8)).ok_or(TarError::Field(what))?;
        u32::try_from(id).map_err(|_| TarError::Field(what))
    }

    fn device(&self) -> Result<(u32, u32), TarError> {
        Ok((self.id(329, "device number")?, self.id(337, "device number")?))
    }

    fn field(&self, offset: usize, length: usize) -> &'a [u8] {
        &self.0[offset..offset + length]
    }
}

/// Reads a block of a GNU sparse map; says whether another follows.
pub fn sparse_block(block: &[u8; 512], runs: &mut Vec<Run>) -> Result<bool, TarError> {
    add_runs(&block[..504], runs)?;
    Ok(block[504] == 1)
}

fn add_runs(fields: &[u8], runs: &mut Vec<Run>) -> Result<(), TarError> {
    for pair in fields.chunks_exact(24) {
        if pair[0] == 0 {
            break;
        }
        let offset = number(&pair[..12]).ok_or(TarError::Sparse)?;
        let length = number(&pair[12..]).ok_or(TarError::Sparse)?;
        runs.push(Run { offset, length });
    }
    Ok(())
}

/// A field up to its NUL.
fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    &field[..end]
}

/// Octal text, or GNU's big-endian binary with the top bit set. An empty field is 0.
fn number(field: &[u8]) -> Option<u64> {
    match field.split_first() {
        Some((0x80, rest)) => rest.iter().try_fold(0u64, |sum, byte| sum.checked_mul(256)?.checked_add((*byte).into())),
        // A negative number in binary: nothing that we read may be negative but a time before 1970.
        Some((0xff, _)) => None,
        _ => octal(field),
    }
}

fn octal(field: &[u8]) -> Option<u64> {
    let digits = text(field).trim_ascii();
    digits.iter().try_fold(0u64, |sum, byte| match byte {
        b'0'..=b'7' => sum.checked_mul(8)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

/// A name and its value.
pub type Record = (Vec<u8>, Vec<u8>);

/// What extension headers say about the entry that follows them.
#[derive(Debug, Default)]
pub struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    records: Vec<Record>,
}

impl Extensions {
    pub fn add(&mut self, header: &Header<'_>, data: Vec<u8>) -> Result<(), TarError> {
        match header.0[156] {
            b'L' => self.path = Some(text(&data).to_vec()),
            b'K' => self.link = Some(text(&data).to_vec()),
            b'x' => self.records.extend(pax_records(&data)?),
            // Global records (comments, usually) say nothing that a layer needs.
            _ => {}
        }
        Ok(())
    }

    pub fn size(&self) -> Option<u64> {
        self.decimal(b"size")
    }

    pub fn has_sparse_map_in_data(&self) -> bool {
        self.record(b"GNU.sparse.major") == Some(b"1") && self.record(b"GNU.sparse.minor") == Some(b"0")
    }

    /// Header and extensions together; `stored_bytes` is the size of its data in the stream.
    pub fn entry(&self, header: &Header<'_>, stored_bytes: u64) -> Result<Entry, TarError> {
        let path = self.record(b"GNU.sparse.name").or(self.record(b"path")).map(<[u8]>::to_vec);
        let link = self.record(b"linkpath").map(<[u8]>::to_vec);
        let entry = Entry {
            path: path.or_else(|| self.path.clone()).unwrap_or_else(|| header.path()),
            link: link.or_else(|| self.link.clone()).unwrap_or_else(|| text(header.field(157, 100)).to_vec()),
            kind: header.kind(),
            mode: number(header.field(100, 8)).ok_or(TarError::Field("mode"))? as u32 & 0o7777,
            uid: self.id(b"uid").map_or_else(|| header.id(108, "user id"), Ok)?,
            gid: self.id(b"gid").map_or_else(|| header.id(116, "group id"), Ok)?,
            mtime: self.mtime(header),
            size_bytes: self.real_size().unwrap_or(stored_bytes),
            device: match header.kind() {
                Kind::CharacterDevice | Kind::BlockDevice => header.device()?,
                _ => (0, 0),
            },
            xattrs: self.xattrs()?,
            sparse: self.sparse_map()?,
        };
        check_length("path", entry.path.len(), PATH_BYTES_MAX)?;
        check_length("link target", entry.link.len(), PATH_BYTES_MAX)?;
        Ok(entry)
    }

    fn record(&self, key: &[u8]) -> Option<&[u8]> {
        self.records.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value.as_slice())
    }

    fn decimal(&self, key: &[u8]) -> Option<u64> {
        std::str::from_utf8(self.record(key)?).ok()?.parse().ok().filter(|number| *number <= i64::MAX as u64)
    }

    fn id(&self, key: &[u8]) -> Option<u32> {
        self.decimal(key).and_then(|id| u32::try_from(id).ok())
    }

    fn real_size(&self) -> Option<u64> {
        self.decimal(b"GNU.sparse.realsize").or_else(|| self.decimal(b"GNU.sparse.size"))
    }

    fn mtime(&self, header: &Header<'_>) -> Time {
        let precise = self.record(b"mtime").and_then(pax_time);
        let seconds = number(header.field(136, 12)).and_then(|seconds| i64::try_from(seconds).ok());
        precise.unwrap_or(Time { seconds: seconds.unwrap_or(0), nanoseconds: 0 })
    }

    fn xattrs(&self) -> Result<Vec<Record>, TarError> {
        let mut xattrs = Vec::new();
        for (key, value) in &self.records {
            let Some(name) = key.strip_prefix(XATTR_PREFIX) else { continue };
            check_length("attribute name", name.len(), XATTR_NAME_BYTES_MAX)?;
            xattrs.push((name.to_vec(), value.clone()));
        }
        if xattrs.len() > XATTRS_MAX {
            return Err(TarError::TooManyExtensions);
        }
        Ok(xattrs)
    }

    /// PAX 0.1 gives the map as one record of decimals; PAX 0.0 as many records of the same two keys.
    fn sparse_map(&self) -> Result<Option<Vec<Run>>, TarError> {
        let numbers: Vec<&[u8]> = match self.record(b"GNU.sparse.map") {
            Some(map) => map.split(|byte| *byte == b',').filter(|part| !part.is_empty()).collect(),
            None => {
                let is_pair = |key: &[u8]| key == b"GNU.sparse.offset" || key == b"GNU.sparse.numbytes";
                self.records.iter().filter(|(key, _)| is_pair(key)).map(|(_, value)| value.as_slice()).collect()
            }
        };
        if numbers.is_empty() {
            return Ok(None);
        }
        if !numbers.len().is_multiple_of(2) || numbers.len() / 2 > SPARSE_RUNS_MAX {
            return Err(TarError::Sparse);
        }
        numbers
            .chunks_exact(2)
            .map(|pair| Ok(Run { offset: decimal(pair[0])?, length: decimal(pair[1])? }))
            .collect::<Result<_, _>>()
            .map(Some)
    }
}

fn decimal(text: &[u8]) -> Result<u64, TarError> {
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or(TarError::Sparse)
}

fn check_length(what: &'static str, length: usize, limit_bytes: usize) -> Result<(), TarError> {
    if length > limit_bytes { Err(TarError::NameTooLong { what, limit_bytes }) } else { Ok(()) }
}

/// `LENGTH KEY=VALUE\n`, where LENGTH counts the whole record, so that values may hold any byte.
fn pax_records(mut data: &[u8]) -> Result<Vec<Record>, TarError> {
    const BAD: TarError = TarError::Field("extended header record");
    let mut records = Vec::new();
    while data.first().is_some_and(|byte| *byte != 0) {
        let space = data.iter().position(|byte| *byte == b' ').ok_or(BAD)?;
        let length = std::str::from_utf8(&data[..space]).ok().and_then(|text| text.parse::<usize>().ok()).ok_or(BAD)?;
        if length > data.len() || length < space + 3 || data[length - 1] != b'\n' {
            return Err(BAD);
        }
        let body = &data[space + 1..length - 1];
        let equals = body.iter().position(|byte| *byte == b'=').ok_or(BAD)?;
        records.push((body[..equals].to_vec(), body[equals + 1..].to_vec()));
        data = &data[length..];
    }
    Ok(records)
}

/// `[-]SECONDS[.FRACTION]`
fn pax_time(text: &[u8]) -> Option<Time> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    match (text.starts_with('-'), nanoseconds) {
        (true, 1..) => Some(Time { seconds: seconds.checked_sub(1)?, nanoseconds: 1_000_000_000 - nanoseconds }),
        _ => Some(Time { seconds, nanoseconds }),
    }
}
