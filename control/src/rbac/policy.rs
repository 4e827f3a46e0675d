//! Roles and bindings, indexed so that a check looks only at what concerns the user.
//!
//! Invariant: `by_place` names exactly the bindings that are in `bindings`.

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use flotilla_api::Key;
use flotilla_api::k8s_openapi::api::rbac::v1::{
    ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject,
};
use serde::de::DeserializeOwned;

use super::GROUP;
use super::rule::{Action, allows};

/// Whom a check is about.
#[derive(Clone, Copy, Debug)]
pub struct Who<'a> {
    pub name: &'a str,
    pub groups: &'a [String],
}

/// All roles and bindings.
#[derive(Debug, Default)]
pub struct Policy {
    /// By namespace, `""` for cluster roles, then by name.
    roles: HashMap<String, HashMap<String, Vec<PolicyRule>>>,
    bindings: HashMap<Key, Binding>,
    /// By namespace, `""` for those that hold everywhere.
    by_place: HashMap<String, Holders>,
}

#[derive(Debug)]
struct Binding {
    role: RoleRef,
    subjects: Vec<Subject>,
}

/// The bindings of one namespace by whom they are for. Service accounts are users with names of a form of their own.
#[derive(Debug, Default)]
struct Holders {
    users: HashMap<String, BTreeSet<Key>>,
    groups: HashMap<String, BTreeSet<Key>>,
}

/// Why somebody may do something.
#[derive(Debug)]
pub struct Grant<'a> {
    key: &'a Key,
    role: &'a RoleRef,
    subject: Option<&'a Subject>,
}

/// What somebody may do, and what could not be found out.
#[derive(Debug, Default)]
pub struct Rules<'a> {
    pub rules: Vec<&'a PolicyRule>,
    /// Roles that bindings name and that are not there.
    pub problems: Vec<String>,
}

impl Policy {
    /// Takes over a stored object, or its deletion. Keys of other kinds are ignored.
    pub fn observe(&mut self, key: &Key, value: Option<&[u8]>) {
        if key.group() != GROUP {
            return;
        }
        match key.resource() {
            "roles" => self.set_role(key, value.and_then(decode::<Role>).map(|role| role.rules)),
            "clusterroles" => self.set_role(key, value.and_then(decode::<ClusterRole>).map(|role| role.rules)),
            "rolebindings" => {
                let binding = value.and_then(decode::<RoleBinding>);
                self.set_binding(
                    key,
                    binding.map(|b| Binding { role: b.role_ref, subjects: b.subjects.unwrap_or_default() }),
                );
            }
            "clusterrolebindings" => {
                let binding = value.and_then(decode::<ClusterRoleBinding>);
                self.set_binding(
                    key,
                    binding.map(|b| Binding { role: b.role_ref, subjects: b.subjects.unwrap_or_default() }),
                );
            }
            _ => {}
        }
    }

    fn set_role(&mut self, key: &Key, rules: Option<Option<Vec<PolicyRule>>>) {
        let place = self.roles.entry(key.namespace().to_owned()).or_default();
        match rules {
            Some(rules) => _ = place.insert(key.name().to_owned(), rules.unwrap_or_default()),
            None => _ = place.remove(key.name()),
        }
        if place.is_empty() {
            self.roles.remove(key.namespace());
        }
    }

    fn set_binding(&mut self, key: &Key, binding: Option<Binding>) {
        if let Some(old) = self.bindings.remove(key) {
            self.each_holder(key, &old.subjects, |bindings, key| _ = bindings.remove(key));
        }
        if let Some(new) = binding {
            self.each_holder(key, &new.subjects, |bindings, key| _ = bindings.insert(key.clone()));
            self.bindings.insert(key.clone(), new);
        }
    }

    fn each_holder(&mut self, key: &Key, subjects: &[Subject], act: impl Fn(&mut BTreeSet<Key>, &Key)) {
        let place = self.by_place.entry(key.namespace().to_owned()).or_default();
        for subject in subjects {
            let (holders, name) = match subject.kind.as_str() {
                "Group" => (&mut place.groups, subject.name.clone()),
                "User" => (&mut place.users, subject.name.clone()),
                "ServiceAccount" => match service_account(subject, key.namespace()) {
                    Some(name) => (&mut place.users, name),
                    None => continue,
                },
                _ => continue,
            };
            let bindings = holders.entry(name.clone()).or_default();
            act(bindings, key);
            if bindings.is_empty() {
                holders.remove(&name);
            }
        }
        if place.users.is_empty() && place.groups.is_empty() {
            self.by_place.remove(key.namespace());
        }
    }

    /// Why the user may do this.
    ///
    /// # Errors
    /// Upstream's words for the roles that bindings of the user name and that are not there; empty if there are none.
    pub fn check(&self, who: Who, action: &Action) -> Result<Grant<'_>, String> {
        let namespace = match action {
            Action::Resource { namespace, .. } => namespace,
            Action::Path { .. } => "",
        };
        let mut problems = BTreeSet::new();
        for (key, binding) in self.bindings_of(who, namespace) {
            match self.rules_of(&binding.role, key.namespace()) {
                Ok(rules) if rules.iter().any(|rule| allows(rule, action)) => {
                    return Ok(Grant { key, role: &binding.role, subject: binding.subject_of(who, key.namespace()) });
                }
                Ok(_) => {}
                Err(problem) => _ = problems.insert(problem),
            }
        }
        Err(words(problems.into_iter().collect()))
    }

    /// All that the user may do at the cluster scope and in the namespace, if one is given.
    pub fn rules_for(&self, who: Who, namespace: &str) -> Rules<'_> {
        let mut found = Rules::default();
        for (key, binding) in self.bindings_of(who, namespace) {
            match self.rules_of(&binding.role, key.namespace()) {
                Ok(rules) => found.rules.extend(rules),
                Err(problem) if found.problems.contains(&problem) => {}
                Err(problem) => found.problems.push(problem),
            }
        }
        found
    }

    /// The rules of the role that a binding in this namespace (`""`: of the cluster) names.
    ///
    /// # Errors
    /// If there is none, in upstream's words.
    pub fn rules_of(&self, role: &RoleRef, namespace: &str) -> Result<&[PolicyRule], String> {
        let (place, singular) = match role.kind.as_str() {
            "ClusterRole" => ("", "clusterrole"),
            "Role" => (namespace, "role"),
            other => return Err(format!("unsupported role reference kind: {other:?}")),
        };
        let found = self.roles.get(place).and_then(|roles| roles.get(&role.name));
        found.map(Vec::as_slice).ok_or_else(|| format!("{singular}.{GROUP} {:?} not found", role.name))
    }

    /// The bindings that hold for the user everywhere, then those that hold in the namespace.
    fn bindings_of<'s, 'w>(
        &'s self,
        who: Who<'w>,
        namespace: &str,
    ) -> impl Iterator<Item = (&'s Key, &'s Binding)> + use<'s, 'w> {
        let everywhere = self.by_place.get("");
        let here = (!namespace.is_empty()).then(|| self.by_place.get(namespace)).flatten();
        let keys = everywhere.into_iter().chain(here).flat_map(move |place| {
            let of_groups = who.groups.iter().filter_map(|group| place.groups.get(group));
            place.users.get(who.name).into_iter().chain(of_groups).flatten()
        });
        keys.filter_map(|key| self.bindings.get_key_value(key))
    }
}

impl Binding {
    fn subject_of<'a>(&'a self, who: Who, namespace: &str) -> Option<&'a Subject> {
        self.subjects.iter().find(|subject| match subject.kind.as_str() {
            "Group" => who.groups.contains(&subject.name),
            "User" => who.name == subject.name,
            "ServiceAccount" => service_account(subject, namespace).is_some_and(|name| name == who.name),
            _ => false,
        })
    }
}

/// The user name of a service account. One that names no namespace is of the binding's.
fn service_account(subject: &Subject, namespace: &str) -> Option<String> {
    let own = subject.namespace.as_deref().filter(|own| !own.is_empty()).unwrap_or(namespace);
    (!own.is_empty()).then(|| format!("system:serviceaccount:{own}:{}", subject.name))
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    serde_json::from_slice(bytes).ok()
}

/// One problem as it is, several as upstream's list.
fn words(problems: Vec<String>) -> String {
    match problems.as_slice() {
        [] => String::new(),
        [one] => format!("RBAC: {one}"),
        many => format!("RBAC: [{}]", many.join(", ")),
    }
}

impl fmt::Display for Grant<'_> {
    /// Upstream's form: `RBAC: allowed by RoleBinding "b/ns" of ClusterRole "view" to User "ann"`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, namespace) = (self.key.name(), self.key.namespace());
        match namespace {
            "" => write!(f, "RBAC: allowed by ClusterRoleBinding {name:?}")?,
            _ => write!(f, "RBAC: allowed by RoleBinding \"{name}/{namespace}\"")?,
        }
        write!(f, " of {} {:?}", self.role.kind, self.role.name)?;
        let Some(subject) = self.subject else { return Ok(()) };
        match subject.kind.as_str() {
            "ServiceAccount" => {
                let own = subject.namespace.as_deref().filter(|own| !own.is_empty()).unwrap_or(namespace);
                write!(f, " to ServiceAccount \"{}/{own}\"", subject.name)
            }
            kind => write!(f, " to {kind} {:?}", subject.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::defaults::{paths, rule};
    use super::*;
    use flotilla_api::GroupResource;
    use serde_json::{Value, json};

    fn key(resource: &str, namespace: &str, name: &str) -> Key {
        Key::new(&GroupResource::new(GROUP, resource), namespace, name)
    }

    fn put(policy: &mut Policy, key: &Key, value: Value) {
        policy.observe(key, Some(value.to_string().as_bytes()));
    }

    fn role(policy: &mut Policy, namespace: &str, name: &str, rules: &[PolicyRule]) {
        let resource = if namespace.is_empty() { "clusterroles" } else { "roles" };
        put(policy, &key(resource, namespace, name), json!({"metadata": {"name": name}, "rules": rules}));
    }

    fn bind(policy: &mut Policy, namespace: &str, name: &str, (kind, role): (&str, &str), subjects: Value) {
        let resource = if namespace.is_empty() { "clusterrolebindings" } else { "rolebindings" };
        let role = json!({"apiGroup": GROUP, "kind": kind, "name": role});
        put(
            policy,
            &key(resource, namespace, name),
            json!({"metadata": {"name": name}, "roleRef": role, "subjects": subjects}),
        );
    }

    fn get_pods(namespace: &str) -> Action<'_> {
        Action::Resource { verb: "get", group: "", resource: "pods", subresource: "", namespace, name: "p" }
    }

    /// Why `name`, a member of `groups`, may get pods in the namespace, or why not.
    fn ask(policy: &Policy, name: &str, groups: &[&str], namespace: &str) -> Result<String, String> {
        let groups: Vec<String> = groups.iter().map(|group| (*group).to_owned()).collect();
        policy.check(Who { name, groups: &groups }, &get_pods(namespace)).map(|grant| grant.to_string())
    }

    fn filled() -> Policy {
        let mut policy = Policy::default();
        role(&mut policy, "", "reader", &[rule("get", "core", "pods")]);
        role(&mut policy, "red", "local", &[rule("get", "core", "pods")]);
        bind(&mut policy, "", "all", ("ClusterRole", "reader"), json!([{"kind": "Group", "name": "readers"}]));
        bind(&mut policy, "red", "ann", ("ClusterRole", "reader"), json!([{"kind": "User", "name": "ann"}]));
        let accounts = json!([
            {"kind": "ServiceAccount", "name": "bot"},
            {"kind": "ServiceAccount", "name": "bot", "namespace": "blue"},
        ]);
        bind(&mut policy, "red", "bots", ("Role", "local"), accounts);
        policy
    }

    #[test]
    fn whoever_is_bound_may() {
        let policy = filled();
        let group = "RBAC: allowed by ClusterRoleBinding \"all\" of ClusterRole \"reader\" to Group \"readers\"";
        let ann = "RBAC: allowed by RoleBinding \"ann/red\" of ClusterRole \"reader\" to User \"ann\"";
        let bot = "RBAC: allowed by RoleBinding \"bots/red\" of Role \"local\" to ServiceAccount \"bot/blue\"";
        let table: [(&str, &[&str], &str, Option<&str>); 11] = [
            ("x", &["readers"], "red", Some(group)),
            ("x", &["other", "readers"], "", Some(group)),
            ("readers", &[], "red", None),
            ("ann", &[], "red", Some(ann)),
            ("ann", &[], "blue", None),
            ("ann", &[], "", None),
            ("x", &["ann"], "red", None),
            ("system:serviceaccount:blue:bot", &[], "red", Some(bot)),
            ("system:serviceaccount:blue:bot", &[], "blue", None),
            ("system:serviceaccount:green:bot", &[], "red", None),
            ("bot", &[], "red", None),
        ];
        for (name, groups, namespace, why) in table {
            assert_eq!(ask(&policy, name, groups, namespace).ok().as_deref(), why, "{name} {groups:?} {namespace}");
        }
        assert!(ask(&policy, "system:serviceaccount:red:bot", &[], "red").is_ok());
    }

    #[test]
    fn what_changes_counts_and_what_goes_no_longer_does() {
        let mut policy = filled();
        let binding = key("rolebindings", "red", "ann");
        bind(&mut policy, "red", "ann", ("ClusterRole", "reader"), json!([{"kind": "User", "name": "bob"}]));
        assert!(ask(&policy, "ann", &[], "red").is_err() && ask(&policy, "bob", &[], "red").is_ok());
        policy.observe(&binding, None);
        assert!(ask(&policy, "bob", &[], "red").is_err());
        role(&mut policy, "", "reader", &[rule("list", "core", "pods")]);
        assert_eq!(ask(&policy, "x", &["readers"], "red"), Err(String::new()));
        for (resource, namespace, name) in [
            ("clusterrolebindings", "", "all"),
            ("rolebindings", "red", "bots"),
            ("roles", "red", "local"),
            ("clusterroles", "", "reader"),
        ] {
            policy.observe(&key(resource, namespace, name), None);
        }
        assert!(policy.bindings.is_empty() && policy.by_place.is_empty() && policy.roles.is_empty());
    }

    #[test]
    fn a_role_that_is_missing_is_told() {
        let mut policy = filled();
        policy.observe(&key("clusterroles", "", "reader"), None);
        let missing = "clusterrole.rbac.authorization.k8s.io \"reader\" not found";
        assert_eq!(ask(&policy, "ann", &[], "red"), Err(format!("RBAC: {missing}")));
        assert_eq!(ask(&policy, "ann", &["readers"], "red"), Err(format!("RBAC: {missing}")));
        let who = Who { name: "ann", groups: &["readers".to_owned()] };
        let found = policy.rules_for(who, "red");
        assert!(found.rules.is_empty());
        assert_eq!(found.problems, [missing]);
        policy.observe(&key("roles", "red", "local"), None);
        let error = ask(&policy, "system:serviceaccount:red:bot", &["readers"], "red").unwrap_err();
        assert_eq!(error, format!("RBAC: [{missing}, role.rbac.authorization.k8s.io \"local\" not found]"));
    }

    #[test]
    fn paths_are_granted_at_the_cluster_scope_only() {
        let mut policy = filled();
        role(&mut policy, "", "reader", &[paths("get", "/metrics")]);
        let action = Action::Path { verb: "get", path: "/metrics" };
        assert!(policy.check(Who { name: "x", groups: &["readers".to_owned()] }, &action).is_ok());
        assert!(policy.check(Who { name: "ann", groups: &[] }, &action).is_err());
    }

    #[test]
    fn bytes_that_do_not_decode_grant_nothing() {
        let mut policy = filled();
        policy.observe(&key("clusterrolebindings", "", "all"), Some(b"{\"roleRef\": 7}"));
        assert!(ask(&policy, "x", &["readers"], "red").is_err());
        bind(
            &mut policy,
            "",
            "odd",
            ("Widget", "w"),
            json!([{"kind": "User", "name": "eve"}, {"kind": "Pod", "name": "p"}]),
        );
        assert_eq!(ask(&policy, "eve", &[], "red").unwrap_err(), "RBAC: unsupported role reference kind: \"Widget\"");
    }
}
