//! A pod is somebody: it reads its own token and speaks to the API with it, on any node, as long as it lives. Keys are
//! replaced, people ask for tokens, and a certificate that was requested and approved makes a user.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flotilla_tests::{Cluster, Kubectl, Scene, cli, eventually, image};
use serde_json::{Value, json};

const WAIT: Duration = Duration::from_secs(60);
const DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

#[tokio::test(flavor = "multi_thread")]
async fn pods_and_people_are_known_by_what_the_cluster_signed() {
    let scene = Scene::set(2).await;
    let image = scene.registry.push(&image::busybox(scene.registry.workshop()));
    let root = Kubectl::new(&scene.cluster, "node-1");

    namespaces_have_their_account(&root).await;
    let token = a_pod_speaks_as_its_account(&scene.cluster, &root, &image).await;
    people_ask_for_tokens(&root);
    keys_are_replaced(&scene.cluster, &root, &token).await;
    a_deleted_pods_token_is_worth_nothing(&scene.cluster, &root).await;
    a_request_becomes_a_user(&root).await;
}

async fn namespaces_have_their_account(root: &Kubectl) {
    root.ok(&["create", "namespace", "red"]);
    for object in ["serviceaccount/default", "configmap/kube-root-ca.crt"] {
        let there = || async {
            let said = root.run(&["get", "-n", "red", object, "-o", "jsonpath={.metadata.uid}"]);
            if said.code == Some(0) { Ok(said.out) } else { Err(said.err) }
        };
        let before = eventually(WAIT, object, there).await;
        root.ok(&["delete", "-n", "red", object]);
        let again = || async {
            let uid = there().await?;
            if uid == before { Err("the old one".to_owned()) } else { Ok(()) }
        };
        eventually(WAIT, &format!("{object} is made anew"), again).await;
    }
    let bundle = root.ok(&["get", "-n", "red", "configmap/kube-root-ca.crt", "-o", "jsonpath={.data.ca\\.crt}"]);
    assert!(bundle.starts_with("-----BEGIN CERTIFICATE-----"), "{bundle}");
}

/// Gives the pod's token.
async fn a_pod_speaks_as_its_account(cluster: &Cluster, root: &Kubectl, image: &str) -> String {
    root.ok(&["create", "-n", "red", "serviceaccount", "bot"]);
    let no_account = root.pipe(&["create", "-f", "-"], &pod("lost", "nobody", image).to_string());
    assert!(no_account.err.contains("error looking up service account red/nobody"), "{no_account:?}");
    root.ok_with(&["create", "-f", "-"], &pod("speaker", "bot", image).to_string());
    root.ok(&["wait", "-n", "red", "--for=condition=Ready", "pod/speaker", "--timeout=60s"]);
    let token = read(cluster, "token");
    assert_eq!(read(cluster, "namespace"), "red");
    assert!(read(cluster, "ca.crt").starts_with("-----BEGIN CERTIFICATE-----"));
    let api = inside(cluster, "echo $KUBERNETES_SERVICE_HOST $KUBERNETES_SERVICE_PORT");
    let (host, port) = api.trim().split_once(' ').expect("host and port");
    let at_home = format!("https://{host}:{port}");

    // With what the pod has and nothing else: its token, the certificate and the address.
    let own = bearer(&at_home, &read(cluster, "ca.crt"), &token);
    let who: Value = serde_json::from_str(&own.ok(&["auth", "whoami", "-o", "json"])).expect("JSON");
    let who = &who["status"]["userInfo"];
    assert_eq!(who["username"], "system:serviceaccount:red:bot");
    assert_eq!(who["groups"], json!(["system:serviceaccounts", "system:serviceaccounts:red", "system:authenticated"]));
    assert_eq!(who["extra"]["authentication.kubernetes.io/pod-name"], json!(["speaker"]));
    let refused = own.fails(&["get", "pods", "-n", "red"]);
    assert!(refused.contains("User \"system:serviceaccount:red:bot\" cannot list resource \"pods\""), "{refused}");
    root.ok(&["create", "rolebinding", "-n", "red", "bot", "--clusterrole=view", "--serviceaccount=red:bot"]);
    assert!(own.ok(&["get", "pods", "-n", "red", "-o", "name"]).contains("pod/speaker"));
    own.fails(&["get", "secrets", "-n", "red"]);

    // And on the other node.
    let other = Kubectl::new(cluster, "node-2");
    assert!(with_token(&other, &token).ok(&["get", "pods", "-n", "red", "-o", "name"]).contains("pod/speaker"));
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
    let review = root.ok_with(&["create", "-o", "json", "-f", "-"], &review.to_string());
    let review: Value = serde_json::from_str(&review).expect("JSON");
    assert_eq!(review["status"]["authenticated"], true, "{review}");

    // A token that was touched shows nobody, and is not taken for a stranger's.
    let broken = with_token(root, &format!("{}x", &token[..token.len() - 1]));
    let said = broken.fails(&["get", "--raw", "/version"]);
    assert!(said.contains("Unauthorized") || said.contains("must be logged in"), "{said}");
    token
}

fn people_ask_for_tokens(root: &Kubectl) {
    let token = root.ok(&["create", "token", "-n", "red", "bot", "--duration=20m"]);
    let user = with_token(root, token.trim());
    assert!(user.ok(&["get", "pods", "-n", "red", "-o", "name"]).contains("pod/speaker"));
    let vault = root.ok(&["create", "token", "-n", "red", "bot", "--audience=vault"]);
    with_token(root, vault.trim()).fails(&["get", "pods", "-n", "red"]);
    let short = root.fails(&["create", "token", "-n", "red", "bot", "--duration=1m"]);
    assert!(short.contains("may not specify a duration less than 10 minutes"), "{short}");
    let missing = root.fails(&["create", "token", "-n", "red", "nobody"]);
    assert!(missing.contains("serviceaccounts \"nobody\" not found"), "{missing}");
    let keys: Value = serde_json::from_str(&root.ok(&["get", "--raw", "/openid/v1/jwks"])).expect("JSON");
    assert_eq!(keys["keys"][0]["crv"], "P-256", "{keys}");
    let about = root.ok(&["get", "--raw", "/.well-known/openid-configuration"]);
    assert!(about.contains("https://kubernetes.default.svc.cluster.local"), "{about}");
}

async fn keys_are_replaced(cluster: &Cluster, root: &Kubectl, token: &str) {
    let old = with_token(root, token);
    _ = cli::ok(cluster, "node-2", &["accounts", "rotate-key"]);
    old.ok(&["get", "pods", "-n", "red"]);
    assert_eq!(cli::ok(cluster, "node-1", &["accounts", "status"]).lines().count(), 3);
    let said = cli::ok(cluster, "node-2", &["accounts", "rotate-key", "--end-tokens"]);
    assert!(said.starts_with("tokens are signed with key "), "{said}");
    old.fails(&["get", "pods", "-n", "red"]);
    // The pod is given one that serves, without a restart.
    let renewed = || async {
        let token = read(cluster, "token");
        let said = with_token(root, &token).run(&["get", "pods", "-n", "red", "-o", "name"]);
        if said.code == Some(0) { Ok(()) } else { Err(said.err) }
    };
    eventually(Duration::from_secs(150), "the pod has a token of the new key", renewed).await;
}

async fn a_deleted_pods_token_is_worth_nothing(cluster: &Cluster, root: &Kubectl) {
    let user = with_token(root, &read(cluster, "token"));
    user.ok(&["get", "pods", "-n", "red"]);
    root.ok(&["delete", "pod", "-n", "red", "speaker", "--timeout=60s"]);
    let said = user.fails(&["get", "pods", "-n", "red"]);
    assert!(said.contains("Unauthorized") || said.contains("must be logged in"), "{said}");
}

async fn a_request_becomes_a_user(root: &Kubectl) {
    let key = rcgen::KeyPair::generate().expect("a key can be made");
    let request = |groups: &[&str]| {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "ann");
        for group in groups {
            params.distinguished_name.push(rcgen::DnType::OrganizationName, *group);
        }
        let pem = params.serialize_request(&key).and_then(|request| request.pem()).expect("a request can be made");
        json!({
            "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": "ann"},
            "spec": {
                "request": STANDARD.encode(pem), "signerName": "kubernetes.io/kube-apiserver-client",
                "usages": ["client auth"], "expirationSeconds": 3600,
            },
        })
    };
    let masters = root.pipe(&["create", "-f", "-"], &request(&["system:masters"]).to_string());
    assert!(masters.err.contains("signer with system:masters group is not allowed"), "{masters:?}");
    root.ok_with(&["create", "-f", "-"], &request(&["dev"]).to_string());
    assert!(root.ok(&["get", "csr", "ann"]).contains("Pending"));
    root.ok(&["certificate", "approve", "ann"]);
    let issued = || async {
        let said = root.ok(&["get", "csr", "ann", "-o", "jsonpath={.status.certificate}"]);
        if said.is_empty() { Err("not signed".to_owned()) } else { Ok(said) }
    };
    let certificate = eventually(WAIT, "the certificate is signed", issued).await;
    assert!(root.ok(&["get", "csr", "ann"]).contains("Approved,Issued"));

    let user = json!({
        "client-certificate-data": certificate,
        "client-key-data": STANDARD.encode(key.serialize_pem()),
    });
    let ann = as_user(root, &user);
    let who = ann.ok(&["auth", "whoami", "-o", "jsonpath={.status.userInfo}"]);
    assert!(who.contains("\"ann\"") && who.contains("\"dev\""), "{who}");
    // Whoever may approve requests may not approve those of every signer.
    root.ok(&[
        "create",
        "clusterrole",
        "approver",
        "--verb=get,update",
        "--resource=certificatesigningrequests,certificatesigningrequests/approval",
    ]);
    root.ok(&["create", "clusterrolebinding", "approver", "--clusterrole=approver", "--group=dev"]);
    let mut second = request(&["ops"]);
    second["metadata"]["name"] = json!("second");
    root.ok_with(&["create", "-f", "-"], &second.to_string());
    let refused = ann.fails(&["certificate", "approve", "second"]);
    assert!(refused.contains("user not permitted to approve requests with signerName"), "{refused}");
    root.ok(&["certificate", "deny", "second"]);
    assert!(root.ok(&["get", "csr", "second"]).contains("Denied"));
}

fn pod(name: &str, account: &str, image: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "red"},
        "spec": {
            "serviceAccountName": account, "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "main", "image": image, "command": ["/bin/sh", "-c", "sleep 1000"]}],
        },
    })
}

fn inside(cluster: &Cluster, script: &str) -> String {
    cli::ok(cluster, "node-2", &["exec", "-n", "red", "speaker", "--", "/bin/sh", "-c", script])
}

fn read(cluster: &Cluster, file: &str) -> String {
    inside(cluster, &format!("cat {DIR}/{file}"))
}

/// The same API, with a token instead of a certificate.
fn with_token(like: &Kubectl, token: &str) -> Kubectl {
    as_user(like, &json!({"token": token}))
}

fn as_user(like: &Kubectl, user: &Value) -> Kubectl {
    let config: Value = serde_json::from_str(&like.ok(&["config", "view", "--raw", "-o", "json"])).expect("JSON");
    with_cluster(&config["clusters"][0]["cluster"], user)
}

fn bearer(server: &str, authority: &str, token: &str) -> Kubectl {
    let cluster = json!({"server": server, "certificate-authority-data": STANDARD.encode(authority)});
    with_cluster(&cluster, &json!({"token": token}))
}

fn with_cluster(cluster: &Value, user: &Value) -> Kubectl {
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    });
    Kubectl::with(&config.to_string())
}
