//! Whether a token shows who sent it.
//!
//! Defined by upstream's validation of bound tokens; the leeway of clocks is its too.

use std::collections::BTreeMap;

use flotilla_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use flotilla_api::{Builtin, Key, Status};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;

use super::jwt::{Claims, Named, Unverified};
use super::{Accounts, ISSUER};
use crate::gate::{self, User};

/// How far clocks may be apart, and how long the token of something that ends is still taken.
const LEEWAY: SignedDuration = SignedDuration::from_secs(60);

/// Why a token shows nothing.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("invalid bearer token")]
    Malformed,
    #[error("invalid bearer token: it was signed by a key that is not known")]
    UnknownKey,
    #[error("invalid bearer token: the signature does not match")]
    Signature,
    #[error("invalid bearer token: it was issued by {0:?}")]
    Issuer(String),
    #[error("token audiences {found:?} is invalid for the target audiences {wanted:?}")]
    Audience { found: Vec<String>, wanted: Vec<String> },
    #[error("service account token has expired")]
    Expired,
    #[error("service account token is not valid yet")]
    Early,
    #[error("invalid bearer token: its subject is not the account that it is bound to")]
    Subject,
    #[error("service account token has been invalidated: {0} has been deleted")]
    Gone(String),
    #[error("the store cannot be read: {}", .0.message)]
    Store(Status),
}

impl TokenError {
    /// Whether a replica that is up to date may see it otherwise.
    fn may_be_outdated(&self) -> bool {
        matches!(self, Self::UnknownKey | Self::Gone(_))
    }
}

/// Who a token shows, and for which of the audiences that were asked for.
#[derive(Debug, PartialEq)]
pub struct Shown {
    pub user: User,
    pub audiences: Vec<String>,
}

#[derive(Deserialize)]
struct Head {
    metadata: ObjectMeta,
}

impl Accounts {
    /// Who sends a token to this API.
    ///
    /// # Errors
    /// Why the token shows nobody.
    pub async fn authenticate(&self, token: &str) -> Result<User, TokenError> {
        self.review(token, &[]).await.map(|shown| shown.user)
    }

    /// Whom a token shows to one of `audiences`; none is this API.
    ///
    /// # Errors
    /// Why the token shows nobody.
    pub async fn review(&self, token: &str, audiences: &[String]) -> Result<Shown, TokenError> {
        match self.check(token, audiences, Timestamp::now()) {
            Err(error) if error.may_be_outdated() => {
                let caught_up = self.gate.store().barrier().await.map_err(gate::read_status);
                caught_up.map_err(TokenError::Store)?;
                self.check(token, audiences, Timestamp::now())
            }
            checked => checked,
        }
    }

    /// The same, by what this replica has.
    pub(super) fn check(&self, token: &str, audiences: &[String], now: Timestamp) -> Result<Shown, TokenError> {
        let own = [ISSUER.to_owned()];
        let audiences = if audiences.is_empty() { &own } else { audiences };
        let unverified = Unverified::parse(token).ok_or(TokenError::Malformed)?;
        let keys = self.keys().map_err(TokenError::Store)?;
        let point = keys.point(unverified.kid()).ok_or(TokenError::UnknownKey)?;
        let claims = unverified.verify(point).ok_or(TokenError::Signature)?;
        let shared = judge(&claims, audiences, now)?;
        self.check_bound(&claims, now)?;
        Ok(Shown { user: user(&claims), audiences: shared })
    }

    fn check_bound(&self, claims: &Claims, now: Timestamp) -> Result<(), TokenError> {
        let bound = &claims.kubernetes;
        let namespace = bound.namespace.as_str();
        self.lives(Builtin::ServiceAccount, namespace, &bound.serviceaccount, now)?;
        if let Some(secret) = &bound.secret {
            self.lives(Builtin::Secret, namespace, secret, now)?;
        }
        match (&bound.pod, &bound.node) {
            // The pod's node is told, and the token lives with the pod.
            (Some(pod), _) => self.lives(Builtin::Pod, namespace, pod, now),
            (None, Some(node)) => self.lives(Builtin::Node, "", node, now),
            (None, None) => Ok(()),
        }
    }

    fn lives(&self, kind: Builtin, namespace: &str, named: &Named, now: Timestamp) -> Result<(), TokenError> {
        let gone = || TokenError::Gone(format!("{} {:?}", kind.info().singular, named.name));
        if named.name.is_empty() || named.name.contains('/') || namespace.contains('/') {
            return Err(gone());
        }
        let key = Key::new(&kind.collection(), namespace, &named.name);
        let stored = self.gate.store().get(&key).map_err(|error| TokenError::Store(gate::read_status(error)))?;
        let stored = stored.ok_or_else(gone)?;
        let Head { metadata } = serde_json::from_slice(&stored.value).map_err(|_| gone())?;
        let ended =
            metadata.deletion_timestamp.is_some_and(|at| at.0.saturating_add(LEEWAY).is_ok_and(|last| last < now));
        match metadata.uid.as_deref() == Some(&named.uid) && !named.uid.is_empty() && !ended {
            true => Ok(()),
            false => Err(gone()),
        }
    }
}

/// What the claims alone say; the audiences that are meant by both.
fn judge(claims: &Claims, audiences: &[String], now: Timestamp) -> Result<Vec<String>, TokenError> {
    if claims.iss != ISSUER {
        return Err(TokenError::Issuer(claims.iss.clone()));
    }
    let shared: Vec<String> = audiences.iter().filter(|one| claims.aud.contains(one)).cloned().collect();
    if shared.is_empty() {
        return Err(TokenError::Audience { found: claims.aud.clone(), wanted: audiences.to_vec() });
    }
    let (now, leeway) = (now.as_second(), LEEWAY.as_secs());
    if claims.exp.saturating_add(leeway) < now {
        return Err(TokenError::Expired);
    }
    if claims.nbf.saturating_sub(leeway) > now || claims.iat.saturating_sub(leeway) > now {
        return Err(TokenError::Early);
    }
    if claims.sub != subject(&claims.kubernetes.namespace, &claims.kubernetes.serviceaccount.name) {
        return Err(TokenError::Subject);
    }
    Ok(shared)
}

/// The user that an account is.
pub(super) fn subject(namespace: &str, name: &str) -> String {
    format!("system:serviceaccount:{namespace}:{name}")
}

fn user(claims: &Claims) -> User {
    let bound = &claims.kubernetes;
    let mut extra = BTreeMap::new();
    let mut add = |key: &str, value: &str| {
        if !value.is_empty() {
            extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
        }
    };
    if !claims.jti.is_empty() {
        add("credential-id", &format!("JTI={}", claims.jti));
    }
    if let Some(pod) = &bound.pod {
        add("pod-name", &pod.name);
        add("pod-uid", &pod.uid);
    }
    if let Some(node) = &bound.node {
        add("node-name", &node.name);
        add("node-uid", &node.uid);
    }
    User {
        name: claims.sub.clone(),
        uid: bound.serviceaccount.uid.clone(),
        groups: vec![
            "system:serviceaccounts".into(),
            format!("system:serviceaccounts:{}", bound.namespace),
            User::AUTHENTICATED.into(),
        ],
        extra,
    }
}
