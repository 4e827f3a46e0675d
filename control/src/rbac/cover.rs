//! Whether some rules grant all that others do: nobody may give what they do not have.

use std::collections::BTreeMap;

use flotilla_api::k8s_openapi::api::rbac::v1::PolicyRule;

use super::ALL;
use super::rule::covers_path;

/// What `wanted` grants and `held` does not, each as a rule of one verb on one resource or path. Empty: all is covered.
pub fn covers(held: &[&PolicyRule], wanted: &[PolicyRule]) -> Vec<PolicyRule> {
    let parts = wanted.iter().flat_map(break_down);
    parts.filter(|part| !held.iter().any(|rule| covers_part(rule, part))).collect()
}

/// A rule as rules of one verb, group, resource and name, or of one verb and path.
fn break_down(rule: &PolicyRule) -> Vec<PolicyRule> {
    let mut parts = Vec::new();
    let one = |text: &String| Some(vec![text.clone()]);
    for group in rule.api_groups.iter().flatten() {
        for resource in rule.resources.iter().flatten() {
            for verb in &rule.verbs {
                let part = PolicyRule {
                    api_groups: one(group),
                    resources: one(resource),
                    verbs: vec![verb.clone()],
                    ..PolicyRule::default()
                };
                match rule.resource_names.as_deref().unwrap_or_default() {
                    [] => parts.push(part),
                    names => {
                        parts.extend(names.iter().map(|name| PolicyRule { resource_names: one(name), ..part.clone() }))
                    }
                }
            }
        }
    }
    for url in rule.non_resource_urls.iter().flatten() {
        let of_url = |verb: &String| PolicyRule {
            non_resource_urls: one(url),
            verbs: vec![verb.clone()],
            ..PolicyRule::default()
        };
        parts.extend(rule.verbs.iter().map(of_url));
    }
    parts
}

fn covers_part(held: &PolicyRule, part: &PolicyRule) -> bool {
    let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let all = |held: &[String], wanted: &[String]| {
        held.iter().any(|entry| entry == ALL) || wanted.iter().all(|entry| held.contains(entry))
    };
    let names = |held: &[String], wanted: &[String]| {
        held.is_empty() || (!wanted.is_empty() && wanted.iter().all(|name| held.contains(name)))
    };
    let urls =
        |held: &[String], wanted: &[String]| wanted.iter().all(|url| held.iter().any(|entry| covers_path(entry, url)));
    all(&held.verbs, &part.verbs)
        && all(&list(&held.api_groups), &list(&part.api_groups))
        && covers_resources(&list(&held.resources), &list(&part.resources))
        && names(&list(&held.resource_names), &list(&part.resource_names))
        && urls(&list(&held.non_resource_urls), &list(&part.non_resource_urls))
}

fn covers_resources(held: &[String], wanted: &[String]) -> bool {
    let has = |resource: &str| held.iter().any(|entry| entry == resource);
    has(ALL)
        || wanted.iter().all(|resource| {
            has(resource) || resource.split_once('/').is_some_and(|(_, sub)| has(&format!("{ALL}/{sub}")))
        })
}

/// The same grants in fewer rules: rules on the same resource, and the same name if they have one, become one.
pub fn compact(rules: Vec<PolicyRule>) -> Vec<PolicyRule> {
    let mut complex = Vec::new();
    let mut simple: BTreeMap<(String, String, Option<String>), PolicyRule> = BTreeMap::new();
    for rule in rules {
        let Some(key) = simple_key(&rule) else {
            complex.push(rule);
            continue;
        };
        match simple.get_mut(&key) {
            Some(other) => other.verbs.extend(rule.verbs),
            None => _ = simple.insert(key, rule),
        }
    }
    complex.extend(simple.into_values());
    complex
}

fn simple_key(rule: &PolicyRule) -> Option<(String, String, Option<String>)> {
    let of = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let names = of(&rule.resource_names);
    let ([group], [resource]) = (of(&rule.api_groups).try_into().ok()?, of(&rule.resources).try_into().ok()?);
    (names.len() <= 1 && of(&rule.non_resource_urls).is_empty()).then(|| (group, resource, names.into_iter().next()))
}

/// A rule in upstream's short form: `{APIGroups:[""], Resources:["pods"], Verbs:["get"]}`.
pub fn describe(rule: &PolicyRule) -> String {
    let parts = [
        ("APIGroups", rule.api_groups.as_deref().unwrap_or_default()),
        ("Resources", rule.resources.as_deref().unwrap_or_default()),
        ("NonResourceURLs", rule.non_resource_urls.as_deref().unwrap_or_default()),
        ("ResourceNames", rule.resource_names.as_deref().unwrap_or_default()),
        ("Verbs", &rule.verbs),
    ];
    let parts = parts.into_iter().filter(|(_, list)| !list.is_empty());
    let parts: Vec<String> = parts.map(|(name, list)| format!("{name}:{}", quoted(list))).collect();
    format!("{{{}}}", parts.join(", "))
}

/// `["a" "b"]`
pub fn quoted(list: &[String]) -> String {
    let entries: Vec<String> = list.iter().map(|entry| format!("{entry:?}")).collect();
    format!("[{}]", entries.join(" "))
}

#[cfg(test)]
mod tests {
    use super::super::defaults::{paths, rule};
    use super::*;

    fn missing(held: &[PolicyRule], wanted: &[PolicyRule]) -> Vec<String> {
        let held: Vec<&PolicyRule> = held.iter().collect();
        compact(covers(&held, wanted)).iter().map(describe).collect()
    }

    fn named(mut rule: PolicyRule, name: &str) -> PolicyRule {
        rule.resource_names = Some(vec![name.to_owned()]);
        rule
    }

    #[test]
    fn what_is_held_in_parts_covers() {
        let held = [rule("get", "core", "pods services"), rule("list", "core apps", "*")];
        assert!(missing(&held, &[rule("get list", "core", "pods")]).is_empty());
        assert!(missing(&held, &[named(rule("get", "core", "pods"), "a")]).is_empty());
        assert_eq!(
            missing(&held, &[rule("get list watch", "core", "pods secrets")]),
            [
                r#"{APIGroups:[""], Resources:["pods"], Verbs:["watch"]}"#,
                r#"{APIGroups:[""], Resources:["secrets"], Verbs:["get" "watch"]}"#
            ]
        );
    }

    #[test]
    fn wildcards_are_covered_by_wildcards_only() {
        let many = [rule("get list watch create update patch delete", "core", "pods")];
        assert_eq!(missing(&many, &[rule("*", "core", "pods")]).len(), 1);
        assert_eq!(missing(&[rule("*", "core", "pods")], &[rule("*", "*", "pods")]).len(), 1);
        assert!(missing(&[rule("*", "*", "*")], &[rule("*", "*", "*")]).is_empty());
        assert!(missing(&[rule("*", "*", "*")], &[named(rule("get", "core", "pods/log"), "x")]).is_empty());
    }

    #[test]
    fn names_and_subresources() {
        let held = [named(rule("get", "core", "secrets"), "a"), rule("update", "apps", "*/scale")];
        assert!(missing(&held, &[named(rule("get", "core", "secrets"), "a")]).is_empty());
        assert_eq!(missing(&held, &[rule("get", "core", "secrets")]).len(), 1);
        assert_eq!(
            missing(&held, &[named(rule("get", "core", "secrets"), "b")]),
            [r#"{APIGroups:[""], Resources:["secrets"], ResourceNames:["b"], Verbs:["get"]}"#]
        );
        assert!(missing(&held, &[rule("update", "apps", "deployments/scale")]).is_empty());
        assert_eq!(missing(&held, &[rule("update", "apps", "deployments")]).len(), 1);
        assert_eq!(missing(&held, &[rule("update", "apps", "*")]).len(), 1);
    }

    #[test]
    fn urls() {
        assert!(missing(&[paths("get", "/healthz/*")], &[paths("get", "/healthz/a")]).is_empty());
        assert!(missing(&[paths("get", "/healthz/*")], &[paths("get", "/healthz/a/*")]).is_empty());
        assert_eq!(
            missing(&[paths("get", "/healthz")], &[paths("get", "/healthz/*")]),
            [r#"{NonResourceURLs:["/healthz/*"], Verbs:["get"]}"#]
        );
        assert_eq!(missing(&[rule("*", "*", "*")], &[paths("get", "/metrics")]).len(), 1);
    }
}
