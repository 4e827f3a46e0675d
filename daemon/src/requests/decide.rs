//! What is to be done about one certificate request: no store, no key, no clock.
//!
//! Defined by upstream's signers (`kubernetes.io/kube-apiserver-client` and `kubernetes.io/kubelet-serving`), its cleaner of
//! old requests, and the validation of approvals.

use std::net::IpAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flotilla_api::Cause;
use flotilla_api::k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use flotilla_net::{NODE_GROUP, NODE_USER_PREFIX};
use jiff::{SignedDuration, Timestamp};
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

/// Signs certificates that programs and people call the API with.
pub const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";
/// Signs certificates that servers of nodes show.
const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";
/// Upstream's signer of what nodes call the API with: here they get that by joining.
const NODE_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";

/// How long a request stays that was decided, or was not.
const DECIDED_STAYS: SignedDuration = SignedDuration::from_secs(60 * 60);
const PENDING_STAYS: SignedDuration = SignedDuration::from_secs(24 * 60 * 60);

/// A certificate of a request that names no other time lives for a year, as upstream's.
const LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
const MIN_LIFETIME_SECONDS: i32 = 600;

/// Whichever key is used: one of an elliptic curve enciphers nothing.
const SERVING_USAGES: [&[&str]; 2] =
    [&["digital signature", "key encipherment", "server auth"], &["digital signature", "server auth"]];
const DECISIONS: &[&str] = &["Approved", "Denied"];

/// The largest request that is looked into.
const MAX_REQUEST_BYTES: usize = 8 * 1024;

#[derive(Debug, PartialEq)]
pub enum Decision {
    Wait,
    Remove,
    Sign(Grant),
    SignServing(Serving),
    /// It is never signed, and why.
    Refuse(String),
}

#[derive(Debug, PartialEq)]
pub struct Grant {
    pub der: Vec<u8>,
    pub user: String,
    pub groups: Vec<String>,
    pub lifetime: Duration,
}

#[derive(Debug, PartialEq)]
pub struct Serving {
    pub der: Vec<u8>,
    pub node: String,
    pub names: AltNames,
    pub lifetime: Duration,
}

/// What a request says of itself.
#[derive(Debug, PartialEq)]
pub struct Parsed {
    pub der: Vec<u8>,
    pub common_name: String,
    pub organizations: Vec<String>,
    pub names: AltNames,
}

/// The alternative names in a request.
#[derive(Debug, Default, PartialEq)]
pub struct AltNames {
    pub dns: Vec<String>,
    pub addresses: Vec<IpAddr>,
    pub emails: bool,
    pub uris: bool,
    /// There are some, of whatever kind.
    pub any: bool,
}

pub fn decide(request: &CertificateSigningRequest, value: &Value, now: Timestamp) -> Decision {
    if is_over(request, now) {
        return Decision::Remove;
    }
    if !has(request, "Approved") || has(request, "Denied") || has(request, "Failed") || is_issued(request) {
        return Decision::Wait;
    }
    let spec = &request.spec;
    let decision = match spec.signer_name.as_str() {
        CLIENT_SIGNER => grant(request, value).map(Decision::Sign),
        SERVING_SIGNER => serving(request, value).map(Decision::SignServing),
        NODE_SIGNER => Err("nodes of this cluster get their certificates by joining it".into()),
        _ => return Decision::Wait,
    };
    decision.unwrap_or_else(Decision::Refuse)
}

fn usages(request: &CertificateSigningRequest) -> &[String] {
    request.spec.usages.as_deref().unwrap_or_default()
}

/// How long what is signed lives.
fn lifetime(request: &CertificateSigningRequest) -> Duration {
    let seconds = request.spec.expiration_seconds.map(|seconds| seconds.max(MIN_LIFETIME_SECONDS).unsigned_abs());
    let asked = seconds.map(|seconds| Duration::from_secs(seconds.into()));
    asked.unwrap_or(LIFETIME).min(LIFETIME)
}

fn grant(request: &CertificateSigningRequest, value: &Value) -> Result<Grant, String> {
    let may = |usage: &str| matches!(usage, "digital signature" | "key encipherment" | "client auth");
    if let Some(other) = usages(request).iter().find(|usage| !may(usage)) {
        return Err(format!("invalid usage for client certificate: {other}"));
    }
    if !usages(request).iter().any(|usage| usage == "client auth") {
        return Err("missing required usage for client certificate: client auth".into());
    }
    let parsed = read(value)?;
    if parsed.names.any {
        return Err("a client's certificate has no alternative names".into());
    }
    Ok(Grant { der: parsed.der, user: parsed.common_name, groups: parsed.organizations, lifetime: lifetime(request) })
}

fn serving(request: &CertificateSigningRequest, value: &Value) -> Result<Serving, String> {
    let parsed = read(value)?;
    if parsed.organizations != [NODE_GROUP] {
        return Err("subject organization is not system:nodes".into());
    }
    let node = parsed.common_name.strip_prefix(NODE_USER_PREFIX);
    let node = node.ok_or_else(|| "subject common name does not begin with system:node: ".to_owned())?.to_owned();
    if parsed.names.dns.is_empty() && parsed.names.addresses.is_empty() {
        return Err("DNS or IP subjectAltName is required".into());
    }
    if parsed.names.emails {
        return Err("Email subjectAltNames are not allowed".into());
    }
    if parsed.names.uris {
        return Err("URI subjectAltNames are not allowed".into());
    }
    let mut asked: Vec<&str> = usages(request).iter().map(String::as_str).collect();
    asked.sort_unstable();
    if !SERVING_USAGES.contains(&asked.as_slice()) {
        return Err("usages did not match [digital signature key encipherment server auth]".into());
    }
    Ok(Serving { der: parsed.der, node, names: parsed.names, lifetime: lifetime(request) })
}

impl AltNames {
    fn add(&mut self, name: &GeneralName<'_>) {
        match name {
            GeneralName::DNSName(name) => self.dns.push((*name).to_owned()),
            GeneralName::RFC822Name(_) => self.emails = true,
            GeneralName::URI(_) => self.uris = true,
            GeneralName::IPAddress(bytes) => {
                let four = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
                let sixteen = || <[u8; 16]>::try_from(*bytes).map(IpAddr::from);
                self.addresses.extend(four.or_else(|_| sixteen()));
            }
            _ => {}
        }
    }
}

fn has(request: &CertificateSigningRequest, condition: &str) -> bool {
    since(request, condition).is_some()
}

/// Since when a condition holds.
fn since(request: &CertificateSigningRequest, condition: &str) -> Option<Timestamp> {
    let conditions = request.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let found = conditions.into_iter().find(|one| one.type_ == condition)?;
    let at = found.last_update_time.as_ref().or(request.metadata.creation_timestamp.as_ref());
    Some(at.map_or(Timestamp::MAX, |at| at.0))
}

fn is_issued(request: &CertificateSigningRequest) -> bool {
    request.status.as_ref().and_then(|status| status.certificate.as_ref()).is_some_and(|bytes| !bytes.0.is_empty())
}

/// Whether nobody needs it any more.
fn is_over(request: &CertificateSigningRequest, now: Timestamp) -> bool {
    let past = |at: Timestamp, stays: SignedDuration| at.saturating_add(stays).is_ok_and(|end| end < now);
    let decided = ["Denied", "Failed"].iter().filter_map(|condition| since(request, condition)).next();
    if let Some(at) = decided {
        return past(at, DECIDED_STAYS);
    }
    match (since(request, "Approved"), is_issued(request)) {
        (Some(at), true) => past(at, DECIDED_STAYS),
        _ => request.metadata.creation_timestamp.as_ref().is_some_and(|at| past(at.0, PENDING_STAYS)),
    }
}

/// The request in an object; its signature is looked at by who signs.
///
/// # Errors
/// Why it cannot be read.
pub fn read(object: &Value) -> Result<Parsed, String> {
    let pem = object["spec"]["request"].as_str().and_then(|text| STANDARD.decode(text).ok());
    let pem = pem.ok_or_else(|| "it is not base64".to_owned())?;
    let der = CertificateSigningRequestDer::from_pem_slice(&pem)
        .map_err(|_| "PEM block type must be CERTIFICATE REQUEST".to_owned())?;
    let der = der.as_ref().to_vec();
    if der.len() > MAX_REQUEST_BYTES {
        return Err(format!("it is larger than {MAX_REQUEST_BYTES} bytes"));
    }
    let (_, parsed) = X509CertificationRequest::from_der(&der).map_err(|error| error.to_string())?;
    let subject = &parsed.certification_request_info.subject;
    let text = |value: Result<&str, _>| {
        value.map(str::to_owned).map_err(|_: x509_parser::error::X509Error| "a name in it is not text".to_owned())
    };
    let common_names: Vec<String> =
        subject.iter_common_name().map(|name| text(name.as_str())).collect::<Result<_, _>>()?;
    let organizations = subject.iter_organization().map(|name| text(name.as_str())).collect::<Result<_, _>>()?;
    let mut names = AltNames::default();
    for extension in parsed.requested_extensions().into_iter().flatten() {
        if let ParsedExtension::SubjectAlternativeName(found) = extension {
            names.any = true;
            for name in &found.general_names {
                names.add(name);
            }
        }
    }
    Ok(Parsed { common_name: common_names.into_iter().next_back().unwrap_or_default(), organizations, names, der })
}

/// The complaint about a request that cannot be read.
pub fn unreadable(why: &str) -> Cause {
    Cause {
        reason: "FieldValueInvalid".into(),
        message: format!("Invalid value: \"<certificate request>\": {why}"),
        field: "spec.request".into(),
    }
}

/// What is wrong with a change of the conditions: decisions are made through `approval` and never taken back, and
/// everything else is not changed there.
pub fn changes_refused(old: &Value, new: &Value, is_approval: bool) -> Vec<Cause> {
    let conditions = |object: &Value| object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let of = |all: &[Value], condition: &str| all.iter().find(|one| one["type"] == condition).cloned();
    let (old, new) = (conditions(old), conditions(new));
    let mut wrong = Vec::new();
    let mut refuse = |why: String| {
        wrong.push(Cause {
            reason: "FieldValueForbidden".into(),
            message: format!("Forbidden: {why}"),
            field: "status.conditions".into(),
        });
    };
    for condition in ["Approved", "Denied", "Failed"] {
        let (before, after) = (of(&old, condition), of(&new, condition));
        let decides = DECISIONS.contains(&condition);
        match (before.is_some(), after.is_some()) {
            (true, false) => refuse(format!("updates may not remove a condition of type {condition:?}")),
            (false, true) if decides && !is_approval => {
                refuse(format!("updates may not add a condition of type {condition:?}"));
            }
            _ => {}
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use rcgen::SanType;
    use serde_json::json;

    use super::*;

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    fn request(subject: &[(rcgen::DnType, &str)], signer: &str, conditions: Value, age_hours: i64) -> Value {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, value) in subject {
            params.distinguished_name.push(kind.clone(), *value);
        }
        let pem = params.serialize_request(&key).unwrap().pem().unwrap();
        let created = now() - SignedDuration::from_hours(age_hours);
        json!({
            "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
            "metadata": {"name": "r", "creationTimestamp": created.to_string()},
            "spec": {"request": STANDARD.encode(pem), "signerName": signer, "usages": ["client auth"]},
            "status": {"conditions": conditions},
        })
    }

    fn decided(value: &Value) -> Decision {
        decide(&serde_json::from_value(value.clone()).unwrap(), value, now())
    }

    fn condition(kind: &str) -> Value {
        json!({"type": kind, "status": "True"})
    }

    #[test]
    fn what_was_approved_is_signed_and_nothing_else() {
        let subject = [(rcgen::DnType::CommonName, "ann"), (rcgen::DnType::OrganizationName, "dev")];
        let approved = || json!([condition("Approved")]);
        let Decision::Sign(grant) = decided(&request(&subject, CLIENT_SIGNER, approved(), 0)) else {
            panic!("not signed")
        };
        assert_eq!((grant.user.as_str(), grant.groups, grant.lifetime), ("ann", vec!["dev".to_owned()], LIFETIME));
        for conditions in [json!([]), json!([condition("Denied")]), json!([condition("Approved"), condition("Failed")])]
        {
            assert_eq!(decided(&request(&subject, CLIENT_SIGNER, conditions, 0)), Decision::Wait);
        }
        assert_eq!(decided(&request(&subject, "example.com/other", approved(), 0)), Decision::Wait);
        assert!(matches!(decided(&request(&subject, NODE_SIGNER, approved(), 0)), Decision::Refuse(_)));
        let mut serving = request(&subject, CLIENT_SIGNER, approved(), 0);
        serving["spec"]["usages"] = json!(["client auth", "server auth"]);
        assert!(matches!(decided(&serving), Decision::Refuse(_)));
        let mut short = request(&subject, CLIENT_SIGNER, approved(), 0);
        short["spec"]["expirationSeconds"] = json!(3600);
        assert!(matches!(decided(&short), Decision::Sign(grant) if grant.lifetime == Duration::from_secs(3600)));
    }

    #[test]
    fn servers_of_nodes_are_signed_for_what_they_are_reached_by() {
        let of = |names: Vec<SanType>, organization: &str, user: &str, usages: &[&str]| {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut params = rcgen::CertificateParams::default();
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(rcgen::DnType::OrganizationName, organization);
            params.distinguished_name.push(rcgen::DnType::CommonName, user);
            params.subject_alt_names = names;
            let pem = params.serialize_request(&key).unwrap().pem().unwrap();
            let mut value = request(&[], SERVING_SIGNER, json!([condition("Approved")]), 0);
            value["spec"]["request"] = json!(STANDARD.encode(pem));
            value["spec"]["usages"] = json!(usages);
            decided(&value)
        };
        let names = || vec![SanType::DnsName("n1".try_into().unwrap()), SanType::IpAddress([10, 0, 0, 1].into())];
        let usages = ["server auth", "digital signature"];
        let Decision::SignServing(serving) = of(names(), "system:nodes", "system:node:n1", &usages) else {
            panic!("not signed")
        };
        assert_eq!((serving.node.as_str(), serving.lifetime), ("n1", LIFETIME));
        assert_eq!(serving.names.dns, ["n1"]);
        assert_eq!(serving.names.addresses, [IpAddr::from([10, 0, 0, 1])]);
        let uri = || vec![SanType::DnsName("n1".try_into().unwrap()), SanType::URI("a://b".try_into().unwrap())];
        let table = [
            (of(names(), "dev", "system:node:n1", &usages), "subject organization is not system:nodes"),
            (of(names(), "system:nodes", "n1", &usages), "subject common name does not begin with system:node: "),
            (of(vec![], "system:nodes", "system:node:n1", &usages), "DNS or IP subjectAltName is required"),
            (of(uri(), "system:nodes", "system:node:n1", &usages), "URI subjectAltNames are not allowed"),
            (
                of(names(), "system:nodes", "system:node:n1", &["client auth", "digital signature"]),
                "usages did not match [digital signature key encipherment server auth]",
            ),
        ];
        for (decision, why) in table {
            assert_eq!(decision, Decision::Refuse(why.into()));
        }
    }

    #[test]
    fn old_requests_go() {
        let of = |conditions: Value, hours: i64| decided(&request(&[], "example.com/x", conditions, hours));
        assert_eq!(of(json!([]), 25), Decision::Remove);
        assert_eq!(of(json!([]), 23), Decision::Wait);
        assert_eq!(of(json!([condition("Denied")]), 2), Decision::Remove);
        assert_eq!(of(json!([condition("Failed")]), 0), Decision::Wait);
        let mut issued = request(&[], CLIENT_SIGNER, json!([condition("Approved")]), 2);
        issued["status"]["certificate"] = json!("AQID");
        assert_eq!(decided(&issued), Decision::Remove);
    }

    #[test]
    fn decisions_are_made_through_approval_and_never_taken_back() {
        let with = |conditions: Value| json!({"status": {"conditions": conditions}});
        let (none, yes) = (with(json!([])), with(json!([condition("Approved")])));
        assert!(changes_refused(&none, &yes, true).is_empty());
        assert_eq!(changes_refused(&none, &yes, false).len(), 1);
        assert_eq!(changes_refused(&yes, &none, true).len(), 1);
        assert!(changes_refused(&yes, &with(json!([condition("Approved"), condition("Failed")])), false).is_empty());
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for request in [
            "",
            "!",
            "AQID",
            &STANDARD.encode("-----BEGIN CERTIFICATE REQUEST-----\nAQID\n-----END CERTIFICATE REQUEST-----\n"),
        ] {
            assert!(read(&json!({"spec": {"request": request}})).is_err(), "{request}");
        }
    }
}
