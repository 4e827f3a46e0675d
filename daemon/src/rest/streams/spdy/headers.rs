//! Header blocks: names and values, compressed by one zlib stream for each direction (section 2.6.10).
//!
//! Invariant: a block becomes at most `MAX_BLOCK_BYTES`, however well it is compressed.
//! Invariant: every block passes through here, also of frames that are then ignored: the next one depends on it.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::SpdyError;
use super::dictionary::dictionary;

/// A block with its compression undone.
const MAX_BLOCK_BYTES: usize = 64 * 1024;
const STEP_BYTES: usize = 4 * 1024;

/// Names in lower case, each with its value; several values of a name have a NUL between them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    #[cfg(test)]
    pub fn of(pairs: &[(&str, &str)]) -> Self {
        Self(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// What a client compressed.
pub struct Inflater(Decompress);

impl Default for Inflater {
    fn default() -> Self {
        Self(Decompress::new(true))
    }
}

impl Inflater {
    /// # Errors
    /// If the block is not compressed as it should be, is too large, or holds no headers.
    pub fn headers(&mut self, block: &[u8]) -> Result<Headers, SpdyError> {
        parse(&self.inflate(block)?)
    }

    fn inflate(&mut self, mut block: &[u8]) -> Result<Vec<u8>, SpdyError> {
        let mut plain = Vec::new();
        let mut step = [0; STEP_BYTES];
        loop {
            let (read, written) = (self.0.total_in(), self.0.total_out());
            let done = self.0.decompress(block, &mut step, FlushDecompress::Sync);
            block = &block[((self.0.total_in() - read) as usize).min(block.len())..];
            let length = (self.0.total_out() - written) as usize;
            plain.extend_from_slice(&step[..length]);
            if plain.len() > MAX_BLOCK_BYTES {
                return Err(SpdyError::Protocol("headers are too large"));
            }
            match done {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(&dictionary()).map_err(|_| SpdyError::Protocol("an unknown dictionary"))?;
                }
                Ok(Status::Ok | Status::BufError) if block.is_empty() && length < STEP_BYTES => return Ok(plain),
                Ok(Status::Ok) => {}
                _ => return Err(SpdyError::Protocol("headers are not compressed")),
            }
        }
    }
}

/// How a client is sent headers.
pub struct Deflater(Compress);

impl Default for Deflater {
    fn default() -> Self {
        let mut compress = Compress::new(Compression::default(), true);
        // A stream that has just begun takes any dictionary.
        _ = compress.set_dictionary(&dictionary());
        Self(compress)
    }
}

impl Deflater {
    /// # Errors
    /// Never with headers of ours; what zlib says must still be looked at.
    pub fn block(&mut self, headers: &Headers) -> Result<Vec<u8>, SpdyError> {
        let plain = print(headers);
        let mut rest = plain.as_slice();
        let mut block = Vec::new();
        let mut step = [0; STEP_BYTES];
        loop {
            let (read, written) = (self.0.total_in(), self.0.total_out());
            let failed = |_| SpdyError::Protocol("headers cannot be compressed");
            self.0.compress(rest, &mut step, FlushCompress::Sync).map_err(failed)?;
            rest = &rest[((self.0.total_in() - read) as usize).min(rest.len())..];
            let length = (self.0.total_out() - written) as usize;
            block.extend_from_slice(&step[..length]);
            if rest.is_empty() && length < STEP_BYTES {
                return Ok(block);
            }
        }
    }
}

fn print(headers: &Headers) -> Vec<u8> {
    let mut bytes = (headers.0.len() as u32).to_be_bytes().to_vec();
    for text in headers.0.iter().flat_map(|(name, value)| [name, value]) {
        bytes.extend_from_slice(&(text.len() as u32).to_be_bytes());
        bytes.extend_from_slice(text.as_bytes());
    }
    bytes
}

fn parse(mut bytes: &[u8]) -> Result<Headers, SpdyError> {
    fn number(bytes: &mut &[u8]) -> Result<usize, SpdyError> {
        let (number, rest) = bytes.split_first_chunk::<4>().ok_or(SpdyError::Protocol("headers are cut short"))?;
        *bytes = rest;
        Ok(u32::from_be_bytes(*number) as usize)
    }
    fn text(bytes: &mut &[u8]) -> Result<String, SpdyError> {
        let length = number(bytes)?;
        let (text, rest) = bytes.split_at_checked(length).ok_or(SpdyError::Protocol("headers are cut short"))?;
        *bytes = rest;
        String::from_utf8(text.to_vec()).map_err(|_| SpdyError::Protocol("headers are not text"))
    }
    let count = number(&mut bytes)?;
    // Each header takes eight bytes and more, so what is there bounds how often this goes round.
    let mut headers = Vec::new();
    for _ in 0..count {
        headers.push((text(&mut bytes)?, text(&mut bytes)?));
    }
    Ok(Headers(headers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_come_back_one_after_the_other() {
        let (mut deflater, mut inflater) = (Deflater::default(), Inflater::default());
        for n in 0..20 {
            let headers = Headers::of(&[("streamtype", "data"), ("port", &n.to_string()), ("requestid", "7")]);
            let block = deflater.block(&headers).unwrap();
            assert_eq!(inflater.headers(&block).unwrap(), headers);
        }
        assert_eq!(Headers::of(&[("streamType", "error")]).get("streamtype"), Some("error"));
    }

    #[test]
    fn a_block_that_grows_too_much_is_refused() {
        let mut deflater = Deflater::default();
        let bomb = deflater.block(&Headers::of(&[("a", &"x".repeat(1 << 20))])).unwrap();
        assert!(bomb.len() < 16 * 1024);
        assert!(matches!(Inflater::default().headers(&bomb), Err(SpdyError::Protocol("headers are too large"))));
    }

    #[test]
    fn no_block_of_junk_is_taken() {
        for junk in [&b""[..], b"nonsense", &[0x78, 0xbb, 1, 2, 3, 4, 5], &[0; 64]] {
            assert!(Inflater::default().headers(junk).is_err(), "{junk:?}");
        }
        let whole = Deflater::default().block(&Headers::of(&[("a", "b")])).unwrap();
        for end in 0..whole.len() - 5 {
            assert!(Inflater::default().headers(&whole[..end]).is_err(), "cut at {end}");
        }
    }
}
