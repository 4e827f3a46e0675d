//! Who may do what: roles over both faces, questions about it, claims to be somebody else, the audit log, and a fair share
//! under load.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use flotilla::client::Target;
use flotilla::proto::objects_client::ObjectsClient;
use flotilla::proto::{ListObjectsRequest, ListTokensRequest};
use flotilla_tests::rest::{Answer, Caller, Line};
use flotilla_tests::{Cluster, Kubectl, cli, eventually, figure};
use futures::StreamExt;
use futures::future::join_all;
use http::Method;
use serde_json::{Value, json};
use tonic::Code;

const LIMIT: Duration = Duration::from_secs(30);
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

fn admin(cluster: &Cluster) -> Caller {
    Caller::new(cluster, "node-1", "admin", &["system:masters"])
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": "v"}})
}

fn role_binding(name: &str, (kind, role): (&str, &str), subject: (&str, &str)) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": subject.0, "name": subject.1}],
    })
}

fn role(name: &str, resource: &str) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": name},
        "rules": [{"apiGroups": [""], "resources": [resource], "verbs": ["get"]}],
    })
}

async fn created(who: &Caller, path: &str, object: &Value) {
    let answer = who.post(path, object).await;
    assert_eq!(answer.code, 201, "{path}: {answer:?}");
}

/// Gives each of these users, in namespace `red`, the cluster role of the same name.
async fn bind_default_roles(admin: &Caller) {
    created(admin, "/api/v1/namespaces", &namespace("red")).await;
    for name in ["view", "edit", "admin"] {
        let binding = role_binding(name, ("ClusterRole", name), ("User", name));
        created(admin, &format!("{RBAC}/namespaces/red/rolebindings"), &binding).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn default_roles_decide_over_both_faces() {
    let cluster = Cluster::start(1).await;
    let admin = admin(&cluster);
    // The leader adds the default roles as it begins to lead, and gathers `view` from its parts.
    let gathered = || async {
        let view = admin.get(&format!("{RBAC}/clusterroles/view")).await;
        if view.body.contains("configmaps") { Ok(()) } else { Err(view.body) }
    };
    eventually(LIMIT, "the default roles are in place", gathered).await;
    bind_default_roles(&admin).await;
    created(&admin, "/api/v1/namespaces/red/configmaps", &config_map("old")).await;

    // Each user may what those before them may. The last column is who is the first that may.
    let ladder = ["nobody", "view", "edit", "admin", "system:masters"];
    let maps = "/api/v1/namespaces/red/configmaps";
    let of = |name: &str| json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name}});
    let table: Vec<(&str, String, Option<Value>, &str)> = vec![
        ("GET", maps.into(), None, "view"),
        ("GET", format!("{maps}/old"), None, "view"),
        ("HEAD", format!("{maps}/old"), None, "view"),
        ("GET", format!("{maps}?watch=true&timeoutSeconds=1"), None, "view"),
        ("GET", "/api/v1/namespaces/red".into(), None, "view"),
        ("GET", "/api/v1/namespaces/red/pods/p/log".into(), None, "view"),
        ("GET", "/apis/apps/v1/namespaces/red/deployments/d/scale".into(), None, "view"),
        ("GET", "/api/v1/namespaces/red/secrets".into(), None, "edit"),
        ("POST", maps.into(), Some(json!({"metadata": {"generateName": "new-"}})), "edit"),
        ("PUT", format!("{maps}/old"), Some(of("old")), "edit"),
        ("PATCH", format!("{maps}/old"), Some(json!({"data": {"a": "b"}})), "edit"),
        ("DELETE", format!("{maps}/none"), None, "edit"),
        ("DELETE", format!("{maps}?labelSelector=none%3Dhere"), None, "edit"),
        ("POST", "/api/v1/namespaces/red/pods/p/exec?command=ls".into(), None, "edit"),
        ("POST", "/api/v1/namespaces/red/pods/p/eviction".into(), Some(json!({})), "edit"),
        ("GET", format!("{RBAC}/namespaces/red/roles"), None, "admin"),
        ("POST", format!("{RBAC}/namespaces/red/roles?dryRun=All"), Some(role("r", "pods")), "admin"),
        ("POST", "/api/v1/namespaces/red/resourcequotas?dryRun=All".into(), Some(json!({})), "system:masters"),
        ("PUT", "/api/v1/namespaces/red/pods/p/status".into(), Some(json!({})), "system:masters"),
        ("GET", "/api/v1/namespaces/default/configmaps".into(), None, "system:masters"),
        ("GET", "/api/v1/configmaps".into(), None, "system:masters"),
        ("GET", "/api/v1/nodes".into(), None, "system:masters"),
        ("POST", "/api/v1/namespaces?dryRun=All".into(), Some(namespace("n")), "system:masters"),
        ("DELETE", "/api/v1/namespaces/none".into(), None, "system:masters"),
        ("GET", "/apis/flotilla.dev/v1/jointokens".into(), None, "system:masters"),
        ("GET", "/metrics".into(), None, "system:masters"),
        ("GET", "/apis".into(), None, "nobody"),
        ("GET", "/openapi/v3".into(), None, "nobody"),
        ("GET", "/version".into(), None, "nobody"),
    ];
    let stranger = Caller::stranger(&cluster, "node-1");
    let liar = stranger.clone().saying("Authorization", "Bearer nonsense");
    for (step, user) in ladder.iter().enumerate() {
        let caller = match *user {
            "system:masters" => admin.clone(),
            user => Caller::new(&cluster, "node-1", user, &[]),
        };
        for (method, path, body, first) in &table {
            let first = ladder.iter().position(|name| name == first).unwrap();
            let answer = caller.ask(&method.parse().unwrap(), path, body.as_ref()).await.unwrap();
            assert_eq!(answer.code == 403, step < first, "{user} {method} {path}: {answer:?}");
            assert!(answer.code != 401 && answer.code < 500, "{user} {method} {path}: {answer:?}");
        }
    }
    for (method, path, body, _) in &table {
        let (method, public) = (method.parse().unwrap(), path == "/version");
        let answer = stranger.ask(&method, path, body.as_ref()).await.unwrap();
        assert_eq!(answer.code, if public { 200 } else { 403 }, "a stranger: {method} {path}: {answer:?}");
        let answer = liar.ask(&method, path, body.as_ref()).await.unwrap();
        assert_eq!(answer.code, 401, "a liar: {method} {path}: {answer:?}");
    }
    for path in ["/healthz", "/livez", "/readyz", "/version"] {
        assert_eq!(stranger.get(path).await.code, 200, "{path}");
    }
    for path in ["/", "/api", "/api/v1", "/apis/apps/v1", "/metrics", "/openapi/v2", "/logs", "/healthz/ping"] {
        let answer = stranger.get(path).await;
        let words = format!("forbidden: User \"system:anonymous\" cannot get path \"{path}\"");
        assert_eq!((answer.code, answer.message()), (403, words));
    }
    let nobody = Caller::new(&cluster, "node-1", "nobody", &[]);
    let refused = nobody.get("/api/v1/namespaces/red/pods/p").await;
    assert_eq!(
        refused.message(),
        "pods \"p\" is forbidden: User \"nobody\" cannot get resource \"pods\" in API group \"\" in the namespace \"red\""
    );
    assert_eq!(refused.json()["details"], json!({"name": "p", "kind": "pods"}));

    scraped(&cluster).await;
    over_grpc(&cluster).await;
}

/// What all of the above came to is told to whoever is let in like upstream's Prometheus.
async fn scraped(cluster: &Cluster) {
    let prometheus = Caller::new(cluster, "node-1", "prometheus", &["system:monitoring"]);
    let answer = prometheus.get("/metrics").await;
    assert!(answer.code == 200 && answer.head.contains("content-type: text/plain; version=0.0.4"), "{answer:?}");
    let number = |parts: &[&str]| {
        let line = answer
            .body
            .lines()
            .filter(|line| !line.starts_with('#'))
            .find(|line| parts.iter().all(|part| line.contains(part)));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
    };
    for parts in [
        vec!["apiserver_request_total{code=\"403\"", "resource=\"secrets\"", "scope=\"namespace\"", "verb=\"LIST\""],
        vec!["apiserver_request_total{code=\"200\"", "resource=\"configmaps\"", "verb=\"WATCH\""],
        vec!["apiserver_request_duration_seconds_count", "resource=\"configmaps\"", "verb=\"PUT\""],
        vec!["apiserver_current_inflight_requests{request_kind=\"readOnly\"}"],
        vec!["flotilla_store_commit_duration_seconds_count"],
        vec!["flotilla_store_revision "],
        vec!["flotilla_raft_is_leader "],
        vec!["flotilla_store_size_bytes "],
        vec!["process_resident_memory_bytes "],
        vec!["process_open_fds "],
    ] {
        assert!(number(&parts).is_some_and(|number| number > 0.0), "{parts:?}\n{}", answer.body);
    }
}

/// The other face asks the same gate.
async fn over_grpc(cluster: &Cluster) {
    let dir = tempfile::tempdir().unwrap();
    let pem = dir.path().join("view.pem");
    fs::write(&pem, cli::ok(cluster, "node-1", &["credentials", "view", "--group", "nothing"])).unwrap();
    let at = format!("{}:6443", cluster.dev.address("node-1").unwrap());
    let channel = Target::new(Some(&at), Some(&pem), Path::new("/none")).unwrap().connect().await.unwrap();
    let mut objects = ObjectsClient::new(channel.clone());
    let list = |kind: &str, namespace: &str| ListObjectsRequest {
        kind: kind.into(),
        namespace: namespace.into(),
        ..Default::default()
    };
    let listed = objects.list(list("configmaps", "red")).await.unwrap().into_inner();
    assert!(!listed.items.is_empty());
    let refused = objects.list(list("secrets", "red")).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("User \"view\" cannot list resource \"secrets\""), "{refused:?}");
    assert_eq!(objects.list(list("configmaps", "default")).await.unwrap_err().code(), Code::PermissionDenied);
    let mut of_cluster = flotilla::proto::cluster_client::ClusterClient::new(channel);
    let refused = of_cluster.list_tokens(ListTokensRequest {}).await.unwrap_err();
    assert!(refused.message().contains("cannot list resource \"jointokens\""), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gives_what_they_do_not_have_and_what_is_given_counts_at_once() {
    let cluster = Cluster::start(3).await;
    let root = admin(&cluster);
    bind_default_roles(&root).await;
    let adam = Caller::new(&cluster, "node-1", "admin", &["nothing"]);
    let (roles, bindings) = (format!("{RBAC}/namespaces/red/roles"), format!("{RBAC}/namespaces/red/rolebindings"));

    created(&adam, &roles, &role("own", "pods")).await;
    let refused = adam.post(&roles, &role("more", "nodes")).await;
    assert_eq!(refused.code, 403);
    assert_eq!(
        refused.message(),
        "roles.rbac.authorization.k8s.io \"more\" is forbidden: user \"admin\" (groups=[\"nothing\" \
         \"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], \
         Resources:[\"nodes\"], Verbs:[\"get\"]}"
    );
    created(&adam, &bindings, &role_binding("given", ("Role", "own"), ("User", "ann"))).await;
    created(&adam, &bindings, &role_binding("viewers", ("ClusterRole", "view"), ("Group", "viewers"))).await;
    let refused = adam.post(&bindings, &role_binding("all", ("ClusterRole", "cluster-admin"), ("User", "ann"))).await;
    assert!(refused.code == 403 && refused.message().contains("not currently held"), "{refused:?}");
    let missing = adam.post(&bindings, &role_binding("none", ("Role", "none"), ("User", "ann"))).await;
    assert_eq!((missing.code, missing.message().as_str()), (404, "roles.rbac.authorization.k8s.io \"none\" not found"));

    // Whoever may bind a role needs nothing of what it grants; whoever may escalate, the same.
    let powers = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "binder"},
        "rules": [
            {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"], "verbs": ["bind"],
             "resourceNames": ["cluster-admin"]},
            {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles"], "verbs": ["escalate"]},
        ],
    });
    created(&root, &format!("{RBAC}/clusterroles"), &powers).await;
    created(&root, &bindings, &role_binding("binder", ("ClusterRole", "binder"), ("User", "admin"))).await;
    created(&adam, &bindings, &role_binding("all", ("ClusterRole", "cluster-admin"), ("User", "zoe"))).await;
    created(&adam, &roles, &role("more", "nodes")).await;

    // A binding counts for the next request, on every node.
    let nodes = cluster.nodes();
    let mut began = Instant::now();
    let mut longest = Duration::ZERO;
    for number in 0..30 {
        let name = format!("user-{number}");
        let node = &nodes[number % nodes.len()];
        let user = Caller::new(&cluster, node, &name, &[]);
        let path = "/api/v1/namespaces/red/configmaps";
        assert_eq!(user.get(path).await.code, 403, "{name}");
        created(&root, &bindings, &role_binding(&name, ("ClusterRole", "view"), ("User", &name))).await;
        began = Instant::now();
        assert_eq!(user.get(path).await.code, 200, "{name} at {node}");
        longest = longest.max(began.elapsed());
    }
    figure("a new binding counts", &format!("for the next request on each of three nodes, within {longest:?}"));

    // Taken away, it counts no more, as soon as the node has heard of it.
    let gone = root.ask(&Method::DELETE, &format!("{bindings}/user-0"), None).await.unwrap();
    assert_eq!(gone.code, 200);
    let user = Caller::new(&cluster, "node-2", "user-0", &[]);
    let refused = || async {
        let answer = user.get("/api/v1/namespaces/red/configmaps").await;
        if answer.code == 403 { Ok(()) } else { Err(answer.body) }
    };
    eventually(Duration::from_secs(5), "the binding is gone everywhere", refused).await;

    // A role that is labelled for `view` is gathered into it, and into those that gather `view`.
    let own = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "tanks", "labels": {"rbac.authorization.k8s.io/aggregate-to-view": "true"}},
        "rules": [{"apiGroups": ["example.com"], "resources": ["tanks"], "verbs": ["get"]}],
    });
    created(&root, &format!("{RBAC}/clusterroles"), &own).await;
    let gathered = || async {
        let admin = root.get(&format!("{RBAC}/clusterroles/admin")).await;
        if admin.body.contains("tanks") { Ok(()) } else { Err("not yet".to_owned()) }
    };
    eventually(LIMIT, "admin has gathered it", gathered).await;
    assert!(began.elapsed() < LIMIT * 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_and_claims_are_answered_as_upstream_does() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("audit.log");
    let policy = dir.path().join("policy.yaml");
    fs::write(&policy, POLICY).unwrap();
    let configured =
        format!("audit_log = {:?}\naudit_policy = {:?}\n", log.display().to_string(), policy.display().to_string());
    let cluster = Cluster::start_with(1, |_| configured.clone()).await;
    let root = admin(&cluster);
    bind_default_roles(&root).await;
    let view = Caller::new(&cluster, "node-1", "view", &["dev"]);
    let reviews = "/apis/authorization.k8s.io/v1";

    let ask = |of: Value| json!({"spec": {"resourceAttributes": of}});
    let get_pods = json!({"verb": "get", "resource": "pods", "namespace": "red"});
    let mine = view.post(&format!("{reviews}/selfsubjectaccessreviews"), &ask(get_pods.clone())).await;
    assert_eq!(mine.code, 201, "{mine:?}");
    let why = "RBAC: allowed by RoleBinding \"view/red\" of ClusterRole \"view\" to User \"view\"";
    assert_eq!(mine.json()["status"], json!({"allowed": true, "reason": why}));
    let denied = ask(json!({"verb": "delete", "resource": "pods", "namespace": "red"}));
    let mine = view.post(&format!("{reviews}/selfsubjectaccessreviews"), &denied).await;
    assert_eq!(mine.json()["status"], json!({"allowed": false}));
    let none = view.post(&format!("{reviews}/selfsubjectaccessreviews"), &json!({"spec": {}})).await;
    assert_eq!(none.code, 422, "{none:?}");
    let unknown = json!({"spec": {"resourceAttribute": {}, "nonResourceAttributes": {"verb": "get", "path": "/"}}});
    let strict = view.post(&format!("{reviews}/selfsubjectaccessreviews?fieldValidation=Strict"), &unknown).await;
    assert!(strict.code == 400 && strict.body.contains("resourceAttribute"), "{strict:?}");

    let of_others = json!({"spec": {"user": "edit", "resourceAttributes": {"verb": "create", "resource": "pods",
        "namespace": "red"}}});
    assert_eq!(view.post(&format!("{reviews}/subjectaccessreviews"), &of_others).await.code, 403);
    let theirs = root.post(&format!("{reviews}/subjectaccessreviews"), &of_others).await;
    assert_eq!(theirs.json()["status"]["allowed"], true, "{theirs:?}");
    let adam = Caller::new(&cluster, "node-1", "admin", &["nothing"]);
    let local = format!("{reviews}/namespaces/red/localsubjectaccessreviews");
    let theirs = adam.post(&local, &of_others).await;
    assert_eq!(theirs.json()["status"]["allowed"], true, "{theirs:?}");
    let elsewhere = json!({"spec": {"user": "edit", "resourceAttributes": {"verb": "get", "namespace": "blue"}}});
    let refused = adam.post(&local, &elsewhere).await;
    assert!(refused.code == 422 && refused.message().contains("must match metadata.namespace"), "{refused:?}");
    let rules = view.post(&format!("{reviews}/selfsubjectrulesreviews"), &json!({"spec": {"namespace": "red"}})).await;
    let status = &rules.json()["status"];
    assert_eq!(status["incomplete"], false);
    assert!(status["resourceRules"].to_string().contains("configmaps"), "{status}");
    assert!(status["nonResourceRules"].to_string().contains("/openapi/*"), "{status}");
    let node = json!({"spec": {"user": "system:node:node-1", "groups": ["system:nodes"],
        "resourceAttributes": {"verb": "get", "resource": "secrets", "namespace": "red", "name": "s"}}});
    let theirs = root.post(&format!("{reviews}/subjectaccessreviews"), &node).await;
    let why = "no relationship found between node 'node-1' and this object";
    assert_eq!(theirs.json()["status"], json!({"allowed": false, "reason": why}));

    let whoami = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let info = |answer: &Answer| answer.json()["status"]["userInfo"].clone();
    let me = view.post(whoami, &json!({})).await;
    assert_eq!(info(&me), json!({"username": "view", "groups": ["dev", "system:authenticated"]}));
    let claim = root
        .clone()
        .saying("Impersonate-User", "ann")
        .saying("Impersonate-Group", "dev")
        .saying("Impersonate-Uid", "7")
        .saying("Impersonate-Extra-Scopes", "read");
    let claimed = claim.post(whoami, &json!({})).await;
    assert_eq!(
        info(&claimed),
        json!({"username": "ann", "uid": "7", "groups": ["dev", "system:authenticated"], "extra": {"scopes": ["read"]}})
    );
    let as_view = root.clone().saying("Impersonate-User", "view");
    assert_eq!(as_view.get("/api/v1/namespaces/red/pods").await.code, 200);
    assert_eq!(as_view.get("/api/v1/nodes").await.code, 403);
    let refused = view.clone().saying("Impersonate-User", "admin").get("/api/v1/namespaces/red/pods").await;
    let words = "users \"admin\" is forbidden: User \"view\" cannot impersonate resource \"users\" in API group \"\" at \
                 the cluster scope";
    assert_eq!((refused.code, refused.message().as_str()), (403, words));
    let account = "system:serviceaccount:red:default";
    let edit = Caller::new(&cluster, "node-1", "edit", &[]);
    let claimed = edit.clone().saying("Impersonate-User", account).post(whoami, &json!({})).await;
    let groups = json!(["system:serviceaccounts", "system:serviceaccounts:red", "system:authenticated"]);
    assert_eq!(info(&claimed), json!({"username": account, "groups": groups}));
    assert_eq!(root.clone().saying("Impersonate-Group", "dev").get("/api").await.code, 400);

    let found = as_view.saying("Audit-ID", "look-for-me").get("/api/v1/namespaces/red/pods?limit=5").await;
    assert!(found.head.contains("audit-id: look-for-me"), "{found:?}");
    let recorded = || async {
        let text = fs::read_to_string(&log).map_err(|error| error.to_string())?;
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mine: Vec<Value> = lines.filter(|line| line["auditID"] == "look-for-me").collect();
        if mine.len() == 2 { Ok(mine) } else { Err(format!("{} lines", mine.len())) }
    };
    let lines = eventually(LIMIT, "the request is in the audit log", recorded).await;
    let end = &lines[1];
    assert_eq!((&end["stage"], &end["verb"]), (&json!("ResponseComplete"), &json!("list")));
    assert_eq!(end["requestURI"], "/api/v1/namespaces/red/pods?limit=5");
    assert_eq!((&end["user"]["username"], &end["impersonatedUser"]["username"]), (&json!("admin"), &json!("view")));
    assert_eq!(end["objectRef"], json!({"resource": "pods", "namespace": "red", "apiVersion": "v1"}));
    assert_eq!(end["responseStatus"]["code"], 200);
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.contains("/flotilla.v1.Cluster/"), "calls over gRPC are recorded too");

    // Bodies are recorded where the policy says so, and never what is secret.
    let body = |kind: &str| json!({"kind": kind, "metadata": {"name": "recorded"}, "data": {"k": "aHVudGVyMg=="}});
    for (resource, kind) in [("secrets", "Secret"), ("configmaps", "ConfigMap")] {
        let path = format!("/api/v1/namespaces/red/{resource}");
        let teller = root.clone().saying("Audit-ID", resource);
        assert_eq!(teller.post(&path, &body(kind)).await.code, 201);
    }
    let ends = |id: &'static str| {
        let log = log.clone();
        move || {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let mut lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let end = lines.find(|line| line["auditID"] == id && line["stage"] == "ResponseComplete");
            async { end.ok_or_else(|| "not yet".to_owned()) }
        }
    };
    let map = eventually(LIMIT, "the request is in the audit log", ends("configmaps")).await;
    assert_eq!(map["level"], "RequestResponse");
    assert_eq!(map["requestObject"], body("ConfigMap"));
    assert_eq!(map["responseObject"]["data"], body("ConfigMap")["data"]);
    assert_eq!(map["responseObject"]["metadata"].get("managedFields"), None, "{map}");
    let secret = eventually(LIMIT, "the request is in the audit log", ends("secrets")).await;
    assert_eq!(secret["level"], "Metadata");
    assert!(!secret.to_string().contains("aHVudGVyMg"), "{secret}");

    let metrics = root.get("/metrics").await.body;
    let counted = "grpc_server_handled_total{grpc_code=\"OK\",";
    assert!(metrics.lines().any(|line| line.starts_with(counted)), "{metrics}");
}

const POLICY: &str = "
apiVersion: audit.k8s.io/v1
kind: Policy
omitManagedFields: true
rules:
- {level: RequestResponse, verbs: [create], resources: [{group: '', resources: [configmaps, secrets]}]}
- level: Metadata
";

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_asks_and_reconciles() {
    let cluster = Cluster::start(1).await;
    let root = Kubectl::new(&cluster, "node-1");
    let user = |name: &str| {
        let config = cli::ok(&cluster, "node-1", &["kubeconfig", "--user", name, "--group", "dev"]);
        Kubectl::with(&config)
    };
    root.ok(&["create", "namespace", "red"]);
    root.ok(&["create", "rolebinding", "ann", "--clusterrole=view", "--user=ann", "-n", "red"]);
    let ann = user("ann");
    assert_eq!(ann.ok(&["auth", "can-i", "list", "pods", "-n", "red"]), "yes\n");
    let no = ann.run(&["auth", "can-i", "create", "pods", "-n", "red"]);
    assert_eq!((no.code, no.out.as_str()), (Some(1), "no\n"), "{no:?}");
    assert_eq!(ann.ok(&["auth", "can-i", "get", "/version"]), "yes\n");
    assert_eq!(root.ok(&["auth", "can-i", "get", "pods/log", "-n", "red", "--as", "ann"]), "yes\n");
    let list = ann.ok(&["auth", "can-i", "--list", "-n", "red"]);
    assert!(list.starts_with("Resources"), "{list}");
    for row in ["selfsubjectaccessreviews.authorization.k8s.io", "configmaps", "[/openapi/*]", "deployments.apps"] {
        assert!(list.contains(row), "{row} is missing: {list}");
    }
    let whoami = ann.ok(&["auth", "whoami"]);
    assert!(whoami.starts_with("ATTRIBUTE") && whoami.contains("Username") && whoami.contains("ann"), "{whoami}");
    assert!(whoami.contains("[dev system:authenticated]"), "{whoami}");
    let claimed = root.ok(&["auth", "whoami", "--as", "bob", "--as-group", "ops", "-o", "json"]);
    let claimed: Value = serde_json::from_str(&claimed).unwrap();
    assert_eq!(claimed["status"]["userInfo"]["username"], "bob");
    let refused = ann.fails(&["get", "pods", "--as", "bob"]);
    assert!(refused.contains("(Forbidden): users \"bob\" is forbidden: User \"ann\" cannot impersonate"), "{refused}");
    let refused = ann.fails(&["get", "secrets", "-n", "red"]);
    assert_eq!(
        refused,
        "Error from server (Forbidden): secrets is forbidden: User \"ann\" cannot list resource \"secrets\" in API group \
         \"\" in the namespace \"red\"\n"
    );
    let roles = root.file(
        "roles.yaml",
        "
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: readers, namespace: red}
rules:
- {apiGroups: [''], resources: [secrets], verbs: [get, list]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: readers, namespace: red}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: readers}
subjects:
- {apiGroup: rbac.authorization.k8s.io, kind: User, name: ann}
",
    );
    // It tells on standard error what was missing.
    let reconcile = || {
        let said = root.run(&["auth", "reconcile", "-f", &roles]);
        assert_eq!(said.code, Some(0), "{said:?}");
        said.out
    };
    let said = reconcile();
    assert!(said.contains("role.rbac.authorization.k8s.io/readers reconciled"), "{said}");
    assert!(said.contains("rolebinding.rbac.authorization.k8s.io/readers reconciled"), "{said}");
    ann.ok(&["get", "secrets", "-n", "red", "-o", "name"]);
    // A second time, a rule was taken out and comes back.
    let none = "{\"rules\": []}";
    root.ok(&["patch", "role", "readers", "-n", "red", "--type=merge", "-p", none]);
    assert!(ann.fails(&["get", "secrets", "-n", "red"]).contains("Forbidden"));
    reconcile();
    ann.ok(&["get", "secrets", "-n", "red", "-o", "name"]);
}

/// Requests that one user has under way, by the documented bounds: ten times as many as are answered at once.
const LOUD: usize = 320;
const ROUNDS: usize = 10;

#[tokio::test(flavor = "multi_thread")]
async fn a_loud_user_is_told_to_wait_and_others_are_not() {
    let cluster = Cluster::start(1).await;
    let root = admin(&cluster);
    bind_default_roles(&root).await;
    let loud = Caller::new(&cluster, "node-1", "view", &[]);
    let quiet = Caller::new(&cluster, "node-1", "edit", &[]);
    let path = "/api/v1/namespaces/red/configmaps";
    // Connections are bounded by address, and all of these come from one: they are there before the flood begins.
    let line = |caller: Caller| async move { caller.connect().await.unwrap() };
    let lines = futures::stream::iter((0..LOUD).map(|_| line(loud.clone()))).buffer_unordered(16);
    let lines: Vec<Line> = lines.collect().await;
    let (mut quiet, mut root) = (line(quiet).await, line(root).await);
    let one = |mut line: Line| async move {
        let mut answers = Vec::new();
        for _ in 0..ROUNDS {
            answers.push(line.get(path).await);
        }
        answers
    };
    // Tasks of their own: on one, they would wait for each other here instead of there.
    let flood: Vec<_> = lines.into_iter().map(|line| tokio::spawn(one(line))).collect();
    let flood = async { join_all(flood).await.into_iter().flat_map(Result::unwrap).collect::<Vec<_>>() };
    let (done, ended) = tokio::sync::watch::channel(false);
    let ask = async {
        let mut took = Vec::new();
        while !*ended.borrow() {
            for (who, name) in [(&mut quiet, "a quiet user"), (&mut root, "an administrator")] {
                let began = Instant::now();
                let answer = who.get(path).await.unwrap();
                assert_eq!(answer.code, 200, "{name}: {answer:?}");
                took.push(began.elapsed());
            }
        }
        took
    };
    let flood = async {
        let answers = flood.await;
        _ = done.send(true);
        answers
    };
    let (answers, mut took) = tokio::join!(flood, ask);
    let mut counts = [0_usize; 2];
    for answer in answers {
        let answer = answer.unwrap();
        match answer.code {
            200 => counts[0] += 1,
            429 => {
                counts[1] += 1;
                assert!(answer.head.contains("retry-after: 1"), "{answer:?}");
                assert_eq!(answer.json()["reason"], "TooManyRequests");
            }
            _ => panic!("{answer:?}"),
        }
    }
    assert!(counts[0] > 0, "a loud user is served too");
    took.sort();
    let slowest = took.last().copied().unwrap_or_default();
    figure(
        "a loud user's flood",
        &format!("{} answered, {} told to wait; others waited {slowest:?} at most", counts[0], counts[1]),
    );
    assert!(slowest < Duration::from_secs(10), "others waited {slowest:?}");
    let status = cluster.status("node-1").await.unwrap();
    assert!(status.problems.is_empty(), "{:?}", status.problems);
}
