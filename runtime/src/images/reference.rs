//! Names of images, as people write them and as registries want them.
//!
//! Defined by the distribution project's reference grammar and Docker's normalization: `nginx` is
//! `docker.io/library/nginx:latest`.
//!
//! Invariant: the text of a [`Reference`] parses back to the same Reference, and none of its parts can
//! change the meaning of a URL or of a path.

use std::fmt;
use std::str::FromStr;

use super::digest::{Digest, DigestError};

const DEFAULT_REGISTRY: &str = "docker.io";
const DEFAULT_NAMESPACE: &str = "library";
const DEFAULT_TAG: &str = "latest";

/// The registry and repository together, as in the distribution project.
const NAME_BYTES_MAX: usize = 255;
const TAG_BYTES_MAX: usize = 128;

/// Which image: a registry, a repository in it, and a tag or a digest (which then wins) or both.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    #[error("image name is empty")]
    Empty,
    #[error("image name is longer than {NAME_BYTES_MAX} bytes")]
    TooLong,
    #[error("{0:?} is not a registry host")]
    Registry(String),
    #[error("{0:?} is not a repository name: lower-case letters, digits and single separators . _ - only")]
    Repository(String),
    #[error("{0:?} is not a tag: at most {TAG_BYTES_MAX} letters, digits, _ . and -, not beginning with . or -")]
    Tag(String),
    #[error("{0:?} is not a digest: {1}")]
    Digest(String, DigestError),
}

impl Reference {
    /// The registry's host, with its port if one was given: `docker.io`, `localhost:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path in the registry: `library/nginx`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// What a registry is asked for: the digest, or else the tag.
    pub fn version(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => DEFAULT_TAG.into(),
        }
    }

    /// The registry and the repository: `docker.io/library/nginx`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The same repository at a digest: `docker.io/library/nginx@sha256:…`.
    pub fn at(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        let (rest, digest) = split_digest(text)?;
        let (name, tag) = split_tag(rest)?;
        if name.len() > NAME_BYTES_MAX {
            return Err(ReferenceError::TooLong);
        }
        let (registry, repository) = split_registry(name);
        let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
        check_registry(registry)?;
        check_repository(repository)?;
        let repository = match (registry, repository.contains('/')) {
            (DEFAULT_REGISTRY, false) => format!("{DEFAULT_NAMESPACE}/{repository}"),
            _ => repository.to_owned(),
        };
        if registry.len() + 1 + repository.len() > NAME_BYTES_MAX {
            return Err(ReferenceError::TooLong);
        }
        let tag = tag.or_else(|| digest.is_none().then(|| DEFAULT_TAG.to_owned()));
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }
}

fn split_digest(text: &str) -> Result<(&str, Option<Digest>), ReferenceError> {
    match text.split_once('@') {
        None => Ok((text, None)),
        Some((rest, digest)) => match digest.parse() {
            Ok(parsed) => Ok((rest, Some(parsed))),
            Err(error) => Err(ReferenceError::Digest(clip(digest), error)),
        },
    }
}

/// A colon after the last slash begins a tag; an earlier one belongs to the registry's port.
fn split_tag(text: &str) -> Result<(&str, Option<String>), ReferenceError> {
    let path_start = text.rfind('/').map_or(0, |slash| slash + 1);
    let Some(colon) = text[path_start..].find(':') else { return Ok((text, None)) };
    let tag = &text[path_start + colon + 1..];
    if !is_tag(tag) {
        return Err(ReferenceError::Tag(clip(tag)));
    }
    Ok((&text[..path_start + colon], Some(tag.to_owned())))
}

/// The first component is a registry if it looks like a host, else the registry is Docker Hub.
fn split_registry(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" || has_upper_case(first) => {
            (first, rest)
        }
        _ => (DEFAULT_REGISTRY, name),
    }
}

fn has_upper_case(text: &str) -> bool {
    text.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let mut bytes = tag.bytes();
    tag.len() <= TAG_BYTES_MAX
        && bytes.next().is_some_and(word)
        && bytes.all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

fn check_registry(registry: &str) -> Result<(), ReferenceError> {
    is_host(registry).then_some(()).ok_or_else(|| ReferenceError::Registry(clip(registry)))
}

fn is_host(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (text, None),
    };
    port.is_none_or(|port| port.parse::<u16>().is_ok_and(|number| number > 0) && !port.starts_with('+'))
        && match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => host.split('.').all(is_host_label),
        }
}

fn is_host_label(label: &str) -> bool {
    let edge = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    edge(label.bytes().next())
        && edge(label.bytes().next_back())
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn check_repository(repository: &str) -> Result<(), ReferenceError> {
    repository.split('/').all(is_component).then_some(()).ok_or_else(|| ReferenceError::Repository(clip(repository)))
}

/// Runs of lower-case letters and digits, between them `.`, `_`, `__` or any number of `-`.
fn is_component(component: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    component.starts_with(alphanumeric)
        && component.ends_with(alphanumeric)
        && component
            .split(alphanumeric)
            .all(|separator| matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-'))
}

/// Enough of a bad name to recognize it by.
fn clip(text: &str) -> String {
    text.chars().take(NAME_BYTES_MAX).collect()
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn full(text: &str) -> String {
        text.parse::<Reference>().unwrap().to_string()
    }

    #[test]
    fn short_names_mean_docker_hub() {
        assert_eq!(full("nginx"), "docker.io/library/nginx:latest");
        assert_eq!(full("nginx:1.27"), "docker.io/library/nginx:1.27");
        assert_eq!(full("grafana/grafana"), "docker.io/grafana/grafana:latest");
        assert_eq!(full("docker.io/nginx"), "docker.io/library/nginx:latest");
        assert_eq!(full("index.docker.io/nginx"), "docker.io/library/nginx:latest");
    }

    #[test]
    fn hosts_are_told_from_namespaces() {
        assert_eq!(full("localhost/web"), "localhost/web:latest");
        assert_eq!(full("localhost:5000/web:v1"), "localhost:5000/web:v1");
        assert_eq!(full("ghcr.io/a/b/c:v1"), "ghcr.io/a/b/c:v1");
        assert_eq!(full("[::1]:5000/web"), "[::1]:5000/web:latest");
    }

    #[test]
    fn a_digest_wins_over_the_tag() {
        let reference: Reference = format!("quay.io/a/b:v1@{DIGEST}").parse().unwrap();
        assert_eq!(reference.version(), DIGEST);
        assert_eq!(reference.to_string(), format!("quay.io/a/b:v1@{DIGEST}"));
        assert_eq!(full(&format!("nginx@{DIGEST}")), format!("docker.io/library/nginx@{DIGEST}"));
    }

    #[test]
    fn bad_names_are_refused() {
        for bad in [
            "",
            ":",
            "Nginx",
            "a//b",
            "/a",
            "a/",
            "a..b",
            "a/../b",
            "nginx:",
            "nginx:.x",
            "nginx@sha256:12",
            "-a",
            "host:99999/a",
            "http://host/a",
            "a b",
            "a?b",
            "nginx:la/../st",
            "[::1/a",
            "a:b:c",
            "host:+80/a",
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?} was accepted as {:?}", bad.parse::<Reference>());
        }
        assert!("a".repeat(300).parse::<Reference>().is_err());
    }

    proptest! {
        #[test]
        fn anything_parses_or_is_refused_without_panic(text in "\\PC{0,300}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string().parse::<Reference>(), Ok(reference));
            }
        }

        #[test]
        fn names_after_the_grammar_are_accepted(
            host in "([a-z][a-z0-9-]{0,8}[a-z0-9]\\.){1,3}[a-z]{2,5}(:[1-9][0-9]{0,3})?/",
            path in "[a-z0-9]{1,8}((\\.|_|__|-{1,3})[a-z0-9]{1,5}){0,2}(/[a-z0-9]{1,8}){0,3}",
            tag in "[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}",
        ) {
            let text = format!("{host}{path}:{tag}");
            let reference: Reference = text.parse().unwrap();
            prop_assert_eq!(reference.to_string(), text);
            prop_assert_eq!(reference.repository(), path);
        }
    }
}
