//! What a client is told that asks for what cannot be: codes, reasons, causes and words of kube-apiserver, rule by rule.

use flotilla_tests::Cluster;
use flotilla_tests::rest::Caller;
use http::Method;
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/default/leases";

/// A request, the code of its answer, and a part of its message.
type Rule = (&'static str, &'static str, Option<Value>, u16, &'static str);

fn named(name: &str) -> Option<Value> {
    Some(json!({"metadata": {"name": name}}))
}

fn rules() -> Vec<Rule> {
    let map = "/api/v1/namespaces/default/configmaps/a";
    vec![
        ("POST", MAPS, named("a"), 201, ""),
        ("POST", MAPS, named("a"), 409, "configmaps \"a\" already exists"),
        ("POST", "/api/v1/configmaps", named("a"), 405, "the server does not allow this method"),
        ("DELETE", "/api/v1/configmaps", None, 405, "the server does not allow this method"),
        (
            "POST",
            "/api/v1/namespaces/default/configmaps?dryRun=x",
            named("b"),
            422,
            "dryRun: Unsupported value: [\"x\"]",
        ),
        (
            "POST",
            "/api/v1/namespaces/default/configmaps?fieldValidation=x",
            named("b"),
            422,
            "CreateOptions.meta.k8s.io \"\" is invalid: fieldValidation: Unsupported value: \"x\"",
        ),
        ("POST", "/api/v1/namespaces/none/configmaps", named("b"), 404, "namespaces \"none\" not found"),
        ("PUT", map, Some(json!({"data": {}})), 400, "(a based on URL) was undeterminable: name must be provided"),
        ("PUT", map, named("b"), 400, "the name of the object (b) does not match the name on the URL (a)"),
        ("PUT", map, Some(json!({"metadata": {"name": "a", "uid": "x"}})), 409, "UID in precondition: x"),
        ("PUT", "/api/v1/namespaces/default/configmaps/none", named("none"), 404, "configmaps \"none\" not found"),
        // Some kinds are made by an update, and some are not updated without a revision.
        ("PUT", "/apis/coordination.k8s.io/v1/namespaces/default/leases/l", named("l"), 201, ""),
        (
            "PUT",
            "/apis/coordination.k8s.io/v1/namespaces/default/leases/l",
            named("l"),
            422,
            "must be specified for an update",
        ),
        ("PATCH", map, named("b"), 400, "the name of the object (b) does not match the name on the URL (a)"),
        (
            "PATCH",
            map,
            Some(json!({"metadata": {"namespace": "b"}})),
            400,
            "the namespace of the object (b) does not match the namespace on the request (default)",
        ),
        ("PATCH", "/api/v1/namespaces/default/configmaps/a?force=true", named("a"), 422, "PatchOptions.meta.k8s.io"),
        (
            "GET",
            "/api/v1/namespaces/default/configmaps/a?resourceVersion=9999999",
            None,
            504,
            "Too large resource version",
        ),
        ("GET", "/api/v1/namespaces/default/configmaps/a?resourceVersion=1", None, 200, ""),
        (
            "GET",
            "/api/v1/namespaces/default/configmaps?sendInitialEvents=true",
            None,
            422,
            "sendInitialEvents is forbidden",
        ),
        ("DELETE", map, Some(json!({"kind": "Pod", "apiVersion": "v1"})), 400, "no DeleteOptions"),
        ("DELETE", map, Some(json!({"dryRun": ["x"]})), 422, "DeleteOptions.meta.k8s.io \"\" is invalid: dryRun"),
        (
            "DELETE",
            map,
            Some(json!({"preconditions": {"uid": "x"}})),
            409,
            "the UID in the precondition (x) does not match",
        ),
        // A body says it all; what the query says then counts for nothing.
        ("DELETE", "/api/v1/namespaces/default/configmaps/a?dryRun=All", Some(json!({})), 200, ""),
        ("GET", map, None, 404, "configmaps \"a\" not found"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_as_upstream_does() {
    let cluster = Cluster::start(1).await;
    let admin = Caller::new(&cluster, "node-1", "admin", &["system:masters"]);
    let patcher = admin.clone().saying("Content-Type", "application/merge-patch+json");
    for (method, path, body, code, words) in rules() {
        let caller = if method == "PATCH" { &patcher } else { &admin };
        let answer = caller.ask(&method.parse::<Method>().unwrap(), path, body.as_ref()).await.unwrap();
        assert_eq!(answer.code, code, "{method} {path}: {answer:?}");
        assert!(answer.message().contains(words), "{method} {path}: {answer:?}");
    }

    // What a failure is about stands in its details, and nothing does where upstream says nothing.
    let none = admin.post("/api/v1/namespaces/none/configmaps", &named("b").unwrap()).await.json();
    assert_eq!(none["details"], json!({"name": "none", "kind": "namespaces"}));
    let future = admin.get(&format!("{MAPS}?resourceVersion=9999999")).await.json();
    assert_eq!(future["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
    let put = admin.ask(&Method::PUT, &format!("{LEASES}/l"), Some(&json!([]))).await.unwrap().json();
    assert_eq!((&put["reason"], put.get("details")), (&json!("BadRequest"), None));

    let table = admin.clone().saying("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
    let refused = table.get(&format!("{MAPS}?includeObject=All")).await;
    assert_eq!(refused.code, 400, "{refused:?}");
    assert!(refused.message().starts_with("Unable to convert to Table as requested: includeObject"), "{refused:?}");

    strictly(&admin).await;
    forms(&admin).await;
    bindings(&admin).await;
    pages(&admin).await;
    long_lists(&admin, &Caller::new(&cluster, "node-1", "watcher", &[])).await;
    deletes(&admin).await;

    // Whoever uses a version of old is told so, whatever comes of it.
    for path in ["ingresses", "ingresses/none"] {
        let answer = admin.get(&format!("/apis/extensions/v1beta1/namespaces/default/{path}")).await;
        let warning = "warning: 299 - \"extensions/v1beta1 ingress is deprecated in v1.14+, unavailable in v1.22+; use \
                       networking.k8s.io/v1 ingress\"";
        assert!(answer.head.contains(warning), "{answer:?}");
    }
}

/// Fields that are unknown or stand there twice.
async fn strictly(admin: &Caller) {
    let send = async |caller: &Caller, method: &str, path: &str, body: &str| {
        caller.send(&method.parse().unwrap(), path, body).await.expect("an answer")
    };
    let json = admin.clone().saying("Content-Type", "application/json");
    let twice = r#"{"metadata": {"name": "twice"}, "data": {"a": "1", "a": "2", "b": "1", "a": "3"}}"#;
    let told = "warning: 299 - \"duplicate field \\\"data.a\\\"\"";
    let warned = send(&json, "POST", &format!("{MAPS}?dryRun=All"), twice).await;
    assert_eq!((warned.code, warned.head.matches("warning").count()), (201, 1), "{warned:?}");
    assert!(warned.head.contains(told), "{warned:?}");
    assert_eq!(warned.json()["data"], json!({"a": "3", "b": "1"}));
    let silent = send(&json, "POST", &format!("{MAPS}?fieldValidation=Ignore"), twice).await;
    assert!(silent.code == 201 && !silent.head.contains("warning"), "{silent:?}");
    let strict = format!("{MAPS}?fieldValidation=Strict");
    let refused = send(&json, "POST", &strict, &twice.replace("\"data\"", "\"c\": 1, \"data\"")).await;
    let words = "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: duplicate field \
                 \"data.a\", unknown field \"c\"";
    assert_eq!((refused.code, refused.message()), (400, words.to_owned()));
    let yaml = admin.clone().saying("Content-Type", "application/yaml");
    let refused = send(&yaml, "POST", &strict, "metadata: {name: y}\ndata:\n  a: x\n  a: y\n").await;
    assert!(refused.code == 400 && refused.message().ends_with("duplicate field \"data.a\""), "{refused:?}");

    // What is sent to a subresource is judged as what it is there.
    let sets = "/apis/apps/v1/namespaces/default/replicasets";
    let labels = json!({"a": "b"});
    let template = json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let set = json!({"metadata": {"name": "s"}, "spec": {"replicas": 0, "selector": {"matchLabels": labels},
        "template": template}});
    assert_eq!(admin.post(sets, &set).await.code, 201);
    let head = r#"{"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "s"}, "spec": {"#;
    let scale = format!("{sets}/s/scale");
    let twice = format!(r#"{head}"replicas": 1, "replicas": 0, "x": 1}}}}"#);
    let refused = send(&json, "PUT", &format!("{scale}?fieldValidation=Strict"), &twice).await;
    let words = "Scale in version \"v1\" cannot be handled as a Scale: strict decoding error: duplicate field \
                 \"spec.replicas\", unknown field \"spec.x\"";
    assert_eq!((refused.code, refused.message()), (400, words.to_owned()));
    let warned = send(&json, "PUT", &scale, &twice).await;
    assert_eq!((warned.code, warned.head.matches("warning").count()), (200, 2), "{warned:?}");
    let wrong = send(&json, "PUT", &scale, &format!(r#"{head}"replicas": "1"}}}}"#)).await;
    assert!(wrong.code == 400 && wrong.message().contains("spec.replicas"), "{wrong:?}");

    // A patch is applied before it is looked at.
    let map = format!("{MAPS}/twice?fieldValidation=Strict");
    let patches = [
        ("merge", r#"{"c": 1}"#, "{\\\"apiVersion\\\":", "unknown field \"c\""),
        (
            "strategic-merge",
            r#"{"c": 1, "data": {"b": "2", "b": "3"}}"#,
            "map[c:1 data:map[b:3]]\"",
            "unknown field \"c\"",
        ),
        (
            "json",
            r#"[{"op": "add", "op": "add", "path": "/data/c", "value": "1"}]"#,
            "{\\\"",
            "json patch duplicate field \"[0].op\"",
        ),
    ];
    for (type_, body, shown, last) in patches {
        let patcher = admin.clone().saying("Content-Type", &format!("application/{type_}-patch+json"));
        let refused = send(&patcher, "PATCH", &map, body).await;
        assert_eq!(refused.code, 422, "{refused:?}");
        let message = refused.message();
        let begins = format!(" \"\" is invalid: patch: Invalid value: \"{}", shown);
        assert!(message.starts_with(&begins) && message.ends_with(last), "{message}");
        assert!(message.contains("strict decoding error: "), "{message}");
        assert_eq!(refused.json()["details"]["causes"][0]["field"], "patch", "{refused:?}");
        let warned = send(&patcher, "PATCH", &format!("{MAPS}/twice?dryRun=All"), body).await;
        assert!(warned.code == 200 && warned.head.contains("warning"), "{warned:?}");
    }
    let merge = admin.clone().saying("Content-Type", "application/merge-patch+json");
    let wrong = send(&merge, "PATCH", &format!("{MAPS}/twice"), r#"{"data": {"b": 2}}"#).await;
    assert_eq!((wrong.code, &wrong.json()["reason"]), (422, &json!("Invalid")), "{wrong:?}");
    let apply = admin.clone().saying("Content-Type", "application/apply-patch+yaml");
    let config = "{apiVersion: v1, kind: ConfigMap, metadata: {name: twice}, data: {d: x, d: y}}";
    let refused = send(&apply, "PATCH", &format!("{map}&fieldManager=m"), config).await;
    assert!(refused.code == 400 && refused.message().starts_with("error strict decoding YAML: "), "{refused:?}");
}

/// How answers are laid out, and what names them.
async fn forms(admin: &Caller) {
    let path = "/api/v1/namespaces/default";
    let plain = admin.get(path).await;
    assert!(plain.head.contains("audit-id: "), "{plain:?}");
    let named = admin.clone().saying("Audit-Id", "mine").get("/healthz").await;
    assert!(named.head.contains("audit-id: mine"), "{named:?}");
    for curl in
        [admin.clone().saying("User-Agent", "curl/8.5.0").get(path).await, admin.get(&format!("{path}?pretty=1")).await]
    {
        assert!(curl.body.starts_with("{\n  \"") && !plain.body.contains('\n'), "{curl:?}");
        assert_eq!(curl.json()["metadata"]["name"], "default");
    }
    let head = admin.ask(&Method::HEAD, path, None).await.expect("an answer");
    assert_eq!((head.code, head.body.len()), (200, 0), "{head:?}");
    let nowhere = admin.get("/nowhere").await;
    assert_eq!((nowhere.code, nowhere.body.as_str()), (404, "404 page not found\n"));
    let nothing = admin.get("/apis/example.com/v1/none").await;
    assert_eq!(nothing.json()["message"], "the server could not find the requested resource");

    let components = admin.get("/api/v1/componentstatuses").await;
    assert!(components.head.contains("v1 componentstatus is deprecated in v1.19+"), "{components:?}");
    let components = components.json();
    let healthy = |one: &Value| one["conditions"][0]["status"] == "True";
    let items = components["items"].as_array().expect("a list");
    assert!(items.len() == 3 && items.iter().all(healthy), "{components}");
    assert_eq!(admin.get("/api/v1/componentstatuses/none").await.code, 404);
    assert_eq!(admin.post("/api/v1/componentstatuses", &json!({})).await.code, 405);
}

/// A pod is assigned to a node by a Binding that names it.
async fn bindings(admin: &Caller) {
    let pod = json!({"metadata": {"name": "bound"}, "spec": {"schedulerName": "none", "containers": [{"name": "c", "image": "none"}]}});
    assert_eq!(admin.post("/api/v1/namespaces/default/pods", &pod).await.code, 201);
    let bind = async |name: &str| {
        let binding = json!({"metadata": {"name": name}, "target": {"kind": "Node", "name": "node-1"}});
        admin.post("/api/v1/namespaces/default/bindings", &binding).await
    };
    assert_eq!(bind("none").await.code, 404);
    let bound = bind("bound").await;
    assert_eq!((bound.code, &bound.json()["status"]), (201, &json!("Success")), "{bound:?}");
    let again = bind("bound").await;
    assert_eq!(again.code, 409, "{again:?}");
    assert!(again.message().contains("pod bound is already assigned to node \"node-1\""), "{again:?}");
    let pod = "/api/v1/namespaces/default/pods/bound";
    assert_eq!(admin.get(pod).await.json()["spec"]["nodeName"], "node-1");
    let now = json!({"gracePeriodSeconds": 0});
    assert_eq!(admin.ask(&Method::DELETE, pod, Some(&now)).await.expect("an answer").code, 200);
}

/// A page says how many come after it, unless something selects among them.
async fn pages(admin: &Caller) {
    for name in ["p1", "p2", "p3", "p4", "p5"] {
        let map = json!({"metadata": {"name": name, "labels": {"of": "pages"}}});
        assert_eq!(admin.post(MAPS, &map).await.code, 201);
    }
    let all = admin.get(MAPS).await.json()["items"].as_array().expect("a list").len();
    let first = admin.get(&format!("{MAPS}?limit=2")).await.json();
    assert_eq!(first["metadata"]["remainingItemCount"], all - 2, "{first}");
    let token = first["metadata"]["continue"].as_str().expect("more follow").to_owned();
    let rest = admin.get(&format!("{MAPS}?continue={token}")).await.json();
    assert_eq!(rest["items"].as_array().map(Vec::len), Some(all - 2), "{rest}");
    assert_eq!(rest["metadata"].get("remainingItemCount"), None, "{rest}");
    let selected = admin.get(&format!("{MAPS}?limit=2&labelSelector=of%3Dpages")).await.json();
    assert!(selected["metadata"]["continue"].is_string(), "{selected}");
    assert_eq!(selected["metadata"].get("remainingItemCount"), None, "{selected}");
    // What is in between shows when the list goes on at the newest revision.
    assert_eq!(admin.post(MAPS, &json!({"metadata": {"name": "p6"}})).await.code, 201);
    let (_, after) = token.split_once(':').expect("a revision and a key");
    let rest = admin.get(&format!("{MAPS}?continue=newest:{after}")).await.json();
    assert_eq!(rest["items"].as_array().map(Vec::len), Some(all - 1), "{rest}");
}

/// A list that is sent while it is read is what a short one is, and so is what a watch begins with.
async fn long_lists(admin: &Caller, watcher: &Caller) {
    let text = "\\\"x ".repeat(50_000);
    for name in ["l1", "l2", "l3"] {
        let map = json!({"metadata": {"name": name, "labels": {"of": "lists"}}, "data": {"text": text}});
        assert_eq!(admin.post(MAPS, &map).await.code, 201);
    }
    let lists = format!("{MAPS}?labelSelector=of%3Dlists");
    let (long, paged) = (admin.get(&lists).await, admin.get(&format!("{lists}&limit=10")).await);
    assert!(long.head.contains("transfer-encoding: chunked"), "{}", long.head);
    assert!(paged.head.contains("content-length: "), "{}", paged.head);
    assert_eq!(long.body, paged.body);
    assert_eq!(long.json()["items"].as_array().map(Vec::len), Some(3));
    let laid_out = admin.get(&format!("{lists}&pretty=true")).await;
    let paged = admin.get(&format!("{lists}&limit=10&pretty=true")).await;
    assert_eq!(laid_out.body, paged.body);
    assert!(laid_out.body.starts_with("{\n  \"kind\": \"ConfigMapList\",\n"), "{}", &laid_out.body[..200]);
    let head = admin.ask(&Method::HEAD, &lists, None).await.expect("an answer");
    assert_eq!((head.code, head.body.as_str()), (200, ""));

    // Whoever may watch and not list is told what there is as well, as upstream has it.
    let role = json!({"metadata": {"name": "watch"}, "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["watch"]}]});
    let roles = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    assert_eq!(admin.post(&format!("{roles}/roles"), &role).await.code, 201);
    let binding = json!({"metadata": {"name": "watch"},
                         "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "watch"},
                         "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "watcher"}]});
    assert_eq!(admin.post(&format!("{roles}/rolebindings"), &binding).await.code, 201);
    assert_eq!(watcher.get(&lists).await.code, 403);
    let begin =
        "watch=true&timeoutSeconds=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
    let watched = watcher.get(&format!("{lists}&{begin}")).await;
    let events: Vec<Value> = watched.body.lines().map(|line| serde_json::from_str(line).expect("an event")).collect();
    let told: Vec<_> = events.iter().map(|one| (&one["type"], &one["object"]["metadata"]["name"])).collect();
    let name = |name: &str| json!(name);
    let added = name("ADDED");
    assert_eq!(told[..3], [(&added, &name("l1")), (&added, &name("l2")), (&added, &name("l3"))]);
    assert_eq!(events[3]["type"], "BOOKMARK");
    assert_eq!(events[3]["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
}

/// Some kinds are shown when they are deleted, of others is said what they were called.
async fn deletes(admin: &Caller) {
    let delete = async |path: &str, body: Option<Value>| {
        let answer = admin.ask(&Method::DELETE, path, body.as_ref()).await.expect("an answer");
        assert_eq!(answer.code, 200, "{path}: {answer:?}");
        answer
    };
    let shown = [
        ("/api/v1/namespaces/default/serviceaccounts", "ServiceAccount", json!({})),
        ("/api/v1/namespaces/default/resourcequotas", "ResourceQuota", json!({"spec": {"hard": {"pods": "100"}}})),
        ("/apis/storage.k8s.io/v1/storageclasses", "StorageClass", json!({"provisioner": "example.com/none"})),
    ];
    for (path, kind, mut object) in shown {
        object["metadata"] = json!({"name": "gone"});
        assert_eq!(admin.post(path, &object).await.code, 201, "{path}");
        let answer = delete(&format!("{path}/gone"), None).await.json();
        assert_eq!((&answer["kind"], &answer["metadata"]["name"]), (&json!(kind), &json!("gone")), "{answer}");
    }
    let lease = admin.post(LEASES, &named("gone").expect("an object")).await.json();
    let answer = delete(&format!("{LEASES}/gone"), None).await.json();
    assert_eq!(answer["status"], "Success", "{answer}");
    let details = json!({"name": "gone", "group": "coordination.k8s.io", "kind": "leases",
                         "uid": lease["metadata"]["uid"]});
    assert_eq!(answer["details"], details);

    // A Job's pods stay unless the request says what is to become of them.
    let jobs = "/apis/batch/v1/namespaces/default/jobs";
    let job = json!({"metadata": {"name": "gone"}, "spec": {"suspend": true, "template": {"spec": {
        "restartPolicy": "Never", "containers": [{"name": "c", "image": "none"}]}}}});
    assert_eq!(admin.post(jobs, &job).await.code, 201);
    let answer = delete(&format!("{jobs}/gone?dryRun=All"), None).await;
    assert!(answer.head.contains("child pods are preserved by default when jobs are deleted"), "{answer:?}");
    let answer = delete(&format!("{jobs}/gone"), Some(json!({"propagationPolicy": "Background"}))).await;
    assert!(!answer.head.contains("warning"), "{answer:?}");

    // A Namespace's finalizers are set as of a revision, if the request names one.
    let put = json!({"metadata": {"name": "default", "resourceVersion": "1"}, "spec": {"finalizers": ["kubernetes"]}});
    let stale = admin.ask(&Method::PUT, "/api/v1/namespaces/default/finalize", Some(&put)).await.expect("an answer");
    assert_eq!(stale.code, 409, "{stale:?}");
}
