//! Making tokens: the answer to a TokenRequest.
//!
//! Defined by the TokenRequest API and, for nodes, by upstream's NodeRestriction admission.

use flotilla_api::k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestStatus};
use flotilla_api::k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use flotilla_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use flotilla_api::{Builtin, Key, Reason, Status};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::jwt::{self, Named, Private};
use super::keys::USUAL_LIFE;
use super::request::{Account, Bound, Wish};
use super::{Accounts, ISSUER};
use crate::gate::{self, User, resource_action};

/// How often a token is signed anew because its key was replaced meanwhile.
const MAX_ATTEMPTS: usize = 3;

#[derive(Deserialize)]
struct Head {
    metadata: ObjectMeta,
}

impl Head {
    fn named(&self) -> Named {
        Named {
            name: self.metadata.name.clone().unwrap_or_default(),
            uid: self.metadata.uid.clone().unwrap_or_default(),
        }
    }
}

impl Accounts {
    /// A token for the account; `dry_run` gives none.
    ///
    /// # Errors
    /// `Forbidden`, `NotFound`, `Invalid` or `BadRequest` in upstream's words, or why nothing can be signed.
    pub async fn issue(
        &self,
        user: &User,
        (namespace, name): (&str, &str),
        request: &TokenRequest,
        dry_run: bool,
    ) -> Result<TokenRequest, Status> {
        let action = resource_action("create", ("", "serviceaccounts", "token"), (namespace, name));
        self.gate.require(user, &action, None).await?;
        let wish = Wish::of(name, request)?;
        let (account, private) = match self.find(user, namespace, name, &wish) {
            // This replica may be behind.
            Err(status) if matches!(status.reason, Reason::NotFound | Reason::Conflict | Reason::Forbidden) => {
                self.gate.store().barrier().await.map_err(gate::read_status)?;
                self.find(user, namespace, name, &wish)?
            }
            found => found?,
        };
        let mut answer = request.clone();
        answer.metadata.name = Some(name.to_owned());
        answer.metadata.namespace = Some(namespace.to_owned());
        answer.metadata.creation_timestamp =
            Some(Time(Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default()));
        let spec = answer.spec.get_or_insert_default();
        spec.audiences = Some(wish.audiences.clone());
        spec.expiration_seconds = Some(wish.seconds);
        let (token, end) =
            if dry_run { (String::new(), Timestamp::now()) } else { self.sign(&wish, &account, private).await? };
        answer.status = Some(TokenRequestStatus { expiration_timestamp: Some(Time(end)), token: Some(token) });
        Ok(answer)
    }

    async fn sign(&self, wish: &Wish, account: &Account, private: Private) -> Result<(String, Timestamp), Status> {
        for _ in 0..MAX_ATTEMPTS {
            let now = Timestamp::now();
            let keys = self.keys()?;
            let (key, pair) = keys.signer()?;
            let (claims, end) = wish.claims(account, private.clone(), credential_id()?, now);
            let ends = Timestamp::from_second(claims.exp).unwrap_or(Timestamp::MAX);
            let usual = now.saturating_add(USUAL_LIFE - SignedDuration::from_hours(1)).unwrap_or(Timestamp::MAX);
            if ends > usual && key.last_end.as_ref().is_none_or(|known| known.0 < ends) {
                match self.remember_end(&key.id, ends).await {
                    Err(status) if status.reason == Reason::Conflict => continue,
                    remembered => remembered?,
                }
            }
            let token = jwt::sign(pair, &key.id, &claims)
                .ok_or_else(|| Status::new(Reason::RequestEntityTooLarge, "the token would be too large"))?;
            return Ok((token, Timestamp::from_second(end.as_second()).unwrap_or(end)));
        }
        Err(Status {
            retry_after_seconds: Some(1),
            ..Status::new(Reason::ServiceUnavailable, "the key that signs tokens is being replaced; try again")
        })
    }

    /// The account, and what the token is bound to.
    fn find(&self, user: &User, namespace: &str, name: &str, wish: &Wish) -> Result<(Account, Private), Status> {
        let account: ServiceAccount = self.load(Builtin::ServiceAccount, namespace, name)?;
        let named = Head { metadata: account.metadata }.named();
        let account = Account { namespace: namespace.to_owned(), named };
        let mut private = Private::default();
        let mut pod = None;
        if let Some((bound, wanted)) = &wish.bound {
            let found = match bound {
                Bound::Pod => {
                    let found: Pod = self.load(Builtin::Pod, namespace, &wanted.name)?;
                    let named = Head { metadata: found.metadata.clone() }.named();
                    private.node = self.check_pod(name, &found)?;
                    private.pod = Some(named.clone());
                    pod = Some(found);
                    named
                }
                Bound::Secret => {
                    private.secret = Some(self.load::<Head>(Builtin::Secret, namespace, &wanted.name)?.named());
                    private.secret.clone().unwrap_or_default()
                }
                Bound::Node => {
                    private.node = Some(self.load::<Head>(Builtin::Node, "", &wanted.name)?.named());
                    private.node.clone().unwrap_or_default()
                }
            };
            if !wanted.uid.is_empty() && wanted.uid != found.uid {
                let kind = format!("{bound:?}");
                return Err(Status::new(
                    Reason::Conflict,
                    format!(
                        "Operation cannot be fulfilled on {kind} \"{}\": the UID in the bound object reference ({}) does \
                         not match the UID in record. The object might have been deleted and then recreated",
                        wanted.name, wanted.uid
                    ),
                ));
            }
        }
        if let Some(node) = user.as_node() {
            restrict(node, name, pod.as_ref(), wish)?;
        }
        Ok((account, private))
    }

    /// The node of a pod, which must run as this account.
    fn check_pod(&self, account: &str, pod: &Pod) -> Result<Option<Named>, Status> {
        let spec = pod.spec.as_ref();
        let runs_as = spec.and_then(|spec| spec.service_account_name.as_deref()).filter(|name| !name.is_empty());
        if runs_as.unwrap_or("default") != account {
            return Err(Status::bad_request(format!(
                "cannot bind token for serviceaccount \"{account}\" to pod running with different serviceaccount name."
            )));
        }
        let node = spec.and_then(|spec| spec.node_name.as_deref()).filter(|name| !name.is_empty());
        let Some(node) = node else { return Ok(None) };
        match self.load::<Head>(Builtin::Node, "", node) {
            Ok(found) => Ok(Some(found.named())),
            // It may have gone already; upstream tells the name then.
            Err(status) if status.reason == Reason::NotFound => {
                Ok(Some(Named { name: node.to_owned(), uid: String::new() }))
            }
            Err(status) => Err(status),
        }
    }

    fn load<T: DeserializeOwned>(&self, kind: Builtin, namespace: &str, name: &str) -> Result<T, Status> {
        let missing = || Status::not_found(kind.collection(), name);
        if name.is_empty() || name.contains('/') || namespace.contains('/') {
            return Err(missing());
        }
        let key = Key::new(&kind.collection(), namespace, name);
        let stored = self.gate.store().get(&key).map_err(gate::read_status)?.ok_or_else(missing)?;
        serde_json::from_slice(&stored.value).map_err(Status::internal)
    }
}

/// A node asks for its own pods' tokens only, and only for audiences that they name.
fn restrict(node: &str, account: &str, pod: Option<&Pod>, wish: &Wish) -> Result<(), Status> {
    let refuse =
        |why: &str| Err(Status::new(Reason::Forbidden, format!("serviceaccounts \"{account}\" is forbidden: {why}")));
    let Some((pod, Some((_, named)))) = pod.map(|pod| (pod, &wish.bound)) else {
        return refuse("node requested token not bound to a pod");
    };
    if named.uid.is_empty() {
        return refuse("node requested token with a pod binding without a uid");
    }
    let spec = pod.spec.as_ref();
    if spec.and_then(|spec| spec.node_name.as_deref()) != Some(node) {
        return refuse("node requested token bound to a pod scheduled on a different node");
    }
    let volumes = spec.into_iter().flat_map(|spec| spec.volumes.iter().flatten());
    let projected = volumes.flat_map(|volume| volume.projected.iter().flat_map(|all| all.sources.iter().flatten()));
    let named: Vec<&str> = projected
        .filter_map(|source| source.service_account_token.as_ref())
        .map(|token| token.audience.as_deref().filter(|audience| !audience.is_empty()).unwrap_or(ISSUER))
        .collect();
    match wish.audiences.iter().find(|audience| !named.contains(&audience.as_str())) {
        Some(other) => refuse(&format!("audience {other:?} not found in pod spec volume")),
        None => Ok(()),
    }
}

/// A name for one token that no other has: a random UUID.
fn credential_id() -> Result<String, Status> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| Status::internal("no randomness"))?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]))
}
