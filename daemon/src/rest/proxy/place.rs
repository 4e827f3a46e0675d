//! Where a proxied request goes, as text: what is named, what of the path is passed on, and how redirects come back.
//!
//! Invariant: a path that is passed on begins at the root of whatever it is passed to, and has no part that leads upward.

use percent_encoding::percent_decode_str;

/// `[SCHEME:]NAME[:PORT]`, as upstream writes what is to be proxied to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    pub tls: bool,
    pub name: &'a str,
    /// Empty if none is named.
    pub port: &'a str,
}

/// `None` if it is not of that form.
pub fn parse(id: &str) -> Option<Place<'_>> {
    let parts: Vec<&str> = id.split(':').collect();
    let (scheme, name, port) = match parts.as_slice() {
        [name] => ("", *name, ""),
        [name, port] => ("", *name, *port),
        [scheme, name, port] => (*scheme, *name, *port),
        _ => return None,
    };
    let tls = match scheme {
        "" | "http" => false,
        "https" => true,
        _ => return None,
    };
    (!name.is_empty()).then_some(Place { tls, name, port })
}

/// The path on the other side, cleaned as upstream joins paths; a slash at its end stays.
pub fn clean(rest: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in rest.split('/') {
        match &*percent_decode_str(part).decode_utf8_lossy() {
            "" | "." => {}
            ".." => _ = parts.pop(),
            _ => parts.push(part),
        }
    }
    let mut path = format!("/{}", parts.join("/"));
    if rest.ends_with('/') && path.len() > 1 {
        path.push('/');
    }
    path
}

/// A redirect within what is proxied to leads through the proxy again; one to elsewhere stays.
pub fn relocate(location: &str, hosts: &[&str], prefix: &str) -> String {
    let Ok(uri) = location.parse::<http::Uri>() else { return location.to_owned() };
    let elsewhere = uri.authority().is_some_and(|host| !hosts.contains(&host.as_str()));
    let path = uri.path();
    if elsewhere || !path.starts_with('/') || (uri.authority().is_none() && !location.starts_with('/')) {
        return location.to_owned();
    }
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let through = path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if through { format!("{path}{query}") } else { format!("{prefix}{}{query}", clean_end(path)) }
}

fn clean_end(path: &str) -> String {
    clean(path.trim_start_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_schemes_and_ports() {
        let place = |tls, name, port| Some(Place { tls, name, port });
        assert_eq!(parse("web"), place(false, "web", ""));
        assert_eq!(parse("web:80"), place(false, "web", "80"));
        assert_eq!(parse("https:web:"), place(true, "web", ""));
        assert_eq!(parse("http:web:http"), place(false, "web", "http"));
        for wrong in ["", ":80", "ftp:web:80", "a:b:c:d"] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn no_path_leads_out() {
        for (rest, path) in [
            ("", "/"),
            ("/", "/"),
            ("a/b", "/a/b"),
            ("a/b/", "/a/b/"),
            ("../../etc/passwd", "/etc/passwd"),
            ("a/../../../b", "/b"),
            ("%2e%2e/%2E./b", "/b"),
            ("a//b/./c", "/a/b/c"),
            ("a%2Fb", "/a%2Fb"),
            ("..", "/"),
        ] {
            assert_eq!(clean(rest), path, "{rest:?}");
        }
    }

    #[test]
    fn redirects_come_back_through_the_proxy() {
        let prefix = "/api/v1/namespaces/a/pods/p/proxy";
        let hosts = ["10.0.0.1:80", "api:6443"];
        for (location, wanted) in [
            ("/login", "/api/v1/namespaces/a/pods/p/proxy/login"),
            ("/login/?next=/x", "/api/v1/namespaces/a/pods/p/proxy/login/?next=/x"),
            ("/", "/api/v1/namespaces/a/pods/p/proxy/"),
            ("http://10.0.0.1:80/x", "/api/v1/namespaces/a/pods/p/proxy/x"),
            ("https://api:6443/x", "/api/v1/namespaces/a/pods/p/proxy/x"),
            ("https://elsewhere.example/x", "https://elsewhere.example/x"),
            ("relative/x", "relative/x"),
            ("/api/v1/namespaces/a/pods/p/proxy/there", "/api/v1/namespaces/a/pods/p/proxy/there"),
            ("/../../secrets", "/api/v1/namespaces/a/pods/p/proxy/secrets"),
        ] {
            assert_eq!(relocate(location, &hosts, prefix), wanted, "{location}");
        }
    }
}
