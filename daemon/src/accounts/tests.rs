use flotilla_api::k8s_openapi::api::authentication::v1::TokenRequest;
use flotilla_api::{Builtin, Key, Reason};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::jwt::{self, Claims, Unverified, claims_of_own};
use super::request::WARN_AFTER_SECONDS;
use super::{Accounts, ISSUER, TokenError};
use crate::gate::{Gate, User, WriteOptions};
use crate::secrets::bench;
use jiff::{SignedDuration, Timestamp};

const LATER: fn(i64) -> Timestamp = |seconds| Timestamp::now() + SignedDuration::from_secs(seconds);

/// A cluster of one store with an account, a Node, and a pod of the account on it.
struct Scene {
    gate: Gate,
    accounts: Accounts,
    roles: JoinHandle<()>,
    stop: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Scene {
    async fn set() -> Self {
        let (gate, dir) = bench().await;
        let accounts = Accounts::new(gate.clone());
        accounts.keep_keys().await.unwrap();
        let (stop, following) = (CancellationToken::new(), gate.clone());
        let until = stop.clone();
        let roles = tokio::spawn(async move { following.follow_roles(until).await });
        let scene = Self { gate, accounts, roles, stop, _dir: dir };
        for (kind, object) in [
            (Builtin::Namespace, json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "red"}})),
            (Builtin::ServiceAccount, account()),
            (Builtin::Node, json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}})),
            (Builtin::Pod, pod()),
        ] {
            scene.create(kind, object).await;
        }
        scene
    }

    async fn create(&self, kind: Builtin, object: Value) -> Value {
        let kind = self.gate.built_in(kind).unwrap();
        self.gate.create(&User::root(), &kind, object, &WriteOptions::by("test")).await.unwrap().object
    }

    async fn remove(&self, kind: Builtin, namespace: &str, name: &str) {
        let key = Key::new(&kind.collection(), namespace, name);
        let stored = self.gate.store().get(&key).unwrap().unwrap();
        let change = flotilla_api::Change::new("test", "test").remove(key, stored.mod_revision);
        self.gate.store().propose(change).await.unwrap();
    }

    async fn ask(&self, user: &User, spec: Value) -> Result<String, (Reason, String)> {
        let request: TokenRequest = serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap();
        let issued = self.accounts.issue(user, ("red", "bot"), &request, false).await;
        issued.map(|issued| issued.status.unwrap().token.unwrap()).map_err(|status| (status.reason, status.message))
    }

    async fn token(&self, spec: Value) -> String {
        self.ask(&User::root(), spec).await.unwrap()
    }

    async fn refused(&self, token: &str) -> String {
        self.accounts.authenticate(token).await.expect_err("the token shows nobody").to_string()
    }

    /// A token of other claims, signed by the cluster's key.
    fn forge(&self, edit: impl FnOnce(&mut Claims), token: &str) -> String {
        let mut claims = claims_of_own(token).unwrap();
        edit(&mut claims);
        let keys = self.accounts.keys().unwrap();
        let (key, pair) = keys.signer().unwrap();
        jwt::sign(pair, &key.id, &claims).unwrap()
    }

    async fn end(self) {
        self.stop.cancel();
        self.roles.await.unwrap();
        self.gate.store().clone().shutdown().await;
    }
}

fn account() -> Value {
    json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "bot", "namespace": "red"}})
}

fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "red"},
        "spec": {
            "serviceAccountName": "bot", "nodeName": "n1", "containers": [{"name": "c", "image": "i"}],
            "volumes": [{"name": "t", "projected": {"sources": [
                {"serviceAccountToken": {"path": "token"}},
                {"serviceAccountToken": {"path": "vault", "audience": "vault"}},
            ]}}],
        },
    })
}

fn bound(kind: &str, name: &str, uid: &str) -> Value {
    json!({"boundObjectRef": {"apiVersion": "v1", "kind": kind, "name": name, "uid": uid}})
}

#[tokio::test]
async fn a_token_shows_its_account_and_pod() {
    let scene = Scene::set().await;
    let token = scene.token(bound("Pod", "p", "")).await;
    let user = scene.accounts.authenticate(&token).await.unwrap();
    assert_eq!(user.name, "system:serviceaccount:red:bot");
    assert_eq!(user.groups, ["system:serviceaccounts", "system:serviceaccounts:red", "system:authenticated"]);
    let extra = |key: &str| user.extra[&format!("authentication.kubernetes.io/{key}")].join(",");
    assert_eq!((extra("pod-name"), extra("node-name")), ("p".into(), "n1".into()));
    assert!(!user.uid.is_empty() && !extra("pod-uid").is_empty() && !extra("node-uid").is_empty());
    assert!(extra("credential-id").starts_with("JTI="));
    scene.end().await;
}

#[tokio::test]
async fn tokens_that_are_not_quite_right_show_nobody() {
    let scene = Scene::set().await;
    let good = scene.token(json!({})).await;
    let parts: Vec<&str> = good.split('.').collect();
    let encode = |value: Value| {
        use base64::Engine as _;
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value.to_string())
    };
    let kid = Unverified::parse(&good).unwrap().kid().to_owned();
    let with_head = |head: Value| format!("{}.{}.{}", encode(head), parts[1], parts[2]);
    for head in [
        json!({"alg": "none", "kid": kid}),
        json!({"alg": "None", "kid": kid}),
        json!({"alg": "HS256", "kid": kid}),
        json!({"alg": "RS256", "kid": kid}),
        json!({"alg": "ES256", "kid": kid, "crit": ["exp"]}),
        json!({"alg": "ES256"}),
        json!({"kid": kid}),
        json!([]),
    ] {
        assert_eq!(scene.refused(&with_head(head.clone())).await, "invalid bearer token", "{head}");
    }
    let unsigned = format!("{}.{}.", encode(json!({"alg": "none", "kid": kid})), parts[1]);
    let flipped = format!("{}.{}.{}", parts[0], parts[1], parts[2].chars().rev().collect::<String>());
    let padded = format!("{good}=");
    let long = format!("{good}{}", "A".repeat(jwt::MAX_TOKEN_BYTES));
    for bad in ["", ".", "..", "...", "a.b.c", &unsigned, &padded, &long, &good[1..], &format!("{good}.x")] {
        assert!(scene.refused(bad).await.starts_with("invalid bearer token"), "{bad}");
    }
    assert!(scene.refused(&flipped).await.starts_with("invalid bearer token"));
    // Signed as something else, and then said to be ours.
    let other = with_head(json!({"alg": "ES256", "kid": kid, "typ": "JWT"}));
    assert_eq!(scene.refused(&other).await, "invalid bearer token: the signature does not match");
    scene.end().await;
}

#[tokio::test]
async fn claims_must_hold_now_and_here() {
    let scene = Scene::set().await;
    let good = scene.token(json!({"expirationSeconds": 600})).await;
    let check = |token: &str, now: Timestamp| scene.accounts.check(token, &[], now);
    assert!(check(&good, LATER(0)).is_ok());
    assert!(check(&good, LATER(650)).is_ok(), "clocks may be a minute apart");
    assert!(matches!(check(&good, LATER(670)), Err(TokenError::Expired)));
    assert!(matches!(check(&good, LATER(-120)), Err(TokenError::Early)));
    let later = scene.forge(|claims| claims.nbf += 300, &good);
    assert!(matches!(check(&later, LATER(0)), Err(TokenError::Early)));
    let elsewhere = scene.forge(|claims| claims.iss = "https://other".into(), &good);
    assert!(matches!(check(&elsewhere, LATER(0)), Err(TokenError::Issuer(_))));
    let another = scene.forge(|claims| claims.sub = "system:serviceaccount:kube-system:admin".into(), &good);
    assert!(matches!(check(&another, LATER(0)), Err(TokenError::Subject)));
    let overflowing = scene.forge(|claims| (claims.exp, claims.nbf) = (i64::MAX, i64::MIN), &good);
    assert!(check(&overflowing, LATER(0)).is_ok());
    let vault = scene.token(json!({"audiences": ["vault", "x"]})).await;
    assert!(matches!(check(&vault, LATER(0)), Err(TokenError::Audience { .. })));
    let asked = ["y".to_owned(), "vault".to_owned()];
    assert_eq!(scene.accounts.review(&vault, &asked).await.unwrap().audiences, ["vault"]);
    assert!(scene.accounts.review(&good, &asked).await.is_err());
    assert_eq!(scene.accounts.review(&good, &[ISSUER.to_owned()]).await.unwrap().audiences, [ISSUER]);
    scene.end().await;
}

#[tokio::test]
async fn another_clusters_token_shows_nobody() {
    let (here, there) = (Scene::set().await, Scene::set().await);
    let token = there.token(json!({})).await;
    assert!(there.accounts.authenticate(&token).await.is_ok());
    assert!(here.refused(&token).await.contains("a key that is not known"));
    here.end().await;
    there.end().await;
}

#[tokio::test]
async fn a_token_ends_with_what_it_is_bound_to() {
    let scene = Scene::set().await;
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": "red"}});
    // The Secret needs no keys of its own here: its bytes are not looked into.
    let of_pod = scene.token(bound("Pod", "p", "")).await;
    let of_node = scene.token(bound("Node", "n1", "")).await;
    let free = scene.token(json!({})).await;
    scene.create(Builtin::Secret, secret).await;
    let of_secret = scene.token(bound("Secret", "s", "")).await;
    for token in [&of_pod, &of_node, &of_secret, &free] {
        scene.accounts.authenticate(token).await.unwrap();
    }
    scene.remove(Builtin::Pod, "red", "p").await;
    assert!(scene.refused(&of_pod).await.contains("pod \"p\" has been deleted"));
    scene.create(Builtin::Pod, pod()).await;
    assert!(scene.refused(&of_pod).await.contains("has been deleted"), "another pod of the same name");
    scene.remove(Builtin::Secret, "red", "s").await;
    assert!(scene.refused(&of_secret).await.contains("secret \"s\""));
    scene.remove(Builtin::Node, "", "n1").await;
    assert!(scene.refused(&of_node).await.contains("node \"n1\""));
    scene.accounts.authenticate(&free).await.unwrap();
    scene.remove(Builtin::ServiceAccount, "red", "bot").await;
    scene.create(Builtin::ServiceAccount, account()).await;
    assert!(scene.refused(&free).await.contains("serviceaccount \"bot\""));
    scene.end().await;
}

#[tokio::test]
async fn requests_are_checked_as_upstream_does() {
    let scene = Scene::set().await;
    let root = User::root();
    let table = [
        (json!({"expirationSeconds": 599}), Reason::Invalid, "may not specify a duration less than 10 minutes"),
        (json!({"expirationSeconds": (1_i64 << 32) + 1}), Reason::Invalid, "a duration larger than 2^32 seconds"),
        (bound("ConfigMap", "x", ""), Reason::BadRequest, "cannot bind token to object of type"),
        (bound("Pod", "missing", ""), Reason::NotFound, "pods \"missing\" not found"),
        (bound("Pod", "p", "other"), Reason::Conflict, "does not match the UID in record"),
        (bound("Secret", "../p", ""), Reason::NotFound, "not found"),
    ];
    for (spec, reason, words) in table {
        let (found, message) = scene.ask(&root, spec.clone()).await.unwrap_err();
        assert!(found == reason && message.contains(words), "{spec}: {message}");
    }
    let request: TokenRequest = serde_json::from_value(json!({"metadata": {}, "spec": bound("Pod", "p", "")})).unwrap();
    let other = scene.accounts.issue(&root, ("red", "other"), &request, false).await.unwrap_err();
    assert_eq!(other.reason, Reason::NotFound);
    let stranger = scene.ask(&User::new("ann", vec![]), json!({})).await.unwrap_err();
    assert_eq!(stranger.0, Reason::Forbidden);
    scene.end().await;
}

#[tokio::test]
async fn a_node_asks_for_its_own_pods_only() {
    let scene = Scene::set().await;
    let uid = scene.gate.get(&User::root(), &scene.gate.built_in(Builtin::Pod).unwrap(), "red", "p").await.unwrap();
    let uid = uid["metadata"]["uid"].as_str().unwrap().to_owned();
    let with = |audience: &str| {
        let mut spec = bound("Pod", "p", &uid);
        spec["audiences"] = json!([audience]);
        spec
    };
    scene.ask(&User::node("n1"), bound("Pod", "p", &uid)).await.unwrap();
    scene.ask(&User::node("n1"), with("vault")).await.unwrap();
    for (node, spec, words) in [
        ("n1", json!({}), "not bound to a pod"),
        ("n1", bound("Pod", "p", ""), "without a uid"),
        ("n1", with("bank"), "not found in pod spec volume"),
        ("n2", bound("Pod", "p", &uid), "no relationship found"),
    ] {
        let (reason, message) = scene.ask(&User::node(node), spec.clone()).await.unwrap_err();
        assert!(reason == Reason::Forbidden && message.contains(words), "{node} {spec}: {message}");
    }
    scene.end().await;
}

#[tokio::test]
async fn the_token_of_a_pod_outlives_what_was_asked_for() {
    let scene = Scene::set().await;
    let mut spec = bound("Pod", "p", "");
    spec["expirationSeconds"] = json!(WARN_AFTER_SECONDS);
    let claims = claims_of_own(&scene.token(spec).await).unwrap();
    assert_eq!(claims.kubernetes.warnafter, Some(claims.iat + WARN_AFTER_SECONDS));
    assert_eq!(claims.exp - claims.iat, 365 * 24 * 3600);
    let at = |seconds: i64| Timestamp::from_second(claims.iat + seconds).unwrap();
    let token = scene.forge(|forged| *forged = claims.clone(), &scene.token(json!({})).await);
    assert!(super::is_young(&token, at(2_800)) && !super::is_young(&token, at(2_900)));
    let long = scene.token(json!({"expirationSeconds": 7 * 24 * 3600})).await;
    assert!(super::is_young(&long, at(23 * 3600)) && !super::is_young(&long, at(24 * 3600 + 60)));
    let plain = claims_of_own(&scene.token(bound("Pod", "p", "")).await).unwrap();
    assert_eq!((plain.kubernetes.warnafter, plain.exp - plain.iat), (None, 3600));
    scene.end().await;
}

#[tokio::test]
async fn old_keys_verify_until_their_tokens_have_ended() {
    let scene = Scene::set().await;
    let (old, long) = (scene.token(json!({})).await, scene.token(json!({"expirationSeconds": 1_i64 << 32})).await);
    let id = scene.accounts.rotate_key(&User::root(), false).await.unwrap();
    let new = scene.token(json!({})).await;
    assert_eq!(Unverified::parse(&new).unwrap().kid(), id);
    for token in [&old, &long, &new] {
        scene.accounts.authenticate(token).await.unwrap();
    }
    assert_eq!(scene.accounts.key_set().unwrap()["keys"].as_array().unwrap().len(), 2);
    let records = scene.accounts.key_records().await.unwrap();
    assert!(records[0].id == id && records[0].retired_at.is_none());
    let end = super::keys::ends(&records[1]).unwrap();
    assert_eq!(end.as_second(), claims_of_own(&long).unwrap().exp, "the longest of its tokens counts");
    scene.accounts.rotate_key(&User::root(), true).await.unwrap();
    assert!(scene.refused(&old).await.contains("not known"));
    assert!(scene.refused(&new).await.contains("not known"));
    scene.end().await;
}
