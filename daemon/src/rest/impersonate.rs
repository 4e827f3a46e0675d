//! A request made as somebody else, by whoever may `impersonate` each thing that they claim to be.
//!
//! Defined by Kubernetes' authentication reference, "User impersonation".

use std::collections::BTreeMap;

use flotilla_api::Status;
use flotilla_control::rbac::Action;
use http::HeaderMap;
use percent_encoding::percent_decode_str;

use super::Rest;
use crate::gate::{User, resource_action};

const USER: &str = "impersonate-user";
const UID: &str = "impersonate-uid";
const GROUP: &str = "impersonate-group";
const EXTRA: &str = "impersonate-extra-";
/// Groups and extra values together; each is checked by itself.
const MAX_CLAIMS: usize = 256;

const SERVICE_ACCOUNT: &str = "system:serviceaccount:";
const AUTHENTICATION: &str = "authentication.k8s.io";

impl Rest {
    /// The user that a request is to be judged as: who sent it, or whom they claim to be.
    ///
    /// # Errors
    /// `Forbidden` for a claim that the sender may not make, `BadRequest` for claims without a user.
    pub(super) async fn impersonate(&self, sender: User, headers: &HeaderMap) -> Result<User, Status> {
        let Some(claimed) = claims(headers)? else { return Ok(sender) };
        for claim in claimed.to_check() {
            self.gate().require(&sender, &claim.action(), None).await?;
        }
        Ok(claimed.user())
    }
}

/// Whom a request claims to be made by.
#[derive(Debug, Default, PartialEq)]
struct Claims {
    name: String,
    uid: String,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
}

/// One thing that takes a right of its own.
struct Claim<'a> {
    group: &'static str,
    resource: &'static str,
    subresource: &'a str,
    namespace: &'a str,
    name: &'a str,
}

impl<'a> Claim<'a> {
    fn new(group: &'static str, resource: &'static str, name: &'a str) -> Self {
        Self { group, resource, subresource: "", namespace: "", name }
    }

    fn action(&self) -> Action<'a> {
        resource_action("impersonate", (self.group, self.resource, self.subresource), (self.namespace, self.name))
    }
}

impl Claims {
    fn to_check(&self) -> Vec<Claim<'_>> {
        let user = match service_account(&self.name) {
            Some((namespace, name)) => Claim { namespace, ..Claim::new("", "serviceaccounts", name) },
            None => Claim::new("", "users", &self.name),
        };
        let mut all = vec![user];
        all.extend(self.groups.iter().map(|group| Claim::new("", "groups", group)));
        for (key, values) in &self.extra {
            let of_key = |value| Claim { subresource: key, ..Claim::new(AUTHENTICATION, "userextras", value) };
            all.extend(values.iter().map(|value| of_key(value.as_str())));
        }
        if !self.uid.is_empty() {
            all.push(Claim::new(AUTHENTICATION, "uids", &self.uid));
        }
        all
    }

    fn user(self) -> User {
        let mut groups = self.groups;
        if groups.is_empty()
            && let Some((namespace, _)) = service_account(&self.name)
        {
            groups = vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
        }
        let of = if self.name == User::ANONYMOUS { User::UNAUTHENTICATED } else { User::AUTHENTICATED };
        if !groups.iter().any(|group| group == User::AUTHENTICATED || group == User::UNAUTHENTICATED) {
            groups.push(of.into());
        }
        User { name: self.name, uid: self.uid, groups, extra: self.extra }
    }
}

/// Namespace and name, if the user is a service account.
fn service_account(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix(SERVICE_ACCOUNT)?.split_once(':')?;
    (!namespace.is_empty() && !name.is_empty() && !name.contains(':')).then_some((namespace, name))
}

fn claims(headers: &HeaderMap) -> Result<Option<Claims>, Status> {
    let text = |value: &http::HeaderValue| {
        let text = std::str::from_utf8(value.as_bytes()).map(str::to_owned);
        text.map_err(|_| Status::bad_request("a header of impersonation is not valid UTF-8"))
    };
    let mut claims = Claims::default();
    let mut count = 0;
    for (header, value) in headers {
        let header = header.as_str();
        match header {
            USER => claims.name = text(value)?,
            UID => claims.uid = text(value)?,
            GROUP => claims.groups.push(text(value)?),
            _ => {
                let Some(key) = header.strip_prefix(EXTRA) else { continue };
                let key = percent_decode_str(key).decode_utf8_lossy().to_ascii_lowercase();
                claims.extra.entry(key).or_default().push(text(value)?);
            }
        }
        count += 1;
        if count > MAX_CLAIMS {
            return Err(Status::bad_request(format!(
                "a request may make at most {MAX_CLAIMS} claims of impersonation"
            )));
        }
    }
    match (claims.name.is_empty(), claims == Claims::default()) {
        (false, _) => Ok(Some(claims)),
        (true, true) => Ok(None),
        (true, false) => Err(Status::bad_request("a request that claims groups, a uid or extra must claim a user too")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&str, &str)]) -> HeaderMap {
        let pairs = list.iter().map(|(name, value)| {
            (http::HeaderName::try_from(*name).unwrap(), http::HeaderValue::from_str(value).unwrap())
        });
        let mut map = HeaderMap::new();
        pairs.for_each(|(name, value)| _ = map.append(name, value));
        map
    }

    fn checked(claims: &Claims) -> Vec<String> {
        let words = claims.to_check().into_iter().map(|claim| match claim.action() {
            Action::Resource { group, resource, subresource, namespace, name, .. } => {
                format!("{group}/{resource}/{subresource} {namespace} {name}")
            }
            Action::Path { .. } => unreachable!("nobody claims a path"),
        });
        words.collect()
    }

    #[test]
    fn each_claim_takes_a_right_of_its_own() {
        let map = headers(&[
            ("Impersonate-User", "ann"),
            ("Impersonate-Group", "dev"),
            ("Impersonate-Group", "ops"),
            ("Impersonate-Extra-Acme.com%2fScope", "read"),
            ("Impersonate-Uid", "7"),
        ]);
        let claims = claims(&map).unwrap().unwrap();
        assert_eq!(
            checked(&claims),
            [
                "/users/  ann",
                "/groups/  dev",
                "/groups/  ops",
                "authentication.k8s.io/userextras/acme.com/scope  read",
                "authentication.k8s.io/uids/  7"
            ]
        );
        let user = claims.user();
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("ann", "7"));
        assert_eq!(user.groups, ["dev", "ops", "system:authenticated"]);
        assert_eq!(user.extra["acme.com/scope"], ["read"]);
    }

    #[test]
    fn service_accounts_and_strangers_are_in_their_groups() {
        let of = |name: &str| claims(&headers(&[("impersonate-user", name)])).unwrap().unwrap();
        let account = of("system:serviceaccount:red:bot");
        assert_eq!(checked(&account), ["/serviceaccounts/ red bot"]);
        assert_eq!(
            account.user().groups,
            ["system:serviceaccounts", "system:serviceaccounts:red", "system:authenticated"]
        );
        assert_eq!(of("system:anonymous").user().groups, ["system:unauthenticated"]);
        assert_eq!(checked(&of("system:serviceaccount:red")), ["/users/  system:serviceaccount:red"]);
    }

    #[test]
    fn claims_without_a_user_are_refused() {
        assert!(claims(&headers(&[("accept", "x")])).unwrap().is_none());
        for (name, value) in [("impersonate-group", "a"), ("impersonate-uid", "1"), ("impersonate-extra-a", "b")] {
            assert!(claims(&headers(&[(name, value)])).is_err(), "{name}");
        }
        let many: Vec<(&str, &str)> = (0..=MAX_CLAIMS).map(|_| ("impersonate-group", "a")).collect();
        assert!(claims(&headers(&many)).is_err());
    }
}
