//! What may be a name, and how new names and uids are drawn.
//!
//! The rules are RFC 1123's and RFC 1035's as upstream's `validation` package words them. Each check gives the complaint,
//! or nothing if the text is fine.
//!
//! Invariant: randomness is handed in by the caller.

use std::cmp::Ordering;

use rand::RngCore;

/// Upstream's alphabet for generated suffixes: no vowels and no digits that look like them, so that no words arise.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX_LENGTH: usize = 5;
const MAX_GENERATED_BYTES: usize = 63;

pub const LABEL_MAX_BYTES: usize = 63;
pub const SUBDOMAIN_MAX_BYTES: usize = 253;

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and \
     end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
     '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must \
     start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
     '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const UNDERSCORED: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and \
     must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
     '_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*')";
const WILDCARD: &str = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist \
     of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', regex \
     used for validation is '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
     character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is \
     '[a-z]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric \
     character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
     '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must \
     start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is \
     '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const CONFIG_KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or \
     'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
const ENV_NAME: &str =
    "a valid environment variable name must consist only of printable ASCII characters other than '='";
const PORT_NAME: &str = "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)";

/// `web`: at most 63 bytes of lower-case letters, digits and inner hyphens.
pub fn dns_label(text: &str) -> Vec<String> {
    let mut complaints = too_long(text, LABEL_MAX_BYTES);
    if !is_label(text) {
        let dots = text.split('.').all(is_label);
        complaints.push(if dots { "must not contain dots" } else { LABEL }.to_owned());
    }
    complaints
}

/// `web.example.com`: labels joined by dots, at most 253 bytes.
pub fn dns_subdomain(text: &str) -> Vec<String> {
    let mut complaints = too_long(text, SUBDOMAIN_MAX_BYTES);
    if !text.split('.').all(is_label) {
        complaints.push(SUBDOMAIN.to_owned());
    }
    complaints
}

/// `_tcp.example.com`: a subdomain of which the labels may have underscores within and in front.
pub fn dns_subdomain_with_underscores(text: &str) -> Vec<String> {
    let mut complaints = too_long(text, SUBDOMAIN_MAX_BYTES);
    let dashed = |label: &str| label.strip_prefix('_').unwrap_or(label).replace('_', "-");
    if !text.split('.').all(|label| is_label(&dashed(label))) {
        complaints.push(UNDERSCORED.to_owned());
    }
    complaints
}

/// `*.example.com`: a subdomain of which the first label may be anything.
pub fn dns_wildcard(text: &str) -> Vec<String> {
    let mut complaints = too_long(text, SUBDOMAIN_MAX_BYTES);
    if !text.strip_prefix("*.").is_some_and(|rest| rest.split('.').all(is_label)) {
        complaints.push(WILDCARD.to_owned());
    }
    complaints
}

/// A DNS label that starts with a letter.
pub fn dns_1035_label(text: &str) -> Vec<String> {
    let mut complaints = too_long(text, LABEL_MAX_BYTES);
    if !is_label(text) || !text.starts_with(|c: char| c.is_ascii_lowercase()) {
        complaints.push(LABEL_1035.to_owned());
    }
    complaints
}

/// `app` or `example.com/app`: the keys of labels, taints and resources.
pub fn qualified_name(text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    let parts: Vec<&str> = text.split('/').collect();
    let name = match parts.as_slice() {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                complaints.push("prefix part must be non-empty".to_owned());
            } else {
                complaints.extend(dns_subdomain(prefix).into_iter().map(|c| format!("prefix part {c}")));
            }
            name
        }
        _ => {
            return vec![format!(
                "a qualified name {QUALIFIED} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        complaints.push("name part must be non-empty".to_owned());
    } else if name.len() > LABEL_MAX_BYTES {
        complaints.push(format!("name part must be no more than {LABEL_MAX_BYTES} bytes"));
    }
    if !is_name_part(name) {
        complaints.push(format!("name part {QUALIFIED}"));
    }
    complaints
}

/// The value of a label; may be empty.
pub fn label_value(text: &str) -> Vec<String> {
    let mut complaints = too_long(text, LABEL_MAX_BYTES);
    if !text.is_empty() && !is_name_part(text) {
        complaints.push(LABEL_VALUE.to_owned());
    }
    complaints
}

/// A key of a ConfigMap or Secret.
pub fn config_key(text: &str) -> Vec<String> {
    let mut complaints = too_long(text, SUBDOMAIN_MAX_BYTES);
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)) {
        complaints.push(CONFIG_KEY.to_owned());
    }
    match text {
        "." => complaints.push("must not be '.'".to_owned()),
        ".." => complaints.push("must not be '..'".to_owned()),
        text if text.starts_with("..") => complaints.push("must not start with '..'".to_owned()),
        _ => {}
    }
    complaints
}

/// The name of an environment variable.
pub fn env_name(text: &str) -> Vec<String> {
    match !text.is_empty() && text.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=') {
        true => Vec::new(),
        false => vec![ENV_NAME.to_owned()],
    }
}

/// The name of a port: at most 15 bytes with at least one letter.
pub fn port_name(text: &str) -> Vec<String> {
    let mut complaints = too_long(text, 15);
    if !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        complaints.push(PORT_NAME.to_owned());
    }
    if !text.bytes().any(|b| b.is_ascii_lowercase()) {
        complaints.push("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        complaints.push("must not contain consecutive hyphens".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        complaints.push("must not begin or end with a hyphen".to_owned());
    }
    complaints
}

/// A name that is one segment of a URL path and nothing more is known of.
pub fn path_segment(text: &str) -> Vec<String> {
    match text {
        "." | ".." => vec![format!("may not be '{text}'")],
        text => ['/', '%'].iter().filter(|c| text.contains(**c)).map(|c| format!("may not contain '{c}'")).collect(),
    }
}

fn too_long(text: &str, max_bytes: usize) -> Vec<String> {
    match text.len() > max_bytes {
        true => vec![format!("must be no more than {max_bytes} bytes")],
        false => Vec::new(),
    }
}

fn is_label(text: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    bounded_by(text, alphanumeric) && text.bytes().all(|b| alphanumeric(b) || b == b'-')
}

fn is_name_part(text: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_alphanumeric();
    bounded_by(text, alphanumeric) && text.bytes().all(|b| alphanumeric(b) || b"-_.".contains(&b))
}

fn bounded_by(text: &str, edge: impl Fn(u8) -> bool) -> bool {
    matches!((text.bytes().next(), text.bytes().next_back()), (Some(a), Some(b)) if edge(a) && edge(b))
}

/// A name from a `generateName`: the base, cut so that it fits a label, and five random characters.
pub fn generate(base: &str, rng: &mut dyn RngCore) -> String {
    let max = MAX_GENERATED_BYTES - SUFFIX_LENGTH;
    let end = (0..=max.min(base.len())).rev().find(|&i| base.is_char_boundary(i)).unwrap_or(0);
    format!("{}{}", &base[..end], suffix(rng))
}

/// Five random characters of upstream's alphabet.
pub fn suffix(rng: &mut dyn RngCore) -> String {
    (0..SUFFIX_LENGTH).map(|_| char::from(ALPHABET[draw(rng, ALPHABET.len() as u32)])).collect()
}

/// An evenly distributed number below `below`, which must not be 0.
fn draw(rng: &mut dyn RngCore, below: u32) -> usize {
    let limit = u32::MAX - u32::MAX % below;
    loop {
        let number = rng.next_u32();
        if number < limit {
            return (number % below) as usize;
        }
    }
}

/// A random (version 4) UUID.
pub fn uid(rng: &mut dyn RngCore) -> String {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut bytes = [0u8; 16];
    rng.fill_bytes(&mut bytes);
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = String::with_capacity(36);
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        for digit in [byte >> 4, byte & 0xf] {
            text.push(char::from(HEX[usize::from(digit)]));
        }
    }
    text
}

/// Upstream's order of versions: `v2`, `v1`, `v1beta2`, `v1beta1`, `v1alpha1`, then all else by name.
pub fn compare_versions(a: &str, b: &str) -> Ordering {
    match (rank(a), rank(b)) {
        (Some(a), Some(b)) => b.cmp(&a),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => a.cmp(b),
    }
}

/// How stable a version is, and its numbers.
fn rank(version: &str) -> Option<(u8, u64, u64)> {
    let rest = version.strip_prefix('v')?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let major = rest[..digits].parse().ok()?;
    let stage = &rest[digits..];
    if stage.is_empty() {
        return Some((2, major, 0));
    }
    let (level, minor) = match (stage.strip_prefix("beta"), stage.strip_prefix("alpha")) {
        (Some(minor), _) => (1, minor),
        (_, Some(minor)) => (0, minor),
        _ => return None,
    };
    Some((level, major, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn labels_and_subdomains() {
        for good in ["a", "0", "web-1", &"a".repeat(63)] {
            assert!(dns_label(good).is_empty(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a_b", "é", &"a".repeat(64)] {
            assert!(!dns_label(bad).is_empty(), "{bad}");
        }
        assert!(dns_subdomain("a.b-c.d").is_empty());
        for bad in ["", ".", "a..b", "a.", &"a".repeat(254)] {
            assert!(!dns_subdomain(bad).is_empty(), "{bad}");
        }
        assert!(!dns_1035_label("1a").is_empty());
    }

    #[test]
    fn qualified_names() {
        for good in ["app", "example.com/App_1.x", "a/b"] {
            assert!(qualified_name(good).is_empty(), "{good}");
        }
        for bad in ["", "/a", "a/", "a/b/c", "-a", "Example.com/a"] {
            assert!(!qualified_name(bad).is_empty(), "{bad}");
        }
    }

    #[test]
    fn ports_and_environment() {
        assert!(port_name("http-2").is_empty());
        for bad in ["", "80", "a--b", "-a", "a-", "HTTP", "abcdefghijklmnop"] {
            assert!(!port_name(bad).is_empty(), "{bad}");
        }
        assert!(env_name("my.VAR-1").is_empty());
        assert!(!env_name("a=b").is_empty());
        assert!(!env_name("").is_empty());
        assert!(!config_key("..x").is_empty());
    }

    #[test]
    fn a_uid_is_a_version_4_uuid() {
        let uid = uid(&mut StdRng::seed_from_u64(1));
        assert_eq!(uid.len(), 36);
        assert_eq!(&uid[14..15], "4");
        assert!("89ab".contains(&uid[19..20]));
    }

    proptest! {
        #[test]
        fn a_name_generated_from_a_valid_base_is_valid(base in "[a-z]([a-z0-9-]{0,100})", seed: u64) {
            let name = generate(&base, &mut StdRng::seed_from_u64(seed));
            prop_assert!(dns_label(&name).is_empty(), "{}", name);
        }

        #[test]
        fn no_text_panics(text in ".{0,300}", seed: u64) {
            let _ = (dns_label(&text), dns_subdomain(&text), qualified_name(&text), label_value(&text));
            let _ = (config_key(&text), env_name(&text), port_name(&text), path_segment(&text));
            let _ = generate(&text, &mut StdRng::seed_from_u64(seed));
        }
    }
}
