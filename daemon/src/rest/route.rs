//! What a path means: a resource of the API, or something else.
//!
//! Defined by upstream's request-info rules: `/api/v1/namespaces/NS/RESOURCE/NAME/SUBRESOURCE`, `/apis/GROUP/VERSION/…`.
//! `namespaces/NAME` alone, and with one of the subresources of a Namespace, means the Namespace itself.

use percent_encoding::percent_decode_str;

/// The subresources of a Namespace; anything else after `namespaces/NAME/` is a resource within it.
const OF_NAMESPACES: &[&str] = &["status", "finalize"];

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    Resource(Target),
    /// Not a resource: discovery, health, and what else has no objects.
    Path(String),
}

/// A resource as a path names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// Empty is core.
    pub group: String,
    pub version: String,
    /// In the plural, as in paths.
    pub resource: String,
    /// `None`: all namespaces, or a resource of the cluster.
    pub namespace: Option<String>,
    pub name: Option<String>,
    pub subresource: Option<String>,
    /// What follows the subresource, for those that pass it on: still encoded, without the slash before it.
    pub rest: Option<String>,
    /// The old way to ask for a watch: `/api/v1/watch/…`.
    pub watch: bool,
}

pub fn parse(path: &str) -> Route {
    resource(path).map_or_else(|| Route::Path(path.to_owned()), Route::Resource)
}

fn resource(path: &str) -> Option<Target> {
    let mut parts = path.strip_prefix('/')?.split('/');
    let group = match parts.next()? {
        "api" => String::new(),
        "apis" => decoded(parts.next()?)?,
        _ => return None,
    };
    let mut target = Target { group, version: decoded(parts.next()?)?, ..Target::default() };
    let mut first = parts.next().filter(|part| !part.is_empty())?;
    if first == "watch" {
        target.watch = true;
        first = parts.next()?;
    }
    let rest: Vec<&str> = parts.collect();
    // A slash at the end of a collection's or an object's path means nothing.
    let rest: &[&str] = match rest.as_slice() {
        [shorter @ .., ""] if shorter.len() < 4 => shorter,
        all => all,
    };
    match (first, rest) {
        ("namespaces", []) => target.resource = first.into(),
        ("namespaces", [name]) => (target.resource, target.name) = (first.into(), Some(decoded(name)?)),
        ("namespaces", [name, sub]) if OF_NAMESPACES.contains(sub) => {
            target.resource = first.into();
            target.name = Some(decoded(name)?);
            target.subresource = Some((*sub).into());
        }
        ("namespaces", [namespace, resource, rest @ ..]) => {
            target.namespace = Some(decoded(namespace)?);
            target.resource = decoded(resource)?;
            named(&mut target, rest)?;
        }
        (resource, rest) => {
            target.resource = decoded(resource)?;
            named(&mut target, rest)?;
        }
    }
    (!target.version.is_empty() && !target.resource.is_empty()).then_some(target)
}

fn named(target: &mut Target, rest: &[&str]) -> Option<()> {
    let [name, rest @ ..] = rest else { return Some(()) };
    target.name = Some(decoded(name)?);
    let [subresource, rest @ ..] = rest else { return Some(()) };
    target.subresource = Some(decoded(subresource)?);
    if !rest.is_empty() {
        target.rest = Some(rest.join("/"));
    }
    Some(())
}

/// One part of a path; `None` if it is not text or hides a slash.
fn decoded(part: &str) -> Option<String> {
    let text = percent_decode_str(part).decode_utf8().ok()?.into_owned();
    (!text.contains('/') && !text.contains('\0')).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(path: &str) -> String {
        match parse(path) {
            Route::Path(path) => format!("path {path}"),
            Route::Resource(t) => {
                let text = |part: &Option<String>| part.clone().unwrap_or_else(|| "-".into());
                let rest = [&t.namespace, &t.name, &t.subresource, &t.rest].map(text).join(" ");
                format!("{}/{} {} {rest}{}", t.group, t.version, t.resource, if t.watch { " watch" } else { "" })
            }
        }
    }

    #[test]
    fn paths_mean_what_upstream_says() {
        let table = [
            ("/api/v1/pods", "/v1 pods - - - -"),
            ("/api/v1/pods/", "/v1 pods - - - -"),
            ("/api/v1/namespaces", "/v1 namespaces - - - -"),
            ("/api/v1/namespaces/a", "/v1 namespaces - a - -"),
            ("/api/v1/namespaces/a/status", "/v1 namespaces - a status -"),
            ("/api/v1/namespaces/a/finalize", "/v1 namespaces - a finalize -"),
            ("/api/v1/namespaces/a/pods", "/v1 pods a - - -"),
            ("/api/v1/namespaces/a/pods/p", "/v1 pods a p - -"),
            ("/api/v1/namespaces/a/pods/p/log", "/v1 pods a p log -"),
            ("/api/v1/namespaces/a/services/s/proxy/x/y%2Fz", "/v1 services a s proxy x/y%2Fz"),
            ("/apis/apps/v1/deployments", "apps/v1 deployments - - - -"),
            ("/apis/apps/v1/namespaces/a/deployments/d/scale", "apps/v1 deployments a d scale -"),
            (
                "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode",
                "rbac.authorization.k8s.io/v1 clusterroles - system:node - -",
            ),
            ("/api/v1/watch/namespaces/a/pods", "/v1 pods a - - - watch"),
            ("/api", "path /api"),
            ("/api/v1", "path /api/v1"),
            ("/apis/apps", "path /apis/apps"),
            ("/apis/apps/v1", "path /apis/apps/v1"),
            ("/apis/apps/v1/", "path /apis/apps/v1/"),
            ("/healthz", "path /healthz"),
            ("/api/v1/pods/a%2Fb", "path /api/v1/pods/a%2Fb"),
            ("/api/v1/pods/%ff", "path /api/v1/pods/%ff"),
            ("", "path "),
            ("/", "path /"),
        ];
        for (path, meaning) in table {
            assert_eq!(told(path), meaning, "{path}");
        }
    }
}
