//! What a registry says when it wants to know who asks, and what it is told.
//!
//! Defined by RFC 7235 (challenges) and the distribution project's token specification.

use std::fmt;

use reqwest::{RequestBuilder, Url};
use serde::Deserialize;

use crate::images::error::one_line;

pub const TOKEN_BYTES_MAX: u64 = 1 << 20;
const CHALLENGE_BYTES_MAX: usize = 8 << 10;

/// What requests carry.
#[derive(Default)]
pub enum Authorization {
    #[default]
    Anonymous,
    Basic {
        username: String,
        password: String,
    },
    Bearer(String),
}

impl Authorization {
    pub fn apply(&self, request: RequestBuilder) -> RequestBuilder {
        match self {
            Authorization::Anonymous => request,
            Authorization::Basic { username, password } => request.basic_auth(username, Some(password)),
            Authorization::Bearer(token) => request.bearer_auth(token),
        }
    }
}

impl fmt::Debug for Authorization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Authorization::Anonymous => "Anonymous",
            Authorization::Basic { .. } => "Basic",
            Authorization::Bearer(_) => "Bearer",
        })
    }
}

/// How a registry wants to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

impl Challenge {
    /// Where a token to pull from `repository` is to be had.
    pub fn token_url(&self, repository: &str) -> Option<Url> {
        let Challenge::Bearer { realm, service, scope } = self else { return None };
        let mut url: Url = realm.parse().ok()?;
        if let Some(service) = service {
            url.query_pairs_mut().append_pair("service", service);
        }
        let scope = scope.clone().unwrap_or_else(|| format!("repository:{repository}:pull"));
        url.query_pairs_mut().append_pair("scope", &scope);
        Some(url)
    }
}

/// The strongest challenge that we know how to meet, of the `WWW-Authenticate` headers of an answer.
pub fn choose(headers: &[String]) -> Option<Challenge> {
    let challenges: Vec<Challenge> = headers.iter().filter_map(|header| parse_challenge(header)).collect();
    let bearer = challenges.iter().find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
    bearer.or(challenges.first()).cloned()
}

/// Reads `Basic realm="…"` or `Bearer realm="…",service="…",scope="…"`.
pub fn parse_challenge(header: &str) -> Option<Challenge> {
    if header.len() > CHALLENGE_BYTES_MAX {
        return None;
    }
    let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let (mut realm, mut service, mut scope) = (None, None, None);
    for (key, value) in parameters(rest) {
        match key.to_ascii_lowercase().as_str() {
            "realm" => realm = Some(value),
            "service" => service = Some(value),
            "scope" => scope = Some(value),
            _ => {}
        }
    }
    Some(Challenge::Bearer { realm: realm?, service, scope })
}

/// `key=value` or `key="value"` pairs between commas; a quoted value may hold commas and escapes.
fn parameters(text: &str) -> Vec<(String, String)> {
    let mut parameters = Vec::new();
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|c| *c == ',' || c.is_whitespace()).is_some() {}
        let key: String = std::iter::from_fn(|| chars.next_if(|c| *c != '=' && *c != ',')).collect();
        if chars.next_if_eq(&'=').is_none() {
            if chars.peek().is_none() {
                return parameters;
            }
            continue;
        }
        let value = if chars.next_if_eq(&'"').is_some() {
            quoted(&mut chars)
        } else {
            std::iter::from_fn(|| chars.next_if(|c| *c != ',')).collect()
        };
        parameters.push((key.trim().to_owned(), value));
    }
}

fn quoted(chars: &mut impl Iterator<Item = char>) -> String {
    let mut value = String::new();
    while let Some(c) = chars.next() {
        match c {
            '"' => break,
            '\\' => value.extend(chars.next()),
            c => value.push(c),
        }
    }
    value
}

/// The token in a token service's answer.
pub fn parse_token(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Answer {
        token: Option<String>,
        access_token: Option<String>,
    }
    let answer: Answer = serde_json::from_slice(body).ok()?;
    // It goes into a header, so it must be plain.
    answer.token.or(answer.access_token).filter(|token| token.bytes().all(|byte| byte.is_ascii_graphic()))
}

/// What a registry's error answer says, in its own words.
pub fn error_detail(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        errors: Vec<Item>,
        details: Option<String>,
    }
    #[derive(Deserialize)]
    struct Item {
        message: Option<String>,
        code: Option<String>,
    }
    let answer: Answer = serde_json::from_slice(body).ok()?;
    let first = answer.errors.into_iter().next().and_then(|item| item.message.or(item.code));
    first.or(answer.details).map(|text| one_line(&text)).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn challenges_are_read() {
        assert_eq!(parse_challenge("Basic realm=\"x\""), Some(Challenge::Basic));
        let header = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#;
        let challenge = parse_challenge(header).unwrap();
        let url = challenge.token_url("a/b").unwrap();
        assert_eq!(
            url.as_str(),
            "https://auth.docker.io/token?service=registry.docker.io&scope=repository%3Aa%2Fb%3Apull%2Cpush"
        );
        assert_eq!(parse_challenge("Bearer service=x"), None);
        assert_eq!(parse_challenge("Negotiate"), None);
    }

    #[test]
    fn a_bearer_challenge_is_preferred() {
        let headers = ["Basic realm=x".to_owned(), "Bearer realm=https://t".to_owned()];
        assert!(matches!(choose(&headers), Some(Challenge::Bearer { .. })));
        assert_eq!(choose(&headers[..1]), Some(Challenge::Basic));
        assert_eq!(choose(&[]), None);
    }

    #[test]
    fn errors_are_quoted_on_one_line() {
        let body = br#"{"errors":[{"code":"DENIED","message":"requested\n access\u001b[31m denied"}]}"#;
        assert_eq!(error_detail(body).as_deref(), Some("requested access [31m denied"));
        assert_eq!(error_detail(b"<html>"), None);
    }

    #[test]
    fn a_token_that_would_break_a_header_is_refused() {
        assert_eq!(parse_token(br#"{"access_token":"abc"}"#).as_deref(), Some("abc"));
        assert_eq!(parse_token(b"{\"token\":\"a\\nb\"}"), None);
    }

    proptest! {
        #[test]
        fn any_challenge_is_read_or_refused(header in "(Bearer |Basic )?\\PC{0,200}") {
            let _ = parse_challenge(&header).map(|challenge| challenge.token_url("a/b"));
        }
    }
}
