//! Nobody gives what they do not have: roles and bindings are written only by those who hold all that these grant, or who
//! may `escalate` the role or `bind` it.
//!
//! Defined by what an API server does with `rbac.authorization.k8s.io`.

use flotilla_api::k8s_openapi::api::rbac::v1::{PolicyRule, RoleRef};
use flotilla_api::{GroupResource, Kind, Reason, Status};
use flotilla_control::rbac::{self, ALL, GROUP};
use serde::Deserialize;
use serde_json::Value;

use super::authorize::resource_action;
use super::write::text;
use super::{Gate, User};

impl Gate {
    /// Whether the user may write this role or binding; everything else may be written.
    ///
    /// # Errors
    /// `Forbidden` with what the user lacks, or `NotFound` for a role that a binding names; both may rest on roles that
    /// are behind.
    pub(super) fn check_escalation(
        &self,
        user: &User,
        kind: &Kind,
        old: Option<&Value>,
        new: &Value,
    ) -> Result<(), Status> {
        if kind.group != GROUP || user.is_master() || old.is_some_and(|old| only_lets_go(old, new)) {
            return Ok(());
        }
        match kind.plural.as_str() {
            "roles" | "clusterroles" => self.check_role(user, kind, old, new),
            "rolebindings" | "clusterrolebindings" => self.check_binding(user, kind, new),
            _ => Ok(()),
        }
    }

    fn check_role(&self, user: &User, kind: &Kind, old: Option<&Value>, new: &Value) -> Result<(), Status> {
        let (namespace, name) = (text(new, "/metadata/namespace"), text(new, "/metadata/name"));
        // As upstream: a creation names no object.
        let named = if old.is_some() { name } else { "" };
        if self.may_here(user, "escalate", &kind.plural, (namespace, named)) {
            return Ok(());
        }
        let rules = Option::<Vec<PolicyRule>>::deserialize(&new["rules"]).map_err(Status::internal)?;
        self.check_rules(user, kind, (namespace, name), rules.as_deref().unwrap_or_default())?;
        let gathers = |role: &Value| role.get("aggregationRule").is_some_and(|rule| !rule.is_null());
        if kind.plural == "clusterroles" && (gathers(new) || old.is_some_and(gathers)) {
            let held = self.roles.policy();
            if !rbac::covers(&held.rules_for(user.who(), "").rules, &everything()).is_empty() {
                return Err(refuse(kind, name, "must have cluster-admin privileges to use an aggregationRule"));
            }
        }
        Ok(())
    }

    fn check_binding(&self, user: &User, kind: &Kind, new: &Value) -> Result<(), Status> {
        let (namespace, name) = (text(new, "/metadata/namespace"), text(new, "/metadata/name"));
        let role = RoleRef::deserialize(&new["roleRef"]).map_err(Status::internal)?;
        let of = if role.kind == "Role" { "roles" } else { "clusterroles" };
        if self.may_here(user, "bind", of, (namespace, &role.name)) {
            return Ok(());
        }
        let rules = match self.roles.policy().rules_of(&role, namespace) {
            Ok(rules) => rules.to_vec(),
            Err(_) => return Err(Status::not_found(GroupResource::new(GROUP, of), &role.name)),
        };
        self.check_rules(user, kind, (namespace, name), &rules)
    }

    fn check_rules(
        &self,
        user: &User,
        kind: &Kind,
        (namespace, name): (&str, &str),
        wanted: &[PolicyRule],
    ) -> Result<(), Status> {
        let policy = self.roles.policy();
        let held = policy.rules_for(user.who(), namespace);
        let missing = rbac::covers(&held.rules, wanted);
        if missing.is_empty() {
            return Ok(());
        }
        let mut lines: Vec<String> = rbac::compact(missing).iter().map(rbac::describe).collect();
        lines.sort();
        lines.dedup();
        let problems = match held.problems.as_slice() {
            [] => String::new(),
            problems => format!("; resolution errors: [{}]", problems.join(", ")),
        };
        let why = format!(
            "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}{problems}",
            user.name,
            rbac::quoted(&user.groups),
            lines.join("\n")
        );
        Err(refuse(kind, name, &why))
    }

    fn may_here(&self, user: &User, verb: &str, resource: &str, place: (&str, &str)) -> bool {
        let action = resource_action(verb, (GROUP, resource, ""), place);
        self.roles.policy().check(user.who(), &action).is_ok()
    }
}

fn refuse(kind: &Kind, name: &str, why: &str) -> Status {
    Status::new(Reason::Forbidden, format!("{} {name:?} is forbidden: {why}", kind.collection()))
}

fn everything() -> [PolicyRule; 2] {
    let all = || vec![ALL.to_owned()];
    [
        PolicyRule { verbs: all(), api_groups: Some(all()), resources: Some(all()), ..PolicyRule::default() },
        PolicyRule { verbs: all(), non_resource_urls: Some(all()), ..PolicyRule::default() },
    ]
}

/// Whether nothing changes but owners and finalizers, so that whoever collects garbage needs none of the rights.
fn only_lets_go(old: &Value, new: &Value) -> bool {
    let without = |object: &Value| {
        let mut object = object.clone();
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            for field in ["ownerReferences", "finalizers", "managedFields", "resourceVersion"] {
                metadata.remove(field);
            }
        }
        object
    };
    without(old) == without(new)
}
