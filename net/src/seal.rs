//! Sealing: what must not stand readable in the log, in a snapshot or in a backup (the authority's key, Secrets) is
//! encrypted before it is proposed, under a key that only the cluster's nodes hold.
//!
//! The envelope is `version 1 | key id 8 | nonce 12 | ciphertext | tag 16`, AES-256-GCM, and its header is authenticated
//! together with the caller's context. Nonces are random: one key seals at most 2^32 envelopes before it is rotated.
//!
//! Invariant: what was sealed for one context opens in no other.
//! Invariant: a key is never shown, and its bytes are overwritten when it is dropped.

use std::fmt;
use std::io;
use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};

use crate::files;

const VERSION: u8 = 1;
const KEY_ID_BYTES: usize = 8;
const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;
const HEADER_BYTES: usize = 1 + KEY_ID_BYTES + NONCE_BYTES;
const KEY_BYTES: usize = 32;
/// A key in bytes: `version 1 | key id 8 | key 32`.
const ENCODED_BYTES: usize = 1 + KEY_ID_BYTES + KEY_BYTES;
const FILE: &str = "seal.key";

/// By how much an envelope is longer than what it holds.
pub const SEAL_OVERHEAD_BYTES: usize = HEADER_BYTES + TAG_BYTES;

#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error("not a sealed envelope")]
    Malformed,
    #[error("sealed with key {found}, this is key {held}")]
    OtherKey { found: SealKeyId, held: SealKeyId },
    #[error("the sealed bytes were altered or belong elsewhere")]
    Altered,
    #[error("the bytes of a seal key are damaged")]
    Damaged,
    #[error("the seal key's file cannot be used")]
    Io(#[from] io::Error),
}

/// Which key sealed an envelope.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SealKeyId([u8; KEY_ID_BYTES]);

impl fmt::Display for SealKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SealKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A key that seals and opens. It goes to the cluster's nodes only, over a connection that has proved who they are.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealKey {
    id: SealKeyId,
    key: [u8; KEY_BYTES],
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealKey({})", self.id)
    }
}

impl Drop for SealKey {
    fn drop(&mut self) {
        // A plain assignment to memory that is not read again may be left out by the compiler.
        std::hint::black_box(&mut self.key).fill(0);
        std::hint::black_box(&self.key);
    }
}

impl SealKey {
    pub fn generate() -> Self {
        let (mut id, mut key) = ([0; KEY_ID_BYTES], [0; KEY_BYTES]);
        crate::random::fill(&mut id);
        crate::random::fill(&mut key);
        SealKey { id: SealKeyId(id), key }
    }

    pub fn id(&self) -> SealKeyId {
        self.id
    }

    /// `plain` in an envelope that opens only with the same `context`.
    pub fn seal(&self, plain: &[u8], context: &[u8]) -> Vec<u8> {
        let mut nonce = [0; NONCE_BYTES];
        crate::random::fill(&mut nonce);
        self.seal_with(nonce, plain, context)
    }

    fn seal_with(&self, nonce: [u8; NONCE_BYTES], plain: &[u8], context: &[u8]) -> Vec<u8> {
        let mut header = Vec::with_capacity(HEADER_BYTES);
        header.push(VERSION);
        header.extend_from_slice(&self.id.0);
        header.extend_from_slice(&nonce);
        let mut body = plain.to_vec();
        // Sealing fails only above 64 GiB, which no caller can hold in one object.
        self.cipher()
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad(&header, context), &mut body)
            .expect("a plaintext below the cipher's bound");
        header.append(&mut body);
        header
    }

    /// What `envelope` holds.
    pub fn open(&self, envelope: &[u8], context: &[u8]) -> Result<Vec<u8>, SealError> {
        let found = SealKey::key_id(envelope)?;
        if found != self.id {
            return Err(SealError::OtherKey { found, held: self.id });
        }
        let (header, body) = envelope.split_at(HEADER_BYTES);
        let nonce = Nonce::try_assume_unique_for_key(&header[1 + KEY_ID_BYTES..]).map_err(|_| SealError::Malformed)?;
        let mut body = body.to_vec();
        let plain =
            self.cipher().open_in_place(nonce, aad(header, context), &mut body).map_err(|_| SealError::Altered)?;
        let length = plain.len();
        body.truncate(length);
        Ok(body)
    }

    /// Which key sealed `envelope`.
    pub fn key_id(envelope: &[u8]) -> Result<SealKeyId, SealError> {
        if envelope.len() < SEAL_OVERHEAD_BYTES || envelope[0] != VERSION {
            return Err(SealError::Malformed);
        }
        let id = envelope[1..1 + KEY_ID_BYTES].try_into().map_err(|_| SealError::Malformed)?;
        Ok(SealKeyId(id))
    }

    /// The key itself, for whoever keeps it: in a file of its owner, or sealed under another key.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(ENCODED_BYTES);
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.id.0);
        bytes.extend_from_slice(&self.key);
        bytes
    }

    /// The key that [`SealKey::encode`] gave.
    ///
    /// # Errors
    /// [`SealError::Damaged`].
    pub fn decode(bytes: &[u8]) -> Result<Self, SealError> {
        if bytes.len() != ENCODED_BYTES || bytes[0] != VERSION {
            return Err(SealError::Damaged);
        }
        let (id, key) = bytes[1..].split_at(KEY_ID_BYTES);
        let id = SealKeyId(id.try_into().map_err(|_| SealError::Damaged)?);
        Ok(SealKey { id, key: key.try_into().map_err(|_| SealError::Damaged)? })
    }

    /// Keeps the key in `dir`, readable by its owner alone.
    pub fn store(&self, dir: &Path) -> Result<(), SealError> {
        Ok(files::write_private(dir, FILE, &self.encode())?)
    }

    /// The key that [`SealKey::store`] kept in `dir`, if there is one.
    pub fn load(dir: &Path) -> Result<Option<Self>, SealError> {
        files::read_bounded(&dir.join(FILE), 1024)?.map(|bytes| Self::decode(&bytes)).transpose()
    }

    fn cipher(&self) -> LessSafeKey {
        // The key has the length that the cipher asks for by its type.
        LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &self.key).expect("a key of 32 bytes"))
    }
}

fn aad(header: &[u8], context: &[u8]) -> Aad<Vec<u8>> {
    Aad::from([header, context].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_in_its_context_only() {
        let key = SealKey::generate();
        let envelope = key.seal(b"secret", b"here");
        assert_eq!(envelope.len(), 6 + SEAL_OVERHEAD_BYTES);
        assert_eq!(key.open(&envelope, b"here").expect("opens"), b"secret");
        assert!(matches!(key.open(&envelope, b"there"), Err(SealError::Altered)));
        assert_ne!(key.seal(b"secret", b"here"), envelope, "each envelope has its own nonce");
    }

    #[test]
    fn every_altered_or_missing_byte_is_noticed() {
        let key = SealKey::generate();
        let envelope = key.seal(b"secret", b"");
        for at in 0..envelope.len() {
            let mut altered = envelope.clone();
            altered[at] ^= 1;
            assert!(key.open(&altered, b"").is_err(), "byte {at}");
            assert!(key.open(&envelope[..at], b"").is_err(), "{at} bytes");
        }
    }

    #[test]
    fn the_envelope_is_pinned() {
        let key = SealKey { id: SealKeyId([7; KEY_ID_BYTES]), key: [9; KEY_BYTES] };
        let envelope = key.seal_with([5; NONCE_BYTES], b"secret", b"core/secrets/default/db\0uid");
        let hex: String = envelope.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "010707070707070707050505050505050505050505bc12d5246eac79b7db191b68c1ad2caa41622cc0946b");
        assert_eq!(key.open(&envelope, b"core/secrets/default/db\0uid").expect("opens"), b"secret");
        assert_eq!(SealKey::decode(&key.encode()).expect("a key"), key);
        assert_eq!(key.encode(), [&[1][..], &[7; 8], &[9; 32]].concat());
    }

    #[test]
    fn another_key_is_named() {
        let (one, two) = (SealKey::generate(), SealKey::generate());
        let envelope = one.seal(b"secret", b"");
        assert_eq!(SealKey::key_id(&envelope).expect("an envelope"), one.id());
        let refused = two.open(&envelope, b"").expect_err("another key");
        assert_eq!(refused.to_string(), format!("sealed with key {}, this is key {}", one.id(), two.id()));
    }

    #[test]
    fn a_key_is_kept_and_never_shown() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(SealKey::load(dir.path()).expect("reads").is_none());
        let key = SealKey::generate();
        key.store(dir.path()).expect("stores");
        assert_eq!(SealKey::load(dir.path()).expect("reads"), Some(key.clone()));
        assert_eq!(format!("{key:?}"), format!("SealKey({})", key.id()));
        std::fs::write(dir.path().join(FILE), b"short").expect("writes");
        assert!(matches!(SealKey::load(dir.path()), Err(SealError::Damaged)));
    }
}
