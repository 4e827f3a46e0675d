//! A layer's blob as the tar stream inside it.
//!
//! Invariant: at most `limit_bytes` come out, however the blob is compressed; a decompressor's window
//! is bounded.

use std::io::{self, BufRead, BufReader, Read};

use super::UnpackError;
use crate::images::digest::{Digest, Hasher};

const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const BUFFER_BYTES: usize = 256 << 10;
/// 128 MiB, what `zstd --long` makes and other tools accept.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// Decompresses, counts and hashes. What the blob is compressed with is told from its first bytes, since
/// media types are not always right.
pub struct LayerStream<'a> {
    inner: Box<dyn Read + 'a>,
    hasher: Hasher,
    rest_bytes: u64,
    limit_bytes: u64,
}

impl<'a> LayerStream<'a> {
    pub fn new(blob: impl Read + 'a, limit_bytes: u64) -> Result<Self, UnpackError> {
        let inner = decompress(blob).map_err(UnpackError::io("read the blob"))?;
        Ok(Self { inner, hasher: Hasher::new(), rest_bytes: limit_bytes, limit_bytes })
    }

    /// Reads to the end and gives the digest of everything that came out.
    pub fn finish(mut self) -> Result<Digest, UnpackError> {
        let mut buffer = vec![0; BUFFER_BYTES];
        while self.read(&mut buffer).map_err(recover)? > 0 {}
        Ok(self.hasher.finish())
    }
}

/// The bytes of `blob`, decompressed if they are gzip or zstd.
pub fn decompress<'a>(blob: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut blob = BufReader::with_capacity(BUFFER_BYTES, blob);
    let start = blob.fill_buf()?;
    if start.starts_with(GZIP_MAGIC) {
        return Ok(Box::new(flate2::bufread::MultiGzDecoder::new(blob)));
    }
    if start.starts_with(ZSTD_MAGIC) {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(blob)?;
        decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
        return Ok(Box::new(decoder));
    }
    Ok(Box::new(blob))
}

impl Read for LayerStream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer).map_err(|cause| wrap(UnpackError::Stream(cause.to_string())))?;
        let Some(rest_bytes) = self.rest_bytes.checked_sub(count as u64) else {
            return Err(wrap(UnpackError::TooLarge { limit_bytes: self.limit_bytes }));
        };
        self.rest_bytes = rest_bytes;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

fn wrap(error: UnpackError) -> io::Error {
    io::Error::other(error)
}

/// Takes one of our errors out of the I/O error that carried it through a reader.
pub fn recover(error: io::Error) -> UnpackError {
    match error.downcast::<UnpackError>() {
        Ok(ours) => ours,
        Err(error) => match error.downcast::<crate::images::tarball::TarError>() {
            Ok(tar) => UnpackError::Tar(tar),
            Err(cause) => UnpackError::Io { action: "read the layer", cause },
        },
    }
}
