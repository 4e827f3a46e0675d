//! Who may do what: masters everything, a node what concerns itself, everyone what roles grant them.
//!
//! Defined by Kubernetes' authorization chain (`Node`, `RBAC`) and its words for a refusal.
//!
//! Invariant: a refusal is told only when the roles were looked at as they were after the request began; a grant may rest
//! on roles that changed a moment ago.

use std::pin::Pin;

use flotilla_api::k8s_openapi::api::rbac::v1::PolicyRule;
use flotilla_api::{GroupResource, Kind, Reason, Status};
use flotilla_control::rbac::{Action, Who};
use serde_json::Value;

use super::node::NodeAction;
use super::{Gate, User, Verb};

/// One request for objects of a kind, as the rules see it.
pub(super) struct Attempt<'a> {
    pub user: &'a User,
    pub verb: Verb,
    pub kind: &'a Kind,
    pub subresource: Option<&'a str>,
    pub namespace: &'a str,
    /// Empty for lists, watches and creations.
    pub name: &'a str,
    /// What is stored, or what is to be created.
    pub object: Option<&'a Value>,
}

impl<'a> Attempt<'a> {
    fn action(&self) -> Action<'a> {
        let kind = self.kind;
        resource_action(
            self.verb.as_str(),
            (&kind.group, &kind.plural, self.subresource.unwrap_or_default()),
            (self.namespace, self.name),
        )
    }
}

/// An action on a resource. As upstream has it, a Namespace is in itself: who may do something in a namespace may be
/// allowed to read its object.
pub fn resource_action<'a>(
    verb: &'a str,
    (group, resource, subresource): (&'a str, &'a str, &'a str),
    (namespace, name): (&'a str, &'a str),
) -> Action<'a> {
    let namespace = if (group, resource) == ("", "namespaces") { name } else { namespace };
    Action::Resource { verb, group, resource, subresource, namespace, name }
}

impl Gate {
    /// Decides from the roles as they are known here; who is refused asks again behind a barrier.
    ///
    /// # Errors
    /// `Forbidden`, in upstream's words.
    pub(super) fn authorize(&self, attempt: &Attempt) -> Result<(), Status> {
        let action = attempt.action();
        let judged = self.judge(attempt.user, &action, attempt.object);
        judged.map(drop).map_err(|why| forbidden(attempt.user, &action, &why))
    }

    /// As [`Gate::authorize`], for a request that is not decided again by others: a refusal holds.
    ///
    /// # Errors
    /// `Forbidden`, or why the roles cannot be read.
    pub(super) async fn permit(&self, attempt: &Attempt<'_>) -> Result<(), Status> {
        self.require(attempt.user, &attempt.action(), attempt.object).await
    }

    /// # Errors
    /// `Forbidden` in upstream's words if the user may not, or why the roles cannot be read.
    pub async fn require(&self, user: &User, action: &Action<'_>, object: Option<&Value>) -> Result<(), Status> {
        if is_health(action) {
            return Ok(());
        }
        match self.judge_surely(user, action, object).await? {
            Ok(_) => Ok(()),
            Err(why) => Err(forbidden(user, action, &why)),
        }
    }

    /// # Errors
    /// `Forbidden`, in upstream's words.
    pub async fn authorize_path(&self, user: &User, method: &http::Method, path: &str) -> Result<(), Status> {
        let verb = method.as_str().to_ascii_lowercase();
        self.require(user, &Action::Path { verb: &verb, path }, None).await
    }

    /// Whether the user may: why, or why not.
    ///
    /// # Errors
    /// Why the roles cannot be read.
    pub async fn judge_surely(
        &self,
        user: &User,
        action: &Action<'_>,
        object: Option<&Value>,
    ) -> Result<Result<String, String>, Status> {
        if let Ok(why) = self.judge(user, action, object) {
            return Ok(Ok(why));
        }
        self.catch_up_roles().await?;
        Ok(self.judge(user, action, object))
    }

    /// As [`Gate::judge_surely`], for a question about a user: of a node's request the object is looked up.
    ///
    /// # Errors
    /// Why the roles or the object cannot be read.
    pub async fn review(&self, user: &User, action: &Action<'_>) -> Result<Result<String, String>, Status> {
        let stored = match *action {
            Action::Resource { group, resource, namespace, name, .. }
                if user.as_node().is_some() && !name.is_empty() =>
            {
                match self.registry().by_resource(group, resource) {
                    Some(kind) => self.load(&Self::key(&kind, namespace, name)?)?,
                    None => None,
                }
            }
            _ => None,
        };
        let object = stored.as_ref().map(super::object).transpose()?;
        self.judge_surely(user, action, object.as_ref()).await
    }

    /// Refuses who may not do this whatever the object is; a node's request is judged when its object is known.
    ///
    /// # Errors
    /// `Forbidden`, or why the roles cannot be read.
    pub async fn require_early(&self, user: &User, action: &Action<'_>) -> Result<(), Status> {
        match user.as_node() {
            Some(_) => Ok(()),
            None => self.require(user, action, None).await,
        }
    }

    /// All rules that hold for the user at the cluster scope and in the namespace, and what could not be found out.
    ///
    /// # Errors
    /// Why the roles cannot be read.
    pub async fn rules_for(&self, user: &User, namespace: &str) -> Result<(Vec<PolicyRule>, Vec<String>), Status> {
        self.catch_up_roles().await?;
        let policy = self.roles.policy();
        let found = policy.rules_for(user.who(), namespace);
        Ok((found.rules.into_iter().cloned().collect(), found.problems))
    }

    /// Waits until the roles are known here as they were when this was asked.
    pub(super) fn catch_up_roles(&self) -> Pin<Box<dyn Future<Output = Result<(), Status>> + Send + '_>> {
        // It is rarely waited for, and every request would carry it.
        Box::pin(async {
            let revision = self.barrier().await?;
            // Without a replica the roles are not followed: only this node's own requests are judged here.
            if self.store.fed_by().is_some() {
                return Ok(());
            }
            self.roles.reach(&self.store, revision).await
        })
    }

    /// Why the user may, by what is known here, or why not: both in upstream's words, and empty where it has none.
    fn judge(&self, user: &User, action: &Action, object: Option<&Value>) -> Result<String, String> {
        if user.is_master() {
            return Ok(String::new());
        }
        let mut reasons = Vec::new();
        if let (Some(node), &Action::Resource { verb, group, resource, subresource, namespace, name }) =
            (user.as_node(), action)
        {
            let asked = NodeAction { verb, group, resource, subresource, namespace, name, object };
            match self.node_may(node, &asked) {
                Ok(()) => return Ok(String::new()),
                Err(why) => reasons.push(why),
            }
        }
        match self.roles.policy().check(user.who(), action) {
            Ok(grant) => return Ok(grant.to_string()),
            Err(why) => reasons.push(why),
        }
        reasons.retain(|reason| !reason.is_empty());
        Err(reasons.join("\n"))
    }
}

/// What is answered whatever roles there are, so that whoever looks after machines learns how this one is. Upstream's list.
pub const HEALTH_PATHS: &[&str] = &["/healthz", "/livez", "/readyz"];

fn is_health(action: &Action) -> bool {
    matches!(*action, Action::Path { path, .. } if HEALTH_PATHS.contains(&path))
}

impl User {
    pub(super) fn who(&self) -> Who<'_> {
        Who { name: &self.name, groups: &self.groups }
    }
}

/// Upstream's refusal.
pub(super) fn forbidden(user: &User, action: &Action, why: &str) -> Status {
    let why = if why.is_empty() { String::new() } else { format!(": {why}") };
    let message = match *action {
        Action::Path { verb, path } => format!("forbidden: User {:?} cannot {verb} path {path:?}{why}", user.name),
        Action::Resource { verb, group, resource, subresource, namespace, name } => {
            let collection = GroupResource::new(group, resource);
            let name = if name.is_empty() { String::new() } else { format!(" {name:?}") };
            let part = if subresource.is_empty() { String::new() } else { format!("/{subresource}") };
            let place = match namespace {
                "" => "at the cluster scope".to_owned(),
                namespace => format!("in the namespace {namespace:?}"),
            };
            format!(
                "{collection}{name} is forbidden: User {:?} cannot {verb} resource \"{resource}{part}\" in API group \
                 {group:?} {place}{why}",
                user.name
            )
        }
    };
    Status::new(Reason::Forbidden, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn health_is_told_to_all_and_granted_by_roles_only() {
        let dir = tempfile::tempdir().unwrap();
        let gate = crate::gate::alone::gate(&dir).await;
        let (joe, action) = (User::new("joe", Vec::new()), Action::Path { verb: "get", path: "/healthz" });
        assert!(gate.require(&joe, &action, None).await.is_ok());
        assert!(gate.judge(&joe, &action, None).is_err());
    }

    #[test]
    fn a_refusal_is_worded_as_upstream_does() {
        let user = User::new("ann", Vec::new());
        let table = [
            (
                resource_action("list", ("", "pods", ""), ("default", "")),
                "pods is forbidden: User \"ann\" cannot list resource \"pods\" in API group \"\" in the namespace \
                 \"default\"",
            ),
            (
                resource_action("get", ("", "nodes", ""), ("", "n1")),
                "nodes \"n1\" is forbidden: User \"ann\" cannot get resource \"nodes\" in API group \"\" at the \
                 cluster scope",
            ),
            (
                resource_action("patch", ("apps", "deployments", "scale"), ("a", "web")),
                "deployments.apps \"web\" is forbidden: User \"ann\" cannot patch resource \"deployments/scale\" in \
                 API group \"apps\" in the namespace \"a\"",
            ),
            (
                resource_action("get", ("", "namespaces", ""), ("", "red")),
                "namespaces \"red\" is forbidden: User \"ann\" cannot get resource \"namespaces\" in API group \"\" \
                 in the namespace \"red\"",
            ),
            (
                resource_action("list", ("", "namespaces", ""), ("", "")),
                "namespaces is forbidden: User \"ann\" cannot list resource \"namespaces\" in API group \"\" at the \
                 cluster scope",
            ),
            (Action::Path { verb: "get", path: "/metrics" }, "forbidden: User \"ann\" cannot get path \"/metrics\""),
        ];
        for (action, message) in table {
            assert_eq!(forbidden(&user, &action, "").message, message);
        }
        let action = Action::Path { verb: "get", path: "/" };
        assert!(forbidden(&user, &action, "RBAC: x not found").message.ends_with("path \"/\": RBAC: x not found"));
    }
}
