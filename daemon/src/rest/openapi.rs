//! `/openapi/v2` and `/openapi/v3`: documents that are made when somebody asks, and kept compressed.
//!
//! Invariant: at most [`MAX_DOCUMENTS`] are kept, none of them unfolded, and none that the kinds have outgrown is served.

use std::collections::HashMap;
use std::io::Read as _;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use flate2::read::GzDecoder;
use flotilla_api::openapi::{self, Encoding};
use flotilla_api::{Registry, Status};
use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{Response, StatusCode};
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;

use super::query::Query;
use super::{Answer, Body, Rest, answer};

/// Documents that are kept: about 20 kB to 200 kB each.
const MAX_DOCUMENTS: usize = 64;
/// Documents that are made at a time: each takes some megabytes meanwhile.
const MAX_BEING_MADE: usize = 1;

const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
/// What older clients call it.
const OLD_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// The documents that were asked for so far.
pub(super) struct Documents {
    kept: Mutex<HashMap<String, Document>>,
    making: Semaphore,
}

/// One document, compressed.
#[derive(Clone)]
struct Document {
    /// What it was made from.
    hash: String,
    gzip: Bytes,
}

impl Default for Documents {
    fn default() -> Self {
        Self { kept: Mutex::default(), making: Semaphore::new(MAX_BEING_MADE) }
    }
}

impl Documents {
    fn kept(&self, name: &str, hash: &str) -> Option<Document> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get(name).filter(|document| document.hash == hash).cloned()
    }

    fn keep(&self, name: &str, document: &Document) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MAX_DOCUMENTS && !kept.contains_key(name) {
            kept.clear();
        }
        kept.insert(name.to_owned(), document.clone());
    }

    /// The document called `name` that says what `hash` stands for; made if nobody asked for it yet.
    async fn get(
        &self,
        name: &str,
        hash: &str,
        make: impl FnOnce() -> Vec<u8> + Send + 'static,
    ) -> Result<Document, Status> {
        if let Some(document) = self.kept(name, hash) {
            return Ok(document);
        }
        let _turn = self.making.acquire().await.map_err(Status::internal)?;
        if let Some(document) = self.kept(name, hash) {
            return Ok(document);
        }
        let made = tokio::task::spawn_blocking(move || answer::gzip(&make())).await;
        let gzip = made.map_err(Status::internal)?.map_err(Status::internal)?.into();
        let document = Document { hash: hash.to_owned(), gzip };
        self.keep(name, &document);
        Ok(document)
    }
}

impl Rest {
    /// `/openapi/v3`: where the documents are. A hash in the path lets a client keep what it has.
    pub(super) async fn openapi_index(&self, head: &Parts, registry: &Registry) -> Answer {
        let paths: Map<String, Value> = openapi::index(registry)
            .into_iter()
            .map(|(path, hash)| {
                let url = json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={hash}")});
                (path, url)
            })
            .collect();
        Ok(answer::json(StatusCode::OK, &head.headers, json!({"paths": paths}).to_string().into_bytes()).await)
    }

    /// `/openapi/v3/PATH`
    pub(super) async fn openapi_v3(&self, head: &Parts, query: &Query, registry: Arc<Registry>, path: &str) -> Answer {
        let Some(hash) = openapi::index(&registry).remove(path) else {
            return Ok(answer::text(StatusCode::NOT_FOUND, "404 page not found\n"));
        };
        let asked = query.get("hash");
        if !asked.is_empty() && asked != hash {
            let mut response = answer::text(StatusCode::MOVED_PERMANENTLY, "");
            let location = format!("/openapi/v3/{path}?hash={hash}");
            response.headers_mut().insert(header::LOCATION, location.parse().map_err(Status::internal)?);
            return Ok(response);
        }
        let name = format!("v3/{path}");
        let path = path.to_owned();
        let make = move || openapi::v3(&registry, &path).unwrap_or_default();
        let mut response = self.openapi_document(head, &name, &hash, answer::JSON, make).await?;
        if !asked.is_empty() {
            // What a hash names never changes.
            let headers = response.headers_mut();
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, immutable, max-age=31536000"));
            headers.insert(header::VARY, HeaderValue::from_static("Accept, Accept-Encoding"));
        }
        Ok(response)
    }

    /// `/openapi/v2`, as JSON unless gnostic's protobuf is asked for.
    pub(super) async fn openapi_v2(&self, head: &Parts, registry: Arc<Registry>) -> Answer {
        let accepted = head.headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let first = accepted
            .flat_map(|value| value.split(','))
            .map(|range| range.split(';').next().unwrap_or_default().trim())
            .find(|range| matches!(*range, PROTOBUF | OLD_PROTOBUF | "application/json" | "application/*" | "*/*"));
        let (encoding, name, content_type) = match first {
            Some(PROTOBUF | OLD_PROTOBUF) => (Encoding::Protobuf, "v2/protobuf", PROTOBUF),
            _ => (Encoding::Json, "v2/json", answer::JSON),
        };
        let hash = openapi::fingerprint_of_all(&registry);
        self.openapi_document(head, name, &hash, content_type, move || openapi::v2(&registry, encoding)).await
    }

    async fn openapi_document(
        &self,
        head: &Parts,
        name: &str,
        hash: &str,
        content_type: &'static str,
        make: impl FnOnce() -> Vec<u8> + Send + 'static,
    ) -> Answer {
        let tag = format!("\"{hash}\"");
        let known = head.headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let mut response = if known.split(',').any(|one| one.trim().trim_start_matches("W/") == tag) {
            answer::bytes(StatusCode::NOT_MODIFIED, content_type, Vec::new())
        } else {
            let document = self.documents.get(name, hash, make).await?;
            unfolded(head, document, content_type).await?
        };
        let headers = response.headers_mut();
        headers.insert(header::ETAG, tag.parse().map_err(Status::internal)?);
        headers.insert(header::VARY, HeaderValue::from_static("Accept, Accept-Encoding"));
        Ok(response)
    }
}

/// As it is kept for clients that take gzip, which all do that matter; unfolded for the others.
async fn unfolded(head: &Parts, document: Document, content_type: &'static str) -> Result<Response<Body>, Status> {
    if answer::accepts_gzip(&head.headers) {
        let mut response = answer::bytes(StatusCode::OK, content_type, document.gzip);
        response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        return Ok(response);
    }
    let unfolding = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        GzDecoder::new(document.gzip.as_ref()).read_to_end(&mut bytes).map(|_| bytes)
    });
    let bytes = unfolding.await.map_err(Status::internal)?.map_err(Status::internal)?;
    Ok(answer::bytes(StatusCode::OK, content_type, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_document_is_made_once_until_it_says_something_else() {
        let documents = Documents::default();
        let first = documents.get("a", "1", || b"one".to_vec()).await.unwrap();
        let again = documents.get("a", "1", || panic!("it was made before")).await.unwrap();
        assert_eq!(again.gzip, first.gzip);
        let other = documents.get("a", "2", || b"two".to_vec()).await.unwrap();
        assert_ne!(other.gzip, first.gzip);
        for number in 0..3 * MAX_DOCUMENTS {
            documents.get(&format!("{number}"), "1", Vec::new).await.unwrap();
            assert!(documents.kept.lock().unwrap().len() <= MAX_DOCUMENTS);
        }
    }
}
