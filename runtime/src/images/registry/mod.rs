//! The client side of the OCI distribution protocol: manifests and blobs over HTTP.
//!
//! Only what a pull needs: GET with authentication, mirrors, ranges, and a watch on silence. What arrives
//! is not believed here; digests and sizes are checked by those who store it.
//!
//! Defined by the OCI distribution specification, "Pull".
//!
//! Invariant: plain HTTP is spoken only to hosts configured so, also after a redirect and for tokens.
//! Invariant: every wait for a registry ends after the stall timeout.
//! Invariant: a registry's credentials go to that registry and the token service that it names, nowhere else.

mod auth;
mod client;

use std::time::Duration;

use reqwest::header::{ACCEPT, CONTENT_RANGE, RANGE, WWW_AUTHENTICATE};
use reqwest::{Response, StatusCode};
use tokio::sync::Mutex;

use super::config::Credentials;
use super::digest::Digest;
use super::error::{PullError, chain, one_line};
use super::manifest::{ACCEPTED, MANIFEST_BYTES_MAX};
use super::reference::Reference;
use auth::{Authorization, Challenge};
pub use client::Registries;

const ERROR_BODY_BYTES_MAX: u64 = 16 << 10;

/// A place that one repository can be pulled from: the registry itself or a mirror of it.
pub struct Source {
    host: String,
    /// `https://host[:port][/prefix]`
    base: String,
    repository: String,
    client: reqwest::Client,
    insecure_http: bool,
    stall_timeout: Duration,
    credentials: Option<Credentials>,
    authorization: Mutex<Authorization>,
}

/// A manifest or an index as it came.
pub struct Fetched {
    pub bytes: Vec<u8>,
    pub media_type: Option<String>,
}

/// The bytes of a blob on their way.
pub struct BlobStream<'a> {
    source: &'a Source,
    response: Response,
    digest: Digest,
    done_bytes: u64,
    total_bytes: u64,
    /// Where in the blob the stream begins.
    pub offset_bytes: u64,
}

impl Source {
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Fetches a manifest or index by tag or digest; the bytes are bounded, not verified.
    pub async fn manifest(&self, reference: &Reference, version: &str) -> Result<Fetched, PullError> {
        let what = format!("manifest of {}:{version}", self.repository);
        let response = self.get(&format!("manifests/{version}"), Some(ACCEPTED), None, &reference.to_string()).await?;
        let media_type = header(&response, reqwest::header::CONTENT_TYPE.as_str());
        let media_type = media_type.map(|text| text.split(';').next().unwrap_or_default().trim().to_owned());
        let bytes = self.body(response, MANIFEST_BYTES_MAX, &what).await?;
        Ok(Fetched { bytes, media_type })
    }

    /// Fetches a small blob whole.
    pub async fn small_blob(&self, digest: &Digest, limit_bytes: u64) -> Result<Vec<u8>, PullError> {
        let response = self.get(&format!("blobs/{digest}"), None, None, &format!("blob {digest}")).await?;
        self.body(response, limit_bytes, &format!("blob {digest}")).await
    }

    /// Begins to fetch a blob of `total_bytes`, at `offset_bytes` if the registry can.
    pub async fn blob(&self, digest: Digest, offset_bytes: u64, total_bytes: u64) -> Result<BlobStream<'_>, PullError> {
        let range = (offset_bytes > 0).then(|| format!("bytes={offset_bytes}-"));
        let path = format!("blobs/{digest}");
        let what = format!("blob {digest}");
        let mut response = self.get(&path, None, range.as_deref(), &what).await?;
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            response = self.get(&path, None, None, &what).await?;
        }
        let resumes = response.status() == StatusCode::PARTIAL_CONTENT;
        if resumes && !header(&response, CONTENT_RANGE.as_str()).is_some_and(|range| begins_at(&range, offset_bytes)) {
            return Err(self.protocol("a range that was not asked for"));
        }
        let offset_bytes = if resumes { offset_bytes } else { 0 };
        Ok(BlobStream { source: self, response, digest, done_bytes: offset_bytes, total_bytes, offset_bytes })
    }

    /// GETs below the repository, authenticating when asked to. `what` is named if there is none.
    async fn get(
        &self,
        path: &str,
        accept: Option<&str>,
        range: Option<&str>,
        what: &str,
    ) -> Result<Response, PullError> {
        let url = format!("{}/v2/{}/{path}", self.base, self.repository);
        let response = self.send(&url, accept, range).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return self.check(response, what).await;
        }
        let challenges: Vec<String> = response
            .headers()
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok().map(str::to_owned))
            .collect();
        let Some(challenge) = auth::choose(&challenges) else {
            return self.check(response, what).await;
        };
        self.authenticate(&challenge).await?;
        let response = self.send(&url, accept, range).await?;
        self.check(response, what).await
    }

    async fn send(&self, url: &str, accept: Option<&str>, range: Option<&str>) -> Result<Response, PullError> {
        let mut request = self.client.get(url);
        if let Some(accept) = accept {
            request = request.header(ACCEPT, accept);
        }
        if let Some(range) = range {
            request = request.header(RANGE, range);
        }
        request = self.authorization.lock().await.apply(request);
        self.within(request.send()).await?.map_err(|error| self.unreachable(&error))
    }

    async fn authenticate(&self, challenge: &Challenge) -> Result<(), PullError> {
        let authorization = match (challenge, &self.credentials) {
            (_, Some(Credentials::Token { token })) => Authorization::Bearer(token.clone()),
            (Challenge::Basic, Some(Credentials::Basic { username, password })) => {
                Authorization::Basic { username: username.clone(), password: password.clone() }
            }
            (Challenge::Basic, None) => return Err(self.unauthorized("it wants a user name and a password")),
            (Challenge::Bearer { .. }, credentials) => self.token(challenge, credentials.as_ref()).await?,
        };
        *self.authorization.lock().await = authorization;
        Ok(())
    }

    /// Asks the token service that the challenge names.
    async fn token(
        &self,
        challenge: &Challenge,
        credentials: Option<&Credentials>,
    ) -> Result<Authorization, PullError> {
        let url = challenge.token_url(&self.repository).ok_or_else(|| self.protocol("a challenge without a realm"))?;
        if url.scheme() != "https" && !self.insecure_http {
            return Err(self.protocol("a token service without TLS"));
        }
        let mut request = self.client.get(url);
        if let Some(Credentials::Basic { username, password }) = credentials {
            request = request.basic_auth(username, Some(password));
        }
        let response = self.within(request.send()).await?.map_err(|error| self.unreachable(&error))?;
        let response = self.check(response, "token service").await?;
        let body = self.body(response, auth::TOKEN_BYTES_MAX, "token").await?;
        auth::parse_token(&body).map(Authorization::Bearer).ok_or_else(|| self.protocol("no token"))
    }

    /// Turns an answer other than success into an error.
    async fn check(&self, response: Response, what: &str) -> Result<Response, PullError> {
        let status = response.status();
        // A range beyond the end is the caller's matter.
        if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(response);
        }
        let host = self.host.clone();
        let body = self.body(response, ERROR_BODY_BYTES_MAX, "error").await.unwrap_or_default();
        let detail = auth::error_detail(&body)
            .unwrap_or_else(|| status.canonical_reason().map_or_else(|| status.to_string(), str::to_lowercase));
        Err(match status {
            StatusCode::NOT_FOUND => PullError::NotFound { host, what: what.to_owned() },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                PullError::Unauthorized { host, repository: self.repository.clone(), detail }
            }
            StatusCode::TOO_MANY_REQUESTS => PullError::RateLimited { host, detail },
            _ => PullError::Registry { host, status: status.as_u16(), detail },
        })
    }

    async fn body(&self, mut response: Response, limit_bytes: u64, what: &str) -> Result<Vec<u8>, PullError> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.within(response.chunk()).await?.map_err(|error| self.unreachable(&error))? {
            if (bytes.len() + chunk.len()) as u64 > limit_bytes {
                return Err(PullError::TooLarge { what: what.to_owned(), limit_bytes });
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    /// Waits for the registry, but not longer than the stall timeout.
    async fn within<T>(&self, waiting: impl Future<Output = T>) -> Result<T, PullError> {
        tokio::time::timeout(self.stall_timeout, waiting)
            .await
            .map_err(|_| PullError::Stalled { host: self.host.clone(), seconds: self.stall_timeout.as_secs().max(1) })
    }

    fn unreachable(&self, error: &reqwest::Error) -> PullError {
        // The URL may carry a token of a content network, and says little.
        let detail = match error.is_timeout() && error.is_connect() {
            true => "it does not answer".to_owned(),
            false => std::error::Error::source(error).map_or_else(|| one_line(&error.to_string()), chain),
        };
        PullError::Unreachable { host: self.host.clone(), detail }
    }

    fn unauthorized(&self, detail: &str) -> PullError {
        let (host, repository) = (self.host.clone(), self.repository.clone());
        PullError::Unauthorized { host, repository, detail: detail.to_owned() }
    }

    fn protocol(&self, detail: &str) -> PullError {
        PullError::Protocol { host: self.host.clone(), detail: detail.to_owned() }
    }
}

impl BlobStream<'_> {
    /// The next bytes, or `None` at the end of the blob.
    ///
    /// # Errors
    /// If the registry falls silent, breaks off, or sends more than the blob's size.
    pub async fn chunk(&mut self) -> Result<Option<bytes::Bytes>, PullError> {
        let received = self.source.within(self.response.chunk()).await?;
        let chunk = received.map_err(|error| {
            self.interrupted(std::error::Error::source(&error).map_or_else(|| error.to_string(), chain))
        })?;
        match chunk {
            Some(chunk) => {
                self.done_bytes += chunk.len() as u64;
                if self.done_bytes > self.total_bytes {
                    let what = format!("blob {}, by what its manifest says,", self.digest);
                    return Err(PullError::TooLarge { what, limit_bytes: self.total_bytes });
                }
                Ok(Some(chunk))
            }
            None if self.done_bytes < self.total_bytes => Err(self.interrupted("end of stream".into())),
            None => Ok(None),
        }
    }

    fn interrupted(&self, detail: String) -> PullError {
        PullError::Interrupted {
            host: self.source.host.clone(),
            digest: self.digest,
            done_bytes: self.done_bytes,
            total_bytes: self.total_bytes,
            detail,
        }
    }
}

fn header(response: &Response, name: &str) -> Option<String> {
    response.headers().get(name)?.to_str().ok().map(str::to_owned)
}

/// Whether a `Content-Range` such as `bytes 5-9/10` begins where it should.
fn begins_at(range: &str, offset_bytes: u64) -> bool {
    let first = range.strip_prefix("bytes ").and_then(|rest| rest.split('-').next());
    first.and_then(|first| first.parse().ok()) == Some(offset_bytes)
}

#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(input: &[u8]) {
    if let Ok(text) = std::str::from_utf8(input)
        && let Some(challenge) = auth::choose(&[text.to_owned()])
    {
        challenge.token_url("library/nginx");
    }
    _ = (auth::parse_token(input), auth::error_detail(input));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_only_believed_where_it_was_asked_for() {
        assert!(begins_at("bytes 5-9/10", 5));
        assert!(!begins_at("bytes 0-9/10", 5));
        assert!(!begins_at("5-9/10", 5));
        assert!(!begins_at("", 0));
    }
}
