//! Join tokens: one line of text that a person carries from a cluster to a new machine. It says where the cluster is, by
//! which authority to know it, and holds the secret that admits the machine.
//!
//! The text is `flt1.` and base64url without padding of
//! `cluster 16 | authority 32 | id 8 | secret 32 | expiry 8 (seconds since 1970, 0 for none) | addresses | check 4`,
//! where each address is `4|6, octets, port`, after a byte with their count. Numbers are big-endian. The check is the head
//! of a SHA-256 over all before it and finds slips of copying; the secret is what protects.
//!
//! Invariant: the secret is shown by `Display` of the token alone, kept hashed, and compared in constant time.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::{constant_time, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::certificate::{Fingerprint, fingerprint};
use crate::names::ClusterId;

const PREFIX: &str = "flt1.";
const CHECK_BYTES: usize = 4;
const SECRET_DOMAIN: &[u8] = b"flotilla/token/1";

/// The most addresses that a token holds.
pub const MAX_TOKEN_ADDRESSES: usize = 8;

/// The longest token.
pub const MAX_TOKEN_BYTES: usize = 512;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TokenError {
    #[error("a token begins with {PREFIX}")]
    Prefix,
    #[error("the token is longer than {MAX_TOKEN_BYTES} characters")]
    TooLong,
    #[error("the token holds a character that does not belong in one: was it copied whole, on one line?")]
    Alphabet,
    #[error("the token is cut short or was changed: copy it whole, on one line")]
    Damaged,
    #[error("the token holds no address, or more than {MAX_TOKEN_ADDRESSES}")]
    Addresses,
    #[error("a token id is 16 hexadecimal digits")]
    Id,
}

/// The public name of a token, under which it is listed and revoked.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TokenId([u8; 8]);

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for TokenId {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let digits = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if text.len() != 16 || !digits {
            return Err(TokenError::Id);
        }
        u64::from_str_radix(text, 16).map(|id| TokenId(id.to_be_bytes())).map_err(|_| TokenError::Id)
    }
}

/// What proves that a machine was given a token: 256 random bits.
#[derive(Clone, Serialize, Deserialize)]
pub struct TokenSecret([u8; 32]);

impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSecret")
    }
}

impl TokenSecret {
    /// What is stored instead of the secret. With 256 random bits there is nothing to guess, so a plain hash will do.
    pub fn hash(&self, id: TokenId) -> SecretHash {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(SECRET_DOMAIN);
        context.update(&id.0);
        context.update(&self.0);
        let mut hash = [0; 32];
        hash.copy_from_slice(context.finish().as_ref());
        SecretHash(hash)
    }
}

/// A token's secret as it is stored.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub struct SecretHash([u8; 32]);

impl SecretHash {
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        SecretHash(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether `secret` is the one of the token `id`; takes as long for a wrong one as for the right one.
    pub fn matches(&self, id: TokenId, secret: &TokenSecret) -> bool {
        constant_time::verify_slices_are_equal(&self.0, &secret.hash(id).0).is_ok()
    }
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretHash")
    }
}

/// A join token.
#[derive(Clone)]
pub struct Token {
    cluster: ClusterId,
    authority: Fingerprint,
    id: TokenId,
    secret: TokenSecret,
    expires: Option<SystemTime>,
    addresses: Vec<SocketAddr>,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({} of {})", self.id, self.cluster)
    }
}

impl Token {
    /// A new token for a cluster that is found at `addresses`.
    pub fn generate(
        cluster: ClusterId,
        authority: Fingerprint,
        expires: Option<SystemTime>,
        addresses: Vec<SocketAddr>,
    ) -> Result<Self, TokenError> {
        if addresses.is_empty() || addresses.len() > MAX_TOKEN_ADDRESSES {
            return Err(TokenError::Addresses);
        }
        let (mut id, mut secret) = ([0; 8], [0; 32]);
        crate::random::fill(&mut id);
        crate::random::fill(&mut secret);
        // The text keeps whole seconds, so that a token equals what is read back from its text.
        let expires = expires.map(|at| UNIX_EPOCH + Duration::from_secs(unix_seconds(at)));
        Ok(Token { cluster, authority, id: TokenId(id), secret: TokenSecret(secret), expires, addresses })
    }

    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// SHA-256 of the authority's certificate.
    pub fn authority(&self) -> &Fingerprint {
        &self.authority
    }

    pub fn id(&self) -> TokenId {
        self.id
    }

    pub fn secret(&self) -> &TokenSecret {
        &self.secret
    }

    pub fn secret_hash(&self) -> SecretHash {
        self.secret.hash(self.id)
    }

    /// When the token ends, as far as its holder can know; the cluster decides.
    pub fn expires(&self) -> Option<SystemTime> {
        self.expires
    }

    /// The same token for a cluster that is found elsewhere; at most [`MAX_TOKEN_ADDRESSES`] are taken.
    #[must_use]
    pub fn found_at(&self, mut addresses: Vec<SocketAddr>) -> Self {
        addresses.truncate(MAX_TOKEN_ADDRESSES);
        Token { addresses, ..self.clone() }
    }

    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(self.cluster.as_bytes());
        bytes.extend_from_slice(&self.authority);
        bytes.extend_from_slice(&self.id.0);
        bytes.extend_from_slice(&self.secret.0);
        bytes.extend_from_slice(&self.expires.map_or(0, unix_seconds).to_be_bytes());
        // Bounded where a token is made.
        bytes.push(self.addresses.len() as u8);
        for address in &self.addresses {
            match address.ip() {
                IpAddr::V4(ip) => {
                    bytes.push(4);
                    bytes.extend_from_slice(&ip.octets());
                }
                IpAddr::V6(ip) => {
                    bytes.push(6);
                    bytes.extend_from_slice(&ip.octets());
                }
            }
            bytes.extend_from_slice(&address.port().to_be_bytes());
        }
        let check = fingerprint(&bytes);
        bytes.extend_from_slice(&check[..CHECK_BYTES]);
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, TokenError> {
        let (body, check) = bytes.split_last_chunk::<CHECK_BYTES>().ok_or(TokenError::Damaged)?;
        if fingerprint(body)[..CHECK_BYTES] != check[..] {
            return Err(TokenError::Damaged);
        }
        let mut rest = Reader(body);
        let cluster = ClusterId::from_bytes(rest.take()?);
        let (authority, id, secret) = (rest.take()?, TokenId(rest.take()?), TokenSecret(rest.take()?));
        let expires = match u64::from_be_bytes(rest.take()?) {
            0 => None,
            seconds => Some(UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).ok_or(TokenError::Damaged)?),
        };
        let addresses = rest.addresses()?;
        if rest.0.is_empty() {
            Ok(Token { cluster, authority, id, secret, expires, addresses })
        } else {
            Err(TokenError::Damaged)
        }
    }
}

fn unix_seconds(at: SystemTime) -> u64 {
    // At least 1: 0 stands for a token that does not expire.
    at.duration_since(UNIX_EPOCH).map_or(1, |since| since.as_secs().max(1))
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], TokenError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(TokenError::Damaged)?;
        self.0 = rest;
        Ok(*head)
    }

    fn addresses(&mut self) -> Result<Vec<SocketAddr>, TokenError> {
        let [count] = self.take()?;
        if count == 0 || usize::from(count) > MAX_TOKEN_ADDRESSES {
            return Err(TokenError::Addresses);
        }
        (0..count).map(|_| self.address()).collect()
    }

    fn address(&mut self) -> Result<SocketAddr, TokenError> {
        let ip = match self.take()? {
            [4] => IpAddr::V4(Ipv4Addr::from(self.take::<4>()?)),
            [6] => IpAddr::V6(Ipv6Addr::from(self.take::<16>()?)),
            _ => return Err(TokenError::Damaged),
        };
        Ok(SocketAddr::new(ip, u16::from_be_bytes(self.take()?)))
    }
}

impl fmt::Display for Token {
    /// The text that admits whoever holds it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(self.to_bytes()))
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::TooLong);
        }
        let body = text.strip_prefix(PREFIX).ok_or(TokenError::Prefix)?;
        let in_alphabet = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if !body.bytes().all(in_alphabet) {
            return Err(TokenError::Alphabet);
        }
        Token::from_bytes(&URL_SAFE_NO_PAD.decode(body).map_err(|_| TokenError::Damaged)?)
    }
}
