//! Names, uids and hashes of what planners create.
//!
//! Invariant: the same template and collision count always hash alike.

use flotilla_api::k8s_openapi::api::core::v1::PodTemplateSpec;
use rand::RngCore;

/// Upstream's alphabet of generated names: no vowels, so that no words come out, and nothing that
/// looks like something else.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX_LENGTH: usize = 5;
/// Longest name that still leaves room for a suffix in a DNS label.
const MAX_PREFIX_BYTES: usize = 63 - SUFFIX_LENGTH;

/// `prefix` and five random letters.
pub(crate) fn generate(prefix: &str, rng: &mut dyn RngCore) -> String {
    let mut end = prefix.len().min(MAX_PREFIX_BYTES);
    while !prefix.is_char_boundary(end) {
        end -= 1;
    }
    let mut name = String::from(&prefix[..end]);
    name.extend((0..SUFFIX_LENGTH).map(|_| letter(rng.next_u32())));
    name
}

/// A random (version 4) UUID.
pub(crate) fn uid(rng: &mut dyn RngCore) -> String {
    let mut bytes = [0u8; 16];
    rng.fill_bytes(&mut bytes);
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = String::with_capacity(36);
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.extend([byte >> 4, byte & 0x0f].map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)])));
    }
    text
}

/// What tells the ReplicaSets of one Deployment apart: `pod-template-hash`.
pub(crate) fn template_hash(template: &PodTemplateSpec, collisions: i32) -> String {
    let mut hash = Fnv32::default();
    // A template has text keys only, so it serializes; if it did not, all templates would hash alike
    // and the collision count would keep them apart.
    hash.feed(&serde_json::to_vec(template).unwrap_or_default());
    if collisions > 0 {
        hash.feed(&collisions.to_le_bytes());
    }
    hash.0.to_string().bytes().map(|digit| letter(u32::from(digit))).collect()
}

/// A number for a piece of text, for indexes that live in memory only.
pub(crate) fn hash64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

fn letter(number: u32) -> char {
    char::from(ALPHABET[number as usize % ALPHABET.len()])
}

struct Fnv32(u32);

impl Default for Fnv32 {
    fn default() -> Self {
        Self(0x811c_9dc5)
    }
}

impl Fnv32 {
    fn feed(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    #[test]
    fn generated_names_fit_a_label() {
        let mut rng = SmallRng::seed_from_u64(1);
        let name = generate(&"x".repeat(200), &mut rng);
        assert_eq!(name.len(), 63);
        assert!(generate("web-", &mut rng).starts_with("web-"));
    }

    #[test]
    fn uids_are_version_4() {
        let uid = uid(&mut SmallRng::seed_from_u64(1));
        assert_eq!(uid.len(), 36);
        assert_eq!(&uid[14..15], "4");
        assert!("89ab".contains(&uid[19..20]));
    }

    #[test]
    fn a_hash_depends_on_template_and_collisions() {
        let template = PodTemplateSpec::default();
        assert_eq!(template_hash(&template, 0), template_hash(&template, 0));
        assert_ne!(template_hash(&template, 0), template_hash(&template, 1));
    }
}
