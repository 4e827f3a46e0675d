//! What a TokenRequest asks for, and which claims that comes to: no store, no clock.

use flotilla_api::k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest};
use flotilla_api::{Cause, Reason, Status, account};
use jiff::{SignedDuration, Timestamp};

use super::ISSUER;
use super::check::subject;
use super::jwt::{Claims, MAX_AUDIENCES, Named, Private, claims_of_own};

/// A pod's token that is asked for with this life is one that pods get unasked: it lives longer, for programs that
/// read it once, and says when it should have been replaced.
pub const WARN_AFTER_SECONDS: i64 = account::TOKEN_SECONDS;
/// How long it lives then.
const EXTENDED: SignedDuration = SignedDuration::from_hours(365 * 24);
/// A pod's token is replaced after a day at the latest.
const MAX_AGE_SECONDS: i64 = 24 * 60 * 60;
const DEFAULT_SECONDS: i64 = 60 * 60;
const MIN_LIFE_SECONDS: i64 = 10 * 60;
const MAX_LIFE_SECONDS: i64 = 1 << 32;
const MAX_AUDIENCE_BYTES: usize = 1024;

/// What a token may be bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bound {
    Pod,
    Secret,
    Node,
}

/// What is asked, with what was left open filled in.
#[derive(Debug, PartialEq)]
pub(super) struct Wish {
    pub audiences: Vec<String>,
    pub seconds: i64,
    pub bound: Option<(Bound, Named)>,
}

impl Wish {
    /// # Errors
    /// `Invalid` or `BadRequest`, in upstream's words.
    pub fn of(account: &str, request: &TokenRequest) -> Result<Self, Status> {
        let spec = request.spec.clone().unwrap_or_default();
        let seconds = spec.expiration_seconds.unwrap_or(DEFAULT_SECONDS);
        let wrong = match seconds {
            ..MIN_LIFE_SECONDS => Some("may not specify a duration less than 10 minutes"),
            MIN_LIFE_SECONDS..=MAX_LIFE_SECONDS => None,
            _ => Some("may not specify a duration larger than 2^32 seconds"),
        };
        if let Some(why) = wrong {
            return Err(invalid(account, "spec.expirationSeconds", &format!("Invalid value: {seconds}: {why}")));
        }
        let audiences = spec.audiences.clone().unwrap_or_default();
        if audiences.len() > MAX_AUDIENCES {
            let why = format!("Too many: {}: must have at most {MAX_AUDIENCES} items", audiences.len());
            return Err(invalid(account, "spec.audiences", &why));
        }
        if audiences.iter().any(|audience| audience.len() > MAX_AUDIENCE_BYTES) {
            let why = format!("Too long: may not be more than {MAX_AUDIENCE_BYTES} bytes");
            return Err(invalid(account, "spec.audiences", &why));
        }
        let audiences = if audiences.is_empty() { vec![ISSUER.to_owned()] } else { audiences };
        Ok(Self { audiences, seconds, bound: spec.bound_object_ref.as_ref().map(bound).transpose()? })
    }

    fn is_for_us(&self) -> bool {
        self.audiences.iter().all(|audience| audience == ISSUER)
    }

    /// The claims of the token, and when it ends as far as the client is told.
    pub fn claims(&self, account: &Account, bound: Private, jti: String, now: Timestamp) -> (Claims, Timestamp) {
        let later = |life: SignedDuration| now.saturating_add(life).unwrap_or(Timestamp::MAX);
        let asked = later(SignedDuration::from_secs(self.seconds));
        let extends = bound.pod.is_some() && self.seconds == WARN_AFTER_SECONDS && self.is_for_us();
        let end = if extends { later(EXTENDED) } else { asked };
        let claims = Claims {
            aud: self.audiences.clone(),
            exp: end.as_second(),
            iat: now.as_second(),
            iss: ISSUER.into(),
            jti,
            kubernetes: Private {
                namespace: account.namespace.clone(),
                serviceaccount: account.named.clone(),
                warnafter: extends.then_some(asked.as_second()),
                ..bound
            },
            nbf: now.as_second(),
            sub: subject(&account.namespace, &account.named.name),
        };
        (claims, asked)
    }
}

/// Whether a token that is good need not be replaced yet: it has seen less than four fifths of its life, and less than a
/// day.
pub fn is_young(token: &str, now: Timestamp) -> bool {
    claims_of_own(token).is_some_and(|claims| {
        let life = claims.kubernetes.warnafter.unwrap_or(claims.exp).saturating_sub(claims.iat);
        let age = now.as_second().saturating_sub(claims.iat);
        age.saturating_mul(5) < life.saturating_mul(4) && age < MAX_AGE_SECONDS
    })
}

/// The account that a token is for.
pub(super) struct Account {
    pub namespace: String,
    pub named: Named,
}

fn bound(reference: &BoundObjectReference) -> Result<(Bound, Named), Status> {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let (version, kind) = (text(&reference.api_version), text(&reference.kind));
    let (group, version) = version.split_once('/').unwrap_or(("", version.as_str()));
    let bound = match (group, kind.as_str()) {
        ("", "Pod") => Bound::Pod,
        ("", "Secret") => Bound::Secret,
        ("", "Node") => Bound::Node,
        _ => {
            let what = format!("{group}/{version}, Kind={kind}");
            return Err(Status::bad_request(format!("cannot bind token to object of type {what}")));
        }
    };
    Ok((bound, Named { name: text(&reference.name), uid: text(&reference.uid) }))
}

fn invalid(account: &str, field: &str, why: &str) -> Status {
    let cause = Cause { reason: "FieldValueInvalid".into(), message: why.to_owned(), field: field.to_owned() };
    Status {
        causes: vec![cause],
        ..Status::new(
            Reason::Invalid,
            format!("TokenRequest.authentication.k8s.io \"{account}\" is invalid: {field}: {why}"),
        )
    }
}
