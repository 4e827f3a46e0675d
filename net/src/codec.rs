//! How messages between peers become bytes: bincode in an envelope of one byte, the format's version, so that a later
//! format can be told from this one. Every message between daemons goes through here.
//!
//! Invariant: decoding takes at most the bound of its caller and leaves no byte over.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The version that this build writes.
pub const FORMAT_VERSION: u8 = 1;

/// The largest message that [`decode`] takes.
pub const MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("the message is empty")]
    Empty,
    #[error("the message has format version {0}, this build reads {FORMAT_VERSION}")]
    Version(u8),
    #[error("the message has {0} bytes too many")]
    Trailing(usize),
    #[error("the message is larger than {0} bytes")]
    TooLarge(usize),
    #[error("the message cannot be encoded")]
    Encode(#[source] bincode::error::EncodeError),
    #[error("the message cannot be decoded")]
    Decode(#[source] bincode::error::DecodeError),
}

/// The bytes of `value` in its envelope.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    let mut bytes = vec![FORMAT_VERSION];
    bincode::serde::encode_into_std_write(value, &mut bytes, bincode::config::standard())
        .map_err(CodecError::Encode)?;
    Ok(bytes)
}

/// The value in the envelope `bytes`, of at most [`MAX_MESSAGE_BYTES`].
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    decode_within::<T, MAX_MESSAGE_BYTES>(bytes)
}

/// Like [`decode`], for a message that must not be larger, nor make the decoder allocate more, than `MAX_BYTES`.
pub fn decode_within<T: DeserializeOwned, const MAX_BYTES: usize>(bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > MAX_BYTES {
        return Err(CodecError::TooLarge(MAX_BYTES));
    }
    let (version, body) = bytes.split_first().ok_or(CodecError::Empty)?;
    if *version != FORMAT_VERSION {
        return Err(CodecError::Version(*version));
    }
    let config = bincode::config::standard().with_limit::<MAX_BYTES>();
    let (value, read) = bincode::serde::decode_from_slice(body, config).map_err(CodecError::Decode)?;
    if read == body.len() { Ok(value) } else { Err(CodecError::Trailing(body.len() - read)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_back() {
        let value = (7_u64, "name".to_string(), vec![1_u8, 2, 3]);
        let bytes = encode(&value).expect("encodes");
        assert_eq!(bytes[0], FORMAT_VERSION);
        assert_eq!(decode::<(u64, String, Vec<u8>)>(&bytes).expect("decodes"), value);
    }

    #[test]
    fn every_truncation_and_every_addition_is_refused() {
        let mut bytes = encode(&(7_u64, "name".to_string())).expect("encodes");
        for end in 0..bytes.len() {
            assert!(decode::<(u64, String)>(&bytes[..end]).is_err(), "{end}");
        }
        bytes.push(0);
        assert!(matches!(decode::<(u64, String)>(&bytes), Err(CodecError::Trailing(1))));
    }

    #[test]
    fn another_version_is_named() {
        assert!(matches!(decode::<u8>(&[9, 0]), Err(CodecError::Version(9))));
        assert!(matches!(decode::<u8>(&[]), Err(CodecError::Empty)));
    }

    #[test]
    fn a_length_that_lies_is_refused_without_its_memory() {
        // A string that claims 2^63 bytes.
        let mut bytes = vec![FORMAT_VERSION, 253];
        bytes.extend_from_slice(&(1_u64 << 63).to_le_bytes());
        assert!(matches!(decode::<String>(&bytes), Err(CodecError::Decode(_))));
        assert!(matches!(decode_within::<u8, 4>(&[1; 5]), Err(CodecError::TooLarge(4))));
    }
}
