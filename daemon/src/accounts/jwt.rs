//! Tokens as they travel: JSON Web Tokens signed with ES256, and nothing else that the standard allows.
//!
//! Defined by RFC 7515 (compact serialization), RFC 7518 §3.4 and RFC 7519; the private claims are Kubernetes'.
//!
//! Invariant: the algorithm is ours to choose, never the token's. Claims are decoded only once the signature holds.

use aws_lc_rs::digest;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, EcdsaKeyPair, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// The largest token that is looked at.
pub const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// Audiences of one token.
pub const MAX_AUDIENCES: usize = 64;

const ALGORITHM: &str = "ES256";
const SIGNATURE_BYTES: usize = 64;
/// The bytes before the point in a P-256 key's `SubjectPublicKeyInfo`.
const KEY_INFO_PREFIX: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// An uncompressed point of P-256.
pub const POINT_BYTES: usize = 65;

/// What a token says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Claims {
    #[serde(deserialize_with = "one_or_many")]
    pub aud: Vec<String>,
    /// Seconds since 1970, as all times here.
    pub exp: i64,
    pub iat: i64,
    pub iss: String,
    pub jti: String,
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: Private,
    pub nbf: i64,
    pub sub: String,
}

/// What the token is bound to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Private {
    pub namespace: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Named>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Named>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Named>,
    pub serviceaccount: Named,
    /// When whoever holds it should have had a new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warnafter: Option<i64>,
}

/// One object for as long as it lives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    pub name: String,
    #[serde(default)]
    pub uid: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    alg: String,
    kid: String,
    /// Extensions that must be understood: we understand none.
    #[serde(default, skip_serializing)]
    crit: Option<Value>,
}

/// A token whose signature nobody has looked at.
pub struct Unverified<'a> {
    kid: String,
    signed: &'a str,
    payload: &'a str,
    signature: Vec<u8>,
}

impl<'a> Unverified<'a> {
    /// `None` for anything but a token of our form and algorithm.
    pub fn parse(token: &'a str) -> Option<Self> {
        if token.len() > MAX_TOKEN_BYTES {
            return None;
        }
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, payload) = signed.split_once('.')?;
        if payload.contains('.') {
            return None;
        }
        let header: Header = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()?;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        let ours = header.alg == ALGORITHM && header.crit.is_none() && signature.len() == SIGNATURE_BYTES;
        ours.then_some(Self { kid: header.kid, signed, payload, signature })
    }

    /// The key that it says it was signed with.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// What it says, if `point` signed it.
    pub fn verify(&self, point: &[u8]) -> Option<Claims> {
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point);
        key.verify(self.signed.as_bytes(), &self.signature).ok()?;
        let claims: Claims = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(self.payload).ok()?).ok()?;
        (claims.aud.len() <= MAX_AUDIENCES).then_some(claims)
    }
}

/// What a token says about its own life, for whoever got it from us and wants to know when to ask for the next.
pub fn claims_of_own(token: &str) -> Option<Claims> {
    let unverified = Unverified::parse(token)?;
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(unverified.payload).ok()?).ok()
}

/// A token that says `claims`; `None` if it would be too large.
pub fn sign(key: &EcdsaKeyPair, kid: &str, claims: &Claims) -> Option<String> {
    let header = Header { alg: ALGORITHM.into(), kid: kid.into(), crit: None };
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let signed =
        format!("{}.{}", encode(&serde_json::to_vec(&header).ok()?), encode(&serde_json::to_vec(claims).ok()?));
    let signature = key.sign(&SystemRandom::new(), signed.as_bytes()).ok()?;
    let token = format!("{signed}.{}", encode(signature.as_ref()));
    (token.len() <= MAX_TOKEN_BYTES).then_some(token)
}

/// The id of a key: upstream's, the digest of its `SubjectPublicKeyInfo`.
pub fn key_id(point: &[u8]) -> String {
    let info = [KEY_INFO_PREFIX, point].concat();
    URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, &info).as_ref())
}

/// The key as RFC 7517 has it; `None` if it is no point.
pub fn jwk(kid: &str, point: &[u8]) -> Option<Value> {
    let [4, coordinates @ ..] = point else { return None };
    if coordinates.len() != POINT_BYTES - 1 {
        return None;
    }
    let (x, y) = coordinates.split_at(coordinates.len() / 2);
    Some(serde_json::json!({
        "use": "sig", "kty": "EC", "kid": kid, "crv": "P-256", "alg": ALGORITHM,
        "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
    }))
}

/// `aud` may be a text or a list of them.
fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Audience {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Audience::deserialize(deserializer)? {
        Audience::One(one) => vec![one],
        Audience::Many(many) => many,
    })
}

#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Some(token) = Unverified::parse(text) {
        assert!(token.verify(&[4; POINT_BYTES]).is_none(), "no key has this point");
        assert!(token.kid().len() <= MAX_TOKEN_BYTES);
    }
    // What the signature keeps from strangers must not panic either.
    _ = claims_of_own(text);
    _ = serde_json::from_slice::<Claims>(input);
}
