//! What is no resource: discovery, health, version.

use flotilla_api::{Registry, Status};
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode, header};
use serde_json::{Value, json};

use super::negotiate::{Accepts, View};
use super::query::Query;
use super::{Answer, Body, Rest, answer, discovery, not_allowed};
use crate::VERSION;
use crate::accounts;
use crate::gate::User;

/// The version of Kubernetes whose API is served.
const KUBERNETES_MINOR: &str = "37";

impl Rest {
    pub(super) async fn plain(&self, user: &User, head: &Parts, query: &Query, path: &str) -> Answer {
        self.gate().authorize_path(user, &head.method, path).await?;
        if !matches!(head.method, Method::GET | Method::HEAD) {
            return Err(not_allowed());
        }
        let registry = self.gate().registry();
        let accepts = || Accepts::parse(&head.headers);
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let body = match parts.as_slice() {
            ["healthz" | "livez" | "readyz", rest @ ..] => return self.health(parts[0], rest, query).await,
            ["version"] => return always_indented(&version()),
            ["metrics"] => return self.metrics(head).await,
            [".well-known", "openid-configuration"] => {
                let configuration = accounts::openid_configuration(&self.node.local.api_address()).to_string();
                return Ok(for_an_hour(answer::bytes(StatusCode::OK, answer::JSON, configuration)));
            }
            ["openid", "v1", "jwks"] => {
                let keys = self.node.accounts.key_set()?.to_string();
                return Ok(for_an_hour(answer::bytes(StatusCode::OK, "application/jwk-set+json", keys)));
            }
            ["api"] => Some(match accepts()?.view {
                View::AllGroups(version) => discovery::aggregated(&registry, true, version),
                _ => discovery::core_versions(),
            }),
            ["apis"] => Some(match accepts()?.view {
                View::AllGroups(version) => discovery::aggregated(&registry, false, version),
                _ => discovery::groups(&registry),
            }),
            ["api", version] => discovery::resources(&registry, "", version),
            ["apis", group] => discovery::group(&registry, group),
            ["apis", group, version] => discovery::resources(&registry, group, version),
            ["openapi", "v2"] => return self.openapi_v2(head, registry).await,
            ["openapi", "v3"] => return self.openapi_index(head, &registry).await,
            ["openapi", "v3", path @ ..] => {
                return self.openapi_v3(head, query, registry, &path.join("/")).await;
            }
            [""] => return always_indented(&paths(&registry)),
            _ => None,
        };
        match body {
            Some(body) => discovered(head, &body).await,
            None => Ok(answer::text(StatusCode::NOT_FOUND, "404 page not found\n")),
        }
    }

    /// Health as upstream tells it: `ok`, or each check on a line of its own.
    async fn health(&self, which: &str, only: &[&str], query: &Query) -> Answer {
        let status = self.gate().store().status().borrow().clone();
        let mut checks = vec![("ping", Ok(())), ("store", status.fatal.map_or(Ok(()), Err))];
        if which != "livez" {
            let led = self.gate().store().barrier().await.map(drop).map_err(|error| error.to_string());
            checks.push(("leader", led));
        }
        let excluded = query.all("exclude");
        checks.retain(|(name, _)| only.first().is_none_or(|only| only == name) && !excluded.contains(name));
        if !only.is_empty() && checks.is_empty() {
            return Ok(answer::text(StatusCode::NOT_FOUND, "404 page not found\n"));
        }
        let failed = checks.iter().any(|(_, check)| check.is_err());
        let code = if failed { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK };
        if !failed && !query.has("verbose") {
            return Ok(answer::text(code, "ok"));
        }
        let mut text = String::new();
        for (name, check) in &checks {
            match check {
                Ok(()) => text.push_str(&format!("[+]{name} ok\n")),
                // The reason is for those who may read the log.
                Err(_) => text.push_str(&format!("[-]{name} failed: reason withheld\n")),
            }
        }
        let end = if failed { "failed" } else { "passed" };
        text.push_str(&format!("{which} check {end}\n"));
        Ok(answer::text(code, text))
    }
}

/// JSON that upstream indents, whoever asks.
fn always_indented(body: &Value) -> Answer {
    Ok(answer::bytes(StatusCode::OK, answer::JSON, serde_json::to_vec_pretty(body).map_err(Status::internal)?))
}

/// What everybody may know and need not ask for again soon.
fn for_an_hour(mut response: Response<Body>) -> Response<Body> {
    let control = HeaderValue::from_static("public, max-age=3600");
    response.headers_mut().insert(header::CACHE_CONTROL, control);
    response
}

/// JSON that clients keep: they ask with the tag of what they have.
async fn discovered(head: &Parts, body: &Value) -> Answer {
    let bytes = body.to_string().into_bytes();
    let tag = format!("\"{}\"", tag(&bytes));
    let known = head.headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    let same = known.is_some_and(|known| known.split(',').any(|one| one.trim().trim_start_matches("W/") == tag));
    let mut response = match same {
        true => answer::bytes(StatusCode::NOT_MODIFIED, answer::JSON, Vec::new()),
        false => answer::json(StatusCode::OK, &head.headers, bytes).await,
    };
    response.headers_mut().insert(header::ETAG, tag.parse().map_err(Status::internal)?);
    if let View::AllGroups(version) = Accepts::parse(&head.headers)?.view {
        let content_type = format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
        // Clients look at it to tell the two forms apart.
        if head.uri.path().trim_matches('/').split('/').count() == 1 {
            response.headers_mut().insert(header::CONTENT_TYPE, content_type.parse().map_err(Status::internal)?);
        }
    }
    Ok(response)
}

/// A name for the bytes that others do not have.
fn tag(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().iter().take(16).map(|byte| format!("{byte:02X}")).collect()
}

/// What there is below `/`.
fn paths(registry: &Registry) -> Value {
    let mut paths: Vec<String> = [
        "/.well-known/openid-configuration",
        "/api",
        "/apis",
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
    ]
    .map(str::to_owned)
    .into();
    for kind in discovery::served(registry) {
        let group = (!kind.group.is_empty()).then(|| format!("/apis/{}", kind.group));
        paths.extend(group.iter().cloned());
        paths.push(format!("{}/{}", group.unwrap_or_else(|| "/api".into()), kind.version));
    }
    paths.push("/version".into());
    paths.sort();
    paths.dedup();
    json!({"paths": paths})
}

fn version() -> Value {
    json!({
        "major": "1",
        "minor": KUBERNETES_MINOR,
        "gitVersion": format!("v1.{KUBERNETES_MINOR}.0+flotilla.{VERSION}"),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        }),
    })
}
