//! Discovery: which groups, versions and resources there are. Made from the registry, for kinds of any origin.
//!
//! Defined by the Kubernetes API reference, `APIVersions`, `APIGroupList`, `APIResourceList`, and by
//! `apidiscovery.k8s.io/v2`.

use std::sync::Arc;

use flotilla_api::names::compare_versions;
use flotilla_api::{Builtin, Kind, Registry, questions};
use serde_json::{Value, json};

/// What every stored kind can do.
const VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// They end one by one.
const VERBS_OF_NAMESPACES: &[&str] = &["create", "delete", "get", "list", "patch", "update", "watch"];

/// `/api`
pub fn core_versions() -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [],
    })
}

/// `/apis`
pub fn groups(registry: &Registry) -> Value {
    let groups: Vec<Value> = group_names(registry).iter().filter_map(|group| group_of(registry, group)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/GROUP`; `None` if there is no such group.
pub fn group(registry: &Registry, name: &str) -> Option<Value> {
    let mut group = group_of(registry, name)?;
    group["kind"] = "APIGroup".into();
    group["apiVersion"] = "v1".into();
    Some(group)
}

fn group_of(registry: &Registry, name: &str) -> Option<Value> {
    let version = |version: &String| json!({"groupVersion": format!("{name}/{version}"), "version": version});
    let versions: Vec<Value> = versions(registry, name).iter().map(version).collect();
    let preferred = versions.first()?.clone();
    Some(json!({"name": name, "versions": versions, "preferredVersion": preferred}))
}

/// `/api/v1`, `/apis/GROUP/VERSION`; `None` if there is no such version.
pub fn resources(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let mut resources = Vec::new();
    for kind in kinds(registry, group, version) {
        let mut main = json!({
            "name": kind.plural,
            "singularName": kind.singular,
            "namespaced": kind.is_namespaced(),
            "kind": kind.kind,
            "verbs": verbs(kind),
        });
        if !short_names(kind).is_empty() {
            main["shortNames"] = json!(short_names(kind));
        }
        if !kind.categories.is_empty() {
            main["categories"] = json!(kind.categories);
        }
        resources.push(main);
        for name in &kind.subresources {
            let sub = Sub::of(kind, name);
            let mut one = json!({
                "name": format!("{}/{name}", kind.plural),
                "singularName": "",
                "namespaced": kind.is_namespaced(),
                "kind": sub.kind,
                "verbs": sub.verbs,
            });
            if (sub.group.as_str(), sub.version.as_str()) != (group, version) {
                one["group"] = sub.group.into();
                one["version"] = sub.version.into();
            }
            resources.push(one);
        }
    }
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    (!resources.is_empty()).then(|| {
        json!({
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": group_version,
            "resources": resources,
        })
    })
}

/// All of it at once: `/api` for the core group, `/apis` for the others.
pub fn aggregated(registry: &Registry, core: bool, version: &str) -> Value {
    let groups = group_names(registry).into_iter().filter(|group| group.is_empty() == core);
    let items: Vec<Value> = match core {
        true => vec![aggregated_group(registry, "", version)],
        false => groups.map(|group| aggregated_group(registry, &group, version)).collect(),
    };
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {},
        "items": items,
    })
}

fn aggregated_group(registry: &Registry, group: &str, _: &str) -> Value {
    let versions: Vec<Value> = versions(registry, group)
        .iter()
        .map(|version| {
            let resources: Vec<Value> = kinds(registry, group, version).map(aggregated_resource).collect();
            json!({"version": version, "resources": resources, "freshness": "Current"})
        })
        .collect();
    let metadata = if group.is_empty() {
        json!({"creationTimestamp": null})
    } else {
        json!({"name": group, "creationTimestamp": null})
    };
    json!({"metadata": metadata, "versions": versions})
}

fn aggregated_resource(kind: &Arc<Kind>) -> Value {
    let of = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let mut resource = json!({
        "resource": kind.plural,
        "responseKind": of(&kind.group, &kind.version, &kind.kind),
        "scope": if kind.is_namespaced() { "Namespaced" } else { "Cluster" },
        "singularResource": kind.singular,
        "verbs": verbs(kind),
    });
    if !short_names(kind).is_empty() {
        resource["shortNames"] = json!(short_names(kind));
    }
    if !kind.categories.is_empty() {
        resource["categories"] = json!(kind.categories);
    }
    let subresources: Vec<Value> = kind
        .subresources
        .iter()
        .map(|name| {
            let sub = Sub::of(kind, name);
            json!({
                "subresource": name,
                "responseKind": of(&sub.group, &sub.version, sub.kind),
                "verbs": sub.verbs,
            })
        })
        .collect();
    if !subresources.is_empty() {
        resource["subresources"] = Value::Array(subresources);
    }
    resource
}

/// The same in every version, but for those that are served for the sake of old manifests.
fn short_names(kind: &Kind) -> &[String] {
    match kind.deprecation {
        None => &kind.stored().short_names,
        Some(_) => &kind.short_names,
    }
}

/// What is said of a subresource.
struct Sub<'a> {
    group: String,
    version: String,
    kind: &'a str,
    verbs: &'static [&'static str],
}

impl<'a> Sub<'a> {
    fn of(kind: &'a Kind, name: &str) -> Self {
        const EDIT: &[&str] = &["get", "patch", "update"];
        const CREATE: &[&str] = &["create"];
        const CONNECT: &[&str] = &["create", "get"];
        const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];
        let other = |group: &str, version: &str, kind: &'a str, verbs| Self {
            group: group.into(),
            version: version.into(),
            kind,
            verbs,
        };
        let own = |own: &'a str, verbs| other(&kind.group, &kind.version, own, verbs);
        match (kind.plural.as_str(), name) {
            (_, "scale") => other("autoscaling", "v1", "Scale", EDIT),
            ("pods", "eviction") => other("policy", "v1", "Eviction", CREATE),
            ("pods", "binding") => own("Binding", CREATE),
            ("pods", "log") => own("Pod", &["get"]),
            ("pods", "exec") => own("PodExecOptions", CONNECT),
            ("pods", "attach") => own("PodAttachOptions", CONNECT),
            ("pods", "portforward") => own("PodPortForwardOptions", CONNECT),
            ("pods", "proxy") => own("PodProxyOptions", PROXY),
            ("services", "proxy") => own("ServiceProxyOptions", PROXY),
            ("nodes", "proxy") => own("NodeProxyOptions", PROXY),
            ("namespaces", "finalize") => own("Namespace", &["update"]),
            ("serviceaccounts", "token") => other("authentication.k8s.io", "v1", "TokenRequest", CREATE),
            _ => own(&kind.kind, EDIT),
        }
    }
}

/// The groups but the core one, in the order of their first kinds.
fn group_names(registry: &Registry) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for kind in served(registry).filter(|kind| !kind.group.is_empty()) {
        if !names.contains(&kind.group) {
            names.push(kind.group.clone());
        }
    }
    names
}

/// The versions of a group, the preferred one first.
fn versions(registry: &Registry, group: &str) -> Vec<String> {
    let mut versions: Vec<String> = Vec::new();
    for kind in served(registry).filter(|kind| kind.group == group) {
        if !versions.contains(&kind.version) {
            versions.push(kind.version.clone());
        }
    }
    versions.sort_by(|a, b| compare_versions(a, b));
    versions
}

fn kinds<'a>(registry: &'a Registry, group: &'a str, version: &'a str) -> impl Iterator<Item = &'a Arc<Kind>> {
    served(registry).filter(move |kind| kind.group == group && kind.version == version)
}

/// The kinds that are kept, and those that are not.
pub fn served(registry: &Registry) -> impl Iterator<Item = &Arc<Kind>> {
    registry.iter().chain(questions::all())
}

fn verbs(kind: &Kind) -> &'static [&'static str] {
    match questions::verbs(kind) {
        Some(verbs) => verbs,
        None if kind.builtin == Some(Builtin::Namespace) => VERBS_OF_NAMESPACES,
        None => VERBS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_stand_in_upstreams_order() {
        let mut versions = ["v1beta1", "foo", "v1", "v11alpha2", "v2", "v1beta2", "v10"];
        versions.sort_by(|a, b| compare_versions(a, b));
        assert_eq!(versions, ["v10", "v2", "v1", "v1beta2", "v1beta1", "v11alpha2", "foo"]);
    }

    #[test]
    fn short_names_are_those_of_all_versions_that_are_still_in_use() {
        let registry = Registry::builtin();
        let of = |group: &str, version: &str, plural: &str| {
            let list = resources(&registry, group, version).unwrap();
            let found = list["resources"].as_array().unwrap().iter().find(|one| one["name"] == plural);
            found.unwrap()["shortNames"].clone()
        };
        assert_eq!(of("events.k8s.io", "v1", "events"), json!(["ev"]));
        assert_eq!(of("autoscaling", "v1", "horizontalpodautoscalers"), json!(["hpa"]));
        assert_eq!(of("apps", "v1", "deployments"), json!(["deploy"]));
        assert_eq!(of("extensions", "v1beta1", "deployments"), Value::Null);
    }

    #[test]
    fn both_forms_of_discovery_tell_of_every_kind() {
        let registry = Registry::builtin();
        let all = [aggregated(&registry, true, "v2"), aggregated(&registry, false, "v2")];
        for kind in served(&registry) {
            let list = resources(&registry, &kind.group, &kind.version).unwrap();
            let names: Vec<&str> =
                list["resources"].as_array().unwrap().iter().filter_map(|r| r["name"].as_str()).collect();
            assert!(names.contains(&kind.plural.as_str()), "{kind:?}");
            let told =
                |group: &Value| group["versions"].to_string().contains(&format!("\"resource\":\"{}\"", kind.plural));
            assert!(all.iter().any(|list| list["items"].as_array().unwrap().iter().any(told)), "{kind:?}");
        }
        assert_eq!(group(&registry, "apps").unwrap()["preferredVersion"]["groupVersion"], "apps/v1");
        assert!(group(&registry, "none").is_none() && resources(&registry, "apps", "v9").is_none());
    }
}
