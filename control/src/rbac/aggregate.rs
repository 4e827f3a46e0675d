//! Roles that are made of others: their rules are those of all roles that their selectors match.

use std::collections::BTreeMap;

use flotilla_api::k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};

use crate::selector;

/// The rules that aggregated roles should have and do not, by role.
pub fn aggregate(roles: &BTreeMap<String, ClusterRole>) -> BTreeMap<String, Vec<PolicyRule>> {
    let mut rules: BTreeMap<&str, Vec<PolicyRule>> =
        roles.iter().map(|(name, role)| (name.as_str(), role.rules.clone().unwrap_or_default())).collect();
    // What one role gathers another may gather from it; each round settles at least one more link of such a chain.
    for _ in 0..roles.len() {
        let mut settled = true;
        for (name, role) in roles {
            let Some(union) = union(name, role, roles, &rules) else { continue };
            if rules.get(name.as_str()) != Some(&union) {
                rules.insert(name, union);
                settled = false;
            }
        }
        if settled {
            break;
        }
    }
    let changed = rules.into_iter().filter(|(name, rules)| {
        roles.get(*name).is_some_and(|role| role.rules.as_deref().unwrap_or_default() != rules.as_slice())
    });
    changed.map(|(name, rules)| (name.to_owned(), rules)).collect()
}

/// The rules of all roles that an aggregated role selects, each once.
fn union(
    name: &str,
    role: &ClusterRole,
    roles: &BTreeMap<String, ClusterRole>,
    rules: &BTreeMap<&str, Vec<PolicyRule>>,
) -> Option<Vec<PolicyRule>> {
    let selectors = role.aggregation_rule.as_ref()?.cluster_role_selectors.as_deref().unwrap_or_default();
    let mut union: Vec<PolicyRule> = Vec::new();
    for wanted in selectors {
        let selected = roles
            .iter()
            .filter(|(other, role)| *other != name && selector::matches(wanted, role.metadata.labels.as_ref()));
        for rule in selected.flat_map(|(other, _)| rules.get(other.as_str()).into_iter().flatten()) {
            if !union.contains(rule) {
                union.push(rule.clone());
            }
        }
    }
    Some(union)
}

#[cfg(test)]
mod tests {
    use super::super::{default_roles, defaults::rule};
    use super::*;

    fn defaults() -> BTreeMap<String, ClusterRole> {
        default_roles().into_iter().map(|role| (role.metadata.name.clone().unwrap(), role)).collect()
    }

    #[test]
    fn admin_gathers_edit_which_gathers_view() {
        let mut roles = defaults();
        let gathered = aggregate(&roles);
        assert_eq!(gathered.keys().collect::<Vec<_>>(), ["admin", "edit", "view"]);
        let of = |name: &str| roles[name].rules.clone().unwrap();
        assert_eq!(gathered["view"], of("system:aggregate-to-view"));
        for part in ["system:aggregate-to-admin", "system:aggregate-to-edit", "system:aggregate-to-view"] {
            assert!(of(part).iter().all(|rule| gathered["admin"].contains(rule)), "{part}");
        }
        for (name, rules) in gathered {
            roles.get_mut(&name).unwrap().rules = Some(rules);
        }
        assert!(aggregate(&roles).is_empty(), "what was gathered is settled");
    }

    #[test]
    fn a_role_that_comes_or_goes_is_followed() {
        let mut roles = defaults();
        let mut own = roles["system:aggregate-to-view"].clone();
        own.metadata.name = Some("tanks".into());
        own.rules = Some(vec![rule("get", "example.com", "tanks")]);
        roles.insert("tanks".into(), own);
        for (name, rules) in aggregate(&roles) {
            assert!(rules.contains(&rule("get", "example.com", "tanks")), "{name}");
            roles.get_mut(&name).unwrap().rules = Some(rules);
        }
        roles.remove("tanks");
        let gathered = aggregate(&roles);
        assert_eq!(gathered.len(), 3);
        assert!(!gathered["admin"].contains(&rule("get", "example.com", "tanks")));
    }
}
