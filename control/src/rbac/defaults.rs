//! Upstream's default cluster roles and bindings, but for those of controllers, which here are parts of the leader and
//! ask nobody.
//!
//! Lists are separated by blanks; `core` stands for the group without a name.

use std::collections::BTreeMap;

use flotilla_api::k8s_openapi::api::rbac::v1::{
    AggregationRule, ClusterRole, ClusterRoleBinding, PolicyRule, RoleRef, Subject,
};
use flotilla_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

use super::GROUP;

/// `"false"` keeps a default role or binding as it is.
pub(super) const AUTO_UPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

const READ: &str = "get list watch";
const READ_UPDATE: &str = "get list patch update watch";
const WRITE: &str = "create delete deletecollection patch update";
const ALL_VERBS: &str = "create delete deletecollection get list patch update watch";

/// A default role, in short.
struct Short {
    name: &'static str,
    /// Whose rules it gathers: of those with the label `aggregate-to-…`.
    gathers: Option<&'static str>,
    /// The role that gathers its rules.
    adds_to: Option<&'static str>,
    rules: &'static [Grants],
}

enum Grants {
    /// Verbs, groups, resources.
    On(&'static str, &'static str, &'static str),
    /// The same on one object.
    One(&'static str, &'static str, &'static str, &'static str),
    /// `get` on paths.
    Paths(&'static str),
    /// Everything on every path.
    EveryPath,
}
use Grants::{EveryPath, On, One, Paths};

const fn role(name: &'static str, rules: &'static [Grants]) -> Short {
    Short { name, gathers: None, adds_to: None, rules }
}

const fn part(name: &'static str, adds_to: &'static str, rules: &'static [Grants]) -> Short {
    Short { name, gathers: None, adds_to: Some(adds_to), rules }
}

const fn gathered(name: &'static str, adds_to: Option<&'static str>) -> Short {
    Short { name, gathers: Some(name), adds_to, rules: &[] }
}

const EVENTS: Grants = On("create patch update", "core events.k8s.io", "events");

const ROLES: &[Short] = &[
    role("cluster-admin", &[On("*", "*", "*"), EveryPath]),
    gathered("admin", None),
    gathered("edit", Some("admin")),
    gathered("view", Some("edit")),
    part(
        "system:aggregate-to-admin",
        "admin",
        &[
            On("create", "authorization.k8s.io", "localsubjectaccessreviews"),
            On(ALL_VERBS, "rbac.authorization.k8s.io", "rolebindings roles"),
        ],
    ),
    part(
        "system:aggregate-to-edit",
        "edit",
        &[
            On(READ, "core", "pods/attach pods/exec pods/portforward pods/proxy secrets services/proxy"),
            On("impersonate", "core", "serviceaccounts"),
            On(WRITE, "core", "pods pods/attach pods/exec pods/portforward pods/proxy"),
            On("create", "core", "pods/eviction"),
            On(
                WRITE,
                "core",
                "configmaps events persistentvolumeclaims replicationcontrollers replicationcontrollers/scale secrets \
                 serviceaccounts services services/proxy",
            ),
            On("create", "core", "serviceaccounts/token"),
            On(
                WRITE,
                "apps",
                "daemonsets deployments deployments/rollback deployments/scale replicasets replicasets/scale statefulsets \
                 statefulsets/scale",
            ),
            On(WRITE, "autoscaling", "horizontalpodautoscalers"),
            On(WRITE, "batch", "cronjobs jobs"),
            On(
                WRITE,
                "extensions",
                "daemonsets deployments deployments/rollback deployments/scale ingresses networkpolicies replicasets \
                 replicasets/scale replicationcontrollers/scale",
            ),
            On(WRITE, "policy", "poddisruptionbudgets"),
            On(WRITE, "networking.k8s.io", "ingresses networkpolicies"),
            On(ALL_VERBS, "coordination.k8s.io", "leases"),
            On(WRITE, "resource.k8s.io", "resourceclaims resourceclaimtemplates"),
        ],
    ),
    part(
        "system:aggregate-to-view",
        "view",
        &[
            On(
                READ,
                "core",
                "configmaps endpoints persistentvolumeclaims persistentvolumeclaims/status pods replicationcontrollers \
                 replicationcontrollers/scale serviceaccounts services services/status",
            ),
            On(
                READ,
                "core",
                "bindings events limitranges namespaces/status pods/log pods/status replicationcontrollers/status \
                 resourcequotas resourcequotas/status",
            ),
            On(READ, "core", "namespaces"),
            On(READ, "discovery.k8s.io", "endpointslices"),
            On(
                READ,
                "apps",
                "controllerrevisions daemonsets daemonsets/status deployments deployments/scale deployments/status \
                 replicasets replicasets/scale replicasets/status statefulsets statefulsets/scale statefulsets/status",
            ),
            On(READ, "autoscaling", "horizontalpodautoscalers horizontalpodautoscalers/status"),
            On(READ, "batch", "cronjobs cronjobs/status jobs jobs/status"),
            On(
                READ,
                "extensions",
                "daemonsets daemonsets/status deployments deployments/scale deployments/status ingresses \
                 ingresses/status networkpolicies replicasets replicasets/scale replicasets/status \
                 replicationcontrollers/scale",
            ),
            On(READ, "policy", "poddisruptionbudgets poddisruptionbudgets/status"),
            On(READ, "networking.k8s.io", "ingresses ingresses/status networkpolicies"),
            On(READ, "resource.k8s.io", "resourceclaims resourceclaims/status resourceclaimtemplates"),
        ],
    ),
    role(
        "system:auth-delegator",
        &[
            On("create", "authentication.k8s.io", "tokenreviews"),
            On("create", "authorization.k8s.io", "subjectaccessreviews"),
        ],
    ),
    role(
        "system:basic-user",
        &[
            On("create", "authorization.k8s.io", "selfsubjectaccessreviews selfsubjectrulesreviews"),
            On("create", "authentication.k8s.io", "selfsubjectreviews"),
        ],
    ),
    role(
        "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
        &[On("create", "certificates.k8s.io", "certificatesigningrequests/nodeclient")],
    ),
    role(
        "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
        &[On("create", "certificates.k8s.io", "certificatesigningrequests/selfnodeclient")],
    ),
    role(
        "system:certificates.k8s.io:kube-apiserver-client-approver",
        &[One("approve", "certificates.k8s.io", "signers", "kubernetes.io/kube-apiserver-client")],
    ),
    role(
        "system:certificates.k8s.io:kube-apiserver-client-kubelet-approver",
        &[One("approve", "certificates.k8s.io", "signers", "kubernetes.io/kube-apiserver-client-kubelet")],
    ),
    role(
        "system:certificates.k8s.io:kubelet-serving-approver",
        &[One("approve", "certificates.k8s.io", "signers", "kubernetes.io/kubelet-serving")],
    ),
    role(
        "system:certificates.k8s.io:legacy-unknown-approver",
        &[One("approve", "certificates.k8s.io", "signers", "kubernetes.io/legacy-unknown")],
    ),
    role("system:cluster-trust-bundle-discovery", &[On(READ, "certificates.k8s.io", "clustertrustbundles")]),
    role(
        "system:discovery",
        &[Paths("/api /api/* /apis /apis/* /healthz /livez /openapi /openapi/* /readyz /version /version/")],
    ),
    role("system:heapster", &[On(READ, "core", "events namespaces nodes pods"), On(READ, "extensions", "deployments")]),
    role("system:kube-aggregator", &[On(READ, "core", "endpoints services")]),
    role(
        "system:kube-controller-manager",
        &[
            EVENTS,
            On("create", "coordination.k8s.io", "leases"),
            One("get update", "coordination.k8s.io", "leases", "kube-controller-manager"),
            On("create", "core", "secrets serviceaccounts"),
            On("delete", "core", "secrets"),
            On("get", "core", "configmaps namespaces secrets serviceaccounts"),
            On("update", "core", "secrets serviceaccounts"),
            On("create", "authentication.k8s.io", "tokenreviews"),
            On("create", "authorization.k8s.io", "subjectaccessreviews"),
            On("list watch", "*", "*"),
            On("create", "core", "serviceaccounts/token"),
        ],
    ),
    role("system:kube-dns", &[On("list watch", "core", "endpoints services")]),
    role(
        "system:kube-scheduler",
        &[
            EVENTS,
            On("create", "coordination.k8s.io", "leases"),
            One("get list update watch", "coordination.k8s.io", "leases", "kube-scheduler"),
            On(READ, "core", "nodes"),
            On("delete get list watch", "core", "pods"),
            On("create", "core", "bindings pods/binding"),
            On("patch update", "core", "pods/status"),
            On(READ, "core", "replicationcontrollers services"),
            On(READ, "apps extensions", "replicasets"),
            On(READ, "apps", "statefulsets"),
            On(READ, "policy", "poddisruptionbudgets"),
            On(READ, "core", "persistentvolumeclaims persistentvolumes"),
            On("create", "authentication.k8s.io", "tokenreviews"),
            On("create", "authorization.k8s.io", "subjectaccessreviews"),
            On(READ, "storage.k8s.io", "csinodes"),
            On(READ, "storage.k8s.io", "volumeattachments"),
            On(READ, "core", "namespaces"),
            On(READ, "storage.k8s.io", "csidrivers"),
            On(READ, "storage.k8s.io", "csistoragecapacities"),
            On(READ, "resource.k8s.io", "deviceclasses"),
            On(READ_UPDATE, "resource.k8s.io", "resourceclaims"),
            On(READ_UPDATE, "resource.k8s.io", "resourceclaims/status"),
            On(READ_UPDATE, "core", "pods/finalizers"),
            On(READ, "resource.k8s.io", "resourceslices"),
        ],
    ),
    role(
        "system:kubelet-api-admin",
        &[
            On(READ, "core", "nodes"),
            On("proxy", "core", "nodes"),
            On("*", "core", "nodes/log nodes/metrics nodes/proxy nodes/stats"),
            On("*", "core", "nodes/configz nodes/healthz nodes/pods"),
        ],
    ),
    role("system:monitoring", &[Paths("/healthz /healthz/* /livez /livez/* /metrics /metrics/slis /readyz /readyz/*")]),
    role("system:node", NODE),
    role(
        "system:node-bootstrapper",
        &[On("create get list watch", "certificates.k8s.io", "certificatesigningrequests")],
    ),
    role("system:node-problem-detector", &[On("get", "core", "nodes"), On("patch", "core", "nodes/status"), EVENTS]),
    role(
        "system:node-proxier",
        &[
            On("list watch", "core", "endpoints services"),
            On(READ, "core", "nodes"),
            EVENTS,
            On("list watch", "networking.k8s.io", "servicecidrs"),
            On("list watch", "discovery.k8s.io", "endpointslices"),
        ],
    ),
    role(
        "system:persistent-volume-provisioner",
        &[
            On("create delete get list watch", "core", "persistentvolumes"),
            On("get list update watch", "core", "persistentvolumeclaims"),
            On(READ, "storage.k8s.io", "storageclasses"),
            On("watch", "core", "events"),
            EVENTS,
        ],
    ),
    role("system:public-info-viewer", &[Paths("/healthz /livez /readyz /version /version/")]),
    role(
        "system:service-account-issuer-discovery",
        &[Paths(
            "/.well-known/openid-configuration /.well-known/openid-configuration/ /openid/v1/jwks /openid/v1/jwks/",
        )],
    ),
    role(
        "system:volume-scheduler",
        &[
            On(READ_UPDATE, "core", "persistentvolumes"),
            On(READ, "storage.k8s.io", "storageclasses"),
            On(READ_UPDATE, "core", "persistentvolumeclaims"),
        ],
    ),
];

/// What a node may at most; the Node authorizer narrows it to what concerns the node.
const NODE: &[Grants] = &[
    On("create", "authentication.k8s.io", "tokenreviews"),
    On("create", "authorization.k8s.io", "localsubjectaccessreviews subjectaccessreviews"),
    On(READ, "core", "services"),
    On("create get list watch", "core", "nodes"),
    On("patch update", "core", "nodes/status"),
    On("patch update", "core", "nodes"),
    On("create patch update", "core", "events"),
    On(READ, "core", "pods"),
    On("create delete", "core", "pods"),
    On("patch update", "core", "pods/status"),
    On("create", "core", "pods/eviction"),
    On(READ, "core", "configmaps secrets"),
    On("get", "core", "persistentvolumeclaims persistentvolumes"),
    On("get", "core", "endpoints"),
    On("create get list watch", "certificates.k8s.io", "certificatesigningrequests"),
    On("create delete get patch update", "coordination.k8s.io", "leases"),
    On("get", "storage.k8s.io", "volumeattachments"),
    On("create", "core", "serviceaccounts/token"),
    On("get patch update", "core", "persistentvolumeclaims/status"),
    On(READ, "storage.k8s.io", "csidrivers"),
    On("create delete get patch update", "storage.k8s.io", "csinodes"),
    On(READ, "node.k8s.io", "runtimeclasses"),
    On("get", "resource.k8s.io", "resourceclaims"),
    On("deletecollection", "resource.k8s.io", "resourceslices"),
    On(READ, "certificates.k8s.io", "clustertrustbundles"),
    On("get", "core", "serviceaccounts"),
];

/// A binding, its role, and the kinds and names of its subjects.
type Binding = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

/// Roles with whom they are bound to.
const BINDINGS: &[Binding] = &[
    ("cluster-admin", "cluster-admin", &[("Group", "system:masters")]),
    ("system:monitoring", "system:monitoring", &[("Group", "system:monitoring")]),
    ("system:discovery", "system:discovery", &[("Group", "system:authenticated")]),
    ("system:basic-user", "system:basic-user", &[("Group", "system:authenticated")]),
    (
        "system:public-info-viewer",
        "system:public-info-viewer",
        &[("Group", "system:authenticated"), ("Group", "system:unauthenticated")],
    ),
    ("system:node-proxier", "system:node-proxier", &[("User", "system:kube-proxy")]),
    ("system:kube-controller-manager", "system:kube-controller-manager", &[("User", "system:kube-controller-manager")]),
    ("system:kube-dns", "system:kube-dns", &[("ServiceAccount", "kube-dns")]),
    ("system:kube-scheduler", "system:kube-scheduler", &[("User", "system:kube-scheduler")]),
    ("system:volume-scheduler", "system:volume-scheduler", &[("User", "system:kube-scheduler")]),
    (
        "system:service-account-issuer-discovery",
        "system:service-account-issuer-discovery",
        &[("Group", "system:serviceaccounts")],
    ),
    (
        "system:cluster-trust-bundle-discovery",
        "system:cluster-trust-bundle-discovery",
        &[("Group", "system:serviceaccounts")],
    ),
    // Nodes are judged by the Node authorizer; whoever wants more binds it.
    ("system:node", "system:node", &[]),
];

/// The default cluster roles, without uid and times.
pub fn default_roles() -> Vec<ClusterRole> {
    let roles = ROLES.iter().map(|short| {
        let label = |role: &str| format!("rbac.authorization.k8s.io/aggregate-to-{role}");
        let mut metadata = metadata(short.name);
        if let Some(role) = short.adds_to {
            metadata.labels.get_or_insert_default().insert(label(role), "true".into());
        }
        let selector = |role| LabelSelector {
            match_labels: Some(BTreeMap::from([(label(role), "true".to_owned())])),
            ..LabelSelector::default()
        };
        ClusterRole {
            metadata,
            aggregation_rule: short
                .gathers
                .map(|role| AggregationRule { cluster_role_selectors: Some(vec![selector(role)]) }),
            rules: short.gathers.is_none().then(|| short.rules.iter().map(long).collect()),
        }
    });
    roles.collect()
}

/// The default bindings, without uid and times.
pub fn default_bindings() -> Vec<ClusterRoleBinding> {
    let bindings = BINDINGS.iter().map(|(name, role, subjects)| {
        let subjects: Vec<Subject> = subjects.iter().map(|(kind, name)| subject(kind, name)).collect();
        ClusterRoleBinding {
            metadata: metadata(name),
            role_ref: RoleRef { api_group: Some(GROUP.into()), kind: "ClusterRole".into(), name: (*role).into() },
            subjects: (!subjects.is_empty()).then_some(subjects),
        }
    });
    bindings.collect()
}

fn subject(kind: &str, name: &str) -> Subject {
    let is_account = kind == "ServiceAccount";
    Subject {
        api_group: (!is_account).then(|| GROUP.to_owned()),
        kind: kind.to_owned(),
        name: name.to_owned(),
        namespace: is_account.then(|| "kube-system".to_owned()),
    }
}

fn metadata(name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        labels: Some(BTreeMap::from([("kubernetes.io/bootstrapping".to_owned(), "rbac-defaults".to_owned())])),
        annotations: Some(BTreeMap::from([(AUTO_UPDATE.to_owned(), "true".to_owned())])),
        ..ObjectMeta::default()
    }
}

fn long(grants: &Grants) -> PolicyRule {
    match grants {
        On(verbs, groups, resources) => rule(verbs, groups, resources),
        One(verbs, groups, resources, name) => {
            PolicyRule { resource_names: Some(vec![(*name).to_owned()]), ..rule(verbs, groups, resources) }
        }
        Paths(urls) => paths("get", urls),
        EveryPath => paths("*", "*"),
    }
}

/// A rule on resources.
pub(super) fn rule(verbs: &str, groups: &str, resources: &str) -> PolicyRule {
    let group = |group: &str| if group == "core" { String::new() } else { group.to_owned() };
    PolicyRule {
        api_groups: Some(groups.split_whitespace().map(group).collect()),
        resources: Some(list(resources)),
        verbs: list(verbs),
        ..PolicyRule::default()
    }
}

/// A rule on paths.
pub(super) fn paths(verbs: &str, urls: &str) -> PolicyRule {
    let urls = if urls.is_empty() { vec![String::new()] } else { list(urls) };
    PolicyRule { non_resource_urls: Some(urls), verbs: list(verbs), ..PolicyRule::default() }
}

fn list(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::{Action, Policy, Who, aggregate};
    use super::*;
    use flotilla_api::{GroupResource, Key};

    #[test]
    fn every_binding_names_a_role_that_is_there() {
        let names: BTreeSet<&str> = ROLES.iter().map(|role| role.name).collect();
        assert_eq!(names.len(), ROLES.len());
        assert!(BINDINGS.iter().all(|(_, role, _)| names.contains(role)));
    }

    /// All defaults, gathered, with `view`, `edit`, `admin` and `cluster-admin` bound in namespace `n` to users of
    /// these names.
    fn policy() -> Policy {
        let mut policy = Policy::default();
        let mut put = |resource: &str, namespace: &str, name: &str, object: serde_json::Value| {
            let key = Key::new(&GroupResource::new(GROUP, resource), namespace, name);
            policy.observe(&key, Some(object.to_string().as_bytes()));
        };
        let mut roles: BTreeMap<String, ClusterRole> =
            default_roles().into_iter().map(|role| (role.metadata.name.clone().unwrap(), role)).collect();
        for (name, rules) in aggregate(&roles) {
            roles.get_mut(&name).unwrap().rules = Some(rules);
        }
        for (name, role) in &roles {
            put("clusterroles", "", name, serde_json::to_value(role).unwrap());
        }
        for binding in default_bindings() {
            let name = binding.metadata.name.clone().unwrap();
            put("clusterrolebindings", "", &name, serde_json::to_value(binding).unwrap());
        }
        for role in ["view", "edit", "admin", "cluster-admin"] {
            let binding = serde_json::json!({
                "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": role},
                "subjects": [{"kind": "User", "name": role}],
            });
            put("rolebindings", "n", role, binding);
        }
        policy
    }

    #[test]
    fn who_may_what_by_default() {
        let policy = policy();
        // Each may what those before them may. The last column is who is the first that may, in namespace `n`.
        let table = [
            ("get", "", "pods", "view"),
            ("watch", "apps", "deployments", "view"),
            ("get", "", "pods/log", "view"),
            ("list", "", "events", "view"),
            ("get", "batch", "jobs/status", "view"),
            ("get", "", "secrets", "edit"),
            ("create", "", "pods", "edit"),
            ("deletecollection", "", "configmaps", "edit"),
            ("create", "", "pods/exec", "edit"),
            ("create", "", "pods/eviction", "edit"),
            ("patch", "apps", "deployments/scale", "edit"),
            ("impersonate", "", "serviceaccounts", "edit"),
            ("create", "", "serviceaccounts/token", "edit"),
            ("update", "coordination.k8s.io", "leases", "edit"),
            ("create", GROUP, "roles", "admin"),
            ("delete", GROUP, "rolebindings", "admin"),
            ("create", "authorization.k8s.io", "localsubjectaccessreviews", "admin"),
            ("escalate", GROUP, "roles", "cluster-admin"),
            ("update", "", "pods/status", "cluster-admin"),
            ("create", "", "resourcequotas", "cluster-admin"),
            ("delete", "", "namespaces", "cluster-admin"),
            ("create", "flotilla.dev", "jointokens", "cluster-admin"),
        ];
        let ladder = ["nobody", "view", "edit", "admin", "cluster-admin"];
        for (verb, group, resource, first) in table {
            let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
            let first = ladder.iter().position(|name| *name == first).unwrap();
            for (step, name) in ladder.iter().enumerate() {
                for (namespace, allowed) in [("n", step >= first), ("other", false), ("", false)] {
                    let action = Action::Resource { verb, group, resource, subresource, namespace, name: "" };
                    let found = policy.check(Who { name, groups: &["system:authenticated".into()] }, &action);
                    assert_eq!(found.is_ok(), allowed, "{name} {action:?}");
                }
            }
        }
    }

    #[test]
    fn strangers_see_health_and_version_and_users_see_what_there_is() {
        let policy = policy();
        let may = |groups: &[String], verb: &str, path: &str| {
            policy.check(Who { name: "x", groups }, &Action::Path { verb, path }).is_ok()
        };
        let (strangers, users) = (["system:unauthenticated".to_owned()], ["system:authenticated".to_owned()]);
        for path in ["/healthz", "/livez", "/readyz", "/version", "/version/"] {
            assert!(may(&strangers, "get", path) && may(&users, "get", path), "{path}");
            assert!(!may(&strangers, "post", path), "{path}");
        }
        for path in ["/api", "/api/v1", "/apis", "/apis/apps/v1", "/openapi/v3"] {
            assert!(!may(&strangers, "get", path) && may(&users, "get", path), "{path}");
        }
        for path in ["/", "/metrics", "/debug/pprof", "/healthz/ping", "/logs"] {
            assert!(!may(&strangers, "get", path) && !may(&users, "get", path), "{path}");
        }
        assert!(may(&["system:monitoring".to_owned()], "get", "/metrics"));
        assert!(may(&["system:masters".to_owned()], "delete", "/anything"));
    }
}
