//! What a request asks for, by its head alone: who may not do that is refused before anything of its body is read.

use std::sync::Arc;

use flotilla_api::Kind;
use flotilla_api::selector::Fields;
use flotilla_control::rbac::Action;
use http::request::Parts;
use http::{Method, header};

use super::query::Query;
use super::route::{Route, Target};
use crate::gate::resource_action;
use crate::metrics::{self, Asking};

/// Subresources of pods that open a connection. A WebSocket opens with a GET; it is authorized like the POST that it
/// stands for.
const CONNECTIONS: &[&str] = &["exec", "attach", "portforward"];

/// A request in the words of roles.
#[derive(Clone, Debug)]
pub struct Asked {
    pub verb: String,
    pub route: Route,
    /// The one object that is meant, if one is.
    pub name: String,
    /// What it is about, if that is served.
    pub kind: Option<Arc<Kind>>,
    /// Whether the answer may go on for as long as the client likes.
    pub is_long: bool,
}

impl Asked {
    pub fn of(method: &Method, route: Route, query: &Query, kind: Option<Arc<Kind>>) -> Self {
        let Route::Resource(target) = &route else {
            let verb = method.as_str().to_ascii_lowercase();
            return Self { verb, route, name: String::new(), kind, is_long: false };
        };
        let verb = verb(method, target, query);
        let mut name = target.name.clone().unwrap_or_default();
        if name.is_empty()
            && matches!(verb, "list" | "watch" | "deletecollection")
            && let Ok(fields) = Fields::parse(query.get("fieldSelector"))
        {
            name = fields.exact("metadata.name").unwrap_or_default().to_owned();
        }
        let subresource = target.subresource.as_deref().unwrap_or_default();
        let is_long = verb == "watch"
            || CONNECTIONS.contains(&subresource)
            || subresource == "proxy"
            || (subresource == "log" && query.flag("follow"));
        Self { verb: verb.to_owned(), name, kind, is_long, route }
    }

    /// The API version in the path.
    pub fn version(&self) -> &str {
        match &self.route {
            Route::Path(_) => "",
            Route::Resource(target) => &target.version,
        }
    }

    /// The same as it is counted.
    pub fn counted(&self, head: &Parts, query: &Query) -> Asking {
        let kind = self.kind.clone();
        let method = &head.method;
        let mut asking = Asking {
            is_long: self.is_long,
            mutates: !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS),
            dry_run: query.get("dryRun") == "All",
            ..Asking::default()
        };
        let target = match &self.route {
            Route::Path(path) => {
                return Asking { path: path.clone(), verb: metrics::verb(method, "", false, false), ..asking };
            }
            Route::Resource(target) => target,
        };
        asking.scope = match (&self.name, &target.namespace) {
            _ if kind.is_none() => "",
            (name, _) if !name.is_empty() || self.verb == "create" => "resource",
            (_, Some(_)) => "namespace",
            _ => "cluster",
        };
        let subresource = target.subresource.clone().unwrap_or_default();
        let connects = CONNECTIONS.contains(&subresource.as_str()) || subresource == "proxy";
        let content_type = head.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let applies = content_type.is_some_and(|value| value.starts_with("application/apply-patch"));
        asking.verb = metrics::verb(method, &self.verb, connects, applies);
        Asking { kind, subresource, ..asking }
    }

    pub fn action(&self) -> Action<'_> {
        match &self.route {
            Route::Path(path) => Action::Path { verb: &self.verb, path },
            Route::Resource(target) => resource_action(
                &self.verb,
                (&target.group, &target.resource, target.subresource.as_deref().unwrap_or_default()),
                (target.namespace.as_deref().unwrap_or_default(), &self.name),
            ),
        }
    }
}

/// Upstream's verb for a method.
fn verb(method: &Method, target: &Target, query: &Query) -> &'static str {
    let connects = target.subresource.as_deref().is_some_and(|name| CONNECTIONS.contains(&name));
    match (method, &target.name) {
        (&Method::GET | &Method::POST, Some(_)) if connects && target.resource == "pods" => "create",
        (&Method::GET | &Method::HEAD, _) if target.watch => "watch",
        (&Method::GET | &Method::HEAD, Some(_)) if target.subresource.is_none() && query.flag("watch") => "watch",
        (&Method::GET | &Method::HEAD, Some(_)) => "get",
        (&Method::GET | &Method::HEAD, None) if query.flag("watch") => "watch",
        (&Method::GET | &Method::HEAD, None) => "list",
        (&Method::POST, _) => "create",
        (&Method::PUT, _) => "update",
        (&Method::PATCH, _) => "patch",
        (&Method::DELETE, Some(_)) => "delete",
        (&Method::DELETE, None) => "deletecollection",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::super::route;
    use super::*;

    #[test]
    fn requests_are_put_in_the_words_of_roles() {
        let table = [
            ("GET /api/v1/pods", "list pods  - -"),
            ("GET /api/v1/namespaces/a/pods?watch=1", "watch pods  a - long"),
            ("GET /api/v1/watch/namespaces/a/pods", "watch pods  a - long"),
            ("GET /api/v1/namespaces/a/pods?fieldSelector=metadata.name%3Dp", "list pods  a p"),
            ("GET /api/v1/namespaces/a/pods/p", "get pods  a p"),
            ("HEAD /api/v1/namespaces/a/pods/p", "get pods  a p"),
            ("GET /api/v1/namespaces/a", "get namespaces  a a"),
            ("PUT /api/v1/namespaces/a/finalize", "update namespaces finalize a a"),
            ("POST /api/v1/namespaces", "create namespaces  - -"),
            ("DELETE /api/v1/namespaces/a/pods", "deletecollection pods  a -"),
            ("DELETE /api/v1/namespaces/a/pods/p", "delete pods  a p"),
            ("PATCH /apis/apps/v1/namespaces/a/deployments/d/scale", "patch deployments scale a d"),
            ("POST /api/v1/namespaces/a/pods/p/exec", "create pods exec a p long"),
            ("GET /api/v1/namespaces/a/pods/p/exec", "create pods exec a p long"),
            ("GET /api/v1/namespaces/a/pods/p/portforward", "create pods portforward a p long"),
            ("GET /api/v1/namespaces/a/pods/p/log", "get pods log a p"),
            ("GET /api/v1/namespaces/a/pods/p/log?follow=true", "get pods log a p long"),
            ("GET /api/v1/namespaces/a/services/s/proxy/x", "get services proxy a s long"),
            ("OPTIONS /api/v1/pods", " pods  - -"),
            ("GET /healthz", "get /healthz"),
            ("HEAD /healthz", "head /healthz"),
            ("POST /version", "post /version"),
        ];
        for (request, told) in table {
            let (method, uri) = request.split_once(' ').unwrap();
            let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
            let asked = Asked::of(&method.parse().unwrap(), route::parse(path), &Query::parse(query), None);
            let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
            let words = match asked.action() {
                Action::Path { verb, path } => format!("{verb} {path}"),
                Action::Resource { verb, resource, subresource, namespace, name, .. } => {
                    let long = if asked.is_long { " long" } else { "" };
                    format!("{verb} {resource} {subresource} {} {}{long}", or_dash(namespace), or_dash(name))
                }
            };
            assert_eq!(words, told, "{request}");
        }
    }
}
