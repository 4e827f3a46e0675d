//! Whether one rule grants one action.

use flotilla_api::k8s_openapi::api::rbac::v1::PolicyRule;

use super::ALL;

/// What somebody wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action<'a> {
    /// Something with objects of the API.
    Resource {
        verb: &'a str,
        /// `""` is core.
        group: &'a str,
        resource: &'a str,
        /// `""`: the object itself.
        subresource: &'a str,
        /// `""`: at the cluster scope, or in all namespaces.
        namespace: &'a str,
        /// `""` where no single object is meant.
        name: &'a str,
    },
    /// Something with a path that belongs to no resource.
    Path { verb: &'a str, path: &'a str },
}

/// Whether the rule grants the action.
pub fn allows(rule: &PolicyRule, action: &Action) -> bool {
    match *action {
        Action::Resource { verb, group, resource, subresource, name, .. } => {
            has(Some(&rule.verbs), verb)
                && has(rule.api_groups.as_deref(), group)
                && names_resource(rule.resources.as_deref(), resource, subresource)
                && names_object(rule.resource_names.as_deref(), name)
        }
        Action::Path { verb, path } => {
            has(Some(&rule.verbs), verb) && rule.non_resource_urls.iter().flatten().any(|url| covers_path(url, path))
        }
    }
}

fn has(list: Option<&[String]>, wanted: &str) -> bool {
    list.into_iter().flatten().any(|entry| entry == ALL || entry == wanted)
}

/// `pods`, `pods/log`, `*/scale` and `*`; as upstream has it, `pods/*` stands for nothing but itself.
fn names_resource(list: Option<&[String]>, resource: &str, subresource: &str) -> bool {
    list.into_iter().flatten().any(|entry| match (entry.split_once('/'), subresource) {
        _ if entry == ALL => true,
        (None, "") => entry == resource,
        (Some((of, sub)), subresource) => {
            !subresource.is_empty() && sub == subresource && (of == ALL || of == resource)
        }
        (None, _) => false,
    })
}

/// No names: every object. Some: an action that names none is not granted.
fn names_object(list: Option<&[String]>, name: &str) -> bool {
    list.is_none_or(|list| list.is_empty() || list.iter().any(|entry| entry == name))
}

/// A trailing `*` stands for any rest.
pub(super) fn covers_path(url: &str, path: &str) -> bool {
    url == path || (url.ends_with('*') && path.starts_with(url.trim_end_matches('*')))
}

#[cfg(test)]
mod tests {
    use super::super::defaults::{paths, rule};
    use super::*;

    fn on<'a>(verb: &'a str, group: &'a str, resource: &'a str, name: &'a str) -> Action<'a> {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        Action::Resource { verb, group, resource, subresource, namespace: "", name }
    }

    fn named(mut rule: PolicyRule, names: &[&str]) -> PolicyRule {
        rule.resource_names = Some(names.iter().map(|name| (*name).to_owned()).collect());
        rule
    }

    #[test]
    fn resources() {
        let table = [
            (rule("get list", "core", "pods"), on("get", "", "pods", ""), true),
            (rule("get list", "core", "pods"), on("get", "", "pods", "a"), true),
            (rule("get list", "core", "pods"), on("delete", "", "pods", ""), false),
            (rule("get list", "core", "pods"), on("get", "apps", "pods", ""), false),
            (rule("get list", "core", "pods"), on("get", "", "pods/log", ""), false),
            (rule("get list", "core", "pods"), on("get", "", "podsecurity", ""), false),
            (rule("get", "core", "pods/log"), on("get", "", "pods/log", "a"), true),
            (rule("get", "core", "pods/log"), on("get", "", "pods", "a"), false),
            (rule("get", "core", "pods/log"), on("get", "", "pods/exec", "a"), false),
            (rule("*", "core", "pods"), on("impersonate", "", "pods", ""), true),
            (rule("get", "*", "pods"), on("get", "metrics.k8s.io", "pods", ""), true),
            (rule("get", "apps batch", "jobs"), on("get", "batch", "jobs", ""), true),
            (rule("get", "core", "*"), on("get", "", "pods/log", ""), true),
            (rule("update", "*", "*/scale"), on("update", "apps", "deployments/scale", "web"), true),
            (rule("update", "*", "*/scale"), on("update", "apps", "deployments", "web"), false),
            (rule("update", "*", "*/scale"), on("update", "apps", "deployments/status", "web"), false),
            // Upstream has no such wildcard.
            (rule("get", "core", "pods/*"), on("get", "", "pods/log", ""), false),
            (rule("get", "core", "pods/*"), on("get", "", "pods", ""), false),
            (named(rule("get", "core", "secrets"), &["a", "b"]), on("get", "", "secrets", "b"), true),
            (named(rule("get", "core", "secrets"), &["a", "b"]), on("get", "", "secrets", "c"), false),
            (named(rule("get list create", "core", "secrets"), &["a"]), on("list", "", "secrets", ""), false),
            (named(rule("get list create", "core", "secrets"), &["a"]), on("create", "", "secrets", ""), false),
            (named(rule("get", "core", "secrets"), &[]), on("get", "", "secrets", "x"), true),
            (paths("get", "*"), on("get", "", "secrets", "x"), false),
            (PolicyRule::default(), on("get", "", "secrets", "x"), false),
        ];
        for (rule, action, allowed) in table {
            assert_eq!(allows(&rule, &action), allowed, "{rule:?} {action:?}");
        }
    }

    #[test]
    fn urls() {
        let table = [
            ("/healthz", "/healthz", true),
            ("/healthz", "/healthz/ping", false),
            ("/healthz/*", "/healthz/ping", true),
            ("/healthz/*", "/healthz/a/b", true),
            ("/healthz/*", "/healthz", false),
            ("/health*", "/healthz/ping", true),
            ("*", "/anything", true),
            ("/*/pods", "/api/pods", false),
            ("", "/", false),
        ];
        for (url, path, allowed) in table {
            let rule = paths("get", url);
            assert_eq!(allows(&rule, &Action::Path { verb: "get", path }), allowed, "{url} {path}");
            assert!(!allows(&rule, &Action::Path { verb: "post", path }), "{url} {path}");
        }
        assert!(!allows(&rule("*", "*", "*"), &Action::Path { verb: "get", path: "/metrics" }));
    }
}
